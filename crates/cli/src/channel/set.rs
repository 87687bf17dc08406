//! `quorate channel set`: settings of a channel, one option each.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{ArgGroup, Args, ValueEnum};
use quorate_fabric::config::Wanted;
use quorate_fabric::config::wanted::{
    ListChange, ListEdit, Scalar, WantedApplication, WantedBatchSize, WantedOptions, WantedOrderer,
    WantedOrganization, WantedRaft, WantedState,
};
use quorate_fabric::genesis::BesideConfigtx;

use super::access::Access;
use super::proposal::{Current, Handling, Proposal};

#[derive(Args)]
#[command(group = ArgGroup::new("settings").required(true).multiple(true))]
pub(super) struct Arguments {
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    access: Access,
    #[command(flatten)]
    handling: Handling,
}

#[derive(Args)]
struct Settings {
    /// How long a message waits for others to fill its block, such as 200ms or 2s
    #[arg(long, group = "settings", value_name = "DURATION")]
    batch_timeout: Option<Scalar>,
    /// Messages in a block, at most
    #[arg(long, group = "settings", value_name = "NUMBER")]
    max_message_count: Option<Scalar>,
    /// The longest message that is taken, such as 10 MB
    #[arg(long, group = "settings", value_name = "SIZE")]
    absolute_max_bytes: Option<Scalar>,
    /// A block of several messages is not longer, such as 2 MB
    #[arg(long, group = "settings", value_name = "SIZE")]
    preferred_max_bytes: Option<Scalar>,
    /// Blocks of so many bytes are followed by a snapshot, such as 16 MB
    #[arg(long, group = "settings", value_name = "SIZE")]
    snapshot_interval_size: Option<Scalar>,
    /// The length of a tick, such as 500ms
    #[arg(long, group = "settings", value_name = "DURATION")]
    tick_interval: Option<Scalar>,
    /// Ticks without a leader before an election
    #[arg(long, group = "settings", value_name = "NUMBER")]
    election_tick: Option<Scalar>,
    /// Ticks between heartbeats
    #[arg(long, group = "settings", value_name = "NUMBER")]
    heartbeat_tick: Option<Scalar>,
    /// Blocks that are proposed and not yet decided, at most
    #[arg(long, group = "settings", value_name = "NUMBER")]
    max_inflight_blocks: Option<Scalar>,
    /// Whether the channel does its work
    #[arg(long, group = "settings", value_enum)]
    state: Option<State>,
    /// A policy for a resource, such as qscc/GetChainInfo=/Channel/Application/Readers
    #[arg(long, group = "settings", value_name = "RESOURCE=POLICY")]
    acl: Vec<String>,
    /// The resource has its default policy again
    #[arg(long, group = "settings", value_name = "RESOURCE")]
    remove_acl: Vec<String>,
    /// Require a capability, such as application=V2_5
    #[arg(
        long,
        group = "settings",
        value_name = "channel|orderer|application=NAME"
    )]
    capability: Vec<String>,
    /// No longer require a capability
    #[arg(
        long,
        group = "settings",
        value_name = "channel|orderer|application=NAME"
    )]
    remove_capability: Vec<String>,
    /// Add an organisation, such as application/Org3, or give it another MSP definition; with --org-msp-dir
    #[arg(
        long,
        group = "settings",
        requires = "org_msp_dir",
        value_name = "orderer|application/NAME"
    )]
    org: Option<String>,
    /// The MSP folder of --org
    #[arg(long, requires = "org", value_name = "DIR")]
    org_msp_dir: Option<PathBuf>,
    /// The name of its MSP; needed for one that is to come
    #[arg(long, requires = "org", value_name = "ID")]
    org_msp_id: Option<String>,
    /// Remove an organisation
    #[arg(long, group = "settings", value_name = "orderer|application/NAME")]
    remove_org: Vec<String>,
    /// An address where an organisation's orderers are reached
    #[arg(long, group = "settings", value_name = "ORG=HOST:PORT")]
    endpoint: Vec<String>,
    /// An address where they no longer are
    #[arg(long, group = "settings", value_name = "ORG=HOST:PORT")]
    remove_endpoint: Vec<String>,
    /// A peer of an organisation that others ask first
    #[arg(long, group = "settings", value_name = "ORG=HOST:PORT")]
    anchor_peer: Vec<String>,
    /// A peer that is no longer asked first
    #[arg(long, group = "settings", value_name = "ORG=HOST:PORT")]
    remove_anchor_peer: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum State {
    Normal,
    Maintenance,
}

pub(super) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let wanted = arguments.settings.wanted()?;
    let session = arguments.access.open()?;
    let current = Current::fetch(&session, &arguments.access).await?;
    let config = wanted.apply(&current.config, &BesideConfigtx(PathBuf::new()))?;
    let ended = match Proposal::of(&session, &current, &config, &arguments.handling)? {
        None => {
            println!("the channel is so already");
            Ok(ExitCode::SUCCESS)
        }
        Some(proposal) => {
            proposal
                .carry_out(&session, &current, &arguments.handling)
                .await
        }
    };
    session.close().await;
    ended
}

