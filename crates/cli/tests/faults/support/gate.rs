//! A TCP proxy with a gate: what a firewall or a broken switch does to one connection of one process, without touching
//! anybody else.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How the gate stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passage {
    /// Everything passes.
    Open,
    /// Nothing passes and nobody is told; what was sent meanwhile arrives when the gate opens, late.
    Silent,
    /// Connections are cut, and new ones closed at once.
    Cut,
}

/// A listening port that leads to another one on this machine. Ends with the value.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) port: u16,
    passage: watch::Sender<Passage>,
    task: JoinHandle<()>,
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Gate {
    pub(crate) async fn to(port: u16, target: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let port = listener.local_addr()?.port();
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, target));
        let (passage, state) = watch::channel(Passage::Open);
        let task = tokio::spawn(async move {
            loop {
                // Out of file descriptors, or the caller was gone already: neither is the gate's end.
                let Ok((caller, _)) = listener.accept().await else {
                    continue;
                };
                let state = state.clone();
                tokio::spawn(async move {
                    // An end of a connection is what this is for.
                    let _ = lead(caller, target, state).await;
                });
            }
        });
        Ok(Self {
            port,
            passage,
            task,
        })
    }

    pub(crate) fn set(&self, passage: Passage) {
        self.passage.send_replace(passage);
    }
}

async fn lead(
    caller: TcpStream,
    target: SocketAddr,
    mut state: watch::Receiver<Passage>,
) -> io::Result<()> {
    if !may_pass(&mut state).await {
        return Ok(());
    }
    let called = TcpStream::connect(target).await?;
    caller.set_nodelay(true)?;
    called.set_nodelay(true)?;
    let (from_caller, to_caller) = caller.into_split();
    let (from_called, to_called) = called.into_split();
    // Whichever way ends first takes the other with it, unless it was only its own half that was closed.
    tokio::try_join!(
        carry(from_caller, to_called, state.clone()),
        carry(from_called, to_caller, state)
    )?;
    Ok(())
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut state: watch::Receiver<Passage>,
) -> io::Result<()> {
    let cut = || io::Error::from(io::ErrorKind::ConnectionReset);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        if !may_pass(&mut state).await {
            return Err(cut());
        }
        let read = tokio::select! {
            read = from.read(&mut buffer) => read?,
            _ = state.changed() => continue,
        };
        if !may_pass(&mut state).await {
            return Err(cut());
        }
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
    }
}

/// Waits while the gate is silent; whether it is open then.
async fn may_pass(state: &mut watch::Receiver<Passage>) -> bool {
    let settled = state.wait_for(|passage| *passage != Passage::Silent).await;
    settled.is_ok_and(|passage| *passage == Passage::Open)
}
