//! Talking to one orderer: connecting, asking how far it is, reading its blocks.

use std::sync::Arc;

use futures::stream::{self, StreamExt as _};
use prost::Message as _;
use quorate_fabric::config::OrdererEndpoint;
use quorate_fabric::envelope::{self, RawEnvelope};
use quorate_fabric::proto::common::{Block, ChannelHeader, HeaderType, Status};
use quorate_fabric::proto::orderer::{
    SeekInfo, SeekNewest, SeekPosition, SeekSpecified, seek_info, seek_position,
};
use quorate_identity::SecureHash;
use quorate_identity::mutual_tls::{ClientTls, Roots};
use quorate_identity::x509::Pool;
use tokio::time::timeout;
use tonic::Streaming;

use super::{LOG, PullFailure, Puller};
use crate::cluster::{Destination, Link, Unconnected, dial};
use crate::grpc::{AtomicBroadcastClient, DeliverResponse};
use crate::listener::go_duration;
use crate::store::StoredBlock;

/// Orderers that are asked at the same time.
const MAX_PROBES: usize = 16;
/// Bytes of a nonce in a signature header, as Fabric's.
const NONCE_BYTES: usize = 24;

/// An orderer that answered.
pub(super) struct Probed {
    pub(super) endpoint: String,
    link: Link,
    pub(super) newest: StoredBlock,
    pub(super) last: u64,
}

/// Blocks coming from one orderer.
pub(super) struct Session {
    pub(super) endpoint: String,
    /// The newest block when it was asked.
    pub(super) last: u64,
    /// The block that comes next.
    pub(super) next: u64,
    blocks: Streaming<DeliverResponse>,
}

impl Puller {
    /// Asks all sources; those that have block `wanted` are returned, at least one.
    pub(super) async fn probe(&self, wanted: u64) -> Result<Vec<Probed>, PullFailure> {
        let answers: Vec<_> = stream::iter(self.sources.clone())
            .map(|source| async move {
                let answer = self.probe_one(&source, wanted).await;
                (source, answer)
            })
            .buffered(MAX_PROBES)
            .collect()
            .await;
        let (mut found, mut failures) = (Vec::<Probed>::new(), Vec::new());
        for (source, answer) in answers {
            let (channel, endpoint) = (&self.channel, &source.address);
            match answer {
                Ok(probed) if found.iter().any(|known| known.endpoint == probed.endpoint) => {
                    tracing::warn!(target: LOG, %channel, "Duplicate endpoint found({endpoint}), skipping it");
                }
                Ok(probed) => {
                    tracing::info!(target: LOG, %channel, "{endpoint} is at block sequence of {}", probed.last);
                    found.push(probed);
                }
                Err(failure) => {
                    match &failure {
                        PullFailure::Behind { .. } => {
                            tracing::info!(target: LOG, %channel, "Skipping pulling from {endpoint}: {failure}");
                        }
                        PullFailure::Connection(_) => {
                            tracing::warn!(target: LOG, %channel, "Failed connecting to {endpoint}: {failure}");
                        }
                        _ => {
                            tracing::warn!(target: LOG, %channel, "Received error of type '{failure}' from {endpoint}");
                        }
                    }
                    failures.push(failure);
                }
            }
        }
        if !found.is_empty() {
            return Ok(found);
        }
        let endpoints: Vec<_> = self.sources.iter().map(|source| &source.address).collect();
        tracing::warn!(target: LOG, channel = %self.channel, "Could not connect to any endpoint of {endpoints:?}");
        let telling = [
            PullFailure::Forbidden,
            PullFailure::ServiceUnavailable,
            PullFailure::NotFound,
        ];
        let told = telling
            .into_iter()
            .find(|failure| failures.contains(failure));
        Err(told.or(failures.pop()).unwrap_or(PullFailure::NoSources))
    }

