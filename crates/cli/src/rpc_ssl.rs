//! `quorate node generate-rpc-ssl-settings`: a certificate for the RPC server, and what clients
//! need to trust it.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use quorate_identity::UnixTime;
use quorate_identity::rpc_tls::RpcIdentity;
use quorate_runtime::Clock;
use zeroize::Zeroizing;

/// The key store, relative to the base directory.
const KEY_STORE: &str = "certificates/rpcsslkeystore.json";

/// The certificate for clients, relative to the base directory.
const TRUST: &str = "certificates/export/rpcssltrust.pem";

/// Shortest password that is taken, in characters.
const MIN_PASSWORD_CHARS: usize = 6;

#[derive(Args)]
pub(crate) struct Arguments {
    /// A host name or address under which clients reach the node; give it once for each
    #[arg(long = "host", default_value = "localhost")]
    hosts: Vec<String>,
    /// A file whose first line is the password for the key store
    #[arg(long)]
    key_store_password_file: std::path::PathBuf,
}

pub(crate) fn run(arguments: &Arguments, base_directory: &Path) -> Result<ExitCode> {
    let file = &arguments.key_store_password_file;
    let text = Zeroizing::new(
        fs::read_to_string(file).with_context(|| format!("password file {}", file.display()))?,
    );
    let password = text.lines().next().unwrap_or_default();
    if password.chars().count() < MIN_PASSWORD_CHARS {
        bail!(
            "the first line of {} has fewer than {MIN_PASSWORD_CHARS} characters; choose a longer \
             password",
            file.display()
        );
    }
    let (key_store, trust) = (base_directory.join(KEY_STORE), base_directory.join(TRUST));
    for path in [&key_store, &trust] {
        if path.exists() {
            bail!(
                "{} is there already; remove it to make a new one",
                path.display()
            );
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("folder {}", folder.display()))?;
        }
    }
    let now = UnixTime(Clock::system().now_seconds());
    let identity = RpcIdentity::self_signed(&arguments.hosts, now)?;
    identity.save(&key_store, password)?;
    let mut written =
        fs::File::create_new(&trust).with_context(|| format!("trust file {}", trust.display()))?;
    written.write_all(identity.certificates_pem().as_bytes())?;
    written.sync_all()?;
    println!("The RPC server's key store   : {}", key_store.display());
    println!("Give to clients, as trust    : {}", trust.display());
    println!("They connect with            : quorate shell --tls-trust {TRUST} …");
    println!("Write into node.conf, with the password of the key store:");
    println!();
    println!("rpcSettings {{");
    println!("    useSsl = true");
    println!("    ssl {{");
    println!("        keyStorePath = \"{KEY_STORE}\"");
    println!("        keyStorePassword = \"…\"");
    println!("    }}");
    println!("}}");
    Ok(ExitCode::SUCCESS)
}
