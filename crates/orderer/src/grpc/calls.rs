//! What is counted about every streaming call, under Fabric's names.

use std::time::Instant;

use quorate_runtime::metrics::IntCounter;
use tonic::Code;

use crate::metrics::Grpc;

/// The metrics of one method.
#[derive(Clone)]
pub struct StreamMetrics {
    metrics: Grpc,
    received: IntCounter,
    sent: IntCounter,
    service: &'static str,
    method: &'static str,
}

impl StreamMetrics {
    /// The metrics of `method` of `service`, with the service's name as Fabric labels it: `orderer_AtomicBroadcast`.
    pub fn new(metrics: &Grpc, service: &'static str, method: &'static str) -> Self {
        Self {
            received: metrics.stream_messages_received.with([service, method]),
            sent: metrics.stream_messages_sent.with([service, method]),
            metrics: metrics.clone(),
            service,
            method,
        }
    }

    /// A call begins.
    pub fn begin(&self) -> Call {
        let started = &self.metrics.stream_requests_received;
        started.with([self.service, self.method]).inc();
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
        let StreamMetrics {
            metrics,
            service,
            method,
            ..
        } = &self.metrics;
        let labels = [*service, *method, name(code)];
        metrics.stream_requests_completed.with(labels).inc();
        let duration = metrics.stream_request_duration.with(labels);
        duration.observe(self.begun.elapsed());
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
