//! X.500 legal names with Corda's rules.
//!
//! A legal name is what parties know each other by: it stands in certificates, in the network map, on every message.
//! Therefore two rules come before convenience. There is exactly one spelling of a name (order of attributes, spaces,
//! Unicode form), so that equality is equality of bytes. And no value can contain a character that would need escaping
//! in a distinguished name, so that no parser, ours or another's, can be made to see other attributes than we do.
//!
//! Start with [`X500Name`]. What a certificate may do with a name is not decided here but in [`crate::path`].

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use x509_parser::asn1_rs::Any;
use x509_parser::prelude::FromDer;

use crate::der;
use crate::hash::SecureHash;

/// The longest canonical text of a name in bytes. Anything longer is refused before it is looked at.
pub const MAX_NAME_BYTES: usize = 1024;

/// How many letters an organisation's name must have, so that names like `/` or `X` are refused.
const MIN_ORGANISATION_LETTERS: usize = 2;

/// How many characters of a refused text an error repeats.
const EXCERPT_CHARS: usize = 40;

/// Words that an organisation's name must not contain, in any case: they would pass for parts of the system.
const FORBIDDEN_WORDS: [&str; 2] = ["node", "server"];

/// An attribute that a legal name may have. The order of the variants is the order of the canonical text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Attribute {
    /// `CN`, optional.
    CommonName,
    /// `OU`, optional.
    OrganisationUnit,
    /// `O`, required.
    Organisation,
    /// `L`, required: normally the nearest city.
    Locality,
    /// `ST`, optional.
    State,
    /// `C`, required: ISO 3166-1 alpha-2.
    Country,
}

impl Attribute {
    const ALL: [Self; 6] = [
        Self::CommonName,
        Self::OrganisationUnit,
        Self::Organisation,
        Self::Locality,
        Self::State,
        Self::Country,
    ];

    /// The keyword in the text form, such as `O`.
    #[must_use]
    pub const fn keyword(self) -> &'static str {
        match self {
            Self::CommonName => "CN",
            Self::OrganisationUnit => "OU",
            Self::Organisation => "O",
            Self::Locality => "L",
            Self::State => "ST",
            Self::Country => "C",
        }
    }

    /// The longest value in characters.
    #[must_use]
    pub const fn max_chars(self) -> usize {
        match self {
            Self::Organisation => 128,
            Self::Country => 2,
            Self::CommonName | Self::OrganisationUnit | Self::Locality | Self::State => 64,
        }
    }

    const fn required(self) -> bool {
        matches!(self, Self::Organisation | Self::Locality | Self::Country)
    }

    /// The content of the attribute type's object identifier; all are 2.5.4.x.
    const fn oid(self) -> [u8; 3] {
        let last = match self {
            Self::CommonName => 3,
            Self::Country => 6,
            Self::Locality => 7,
            Self::State => 8,
            Self::Organisation => 10,
            Self::OrganisationUnit => 11,
        };
        [0x55, 0x04, last]
    }
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.keyword())
    }
}

