//! Who is who, and how it is proved: legal names, keys, certificates, and the TLS that rests on them.
//!
//! This crate hides all cryptography and all ASN.1 from the rest. It has no clock (the current time is an argument, or a
//! [`Clock`] where a library calls back), no async runtime and no sockets. The one thing it does outside of memory is
//! reading and writing the files of a `certificates` folder ([`key_store`]).
//!
//! Where to start reading: [`X500Name`] and [`Party`] are what everybody uses; [`path::validate_path`] is the rule by
//! which a name is believed; [`NodeKeys`] is all that one node owns.

pub mod authority;
pub mod certificate;
mod der;
mod handshake;
pub mod hash;
pub mod key_store;
pub mod keys;
pub mod link_keys;
pub mod mutual_tls;
pub mod name;
pub mod node_keys;
pub mod obfuscation;
pub mod party;
pub mod path;
pub mod rpc_tls;
pub mod signing;
pub mod tls;
pub mod x509;

pub use authority::{CertificateAuthority, Identity, IssueError};
pub use certificate::{CertRole, Certificate, CertificatePath, UnixTime};
pub use hash::SecureHash;
pub use key_store::{KeyStore, KeyStoreError};
pub use keys::{KeyPair, PublicKey, Signature, SignatureError, SignatureScheme};
pub use name::{NameError, X500Name};
pub use node_keys::NodeKeys;
pub use party::Party;
pub use path::{PathError, validate_path};
pub use signing::{RemoteError, RemoteSigner, SigningError, SigningKey};
pub use tls::{
    Clock, PeerError, TlsParty, peer_name, server_name, tls_client_config, tls_server_config,
};
