//! A client of `orderer.AtomicBroadcast`.

use futures::Stream;
use quorate_fabric::envelope::RawEnvelope;
use quorate_fabric::proto::orderer::BroadcastResponse;
use tonic::body::Body;
use tonic::client::{Grpc, GrpcService};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{Body as HttpBody, Bytes, StdError};
use tonic::{Request, Status, Streaming};

use super::messages::{ClientCodec, DeliverResponse, Response};

/// Calls an ordering node over any connection that carries gRPC. Cheap to clone where the connection is.
///
/// Both methods are streams in both directions: dropping the returned stream ends the call.
#[derive(Debug, Clone)]
pub struct AtomicBroadcastClient<T> {
    grpc: Grpc<T>,
}

impl<T> AtomicBroadcastClient<T>
where
    T: GrpcService<Body>,
    T::Error: Into<StdError>,
    T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <T::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
{
    /// A client that takes responses of up to `max_response_bytes`: a whole block and a little more.
    pub fn new(connection: T, max_response_bytes: usize) -> Self {
        Self {
            grpc: Grpc::new(connection).max_decoding_message_size(max_response_bytes),
        }
    }

    /// Submits envelopes. They are answered one by one in their order; after an answer that is not SUCCESS the server
    /// ends the call.
    ///
    /// # Errors
    /// The call could not be made; later errors come out of the stream.
    pub async fn broadcast(
        &mut self,
        envelopes: impl Stream<Item = RawEnvelope> + Send + 'static,
    ) -> Result<Streaming<BroadcastResponse>, Status> {
        self.call("/orderer.AtomicBroadcast/Broadcast", envelopes)
            .await
    }

    /// Asks for blocks. Each request (an envelope with a `SeekInfo`) is answered by blocks and then a status; after a
    /// status that is not SUCCESS the server ends the call.
    ///
    /// # Errors
    /// The call could not be made; later errors come out of the stream.
    pub async fn deliver(
        &mut self,
        requests: impl Stream<Item = RawEnvelope> + Send + 'static,
    ) -> Result<Streaming<DeliverResponse>, Status> {
        self.call("/orderer.AtomicBroadcast/Deliver", requests)
            .await
    }

    async fn call<R: Response + Sync>(
        &mut self,
        path: &'static str,
        requests: impl Stream<Item = RawEnvelope> + Send + 'static,
    ) -> Result<Streaming<R>, Status> {
        self.grpc.ready().await.map_err(|error| {
            Status::unavailable(format!("the connection is not ready: {}", error.into()))
        })?;
        self.grpc
            .streaming(
                Request::new(requests),
                PathAndQuery::from_static(path),
                ClientCodec::default(),
            )
            .await
            .map(tonic::Response::into_inner)
    }
}
