//! From a wanted configuration to one that is in force: compute the update, show what it does and who must agree, sign,
//! submit, and wait.
//!
//! Every command that changes a channel ends here. Start at [`Proposal::of`]; [`Handling`] is what an operator may ask for.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use prost::Message as _;
use quorate_fabric::block;
use quorate_fabric::config::raft_config::{self, ConsenterChange, MembershipChange};
use quorate_fabric::config::{
    ChannelConfig, Review, compute_update, config_update_message, sign_update,
};
use quorate_fabric::inspect::config_difference;
use quorate_fabric::msp::LocalMsp;
use quorate_fabric::proto::common::{Config, ConfigUpdateEnvelope};
use quorate_fabric::proto::etcdraft::BlockMetadata;
use quorate_identity::UnixTime;
use quorate_orderer::deliver_client::{DeliverError, Which};
use quorate_orderer::store::StoredBlock;
use tokio::time::{Instant, sleep};

use super::access::{Access, Session, Wanted};
use super::health::{self, Unsafe};
use super::{Existing, advice, write};

/// Bytes of a nonce in a signature header, as Fabric's.
pub(super) const NONCE_BYTES: usize = 24;
/// Pause between two looks whether the configuration is in force.
const POLL: Duration = Duration::from_millis(100);
/// How long an orderer may take to say which configuration it has, while we wait.
const LOOK: Duration = Duration::from_secs(2);
/// An update whose fate is not known is submitted again after so long. It cannot take effect twice.
const AGAIN: Duration = Duration::from_secs(5);
/// How long orderers may take to hear of consenters that work: an election's time, by default.
const HEARING: Duration = Duration::from_secs(20);
/// How an orderer refuses a change for which too few consenters are alive.
const QUORUM_LOSS: &str = "configuration will result in quorum loss";

/// What becomes of an update.
#[derive(Args)]
pub(super) struct Handling {
    /// Show what would change, which policies judge it and who must sign, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Write the update, signed by us, to this file instead of submitting it: others sign it with `quorate channel sign`
    /// or `peer channel signconfigtx`, and somebody submits it with `quorate channel update`
    #[arg(long, conflicts_with = "dry_run", value_name = "FILE")]
    output: Option<PathBuf>,
    /// Also sign as this one; may be given several times
    #[arg(long, value_name = "MSPID=DIR")]
    sign_as: Vec<String>,
    /// Wait until the new configuration is in force on all consenters that stay
    #[arg(long)]
    wait: bool,
    /// Do it although members do not work, or although options are dangerous. What would lose the quorum is refused all
    /// the same
    #[arg(long)]
    force: bool,
}

impl Handling {
    /// Whether the channel is changed, and not only an update shown or written.
    pub(super) fn submits(&self) -> bool {
        !self.dry_run && self.output.is_none()
    }
}

/// The configuration in force, as an orderer gave it.
pub(super) struct Current {
    pub(super) config: ChannelConfig,
    raft: BlockMetadata,
    /// Who was asked, the one that answered first.
    orderers: Vec<String>,
}

impl Current {
    /// Asks the orderers, in their order. Also makes the session trust the channel's other orderers.
    pub(super) async fn fetch(session: &Session, access: &Access) -> Result<Self> {
        let wanted = Wanted::now(Which::Config);
        let (first, block) = session
            .first_block(&access.orderer, wanted)
            .await
            .map_err(|refusals| {
                let refusals: Vec<String> = refusals.iter().map(told).collect();
                anyhow!(
                    "no orderer gives the configuration in force; a channel without a leader cannot be changed:\n{}",
                    refusals.join("\n")
                )
            })?;
        let mut orderers = vec![first];
        for other in &access.orderer {
            if !orderers.contains(other) {
                orderers.push(other.clone());
            }
        }
        let current = Self::read(&block, orderers)?;
        session.trust(&current.config);
        Ok(current)
    }

