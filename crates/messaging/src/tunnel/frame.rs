//! What travels through the tunnel before and beside the peers' own bytes.
//!
//! Every frame is a length (four bytes, big-endian) and a value in borsh. The first frame of every connection is the
//! dialling side's [`Greeting`], which carries the version.

use std::io;

use borsh::{BorshDeserialize, BorshSerialize};
use quorate_identity::{CertificatePath, SecureHash, TlsParty, X500Name};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The version of everything in this module. Both sides must have the same.
const VERSION: u16 = 1;
/// What every connection of the tunnel begins with, so that somebody else's is recognised at once.
const MAGIC: [u8; 4] = *b"QRTN";
/// The largest frame: the certificates of many identities fit in.
const MAX_FRAME_BYTES: u32 = 1024 * 1024;
/// Identities that one link may serve.
pub(crate) const MAX_SERVICES: usize = 256;
/// The longest reason that is passed on.
const MAX_REASON_CHARS: usize = 500;

/// The first frame of a connection, from the side that dialled.
#[derive(Debug, BorshSerialize, BorshDeserialize)]
pub(crate) struct Greeting {
    magic: [u8; 4],
    version: u16,
    pub(crate) purpose: Purpose,
}

/// Names one life of a link, so that spare connections find their control connection.
pub(crate) type Session = [u8; 16];

/// What a connection is for.
#[derive(Debug, BorshSerialize, BorshDeserialize)]
pub(crate) enum Purpose {
    /// The one connection of a link that is not a peer's.
    Control { session: Session },
    /// Waits to be used by the other side.
    Spare { session: Session },
    /// Carries the bytes of a peer that has arrived.
    Arrival(Arrival),
}

/// A peer that has connected, and has proved who it is.
#[derive(Debug, Clone, BorshSerialize, BorshDeserialize)]
pub(crate) struct Arrival {
    /// The certificates that it has shown, leaf first.
    pub(crate) certificates: Vec<Vec<u8>>,
    /// Address and port from which it came.
    pub(crate) from: String,
    /// Whom it wants: the key of a [`Service`].
    pub(crate) wanted: SecureHash,
}

/// What a spare connection is used for: the first frame on it from the side that listens.
#[derive(Debug, BorshSerialize, BorshDeserialize)]
pub(crate) enum Opening {
    /// From a float: a peer.
    Arrival(Arrival),
    /// From a node: a peer is to be dialled.
    Dial {
        /// `host:port`
        address: String,
        /// Whom to ask for.
        wanted: X500Name,
        /// Who may answer.
        expected: Vec<X500Name>,
        /// Largest message of the network in bytes, its envelope included.
        max_message: u64,
    },
}

/// The answer to an [`Opening`], and to a greeting for an arrival. After `Opened` the connection is the peer's.
#[derive(Debug, BorshSerialize, BorshDeserialize)]
pub(crate) enum Answer {
    /// The certificates of the peer that was dialled, leaf first; none for an arrival.
    Opened { certificates: Vec<Vec<u8>> },
    /// Why not.
    Failed(String),
}

/// What is said on a control connection.
#[derive(Debug, BorshSerialize, BorshDeserialize)]
pub(crate) enum Frame {
    /// A sign of life.
    Beat,
    /// All identities that are served behind the sender; replaces what was said before.
    Serve(Vec<Service>),
    /// Asks for a signature.
    Sign {
        id: u64,
        key: SecureHash,
        message: Vec<u8>,
    },
    /// The answer.
    Signed {
        id: u64,
        outcome: Result<Vec<u8>, String>,
    },
}

/// An identity to be served: what a float shows to peers, and whom it lets in.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(crate) struct Service {
    /// The certificates of the TLS key, leaf first.
    pub(crate) path: CertificatePath,
    /// The network's root (DER).
    pub(crate) root: Vec<u8>,
    /// The names under which peers may ask for it.
    pub(crate) names: Vec<X500Name>,
    /// Largest message in bytes, its envelope included.
    pub(crate) max_message: u64,
}

impl Service {
    /// What a node lets the firewall know of itself.
    pub(crate) fn of(party: &TlsParty, max_message: u64) -> Self {
        Self {
            path: party.identity().path().clone(),
            root: party.trust_root().der().to_vec(),
            names: party.served().to_vec(),
            max_message,
        }
    }

    /// What it goes by in the tunnel: the fingerprint of the TLS certificate.
    pub(crate) fn key(&self) -> SecureHash {
        self.path.leaf().fingerprint()
    }

    /// Whether a client that gives this as the server's name means it.
    pub(crate) fn answers_to(&self, host: &str) -> bool {
        self.names
            .iter()
            .any(|name| name.sni_hash().eq_ignore_ascii_case(host))
    }
}

