//! `quorate channel inspect`: what is in a file of the ordering service.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use quorate_fabric::block;
use quorate_fabric::config::ChannelConfig;
use quorate_fabric::envelope::{EnvelopeParts, RawEnvelope};
use quorate_fabric::inspect::Document;

/// The largest file that is looked at, in bytes. Orderers' messages have 100 MiB at most.
const MAX_FILE_BYTES: u64 = 256 * 1024 * 1024;
/// Who must have signed a block.
const BLOCK_VALIDATION: &str = "/Channel/Orderer/BlockValidation";
/// The exit code for a block that is not what its channel's orderers made.
const NOT_VERIFIED: u8 = 2;

#[derive(Args)]
pub(super) struct Arguments {
    /// The file, or - for standard input; what kind it is, is found out
    file: PathBuf,
    /// Print JSON, as configtxlator proto_decode does
    #[arg(long)]
    json: bool,
    /// Check the block's hash and signatures by this configuration block's rule; exit code 2 if they do not satisfy it
    #[arg(long, value_name = "CONFIG_BLOCK")]
    verify_with: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let document = open(&arguments.file)?;
    let verdict = match &arguments.verify_with {
        Some(config_block) => Some(verify(&document, config_block)?),
        None => None,
    };
    let shown = if arguments.json {
        serde_json::to_string_pretty(&document.json())? + "\n"
    } else {
        document.text()
    };
    // Who looks at the first lines only has seen enough.
    match io::stdout().lock().write_all(shown.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
        _ => {}
    }
    Ok(match verdict {
        None => ExitCode::SUCCESS,
        Some(Ok(())) => {
            eprintln!("verified: the orderers of that configuration made it");
            ExitCode::SUCCESS
        }
        Some(Err(reason)) => {
            eprintln!("NOT VERIFIED: {reason}");
            ExitCode::from(NOT_VERIFIED)
        }
    })
}

fn open(path: &Path) -> Result<Document> {
    let name = if path == Path::new("-") {
        "standard input".to_owned()
    } else {
        path.display().to_string()
    };
    let bytes = read(path).with_context(|| format!("reading {name}"))?;
    if let Some(document) = Document::recognise(&bytes) {
        return Ok(document);
    }
    let hint = match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
        None => "it is empty",
        Some(b'{' | b'[') => "it looks like JSON; what is read here is the binary form",
        Some(b'-') if bytes.starts_with(b"-----BEGIN ") => "it is a PEM file",
        Some(_) => "its bytes are another message, or damaged",
    };
    bail!("{name} is no block, envelope, configuration or configuration update: {hint}")
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let source: &mut dyn Read = if path == Path::new("-") {
        &mut io::stdin().lock()
    } else {
        &mut File::open(path)?
    };
    let mut bytes = Vec::new();
    source.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!(
            "it has more than {} MiB",
            MAX_FILE_BYTES >> 20
        )));
    }
    Ok(bytes)
}

/// Whether the block is one that the orderers of the configuration block's channel made: the verdict and its reason.
fn verify(document: &Document, config_block: &Path) -> Result<Result<(), String>> {
    let Document::Block(examined) = document else {
        bail!(
            "only blocks can be verified; this file holds: {}",
            document.kind()
        );
    };
    let name = || config_block.display().to_string();
    let Document::Block(rule) = open(config_block)? else {
        bail!("{} is no block", name());
    };
    let config = ChannelConfig::from_block(&rule)
        .with_context(|| format!("{} is no configuration block that can be used", name()))?;
    let policy = config
        .policies()
        .get(BLOCK_VALIDATION)
        .with_context(|| format!("{} has no policy {BLOCK_VALIDATION}", name()))?;
    // Neither hash nor signatures say of which channel a block is; its envelopes do.
    for encoded in examined.data.iter().flat_map(|data| &data.data) {
        let parts = RawEnvelope::decode(encoded.clone())
            .map_err(|error| error.to_string())
            .and_then(|envelope| {
                EnvelopeParts::parse(&envelope).map_err(|error| error.to_string())
            });
        match parts {
            Ok(parts) if parts.channel_header.channel_id == config.channel_id() => {}
            Ok(parts) => {
                return Ok(Err(format!(
                    "it is a block of channel {}, {} is one of channel {}",
                    parts.channel_header.channel_id,
                    name(),
                    config.channel_id()
                )));
            }
            Err(error) => return Ok(Err(format!("an envelope in it is damaged: {error}"))),
        }
    }
    if let (Some(header), Some(first)) = (&examined.header, &rule.header)
        && header.number == 0
    {
        // Nobody signs a genesis block: it is the right one if it is the very same.
        let same = block::check_data_hash(examined).is_ok()
            && block::header_hash(header) == block::header_hash(first);
        return Ok(if same {
            Ok(())
        } else {
            Err("a genesis block is signed by nobody, so it can only be compared with the one that the channel was made with".to_owned())
        });
    }
    Ok(block::check_data_hash(examined)
        .and_then(|()| block::verify_signatures(examined, &policy))
        .map_err(|error| quorate_runtime::tasks::chain(&error)))
}
