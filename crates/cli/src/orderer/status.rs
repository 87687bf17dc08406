//! `quorate orderer status`: a running orderer and its channels, for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use quorate_orderer::options;
use quorate_orderer::status::{ChannelOverview, Overview, RaftOverview};
use time::OffsetDateTime;

/// How long the orderer may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// From so many seconds on, the end of a certificate is something to do.
const SOON: i64 = 7 * 24 * 60 * 60;

const DAY: i64 = 24 * 60 * 60;

#[derive(Args)]
pub(super) struct Arguments {
    /// The operations endpoint, host:port; Operations.ListenAddress of orderer.yaml unless given
    #[arg(short = 'o', long, value_name = "HOST:PORT")]
    orderer_address: Option<String>,
    #[command(flatten)]
    tls: super::EndpointTls,
    /// Only this channel, or these
    #[arg(
        short = 'c',
        long = "channelID",
        visible_alias = "channel-id",
        value_name = "NAME"
    )]
    channels: Vec<String>,
    /// Print what the orderer says as JSON
    #[arg(long)]
    json: bool,
}

/// Exit code 0: healthy and ready; 1: not, or nobody answers.
pub(super) async fn run(
    arguments: &Arguments,
    environment: &BTreeMap<String, String>,
) -> Result<ExitCode> {
    let address = match &arguments.orderer_address {
        Some(address) => address.clone(),
        None => reachable(
            &options::load(environment)?
                .options
                .operations
                .listen_address,
        ),
    };
    let client = arguments.tls.client(&address, PATIENCE)?;
    let mut overview = client.overview().await.with_context(|| {
        format!("{address} is to be an operations endpoint (Operations.ListenAddress)")
    })?;
    if !arguments.channels.is_empty() {
        overview
            .channels
            .retain(|name, _| arguments.channels.contains(name));
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&overview)?);
    } else {
        print!(
            "{}",
            shown(
                &address,
                &overview,
                OffsetDateTime::now_utc().unix_timestamp()
            )
        );
    }
    let well = overview.ready && overview.checks.values().all(|outcome| outcome == "OK");
    Ok(if well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// An address that listens everywhere, as one to connect to.
fn reachable(listens: &str) -> String {
    match listens.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_unspecified() => format!("localhost:{}", address.port()),
        _ => listens.to_owned(),
    }
}

fn shown(address: &str, overview: &Overview, now: i64) -> String {
    let mut out = String::new();
    let ready = if overview.ready { "ready" } else { "NOT READY" };
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "orderer at {address}: {}, {ready}, version {}",
        overview.status, overview.version
    );
    for (check, outcome) in overview
        .checks
        .iter()
        .filter(|(_, outcome)| *outcome != "OK")
    {
        let _ = writeln!(out, "  {check} FAILS: {outcome}");
    }
    for certificate in &overview.certificates {
        let _ = writeln!(
            out,
            "  {} certificate {}",
            certificate.role,
            until(certificate.expires, now)
        );
    }
    for (name, channel) in &overview.channels {
        out.push_str(&of_channel(name, channel, now));
    }
    if overview.channels.is_empty() {
        out.push_str("no channels\n");
    }
    out
}

fn of_channel(name: &str, channel: &ChannelOverview, now: i64) -> String {
    let ChannelOverview {
        consensus_relation,
        status,
        height,
        first_block,
        reason,
        replication,
        raft,
    } = channel;
    let mut out = format!("channel {name}: {consensus_relation}, {status}, {height} blocks");
    if *first_block > 0 {
        let _ = write!(out, " (from {first_block} on)");
    }
    out.push('\n');
    if let Some(reason) = reason {
        let _ = writeln!(out, "  FAILED: {reason}");
    }
    if let Some(progress) = replication {
        let _ = writeln!(out, "  replicating: {progress}");
    }
    if let Some(raft) = raft {
        out.push_str(&of_raft(raft, now));
    }
    out
}

