//! `quorate channel`: what an operator does with an ordering service's channels, against our orderers and Fabric's.

mod access;
mod advice;
mod consenter;
mod fetch;
mod genesis;
mod health;
mod inspect;
mod participation;
mod proposal;
mod set;
mod update;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use quorate_identity::UnixTime;
use quorate_identity::mutual_tls::{ClientTls, Credentials, Roots, shifted};
use quorate_runtime::Clock;
use tempfile::Builder;

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a channel's first block from a profile of a configtx.yaml
    Genesis(genesis::Arguments),
    /// Show what is in a block, an envelope, a configuration or a configuration update
    Inspect(inspect::Arguments),
    /// Fetch one block of a channel from an orderer
    Fetch(fetch::Arguments),
    /// Add, remove or rotate one consenter of a channel
    #[command(subcommand)]
    Consenter(Box<consenter::Command>),
    /// Change settings of a channel
    Set(Box<set::Arguments>),
    /// Change a channel as a file says, or submit an update that others have signed
    Update(Box<update::Arguments>),
    /// Sign an update of a channel that came by file
    Sign(update::Sign),
    #[command(flatten)]
    Participation(participation::Command),
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.command {
        Command::Genesis(arguments) => genesis::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Fetch(arguments) => fetch::run(&arguments).await,
        Command::Consenter(command) => consenter::run(*command).await,
        Command::Set(arguments) => set::run(&arguments).await,
        Command::Update(arguments) => update::run(&arguments).await,
        Command::Sign(arguments) => update::sign(&arguments),
        Command::Participation(command) => participation::run(command).await,
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// What to do where a file is that is to be written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Existing {
    Kept,
    Replaced,
}

/// Writes a whole file or none of it. A file that is kept is an error, of kind `AlreadyExists`.
fn write(path: &Path, bytes: &[u8], existing: Existing) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;

    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    // Blocks are no secrets. The process's mask takes away what it takes away from other files.
    let mut file = Builder::new()
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    match existing {
        Existing::Kept => file.persist_noclobber(path)?,
        Existing::Replaced => file.persist(path)?,
    };
    fs::File::open(folder)?.sync_all()
}

/// TLS to an orderer: whom to believe, what to show, and how far back to set the clock for judging
/// it, and which protocol to name in the handshake.
pub(crate) fn tls(
    roots: &Path,
    own: Option<(&Path, &Path)>,
    shift: Duration,
    protocol: Option<&[u8]>,
) -> Result<ClientTls> {
    let in_file = |path: &Path| path.display().to_string();
    let trusted = read(roots)?;
    let credentials = match own {
        Some((certificate, key)) => {
            let files = || format!("{} and {}", certificate.display(), key.display());
            let read = Credentials::from_pem(&read(certificate)?, &read(key)?);
            Some(read.with_context(files)?)
        }
        None => None,
    };
    let system = Clock::system();
    let clock = Arc::new(move || UnixTime(system.now_seconds()));
    Ok(ClientTls {
        credentials,
        roots: Roots::from_pem([trusted.as_slice()]).with_context(|| in_file(roots))?,
        clock: shifted(clock, shift),
        alpn: protocol.map(<[u8]>::to_vec).into_iter().collect(),
    })
}
