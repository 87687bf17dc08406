//! Bytes as an attacker sends them and a dying disk returns them: made from good samples and a seed.
//!
//! [`torment`] hands thousands of forgeries to a decoder and watches: no panic, no time that grows out of proportion, no
//! memory on behalf of a length that lies. Most forgeries know the shape of what they forge ([`Shape`]): a changed
//! byte deep inside a message is of no use when the lengths around it no longer fit, because then no decoder gets that
//! far.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

/// A forgery has at most so many bytes more than its sample.
pub const MAX_GROWTH: usize = 64 * 1024;

/// How long one decoding may take, on a machine that does many other things.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// What a process of tests may hold in memory, in KiB. Tests of one file run at the same time.
pub const MAX_RESIDENT_KIB: u64 = 1024 * 1024;

/// Multiplies the number of forgeries, for a longer search by hand.
pub const MORE: &str = "QUORATE_MORE";

/// How nested messages of a larger one are recognised, so that their lengths are kept right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// No lengths are known.
    Plain,
    /// Tags, lengths, contents.
    Protobuf,
    /// The same in ASN.1's distinguished encoding.
    Der,
    /// Lines with indentation, as in YAML.
    Text,
}

/// Gives `count` forgeries to `decode`.
///
/// # Panics
/// When `decode` does, or takes longer than [`PATIENCE`], or the process has grown beyond [`MAX_RESIDENT_KIB`].
pub fn torment(
    what: &str,
    shape: Shape,
    samples: &[Vec<u8>],
    count: usize,
    mut decode: impl FnMut(&[u8]),
) {
    assert!(!samples.is_empty(), "{what}: there are samples");
    for sample in samples {
        decode(sample);
    }
    let mut forger = Forger::new(seed_of(what), shape, samples);
    let (began, mut slowest) = (Instant::now(), (Duration::ZERO, 0));
    for number in 0..count * more() {
        let forgery = forger.forge();
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| decode(&forgery)));
        let took = started.elapsed();
        let shown = || shown(&forgery);
        if let Err(panic) = outcome {
            report(&format!("{what}: panic at forgery {number}: {}", shown()));
            resume_unwind(panic);
        }
        slowest = slowest.max((took, number));
        assert!(
            took < PATIENCE,
            "{what}: forgery {number} took {took:?}: {}",
            shown()
        );
        if number % 64 == 0 {
            let resident = resident_kib();
            assert!(
                resident < MAX_RESIDENT_KIB,
                "{what}: {resident} KiB in memory at forgery {number}: {}",
                shown()
            );
        }
    }
    report(&format!(
        "{what}: {} forgeries in {:?}; the slowest, number {}, took {:?}",
        count * more(),
        began.elapsed(),
        slowest.1,
        slowest.0
    ));
}

/// How many times more than usual is to be tried.
#[must_use]
pub fn more() -> usize {
    std::env::var(MORE)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1)
}

/// The most memory that this process ever held, in KiB; 0 where the system does not say.
#[must_use]
pub fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse().ok())
        .unwrap_or(0)
}

fn report(line: &str) {
    // Beside the panic's own message, which is on its way to the same place.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{line}\n").as_bytes());
}

fn shown(bytes: &[u8]) -> String {
    const SHOWN: usize = 2048;
    let hex: String = bytes
        .iter()
        .take(SHOWN)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{} bytes {hex}", bytes.len())
}

/// A number from a name, so that decoders are not all tried with the same choices.
fn seed_of(what: &str) -> u64 {
    what.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// Makes forgeries, the same ones from the same seed.
pub struct Forger<'a> {
    state: u64,
    shape: Shape,
    samples: &'a [Vec<u8>],
}

/// What breaks number formats and counters.
const NUMBERS: &[u64] = &[
    0,
    1,
    2,
    7,
    127,
    128,
    255,
    256,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 32,
    1 << 62,
    u64::MAX >> 1,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];

/// What breaks readers of configuration files.
const WORDS: &[&str] = &[
    "- ",
    ": ",
    "{",
    "}",
    "[",
    "]",
    "&a ",
    "*a",
    "<<: *a",
    "!!binary ",
    "|\n",
    ">\n",
    "\t",
    "\"",
    "'",
    "\\",
    "%",
    "#",
    "---\n",
    "...\n",
    "? ",
    "~",
    "null",
    "true",
    "-1",
    "1e400",
    "0x7fffffffffffffff",
    "99999999999999999999",
    "1000000 GB",
    "106751d",
    "\u{0}",
    "\u{feff}",
    "\u{1f600}",
    "../../",
    "/",
    "",
];

impl<'a> Forger<'a> {
    /// Forges what looks like these samples.
    #[must_use]
    pub fn new(seed: u64, shape: Shape, samples: &'a [Vec<u8>]) -> Self {
        Self {
            state: seed,
            shape,
            samples,
        }
    }

