//! The one connection of a client, and the task that keeps it.
//!
//! The task goes around the addresses: TCP, TLS, HTTP/2, login. When a login succeeds it publishes
//! the connection and drives it until it ends; HTTP/2 pings end a connection whose server is
//! silent. Then it starts again, beginning with the next address. Cancelling the task closes the
//! connection; calls on it fail as lost.

use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use quorate_identity::X500Name;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::codegen::http::header::{AUTHORIZATION, HeaderValue};
use tonic::codegen::http::{Request, Response, Uri};
use tonic::codegen::{Service, StdError};

use super::{Event, Options, OptionsError};
use crate::error::RpcError;
use crate::wire::proto::{self, node_rpc_client::NodeRpcClient};
use crate::{API_VERSION, MAX_MESSAGE_BYTES};

/// A connection that did not last this long counts as a failure, so that a server that accepts
/// and drops is not asked in a tight loop.
const STABLE_AFTER: Duration = Duration::from_secs(1);
/// Pause before another login after the node has refused the credentials: every attempt counts
/// against the user.
const REFUSED_PAUSE: Duration = Duration::from_secs(15);
/// HTTP/2 windows: a full page of states must not wait for the round trips of small windows.
const WINDOW_BYTES: u32 = 2 * 1024 * 1024;

/// The generated client on a connection of ours.
pub(super) type Stub = NodeRpcClient<Connection>;

/// How the connection stands.
#[derive(Clone)]
pub(super) enum Link {
    /// There is none; the task is looking for one.
    Down {
        /// The last failure.
        reason: String,
    },
    /// Calls can be made.
    Up {
        stub: Stub,
        address: String,
        legal_name: X500Name,
    },
    /// The node refuses this client. The task asks again from time to time.
    Refused(RpcError),
}

/// Requests over the connection, with the credentials.
#[derive(Clone)]
pub(super) struct Connection {
    requests: http2::SendRequest<tonic::body::Body>,
    authorization: HeaderValue,
}

impl Service<Request<tonic::body::Body>> for Connection {
    type Response = Response<hyper::body::Incoming>;
    type Error = StdError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, StdError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        self.requests.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<tonic::body::Body>) -> Self::Future {
        let header = self.authorization.clone();
        request.headers_mut().insert(AUTHORIZATION, header);
        let answer = self.requests.send_request(request);
        Box::pin(async move { answer.await.map_err(Into::into) })
    }
}

/// An address in its two parts; an IPv6 host stands in brackets.
pub(super) fn host_and_port(address: &str) -> Result<(&str, u16), OptionsError> {
    let refused = || OptionsError::Address(address.chars().take(300).collect());
    let (host, port) = address.rsplit_once(':').ok_or_else(refused)?;
    let port = port.parse().map_err(|_| refused())?;
    let bare = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').ok_or_else(refused)?,
        None => host,
    };
    let colon_outside_brackets = bare.len() == host.len() && host.contains(':');
    let strange = |c: char| c.is_whitespace() || c.is_control() || "/@[]".contains(c);
    if bare.is_empty() || colon_outside_brackets || bare.contains(strange) {
        return Err(refused());
    }
    Ok((bare, port))
}

/// An address with everything made ready that can be wrong about it.
struct Target {
    address: String,
    host: String,
    port: u16,
    origin: Uri,
    server_name: Option<ServerName<'static>>,
}

impl Target {
    fn new(address: &str, options: &Options) -> Result<Self, OptionsError> {
        let (host, port) = host_and_port(address)?;
        let server_name = match &options.tls {
            None => None,
            Some(tls) => {
                let name = tls.server_name.as_deref().unwrap_or(host);
                let name = ServerName::try_from(name.to_owned())
                    .map_err(|_| OptionsError::ServerName(name.to_owned()))?;
                Some(name)
            }
        };
        let scheme = if server_name.is_some() {
            "https"
        } else {
            "http"
        };
        let origin = format!("{scheme}://{address}")
            .parse()
            .map_err(|_| OptionsError::Address(address.to_owned()))?;
        Ok(Self {
            address: address.to_owned(),
            host: host.to_owned(),
            port,
            origin,
            server_name,
        })
    }
}

