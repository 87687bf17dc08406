//! The network between orderers: each orderer is reached through a port of the switch, which sees by the caller's process
//! who calls, and lets through only what may pass between the two.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What an interruption is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interruption {
    /// Nothing passes and nobody is told; what was sent meanwhile arrives afterwards.
    Silent,
    /// Connections are cut, and new ones closed at once.
    Cut,
}

/// Who is apart from the others, and how.
#[derive(Debug, Clone, Default)]
struct Rift {
    apart: BTreeSet<usize>,
    how: Option<Interruption>,
}

impl Rift {
    fn between(&self, from: Option<usize>, to: usize) -> Option<Interruption> {
        let apart = |of: Option<usize>| of.is_some_and(|of| self.apart.contains(&of));
        (apart(from) != apart(Some(to))).then_some(self.how)?
    }
}

/// Ends with the value.
pub(crate) struct Switch {
    rift: watch::Sender<Rift>,
    processes: Arc<Mutex<BTreeMap<usize, u32>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Switch {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Switch {
    pub(crate) fn new() -> Self {
        Self {
            rift: watch::Sender::default(),
            processes: Arc::default(),
            tasks: Vec::new(),
        }
    }

    /// A port that leads to `target`, where orderer `to` listens.
    pub(crate) async fn port(&mut self, to: usize, target: u16) -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let rift = self.rift.subscribe();
        let processes = self.processes.clone();
        self.tasks.push(tokio::spawn(async move {
            loop {
                let Ok((caller, address)) = listener.accept().await else {
                    continue;
                };
                let (rift, processes) = (rift.clone(), processes.clone());
                tokio::spawn(async move {
                    let known = processes.lock().unwrap().clone();
                    let from = tokio::task::spawn_blocking(move || owner(address, &known)).await;
                    let way = Way {
                        from: from.ok().flatten(),
                        to,
                        rift,
                    };
                    // An end of a connection is what this is for.
                    let _ = lead(caller, target, way).await;
                });
            }
        }));
        port
    }

    /// Orderer `number` is this process now.
    pub(crate) fn runs(&self, number: usize, process: u32) {
        self.processes.lock().unwrap().insert(number, process);
    }

    /// Separates these orderers from the others, not from each other.
    pub(crate) fn part(&self, apart: impl IntoIterator<Item = usize>, how: Interruption) {
        self.rift.send_replace(Rift {
            apart: apart.into_iter().collect(),
            how: Some(how),
        });
    }

    /// Everything passes again.
    pub(crate) fn heal(&self) {
        self.rift.send_replace(Rift::default());
    }
}

/// Which of the processes has the socket at the other end.
fn owner(caller: SocketAddr, processes: &BTreeMap<usize, u32>) -> Option<usize> {
    let wanted = format!("0100007F:{:04X}", caller.port());
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    let socket = table.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        (fields.nth(1)? == wanted).then_some(())?;
        fields.nth(7)
    })?;
    let socket = format!("socket:[{socket}]");
    processes.iter().find_map(|(number, process)| {
        let mut files = fs::read_dir(format!("/proc/{process}/fd")).ok()?;
        files
            .any(|file| {
                file.and_then(|file| fs::read_link(file.path()))
                    .is_ok_and(|link| link.to_string_lossy() == socket)
            })
            .then_some(*number)
    })
}

#[derive(Clone)]
struct Way {
    from: Option<usize>,
    to: usize,
    rift: watch::Receiver<Rift>,
}

impl Way {
    /// Waits while it is silent; whether it is open then.
    async fn may_pass(&mut self) -> bool {
        let (from, to) = (self.from, self.to);
        let settled = self
            .rift
            .wait_for(|rift| rift.between(from, to) != Some(Interruption::Silent))
            .await;
        settled.is_ok_and(|rift| rift.between(from, to).is_none())
    }
}

async fn lead(caller: TcpStream, target: u16, mut way: Way) -> io::Result<()> {
    if !way.may_pass().await {
        return Ok(());
    }
    let called = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await?;
    caller.set_nodelay(true)?;
    called.set_nodelay(true)?;
    let (from_caller, to_caller) = caller.into_split();
    let (from_called, to_called) = called.into_split();
    // Whichever way ends first takes the other with it, unless it was only its own half that was closed.
    tokio::try_join!(
        carry(from_caller, to_called, way.clone()),
        carry(from_called, to_caller, way)
    )?;
    Ok(())
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut way: Way,
) -> io::Result<()> {
    let cut = || io::Error::from(io::ErrorKind::ConnectionReset);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        if !way.may_pass().await {
            return Err(cut());
        }
        let read = tokio::select! {
            read = from.read(&mut buffer) => read?,
            _ = way.rift.changed() => continue,
        };
        if !way.may_pass().await {
            return Err(cut());
        }
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
    }
}
