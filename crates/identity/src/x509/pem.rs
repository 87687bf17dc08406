//! PEM as Go reads it: text before and after a block is passed over, and so is a block that is damaged.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The most damaged blocks that are passed over in search of a sound one.
pub const MAX_DAMAGED_BLOCKS: usize = 16;

const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"-----END ";
const DASHES: &[u8] = b"-----";

/// One block: what it says it is, and its bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Block {
    /// The words after `BEGIN`.
    pub label: String,
    /// Whether the block has headers that say it is encrypted.
    pub encrypted: bool,
    /// The decoded bytes.
    pub bytes: Vec<u8>,
}

/// The first sound block of a text, and what follows it. `None` if there is none.
#[must_use]
pub fn first(text: &[u8]) -> Option<(Block, &[u8])> {
    let mut rest = text;
    let mut at_start = true;
    for _ in 0..=MAX_DAMAGED_BLOCKS {
        // A block begins at the start of a line.
        let begin = loop {
            let at = find(rest, BEGIN)?;
            if (at == 0 && at_start) || (at > 0 && rest[at - 1] == b'\n') {
                break at;
            }
            rest = &rest[at + BEGIN.len()..];
            at_start = false;
        };
        rest = &rest[begin + BEGIN.len()..];
        at_start = false;
        match block(rest) {
            Sound(block, rest) => return Some((block, rest)),
            Damaged => {}
            Endless => return None,
        }
    }
    None
}

/// All sound blocks of a text, in order.
pub fn all(text: &[u8]) -> impl Iterator<Item = Block> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (block, after) = first(rest)?;
        rest = after;
        Some(block)
    })
}

/// A block with this label, in lines of 64 characters.
#[must_use]
pub fn encode(label: &str, bytes: &[u8]) -> String {
    let mut out = format!("-----BEGIN {label}-----\n");
    let text = STANDARD.encode(bytes);
    for line in text.as_bytes().chunks(64) {
        out.extend(line.iter().map(|byte| char::from(*byte)));
        out.push('\n');
    }
    out.push_str("-----END ");
    out.push_str(label);
    out.push_str("-----\n");
    out
}

enum Found<'a> {
    Sound(Block, &'a [u8]),
    Damaged,
    /// There is no end line further on, so no block can follow.
    Endless,
}
use Found::{Damaged, Endless, Sound};

/// Reads what follows `-----BEGIN `.
fn block(text: &[u8]) -> Found<'_> {
    let (first_line, mut rest) = line(text);
    let Some(label) = first_line.strip_suffix(DASHES) else {
        return Damaged;
    };
    let mut headers = 0;
    let mut encrypted = false;
    loop {
        let (header, after) = line(rest);
        if !header.contains(&b':') {
            break;
        }
        encrypted |= find(header, b"ENCRYPTED").is_some();
        headers += 1;
        rest = after;
    }
    // The end line stands at the start of a line; in an empty block without headers it may come at once.
    let end = if headers == 0 && rest.starts_with(END) {
        0
    } else {
        let mut searched = 0;
        loop {
            match find(&rest[searched..], END) {
                None => return Endless,
                Some(at) if searched + at > 0 && rest[searched + at - 1] == b'\n' => {
                    break searched + at;
                }
                Some(at) => searched += at + END.len(),
            }
        }
    };
    let (end_line, after) = line(&rest[end + END.len()..]);
    if end_line
        .strip_suffix(DASHES)
        .is_none_or(|end_label| end_label != label)
    {
        return Damaged;
    }
    let digits: Vec<u8> = rest[..end]
        .iter()
        .copied()
        .filter(|byte| !matches!(byte, b' ' | b'\t' | b'\r' | b'\n'))
        .collect();
    match STANDARD.decode(digits) {
        Ok(bytes) => Sound(
            Block {
                label: String::from_utf8_lossy(label).into_owned(),
                encrypted,
                bytes,
            },
            after,
        ),
        Err(_) => Damaged,
    }
}

/// The first line without its end and trailing blanks, and the rest.
fn line(text: &[u8]) -> (&[u8], &[u8]) {
    let (line, rest) = match text.iter().position(|byte| *byte == b'\n') {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, &[][..]),
    };
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    (line.trim_ascii_end(), rest)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn bytes(text: &str) -> Option<Vec<u8>> {
        first(text.as_bytes()).map(|(block, _)| block.bytes)
    }

    #[test]
    fn text_around_a_block_and_any_label_are_accepted() {
        let pem = encode("ANYTHING", b"hello");
        assert_eq!(bytes(&pem).unwrap(), b"hello");
        assert_eq!(bytes(&format!("before\n{pem}after")).unwrap(), b"hello");
        assert_eq!(bytes(&format!("before{pem}")), None);
        assert_eq!(bytes(&pem.replace('\n', "\r\n")).unwrap(), b"hello");
        assert_eq!(bytes(pem.trim_end()).unwrap(), b"hello");
    }

    #[test]
    fn a_damaged_block_is_passed_over() {
        let sound = encode("X", b"sound");
        for damaged in [
            "-----BEGIN A-----\nAAAA\n-----END B-----\n",
            "-----BEGIN A-----\n!!!!\n-----END A-----\n",
            "-----BEGIN A\nAAAA\n-----END A-----\n",
        ] {
            assert_eq!(
                bytes(&format!("{damaged}{sound}")).unwrap(),
                b"sound",
                "{damaged}"
            );
            assert_eq!(bytes(damaged), None);
        }
        let many = "-----BEGIN A-----\n!\n-----END A-----\n".repeat(MAX_DAMAGED_BLOCKS + 1);
        assert_eq!(bytes(&format!("{many}{sound}")), None);
    }

    #[test]
    fn headers_are_read_and_an_encrypted_block_is_told() {
        let pem = "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES\n\nAAAA\n-----END EC PRIVATE KEY-----\n";
        let (block, rest) = first(pem.as_bytes()).unwrap();
        assert!(block.encrypted && rest.is_empty());
        assert_eq!(block.bytes, [0, 0, 0]);
    }
}