/// Why something is not a legal name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// The whole text is longer than any name.
    #[error("a legal name has at most {MAX_NAME_BYTES} bytes, this one has {length}")]
    TextTooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// A part between commas that is not `keyword=value`.
    #[error(
        "\"{part}\" in the legal name is not of the form attribute=value; write for example \"O=PartyA, L=London, C=GB\""
    )]
    Malformed {
        /// The part, shortened and escaped.
        part: String,
    },
    /// An attribute that legal names do not have.
    #[error("the legal name has the attribute {keyword}; only CN, OU, O, L, ST and C are allowed")]
    UnknownAttribute {
        /// The keyword or object identifier, shortened and escaped.
        keyword: String,
    },
    /// An attribute given twice.
    #[error("the legal name has the attribute {0} more than once; leave one")]
    DuplicateAttribute(Attribute),
    /// A required attribute that is not there.
    #[error("the legal name lacks the attribute {0}; O, L and C are required")]
    MissingAttribute(Attribute),
    /// An attribute without a value.
    #[error("the attribute {0} of the legal name is empty; give it a value or leave it out")]
    Empty(Attribute),
    /// A value beyond its limit.
    #[error("the attribute {attribute} of the legal name has {length} characters; at most {} are allowed", .attribute.max_chars())]
    TooLong {
        /// Which attribute.
        attribute: Attribute,
        /// Its length in characters.
        length: usize,
    },
    /// A character that may not occur in this attribute.
    #[error(
        "the attribute {attribute} of the legal name contains the character {character:?} (U+{:04X}); use Latin letters in their composed form, digits, spaces and simple punctuation",
        u32::from(*.character)
    )]
    ForbiddenCharacter {
        /// Which attribute.
        attribute: Attribute,
        /// The first such character.
        character: char,
    },
    /// Spaces at an end, or several in a row.
    #[error(
        "the attribute {0} of the legal name has spaces at its beginning or end, or several in a row; remove them"
    )]
    Spaces(Attribute),
    /// An organisation with hardly any letter.
    #[error(
        "the organisation of the legal name must have at least {MIN_ORGANISATION_LETTERS} letters"
    )]
    TooFewLetters,
    /// An organisation that contains a word kept for the system.
    #[error(
        "the organisation of the legal name must not contain the word \"{word}\"; choose another name"
    )]
    ForbiddenWord {
        /// The word.
        word: &'static str,
    },
    /// No country of ISO 3166-1.
    #[error(
        "\"{code}\" in the legal name is not a country code of ISO 3166-1 (two capital letters, such as GB)"
    )]
    UnknownCountry {
        /// The value, shortened and escaped.
        code: String,
    },
    /// Bytes that are not the DER of a distinguished name of plain single-valued attributes.
    #[error(
        "these bytes are not a distinguished name in DER with one text value for each attribute"
    )]
    MalformedDer,
}

/// A legal name: organisation, locality and country, optionally common name, organisation unit and state.
///
/// Cheap to clone. Equality, order and hash are those of the canonical text, which [`fmt::Display`] shows:
/// `CN=…, OU=…, O=PartyA, L=Osaka, ST=…, C=JP`. [`FromStr`] accepts the attributes in any order, keywords in any case
/// and any spaces around them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct X500Name(Arc<str>);

impl X500Name {
    /// A name of the three required attributes.
    ///
    /// # Errors
    /// [`NameError`] if a value breaks the rules of its attribute. Values are not trimmed.
    pub fn new(organisation: &str, locality: &str, country: &str) -> Result<Self, NameError> {
        let mut values = Values::default();
        values.set(Attribute::Organisation, organisation)?;
        values.set(Attribute::Locality, locality)?;
        values.set(Attribute::Country, country)?;
        values.build()
    }

    /// This name with the common name `CN`, replacing one that it had.
    ///
    /// # Errors
    /// [`NameError`] if the value breaks the rules.
    pub fn with_common_name(&self, value: &str) -> Result<Self, NameError> {
        self.with(Attribute::CommonName, value)
    }

    /// This name with the organisation unit `OU`, replacing one that it had.
    ///
    /// # Errors
    /// [`NameError`] if the value breaks the rules.
    pub fn with_organisation_unit(&self, value: &str) -> Result<Self, NameError> {
        self.with(Attribute::OrganisationUnit, value)
    }

    /// This name with the state `ST`, replacing one that it had.
    ///
    /// # Errors
    /// [`NameError`] if the value breaks the rules.
    pub fn with_state(&self, value: &str) -> Result<Self, NameError> {
        self.with(Attribute::State, value)
    }

    /// `CN`.
    #[must_use]
    pub fn common_name(&self) -> Option<&str> {
        self.get(Attribute::CommonName)
    }

    /// `OU`.
    #[must_use]
    pub fn organisation_unit(&self) -> Option<&str> {
        self.get(Attribute::OrganisationUnit)
    }

    /// `O`.
    #[must_use]
    pub fn organisation(&self) -> &str {
        self.get(Attribute::Organisation)
            .expect("every name has an organisation")
    }

    /// `L`.
    #[must_use]
    pub fn locality(&self) -> &str {
        self.get(Attribute::Locality)
            .expect("every name has a locality")
    }

    /// `ST`.
    #[must_use]
    pub fn state(&self) -> Option<&str> {
        self.get(Attribute::State)
    }

    /// `C`.
    #[must_use]
    pub fn country(&self) -> &str {
        self.get(Attribute::Country)
            .expect("every name has a country")
    }

    /// The value of an attribute, if the name has it.
    #[must_use]
    pub fn get(&self, attribute: Attribute) -> Option<&str> {
        self.attributes()
            .find_map(|(candidate, value)| (candidate == attribute).then_some(value))
    }

