//! Does this node's flow machine work? A flow that sends a message to its own node, waits for the
//! answer, and so needs checkpoints, queues and the database to work.

use serde::{Deserialize, Serialize};

use crate::context::{Context, Session};
use crate::error::FlowError;
use crate::registry::{Flow, Responder};

/// Sends a message to this very node and waits for it to come back.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelfCheck {}

impl Flow for SelfCheck {
    const NAME: &'static str = "quorate.SelfCheck";
    type Output = ();

    async fn call(self, ctx: Context) -> Result<(), FlowError> {
        let question = ctx.entropy().await?.to_vec();
        let session = ctx.session(&ctx.me().name).await?;
        session.send_bytes(question.clone()).await?;
        if session.receive_bytes().await? == question {
            Ok(())
        } else {
            Err(session.malformed("the message that was sent", "another one came"))
        }
    }
}

/// The other half of [`SelfCheck`]. It answers nobody but its own node.
pub(super) struct Echo;

impl Responder for Echo {
    const INITIATED_BY: &'static str = SelfCheck::NAME;

    async fn call(ctx: Context, session: Session) -> Result<(), FlowError> {
        if *session.counterparty() != ctx.me().name {
            return Err(FlowError::failed("this node checks itself only"));
        }
        let question = session.receive_bytes().await?;
        session.send_bytes(question).await
    }
}