    async fn probe_one(
        &self,
        source: &OrdererEndpoint,
        wanted: u64,
    ) -> Result<Probed, PullFailure> {
        let link = self.dial(source).await?;
        let newest = seek_position::Type::Newest(SeekNewest {});
        let mut session = self.seek(&source.address, link.clone(), newest, 0).await?;
        let block = self.next_block(&mut session).await?;
        let newest =
            StoredBlock::new(&block).map_err(|error| PullFailure::BadBlock(error.to_string()))?;
        let last = newest.number();
        if last < wanted {
            return Err(PullFailure::Behind {
                wanted,
                endpoint: source.address.clone(),
                last,
            });
        }
        Ok(Probed {
            endpoint: source.address.clone(),
            link,
            newest,
            last,
        })
    }

    /// Asks for all blocks from `number` on.
    pub(super) async fn open(&self, probed: Probed, number: u64) -> Result<Session, PullFailure> {
        let Probed {
            endpoint,
            link,
            last,
            ..
        } = probed;
        tracing::info!(target: LOG, channel = %self.channel, "Sending request for block [{number}] to {endpoint}");
        let position = seek_position::Type::Specified(SeekSpecified { number });
        let session = self.seek(&endpoint, link, position, number).await?;
        Ok(Session { last, ..session })
    }

    /// The block that comes next, which must be the one of that number.
    pub(super) async fn receive(
        &self,
        session: &mut Session,
        number: u64,
    ) -> Result<Block, PullFailure> {
        let block = self
            .next_block(session)
            .await
            .map_err(|failure| match failure {
                PullFailure::NotFound if number <= session.last => PullFailure::Pruned {
                    wanted: number,
                    endpoint: session.endpoint.clone(),
                    last: session.last,
                },
                failure => failure,
            });
        let block = block.inspect_err(|failure| {
            tracing::error!(target: LOG, channel = %self.channel, "Failed receiving next block from {}: {failure}", session.endpoint);
        })?;
        match &block.header {
            Some(header) if header.number == number => Ok(block),
            header => Err(PullFailure::BadBlock(format!(
                "got unexpected sequence from {} - ({}) instead of ({number})",
                session.endpoint,
                header.as_ref().map_or(0, |header| header.number)
            ))),
        }
    }

    async fn dial(&self, source: &OrdererEndpoint) -> Result<Link, PullFailure> {
        let broken = |text: String| PullFailure::Connection(text);
        let destination = Destination::parse(&source.address)
            .ok_or_else(|| broken(format!("{} is not host:port", source.address)))?;
        let tls = match &self.tls {
            None => None,
            Some(tls) => {
                let authorities = source.authorities.iter().chain(&self.extra_roots);
                let pool: Pool = authorities.cloned().collect();
                Some(ClientTls {
                    roots: Roots::from(pool),
                    ..tls.clone()
                })
            }
        };
        let patience = self.options.dial_timeout;
        let (link, driver) =
            match timeout(patience, dial(&destination, tls.as_ref(), &self.tasks)).await {
                Ok(Ok(dialled)) => dialled,
                Ok(Err(Unconnected(reason))) => return Err(broken(reason.to_string())),
                Err(_) => {
                    return Err(broken(format!(
                        "no connection within {}",
                        go_duration(patience)
                    )));
                }
            };
        let shutdown = self.tasks.shutdown().clone();
        // It ends when the last user of the link is gone.
        self.tasks.spawn(
            format!("replication from {destination}"),
            async move {
                tokio::select! {
                    biased;
                    () = shutdown.requested() => {}
                    ended = driver => if let Err(reason) = ended {
                        tracing::debug!(target: LOG, "The connection to {destination} ended: {reason}");
                    }
                }
            },
        );
        Ok(link)
    }

