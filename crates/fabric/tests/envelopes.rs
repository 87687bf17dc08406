//! Envelopes as clients sent them and as Fabric stored them, and what Fabric says about those that it cannot read.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message as _;
use quorate_fabric::envelope::{
    self, ChannelHeader, ChannelId, EnvelopeParts, RawEnvelope, SignatureHeader, WireError,
};
use quorate_fabric::msp::{SignError, Signer};
use quorate_fabric::proto::common;
use serde_json::Value as Json;

fn folder() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../fixtures/fabric/statuses"
    ))
}

fn file(name: &str) -> Bytes {
    std::fs::read(folder().join(name)).unwrap().into()
}

fn broadcasts() -> Vec<Json> {
    let all: Json = serde_json::from_slice(&file("statuses.json")).unwrap();
    all["broadcast"].as_array().unwrap().clone()
}

fn requests(case: &Json) -> impl Iterator<Item = Bytes> {
    let names = case["requests"].as_array().unwrap();
    names.iter().map(|name| file(name.as_str().unwrap()))
}

/// Go puts an ordinary or a no-break space behind `proto:`, depending on the build.
fn plain(text: &str) -> String {
    text.replace('\u{a0}', " ")
}

#[test]
fn what_is_stored_is_what_fabric_stores() {
    let mut checked = 0;
    for case in broadcasts() {
        let Some(stored) = case["stored_envelope"].as_str() else {
            continue;
        };
        let name = &case["name"];
        for received in requests(&case) {
            let envelope = RawEnvelope::decode(received.clone()).unwrap();
            if let Some(other) = stored.strip_prefix("re-encoded: ") {
                assert_eq!(envelope.encoded(), &file(other), "{name}");
            } else {
                assert_eq!(stored, "identical to the request", "{name}");
                assert_eq!(envelope.encoded(), &received, "{name}");
                let shared = |part: &Bytes| received.as_ptr_range().contains(&part.as_ptr());
                assert!(shared(envelope.encoded()), "{name}: copied");
                assert!(shared(envelope.payload()), "{name}: copied");
            }
            let generated = common::Envelope::decode(received).unwrap();
            assert_eq!(envelope.to_proto(), generated, "{name}");
            assert_eq!(
                envelope.size(),
                generated.payload.len() + generated.signature.len()
            );
            checked += 1;
        }
    }
    assert!(checked > 40);
}

#[test]
fn undecodable_parts_are_named_in_fabrics_words() {
    let mut checked = 0;
    for case in broadcasts() {
        let Some(info) = case["answers"][0]["info"].as_str() else {
            continue;
        };
        let Some(received) = requests(&case).next() else {
            continue;
        };
        let envelope = RawEnvelope::decode(received).unwrap();
        let parts = EnvelopeParts::parse(&envelope);
        if let Some(reason) = info.strip_prefix("could not determine channel ID: ") {
            assert_eq!(
                parts.unwrap_err().to_string(),
                plain(reason),
                "{}",
                case["name"]
            );
            checked += 1;
            continue;
        }
        let parts = parts.unwrap_or_else(|e| panic!("{}: {e}", case["name"]));
        if let Some(channel) = case["channel"].as_str() {
            assert_eq!(parts.channel_header.channel_id, channel);
        }
        let signed = parts.signed_data(&envelope);
        if let Some(reason) = info.strip_prefix("could not convert message to signedData: ") {
            assert_eq!(signed.unwrap_err().to_string(), plain(reason));
            checked += 1;
        } else {
            assert_eq!(signed.unwrap().data, envelope.payload());
        }
    }
    assert_eq!(checked, 11);
    let refusal = RawEnvelope::decode(file("requests/b-malformed-envelope.pb")).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "proto: cannot parse invalid wire-format data"
    );
}

