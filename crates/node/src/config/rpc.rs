//! `rpcSettings`, `rpcUsers` and `security`.

use std::path::{Path, PathBuf};

use quorate_ledger::network::NetworkHostAndPort;
use quorate_rpc::Password;
use quorate_runtime::Secret;
use quorate_runtime::config::Section;

use crate::rpc::{RpcUser, Users};

/// The most users that can be configured.
const MAX_USERS: usize = 10_000;

/// Where applications and operators reach the node.
#[derive(Debug, Clone)]
pub struct RpcSettings {
    /// Where the node listens for them.
    pub address: NetworkHostAndPort,
    /// Corda's second port for its own clients. One port serves all here; the address is shown and not opened.
    pub admin_address: Option<NetworkHostAndPort>,
    /// Present if `useSsl = true`.
    pub tls: Option<RpcTls>,
}

/// The key store with the RPC server's certificate.
#[derive(Debug, Clone)]
pub struct RpcTls {
    /// The file.
    pub key_store_path: PathBuf,
    /// Its password.
    pub key_store_password: Secret,
}

pub(super) fn settings(root: &Section<'_>, base: &Path) -> Option<RpcSettings> {
    let section = root.section("rpcSettings");
    let address = match root.parsed::<NetworkHostAndPort>("rpcAddress") {
        Some(old) if !section.has("address") => {
            root.warning(
                "rpcAddress",
                "is the old name; write rpcSettings { address = … }",
            );
            Some(old)
        }
        Some(_) => {
            root.problem(
                "rpcAddress",
                "is the old name of rpcSettings.address, which is also given; remove it",
            );
            None
        }
        None => section.required(
            "address",
            "write where applications reach this node, such as \"localhost:10003\"",
        ),
    };
    let admin_address = section.parsed::<NetworkHostAndPort>("adminAddress");
    section.unneeded(
        "adminAddress",
        "one port serves applications and operators; this one is not opened",
    );
    let broker = "an external RPC broker is not supported; remove this key";
    section.refused_if_true("standAloneBroker", broker);
    let use_ssl = section.boolean_or("useSsl", false);
    let ssl = section.section("ssl");
    let key_store = ssl.text("keyStorePath");
    let password = ssl.secret("keyStorePassword");
    let tls = match (use_ssl, key_store, password) {
        (false, ..) => {
            if ssl.is_present() {
                section.warning("ssl", "has no effect: useSsl is not true");
            }
            None
        }
        (true, Some(path), Some(key_store_password)) => Some(RpcTls {
            key_store_path: base.join(path),
            key_store_password,
        }),
        (true, ..) => {
            section.problem(
                "ssl",
                "useSsl = true needs ssl { keyStorePath = …, keyStorePassword = … }",
            );
            None
        }
    };
    ssl.finish();
    section.finish();
    Some(RpcSettings {
        address: address?,
        admin_address,
        tls,
    })
}

pub(super) fn users(root: &Section<'_>) -> Vec<RpcUser> {
    let mut users = Vec::new();
    for section in root.sections("rpcUsers") {
        users.extend(user(section));
    }
    let security = root.section("security");
    let service = security.section("authService");
    let source = service.section("dataSource");
    if source.is_present() {
        match source.text_or("type", "INMEMORY").as_str() {
            "INMEMORY" => {}
            "DB" => source.problem(
                "type",
                "users in a database are not supported; write INMEMORY and list the users",
            ),
            _ => source.problem("type", "must be INMEMORY"),
        }
        match source.text_or("passwordEncryption", "NONE").as_str() {
            "NONE" => {}
            "SHIRO_1_CRYPT" => source.problem(
                "passwordEncryption",
                "passwords hashed by Shiro are not supported; write NONE and take the password from an environment \
                 variable, as in password = \"${RPC_PASSWORD}\"",
            ),
            _ => source.problem("passwordEncryption", "must be NONE"),
        }
        source.refused(
            "connection",
            "users in a database are not supported; list the users here",
        );
        if root.has("rpcUsers") && source.has("users") {
            root.problem(
                "rpcUsers",
                "is given besides security.authService; keep one of the two",
            );
        }
        for section in source.sections("users") {
            users.extend(user(section));
        }
    }
    source.finish();
    service.unneeded("id", "there is one source of users");
    service.unneeded("options", "users in memory need no cache");
    service.finish();
    security.finish();

    let from = if root.has("rpcUsers") {
        "rpcUsers"
    } else {
        "security"
    };
    if users.len() > MAX_USERS {
        root.problem(from, format!("more than {MAX_USERS} users"));
    } else if let Err(error) = Users::new(users.iter().cloned()) {
        root.problem(from, error.to_string());
    }
    users
}

fn user(section: Section<'_>) -> Option<RpcUser> {
    let (user, username) = (section.text("user"), section.text("username"));
    let password = section.secret("password");
    let permissions = section.texts("permissions");
    if user.is_some() && username.is_some() {
        section.problem("username", "is the same as `user`; keep one of the two");
    }
    let name = user.or(username);
    if name.is_none() {
        section.problem("user", "is missing; name the user");
    }
    if password.is_none() {
        section.problem("password", "is missing; give the user a password");
    }
    section.finish();
    Some(RpcUser {
        username: name?,
        password: Password::new(password?.expose()),
        permissions,
    })
}
