//! How a flow gets on: it runs until it waits, what it did is committed, and what it waited for
//! comes.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Poll, Waker};

use quorate_ledger::Timestamp;

use super::interface::Action;
use super::run::{After, Base, Errand, Header};
use super::{FlowId, Machine};
use crate::cell::{Pending, Waits};
use crate::commit::{FlowOutcome, FlowStatus, StepCommit};
use crate::error::{FlowError, HostError};
use crate::journal::{ENTRY_VERSION, Reply};

/// What a waiting body leads to.
enum Next {
    Execute,
    Commit(FlowStatus, After),
    Park,
}

impl Machine {
    /// Runs the body until it waits or ends.
    pub(super) fn advance(&mut self, now: Timestamp, flow: FlowId, out: &mut Vec<Action>) {
        let Some(run) = self.runs.get_mut(&flow) else {
            return;
        };
        self.timers.set(flow, run, None);
        let Some(active) = run.active.as_mut() else {
            return;
        };
        {
            let mut cell = active.cell();
            cell.now = cell.now.max(now);
            cell.breather = false;
        }
        let body = &mut active.body;
        let polled = catch_unwind(AssertUnwindSafe(|| {
            body.as_mut()
                .poll(&mut std::task::Context::from_waker(Waker::noop()))
        }));
        let unread = active.cell().replay.len();
        match polled {
            Err(panic) => {
                let reason = format!("its code panicked: {}", panic_text(panic.as_ref()));
                self.hospitalise(now, flow, &reason, out);
            }
            Ok(Poll::Ready(Err(FlowError::NeedsCare(reason)))) => {
                self.hospitalise(now, flow, &reason, out);
            }
            Ok(Poll::Ready(_)) if unread > 0 => {
                let reason = format!(
                    "the flow is not deterministic: its code now ends where its journal has \
                     {unread} more operations; kill it, or install the version of the \
                     application that began it and retry"
                );
                self.hospitalise(now, flow, &reason, out);
            }
            Ok(Poll::Ready(result)) => self.finish(now, flow, result, out),
            Ok(Poll::Pending) => self.suspend(now, flow, out),
        }
    }

    /// The body waits: decide what for, and whether the step is to be committed first.
    fn suspend(&mut self, now: Timestamp, flow: FlowId, out: &mut Vec<Action>) {
        let Some(run) = self.runs.get_mut(&flow) else {
            return;
        };
        let Some(active) = &run.active else {
            return;
        };
        let cell = active.cell();
        let trouble = match (&cell.misuse, &cell.pending) {
            (Some(misuse), _) => Some(misuse.clone()),
            (None, None) if !cell.breather => Some(
                "the flow awaited something that is not a flow operation; do such work in a side \
                 effect"
                    .to_owned(),
            ),
            _ => None,
        };
        if let Some(reason) = trouble {
            drop(cell);
            self.hospitalise(now, flow, &reason, out);
            return;
        }
        let (dirty, has_recordings) = (cell.dirty(), !cell.recordings.is_empty());
        let unsaved = dirty || !run.recorded;
        let next = match cell.pending.as_ref().map(|pending| &pending.waits) {
            None => Next::Commit(FlowStatus::Runnable, After::GoOn),
            Some(Waits::Host(request)) => {
                let first =
                    (request.reads_store() && has_recordings) || (request.has_effect() && unsaved);
                if first {
                    Next::Commit(FlowStatus::Runnable, After::Execute)
                } else {
                    Next::Execute
                }
            }
            Some(Waits::Mail { .. } | Waits::Time { .. }) => {
                if unsaved || run.durable != FlowStatus::Suspended {
                    Next::Commit(FlowStatus::Suspended, After::Wait)
                } else {
                    // Brought back by a restart: the store says this already.
                    Next::Park
                }
            }
        };
        drop(cell);
        match next {
            Next::Execute => self.ask(flow, out),
            Next::Commit(status, after) => self.commit(now, flow, status, None, after, out),
            Next::Park => {
                self.census.moves(run, FlowStatus::Suspended);
                self.resume_if_due(now, flow, out);
            }
        }
    }

    fn finish(
        &mut self,
        now: Timestamp,
        flow: FlowId,
        result: Result<String, FlowError>,
        out: &mut Vec<Action>,
    ) {
        let Some(active) = self.runs.get(&flow).and_then(|run| run.active.as_ref()) else {
            return;
        };
        // What the flow has recorded stays recorded, even if it ends with an error: its body was
        // told so, and where a step began must make no difference.
        let (status, outcome) = match result {
            Ok(result) => {
                active.cell().end_all(None);
                (FlowStatus::Completed, FlowOutcome::Completed { result })
            }
            Err(error) => {
                active.cell().end_all(Some(&error.to_string()));
                let error = serde_json::to_string(&error).expect("errors become JSON");
                (FlowStatus::Failed, FlowOutcome::Failed { error })
            }
        };
        self.commit(now, flow, status, Some(outcome), After::Remove, out);
    }

