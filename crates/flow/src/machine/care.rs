//! What stops a flow and sets it going again: the hospital, and operators' orders.

use std::collections::VecDeque;

use quorate_ledger::Timestamp;

use super::interface::Action;
use super::run::{After, Ailment, Base, Wish, lock};
use super::{FlowId, Machine};
use crate::commit::{FlowOutcome, FlowStatus};
use crate::message::reason;

impl Machine {
    /// Abandons the step under way and keeps the flow under observation.
    pub(super) fn hospitalise(
        &mut self,
        now: Timestamp,
        flow: FlowId,
        why: &str,
        out: &mut Vec<Action>,
    ) {
        let Some(run) = self.runs.get_mut(&flow) else {
            return;
        };
        let visits = run.ailment.as_ref().map_or(0, |ailment| ailment.visits);
        run.ailment = Some(Ailment {
            reason: reason(why),
            since: now,
            visits: visits.saturating_add(1),
        });
        self.stop(now, flow, FlowStatus::Hospitalised, out);
    }

    /// Sets the flow aside under a status that is made durable.
    fn stop(&mut self, now: Timestamp, flow: FlowId, status: FlowStatus, out: &mut Vec<Action>) {
        let Some(run) = self.runs.get_mut(&flow) else {
            return;
        };
        run.set_aside();
        self.timers.set(flow, run, None);
        self.census.moves(run, status);
        run.durable = status;
        run.since = now;
        if let Base::Known(header) = &run.base {
            let mut header = header.clone();
            header.ailment.clone_from(&run.ailment);
            run.next_base = Some((header, run.journaled));
        }
        run.committing = Some(After::Nothing);
        out.push(Action::Commit(Box::new(run.bare_step(flow, status))));
    }

    pub(super) fn on_pause(&mut self, now: Timestamp, flow: FlowId, out: &mut Vec<Action>) {
        let Some(run) = self.runs.get_mut(&flow) else {
            return;
        };
        if run.committing.is_some() {
            run.wish_for(Wish::Pause);
        } else if run.status == FlowStatus::Paused {
            // A retry may be under way.
            run.loading = false;
        } else {
            self.stop(now, flow, FlowStatus::Paused, out);
        }
    }

    pub(super) fn on_retry(&mut self, now: Timestamp, flow: FlowId, out: &mut Vec<Action>) {
        let Some(run) = self.runs.get_mut(&flow) else {
            return;
        };
        if run.committing.is_some() {
            run.wish_for(Wish::Retry);
        } else if run.active.is_some() {
            // It is running.
        } else if run.recorded {
            run.loading = true;
            run.loads += 1;
            out.push(Action::Load { flow });
        } else {
            // Not even its stay in the hospital could be recorded: there is nothing to load.
            self.build(now, flow, VecDeque::new(), out);
        }
    }

    pub(super) fn on_kill(&mut self, now: Timestamp, flow: FlowId, out: &mut Vec<Action>) {
        let Some(run) = self.runs.get_mut(&flow) else {
            return;
        };
        if run.committing.is_some() {
            run.wish_for(Wish::Kill);
            return;
        }
        run.set_aside();
        self.timers.set(flow, run, None);
        self.census.moves(run, FlowStatus::Runnable);
        run.since = now;
        run.committing = Some(After::Remove);
        let mail = std::mem::take(&mut run.mail);
        run.in_doubt = mail
            .into_iter()
            .flat_map(|(id, mails)| mails.into_iter().map(move |mail| (id, mail)))
            .collect();
        let mut step = run.bare_step(flow, FlowStatus::Killed);
        step.consumed = run
            .in_doubt
            .iter()
            .map(|(_, mail)| mail.inbox.clone())
            .collect();
        step.outcome = Some(FlowOutcome::Killed);
        // The sessions as they are durably: what an abandoned step sent was never sent.
        if let Base::Known(header) = &run.base {
            let header = header.as_ref().clone();
            let cell = self.blank_cell(flow, header, [0; 32]);
            let mut cell = lock(&cell);
            cell.end_all(Some("an operator killed the flow"));
            step.outgoing = std::mem::take(&mut cell.outgoing);
        }
        out.push(Action::Commit(Box::new(step)));
    }

    /// Follows an order that came during a commit; `false` if there was none that counts.
    pub(super) fn follow_wish(
        &mut self,
        now: Timestamp,
        flow: FlowId,
        out: &mut Vec<Action>,
    ) -> bool {
        let Some(run) = self.runs.get_mut(&flow) else {
            return false;
        };
        let wish = run.wish.take();
        match wish {
            None => return false,
            Some(Wish::Retry) if run.active.is_some() => return false,
            Some(Wish::Retry) => self.on_retry(now, flow, out),
            Some(Wish::Pause) => self.on_pause(now, flow, out),
            Some(Wish::Kill) => self.on_kill(now, flow, out),
        }
        true
    }
}
