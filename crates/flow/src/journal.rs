//! The journal: what a flow asked for, and what it was told.
//!
//! An entry keeps the kind and a fingerprint of the request, to notice a body that asks for
//! something else when it runs again, and the reply in full, to give it again. Entries are JSON
//! behind a version number, so that an operator can read them in the shell.

use std::collections::BTreeMap;
use std::time::Duration;

use borsh::BorshSerialize;
use quorate_identity::{Party, PublicKey, SecureHash, X500Name};
use quorate_ledger::network::NotaryInfo;
use quorate_ledger::vault::{Criteria, Page, VaultQuery};
use quorate_ledger::{
    AttachmentId, ContractRef, NotarisationAnswer, NotarisationMessage, NotarisationRequest,
    RequestSignature, SignedTransaction, StateAndRef, StateRef, Timestamp, TransactionSignature,
    TxId,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::commit::{Finality, Recording, StatesToRecord};
use crate::error::FlowError;
use crate::ids::SessionId;

/// The version that this program writes before every journal entry and flow header.
pub const ENTRY_VERSION: u32 = 1;

/// Which of a transaction's required signatures must be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignaturePolicy {
    /// All, the notary's included.
    All,
    /// All but the notary's: before notarisation.
    AllButNotary,
    /// All but those of these keys, and the notary's.
    AllBut(Vec<PublicKey>),
}

/// What to lock in the vault.
#[derive(Debug, Clone, PartialEq)]
pub enum LockTarget {
    /// States until this column of an application's schema adds up to an amount.
    Sum {
        /// The schema's name.
        schema: String,
        /// A BigInt column of it.
        column: String,
        /// The least sum.
        at_least: i64,
    },
    /// Exactly these states.
    References(Vec<StateRef>),
    /// This many states.
    Count(u32),
}

/// A request that somebody outside the machine answers. It may be performed twice.
#[derive(Debug, Clone, PartialEq)]
pub enum HostRequest {
    /// Sign a transaction with our keys. → [`Reply::Signatures`]
    Sign {
        /// The transaction's id.
        id: TxId,
        /// The keys; the host must hold each.
        by: Vec<PublicKey>,
    },
    /// Sign a request to a notary with our legal identity's key. → [`Reply::RequestSignature`]
    SignNotarisation {
        /// The request.
        request: NotarisationRequest,
    },
    /// On a notary: check the request and commit the states. → [`Reply::NotaryAnswer`]
    Notarise {
        /// Who asks.
        requester: Party,
        /// The request, whose transaction this node has verified if its notary is validating.
        message: Box<NotarisationMessage>,
    },
    /// Verify signatures, history and contracts of `transaction`; `dependencies` are
    /// transactions that it needs and the store has not, in topological order, which are
    /// verified too (with all their signatures). → [`Reply::Done`]
    Verify {
        /// The transaction.
        transaction: SignedTransaction,
        /// What it needs beyond the store.
        dependencies: Vec<SignedTransaction>,
        /// The signatures that must be there.
        signatures: SignaturePolicy,
    },
    /// Which of these transactions are not in the store as final. → [`Reply::TxIds`]
    Missing {
        /// The ids.
        ids: Vec<TxId>,
    },
    /// Final transactions of the store. Unknown ones are left out. → [`Reply::Transactions`]
    Transactions {
        /// The ids.
        ids: Vec<TxId>,
    },
    /// Outputs of stored transactions, all of them. → [`Reply::States`]
    States {
        /// The references.
        refs: Vec<StateRef>,
    },
    /// Vault states. → [`Reply::Page`]
    Query(VaultQuery),
    /// Soft-lock vault states for this flow until it ends. → [`Reply::States`], or
    /// [`FlowError::Insufficient`]
    Lock {
        /// Which states may be taken.
        criteria: Criteria,
        /// How many.
        target: LockTarget,
        /// At the most this many states.
        max_states: u32,
    },
    /// Which of these attachments the store has not. → [`Reply::Attachments`]
    MissingAttachments {
        /// The ids.
        ids: Vec<AttachmentId>,
    },
    /// An attachment's bytes. → [`Reply::Payload`]
    Attachment {
        /// The id.
        id: AttachmentId,
    },
    /// Keep attachments. → [`Reply::Done`]
    StoreAttachment {
        /// The bytes.
        data: Vec<u8>,
    },
    /// An application's side effect. → [`Reply::Json`]
    SideEffect {
        /// Its name.
        name: String,
        /// Its arguments, JSON.
        arguments: String,
    },
}

