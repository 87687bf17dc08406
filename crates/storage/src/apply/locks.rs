//! Soft locks: many flows ask for coins at the same time, and each coin goes to one of them.
//!
//! Requests with the same condition share one read of what is available; coins are handed out in memory in the order of
//! the requests, and one statement writes all the locks. The oldest states go first, so that no dust gathers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quorate_flow::{FlowId, LockTarget};
use quorate_ledger::{StateAndRef, StateRef};

use super::notary::state_ref;
use super::{Batch, Failure};
use crate::error::{Doing, Error};
use crate::prepare::PreparedLock;
use crate::query::decode_state;
use crate::sql::{Row, batch, int, values};
use crate::unit::LockError;

/// States of the right type that are walked past for one condition in one batch.
const MAX_WALKED: usize = 4_096;

/// States that fit one condition and are looked at in one batch.
const MAX_SCANNED: usize = 20_000;

/// States that one read returns: some for each request, within these bounds.
const PAGE: std::ops::RangeInclusive<usize> = 32..=1_024;
const PAGE_PER_REQUEST: usize = 4;

batch!(READ_FLOWS, 0, [flow: Bytes],
    "SELECT f.flow_id FROM {rows} JOIN flows f ON f.flow_id = d.flow WHERE f.finished_at IS NULL");
