//! `cryptoServiceName` and what belongs to it: which private keys a hardware security module keeps, and how it is reached.
//!
//! How to reach the module is in a file of its own (`cryptoServiceConf`), as Corda has it, because its permissions can be
//! stricter: it holds the PIN.

use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_flow::SigningRetries;
use quorate_hsm::{MAX_SESSIONS, Options, SESSIONS, TIMEOUT};
use quorate_identity::SignatureScheme;
use quorate_identity::node_keys::KeyPurpose;
use quorate_runtime::config::{Report, Section, expand_dotted_keys};
use quorate_runtime::hocon;

use super::{LoadOptions, reveal};

/// The name under which a module is configured, whoever made it.
const PKCS11: &str = "PKCS11";

/// What keeps the keys in files.
const IN_FILES: &str = "BC_SIMPLE";

/// The most attempts that can be asked for.
const MAX_RETRIES: i64 = 1_000;

/// The longest alias.
const MAX_ALIAS_BYTES: usize = 100;

/// Where the private keys are, and what to do if they cannot be used.
#[derive(Debug, Clone, Default)]
pub struct CryptoServices {
    /// Keeps the keys of node CA, legal identity and notary service; files do if there is none.
    pub identity: Option<Device>,
    /// Keeps the TLS key; a file does if there is none.
    pub tls: Option<Device>,
    /// Under which labels a module has the keys.
    pub aliases: Aliases,
    /// What becomes of a flow whose key is out of reach.
    pub flow_retries: SigningRetries,
}

/// A hardware security module.
#[derive(Debug, Clone)]
pub struct Device {
    /// How it is reached.
    pub options: Options,
    /// Of which scheme identity keys are that are made in it.
    pub scheme: SignatureScheme,
}

/// Labels of keys in a module.
#[derive(Debug, Clone)]
pub struct Aliases([(KeyPurpose, String); 4]);

impl Default for Aliases {
    fn default() -> Self {
        Self(KeyPurpose::ALL.map(|purpose| (purpose, purpose.alias().to_owned())))
    }
}

impl Aliases {
    /// The label of the key for a purpose.
    #[must_use]
    pub fn of(&self, purpose: KeyPurpose) -> &str {
        self.0
            .iter()
            .find(|(of, _)| *of == purpose)
            .map_or(purpose.alias(), |(_, alias)| alias)
    }
}

/// The configuration key of an alias, below `enterpriseConfiguration`.
const fn alias_key(purpose: KeyPurpose) -> &'static str {
    match purpose {
        KeyPurpose::NodeCa => "clientCaKeyAlias",
        KeyPurpose::LegalIdentity => "identityKeyAlias",
        KeyPurpose::NotaryService => "distributedNotaryKeyAlias",
        KeyPurpose::Tls => "tlsKeyAlias",
    }
}

pub(super) fn decode(
    root: &Section<'_>,
    enterprise: &Section<'_>,
    report: &Report,
    base: &Path,
    options: &LoadOptions,
) -> CryptoServices {
    let timeout = root.duration_or(
        "cryptoServiceTimeout",
        "milliseconds",
        TIMEOUT,
        Duration::from_millis(10)..=Duration::from_secs(600),
    );
    let identity = device(root, report, base, options, timeout);
    let tls_section = enterprise.section("tlsCryptoServiceConfig");
    let tls = device(&tls_section, report, base, options, timeout);
    tls_section.finish();
    let mut aliases = Aliases::default();
    for (purpose, alias) in &mut aliases.0 {
        let key = alias_key(*purpose);
        let Some(written) = enterprise.text(key) else {
            continue;
        };
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if written.is_empty() || written.len() > MAX_ALIAS_BYTES || !written.chars().all(allowed) {
            enterprise.problem(
                key,
                format!("must be 1 to {MAX_ALIAS_BYTES} lower case letters, digits and hyphens"),
            );
        }
        let kept = match purpose {
            KeyPurpose::Tls => tls.is_some(),
            _ => identity.is_some(),
        };
        if !kept && written != *alias {
            enterprise.warning(
                key,
                "has no effect: this key is kept in a file, where its name is fixed",
            );
        }
        *alias = written;
    }
    CryptoServices {
        identity,
        tls,
        aliases,
        flow_retries: flow_retries(root),
    }
}

