//! Looks at AMQP frames before the AMQP library does.
//!
//! The library decodes values recursively, walks any range of delivery numbers that a disposition names, and keeps
//! what it cannot use yet. With a peer that means harm, even one with a valid certificate, that is a stack overflow,
//! a processor busy for minutes, or memory that only grows. So every frame is walked here first, with bounds, and a
//! connection that needs more than messaging needs is refused: one session, one link, one kind of message.
//!
//! This is also where the number of bytes that the library holds for us is counted, because the library bounds only
//! the number of frames. The module is pure: bytes in, a verdict out.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use crate::service::lock;

/// Largest frame, ours and the peer's. Small enough that heartbeats and dispositions get between the parts of a large
/// message, large enough that splitting costs nothing.
pub(crate) const MAX_FRAME_BYTES: usize = 64 * 1024;
/// Nesting of values within one frame; messaging itself needs five levels.
const MAX_DEPTH: usize = 16;
/// Deliveries that one disposition may speak of.
const MAX_DISPOSITION_RANGE: u32 = 65_536;
/// SASL frames are small by the standard.
const MAX_SASL_FRAME_BYTES: usize = 512;
/// A peer must not ask for signs of life more often than this.
const MIN_IDLE_MILLIS: u32 = 200;
/// Messages that the peer may have sent and we have not taken yet: the credit that receivers grant.
pub(crate) const CREDIT: u32 = 1024;
/// Bytes of complete messages that wait to be taken. Above it the socket is not read.
pub(crate) const READ_AHEAD_BYTES: u64 = 32 * 1024 * 1024;

const FRAME_HEADER_BYTES: usize = 8;
const FRAME_TYPE_AMQP: u8 = 0;
const FRAME_TYPE_SASL: u8 = 1;
const PROTOCOL_HEADER: &[u8; 4] = b"AMQP";

const OPEN: u8 = 0x10;
const BEGIN: u8 = 0x11;
const ATTACH: u8 = 0x12;
const FLOW: u8 = 0x13;
const TRANSFER: u8 = 0x14;
const DISPOSITION: u8 = 0x15;
const DETACH: u8 = 0x16;
const END: u8 = 0x17;
const CLOSE: u8 = 0x18;

/// What a peer has sent that is not permitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the peer does not keep to the protocol: {0}")]
pub(crate) struct Violation(&'static str);

type Checked<T> = Result<T, Violation>;

/// Which end of the connection we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// We dialled, and send messages.
    Sender,
    /// We accepted, and receive messages.
    Receiver,
}

/// Sizes of the messages that the library holds for us, oldest first.
#[derive(Debug, Default)]
pub(crate) struct ReadAhead {
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    sizes: VecDeque<u64>,
    bytes: u64,
}

impl ReadAhead {
    /// The oldest message has been taken from the library.
    pub(crate) fn take(&self) {
        let mut held = lock(&self.held);
        if let Some(size) = held.sizes.pop_front() {
            held.bytes -= size;
        }
    }

    /// Whether reading must wait until messages are taken. A message that is still being assembled does not count: it
    /// could never be completed otherwise.
    pub(crate) fn is_full(&self) -> bool {
        lock(&self.held).bytes > READ_AHEAD_BYTES
    }

    fn add(&self, size: u64) -> Checked<()> {
        let mut held = lock(&self.held);
        if held.sizes.len() >= CREDIT as usize {
            return Err(Violation("more messages than there was credit for"));
        }
        held.sizes.push_back(size);
        held.bytes += size;
        Ok(())
    }
}

/// Checks the bytes of one connection, in order, frame by frame.
#[derive(Debug)]
pub(crate) struct Guard {
    side: Side,
    /// Largest encoded message, announced when the link was attached.
    max_message: u64,
    /// `None` where bytes are only passed on, to somebody who looks at them again.
    read_ahead: Option<Arc<ReadAhead>>,
    protocol_headers: u8,
    opened: bool,
    begun: bool,
    /// The peer's number for the one link.
    link: Option<u32>,
    /// Of the message whose frames are arriving: bytes seen, and bytes of its body that must still come.
    delivery: Option<Delivery>,
}

#[derive(Debug, Clone, Copy)]
struct Delivery {
    seen: u64,
    body_left: u64,
}

impl Guard {
    pub(crate) fn new(side: Side, max_message: u64, read_ahead: Arc<ReadAhead>) -> Self {
        Self {
            read_ahead: Some(read_ahead),
            ..Self::relay(side, max_message)
        }
    }

