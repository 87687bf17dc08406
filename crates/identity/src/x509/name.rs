//! Distinguished names: read strictly, and written as people know them.

use std::fmt::Write as _;

use super::reader::{Element, OBJECT_IDENTIFIER, Reader, SEQUENCE, SET};

/// For each relative name its types (short, or dotted) and values.
pub(super) type DistinguishedName = Vec<Vec<(String, String)>>;

/// Reads the content of a name.
pub(super) fn read_name(content: &[u8]) -> Option<DistinguishedName> {
    let mut sequence = Reader::new(content);
    let mut names = Vec::new();
    while !sequence.is_empty() {
        let mut set = Reader::new(sequence.expect(SET)?);
        let mut name = Vec::new();
        while !set.is_empty() {
            let mut pair = Reader::new(set.expect(SEQUENCE)?);
            let oid = pair.expect(OBJECT_IDENTIFIER)?;
            let value = pair.element()?;
            if !pair.is_empty() {
                return None;
            }
            name.push((attribute(oid), read_string(value)?));
        }
        names.push(name);
    }
    Some(names)
}

fn attribute(oid: &[u8]) -> String {
    let short = match oid.strip_prefix(&[0x55, 0x04]) {
        Some([3]) => "CN",
        Some([5]) => "SERIALNUMBER",
        Some([6]) => "C",
        Some([7]) => "L",
        Some([8]) => "ST",
        Some([9]) => "STREET",
        Some([10]) => "O",
        Some([11]) => "OU",
        Some([17]) => "POSTALCODE",
        _ => return dotted(oid),
    };
    short.to_owned()
}

/// An object identifier in its usual notation.
fn dotted(oid: &[u8]) -> String {
    let mut out = String::new();
    let mut number = 0_u64;
    for byte in oid {
        number = number.wrapping_shl(7) | u64::from(byte & 0x7f);
        if *byte < 0x80 {
            if out.is_empty() {
                let first = (number / 40).min(2);
                let _ = write!(out, "{first}.{}", number - 40 * first);
            } else {
                let _ = write!(out, ".{number}");
            }
            number = 0;
        }
    }
    out
}

fn read_string(value: Element<'_>) -> Option<String> {
    let ascii = |allowed: fn(&u8) -> bool| {
        value
            .content
            .iter()
            .all(allowed)
            .then(|| value.content.iter().map(|byte| char::from(*byte)).collect())
    };
    match value.tag {
        0x0c => std::str::from_utf8(value.content).ok().map(str::to_owned),
        0x12 => ascii(|byte| byte.is_ascii_digit() || *byte == b' '),
        0x13 => ascii(|byte| {
            // `*` and `&` are not in the standard's set, but in many certificates.
            byte.is_ascii_alphanumeric() || b" '()+,-./:=?*&".contains(byte)
        }),
        // Teletex is read as Latin-1 everywhere.
        0x14 => ascii(|_| true),
        0x16 => ascii(u8::is_ascii),
        0x1e => {
            let (units, rest) = value.content.as_chunks::<2>();
            let units: Vec<u16> = units.iter().map(|unit| u16::from_be_bytes(*unit)).collect();
            String::from_utf16(&units).ok().filter(|_| rest.is_empty())
        }
        _ => None,
    }
}

/// A name as text, the last relative name first, as RFC 2253 has it.
pub(super) fn name_text(names: &DistinguishedName) -> String {
    let relative: Vec<String> = names
        .iter()
        .rev()
        .map(|name| {
            let pairs: Vec<String> = name
                .iter()
                .map(|(kind, value)| format!("{kind}={}", escaped(value)))
                .collect();
            pairs.join("+")
        })
        .collect();
    relative.join(",")
}

fn escaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let last = value.chars().count().saturating_sub(1);
    for (at, letter) in value.chars().enumerate() {
        let special = match letter {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => true,
            ' ' => at == 0 || at == last,
            '#' => at == 0,
            _ => false,
        };
        if special {
            out.push('\\');
        }
        out.push(letter);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_identifiers_are_written_with_dots() {
        assert_eq!(
            dotted(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01]),
            "1.2.840.10045.2.1"
        );
        assert_eq!(dotted(&[0x55, 0x04, 0x61]), "2.5.4.97");
    }

    #[test]
    fn letters_with_a_meaning_are_escaped() {
        let name = |value: &str| name_text(&vec![vec![("CN".to_owned(), value.to_owned())]]);
        assert_eq!(name("a,b"), "CN=a\\,b");
        assert_eq!(name("#a b "), "CN=\\#a b\\ ");
    }
}
