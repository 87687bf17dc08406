//! The registrar as the network's services see it: who may have blocks, who may submit, what other orderers may say, and what
//! operators may do.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::StreamExt as _;
use quorate_fabric::config::ChannelConfig;
use quorate_fabric::raftpb;
use quorate_runtime::tasks::{blocking, chain};
use tokio::sync::watch;

use super::{Consenter, Part, Registrar};
use crate::admin::{ChannelInfo, ChannelList, JoinError, Participation, PruneError, RemoveError};
use crate::broadcast::{Found, System, Unserved};
use crate::channel::SubmitError;
use crate::cluster::{Dispatch, Forwarded, ForwardedStream, OutcomeStream, StepRefusal};
use crate::replication::Progress;
use crate::store::{BlockStore, Pruned};
use crate::{broadcast, deliver};

impl deliver::Channel for Consenter {
    fn config(&self) -> Arc<ChannelConfig> {
        self.handle.config()
    }

    fn store(&self) -> &BlockStore {
        self.handle.store()
    }

    fn outage(&self) -> watch::Receiver<bool> {
        self.outage.clone()
    }
}

impl deliver::Channels for Registrar {
    fn channel(&self, id: &str) -> Option<Arc<dyn deliver::Channel>> {
        match self.part(id)? {
            Part::Consenter(consenter) => Some(consenter),
            Part::Inactive(inactive) => Some(inactive),
            _ => None,
        }
    }
}

impl broadcast::Channels for Registrar {
    fn find(&self, channel: &str) -> Found {
        let table = self.table.load();
        let found = table.parts.get(channel);
        if let Some(Part::Consenter(consenter)) = found {
            return Found::Served(consenter.handle.clone());
        }
        let Some(system) = &table.system else {
            return Found::NotServed;
        };
        if let Some(part) = found {
            return Found::Unserved(unserved(channel, part));
        }
        Found::Unknown(match table.parts.get(system) {
            Some(Part::Consenter(consenter)) => System::Served {
                channel: consenter.handle.clone(),
                channels: u64::try_from(table.parts.len()).unwrap_or(u64::MAX),
            },
            Some(part) => System::Unserved(unserved(system, part)),
            None => return Found::NotServed,
        })
    }
}

/// What is said of a channel that we do not order for.
fn unserved(channel: &str, part: &Part) -> Unserved {
    match part {
        Part::Inactive(inactive) => inactive.unserved(),
        _ => Unserved {
            config: None,
            reason: format!("channel {channel} is not serviced by me"),
        },
    }
}

impl Dispatch for Registrar {
    fn consensus(
        &self,
        channel: &str,
        from: u64,
        payload: Bytes,
        metadata: Bytes,
    ) -> Result<(), StepRefusal> {
        let handle = self.consenter(channel).ok_or_else(|| unknown(channel))?;
        // Here, where the sender can still be told.
        raftpb::check_form(&payload).map_err(|_| {
            StepRefusal(
                "failed to unmarshal StepRequest payload to Raft Message: unexpected EOF"
                    .to_owned(),
            )
        })?;
        handle.step(from, payload, metadata);
        Ok(())
    }

    fn submit(&self, forwarded: ForwardedStream, insistent: bool) -> OutcomeStream {
        let registrar = self.clone();
        let envelopes = forwarded.map(move |forwarded| {
            // What another orderer says of its checks does not count: they are made again.
            let Forwarded {
                channel, envelope, ..
            } = forwarded?;
            let handle = registrar.consenter(&channel);
            let handle = handle.ok_or_else(|| SubmitError::Unavailable(unknown(&channel).0));
            Ok((handle, envelope))
        });
        let checker = &self.premises.checker;
        checker.forwarded(envelopes, insistent).boxed()
    }
}

fn unknown(channel: &str) -> StepRefusal {
    StepRefusal(format!("channel {channel} doesn't exist"))
}

impl Participation for Registrar {
    fn list(&self) -> ChannelList {
        let table = self.table.load();
        let names = table.parts.keys();
        ChannelList {
            system_channel: table.system.clone(),
            channels: names
                .filter(|name| table.system.as_ref() != Some(*name))
                .cloned()
                .collect(),
        }
    }

    fn info(&self, channel: &str) -> Option<ChannelInfo> {
        Registrar::info(self, channel)
    }

    fn join(&self, block: Bytes) -> BoxFuture<'_, Result<ChannelInfo, JoinError>> {
        Box::pin(Registrar::join(self, block))
    }

    fn progress(&self, channel: &str) -> Option<Progress> {
        match self.part(channel)? {
            Part::Follower(follower) => follower.state().progress,
            _ => None,
        }
    }

    fn prune<'a>(
        &'a self,
        channel: &'a str,
        below: u64,
    ) -> BoxFuture<'a, Result<Pruned, PruneError>> {
        Box::pin(async move {
            let store = self.store(channel).ok_or(PruneError::ChannelNotExist)?;
            match blocking("pruning a channel", move || store.prune(below)).await {
                Ok(Ok(pruned)) => Ok(pruned),
                Ok(Err(error)) => Err(PruneError::Failed(chain(&error))),
                Err(failure) => Err(PruneError::Failed(failure.to_string())),
            }
        })
    }

    fn remove<'a>(&'a self, channel: &'a str) -> BoxFuture<'a, Result<(), RemoveError>> {
        Box::pin(Registrar::remove(self, channel))
    }
}
