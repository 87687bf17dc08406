//! Durations and sizes with units.

use std::time::Duration;

/// A text that is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// The number is missing, negative, not decimal or too large.
    #[error("a number is expected, such as 20000, 2.5 or 1e3, and not below zero")]
    Number,
    /// The unit of a duration is unknown.
    #[error("the unit is unknown; use ms, s, m, h or d (a number alone means {0})")]
    DurationUnit(&'static str),
    /// The unit of a size is unknown.
    #[error(
        "the unit is unknown; use B, kB, MB, GB, or KiB, MiB, GiB (a number alone means bytes)"
    )]
    SizeUnit,
}

/// A duration such as `20000`, `20 s`, `1.5 minutes`. A number alone counts `unit`s, one of `milliseconds` and
/// `seconds`.
///
/// # Errors
/// The text is no such thing.
pub fn parse_duration(text: &str, unit: &'static str) -> Result<Duration, UnitError> {
    let (number, suffix) = split(text)?;
    let suffix = if suffix.is_empty() { unit } else { suffix };
    let seconds = match suffix {
        "ns" | "nano" | "nanos" | "nanosecond" | "nanoseconds" => 1e-9,
        "us" | "micro" | "micros" | "microsecond" | "microseconds" => 1e-6,
        "ms" | "milli" | "millis" | "millisecond" | "milliseconds" => 1e-3,
        "s" | "second" | "seconds" => 1.0,
        "m" | "minute" | "minutes" => 60.0,
        "h" | "hour" | "hours" => 3600.0,
        "d" | "day" | "days" => 86400.0,
        _ => return Err(UnitError::DurationUnit(unit)),
    };
    // To the nanosecond: 0.1 has no exact binary form, and a lease of 19999.999 ms would look odd.
    let nanos = (number * seconds * 1e9).round();
    if nanos > u64::MAX as f64 {
        return Err(UnitError::Number);
    }
    Ok(Duration::from_nanos(nanos as u64))
}

/// A number of bytes such as `10485760`, `10 MiB`, `100MB`.
///
/// # Errors
/// The text is no such thing.
pub fn parse_bytes(text: &str) -> Result<u64, UnitError> {
    let (number, suffix) = split(text)?;
    let factor: f64 = match suffix {
        "" | "B" | "b" | "byte" | "bytes" => 1.0,
        "kB" | "KB" | "kilobyte" | "kilobytes" => 1e3,
        "MB" | "megabyte" | "megabytes" => 1e6,
        "GB" | "gigabyte" | "gigabytes" => 1e9,
        "K" | "k" | "Ki" | "KiB" | "kibibyte" | "kibibytes" => 1024.0,
        "M" | "m" | "Mi" | "MiB" | "mebibyte" | "mebibytes" => 1024.0 * 1024.0,
        "G" | "g" | "Gi" | "GiB" | "gibibyte" | "gibibytes" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err(UnitError::SizeUnit),
    };
    let bytes = (number * factor).round();
    // Beyond 2⁵³ a floating-point number no longer counts single bytes.
    if bytes > 9_007_199_254_740_992.0 {
        return Err(UnitError::Number);
    }
    Ok(bytes as u64)
}

fn split(text: &str) -> Result<(f64, &str), UnitError> {
    let text = text.trim();
    let exponent = |at: usize| {
        text[at + 1..].starts_with(|next: char| next.is_ascii_digit() || next == '+' || next == '-')
    };
    let end = text
        .char_indices()
        .find(|(at, character)| match character {
            '0'..='9' | '.' | '+' | '-' => false,
            'e' | 'E' => !exponent(*at),
            _ => true,
        })
        .map_or(text.len(), |(at, _)| at);
    let number: f64 = text[..end].parse().map_err(|_| UnitError::Number)?;
    if !number.is_finite() || number < 0.0 {
        return Err(UnitError::Number);
    }
    Ok((number, text[end..].trim()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations() {
        for (text, millis) in [
            ("20000", 20_000),
            ("20 s", 20_000),
            ("1.5m", 90_000),
            (" 2 hours ", 7_200_000),
            ("1e3", 1000),
            ("0", 0),
            ("0.1s", 100),
        ] {
            assert_eq!(
                parse_duration(text, "milliseconds"),
                Ok(Duration::from_millis(millis)),
                "{text}"
            );
        }
        assert_eq!(parse_duration("30", "seconds"), Ok(Duration::from_secs(30)));
        for bad in ["", "s", "-1", "1 year", "1e999", "1e30", "NaN", "1..2", "٣"] {
            assert!(parse_duration(bad, "milliseconds").is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("10485760", 10_485_760),
            ("10 MiB", 10_485_760),
            ("1.5kB", 1500),
            ("2G", 2 << 30),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for bad in ["", "MB", "-1", "1 parsec", "9e99"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[0-9.eE+ -]{0,8}[a-zA-Z]{0,3}|\\PC{0,10}") {
            let _ = parse_duration(&text, "seconds");
            let _ = parse_bytes(&text);
        }
    }
}