    /// One that checks what it passes on and changes nothing. Credit is the business of who takes the messages.
    pub(crate) fn relay(side: Side, max_message: u64) -> Self {
        Self {
            side,
            max_message,
            read_ahead: None,
            protocol_headers: 0,
            opened: false,
            begun: false,
            link: None,
            delivery: None,
        }
    }

    /// Checks the complete frames at the start of `bytes` and says how long they are together. What is left is the
    /// beginning of a frame and is to be shown again, with more.
    ///
    /// One field is changed on the way, see [`Guard::open`].
    pub(crate) fn check(&mut self, bytes: &mut [u8]) -> Checked<usize> {
        let mut at = 0;
        loop {
            let rest = &mut bytes[at..];
            if rest.len() < FRAME_HEADER_BYTES {
                return Ok(at);
            }
            if rest.starts_with(PROTOCOL_HEADER) {
                // Twice at most: for SASL and for AMQP. As a frame size these four letters would be far too large.
                self.protocol_headers += 1;
                if self.protocol_headers > 2 || self.opened {
                    return Err(Violation("a protocol header in the middle"));
                }
                at += FRAME_HEADER_BYTES;
                continue;
            }
            let size = u32::from_be_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            if !(FRAME_HEADER_BYTES..=MAX_FRAME_BYTES).contains(&size) {
                return Err(Violation("a frame of impossible size"));
            }
            if self.protocol_headers == 0 {
                return Err(Violation("a frame before the protocol header"));
            }
            if rest[4] != 2 {
                return Err(Violation("a frame with an extended header"));
            }
            if rest.len() < size {
                return Ok(at);
            }
            let (kind, body) = (rest[5], &mut rest[FRAME_HEADER_BYTES..size]);
            match kind {
                FRAME_TYPE_AMQP => self.amqp(body)?,
                FRAME_TYPE_SASL => self.sasl(body)?,
                _ => return Err(Violation("a frame of unknown type")),
            }
            at += size;
        }
    }

    fn sasl(&self, body: &[u8]) -> Checked<()> {
        if self.opened || body.len() > MAX_SASL_FRAME_BYTES {
            return Err(Violation("a SASL frame out of place"));
        }
        let (_, fields) = Performative::read(body)?;
        if fields.end == body.len() {
            Ok(())
        } else {
            Err(Violation("bytes behind a performative"))
        }
    }

    fn amqp(&mut self, body: &mut [u8]) -> Checked<()> {
        if body.is_empty() {
            return Ok(()); // A sign of life.
        }
        let (code, fields) = Performative::read(body)?;
        if code != OPEN && !self.opened && code != CLOSE {
            return Err(Violation("a frame before the open frame"));
        }
        if code != TRANSFER && fields.end != body.len() {
            return Err(Violation("bytes behind a performative"));
        }
        match code {
            OPEN => self.open(body, &fields),
            BEGIN if self.begun => Err(Violation("a second session")),
            BEGIN => {
                self.begun = true;
                Ok(())
            }
            ATTACH if self.link.is_some() => Err(Violation("a second link")),
            ATTACH => {
                self.link = Some(
                    fields
                        .uint(body, 1)?
                        .ok_or(Violation("a link without a handle"))?,
                );
                Ok(())
            }
            FLOW => match fields.uint(body, 4)? {
                Some(handle) if self.link != Some(handle) => {
                    Err(Violation("a flow for an unknown link"))
                }
                _ => Ok(()),
            },
            TRANSFER => self.transfer(body, &fields),
            DISPOSITION => {
                let first = fields
                    .uint(body, 1)?
                    .ok_or(Violation("a disposition of nothing"))?;
                let last = fields.uint(body, 2)?.unwrap_or(first);
                // The library counts upwards from the first to the last, without wrapping.
                if last < first || last - first > MAX_DISPOSITION_RANGE {
                    return Err(Violation("a disposition of too many messages"));
                }
                Ok(())
            }
            DETACH | END | CLOSE => Ok(()),
            _ => Err(Violation("an unknown performative")),
        }
    }

