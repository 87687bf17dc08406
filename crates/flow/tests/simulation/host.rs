//! What a simulated node answers to its flows, from its own durable state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use quorate_flow::{FlowError, FlowId, HostError, HostRequest, Reply, SignaturePolicy};
use quorate_identity::{KeyPair, Party, PublicKey, X500Name};
use quorate_ledger::vault::{Page, StateStatus, VaultState};
use quorate_ledger::{
    ConsumingTx, Contracts, LedgerTransaction, NotarisationAnswer, NotarisationMessage,
    NotaryError, SignedTransaction, StateRef, Timestamp, TransactionState, TxId, sign_transaction,
};

use crate::app::Coins;
use crate::store::Store;

/// Who takes part, the same in every run: keys are expensive.
pub(crate) struct Cast {
    pub(crate) keys: Vec<KeyPair>,
    pub(crate) parties: Vec<Party>,
    pub(crate) notary_key: KeyPair,
    pub(crate) notary: Party,
    pub(crate) contracts: Contracts,
}

pub(crate) fn cast() -> &'static Cast {
    static CAST: OnceLock<Cast> = OnceLock::new();
    CAST.get_or_init(|| {
        let key = |n: u8| KeyPair::ed25519_from_seed(&[n; 32]);
        let party = |organisation: &str, key: &KeyPair| Party {
            name: X500Name::new(organisation, "Osaka", "JP").expect("a name"),
            owning_key: key.public().clone(),
        };
        let keys: Vec<KeyPair> = (1..=3).map(key).collect();
        let names = ["PartyA", "PartyB", "PartyC"];
        let parties = names.iter().zip(&keys).map(|(n, k)| party(n, k)).collect();
        let notary_key = key(9);
        let notary = party("Notary", &notary_key);
        let mut contracts = Contracts::new();
        contracts.register(Arc::new(Coins)).expect("one contract");
        Cast {
            keys,
            parties,
            notary_key,
            notary,
            contracts,
        }
    })
}

/// Every side effect that was performed: by its identity, what was asked, each time.
pub(crate) type Effects = BTreeMap<String, Vec<String>>;

/// Answers a request. What it changes is durable at once.
pub(crate) fn answer(
    node: usize,
    store: &mut Store,
    effects: &mut Effects,
    now: Timestamp,
    (flow, sequence): (FlowId, u32),
    request: &HostRequest,
) -> Result<Reply, HostError> {
    let cast = cast();
    let key_of = |wanted: &PublicKey| {
        [&cast.keys[node], &cast.notary_key]
            .into_iter()
            .find(|key| key.public() == wanted)
            .ok_or_else(|| FlowError::failed("not our key"))
    };
    Ok(match request {
        HostRequest::Sign { id, by } => {
            let mut signatures = Vec::new();
            for key in by {
                signatures.push(sign_transaction(key_of(key)?, id));
            }
            Reply::Signatures(signatures)
        }
        HostRequest::SignNotarisation { request } => {
            Reply::RequestSignature(request.sign(&cast.keys[node]))
        }
        HostRequest::Notarise { requester, message } => {
            Reply::NotaryAnswer(notarise(store, requester, message))
        }
        HostRequest::Verify {
            transaction,
            dependencies,
            signatures,
        } => {
            verify(store, transaction, dependencies, signatures)?;
            Reply::Done
        }
        HostRequest::Missing { ids } => Reply::TxIds(
            ids.iter()
                .filter(|id| store.final_transaction(id).is_none())
                .copied()
                .collect(),
        ),
        HostRequest::Transactions { ids } => Reply::Transactions(
            ids.iter()
                .filter_map(|id| store.final_transaction(id).cloned())
                .collect(),
        ),
        HostRequest::States { refs } => {
            let mut states = Vec::new();
            for reference in refs {
                let maker = store.final_transaction(&reference.tx);
                let state = maker.and_then(|maker| maker.wire().output(reference.index));
                states.push(state.ok_or_else(|| FlowError::unknown(reference))?);
            }
            Reply::States(states)
        }
        HostRequest::Query(_) => {
            let states: Vec<VaultState> = store
                .unconsumed()
                .map(|(state, _)| VaultState {
                    state,
                    status: StateStatus::Unconsumed,
                    recorded_at: now,
                    consumed_at: None,
                    consumed_by: None,
                    locked_by: None,
                })
                .collect();
            Reply::Page(Page {
                total: states.len() as u64,
                states,
                number: 1,
                size: 200,
            })
        }
        HostRequest::Lock { target, .. } => Reply::States(store.lock(flow, sequence, target)?),
        HostRequest::SideEffect { arguments, .. } => {
            let performed = effects.entry(format!("{flow}/{sequence}")).or_default();
            performed.push(arguments.clone());
            Reply::Json(performed.len().to_string())
        }
        other => return Err(FlowError::failed(format!("not simulated: {other:?}")).into()),
    })
}

