//! The few DER encodings that we write ourselves: distinguished names, key headers and the role extension.
//!
//! Whole certificates are written by `rcgen` and read by `x509-parser`; this module is only for the pieces whose exact
//! bytes are ours to fix.

pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OBJECT_IDENTIFIER: u8 = 0x06;
pub(crate) const UTF8_STRING: u8 = 0x0c;
pub(crate) const PRINTABLE_STRING: u8 = 0x13;
pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;

/// One element: tag, definite length in its shortest form, content.
pub(crate) fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match u8::try_from(content.len()) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            let length = content.len().to_be_bytes();
            let skipped = length.iter().take_while(|byte| **byte == 0).count();
            let significant = &length[skipped..];
            let count = u8::try_from(significant.len()).expect("a usize has few bytes");
            out.push(0x80 | count);
            out.extend_from_slice(significant);
        }
    }
    out.extend_from_slice(content);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_take_their_shortest_form() {
        assert_eq!(element(INTEGER, &[5]), [0x02, 0x01, 0x05]);
        assert_eq!(element(SET, &[0; 127])[..2], [0x31, 127]);
        assert_eq!(element(SET, &[0; 128])[..3], [0x31, 0x81, 128]);
        assert_eq!(element(SET, &[0; 256])[..4], [0x31, 0x82, 1, 0]);
    }
}
