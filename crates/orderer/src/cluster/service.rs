//! The server's side of `Cluster.Step`.
//!
//! A stream's messages are taken one after the other. Unless the caller has asked for answers ([`super::ANSWERS`]), the first
//! that is refused ends the stream with gRPC's status 2 and the reason, and nothing else is ever answered. Reading is driven
//! by whoever waits for the answers: a stream costs no task of its own.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt as _};
use quorate_fabric::envelope::RawEnvelope;
use quorate_runtime::metrics::IntCounter;
use tonic::codegen::http;
use tonic::metadata::MetadataValue;
use tonic::server::{NamedService, StreamingService};
use tonic::{Code, Request, Response, Status, Streaming};

use super::connection::LOG;
use super::expiry::ExpiryWatch;
use super::wire::{self, Step};
use super::{Core, Dispatch, Forwarded, StepRefusal};
use crate::grpc::StreamMetrics;
use crate::listener::{Peer, go_duration};
use crate::raw::RawCodec;

/// The longest message of a caller that is a consenter of no channel, in bytes: enough to be told so.
pub const STRANGERS_MESSAGE_BYTES: usize = 64 * 1024;

/// `orderer.Cluster`; cheap to clone. See [`super::Transport::service`].
#[derive(Clone)]
pub struct StepService {
    pub(super) core: Arc<Core>,
    pub(super) dispatch: Arc<dyn Dispatch>,
    pub(super) metrics: StreamMetrics,
}

impl NamedService for StepService {
    const NAME: &'static str = "orderer.Cluster";
}

impl tower::Service<http::Request<tonic::body::Body>> for StepService {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            if request.uri().path() != "/orderer.Cluster/Step" {
                return Ok(
                    Status::unimplemented("unknown method of service orderer.Cluster").into_http(),
                );
            }
            let peer = request.extensions().get::<Peer>();
            let known = peer
                .and_then(|peer| peer.certificate.as_deref())
                .is_some_and(|certificate| service.core.knows(&certificate.facts.public_key));
            let limit = if known {
                service.core.wiring.options.max_message_size
            } else {
                STRANGERS_MESSAGE_BYTES
            };
            let mut grpc = tonic::server::Grpc::new(RawCodec).max_decoding_message_size(limit);
            Ok(grpc.streaming(service, request).await)
        })
    }
}

impl StreamingService<Bytes> for StepService {
    type Response = Bytes;
    type ResponseStream = BoxStream<'static, Result<Bytes, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let asked = request.metadata().get(super::ANSWERS);
        let answering = asked.is_some_and(|asked| asked == super::TRANSACTIONS);
        let call = Call {
            core: self.core.clone(),
            peer: request.extensions().get::<Peer>().cloned(),
            answering,
            _counted: Ingress::new(self.core.clone()),
            told: self.metrics.begin(),
            started: Instant::now(),
        };
        let dispatch = self.dispatch.clone();
        Box::pin(async move {
            let mut response = Response::new(call.serve(dispatch, request.into_inner()));
            if answering {
                let promise = MetadataValue::from_static(super::TRANSACTIONS);
                response.metadata_mut().insert(super::ANSWERS, promise);
            }
            Ok(response)
        })
    }
}

/// Counts a stream while it is open.
struct Ingress(Arc<Core>);

impl Ingress {
    fn new(core: Arc<Core>) -> Self {
        core.wiring.metrics.ingress_stream_count.inc();
        Self(core)
    }
}

impl Drop for Ingress {
    fn drop(&mut self) {
        self.0.wiring.metrics.ingress_stream_count.dec();
    }
}

struct Call {
    core: Arc<Core>,
    peer: Option<Peer>,
    /// Every transaction is answered.
    answering: bool,
    /// Held while the stream is open.
    _counted: Ingress,
    told: crate::grpc::Call,
    started: Instant,
}

