//! Who may ask for what: users, their permissions, and what slows down those who guess passwords.
//!
//! Permissions are written as Corda's: `ALL`, `InvokeRpc.<operation>`, `StartFlow.<flow class>`;
//! a trailing `*` stands for any ending. Pure: the time is an argument.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use quorate_flow::FlowTrace;
use quorate_identity::SecureHash;
use quorate_rpc::{ErrorCode, Method, Password, RpcError};

/// Failed logins of one user before further ones must wait.
pub const FREE_FAILURES_PER_USER: u32 = 3;
/// Failed logins from one address before further ones must wait.
pub const FREE_FAILURES_PER_ADDRESS: u32 = 10;
/// The wait after the first failure that is not free; it doubles with each further one.
pub const FIRST_DELAY: Duration = Duration::from_secs(1);
/// The longest wait. It also bounds how long somebody who floods the node with failures can keep
/// a user from logging in anew; connections that have logged in are not affected.
pub const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// A user or address without a failure for this long starts afresh.
pub const FORGIVEN_AFTER: Duration = Duration::from_secs(600);
/// Users and addresses with failures that are remembered; the oldest give way.
pub const MAX_REMEMBERED: usize = 4096;
/// Longest user name and password, in bytes.
const MAX_CREDENTIAL_BYTES: usize = 1024;

/// A user as configured.
#[derive(Debug, Clone)]
pub struct RpcUser {
    /// The name.
    pub username: String,
    /// The password.
    pub password: Password,
    /// `ALL`, `InvokeRpc.x`, `StartFlow.y`.
    pub permissions: Vec<String>,
}

/// The configured users cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UsersError {
    /// Basic authorization cannot carry the name.
    #[error(
        "'{0}' cannot be the name of an RPC user: a name is not empty, not longer than \
         {MAX_CREDENTIAL_BYTES} bytes, and has neither ':' nor control characters"
    )]
    Name(String),
    /// An empty password, or one too long to be sent.
    #[error("the password of RPC user '{0}' is empty or longer than {MAX_CREDENTIAL_BYTES} bytes")]
    Password(String),
    /// The same name twice.
    #[error("RPC user '{0}' is configured twice")]
    Twice(String),
    /// Not a permission.
    #[error(
        "'{permission}' of RPC user '{user}' is not a permission: write ALL, \
         InvokeRpc.<operation> or StartFlow.<flow class>"
    )]
    Permission {
        /// Whose.
        user: String,
        /// What was written.
        permission: String,
    },
}

/// What a user may do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Permissions {
    all: bool,
    /// Operations by name or prefix (`vault*`), and flows likewise.
    invoke: Patterns,
    start: Patterns,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Patterns {
    exact: BTreeSet<String>,
    prefixes: Vec<String>,
}

impl Patterns {
    fn add(&mut self, pattern: &str) {
        match pattern.strip_suffix('*') {
            Some(prefix) => self.prefixes.push(prefix.to_owned()),
            None => {
                self.exact.insert(pattern.to_owned());
            }
        }
    }

    fn cover(&self, name: &str) -> bool {
        self.exact.contains(name) || self.prefixes.iter().any(|prefix| name.starts_with(prefix))
    }
}

impl Permissions {
    fn add(&mut self, permission: &str) -> bool {
        if permission == "ALL" {
            self.all = true;
            return true;
        }
        match permission.split_once('.') {
            Some(("InvokeRpc", name)) if !name.is_empty() => self.invoke.add(name),
            Some(("StartFlow", class)) if !class.is_empty() => self.start.add(class),
            _ => return false,
        }
        true
    }

    /// Whether the operation is allowed.
    pub fn may_invoke(&self, method: Method) -> bool {
        self.all
            || self.invoke.cover(method.name())
            || method
                .aliases()
                .iter()
                .any(|alias| self.invoke.cover(alias))
    }

    /// Whether flows of this class may be started, and their outcomes asked for.
    pub fn may_start(&self, flow: &str) -> bool {
        self.all || self.start.cover(flow)
    }
}

/// Who makes a call.
#[derive(Clone)]
pub struct Caller {
    /// The user.
    pub user: Arc<str>,
    /// From where: an IP address and port.
    pub origin: String,
    /// By which interface.
    pub interface: &'static str,
    /// The span of this call, if it is traced, and what caused it.
    pub trace: Option<FlowTrace>,
    permissions: Arc<Permissions>,
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.user, self.origin)
    }
}

