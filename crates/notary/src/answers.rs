//! From decisions to signed answers.

use std::collections::BTreeMap;

use quorate_flow::{Envelope, SessionMessage};
use quorate_identity::SigningError;
use quorate_ledger::{
    NotarisationAnswer, NotaryError, TimeWindow, Timestamp, TransactionSignature, TxId,
    try_sign_batch,
};
use quorate_storage::NotaryResult;

use crate::metrics::NotaryMetrics;
use crate::queue::ReturnAddress;
use crate::service::Identity;

/// A request's place among those that are decided together.
pub(crate) enum Pending {
    /// It is this entry of the batch.
    Entry(usize),
    /// It never came so far.
    Refused(NotaryError),
}

/// What is needed to answer a batch. It is made before the batch is committed, and used within
/// the commit.
pub(crate) struct Answers {
    pub(crate) identity: Identity,
    /// The transaction of each entry, with its time window.
    pub(crate) entries: Vec<(TxId, Option<TimeWindow>)>,
    /// Where answers go, with what they are about.
    pub(crate) sessions: Vec<(ReturnAddress, Pending)>,
    /// The time by which the batch is judged.
    pub(crate) now: Timestamp,
    pub(crate) metrics: NotaryMetrics,
}

/// A signature for each transaction that was committed.
pub(crate) type Signed = BTreeMap<TxId, TransactionSignature>;

impl Answers {
    /// One signature over the Merkle root of everything that was committed.
    ///
    /// # Errors
    /// The key is in a device that does not sign.
    pub(crate) fn signatures(&self, results: &[NotaryResult]) -> Result<Signed, SigningError> {
        let mut committed: Vec<TxId> = self
            .entries
            .iter()
            .zip(results)
            .filter(|(_, result)| matches!(result, NotaryResult::Committed))
            .map(|((tx, _), _)| *tx)
            .collect();
        if committed.is_empty() {
            return Ok(Signed::new());
        }
        committed.sort_unstable();
        committed.dedup();
        let timer = self.metrics.sign.start_timer();
        let signatures = try_sign_batch(&self.identity.key, &committed)?;
        timer.observe_duration();
        Ok(committed.into_iter().zip(signatures).collect())
    }

    /// The answer to one request.
    pub(crate) fn answer(
        &self,
        pending: &Pending,
        results: &[NotaryResult],
        signed: &Signed,
    ) -> NotarisationAnswer {
        let index = match pending {
            Pending::Refused(error) => return NotarisationAnswer::Refused(error.clone()),
            Pending::Entry(index) => *index,
        };
        let undecided =
            || NotaryError::General("the request was not decided; ask again".to_owned());
        let (Some((tx, window)), Some(result)) = (self.entries.get(index), results.get(index))
        else {
            return NotarisationAnswer::Refused(undecided());
        };
        let error = match (result, window) {
            (NotaryResult::Committed, _) => match signed.get(tx) {
                Some(signature) => return NotarisationAnswer::Signed(vec![signature.clone()]),
                None => undecided(),
            },
            (NotaryResult::Conflict(consumed), _) => NotaryError::Conflict {
                tx: *tx,
                consumed: consumed.clone(),
            },
            (NotaryResult::OutsideTimeWindow, Some(window)) => NotaryError::TimeWindowInvalid {
                window: *window,
                now: self.now,
            },
            (NotaryResult::OutsideTimeWindow, None) => undecided(),
        };
        NotarisationAnswer::Refused(error)
    }

    /// The answers to all sessions.
    ///
    /// # Errors
    /// Those of [`Answers::signatures`].
    pub(crate) fn envelopes(
        &self,
        results: &[NotaryResult],
    ) -> Result<Vec<Envelope>, SigningError> {
        let signed = self.signatures(results)?;
        let answers = self
            .sessions
            .iter()
            .map(|(to, pending)| {
                let payload = self.answer(pending, results, &signed).encode();
                Envelope::new(
                    to.asked.clone(),
                    to.peer.clone(),
                    (to.session, false),
                    0,
                    self.identity.owner.clone(),
                    SessionMessage::Data {
                        payload,
                        last: true,
                    },
                )
            })
            .collect();
        Ok(answers)
    }
}
