//! What consensus says in the log: operators' scripts look for these words.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use quorate_consensus::{Group, GroupId, LOG_TARGET, Log, Options};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

#[derive(Clone, Default)]
struct Ear(Arc<Mutex<String>>);

impl Subscriber for Ear {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == LOG_TARGET
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        struct Text(String, String);
        impl Visit for Text {
            fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    write!(self.0, "{value:?}").unwrap();
                } else {
                    write!(self.1, " {}={value:?}", field.name()).unwrap();
                }
            }
        }
        let mut text = Text(String::new(), String::new());
        event.record(&mut text);
        let mut heard = self.0.lock().unwrap();
        writeln!(heard, "{} {}{}", event.metadata().level(), text.0, text.1).unwrap();
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

fn drive(group: &mut Group, log: &Log) {
    while let Some(ready) = group.ready().unwrap() {
        if let Some(write) = ready.write {
            log.append(group.id(), write, Box::new(|result| result.unwrap()));
            group.written(ready.number);
        }
        for entry in ready.committed {
            if let quorate_consensus::CommittedKind::Membership { change, .. } = entry.kind {
                group.apply_membership(change);
            }
            group.applied(entry.index);
        }
    }
}

#[test]
fn a_leader_without_a_quorum_says_so_with_its_id_and_its_channel() {
    let ear = Ear::default();
    tracing::subscriber::with_default(ear.clone(), || {
        let log = Log::in_memory();
        let options = Options {
            id: 1,
            name: "testchannel".to_owned(),
            election_tick: 10,
            heartbeat_tick: 1,
            max_inflight: 5,
            max_size_per_message: 1024,
        };
        let mut group =
            Group::create(GroupId([1; 16]), options, &[1], Arc::new(log.clone())).unwrap();
        drive(&mut group, &log);
        group.campaign();
        drive(&mut group, &log);
        group
            .propose_membership(quorate_consensus::Membership::Add(2), Default::default())
            .unwrap();
        drive(&mut group, &log);
        for _ in 0..30 {
            group.tick();
            drive(&mut group, &log);
        }
    });
    let heard = ear.0.lock().unwrap();
    for expected in [
        "INFO 1 became leader at term 2 channel=\"testchannel\" node=1",
        "WARN 1 stepped down to follower since quorum is not active channel=\"testchannel\" node=1",
    ] {
        assert!(
            heard.lines().any(|line| line == expected),
            "{expected} is not in\n{heard}"
        );
    }
    assert!(!heard.contains("ERROR"), "{heard}");
}
