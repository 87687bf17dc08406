//! Streams that outlive their connection.
//!
//! A tracker knows the place of the last update it gave out. When the connection is lost it opens
//! the stream anew from that place, on whichever instance answers, so the application sees neither
//! gap nor repetition.

use std::collections::VecDeque;
use std::time::Duration;

use quorate_ledger::vault::Cursor;
use tokio::time::sleep;

use super::connection::jittered;
use super::{Client, ClientError, Failure, RETRY_PAUSE_MAX, RETRY_PAUSE_MIN, bad_answer};
use crate::api::{FlowStatus, FlowUpdates, VaultUpdate};
use crate::error::ErrorCode;
use crate::method::Method;
use crate::wire::proto;

const VAULT_TRACK: Method = Method::VaultTrack;
const WATCH_FLOWS: Method = Method::StateMachinesFeed;

/// Where the updates begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrackFrom {
    /// After this update.
    Cursor(Cursor),
    /// With what is recorded after the call.
    Now,
}

/// Updates of the vault, one after the other. See [`Client::vault_track`].
pub struct VaultTracker {
    client: Client,
    position: Option<Cursor>,
    stream: Option<tonic::Streaming<proto::VaultUpdate>>,
    pause: Duration,
}

impl std::fmt::Debug for VaultTracker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VaultTracker")
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl VaultTracker {
    pub(super) async fn open(client: Client, from: TrackFrom) -> Result<Self, ClientError> {
        let position = match from {
            TrackFrom::Cursor(cursor) => Some(cursor),
            TrackFrom::Now => None,
        };
        let call = client.call_of(VAULT_TRACK, true);
        // The node's first message tells the position: once it is here, nothing can be missed.
        let (stream, position) = client
            .exchange(call, |mut stub, _| async move {
                let mut stream = stub.vault_track(request(position)).await?.into_inner();
                let first = stream.message().await?;
                let first =
                    first.ok_or_else(|| tonic::Status::unavailable("the stream ended at once"))?;
                Ok(tonic::Response::new((stream, Cursor(first.cursor))))
            })
            .await?;
        Ok(Self {
            client,
            position: Some(position),
            stream: Some(stream),
            pause: RETRY_PAUSE_MIN,
        })
    }

    /// The place of the last update that was given out: to continue from there after a restart.
    pub fn cursor(&self) -> Option<Cursor> {
        self.position
    }

    /// The next update; waits as long as it takes, over any number of reconnections. An error
    /// means that the node refuses to go on, for example because the user has lost the
    /// permission. Dropping the call halfway loses nothing.
    pub async fn next(&mut self) -> Result<VaultUpdate, ClientError> {
        loop {
            let Some(stream) = &mut self.stream else {
                self.reopen().await?;
                continue;
            };
            let message = match stream.message().await {
                Ok(Some(message)) => message,
                Ok(None) => {
                    self.stream = None;
                    continue;
                }
                Err(status) => {
                    self.stream = None;
                    refusal(&self.client, VAULT_TRACK, &status)?;
                    continue;
                }
            };
            self.pause = RETRY_PAUSE_MIN;
            let cursor = Cursor(message.cursor);
            let seen = self.position.is_some_and(|position| cursor <= position);
            if message.position_only || seen {
                continue;
            }
            let call = self.client.call_of(VAULT_TRACK, true);
            let update =
                VaultUpdate::try_from(message).map_err(|source| bad_answer(call, source))?;
            self.position = Some(cursor);
            return Ok(update);
        }
    }

    async fn reopen(&mut self) -> Result<(), ClientError> {
        pause(&mut self.pause).await;
        let mut stub = connected(&self.client, VAULT_TRACK).await?;
        match stub.vault_track(request(self.position)).await {
            Ok(response) => self.stream = Some(response.into_inner()),
            Err(status) => refusal(&self.client, VAULT_TRACK, &status)?,
        }
        Ok(())
    }
}

fn request(position: Option<Cursor>) -> proto::VaultTrackRequest {
    proto::VaultTrackRequest {
        cursor: position.map_or(0, |cursor| cursor.0),
        from_now: position.is_none(),
    }
}

/// The flows of a node and their changes. See [`Client::watch_flows`].
pub struct FlowWatcher {
    client: Client,
    stream: Option<tonic::Streaming<proto::FlowUpdates>>,
    waiting: VecDeque<FlowStatus>,
    pause: Duration,
}

impl std::fmt::Debug for FlowWatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlowWatcher").finish_non_exhaustive()
    }
}

impl FlowWatcher {
    pub(super) async fn open(client: Client) -> Result<Self, ClientError> {
        let call = client.call_of(WATCH_FLOWS, true);
        let stream = client
            .exchange(call, |mut stub, _| async move {
                stub.watch_flows(proto::Empty {}).await
            })
            .await?;
        Ok(Self {
            client,
            stream: Some(stream),
            waiting: VecDeque::new(),
            pause: RETRY_PAUSE_MIN,
        })
    }

    /// The next flow that is new or changed, as it stands: first every flow that there is, then
    /// changes. Intermediate states may be skipped, the latest one is not. After a reconnection
    /// all flows come again. Dropping the call halfway loses nothing.
    pub async fn next(&mut self) -> Result<FlowStatus, ClientError> {
        loop {
            if let Some(flow) = self.waiting.pop_front() {
                return Ok(flow);
            }
            let Some(stream) = &mut self.stream else {
                self.reopen().await?;
                continue;
            };
            match stream.message().await {
                Ok(Some(message)) => {
                    self.pause = RETRY_PAUSE_MIN;
                    let call = self.client.call_of(WATCH_FLOWS, true);
                    let updates = FlowUpdates::try_from(message)
                        .map_err(|source| bad_answer(call, source))?;
                    self.waiting.extend(updates.flows);
                }
                Ok(None) => self.stream = None,
                Err(status) => {
                    self.stream = None;
                    refusal(&self.client, WATCH_FLOWS, &status)?;
                }
            }
        }
    }

    async fn reopen(&mut self) -> Result<(), ClientError> {
        pause(&mut self.pause).await;
        let mut stub = connected(&self.client, WATCH_FLOWS).await?;
        match stub.watch_flows(proto::Empty {}).await {
            Ok(response) => self.stream = Some(response.into_inner()),
            Err(status) => refusal(&self.client, WATCH_FLOWS, &status)?,
        }
        Ok(())
    }
}

async fn pause(pause: &mut Duration) {
    sleep(jittered(*pause)).await;
    *pause = (*pause * 2).min(RETRY_PAUSE_MAX);
}

/// A connection, however long it takes, unless the node refuses this client.
async fn connected(
    client: &Client,
    method: Method,
) -> Result<super::connection::Stub, ClientError> {
    loop {
        match client.link_up(&client.call_of(method, true)).await {
            Err(ClientError::Unreachable { .. }) => {}
            other => return other,
        }
    }
}

/// Whether a stream's end is a refusal for good; a passing one is not an error.
fn refusal(client: &Client, method: Method, status: &tonic::Status) -> Result<(), ClientError> {
    match Failure::of(status) {
        Failure::Answered(error) if !error.retryable => Err(ClientError::Refused {
            method: method.name(),
            error,
        }),
        Failure::Answered(error) => {
            if error.code == ErrorCode::NotReady {
                client.inner.move_on.notify_one();
            }
            Ok(())
        }
        Failure::Lost(_) => Ok(()),
    }
}
