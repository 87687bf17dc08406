//! Spans of OpenTelemetry, exported over OTLP (HTTP with protobuf).
//!
//! Who measures something makes a [`Span`] when it is over and gives it to [`Traces`], which costs a place in a queue and
//! never waits: what does not fit is dropped and counted. A task sends what has come together. A collector that is away
//! costs spans and nothing else. It is reached by plain HTTP; a collector on the same machine, as is usual, takes care of
//! encryption.
//!
//! The few messages of OTLP that are needed are written by hand (`traces.proto` of OpenTelemetry, version 1): the SDK and its
//! exporters would bring clients and runtimes of their own for that.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use prometheus::IntCounter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::{Metrics, Shutdown, Tasks};

/// Spans that wait to be sent.
const QUEUE: usize = 8_192;

/// Spans in one request.
const BATCH: usize = 512;

/// How long spans are gathered before they are sent.
const GATHER: Duration = Duration::from_millis(500);

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long it may take when the process is asked to stop.
const FAREWELL: Duration = Duration::from_secs(1);

/// Attempts at one request, and the pause between them.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);

/// Most bytes of an answer's first line that are read.
const STATUS_LINE: u64 = 256;

/// Longest value of an attribute, in characters.
const MAX_ATTRIBUTE: usize = 256;

/// Where spans go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    port: u16,
    path: String,
}

/// An endpoint cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not an address of a collector: {reason}; write http://127.0.0.1:4318")]
pub struct EndpointError {
    text: String,
    reason: &'static str,
}

/// Where collectors expect spans, below their address.
const TRACES_PATH: &str = "/v1/traces";

/// The port of OTLP over HTTP.
const OTLP_HTTP_PORT: u16 = 4318;

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let wrong = |reason| EndpointError {
            text: text.chars().take(100).collect(),
            reason,
        };
        let Some(rest) = text.strip_prefix("http://") else {
            return Err(wrong(
                "only http is spoken, to a collector nearby, which encrypts",
            ));
        };
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, format!("/{path}")),
            None => (rest, String::new()),
        };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                let port = port.parse().map_err(|_| wrong("its port is no port"))?;
                (host, port)
            }
            _ => (authority, OTLP_HTTP_PORT),
        };
        let odd = |c: char| c.is_ascii_whitespace() || c.is_control();
        if host.is_empty() || host.contains(odd) || path.contains(odd) {
            return Err(wrong("it names no host"));
        }
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let path = match path.as_str() {
            "" | "/" => TRACES_PATH.to_owned(),
            _ => path,
        };
        Ok(Self {
            host: host.to_owned(),
            port,
            path,
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}:{}{}", self.host, self.port, self.path)
    }
}

/// The side of a conversation that a span tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// Work within the process.
    Internal = 1,
    /// The answer to a call.
    Server = 2,
    /// A message on its way out.
    Producer = 4,
    /// A message that came in.
    Consumer = 5,
}

/// Something that took its time, and is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The whole that it belongs to.
    pub trace: [u8; 16],
    /// Its own id.
    pub span: [u8; 8],
    /// What caused it.
    pub parent: Option<[u8; 8]>,
    /// What it is called.
    pub name: String,
    /// Its side.
    pub kind: SpanKind,
    /// When it began and ended, in microseconds since 1970.
    pub times: (i64, i64),
    /// What else is known. No secrets.
    pub attributes: Vec<(&'static str, String)>,
    /// What went wrong, if it did.
    pub error: Option<String>,
}

/// Takes spans. Cheap to clone; off, it takes nothing.
#[derive(Clone)]
pub struct Traces(Option<Arrivals>);

#[derive(Clone)]
struct Arrivals {
    queue: mpsc::Sender<Span>,
    dropped: IntCounter,
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_on() { "on" } else { "off" })
    }
}

impl Traces {
    /// Nothing is traced.
    pub fn off() -> Self {
        Self(None)
    }

    /// Spans are sent to `endpoint` by a task in `tasks`, as those of `resource` (`service.name` and what else describes
    /// the process).
    pub fn start(
        endpoint: Endpoint,
        resource: Vec<(&'static str, String)>,
        metrics: &Metrics,
        tasks: &Tasks,
    ) -> Self {
        let dropped = metrics.counter(
            "quorate_traces_dropped_total",
            "Spans that were not sent: the collector was away or too slow.",
        );
        let sent = metrics.counter(
            "quorate_traces_sent_total",
            "Spans that the collector has taken.",
        );
        let (queue, spans) = mpsc::channel(QUEUE);
        let exporter = Exporter {
            endpoint,
            resource,
            spans,
            sent,
            dropped: dropped.clone(),
        };
        let shutdown = tasks.shutdown().clone();
        tasks.spawn("traces", exporter.run(shutdown));
        Self(Some(Arrivals { queue, dropped }))
    }

    /// Whether it is worth the while to make spans.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Takes a span, or drops it if too many wait.
    pub fn record(&self, span: Span) {
        if let Some(arrivals) = &self.0
            && arrivals.queue.try_send(span).is_err()
        {
            arrivals.dropped.inc();
        }
    }
}

struct Exporter {
    endpoint: Endpoint,
    resource: Vec<(&'static str, String)>,
    spans: mpsc::Receiver<Span>,
    sent: IntCounter,
    dropped: IntCounter,
}

impl Exporter {
    /// Sends until shutdown is requested; then once what is there.
    async fn run(mut self, shutdown: Shutdown) {
        let mut silent = false;
        loop {
            let mut batch = Vec::new();
            let stopping = tokio::select! {
                () = shutdown.requested() => true,
                taken = self.spans.recv_many(&mut batch, BATCH) => taken == 0,
            };
            if !stopping && batch.len() < BATCH {
                tokio::select! {
                    () = shutdown.requested() => {}
                    () = tokio::time::sleep(GATHER) => {}
                }
            }
            while batch.len() < BATCH
                && let Ok(span) = self.spans.try_recv()
            {
                batch.push(span);
            }
            if !batch.is_empty() {
                let outcome = self.send(&batch, &shutdown).await;
                match outcome {
                    Ok(()) => {
                        self.sent.inc_by(batch.len() as u64);
                        silent = false;
                    }
                    Err(error) => {
                        self.dropped.inc_by(batch.len() as u64);
                        // Once per outage: nothing but traces is lost.
                        if !std::mem::replace(&mut silent, true) {
                            tracing::warn!(collector = %self.endpoint, %error, "spans could not be sent and are dropped");
                        }
                    }
                }
            }
            if stopping {
                return;
            }
        }
    }

