//! `quorate channel update` and `quorate channel sign`: changes that are written down, and updates that travel by file from
//! one organisation to the next.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use prost::Message as _;
use quorate_fabric::config::{
    ChannelConfig, Wanted, config_update_message, merge_signatures, open_config_update,
};
use quorate_fabric::genesis::BesideConfigtx;
use quorate_fabric::inspect::{Document, config_difference};
use quorate_fabric::proto::common::{ConfigUpdate, ConfigUpdateEnvelope};
use quorate_runtime::{Clock, Entropy};

use super::access::{Access, Identity};
use super::proposal::{Current, Handling, NONCE_BYTES, Proposal, add_signature};
use super::{Existing, read, write};

#[derive(Args)]
pub(super) struct Arguments {
    /// A file that says in YAML what shall be, in the words of configtx.yaml; or a file with an update, and copies of it
    /// that others have signed
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    access: Access,
    #[command(flatten)]
    handling: Handling,
}

#[derive(Args)]
pub(super) struct Sign {
    /// The update: what `--output` of the other commands writes, or peer channel signconfigtx, or configtxlator
    file: PathBuf,
    #[command(flatten)]
    identity: Identity,
    /// Write the signed copy to this file instead of replacing the update
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The channel's newest configuration block, to show what changes and whose signatures are missing
    #[arg(long, value_name = "FILE")]
    config_block: Option<PathBuf>,
}

pub(super) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let change = Change::read(&arguments.files)?;
    let session = arguments.access.open()?;
    let current = Current::fetch(&session, &arguments.access).await?;
    let handling = &arguments.handling;
    let proposal = match change {
        Change::Wanted { wanted, folder } => {
            let config = wanted.apply(&current.config, &BesideConfigtx(folder))?;
            Proposal::of(&session, &current, &config, handling)?
        }
        Change::Update(update) => Some(
            Proposal::signed_by_us(&session, &current, update, handling).context(
                "the update does not fit the configuration in force; if the channel was changed since, make it anew",
            )?,
        ),
    };
    let ended = match proposal {
        None => {
            println!("the channel is so already");
            Ok(ExitCode::SUCCESS)
        }
        Some(proposal) => proposal.carry_out(&session, &current, handling).await,
    };
    session.close().await;
    ended
}

/// What is in the files.
enum Change {
    Wanted {
        wanted: Box<Wanted>,
        folder: PathBuf,
    },
    Update(ConfigUpdateEnvelope),
}

impl Change {
    fn read(files: &[PathBuf]) -> Result<Self> {
        let mut copies = Vec::new();
        for path in files {
            let bytes = read(path)?;
            if let Some((_, update)) = update_in(&bytes) {
                copies.push(update);
                continue;
            }
            let name = path.display();
            if let Some(other) = Document::recognise(&bytes) {
                bail!("{name} holds no update but a {}", other.kind());
            }
            let Ok(text) = String::from_utf8(bytes) else {
                bail!("{name} is neither YAML nor an update");
            };
            if files.len() > 1 {
                bail!("{name} holds no update; one YAML file is taken at a time");
            }
            let wanted = Wanted::read(&text).with_context(|| name.to_string())?;
            let folder = path.parent().unwrap_or(Path::new("")).to_owned();
            let wanted = Box::new(wanted);
            return Ok(Self::Wanted { wanted, folder });
        }
        Ok(Self::Update(merge_signatures(copies)?))
    }
}

/// The channel and the update, with its signatures if it has any, in whatever form tools leave it.
fn update_in(bytes: &[u8]) -> Option<(String, ConfigUpdateEnvelope)> {
    let channel = |update: &ConfigUpdateEnvelope| {
        let update = ConfigUpdate::decode(&update.config_update[..]);
        update.map(|update| update.channel_id).unwrap_or_default()
    };
    match Document::recognise(bytes)? {
        Document::Envelope(envelope) => open_config_update(&envelope).ok(),
        Document::ConfigUpdateEnvelope(update) => Some((channel(&update), *update)),
        Document::ConfigUpdate(update) => {
            let channel = update.channel_id.clone();
            let signed = ConfigUpdateEnvelope {
                // The bytes as they are: to encode them anew could change them.
                config_update: bytes.to_vec(),
                signatures: Vec::new(),
            };
            Some((channel, signed))
        }
        _ => None,
    }
}

pub(super) fn sign(arguments: &Sign) -> Result<ExitCode> {
    let path = &arguments.file;
    let Some((channel, mut update)) = update_in(&read(path)?) else {
        bail!("{} holds no configuration update", path.display());
    };
    let msp = arguments.identity.load()?;
    let entropy = Entropy::system();
    show(arguments, &channel, &update)?;
    if !add_signature(&mut update, &msp, &entropy.bytes::<NONCE_BYTES>())? {
        println!(
            "{} has signed already",
            msp.identity().certificate().subject()
        );
        return Ok(ExitCode::SUCCESS);
    }
    let now = Clock::system().now_seconds();
    let nonce = entropy.bytes::<NONCE_BYTES>();
    let message = config_update_message(&channel, &update, now, &nonce, &msp)?;
    let (target, existing) = match &arguments.output {
        Some(output) => (output, Existing::Kept),
        None => (path, Existing::Replaced),
    };
    write(target, message.encoded(), existing)
        .with_context(|| format!("writing {}", target.display()))?;
    println!(
        "signed by {}: {}, written to {}",
        arguments.identity.msp_id,
        msp.identity().certificate().subject(),
        target.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// What is signed: what changes if the present configuration is known, and what the update writes otherwise.
fn show(arguments: &Sign, channel: &str, update: &ConfigUpdateEnvelope) -> Result<()> {
    let text = match &arguments.config_block {
        None => {
            let document = Document::recognise(&update.config_update);
            document.map(|document| document.text()).unwrap_or_default()
        }
        Some(path) => {
            let name = || path.display().to_string();
            let Some(Document::Block(block)) = Document::recognise(&read(path)?) else {
                bail!("{} is no block", name());
            };
            let current = ChannelConfig::from_block(&block).with_context(name)?;
            let review = current.review(update).with_context(|| {
                format!("the update does not fit the configuration in {}", name())
            })?;
            let mut text = config_difference(current.proto(), review.next.proto());
            text.push_str("judged by (+ satisfied, - not yet)\n");
            for judged in &review.judgements {
                text.push_str(&judged.requirement.to_string());
            }
            text
        }
    };
    println!("an update of channel {channel}");
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
