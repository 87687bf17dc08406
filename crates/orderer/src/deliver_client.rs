//! The client's side of Deliver and Broadcast, for commands: one block or one message at a time, with one orderer, ours or
//! Fabric's.
//!
//! What comes is what that orderer says: nothing is verified but that it is the block that was asked for. Who wants to
//! follow a chain uses [`replication`](crate::replication). Start at [`DeliverClient::connect`].

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use quorate_fabric::envelope::RawEnvelope;
use quorate_fabric::msp::{SignError, Signer};
use quorate_fabric::proto::common::Status;
use quorate_identity::SecureHash;
use quorate_identity::mutual_tls::ClientTls;
use quorate_runtime::{Clock, Entropy, Tasks};
use tokio::time::timeout;

use crate::cluster::{Destination, Link, dial};
use crate::grpc::{AtomicBroadcastClient, DeliverResponse, Position, SeekRequest};
use crate::listener::go_duration;
use crate::store::{BlockFormatError, StoredBlock};

/// Bytes of a nonce in a signature header, as Fabric's.
const NONCE_BYTES: usize = 24;

/// The longest block that is taken, in bytes: what Fabric's own clients take.
pub const MAX_BLOCK_BYTES: usize = 100 * 1024 * 1024;

/// The longest answer to a message that is taken, in bytes.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;

/// Which block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The first.
    Oldest,
    /// The newest at the moment.
    Newest,
    /// The one whose configuration is in force.
    Config,
    /// The one of this number.
    Number(u64),
}

/// A status instead of a block. Shown as Fabric writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The request is malformed, too old, or does not name the TLS certificate with which it comes.
    #[error("BAD_REQUEST")]
    BadRequest,
    /// Who asks may not read the channel.
    #[error("FORBIDDEN")]
    Forbidden,
    /// It has no such channel, or not that block.
    #[error("NOT_FOUND")]
    NotFound,
    /// It knows no leader, or is starting.
    #[error("SERVICE_UNAVAILABLE")]
    ServiceUnavailable,
    /// Another one, by name.
    #[error("{0}")]
    Other(&'static str),
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        match status {
            Status::BadRequest => Self::BadRequest,
            Status::Forbidden => Self::Forbidden,
            Status::NotFound => Self::NotFound,
            Status::ServiceUnavailable => Self::ServiceUnavailable,
            other => Self::Other(other.as_str_name()),
        }
    }
}