impl HostRequest {
    /// Whether the request reads what the step before it may have written, so that the step
    /// must be committed first.
    pub(crate) fn reads_store(&self) -> bool {
        !matches!(self, Self::Sign { .. } | Self::SignNotarisation { .. })
    }

    /// Whether the request changes something that is known by the flow's id and the operation's
    /// number. The flow must be durable first, and everything that it has drawn before (entropy,
    /// time, mail): a repetition under the same name must ask for the same.
    pub(crate) fn has_effect(&self) -> bool {
        matches!(self, Self::SideEffect { .. } | Self::Lock { .. })
    }
}

/// The answer to an operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// Done.
    Done,
    /// A new session.
    Session(SessionId),
    /// Bytes.
    Payload(#[serde(with = "base64_bytes")] Vec<u8>),
    /// The time.
    Time(Timestamp),
    /// 32 unpredictable bytes.
    Entropy(SecureHash),
    /// A party.
    Party(Party),
    /// The network's notaries.
    Notaries(Vec<NotaryInfo>),
    /// Legal names.
    Names(Vec<X500Name>),
    /// A hash.
    Hash(Option<SecureHash>),
    /// A contract.
    Contract(ContractRef),
    /// A signature over a request to a notary.
    RequestSignature(RequestSignature),
    /// What a notary answers.
    NotaryAnswer(NotarisationAnswer),
    /// Signatures over a transaction.
    Signatures(#[serde(with = "borsh_base64")] Vec<TransactionSignature>),
    /// Transaction ids.
    TxIds(Vec<TxId>),
    /// Transactions.
    Transactions(Vec<SignedTransaction>),
    /// States.
    States(#[serde(with = "borsh_base64")] Vec<StateAndRef>),
    /// Attachment ids.
    Attachments(#[serde(with = "borsh_base64")] Vec<AttachmentId>),
    /// A page of the vault.
    Page(Page),
    /// JSON.
    Json(String),
    /// The operation failed.
    Failed(FlowError),
}

impl Reply {
    /// What kind of reply it is, for people.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Done => "nothing",
            Self::Session(_) => "a session",
            Self::Payload(_) => "bytes",
            Self::Time(_) => "a time",
            Self::Entropy(_) => "entropy",
            Self::Party(_) => "a party",
            Self::Notaries(_) => "notaries",
            Self::Names(_) => "names",
            Self::Hash(_) => "a hash",
            Self::Contract(_) => "a contract",
            Self::RequestSignature(_) => "a signature over a request",
            Self::NotaryAnswer(_) => "a notary's answer",
            Self::Signatures(_) => "signatures",
            Self::TxIds(_) => "transaction ids",
            Self::Transactions(_) => "transactions",
            Self::States(_) => "states",
            Self::Attachments(_) => "attachment ids",
            Self::Page(_) => "a page of states",
            Self::Json(_) => "JSON",
            Self::Failed(_) => "an error",
        }
    }
}

/// How a flow waits for a service that has several nodes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Hurry {
    /// How often it has waited before.
    pub(crate) attempt: u32,
    /// Sessions with other nodes that were asked before: what they say now is as good.
    pub(crate) earlier: Vec<SessionId>,
}

/// What a flow's body asks for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Request {
    OpenSession {
        peer: X500Name,
        flow: String,
    },
    Send {
        session: SessionId,
        payload: Vec<u8>,
    },
    Receive {
        session: SessionId,
        within: Option<Duration>,
        /// Present if somebody else may be asked instead. It says nothing about what is received, so it is no part of
        /// the fingerprint.
        hurry: Option<Hurry>,
    },
    Close {
        session: SessionId,
    },
    Sleep {
        duration: Duration,
    },
    Now,
    Entropy,
    Enter {
        flow: &'static str,
    },
    Record(Vec<Recording>),
    Party {
        name: X500Name,
    },
    PartyOfKey {
        key: PublicKey,
    },
    Notaries,
    /// The nodes that answer for a party.
    Answering {
        party: X500Name,
    },
    /// The names of the services that this node provides.
    Services,
    Parameters,
    Contract {
        name: String,
    },
    Host(HostRequest),
}

