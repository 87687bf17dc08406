//! What a channel's core needs of the outside, made from what the process has: the transport for its messages, pullers for
//! blocks that it lacks.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use quorate_fabric::config::ChannelConfig;

use super::{LOG, Premises};
use crate::channel::{Belonging, Peers, Replication};
use crate::cluster::{ForwardError, Member, Transport};
use crate::replication::{ChainVerifier, Puller};
use crate::store::{BlockStore, StoredBlock};

/// Blocks handed to a channel at once, so that it goes on with others things between them.
const MAX_FETCHED: u64 = 100;

/// The other consenters of one channel, through the transport of all.
pub(super) struct ChannelPeers {
    pub(super) channel: String,
    pub(super) transport: Transport,
}

impl Peers for ChannelPeers {
    fn connect(&self, members: Vec<Member>) {
        self.transport.configure(&self.channel, &members);
    }

    fn send(&self, to: u64, payload: Bytes, metadata: Bytes) {
        // Raft repeats what matters, and the transport has counted the loss.
        let _ = self.transport.send(&self.channel, to, &payload, &metadata);
    }

    fn checks(&self, to: u64) -> bool {
        self.transport.checks(&self.channel, to)
    }

    fn forward(
        &self,
        to: u64,
        validated_at: Option<u64>,
        envelope: Bytes,
    ) -> BoxFuture<'static, Result<(), ForwardError>> {
        let (transport, channel) = (self.transport.clone(), self.channel.clone());
        Box::pin(async move {
            transport
                .submit(&channel, to, validated_at, &envelope)
                .await
        })
    }
}

/// Blocks of one channel as other orderers have them.
pub(super) struct ChannelReplication {
    pub(super) channel: String,
    pub(super) store: BlockStore,
    pub(super) premises: Arc<Premises>,
}

impl ChannelReplication {
    /// The end of our chain: the configuration in force and the newest block.
    fn end(&self) -> Option<(Arc<ChannelConfig>, Arc<StoredBlock>)> {
        let newest = self
            .store
            .read(self.store.height().checked_sub(1)?)
            .ok()??;
        let config = self.store.read(self.store.last_config_number()?).ok()??;
        let config = ChannelConfig::from_block(&config.block()).ok()?;
        Some((Arc::new(config), newest))
    }

    fn puller(&self) -> Option<(Puller, Arc<ChannelConfig>)> {
        let (config, newest) = self.end()?;
        let verifier = ChainVerifier::new(
            &self.channel,
            Some(config.clone()),
            Some(newest.header().clone()),
        );
        let puller = Puller::new(
            self.premises.puller.clone(),
            &self.channel,
            config.orderer_endpoints(),
            Some(verifier),
        );
        Some((puller, config))
    }
}

impl Replication for ChannelReplication {
    fn fetch(&self, first: u64, last: u64) -> BoxFuture<'static, Vec<StoredBlock>> {
        let puller = self.puller();
        let clock = self.premises.clock.clone();
        let retry = self.premises.puller.options.retry_timeout;
        let channel = self.channel.clone();
        Box::pin(async move {
            let Some((mut puller, _)) = puller else {
                // Our own chain cannot be read: the next append will say so.
                tracing::error!(target: LOG, %channel, "The end of the chain cannot be read; no blocks are pulled");
                return std::future::pending().await;
            };
            let mut blocks = Vec::new();
            let end = last.min(first.saturating_add(MAX_FETCHED - 1));
            for number in first..=end {
                loop {
                    match puller.pull(number).await {
                        Ok(block) => {
                            blocks.push(block);
                            break;
                        }
                        // What there is already is of use.
                        Err(_) if !blocks.is_empty() => return blocks,
                        Err(_) => clock.sleep(retry).await,
                    }
                }
            }
            blocks
        })
    }

    fn belonging(&self) -> BoxFuture<'static, Option<Belonging>> {
        let puller = self.puller();
        // A leader that orders its own removal has the block that says so, and may never hear that its term is over.
        let known = self.store.last_config_number().unwrap_or(0);
        let premises = self.premises.clone();
        Box::pin(async move {
            let (puller, trusted) = puller?;
            let block = match puller.last_config_block(Some(&trusted)).await {
                Ok(block) => block,
                // The orderers may be others than those that we knew.
                Err(_) => puller.last_config_block(None).await.ok()?,
            };
            if block.number() < known {
                return None;
            }
            let config = ChannelConfig::from_block(&block.block()).ok()?;
            Some(if premises.is_member(&config) {
                Belonging::Member(block.number())
            } else {
                Belonging::Evicted(block.number())
            })
        })
    }
}
