//! `quorate channel fetch`: one block of a channel, from an orderer's Deliver service.

use std::fmt;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::Args;
use quorate_fabric::msp::LocalMsp;
use quorate_orderer::deliver_client::{DeliverError, Refusal, Which};

use super::access::{self, Access};
use super::{Existing, write};

#[derive(Args)]
pub(super) struct Arguments {
    /// Which block: newest, oldest, config (whose configuration is in force), or a number
    #[arg(value_name = "newest|oldest|config|NUMBER")]
    block: Wanted,
    /// Where to write it, or - for standard output; NAME_BLOCK.block in this folder if left out. A file that is there is
    /// replaced
    file: Option<PathBuf>,
    #[command(flatten)]
    access: Access,
    /// Wait for the block if it is the next one
    #[arg(long)]
    wait: bool,
    /// Take a block even from an orderer that knows no leader
    #[arg(long, visible_alias = "bestEffort")]
    best_effort: bool,
}

/// As it is written on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted(Which);

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(match text {
            "newest" => Which::Newest,
            "oldest" => Which::Oldest,
            "config" => Which::Config,
            number => Which::Number(
                number
                    .parse()
                    .map_err(|_| "a block is newest, oldest, config or a number".to_owned())?,
            ),
        }))
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Which::Newest => f.write_str("newest"),
            Which::Oldest => f.write_str("oldest"),
            Which::Config => f.write_str("config"),
            Which::Number(number) => number.fmt(f),
        }
    }
}

pub(super) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let session = arguments.access.open()?;
    let wanted = access::Wanted {
        which: arguments.block.0,
        wait: arguments.wait,
        best_effort: arguments.best_effort,
    };
    let fetched = session.first_block(&arguments.access.orderer, wanted).await;
    let msp = session.msp.clone();
    session.close().await;
    let block = match fetched {
        Ok((_, block)) => block,
        Err(refusals) => {
            let refusals: Vec<String> = refusals
                .iter()
                .map(|refusal| explained(refusal, arguments, &msp))
                .collect();
            bail!("{}", refusals.join("\n"));
        }
    };

    // To the console's other half, as Fabric's `peer channel fetch` does: scripts look for it.
    eprintln!("Received block: {}", block.number());
    let default = || {
        PathBuf::from(format!(
            "{}_{}.block",
            arguments.access.channel, arguments.block
        ))
    };
    let path = arguments.file.clone().unwrap_or_else(default);
    if path == Path::new("-") {
        let mut out = io::stdout().lock();
        out.write_all(block.encoded())?;
        out.flush()?;
    } else {
        write(&path, block.encoded(), Existing::Replaced)
            .with_context(|| format!("writing {}", path.display()))?;
        println!(
            "block {} of channel {} written to {}",
            block.number(),
            arguments.access.channel,
            path.display()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// The error with what to look at first.
fn explained(error: &DeliverError, arguments: &Arguments, msp: &LocalMsp) -> String {
    let access = &arguments.access;
    let channel = &access.channel;
    let told = quorate_runtime::tasks::chain(error);
    let advice = match error {
        DeliverError::Refused { refusal, .. } => match refusal {
            Refusal::NotFound => match arguments.block.0 {
                Which::Number(number) => format!(
                    "it does not have channel {channel}, or not yet block {number} (--wait waits for the one after its newest)"
                ),
                _ => format!(
                    "it does not have channel {channel}: `quorate channel list` asks its admin endpoint which it has"
                ),
            },
            Refusal::Forbidden => format!(
                "{} may not read channel {channel} (policy /Channel/Readers), or its certificate has expired or is revoked",
                access.identity().who(msp)
            ),
            Refusal::ServiceUnavailable => format!(
                "it knows no leader of channel {channel}, or is starting; ask another orderer, or take what it has with \
                 --best-effort"
            ),
            Refusal::BadRequest => {
                "it takes no request that is more than some minutes old, so look at the clocks of both machines; and if it \
                 asks for client certificates, --client-cert is needed"
                    .to_owned()
            }
            _ => return told,
        },
        DeliverError::Unreachable { .. } | DeliverError::Broken { .. }
            if access.tls_ca.is_none() =>
        {
            "the connection was not encrypted; for an orderer with TLS give --tls-ca".to_owned()
        }
        DeliverError::Broken { .. } if access.client_cert.is_none() => {
            "if the orderer asks for client certificates, --client-cert and --client-key are needed"
                .to_owned()
        }
        DeliverError::Timeout { .. } if arguments.wait => {
            "the block has not come in that time (--timeout)".to_owned()
        }
        _ => return told,
    };
    format!("{told}: {advice}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_asked_for_as_peers_ask() {
        for (text, which) in [
            ("newest", Which::Newest),
            ("oldest", Which::Oldest),
            ("config", Which::Config),
            ("0", Which::Number(0)),
            ("18446744073709551615", Which::Number(u64::MAX)),
        ] {
            let wanted: Wanted = text.parse().expect(text);
            assert_eq!(wanted.0, which);
            assert_eq!(wanted.to_string(), text);
        }
        for wrong in ["", "latest", "-1", "18446744073709551616", "1.0"] {
            assert!(wrong.parse::<Wanted>().is_err(), "{wrong}");
        }
    }
}