/// Marks the states of a request as spent and signs, or says why not. Asked again, it answers
/// the same.
pub(crate) fn notarise(
    store: &mut Store,
    requester: &Party,
    message: &NotarisationMessage,
) -> NotarisationAnswer {
    let request = message.payload.request();
    let signature = &message.request_signature;
    if signature.by != requester.owning_key || request.verify(signature).is_err() {
        let why = "not signed by who asks".to_owned();
        return NotarisationAnswer::Refused(NotaryError::RequestSignatureInvalid(why));
    }
    if let Err(error) = message.payload.check_complete() {
        let why = error.to_string();
        return NotarisationAnswer::Refused(NotaryError::TransactionInvalid(why));
    }
    let tx = request.tx();
    let consumed: BTreeMap<StateRef, ConsumingTx> = request
        .inputs()
        .iter()
        .filter_map(|input| Some((*input, *store.spent.get(input)?)))
        .filter(|(_, by)| *by != tx)
        .map(|(input, tx)| {
            let by = ConsumingTx {
                tx,
                as_reference: false,
            };
            (input, by)
        })
        .collect();
    if !consumed.is_empty() {
        return NotarisationAnswer::Refused(NotaryError::Conflict { tx, consumed });
    }
    for input in request.inputs() {
        store.spent.insert(*input, tx);
    }
    NotarisationAnswer::Signed(vec![sign_transaction(&cast().notary_key, &tx)])
}

fn verify(
    store: &Store,
    transaction: &SignedTransaction,
    dependencies: &[SignedTransaction],
    signatures: &SignaturePolicy,
) -> Result<(), FlowError> {
    let mut come_along: BTreeMap<TxId, &SignedTransaction> = BTreeMap::new();
    for one in dependencies.iter().chain([transaction]) {
        let notary = || one.wire().notary().map(|notary| notary.owning_key.clone());
        let exempt: BTreeSet<PublicKey> = match signatures {
            _ if one.id() != transaction.id() => BTreeSet::new(),
            SignaturePolicy::All => BTreeSet::new(),
            SignaturePolicy::AllButNotary => notary().into_iter().collect(),
            SignaturePolicy::AllBut(keys) => keys.iter().cloned().chain(notary()).collect(),
        };
        let exempt: Vec<PublicKey> = exempt.into_iter().collect();
        let refused = |reason: String| FlowError::Verification {
            tx: one.id(),
            reason,
        };
        one.verify_signatures_except(&exempt)
            .map_err(|error| refused(error.to_string()))?;
        let state = |reference: &StateRef| -> Option<TransactionState> {
            let maker = match come_along.get(&reference.tx) {
                Some(maker) => maker,
                None => store.final_transaction(&reference.tx)?,
            };
            Some(maker.wire().output(reference.index)?.state)
        };
        LedgerTransaction::resolve(Arc::clone(one.wire()), state, |_| None)
            .map_err(|error| refused(error.to_string()))?
            .verify(&cast().contracts)
            .map_err(|error| refused(error.to_string()))?;
        come_along.insert(one.id(), one);
    }
    Ok(())
}