    /// The attributes with their values in the order of the canonical text.
    pub fn attributes(&self) -> impl Iterator<Item = (Attribute, &str)> {
        // A value contains neither a comma nor an equals sign, hence the canonical text needs no index beside it.
        self.0.split(", ").map(|part| {
            let (keyword, value) = part
                .split_once('=')
                .expect("a canonical part is keyword=value");
            let attribute = Attribute::ALL
                .into_iter()
                .find(|attribute| attribute.keyword() == keyword)
                .expect("a canonical part has a known keyword");
            (attribute, value)
        })
    }

    /// The canonical text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The distinguished name in DER, in the order of Corda's certificates: C, ST, L, O, OU, CN.
    #[must_use]
    pub fn to_der(&self) -> Vec<u8> {
        let mut parts: Vec<_> = self.attributes().collect();
        // The canonical text is the reverse of the encoded order, as RFC 1779 wants it.
        parts.reverse();
        let mut names = Vec::new();
        for (attribute, value) in parts {
            let tag = match attribute {
                Attribute::Country => der::PRINTABLE_STRING,
                _ => der::UTF8_STRING,
            };
            let mut pair = der::element(der::OBJECT_IDENTIFIER, &attribute.oid());
            pair.extend(der::element(tag, value.as_bytes()));
            names.extend(der::element(der::SET, &der::element(der::SEQUENCE, &pair)));
        }
        der::element(der::SEQUENCE, &names)
    }

    /// Reads a distinguished name in DER, its attributes in any order.
    ///
    /// # Errors
    /// [`NameError::MalformedDer`] if the bytes are something else (trailing bytes included), another [`NameError`] if
    /// the attributes are not those of a legal name.
    pub fn from_der(bytes: &[u8]) -> Result<Self, NameError> {
        let (rest, name) =
            x509_parser::x509::X509Name::from_der(bytes).map_err(|_| NameError::MalformedDer)?;
        if !rest.is_empty() {
            return Err(NameError::MalformedDer);
        }
        Self::from_parsed(&name)
    }

    pub(crate) fn from_parsed(name: &x509_parser::x509::X509Name<'_>) -> Result<Self, NameError> {
        if !is_whole_sequence(name.as_raw()) {
            return Err(NameError::MalformedDer);
        }
        let mut values = Values::default();
        for rdn in name.iter_rdn() {
            let mut pairs = rdn.iter();
            let (Some(pair), None) = (pairs.next(), pairs.next()) else {
                return Err(NameError::MalformedDer);
            };
            let attribute = Attribute::ALL
                .into_iter()
                .find(|attribute| attribute.oid()[..] == *pair.attr_type().as_bytes())
                .ok_or_else(|| NameError::UnknownAttribute {
                    keyword: excerpt(&pair.attr_type().to_id_string()),
                })?;
            values.set(
                attribute,
                pair.as_str().map_err(|_| NameError::MalformedDer)?,
            )?;
        }
        values.build()
    }

    /// The host name by which a client says, in TLS's server name indication, whom it wants to talk to.
    ///
    /// A legal name cannot be a host name, and would tell an eavesdropper who talks to whom. As in Corda: the first 32
    /// hexadecimal digits (lower case) of the SHA-256 of the canonical text, then `.corda.net`.
    #[must_use]
    pub fn sni_hash(&self) -> String {
        let hash = SecureHash::of(self.0.as_bytes());
        format!("{}.corda.net", hex::encode(&hash.as_bytes()[..16]))
    }

    /// Whether this name lies in the subtree that `base` spans: it has all attributes of `base`, and whatever it has
    /// more comes after them in the order of [`X500Name::to_der`] (RFC 5280, 4.2.1.10).
    #[must_use]
    pub fn is_within(&self, base: &Self) -> bool {
        let mut own: Vec<_> = self.attributes().collect();
        let mut wanted: Vec<_> = base.attributes().collect();
        own.reverse();
        wanted.reverse();
        own.starts_with(&wanted)
    }

    fn with(&self, attribute: Attribute, value: &str) -> Result<Self, NameError> {
        let mut values = Values::default();
        for (kept, value) in self.attributes().filter(|(kept, _)| *kept != attribute) {
            values.set(kept, value)?;
        }
        values.set(attribute, value)?;
        values.build()
    }
}

/// Values on their way to a name: each is checked when set, completeness at the end.
#[derive(Default)]
struct Values<'a>([Option<&'a str>; Attribute::ALL.len()]);

