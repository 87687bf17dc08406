//! Durable flows: business processes between parties that survive any crash.
//!
//! A flow is an ordinary async function whose every contact with the outside is an *operation*
//! recorded in a journal. After a crash it runs again from the top and reads the results of its
//! operations from the journal instead of performing them, until it reaches the point where it
//! was. Nothing of the function's memory is ever serialised.
//!
//! This crate is pure: no async runtime, no input or output, no clock, no randomness. The
//! [`Machine`] turns events (a message came, a commit is done, a time has come) into actions
//! (commit this step, perform this request), and somebody else performs them; the simulator runs
//! the same machine as the node. What it leaves to others: making a [`StepCommit`] durable
//! (`storage`), carrying an [`Envelope`] (`messaging`), answering a [`HostRequest`] (`node`).
//!
//! An application's author starts with [`Flow`], [`Responder`], [`Context`] and [`App`], and
//! composes the flows in [`standard`]; a reader of the machine starts with [`Machine`].

mod cell;
mod commit;
mod context;
mod error;
mod ids;
mod journal;
mod machine;
mod message;
mod registry;
pub mod standard;
mod trace;

pub use commit::{
    Checkpoint, Finality, FlowOutcome, FlowStart, FlowStatus, InboxId, Origin, Recording,
    StatesToRecord, StepCommit,
};
pub use context::{Context, Session};
pub use error::{FlowError, HostError};
pub use ids::{ClientId, FlowId, IdError, MAX_CLIENT_ID_BYTES, SessionId};
pub use journal::{ENTRY_VERSION, HostRequest, LockTarget, Reply, SignaturePolicy, describe_entry};
pub use machine::{
    Action, Event, FlowTimeout, FlowView, Limits, Machine, RetryPolicy, SigningRetries,
    StartRefused, Surroundings,
};
pub use message::{Envelope, MessageError, Owner, SessionMessage};
pub use registry::{App, Flow, FlowRegistry, RegistryError, Responder, SideEffect};
pub use trace::{FlowTrace, TraceContext, TraceContextError};
