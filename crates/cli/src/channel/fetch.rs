//! `quorate channel fetch`: one block of a channel, from an orderer's Deliver service.

use std::fmt;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use quorate_fabric::msp::LocalMsp;
use quorate_identity::UnixTime;
use quorate_orderer::deliver_client::{
    DeliverClient, DeliverContext, DeliverError, Refusal, Which,
};
use quorate_orderer::store::StoredBlock;
use quorate_runtime::{Clock, Entropy, Tasks};
use time::OffsetDateTime;

use super::{Existing, tls, write};

/// What newer gRPC servers insist on being told in the TLS handshake.
const HTTP2: &[u8] = b"h2";
/// How long the connection may take to end.
const GOODBYE: Duration = Duration::from_secs(1);

#[derive(Args)]
pub(super) struct Arguments {
    /// Which block: newest, oldest, config (whose configuration is in force), or a number
    #[arg(value_name = "newest|oldest|config|NUMBER")]
    block: Wanted,
    /// Where to write it, or - for standard output; NAME_BLOCK.block in this folder if left out. A file that is there is
    /// replaced
    file: Option<PathBuf>,
    /// The orderer's client endpoint, host:port
    #[arg(short = 'o', long)]
    orderer: String,
    /// The channel
    #[arg(
        short = 'c',
        long = "channelID",
        visible_alias = "channel-id",
        value_name = "NAME"
    )]
    channel: String,
    /// CA certificates (PEM) that the orderer's TLS certificate is checked with; without it the connection is not
    /// encrypted
    #[arg(long, visible_alias = "cafile", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Our TLS certificate (PEM), for orderers that ask for one
    #[arg(
        long,
        visible_alias = "certfile",
        requires_all = ["client_key", "tls_ca"],
        value_name = "FILE"
    )]
    client_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(
        long,
        visible_alias = "keyfile",
        requires = "client_cert",
        value_name = "FILE"
    )]
    client_key: Option<PathBuf>,
    /// The MSP folder of who asks: signcerts, keystore, cacerts …
    #[arg(long, env = "CORE_PEER_MSPCONFIGPATH", value_name = "DIR")]
    msp_dir: PathBuf,
    /// The name of that MSP in the channel
    #[arg(long, env = "CORE_PEER_LOCALMSPID", value_name = "ID")]
    msp_id: String,
    /// Wait for the block if it is the next one
    #[arg(long)]
    wait: bool,
    /// Take a block even from an orderer that knows no leader
    #[arg(long, visible_alias = "bestEffort")]
    best_effort: bool,
    /// Check the orderer's certificate as of this many seconds ago, for one that has expired
    #[arg(long, visible_alias = "tlsHandshakeTimeShift", default_value_t = 0)]
    tls_handshake_time_shift: u64,
    /// Seconds that the orderer may take to answer, and with --wait to get the block
    #[arg(long, default_value_t = 30)]
    timeout: u64,
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
    let msp = LocalMsp::load(&arguments.msp_dir, &arguments.msp_id)
        .with_context(|| format!("MSP folder {}", arguments.msp_dir.display()))?;
    let msp = Arc::new(msp);
    let block = fetch(arguments, Arc::clone(&msp))
        .await
        .map_err(|error| explained(error, arguments, &msp))?;

    // To the console's other half, as Fabric's `peer channel fetch` does: scripts look for it.
    eprintln!("Received block: {}", block.number());
    let default = || PathBuf::from(format!("{}_{}.block", arguments.channel, arguments.block));
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
            arguments.channel,
            path.display()
        );
    }
    Ok(ExitCode::SUCCESS)
}

async fn fetch(arguments: &Arguments, signer: Arc<LocalMsp>) -> Result<StoredBlock> {
    let tls = match &arguments.tls_ca {
        None => None,
        Some(roots) => {
            let certificate = arguments.client_cert.as_deref();
            let own = certificate.zip(arguments.client_key.as_deref());
            let shift = Duration::from_secs(arguments.tls_handshake_time_shift);
            Some(tls(roots, own, shift, Some(HTTP2))?)
        }
    };
    let tasks = Tasks::new("fetch");
    let context = DeliverContext {
        tls,
        signer,
        patience: Duration::from_secs(arguments.timeout),
        clock: Clock::system(),
        entropy: Entropy::system(),
        tasks: tasks.clone(),
    };
    let client = DeliverClient::connect(&arguments.orderer, context).await;
    let block = match client {
        Ok(client) => {
            let Wanted(which) = arguments.block;
            let (wait, best_effort) = (arguments.wait, arguments.best_effort);
            client
                .block(&arguments.channel, which, wait, best_effort)
                .await
        }
        Err(error) => Err(error),
    };
    tasks.stop(GOODBYE).await;
    Ok(block?)
}

/// The error with what to look at first.
fn explained(error: anyhow::Error, arguments: &Arguments, msp: &LocalMsp) -> anyhow::Error {
    let channel = &arguments.channel;
    let advice = match error.downcast_ref() {
        Some(DeliverError::Refused { refusal, .. }) => match refusal {
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
                who(arguments, msp)
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
            _ => return error,
        },
        Some(DeliverError::Unreachable { .. } | DeliverError::Broken { .. })
            if arguments.tls_ca.is_none() =>
        {
            "the connection was not encrypted; for an orderer with TLS give --tls-ca".to_owned()
        }
        Some(DeliverError::Broken { .. }) if arguments.client_cert.is_none() => {
            "if the orderer asks for client certificates, --client-cert and --client-key are needed"
                .to_owned()
        }
        Some(DeliverError::Timeout { .. }) if arguments.wait => {
            "the block has not come in that time (--timeout)".to_owned()
        }
        _ => return error,
    };
    anyhow!(
        "{}: {advice}",
        quorate_runtime::tasks::chain(error.as_ref())
    )
}

/// Who asked, and until when that certificate is valid.
fn who(arguments: &Arguments, msp: &LocalMsp) -> String {
    let UnixTime(seconds) = msp.expires_at();
    let until = OffsetDateTime::from_unix_timestamp(seconds)
        .map_or_else(|_| seconds.to_string(), |until| until.to_string());
    format!(
        "{} of {}, valid until {until},",
        arguments.msp_dir.display(),
        arguments.msp_id
    )
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
