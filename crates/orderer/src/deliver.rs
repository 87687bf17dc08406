//! Deliver: blocks for whoever may read a channel.
//!
//! A client asks for a range of blocks (`seek`) and gets them one by one, the newest as they are made, until the
//! range ends, the client loses its right to read (`session`), or the channel has no leader any more. What a request
//! must be before it is looked at is in `request`. The order of all checks is Fabric's, because clients see which one
//! failed.
//!
//! Blocks leave as the ledger's bytes, undecoded. A stream holds one block at most and asks for the next when the
//! connection has taken it, so a slow client costs its own time only; a client that waits for a block costs its own
//! request's bytes.
//!
//! Start reading at [`DeliverService`].

mod request;
mod seek;
mod session;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use quorate_fabric::config::ChannelConfig;
use quorate_fabric::envelope::RawEnvelope;
use quorate_fabric::proto::common::Status;
use quorate_runtime::Clock;
use quorate_runtime::metrics::IntCounter;
use quorate_runtime::tasks;
use tokio::sync::watch;

use crate::grpc::{Caller, Deliver, DeliverResponse, Requests, Responses};
use crate::metrics::Deliver as DeliverMetrics;
use crate::store::{BlockStore, StoreError, StoredBlock};
use request::Request;
use seek::{Range, Stop};
use session::Session;

/// Where the log lines belong, by Fabric's names.
const LOG: &str = "common.deliver";

/// What Deliver needs to know of a channel.
pub trait Channel: Send + Sync {
    /// The configuration that is current now. That of a config block must be current before the block is in the
    /// store: whoever loses its right to read by it must not be given it.
    fn config(&self) -> Arc<ChannelConfig>;

    /// The channel's blocks.
    fn store(&self) -> &BlockStore;

    /// Whether the channel cannot say what is newest: there is no leader, in a cluster of more than two. Closed when
    /// this orderer stops serving the channel.
    fn outage(&self) -> watch::Receiver<bool>;
}

/// The channels from which blocks are delivered: those that this orderer is a consenter of.
pub trait Channels: Send + Sync + 'static {
    /// The channel with this name.
    fn channel(&self, id: &str) -> Option<Arc<dyn Channel>>;
}

/// Settings of Deliver.
#[derive(Debug, Clone)]
pub struct DeliverOptions {
    /// `General.Authentication.TimeWindow`: how far a request's timestamp may be from our clock.
    pub time_window: Duration,
    /// `General.Authentication.NoExpirationChecks`: whether expired identities are accepted.
    pub no_expiration_checks: bool,
    /// `General.TLS.ClientAuthRequired`: whether a request must name the TLS certificate of its connection.
    pub tls_binding: bool,
}

/// Serves Deliver. Cheap to clone.
#[derive(Clone)]
pub struct DeliverService {
    inner: Arc<Inner>,
}

struct Inner {
    channels: Arc<dyn Channels>,
    options: DeliverOptions,
    clock: Clock,
    metrics: DeliverMetrics,
}

impl DeliverService {
    /// A service that delivers from `channels`.
    pub fn new(
        channels: Arc<dyn Channels>,
        options: DeliverOptions,
        clock: Clock,
        metrics: &DeliverMetrics,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                channels,
                options,
                clock,
                metrics: metrics.clone(),
            }),
        }
    }
}

impl Deliver for DeliverService {
    fn deliver(&self, caller: Caller, requests: Requests) -> Responses<DeliverResponse> {
        self.inner.metrics.streams_opened.inc();
        let conversation = Conversation {
            service: self.inner.clone(),
            caller,
            requests,
            serving: None,
            over: false,
        };
        futures::stream::unfold(conversation, Conversation::next).boxed()
    }
}

/// One call: requests, each answered by blocks and a status.
struct Conversation {
    service: Arc<Inner>,
    caller: Caller,
    requests: Requests,
    serving: Option<Serving>,
    over: bool,
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.service.metrics.streams_closed.inc();
    }
}

