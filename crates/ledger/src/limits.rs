//! Every bound of the ledger's values, in one place, with the relations between them checked when the crate is compiled.
//!
//! A bound is enforced twice: when a value is built (so that nobody signs what others must refuse) and when bytes are
//! decoded (so that a stranger's lengths cost no more than the bytes that he sent).
//! Network parameters may set lower limits for a network; they cannot raise these.

use quorate_identity::{
    certificate::{MAX_CERTIFICATE_BYTES, MAX_PATH_CERTIFICATES},
    keys::SIGNATURE_BYTES,
    name::MAX_NAME_BYTES,
};

/// The version of the ledger's rules and formats that this build speaks. Networks name the least version they accept.
pub const PLATFORM_VERSION: u32 = 1;

/// Largest message between nodes, in bytes, envelope included.
pub const MAX_MESSAGE_BYTES: usize = 10_485_760;

/// What a message's envelope and the JSON around a value may take of [`MAX_MESSAGE_BYTES`].
pub const ENVELOPE_ROOM: usize = 64 * 1024;

/// Largest encoded value that travels: a signed transaction, a tear-off, a notarisation request with its dependencies.
///
/// It is smaller than a message because flows send values as JSON, where bytes are base64 and grow by a third.
pub const MAX_VALUE_BYTES: usize = 7 * 1024 * 1024;

/// Largest encoded [`SignedTransaction`](crate::SignedTransaction), in bytes; also the greatest
/// `max_transaction_size` that network parameters may ask for.
///
/// (Corda's default of 524,288,000 would promise what no message can carry: a transaction is sent whole.)
pub const MAX_TRANSACTION_BYTES: usize = MAX_VALUE_BYTES - ENVELOPE_ROOM;

/// Largest encoded [`WireTransaction`](crate::WireTransaction): what can be built can also be signed by all, torn off in
/// full, and sent.
pub const MAX_WIRE_BYTES: usize = MAX_TRANSACTION_BYTES - 1024 * 1024;

/// Consumed states in one transaction.
pub const MAX_INPUTS: usize = 4_096;
/// Reference states in one transaction.
pub const MAX_REFERENCES: usize = 4_096;
/// Produced states in one transaction.
pub const MAX_OUTPUTS: usize = 4_096;
/// Commands in one transaction.
pub const MAX_COMMANDS: usize = 256;
/// Attachments of one transaction.
pub const MAX_ATTACHMENTS: usize = 64;
/// Keys that one command asks to sign.
pub const MAX_SIGNERS_PER_COMMAND: usize = 256;
/// Participants of one state.
pub const MAX_PARTICIPANTS: usize = 256;
/// Signatures on one transaction; also how many different keys a transaction may ask for.
pub const MAX_SIGNATURES: usize = 512;
/// Largest attachment, in bytes (base64 of it still fits into a message).
pub const MAX_ATTACHMENT_BYTES: usize = MAX_VALUE_BYTES - ENVELOPE_ROOM;
/// Bytes in the name of a contract, a state type or a command.
pub const MAX_TYPE_NAME_BYTES: usize = 128;

/// Transaction ids under one batch signature.
pub const MAX_BATCH: usize = 1 << MAX_MERKLE_DEPTH;
/// Levels of a Merkle proof: a tree has at most two to this power leaves.
pub const MAX_MERKLE_DEPTH: u8 = 16;
/// Largest encoding of one [`TransactionSignature`](crate::TransactionSignature): key (34), signature (64), metadata (5),
/// and a proof of one leaf at the greatest depth (14 + 32 per level), rounded up.
pub const MAX_SIGNATURE_BYTES: usize = 160 + 32 * MAX_MERKLE_DEPTH as usize;

/// Transactions that a validating notary accepts with a request.
pub const MAX_NOTARISATION_DEPENDENCIES: usize = 8_192;
/// Bytes of a reason in an answer from another party.
pub const MAX_REASON_BYTES: usize = 4_096;

