//! What streams of both edges are made of: the node is asked for the next batch only when the
//! client has taken the last one, so a slow client holds one batch and no more. A feed ends when
//! the client goes, when this instance ceases to serve, or when it stops.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::stream::{self, Stream};
use quorate_ledger::vault::Cursor;
use quorate_rpc::{RpcError, api};
use quorate_runtime::Shutdown;
use tokio::sync::OwnedSemaphorePermit;

use super::access::Caller;
use super::desk::{self, Desk, MAX_WAIT};

/// Updates of the vault from a cursor on.
pub(super) struct VaultFeed {
    desk: Arc<Desk>,
    shutdown: Shutdown,
    cursor: Cursor,
    waiting: VecDeque<api::VaultUpdate>,
    ended: bool,
    _place: OwnedSemaphorePermit,
}

impl VaultFeed {
    /// A feed of what comes after a cursor, or after now.
    pub(super) async fn open(
        desk: &Arc<Desk>,
        caller: &Caller,
        after: Option<Cursor>,
        shutdown: Shutdown,
    ) -> Result<Self, RpcError> {
        let (cursor, place) = desk.begin_vault_track(caller, after).await?;
        Ok(Self {
            desk: desk.clone(),
            shutdown,
            cursor,
            waiting: VecDeque::new(),
            ended: false,
            _place: place,
        })
    }

    /// Where the feed stands.
    pub(super) fn position(&self) -> Cursor {
        self.cursor
    }

    async fn next(&mut self) -> Option<Result<api::VaultUpdate, RpcError>> {
        loop {
            if let Some(update) = self.waiting.pop_front() {
                return Some(Ok(update));
            }
            if self.ended {
                return None;
            }
            let more = tokio::select! {
                more = self.desk.more_updates(self.cursor) => more,
                () = self.shutdown.requested() => Err(desk::stopping()),
            };
            match more {
                Ok(batch) => {
                    self.cursor = batch.cursor;
                    self.waiting.extend(batch.updates);
                }
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
    }

    /// The updates; an error is the last item.
    pub(super) fn into_stream(self) -> impl Stream<Item = Result<api::VaultUpdate, RpcError>> {
        stream::unfold(self, |mut feed| async move {
            let next = feed.next().await?;
            Some((next, feed))
        })
    }
}

/// Flows that are new or changed.
pub(super) struct FlowFeed {
    desk: Arc<Desk>,
    shutdown: Shutdown,
    cursor: u64,
    ended: bool,
    _place: OwnedSemaphorePermit,
}

impl FlowFeed {
    /// A feed of what comes after a cursor; 0 begins with all flows.
    pub(super) async fn open(
        desk: &Arc<Desk>,
        caller: &Caller,
        after: u64,
        shutdown: Shutdown,
    ) -> Result<Self, RpcError> {
        Ok(Self {
            desk: desk.clone(),
            shutdown,
            cursor: after,
            ended: false,
            _place: desk.begin_watch_flows(caller).await?,
        })
    }

    async fn next(&mut self) -> Option<Result<api::FlowUpdates, RpcError>> {
        while !self.ended {
            let more = tokio::select! {
                more = self.desk.more_flows(self.cursor, MAX_WAIT) => more,
                () = self.shutdown.requested() => Err(desk::stopping()),
            };
            match more {
                Ok(updates) => {
                    self.cursor = updates.cursor;
                    if !updates.flows.is_empty() {
                        return Some(Ok(updates));
                    }
                }
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }

    /// The updates; an error is the last item.
    pub(super) fn into_stream(self) -> impl Stream<Item = Result<api::FlowUpdates, RpcError>> {
        stream::unfold(self, |mut feed| async move {
            let next = feed.next().await?;
            Some((next, feed))
        })
    }
}
