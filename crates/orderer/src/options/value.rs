//! Values as Go and Fabric write them.

use std::time::Duration;

/// A text that is not what a key wants; says what would be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct ValueError(String);

fn refused<T>(text: impl Into<String>) -> Result<T, ValueError> {
    Err(ValueError(text.into()))
}

/// A duration as Go's `time.ParseDuration` reads it (`1m0s`, `250ms`, `1.5h`), or a bare number of nanoseconds, which
/// is what an integer means to Fabric's reader. The flag tells that the number was bare and not zero.
pub(super) fn duration(text: &str) -> Result<(Duration, bool), ValueError> {
    let given = text.trim();
    if let Ok(nanos) = given.parse::<u64>() {
        return Ok((Duration::from_nanos(nanos), nanos != 0));
    }
    if given.starts_with('-') {
        return refused("must not be negative");
    }
    let mut rest = given.strip_prefix('+').unwrap_or(given);
    let mut total: u128 = 0;
    if rest.is_empty() {
        return bad_duration();
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let nanos: u128 = match unit {
            "ns" => 1,
            // Both letters that look like a micro sign.
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return bad_duration(),
        };
        let Some(part) = decimal(number, nanos) else {
            return bad_duration();
        };
        total = total.saturating_add(part);
        rest = after;
    }
    // Go counts nanoseconds in an i64: 292 years.
    match i64::try_from(total) {
        Ok(nanos) => Ok((Duration::from_nanos(nanos.unsigned_abs()), false)),
        Err(_) => bad_duration(),
    }
}

fn bad_duration<T>() -> Result<T, ValueError> {
    refused("is not a duration; write for example 5s, 250ms or 1m0s")
}

/// `number` times `unit`, where the number may have a fraction; no floating point, so that 0.1 s is 100 ms.
fn decimal(number: &str, unit: u128) -> Option<u128> {
    /// More digits than Go looks at.
    const MAX_DIGITS: usize = 19;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty())
        || fraction.contains('.')
        || whole.len() > MAX_DIGITS
    {
        return None;
    }
    let whole: u128 = if whole.is_empty() {
        0
    } else {
        whole.parse().ok()?
    };
    let mut total = whole.checked_mul(unit)?;
    let mut place = unit;
    for digit in fraction.chars().take(MAX_DIGITS) {
        place /= 10;
        total += u128::from(digit.to_digit(10)?) * place;
    }
    Some(total)
}

/// A number as Go's `strconv.ParseUint` reads it with base 0, at most `max`; an empty text is zero.
pub(super) fn number(text: &str, max: u64) -> Result<u64, ValueError> {
    let given = text.trim();
    if given.is_empty() {
        return Ok(0);
    }
    let lower = given.to_ascii_lowercase();
    let (digits, base) = match lower.get(..2) {
        Some("0x") => (&lower[2..], 16),
        Some("0o") => (&lower[2..], 8),
        Some("0b") => (&lower[2..], 2),
        _ if lower.len() > 1 && lower.starts_with('0') => (&lower[1..], 8),
        _ => (lower.as_str(), 10),
    };
    match u64::from_str_radix(digits, base) {
        Ok(number) if number <= max && !digits.starts_with('+') => Ok(number),
        _ => refused(format!("is not a whole number from 0 to {max}")),
    }
}

/// A number of bytes: plain, or with the units `k`, `m`, `g` of 1024 each, a `b` behind or not, in any case.
pub(super) fn size(text: &str, max: u64) -> Result<u64, ValueError> {
    let given = text.trim();
    let digits = given
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(given.len());
    let (count, unit) = given.split_at(digits);
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "k" | "kb" => 10,
        "m" | "mb" => 20,
        "g" | "gb" => 30,
        _ => return number(given, max).map_err(|_| bad_size(max)),
    };
    let bytes = count
        .parse::<u64>()
        .ok()
        .and_then(|count| count.checked_mul(1 << shift));
    match bytes {
        Some(bytes) if bytes <= max => Ok(bytes),
        _ => Err(bad_size(max)),
    }
}

fn bad_size(max: u64) -> ValueError {
    ValueError(format!(
        "is not a size of at most {max} bytes; write for example 1048576, 512 KB or 1 MB"
    ))
}

/// A boolean as Go's `strconv.ParseBool` and YAML 1.1 read it; an empty text is false.
pub(super) fn boolean(text: &str) -> Result<bool, ValueError> {
    match text.trim().to_ascii_lowercase().as_str() {
        "1" | "t" | "true" | "y" | "yes" | "on" => Ok(true),
        "0" | "f" | "false" | "n" | "no" | "off" | "" => Ok(false),
        _ => refused("is neither true nor false"),
    }
}

/// A list in one text: `[a, b]`, or a single element; empty for an empty text.
pub(super) fn list(text: &str) -> Vec<String> {
    let given = text.trim();
    match given
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'))
    {
        Some(inner) => inner
            .split(',')
            .map(|element| element.trim().to_owned())
            .filter(|element| !element.is_empty())
            .collect(),
        None if given.is_empty() => Vec::new(),
        None => vec![given.to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_those_of_go() {
        for (text, nanos) in [
            ("1m0s", 60_000_000_000),
            ("2h0m0s", 7_200_000_000_000),
            ("250ms", 250_000_000),
            ("0.1s", 100_000_000),
            ("1.5h", 5_400_000_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("+3us", 3_000),
            ("3\u{b5}s", 3_000),
            ("642ms", 642_000_000),
            ("200000h", 720_000_000_000_000_000),
            ("0", 0),
        ] {
            assert_eq!(
                duration(text),
                Ok((Duration::from_nanos(nanos), false)),
                "{text}"
            );
        }
        assert_eq!(duration("15"), Ok((Duration::from_nanos(15), true)));
        for bad in [
            "", "s", "1d", "5 s", "1m 0s", "-5s", ".s", "1.2.3s", "9999999h", "٣s",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_those_of_fabric() {
        let max = u64::from(u32::MAX);
        for (text, bytes) in [
            ("1 MB", 1 << 20),
            ("1mb", 1 << 20),
            ("512 K", 512 << 10),
            ("3g", 3 << 30),
            ("1048576", 1 << 20),
            ("", 0),
        ] {
            assert_eq!(size(text, max), Ok(bytes), "{text}");
        }
        for bad in [
            "4g",
            "1 TB",
            "MB",
            "1.5 MB",
            "-1",
            "99999999999999999999 MB",
        ] {
            assert!(size(bad, max).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_booleans_and_lists() {
        assert_eq!(number("7050", 65535), Ok(7050));
        assert_eq!(number("0x1b8a", 65535), Ok(7050));
        assert_eq!(number("010", 65535), Ok(8));
        assert_eq!(number("", 65535), Ok(0));
        for bad in ["65536", "-1", "7050.0", "0x", "+1", "seven"] {
            assert!(number(bad, 65535).is_err(), "{bad}");
        }
        assert_eq!(boolean("TRUE"), Ok(true));
        assert_eq!(boolean("off"), Ok(false));
        assert!(boolean("maybe").is_err());
        assert_eq!(list("[tls/ca.crt,  b ]"), ["tls/ca.crt", "b"]);
        assert_eq!(list("tls/ca.crt"), ["tls/ca.crt"]);
        assert!(list("").is_empty() && list("[]").is_empty());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[0-9.+msuhnkKMB xob\\-]{0,12}|\\PC{0,10}") {
            let _ = duration(&text);
            let _ = size(&text, u64::MAX);
            let _ = number(&text, 10);
            let _ = list(&text);
        }
    }
}