/// States on one page of a vault query.
pub const MAX_PAGE_SIZE: u32 = 1_000;
/// States on one page of a vault query that does not say.
pub const DEFAULT_PAGE_SIZE: u32 = 200;
/// Leaves and connectives in the criteria of one vault query.
pub const MAX_CRITERIA: usize = 256;
/// Nesting of criteria in one vault query.
pub const MAX_CRITERIA_DEPTH: usize = 16;
/// Values in one list of a criterion (references, types, notaries, participants).
pub const MAX_CRITERION_VALUES: usize = 1_000;
/// Sort keys of one vault query.
pub const MAX_SORT_KEYS: usize = 8;

/// Bytes of an identifier that an application's schema declares, so that `<table>_<index>` fits PostgreSQL's 63.
pub const MAX_IDENTIFIER_BYTES: usize = 41;
/// Columns of one table that an application's schema declares.
pub const MAX_COLUMNS: usize = 64;
/// Bytes of one text or binary column value.
pub const MAX_COLUMN_VALUE_BYTES: usize = 64 * 1024;

/// Addresses of one node.
pub const MAX_ADDRESSES: usize = 16;
/// Legal identities of one node.
pub const MAX_IDENTITIES: usize = 8;
/// Notaries of one network.
pub const MAX_NOTARIES: usize = 256;
/// Largest encoded node info or network parameters, signatures and certificates included.
pub const MAX_NETWORK_FILE_BYTES: usize = 2 * 1024 * 1024;
/// Characters of a host name.
pub const MAX_HOST_BYTES: usize = 253;

/// Leaves of the largest transaction: the notary, the time window and the network parameters are the last three.
pub(crate) const MAX_COMPONENTS: usize =
    MAX_INPUTS + MAX_REFERENCES + MAX_OUTPUTS + 2 * MAX_COMMANDS + MAX_ATTACHMENTS + 3;

// A value fits into a message as base64 inside JSON inside an envelope.
const _: () = assert!(MAX_VALUE_BYTES.div_ceil(3) * 4 + ENVELOPE_ROOM <= MAX_MESSAGE_BYTES);
const _: () = assert!(MAX_ATTACHMENT_BYTES.div_ceil(3) * 4 + ENVELOPE_ROOM <= MAX_MESSAGE_BYTES);
// Whatever can be built can be signed by everybody whom it asks.
const _: () =
    assert!(MAX_WIRE_BYTES + MAX_SIGNATURES * MAX_SIGNATURE_BYTES + 64 <= MAX_TRANSACTION_BYTES);
// Whatever can be built can be torn off in full: each revealed component adds a nonce, a position and two lengths.
const _: () =
    assert!(MAX_WIRE_BYTES + MAX_COMPONENTS * 48 + 4096 <= MAX_VALUE_BYTES - ENVELOPE_ROOM);
// The whole of a group is provable.
const _: () = assert!(MAX_INPUTS <= 1 << MAX_MERKLE_DEPTH);
const _: () = assert!(MAX_REFERENCES <= 1 << MAX_MERKLE_DEPTH);
const _: () = assert!(MAX_OUTPUTS <= 1 << MAX_MERKLE_DEPTH);
// One command can be satisfied, and the notary as well.
const _: () = assert!(MAX_SIGNERS_PER_COMMAND < MAX_SIGNATURES);
const _: () = assert!(DEFAULT_PAGE_SIZE <= MAX_PAGE_SIZE);
// A page of references can be asked for again by reference.
const _: () = assert!(MAX_PAGE_SIZE as usize <= MAX_CRITERION_VALUES);
// The largest node info and the largest network parameters fit into their files.
const _: () = assert!(
    MAX_IDENTITIES * MAX_PATH_CERTIFICATES * (MAX_CERTIFICATE_BYTES + 4)
        + MAX_ADDRESSES * (MAX_HOST_BYTES + 6)
        + MAX_IDENTITIES * SIGNATURE_BYTES
        + ENVELOPE_ROOM
        <= MAX_NETWORK_FILE_BYTES
);
const _: () = assert!(
    MAX_NOTARIES * (MAX_NAME_BYTES + 64)
        + MAX_PATH_CERTIFICATES * (MAX_CERTIFICATE_BYTES + 4)
        + ENVELOPE_ROOM
        <= MAX_NETWORK_FILE_BYTES
);