/// Why a frame could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error("the connection was closed")]
    Closed,
    #[error("a frame of {0} bytes is not one of the tunnel")]
    Size(u32),
    #[error("what arrived is not a frame of the tunnel")]
    Malformed(#[source] io::Error),
    #[error(
        "the other side speaks version {0} of the tunnel, and this one version {VERSION}; run the same release on both"
    )]
    Version(u16),
    #[error("this is not a connection of the tunnel")]
    Foreign,
}

impl Greeting {
    pub(crate) fn new(purpose: Purpose) -> Self {
        Self {
            magic: MAGIC,
            version: VERSION,
            purpose,
        }
    }

    /// Reads the first frame of a connection.
    pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Purpose, FrameError> {
        let bytes = read_bytes(stream).await?;
        let Some((magic, rest)) = bytes.split_first_chunk::<4>() else {
            return Err(FrameError::Foreign);
        };
        if *magic != MAGIC {
            return Err(FrameError::Foreign);
        }
        // Looked at first: the rest may be of another form in another version.
        match rest
            .first_chunk::<2>()
            .map(|bytes| u16::from_le_bytes(*bytes))
        {
            Some(VERSION) => {}
            Some(other) => return Err(FrameError::Version(other)),
            None => return Err(FrameError::Foreign),
        }
        let greeting: Self = borsh::from_slice(&bytes).map_err(FrameError::Malformed)?;
        Ok(greeting.purpose)
    }
}

/// Reads a frame. Not to be dropped halfway by whoever wants to go on reading.
pub(crate) async fn read_frame<T: BorshDeserialize>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<T, FrameError> {
    let bytes = read_bytes(stream).await?;
    borsh::from_slice(&bytes).map_err(FrameError::Malformed)
}

async fn read_bytes(stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, FrameError> {
    let length = match stream.read_u32().await {
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(FrameError::Closed);
        }
        Err(error) => return Err(error.into()),
    };
    if length > MAX_FRAME_BYTES {
        return Err(FrameError::Size(length));
    }
    // Memory is taken as bytes arrive, not as they are announced.
    let mut bytes = Vec::new();
    stream
        .take(u64::from(length))
        .read_to_end(&mut bytes)
        .await?;
    if bytes.len() < length as usize {
        return Err(FrameError::Closed);
    }
    Ok(bytes)
}

/// Writes a frame and sees it off.
pub(crate) async fn write_frame<T: BorshSerialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    frame: &T,
) -> io::Result<()> {
    let mut bytes = vec![0; 4];
    borsh::to_writer(&mut bytes, frame)?;
    let length = u32::try_from(bytes.len() - 4)
        .ok()
        .filter(|length| *length <= MAX_FRAME_BYTES)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a frame is too large"))?;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    stream.write_all(&bytes).await?;
    stream.flush().await
}

/// A reason that comes from another process: bounded, and without control characters.
pub(crate) fn plain(reason: &str) -> String {
    reason
        .chars()
        .map(|character| {
            if character.is_control() {
                ' '
            } else {
                character
            }
        })
        .take(MAX_REASON_CHARS)
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read<T: BorshDeserialize>(bytes: &[u8]) -> Result<T, FrameError> {
        futures::executor::block_on(read_frame(&mut &bytes[..]))
    }

    #[test]
    fn frames_are_read_as_they_were_written() {
        let mut bytes = Vec::new();
        let frame = Frame::Sign {
            id: 7,
            key: SecureHash::of(b"key"),
            message: vec![1, 2, 3],
        };
        futures::executor::block_on(write_frame(&mut bytes, &frame)).unwrap();
        match read::<Frame>(&bytes).unwrap() {
            Frame::Sign { id: 7, message, .. } => assert_eq!(message, [1, 2, 3]),
            other => panic!("{other:?}"),
        }
        for cut in 0..bytes.len() {
            assert!(read::<Frame>(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn another_version_is_named_and_foreigners_are_told_apart() {
        let mut bytes = Vec::new();
        let greeting = Greeting {
            version: VERSION + 1,
            ..Greeting::new(Purpose::Control { session: [1; 16] })
        };
        futures::executor::block_on(write_frame(&mut bytes, &greeting)).unwrap();
        let read = |mut bytes: &[u8]| futures::executor::block_on(Greeting::read(&mut bytes));
        assert!(matches!(read(&bytes), Err(FrameError::Version(2))));
        bytes[4] = b'X';
        assert!(matches!(read(&bytes), Err(FrameError::Foreign)));
        assert!(matches!(
            read(b"GET / HTTP/1.1\r\n"),
            Err(FrameError::Size(_))
        ));
    }

    proptest! {
        #[test]
        fn nonsense_is_refused_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = read::<Frame>(&bytes);
            let _ = read::<Opening>(&bytes);
            let _ = futures::executor::block_on(Greeting::read(&mut &bytes[..]));
        }
    }
}
