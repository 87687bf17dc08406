//! A Deliver request before anybody asks what it wants: its form, its time, its connection.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use quorate_fabric::envelope::{EnvelopeError, EnvelopeParts, RawEnvelope};
use quorate_fabric::policy::SignedData;
use quorate_fabric::proto::orderer::SeekInfo;
use quorate_identity::SecureHash;

use crate::listener::PeerCertificate;

/// Why a request is not looked at. For the log: the client only learns that it was bad.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum BadRequest {
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    #[error("channel header in envelope must contain timestamp")]
    NoTimestamp,
    #[error(
        "envelope timestamp is {apart:?} apart from current server time, and no more than {window:?} are allowed"
    )]
    Time { apart: Duration, window: Duration },
    #[error("client didn't include its TLS cert hash")]
    NoCertificateHash,
    #[error("client didn't send a TLS certificate")]
    NoCertificate,
    #[error("claimed TLS cert hash is {claimed} but actual TLS cert hash is {actual}")]
    OtherCertificate { claimed: String, actual: String },
}

/// A request that could be read.
#[derive(Debug)]
pub(super) struct Request {
    parts: EnvelopeParts,
    signed: SignedData,
}

impl Request {
    pub(super) fn parse(envelope: &RawEnvelope) -> Result<Self, BadRequest> {
        let parts = EnvelopeParts::parse(envelope)?;
        let signed = parts.signed_data(envelope)?;
        Ok(Self { parts, signed })
    }

    pub(super) fn channel_id(&self) -> &str {
        &self.parts.channel_header.channel_id
    }

    /// Whether the request was made about `now` (in microseconds since the epoch).
    pub(super) fn check_time(&self, now: i64, window: Duration) -> Result<(), BadRequest> {
        let timestamp = self
            .parts
            .channel_header
            .timestamp
            .ok_or(BadRequest::NoTimestamp)?;
        // Both numbers are the sender's, and may be anything.
        let made = i128::from(timestamp.seconds) * 1_000_000_000 + i128::from(timestamp.nanos);
        let apart = (i128::from(now) * 1_000 - made).unsigned_abs();
        if apart > window.as_nanos() {
            let seconds = u64::try_from(apart / 1_000_000_000).unwrap_or(u64::MAX);
            return Err(BadRequest::Time {
                apart: Duration::from_secs(seconds),
                window,
            });
        }
        Ok(())
    }

    /// Whether the request names the certificate of the connection on which it came: one that was recorded and is
    /// played back by somebody else does not.
    pub(super) fn check_binding(
        &self,
        certificate: Option<&PeerCertificate>,
    ) -> Result<(), BadRequest> {
        let claimed = &self.parts.channel_header.tls_cert_hash;
        if claimed.is_empty() {
            return Err(BadRequest::NoCertificateHash);
        }
        let certificate = certificate.ok_or(BadRequest::NoCertificate)?;
        let actual = SecureHash::of(&certificate.der);
        if claimed[..] != actual.as_bytes()[..] {
            return Err(BadRequest::OtherCertificate {
                claimed: hex::encode(claimed),
                actual: hex::encode(actual.as_bytes()),
            });
        }
        Ok(())
    }

    /// What is asked for.
    pub(super) fn seek(&self) -> Result<SeekInfo, prost::DecodeError> {
        SeekInfo::decode(Bytes::clone(&self.parts.data))
    }

    /// What the policy has to judge.
    pub(super) fn into_signed_data(self) -> SignedData {
        self.signed
    }
}
