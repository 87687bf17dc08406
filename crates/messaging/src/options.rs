//! What can be configured, with the defaults and the relations between them.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use quorate_identity::X500Name;

/// Largest message body: 10 MiB, as everywhere in this field.
pub const DEFAULT_MAX_MESSAGE_BYTES: usize = 10_485_760;
/// Most bytes of an encoded message besides its body: header, annotations a broker may add, properties.
pub const MESSAGE_OVERHEAD_BYTES: usize = 16 * 1024;
/// Connections whose handshake is not finished. When one more arrives the oldest of them is dropped, so that a crowd
/// of silent connections cannot keep a peer out.
pub const DEFAULT_MAX_PENDING_HANDSHAKES: usize = 256;
/// Time from the TCP connect to a finished TLS handshake, and again from there to an open AMQP link.
pub const DEFAULT_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for one outgoing attempt to one address: TCP, TLS and AMQP together.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after all addresses of a peer have failed, before they are tried again.
pub const DEFAULT_RETRY_MIN: Duration = Duration::from_secs(1);
/// Longest pause for a peer that has been away for long.
pub const DEFAULT_RETRY_MAX: Duration = Duration::from_secs(60);
/// How long a peer may be away before the pauses grow. Longer than any takeover, so that a peer is found within about
/// [`DEFAULT_RETRY_MIN`] of its standby's start.
pub const DEFAULT_RETRY_PATIENCE: Duration = Duration::from_secs(120);
/// Messages sent to one peer and not yet accepted.
pub const DEFAULT_WINDOW: usize = 256;
/// Bytes sent to one peer and not yet accepted; one message may exceed it.
pub const DEFAULT_WINDOW_BYTES: usize = 8 * 1024 * 1024;
/// A connection on which nothing has arrived for so long is dead. Both sides send a sign of life twice as often.
pub const DEFAULT_SILENCE_TIMEOUT: Duration = Duration::from_secs(10);
/// An outgoing connection without work for so long is closed; the next message opens it again.
pub const DEFAULT_IDLE_CLOSE: Duration = Duration::from_secs(300);
/// Outgoing connection attempts at the same time, over all peers.
pub const DEFAULT_MAX_DIALING: usize = 16;
/// Incoming connections that have finished their handshake.
pub const DEFAULT_MAX_CONNECTIONS: usize = 1024;
/// Addresses kept per peer.
pub const MAX_ADDRESSES_PER_PEER: usize = 16;
/// Largest window that may be configured: receivers grant credit for so many and some more.
pub const MAX_WINDOW: usize = 256;
/// Messages handed to [`Inbound::deliver`](crate::Inbound::deliver) at once, at most.
pub const MAX_BATCH: usize = 256;
/// A batch is closed when its bodies have reached this size.
pub const MAX_BATCH_BYTES: usize = 4 * 1024 * 1024;

/// How messaging shall behave.
#[derive(Debug, Clone)]
pub struct Options {
    /// Our own legal name: the `sender` of everything we send.
    pub own_name: X500Name,
    /// Further names under which messages reach us, such as a notary service's. Our own need not be repeated.
    pub further_names: Vec<X500Name>,
    /// Where to accept peers. Port 0 takes a free one; see [`Messaging::address`](crate::Messaging::address).
    pub listen: SocketAddr,
    /// Largest message body, sent or received.
    pub max_message_bytes: usize,
    /// See [`DEFAULT_MAX_PENDING_HANDSHAKES`].
    pub max_pending_handshakes: usize,
    /// See [`DEFAULT_MAX_CONNECTIONS`].
    pub max_connections: usize,
    /// See [`DEFAULT_HANDSHAKE_TIMEOUT`].
    pub handshake_timeout: Duration,
    /// See [`DEFAULT_CONNECT_TIMEOUT`].
    pub connect_timeout: Duration,
    /// See [`DEFAULT_RETRY_MIN`].
    pub retry_min: Duration,
    /// See [`DEFAULT_RETRY_MAX`].
    pub retry_max: Duration,
    /// See [`DEFAULT_RETRY_PATIENCE`].
    pub retry_patience: Duration,
    /// See [`DEFAULT_WINDOW`].
    pub window: usize,
    /// See [`DEFAULT_WINDOW_BYTES`].
    pub window_bytes: usize,
    /// See [`DEFAULT_SILENCE_TIMEOUT`].
    pub silence_timeout: Duration,
    /// See [`DEFAULT_IDLE_CLOSE`].
    pub idle_close: Duration,
    /// See [`DEFAULT_MAX_DIALING`].
    pub max_dialing: usize,
}