impl Request {
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::OpenSession { .. } => "open-session",
            Self::Send { .. } => "send",
            Self::Receive { .. } => "receive",
            Self::Close { .. } => "close",
            Self::Sleep { .. } => "sleep",
            Self::Now => "now",
            Self::Entropy => "entropy",
            Self::Enter { .. } => "enter",
            Self::Record(_) => "record",
            Self::Party { .. } => "party",
            Self::PartyOfKey { .. } => "party-of-key",
            Self::Notaries => "notaries",
            Self::Answering { .. } => "answering",
            Self::Services => "services",
            Self::Parameters => "parameters",
            Self::Contract { .. } => "contract",
            Self::Host(request) => match request {
                HostRequest::Sign { .. } => "sign",
                HostRequest::SignNotarisation { .. } => "sign-notarisation",
                HostRequest::Notarise { .. } => "notarise",
                HostRequest::Verify { .. } => "verify",
                HostRequest::Missing { .. } => "missing",
                HostRequest::Transactions { .. } => "transactions",
                HostRequest::States { .. } => "states",
                HostRequest::Query(_) => "query",
                HostRequest::Lock { .. } => "lock",
                HostRequest::MissingAttachments { .. } => "missing-attachments",
                HostRequest::Attachment { .. } => "attachment",
                HostRequest::StoreAttachment { .. } => "store-attachment",
                HostRequest::SideEffect { .. } => "side-effect",
            },
        }
    }

    /// A fingerprint of the request's content. It names what identifies the request (ids,
    /// hashes, amounts) and nothing that may change form between versions of this program.
    pub(crate) fn tag(&self) -> u64 {
        let mut print = Fingerprint::new(self.kind());
        match self {
            Self::OpenSession { peer, flow } => print.text(peer).text(flow),
            Self::Send { session, payload } => print.bytes(session.as_bytes()).bytes(payload),
            Self::Receive {
                session, within, ..
            } => {
                print.bytes(session.as_bytes());
                match within {
                    None => print.text("for ever"),
                    Some(within) => print.text(within.as_micros()),
                }
            }
            Self::Close { session } => print.bytes(session.as_bytes()),
            Self::Sleep { duration } => print.text(duration.as_micros()),
            Self::Now | Self::Entropy | Self::Notaries | Self::Services | Self::Parameters => {
                &mut print
            }
            Self::Answering { party } => print.text(party),
            Self::Enter { flow } => print.text(flow),
            Self::Record(recordings) => {
                for recording in recordings {
                    print
                        .text(recording.transaction.id())
                        .text(match recording.states {
                            StatesToRecord::None => "none",
                            StatesToRecord::OnlyRelevant => "relevant",
                            StatesToRecord::AllVisible => "all",
                        })
                        .text(match recording.finality {
                            Finality::InFlight => "in flight",
                            Finality::Final => "final",
                        });
                }
                &mut print
            }
            Self::Party { name } => print.text(name),
            Self::PartyOfKey { key } => print.text(key),
            Self::Contract { name } => print.text(name),
            Self::Host(request) => request.fingerprint(&mut print),
        };
        print.finish()
    }
}

impl HostRequest {
    fn fingerprint<'a>(&self, print: &'a mut Fingerprint) -> &'a mut Fingerprint {
        match self {
            Self::Sign { id, by } => {
                print.text(id);
                print.texts(by)
            }
            Self::SignNotarisation { request } => print.bytes(&request.encode()),
            Self::Notarise { requester, message } => {
                print.text(&requester.name).bytes(&message.encode())
            }
            Self::Verify {
                transaction,
                dependencies,
                signatures,
            } => {
                print.text(transaction.id());
                print.texts(dependencies.iter().map(SignedTransaction::id));
                match signatures {
                    SignaturePolicy::All => print.text("all"),
                    SignaturePolicy::AllButNotary => print.text("all but notary"),
                    SignaturePolicy::AllBut(keys) => print.text("all but").texts(keys),
                }
            }
            Self::Missing { ids } | Self::Transactions { ids } => print.texts(ids),
            Self::States { refs } => print.texts(refs),
            Self::Query(query) => print.json(query),
            Self::Lock {
                criteria,
                target,
                max_states,
            } => {
                print.json(criteria).text(max_states);
                match target {
                    LockTarget::Sum {
                        schema,
                        column,
                        at_least,
                    } => print.text("sum").text(schema).text(column).text(at_least),
                    LockTarget::References(refs) => print.text("references").texts(refs),
                    LockTarget::Count(count) => print.text("count").text(count),
                }
            }
            Self::MissingAttachments { ids } => {
                for id in ids {
                    print.borsh(id);
                }
                print
            }
            Self::Attachment { id } => print.borsh(id),
            Self::StoreAttachment { data } => print.bytes(data),
            Self::SideEffect { name, arguments } => print.text(name).text(arguments),
        }
    }
}

/// Collects length-prefixed parts and hashes them.
struct Fingerprint(Vec<u8>);