    fn read(block: &StoredBlock, orderers: Vec<String>) -> Result<Self> {
        let number = block.number();
        let block = block.block();
        let config = ChannelConfig::from_block(&block)
            .with_context(|| format!("block {number} holds no configuration that can be used"))?;
        let consenters = config.raft_metadata().consenters.len() as u64;
        // A first block says nothing of ids: they are 1, 2, and so on.
        let raft = block::consenter_metadata(&block)?
            .filter(|metadata| !metadata.consenter_ids.is_empty())
            .unwrap_or_else(|| BlockMetadata {
                consenter_ids: (1..=consenters).collect(),
                next_consenter_id: consenters + 1,
                raft_index: 0,
            });
        Ok(Self {
            config,
            raft,
            orderers,
        })
    }

    /// What another configuration means for the consenters.
    pub(super) fn change_to(&self, next: &ChannelConfig) -> Result<MembershipChange> {
        let (old, new) = (self.config.raft_metadata(), next.raft_metadata());
        Ok(raft_config::membership_change(
            &self.raft,
            &old.consenters,
            &new.consenters,
        )?)
    }
}

pub(super) fn told(error: &DeliverError) -> String {
    quorate_runtime::tasks::chain(error)
}

/// An update with the signatures that it has.
pub(super) struct Proposal {
    pub(super) signed: ConfigUpdateEnvelope,
    pub(super) review: Review,
}

impl Proposal {
    /// The update that leads to `wanted`; none if that is in force already.
    pub(super) fn of(
        session: &Session,
        current: &Current,
        wanted: &Config,
        handling: &Handling,
    ) -> Result<Option<Self>> {
        if wanted.channel_group == current.config.proto().channel_group {
            return Ok(None);
        }
        let update = compute_update(&session.channel, current.config.proto(), wanted)?;
        let unsigned = ConfigUpdateEnvelope {
            config_update: update.encode_to_vec(),
            signatures: Vec::new(),
        };
        Self::signed_by_us(session, current, unsigned, handling).map(Some)
    }

    /// An update that somebody made, with our signatures, unless nothing is to be signed.
    pub(super) fn signed_by_us(
        session: &Session,
        current: &Current,
        mut signed: ConfigUpdateEnvelope,
        handling: &Handling,
    ) -> Result<Self> {
        // What does not fit is refused before anybody signs.
        let mut review = current.config.review(&signed)?;
        raft_config::check(&review.next, UnixTime(session.clock.now_seconds()))?;
        if !handling.dry_run {
            let mut signers = vec![session.msp.clone()];
            for other in &handling.sign_as {
                signers.push(load(other)?.into());
            }
            for signer in signers {
                add_signature(
                    &mut signed,
                    &signer,
                    &session.entropy.bytes::<NONCE_BYTES>(),
                )?;
            }
            review = current.config.review(&signed)?;
        }
        Ok(Self { signed, review })
    }