impl Options {
    /// Defaults for a node of this name that listens here.
    pub fn new(own_name: X500Name, listen: SocketAddr) -> Self {
        Self {
            own_name,
            further_names: Vec::new(),
            listen,
            max_message_bytes: DEFAULT_MAX_MESSAGE_BYTES,
            max_pending_handshakes: DEFAULT_MAX_PENDING_HANDSHAKES,
            max_connections: DEFAULT_MAX_CONNECTIONS,
            handshake_timeout: DEFAULT_HANDSHAKE_TIMEOUT,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            retry_min: DEFAULT_RETRY_MIN,
            retry_max: DEFAULT_RETRY_MAX,
            retry_patience: DEFAULT_RETRY_PATIENCE,
            window: DEFAULT_WINDOW,
            window_bytes: DEFAULT_WINDOW_BYTES,
            silence_timeout: DEFAULT_SILENCE_TIMEOUT,
            idle_close: DEFAULT_IDLE_CLOSE,
            max_dialing: DEFAULT_MAX_DIALING,
        }
    }

    /// Checks the relations between the numbers.
    ///
    /// # Errors
    /// The first value that makes no sense, with the permitted range.
    pub fn validate(&self) -> Result<(), OptionsError> {
        let check = |ok: bool, option: &'static str, rule: &'static str| {
            if ok {
                Ok(())
            } else {
                Err(OptionsError { option, rule })
            }
        };
        check(
            (1..=i32::MAX as usize).contains(&self.max_message_bytes),
            "max_message_bytes",
            "must be between 1 and 2147483647",
        )?;
        check(
            self.max_pending_handshakes > 0,
            "max_pending_handshakes",
            "must be at least 1",
        )?;
        check(
            self.max_connections > 0,
            "max_connections",
            "must be at least 1",
        )?;
        check(
            !self.handshake_timeout.is_zero(),
            "handshake_timeout",
            "must be more than zero",
        )?;
        check(
            !self.connect_timeout.is_zero(),
            "connect_timeout",
            "must be more than zero",
        )?;
        check(
            !self.retry_min.is_zero(),
            "retry_min",
            "must be more than zero, or a dead peer is dialled in a tight loop",
        )?;
        check(
            self.retry_max >= self.retry_min,
            "retry_max",
            "must not be less than retry_min",
        )?;
        check(
            (1..=MAX_WINDOW).contains(&self.window),
            "window",
            "must be between 1 and 256",
        )?;
        check(self.window_bytes > 0, "window_bytes", "must be at least 1")?;
        check(
            (Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&self.silence_timeout),
            "silence_timeout",
            "must be between 1 second and 1 hour",
        )?;
        check(
            !self.idle_close.is_zero(),
            "idle_close",
            "must be more than zero",
        )?;
        check(self.max_dialing > 0, "max_dialing", "must be at least 1")
    }

    /// Whether messages to this name are for us.
    pub(crate) fn is_ours(&self, name: &X500Name) -> bool {
        *name == self.own_name || self.further_names.contains(name)
    }
}

/// An option whose value makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("messaging option `{option}` {rule}")]
pub struct OptionsError {
    /// Which one.
    pub option: &'static str,
    /// What is expected of it.
    pub rule: &'static str,
}

/// A host name or IP address, and a port: `host:10002`, `192.0.2.7:10002`, `[2001:db8::7]:10002`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostAndPort {
    /// Name or address, without brackets.
    pub host: String,
    /// TCP port, not 0.
    pub port: u16,
}

/// Longest host name that DNS permits.
const MAX_HOST_CHARS: usize = 253;

/// A text that is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an address: expected `host:port`, with an IPv6 address in brackets")]
pub struct AddressError {
    text: String,
}

impl FromStr for HostAndPort {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let refused = || AddressError {
            text: text.chars().take(MAX_HOST_CHARS).collect(),
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(refused)?;
        let port: u16 = port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(refused)?;
        let bracketed = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        let valid = match bracketed {
            Some(inside) => inside.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty()
                    && host.len() <= MAX_HOST_CHARS
                    && host.bytes().all(|byte| {
                        byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')
                    })
            }
        };
        if !valid {
            return Err(refused());
        }
        Ok(Self {
            host: bracketed.unwrap_or(host).to_owned(),
            port,
        })
    }
}

impl fmt::Display for HostAndPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl From<SocketAddr> for HostAndPort {
    fn from(address: SocketAddr) -> Self {
        Self {
            host: address.ip().to_string(),
            port: address.port(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for text in [
            "localhost:10002",
            "192.0.2.7:1",
            "[2001:db8::7]:65535",
            "party-a.example.com:10002",
        ] {
            assert_eq!(text.parse::<HostAndPort>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "localhost",
            "localhost:",
            "localhost:0",
            "localhost:65536",
            ":1",
            "2001:db8::7:1",
            "[x]:1",
            "a b:1",
            "[]:1",
        ] {
            assert!(text.parse::<HostAndPort>().is_err(), "{text}");
        }
    }

    #[test]
    fn senseless_options_are_named() {
        let name = "O=PartyA, L=Osaka, C=JP".parse().unwrap();
        let good = Options::new(name, ([127, 0, 0, 1], 0).into());
        assert_eq!(good.validate(), Ok(()));
        let bad = Options {
            window: 0,
            ..good.clone()
        };
        assert_eq!(
            bad.validate().unwrap_err().to_string(),
            "messaging option `window` must be between 1 and 256"
        );
        assert!(
            Options {
                retry_max: Duration::from_millis(1),
                ..good
            }
            .validate()
            .is_err()
        );
    }
}