    fn roll(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; 0 if that is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.roll() % (bound.max(1) as u64)).unwrap_or(0)
    }

    fn number(&mut self) -> u64 {
        match self.below(3) {
            0 => self.roll(),
            _ => NUMBERS[self.below(NUMBERS.len())],
        }
    }

    /// The next forgery.
    pub fn forge(&mut self) -> Vec<u8> {
        let mut bytes = self.samples[self.below(self.samples.len())].clone();
        for _ in 0..=self.below(3) {
            bytes = match (self.shape, self.below(4)) {
                (Shape::Protobuf | Shape::Der, 0..3) => self.inside(bytes, 0),
                (Shape::Text, 0..3) => self.text(bytes),
                _ => self.damage(bytes),
            };
        }
        bytes
    }

    /// Changes something at some depth, and lets the lengths around it fit.
    fn inside(&mut self, bytes: Vec<u8>, depth: usize) -> Vec<u8> {
        // Deeper than any of our messages; nesting is a mutation of its own.
        const DEEPEST: usize = 40;
        let Some(mut fields) = self.split(&bytes).filter(|_| depth < DEEPEST) else {
            return self.damage(bytes);
        };
        if fields.is_empty() {
            return self.damage(bytes);
        }
        let at = self.below(fields.len());
        match self.below(12) {
            0 => {
                fields.remove(at);
            }
            1 => {
                let copies = 1 + self.below(20);
                let room = MAX_GROWTH / fields[at].content.len().max(16);
                for _ in 0..copies.min(room) {
                    fields.insert(at, fields[at].clone());
                }
            }
            2 => {
                let other = self.below(fields.len());
                fields.swap(at, other);
            }
            3 => {
                let number = self.number();
                fields[at].tag = match self.shape {
                    Shape::Der => vec![number as u8],
                    _ => varint(number),
                };
            }
            4 => {
                // A message inside of itself, many times.
                for _ in 0..[2, 10, 60, 120, 1000][self.below(5)] {
                    let whole = join(self.shape, &fields);
                    if whole.len() > bytes.len() + MAX_GROWTH {
                        break;
                    }
                    fields[at].content = whole;
                    fields[at].has_length = true;
                }
            }
            _ if fields[at].has_length => {
                let content = std::mem::take(&mut fields[at].content);
                fields[at].content = self.inside(content, depth + 1);
            }
            _ => {
                let number = self.number();
                fields[at].content = varint(number);
            }
        }
        join(self.shape, &fields)
    }

    /// The fields that a message consists of, if it is one.
    fn split(&self, bytes: &[u8]) -> Option<Vec<Field>> {
        let mut fields = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let (field, after) = match self.shape {
                Shape::Protobuf => protobuf_field(rest)?,
                Shape::Der => der_field(rest)?,
                Shape::Plain | Shape::Text => return None,
            };
            fields.push(field);
            rest = after;
        }
        Some(fields)
    }

    /// Changes bytes without a thought.
    fn damage(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        let length = bytes.len();
        let at = self.below(length);
        match self.below(10) {
            0 if length > 0 => bytes[at] ^= 1 << self.below(8),
            1 if length > 0 => bytes[at] = self.number() as u8,
            2 => bytes.truncate(at),
            3 => {
                let end = at + self.below(length - at);
                bytes.drain(at..end);
            }
            4 => {
                let count = 1 + self.below(16);
                let noise: Vec<u8> = (0..count).map(|_| self.roll() as u8).collect();
                bytes.splice(at..at, noise);
            }
            5 => {
                // A length or a count that lies.
                let number = self.number();
                let lie = match self.below(3) {
                    0 => varint(number),
                    1 => number.to_le_bytes()[..[4, 8][self.below(2)]].to_vec(),
                    _ => number.to_be_bytes()[[4, 0][self.below(2)]..].to_vec(),
                };
                let end = (at + lie.len()).min(length);
                bytes.splice(at..end, lie);
            }
            6 => {
                let end = at + self.below(length - at).min(256);
                let piece = bytes[at..end].to_vec();
                let copies = self.below(MAX_GROWTH / piece.len().max(64));
                bytes.splice(at..at, piece.repeat(copies));
            }
            7 => {
                let other = &self.samples[self.below(self.samples.len())];
                let from = self.below(other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            8 if length > 0 => {
                let end = (at + 1 + self.below(64)).min(length);
                let fill = self.number() as u8;
                bytes[at..end].fill(fill);
            }
            _ => {
                let noise: Vec<u8> = (0..self.below(64)).map(|_| self.roll() as u8).collect();
                bytes.extend(noise);
            }
        }
        bytes
    }

    /// Changes lines and words.
    fn text(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        let Ok(text) = String::from_utf8(bytes) else {
            return vec![b'x'; self.below(64)];
        };
        let mut lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
        let at = self.below(lines.len());
        match self.below(7) {
            0 => {
                lines.remove(at);
            }
            1 => {
                let line = lines[at].clone();
                lines.insert(at, line);
            }
            2 => lines[at].insert_str(0, &" ".repeat(1 + self.below(4))),
            3 => {
                let (word, line) = (WORDS[self.below(WORDS.len())], lines[at].clone());
                let key = line.split_once(':').map_or("", |(key, _)| key);
                lines[at] = format!("{key}: {word}");
            }
            4 => {
                let word = WORDS[self.below(WORDS.len())];
                let places: Vec<usize> = lines[at].char_indices().map(|(place, _)| place).collect();
                let place = places.get(self.below(places.len())).copied().unwrap_or(0);
                lines[at].insert_str(place, word);
            }
            5 => {
                // Nesting without end.
                let depth = [10, 200, 5000][self.below(3)];
                let open = ["[", "{a: ", "- "][self.below(3)];
                lines[at] = format!("{}{}", lines[at], open.repeat(depth));
            }
            _ => {
                // Aliases of aliases.
                let mut bomb = vec!["a0: &a0 [x, x, x, x, x, x, x, x]".to_owned()];
                for level in 1..[3, 9, 30][self.below(3)] {
                    let before = level - 1;
                    let uses = vec![format!("*a{before}"); 8].join(", ");
                    bomb.push(format!("a{level}: &a{level} [{uses}]"));
                }
                lines.splice(at..at, bomb);
            }
        }
        lines.join("\n").into_bytes()
    }
}

#[derive(Clone)]
struct Field {
    tag: Vec<u8>,
    has_length: bool,
    content: Vec<u8>,
}

fn join(shape: Shape, fields: &[Field]) -> Vec<u8> {
    let mut out = Vec::new();
    for field in fields {
        out.extend_from_slice(&field.tag);
        if field.has_length {
            out.extend(match shape {
                Shape::Der => der_length(field.content.len()),
                _ => varint(field.content.len() as u64),
            });
        }
        out.extend_from_slice(&field.content);
    }
    out
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// The length of the varint at the beginning and its value.
fn read_varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0_u64;
    for (at, byte) in bytes.iter().take(9).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((value, at + 1));
        }
    }
    None
}

