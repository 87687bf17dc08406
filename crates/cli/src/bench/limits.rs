//! What this machine can do at the most of the three things an ordering service spends its time on.
//!
//! Shared machines differ from hour to hour. A throughput says more as a share of these limits, measured in the same run.

use std::fmt;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use quorate_identity::UnixTime;
use quorate_identity::keys::{KeyPair, SignatureScheme};
use quorate_identity::rpc_tls::{RpcIdentity, rpc_client_config, rpc_server_config};
use quorate_runtime::Clock;
use quorate_runtime::tasks::blocking;
use rustls_pki_types::ServerName;
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// How long each limit is measured.
const WINDOW: Duration = Duration::from_secs(1);
/// What is made durable at a time: one record, small.
const RECORD: [u8; 4_096] = [0x51; 4_096];
/// What is sent at a time.
const CHUNK: usize = 64 * 1024;
/// Verifications between two looks at the clock.
const VERIFICATIONS: u64 = 64;

/// The limits of this machine, now.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Limits {
    /// ECDSA P-256 signatures that one core verifies in a second.
    pub(super) verifications_per_second_and_core: f64,
    /// 4 KiB appended to one file and made durable, one after the other, in a second.
    pub(super) syncs_per_second: f64,
    /// Bytes through one TLS connection over loopback in a second, both ends on this machine.
    pub(super) tls_bytes_per_second: f64,
}

impl Limits {
    /// Measures for three seconds; the disk is the one under `directory`.
    pub(super) async fn measure(directory: &Path) -> Result<Self> {
        let path = directory.to_owned();
        let work = move || Ok::<_, anyhow::Error>((verifications(), syncs(&path)?));
        let (verifications, syncs) = blocking("measuring limits", work).await??;
        Ok(Self {
            verifications_per_second_and_core: verifications,
            syncs_per_second: syncs,
            tls_bytes_per_second: tls().await.context("measuring TLS over loopback")?,
        })
    }
}

fn verifications() -> f64 {
    let key = KeyPair::generate(SignatureScheme::EcdsaP256);
    let message = [7_u8; 1_024];
    let signature = key.sign(&message);
    let began = Instant::now();
    let mut count = 0;
    while began.elapsed() < WINDOW {
        for _ in 0..VERIFICATIONS {
            // The result is known; what counts is that it was worked out.
            let _ = std::hint::black_box(key.public().verify(&message, &signature));
        }
        count += VERIFICATIONS;
    }
    count as f64 / began.elapsed().as_secs_f64()
}

fn syncs(directory: &Path) -> Result<f64> {
    let path = directory.join("limit-measurement");
    let measured = (|| {
        let mut file = File::create(&path)?;
        let began = Instant::now();
        let mut count = 0_u32;
        while began.elapsed() < WINDOW {
            file.write_all(&RECORD)?;
            file.sync_data()?;
            count += 1;
        }
        Ok::<_, std::io::Error>(f64::from(count) / began.elapsed().as_secs_f64())
    })();
    let _ = fs::remove_file(&path);
    measured.context("measuring fdatasync")
}

async fn tls() -> Result<f64> {
    let now = Clock::system().now_seconds();
    let clock: quorate_identity::Clock = Arc::new(move || UnixTime(now));
    let identity = RpcIdentity::self_signed(&["localhost".to_owned()], UnixTime(now))?;
    let server = rpc_server_config(&identity, &[], Arc::clone(&clock))?;
    let client = rpc_client_config(identity.certificates_pem().as_bytes(), &[], clock)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let receiving = async {
        let (stream, _) = listener.accept().await?;
        let mut stream = TlsAcceptor::from(server).accept(stream).await?;
        let mut buffer = vec![0; CHUNK];
        let began = Instant::now();
        let mut bytes = 0_u64;
        while began.elapsed() < WINDOW {
            match stream.read(&mut buffer).await? {
                0 => break,
                read => bytes += read as u64,
            }
        }
        Ok::<_, std::io::Error>(bytes as f64 / began.elapsed().as_secs_f64())
    };
    let sending = async {
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from("localhost").expect("a host name");
        let mut stream = TlsConnector::from(client).connect(name, stream).await?;
        let chunk = vec![0x51; CHUNK];
        loop {
            // Ends when the receiver has seen enough and is gone.
            if stream.write_all(&chunk).await.is_err() {
                return Ok::<_, std::io::Error>(());
            }
        }
    };
    tokio::select! {
        rate = receiving => Ok(rate?),
        sent = sending => {
            sent?;
            anyhow::bail!("the receiver ended before its time")
        }
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Limits      {:.0} P-256 verifications/s per core, {:.0} fdatasyncs/s, {:.0} MB/s of TLS over loopback",
            self.verifications_per_second_and_core,
            self.syncs_per_second,
            self.tls_bytes_per_second / 1e6
        )
    }
}