impl<'a> Values<'a> {
    fn set(&mut self, attribute: Attribute, value: &'a str) -> Result<(), NameError> {
        let slot = &mut self.0[attribute as usize];
        if slot.is_some() {
            return Err(NameError::DuplicateAttribute(attribute));
        }
        check_value(attribute, value)?;
        *slot = Some(value);
        Ok(())
    }

    fn build(self) -> Result<X500Name, NameError> {
        let mut text = String::new();
        for (attribute, value) in Attribute::ALL.into_iter().zip(self.0) {
            let Some(value) = value else {
                if attribute.required() {
                    return Err(NameError::MissingAttribute(attribute));
                }
                continue;
            };
            if !text.is_empty() {
                text.push_str(", ");
            }
            text.push_str(attribute.keyword());
            text.push('=');
            text.push_str(value);
        }
        Ok(X500Name(text.into()))
    }
}

fn check_value(attribute: Attribute, value: &str) -> Result<(), NameError> {
    if value.is_empty() {
        return Err(NameError::Empty(attribute));
    }
    if attribute == Attribute::Country {
        return match COUNTRIES.binary_search(&value) {
            Ok(_) => Ok(()),
            Err(_) => Err(NameError::UnknownCountry {
                code: excerpt(value),
            }),
        };
    }
    let length = value.chars().count();
    if length > attribute.max_chars() {
        return Err(NameError::TooLong { attribute, length });
    }
    if let Some(character) = value
        .chars()
        .enumerate()
        .find_map(|(index, c)| (!allowed(attribute, index, c)).then_some(c))
    {
        return Err(NameError::ForbiddenCharacter {
            attribute,
            character,
        });
    }
    if value.starts_with(' ') || value.ends_with(' ') || value.contains("  ") {
        return Err(NameError::Spaces(attribute));
    }
    if attribute == Attribute::Organisation {
        if value.chars().filter(|c| c.is_alphabetic()).count() < MIN_ORGANISATION_LETTERS {
            return Err(NameError::TooFewLetters);
        }
        let folded = value.to_lowercase();
        if let Some(word) = FORBIDDEN_WORDS.iter().find(|word| folded.contains(**word)) {
            return Err(NameError::ForbiddenWord { word });
        }
    }
    Ok(())
}

/// Latin script only, against confusable and right-to-left names, and only characters that are their own NFKC form, so
/// that a name has one spelling without a normalisation table in the program.
fn allowed(attribute: Attribute, index: usize, character: char) -> bool {
    match character {
        // They separate, quote or escape in the text forms of distinguished names.
        ',' | '=' | '"' | '\\' | '+' | ';' | '<' | '>' => false,
        // Begins a hexadecimal value in RFC 2253.
        '#' => index > 0,
        // Corda keeps them out of organisations; localities such as King's Lynn need the second.
        '$' | '\'' => attribute != Attribute::Organisation,
        ' '..='~' => true,
        // Latin-1 and Latin Extended-A, without signs and without compatibility characters.
        '\u{00d7}' | '\u{00f7}' => false,
        '\u{0132}' | '\u{0133}' | '\u{013f}' | '\u{0140}' | '\u{0149}' | '\u{017f}' => false,
        '\u{00c0}'..='\u{017f}' => true,
        _ => false,
    }
}

/// A piece of a refused text that is safe to show: short, without control characters.
fn excerpt(text: &str) -> String {
    let mut shown: String = text.chars().take(EXCERPT_CHARS).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown.escape_debug().to_string()
}

impl FromStr for X500Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_NAME_BYTES {
            return Err(NameError::TextTooLong { length: text.len() });
        }
        let mut values = Values::default();
        for part in text.split(',') {
            let (keyword, value) = part.split_once('=').ok_or_else(|| NameError::Malformed {
                part: excerpt(part.trim()),
            })?;
            let keyword = keyword.trim();
            let attribute = Attribute::ALL
                .into_iter()
                .find(|attribute| attribute.keyword().eq_ignore_ascii_case(keyword))
                .ok_or_else(|| NameError::UnknownAttribute {
                    keyword: excerpt(keyword),
                })?;
            // Only plain spaces: a tab or a line break is a mistake worth hearing about.
            values.set(attribute, value.trim_matches(' '))?;
        }
        values.build()
    }
}

