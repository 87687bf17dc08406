//! Moves one peer's bytes between two connections.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::{sleep, timeout};

use super::Stream;
use crate::guard::Guard;

/// Read at a time.
const CHUNK_BYTES: usize = 16 * 1024;
/// How long the second direction may go on after the first has ended: a goodbye's time.
const LINGER: Duration = Duration::from_secs(3);
/// AMQP peers give signs of life every few seconds. A connection without any is dead, or was never meant well.
const IDLE: Duration = Duration::from_secs(120);

/// What went through, and why no more will.
#[derive(Debug)]
pub(crate) struct Piped {
    /// Bytes from the peer.
    pub(crate) received: u64,
    /// Bytes to the peer.
    pub(crate) sent: u64,
    /// In words.
    pub(crate) reason: String,
}

/// Moves bytes both ways until one end closes. What comes from the `peer` passes `guard`, frame by frame, before it goes
/// `inside`.
pub(crate) async fn pipe(
    peer: impl Stream,
    inside: impl Stream,
    guard: Guard,
    lifetime: Option<Duration>,
) -> Piped {
    let (mut from_peer, mut to_peer) = split(peer);
    let (mut from_inside, mut to_inside) = split(inside);
    let (mut received, mut sent) = (0, 0);
    let reason = {
        let inward = checked(&mut from_peer, &mut to_inside, guard, &mut received);
        let outward = copied(&mut from_inside, &mut to_peer, &mut sent);
        tokio::pin!(inward, outward);
        let ended = |whose: &str, outcome: io::Result<()>| match outcome {
            Ok(()) => format!("{whose} has closed the connection"),
            Err(error) => format!("{whose}: {error}"),
        };
        let aged = async {
            match lifetime {
                Some(lifetime) => sleep(lifetime).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            outcome = &mut inward => {
                if outcome.is_ok() {
                    let _ = timeout(LINGER, outward).await;
                }
                ended("the peer", outcome)
            }
            outcome = &mut outward => {
                if outcome.is_ok() {
                    let _ = timeout(LINGER, inward).await;
                }
                ended("the inside", outcome)
            }
            () = aged => "it has reached its age and is opened anew".to_owned(),
        }
    };
    Piped {
        received,
        sent,
        reason,
    }
}

async fn next(from: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> io::Result<usize> {
    buffer.reserve(CHUNK_BYTES);
    match timeout(IDLE, from.read_buf(buffer)).await {
        Ok(read) => read,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "nothing has come for too long",
        )),
    }
}

/// A side that takes nothing for long is as dead as one that says nothing.
async fn give(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    let given = async {
        to.write_all(bytes).await?;
        to.flush().await
    };
    match timeout(IDLE, given).await {
        Ok(given) => given,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "nothing has been taken for too long",
        )),
    }
}

async fn copied(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    count: &mut u64,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        if next(from, &mut buffer).await? == 0 {
            return to.shutdown().await;
        }
        give(to, &buffer).await?;
        *count += buffer.len() as u64;
        buffer.clear();
    }
}

async fn checked(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    mut guard: Guard,
    count: &mut u64,
) -> io::Result<()> {
    // Holds one incomplete frame at most, besides what was read last.
    let mut buffer = Vec::new();
    loop {
        if next(from, &mut buffer).await? == 0 {
            return to.shutdown().await;
        }
        let good = guard
            .check(&mut buffer)
            .map_err(|violation| io::Error::new(io::ErrorKind::InvalidData, violation))?;
        give(to, &buffer[..good]).await?;
        *count += good as u64;
        buffer.drain(..good);
    }
}