fn of_raft(raft: &RaftOverview, now: i64) -> String {
    let RaftOverview {
        id,
        leader,
        role,
        term,
        commit,
        votes,
        active,
        consenters,
        ..
    } = raft;
    let led = match consenters.iter().find(|one| one.id == *leader) {
        _ if leader == id => "this one leads".to_owned(),
        Some(one) => format!("led by {leader} ({})", one.address),
        None => "NO LEADER".to_owned(),
    };
    let mut out = format!(
        "  consenter {id}, {role}, {led}, term {term}, entry {commit}; {} of {} consenters are heard of\n",
        active.len(),
        consenters.len()
    );
    if !votes {
        out.push_str(
            "  this consenter has lost its log, or has just come: it takes no part in elections before a leader has given \
             it everything\n",
        );
    }
    for one in consenters {
        let heard = if active.contains(&one.id) || active.is_empty() {
            ""
        } else {
            ", NOT HEARD OF"
        };
        let lag = match one.lag {
            None => String::new(),
            Some(0) => ", has everything".to_owned(),
            Some(lag) => format!(", {lag} entries behind"),
        };
        let certificate = one
            .certificate_expires
            .map(|expires| format!(", certificate {}", until(expires, now)))
            .unwrap_or_default();
        let _ = writeln!(
            out,
            "    {} {}{heard}{lag}{certificate}",
            one.id, one.address
        );
    }
    out
}

/// Until when something is valid.
fn until(expires: i64, now: i64) -> String {
    let date = OffsetDateTime::from_unix_timestamp(expires)
        .map_or_else(|_| expires.to_string(), |date| date.date().to_string());
    let left = expires - now;
    if left < 0 {
        format!("EXPIRED on {date}")
    } else if left < SOON {
        format!("EXPIRES SOON, on {date} ({} days)", left / DAY)
    } else {
        format!("valid until {date} ({} days)", left / DAY)
    }
}

#[cfg(test)]
mod tests {
    use quorate_orderer::status::{CertificateLife, ConsenterOverview};

    use super::*;

    #[test]
    fn what_needs_somebody_stands_out() {
        let now = 1_800_000_000;
        let consenter = |id: u64, lag| ConsenterOverview {
            id,
            address: format!("orderer{id}:7050"),
            lag,
            certificate_expires: Some(now + 400 * DAY),
        };
        let overview = Overview {
            status: "OK".to_owned(),
            ready: false,
            version: "1".to_owned(),
            checks: BTreeMap::from([("consensus log".to_owned(), "no space".to_owned())]),
            certificates: vec![CertificateLife {
                role: "server TLS".to_owned(),
                expires: now + 2 * DAY,
                seconds_left: 2 * DAY,
            }],
            channels: BTreeMap::from([(
                "books".to_owned(),
                ChannelOverview {
                    consensus_relation: "consenter".to_owned(),
                    status: "active".to_owned(),
                    height: 70,
                    first_block: 12,
                    reason: None,
                    replication: None,
                    raft: Some(RaftOverview {
                        id: 2,
                        leader: 2,
                        role: "leader".to_owned(),
                        term: 4,
                        commit: 80,
                        applied: 80,
                        log: (60, 80),
                        snapshot_block: 50,
                        votes: true,
                        active: vec![2, 1],
                        consenters: vec![
                            consenter(1, Some(0)),
                            consenter(2, None),
                            consenter(3, Some(9)),
                        ],
                    }),
                },
            )]),
        };
        let text = shown("localhost:8443", &overview, now);
        for expected in [
            "NOT READY",
            "consensus log FAILS: no space",
            "server TLS certificate EXPIRES SOON",
            "channel books: consenter, active, 70 blocks (from 12 on)",
            "consenter 2, leader, this one leads, term 4, entry 80; 2 of 3 consenters are heard of",
            "1 orderer1:7050, has everything, certificate valid until",
            "3 orderer3:7050, NOT HEARD OF, 9 entries behind",
        ] {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
        assert!(until(now - 1, now).starts_with("EXPIRED"));
    }
}
