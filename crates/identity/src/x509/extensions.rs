//! Extensions of certificates: what they allow, and whom they name.

use super::X509Error;
use super::reader::{
    BIT_STRING, Element, OBJECT_IDENTIFIER, OCTET_STRING, Reader, SEQUENCE, explicit, implicit,
    unsigned,
};

/// Extensions are `2.5.29.x`; these are the x.
const EXTENSION_PREFIX: &[u8] = &[0x55, 0x1d];
const SUBJECT_KEY_ID: u8 = 14;
const KEY_USAGE: u8 = 15;
const SUBJECT_ALTERNATIVE_NAME: u8 = 17;
const BASIC_CONSTRAINTS: u8 = 19;
const NAME_CONSTRAINTS: u8 = 30;
const CRL_DISTRIBUTION_POINTS: u8 = 31;
const CERTIFICATE_POLICIES: u8 = 32;
const AUTHORITY_KEY_ID: u8 = 35;
const EXTENDED_KEY_USAGE: u8 = 37;
/// `1.3.6.1.5.5.7.1.1`, where to ask about the certificate.
const OID_AUTHORITY_INFO: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x01, 0x01];

/// `1.3.6.1.5.5.7.3`, and in it 1 for servers and 2 for clients.
const EXTENDED_USAGE_PREFIX: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03];
/// `2.5.29.37.0`
const ANY_EXTENDED_USAGE: &[u8] = &[0x55, 0x1d, 0x25, 0x00];

/// The bits of a key usage extension; none set if there is no extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeyUsage(u16);

impl KeyUsage {
    /// Whether the key may sign data.
    #[must_use]
    pub const fn digital_signature(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether the key may sign certificates.
    #[must_use]
    pub const fn certificate_sign(self) -> bool {
        self.0 & 1 << 5 != 0
    }

    /// Whether the key may sign revocation lists.
    #[must_use]
    pub const fn revocation_sign(self) -> bool {
        self.0 & 1 << 6 != 0
    }

    /// Whether there is no extension, or one that allows nothing.
    #[must_use]
    pub const fn is_unspecified(self) -> bool {
        self.0 == 0
    }
}

#[derive(Default)]
pub(super) struct Extensions {
    pub(super) has_basic_constraints: bool,
    pub(super) is_ca: bool,
    pub(super) max_path: Option<u32>,
    pub(super) key_usage: KeyUsage,
    /// `None`: no extension, so any.
    pub(super) extended_usage: Option<ExtendedUsages>,
    pub(super) subject_key_id: Option<Vec<u8>>,
    pub(super) authority_key_id: Option<Vec<u8>>,
    pub(super) has_names: bool,
    pub(super) names: Vec<Name>,
    pub(super) name_constraints: Option<NameConstraints>,
    pub(super) unhandled_critical: bool,
}

#[derive(Default, Clone, Copy)]
pub(super) struct ExtendedUsages {
    pub(super) any: bool,
    pub(super) server: bool,
    pub(super) client: bool,
}

/// An alternative name of the subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Name {
    Mail(String),
    Dns(String),
    Uri(String),
    Ip(Vec<u8>),
}

#[derive(Default)]
pub(super) struct NameConstraints {
    pub(super) permitted: Vec<Name>,
    pub(super) excluded: Vec<Name>,
}

impl Extensions {
    /// Reads the content of the explicit tag around the extensions.
    pub(super) fn read(content: &[u8]) -> Result<Self, X509Error> {
        let malformed = || X509Error::Malformed("extension");
        let mut outer = Reader::new(content);
        let mut list = Reader::new(outer.expect(SEQUENCE).ok_or_else(malformed)?);
        if !outer.is_empty() {
            return Err(malformed());
        }
        let mut found = Self::default();
        let mut seen: Vec<&[u8]> = Vec::new();
        while !list.is_empty() {
            let (oid, critical, value) = read_extension(&mut list).ok_or_else(malformed)?;
            if seen.contains(&oid) {
                return Err(X509Error::Malformed(
                    "certificate: contains duplicate extensions",
                ));
            }
            seen.push(oid);
            let understood = match oid.strip_prefix(EXTENSION_PREFIX) {
                Some([number]) => found.read_one(*number, value)?,
                _ => oid == OID_AUTHORITY_INFO,
            };
            found.unhandled_critical |= critical && !understood;
        }
        Ok(found)
    }

