//! HTTP/2 by hand, for what no library would send.

/// How a client begins.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_HEADERS: u8 = 4;

/// One frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut out = length[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// The preface and empty settings.
pub(crate) fn hello() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

/// The headers of a gRPC call.
pub(crate) fn call(path: &str) -> Vec<u8> {
    let mut out = vec![0x83, 0x87];
    let mut text = |head: &[u8], value: &str| {
        out.extend(head);
        out.push(u8::try_from(value.len()).unwrap());
        out.extend(value.as_bytes());
    };
    text(&[0x04], path);
    text(&[0x01], "localhost");
    text(b"\x00\x0ccontent-type", "application/grpc");
    text(b"\x00\x02te", "trailers");
    out
}

/// The beginning of a gRPC message of this length.
pub(crate) fn message_head(length: u32) -> Vec<u8> {
    [&[0][..], &length.to_be_bytes()].concat()
}

/// A gRPC message in a frame of a stream.
pub(crate) fn message(stream: u32, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap();
    let whole = [&message_head(length)[..], content].concat();
    whole
        .chunks(16_384)
        .flat_map(|chunk| frame(DATA, 0, stream, chunk))
        .collect()
}
