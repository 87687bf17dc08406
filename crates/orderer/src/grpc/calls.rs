//! What is counted about every streaming call, under Fabric's names.

use std::time::Instant;

use quorate_runtime::metrics::{Histogram, IntCounter, Metrics, families};
use tonic::Code;

/// The buckets that Fabric's metrics have unless they say otherwise, in seconds.
const BUCKETS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// The metrics of one method.
#[derive(Clone)]
pub struct StreamMetrics {
    started: IntCounter,
    completed: families::IntCounterVec,
    duration: families::HistogramVec,
    received: IntCounter,
    sent: IntCounter,
    labels: [&'static str; 2],
}

impl StreamMetrics {
    /// The metrics of `method` of `service`, with the service's name as Fabric labels it: `orderer_AtomicBroadcast`.
    pub fn new(metrics: &Metrics, service: &'static str, method: &'static str) -> Self {
        const OF_METHOD: &[&str] = &["service", "method"];
        const OF_RESULT: &[&str] = &["service", "method", "code"];
        let labels = [service, method];
        let counter = |name, help| {
            metrics
                .counter_family(name, help, OF_METHOD)
                .with_label_values(&labels)
        };
        Self {
            started: counter(
                "grpc_server_stream_requests_received",
                "The number of stream requests received.",
            ),
            completed: metrics.counter_family(
                "grpc_server_stream_requests_completed",
                "The number of stream requests completed.",
                OF_RESULT,
            ),
            duration: metrics.histogram_family(
                "grpc_server_stream_request_duration",
                "The time to complete a stream request.",
                BUCKETS,
                OF_RESULT,
            ),
            received: counter(
                "grpc_server_stream_messages_received",
                "The number of stream messages received.",
            ),
            sent: counter(
                "grpc_server_stream_messages_sent",
                "The number of stream messages sent.",
            ),
            labels,
        }
    }

    /// A call begins.
    pub fn begin(&self) -> Call {
        self.started.inc();
        Call {
            metrics: self.clone(),
            begun: Instant::now(),
            ended: false,
        }
    }
}

/// One call. If it is dropped before it ended, its client has gone: it counts as cancelled.
pub struct Call {
    metrics: StreamMetrics,
    begun: Instant,
    ended: bool,
}

impl Call {
    /// The counter of messages that clients sent.
    pub fn received(&self) -> &IntCounter {
        &self.metrics.received
    }

    /// A message goes to the client.
    pub fn sent(&self) {
        self.metrics.sent.inc();
    }

    /// The call ends with this code. Only the first end counts.
    pub fn end(&mut self, code: Code) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let [service, method] = self.metrics.labels;
        let labels = [service, method, name(code)];
        self.metrics.completed.with_label_values(&labels).inc();
        let duration: Histogram = self.metrics.duration.with_label_values(&labels);
        duration.observe(self.begun.elapsed().as_secs_f64());
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// Go's name of a code.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
