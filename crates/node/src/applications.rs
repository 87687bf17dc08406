//! The installed applications, taken together: their flows, contracts, schemas, side effects.

use std::collections::BTreeMap;
use std::sync::Arc;

use quorate_flow::standard::Standard;
use quorate_flow::{App, FlowRegistry, RegistryError, SideEffect};
use quorate_identity::SecureHash;
use quorate_ledger::schema::MappedSchema;
use quorate_ledger::{Contracts, DuplicateContract, TransactionState};

/// Applications that cannot live in one node.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// Two claim the same flow.
    #[error(transparent)]
    Flow(#[from] RegistryError),
    /// Two bring the same contract.
    #[error("application '{app}' brings a contract that is installed already")]
    Contract {
        /// The application being installed.
        app: String,
        /// Which contract.
        #[source]
        source: DuplicateContract,
    },
    /// Two bring the same side effect.
    #[error("application '{app}' brings the side effect '{name}', which is installed already")]
    SideEffect {
        /// The application being installed.
        app: String,
        /// The name.
        name: String,
    },
    /// Two bring a schema of the same name.
    #[error("application '{app}' brings the schema '{name}', which is installed already")]
    Schema {
        /// The application being installed.
        app: String,
        /// The name.
        name: String,
    },
}

/// Everything that the installed applications bring.
pub struct Applications {
    /// Name and version of each, in the order of installation.
    pub names: Vec<(String, u32)>,
    /// Flows and responders.
    pub registry: Arc<FlowRegistry>,
    /// Contracts.
    pub contracts: Arc<Contracts>,
    /// Tables about states.
    pub schemas: Vec<MappedSchema>,
    /// Side effects by name.
    pub effects: BTreeMap<String, Arc<dyn SideEffect>>,
    /// Which application a startable flow belongs to.
    pub owners: BTreeMap<String, String>,
    /// By contract: the version of the application that brings the code, and the code.
    codes: BTreeMap<String, (u32, SecureHash)>,
    apps: Vec<Arc<dyn App>>,
}

impl Applications {
    /// Installs the standard application and these.
    pub fn install(apps: &[Arc<dyn App>]) -> Result<Self, AppError> {
        let mut registry = FlowRegistry::new();
        let mut contracts = Contracts::new();
        let mut names = Vec::new();
        let mut schemas: Vec<MappedSchema> = Vec::new();
        let mut effects = BTreeMap::new();
        let mut owners = BTreeMap::new();
        let mut codes = BTreeMap::new();
        let standard: Arc<dyn App> = Arc::new(Standard);
        for app in std::iter::once(&standard).chain(apps) {
            let name = || app.name().to_owned();
            registry.install(app.as_ref())?;
            for flow in registry.startable() {
                owners.entry(flow.to_owned()).or_insert_with(name);
            }
            for contract in app.contracts() {
                let (version, code) = codes
                    .entry(contract.name().to_owned())
                    .or_insert((0, contract.code()));
                if app.version() >= *version {
                    (*version, *code) = (app.version(), contract.code());
                }
                contracts
                    .register(contract)
                    .map_err(|source| AppError::Contract {
                        app: name(),
                        source,
                    })?;
            }
            for schema in app.schemas() {
                if schemas.iter().any(|known| known.name == schema.name) {
                    return Err(AppError::Schema {
                        app: name(),
                        name: schema.name.to_string(),
                    });
                }
                schemas.push(schema);
            }
            for (effect, performer) in app.side_effects() {
                if effects.insert(effect.to_owned(), performer).is_some() {
                    return Err(AppError::SideEffect {
                        app: name(),
                        name: effect.to_owned(),
                    });
                }
            }
            names.push((name(), app.version()));
        }
        Ok(Self {
            names,
            registry: Arc::new(registry),
            contracts: Arc::new(contracts),
            schemas,
            effects,
            owners,
            codes,
            apps: apps.to_vec(),
        })
    }

    /// A state as readable fields, if an installed application knows it.
    pub fn read_state(&self, state: &TransactionState) -> Option<serde_json::Value> {
        self.apps.iter().find_map(|app| app.read_state(state))
    }

    /// The hash of each contract's code, by name: what flows put into new states. Where several
    /// versions of a contract are installed, because states under the older ones still live, it
    /// is that of the application with the highest version; of several, the one installed last.
    pub fn contract_codes(&self) -> BTreeMap<String, SecureHash> {
        self.codes
            .iter()
            .map(|(name, (_, code))| (name.clone(), *code))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use quorate_ledger::{Contract, ContractViolation, LedgerTransaction};

    use super::*;

    struct Version(u32, SecureHash);

    impl Contract for Version {
        fn name(&self) -> &str {
            "coin.Coins"
        }

        fn code(&self) -> SecureHash {
            self.1
        }

        fn verify(&self, _: &LedgerTransaction) -> Result<(), ContractViolation> {
            Ok(())
        }
    }

    impl App for Version {
        fn name(&self) -> &str {
            "coin"
        }

        fn version(&self) -> u32 {
            self.0
        }

        fn contracts(&self) -> Vec<Arc<dyn Contract>> {
            vec![Arc::new(Self(self.0, self.1))]
        }

        fn register_flows(&self, _: &mut FlowRegistry) {}
    }

    #[test]
    fn new_states_are_under_the_newest_code_whatever_its_hash() {
        let codes = [b"a", b"b", b"c", b"d"].map(|text| SecureHash::of(text));
        for (installed, newest) in [
            ([(1, 0), (2, 1), (3, 2)], 2),
            ([(3, 2), (2, 1), (1, 0)], 2),
            ([(2, 0), (7, 3), (3, 1)], 3),
            ([(2, 3), (2, 0), (1, 2)], 0),
        ] {
            let apps = installed.map(|(version, code): (u32, usize)| {
                Arc::new(Version(version, codes[code])) as Arc<dyn App>
            });
            let found = Applications::install(&apps).unwrap().contract_codes();
            assert_eq!(found["coin.Coins"], codes[newest], "{installed:?}");
        }
    }
}
