//! Moving states from one notary to another, with everybody's consent.

use std::collections::BTreeSet;

use quorate_identity::{PublicKey, X500Name};
use quorate_ledger::{SignedTransaction, StateRef, TxId, notary_change};
use serde::{Deserialize, Serialize};

use crate::commit::StatesToRecord;
use crate::context::{Context, Session};
use crate::error::FlowError;
use crate::journal::LockTarget;
use crate::registry::{Flow, Responder};
use crate::standard::finality::{finalise, receive_finality};
use crate::standard::signatures::{collect_signatures, sign_transaction, signed};
use quorate_ledger::vault::Criteria;

/// Most states that one notary change moves.
const MAX_STATES: usize = 500;

/// Moves states to another notary. Every participant's node is asked to sign; it agrees if the
/// new notary is one of the network's.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ChangeNotary {
    /// The states, all with the same notary now.
    pub states: Vec<StateRef>,
    /// The new notary's legal name.
    pub notary: X500Name,
}

impl Flow for ChangeNotary {
    const NAME: &'static str = "quorate.ChangeNotary";
    type Output = TxId;

    async fn call(self, ctx: Context) -> Result<TxId, FlowError> {
        if self.states.is_empty() || self.states.len() > MAX_STATES {
            return Err(FlowError::failed(format!(
                "name 1 to {MAX_STATES} states, not {}",
                self.states.len()
            )));
        }
        let notaries = ctx.notaries().await?;
        let new = notaries
            .into_iter()
            .find(|notary| notary.identity.name == self.notary)
            .ok_or_else(|| FlowError::unknown(format_args!("notary '{}'", self.notary)))?;
        let count = self.states.len() as u32;
        let states = ctx
            .lock_states(Criteria::All, LockTarget::References(self.states), count)
            .await?;
        let salt = ctx.entropy().await?;
        let wire = notary_change::build(&states, &new.identity, salt)
            .map_err(|error| FlowError::failed(error.to_string()))?;
        let me = ctx.me();
        let unsigned = SignedTransaction::unsigned(wire);
        let signatures = ctx.sign(unsigned.id(), vec![me.owning_key.clone()]).await?;
        let mut transaction = signed(&unsigned, signatures)?;
        let others: BTreeSet<PublicKey> = transaction
            .required_signers()
            .into_iter()
            .filter(|key| *key != me.owning_key)
            .filter(|key| transaction.wire().notary().map(|n| &n.owning_key) != Some(key))
            .collect();
        let mut sessions = Vec::new();
        for key in others {
            let party = ctx.party_of_key(&key).await?;
            sessions.push(ctx.session(&party.name).await?);
        }
        transaction = collect_signatures(&ctx, &transaction, &sessions).await?;
        let transaction = finalise(&ctx, &transaction, &sessions).await?;
        Ok(transaction.id())
    }
}

/// A participant's answer to [`ChangeNotary`].
pub(super) struct AgreeToChange;

impl Responder for AgreeToChange {
    const INITIATED_BY: &'static str = ChangeNotary::NAME;

    async fn call(ctx: Context, session: Session) -> Result<(), FlowError> {
        let notaries = ctx.notaries().await?;
        let transaction = sign_transaction(&ctx, &session, |transaction| {
            let wire = transaction.wire();
            if !wire.is_notary_change() {
                return Err(FlowError::failed("this is not a notary change"));
            }
            let known = |state: &quorate_ledger::TransactionState| {
                notaries
                    .iter()
                    .any(|notary| notary.identity == state.notary)
            };
            if wire.outputs().iter().all(known) {
                Ok(())
            } else {
                Err(FlowError::failed(
                    "the new notary is not in this node's network parameters",
                ))
            }
        })
        .await?;
        let id = Some(transaction.id());
        receive_finality(&ctx, &session, id, StatesToRecord::OnlyRelevant).await?;
        Ok(())
    }
}