    /// Hands the step to the store.
    fn commit(
        &mut self,
        now: Timestamp,
        flow: FlowId,
        status: FlowStatus,
        outcome: Option<FlowOutcome>,
        after: After,
        out: &mut Vec<Action>,
    ) {
        let Some(run) = self.runs.get_mut(&flow) else {
            return;
        };
        let Some(active) = &run.active else {
            return;
        };
        let mut cell = active.cell();
        cell.confirm_answered();
        if outcome.is_some() {
            // Nobody will read what is left.
            let left = std::mem::take(&mut cell.mail);
            let left = left
                .into_iter()
                .flat_map(|(id, mails)| mails.into_iter().map(move |mail| (id, mail)));
            cell.taken.extend(left);
        }
        for (id, session) in &cell.sessions {
            self.routes.insert((*id, session.initiator), flow);
        }
        let deadline = cell
            .pending
            .as_ref()
            .and_then(|pending| Some((pending.sequence, pending.deadline()?)));
        let header = Header {
            version: ENTRY_VERSION,
            me: cell.me.clone(),
            sessions: cell.sessions.clone(),
            next_session: cell.next_session,
            deadline,
            ailment: None,
            trace: cell.trace,
        };
        let progress = cell.progress.take();
        if progress.is_some() {
            run.progress.clone_from(&progress);
        }
        let taken = std::mem::take(&mut cell.taken);
        let step = StepCommit {
            flow,
            start: (!run.recorded).then(|| run.start.clone()),
            status,
            checkpoint: header.write(),
            progress,
            entries: std::mem::take(&mut cell.entries),
            consumed: taken.iter().map(|(_, mail)| mail.inbox.clone()).collect(),
            outgoing: std::mem::take(&mut cell.outgoing),
            recordings: std::mem::take(&mut cell.recordings),
            outcome,
        };
        drop(cell);
        run.next_base = Some((Box::new(header), run.journaled + step.entries.len()));
        run.in_doubt = taken;
        run.committing = Some(after);
        let ends = step.outcome.is_some();
        self.census
            .moves(run, if ends { FlowStatus::Runnable } else { status });
        run.durable = status;
        run.ailment = None;
        run.since = now;
        out.push(Action::Commit(Box::new(step)));
    }

    pub(super) fn on_committed(&mut self, now: Timestamp, flow: FlowId, out: &mut Vec<Action>) {
        let Some(run) = self.runs.get_mut(&flow) else {
            return;
        };
        let Some(after) = run.committing.take() else {
            return;
        };
        run.recorded = true;
        run.in_doubt.clear();
        if let Some((header, journaled)) = run.next_base.take() {
            run.base = Base::Known(header);
            run.journaled = journaled;
        }
        if after == After::Remove {
            self.remove(flow, out);
            return;
        }
        if self.follow_wish(now, flow, out) {
            return;
        }
        match after {
            After::Wait => self.resume_if_due(now, flow, out),
            After::GoOn => self.advance(now, flow, out),
            After::Execute => self.ask(flow, out),
            After::Nothing | After::Remove => {}
        }
    }

    pub(super) fn on_commit_failed(
        &mut self,
        now: Timestamp,
        flow: FlowId,
        reason: &str,
        out: &mut Vec<Action>,
    ) {
        let Some(run) = self.runs.get_mut(&flow) else {
            return;
        };
        let Some(after) = run.committing.take() else {
            return;
        };
        run.return_in_doubt();
        if let (Some((header, _)), Base::Known(base)) = (run.next_base.take(), &run.base) {
            for (id, session) in &header.sessions {
                if !base.sessions.contains_key(id) {
                    self.routes.remove(&(*id, session.initiator));
                }
            }
        }
        if !run.recorded && !run.answers() {
            // Whoever asked for it learns that it was not started.
            self.remove(flow, out);
            return;
        }
        if after == After::Nothing {
            // Even that it was stopped could not be recorded; it stays so in memory.
            self.follow_wish(now, flow, out);
            return;
        }
        let reason = format!("the store refused its step: {reason}");
        self.hospitalise(now, flow, &reason, out);
    }

    /// Forgets a flow that has ended.
    fn remove(&mut self, flow: FlowId, out: &mut Vec<Action>) {
        let Some(mut run) = self.expel(flow) else {
            return;
        };
        self.ghosts.expect(flow, run.loads);
        run.set_aside();
        // What came while the end was being committed.
        let left = run.mail.into_values().flatten();
        out.extend(left.map(|mail| Action::Discard {
            inbox: mail.inbox,
            reply: None,
        }));
    }

