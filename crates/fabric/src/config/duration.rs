//! Durations as Go writes them: `200ms`, `1m30s`, `-1.5h`.
//!
//! Channel configurations and orderer.yaml hold them as text, and the refusals quote them in Go's words.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A duration in nanoseconds; may be negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(pub i64);

/// A text that is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// It does not begin with a number, or the number is too large.
    #[error("time: invalid duration {}", quoted(.0))]
    Invalid(String),
    /// A number without unit.
    #[error("time: missing unit in duration {}", quoted(.0))]
    MissingUnit(String),
    /// A unit other than `ns`, `us`, `ms`, `s`, `m`, `h`.
    #[error("time: unknown unit {} in duration {}", quoted(unit), quoted(text))]
    UnknownUnit {
        /// The unit.
        unit: String,
        /// The whole text.
        text: String,
    },
}

const MICROSECOND: u64 = 1_000;
const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

impl GoDuration {
    /// The duration, if it is not negative.
    #[must_use]
    pub fn to_std(self) -> Option<Duration> {
        u64::try_from(self.0).ok().map(Duration::from_nanos)
    }
}

impl FromStr for GoDuration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        let invalid = || DurationError::Invalid(text.to_owned());
        let (negative, mut rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        if rest == "0" {
            return Ok(Self(0));
        }
        if rest.is_empty() {
            return Err(invalid());
        }
        let mut total: u64 = 0;
        while !rest.is_empty() {
            let (whole, after_whole) = split_digits(rest);
            let (fraction, after_number) = match after_whole.strip_prefix('.') {
                Some(after_point) => split_digits(after_point),
                None => ("", after_whole),
            };
            if whole.is_empty() && fraction.is_empty() {
                return Err(invalid());
            }
            let end = after_number
                .find(|c: char| c == '.' || c.is_ascii_digit())
                .unwrap_or(after_number.len());
            let (unit, after_unit) = after_number.split_at(end);
            let scale = match unit {
                "" => return Err(DurationError::MissingUnit(text.to_owned())),
                "ns" => 1,
                "us" | "\u{b5}s" | "\u{3bc}s" => MICROSECOND,
                "ms" => MILLISECOND,
                "s" => SECOND,
                "m" => MINUTE,
                "h" => HOUR,
                other => {
                    return Err(DurationError::UnknownUnit {
                        unit: other.to_owned(),
                        text: text.to_owned(),
                    });
                }
            };
            let whole = if whole.is_empty() {
                0
            } else {
                whole.parse::<u64>().map_err(|_| invalid())?
            };
            total = whole
                .checked_mul(scale)
                .and_then(|nanos| nanos.checked_add(fraction_of(fraction, scale)))
                .and_then(|nanos| nanos.checked_add(total))
                .filter(|&nanos| nanos <= i64::MAX as u64 + u64::from(negative))
                .ok_or_else(invalid)?;
            rest = after_unit;
        }
        let magnitude = i128::from(total);
        i64::try_from(if negative { -magnitude } else { magnitude })
            .map(Self)
            .map_err(|_| invalid())
    }
}

/// Digits beyond the eighteenth cannot change a whole number of nanoseconds.
const FRACTION_DIGITS: usize = 18;

fn fraction_of(digits: &str, scale: u64) -> u64 {
    let mut value: u128 = 0;
    let mut divisor: u128 = 1;
    for digit in digits.bytes().take(FRACTION_DIGITS) {
        value = value * 10 + u128::from(digit - b'0');
        divisor *= 10;
    }
    u64::try_from(value * u128::from(scale) / divisor).expect("a part of one unit is less than it")
}

fn split_digits(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text.split_at(end)
}

fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    out.extend(text.chars().flat_map(char::escape_default));
    out.push('"');
    out
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.unsigned_abs();
        if self.0 < 0 {
            f.write_str("-")?;
        }
        let (unit, scale) = match nanos {
            0 => return f.write_str("0s"),
            n if n < MICROSECOND => ("ns", 1),
            n if n < MILLISECOND => ("\u{b5}s", MICROSECOND),
            n if n < SECOND => ("ms", MILLISECOND),
            _ => {
                let (hours, rest) = (nanos / HOUR, nanos % HOUR);
                if hours > 0 {
                    write!(f, "{hours}h")?;
                }
                if nanos >= MINUTE {
                    write!(f, "{}m", rest / MINUTE)?;
                }
                return write_decimal(f, rest % MINUTE, SECOND, "s");
            }
        };
        write_decimal(f, nanos, scale, unit)
    }
}

fn write_decimal(f: &mut fmt::Formatter<'_>, nanos: u64, scale: u64, unit: &str) -> fmt::Result {
    write!(f, "{}", nanos / scale)?;
    let fraction = nanos % scale;
    if fraction > 0 {
        let width = scale.ilog10() as usize;
        let digits = format!("{fraction:0width$}");
        write!(f, ".{}", digits.trim_end_matches('0'))?;
    }
    f.write_str(unit)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_read_and_print_as_go_does() {
        for (text, nanos, printed) in [
            ("0", 0, "0s"),
            ("0s", 0, "0s"),
            ("-1s", -1_000_000_000, "-1s"),
            ("200ms", 200_000_000, "200ms"),
            ("1.5h", 5_400_000_000_000, "1h30m0s"),
            ("1m0s", 60_000_000_000, "1m0s"),
            ("+.5us", 500, "500ns"),
            ("1m30.25s", 90_250_000_000, "1m30.25s"),
            ("1.5ms", 1_500_000, "1.5ms"),
            ("1500ns", 1_500, "1.5\u{b5}s"),
            (
                "9223372036854775807ns",
                i64::MAX,
                "2562047h47m16.854775807s",
            ),
            (
                "-9223372036854775808ns",
                i64::MIN,
                "-2562047h47m16.854775808s",
            ),
        ] {
            let duration: GoDuration = text.parse().unwrap();
            assert_eq!(duration.0, nanos, "{text}");
            assert_eq!(duration.to_string(), printed);
        }
        for (text, refusal) in [
            ("", "time: invalid duration \"\""),
            ("abc", "time: invalid duration \"abc\""),
            (".s", "time: invalid duration \".s\""),
            ("5", "time: missing unit in duration \"5\""),
            ("5x", "time: unknown unit \"x\" in duration \"5x\""),
            (
                "9223372036854775808ns",
                "time: invalid duration \"9223372036854775808ns\"",
            ),
            ("3000000h", "time: invalid duration \"3000000h\""),
        ] {
            let refused = text.parse::<GoDuration>().unwrap_err();
            assert_eq!(refused.to_string(), refusal);
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_again(nanos in any::<i64>()) {
            let printed = GoDuration(nanos).to_string();
            prop_assert_eq!(printed.parse::<GoDuration>().unwrap(), GoDuration(nanos));
        }

        #[test]
        fn no_text_panics(text in "[-+]?[0-9.nsumh\u{b5}x]{0,24}") {
            let _ = text.parse::<GoDuration>();
        }
    }
}
