//! The journeys of messages, as spans: from the commit that queued a message until the peer has accepted it, and from its
//! arrival until it is in the inbox. Only messages that carry a trace are looked at, and none when nobody draws traces.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use quorate_flow::{Envelope, SessionMessage, TraceContext};
use quorate_identity::X500Name;
use quorate_runtime::traces::{Span, SpanKind};
use quorate_runtime::{Clock, Traces};
use quorate_storage::Queued;

/// Messages on their way that are remembered; of others there is no span.
const MOST: usize = 10_000;

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Journeys {
    traces: Traces,
    clock: Clock,
    /// By recipient and number.
    under_way: Arc<Mutex<BTreeMap<(X500Name, u64), Span>>>,
}

impl Journeys {
    /// Those that `traces` takes.
    pub(crate) fn new(traces: Traces, clock: Clock) -> Self {
        Self {
            traces,
            clock,
            under_way: Arc::default(),
        }
    }

    /// Messages that are durable in their queues.
    pub(crate) fn leave(&self, queued: &[Queued]) {
        if !self.traces.is_on() {
            return;
        }
        for message in queued {
            let Ok(envelope) = Envelope::decode(&message.envelope) else {
                continue;
            };
            let Some(trace) = envelope.trace else {
                continue;
            };
            let span = self.span(&envelope, trace, SpanKind::Producer);
            let mut under_way = self
                .under_way
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if under_way.len() < MOST {
                under_way.insert((message.peer.clone(), message.sequence), span);
            }
        }
    }

    /// A peer has accepted what was queued for it up to this number.
    pub(crate) fn arrived(&self, peer: &X500Name, up_to: u64) {
        if !self.traces.is_on() {
            return;
        }
        let gone: Vec<Span> = {
            let mut under_way = self
                .under_way
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let keys = under_way.range((peer.clone(), 0)..=(peer.clone(), up_to));
            let keys: Vec<_> = keys.map(|(key, _)| key.clone()).collect();
            keys.iter()
                .filter_map(|key| under_way.remove(key))
                .collect()
        };
        self.taken(gone);
    }

    /// Spans of messages that have just come.
    pub(crate) fn arrivals(&self, envelopes: &[Envelope]) -> Vec<Span> {
        if !self.traces.is_on() {
            return Vec::new();
        }
        let traced = envelopes
            .iter()
            .filter_map(|envelope| Some((envelope, envelope.trace?)));
        traced
            .map(|(envelope, trace)| self.span(envelope, trace, SpanKind::Consumer))
            .collect()
    }

    /// They are over.
    pub(crate) fn taken(&self, spans: Vec<Span>) {
        for mut span in spans {
            span.times.1 = self.clock.now_micros();
            self.traces.record(span);
        }
    }

    fn span(&self, envelope: &Envelope, trace: TraceContext, kind: SpanKind) -> Span {
        let what = match &envelope.body {
            SessionMessage::Initiate { flow, .. } => flow.as_str(),
            SessionMessage::Confirm => "confirm",
            SessionMessage::Reject { .. } => "reject",
            SessionMessage::Data { .. } => "data",
            SessionMessage::End => "end",
            SessionMessage::Error { .. } => "error",
        };
        let (verb, half) = match kind {
            SpanKind::Producer => ("send", 0),
            _ => ("receive", 8),
        };
        // Both sides know the message by the same hash, and each takes its own half of it.
        let mut span = [0; 8];
        span.copy_from_slice(&envelope.dedup.as_bytes()[half..half + 8]);
        Span {
            trace: trace.trace,
            span,
            parent: Some(trace.span),
            name: format!("{verb} {what}"),
            kind,
            times: (self.clock.now_micros(), 0),
            attributes: vec![
                ("messaging.system", "amqp".to_owned()),
                (
                    "messaging.message.conversation_id",
                    envelope.session.to_string(),
                ),
                ("quorate.sender", envelope.sender.to_string()),
                ("quorate.recipient", envelope.recipient.to_string()),
            ],
            error: None,
        }
    }
}