impl Caller {
    /// Refuses an operation that the user may not use, naming the missing permission.
    pub fn require(&self, method: Method) -> Result<(), RpcError> {
        if self.permissions.may_invoke(method) {
            return Ok(());
        }
        Err(self.lacks(&method.permission()))
    }

    /// Refuses the start of a flow that the user may not start.
    pub fn require_start(&self, flow: &str) -> Result<(), RpcError> {
        if self.permissions.may_start(flow) {
            return Ok(());
        }
        Err(self.lacks(&format!("StartFlow.{flow}")))
    }

    /// Whether the user may ask for this operation about any flow.
    pub fn may_invoke(&self, method: Method) -> bool {
        self.permissions.may_invoke(method)
    }

    fn lacks(&self, permission: &str) -> RpcError {
        RpcError::new(
            ErrorCode::PermissionDenied,
            format!("user '{}' lacks the permission {permission}", self.user),
        )
        .with_remedy(format!(
            "add \"{permission}\" to the user's permissions in node.conf"
        ))
    }
}

/// The users of a node.
#[derive(Debug, Clone, Default)]
pub struct Users {
    users: BTreeMap<Arc<str>, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    /// Comparing digests takes the same time wherever two passwords differ.
    password: SecureHash,
    permissions: Arc<Permissions>,
}

fn digest(password: &str) -> SecureHash {
    SecureHash::of_parts(&[b"quorate rpc password", password.as_bytes()])
}

fn same(left: &SecureHash, right: &SecureHash) -> bool {
    let pairs = left.as_bytes().iter().zip(right.as_bytes());
    let difference = pairs.fold(0, |sum, (a, b)| sum | std::hint::black_box(a ^ b));
    difference == 0
}

impl Users {
    /// Checks the configured users.
    ///
    /// A permission for an operation that this node does not have is kept and does nothing: a
    /// node.conf may name operations of another version. [`Users::unknown_operations`] tells them.
    pub fn new(configured: impl IntoIterator<Item = RpcUser>) -> Result<Self, UsersError> {
        let mut users = BTreeMap::new();
        for user in configured {
            let name = user.username;
            if name.is_empty()
                || name.len() > MAX_CREDENTIAL_BYTES
                || name.contains(|c: char| c == ':' || c.is_control())
            {
                return Err(UsersError::Name(name.chars().take(64).collect()));
            }
            let password = user.password.reveal();
            if password.is_empty() || password.len() > MAX_CREDENTIAL_BYTES {
                return Err(UsersError::Password(name));
            }
            let mut permissions = Permissions::default();
            for permission in &user.permissions {
                if !permissions.add(permission.trim()) {
                    let permission = permission.clone();
                    return Err(UsersError::Permission {
                        user: name,
                        permission,
                    });
                }
            }
            let entry = Entry {
                password: digest(password),
                permissions: Arc::new(permissions),
            };
            if users.insert(Arc::from(name.as_str()), entry).is_some() {
                return Err(UsersError::Twice(name));
            }
        }
        Ok(Self { users })
    }

    /// Operations named in permissions that this node does not have, for a warning at start.
    pub fn unknown_operations(&self) -> BTreeSet<String> {
        let named = self
            .users
            .values()
            .flat_map(|entry| &entry.permissions.invoke.exact);
        named
            .filter(|name| name.parse::<Method>().is_err())
            .cloned()
            .collect()
    }

    fn check(&self, user: &str, password: &str) -> Option<(Arc<str>, Arc<Permissions>)> {
        let given = digest(password);
        let Some((name, entry)) = self.users.get_key_value(user) else {
            // An unknown user costs the same comparison as a known one.
            let _ = same(&given, &SecureHash::of(user.as_bytes()));
            return None;
        };
        same(&given, &entry.password).then(|| (name.clone(), entry.permissions.clone()))
    }
}

/// What is known about one connection: where it comes from, and who has logged in on it.
#[derive(Clone)]
pub struct Connection {
    peer: std::net::SocketAddr,
    verified: Arc<Mutex<Option<(SecureHash, Caller)>>>,
}

impl Connection {
    /// A connection on which nobody has logged in.
    pub fn new(peer: std::net::SocketAddr) -> Self {
        Self {
            peer,
            verified: Arc::default(),
        }
    }