    /// Hands the pending request to the host, unless the host has one already: then this one
    /// follows when that is answered.
    fn ask(&mut self, flow: FlowId, out: &mut Vec<Action>) {
        let Some(run) = self.runs.get_mut(&flow) else {
            return;
        };
        let (Errand::None, Some(active)) = (run.errand, &run.active) else {
            return;
        };
        let pending = active.cell().pending.clone();
        let Some(Pending {
            sequence,
            waits: Waits::Host(request),
            ..
        }) = pending
        else {
            return;
        };
        run.errand = Errand::Asked;
        out.push(Action::Execute {
            flow,
            sequence,
            request: request.as_ref().clone(),
        });
    }

    pub(super) fn on_host_result(
        &mut self,
        now: Timestamp,
        flow: FlowId,
        sequence: u32,
        result: Result<Reply, HostError>,
        out: &mut Vec<Action>,
    ) {
        let Some(run) = self.runs.get_mut(&flow) else {
            return;
        };
        match std::mem::replace(&mut run.errand, Errand::None) {
            Errand::None => return,
            Errand::Abandoned => {
                if run.committing.is_none() {
                    self.ask(flow, out);
                }
                return;
            }
            Errand::Asked => {}
        }
        let Some(active) = &run.active else {
            return;
        };
        let mut cell = active.cell();
        let asked = cell
            .pending
            .as_ref()
            .is_some_and(|p| p.sequence == sequence && matches!(p.waits, Waits::Host(_)));
        if !asked {
            return;
        }
        let reply = match result {
            Ok(reply) => reply,
            Err(HostError::Failed(error)) => Reply::Failed(error),
            Err(HostError::KeyUnavailable(why))
                if !self.retries.signing.hold && run.failures >= self.retries.signing.retries =>
            {
                let times = run.failures.saturating_add(1);
                Reply::Failed(FlowError::failed(format!("{why} (tried {times} times)")))
            }
            Err(error @ (HostError::Transient(_) | HostError::KeyUnavailable(_))) => {
                drop(cell);
                run.failures += 1;
                let attempts = match &error {
                    HostError::KeyUnavailable(_) => self.retries.signing.retries.saturating_add(1),
                    _ => self.retries.attempts,
                };
                if run.failures >= attempts {
                    let why = format!("{error} (tried {} times)", run.failures);
                    self.hospitalise(now, flow, &why, out);
                } else {
                    let at = now + self.retries.wait_after(run.failures);
                    self.timers.set(flow, run, Some(at));
                }
                return;
            }
        };
        cell.answer = Some(reply);
        drop(cell);
        run.failures = 0;
        self.advance(now, flow, out);
    }

    /// Goes on with a flow that waits for mail or a time, if that has come.
    pub(super) fn resume_if_due(&mut self, now: Timestamp, flow: FlowId, out: &mut Vec<Action>) {
        let Some(run) = self.runs.get_mut(&flow) else {
            return;
        };
        let (None, Some(active)) = (run.committing, &run.active) else {
            return;
        };
        let mut cell = active.cell();
        let Some(pending) = cell.pending.clone() else {
            return;
        };
        let until = pending.deadline();
        let reply = match pending.waits {
            Waits::Host(_) => return,
            Waits::Time { until } => (until <= now).then_some(Reply::Done),
            Waits::Mail {
                session,
                within,
                earlier,
                ..
            } => cell.take_mail_of(session, &earlier).or_else(|| {
                until.filter(|until| *until <= now)?;
                let peer = cell.sessions.get(&session)?.peer.clone();
                let milliseconds = within.map_or(0, |w| w.as_millis() as u64);
                Some(Reply::Failed(FlowError::TimedOut { peer, milliseconds }))
            }),
        };
        let Some(reply) = reply else {
            drop(cell);
            self.timers.set(flow, run, until);
            return;
        };
        cell.answer = Some(reply);
        drop(cell);
        self.census.moves(run, FlowStatus::Runnable);
        run.since = now;
        self.advance(now, flow, out);
    }

    pub(super) fn on_tick(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        while let Some((at, flow)) = self.timers.0.first().copied() {
            if at > now {
                break;
            }
            let Some(run) = self.runs.get_mut(&flow) else {
                self.timers.0.pop_first();
                continue;
            };
            self.timers.set(flow, run, None);
            let retries = run.active.as_ref().is_some_and(|active| {
                let cell = active.cell();
                matches!(&cell.pending, Some(p) if matches!(p.waits, Waits::Host(_)))
            });
            if retries {
                self.ask(flow, out);
            } else {
                self.resume_if_due(now, flow, out);
            }
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
