//! What is known of the network at one moment, as a value.
//!
//! A [`NetworkSnapshot`] is made of node infos that have been verified and chosen, and of the network parameters. It
//! decides for whom each node may speak; it reads no files and changes never.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quorate_flow::{FlowTimeout, Surroundings};
use quorate_identity::{Party, SecureHash, X500Name};
use quorate_ledger::network::{NetworkParameters, NodeInfo, NotaryInfo};
use quorate_messaging::{HostAndPort, MAX_ADDRESSES_PER_PEER};

/// Who is in the network, where they are reached, and for whom they may speak.
#[derive(Debug)]
pub struct NetworkSnapshot {
    own: X500Name,
    /// By legal name; ours is among them.
    nodes: BTreeMap<X500Name, Arc<NodeInfo>>,
    /// Everybody who can be addressed, services included.
    parties: BTreeMap<X500Name, Party>,
    /// The legal names of the nodes that provide a service.
    providers: BTreeMap<X500Name, Vec<X500Name>>,
    parameters: Arc<NetworkParameters>,
    parameters_hash: SecureHash,
}

/// Something that is larger than the network permits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the {what} has {size} bytes, but the network parameters permit {max} ({option}); \
     make it smaller, or let the network agree on larger ones"
)]
pub struct TooLarge {
    /// `message` or `transaction`.
    pub what: &'static str,
    /// The network parameter that sets the limit.
    pub option: &'static str,
    /// The size in bytes.
    pub size: u64,
    /// The limit in bytes.
    pub max: u64,
}

impl NetworkSnapshot {
    /// Puts a map together. `nodes` are verified infos by legal name, `own` is ours. What is odd about them, and left out,
    /// comes back in words.
    pub(super) fn build(
        own: &NodeInfo,
        mut nodes: BTreeMap<X500Name, Arc<NodeInfo>>,
        parameters: Arc<NetworkParameters>,
        parameters_hash: SecureHash,
    ) -> (Self, Vec<String>) {
        let own_name = own.identities[0].name().clone();
        nodes.insert(own_name.clone(), Arc::new(own.clone()));
        let mut parties: BTreeMap<_, _> = nodes
            .iter()
            .map(|(name, info)| (name.clone(), info.identities[0].party()))
            .collect();
        let mut notices = Vec::new();

        // Who claims which service under which key. The infos are signed with these keys, so a claim is never a lie; but
        // there may be two keys for one name, and then only one of them is the service.
        let mut claims: BTreeMap<X500Name, Vec<(Party, &NodeInfo)>> = BTreeMap::new();
        for info in nodes.values() {
            for service in info.parties().skip(1) {
                if parties.contains_key(&service.name) {
                    notices.push(format!(
                        "{} offers a service under the legal name of the node {}; that name stands for the node only",
                        info.identities[0].name(),
                        service.name
                    ));
                } else {
                    let claim = (service, &**info);
                    claims.entry(claim.0.name.clone()).or_default().push(claim);
                }
            }
        }
        let mut providers = BTreeMap::new();
        for (service, claims) in claims {
            let key = match parameters.notary(&service) {
                Some(notary) => notary.identity.owning_key.clone(),
                None => {
                    let newest = claims
                        .iter()
                        .max_by_key(|(party, info)| (info.serial, party.clone()))
                        .expect("a service is listed with its first claim");
                    newest.0.owning_key.clone()
                }
            };
            let mut provided_by = Vec::new();
            for (party, info) in claims {
                let node = info.identities[0].name();
                if party.owning_key == key {
                    provided_by.push(node.clone());
                } else {
                    notices.push(format!(
                        "{node} offers the service {service} with the key {}, but that service has the key {}; \
                         it is not asked. Members of one service need copies of one key",
                        party.owning_key.to_string_short(),
                        key.to_string_short()
                    ));
                }
            }
            if !provided_by.is_empty() {
                parties.insert(service.clone(), Party::new(service.clone(), key));
                providers.insert(service, provided_by);
            }
        }
        for notary in &parameters.notaries {
            match parties.get(&notary.identity.name) {
                Some(party) if *party == notary.identity => {}
                Some(party) => notices.push(format!(
                    "the network parameters name the notary {} with the key {}, but the node infos say {}; \
                     nobody can be asked to sign as that notary. Bootstrap the network again, or restore the node's keys",
                    notary.identity,
                    notary.identity.owning_key.to_string_short(),
                    party.owning_key.to_string_short()
                )),
                None => notices.push(format!(
                    "no node info tells where to reach the notary {}; copy the nodeInfo file of a node that provides it into {}",
                    notary.identity,
                    super::ADDITIONAL_NODE_INFOS_DIRECTORY
                )),
            }
        }
        let snapshot = Self {
            own: own_name,
            nodes,
            parties,
            providers,
            parameters,
            parameters_hash,
        };
        (snapshot, notices)
    }

    /// Our own info.
    #[must_use]
    pub fn own(&self) -> &NodeInfo {
        self.nodes
            .get(&self.own)
            .expect("our own info is put into every snapshot")
    }

