//! A strict reader of DER: one form for every value, nothing skipped.

pub(super) const BOOLEAN: u8 = 0x01;
pub(super) const INTEGER: u8 = 0x02;
pub(super) const BIT_STRING: u8 = 0x03;
pub(super) const OCTET_STRING: u8 = 0x04;
pub(super) const OBJECT_IDENTIFIER: u8 = 0x06;
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;

/// The context-specific tag `number`, constructed.
pub(super) const fn explicit(number: u8) -> u8 {
    0xa0 | number
}

/// The context-specific tag `number`, primitive.
pub(super) const fn implicit(number: u8) -> u8 {
    0x80 | number
}

/// One element: its tag, its content, and all of it.
#[derive(Clone, Copy)]
pub(super) struct Element<'a> {
    pub(super) tag: u8,
    pub(super) content: &'a [u8],
    pub(super) raw: &'a [u8],
}

/// Elements one after the other. Every method returns `None` for what is not DER.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next element, whatever its tag.
    pub(super) fn element(&mut self) -> Option<Element<'a>> {
        let (&tag, rest) = self.0.split_first()?;
        if tag & 0x1f == 0x1f {
            // Tags above 30 do not occur in what we read.
            return None;
        }
        let (&first, rest) = rest.split_first()?;
        let (length, content) = if first < 0x80 {
            (usize::from(first), rest)
        } else {
            let count = usize::from(first & 0x7f);
            if count == 0 || count > 4 || rest.len() < count {
                return None;
            }
            let (digits, content) = rest.split_at(count);
            let length = digits
                .iter()
                .fold(0_usize, |length, digit| length << 8 | usize::from(*digit));
            if digits[0] == 0 || length < 0x80 {
                return None;
            }
            (length, content)
        };
        if content.len() < length {
            return None;
        }
        let header = self.0.len() - content.len();
        let (raw, rest) = self.0.split_at(header + length);
        self.0 = rest;
        Some(Element {
            tag,
            content: &raw[header..],
            raw,
        })
    }

    /// The content of the next element, which must have this tag.
    pub(super) fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.expect_element(tag).map(|element| element.content)
    }

    pub(super) fn expect_element(&mut self, tag: u8) -> Option<Element<'a>> {
        self.element().filter(|element| element.tag == tag)
    }

    /// Whether the next element has this tag.
    pub(super) fn next_is(&self, tag: u8) -> bool {
        self.0.first() == Some(&tag)
    }

    /// The content of the next element if it has this tag; `Some(None)` if another one comes.
    pub(super) fn optional(&mut self, tag: u8) -> Option<Option<&'a [u8]>> {
        if self.next_is(tag) {
            self.expect(tag).map(Some)
        } else {
            Some(None)
        }
    }

    /// The content of an integer, in its shortest form.
    pub(super) fn integer(&mut self) -> Option<&'a [u8]> {
        let content = self.expect(INTEGER)?;
        match content {
            [] => None,
            [0, second, ..] if *second < 0x80 => None,
            [0xff, second, ..] if *second >= 0x80 => None,
            _ => Some(content),
        }
    }

    /// A boolean that may be left out when false.
    pub(super) fn default_false(&mut self) -> Option<bool> {
        match self.optional(BOOLEAN)? {
            None => Some(false),
            Some([0xff]) => Some(true),
            Some([0]) => Some(false),
            Some(_) => None,
        }
    }

    /// The bytes of a bit string without unused bits.
    pub(super) fn whole_bytes(&mut self) -> Option<&'a [u8]> {
        match self.expect(BIT_STRING)?.split_first()? {
            (0, bytes) => Some(bytes),
            _ => None,
        }
    }
}

/// An integer's content as an unsigned number without leading zeros; `None` if negative.
pub(super) fn unsigned(content: &[u8]) -> Option<&[u8]> {
    if content.first().is_some_and(|byte| *byte >= 0x80) {
        return None;
    }
    let zeros = content.iter().take_while(|byte| **byte == 0).count();
    Some(&content[zeros..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_has_one_form() {
        let whole = |bytes: &[u8]| {
            Reader::new(bytes)
                .element()
                .map(|element| element.content.len())
        };
        assert_eq!(whole(&[4, 1, 9]), Some(1));
        assert_eq!(whole(&[4, 0x81, 1, 9]), None);
        assert_eq!(whole(&[4, 0x80, 0, 0]), None);
        assert_eq!(whole(&[4, 2, 9]), None);
        let mut long = vec![4, 0x82, 1, 0];
        long.resize(4 + 256, 7);
        assert_eq!(whole(&long), Some(256));
        long[1..4].copy_from_slice(&[0x83, 0, 1]);
        assert_eq!(whole(&long), None);
    }

    #[test]
    fn an_integer_has_one_form() {
        let integer = |bytes: &'static [u8]| Reader::new(bytes).integer();
        assert_eq!(integer(&[2, 1, 0]), Some(&[0][..]));
        assert_eq!(integer(&[2, 2, 0, 0x80]), Some(&[0, 0x80][..]));
        assert_eq!(integer(&[2, 2, 0, 0x7f]), None);
        assert_eq!(integer(&[2, 0]), None);
    }
}
