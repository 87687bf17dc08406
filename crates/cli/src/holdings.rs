//! What a node's vault holds, asked of it by RPC.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use quorate_cash::{Cash, Currency};
use quorate_ledger::vault::{Criteria, PageRequest, VaultQuery};
use quorate_ledger::{ContractState, StateRef};
use quorate_rpc::Client;

/// States that are asked for at once; with their fields they fit into one message.
const PAGE: u32 = 1_000;

/// Cash of one currency.
#[derive(Debug, Default)]
pub(crate) struct Holdings {
    /// In minor units.
    pub(crate) quantity: i64,
    pub(crate) states: BTreeSet<StateRef>,
}

/// All cash in a node's vault that is not consumed. The pages belong together only if nothing is
/// recorded meanwhile.
pub(crate) async fn of(client: &Client, currency: Currency) -> Result<Holdings> {
    let criteria = Criteria::unconsumed().and(Criteria::of_type(Cash::TYPE));
    let mut query = VaultQuery::new(criteria);
    query.page = PageRequest {
        number: 1,
        size: PAGE,
    };
    let mut holdings = Holdings::default();
    loop {
        let page = client.vault_query(&query).await?;
        for row in &page.states {
            let cash: Cash = row.state.read()?;
            if cash.amount.currency == currency {
                let sum = holdings.quantity.checked_add(cash.amount.quantity);
                holdings.quantity = sum.context("the vault holds more than can be counted")?;
                holdings.states.insert(row.state.reference);
            }
        }
        if u64::from(query.page.number) * u64::from(PAGE) >= page.total {
            return Ok(holdings);
        }
        query.page.number += 1;
    }
}