    /// The open frame announces how often the peer wants a sign of life. The library's client sends them exactly that
    /// often, while a peer built on the same library gives up after exactly that time: whoever is a moment late is
    /// dead. The standard's remedy is to announce half, which that library's server does not; so we halve what ours
    /// hears.
    fn open(&mut self, body: &mut [u8], fields: &Performative) -> Checked<()> {
        if std::mem::replace(&mut self.opened, true) {
            return Err(Violation("a second open frame"));
        }
        match fields.uint(body, 4)? {
            None | Some(0) => Ok(()),
            Some(millis) if millis < MIN_IDLE_MILLIS => {
                Err(Violation("signs of life wanted too often"))
            }
            Some(millis) => {
                if self.side == Side::Sender && self.read_ahead.is_some() {
                    let (start, end) = fields.range(4).expect("the field has just been read");
                    let half = (millis / 2).to_be_bytes();
                    let digits = end - start - 1;
                    body[start + 1..end].copy_from_slice(&half[4 - digits..]);
                }
                Ok(())
            }
        }
    }

    fn transfer(&mut self, body: &[u8], fields: &Performative) -> Checked<()> {
        if self.side == Side::Sender {
            return Err(Violation("a message against the direction of the link"));
        }
        if fields.uint(body, 0)? != self.link || self.link.is_none() {
            return Err(Violation("a message for an unknown link"));
        }
        if fields.boolean(body, 9)? {
            self.delivery = None; // Aborted: the library forgets its parts, too.
            return Ok(());
        }
        if fields.boolean(body, 4)? {
            return Err(Violation("a message that wants no answer"));
        }
        if fields.boolean(body, 8)? || fields.is_set(body, 7) {
            return Err(Violation("a message resumed from another connection"));
        }
        let payload = &body[fields.end..];
        let mut delivery = match self.delivery.take() {
            Some(begun) => {
                let left = begun.body_left.checked_sub(payload.len() as u64);
                let left = left.ok_or(Violation("a message longer than its body"))?;
                Delivery {
                    seen: begun.seen,
                    body_left: left,
                }
            }
            None => Delivery {
                seen: 0,
                body_left: sections(payload)?,
            },
        };
        delivery.seen += payload.len() as u64;
        if delivery.seen + delivery.body_left > self.max_message {
            return Err(Violation("a message larger than the link permits"));
        }
        if fields.boolean(body, 5)? {
            if payload.is_empty() {
                return Err(Violation("a part of a message with nothing in it"));
            }
            self.delivery = Some(delivery);
            return Ok(());
        }
        if delivery.body_left > 0 {
            return Err(Violation("a message shorter than its body"));
        }
        match &self.read_ahead {
            Some(read_ahead) => read_ahead.add(delivery.seen),
            None => Ok(()),
        }
    }
}

/// Walks a message's sections up to its body, which must be one section of bytes at the end, and says how many bytes of
/// the body lie beyond `payload`. Everything before the body must be in the first frame.
fn sections(payload: &[u8]) -> Checked<u64> {
    let mut at = 0;
    loop {
        let (code, start) = descriptor(payload, at)?;
        match code {
            0x70..=0x74 => at = skip(payload, start, 0)?,
            0x75 => {
                let (length, start) = match payload.get(start) {
                    Some(0xa0) => (u64::from(byte(payload, start + 1)?), start + 2),
                    Some(0xb0) => (u64::from(word(payload, start + 1)?), start + 5),
                    _ => return Err(Violation("a message body that is not bytes")),
                };
                let here = (payload.len() - start) as u64;
                return length
                    .checked_sub(here)
                    .ok_or(Violation("bytes behind a message's body"));
            }
            _ => return Err(Violation("a message body that is not bytes")),
        }
    }
}

/// The fields of a performative: where each begins and ends, and where the whole ends.
pub(crate) struct Performative {
    fields: [(usize, usize); MAX_FIELDS],
    count: usize,
    end: usize,
}

/// The longest performative, attach, has 14 fields.
const MAX_FIELDS: usize = 16;

