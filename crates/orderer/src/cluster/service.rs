//! The server's side of `Cluster.Step`.
//!
//! A stream's messages are taken one after the other; the first that is refused ends the stream with gRPC's status 2 and
//! the reason, and nothing else is ever answered. Reading is driven by whoever waits for the answer: a stream costs no
//! task of its own.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt as _};
use quorate_fabric::envelope::RawEnvelope;
use tonic::codegen::http;
use tonic::server::{NamedService, StreamingService};
use tonic::{Code, Request, Response, Status, Streaming};

use super::connection::LOG;
use super::expiry::ExpiryWatch;
use super::wire::Step;
use super::{Core, Dispatch, StepRefusal};
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

impl StreamingService<bytes::Bytes> for StepService {
    type Response = bytes::Bytes;
    type ResponseStream = BoxStream<'static, Result<bytes::Bytes, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<bytes::Bytes>>) -> Self::Future {
        let call = Call {
            core: self.core.clone(),
            dispatch: self.dispatch.clone(),
            peer: request.extensions().get::<Peer>().cloned(),
            _counted: Ingress::new(self.core.clone()),
            told: self.metrics.begin(),
        };
        Box::pin(async move {
            let answers = stream::once(call.serve(request.into_inner()))
                .filter_map(|outcome| async { outcome.err().map(Err) });
            Ok(Response::new(answers.boxed()))
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
    dispatch: Arc<dyn Dispatch>,
    peer: Option<Peer>,
    /// Held while the stream is open.
    _counted: Ingress,
    told: crate::grpc::Call,
}

impl Call {
    async fn serve(mut self, requests: Streaming<bytes::Bytes>) -> Result<(), Status> {
        let started = Instant::now();
        let address = self
            .peer
            .as_ref()
            .map_or_else(String::new, |peer| peer.address.to_string());
        let name = self
            .peer
            .as_ref()
            .and_then(|peer| peer.certificate.as_ref())
            .map_or_else(String::new, |certificate| {
                certificate.facts.common_name.clone()
            });
        tracing::debug!(target: LOG, "Connection from {name}({address})");
        let outcome = self.read(requests, &address).await;
        let took = go_duration(started.elapsed());
        self.told
            .end(outcome.as_ref().map_or_else(Status::code, |()| Code::Ok));
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

    async fn read(
        &self,
        mut requests: Streaming<bytes::Bytes>,
        address: &str,
    ) -> Result<(), Status> {
        let certificate = self
            .peer
            .as_ref()
            .and_then(|peer| peer.certificate.as_deref());
        let mut expiry = certificate.map(|certificate| {
            ExpiryWatch::new(
                &certificate.facts,
                address.to_owned(),
                self.core.wiring.options.certificate_warning,
            )
        });
        let key = certificate.map(|certificate| certificate.facts.public_key.as_slice());
        loop {
            let bytes = match requests.message().await {
                Ok(Some(bytes)) => {
                    self.told.received().inc();
                    bytes
                }
                Ok(None) => return Ok(()),
                Err(status) => {
                    tracing::warn!(target: LOG, "Stream read from {address} failed: {}", status.message());
                    return Err(status);
                }
            };
            let unreadable = |reason: &dyn std::fmt::Display| {
                Status::internal(format!(
                    "grpc: failed to unmarshal the received message: {reason}"
                ))
            };
            let step = Step::decode(bytes).map_err(|error| unreadable(&error))?;
            let mut warn = |channel: &str| {
                let now = self.core.wiring.clock.now_seconds();
                if let Some(warning) = expiry.as_mut().and_then(|watch| watch.check(now, channel)) {
                    tracing::warn!(target: LOG, "{warning}");
                }
            };
            match step {
                Step::Consensus {
                    channel,
                    payload,
                    metadata,
                } => {
                    warn(&channel);
                    self.core
                        .caller(&channel, key)
                        .and_then(|from| self.dispatch.consensus(&channel, from, payload, metadata))
                        .map_err(refused)?;
                }
                Step::Submit {
                    channel,
                    last_validation_seq,
                    envelope,
                } => {
                    warn(&channel);
                    let envelope =
                        RawEnvelope::decode(envelope).map_err(|error| unreadable(&error))?;
                    let outcome = match self.core.caller(&channel, key) {
                        Ok(from) => {
                            self.dispatch
                                .submit(&channel, from, last_validation_seq, envelope)
                                .await
                        }
                        Err(refusal) => Err(refusal),
                    };
                    if let Err(refusal) = outcome {
                        tracing::warn!(target: LOG, "Handling of Submit() from {address} failed: {refusal}");
                        return Err(refused(refusal));
                    }
                }
                Step::Neither => {
                    return Err(refused(StepRefusal(
                        "message is neither a Submit nor a Consensus request".to_owned(),
                    )));
                }
            }
        }
    }
}

fn refused(refusal: StepRefusal) -> Status {
    Status::new(Code::Unknown, refusal.0)
}