/// Corda's number: its size is how often a flow is tried again, its sign what comes then.
fn flow_retries(root: &Section<'_>) -> SigningRetries {
    const KEY: &str = "cryptoServiceFlowRetryCount";
    let mut count = root.parsed_or::<i64>(KEY, -2);
    if !(-MAX_RETRIES..=MAX_RETRIES).contains(&count) {
        root.problem(
            KEY,
            format!("must be a whole number from -{MAX_RETRIES} to {MAX_RETRIES}"),
        );
        count = -2;
    }
    SigningRetries {
        retries: u32::try_from(count.unsigned_abs()).unwrap_or(u32::MAX),
        hold: count > 0,
    }
}

fn device(
    section: &Section<'_>,
    report: &Report,
    base: &Path,
    options: &LoadOptions,
    timeout: Duration,
) -> Option<Device> {
    const NAME: &str = "cryptoServiceName";
    const FILE: &str = "cryptoServiceConf";
    let name = section.text(NAME);
    let file = section.text(FILE);
    match name.as_deref() {
        None | Some(IN_FILES) => {
            if file.is_some() {
                section.problem(
                    FILE,
                    format!("is of no use without cryptoServiceName = {PKCS11}; write that, or remove this"),
                );
            }
            return None;
        }
        Some(PKCS11) => {}
        Some(other) => {
            section.problem(
                NAME,
                format!(
                    "{other} is not supported by that name: every hardware security module is reached through its PKCS#11 \
                     library; write {PKCS11} and name the library in cryptoServiceConf, or write {IN_FILES} to keep the \
                     keys in files"
                ),
            );
            return None;
        }
    }
    let Some(file) = file else {
        section.problem(
            FILE,
            "is missing; name a file with library, tokenLabel and pin",
        );
        return None;
    };
    let path = base.join(&file);
    let tree = match hocon::parse_file(&path, &options.environment) {
        Ok(tree) => tree,
        Err(error) => {
            section.problem(FILE, format!("cannot be read: {error}"));
            return None;
        }
    };
    let mut tree = expand_dotted_keys(tree);
    let mut hidden = std::collections::BTreeSet::new();
    reveal(
        &mut tree,
        FILE,
        options.obfuscation.as_deref(),
        report,
        &mut hidden,
    );
    let conf = section.read_elsewhere(FILE, &tree);
    let library = conf.required::<PathText>(
        "library",
        "name the PKCS#11 library of the module's manufacturer",
    );
    let token = conf.required::<String>("tokenLabel", "write the label of the token or partition");
    let pin = conf.secret("pin");
    if pin.as_ref().is_none_or(quorate_runtime::Secret::is_empty) {
        conf.problem("pin", "is missing; write the PIN of the token's user");
    }
    let sessions = conf.integer_or("sessions", SESSIONS as u64, 1..=MAX_SESSIONS as u64) as usize;
    let scheme = match conf.text("signatureScheme").as_deref() {
        None | Some("ECDSA_SECP256R1_SHA256") => SignatureScheme::EcdsaP256,
        Some("EDDSA_ED25519_SHA512") => SignatureScheme::Ed25519,
        Some(_) => {
            conf.problem(
                "signatureScheme",
                "must be ECDSA_SECP256R1_SHA256 or EDDSA_ED25519_SHA512",
            );
            SignatureScheme::EcdsaP256
        }
    };
    conf.finish();
    Some(Device {
        options: Options {
            library: base.join(library?.0),
            token: token?,
            pin: pin?,
            sessions,
            timeout,
        },
        scheme,
    })
}

/// A path as it is written.
struct PathText(PathBuf);

impl std::str::FromStr for PathText {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.into()))
    }
}

impl std::fmt::Display for PathText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.display().fmt(f)
    }
}