    /// Where it comes from.
    pub fn peer(&self) -> std::net::SocketAddr {
        self.peer
    }
}

/// The check that every call passes.
#[derive(Debug)]
pub struct Gatekeeper {
    users: Users,
    failures: Mutex<Failures>,
}

impl Gatekeeper {
    /// A check against these users.
    pub fn new(users: Users) -> Self {
        Self {
            users,
            failures: Mutex::default(),
        }
    }

    /// Who calls, by the value of the `authorization` header.
    ///
    /// What has been proved on a connection stays proved on it, whatever others do meanwhile:
    /// the waiting times are for new proofs only. They do not depend on whether the password
    /// offered is right, so nothing can be learnt by guessing during one.
    pub fn identify(
        &self,
        connection: &Connection,
        authorization: Option<&[u8]>,
        interface: &'static str,
        now: Instant,
    ) -> Result<Caller, RpcError> {
        let header = authorization.ok_or_else(|| {
            RpcError::new(
                ErrorCode::Unauthenticated,
                "the call carries no credentials",
            )
            .with_remedy(
                "send an authorization header: Basic, user name and password of an RPC user",
            )
        })?;
        let mut verified = connection
            .verified
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let proof = SecureHash::of(header);
        if let Some((known, caller)) = &*verified
            && same(known, &proof)
        {
            return Ok(caller.clone());
        }
        let (user, password) = basic(header).ok_or_else(|| {
            RpcError::new(
                ErrorCode::Unauthenticated,
                "the authorization header is not basic authorization",
            )
        })?;
        let address = connection.peer.ip();
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(wait) = failures.wait(&user, address, now) {
            let seconds = wait.as_secs() + 1;
            return Err(RpcError::new(
                ErrorCode::TooManyAttempts,
                "there were too many failed logins for this user or from this address",
            )
            .with_remedy(format!("try again in {seconds} s")));
        }
        match self.users.check(&user, &password) {
            Some((user, permissions)) => {
                failures.forgive(&user);
                let caller = Caller {
                    user,
                    origin: connection.peer.to_string(),
                    interface,
                    trace: None,
                    permissions,
                };
                *verified = Some((proof, caller.clone()));
                Ok(caller)
            }
            None => {
                failures.add(&user, address, now);
                Err(RpcError::new(
                    ErrorCode::Unauthenticated,
                    "the user name or the password is wrong",
                ))
            }
        }
    }
}

/// User name and password of a basic authorization header.
fn basic(header: &[u8]) -> Option<(String, zeroize::Zeroizing<String>)> {
    let text = std::str::from_utf8(header).ok()?;
    let (scheme, encoded) = text.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") || encoded.len() > 4 * MAX_CREDENTIAL_BYTES {
        return None;
    }
    let decoded = zeroize::Zeroizing::new(STANDARD.decode(encoded.trim()).ok()?);
    let (user, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some((
        user.to_owned(),
        zeroize::Zeroizing::new(password.to_owned()),
    ))
}

