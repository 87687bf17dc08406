//! Blocks as a channel makes them, against the recorded chain of a Fabric cluster: the same bytes, given the same
//! nonces and signatures.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use bytes::Bytes;
use prost::Message as _;
use quorate_fabric::block;
use quorate_fabric::msp::{SignError, Signer};
use quorate_fabric::proto::common::{Block, BlockMetadataIndex, SignatureHeader};
use quorate_orderer::assembly::{self, Tip};
use quorate_orderer::store::StoredBlock;

/// Signs as recorded, and insists on being asked to sign what was recorded.
struct Recorded {
    creator: Bytes,
    input: Vec<u8>,
    signature: Vec<u8>,
}

impl Signer for Recorded {
    fn creator(&self) -> Bytes {
        self.creator.clone()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        assert_eq!(message, self.input);
        Ok(self.signature.clone())
    }
}

#[test]
fn a_chain_of_a_fabric_cluster_is_made_again_byte_by_byte() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/fabric/chain");
    let read = |number: u64| -> Bytes {
        std::fs::read(folder.join(format!("{number:02}.block")))
            .unwrap()
            .into()
    };
    let genesis = StoredBlock::decode(read(0)).unwrap();
    let mut tip = Tip::of(&genesis);
    let mut signed = 0;
    for number in 1..32 {
        let encoded = read(number);
        let recorded = Block::decode(encoded.clone()).unwrap();
        let envelopes = recorded.data.clone().unwrap().data;

        let proposed = tip.propose(envelopes);
        assert_eq!(proposed.header, recorded.header, "block {number}");
        assert_eq!(
            proposed.metadata.as_ref().unwrap().metadata,
            vec![Bytes::new(); 5]
        );

        let metadata = block::metadata(&recorded, BlockMetadataIndex::Signatures).unwrap();
        let [signature] = &metadata.signatures[..] else {
            panic!("block {number} has not one signature");
        };
        let header = SignatureHeader::decode(&signature.signature_header[..]).unwrap();
        let signer = Recorded {
            creator: header.creator.into(),
            input: block::signature_input(
                &metadata.value,
                &signature.signature_header,
                recorded.header.as_ref().unwrap(),
            ),
            signature: signature.signature.clone(),
        };
        let finished = assembly::finish(
            proposed,
            block::last_config(&recorded).unwrap(),
            &block::consenter_metadata(&recorded).unwrap().unwrap(),
            &signer,
            header.nonce.try_into().unwrap(),
        )
        .unwrap();
        assert_eq!(finished.encoded(), &encoded, "block {number}");
        assert_eq!(Tip::of(&finished), tip);
        signed += 1;
    }
    assert_eq!(signed, 31);
}
