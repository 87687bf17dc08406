//! An application that no honest node has installed: it spends cash a second time. The
//! demonstration installs it to show that not the spender's good manners but the notary prevents
//! that.

use std::sync::Arc;

use quorate_cash::{Cash, cash};
use quorate_flow::standard::notarise;
use quorate_flow::{App, Context, Flow, FlowError, FlowRegistry};
use quorate_ledger::{
    Contract, ContractState, SignedTransaction, TransactionBuilder, TransactionState, TxId,
};
use serde::{Deserialize, Serialize};

/// The application.
pub(crate) struct Thief;

impl App for Thief {
    fn name(&self) -> &str {
        "thief"
    }

    fn version(&self) -> u32 {
        1
    }

    fn contracts(&self) -> Vec<Arc<dyn Contract>> {
        Vec::new()
    }

    fn register_flows(&self, registry: &mut FlowRegistry) {
        registry.flow::<SpendAgain>();
    }
}

/// Spends what a transaction has consumed, this time in our own favour. The vault, which knows
/// better, is not asked.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SpendAgain {
    /// The transaction.
    pub(crate) tx: TxId,
}

impl Flow for SpendAgain {
    const NAME: &'static str = "thief.SpendAgain";
    type Output = TxId;

    async fn call(self, ctx: Context) -> Result<TxId, FlowError> {
        let failed = |error: &dyn std::fmt::Display| FlowError::failed(error.to_string());
        let known = ctx.transactions(vec![self.tx]).await?;
        let inputs = known.iter().flat_map(|tx| tx.wire().inputs()).copied();
        let spent = ctx.states(inputs.collect()).await?;
        let Some(first) = spent.first() else {
            return Err(FlowError::failed("the transaction consumes nothing"));
        };
        let me = ctx.me();
        let notary = first.state.notary.clone();
        let code = ctx.contract(Cash::CONTRACT).await?.code;
        let mut builder = TransactionBuilder::new(notary.clone());
        for state in &spent {
            let cash: Cash = state.read().map_err(|error| failed(&error))?;
            let mine = cash.token().held_by(&me, cash.amount.quantity);
            builder = builder.add_input(state).add_output(TransactionState::new(
                &mine,
                code,
                notary.clone(),
            ));
        }
        builder = builder.add_command(cash::moved([me.owning_key.clone()]));
        if let Some(hash) = ctx.network_parameters().await? {
            builder = builder.parameters(hash);
        }
        let wire = builder
            .build(ctx.entropy().await?)
            .map_err(|error| failed(&error))?;
        let signatures = ctx.sign(wire.id(), vec![me.owning_key]).await?;
        let signed = SignedTransaction::new(wire, signatures).map_err(|error| failed(&error))?;
        notarise(&ctx, &signed).await?;
        Ok(signed.id())
    }
}