/// Failed logins, bounded.
#[derive(Debug, Default)]
struct Failures {
    counts: HashMap<Suspect, Count>,
    /// In the order of first failure; the first gives way when there are too many.
    order: VecDeque<Suspect>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Suspect {
    User(String),
    Address(IpAddr),
}

impl Suspect {
    fn free(&self) -> u32 {
        match self {
            Self::User(_) => FREE_FAILURES_PER_USER,
            Self::Address(_) => FREE_FAILURES_PER_ADDRESS,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Count {
    failures: u32,
    last: Instant,
}

impl Failures {
    fn wait(&self, user: &str, address: IpAddr, now: Instant) -> Option<Duration> {
        let suspects = [
            Suspect::User(user.to_owned()),
            Suspect::Address(subnet(address)),
        ];
        let waits = suspects.iter().filter_map(|suspect| {
            let count = self.counts.get(suspect)?;
            let beyond = count.failures.checked_sub(suspect.free())?;
            let delay = FIRST_DELAY.saturating_mul(2_u32.saturating_pow(beyond.min(16)));
            let until = count.last + delay.min(LONGEST_DELAY);
            until
                .checked_duration_since(now)
                .filter(|wait| !wait.is_zero())
        });
        waits.max()
    }

    fn add(&mut self, user: &str, address: IpAddr, now: Instant) {
        let suspects = [
            Suspect::User(user.to_owned()),
            Suspect::Address(subnet(address)),
        ];
        for suspect in suspects {
            if let Some(count) = self.counts.get_mut(&suspect) {
                if now.duration_since(count.last) >= FORGIVEN_AFTER {
                    count.failures = 0;
                }
                count.failures = count.failures.saturating_add(1);
                count.last = now;
                continue;
            }
            while self.counts.len() >= MAX_REMEMBERED {
                match self.order.pop_front() {
                    Some(oldest) => self.counts.remove(&oldest),
                    None => break,
                };
            }
            self.order.push_back(suspect.clone());
            let count = Count {
                failures: 1,
                last: now,
            };
            self.counts.insert(suspect, count);
        }
    }

    /// A success clears the user. It does not clear the address, from which somebody else may be
    /// guessing between the successes.
    fn forgive(&mut self, user: &str) {
        let suspect = Suspect::User(user.to_owned());
        if self.counts.remove(&suspect).is_some() {
            self.order.retain(|known| *known != suspect);
        }
    }
}

/// Whoever has an IPv6 address has a whole /64 of them.
fn subnet(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let prefix = u128::from(address) & (u128::MAX << 64);
            IpAddr::V6(prefix.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, permissions: &[&str]) -> RpcUser {
        RpcUser {
            username: name.into(),
            password: Password::from("pa:ss"),
            permissions: permissions.iter().map(ToString::to_string).collect(),
        }
    }

    fn header(user: &str, password: &str) -> Vec<u8> {
        format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))).into_bytes()
    }

    trait ByGrpc {
        fn identify_by_grpc(
            &self,
            connection: &Connection,
            authorization: Option<&[u8]>,
            now: Instant,
        ) -> Result<Caller, RpcError>;
    }

    impl ByGrpc for Gatekeeper {
        fn identify_by_grpc(
            &self,
            connection: &Connection,
            authorization: Option<&[u8]>,
            now: Instant,
        ) -> Result<Caller, RpcError> {
            self.identify(connection, authorization, crate::rpc::GRPC_INTERFACE, now)
        }
    }

    fn from(address: &str) -> Connection {
        Connection::new(address.parse().unwrap())
    }

    #[test]
    fn permissions_are_by_method_by_flow_or_all() {
        let users = Users::new([
            user("ops", &["ALL"]),
            user(
                "app",
                &[
                    "InvokeRpc.vaultQueryBy",
                    "StartFlow.cash.Payment",
                    "StartFlow.iou.*",
                ],
            ),
        ])
        .unwrap();
        let gate = Gatekeeper::new(users);
        let who = |name| {
            let header = header(name, "pa:ss");
            gate.identify_by_grpc(&from("10.0.0.1:1"), Some(&header), Instant::now())
                .unwrap()
        };
        let ops = who("ops");
        assert!(Method::all().all(|method| ops.require(method).is_ok()));
        ops.require_start("any.Flow").unwrap();
        let app = who("app");
        app.require(Method::VaultQuery).unwrap();
        app.require_start("cash.Payment").unwrap();
        app.require_start("iou.Issue").unwrap();
        let refused = app.require(Method::KillFlow).unwrap_err();
        assert_eq!(refused.code, ErrorCode::PermissionDenied);
        assert!(refused.message.contains("InvokeRpc.killFlow"), "{refused}");
        let refused = app.require_start("cash.PaymentX").unwrap_err();
        assert!(
            refused.message.contains("StartFlow.cash.PaymentX"),
            "{refused}"
        );
    }

    #[test]
    fn configured_nonsense_is_named() {
        let refused = |users: Vec<RpcUser>| Users::new(users).unwrap_err().to_string();
        assert!(refused(vec![user("a:b", &[])]).contains("a:b"));
        assert!(refused(vec![user("a", &[]), user("a", &[])]).contains("twice"));
        assert!(refused(vec![user("a", &["StartFlow"])]).contains("'StartFlow'"));
        assert!(refused(vec![user("a", &["InvokeRpc."])]).contains("InvokeRpc."));
        assert!(refused(vec![user("a", &["all"])]).contains("ALL"));
        let users = Users::new([user("a", &["InvokeRpc.vaultQuery", "InvokeRpc.jdbc"])]).unwrap();
        assert_eq!(
            users.unknown_operations(),
            BTreeSet::from(["jdbc".to_owned()])
        );
        assert!(!format!("{users:?}").contains("pa:ss"));
    }