#[test]
fn headers_say_what_the_generated_types_say() {
    for case in broadcasts() {
        for received in requests(&case) {
            let Ok(envelope) = RawEnvelope::decode(received) else {
                continue;
            };
            let Ok(parts) = EnvelopeParts::parse(&envelope) else {
                continue;
            };
            let payload = common::Payload::decode(envelope.payload().clone()).unwrap();
            let header = payload.header.unwrap();
            let expected = common::ChannelHeader::decode(&header.channel_header[..]).unwrap();
            let read = &parts.channel_header;
            assert_eq!(read.header_type, expected.r#type);
            assert_eq!(read.version, expected.version);
            assert_eq!(read.timestamp, expected.timestamp);
            assert_eq!(read.channel_id, expected.channel_id);
            assert_eq!(read.tx_id, expected.tx_id);
            assert_eq!(read.epoch, expected.epoch);
            assert_eq!(read.extension, expected.extension);
            assert_eq!(read.tls_cert_hash, expected.tls_cert_hash);
            assert_eq!(parts.data, payload.data);
            assert_eq!(parts.signature_header, header.signature_header);
            if let Ok(expected) = common::SignatureHeader::decode(&header.signature_header[..]) {
                let read = parts.signature_header().unwrap();
                assert_eq!(
                    (&read.creator[..], &read.nonce[..]),
                    (&expected.creator[..], &expected.nonce[..])
                );
            }
        }
    }
}

/// Envelopes of every shape, and how Fabric stores them.
#[test]
fn unusual_envelopes_are_put_in_order() {
    let stored = |received: &[u8]| {
        let envelope = RawEnvelope::decode(Bytes::copy_from_slice(received)).unwrap();
        hex::encode(envelope.encoded())
    };
    // Usual ones.
    assert_eq!(stored(&[]), "");
    assert_eq!(stored(&[0x0a, 1, 7, 0x12, 1, 8]), "0a0107120108");
    assert_eq!(stored(&[0x12, 1, 8]), "120108");
    assert_eq!(stored(&[0x0a, 1, 7, 0x78, 1]), "0a01077801");
    // Order, repetition, emptiness, wasteful numbers.
    assert_eq!(stored(&[0x12, 1, 8, 0x0a, 1, 7]), "0a0107120108");
    assert_eq!(stored(&[0x0a, 1, 6, 0x0a, 1, 7]), "0a0107");
    assert_eq!(stored(&[0x0a, 0, 0x12, 1, 8]), "120108");
    assert_eq!(stored(&[0x0a, 1, 7, 0x12, 0]), "0a0107");
    assert_eq!(stored(&[0x0a, 1, 7, 0x0a, 0]), "");
    assert_eq!(stored(&[0x8a, 0, 1, 7]), "0a0107");
    assert_eq!(stored(&[0x0a, 0x81, 0, 7]), "0a0107");
    // Unknown fields go to the end as they are, also those with a known number and an unknown kind.
    assert_eq!(stored(&[0x78, 1, 0x0a, 1, 7]), "0a01077801");
    assert_eq!(
        stored(&[0x0a, 1, 7, 0x78, 1, 0x12, 1, 8]),
        "0a01071201087801"
    );
    assert_eq!(stored(&[0x08, 5, 0x0a, 1, 7]), "0a01070805");
    assert_eq!(stored(&[0xf8, 0x80, 0, 1, 0x0a, 1, 7]), "0a0107f8800001");
}

#[test]
fn a_second_header_adds_to_the_first() {
    let first = common::Payload {
        header: Some(common::Header {
            channel_header: common::ChannelHeader {
                channel_id: "fixture".to_owned(),
                ..Default::default()
            }
            .encode_to_vec(),
            signature_header: Vec::new(),
        }),
        data: Vec::new(),
    };
    let second = common::Payload {
        header: Some(common::Header {
            channel_header: Vec::new(),
            signature_header: b"\x0a\x01c".to_vec(),
        }),
        data: Vec::new(),
    };
    let payload = [first.encode_to_vec(), second.encode_to_vec()].concat();
    let parts = EnvelopeParts::parse(&RawEnvelope::new(&payload, &[])).unwrap();
    assert_eq!(parts.channel_header.channel_id, "fixture");
    assert_eq!(parts.signature_header().unwrap().creator, "c");
}

#[test]
fn channel_names_are_judged_in_fabrics_words() {
    for good in ["a", "fixture1", "my-channel.test", &"a".repeat(249)] {
        assert_eq!(good.parse::<ChannelId>().unwrap().as_str(), good);
    }
    let refusal = |name: &str| ChannelId::new(name).unwrap_err().to_string();
    assert_eq!(refusal(""), "channel ID illegal, cannot be empty");
    assert_eq!(
        refusal(&"a".repeat(250)),
        "channel ID illegal, cannot be longer than 249"
    );
    for bad in ["Illegal_Name", "1a", ".", "-a", "a_b", "a/b", "é", "a\n"] {
        assert_eq!(refusal(bad), format!("'{bad}' contains illegal characters"));
    }
}

struct Reversing;

impl Signer for Reversing {
    fn creator(&self) -> Bytes {
        Bytes::from("somebody")
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        Ok(message.iter().rev().copied().collect())
    }
}

#[test]
fn made_envelopes_are_read_again() {
    let header = common::ChannelHeader {
        r#type: common::HeaderType::EndorserTransaction as i32,
        channel_id: "fixture".to_owned(),
        tx_id: envelope::tx_id(b"nonce", b"somebody"),
        ..Default::default()
    };
    let made = envelope::sign(&header, b"data".to_vec(), b"nonce", &Reversing).unwrap();
    let received = RawEnvelope::decode(made.encoded().clone()).unwrap();
    assert_eq!(received, made);
    let parts = EnvelopeParts::parse(&received).unwrap();
    assert!(
        parts
            .channel_header
            .is(common::HeaderType::EndorserTransaction)
    );
    assert_eq!(parts.channel_header.tx_id, header.tx_id);
    assert_eq!(parts.data, "data");
    let signed = parts.signed_data(&received).unwrap();
    assert_eq!(signed.identity, "somebody");
    assert!(signed.signature.iter().eq(signed.data.iter().rev()));
    assert_eq!(RawEnvelope::from(&received.to_proto()), made);
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let bytes = Bytes::from(bytes);
        let _ = (ChannelHeader::decode(&bytes), SignatureHeader::decode(&bytes));
        let _ = EnvelopeParts::parse(&RawEnvelope::new(&bytes, &[]));
        if let Ok(envelope) = RawEnvelope::decode(bytes) {
            // Once in order, an envelope stays as it is.
            let again = RawEnvelope::decode(envelope.encoded().clone()).unwrap();
            prop_assert_eq!(&again, &envelope);
            prop_assert_eq!(again.encoded().as_ptr(), envelope.encoded().as_ptr());
        }
    }

    #[test]
    fn fields_in_any_order_are_read_as_the_generated_type_reads_them(
        fields in proptest::collection::vec((prop::sample::select(vec![0x0au8, 0x12, 0x7a]), proptest::collection::vec(any::<u8>(), 0..4)), 0..6),
    ) {
        let mut bytes = Vec::new();
        for (tag, value) in &fields {
            bytes.push(*tag);
            bytes.push(value.len() as u8);
            bytes.extend_from_slice(value);
        }
        let envelope = RawEnvelope::decode(bytes.clone().into()).unwrap();
        let generated = common::Envelope::decode(&bytes[..]).unwrap();
        prop_assert_eq!(envelope.to_proto(), generated.clone());
        let unknown: Vec<u8> = fields
            .iter()
            .filter(|(tag, _)| *tag == 0x7a)
            .flat_map(|(tag, value)| [&[*tag, value.len() as u8][..], value].concat())
            .collect();
        prop_assert_eq!(&envelope.encoded()[..], &[generated.encode_to_vec(), unknown].concat()[..]);
    }

    #[test]
    fn bad_text_is_told_from_bad_bytes(bytes in proptest::collection::vec(any::<u8>(), 1..20)) {
        let encoded = [&[0x22, bytes.len() as u8][..], &bytes].concat();
        let expected = match String::from_utf8(bytes) {
            Ok(text) => Ok(text),
            Err(_) => Err(WireError::Utf8),
        };
        prop_assert_eq!(ChannelHeader::decode(&encoded.into()).map(|header| header.channel_id), expected);
    }
}