impl Performative {
    /// Reads the performative at the start of a frame's body: its code and its fields.
    pub(crate) fn read(body: &[u8]) -> Checked<(u8, Self)> {
        let (code, start) = descriptor(body, 0)?;
        let (count, mut at, end) = match body.get(start) {
            Some(0x45) => (0, start + 1, start + 1),
            Some(0xc0) => {
                let size = usize::from(byte(body, start + 1)?);
                (
                    u32::from(byte(body, start + 2)?),
                    start + 3,
                    start + 2 + size,
                )
            }
            Some(0xd0) => {
                let size = word(body, start + 1)? as usize;
                (word(body, start + 5)?, start + 9, start + 5 + size)
            }
            _ => return Err(Violation("a performative that is not a list")),
        };
        if end > body.len() || at > end || count as usize > MAX_FIELDS {
            return Err(Violation("a performative that is longer than its frame"));
        }
        let mut fields = [(0, 0); MAX_FIELDS];
        for field in fields.iter_mut().take(count as usize) {
            let next = skip(&body[..end], at, 0)?;
            *field = (at, next);
            at = next;
        }
        if at != end {
            return Err(Violation("a list that is longer than its fields"));
        }
        Ok((
            code,
            Self {
                fields,
                count: count as usize,
                end,
            },
        ))
    }

    fn range(&self, index: usize) -> Option<(usize, usize)> {
        self.fields[..self.count].get(index).copied()
    }

    fn is_set(&self, body: &[u8], index: usize) -> bool {
        self.range(index)
            .is_some_and(|(start, _)| body[start] != 0x40)
    }

    fn uint(&self, body: &[u8], index: usize) -> Checked<Option<u32>> {
        let Some((start, _)) = self.range(index) else {
            return Ok(None);
        };
        match body[start] {
            0x40 => Ok(None),
            0x43 => Ok(Some(0)),
            0x52 => Ok(Some(u32::from(byte(body, start + 1)?))),
            0x70 => Ok(Some(word(body, start + 1)?)),
            _ => Err(Violation("a field that should be a number")),
        }
    }

    /// A field of one byte, as the code of a SASL outcome is.
    pub(crate) fn ubyte(&self, body: &[u8], index: usize) -> Option<u8> {
        let (start, end) = self.range(index)?;
        if end == start + 2 && body[start] == 0x50 {
            body.get(start + 1).copied()
        } else {
            None
        }
    }

    fn boolean(&self, body: &[u8], index: usize) -> Checked<bool> {
        let Some((start, _)) = self.range(index) else {
            return Ok(false);
        };
        match body[start] {
            0x40 | 0x42 => Ok(false),
            0x41 => Ok(true),
            0x56 => Ok(byte(body, start + 1)? != 0),
            _ => Err(Violation("a field that should be true or false")),
        }
    }
}

const CUT: Violation = Violation("a value that is longer than its frame");

fn byte(bytes: &[u8], at: usize) -> Checked<u8> {
    bytes.get(at).copied().ok_or(CUT)
}

fn word(bytes: &[u8], at: usize) -> Checked<u32> {
    let four = bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk::<4>())
        .ok_or(CUT)?;
    Ok(u32::from_be_bytes(*four))
}

/// Reads a numeric descriptor and says where the described value begins. Symbolic descriptors are legal, and nobody
/// uses them.
fn descriptor(bytes: &[u8], at: usize) -> Checked<(u8, usize)> {
    match (byte(bytes, at)?, byte(bytes, at + 1)?) {
        (0x00, 0x53) => Ok((byte(bytes, at + 2)?, at + 3)),
        (0x00, 0x80) => match (word(bytes, at + 2)?, word(bytes, at + 6)?) {
            (0, code @ 0..=0xff) => Ok((code as u8, at + 10)),
            _ => Err(Violation("an unknown performative")),
        },
        _ => Err(Violation("a value where a described one is needed")),
    }
}

/// Walks one value and says where it ends.
fn skip(bytes: &[u8], at: usize, depth: usize) -> Checked<usize> {
    if depth > MAX_DEPTH {
        return Err(Violation("a value nested too deep"));
    }
    let code = byte(bytes, at)?;
    if code == 0x00 {
        let value = skip(bytes, at + 1, depth + 1)?;
        return skip(bytes, value, depth + 1);
    }
    let at = at + 1;
    let end = match code >> 4 {
        0xc | 0xd => return compound(bytes, at, code, depth),
        0xe | 0xf => return array(bytes, at, code),
        _ => fixed_or_variable(bytes, at, code)?,
    };
    if end > bytes.len() { Err(CUT) } else { Ok(end) }
}

/// The end of a value of this constructor that is neither compound nor an array.
fn fixed_or_variable(bytes: &[u8], at: usize, code: u8) -> Checked<usize> {
    Ok(at
        + match code >> 4 {
            0x4 => 0,
            0x5 => 1,
            0x6 => 2,
            0x7 => 4,
            0x8 => 8,
            0x9 => 16,
            0xa => 1 + usize::from(byte(bytes, at)?),
            0xb => 4 + word(bytes, at)? as usize,
            _ => return Err(Violation("a value of unknown type")),
        })
}