impl Settings {
    fn wanted(&self) -> Result<Wanted> {
        let mut wanted = Wanted {
            orderer: WantedOrderer {
                state: self.state.map(|state| match state {
                    State::Normal => WantedState::Normal,
                    State::Maintenance => WantedState::Maintenance,
                }),
                batch_timeout: self.batch_timeout.clone(),
                batch_size: WantedBatchSize {
                    max_message_count: self.max_message_count.clone(),
                    absolute_max_bytes: self.absolute_max_bytes.clone(),
                    preferred_max_bytes: self.preferred_max_bytes.clone(),
                },
                etcd_raft: WantedRaft {
                    consenters: BTreeMap::new(),
                    options: WantedOptions {
                        tick_interval: self.tick_interval.clone(),
                        election_tick: self.election_tick.clone(),
                        heartbeat_tick: self.heartbeat_tick.clone(),
                        max_inflight_blocks: self.max_inflight_blocks.clone(),
                        snapshot_interval_size: self.snapshot_interval_size.clone(),
                    },
                },
                ..WantedOrderer::default()
            },
            ..Wanted::default()
        };
        for (texts, required) in [(&self.capability, true), (&self.remove_capability, false)] {
            for text in texts {
                let (group, name) = split(text, '=', "channel|orderer|application=NAME")?;
                let capabilities = match group {
                    "channel" => &mut wanted.capabilities,
                    "orderer" => &mut wanted.orderer.capabilities,
                    "application" => &mut wanted.application.capabilities,
                    _ => {
                        bail!("{text:?}: capabilities are those of channel, orderer or application")
                    }
                };
                capabilities.insert(name.to_owned(), required);
            }
        }
        self.acls(&mut wanted.application)?;
        self.organizations(&mut wanted)?;
        for (texts, adds) in [(&self.endpoint, true), (&self.remove_endpoint, false)] {
            for text in texts {
                let (org, address) = split(text, '=', "ORG=HOST:PORT")?;
                let org = organization(&mut wanted.orderer.organizations, org)?;
                edit(&mut org.orderer_endpoints, address, adds);
            }
        }
        for (texts, adds) in [(&self.anchor_peer, true), (&self.remove_anchor_peer, false)] {
            for text in texts {
                let (org, address) = split(text, '=', "ORG=HOST:PORT")?;
                let org = organization(&mut wanted.application.organizations, org)?;
                edit(&mut org.anchor_peers, address, adds);
            }
        }
        Ok(wanted)
    }

    fn acls(&self, application: &mut WantedApplication) -> Result<()> {
        for text in &self.acl {
            let (resource, policy) = split(text, '=', "RESOURCE=POLICY")?;
            application
                .acls
                .insert(resource.to_owned(), Some(policy.to_owned()));
        }
        for resource in &self.remove_acl {
            application.acls.insert(resource.clone(), None);
        }
        Ok(())
    }

    fn organizations(&self, wanted: &mut Wanted) -> Result<()> {
        fn place<'a, 'b>(
            wanted: &'a mut Wanted,
            text: &'b str,
        ) -> Result<(
            &'a mut BTreeMap<String, Option<WantedOrganization>>,
            &'b str,
        )> {
            let (section, name) = split(text, '/', "orderer|application/NAME")?;
            match section {
                "orderer" => Ok((&mut wanted.orderer.organizations, name)),
                "application" => Ok((&mut wanted.application.organizations, name)),
                _ => bail!("{text:?}: organisations are those of orderer or application"),
            }
        }
        if let (Some(text), Some(folder)) = (&self.org, &self.org_msp_dir) {
            let (organizations, name) = place(wanted, text)?;
            let org = organization(organizations, name)?;
            org.id.clone_from(&self.org_msp_id);
            // Relative to where the command is run.
            org.msp_dir = Some(folder.display().to_string());
        }
        for text in &self.remove_org {
            let (organizations, name) = place(wanted, text)?;
            organizations.insert(name.to_owned(), None);
        }
        Ok(())
    }
}

fn split<'a>(text: &'a str, at: char, form: &str) -> Result<(&'a str, &'a str)> {
    text.split_once(at)
        .filter(|(before, after)| !before.is_empty() && !after.is_empty())
        .with_context(|| format!("{text:?} is not {form}"))
}

fn organization<'a>(
    organizations: &'a mut BTreeMap<String, Option<WantedOrganization>>,
    name: &str,
) -> Result<&'a mut WantedOrganization> {
    let entry = organizations.entry(name.to_owned());
    entry
        .or_insert_with(|| Some(WantedOrganization::default()))
        .as_mut()
        .with_context(|| format!("organisation {name} cannot be both removed and changed"))
}

fn edit(list: &mut Option<ListChange>, element: &str, adds: bool) {
    let ListChange::Edit(edit) = list.get_or_insert_with(|| ListChange::Edit(ListEdit::default()))
    else {
        return;
    };
    let elements = if adds {
        &mut edit.add
    } else {
        &mut edit.remove
    };
    elements.push(element.to_owned());
}