impl Call {
    fn serve(
        self,
        dispatch: Arc<dyn Dispatch>,
        requests: Streaming<Bytes>,
    ) -> BoxStream<'static, Result<Bytes, Status>> {
        tracing::debug!(target: LOG, "Connection from {}({})", self.name(), self.address());
        let reader = Reader::new(&self, dispatch.clone(), requests);
        let forwarded = stream::unfold(Some(reader), |reader| async move {
            let mut reader = reader?;
            let next = reader.next().await.transpose()?;
            let goes_on = next.is_ok();
            Some((next, goes_on.then_some(reader)))
        });
        let outcomes = dispatch.submit(forwarded.boxed(), self.answering);
        let answers = stream::unfold(Some((self, outcomes)), |open| async move {
            let (mut call, mut outcomes) = open?;
            loop {
                match outcomes.next().await {
                    None => return call.end(Ok(())).err().map(|status| (Err(status), None)),
                    Some(Err(status)) => {
                        return call
                            .end(Err(status))
                            .err()
                            .map(|status| (Err(status), None));
                    }
                    Some(Ok(outcome)) => {
                        if let Err(refusal) = &outcome {
                            tracing::warn!(target: LOG, "Handling of Submit() from {} failed: {refusal}", call.address());
                        }
                        if call.answering {
                            call.told.sent();
                            let answer = wire::answer(&outcome);
                            return Some((Ok(answer), Some((call, outcomes))));
                        }
                        if let Err(refusal) = outcome {
                            let status = refused(StepRefusal(refusal.to_string()));
                            return call
                                .end(Err(status))
                                .err()
                                .map(|status| (Err(status), None));
                        }
                    }
                }
            }
        });
        answers.boxed()
    }

    fn address(&self) -> String {
        let peer = self.peer.as_ref();
        peer.map_or_else(String::new, |peer| peer.address.to_string())
    }

    fn name(&self) -> &str {
        let certificate = self
            .peer
            .as_ref()
            .and_then(|peer| peer.certificate.as_ref());
        certificate.map_or("", |certificate| &certificate.facts.common_name)
    }

    /// Notes how the stream ended.
    fn end(&mut self, outcome: Result<(), Status>) -> Result<(), Status> {
        let took = go_duration(self.started.elapsed());
        let code = outcome.as_ref().map_or_else(Status::code, |()| Code::Ok);
        self.told.end(code);
        let (name, address) = (self.name(), self.address());
        match &outcome {
            Ok(()) => tracing::debug!(target: LOG, "{name}({address}) disconnected"),
            Err(status) => tracing::info!(
                target: "comm.grpc.server",
                { grpc.service = "orderer.Cluster",
                grpc.method = "Step",
                grpc.peer_address = %address,
                grpc.peer_subject = %name,
                error = %status.message(),
                grpc.code = ?status.code(),
                grpc.call_duration = %took },
                "streaming call completed"
            ),
        }
        outcome
    }
}

/// Takes the messages of a stream in. Consensus messages go to the channels at once, transactions come out.
struct Reader {
    core: Arc<Core>,
    dispatch: Arc<dyn Dispatch>,
    requests: Streaming<Bytes>,
    peer: Option<Peer>,
    address: String,
    expiry: Option<ExpiryWatch>,
    received: IntCounter,
}

impl Reader {
    fn new(call: &Call, dispatch: Arc<dyn Dispatch>, requests: Streaming<Bytes>) -> Self {
        let (core, address) = (call.core.clone(), call.address());
        let certificate = call
            .peer
            .as_ref()
            .and_then(|peer| peer.certificate.as_deref());
        let expiry = certificate.map(|certificate| {
            let threshold = core.wiring.options.certificate_warning;
            ExpiryWatch::new(&certificate.facts, address.clone(), threshold)
        });
        Self {
            core,
            dispatch,
            requests,
            peer: call.peer.clone(),
            address,
            expiry,
            received: call.told.received().clone(),
        }
    }

    /// The next transaction; none at the end of the stream.
    async fn next(&mut self) -> Result<Option<Forwarded>, Status> {
        loop {
            let bytes = match self.requests.message().await {
                Ok(Some(bytes)) => bytes,
                Ok(None) => return Ok(None),
                Err(status) => {
                    tracing::warn!(target: LOG, "Stream read from {} failed: {}", self.address, status.message());
                    return Err(status);
                }
            };
            self.received.inc();
            match Step::decode(bytes).map_err(|error| unreadable(&error))? {
                Step::Consensus {
                    channel,
                    payload,
                    metadata,
                } => {
                    self.warn(&channel);
                    self.caller(&channel)
                        .and_then(|from| self.dispatch.consensus(&channel, from, payload, metadata))
                        .map_err(refused)?;
                }
                Step::Submit {
                    channel,
                    last_validation_seq,
                    envelope,
                } => {
                    self.warn(&channel);
                    let envelope =
                        RawEnvelope::decode(envelope).map_err(|error| unreadable(&error))?;
                    let from = self.caller(&channel).map_err(|refusal| {
                        tracing::warn!(target: LOG, "Handling of Submit() from {} failed: {refusal}", self.address);
                        refused(refusal)
                    })?;
                    return Ok(Some(Forwarded {
                        channel,
                        from,
                        last_validation_seq,
                        envelope,
                    }));
                }
                Step::Neither => {
                    return Err(refused(StepRefusal(
                        "message is neither a Submit nor a Consensus request".to_owned(),
                    )));
                }
            }
        }
    }

    fn caller(&self, channel: &str) -> Result<u64, StepRefusal> {
        let certificate = self
            .peer
            .as_ref()
            .and_then(|peer| peer.certificate.as_deref());
        let key = certificate.map(|certificate| certificate.facts.public_key.as_slice());
        self.core.caller(channel, key)
    }

    fn warn(&mut self, channel: &str) {
        let now = self.core.wiring.clock.now_seconds();
        let watch = self.expiry.as_mut();
        if let Some(warning) = watch.and_then(|watch| watch.check(now, channel)) {
            tracing::warn!(target: LOG, "{warning}");
        }
    }
}

fn unreadable(reason: &dyn std::fmt::Display) -> Status {
    Status::internal(format!(
        "grpc: failed to unmarshal the received message: {reason}"
    ))
}

fn refused(refusal: StepRefusal) -> Status {
    Status::new(Code::Unknown, refusal.0)
}
