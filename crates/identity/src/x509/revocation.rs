//! Revocation lists.

use std::collections::HashSet;
use std::fmt;

use super::certificate::{Certificate, SignatureAlgorithm, read_time};
use super::extensions::{read_authority_key_id, read_extension};
use super::reader::{INTEGER, Reader, SEQUENCE, explicit, unsigned};
use super::{MAX_DER_BYTES, X509Error, pem};

/// `2.5.29.35`
const OID_AUTHORITY_KEY_ID: &[u8] = &[0x55, 0x1d, 0x23];

/// A list of revoked certificates of one authority. Its dates are read and not judged: Fabric's rules know none.
pub struct RevocationList {
    signed: Vec<u8>,
    signature: Vec<u8>,
    signature_algorithm: SignatureAlgorithm,
    authority_key_id: Option<Vec<u8>>,
    serials: HashSet<Vec<u8>>,
}

impl RevocationList {
    /// Reads a list: PEM called `X509 CRL`, or DER.
    ///
    /// # Errors
    /// [`X509Error`] if it is neither.
    pub fn read(bytes: &[u8]) -> Result<Self, X509Error> {
        if bytes.starts_with(b"-----BEGIN X509 CRL")
            && let Some((block, _)) = pem::first(bytes)
            && block.label == "X509 CRL"
        {
            return Self::from_der(&block.bytes);
        }
        Self::from_der(bytes)
    }

    fn from_der(der: &[u8]) -> Result<Self, X509Error> {
        let malformed = X509Error::Malformed("crl");
        if der.len() > MAX_DER_BYTES {
            return Err(malformed);
        }
        let mut outer = Reader::new(der);
        let whole = outer.expect(SEQUENCE).ok_or(malformed.clone())?;
        if !outer.is_empty() {
            return Err(X509Error::TrailingData);
        }
        Self::read_parts(whole).ok_or(malformed)
    }

    fn read_parts(whole: &[u8]) -> Option<Self> {
        let mut parts = Reader::new(whole);
        let signed = parts.expect_element(SEQUENCE)?;
        let algorithm = parts.expect_element(SEQUENCE)?;
        let signature = parts.whole_bytes()?;
        let mut fields = Reader::new(signed.content);
        if fields.next_is(INTEGER) {
            fields.integer()?;
        }
        if fields.expect_element(SEQUENCE)?.raw != algorithm.raw {
            return None;
        }
        let _issuer = fields.expect(SEQUENCE)?;
        read_time(&mut fields)?;
        if !fields.is_empty() && !fields.next_is(SEQUENCE) && !fields.next_is(explicit(0)) {
            read_time(&mut fields)?;
        }
        let mut serials = HashSet::new();
        let mut revoked = Reader::new(fields.optional(SEQUENCE)?.unwrap_or_default());
        while !revoked.is_empty() {
            let mut entry = Reader::new(revoked.expect(SEQUENCE)?);
            let serial = entry.integer()?;
            read_time(&mut entry)?;
            serials.extend(unsigned(serial).map(<[u8]>::to_vec));
        }
        let mut authority_key_id = None;
        if let Some(content) = fields.optional(explicit(0))? {
            let mut list = Reader::new(Reader::new(content).expect(SEQUENCE)?);
            while !list.is_empty() {
                let (oid, _, value) = read_extension(&mut list)?;
                if oid == OID_AUTHORITY_KEY_ID && authority_key_id.is_none() {
                    // An identifier without the key's part identifies nothing.
                    let id = read_authority_key_id(value)?.unwrap_or_default();
                    authority_key_id = Some(id.to_vec());
                }
            }
        }
        (fields.is_empty() && parts.is_empty()).then_some(Self {
            signed: signed.raw.to_vec(),
            signature: signature.to_vec(),
            signature_algorithm: SignatureAlgorithm::read(algorithm.content)?,
            authority_key_id,
            serials,
        })
    }

    /// The identifier of the key that signed it, if it says so.
    #[must_use]
    pub fn authority_key_id(&self) -> Option<&[u8]> {
        self.authority_key_id.as_deref()
    }

    /// Whether the serial number of this certificate is listed. The authority is the caller's business.
    #[must_use]
    pub fn lists(&self, certificate: &Certificate) -> bool {
        unsigned(certificate.serial()).is_some_and(|serial| self.serials.contains(serial))
    }

    /// Checks that the key of `authority` made the list's signature.
    ///
    /// # Errors
    /// [`X509Error`] if not.
    pub fn verify_signed_by(&self, authority: &Certificate) -> Result<(), X509Error> {
        authority.public_key().verify_signed(
            self.signature_algorithm,
            &self.signed,
            &self.signature,
        )
    }
}

impl fmt::Debug for RevocationList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RevocationList")
            .field("revoked", &self.serials.len())
            .finish_non_exhaustive()
    }
}
