//! The end of the demonstration: what everybody has and has heard is compared.

use std::time::Instant;

use anyhow::Result;
use quorate_ledger::TxId;
use quorate_storage::lease;
use tokio::time::sleep;

use super::{Failover, ISSUED, RESOURCE, Serving, instance, other};
use crate::demo::{POLL, SETTLING, Took, unfinished};
use crate::holdings;

impl Failover {
    pub(super) async fn compare(&mut self) -> Result<()> {
        self.line.title("Everything compared");
        self.terms().await?;
        self.ledgers().await?;
        self.vaults().await
    }

    /// Who served when: by the witness, by the database, and as it should have been.
    async fn terms(&mut self) -> Result<()> {
        let terms = self.witness.terms();
        let history = lease::history(&self.store, RESOURCE, u32::MAX).await?;
        self.line
            .row("lease  holder    because               gap      transactions");
        let mut right = terms.len() == self.changes.len() && history.len() == self.changes.len();
        // The database tells the newest first.
        let lines = self.changes.iter().zip(&terms).zip(history.iter().rev());
        for (number, ((change, term), lease)) in lines.enumerate() {
            let serving = Serving {
                label: change.heir,
                generation: number as u64 + 1,
            };
            right &= term.generation == serving.generation;
            right &= lease.generation == serving.generation;
            right &= instance(&term.instance)? == serving.label;
            right &= instance(&lease.holder.instance())? == serving.label;
            let (because, gap) = match number.checked_sub(1) {
                None => (change.why.to_owned(), "-".to_owned()),
                Some(before) => (
                    format!("{} {}", other(change.heir), change.why),
                    Took(term.first.saturating_duration_since(terms[before].last)).to_string(),
                ),
            };
            let letters: Vec<&str> = (self.done.iter())
                .filter(|done| done.served == [serving; 2])
                .filter_map(|done| done.letter)
                .collect();
            self.line.row(&format!(
                "{:<6} {:<9} {because:<21} {gap:<8} {}",
                serving.generation,
                serving.label,
                letters.join(", ")
            ));
        }
        self.line.judge(
            right,
            "the clients, the database and what was done do not agree",
        );
        Ok(())
    }

    /// Both parties have every transaction, final, and PartyB's client was told of each once.
    async fn ledgers(&mut self) -> Result<()> {
        let mut wanted: Vec<TxId> = self.done.iter().map(|done| done.tx).collect();
        let mut right = true;
        for tx in wanted.iter().chain(&self.issued) {
            for client in [&self.a, &self.b] {
                let transaction = client.transaction(*tx).await?;
                right &= transaction.is_final
                    && transaction.signed.id() == *tx
                    && transaction.signed.verify_required_signatures().is_ok();
            }
        }
        self.line.note(
            "ledgers",
            &format!(
                "{} transactions, final at both; PartyB's client heard of each payment once",
                wanted.len() + 1
            ),
        );
        self.line
            .judge(right, "a transaction is not final at both parties");
        let mut told = self.ledger.transactions();
        told.sort_unstable();
        wanted.sort_unstable();
        self.line.judge(
            told == wanted,
            "PartyB's client missed a transaction, or was told twice",
        );
        Ok(())
    }

    async fn vaults(&mut self) -> Result<()> {
        let began = Instant::now();
        let mut left = unfinished(&self.a).await? + unfinished(&self.b).await?;
        while left > 0 && began.elapsed() < SETTLING {
            sleep(POLL).await;
            left = unfinished(&self.a).await? + unfinished(&self.b).await?;
        }
        self.balances().await?;
        let a = holdings::of(&self.a, self.currency).await?;
        let b = holdings::of(&self.b, self.currency).await?;
        let shared = a.states.intersection(&b.states).count();
        let total = a.quantity + b.quantity;
        let text = format!(
            "{} of {} issued; {shared} states claimed by both; {left} flows unfinished",
            self.amount(total),
            self.amount(ISSUED)
        );
        self.line.note("in all", &text);
        let right = shared == 0 && left == 0 && total == ISSUED;
        self.line.judge(right, "the vaults do not agree");
        Ok(())
    }
}