    async fn send(&self, batch: &[Span], shutdown: &Shutdown) -> io::Result<()> {
        let body = request(&self.resource, batch);
        let mut attempt = 1;
        loop {
            let farewell = async {
                shutdown.requested().await;
                tokio::time::sleep(FAREWELL).await;
            };
            let posted = tokio::select! {
                posted = tokio::time::timeout(PATIENCE, self.post(&body)) => posted,
                () = farewell => Ok(Err(io::ErrorKind::TimedOut.into())),
            };
            let error = match posted {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error,
                Err(_) => io::ErrorKind::TimedOut.into(),
            };
            // What the collector does not understand it does not understand the next time either.
            if error.kind() == io::ErrorKind::InvalidData
                || attempt == ATTEMPTS
                || shutdown.is_requested()
            {
                return Err(error);
            }
            attempt += 1;
            tokio::select! {
                () = shutdown.requested() => {}
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    /// One request on a connection of its own: there are two in a second at the most.
    async fn post(&self, body: &[u8]) -> io::Result<()> {
        let Endpoint { host, port, path } = &self.endpoint;
        let mut stream = TcpStream::connect((host.as_str(), *port)).await?;
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/x-protobuf\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body).await?;
        let mut line = Vec::new();
        let mut answer = stream.take(STATUS_LINE);
        while !line.contains(&b'\n') && answer.read_buf(&mut line).await? > 0 {}
        let line = String::from_utf8_lossy(&line);
        let status = line.split(' ').nth(1).unwrap_or_default();
        match status.as_bytes().first() {
            Some(b'2') => Ok(()),
            Some(b'5') => Err(io::Error::other(format!("it answers {status}"))),
            _ if status == "429" => Err(io::Error::other("it is busy")),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("it answers '{}'", line.lines().next().unwrap_or_default()),
            )),
        }
    }
}

/// Protobuf, as far as it is needed.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value as u8 & 0x7f) | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(&mut self, field: u64, value: u64) -> &mut Self {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    fn fixed(&mut self, field: u64, value: u64) -> &mut Self {
        self.varint(field << 3 | 1);
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn bytes(&mut self, field: u64, value: &[u8]) -> &mut Self {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    fn message(&mut self, field: u64, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(field, &inner.0)
    }

    /// A `KeyValue` whose value is text.
    fn attribute(&mut self, field: u64, key: &str, value: &str) -> &mut Self {
        let value: String = value.chars().take(MAX_ATTRIBUTE).collect();
        self.message(field, |pair| {
            pair.bytes(1, key.as_bytes());
            pair.message(2, |any| {
                any.bytes(1, value.as_bytes());
            });
        })
    }
}

/// The status code that says that something went wrong.
const STATUS_ERROR: u64 = 2;

/// `ExportTraceServiceRequest`.
fn request(resource: &[(&'static str, String)], spans: &[Span]) -> Vec<u8> {
    let mut request = Message::default();
    request.message(1, |of_resource| {
        of_resource.message(1, |described| {
            for (key, value) in resource {
                described.attribute(1, key, value);
            }
        });
        of_resource.message(2, |of_scope| {
            of_scope.message(1, |scope| {
                scope.bytes(1, b"quorate");
            });
            for span in spans {
                of_scope.message(2, |message| write_span(message, span));
            }
        });
    });
    request.0
}

fn write_span(message: &mut Message, span: &Span) {
    let nanos = |micros: i64| u64::try_from(micros).unwrap_or(0).saturating_mul(1_000);
    message.bytes(1, &span.trace).bytes(2, &span.span);
    if let Some(parent) = &span.parent {
        message.bytes(4, parent);
    }
    message
        .bytes(5, span.name.as_bytes())
        .number(6, span.kind as u64)
        .fixed(7, nanos(span.times.0))
        .fixed(8, nanos(span.times.1.max(span.times.0)));
    for (key, value) in &span.attributes {
        message.attribute(9, key, value);
    }
    if let Some(error) = &span.error {
        let error: String = error.chars().take(MAX_ATTRIBUTE).collect();
        message.message(15, |status| {
            status.bytes(2, error.as_bytes()).number(3, STATUS_ERROR);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_refused() {
        for (text, shown) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("http://collector", "http://collector:4318/v1/traces"),
            ("http://c:80/otlp/v1/traces", "http://c:80/otlp/v1/traces"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), shown);
        }
        for text in ["https://c", "c:4318", "http://", "http://c:x", "http://a b"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