/// Why there is no connection to one address.
enum Obstacle {
    /// It may be there later, or elsewhere.
    Passing(String),
    /// The node does not accept this client.
    Refused(RpcError),
}

/// Starts the task. It ends when it is aborted.
pub(super) fn keep(
    options: Arc<Options>,
    events: broadcast::Sender<Event>,
    move_on: Arc<Notify>,
) -> Result<(JoinHandle<()>, watch::Receiver<Link>), OptionsError> {
    let targets = options
        .addresses
        .iter()
        .map(|address| Target::new(address, &options))
        .collect::<Result<Vec<_>, _>>()?;
    let credentials =
        zeroize::Zeroizing::new(format!("{}:{}", options.user, options.password.reveal()));
    let mut authorization = HeaderValue::from_str(&format!(
        "Basic {}",
        STANDARD.encode(credentials.as_bytes())
    ))
    .expect("base64 is ASCII");
    authorization.set_sensitive(true);
    let (publish, link) = watch::channel(Link::Down {
        reason: "not connected yet".to_owned(),
    });
    let keeper = Keeper {
        options,
        targets,
        authorization,
        publish,
        events,
        move_on,
    };
    Ok((tokio::spawn(keeper.run()), link))
}

struct Keeper {
    options: Arc<Options>,
    targets: Vec<Target>,
    authorization: HeaderValue,
    publish: watch::Sender<Link>,
    events: broadcast::Sender<Event>,
    move_on: Arc<Notify>,
}

impl Keeper {
    async fn run(self) {
        let mut failures = 0_usize;
        for turn in 0_usize.. {
            let target = &self.targets[turn % self.targets.len()];
            let began = Instant::now();
            let mut pause = Duration::ZERO;
            match self.serve(target).await {
                Obstacle::Passing(reason) => {
                    tracing::debug!(address = %target.address, %reason, "no RPC connection");
                    let reason = format!("{}: {reason}", target.address);
                    // A refusal stays known until an address answers otherwise.
                    self.publish.send_if_modified(|link| {
                        let down = !matches!(link, Link::Refused(_));
                        if down {
                            *link = Link::Down { reason };
                        }
                        down
                    });
                }
                Obstacle::Refused(error) => {
                    tracing::warn!(address = %target.address, %error, "the node refuses this client");
                    self.publish.send_replace(Link::Refused(error));
                    pause = REFUSED_PAUSE;
                }
            }
            if began.elapsed() >= STABLE_AFTER {
                failures = 0;
            } else {
                failures += 1;
            }
            if failures > 0 && failures.is_multiple_of(self.targets.len()) {
                let rounds = failures / self.targets.len();
                pause = pause.max(self.backoff(rounds));
            }
            sleep(jittered(pause)).await;
        }
    }

    fn backoff(&self, rounds: usize) -> Duration {
        let doublings = u32::try_from(rounds.saturating_sub(1)).unwrap_or(u32::MAX);
        let factor = 2_u32.saturating_pow(doublings.min(16));
        let Options {
            backoff_min,
            backoff_max,
            ..
        } = *self.options;
        backoff_min.saturating_mul(factor).min(backoff_max)
    }

    /// Connects to one address and stays as long as the connection lasts.
    async fn serve(&self, target: &Target) -> Obstacle {
        let by = Instant::now() + self.options.connect_timeout;
        let stream = match timeout_at(by, self.open(target)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(reason)) => return Obstacle::Passing(reason),
            Err(_) => return Obstacle::Passing("no connection in time".to_owned()),
        };
        let handshake = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(self.options.keep_alive_interval)
            .keep_alive_timeout(self.options.keep_alive_timeout)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .handshake(TokioIo::new(stream));
        let (requests, driver) = match timeout_at(by, handshake).await {
            Ok(Ok(pair)) => pair,
            Ok(Err(error)) => return Obstacle::Passing(chain(&error)),
            Err(_) => return Obstacle::Passing("no HTTP/2 in time".to_owned()),
        };
        let mut driver = std::pin::pin!(driver);
        let connection = Connection {
            requests,
            authorization: self.authorization.clone(),
        };
        let stub = NodeRpcClient::with_origin(connection, target.origin.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);

