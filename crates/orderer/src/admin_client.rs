//! The client's side of the channel participation API: what `osnadmin` does, for our own commands.
//!
//! It works against Fabric's orderers as well as ours, and knows HTTP only as far as that API needs it: one request on one
//! connection, a small JSON answer. What the answers mean to a person is the caller's business. Start at [`AdminClient`].

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use bytes::Bytes;
use futures::future::{Either, select};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use quorate_identity::mutual_tls::ClientTls;
use rustls_pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::replication::Progress;
use crate::status::Overview;
use crate::store::Pruned;

/// Where the API lives.
const CHANNELS: &str = "/participation/v1/channels";

/// Largest answer that is read, in bytes: thousands of channels.
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// Separates the parts of a join request. A block would have to hold this text on a line of its own to be cut short, and the
/// orderer would then refuse what is left of it.
const BOUNDARY: &str = "quorate-participation-boundary-5f1c3a9e7b2d";

/// Why there is no answer, or not the one that was hoped for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// The address is not `host:port`.
    #[error("`{0}` is not an address of the form host:port")]
    Address(String),
    /// Nobody answers there.
    #[error("the orderer's admin endpoint {address} cannot be reached")]
    Unreachable {
        /// Where.
        address: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// It was too slow.
    #[error("the orderer's admin endpoint {address} has not answered within {patience:?}")]
    Timeout {
        /// Where.
        address: String,
        /// How long that was.
        patience: Duration,
    },
    /// What answers there does not speak HTTP as it should.
    #[error("the orderer's admin endpoint {address} broke off: is that port the admin endpoint's?")]
    Http {
        /// Where.
        address: String,
        /// What went wrong.
        #[source]
        source: hyper::Error,
    },
    /// The answer is not one of this API.
    #[error("the orderer's admin endpoint {address} answered with status {status}: {body}")]
    Unexpected {
        /// Where.
        address: String,
        /// The HTTP status.
        status: u16,
        /// The beginning of what it said.
        body: String,
    },
    /// The orderer refused.
    #[error("the orderer refused, with status {status}: {reason}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// In its own words.
        reason: String,
    },
}

/// A channel in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedChannel {
    /// Its name.
    pub name: String,
    /// Where to ask for more.
    pub url: String,
}

/// All channels of an orderer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    /// The legacy system channel.
    pub system_channel: Option<ListedChannel>,
    /// The others; absent when there are none.
    pub channels: Option<Vec<ListedChannel>>,
}

/// What an orderer says of one channel. The words are Fabric's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Described {
    /// Its name.
    pub name: String,
    /// Where to ask for it.
    pub url: String,
    /// `consenter`, `follower`, `config-tracker` or `other`.
    pub consensus_relation: String,
    /// `active`, `onboarding`, `inactive` or `failed`.
    pub status: String,
    /// Number of blocks that the orderer has.
    pub height: u64,
    /// How far it is in fetching blocks, while it is behind; Fabric's orderers do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication: Option<Progress>,
}

#[derive(Deserialize)]
struct Complaint {
    error: String,
}

/// Talks to the admin endpoint of one orderer.
#[derive(Clone)]
pub struct AdminClient {
    address: String,
    host: String,
    tls: Option<ClientTls>,
    patience: Duration,
}