    /// All nodes by legal name, our own included.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.nodes.values().map(Arc::as_ref)
    }

    /// The info of the node with this legal name.
    #[must_use]
    pub fn node(&self, legal_name: &X500Name) -> Option<&NodeInfo> {
        self.nodes.get(legal_name).map(Arc::as_ref)
    }

    /// Everybody who can be addressed: nodes and services, ourselves included.
    pub fn parties(&self) -> impl Iterator<Item = &Party> {
        self.parties.values()
    }

    /// The party of this name.
    #[must_use]
    pub fn party(&self, name: &X500Name) -> Option<&Party> {
        self.parties.get(name)
    }

    /// Where to reach a party, in the order in which to try; empty if nobody knows. For a service these are the
    /// addresses of all nodes that provide it (except our own): the first of each, then the second of each. Different
    /// nodes begin with different ones, so that the members of a service share the work.
    #[must_use]
    pub fn addresses(&self, party: &X500Name) -> Vec<HostAndPort> {
        let mut nodes: Vec<_> = self
            .answering(party)
            .iter()
            .filter(|node| **node != self.own)
            .filter_map(|node| self.nodes.get(node))
            .map(|info| info.addresses.as_slice())
            .collect();
        if !nodes.is_empty() {
            let start = usize::from(SecureHash::of(self.own.as_str().as_bytes()).as_bytes()[0]);
            let count = nodes.len();
            nodes.rotate_left(start % count);
        }
        let longest = nodes.iter().map(|addresses| addresses.len()).max();
        let mut seen = BTreeSet::new();
        (0..longest.unwrap_or(0))
            .flat_map(|rank| nodes.iter().filter_map(move |node| node.get(rank)))
            .filter(|address| seen.insert((*address).clone()))
            .take(MAX_ADDRESSES_PER_PEER)
            .map(|address| HostAndPort {
                host: address.host().to_owned(),
                port: address.port(),
            })
            .collect()
    }

    /// The legal names whose nodes may receive messages for a party: what their TLS certificates must say. For a service
    /// the nodes that provide it; everybody else answers for themselves.
    #[must_use]
    pub fn answering(&self, party: &X500Name) -> Vec<X500Name> {
        match self.providers.get(party) {
            Some(nodes) => nodes.clone(),
            None => vec![party.clone()],
        }
    }

    /// Whether the node of legal name `node` may speak for `identity`.
    #[must_use]
    pub fn serves(&self, node: &X500Name, identity: &X500Name) -> bool {
        match self.providers.get(identity) {
            Some(nodes) => nodes.contains(node),
            None => node == identity,
        }
    }

    /// The notaries of the network.
    #[must_use]
    pub fn notaries(&self) -> &[NotaryInfo] {
        &self.parameters.notaries
    }

    /// The identity with which we sign as notary, if the network parameters know it.
    #[must_use]
    pub fn own_notary(&self) -> Option<&NotaryInfo> {
        let own: Vec<Party> = self.own().parties().collect();
        self.notaries()
            .iter()
            .find(|notary| own.contains(&notary.identity))
    }

    /// The network parameters in force.
    #[must_use]
    pub fn parameters(&self) -> &NetworkParameters {
        &self.parameters
    }

    /// The hash by which transactions refer to them.
    #[must_use]
    pub fn parameters_hash(&self) -> SecureHash {
        self.parameters_hash
    }

    /// Whether a message of so many bytes may be sent.
    ///
    /// # Errors
    /// [`TooLarge`] if not.
    pub fn check_message_size(&self, bytes: usize) -> Result<(), TooLarge> {
        check_size(
            "message",
            "maxMessageSize",
            bytes,
            self.parameters.max_message_size,
        )
    }

    /// Whether a signed transaction of so many encoded bytes may be recorded and sent.
    ///
    /// # Errors
    /// [`TooLarge`] if not.
    pub fn check_transaction_size(&self, bytes: usize) -> Result<(), TooLarge> {
        check_size(
            "transaction",
            "maxTransactionSize",
            bytes,
            self.parameters.max_transaction_size,
        )
    }

    /// What flows see of the network; `contracts` are the installed ones with the hashes of their code, `flow_timeout` is
    /// the configured one.
    #[must_use]
    pub fn surroundings(
        &self,
        contracts: BTreeMap<String, SecureHash>,
        flow_timeout: FlowTimeout,
    ) -> Surroundings {
        let own = self.own();
        let services = own.parties().skip(1);
        Surroundings {
            me: own.identities[0].party(),
            services: services
                .filter(|service| self.party(&service.name) == Some(service))
                .collect(),
            parties: self.parties.clone(),
            providers: self.providers.clone(),
            flow_timeout,
            notaries: self.parameters.notaries.clone(),
            parameters: Some(self.parameters_hash),
            contracts,
        }
    }
}

fn check_size(
    what: &'static str,
    option: &'static str,
    bytes: usize,
    max: u64,
) -> Result<(), TooLarge> {
    let size = bytes as u64;
    match size > max {
        true => Err(TooLarge {
            what,
            option,
            size,
            max,
        }),
        false => Ok(()),
    }
}
