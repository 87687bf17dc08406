//! What Fabric allows a channel to begin with, and what may leave it without a leader.
//!
//! A channel without a leader cannot be repaired by a configuration update, because that takes a leader. So whoever makes
//! a genesis block is told before the first orderer joins. Nothing here is refused: test networks live with all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorate_fabric::config::{ChannelConfig, raft_config};
use quorate_identity::UnixTime;
use quorate_identity::mutual_tls::check_server_name;
use quorate_identity::x509::Certificate;

/// A shorter election timeout is met by a slow disk, a busy machine or one lost packet.
const SHORTEST_ELECTION: Duration = Duration::from_secs(1);
/// After a longer one, clients have given up long before there is a new leader.
const LONGEST_ELECTION: Duration = Duration::from_secs(60);
/// Heartbeats that may be missed before an election, at least.
const HEARTBEATS_PER_ELECTION: u32 = 5;
/// Of larger messages Fabric warns: a block with them may be longer than what gRPC carries (`General.MaxRecvMsgSize`,
/// 100 MiB if nobody changes it).
const LARGEST_MESSAGE_BYTES: u32 = 49 * 1024 * 1024;
/// A certificate that ends sooner should have been renewed.
const RENEWAL_SECONDS: i64 = 30 * 24 * 3600;

/// The warnings about a channel that is about to begin, the most dangerous first.
pub(super) fn warnings(config: &ChannelConfig, now: UnixTime) -> Vec<String> {
    let mut out = Vec::new();
    consenters(config, now, &mut out);
    if let Ok(options) = raft_config::options(config.raft_metadata()) {
        timing(&options, &mut out);
    }
    let size = config.batch_size();
    if size.absolute_max_bytes > LARGEST_MESSAGE_BYTES {
        out.push(format!(
            "AbsoluteMaxBytes is {} MiB: a block of such messages may be too long to be sent to the other orderers (\
             General.MaxRecvMsgSize, 100 MiB by default), and then nothing after it is ordered either; stay below {} MiB",
            size.absolute_max_bytes >> 20,
            LARGEST_MESSAGE_BYTES >> 20
        ));
    }
    out
}

/// What may leave the channel without a leader for good.
pub(super) fn dangers(config: &ChannelConfig) -> Vec<String> {
    let mut out = Vec::new();
    if let Ok(options) = raft_config::options(config.raft_metadata()) {
        timing(&options, &mut out);
    }
    out
}

fn timing(options: &raft_config::RaftOptions, out: &mut Vec<String>) {
    let election = options.tick_interval * options.election_tick;
    let shown = format!(
        "an election begins after {election:?} without a leader (ElectionTick {} x TickInterval {:?})",
        options.election_tick, options.tick_interval
    );
    if election < SHORTEST_ELECTION {
        out.push(format!(
            "{shown}: a slow disk or network is taken for a dead leader, and there may never be one that lasts; use at \
             least {SHORTEST_ELECTION:?}, better 5s"
        ));
    }
    if election > LONGEST_ELECTION {
        out.push(format!(
            "{shown}: so long nothing is ordered whenever a leader fails; use at most {LONGEST_ELECTION:?}, better 5s"
        ));
    }
    if options.election_tick / HEARTBEATS_PER_ELECTION < options.heartbeat_tick {
        out.push(format!(
            "ElectionTick {} is less than {HEARTBEATS_PER_ELECTION} times HeartbeatTick {}: few lost heartbeats depose a \
             leader that works; use 10 and 1",
            options.election_tick, options.heartbeat_tick
        ));
    }
}

fn consenters(config: &ChannelConfig, now: UnixTime, out: &mut Vec<String>) {
    let consenters = &config.raft_metadata().consenters;
    let mut addresses = BTreeSet::new();
    let mut broken: BTreeMap<String, ()> = BTreeMap::new();
    for consenter in consenters {
        let address = format!("{}:{}", consenter.host, consenter.port);
        if !addresses.insert(address.clone()) {
            out.push(format!(
                "two consenters have the address {address}: only one can answer there, and the other one counts as dead"
            ));
        }
        if let Ok(certificate) = Certificate::from_pem(&consenter.server_tls_cert)
            && let Err(reason) = check_server_name(&certificate, &consenter.host)
        {
            out.push(format!(
                "the other orderers will not connect to consenter {address}: its server certificate is for other names ({reason})"
            ));
        }
        for (role, pem) in [
            ("client", &consenter.client_tls_cert),
            ("server", &consenter.server_tls_cert),
        ] {
            let Ok(certificate) = Certificate::from_pem(pem) else {
                continue;
            };
            let end = certificate.not_after();
            let text = if end < now {
                format!(
                    "consenter {address}: the {role} certificate has expired, nobody connects with it"
                )
            } else if end.0.saturating_sub(now.0) < RENEWAL_SECONDS {
                let days = (end.0 - now.0) / (24 * 3600);
                format!(
                    "consenter {address}: the {role} certificate expires in {days} days; renew it first"
                )
            } else {
                continue;
            };
            // Mostly it is the same certificate for both.
            if broken.insert(text.replace(role, ""), ()).is_none() {
                out.push(text);
            }
        }
    }
    match consenters.len() {
        1 => out.push(
            "there is one consenter: while it is down, nothing is ordered; use three, or five".to_owned(),
        ),
        2 => out.push(
            "there are two consenters: when either of them is down, there is no leader; use three, or five".to_owned(),
        ),
        even if even % 2 == 0 => out.push(format!(
            "there are {even} consenters: they survive no more failures than {} would; use an odd number",
            even - 1
        )),
        _ => {}
    }
}