        let login = timeout_at(by, log_in(stub.clone()));
        let legal_name = tokio::select! {
            ended = &mut driver => return Obstacle::Passing(reason_of(ended)),
            answer = login => match answer {
                Ok(Ok(legal_name)) => legal_name,
                Ok(Err(obstacle)) => return obstacle,
                Err(_) => return Obstacle::Passing("no answer to the login in time".to_owned()),
            },
        };

        let address = target.address.clone();
        // Nobody listening is fine, here and below.
        let _ = self.events.send(Event::Connected {
            address: address.clone(),
            legal_name: legal_name.clone(),
        });
        self.publish.send_replace(Link::Up {
            stub,
            address: address.clone(),
            legal_name,
        });
        let reason = tokio::select! {
            ended = driver => reason_of(ended),
            () = self.move_on.notified() => "this instance does not serve now".to_owned(),
        };
        self.publish.send_replace(Link::Down {
            reason: format!("{address}: {reason}"),
        });
        let _ = self.events.send(Event::Disconnected {
            address,
            reason: reason.clone(),
        });
        Obstacle::Passing(reason)
    }

    async fn open(&self, target: &Target) -> Result<Box<dyn Wire>, String> {
        let tcp = TcpStream::connect((target.host.as_str(), target.port))
            .await
            .map_err(|error| error.to_string())?;
        tcp.set_nodelay(true).map_err(|error| error.to_string())?;
        let (Some(name), Some(tls)) = (&target.server_name, &self.options.tls) else {
            return Ok(Box::new(tcp));
        };
        let mut config = (*tls.config).clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(name.clone(), tcp)
            .await
            .map_err(|error| format!("TLS: {error}"))?;
        Ok(Box::new(stream))
    }
}

/// A byte stream, with TLS or without.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

async fn log_in(mut stub: Stub) -> Result<X500Name, Obstacle> {
    let request = proto::HelloRequest {
        api_version: API_VERSION,
    };
    let reply = match stub.hello(request).await {
        Ok(reply) => reply.into_inner(),
        Err(status) if RpcError::is_ours(&status) => {
            let error = RpcError::from_status(&status);
            return Err(if error.retryable {
                Obstacle::Passing(error.to_string())
            } else {
                Obstacle::Refused(error)
            });
        }
        Err(status) => return Err(Obstacle::Passing(chain(&status))),
    };
    if reply.api_version != API_VERSION {
        return Err(Obstacle::Passing(format!(
            "the node speaks version {} of the API, this client version {API_VERSION}",
            reply.api_version
        )));
    }
    reply
        .legal_name
        .parse()
        .map_err(|error| Obstacle::Passing(format!("the node's legal name: {error}")))
}

fn reason_of(ended: Result<(), hyper::Error>) -> String {
    match ended {
        Ok(()) => "the node closed the connection".to_owned(),
        Err(error) if error.is_timeout() => "the node is silent".to_owned(),
        Err(error) => chain(&error),
    }
}

/// An error with its causes, for a place that keeps only text.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// Between half of a pause and all of it, so that many clients do not come back in step.
pub(super) fn jittered(pause: Duration) -> Duration {
    // The standard library seeds each hasher at random: enough to spread clients apart.
    let random = RandomState::new().build_hasher().finish() % 1000;
    let share = 0.5 + f64::from(u32::try_from(random).unwrap_or(0)) / 2000.0;
    pause.mul_f64(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_host_and_port() {
        assert_eq!(host_and_port("node-a:10003"), Ok(("node-a", 10003)));
        assert_eq!(host_and_port("127.0.0.1:1"), Ok(("127.0.0.1", 1)));
        assert_eq!(host_and_port("[::1]:10003"), Ok(("::1", 10003)));
        for bad in [
            "",
            ":",
            "node",
            "node:",
            ":1",
            "node:70000",
            "::1:1",
            "[::1:1",
            "no de:1",
            "a/b:1",
            "u@h:1",
            "[]:1",
        ] {
            assert!(host_and_port(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn jitter_keeps_between_half_and_all() {
        let pause = Duration::from_secs(10);
        for _ in 0..1000 {
            let drawn = jittered(pause);
            assert!(drawn >= pause / 2 && drawn <= pause, "{drawn:?}");
        }
        assert_eq!(jittered(Duration::ZERO), Duration::ZERO);
    }
}
