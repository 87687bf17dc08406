//! The recorded samples, and how answers are compared with them.

use std::fs;
use std::path::PathBuf;

use bytes::Bytes;
use serde_json::Value;

/// The path of a fixture.
pub(crate) fn fixture(path: &str) -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../fixtures/fabric"
    ))
    .join(path)
}

/// The bytes of a fixture.
pub(crate) fn bytes(path: &str) -> Bytes {
    let file = fixture(path);
    fs::read(&file)
        .unwrap_or_else(|error| panic!("{}: {error}", file.display()))
        .into()
}

/// A fixture of JSON.
pub(crate) fn fixtures(path: &str) -> Value {
    serde_json::from_slice(&bytes(path)).unwrap()
}

/// A text in a case; empty where there is none.
pub(crate) fn text<'a>(case: &'a Value, key: &str) -> &'a str {
    case[key].as_str().unwrap_or_default()
}

/// Whether two texts say the same. What follows one of these marks is the words of a library of Go's.
pub(crate) fn same_text(got: &str, recorded: &str) -> bool {
    const FOREIGN: &[&str] = &[
        "proto:",
        "x509:",
        "time:",
        "multipart:",
        "mime:",
        "http:",
        "json:",
    ];
    match FOREIGN.iter().filter_map(|mark| recorded.find(mark)).min() {
        Some(end) => got.starts_with(&recorded[..end]),
        None => got == recorded,
    }
}
