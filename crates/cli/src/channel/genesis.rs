//! `quorate channel genesis`: a profile of a `configtx.yaml` becomes a channel's first block.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use quorate_fabric::config::{ChannelConfig, raft_config};
use quorate_fabric::envelope::ChannelId;
use quorate_fabric::genesis::{BesideConfigtx, Profile};
use quorate_identity::UnixTime;
use quorate_orderer::store::StoredBlock;
use quorate_runtime::{Clock, Entropy};

use super::{Existing, advice, write};

/// The file's name, which is fixed.
const CONFIGTX: &str = "configtx.yaml";
/// Bytes of a nonce in a signature header, as Fabric's.
const NONCE_BYTES: usize = 24;

#[derive(Args)]
pub(super) struct Arguments {
    /// The profile
    #[arg(long)]
    profile: String,
    /// The channel
    #[arg(
        short = 'c',
        long = "channelID",
        visible_alias = "channel-id",
        value_name = "NAME"
    )]
    channel: String,
    /// Where to write the block
    #[arg(long, visible_alias = "outputBlock", value_name = "FILE")]
    output_block: PathBuf,
    /// The folder with configtx.yaml; files that it names are looked for from there
    #[arg(
        long,
        visible_alias = "configPath",
        env = "FABRIC_CFG_PATH",
        value_name = "DIR",
        default_value = "."
    )]
    config_path: PathBuf,
    /// Replace a block that is there
    #[arg(long)]
    force: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let channel = ChannelId::new(&arguments.channel).context(
        "a channel's name is a lower-case letter, then lower-case letters, digits, dots and dashes",
    )?;
    let now = UnixTime(Clock::system().now_seconds());
    let (profile, folder) = profile(arguments)?;
    let name = &arguments.profile;
    let nonce: [u8; NONCE_BYTES] = Entropy::system().bytes();
    let block = profile
        .genesis_block(&channel, &BesideConfigtx(folder), now.0, &nonce)
        .with_context(|| format!("profile {name} makes no genesis block"))?;

    // What the tool writes without complaint, an orderer may refuse. Better here than at the join.
    let refused = || format!("no orderer would accept the block of profile {name}");
    let config = ChannelConfig::from_block(&block).with_context(refused)?;
    raft_config::check(&config, now).with_context(refused)?;
    let block = StoredBlock::new(&block).with_context(refused)?;
    for warning in advice::warnings(&config, now) {
        eprintln!("warning: {warning}");
    }

    let path = &arguments.output_block;
    let existing = if arguments.force {
        Existing::Replaced
    } else {
        Existing::Kept
    };
    match write(path, block.encoded(), existing) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => bail!(
            "{} is there already; orderers that join with one block never meet those that join with another. If nobody has \
             joined with it, replace it with --force",
            path.display()
        ),
        Err(error) => return Err(error).with_context(|| format!("writing {}", path.display())),
    }
    println!(
        "genesis block of channel {channel} written to {}",
        path.display()
    );
    for consenter in &config.raft_metadata().consenters {
        println!("  consenter {}:{}", consenter.host, consenter.port);
    }
    Ok(ExitCode::SUCCESS)
}

/// The profile, and the folder from which its files are looked for.
fn profile(arguments: &Arguments) -> Result<(Profile, PathBuf)> {
    let given = &arguments.config_path;
    let file = if given.is_file() {
        given.clone()
    } else {
        given.join(CONFIGTX)
    };
    let text = fs::read_to_string(&file).with_context(|| {
        format!(
            "reading {}; say where it is with --config-path or FABRIC_CFG_PATH",
            file.display()
        )
    })?;
    let profile =
        Profile::read(&text, &arguments.profile).with_context(|| file.display().to_string())?;
    let folder = file.parent().unwrap_or(Path::new("."));
    Ok((profile, folder.to_owned()))
}
