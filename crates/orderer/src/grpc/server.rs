//! The service `orderer.AtomicBroadcast`.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use quorate_fabric::envelope::RawEnvelope;
use quorate_fabric::proto::orderer::BroadcastResponse;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, Service, StdError, http};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Code, Request, Status, Streaming};

use super::calls::{Call, StreamMetrics};
use super::messages::{DeliverResponse, Response, ServerCodec};
use crate::listener::Peer;
use crate::metrics::Grpc as GrpcMetrics;

/// How Fabric labels the service in its metrics.
const METRICS_LABEL: &str = "orderer_AtomicBroadcast";

/// What a client sends; ends when it has nothing more to say, or with an error after which nothing comes.
pub type Requests = BoxStream<'static, Result<RawEnvelope, Status>>;

/// What a client is answered. The next response is asked for when the connection has room for it. An error ends the
/// call with that status; the end ends it with OK.
pub type Responses<R> = BoxStream<'static, Result<R, Status>>;

/// Who calls.
pub type Caller = Peer;

/// Takes envelopes for ordering.
pub trait Broadcast: Send + Sync + 'static {
    /// Serves one call. Dropping the stream ends it.
    fn broadcast(&self, caller: Caller, requests: Requests) -> Responses<BroadcastResponse>;
}

/// Gives out blocks.
pub trait Deliver: Send + Sync + 'static {
    /// Serves one call. Dropping the stream ends it.
    fn deliver(&self, caller: Caller, requests: Requests) -> Responses<DeliverResponse>;
}

/// The service, ready to be added to a server's routes. Cheap to clone.
#[derive(Clone)]
pub struct AtomicBroadcastServer {
    broadcast: Arc<dyn Broadcast>,
    deliver: Arc<dyn Deliver>,
    broadcast_metrics: StreamMetrics,
    deliver_metrics: StreamMetrics,
    max_request_bytes: usize,
    places: Arc<Semaphore>,
}

/// Calls that are open at the same time, on all connections together, at most.
const MAX_CALLS: usize = 32_768;

impl AtomicBroadcastServer {
    /// The service. No request may be longer than `max_request_bytes` (`General.MaxRecvMsgSize`).
    pub fn new(
        broadcast: Arc<dyn Broadcast>,
        deliver: Arc<dyn Deliver>,
        max_request_bytes: usize,
        metrics: &GrpcMetrics,
    ) -> Self {
        Self {
            broadcast,
            deliver,
            broadcast_metrics: StreamMetrics::new(metrics, METRICS_LABEL, "Broadcast"),
            deliver_metrics: StreamMetrics::new(metrics, METRICS_LABEL, "Deliver"),
            max_request_bytes,
            places: Arc::new(Semaphore::new(MAX_CALLS)),
        }
    }

    async fn serve<R: Response, B>(
        &self,
        request: http::Request<B>,
        metrics: &StreamMetrics,
        handler: Handler<R>,
    ) -> http::Response<Body>
    where
        B: HttpBody + Send + 'static,
        B::Error: Into<StdError> + Send + 'static,
    {
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            let text = format!("there are {MAX_CALLS} open calls already");
            return Status::resource_exhausted(text).into_http();
        };
        let mut grpc = Grpc::new(ServerCodec::<R>::default())
            .max_decoding_message_size(self.max_request_bytes);
        let method = Method {
            call: Some((metrics.begin(), place, handler)),
        };
        grpc.streaming(method, request).await
    }
}

impl NamedService for AtomicBroadcastServer {
    const NAME: &'static str = "orderer.AtomicBroadcast";
}

impl<B> Service<http::Request<B>> for AtomicBroadcastServer
where
    B: HttpBody + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let server = self.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                "/orderer.AtomicBroadcast/Broadcast" => {
                    let broadcast = server.broadcast.clone();
                    let handler: Handler<_> =
                        Box::new(move |caller, requests| broadcast.broadcast(caller, requests));
                    server
                        .serve(request, &server.broadcast_metrics, handler)
                        .await
                }
                "/orderer.AtomicBroadcast/Deliver" => {
                    let deliver = server.deliver.clone();
                    let handler: Handler<_> =
                        Box::new(move |caller, requests| deliver.deliver(caller, requests));
                    server
                        .serve(request, &server.deliver_metrics, handler)
                        .await
                }
                path => {
                    let method = path.rsplit('/').next().unwrap_or_default();
                    let text = format!(
                        "unknown method {method} for service {}",
                        <Self as NamedService>::NAME
                    );
                    Status::unimplemented(text).into_http()
                }
            })
        })
    }
}

/// What serves one call.
type Handler<R> = Box<dyn FnOnce(Caller, Requests) -> Responses<R> + Send>;

/// One call of one method, as tonic wants it.
struct Method<R> {
    /// Taken when the call begins.
    call: Option<(Call, OwnedSemaphorePermit, Handler<R>)>,
}

impl<R: Response> StreamingService<RawEnvelope> for Method<R> {
    type Response = R;
    type ResponseStream = Responses<R>;
    type Future = std::future::Ready<Result<tonic::Response<Responses<R>>, Status>>;

    fn call(&mut self, request: Request<Streaming<RawEnvelope>>) -> Self::Future {
        let Some((call, place, handler)) = self.call.take() else {
            return std::future::ready(Err(Status::internal("a call begins once")));
        };
        let caller = request.extensions().get::<Peer>().cloned();
        let received = call.received().clone();
        let requests = request
            .into_inner()
            .map(move |request| request.inspect(|_| received.inc()).map_err(with_gos_code))
            .boxed();
        let responses = handler(caller.unwrap_or_else(nobody), requests);
        std::future::ready(Ok(tonic::Response::new(observed(responses, call, place))))
    }
}

/// Go has another code for a message that is too long.
fn with_gos_code(status: Status) -> Status {
    match status.code() {
        Code::OutOfRange => Status::resource_exhausted(status.message()),
        _ => status,
    }
}

/// The caller where connections are not accepted by our own listener: in tests.
fn nobody() -> Caller {
    Peer {
        address: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
        certificate: None,
    }
}

/// Counts what goes out, and how the call ends; keeps its place until then.
fn observed<R: Send + 'static>(
    responses: Responses<R>,
    call: Call,
    place: OwnedSemaphorePermit,
) -> Responses<R> {
    let state = (responses, call, place);
    futures::stream::unfold(state, |(mut responses, mut call, place)| async move {
        let next = responses.next().await;
        match &next {
            Some(Ok(_)) => call.sent(),
            Some(Err(status)) => call.end(status.code()),
            None => call.end(Code::Ok),
        }
        next.map(|next| (next, (responses, call, place)))
    })
    .boxed()
}
