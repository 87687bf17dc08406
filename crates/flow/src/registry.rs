//! What applications bring: flows, responders, contracts, schemas, side effects.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use quorate_ledger::schema::MappedSchema;
use quorate_ledger::{Contract, TransactionState};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::context::{Context, Session};
use crate::error::{FlowError, HostError};

/// A flow that somebody can start. Its fields are its arguments.
///
/// The body may await only the operations of its [`Context`] and [`Session`]s, one at a time,
/// and must otherwise be deterministic: no clock, no randomness, no input or output of its own.
/// After a crash it runs again from the top with the recorded results.
pub trait Flow: Serialize + DeserializeOwned + Send + 'static {
    /// The name under which it is started, such as `cash.Payment`.
    const NAME: &'static str;
    /// Whether clients may start it by RPC (else only other flows can run it).
    const STARTABLE_BY_RPC: bool = true;
    /// What it returns.
    type Output: Serialize + DeserializeOwned + Send;

    /// The body.
    fn call(self, ctx: Context) -> impl Future<Output = Result<Self::Output, FlowError>> + Send;
}

/// The flow that answers when another party's flow opens a session with us.
pub trait Responder: 'static {
    /// The [`Flow::NAME`] of the flow that it answers.
    const INITIATED_BY: &'static str;

    /// The body; `session` leads to the initiator.
    fn call(ctx: Context, session: Session) -> impl Future<Output = Result<(), FlowError>> + Send;
}

/// Something that a flow causes outside the ledger, with a recorded result.
///
/// It may be performed more than once when a machine dies between performing and recording;
/// `identity` is the same each time, so that the outside can recognise a repetition.
pub trait SideEffect: Send + Sync {
    /// Performs it.
    fn perform(
        &self,
        identity: String,
        arguments: serde_json::Value,
    ) -> Pin<Box<dyn Future<Output = Result<serde_json::Value, HostError>> + Send>>;
}

/// An application: everything that a node needs to run it.
pub trait App: Send + Sync {
    /// Its name, such as `cash`.
    fn name(&self) -> &str;
    /// Its version, growing.
    fn version(&self) -> u32;
    /// The contracts that its states are under.
    fn contracts(&self) -> Vec<Arc<dyn Contract>>;
    /// The tables that it wants kept about its states.
    fn schemas(&self) -> Vec<MappedSchema> {
        Vec::new()
    }
    /// Registers its flows and responders.
    fn register_flows(&self, registry: &mut FlowRegistry);
    /// One of its states as readable fields, for clients and operators; `None` if it is not
    /// one of its states, or its bytes are not.
    fn read_state(&self, _state: &TransactionState) -> Option<serde_json::Value> {
        None
    }
    /// Its side effects by name.
    fn side_effects(&self) -> Vec<(&'static str, Arc<dyn SideEffect>)> {
        Vec::new()
    }
}

/// Two applications claim the same name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "application '{app}' registers {what} '{name}', which is registered already; \
     install only one of the two applications"
)]
pub struct RegistryError {
    /// The application being installed.
    pub app: String,
    /// What kind of thing.
    pub what: &'static str,
    /// The name that is taken.
    pub name: String,
}

pub(crate) type Body = Pin<Box<dyn Future<Output = Result<String, FlowError>> + Send>>;
type MakeFlow = fn(Context, &str) -> Result<Body, String>;
type MakeResponder = fn(Context, Session) -> Body;

struct Initiating {
    app_version: u32,
    startable: bool,
    make: MakeFlow,
}

/// The flows of all installed applications.
#[derive(Default)]
pub struct FlowRegistry {
    flows: BTreeMap<&'static str, Initiating>,
    responders: BTreeMap<&'static str, MakeResponder>,
    installing: (String, u32),
    taken: Option<RegistryError>,
}

impl FlowRegistry {
    /// A registry without applications.
    pub fn new() -> Self {
        Self::default()
    }

    /// Installs an application's flows.
    pub fn install(&mut self, app: &dyn App) -> Result<(), RegistryError> {
        self.installing = (app.name().to_owned(), app.version());
        app.register_flows(self);
        match self.taken.take() {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    /// Registers a flow of the application being installed.
    pub fn flow<F: Flow>(&mut self) -> &mut Self {
        let make: MakeFlow = |ctx, arguments| {
            let flow: F = serde_json::from_str(arguments).map_err(|e| e.to_string())?;
            Ok(Box::pin(async move {
                let output = flow.call(ctx).await?;
                serde_json::to_string(&output).map_err(|error| {
                    FlowError::failed(format!("the flow's result cannot be written: {error}"))
                })
            }))
        };
        let entry = Initiating {
            app_version: self.installing.1,
            startable: F::STARTABLE_BY_RPC,
            make,
        };
        if self.flows.insert(F::NAME, entry).is_some() {
            self.refuse("flow", F::NAME);
        }
        self
    }

    /// Registers a responder of the application being installed.
    pub fn responder<R: Responder>(&mut self) -> &mut Self {
        let make: MakeResponder = |ctx, session| {
            Box::pin(async move {
                R::call(ctx, session).await?;
                Ok("null".to_owned())
            })
        };
        if self.responders.insert(R::INITIATED_BY, make).is_some() {
            self.refuse("the responder of", R::INITIATED_BY);
        }
        self
    }

    /// The flows that clients may start, by name.
    pub fn startable(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.flows
            .iter()
            .filter(|(_, flow)| flow.startable)
            .map(|(name, _)| *name)
    }

    /// Whether a responder is registered for this initiating flow.
    pub fn answers(&self, initiating: &str) -> bool {
        self.responders.contains_key(initiating)
    }

    /// The name as registered, which lives as long as the program.
    pub(crate) fn flow_name(&self, name: &str) -> Option<&'static str> {
        self.flows.get_key_value(name).map(|(name, _)| *name)
    }

    /// The name of the initiating flow as registered by its responder.
    pub(crate) fn responder_name(&self, name: &str) -> Option<&'static str> {
        self.responders.get_key_value(name).map(|(name, _)| *name)
    }

    pub(crate) fn is_startable(&self, name: &str) -> bool {
        self.flows.get(name).is_some_and(|flow| flow.startable)
    }

    pub(crate) fn app_version(&self, name: &str) -> u32 {
        self.flows.get(name).map_or(0, |flow| flow.app_version)
    }

    /// The body of the flow `name`; `None` if it is not installed, an error if the arguments
    /// are not its.
    pub(crate) fn start(
        &self,
        name: &str,
        ctx: Context,
        arguments: &str,
    ) -> Option<Result<Body, String>> {
        let flow = self.flows.get(name)?;
        Some((flow.make)(ctx, arguments))
    }

    /// The body of the responder to `initiating`.
    pub(crate) fn respond(&self, initiating: &str, ctx: Context, session: Session) -> Option<Body> {
        let make = self.responders.get(initiating)?;
        Some(make(ctx, session))
    }

    fn refuse(&mut self, what: &'static str, name: &str) {
        self.taken.get_or_insert(RegistryError {
            app: self.installing.0.clone(),
            what,
            name: name.to_owned(),
        });
    }
}