/// Size and number of elements of a list, map or array, and where the elements begin and end.
fn extent(bytes: &[u8], at: usize, wide: bool) -> Checked<(u32, usize, usize)> {
    let (count, start, end) = if wide {
        (
            word(bytes, at + 4)?,
            at + 8,
            at + 4 + word(bytes, at)? as usize,
        )
    } else {
        (
            u32::from(byte(bytes, at + 1)?),
            at + 2,
            at + 1 + usize::from(byte(bytes, at)?),
        )
    };
    if end > bytes.len() || start > end {
        return Err(CUT);
    }
    // An element takes at least a byte, except in arrays of values that have no content; nobody needs those.
    if count as usize > end - start {
        return Err(Violation("more elements than bytes"));
    }
    Ok((count, start, end))
}

fn compound(bytes: &[u8], at: usize, code: u8, depth: usize) -> Checked<usize> {
    if !matches!(code, 0xc0 | 0xc1 | 0xd0 | 0xd1) {
        return Err(Violation("a value of unknown type"));
    }
    let (count, mut at, end) = extent(bytes, at, code >> 4 == 0xd)?;
    for _ in 0..count {
        at = skip(&bytes[..end], at, depth + 1)?;
    }
    if at == end {
        Ok(end)
    } else {
        Err(Violation("a list that is longer than its fields"))
    }
}