impl Fingerprint {
    fn new(kind: &str) -> Self {
        let mut print = Self(Vec::with_capacity(128));
        print.bytes(kind.as_bytes());
        print
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0
            .extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    fn text(&mut self, text: impl std::fmt::Display) -> &mut Self {
        self.bytes(text.to_string().as_bytes())
    }

    fn texts<T: std::fmt::Display>(&mut self, texts: impl IntoIterator<Item = T>) -> &mut Self {
        for text in texts {
            self.text(text);
        }
        self
    }

    fn json(&mut self, value: &impl Serialize) -> &mut Self {
        let bytes = serde_json::to_vec(value).expect("plain data becomes JSON");
        self.bytes(&bytes)
    }

    fn borsh(&mut self, value: &impl BorshSerialize) -> &mut Self {
        let bytes = borsh::to_vec(value).expect("writing to memory cannot fail");
        self.bytes(&bytes)
    }

    fn finish(&self) -> u64 {
        let hash = SecureHash::of(&self.0);
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&hash.as_bytes()[..8]);
        u64::from_be_bytes(bytes)
    }
}

/// One operation and its reply.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) kind: String,
    pub(crate) tag: u64,
    pub(crate) reply: Reply,
}

#[derive(Serialize)]
struct StoredRef<'a> {
    version: u32,
    op: &'a str,
    tag: String,
    reply: &'a Reply,
}

#[derive(Deserialize)]
struct Stored {
    version: u32,
    op: String,
    tag: String,
    reply: Reply,
}

/// The bytes of an entry.
pub(crate) fn encode_entry(kind: &str, tag: u64, reply: &Reply) -> Vec<u8> {
    serde_json::to_vec(&StoredRef {
        version: ENTRY_VERSION,
        op: kind,
        tag: format!("{tag:016x}"),
        reply,
    })
    .expect("a reply is plain data and becomes JSON")
}

/// Reads the bytes of an entry, or says why it cannot.
pub(crate) fn decode_entry(bytes: &[u8]) -> Result<Entry, String> {
    let stored: Stored = decode_versioned(bytes, |stored: &Stored| stored.version)?;
    let tag = u64::from_str_radix(&stored.tag, 16).map_err(|e| e.to_string())?;
    Ok(Entry {
        kind: stored.op,
        tag,
        reply: stored.reply,
    })
}

/// Reads JSON with a version in it. Bytes that cannot be read are asked for their version all the
/// same, so that what a newer program wrote is not called damaged.
pub(crate) fn decode_versioned<T: DeserializeOwned>(
    bytes: &[u8],
    version_of: fn(&T) -> u32,
) -> Result<T, String> {
    #[derive(Deserialize)]
    struct Probe {
        version: u32,
    }
    let version = match serde_json::from_slice::<T>(bytes) {
        Ok(value) if version_of(&value) == ENTRY_VERSION => return Ok(value),
        Ok(value) => version_of(&value),
        Err(error) => match serde_json::from_slice::<Probe>(bytes) {
            Ok(Probe { version }) if version != ENTRY_VERSION => version,
            _ => return Err(error.to_string()),
        },
    };
    Err(format!(
        "it has version {version}, this program reads version {ENTRY_VERSION}"
    ))
}

/// What an entry records, for people: the operation and a shortened reply.
pub fn describe_entry(bytes: &[u8]) -> BTreeMap<&'static str, String> {
    const SHOWN: usize = 160;
    match decode_entry(bytes) {
        Ok(entry) => {
            let reply = serde_json::to_string(&entry.reply).unwrap_or_default();
            BTreeMap::from([
                ("operation", entry.kind),
                ("reply", reply.chars().take(SHOWN).collect()),
            ])
        }
        Err(reason) => BTreeMap::from([("unreadable", reason)]),
    }
}

/// Bytes in JSON as base64 text.
pub(crate) mod base64_bytes {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        STANDARD.decode(text).map_err(serde::de::Error::custom)
    }
}

/// A value in JSON as the base64 text of its canonical bytes.
pub(crate) mod borsh_base64 {
    use borsh::{BorshDeserialize, BorshSerialize};
    use serde::{Deserializer, Serializer};

    pub(crate) fn serialize<T: BorshSerialize, S: Serializer>(
        value: &T,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let bytes = borsh::to_vec(value).map_err(serde::ser::Error::custom)?;
        super::base64_bytes::serialize(&bytes, to)
    }

    pub(crate) fn deserialize<'de, T: BorshDeserialize, D: Deserializer<'de>>(
        from: D,
    ) -> Result<T, D::Error> {
        let bytes = super::base64_bytes::deserialize(from)?;
        borsh::from_slice(&bytes).map_err(serde::de::Error::custom)
    }
}