    /// Shows it, and does with it what is asked for.
    pub(super) async fn carry_out(
        self,
        session: &Session,
        current: &Current,
        handling: &Handling,
    ) -> Result<ExitCode> {
        self.show(current);
        self.check_options(current, session, handling.force)?;
        let change = current.change_to(&self.review.next)?;
        self.check_members(session, current, &change, handling)
            .await?;
        if handling.dry_run {
            println!("nothing was changed (--dry-run)");
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(path) = &handling.output {
            self.write_to(session, path, Existing::Kept)?;
            return Ok(ExitCode::SUCCESS);
        }
        if !self.review.is_authorised() {
            bail!(
                "signatures are missing: write the update to a file with --output, let those who are named above sign it \
                 with `quorate channel sign`, and submit it with `quorate channel update`"
            );
        }
        self.submit(session, current, handling, &change).await?;
        Ok(ExitCode::SUCCESS)
    }

    fn show(&self, current: &Current) {
        let (before, after) = (current.config.proto(), self.review.next.proto());
        println!(
            "channel {}, config sequence {} -> {}",
            current.config.channel_id(),
            before.sequence,
            after.sequence
        );
        print!("{}", indented(&config_difference(before, after)));
        println!("judged by (+ satisfied, - not yet)");
        for judged in &self.review.judgements {
            print!("{}", indented(&judged.requirement.to_string()));
        }
        if self.review.signers.is_empty() {
            println!("signed by nobody yet");
            return;
        }
        println!("signed by");
        for signer in &self.review.signers {
            let flaw = match &signer.flaw {
                None => String::new(),
                Some(flaw) => format!(" (DOES NOT COUNT: {flaw})"),
            };
            println!("  {}: {}{flaw}", signer.msp_id, signer.subject);
        }
    }

    /// Warnings that the present configuration does not deserve; those that may cost the channel its leader for good are
    /// refusals.
    fn check_options(&self, current: &Current, session: &Session, force: bool) -> Result<()> {
        let now = UnixTime(session.clock.now_seconds());
        let present = advice::warnings(&current.config, now);
        let warnings = advice::warnings(&self.review.next, now);
        for warning in warnings.iter().filter(|one| !present.contains(one)) {
            eprintln!("warning: {warning}");
        }
        let present = advice::dangers(&current.config);
        let dangers = advice::dangers(&self.review.next);
        let new: Vec<&String> = dangers
            .iter()
            .filter(|one| !present.contains(one))
            .collect();
        if let Some(first) = new.first()
            && !force
        {
            bail!(
                "refused: {first}. A channel that has lost its leader by its options cannot be repaired, because that takes \
                 a leader; --force does it all the same"
            );
        }
        let (before, after) = (
            raft_config::options(current.config.raft_metadata())?,
            raft_config::options(self.review.next.raft_metadata())?,
        );
        let timing = |options: &raft_config::RaftOptions| {
            (
                options.tick_interval,
                options.election_tick,
                options.heartbeat_tick,
                options.max_inflight_blocks,
            )
        };
        if timing(&before) != timing(&after) {
            eprintln!(
                "warning: ticks and MaxInflightBlocks take effect at an orderer when it is started again: restart one after the \
                 other, each when the one before it works"
            );
        }
        Ok(())
    }

    async fn check_members(
        &self,
        session: &Session,
        current: &Current,
        change: &MembershipChange,
        handling: &Handling,
    ) -> Result<()> {
        if change.change == ConsenterChange::None {
            return Ok(());
        }
        let members = health::ask(session, &current.config).await;
        println!("consenters now");
        for member in &members {
            println!("  {member}");
        }
        match health::judge(&members, &current.raft.consenter_ids, change) {
            None => Ok(()),
            Some(Unsafe::Quorum(reason)) => {
                bail!("refused: the channel would lose its quorum: {reason}")
            }
            Some(Unsafe::Members(reason)) if handling.force => {
                eprintln!("warning: {reason}");
                Ok(())
            }
            Some(Unsafe::Members(reason)) => bail!(
                "refused: {reason}\nwhat does not come back is removed first; --force changes the set all the same"
            ),
        }
    }

    /// Writes a CONFIG_UPDATE message, as Fabric's tools read and write them.
    pub(super) fn write_to(
        &self,
        session: &Session,
        path: &std::path::Path,
        existing: Existing,
    ) -> Result<()> {
        let message = message(session, &self.signed)?;
        match write(path, message.encoded(), existing) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => bail!(
                "{} is there already, perhaps with signatures of others; choose another name",
                path.display()
            ),
            Err(error) => return Err(error).with_context(|| format!("writing {}", path.display())),
        }
        let state = if self.review.is_authorised() {
            "it has all signatures that it needs"
        } else {
            "signatures are missing"
        };
        println!("update written to {}; {state}", path.display());
        Ok(())
    }

