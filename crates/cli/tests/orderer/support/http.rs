//! HTTP by hand: what was recorded is sent as it is, and every header of the answer can be seen.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::calls::ROOTS;
use super::{Identity, PATIENCE, fixture};

/// Separates the parts of recorded forms.
const BOUNDARY: &str = "fixture-boundary-0123456789";

/// Where the participation API lives.
const CHANNELS: &str = "/participation/v1/channels";

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// By names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

/// TLS towards an orderer, with or without a certificate of one's own, for one of these protocols.
pub(crate) fn connector(identity: Option<&Identity>, protocols: &[&[u8]]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    let pem = fs::read(fixture(ROOTS)).unwrap();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        None => config.with_no_client_auth(),
        Some(own) => {
            let chain = CertificateDer::pem_slice_iter(&own.certificate)
                .map(Result::unwrap)
                .collect();
            let key = PrivateKeyDer::from_pem_slice(&own.key).unwrap();
            config.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

/// An HTTP or HTTPS port of an orderer, and who comes there.
pub(crate) struct Door {
    port: u16,
    tls: Option<TlsConnector>,
}

impl Door {
    /// HTTPS.
    pub(crate) fn new(port: u16, identity: Option<Identity>) -> Self {
        Self {
            port,
            tls: Some(connector(identity.as_ref(), &[])),
        }
    }

    /// Plain HTTP.
    pub(crate) fn plain(port: u16) -> Self {
        Self { port, tls: None }
    }

    /// One request on a connection of its own.
    pub(crate) async fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(String, String)],
        body: &[u8],
    ) -> Answer {
        self.try_ask(method, path, headers, body).await.unwrap()
    }

    /// The same where the connection may fail.
    pub(crate) async fn try_ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(String, String)],
        body: &[u8],
    ) -> io::Result<Answer> {
        let work = async {
            let socket = TcpStream::connect(("127.0.0.1", self.port)).await?;
            match &self.tls {
                None => exchange(socket, method, path, headers, body).await,
                Some(tls) => {
                    let name = ServerName::try_from("localhost").unwrap();
                    let socket = tls.connect(name, socket).await?;
                    exchange(socket, method, path, headers, body).await
                }
            }
        };
        timeout(PATIENCE, work)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// Joins a channel with this block.
    pub(crate) async fn join(&self, block: &[u8]) -> Answer {
        let (header, body) = form(&[("config-block", Some("join.block"), block)]);
        self.ask("POST", CHANNELS, &[header], &body).await
    }
}

/// A form with these parts (name, file name, content), and the header that belongs to it.
pub(crate) fn form(parts: &[(&str, Option<&str>, &[u8])]) -> ((String, String), Vec<u8>) {
    let mut body = Vec::new();
    for (name, file, content) in parts {
        let file = file.map_or_else(String::new, |file| format!("; filename=\"{file}\""));
        body.extend_from_slice(
            format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n")
                .as_bytes(),
        );
        body.extend_from_slice(b"Content-Type: application/octet-stream\r\n\r\n");
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    let header = (
        "Content-Type".to_owned(),
        format!("multipart/form-data; boundary={BOUNDARY}"),
    );
    (header, body)
}

async fn exchange(
    mut socket: impl AsyncRead + AsyncWrite + Unpin,
    method: &str,
    path: &str,
    headers: &[(String, String)],
    body: &[u8],
) -> io::Result<Answer> {
    let mut request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    socket.write_all(request.as_bytes()).await?;
    // Who answers before it has read everything may close the connection under us; the answer counts.
    let _ = socket.write_all(body).await;
    let _ = socket.flush().await;
    let mut received = Vec::new();
    let ended = socket.read_to_end(&mut received).await;
    read(&received).ok_or_else(|| ended.err().unwrap_or(io::ErrorKind::UnexpectedEof.into()))
}

fn read(received: &[u8]) -> Option<Answer> {
    let text = String::from_utf8_lossy(received);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let chunked = headers
        .get("transfer-encoding")
        .is_some_and(|value| value == "chunked");
    let body = if chunked {
        unchunk(body)?
    } else {
        body.to_owned()
    };
    Some(Answer {
        status,
        headers,
        body,
    })
}

fn unchunk(mut body: &str) -> Option<String> {
    let mut whole = String::new();
    loop {
        let (length, rest) = body.split_once("\r\n")?;
        let length = usize::from_str_radix(length.trim(), 16).ok()?;
        if length == 0 {
            return Some(whole);
        }
        whole.push_str(rest.get(..length)?);
        body = rest.get(length..)?.strip_prefix("\r\n")?;
    }
}
