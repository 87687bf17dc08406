//! The way through an organisation's own firewall: float, bridge, node.
//!
//! A float in the DMZ and a node inside both only listen; a bridge dials both. So no connection is ever begun towards
//! the inside. What the outer side wants of the inner one, it puts on a connection that the inner side has opened
//! beforehand:
//!
//! * one *control* connection per bridge: which identities are served ([`frame::Service`]), requests to sign for a TLS
//!   handshake, signs of life;
//! * a few *spare* connections, idle until the outer side has a use for one. Each use takes one up and has the bridge
//!   open another. From then on the connection carries one peer's AMQP bytes, and ends with them;
//! * towards a node, whose peers come from the bridge's side, *arrivals*: connections dialled for one peer each.
//!
//! One connection per peer, not many peers over one: flow control, the end of a connection and fairness between peers
//! are TCP's, and a peer that is slow or hostile costs its own connection and nothing else. Nothing here is durable, and
//! nothing here acknowledges anything: AMQP's accepted disposition travels from the receiving node to the sending one.
//!
//! `hub` is the side that listens, `keeper` the one that dials, `control` what both say to each other, `frame` the bytes,
//! `pipe` what moves a peer's.

pub(crate) mod control;
pub(crate) mod frame;
pub(crate) mod hub;
pub(crate) mod keeper;
pub(crate) mod pipe;

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

/// Each side of a control connection says something at least so often.
pub(crate) const BEAT: Duration = Duration::from_secs(2);
/// A control connection on which nothing has arrived for so long is dead.
pub(crate) const SILENCE: Duration = Duration::from_secs(10);
/// How long one step of opening a connection of the tunnel may take: TLS, greeting, answer.
pub(crate) const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that a bridge keeps ready for each process that it is linked to.
pub(crate) const SPARES: usize = 8;

/// A connection, whatever it is made of.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection of the tunnel: TLS between processes, memory within one.
pub(crate) type BoxStream = Box<dyn Stream>;