    async fn seek(
        &self,
        endpoint: &str,
        link: Link,
        start: seek_position::Type,
        next: u64,
    ) -> Result<Session, PullFailure> {
        let request = self.request(start)?;
        // The request stream stays open: its end would be the end of the call.
        let requests = stream::iter([request]).chain(stream::pending());
        let mut client = AtomicBroadcastClient::new(link, self.options.max_message_size);
        let patience = self.options.pull_timeout;
        match timeout(patience, client.deliver(requests)).await {
            Ok(Ok(blocks)) => Ok(Session {
                endpoint: endpoint.to_owned(),
                last: 0,
                next,
                blocks,
            }),
            Ok(Err(status)) => Err(told(&status)),
            Err(_) => Err(PullFailure::Silence(go_duration(patience).to_string())),
        }
    }

    /// A signed request for everything from `start` on, bound to our TLS certificate.
    fn request(&self, start: seek_position::Type) -> Result<RawEnvelope, PullFailure> {
        let position = |at| Some(SeekPosition { r#type: Some(at) });
        let seek = SeekInfo {
            start: position(start),
            stop: position(seek_position::Type::Specified(SeekSpecified {
                number: u64::MAX,
            })),
            behavior: seek_info::SeekBehavior::BlockUntilReady.into(),
            error_response: seek_info::SeekErrorResponse::BestEffort.into(),
            ..SeekInfo::default()
        };
        let now = self.clock.now_micros();
        let certificate = self.tls.as_ref().and_then(|tls| tls.credentials.as_ref());
        let header = ChannelHeader {
            r#type: HeaderType::DeliverSeekInfo.into(),
            channel_id: self.channel.clone(),
            timestamp: Some(prost_types::Timestamp {
                seconds: now.div_euclid(1_000_000),
                nanos: i32::try_from(now.rem_euclid(1_000_000) * 1_000).unwrap_or(0),
            }),
            tls_cert_hash: certificate.map_or_else(Vec::new, |own| {
                SecureHash::of(own.certificate()).as_bytes().to_vec()
            }),
            ..ChannelHeader::default()
        };
        let nonce: [u8; NONCE_BYTES] = self.entropy.bytes();
        let signer = Arc::clone(&self.signer);
        envelope::sign(&header, seek.encode_to_vec(), &nonce, &*signer)
            .map_err(|error| PullFailure::Unsigned(error.to_string()))
    }

    async fn next_block(&self, session: &mut Session) -> Result<Block, PullFailure> {
        let patience = self.options.pull_timeout;
        let answer = match timeout(patience, session.blocks.message()).await {
            Ok(Ok(Some(answer))) => answer,
            Ok(Ok(None)) => {
                return Err(PullFailure::Connection(
                    "the stream was closed by the other side".to_owned(),
                ));
            }
            Ok(Err(status)) => return Err(told(&status)),
            Err(_) => return Err(PullFailure::Silence(go_duration(patience).to_string())),
        };
        match answer {
            DeliverResponse::Block(bytes) => {
                let block = Block::decode(bytes)
                    .map_err(|error| PullFailure::BadBlock(error.to_string()))?;
                let missing = match &block {
                    Block { data: None, .. } => "block data is nil",
                    Block { header: None, .. } => "block header is nil",
                    Block {
                        metadata: Some(metadata),
                        ..
                    } if !metadata.metadata.is_empty() => return Ok(block),
                    _ => "block metadata is empty",
                };
                Err(PullFailure::BadBlock(missing.to_owned()))
            }
            DeliverResponse::Status(status) => {
                let failure = match status {
                    Status::Forbidden => PullFailure::Forbidden,
                    Status::NotFound => PullFailure::NotFound,
                    Status::ServiceUnavailable => PullFailure::ServiceUnavailable,
                    other => PullFailure::Status(other.as_str_name().to_owned()),
                };
                // Two spaces, as Go prints a message and then goes on.
                tracing::warn!(target: LOG, channel = %self.channel, "Received status:{}  from {}: {failure}", status.as_str_name(), session.endpoint);
                Err(failure)
            }
        }
    }
}

fn told(status: &tonic::Status) -> PullFailure {
    PullFailure::Connection(format!(
        "rpc error: code = {:?} desc = {}",
        status.code(),
        status.message()
    ))
}
