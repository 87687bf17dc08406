//! The recorded chain: hashes, metadata and signatures of its blocks, in every orderer's copy.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;
use std::sync::Mutex;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use proptest::prelude::*;
use prost::Message as _;
use quorate_fabric::block::{self, BlockError};
use quorate_fabric::config::ChannelConfig;
use quorate_fabric::msp::{SignError, Signer};
use quorate_fabric::policy::Policy;
use quorate_fabric::proto::common::{Block, BlockHeader, BlockMetadataIndex};
use quorate_fabric::proto::etcdraft;
use serde_json::Value as Json;

fn folder() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../fixtures/fabric/chain"
    ))
}

/// What is recorded about each block, and the block.
fn chain() -> Vec<(Json, Block)> {
    let index: Json =
        serde_json::from_slice(&std::fs::read(folder().join("chain.json")).unwrap()).unwrap();
    let blocks = index["blocks"].as_array().unwrap().iter().map(|recorded| {
        let file = recorded["file"].as_str().unwrap();
        let bytes = std::fs::read(folder().join(file)).unwrap();
        (recorded.clone(), Block::decode(&bytes[..]).unwrap())
    });
    blocks.collect()
}

/// The block with the metadata of each orderer's copy.
fn copies<'a>(recorded: &'a Json, block: &'a Block) -> impl Iterator<Item = (&'a Json, Block)> {
    recorded["copies"]
        .as_object()
        .unwrap()
        .values()
        .map(|copy| {
            let mut block = block.clone();
            let entries = copy["metadata"].as_array().unwrap();
            block.metadata.as_mut().unwrap().metadata = entries
                .iter()
                .map(|entry| STANDARD.decode(entry.as_str().unwrap()).unwrap().into())
                .collect();
            (copy, block)
        })
}

fn raft_metadata(copy: &Json) -> Option<etcdraft::BlockMetadata> {
    let recorded = copy["consenter_metadata"].as_object()?;
    Some(etcdraft::BlockMetadata {
        consenter_ids: recorded["consenter_ids"]
            .as_array()
            .unwrap()
            .iter()
            .map(|id| id.as_u64().unwrap())
            .collect(),
        next_consenter_id: recorded["next_consenter_id"].as_u64().unwrap(),
        raft_index: recorded["raft_index"].as_u64().unwrap(),
    })
}

#[test]
fn headers_hash_as_recorded() {
    let chain = chain();
    assert_eq!(chain.len(), 32);
    for (recorded, block) in &chain {
        let header = block.header.as_ref().unwrap();
        let number = header.number;
        assert_eq!(recorded["number"], number);
        assert_eq!(
            recorded["header_asn1"],
            hex::encode(block::header_bytes(header))
        );
        assert_eq!(
            recorded["header_hash"],
            hex::encode(block::header_hash(header))
        );
        assert_eq!(
            recorded["data_hash"],
            hex::encode(block::data_hash(block.data.as_ref().unwrap()))
        );
        assert_eq!(recorded["is_config"], block::is_config(block), "{number}");
        block::check_data_hash(block).unwrap();
    }
    for pair in chain.windows(2) {
        block::check_link(pair[0].1.header.as_ref().unwrap(), &pair[1].1).unwrap();
    }
}

#[test]
fn every_copy_says_where_the_configuration_is_and_what_raft_knew() {
    for (recorded, block) in &chain() {
        for (copy, block) in copies(recorded, block) {
            assert_eq!(copy["last_config"], block::last_config(&block).unwrap());
            assert_eq!(
                block::consenter_metadata(&block).unwrap(),
                raft_metadata(copy)
            );
        }
    }
}

/// Answers with a recorded signature and remembers what it was asked to sign.
struct Recorded {
    creator: Bytes,
    signature: Vec<u8>,
    asked: Mutex<Vec<u8>>,
}

impl Signer for Recorded {
    fn creator(&self) -> Bytes {
        self.creator.clone()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        message.clone_into(&mut self.asked.lock().unwrap());
        Ok(self.signature.clone())
    }
}

#[test]
fn we_make_the_blocks_that_the_orderers_made() {
    let chain = chain();
    let mut signatures = 0;
    for pair in chain.windows(2) {
        let previous = block::header_hash(pair[0].1.header.as_ref().unwrap());
        let (recorded, stored) = &pair[1];
        for (copy, stored) in copies(recorded, stored) {
            let envelopes = stored.data.clone().unwrap().data;
            let number = stored.header.as_ref().unwrap().number;
            let mut made = block::new_block(number, &previous, envelopes);
            assert_eq!(
                made.metadata.as_ref().unwrap().metadata.len(),
                block::METADATA_ENTRIES
            );

            let recorded = &copy["signatures"][0];
            let [given] = &block::signatures(&stored).unwrap().collect::<Vec<_>>()[..] else {
                panic!("one signature")
            };
            let signer = Recorded {
                creator: given.identity.clone(),
                signature: hex::decode(recorded["signature"].as_str().unwrap()).unwrap(),
                asked: Mutex::default(),
            };
            let nonce = hex::decode(recorded["nonce"].as_str().unwrap()).unwrap();
            let last_config = copy["last_config"].as_u64().unwrap();
            let raft = raft_metadata(copy).unwrap();
            block::sign(&mut made, last_config, &raft, &nonce, &signer).unwrap();

            assert_eq!(made.encode_to_vec(), stored.encode_to_vec(), "{number}");
            assert_eq!(signer.asked.into_inner().unwrap(), given.data);
            assert_eq!(given.signature, signer.signature);
            verify(&given.identity, &given.data, &given.signature);
            signatures += 1;
        }
    }
    assert!(signatures > 31);
}