/// Why there is no block.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeliverError {
    /// The address is not `host:port`.
    #[error("`{0}` is not an address of the form host:port")]
    Address(String),
    /// Nobody answers there, or not in the way that was expected.
    #[error("the orderer {address} cannot be reached: {reason}")]
    Unreachable {
        /// Where.
        address: String,
        /// What the system or the TLS library says.
        reason: String,
    },
    /// It was too slow.
    #[error("the orderer {address} has not answered within {patience}")]
    Timeout {
        /// Where.
        address: String,
        /// How long that was, as Go writes it.
        patience: String,
    },
    /// The connection broke, or the orderer ended the call.
    #[error("the orderer {address} broke off: {reason}")]
    Broken {
        /// Where.
        address: String,
        /// The gRPC status.
        reason: String,
    },
    /// The orderer refused.
    #[error("the orderer {address} answered {refusal}")]
    Refused {
        /// Where.
        address: String,
        /// Its word for it.
        refusal: Refusal,
    },
    /// The orderer did not take a message.
    #[error("the orderer {address} does not take the message: {status}: {info}")]
    NotTaken {
        /// Where.
        address: String,
        /// Its word for it.
        status: &'static str,
        /// Why.
        info: String,
    },
    /// What came is no block, or another one.
    #[error("the orderer {address} sent something else than the block: {reason}")]
    BadBlock {
        /// Where.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The request could not be signed.
    #[error("the request cannot be signed")]
    Unsigned(#[from] SignError),
}

/// What a client needs.
pub struct DeliverContext {
    /// Roots to judge the orderer by, and what we show when it asks; `None`: plain TCP.
    pub tls: Option<ClientTls>,
    /// Who asks.
    pub signer: Arc<dyn Signer>,
    /// How long connecting, and each answer, may take.
    pub patience: Duration,
    /// Dates the requests.
    pub clock: Clock,
    /// For nonces.
    pub entropy: Entropy,
    /// Who owns the connection.
    pub tasks: Tasks,
}

/// A connection to one orderer. Blocks are asked for one after the other.
pub struct DeliverClient {
    address: String,
    link: Link,
    context: DeliverContext,
}

impl DeliverClient {
    /// Connects to the orderer at `address` (`host:port`).
    ///
    /// # Errors
    /// [`DeliverError`] naming the address.
    pub async fn connect(address: &str, context: DeliverContext) -> Result<Self, DeliverError> {
        let destination = Destination::parse(address)
            .filter(|destination| !destination.host.is_empty())
            .ok_or_else(|| DeliverError::Address(address.to_owned()))?;
        let dialled = dial(&destination, context.tls.as_ref(), &context.tasks);
        let (link, driver) =
            within(address, context.patience, dialled)
                .await?
                .map_err(|unconnected| DeliverError::Unreachable {
                    address: address.to_owned(),
                    reason: unconnected.to_string(),
                })?;
        let shutdown = context.tasks.shutdown().clone();
        // It ends with the client: nobody else has the link. How, the stream says to whoever reads it.
        context.tasks.spawn("deliver", async move {
            tokio::select! {
                biased;
                () = shutdown.requested() => {}
                ended = driver => drop(ended),
            }
        });
        Ok(Self {
            address: address.to_owned(),
            link,
            context,
        })
    }

    /// The calls themselves, for who wants many envelopes or blocks on one stream. They last as long as this client's
    /// tasks. Answers may have `max_response_bytes` bytes.
    pub fn calls(&self, max_response_bytes: usize) -> AtomicBroadcastClient<Link> {
        AtomicBroadcastClient::new(self.link.clone(), max_response_bytes)
    }

    /// The block. With `wait` the orderer may take its time until it has it, as long as our patience lasts; it only does
    /// so for the block after its newest. With `best_effort` it answers even if it knows no leader.
    ///
    /// # Errors
    /// [`DeliverError`]; after one of them connect again.
    pub async fn block(
        &self,
        channel: &str,
        which: Which,
        wait: bool,
        best_effort: bool,
    ) -> Result<StoredBlock, DeliverError> {
        let position = match which {
            Which::Oldest => Position::Oldest,
            Which::Newest => Position::Newest,
            Which::Number(number) => Position::Number(number),
            Which::Config => {
                let newest = self
                    .one(channel, Position::Newest, wait, best_effort)
                    .await?;
                let number = newest
                    .last_config()
                    .ok_or_else(|| self.bad("its metadata do not name the last config block"))?;
                Position::Number(number)
            }
        };
        self.one(channel, position, wait, best_effort).await
    }

    /// Has one envelope ordered. What an orderer's SUCCESS promises is for that orderer to say: Fabric's have taken the
    /// message then, ours may have it in a block.
    ///
    /// # Errors
    /// [`DeliverError::NotTaken`] says that it is not ordered; after any other it may be.
    pub async fn submit(&self, envelope: RawEnvelope) -> Result<(), DeliverError> {
        let patience = self.context.patience;
        let mut client = AtomicBroadcastClient::new(self.link.clone(), MAX_ANSWER_BYTES);
        // The request stream stays open: its end would be the end of the call.
        let requests = stream::iter([envelope]).chain(stream::pending());
        let mut answers = within(&self.address, patience, client.broadcast(requests))
            .await?
            .map_err(|status| self.broken(&status))?;
        let answer = within(&self.address, patience, answers.message())
            .await?
            .map_err(|status| self.broken(&status))?;
        match answer {
            Some(answer) if answer.status() == Status::Success => Ok(()),
            Some(answer) => Err(DeliverError::NotTaken {
                address: self.address.clone(),
                status: answer.status().as_str_name(),
                info: answer.info,
            }),
            None => Err(self.no_answer()),
        }
    }

    fn broken(&self, status: &tonic::Status) -> DeliverError {
        DeliverError::Broken {
            address: self.address.clone(),
            reason: format!("{:?}: {}", status.code(), status.message()),
        }
    }

    fn no_answer(&self) -> DeliverError {
        DeliverError::Broken {
            address: self.address.clone(),
            reason: "it ended the call without an answer".to_owned(),
        }
    }

    async fn one(
        &self,
        channel: &str,
        at: Position,
        wait: bool,
        best_effort: bool,
    ) -> Result<StoredBlock, DeliverError> {
        let credentials = self
            .context
            .tls
            .as_ref()
            .and_then(|tls| tls.credentials.as_ref());
        let request = SeekRequest {
            fail_if_not_ready: !wait,
            best_effort,
            tls_certificate_hash: credentials
                .map(|own| *SecureHash::of(own.certificate()).as_bytes()),
            ..SeekRequest::new(channel, at, at)
        };
        let nonce: [u8; NONCE_BYTES] = self.context.entropy.bytes();
        let now = self.context.clock.now_micros();
        let request = request.sign(&*self.context.signer, &nonce, now)?;

        let broken = |status: tonic::Status| self.broken(&status);
        let patience = self.context.patience;
        let mut client = AtomicBroadcastClient::new(self.link.clone(), MAX_BLOCK_BYTES);
        // The request stream stays open: its end would be the end of the call.
        let requests = stream::iter([request]).chain(stream::pending());
        let mut answers = within(&self.address, patience, client.deliver(requests))
            .await?
            .map_err(broken)?;
        let answer = within(&self.address, patience, answers.message()).await?;
        match answer.map_err(broken)? {
            Some(DeliverResponse::Block(bytes)) => {
                let block = StoredBlock::decode(bytes)
                    .map_err(|error: BlockFormatError| self.bad(&error.to_string()))?;
                match at {
                    Position::Number(number) if block.number() != number => {
                        Err(self.bad(&format!("it is block {}", block.number())))
                    }
                    _ => Ok(block),
                }
            }
            Some(DeliverResponse::Status(Status::Success)) => {
                Err(self.bad("it says that all was sent, and sent nothing"))
            }
            Some(DeliverResponse::Status(status)) => Err(DeliverError::Refused {
                address: self.address.clone(),
                refusal: status.into(),
            }),
            None => Err(self.no_answer()),
        }
    }

    fn bad(&self, reason: &str) -> DeliverError {
        DeliverError::BadBlock {
            address: self.address.clone(),
            reason: reason.to_owned(),
        }
    }
}

async fn within<T>(
    address: &str,
    patience: Duration,
    work: impl Future<Output = T>,
) -> Result<T, DeliverError> {
    timeout(patience, work)
        .await
        .map_err(|_| DeliverError::Timeout {
            address: address.to_owned(),
            patience: go_duration(patience).to_string(),
        })
}
