//! What a notary has let be spent, read out: for whoever has to answer for it.

use quorate_identity::X500Name;
use quorate_ledger::{StateRef, Timestamp, TxId};

use crate::Store;
use crate::apply::{state_ref, tx_id};
use crate::error::{Doing, Error};
use crate::reads::MAX_ROWS;
use crate::sql::{Row, Value, values};

/// A state that is spent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpentState {
    /// The state.
    pub state: StateRef,
    /// The transaction that has spent it.
    pub consumed_by: TxId,
    /// Who asked for that and when, by the database's clock. `None`: the database lacks the transaction, although both are
    /// written together, so it has been damaged or edited.
    pub request: Option<(X500Name, Timestamp)>,
}

impl Store {
    /// Up to `limit` spent states in the order of their names from after `after`. Fewer than `limit` (or [`MAX_ROWS`]) are
    /// the last.
    pub async fn spent_states(
        &self,
        after: Option<StateRef>,
        limit: u32,
    ) -> Result<Vec<SpentState>, Error> {
        let sql =
            "SELECT n.tx_id, n.idx, n.consumed_by, t.requester, t.committed_at FROM notary_states n
                   LEFT JOIN notary_transactions t ON t.tx_id = n.consumed_by
                   WHERE (n.tx_id, n.idx) > ($1, $2) ORDER BY n.tx_id, n.idx LIMIT $3";
        let (tx, index) = match after {
            Some(state) => (state.tx.as_bytes().to_vec(), i64::from(state.index)),
            None => (Vec::new(), -1),
        };
        self.spent(sql, values![tx, index, limit.min(MAX_ROWS)])
            .await
    }

    /// Whether and by what a state is spent.
    pub async fn spent_state(&self, state: &StateRef) -> Result<Option<SpentState>, Error> {
        let sql =
            "SELECT n.tx_id, n.idx, n.consumed_by, t.requester, t.committed_at FROM notary_states n
                   LEFT JOIN notary_transactions t ON t.tx_id = n.consumed_by
                   WHERE n.tx_id = $1 AND n.idx = $2";
        let found = self
            .spent(sql, values![state.tx.as_bytes(), state.index])
            .await?;
        Ok(found.into_iter().next())
    }

    async fn spent(
        &self,
        sql: &'static str,
        parameters: Vec<Value>,
    ) -> Result<Vec<SpentState>, Error> {
        let mut reader = self.database().reader().await?;
        let rows = reader
            .fetch(sql, parameters)
            .await
            .doing("reading what is spent")?;
        rows.iter().map(spent_state).collect()
    }
}

fn spent_state(row: &Row) -> Result<SpentState, Error> {
    let doing = "reading what is spent";
    let requester = row.opt_text(3).doing(doing)?;
    let committed_at = row.opt_int(4).doing(doing)?;
    let request = match (requester, committed_at) {
        (Some(requester), Some(at)) => {
            let name = requester
                .parse::<X500Name>()
                .map_err(|error| Error::Corrupt {
                    what: format!("requester '{requester}'"),
                    reason: error.to_string(),
                })?;
            Some((name, Timestamp::from_micros(at)))
        }
        _ => None,
    };
    Ok(SpentState {
        state: state_ref(row.bytes(0).doing(doing)?, row.count(1).doing(doing)?)?,
        consumed_by: tx_id(row.bytes(2).doing(doing)?)?,
        request,
    })
}