batch!(READ_LOCKS, 0, [flow: Bytes, number: Int],
    "SELECT l.flow_id, l.seq, v.produced_seq, v.tx_id, v.idx, v.state FROM {rows}
     JOIN vault_locks l ON l.flow_id = d.flow AND l.seq = d.number
     JOIN vault_states v ON v.tx_id = l.tx_id AND v.idx = l.idx");
batch!(WRITE_LOCKS, 1, [tx: Bytes, number: Int, flow: Bytes, request: Int],
    "INSERT INTO vault_locks (tx_id, idx, flow_id, seq, locked_at)
     SELECT d.tx, d.number, d.flow, d.request, $1 FROM {rows} WHERE true");

/// A state that may be locked, in the order in which states are given out.
#[derive(Clone)]
struct Coin {
    order: (i64, u32),
    amount: i64,
    reference: StateRef,
    /// Decoded only if it is chosen: that parses keys, which costs more than reading the row.
    state: Vec<u8>,
    /// The asking flow has it already.
    own: bool,
}

pub(super) async fn apply(
    batch: &mut Batch<'_>,
    requests: &[Arc<PreparedLock>],
) -> Result<Vec<Result<Vec<StateAndRef>, LockError>>, Failure> {
    if requests.is_empty() {
        return Ok(Vec::new());
    }
    let alive = living_flows(batch, requests).await?;
    let given_before = locks_of(batch, requests).await?;
    let mut answers: Vec<Option<Result<Vec<Coin>, LockError>>> = requests
        .iter()
        .map(|request| {
            if !alive.contains(&request.flow) {
                return Some(Err(LockError::FlowEnded(request.flow)));
            }
            given_before
                .get(&(request.flow, request.seq))
                .cloned()
                .map(Ok)
        })
        .collect();
    let mut taken: BTreeSet<StateRef> = BTreeSet::new();
    let mut rows = Vec::new();
    for index in 0..requests.len() {
        if answers[index].is_some() {
            continue;
        }
        let first = &requests[index];
        // The same request twice in one batch is answered once; all others with the same condition are served together.
        let alike = |other: &PreparedLock| {
            other.filter == first.filter && other.amount == first.amount && !is_by_reference(other)
        };
        let mut group: Vec<usize> = vec![index];
        if !is_by_reference(first) {
            group.extend(
                (index + 1..requests.len())
                    .filter(|i| answers[*i].is_none() && alike(&requests[*i])),
            );
        }
        let mut shelf = Shelf::new(first, group.len());
        for index in group {
            let request = &requests[index];
            let twin = (0..index).find(|i| {
                (requests[*i].flow, requests[*i].seq) == (request.flow, request.seq)
                    && answers[*i].is_some()
            });
            let answer = match twin {
                Some(twin) => answers[twin].clone().unwrap_or_else(|| Ok(Vec::new())),
                None => {
                    let answer = shelf.serve(batch, request, &taken).await?;
                    for coin in answer.iter().flatten() {
                        taken.insert(coin.reference);
                        if coin.own {
                            continue;
                        }
                        let StateRef { tx, index } = coin.reference;
                        rows.extend(values![
                            tx.as_bytes(),
                            index,
                            request.flow.as_bytes(),
                            request.seq
                        ]);
                    }
                    answer
                }
            };
            answers[index] = Some(answer);
        }
    }
    let now = batch.now();
    batch
        .connection
        .execute_batch(&WRITE_LOCKS, &[now], rows)
        .await
        .doing("locking states")?;
    answers
        .into_iter()
        .map(|answer| {
            let coins = match answer {
                Some(Ok(coins)) => coins,
                Some(Err(error)) => return Ok(Err(error)),
                None => Vec::new(),
            };
            let states = coins
                .iter()
                .map(|coin| decode_state(coin.reference, &coin.state));
            Ok(Ok(states.collect::<Result<_, Error>>()?))
        })
        .collect()
}

fn is_by_reference(request: &PreparedLock) -> bool {
    matches!(request.target, LockTarget::References(_))
}

async fn living_flows(
    batch: &mut Batch<'_>,
    requests: &[Arc<PreparedLock>],
) -> Result<BTreeSet<FlowId>, Failure> {
    let doing = "looking for the flows that lock";
    let flows: BTreeSet<FlowId> = requests.iter().map(|request| request.flow).collect();
    let rows = flows
        .iter()
        .flat_map(|flow| values![flow.as_bytes()])
        .collect();
    let mut alive = BTreeSet::new();
    for row in batch
        .connection
        .fetch_batch(&READ_FLOWS, &[], rows)
        .await
        .doing(doing)?
    {
        alive.insert(flow_id(row.bytes(0).doing(doing)?)?);
    }
    Ok(alive)
}

pub(crate) fn flow_id(bytes: Vec<u8>) -> Result<FlowId, Error> {
    let bytes = <[u8; 16]>::try_from(bytes).map_err(|bytes| Error::Corrupt {
        what: "flow id".into(),
        reason: format!("it has {} bytes, not 16", bytes.len()),
    })?;
    Ok(FlowId::from_bytes(bytes))
}

/// What was given to the same requests before: a flow that runs again after a crash asks again. Requests for certain
/// states are not looked up, for they name them anyway.
async fn locks_of(
    batch: &mut Batch<'_>,
    requests: &[Arc<PreparedLock>],
) -> Result<BTreeMap<(FlowId, u32), Vec<Coin>>, Failure> {
    let doing = "looking for earlier locks";
    let requests = requests.iter().filter(|request| !is_by_reference(request));
    let asked: BTreeSet<_> = requests
        .map(|request| (request.flow, request.seq))
        .collect();
    let rows = asked
        .iter()
        .flat_map(|(flow, seq)| values![flow.as_bytes(), *seq])
        .collect();
    let mut found: BTreeMap<(FlowId, u32), Vec<Coin>> = BTreeMap::new();
    for row in batch
        .connection
        .fetch_batch(&READ_LOCKS, &[], rows)
        .await
        .doing(doing)?
    {
        let flow = flow_id(row.bytes(0).doing(doing)?)?;
        let seq = row.count(1).doing(doing)?.try_into().unwrap_or(u32::MAX);
        let reference = state_ref(row.bytes(3).doing(doing)?, row.count(4).doing(doing)?)?;
        let order = (row.int(2).doing(doing)?, reference.index);
        let state = row.bytes(5).doing(doing)?;
        found.entry((flow, seq)).or_default().push(Coin {
            order,
            amount: 0,
            reference,
            state,
            own: true,
        });
    }
    for coins in found.values_mut() {
        coins.sort_by_key(|coin| coin.order);
    }
    Ok(found)
}

/// The states that meet one condition, read as far as needed.
///
/// First the unconsumed states of the right types are walked in the order of their production, which finds coins at
/// once wherever a fair part of them fit. Only after a long walk in vain the engine is asked to find the rest by
/// whatever index it has.
struct Shelf<'a> {
    like: &'a PreparedLock,
    page: usize,
    coins: Vec<Coin>,
    known: BTreeSet<StateRef>,
    walked: usize,
    /// The types still to be walked, the present one last.
    types: Vec<&'a str>,
    after: (i64, i64),
    all_read: bool,
}

impl<'a> Shelf<'a> {
    fn new(like: &'a PreparedLock, requests: usize) -> Self {
        let page = (requests * PAGE_PER_REQUEST).clamp(*PAGE.start(), *PAGE.end());
        let walks = if is_by_reference(like) {
            &[][..]
        } else {
            &like.types
        };
        let types = walks.iter().rev().map(String::as_str).collect();
        let (coins, known) = (Vec::new(), BTreeSet::new());
        Self {
            like,
            page,
            coins,
            known,
            walked: 0,
            types,
            after: (0, -1),
            all_read: false,
        }
    }

    /// Reads the next page.
    async fn read(&mut self, batch: &mut Batch<'_>) -> Result<(), Failure> {
        match self.types.last() {
            Some(state_type) if self.walked < MAX_WALKED => self.walk(batch, state_type).await,
            _ => self.search(batch).await,
        }
    }

    async fn walk(&mut self, batch: &mut Batch<'_>, state_type: &str) -> Result<(), Failure> {
        let doing = "looking for states to lock";
        let amount = self.like.amount.as_deref().unwrap_or("1");
        let limit = int(self.page as u64)?;
        let (sql, values) =
            self.like
                .filter
                .clone()
                .walk(batch.schemas, state_type, self.after, limit, amount);
        let rows = batch
            .connection
            .fetch_text(sql, values)
            .await
            .doing(doing)?;
        for row in &rows {
            self.after = (row.int(3).doing(doing)?, row.int(1).doing(doing)?);
            if row.int(6).doing(doing)? == 1 {
                self.keep(row)?;
            }
        }
        self.walked += rows.len();
        if rows.len() < self.page {
            self.types.pop();
            self.after = (0, -1);
            // Whatever could fit has been seen.
            self.all_read = self.types.is_empty();
        } else if self.walked >= MAX_WALKED {
            self.after = (0, -1);
        }
        Ok(())
    }

    async fn search(&mut self, batch: &mut Batch<'_>) -> Result<(), Failure> {
        let doing = "searching for states to lock";
        let mut filter = self.like.filter.clone();
        let (place, number) = (filter.bind(self.after.0), filter.bind(self.after.1));
        let limit = filter.bind(int(self.page as u64)?);
        let unlocked = if is_by_reference(self.like) {
            let own = filter.bind(self.like.flow.as_bytes());
            format!("(l.flow_id IS NULL OR l.flow_id = {own})")
        } else {
            "l.flow_id IS NULL".to_owned()
        };
        let rest = format!(
            "AND v.status = 0 AND {unlocked} AND (v.produced_seq, v.idx) > ({place}, {number})
             ORDER BY v.produced_seq, v.idx LIMIT {limit}"
        );
        let amount = self.like.amount.as_deref().unwrap_or("1");
        let columns =
            format!("v.tx_id, v.idx, v.state, v.produced_seq, l.flow_id, CAST({amount} AS BIGINT)");
        let (sql, values) = filter.select(batch.schemas, &columns, &rest);
        let rows = batch
            .connection
            .fetch_text(sql, values)
            .await
            .doing(doing)?;
        for row in &rows {
            self.after = (row.int(3).doing(doing)?, row.int(1).doing(doing)?);
            self.keep(row)?;
        }
        self.all_read = rows.len() < self.page || self.known.len() >= MAX_SCANNED;
        Ok(())
    }

    fn keep(&mut self, row: &Row) -> Result<(), Failure> {
        let doing = "reading a state to lock";
        let reference = state_ref(row.bytes(0).doing(doing)?, row.count(1).doing(doing)?)?;
        if self.known.insert(reference) {
            self.coins.push(Coin {
                order: (row.int(3).doing(doing)?, reference.index),
                amount: row.opt_int(5).doing(doing)?.unwrap_or(0),
                own: row.opt_bytes(4).doing(doing)?.is_some(),
                state: row.bytes(2).doing(doing)?,
                reference,
            });
        }
        Ok(())
    }

    async fn serve(
        &mut self,
        batch: &mut Batch<'_>,
        request: &PreparedLock,
        taken: &BTreeSet<StateRef>,
    ) -> Result<Result<Vec<Coin>, LockError>, Failure> {
        self.coins.retain(|coin| !taken.contains(&coin.reference));
        let (wanted, most) = match &request.target {
            LockTarget::Sum { at_least, .. } => (*at_least, request.max_states),
            LockTarget::Count(count) => (i64::from(*count), request.max_states),
            LockTarget::References(refs) => {
                let wanted = refs.iter().collect::<BTreeSet<_>>().len();
                // All or nothing, however many the request allows otherwise.
                (int(wanted as u64)?, wanted)
            }
        };
        let mut chosen: Vec<Coin> = Vec::new();
        let (mut sum, mut available) = (0i64, 0i64);
        let mut next = 0;
        while sum < wanted {
            if next == self.coins.len() {
                if self.all_read {
                    return Ok(Err(LockError::Insufficient { available, wanted }));
                }
                self.read(batch).await?;
                self.coins.retain(|coin| !taken.contains(&coin.reference));
                continue;
            }
            let coin = &self.coins[next];
            next += 1;
            if coin.amount <= 0 {
                continue;
            }
            available = available.saturating_add(coin.amount);
            if chosen.len() < most {
                sum = sum.saturating_add(coin.amount);
                chosen.push(coin.clone());
            } else if let Some(smallest) = (0..chosen.len()).min_by_key(|i| chosen[*i].amount)
                && chosen[smallest].amount < coin.amount
            {
                // No room for more states: the larger ones replace the smaller ones.
                sum = sum
                    .saturating_sub(chosen[smallest].amount)
                    .saturating_add(coin.amount);
                chosen[smallest] = coin.clone();
            }
        }
        chosen.sort_by_key(|coin| coin.order);
        Ok(Ok(chosen))
    }
}

/// Every statement of this chapter, for the test that looks at how the engine finds their rows.
#[cfg(test)]
pub(super) fn statements() -> Vec<&'static crate::sql::Batch> {
    vec![&*READ_FLOWS, &*READ_LOCKS, &*WRITE_LOCKS]
}