impl Conversation {
    /// The next response. Dropping the future ends the call.
    async fn next(mut self) -> Option<(Result<DeliverResponse, tonic::Status>, Self)> {
        loop {
            if self.over {
                return None;
            }
            let ended = if let Some(serving) = &mut self.serving {
                match serving.next(&self.service, &self.caller).await {
                    Ok(block) => {
                        let response = DeliverResponse::Block(block.encoded().clone());
                        return Some((Ok(response), self));
                    }
                    Err(status) => Some(status),
                }
            } else {
                None
            };
            let status = if let Some(status) = ended {
                if let Some(serving) = self.serving.take() {
                    serving.completed(status == Status::Success);
                }
                status
            } else {
                match self.requests.next().await {
                    None => return None,
                    Some(Err(status)) => {
                        tracing::warn!(target: LOG, "Error reading from {}: {status}", self.caller.address);
                        self.over = true;
                        return Some((Err(status), self));
                    }
                    Some(Ok(envelope)) => match self.service.begin(&self.caller, &envelope) {
                        Ok(serving) => {
                            self.serving = Some(serving);
                            continue;
                        }
                        Err(status) => status,
                    },
                }
            };
            // As Fabric: after anything but success there is nothing more to talk about.
            self.over = status != Status::Success;
            return Some((Ok(DeliverResponse::Status(status)), self));
        }
    }
}

impl Inner {
    /// Everything that is checked before the first block.
    fn begin(&self, caller: &Caller, envelope: &RawEnvelope) -> Result<Serving, Status> {
        let from = caller.address;
        let now = self.clock.now_micros();
        let request = Request::parse(envelope).and_then(|request| {
            request.check_time(now, self.options.time_window)?;
            if self.options.tls_binding {
                request.check_binding(caller.certificate.as_deref())?;
            }
            Ok(request)
        });
        let request = request.map_err(|error| {
            tracing::warn!(target: LOG, "Rejecting deliver for {from} due to envelope validation error: {error}");
            Status::BadRequest
        })?;
        let id = request.channel_id().to_owned();
        let Some(channel) = self.channels.channel(&id) else {
            // Clients ask again and again while they wait for a channel to be created: not worth a louder line.
            tracing::debug!(target: LOG, "Rejecting deliver for {from} because channel {id} not found");
            return Err(Status::NotFound);
        };
        let counted = Counted::new(&self.metrics, &id);
        let range = self.admit(caller, &id, &*channel, request, now);
        match range {
            Ok(Admitted {
                range,
                stop,
                session,
                outage,
            }) => Ok(Serving {
                height: channel.store().watch_height(),
                channel,
                id,
                range,
                stop,
                session,
                outage,
                counted,
            }),
            Err(status) => {
                counted.completed(false);
                Err(status)
            }
        }
    }

    fn admit(
        &self,
        caller: &Caller,
        id: &str,
        channel: &dyn Channel,
        request: Request,
        now: i64,
    ) -> Result<Admitted, Status> {
        let from = caller.address;
        let seek = request.seek().map_err(|error| {
            tracing::warn!(target: LOG, "[channel: {id}] Received a signed deliver request from {from} with malformed seekInfo payload: {error}");
            Status::BadRequest
        })?;
        let outage = (!seek::is_best_effort(&seek)).then(|| channel.outage());
        if outage.as_ref().is_some_and(is_out) {
            tracing::warn!(target: LOG, "[channel: {id}] Rejecting deliver request for {from} because of consenter error");
            return Err(Status::ServiceUnavailable);
        }
        let config = channel.config();
        let mut session = Session::new(
            request.into_signed_data(),
            &config,
            !self.options.no_expiration_checks,
        );
        session.evaluate(&config, now).map_err(|error| {
            tracing::warn!(target: LOG, "[channel: {id}] Client {from} is not authorized: {error}");
            Status::Forbidden
        })?;
        let (Some(start), Some(stop)) = (&seek.start, &seek.stop) else {
            tracing::warn!(target: LOG, "[channel: {id}] Received seekInfo message from {from} with missing start or stop");
            return Err(Status::BadRequest);
        };
        let (range, stop) = seek::resolve(start, stop, channel.store().first(), channel.store().height()).map_err(|error| {
            if error.status != Status::NotFound {
                tracing::warn!(target: LOG, "[channel: {id}] Received invalid seekInfo message from {from}: {}", error.reason);
            }
            error.status
        })?;
        let range = Range {
            fail_if_not_ready: seek::fails_if_not_ready(&seek),
            ..range
        };
        Ok(Admitted {
            range,
            stop,
            session,
            outage,
        })
    }
}

/// What the checks found out.
struct Admitted {
    range: Range,
    stop: Stop,
    session: Session,
    outage: Option<watch::Receiver<bool>>,
}

