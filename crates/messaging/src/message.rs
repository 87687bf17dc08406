//! The AMQP message in which an envelope travels.
//!
//! | section | field | content |
//! |---|---|---|
//! | properties | `message-id` | `<epoch>-<sequence>`: the same for every repetition, for brokers that drop duplicates |
//! | properties | `to` | the recipient's address, see [`address_of`] |
//! | application properties | `version` | uint, [`VERSION`] |
//! | | `sender`, `recipient` | string, legal names |
//! | | `epoch` | string, 32 lower-case hexadecimal digits |
//! | | `sequence` | ulong |
//! | body | | one data section: the encoded envelope |
//!
//! Properties that are not listed are ignored, so that a broker or a later version may add some.

use fe2o3_amqp::Sendable;
use fe2o3_amqp::types::messaging::{ApplicationProperties, Data, Header, Message, Properties};
use fe2o3_amqp::types::primitives::{Binary, SimpleValue};
use quorate_identity::X500Name;

use crate::exchange::{Epoch, Outgoing};

/// Version of the table above.
pub(crate) const VERSION: u32 = 1;

const PROPERTY_VERSION: &str = "version";
const PROPERTY_SENDER: &str = "sender";
const PROPERTY_RECIPIENT: &str = "recipient";
const PROPERTY_EPOCH: &str = "epoch";
const PROPERTY_SEQUENCE: &str = "sequence";

/// The address of a party's inbox: the same name for a queue of a broker in between.
pub(crate) fn address_of(name: &X500Name) -> String {
    format!("internal.peers.{}", name.sni_hash())
}

/// Packs an envelope.
pub(crate) fn pack(
    sender: &X500Name,
    recipient: &X500Name,
    epoch: Epoch,
    outgoing: &Outgoing,
) -> Sendable<Data> {
    let epoch = hex::encode(epoch);
    let properties = Properties::builder()
        .message_id(format!("{epoch}-{}", outgoing.sequence))
        .to(address_of(recipient))
        .build();
    let application = ApplicationProperties::builder()
        .insert(PROPERTY_VERSION, VERSION)
        .insert(PROPERTY_SENDER, sender.to_string())
        .insert(PROPERTY_RECIPIENT, recipient.to_string())
        .insert(PROPERTY_EPOCH, epoch)
        .insert(PROPERTY_SEQUENCE, outgoing.sequence)
        .build();
    let message = Message::builder()
        .header(Header {
            durable: true,
            ..Header::default()
        })
        .properties(properties)
        .application_properties(application)
        .data(Binary::from(outgoing.body.to_vec()))
        .build();
    Sendable::from(message)
}

/// A message as it arrived, before it is checked against the connection it came over.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Arrived {
    pub(crate) sender: X500Name,
    pub(crate) recipient: X500Name,
    pub(crate) epoch: Epoch,
    pub(crate) sequence: u64,
    pub(crate) body: Vec<u8>,
}

/// A message that does not have the form above.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("the message has no `{0}` property of the expected type")]
    Missing(&'static str),
    #[error(
        "the message has version {0}, and this node understands version {VERSION}; upgrade this node"
    )]
    Version(u32),
    #[error("the message's `{0}` property is not a legal name")]
    Name(&'static str),
    #[error("the message's `epoch` property is not 32 hexadecimal digits")]
    Epoch,
}

/// Unpacks a message.
pub(crate) fn unpack(message: Message<Data>) -> Result<Arrived, Malformed> {
    let properties = message.application_properties.unwrap_or_default();
    let text = |name: &'static str| match properties.get(name) {
        Some(SimpleValue::String(text)) => Ok(text.as_str()),
        _ => Err(Malformed::Missing(name)),
    };
    match properties.get(PROPERTY_VERSION) {
        Some(SimpleValue::Uint(VERSION)) => {}
        Some(SimpleValue::Uint(version)) => return Err(Malformed::Version(*version)),
        _ => return Err(Malformed::Missing(PROPERTY_VERSION)),
    }
    let name = |property: &'static str| {
        text(property)?
            .parse()
            .map_err(|_| Malformed::Name(property))
    };
    let mut epoch = Epoch::default();
    hex::decode_to_slice(text(PROPERTY_EPOCH)?, &mut epoch).map_err(|_| Malformed::Epoch)?;
    let sequence = match properties.get(PROPERTY_SEQUENCE) {
        Some(SimpleValue::Ulong(sequence)) => *sequence,
        _ => return Err(Malformed::Missing(PROPERTY_SEQUENCE)),
    };
    Ok(Arrived {
        sender: name(PROPERTY_SENDER)?,
        recipient: name(PROPERTY_RECIPIENT)?,
        epoch,
        sequence,
        body: message.body.0.into_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> (X500Name, X500Name) {
        (
            "O=PartyA, L=Osaka, C=JP".parse().unwrap(),
            "O=PartyB, L=Tokyo, C=JP".parse().unwrap(),
        )
    }

    #[test]
    fn what_is_packed_can_be_unpacked() {
        let (sender, recipient) = names();
        let outgoing = Outgoing {
            sequence: u64::MAX,
            body: vec![1, 2, 3].into(),
        };
        let sendable = pack(&sender, &recipient, [0xAB; 16], &outgoing);
        let arrived = unpack(sendable.message).unwrap();
        let expected = Arrived {
            sender,
            recipient,
            epoch: [0xAB; 16],
            sequence: u64::MAX,
            body: vec![1, 2, 3],
        };
        assert_eq!(arrived, expected);
    }

    #[test]
    fn each_missing_or_wrong_property_is_named() {
        let (sender, recipient) = names();
        let outgoing = Outgoing {
            sequence: 1,
            body: vec![].into(),
        };
        for property in [
            PROPERTY_VERSION,
            PROPERTY_SENDER,
            PROPERTY_RECIPIENT,
            PROPERTY_EPOCH,
            PROPERTY_SEQUENCE,
        ] {
            for value in [
                None,
                Some(SimpleValue::Bool(true)),
                Some(SimpleValue::String("O=x".into())),
            ] {
                let mut message = pack(&sender, &recipient, [0; 16], &outgoing).message;
                let properties = message.application_properties.as_mut().unwrap();
                match value {
                    None => drop(properties.swap_remove(property)),
                    Some(value) => drop(properties.insert(property.to_owned(), value)),
                }
                let error = unpack(message).unwrap_err().to_string();
                assert!(error.contains(property), "{property}: {error}");
            }
        }
        let mut message = pack(&sender, &recipient, [0; 16], &outgoing).message;
        message
            .application_properties
            .as_mut()
            .unwrap()
            .insert("version".into(), SimpleValue::Uint(2));
        assert_eq!(unpack(message), Err(Malformed::Version(2)));
    }
}