impl AdminClient {
    /// A client of the endpoint at `address` (`host:port`). Each request may take `patience`.
    ///
    /// # Errors
    /// [`AdminError::Address`].
    pub fn new(
        address: impl Into<String>,
        tls: Option<ClientTls>,
        patience: Duration,
    ) -> Result<Self, AdminError> {
        let address = address.into();
        let host = match address.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                host.trim_matches(['[', ']']).to_owned()
            }
            _ => return Err(AdminError::Address(address)),
        };
        Ok(Self {
            address,
            host,
            tls,
            patience,
        })
    }

    /// The channels of the orderer.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn list(&self) -> Result<Listed, AdminError> {
        let answer = self.exchange(Method::GET, CHANNELS, None).await?;
        self.read(&answer)
    }

    /// One channel.
    ///
    /// # Errors
    /// [`AdminError`]; an unknown channel is refused with status 404.
    pub async fn info(&self, channel: &str) -> Result<Described, AdminError> {
        let path = path_of(channel) + "?detailed";
        let answer = self.exchange(Method::GET, &path, None).await?;
        self.read(&answer)
    }

    /// Makes the orderer join the channel of a configuration block, which is its encoded form.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn join(&self, block: &[u8]) -> Result<Described, AdminError> {
        let answer = self
            .exchange(Method::POST, CHANNELS, Some(form(block)))
            .await?;
        self.read(&answer)
    }

    /// Makes the orderer leave a channel and delete what it has of it.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn remove(&self, channel: &str) -> Result<(), AdminError> {
        let answer = self
            .exchange(Method::DELETE, &path_of(channel), None)
            .await?;
        self.check(&answer)
    }

    /// What one of our orderers says of itself at its *operations* endpoint.
    ///
    /// # Errors
    /// [`AdminError`]; Fabric's orderers do not know this.
    pub async fn overview(&self) -> Result<Overview, AdminError> {
        let answer = self
            .exchange(Method::GET, "/healthz/detailed", None)
            .await?;
        self.read(&answer)
    }

    /// Makes one of our orderers remove the block files of a channel that hold nothing but blocks below `below`.
    ///
    /// # Errors
    /// [`AdminError`]; Fabric's orderers do not know this.
    pub async fn prune(&self, channel: &str, below: u64) -> Result<Pruned, AdminError> {
        let channel = escaped(channel);
        let path = format!("/quorate/v1/channels/{channel}/prune?below={below}");
        let answer = self.exchange(Method::POST, &path, None).await?;
        self.read(&answer)
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        form: Option<Bytes>,
    ) -> Result<Answer, AdminError> {
        let work = async {
            let unreachable = |source| AdminError::Unreachable {
                address: self.address.clone(),
                source,
            };
            let stream = TcpStream::connect(&self.address)
                .await
                .map_err(unreachable)?;
            let _ = stream.set_nodelay(true);
            let request = self.request(method, path, form)?;
            match &self.tls {
                None => self.send(stream, request).await,
                Some(tls) => {
                    let (config, refusal) = tls.begin(&[]);
                    let name = ServerName::try_from(self.host.clone())
                        .map_err(|_| AdminError::Address(self.address.clone()))?;
                    let stream = TlsConnector::from(Arc::clone(&config))
                        .connect(name, stream)
                        .await
                        .map_err(|error| match refusal.reason() {
                            Some(reason) => unreachable(io::Error::other(reason)),
                            None => unreachable(error),
                        })?;
                    self.send(stream, request).await
                }
            }
        };
        timeout(self.patience, work).await.unwrap_or_else(|_| {
            Err(AdminError::Timeout {
                address: self.address.clone(),
                patience: self.patience,
            })
        })
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        form: Option<Bytes>,
    ) -> Result<Request<Body>, AdminError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.address);
        if form.is_some() {
            let kind = format!("multipart/form-data; boundary={BOUNDARY}");
            request = request.header(CONTENT_TYPE, kind);
        }
        request
            .body(Body::from(form.unwrap_or_default()))
            .map_err(|_| AdminError::Address(self.address.clone()))
    }

    async fn send<S>(&self, stream: S, request: Request<Body>) -> Result<Answer, AdminError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let broken = |source| AdminError::Http {
            address: self.address.clone(),
            source,
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let exchange = async move {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = to_bytes(Body::new(response.into_body()), MAX_ANSWER_BYTES).await;
            Ok::<_, hyper::Error>((status, body))
        };
        let (status, body) = with_connection(pin!(exchange), pin!(connection))
            .await
            .map_err(broken)?;
        let body = body.map_err(|_| AdminError::Unexpected {
            address: self.address.clone(),
            status: status.as_u16(),
            body: format!("more than {MAX_ANSWER_BYTES} bytes, or a broken connection"),
        })?;
        Ok(Answer { status, body })
    }

    fn check(&self, answer: &Answer) -> Result<(), AdminError> {
        if answer.status.is_success() {
            return Ok(());
        }
        match serde_json::from_slice::<Complaint>(&answer.body) {
            Ok(complaint) => Err(AdminError::Refused {
                status: answer.status.as_u16(),
                reason: complaint.error,
            }),
            Err(_) => Err(self.unexpected(answer)),
        }
    }

    fn read<T: for<'a> Deserialize<'a>>(&self, answer: &Answer) -> Result<T, AdminError> {
        self.check(answer)?;
        serde_json::from_slice(&answer.body).map_err(|_| self.unexpected(answer))
    }

    fn unexpected(&self, answer: &Answer) -> AdminError {
        let text = String::from_utf8_lossy(&answer.body);
        AdminError::Unexpected {
            address: self.address.clone(),
            status: answer.status.as_u16(),
            body: text.chars().take(200).collect(),
        }
    }
}

struct Answer {
    status: StatusCode,
    body: Bytes,
}

/// Awaits `exchange` while `connection` moves its bytes. The connection may end first, with or without an error.
async fn with_connection<T>(
    exchange: impl Future<Output = Result<T, hyper::Error>> + Unpin,
    connection: impl Future<Output = Result<(), hyper::Error>> + Unpin,
) -> Result<T, hyper::Error> {
    match select(exchange, connection).await {
        Either::Left((result, _)) => result,
        Either::Right((_, exchange)) => exchange.await,
    }
}

/// The path of one channel.
fn path_of(channel: &str) -> String {
    format!("{CHANNELS}/{}", escaped(channel))
}

/// Names have letters, digits, dots and dashes only; what else somebody types is escaped.
fn escaped(channel: &str) -> String {
    let mut path = String::new();
    for byte in channel.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
    path
}

fn form(block: &[u8]) -> Bytes {
    let head = format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"config-block\"; filename=\"config.block\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    );
    let tail = format!("\r\n--{BOUNDARY}--\r\n");
    [head.as_bytes(), block, tail.as_bytes()].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_stays_one_piece_of_the_path() {
        assert_eq!(path_of("a.b-c"), "/participation/v1/channels/a.b-c");
        assert_eq!(
            path_of("../logspec?x"),
            "/participation/v1/channels/..%2Flogspec%3Fx"
        );
    }

    #[test]
    fn an_address_is_a_host_and_a_port() {
        let second = Duration::from_secs(1);
        assert!(AdminClient::new("localhost:7053", None, second).is_ok());
        assert!(AdminClient::new("[::1]:7053", None, second).is_ok());
        for wrong in ["localhost", ":7053", "localhost:port"] {
            assert!(AdminClient::new(wrong, None, second).is_err(), "{wrong}");
        }
    }
}
