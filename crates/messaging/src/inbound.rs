//! One task per connection of a peer that sends to us.
//!
//! Messages are taken from the link in order, checked against the connection they came over, handed to
//! [`Inbound`](crate::Inbound) in batches, and accepted when that says so. While a batch is being made durable the next
//! one gathers in the link, bounded by credit and by bytes.
//!
//! A peer has one connection that delivers. A newer one ends the older one and waits for it: a peer that fails over
//! reconnects while we still believe in its old connection, and order must not depend on which of the two we hear
//! first.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fe2o3_amqp::acceptor::sasl_acceptor::SaslServerFrame;
use fe2o3_amqp::acceptor::{
    ConnectionAcceptor, LinkAcceptor, LinkEndpoint, ListenerConnectionHandle,
    ListenerSessionHandle, SaslAcceptor, SessionAcceptor, SupportedReceiverSettleModes,
    SupportedSenderSettleModes,
};
use fe2o3_amqp::link::delivery::DeliveryInfo;
use fe2o3_amqp::link::{CreditMode, RecvError};
use fe2o3_amqp::types::definitions::{self, AmqpError, ConnectionError, LinkError, Role};
use fe2o3_amqp::types::messaging::{Data, TargetArchetype};
use fe2o3_amqp::types::primitives::{Array, Symbol};
use fe2o3_amqp::types::sasl::{SaslCode, SaslInit, SaslOutcome, SaslResponse};
use fe2o3_amqp::{Delivery, Receiver};
use futures::FutureExt;
use quorate_identity::X500Name;
use quorate_runtime::Shutdown;
use quorate_runtime::tasks::chain;
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_rustls::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::dial::{FRAME_QUEUE, describe_close};
use crate::exchange::{Epoch, Incoming};
use crate::guard::{CREDIT, MAX_FRAME_BYTES, Side};
use crate::message::{Arrived, address_of, unpack};
use crate::options::{HostAndPort, MAX_BATCH, MAX_BATCH_BYTES, MESSAGE_OVERHEAD_BYTES};
use crate::service::{Peer, Shared};
use crate::status::{Change, Direction};
use crate::wire::{Line, Wire};

/// How long a closing peer may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);
/// Credit is renewed after so many messages at the latest.
const CREDIT_STEP: u32 = 128;
/// How often the silence of the line is measured, as a part of what is permitted.
const SILENCE_CHECKS: u32 = 8;

// However the peer's messages fall into batches, it has credit for a full window at any time: what it has sent and we
// have not taken, a batch in the making, and what was taken since the last renewal.
const _: () =
    assert!(CREDIT as usize >= crate::options::MAX_WINDOW + MAX_BATCH + CREDIT_STEP as usize);

/// Why a connection ended.
enum Ending {
    /// The peer has closed it, or it broke.
    Gone(String),
    Stopping,
    /// A newer connection of the same peer takes its place.
    Superseded,
    Silent,
    /// The peer has done what it must not, and is told so.
    Faulty(definitions::Error),
    /// What it sent could not be taken; the deliveries have been answered.
    NotTaken(String),
}

/// Serves a connection until it ends.
pub(crate) async fn serve(
    shared: &Arc<Shared>,
    shutdown: &Shutdown,
    tls: TlsStream<TcpStream>,
    name: X500Name,
    from: SocketAddr,
) {
    let peer = shared.peer(&name);
    let superseded = peer.supersede();
    let turn = peer.turn.clone().lock_owned();
    let _turn = tokio::select! {
        biased;
        () = shutdown.requested() => return,
        () = superseded.cancelled() => return,
        turn = turn => turn,
    };
    let max_message = (shared.options.max_message_bytes + MESSAGE_OVERHEAD_BYTES) as u64;
    let (wire, line) = Wire::new(tls, Side::Receiver, max_message);
    let opened = tokio::select! {
        biased;
        () = shutdown.requested() => return,
        () = superseded.cancelled() => return,
        opened = timeout(shared.options.handshake_timeout, open(shared, wire, max_message)) => opened,
    };
    let opened = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(reason)) => {
            let reason = line.failure().unwrap_or(reason);
            tracing::info!(peer = %name, %from, "a connection did not get as far as a link: {reason}");
            return;
        }
        Err(_) => {
            tracing::info!(peer = %name, %from, "a connection has not opened its link in time");
            return;
        }
    };
    peer.state().inbound_connected = true;
    shared.publish(
        &name,
        Direction::Inbound,
        Change::Connected(HostAndPort::from(from)),
    );
    let mut session = Reception {
        shared,
        peer: &peer,
        line,
        opened,
        epoch: None,
        sequence: 0,
        since_credit: 0,
    };
    let ending = session.receive(shutdown, &superseded).await;
    let reason = session.leave(ending).await;
    peer.state().inbound_connected = false;
    shared.publish(&name, Direction::Inbound, Change::Disconnected(reason));
}