/// Arrays are used for symbols only; arrays of lists or of arrays are refused.
fn array(bytes: &[u8], at: usize, code: u8) -> Checked<usize> {
    if !matches!(code, 0xe0 | 0xf0) {
        return Err(Violation("a value of unknown type"));
    }
    let (count, start, end) = extent(bytes, at, code == 0xf0)?;
    let (element, mut at) = (byte(&bytes[..end], start)?, start + 1);
    for _ in 0..count {
        at = fixed_or_variable(&bytes[..end], at, element)?;
        if at > end {
            return Err(CUT);
        }
    }
    if at == end {
        Ok(end)
    } else {
        Err(Violation("an array that is longer than its elements"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX_MESSAGE: u64 = 1 << 20;
    const AMQP_HEADER: &[u8] = b"AMQP\x00\x01\x00\x00";

    fn guard(side: Side) -> Guard {
        Guard::new(side, MAX_MESSAGE, Arc::default())
    }

    fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut frame = ((body.len() + FRAME_HEADER_BYTES) as u32)
            .to_be_bytes()
            .to_vec();
        frame.extend_from_slice(&[2, kind, 0, 0]);
        frame.extend_from_slice(body);
        frame
    }

    /// A performative with these fields, each already encoded.
    fn performative(code: u8, fields: &[&[u8]]) -> Vec<u8> {
        let content = fields.concat();
        let mut bytes = vec![0x00, 0x53, code, 0xd0];
        bytes.extend_from_slice(&(content.len() as u32 + 4).to_be_bytes());
        bytes.extend_from_slice(&(fields.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&content);
        bytes
    }

    fn amqp(code: u8, fields: &[&[u8]]) -> Vec<u8> {
        frame(FRAME_TYPE_AMQP, &performative(code, fields))
    }

    fn open() -> Vec<u8> {
        amqp(OPEN, &[b"\xa1\x01x"])
    }

    fn attach() -> Vec<u8> {
        amqp(ATTACH, &[b"\xa1\x01l", b"\x43", b"\x42"])
    }

    const DELIVERY: [&[u8]; 3] = [b"\x43", b"\x43", b"\xa0\x01t"];

    fn transfer(more: bool, payload: &[u8]) -> Vec<u8> {
        let more: &[u8] = if more { b"\x41" } else { b"\x42" };
        let mut body = performative(
            TRANSFER,
            &[
                DELIVERY[0],
                DELIVERY[1],
                DELIVERY[2],
                b"\x43",
                b"\x42",
                more,
            ],
        );
        body.extend_from_slice(payload);
        frame(FRAME_TYPE_AMQP, &body)
    }

    /// Feeds a connection that is open and has a link, then `more`.
    fn after_attach(side: Side, more: &[Vec<u8>]) -> Checked<usize> {
        let mut bytes = [AMQP_HEADER.to_vec(), open(), amqp(BEGIN, &[]), attach()].concat();
        bytes.extend_from_slice(&more.concat());
        guard(side)
            .check(&mut bytes)
            .map(|checked| bytes.len() - checked)
    }

    fn refused(side: Side, more: &[Vec<u8>]) -> &'static str {
        match after_attach(side, more) {
            Err(Violation(what)) => what,
            Ok(left) => panic!("accepted, with {left} bytes left"),
        }
    }

    #[test]
    fn an_ordinary_conversation_passes() {
        let data = b"\x00\x53\x75\xa0\x05hello";
        let annotated = [b"\x00\x53\x72\xc1\x01\x00".as_slice(), data].concat();
        let good = [
            vec![],
            frame(FRAME_TYPE_AMQP, &[]),
            transfer(false, data),
            transfer(false, &annotated),
            transfer(true, &data[..7]),
            transfer(false, &data[7..]),
            amqp(FLOW, &[b"\x40", b"\x43", b"\x43", b"\x43", b"\x43"]),
            amqp(DISPOSITION, &[b"\x41", b"\x52\x01", b"\x52\x09"]),
            amqp(DETACH, &[b"\x43"]),
            amqp(END, &[]),
            amqp(CLOSE, &[]),
        ];
        assert_eq!(after_attach(Side::Receiver, &good), Ok(0));
        // A frame that is not complete is left for later.
        let cut = transfer(false, data);
        assert_eq!(
            after_attach(Side::Receiver, &[cut[..cut.len() - 1].to_vec()]),
            Ok(cut.len() - 1)
        );
    }

    #[test]
    fn what_the_library_could_not_stand_is_refused() {
        let data = b"\x00\x53\x75\xa0\x05hello".as_slice();
        let receiver = |more: &[Vec<u8>]| refused(Side::Receiver, more);
        // Nesting, as a described value in a described value, and as lists.
        let described = [&b"\x00\x53\x00".repeat(5000)[..], b"\x40"].concat();
        let mut lists = b"\x45".to_vec();
        for _ in 0..100 {
            let mut list = vec![0xd0];
            list.extend_from_slice(&(lists.len() as u32 + 4).to_be_bytes());
            list.extend_from_slice(&1u32.to_be_bytes());
            list.extend_from_slice(&lists);
            lists = list;
        }
        for deep in [&described, &lists] {
            assert_eq!(
                receiver(&[amqp(DETACH, &[b"\x43", b"\x41", deep])]),
                "a value nested too deep"
            );
            let payload = [b"\x00\x53\x72".as_slice(), deep].concat();
            assert_eq!(
                receiver(&[transfer(false, &payload)]),
                "a value nested too deep"
            );
        }
        let all = amqp(DISPOSITION, &[b"\x41", b"\x43", b"\x70\xff\xff\xff\xff"]);
        assert_eq!(receiver(&[all]), "a disposition of too many messages");
        assert_eq!(receiver(&[amqp(BEGIN, &[])]), "a second session");
        assert_eq!(receiver(&[attach()]), "a second link");
        assert_eq!(receiver(&[open()]), "a second open frame");
        let flow = amqp(FLOW, &[b"\x40", b"\x43", b"\x43", b"\x43", b"\x52\x07"]);
        assert_eq!(receiver(&[flow]), "a flow for an unknown link");
        assert_eq!(
            receiver(&vec![transfer(false, data); CREDIT as usize + 1]),
            "more messages than there was credit for"
        );
        assert_eq!(
            refused(Side::Sender, &[transfer(false, data)]),
            "a message against the direction of the link"
        );
        assert_eq!(
            receiver(&[transfer(true, data), transfer(false, b"x")]),
            "a message longer than its body"
        );
        assert_eq!(
            receiver(&[transfer(false, &data[..7])]),
            "a message shorter than its body"
        );
        assert_eq!(
            receiver(&[transfer(false, &[data, data].concat())]),
            "bytes behind a message's body"
        );
        assert_eq!(
            receiver(&[transfer(false, b"\x00\x53\x77\x40")]),
            "a message body that is not bytes"
        );
        let huge = transfer(true, b"\x00\x53\x75\xb0\xff\xff\xff\xffx");
        assert_eq!(receiver(&[huge]), "a message larger than the link permits");
        let elements = amqp(
            DETACH,
            &[
                b"\x43",
                b"\x41",
                b"\xf0\x00\x00\x00\x05\xff\xff\xff\xff\x40",
            ],
        );
        assert_eq!(receiver(&[elements]), "more elements than bytes");
        assert_eq!(receiver(&[amqp(0x19, &[])]), "an unknown performative");
        assert_eq!(
            receiver(&[b"\x7f\xff\xff\xff\x02\x00\x00\x00".to_vec()]),
            "a frame of impossible size"
        );
        assert_eq!(
            receiver(&[b"\x00\x00\x00\x07\x02\x00\x00\x00".to_vec()]),
            "a frame of impossible size"
        );
        assert_eq!(
            receiver(&[AMQP_HEADER.to_vec()]),
            "a protocol header in the middle"
        );
    }

    #[test]
    fn a_sender_hears_half_of_the_announced_idle_time() {
        for (announced, heard) in [
            (
                b"\x70\x00\x00\x27\x10".as_slice(),
                b"\x70\x00\x00\x13\x88".as_slice(),
            ),
            (b"\x52\xfa", b"\x52\x7d"),
        ] {
            let bytes = [
                AMQP_HEADER.to_vec(),
                amqp(OPEN, &[b"\xa1\x01x", b"\x40", b"\x40", b"\x40", announced]),
            ]
            .concat();
            let (mut sender, mut receiver) = (bytes.clone(), bytes.clone());
            assert_eq!(guard(Side::Sender).check(&mut sender), Ok(bytes.len()));
            assert!(sender.ends_with(heard));
            assert_eq!(guard(Side::Receiver).check(&mut receiver), Ok(bytes.len()));
            assert_eq!(receiver, bytes);
        }
        let mut often = [
            AMQP_HEADER.to_vec(),
            amqp(
                OPEN,
                &[b"\xa1\x01x", b"\x40", b"\x40", b"\x40", b"\x52\x01"],
            ),
        ]
        .concat();
        assert!(guard(Side::Receiver).check(&mut often).is_err());
    }

    #[test]
    fn reading_pauses_for_bytes_and_goes_on_when_they_are_taken() {
        let read_ahead = ReadAhead::default();
        read_ahead.add(READ_AHEAD_BYTES).unwrap();
        assert!(!read_ahead.is_full());
        read_ahead.add(1).unwrap();
        assert!(read_ahead.is_full());
        read_ahead.take();
        assert!(!read_ahead.is_full());
        (0..3).for_each(|_| read_ahead.take());
        assert!(!read_ahead.is_full());
    }

    proptest! {
        /// No bytes make it panic, and how they are cut into reads changes nothing.
        #[test]
        fn any_bytes_in_any_pieces(
            bodies in prop::collection::vec((0u8..3, prop::sample::select((0x0eu8..0x1a).collect::<Vec<_>>()), prop::collection::vec(any::<u8>(), 0..80)), 0..8),
            tail in prop::collection::vec(any::<u8>(), 0..64),
            step in 1usize..50,
            receiver in any::<bool>(),
        ) {
            let side = if receiver { Side::Receiver } else { Side::Sender };
            let mut bytes = [AMQP_HEADER.to_vec(), open()].concat();
            for (kind, code, body) in bodies {
                let mut whole = vec![0x00, 0x53, code];
                whole.extend_from_slice(&body);
                bytes.extend_from_slice(&frame(kind, &whole));
            }
            bytes.extend_from_slice(&tail);
            let at_once = guard(side).check(&mut bytes.clone());
            let (mut guard, mut buffer, mut checked) = (guard(side), Vec::new(), 0);
            let mut verdict = Ok(());
            for piece in bytes.chunks(step) {
                buffer.extend_from_slice(piece);
                match guard.check(&mut buffer) {
                    Ok(length) => {
                        checked += length;
                        buffer.drain(..length);
                    }
                    Err(violation) => {
                        verdict = Err(violation);
                        break;
                    }
                }
            }
            match at_once {
                Ok(length) => prop_assert_eq!((verdict, checked), (Ok(()), length)),
                Err(violation) => prop_assert_eq!(verdict, Err(violation)),
            }
        }

        /// Values of any shape are walked to exactly their end or refused.
        #[test]
        fn a_walk_ends_within_the_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(end) = skip(&bytes, 0, 0) {
                prop_assert!(end <= bytes.len());
            }
            let _ = sections(&bytes);
        }
    }
}