/// Whether `der` is one element that consists of whole elements. The parser of names stops at the first element that it
/// cannot read and keeps silent about the remaining bytes; two names that differ must not be taken for one.
fn is_whole_sequence(der: &[u8]) -> bool {
    let Ok((&[], sequence)) = Any::from_der(der) else {
        return false;
    };
    let mut rest = sequence.data;
    while !rest.is_empty() {
        match Any::from_der(rest) {
            Ok((after, _)) => rest = after,
            Err(_) => return false,
        }
    }
    true
}

impl fmt::Display for X500Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for X500Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Serialize for X500Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for X500Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <String as Deserialize>::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl BorshSerialize for X500Name {
    fn serialize<W: std::io::Write>(&self, writer: &mut W) -> std::io::Result<()> {
        BorshSerialize::serialize(&*self.0, writer)
    }
}

impl BorshDeserialize for X500Name {
    /// Only the canonical text is accepted: bytes that are signed or hashed must have one form.
    fn deserialize_reader<R: std::io::Read>(reader: &mut R) -> std::io::Result<Self> {
        let invalid =
            |error: NameError| std::io::Error::new(std::io::ErrorKind::InvalidData, error);
        let length = u32::deserialize_reader(reader)? as usize;
        if length > MAX_NAME_BYTES {
            return Err(invalid(NameError::TextTooLong { length }));
        }
        let mut bytes = vec![0; length];
        reader.read_exact(&mut bytes)?;
        let text = String::from_utf8(bytes)
            .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))?;
        let name: Self = text.parse().map_err(invalid)?;
        if name.as_str() != text {
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                "the legal name is not in its canonical form",
            ));
        }
        Ok(name)
    }
}

/// The officially assigned codes of ISO 3166-1 alpha-2, sorted.
const COUNTRIES: [&str; 249] = [
    "AD", "AE", "AF", "AG", "AI", "AL", "AM", "AO", "AQ", "AR", "AS", "AT", "AU", "AW", "AX", "AZ",
    "BA", "BB", "BD", "BE", "BF", "BG", "BH", "BI", "BJ", "BL", "BM", "BN", "BO", "BQ", "BR", "BS",
    "BT", "BV", "BW", "BY", "BZ", "CA", "CC", "CD", "CF", "CG", "CH", "CI", "CK", "CL", "CM", "CN",
    "CO", "CR", "CU", "CV", "CW", "CX", "CY", "CZ", "DE", "DJ", "DK", "DM", "DO", "DZ", "EC", "EE",
    "EG", "EH", "ER", "ES", "ET", "FI", "FJ", "FK", "FM", "FO", "FR", "GA", "GB", "GD", "GE", "GF",
    "GG", "GH", "GI", "GL", "GM", "GN", "GP", "GQ", "GR", "GS", "GT", "GU", "GW", "GY", "HK", "HM",
    "HN", "HR", "HT", "HU", "ID", "IE", "IL", "IM", "IN", "IO", "IQ", "IR", "IS", "IT", "JE", "JM",
    "JO", "JP", "KE", "KG", "KH", "KI", "KM", "KN", "KP", "KR", "KW", "KY", "KZ", "LA", "LB", "LC",
    "LI", "LK", "LR", "LS", "LT", "LU", "LV", "LY", "MA", "MC", "MD", "ME", "MF", "MG", "MH", "MK",
    "ML", "MM", "MN", "MO", "MP", "MQ", "MR", "MS", "MT", "MU", "MV", "MW", "MX", "MY", "MZ", "NA",
    "NC", "NE", "NF", "NG", "NI", "NL", "NO", "NP", "NR", "NU", "NZ", "OM", "PA", "PE", "PF", "PG",
    "PH", "PK", "PL", "PM", "PN", "PR", "PS", "PT", "PW", "PY", "QA", "RE", "RO", "RS", "RU", "RW",
    "SA", "SB", "SC", "SD", "SE", "SG", "SH", "SI", "SJ", "SK", "SL", "SM", "SN", "SO", "SR", "SS",
    "ST", "SV", "SX", "SY", "SZ", "TC", "TD", "TF", "TG", "TH", "TJ", "TK", "TL", "TM", "TN", "TO",
    "TR", "TT", "TV", "TW", "TZ", "UA", "UG", "UM", "US", "UY", "UZ", "VA", "VC", "VE", "VG", "VI",
    "VN", "VU", "WF", "WS", "YE", "YT", "ZA", "ZM", "ZW",
];