/// A request that is being answered with blocks.
struct Serving {
    channel: Arc<dyn Channel>,
    id: String,
    height: watch::Receiver<u64>,
    range: Range,
    stop: Stop,
    session: Session,
    /// Not looked at when the client wants whatever there is.
    outage: Option<watch::Receiver<bool>>,
    counted: Counted,
}

impl Serving {
    fn completed(self, success: bool) {
        self.counted.completed(success);
    }

    /// The next block, or how the request ends. Dropping the future loses nothing.
    async fn next(&mut self, service: &Inner, caller: &Caller) -> Result<Arc<StoredBlock>, Status> {
        let Some(number) = self.range.next else {
            return Err(Status::Success);
        };
        self.ready(number, caller).await?;
        let block = self.read(number, caller).await?;
        let (id, from) = (&self.id, caller.address);
        self.session
            .evaluate(&self.channel.config(), service.clock.now_micros())
            .map_err(|error| {
                tracing::warn!(target: LOG, "[channel: {id}] Client authorization revoked for deliver request from {from}: {error}");
                Status::Forbidden
            })?;
        self.range.next = if self.stop.is_at(number) {
            None
        } else {
            number.checked_add(1)
        };
        self.counted.sent();
        tracing::debug!(target: LOG, "[channel: {id}] Delivering block [{number}] for {from}");
        Ok(block)
    }

    /// Waits until the block is there.
    async fn ready(&mut self, number: u64, caller: &Caller) -> Result<(), Status> {
        let from = caller.address;
        let id = &self.id;
        if self.range.fail_if_not_ready && number >= self.channel.store().height() {
            return Err(Status::NotFound);
        }
        let outage = async {
            match &mut self.outage {
                // Also when nobody can say any more: the channel is not served here now.
                Some(outage) => drop(outage.wait_for(|out| *out).await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = outage => {
                tracing::warn!(target: LOG, "[channel: {id}] Aborting deliver for request from {from} because of background error");
                Err(Status::ServiceUnavailable)
            }
            height = self.height.wait_for(|height| *height > number) => match height {
                Ok(_) => Ok(()),
                Err(_) => {
                    tracing::debug!(target: LOG, "[channel: {id}] Aborting deliver for request from {from}: the channel was removed");
                    Err(Status::ServiceUnavailable)
                }
            },
        }
    }

    async fn read(&self, number: u64, caller: &Caller) -> Result<Arc<StoredBlock>, Status> {
        let store = self.channel.store();
        if let Some(block) = store.read_recent(number) {
            return Ok(block);
        }
        let from_disk = store.clone();
        let read = tasks::blocking("read a block to deliver", move || from_disk.read(number)).await;
        let reason = match read {
            Ok(Ok(Some(block))) => return Ok(block),
            Ok(Ok(None)) => "it is not there".to_owned(),
            // The client asks for what an operator removed: nothing is wrong here.
            Ok(Err(error @ StoreError::Pruned { .. })) => {
                tracing::warn!(target: LOG, "[channel: {}] Rejecting deliver for {}: {error}", self.id, caller.address);
                return Err(Status::NotFound);
            }
            Ok(Err(error)) => tasks::chain(&error),
            Err(failure) => tasks::chain(&failure),
        };
        tracing::error!(target: LOG, "[channel: {}] Error reading block {number} from the ledger: {reason}", self.id);
        Err(Status::ServiceUnavailable)
    }
}

fn is_out(outage: &watch::Receiver<bool>) -> bool {
    *outage.borrow() || outage.has_changed().is_err()
}

/// Counts one request: it completes once, without success if nobody says otherwise.
struct Counted {
    completed: Option<[IntCounter; 2]>,
    sent: IntCounter,
}

impl Counted {
    fn new(metrics: &DeliverMetrics, channel: &str) -> Self {
        const DATA_TYPE: &str = "block";
        const FILTERED: &str = "false";
        let labels = [channel, FILTERED, DATA_TYPE];
        metrics.requests_received.with(labels).inc();
        let completed = |success| {
            let labels = [channel, FILTERED, DATA_TYPE, success];
            metrics.requests_completed.with(labels)
        };
        Self {
            completed: Some([completed("false"), completed("true")]),
            sent: metrics.blocks_sent.with(labels),
        }
    }

    fn sent(&self) {
        self.sent.inc();
    }

    fn completed(mut self, success: bool) {
        self.count(success);
    }

    fn count(&mut self, success: bool) {
        if let Some([without_success, with_success]) = self.completed.take() {
            if success {
                with_success.inc();
            } else {
                without_success.inc();
            }
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.count(false);
    }
}