/// Verifies with nothing of ours: the signature is over the bytes that were compared.
fn verify(serialized: &[u8], message: &[u8], signature: &[u8]) {
    let identity = quorate_fabric::proto::msp::SerializedIdentity::decode(serialized).unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(&identity.id_bytes).unwrap();
    let certificate = pem.parse_x509().unwrap();
    let key = certificate.public_key().subject_public_key.data.as_ref();
    aws_lc_rs::signature::UnparsedPublicKey::new(
        &aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1,
        key,
    )
    .verify(message, signature)
    .unwrap();
}

#[test]
fn every_copy_is_signed_as_its_channel_demands() {
    let mut rule: Option<Policy> = None;
    for (recorded, block) in &chain() {
        if let Some(rule) = &rule {
            for (_, mut copy) in copies(recorded, block) {
                block::verify_signatures(&copy, rule).unwrap();

                // Neither the header nor what is signed beside it may be another.
                let stored = copy.clone();
                copy.header.as_mut().unwrap().number += 1;
                assert!(matches!(
                    block::verify_signatures(&copy, rule),
                    Err(BlockError::Signatures { .. })
                ));
                let mut copy = stored;
                let mut signed = block::metadata(&copy, BlockMetadataIndex::Signatures).unwrap();
                signed.value.push(0);
                let signed = signed.encode_to_vec().into();
                block::set_metadata(&mut copy, BlockMetadataIndex::Signatures, signed);
                assert!(block::verify_signatures(&copy, rule).is_err());
            }
        }
        // A configuration block is judged by the configuration before it.
        if block::is_config(block) {
            let config = ChannelConfig::from_block(block).unwrap();
            rule = config.policies().get("/Channel/Orderer/BlockValidation");
            assert!(rule.is_some());
            // A genesis block is signed by nobody.
            let genesis = block.header.as_ref().unwrap().number == 0;
            assert_eq!(block::signatures(block).unwrap().count() == 0, genesis);
        }
    }
}

proptest! {
    #[test]
    fn damaged_blocks_never_panic(
        number in 0usize..32,
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..10),
    ) {
        let mut bytes = std::fs::read(folder().join(format!("{number:02}.block"))).unwrap();
        for (place, value) in flips {
            let length = bytes.len();
            bytes[place.index(length)] = value;
        }
        if let Ok(damaged) = Block::decode(&bytes[..]) {
            let previous = BlockHeader::default();
            let _ = (block::check_link(&previous, &damaged), block::is_config(&damaged));
            let _ = (block::last_config(&damaged), block::consenter_metadata(&damaged));
            let _ = block::signatures(&damaged).map(Iterator::count);
        }
    }
}

#[test]
fn numbers_of_every_size_are_shortest_der() {
    let der = |number| {
        hex::encode(block::header_bytes(&BlockHeader {
            number,
            previous_hash: Bytes::new(),
            data_hash: Bytes::new(),
        }))
    };
    assert_eq!(der(0), "300702010004000400");
    assert_eq!(der(127), "300702017f04000400");
    assert_eq!(der(128), "30080202008004000400");
    assert_eq!(der(256), "30080202010004000400");
    assert_eq!(der(u64::MAX), "300f020900ffffffffffffffff04000400");

    let long = block::header_bytes(&BlockHeader {
        number: 1,
        previous_hash: Bytes::from(vec![7; 300]),
        data_hash: Bytes::from(vec![7; 128]),
    });
    assert_eq!(
        long[..11],
        [0x30, 0x82, 0x01, 0xb6, 2, 1, 1, 4, 0x82, 0x01, 0x2c]
    );
    assert_eq!(long[311..314], [4, 0x81, 0x80]);
}

#[test]
fn blocks_that_do_not_fit_are_refused() {
    let chain = chain();
    let (genesis, first, second) = (&chain[0].1, &chain[1].1, &chain[2].1);
    let header = |block: &Block| block.header.clone().unwrap();

    let refusal = block::check_link(&header(genesis), second).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "sequences 0 and 2 were received consecutively"
    );

    let mut forged = first.clone();
    forged.header.as_mut().unwrap().previous_hash = Bytes::from(vec![0; 32]);
    let refusal = block::check_link(&header(genesis), &forged).unwrap_err();
    let expected = format!(
        "block [0]'s hash ({}) mismatches block [1]'s prev block hash ({})",
        chain[0].0["header_hash"].as_str().unwrap(),
        "00".repeat(32)
    );
    assert_eq!(refusal.to_string(), expected);

    let mut forged = first.clone();
    forged.data.as_mut().unwrap().data.push(Bytes::from("more"));
    assert!(matches!(
        block::check_link(&header(genesis), &forged),
        Err(BlockError::DataHash { number: 1, .. })
    ));

    let empty = Block::default();
    assert!(matches!(
        block::check_data_hash(&empty),
        Err(BlockError::NoHeader)
    ));
    assert!(matches!(
        block::signatures(&empty),
        Err(BlockError::NoHeader)
    ));
    assert!(matches!(
        block::last_config(&empty),
        Err(BlockError::NoMetadata)
    ));
    assert!(!block::is_config(&empty));

    let mut cut = first.clone();
    cut.metadata.as_mut().unwrap().metadata.clear();
    let refusal = block::signatures(&cut).err().unwrap();
    assert_eq!(refusal.to_string(), "no metadata at index [SIGNATURES]");
    block::set_metadata(
        &mut cut,
        BlockMetadataIndex::Signatures,
        Bytes::from("garbage"),
    );
    assert_eq!(
        cut.metadata.as_ref().unwrap().metadata.len(),
        block::METADATA_ENTRIES
    );
    assert!(matches!(
        block::last_config(&cut),
        Err(BlockError::Undecodable { number: 1, .. })
    ));
}