/// An open link from a peer. The fields are dropped in this order: the link before its session before its connection.
struct Opened {
    receiver: Receiver,
    _session: ListenerSessionHandle,
    connection: ListenerConnectionHandle,
}

/// Brings the connection to an attached link, or says why that failed.
async fn open(shared: &Shared, wire: Wire, max_message: u64) -> Result<Opened, String> {
    let silence = u32::try_from(shared.options.silence_timeout.as_millis()).unwrap_or(u32::MAX);
    let acceptor = ConnectionAcceptor::builder()
        .container_id(shared.options.own_name.sni_hash())
        .sasl_acceptor(External)
        .max_frame_size(MAX_FRAME_BYTES as u32)
        .channel_max(0)
        .idle_time_out(silence)
        .buffer_size(FRAME_QUEUE)
        .build();
    let mut connection = acceptor.accept(wire).await.map_err(|error| chain(&error))?;
    let mut session = SessionAcceptor::builder()
        .buffer_size(FRAME_QUEUE)
        .build()
        .accept(&mut connection)
        .await
        .map_err(|error| chain(&error))?;
    let Some(attach) = session.next_incoming_attach().await else {
        return Err("the peer has ended the session without opening a link".to_owned());
    };
    let address = match attach.target.as_deref() {
        Some(TargetArchetype::Target(target)) => target.address.clone().unwrap_or_default(),
        _ => String::new(),
    };
    let options = &shared.options;
    let known = std::iter::once(&options.own_name)
        .chain(&options.further_names)
        .any(|name| address_of(name) == address);
    let fault = if attach.role != Role::Sender {
        Some((
            AmqpError::NotImplemented,
            "this node only receives on connections that it accepts".to_owned(),
        ))
    } else if !known {
        Some((
            AmqpError::NotFound,
            format!("this node is not the party with the address `{address}`"),
        ))
    } else {
        None
    };
    if let Some((condition, text)) = fault {
        let error = definitions::Error::new(condition, text.clone(), None);
        let _ = timeout(GOODBYE, connection.close_with_error(error)).await;
        return Err(text);
    }
    let acceptor = LinkAcceptor::builder()
        .supported_sender_settle_modes(SupportedSenderSettleModes::UnsettledAndMixed)
        .supported_receiver_settle_modes(SupportedReceiverSettleModes::First)
        .max_message_size(max_message)
        .build();
    match acceptor.accept_incoming_attach(attach, &mut session).await {
        Ok(LinkEndpoint::Receiver(mut receiver)) => {
            receiver.set_credit_mode(CreditMode::Manual);
            receiver
                .set_credit(CREDIT)
                .await
                .map_err(|error| chain(&error))?;
            Ok(Opened {
                receiver,
                _session: session,
                connection,
            })
        }
        Ok(LinkEndpoint::Sender(_)) => {
            Err("the peer wants to receive on this connection".to_owned())
        }
        Err(error) => Err(chain(&error)),
    }
}

/// Messages in the making of a batch.
#[derive(Default)]
struct Batch {
    epoch: Epoch,
    messages: Vec<Incoming>,
    deliveries: Vec<DeliveryInfo>,
    bytes: usize,
}

struct Reception<'a> {
    shared: &'a Shared,
    peer: &'a Peer,
    line: Line,
    opened: Opened,
    /// Of the last message.
    epoch: Option<Epoch>,
    sequence: u64,
    since_credit: u32,
}

