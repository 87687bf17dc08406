//! A socket below TLS that is read in larger pieces.
//!
//! The TLS library asks for four kilobytes at a time, which makes four system calls of a full record and more of a busy
//! connection. [`Ahead`] takes what has come, up to [`READ_AHEAD`], and gives it out in the pieces that are asked for. An
//! idle connection owns no buffer: ten thousand of them cost what ten thousand sockets cost.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Bytes read at once: two TLS records.
const READ_AHEAD: usize = 32 * 1024;

/// A TCP connection that is read ahead.
#[derive(Debug)]
pub(crate) struct Ahead {
    tcp: TcpStream,
    /// What was read and not asked for yet. Without memory when it is empty.
    read: BytesMut,
}

impl Ahead {
    pub(crate) fn new(tcp: TcpStream) -> Self {
        Self {
            tcp,
            read: BytesMut::new(),
        }
    }
}

impl AsyncRead for Ahead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        target: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.read.is_empty() {
            if target.remaining() >= READ_AHEAD {
                return Pin::new(&mut this.tcp).poll_read(context, target);
            }
            loop {
                // Memory is for what is there, not for what may come.
                ready!(this.tcp.poll_read_ready(context))?;
                let mut read = BytesMut::with_capacity(READ_AHEAD);
                match this.tcp.try_read_buf(&mut read) {
                    Ok(0) => return Poll::Ready(Ok(())),
                    Ok(_) => {
                        this.read = read;
                        break;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
        }
        let count = this.read.len().min(target.remaining());
        target.put_slice(&this.read[..count]);
        this.read.advance(count);
        if this.read.is_empty() {
            this.read = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Ahead {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn pieces_of_any_size_are_read_in_order_to_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sent: Vec<u8> = (0..200_000u32).map(|index| (index % 251) as u8).collect();
        let address = listener.local_addr().unwrap();
        let sending = async {
            let mut tcp = TcpStream::connect(address).await.unwrap();
            tcp.write_all(&sent).await.unwrap();
        };
        let reading = async {
            let mut ahead = Ahead::new(listener.accept().await.unwrap().0);
            let mut read = Vec::new();
            for size in [1, 4096, 5, 40_000, 16 * 1024 + 5].into_iter().cycle() {
                let mut piece = vec![0; size];
                let count = ahead.read(&mut piece).await.unwrap();
                if count == 0 {
                    break;
                }
                read.extend_from_slice(&piece[..count]);
            }
            assert_eq!(ahead.read.capacity(), 0);
            read
        };
        let ((), read) = tokio::join!(sending, reading);
        assert_eq!(read, sent);
    }
}