    async fn submit(
        &self,
        session: &Session,
        current: &Current,
        handling: &Handling,
        change: &MembershipChange,
    ) -> Result<()> {
        let goal = self.review.next.sequence();
        let staying = staying(current, &self.review.next, change);
        let orderers = reachable_through(current, &staying);
        let deadline = Instant::now() + session.patience;
        let mut submitted = Instant::now();
        self.send_when_heard_of(session, &orderers).await?;
        // Fabric's orderers acknowledge an update before it is ordered, and may lose it when the leader changes.
        let block = loop {
            if let Some(block) = in_force(session, &orderers, goal).await {
                break block;
            }
            if Instant::now() > deadline {
                bail!(
                    "the update was taken, and is not in force after {:?}; `quorate channel fetch config` shows when it is",
                    session.patience
                );
            }
            if submitted.elapsed() > AGAIN {
                submitted = Instant::now();
                // It may be ordered by now, and then it is refused.
                if let Err(error) = self.send(session, &orderers).await {
                    eprintln!("submitted again: {error:#}");
                }
            }
            sleep(POLL).await;
        };
        let found = ChannelConfig::from_block(&block.block())?;
        if found.proto().channel_group != self.review.next.proto().channel_group {
            bail!(
                "another update came first, in block {}: look at it, and ask again",
                block.number()
            );
        }
        println!("in force since block {}", block.number());
        if handling.wait {
            everywhere(session, &staying, goal, deadline).await?;
            println!("in force on all consenters that stay: {}", names(&staying));
        }
        Ok(())
    }

    /// Submits it, and again while the orderers have not heard of one another. They count who is alive by what they have
    /// heard, which after an election or a start is less than what is there; we have asked the members themselves.
    async fn send_when_heard_of(&self, session: &Session, orderers: &[String]) -> Result<()> {
        let deadline = Instant::now() + session.patience.min(HEARING);
        let mut said = false;
        loop {
            let Err(error) = self.send(session, orderers).await else {
                return Ok(());
            };
            let unheard = matches!(
                error.downcast_ref(),
                Some(DeliverError::NotTaken { info, .. }) if info.contains(QUORUM_LOSS)
            );
            if !unheard || Instant::now() > deadline {
                return Err(error);
            }
            if !said {
                eprintln!("the orderers have not heard of all consenters yet: trying again");
                said = true;
            }
            sleep(POLL).await;
        }
    }

    /// Submits it through the first orderer that takes it.
    async fn send(&self, session: &Session, orderers: &[String]) -> Result<()> {
        let mut refusals = Vec::new();
        for address in orderers {
            match session
                .submit(address, message(session, &self.signed)?)
                .await
            {
                Ok(()) => return Ok(()),
                // Whoever refuses it for what it says speaks for all.
                Err(
                    error @ DeliverError::NotTaken {
                        status: "BAD_REQUEST" | "FORBIDDEN",
                        ..
                    },
                ) => {
                    return Err(error.into());
                }
                Err(error) => refusals.push(told(&error)),
            }
        }
        bail!("no orderer takes the update:\n{}", refusals.join("\n"))
    }
}

fn message(
    session: &Session,
    signed: &ConfigUpdateEnvelope,
) -> Result<quorate_fabric::envelope::RawEnvelope> {
    let nonce = session.entropy.bytes::<NONCE_BYTES>();
    let now = session.clock.now_seconds();
    Ok(config_update_message(
        &session.channel,
        signed,
        now,
        &nonce,
        &*session.msp,
    )?)
}

/// Adds a signature of `signer`, unless it has signed already.
pub(super) fn add_signature(
    signed: &mut ConfigUpdateEnvelope,
    signer: &LocalMsp,
    nonce: &[u8],
) -> Result<bool> {
    use quorate_fabric::envelope::SignatureHeader;
    use quorate_fabric::msp::Signer as _;
    let own = signer.creator();
    let there = signed.signatures.iter().any(|signature| {
        SignatureHeader::decode(&signature.signature_header.clone().into())
            .is_ok_and(|header| header.creator == own)
    });
    if there {
        return Ok(false);
    }
    let signature = sign_update(&signed.config_update, nonce, signer)?;
    signed.signatures.push(signature);
    Ok(true)
}

