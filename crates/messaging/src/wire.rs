//! The stream between TLS and the AMQP library.
//!
//! The library runs a connection in tasks of its own and gives them the stream for good. This wrapper keeps us in
//! charge of it: the [`Line`] cuts the connection at once, whatever the library waits for; it knows when something last
//! arrived, also while the library is stuck in writing and could not notice a dead peer itself; and everything read
//! passes the [`Guard`] before the library sees it.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::guard::{Guard, ReadAhead, Side};
use crate::service::lock;

/// Read from TLS at a time: a TLS record.
const READ_CHUNK_BYTES: usize = 16 * 1024;

/// Our end of the wrapper; dropping it cuts the connection.
#[derive(Debug)]
pub(crate) struct Line {
    state: Arc<State>,
}

struct State {
    started: Instant,
    /// Milliseconds after `started` at which something last arrived.
    heard: AtomicU64,
    cut: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
    read_ahead: Arc<ReadAhead>,
    /// Why reading failed: the library's own error says less.
    failure: Mutex<Option<String>>,
}

impl Line {
    /// Ends the connection now. The library's tasks see a broken stream and end.
    pub(crate) fn cut(&self) {
        self.state.cut.store(true, Ordering::Release);
        self.state.reader.wake();
        self.state.writer.wake();
    }

    /// How long nothing has arrived. Zero while we do not read, because nothing can arrive then.
    pub(crate) fn silence(&self) -> Duration {
        if self.state.read_ahead.is_full() {
            return Duration::ZERO;
        }
        let heard = Duration::from_millis(self.state.heard.load(Ordering::Relaxed));
        self.state.started.elapsed().saturating_sub(heard)
    }

    /// A message has been taken from the library; reading may go on.
    pub(crate) fn taken(&self) {
        let full = self.state.read_ahead.is_full();
        self.state.read_ahead.take();
        if full {
            self.state.reader.wake();
        }
    }

    /// Why the stream broke, if it did and we know better than the library.
    pub(crate) fn failure(&self) -> Option<String> {
        lock(&self.state.failure).clone()
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.cut();
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("cut", &self.cut)
            .finish_non_exhaustive()
    }
}

/// The stream that the library gets.
pub(crate) struct Wire {
    tls: TlsStream<TcpStream>,
    guard: Guard,
    /// Bytes read: first `checked` ones that may be handed on, from `given` on, then the beginning of a frame.
    buffer: Vec<u8>,
    given: usize,
    checked: usize,
    state: Arc<State>,
}

impl Wire {
    /// Wraps a connection whose TLS handshake is done.
    pub(crate) fn new(tls: TlsStream<TcpStream>, side: Side, max_message: u64) -> (Self, Line) {
        let read_ahead = Arc::new(ReadAhead::default());
        let state = Arc::new(State {
            started: Instant::now(),
            heard: AtomicU64::new(0),
            cut: AtomicBool::new(false),
            reader: AtomicWaker::new(),
            writer: AtomicWaker::new(),
            read_ahead: read_ahead.clone(),
            failure: Mutex::default(),
        });
        let guard = Guard::new(side, max_message, read_ahead);
        let wire = Self {
            tls,
            guard,
            buffer: Vec::new(),
            given: 0,
            checked: 0,
            state: state.clone(),
        };
        (wire, Line { state })
    }

    fn fail(&self, error: io::Error) -> io::Error {
        lock(&self.state.failure).get_or_insert_with(|| error.to_string());
        error
    }

    fn is_cut(&self) -> bool {
        self.state.cut.load(Ordering::Acquire)
    }
}

fn was_cut() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was cut")
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Registered before the conditions are looked at, so that neither a cut nor a taken message is missed.
        this.state.reader.register(context.waker());
        if this.is_cut() {
            return Poll::Ready(Err(was_cut()));
        }
        loop {
            if this.given < this.checked {
                let length = out.remaining().min(this.checked - this.given);
                out.put_slice(&this.buffer[this.given..this.given + length]);
                this.given += length;
                return Poll::Ready(Ok(()));
            }
            if this.state.read_ahead.is_full() {
                return Poll::Pending;
            }
            this.buffer.drain(..this.checked);
            (this.given, this.checked) = (0, 0);
            let mut chunk = [0; READ_CHUNK_BYTES];
            let mut read = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut this.tls).poll_read(context, &mut read))
                .map_err(|error| this.fail(error))?;
            if read.filled().is_empty() {
                if this.buffer.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                let error = io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the connection ended within a frame",
                );
                return Poll::Ready(Err(this.fail(error)));
            }
            let heard = this.state.started.elapsed().as_millis();
            this.state
                .heard
                .store(u64::try_from(heard).unwrap_or(u64::MAX), Ordering::Relaxed);
            this.buffer.extend_from_slice(read.filled());
            match this.guard.check(&mut this.buffer) {
                Ok(checked) => this.checked = checked,
                Err(violation) => {
                    let error = io::Error::new(io::ErrorKind::InvalidData, violation);
                    return Poll::Ready(Err(this.fail(error)));
                }
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.state.writer.register(context.waker());
        if this.is_cut() {
            return Poll::Ready(Err(was_cut()));
        }
        Pin::new(&mut this.tls).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.state.writer.register(context.waker());
        if this.is_cut() {
            return Poll::Ready(Err(was_cut()));
        }
        Pin::new(&mut this.tls).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.state.writer.register(context.waker());
        if this.is_cut() {
            return Poll::Ready(Err(was_cut()));
        }
        Pin::new(&mut this.tls).poll_shutdown(context)
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}