    /// Reads one extension; false if we do not understand it or not all of it.
    fn read_one(&mut self, number: u8, value: &[u8]) -> Result<bool, X509Error> {
        match number {
            SUBJECT_KEY_ID => {
                let id = Reader::new(value)
                    .expect(OCTET_STRING)
                    .ok_or(X509Error::Malformed("subject key identifier"))?;
                self.subject_key_id = Some(id.to_vec());
            }
            AUTHORITY_KEY_ID => {
                self.authority_key_id = read_authority_key_id(value)
                    .ok_or(X509Error::Malformed("authority key identifier"))?
                    .map(<[u8]>::to_vec);
            }
            KEY_USAGE => {
                self.key_usage = read_key_usage(value).ok_or(X509Error::Malformed("key usage"))?;
            }
            BASIC_CONSTRAINTS => {
                (self.is_ca, self.max_path) = read_basic_constraints(value)
                    .ok_or(X509Error::Malformed("basic constraints"))?;
                self.has_basic_constraints = true;
            }
            EXTENDED_KEY_USAGE => {
                self.extended_usage = read_extended_usage(value)
                    .ok_or(X509Error::Malformed("extended key usages"))?;
            }
            SUBJECT_ALTERNATIVE_NAME => {
                self.names = Reader::new(value)
                    .expect(SEQUENCE)
                    .and_then(read_names)
                    .ok_or(X509Error::Malformed("subject alternative name"))?;
                self.has_names = true;
                return Ok(!self.names.is_empty());
            }
            NAME_CONSTRAINTS => {
                let (constraints, understood) =
                    read_name_constraints(value).ok_or(X509Error::Malformed("name constraints"))?;
                self.name_constraints = Some(constraints);
                return Ok(understood);
            }
            CRL_DISTRIBUTION_POINTS | CERTIFICATE_POLICIES => {}
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// One extension: identifier, critical, value.
pub(super) fn read_extension<'a>(list: &mut Reader<'a>) -> Option<(&'a [u8], bool, &'a [u8])> {
    let mut fields = Reader::new(list.expect(SEQUENCE)?);
    let oid = fields.expect(OBJECT_IDENTIFIER)?;
    let critical = fields.default_false()?;
    let value = fields.expect(OCTET_STRING)?;
    fields.is_empty().then_some((oid, critical, value))
}

/// The key identifier in an authority key identifier; `Some(None)` if it has other parts only.
pub(super) fn read_authority_key_id(value: &[u8]) -> Option<Option<&[u8]>> {
    Reader::new(Reader::new(value).expect(SEQUENCE)?).optional(implicit(0))
}

fn read_key_usage(value: &[u8]) -> Option<KeyUsage> {
    let (&unused, bytes) = Reader::new(value).expect(BIT_STRING)?.split_first()?;
    if unused > 7 || (bytes.is_empty() && unused > 0) {
        return None;
    }
    let mut bits = 0_u16;
    for (at, byte) in bytes.iter().take(2).enumerate() {
        bits |= u16::from(byte.reverse_bits()) << (8 * at);
    }
    Some(KeyUsage(bits))
}

fn read_basic_constraints(value: &[u8]) -> Option<(bool, Option<u32>)> {
    let mut fields = Reader::new(Reader::new(value).expect(SEQUENCE)?);
    let is_ca = fields.default_false()?;
    let max_path = if fields.is_empty() {
        None
    } else {
        let number = unsigned(fields.integer()?)?;
        if number.len() > 4 {
            return None;
        }
        Some(
            number
                .iter()
                .fold(0_u32, |number, byte| number << 8 | u32::from(*byte)),
        )
    };
    Some((is_ca, max_path))
}

fn read_extended_usage(value: &[u8]) -> Option<Option<ExtendedUsages>> {
    let mut list = Reader::new(Reader::new(value).expect(SEQUENCE)?);
    if list.is_empty() {
        // A list of nothing restricts nothing, says Go.
        return Some(None);
    }
    let mut found = ExtendedUsages::default();
    while !list.is_empty() {
        let oid = list.expect(OBJECT_IDENTIFIER)?;
        match oid.strip_prefix(EXTENDED_USAGE_PREFIX) {
            Some([1]) => found.server = true,
            Some([2]) => found.client = true,
            _ => found.any |= oid == ANY_EXTENDED_USAGE,
        }
    }
    Some(Some(found))
}

/// Alternative names of the kinds that we know; others are passed over.
fn read_names(content: &[u8]) -> Option<Vec<Name>> {
    let mut list = Reader::new(content);
    let mut names = Vec::new();
    while !list.is_empty() {
        let element = list.element()?;
        if let Some(name) = read_general_name(element)? {
            if matches!(&name, Name::Ip(bytes) if bytes.len() != 4 && bytes.len() != 16) {
                return None;
            }
            names.push(name);
        }
    }
    Some(names)
}

fn read_general_name(element: Element<'_>) -> Option<Option<Name>> {
    let text = || {
        std::str::from_utf8(element.content)
            .ok()
            .filter(|text| text.is_ascii())
            .map(str::to_owned)
    };
    Some(Some(match element.tag {
        tag if tag == implicit(1) => Name::Mail(text()?),
        tag if tag == implicit(2) => Name::Dns(text()?),
        tag if tag == implicit(6) => Name::Uri(text()?),
        tag if tag == implicit(7) => Name::Ip(element.content.to_vec()),
        _ => return Some(None),
    }))
}

fn read_name_constraints(value: &[u8]) -> Option<(NameConstraints, bool)> {
    let mut understood = true;
    let mut subtrees = |content: Option<&[u8]>| {
        let mut names = Vec::new();
        let mut list = Reader::new(content.unwrap_or_default());
        while !list.is_empty() {
            let mut subtree = Reader::new(list.expect(SEQUENCE)?);
            match read_general_name(subtree.element()?)? {
                Some(Name::Ip(bytes)) if bytes.len() != 8 && bytes.len() != 32 => return None,
                Some(name) => names.push(name),
                None => understood = false,
            }
        }
        Some(names)
    };
    let mut outer = Reader::new(value);
    let mut fields = Reader::new(outer.expect(SEQUENCE)?);
    let constraints = NameConstraints {
        permitted: subtrees(fields.optional(explicit(0))?)?,
        excluded: subtrees(fields.optional(explicit(1))?)?,
    };
    (fields.is_empty() && outer.is_empty()).then_some((constraints, understood))
}