/// `MSPID=DIR`.
fn load(text: &str) -> Result<LocalMsp> {
    let (msp_id, folder) = text
        .split_once('=')
        .with_context(|| format!("{text:?} is not MSPID=DIR"))?;
    LocalMsp::load(std::path::Path::new(folder), msp_id)
        .with_context(|| format!("MSP folder {folder}"))
}

/// A consenter that is there before and after.
pub(super) struct Staying {
    name: String,
    endpoint: String,
}

/// The consenters that stay as they are. One whose certificate changes may have to be started again first.
fn staying(current: &Current, next: &ChannelConfig, change: &MembershipChange) -> Vec<Staying> {
    let ids = current.raft.consenter_ids.iter();
    let leaving = match change.change {
        ConsenterChange::Removed(id) | ConsenterChange::Rotated(id) => Some(id),
        ConsenterChange::None | ConsenterChange::Added(_) => None,
    };
    let before = current.config.raft_metadata().consenters.iter().zip(ids);
    before
        .filter(|(_, id)| Some(**id) != leaving)
        .map(|(consenter, _)| {
            let client = &consenter.client_tls_cert;
            let consenters = &next.raft_metadata().consenters;
            // Its address may change with it.
            let after = consenters.iter().find(|one| one.client_tls_cert == *client);
            let after = after.unwrap_or(consenter);
            Staying {
                name: health::address(after),
                endpoint: health::endpoint(next, after),
            }
        })
        .collect()
}

fn names(staying: &[Staying]) -> String {
    let names: Vec<&str> = staying.iter().map(|one| one.name.as_str()).collect();
    names.join(", ")
}

/// Whom to submit to: first those that stay, of whom the operator named some.
fn reachable_through(current: &Current, staying: &[Staying]) -> Vec<String> {
    let stays = |address: &String| staying.iter().any(|one| one.endpoint == *address);
    let mut orderers: Vec<String> = current.orderers.clone();
    orderers.sort_by_key(|address| !stays(address));
    for one in staying {
        if !orderers.contains(&one.endpoint) {
            orderers.push(one.endpoint.clone());
        }
    }
    orderers
}

/// The block with this configuration, or a later one, if one of the orderers has it.
async fn in_force(session: &Session, orderers: &[String], goal: u64) -> Option<StoredBlock> {
    for address in orderers {
        let asked = session
            .block(address, Wanted::at_best(Which::Config), LOOK)
            .await;
        if let Ok(block) = asked
            && sequence(&block).is_some_and(|sequence| sequence >= goal)
        {
            return Some(block);
        }
    }
    None
}

fn sequence(block: &StoredBlock) -> Option<u64> {
    ChannelConfig::from_block(&block.block())
        .ok()
        .map(|config| config.sequence())
}

/// Waits until all of them have a configuration of this sequence, or a later one.
async fn everywhere(
    session: &Session,
    staying: &[Staying],
    goal: u64,
    deadline: Instant,
) -> Result<()> {
    for one in staying {
        loop {
            let asked = session
                .block(&one.endpoint, Wanted::at_best(Which::Config), LOOK)
                .await;
            let reason = match asked {
                Ok(block) if sequence(&block).is_some_and(|found| found >= goal) => break,
                Ok(block) => format!(
                    "its newest configuration is that of block {}",
                    block.number()
                ),
                Err(error) => told(&error),
            };
            if Instant::now() > deadline {
                bail!(
                    "the update is in force, but after {:?} not yet on {}: {reason}",
                    session.patience,
                    one.name
                );
            }
            sleep(POLL).await;
        }
    }
    Ok(())
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}
