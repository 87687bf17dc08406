//! `notary`.

use std::path::Path;
use std::time::Duration;

use quorate_identity::X500Name;
use quorate_notary::{BATCH_INPUT_STATES, BATCH_SIZE, ETA_THRESHOLD, Options, QUEUE_SIZE};
use quorate_runtime::config::Section;

use super::database::DatabaseConfiguration;

/// The notary of this node.
#[derive(Debug, Clone)]
pub struct NotaryConfiguration {
    /// Whether it sees and verifies whole transactions.
    pub validating: bool,
    /// The name that transactions carry, if it is not the node's own: the name of a cluster.
    pub service_legal_name: Option<X500Name>,
    /// When the expected wait is longer than this, clients are told when to ask again.
    pub eta_message_threshold: Duration,
    /// Requests in one batch.
    pub batch_size: usize,
    /// States in one batch.
    pub batch_input_states: usize,
    /// Requests that may wait.
    pub queue_size: usize,
    /// The database in which the workers of the notary keep what is spent, if it is not the node's own.
    pub shared_database: Option<DatabaseConfiguration>,
}

impl NotaryConfiguration {
    /// What the notary is started with.
    pub fn service_options(&self) -> Options {
        Options {
            validating: self.validating,
            batch_size: self.batch_size,
            batch_input_states: self.batch_input_states,
            queue_size: self.queue_size,
            eta_threshold: self.eta_message_threshold,
        }
    }
}

pub(super) fn decode(
    root: &Section<'_>,
    base: &Path,
    dev_mode: bool,
    my_legal_name: Option<&X500Name>,
) -> Option<NotaryConfiguration> {
    let section = root.section("notary");
    if !section.is_present() {
        return None;
    }
    if !section.has("validating") {
        section.problem(
            "validating",
            "is missing; write true if the notary shall see whole transactions, else false",
        );
    }
    let validating = section.boolean_or("validating", false);
    let service_legal_name = section.parsed::<X500Name>("serviceLegalName");
    if service_legal_name.is_some() && service_legal_name.as_ref() == my_legal_name {
        section.problem(
            "serviceLegalName",
            "is the node's own name; a cluster's name must be another one, and a notary that is alone needs none",
        );
    }
    provider(&section);
    let eta_message_threshold = section.duration_or(
        "etaMessageThresholdSeconds",
        "seconds",
        ETA_THRESHOLD,
        Duration::ZERO..=Duration::from_secs(86_400),
    );

    let jpa = section.section("jpa");
    let number = |key, default: usize, bounds| jpa.integer_or(key, default as u64, bounds) as usize;
    let batch_size = number("maxBatchSize", BATCH_SIZE, 1..=10_000);
    let batch_input_states = number("maxBatchInputStates", BATCH_INPUT_STATES, 1..=1_000_000);
    let queue_size = number("maxQueueSize", QUEUE_SIZE, 1..=1_000_000);
    for key in [
        "batchTimeoutMs",
        "connectionRetries",
        "backOffIncrement",
        "backOffBase",
        "generateNativeSQL",
    ] {
        jpa.unneeded(
            key,
            "batches form by themselves while the one before is being committed",
        );
    }
    let shared_database = shared_database(&jpa, base, dev_mode);
    if shared_database.is_some() && service_legal_name.is_none() {
        section.problem(
            "serviceLegalName",
            "is missing: a notary whose workers share a database has a name of its own, the same on all of them",
        );
    }
    jpa.finish();
    section.finish();
    Some(NotaryConfiguration {
        validating,
        service_legal_name,
        eta_message_threshold,
        batch_size,
        batch_input_states,
        queue_size,
        shared_database,
    })
}

/// The database that the workers of a notary share, if they do.
fn shared_database(
    jpa: &Section<'_>,
    base: &Path,
    dev_mode: bool,
) -> Option<DatabaseConfiguration> {
    jpa.refused(
        "dataSource",
        "write dataSourceProperties { dataSource { url = … } }, as for the node's own database",
    );
    if jpa.has("dataSourceProperties") {
        return super::database::decode(jpa, base, dev_mode);
    }
    jpa.unneeded(
        "database",
        "without dataSourceProperties the notary's states are in the node's own database",
    );
    None
}

/// Which provider of uniqueness is meant: by Corda's class name or by its section.
fn provider(section: &Section<'_>) {
    const RAFT: &str = "a notary over Raft is not offered yet; remove this to keep the spent states in the node's \
                        database, and run the node hot-cold";
    const BFT: &str = "a notary over BFT-SMaRt is not supported; remove this to keep the spent states in the node's \
                       database, and run the node hot-cold";
    const MYSQL: &str = "a notary over MySQL is not supported; use notary { validating = … } on a node with PostgreSQL";
    section.refused("raft", RAFT);
    section.refused("bftSMaRt", BFT);
    section.refused("mysql", MYSQL);
    section.unneeded("extraConfig", "there is nothing further to configure");
    if let Some(class) = section.text("className") {
        let lower = class.to_ascii_lowercase();
        if lower.contains("raft") {
            section.problem("className", RAFT);
        } else if lower.contains("bft") {
            section.problem("className", BFT);
        } else if lower.contains("mysql") {
            section.problem("className", MYSQL);
        } else if lower.contains("jpa")
            || lower.contains("simplenotary")
            || lower.contains("validatingnotary")
        {
            section.unneeded(
                "className",
                "the spent states are kept in the node's database",
            );
        } else {
            section.problem(
                "className",
                "notaries cannot be loaded by class name; remove it to use the node's database",
            );
        }
    }
}