    #[test]
    fn three_failures_are_free_then_each_costs_more_and_a_login_on_the_connection_stays() {
        let gate = Gatekeeper::new(Users::new([user("ops", &["ALL"])]).unwrap());
        let now = Instant::now();
        let settled = from("10.0.0.1:1");
        let right = header("ops", "pa:ss");
        gate.identify_by_grpc(&settled, Some(&right), now).unwrap();

        let wrong = header("ops", "guess");
        for _ in 0..FREE_FAILURES_PER_USER {
            let refused = gate
                .identify_by_grpc(&from("10.0.0.2:1"), Some(&wrong), now)
                .unwrap_err();
            assert_eq!(refused.code, ErrorCode::Unauthenticated);
        }
        // Now even the right password has to wait, from wherever it comes …
        let refused = gate
            .identify_by_grpc(&from("10.0.0.3:1"), Some(&right), now)
            .unwrap_err();
        assert_eq!(refused.code, ErrorCode::TooManyAttempts);
        assert!(refused.retryable);
        // … except where it has been proved before.
        gate.identify_by_grpc(&settled, Some(&right), now).unwrap();
        // After the wait a further failure doubles it, and a success clears it.
        let later = now + FIRST_DELAY;
        gate.identify_by_grpc(&from("10.0.0.2:1"), Some(&wrong), later)
            .unwrap_err();
        let at = |wait: Duration| {
            gate.identify_by_grpc(&from("10.0.0.3:1"), Some(&right), later + wait)
                .map_err(|e| e.code)
        };
        assert_eq!(at(FIRST_DELAY).unwrap_err(), ErrorCode::TooManyAttempts);
        at(FIRST_DELAY * 2).unwrap();
        gate.identify_by_grpc(&from("10.0.0.9:1"), Some(&wrong), later)
            .unwrap_err();
        gate.identify_by_grpc(&from("10.0.0.9:1"), Some(&right), later)
            .unwrap();
    }

    #[test]
    fn an_address_is_slowed_down_whatever_names_it_tries_and_the_table_is_bounded() {
        let gate = Gatekeeper::new(Users::new([user("ops", &["ALL"])]).unwrap());
        let now = Instant::now();
        for n in 0..FREE_FAILURES_PER_ADDRESS {
            let guess = header(&format!("user{n}"), "guess");
            let peer = format!("[2001:db8::{n}]:1");
            let refused = gate
                .identify_by_grpc(&from(&peer), Some(&guess), now)
                .unwrap_err();
            assert_eq!(refused.code, ErrorCode::Unauthenticated);
        }
        let right = header("ops", "pa:ss");
        let refused = gate
            .identify_by_grpc(&from("[2001:db8::ffff]:1"), Some(&right), now)
            .unwrap_err();
        assert_eq!(refused.code, ErrorCode::TooManyAttempts);
        for n in 0..2 * MAX_REMEMBERED {
            let peer = format!("10.{}.{}.1:1", n / 256, n % 256);
            gate.identify_by_grpc(&from(&peer), Some(&header("x", &n.to_string())), now)
                .unwrap_err();
            gate.failures.lock().unwrap().forgive("x");
        }
        let failures = gate.failures.lock().unwrap();
        assert!(failures.counts.len() <= MAX_REMEMBERED);
        assert_eq!(failures.counts.len(), failures.order.len());
    }

    #[test]
    fn headers_of_nonsense_are_refused() {
        let gate = Gatekeeper::new(Users::new([user("ops", &["ALL"])]).unwrap());
        let long = format!("Basic {}", "A".repeat(100_000));
        for header in [
            &b""[..],
            b"Basic",
            b"Basic ",
            b"Bearer abc",
            b"Basic !!!",
            b"Basic b3Bz",
            b"\xff\xfe",
            long.as_bytes(),
        ] {
            let refused = gate.identify_by_grpc(&from("10.0.0.1:1"), Some(header), Instant::now());
            assert_eq!(refused.unwrap_err().code, ErrorCode::Unauthenticated);
        }
        let refused = gate
            .identify_by_grpc(&from("10.0.0.1:1"), None, Instant::now())
            .unwrap_err();
        assert!(refused.remedy.is_some());
    }
}
