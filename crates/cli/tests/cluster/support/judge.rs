//! Whether the chains are right, by what the clients were told.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use quorate_fabric::block;
use quorate_fabric::config::ChannelConfig;
use quorate_fabric::envelope::RawEnvelope;
use quorate_fabric::proto::common::{BlockHeader, Payload};
use quorate_orderer::store::StoredBlock;

use super::client::{Answer, Books, words};
use super::network::Network;

/// The policy by which blocks are accepted.
const BLOCK_VALIDATION: &str = "/Channel/Orderer/BlockValidation";

/// Compares the chains of all of these, looks up every envelope, and gives the chain.
pub(crate) async fn judge(network: &Network, among: &[usize], books: &Books) -> Vec<StoredBlock> {
    let height = network.level(among).await;
    let mut first: Option<Vec<StoredBlock>> = None;
    for number in among {
        let line = network.orderers[*number].line();
        let chain = line.chain(height, &network.admin).await;
        let chain = chain.unwrap_or_else(|reason| panic!("orderer{number}: {reason}"));
        match &first {
            None => {
                verify(&chain);
                first = Some(chain);
            }
            Some(first) => same(first, &chain, *number),
        }
    }
    let chain = first.unwrap();
    look_up(&chain, books);
    chain
}

/// The hash chain, and each block's signatures by the configuration before it.
fn verify(chain: &[StoredBlock]) {
    let mut config: Option<ChannelConfig> = None;
    let mut previous: Option<BlockHeader> = None;
    for stored in chain {
        let block = stored.block();
        block::check_data_hash(&block).unwrap();
        if let Some(previous) = &previous {
            block::check_link(previous, &block).unwrap();
        }
        if let Some(config) = &config {
            let rule = config.policies().get(BLOCK_VALIDATION).unwrap();
            block::verify_signatures(&block, &rule).unwrap();
        }
        if block::is_config(&block) {
            config = Some(ChannelConfig::from_block(&block).unwrap());
        }
        previous = block.header.clone();
    }
}

/// Header and data are the same, and what consenters note. Signatures may differ: whoever pulled a block has its
/// leader's signature, as the others have.
fn same(one: &[StoredBlock], other: &[StoredBlock], number: usize) {
    assert_eq!(one.len(), other.len(), "orderer{number} has another chain");
    for (one, other) in one.iter().zip(other) {
        let (one, other) = (one.block(), other.block());
        let at = one.header.as_ref().unwrap().number;
        assert_eq!(one.header, other.header, "block {at} of orderer{number}");
        assert_eq!(one.data, other.data, "block {at} of orderer{number}");
        assert_eq!(
            block::consenter_metadata(&one).unwrap(),
            block::consenter_metadata(&other).unwrap(),
            "consenter metadata of block {at} of orderer{number}"
        );
        assert_eq!(
            block::last_config(&one).unwrap(),
            block::last_config(&other).unwrap(),
            "last config of block {at} of orderer{number}"
        );
    }
}

fn look_up(chain: &[StoredBlock], books: &Books) {
    let mut ordered: BTreeMap<String, usize> = BTreeMap::new();
    for stored in chain {
        for envelope in stored.block().data.unwrap().data {
            let envelope = RawEnvelope::decode(envelope).unwrap();
            let payload = Payload::decode(envelope.payload().as_ref()).unwrap();
            if let Some(words) = words(&payload) {
                *ordered.entry(words).or_default() += 1;
            }
        }
    }
    let twice: Vec<_> = ordered.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "ordered more than once: {twice:?}");
    let lost: Vec<_> = books
        .iter()
        .filter(|(name, answer)| *answer == Answer::Acknowledged && !ordered.contains_key(name))
        .collect();
    assert!(
        lost.is_empty(),
        "{} acknowledged and lost: {lost:?}",
        lost.len()
    );
    let sent: BTreeSet<&String> = books.iter().map(|(name, _)| name).collect();
    let invented: Vec<_> = ordered.keys().filter(|name| !sent.contains(name)).collect();
    assert!(invented.is_empty(), "nobody sent these: {invented:?}");
    let acknowledged = books
        .iter()
        .filter(|(_, answer)| *answer == Answer::Acknowledged)
        .count();
    println!(
        "{} blocks, {acknowledged} envelopes acknowledged and ordered, {} of {} without an answer ordered as well",
        chain.len(),
        ordered.len() - acknowledged,
        books.len() - acknowledged
    );
}
