//! The form of a join request: one file, named `config-block`. The texts are Fabric's and Go's.

use std::convert::Infallible;

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use hyper::Request;
use hyper::header::{CONTENT_TYPE, HeaderMap};

use crate::https::read_body;

/// The name of the part with the block.
const PART: &str = "config-block";

/// Parts looked at, at most; a second one is one too many.
const MAX_PARTS: usize = 8;

/// Whether the request claims to carry a form.
pub(super) fn is_form(headers: &HeaderMap) -> Result<(), String> {
    let types: Vec<String> = headers
        .get_all(CONTENT_TYPE)
        .iter()
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        .collect();
    if types
        .iter()
        .any(|kind| kind.contains("multipart/form-data"))
    {
        Ok(())
    } else {
        Err(format!("unsupported Content-Type: [{}]", types.join(" ")))
    }
}

/// The block that the request carries, in at most `max` bytes of body.
pub(super) async fn config_block(request: Request<Body>, max: usize) -> Result<Bytes, String> {
    let (head, body) = request.into_parts();
    let kind = head
        .headers
        .get(CONTENT_TYPE)
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        .unwrap_or_default();
    let boundary = boundary(&kind)
        .map_err(|reason| format!("cannot parse Mime media type: mime: {reason}"))?;
    let unreadable =
        |reason: &dyn std::fmt::Display| format!("cannot read form from request body: {reason}");
    if boundary.is_empty() {
        return Err(unreadable(&"multipart: boundary is empty"));
    }
    let body = read_body(body, max)
        .await
        .map_err(|error| unreadable(&error))?;
    let broken = |_| unreadable(&"multipart: NextPart: EOF");

    let mut form = multer::Multipart::new(stream::iter([Ok::<_, Infallible>(body)]), boundary);
    let mut block = None;
    let mut others = 0;
    while let Some(part) = form.next_field().await.map_err(broken)? {
        let is_block =
            part.name() == Some(PART) && part.file_name().is_some_and(|name| !name.is_empty());
        let content = part.bytes().await.map_err(broken)?;
        if !is_block {
            others += 1;
        } else if block.is_none() {
            // Of several files of that name Fabric takes the first.
            block = Some(content);
        }
        if others > MAX_PARTS {
            break;
        }
    }
    match block {
        None => Err(format!("form does not contains part key: {PART}")),
        Some(_) if others > 0 => Err("form contains too many parts".to_owned()),
        Some(block) => Ok(block),
    }
}

/// The parameter `boundary` of a content type, empty when there is none.
fn boundary(kind: &str) -> Result<String, &'static str> {
    let Some((_, mut rest)) = kind.split_once(';') else {
        return Ok(String::new());
    };
    let invalid = "invalid media parameter";
    let mut found: Option<String> = None;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ';']);
        if rest.is_empty() {
            return Ok(found.unwrap_or_default());
        }
        let (name, after) = rest.split_once('=').ok_or(invalid)?;
        let name = name.trim();
        let token = |text: &str| {
            !text.is_empty()
                && text
                    .chars()
                    .all(|c| c.is_ascii_graphic() && !"()<>@,;:\\\"/[]?=".contains(c))
        };
        if !token(name) {
            return Err(invalid);
        }
        let value;
        if let Some(quoted) = after.strip_prefix('"') {
            let (inner, behind) = quoted.split_once('"').ok_or(invalid)?;
            (value, rest) = (inner, behind);
        } else {
            let end = after.find([';', ' ', '\t']).unwrap_or(after.len());
            (value, rest) = after.split_at(end);
            if !token(value) {
                return Err(invalid);
            }
        }
        if name.eq_ignore_ascii_case("boundary")
            && found
                .replace(value.to_owned())
                .is_some_and(|before| before != value)
        {
            return Err("duplicate parameter name");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_are_found() {
        for (kind, expected) in [
            ("multipart/form-data", Ok("")),
            ("multipart/form-data; boundary=abc", Ok("abc")),
            (
                "multipart/form-data; charset=utf-8; Boundary=\"a b\"; x=y",
                Ok("a b"),
            ),
            (
                "multipart/form-data; boundary",
                Err("invalid media parameter"),
            ),
            (
                "multipart/form-data; boundary=",
                Err("invalid media parameter"),
            ),
            (
                "multipart/form-data; boundary=\"abc",
                Err("invalid media parameter"),
            ),
            (
                "multipart/form-data; boundary=a; boundary=b",
                Err("duplicate parameter name"),
            ),
        ] {
            assert_eq!(boundary(kind), expected.map(str::to_owned), "{kind}");
        }
    }
}