fn protobuf_field(bytes: &[u8]) -> Option<(Field, &[u8])> {
    let (tag, at) = read_varint(bytes)?;
    // Text begins with letters, which look like tags of wire types that nobody uses or of high numbers.
    if tag >> 3 == 0 || tag >> 3 > 1000 {
        return None;
    }
    let (start, length) = match tag & 7 {
        0 => (at, read_varint(&bytes[at..])?.1),
        1 => (at, 8),
        2 => {
            let (length, prefix) = read_varint(&bytes[at..])?;
            (at + prefix, usize::try_from(length).ok()?)
        }
        5 => (at, 4),
        _ => return None,
    };
    let content = bytes.get(start..start.checked_add(length)?)?;
    let field = Field {
        tag: bytes[..at].to_vec(),
        has_length: tag & 7 == 2,
        content: content.to_vec(),
    };
    Some((field, &bytes[start + length..]))
}

fn der_field(bytes: &[u8]) -> Option<(Field, &[u8])> {
    let first = usize::from(*bytes.get(1)?);
    let (length, start) = match first {
        0..=0x7f => (first, 2),
        0x81..=0x84 => {
            let digits = bytes.get(2..2 + (first & 0x7f))?;
            let length = digits
                .iter()
                .fold(0, |length, digit| length << 8 | usize::from(*digit));
            (length, 2 + digits.len())
        }
        _ => return None,
    };
    let content = bytes.get(start..start.checked_add(length)?)?;
    let field = Field {
        tag: bytes[..1].to_vec(),
        has_length: true,
        content: content.to_vec(),
    };
    Some((field, &bytes[start + length..]))
}

fn der_length(length: usize) -> Vec<u8> {
    if length < 0x80 {
        return vec![length as u8];
    }
    let bytes = length.to_be_bytes();
    let digits = &bytes[bytes.iter().position(|byte| *byte != 0).unwrap_or(0)..];
    [&[0x80 | digits.len() as u8], digits].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgeries_are_repeatable_and_reach_the_inside() {
        // A message of a text in a message in a message.
        let inner = [&[0x0a, 5][..], b"hello"].concat();
        let middle = [&[0x12, inner.len() as u8][..], &inner].concat();
        let sample = [&[0x1a, middle.len() as u8][..], &middle].concat();
        let samples = [sample];
        let make = || {
            let mut forger = Forger::new(7, Shape::Protobuf, &samples);
            (0..500).map(|_| forger.forge()).collect::<Vec<_>>()
        };
        let forgeries = make();
        assert_eq!(forgeries, make());
        let forger = Forger::new(0, Shape::Protobuf, &samples);
        let changed_inside = forgeries.iter().filter(|forgery| {
            let outer = forger.split(forgery).unwrap_or_default();
            outer.len() == 1 && forger.split(&outer[0].content).is_some() && **forgery != samples[0]
        });
        assert!(changed_inside.count() > 100);
    }

    #[test]
    fn lengths_are_written_as_they_are_read() {
        for length in [0, 1, 127, 128, 255, 256, 65_536] {
            let content = vec![5; length];
            let field = Field {
                tag: vec![0x04],
                has_length: true,
                content,
            };
            let der = join(Shape::Der, std::slice::from_ref(&field));
            assert_eq!(
                der_field(&der).map(|(field, rest)| (field.content.len(), rest.len())),
                Some((length, 0))
            );
        }
    }
}
