//! `quorate orderer prune`: a channel's oldest blocks into an archive, and out of the ledger.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{ArgGroup, Args};
use quorate_orderer::backup::chain_folder;
use quorate_orderer::options;
use quorate_orderer::store::{Extent, Ledgers, Pruned, Step, StoreError, Walk, copy};

/// How long removing the files may take.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Args)]
#[command(group = ArgGroup::new("extent").required(true).args(["keep_blocks", "below"]))]
pub(super) struct Arguments {
    /// The channel
    #[arg(
        short = 'c',
        long = "channelID",
        visible_alias = "channel-id",
        value_name = "NAME"
    )]
    channel: String,
    /// The folder of the archive; what is there already is extended
    #[arg(long, value_name = "DIR")]
    archive: PathBuf,
    /// Keep at least this many of the newest blocks
    #[arg(long, value_name = "NUMBER")]
    keep_blocks: Option<u64>,
    /// Keep at least all blocks from this one on
    #[arg(long, value_name = "NUMBER")]
    below: Option<u64>,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// The admin endpoint of the running orderer, host:port; without it the orderer must not run
    #[arg(short = 'o', long, value_name = "HOST:PORT")]
    orderer_address: Option<String>,
    #[command(flatten)]
    tls: super::EndpointTls,
}

pub(super) async fn run(
    arguments: &Arguments,
    environment: &BTreeMap<String, String>,
) -> Result<ExitCode> {
    let location = options::load(environment)?.options.file_ledger.location;
    let channel = &arguments.channel;
    let folder = chain_folder(&location, channel);
    if !folder.is_dir() {
        bail!(
            "there is no ledger of channel {channel} in {}",
            location.display()
        );
    }
    let (first, height) = extent(&folder, channel)?;
    let below = match (arguments.below, arguments.keep_blocks) {
        (Some(below), _) => below.min(height),
        (None, keep) => height.saturating_sub(keep.unwrap_or(height)),
    };
    if arguments.dry_run {
        println!(
            "channel {channel}: blocks {first} to {} are here; of those below {below} the whole block files would be \
             archived in {} and removed",
            height.saturating_sub(1),
            arguments.archive.display()
        );
        return Ok(ExitCode::SUCCESS);
    }
    // First the copy, verified and durable. Only what it holds may go.
    let archived = copy(
        &folder,
        &chain_folder(&arguments.archive, channel),
        channel,
        Extent::WholeFilesBelow(below),
    )
    .context("nothing was removed, since the archive could not be written")?;
    let below = archived.height;
    let pruned = match &arguments.orderer_address {
        Some(address) => {
            let client = arguments.tls.client(address, PATIENCE)?;
            client.prune(channel, below).await?
        }
        None => stopped(&location, channel, below)?,
    };
    let Pruned {
        first,
        files,
        bytes,
    } = pruned;
    if files == 0 {
        println!(
            "channel {channel}: nothing to be removed: only whole block files go, and never the one that is being \
             written; the first block is {first}"
        );
    } else {
        println!(
            "channel {channel}: {files} block file(s), {bytes} bytes, are in {} and no longer in the ledger; the first \
             block is {first}",
            arguments.archive.display()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// The first block and the height.
fn extent(folder: &std::path::Path, channel: &str) -> Result<(u64, u64)> {
    let mut walk = Walk::begin(folder, channel)?;
    let first = walk.first();
    let mut height = first;
    while let Some(Step::Record(_)) = walk.step()? {
        height += 1;
    }
    Ok((first, height))
}

fn stopped(location: &std::path::Path, channel: &str, below: u64) -> Result<Pruned> {
    let ledgers = Ledgers::open(location).map_err(|error| match error {
        StoreError::InUse { .. } => anyhow::Error::new(error).context(
            "the orderer runs: name its admin endpoint (-o, --ca-file, --client-cert, --client-key), or stop it",
        ),
        error => error.into(),
    })?;
    let store = ledgers
        .get(channel)?
        .with_context(|| format!("there is no ledger of channel {channel}"))?;
    Ok(store.prune(below)?)
}
