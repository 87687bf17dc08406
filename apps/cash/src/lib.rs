//! Cash and obligations on the ledger: the example application.
//!
//! It shows every part that an application has: states with canonical, versioned bytes
//! ([`Cash`], [`Iou`]), contracts that judge transactions ([`CashContract`], [`IouContract`]),
//! flows that build, sign and finalise them with other parties ([`Payment`], [`Swap`], …), tables
//! in which the vault is searched, and [`CashApp`], which a node installs. `docs/guide` walks
//! through it and through writing another.
//!
//! It leaves to the node everything that is not a rule about money: keys, the vault, the network,
//! the notary. Start reading with the table in [`cash`], then [`flows`].

mod amount;
pub mod cash;
mod coins;
pub mod flows;
pub mod iou;
pub mod iou_flows;

use std::sync::Arc;

use quorate_flow::{App, FlowRegistry};
use quorate_ledger::schema::MappedSchema;
use quorate_ledger::{Contract, TransactionState};
use serde_json::Value;

pub use amount::{Amount, AmountError, Currency, Decimal};
pub use cash::{BalanceError, Cash, CashContract, IssuanceReference, Token, balances};
pub use flows::{Exit, Exited, Issue, IssueAndPay, Issued, IssuedAndPaid, Paid, Payment};
pub use iou::{Iou, IouContract};
pub use iou_flows::{IouIssued, IouSettled, IssueIou, SettleIou, Swap, Swapped};

/// The application, as a node installs it.
#[derive(Debug, Clone, Copy, Default)]
pub struct CashApp;

impl App for CashApp {
    fn name(&self) -> &str {
        "cash"
    }

    fn version(&self) -> u32 {
        1
    }

    fn contracts(&self) -> Vec<Arc<dyn Contract>> {
        vec![Arc::new(CashContract), Arc::new(IouContract)]
    }

    fn schemas(&self) -> Vec<MappedSchema> {
        vec![cash::schema(), iou::schema()]
    }

    fn register_flows(&self, registry: &mut FlowRegistry) {
        registry
            .flow::<Issue>()
            .flow::<Payment>()
            .flow::<IssueAndPay>()
            .flow::<Exit>()
            .flow::<IssueIou>()
            .flow::<SettleIou>()
            .flow::<Swap>()
            .responder::<flows::ReceivePayment>()
            .responder::<iou_flows::Lend>()
            .responder::<iou_flows::ReceiveSettlement>()
            .responder::<iou_flows::AnswerSwap>();
    }
    fn read_state(&self, state: &TransactionState) -> Option<Value> {
        if state.is::<Cash>() {
            serde_json::to_value(state.read::<Cash>().ok()?).ok()
        } else {
            serde_json::to_value(state.read::<Iou>().ok()?).ok()
        }
    }
}
