//! `quorate orderer backup` and `restore`: ledgers into another folder and back, without forks.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use quorate_orderer::backup::{
    self, Candidate, Restored, against_chain, against_orderers, chain_folder,
};
use quorate_orderer::store::{Copied, CopyError};
use quorate_orderer::{options, service};
use quorate_runtime::tasks::chain;
use quorate_runtime::{Clock, Entropy, Tasks};

use super::verify::{audited, shown};

/// How long connections may take to end.
const GOODBYE: Duration = Duration::from_secs(1);

#[derive(Args)]
pub(super) struct BackupArguments {
    #[command(flatten)]
    ledgers: super::Ledgers,
    /// The folder of the backup; what is there already is extended
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
}

#[derive(Args)]
pub(super) struct RestoreArguments {
    /// The folder of the backup
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// The channel, or several; all that are in the backup unless given
    #[arg(
        short = 'c',
        long = "channelID",
        visible_alias = "channel-id",
        value_name = "NAME"
    )]
    channels: Vec<String>,
    /// Another backup, or the ledgers of a stopped orderer, to compare with; may be given more than once
    #[arg(long, value_name = "DIR")]
    compare: Vec<PathBuf>,
    /// Do not ask the channel's orderers: none of them runs
    #[arg(long)]
    offline: bool,
    /// Every consenter of the channel has lost its consensus log, or too many for a majority are lost for good: the channel
    /// goes on from the newest block of this backup, which has this hash. Do the same on all consenters
    #[arg(long, value_name = "HASH")]
    begin_at: Option<String>,
}

pub(super) fn back_up(
    arguments: &BackupArguments,
    environment: &BTreeMap<String, String>,
) -> Result<ExitCode> {
    let location = arguments.ledgers.location(environment)?;
    for channel in arguments.ledgers.channels(&location)? {
        let copied = backup::backup(&location, &arguments.to, &channel)
            .with_context(|| format!("channel {channel}"))?;
        println!(
            "channel {channel}: {} are in the backup",
            described(&copied)
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn described(copied: &Copied) -> String {
    let Copied {
        first,
        height,
        head,
        added,
        ..
    } = copied;
    let head = head.map_or_else(|| "none".to_owned(), hex::encode);
    match height.checked_sub(1) {
        Some(last) if height > first => {
            format!("blocks {first} to {last} (newest hash {head}; {added} bytes are new)")
        }
        _ => "no blocks".to_owned(),
    }
}

pub(super) async fn restore(
    arguments: &RestoreArguments,
    environment: &BTreeMap<String, String>,
) -> Result<ExitCode> {
    let options = options::load(environment)?.options;
    let wanted = super::Ledgers {
        ledger: None,
        channels: arguments.channels.clone(),
    };
    for channel in wanted.channels(&arguments.from)? {
        restore_one(arguments, &options, &channel)
            .await
            .with_context(|| format!("channel {channel}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn restore_one(
    arguments: &RestoreArguments,
    options: &options::Options,
    channel: &str,
) -> Result<()> {
    let report = audited(&arguments.from, channel)?;
    if !report.is_intact() {
        bail!(
            "the backup is damaged, nothing was restored\n{}",
            shown(&report)
        );
    }
    let candidate = Candidate {
        channel: channel.to_owned(),
        folder: chain_folder(&arguments.from, channel),
        first: report.first,
        height: report.height,
    };
    for other in &arguments.compare {
        let report = audited(other, channel)?;
        let theirs = Candidate {
            channel: channel.to_owned(),
            folder: chain_folder(other, channel),
            first: report.first,
            height: report.height,
        };
        let common = against_chain(&candidate, &theirs)?;
        println!(
            "channel {channel}: {} has {} blocks; the {common} that both have are the same",
            other.display(),
            theirs.height
        );
        if theirs.height > candidate.height {
            println!(
                "channel {channel}: that one reaches further; restore it instead, unless other orderers have its blocks"
            );
        }
    }
    if let Some(hash) = &arguments.begin_at
        && report.head.as_ref() != Some(hash)
    {
        bail!(
            "the newest block of the backup has the hash {}, not {hash}; all consenters have to begin with the same block",
            report.head.as_deref().unwrap_or("none")
        );
    }
    if !arguments.offline {
        let highest = ask(&candidate, options).await?;
        match (highest, &arguments.begin_at) {
            (Some(height), Some(_)) if height > candidate.height => bail!(
                "the channel goes on already, and has {height} blocks; leave --begin-at out, and this orderer follows"
            ),
            (None, None) => bail!(
                "none of the channel's orderers could be asked whether this is their chain, and nothing was restored; start \
                 one that has the channel, or, if all are lost, say --offline"
            ),
            _ => {}
        }
    }
    let location = &options.file_ledger.location;
    let restored = match backup::restore(&arguments.from, location, channel, &Entropy::system()) {
        Ok(restored) => restored,
        Err(backup::BackupError::Copy(CopyError::Ahead { .. })) if arguments.begin_at.is_some() => {
            bail!(
                "the ledger of channel {channel} is ahead of the backup: make a backup of it, and let all consenters begin \
                 with that one"
            );
        }
        Err(backup::BackupError::Copy(CopyError::Ahead { .. })) => {
            println!(
                "channel {channel}: the ledger has everything that the backup has, and more; nothing was changed"
            );
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let Restored { copied, forgotten } = restored;
    println!(
        "channel {channel}: {} are in the ledger",
        described(&copied)
    );
    if arguments.begin_at.is_some() {
        backup::begin_anew(location, channel, copied.height, &Entropy::system())?;
        println!(
            "channel {channel}: it goes on from here when more than half of its consenters run, restored in the same way"
        );
    } else if forgotten {
        println!(
            "channel {channel}: what this orderer promised to the others is lost; when it runs it follows, and votes in no \
             election before a leader has given that back"
        );
    }
    Ok(())
}

/// Asks the channel's orderers for the newest block that both have; the height of the highest that answers.
async fn ask(candidate: &Candidate, options: &options::Options) -> Result<Option<u64>> {
    let channel = &candidate.channel;
    let tasks = Tasks::new("restore");
    let context = service::reader(options, &Clock::system(), &Entropy::system(), &tasks)
        .context("the orderers cannot be asked (--offline leaves that out)")?;
    let sources = candidate.configuration()?.orderer_endpoints();
    let outcome = against_orderers(candidate, sources, &context).await;
    tasks.stop(GOODBYE).await;
    let mut highest = None;
    for asked in outcome? {
        match asked.answer {
            Ok((height, common)) => {
                highest = highest.max(Some(height));
                println!(
                    "channel {channel}: {} has {height} blocks; the {common} that both have are the same",
                    asked.endpoint
                );
            }
            Err(failure) => println!(
                "channel {channel}: {} gave no answer: {}",
                asked.endpoint,
                chain(&failure)
            ),
        }
    }
    Ok(highest)
}