impl Reception<'_> {
    async fn receive(&mut self, shutdown: &Shutdown, superseded: &CancellationToken) -> Ending {
        let mut pulse = interval(self.shared.options.silence_timeout / SILENCE_CHECKS);
        pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let delivery = tokio::select! {
                biased;
                () = shutdown.requested() => return Ending::Stopping,
                () = superseded.cancelled() => return Ending::Superseded,
                _ = pulse.tick() => {
                    if self.line.silence() > self.shared.options.silence_timeout {
                        return Ending::Silent;
                    }
                    continue;
                }
                delivery = self.opened.receiver.recv::<Data>() => delivery,
            };
            if let Some(ending) = self.take(delivery).await {
                return ending;
            }
        }
    }

    /// Takes this delivery and all others that are there, and delivers them.
    async fn take(&mut self, first: Result<Delivery<Data>, RecvError>) -> Option<Ending> {
        let mut batch = Batch::default();
        let mut next = Some(first);
        // The batch ends where the link has nothing more to give, or at something that cannot be part of it.
        let stopped_by = loop {
            let delivery = match next.take() {
                Some(Ok(delivery)) => delivery,
                Some(Err(error)) => break Some(self.broken(error).await),
                None => break None,
            };
            self.line.taken();
            let (info, message) = delivery.into_parts();
            let arrived = match unpack(message)
                .map_err(|error| error.to_string())
                .and_then(|arrived| self.check(arrived))
            {
                Ok(arrived) => arrived,
                Err(reason) => {
                    let error = definitions::Error::new(AmqpError::NotAllowed, reason, None);
                    if let Some(ending) = self.deliver(&mut batch).await {
                        return Some(ending);
                    }
                    let _ = self.opened.receiver.reject(info, error.clone()).await;
                    return Some(Ending::Faulty(error));
                }
            };
            if batch.epoch != arrived.epoch
                && let Some(ending) = self.deliver(&mut batch).await
            {
                return Some(ending);
            }
            batch.epoch = arrived.epoch;
            batch.bytes += arrived.body.len();
            batch.deliveries.push(info);
            batch.messages.push(Incoming {
                sequence: arrived.sequence,
                body: arrived.body,
            });
            let most = match self.peer.singly.load(Ordering::Relaxed) {
                0 => MAX_BATCH,
                _ => 1,
            };
            if batch.messages.len() < most && batch.bytes < MAX_BATCH_BYTES {
                next = self.opened.receiver.recv::<Data>().now_or_never();
            }
        };
        // What arrived before the trouble is good.
        self.deliver(&mut batch).await.or(stopped_by)
    }

    /// Whether this message may come over this connection, at this place.
    fn check(&mut self, arrived: Arrived) -> Result<Arrived, String> {
        if arrived.sender != self.peer.name {
            return Err(format!(
                "the message's sender is {}, and the connection is {}'s",
                arrived.sender, self.peer.name
            ));
        }
        if !self.shared.options.is_ours(&arrived.recipient) {
            return Err(format!(
                "the message is for {}, and this is {}",
                arrived.recipient, self.shared.options.own_name
            ));
        }
        let (size, limit) = (arrived.body.len(), self.shared.options.max_message_bytes);
        if size > limit {
            return Err(format!(
                "message {} has {size} bytes, and the limit is {limit}",
                arrived.sequence
            ));
        }
        if self.epoch == Some(arrived.epoch)
            && self.sequence.checked_add(1) != Some(arrived.sequence)
        {
            return Err(format!(
                "message {} comes after message {}",
                arrived.sequence, self.sequence
            ));
        }
        self.epoch = Some(arrived.epoch);
        self.sequence = arrived.sequence;
        Ok(arrived)
    }

    /// Hands the batch over and answers it.
    async fn deliver(&mut self, batch: &mut Batch) -> Option<Ending> {
        if batch.messages.is_empty() {
            return None;
        }
        let Batch {
            epoch,
            messages,
            deliveries,
            ..
        } = std::mem::take(batch);
        let (count, last) = (
            messages.len(),
            messages.last().map_or(0, |message| message.sequence),
        );
        let receiver = &mut self.opened.receiver;
        let answered = match self
            .shared
            .inbound
            .deliver(self.peer.name.clone(), epoch, messages)
            .await
        {
            Ok(()) => {
                self.peer
                    .received
                    .fetch_add(count as u64, Ordering::Relaxed);
                let singly = self.peer.singly.load(Ordering::Relaxed);
                let left = singly.saturating_sub(count as u64);
                self.peer.singly.store(left, Ordering::Relaxed);
                receiver.accept_all(deliveries).await
            }
            Err(refusal) => {
                tracing::warn!(peer = %self.peer.name, "messages up to {last} were not taken: {refusal}");
                if !refusal.retry && count > 1 {
                    // One of them is at fault, and the sender must hear which: they come again.
                    self.peer.singly.store(count as u64, Ordering::Relaxed);
                }
                if refusal.retry || count > 1 {
                    let _ = receiver.release_all(deliveries).await;
                } else {
                    let error = definitions::Error::new(
                        AmqpError::PreconditionFailed,
                        refusal.reason.clone(),
                        None,
                    );
                    let _ = receiver.reject_all(deliveries, error).await;
                }
                return Some(Ending::NotTaken(refusal.reason));
            }
        };
        if let Err(error) = answered {
            return Some(Ending::Gone(chain(&error)));
        }
        self.since_credit += count as u32;
        if self.since_credit >= CREDIT_STEP {
            self.since_credit = 0;
            if let Err(error) = receiver.set_credit(CREDIT).await {
                return Some(Ending::Gone(chain(&error)));
            }
        }
        None
    }

    async fn broken(&mut self, error: RecvError) -> Ending {
        match error {
            RecvError::MessageSizeExceeded(exceeded) => Ending::Faulty(definitions::Error::new(
                LinkError::MessageSizeExceeded,
                format!(
                    "a message has {} bytes, and the limit is {}",
                    exceeded.size, exceeded.max_size
                ),
                None,
            )),
            RecvError::LinkStateError(_) => {
                match timeout(GOODBYE, self.opened.connection.on_close()).await {
                    Ok(Err(closed)) => Ending::Gone(
                        self.line
                            .failure()
                            .unwrap_or_else(|| describe_close(&closed)),
                    ),
                    _ => Ending::Gone("the peer has closed the connection".to_owned()),
                }
            }
            RecvError::MessageDecode(_) => Ending::Faulty(definitions::Error::new(
                AmqpError::DecodeError,
                "a message cannot be decoded".to_owned(),
                None,
            )),
            other => Ending::Faulty(definitions::Error::new(
                AmqpError::NotAllowed,
                other.to_string(),
                None,
            )),
        }
    }

    /// Closes the connection; returns why, in words.
    async fn leave(self, ending: Ending) -> String {
        let Opened {
            receiver,
            _session,
            mut connection,
        } = self.opened;
        let reason = ending.to_string();
        let error = match ending {
            Ending::Gone(_) => None,
            Ending::Silent => {
                self.line.cut();
                None
            }
            Ending::Stopping => Some(definitions::Error::new(
                ConnectionError::ConnectionForced,
                "this node is stopping".to_owned(),
                None,
            )),
            Ending::Superseded => {
                let text = "a newer connection of the same party has taken its place".to_owned();
                Some(definitions::Error::new(
                    ConnectionError::ConnectionForced,
                    text,
                    None,
                ))
            }
            Ending::NotTaken(reason) => Some(definitions::Error::new(
                AmqpError::PreconditionFailed,
                reason,
                None,
            )),
            Ending::Faulty(error) => {
                tracing::warn!(peer = %self.peer.name, "the connection is closed: {reason}");
                Some(error)
            }
        };
        let goodbye = async {
            // The link first: its end tells us that the answers given before it have left.
            let _ = receiver.close().await;
            match error {
                Some(error) => connection.close_with_error(error).await,
                None => connection.close().await,
            }
        };
        let ended = timeout(GOODBYE, goodbye).await;
        self.line.cut();
        if ended.is_err() {
            let _ = timeout(GOODBYE, connection.on_close()).await;
        }
        reason
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone(reason) => f.write_str(reason),
            Self::Stopping => f.write_str("this node is stopping"),
            Self::Superseded => {
                f.write_str("a newer connection of the same party has taken its place")
            }
            Self::Silent => f.write_str("nothing was heard from the peer for too long"),
            Self::Faulty(error) => f.write_str(&crate::dial::describe(error)),
            Self::NotTaken(reason) => write!(f, "messages were not taken: {reason}"),
        }
    }
}

/// SASL EXTERNAL: who the peer is has been settled by its TLS certificate.
#[derive(Debug, Clone)]
struct External;

const EXTERNAL: &str = "EXTERNAL";

impl SaslAcceptor for External {
    fn mechanisms(&self) -> Array<Symbol> {
        Array::from(vec![Symbol::from(EXTERNAL)])
    }

    fn on_init(&mut self, init: SaslInit) -> SaslServerFrame {
        let code = if init.mechanism.as_str() == EXTERNAL {
            SaslCode::Ok
        } else {
            SaslCode::Auth
        };
        SaslServerFrame::Outcome(SaslOutcome {
            code,
            additional_data: None,
        })
    }

    fn on_response(&mut self, _response: SaslResponse) -> SaslServerFrame {
        SaslServerFrame::Outcome(SaslOutcome {
            code: SaslCode::Sys,
            additional_data: None,
        })
    }
}
