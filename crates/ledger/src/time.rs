//! Moments and windows of time as values. Nothing here reads a clock: callers pass what their clock says.

use std::{
    fmt,
    io::{self, Read},
    ops::{Add, Sub},
    str::FromStr,
    time::Duration,
};

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::canonical;

const MICROS_PER_SECOND: i64 = 1_000_000;
const SECONDS_PER_DAY: i64 = 86_400;

/// A moment: microseconds since 1970-01-01T00:00:00Z, without leap seconds.
///
/// Text and JSON are RFC 3339 in UTC with six decimals, e.g. `2026-01-31T09:30:00.000000Z`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct Timestamp(i64);

impl Timestamp {
    /// 1970-01-01T00:00:00Z.
    pub const EPOCH: Self = Self(0);
    /// The last moment that can be said.
    pub const MAX: Self = Self(i64::MAX);

    /// From microseconds since the epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// From seconds since the epoch; the extremes saturate.
    pub const fn from_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(MICROS_PER_SECOND))
    }

    /// Microseconds since the epoch.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Whole seconds since the epoch, rounded down: the unit of certificates.
    pub const fn as_seconds(self) -> i64 {
        self.0.div_euclid(MICROS_PER_SECOND)
    }

    /// Time passed since `earlier`; zero if that lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        let micros = i128::from(self.0) - i128::from(earlier.0);
        // The difference of two i64 fits u64.
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    }
}

/// Saturates at the last moment that can be said.
impl Add<Duration> for Timestamp {
    type Output = Self;
    fn add(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_add(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)),
        )
    }
}

/// Saturates at the first moment that can be said.
impl Sub<Duration> for Timestamp {
    type Output = Self;
    fn sub(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)),
        )
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, micros) = (self.as_seconds(), self.0.rem_euclid(MICROS_PER_SECOND));
        let (days, second) = (
            seconds.div_euclid(SECONDS_PER_DAY),
            seconds.rem_euclid(SECONDS_PER_DAY),
        );
        let (year, month, day) = date_of(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        // Years outside 0..=9999 take a sign, as ISO 8601 asks.
        match year {
            0..=9999 => write!(f, "{year:04}")?,
            _ => write!(f, "{year:+07}")?,
        }
        write!(
            f,
            "-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z"
        )
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Not a moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a time: {text:?}; expected UTC as in 2026-01-31T09:30:00Z, with at most six decimals of a second"
)]
pub struct TimestampError {
    text: String,
}

impl FromStr for Timestamp {
    type Err = TimestampError;

    fn from_str(text: &str) -> Result<Self, TimestampError> {
        parse(text).ok_or_else(|| TimestampError {
            text: text.chars().take(64).collect(),
        })
    }
}

fn parse(text: &str) -> Option<Timestamp> {
    let text = text.strip_suffix(['Z', 'z'])?;
    let (date, clock) = text.split_once(['T', 't', ' '])?;
    let (sign, date) = match date.as_bytes().first()? {
        b'-' => (-1, &date[1..]),
        b'+' => (1, &date[1..]),
        _ => (1, date),
    };
    let mut date = date.split('-');
    let year = sign * digits(date.next()?, 4, 6)?;
    let (month, day) = (digits(date.next()?, 2, 2)?, digits(date.next()?, 2, 2)?);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut clock = clock.split(':');
    let (hour, minute, second) = (
        digits(clock.next()?, 2, 2)?,
        digits(clock.next()?, 2, 2)?,
        digits(clock.next()?, 2, 2)?,
    );
    if date.next().is_some() || clock.next().is_some() || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let micros = digits(fraction, 1, 6)? * 10_i64.pow(6 - u32::try_from(fraction.len()).ok()?);
    let days = days_of(year, month, day);
    // Refuses the thirteenth month and the thirtieth of February.
    if date_of(days) != (year, month, day) {
        return None;
    }
    let seconds = days * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second;
    let micros = i128::from(seconds) * i128::from(MICROS_PER_SECOND) + i128::from(micros);
    Some(Timestamp(i64::try_from(micros).ok()?))
}

fn digits(text: &str, least: usize, most: usize) -> Option<i64> {
    let fine =
        (least..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    fine.then(|| text.parse().ok()).flatten()
}

/// Days from 1970-01-01 to a date of the proleptic Gregorian calendar. Years are counted from March, so that the leap
/// day is the last of its year and months follow a straight line.
fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    365 * year + year.div_euclid(4) - year.div_euclid(100)
        + year.div_euclid(400)
        + (153 * month + 2) / 5
        + day
        - 719_469
}

/// The inverse of [`days_of`].
fn date_of(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'_, str> as Deserialize>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// When a transaction may be notarised: from a moment (inclusive), until a moment (exclusive), or both.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, BorshSerialize, Serialize, Deserialize,
)]
#[serde(try_from = "Bounds")]
pub struct TimeWindow {
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
}

/// A time window before it is checked.
#[derive(BorshDeserialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bounds {
    #[serde(default)]
    from: Option<Timestamp>,
    #[serde(default)]
    until: Option<Timestamp>,
}

/// A window that no moment or every moment would satisfy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimeWindowError {
    /// Neither end is given.
    #[error("a time window needs a beginning or an end")]
    Unbounded,
    /// The end is not after the beginning.
    #[error("the time window from {from} until {until} is empty")]
    Empty {
        /// The beginning.
        from: Timestamp,
        /// The end.
        until: Timestamp,
    },
}

impl TimeWindow {
    /// From `from` (inclusive) until `until` (exclusive).
    pub fn between(from: Timestamp, until: Timestamp) -> Result<Self, TimeWindowError> {
        Self::new(Some(from), Some(until))
    }

    /// From `from` on.
    pub fn from_time(from: Timestamp) -> Self {
        Self {
            from: Some(from),
            until: None,
        }
    }

    /// Before `until`.
    pub fn until_time(until: Timestamp) -> Self {
        Self {
            from: None,
            until: Some(until),
        }
    }

    /// `tolerance` to both sides of `time`: what a transaction uses whose contract asks for the present time.
    /// At least a millisecond, so that the window is not empty.
    pub fn around(time: Timestamp, tolerance: Duration) -> Self {
        let tolerance = tolerance.max(Duration::from_millis(1));
        Self {
            from: Some(time - tolerance),
            until: Some(time + tolerance),
        }
    }

    /// With either end open, but not both.
    pub fn new(from: Option<Timestamp>, until: Option<Timestamp>) -> Result<Self, TimeWindowError> {
        match (from, until) {
            (None, None) => Err(TimeWindowError::Unbounded),
            (Some(from), Some(until)) if from >= until => {
                Err(TimeWindowError::Empty { from, until })
            }
            _ => Ok(Self { from, until }),
        }
    }

    /// The beginning, inclusive.
    pub fn from(&self) -> Option<Timestamp> {
        self.from
    }

    /// The end, exclusive.
    pub fn until(&self) -> Option<Timestamp> {
        self.until
    }

    /// Whether `time` lies inside.
    pub fn contains(&self, time: Timestamp) -> bool {
        self.from.is_none_or(|from| from <= time) && self.until.is_none_or(|until| time < until)
    }
}

impl TryFrom<Bounds> for TimeWindow {
    type Error = TimeWindowError;
    fn try_from(bounds: Bounds) -> Result<Self, TimeWindowError> {
        Self::new(bounds.from, bounds.until)
    }
}

impl BorshDeserialize for TimeWindow {
    fn deserialize_reader<R: Read>(reader: &mut R) -> io::Result<Self> {
        Bounds::deserialize_reader(reader)?
            .try_into()
            .map_err(canonical::refuse)
    }
}

impl fmt::Display for TimeWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.from, self.until) {
            (Some(from), Some(until)) => write!(f, "from {from} until {until}"),
            (Some(from), None) => write!(f, "from {from}"),
            (None, Some(until)) => write!(f, "until {until}"),
            (None, None) => write!(f, "any time"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_moments() {
        for (micros, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (-1, "1969-12-31T23:59:59.999999Z"),
            (951_782_400_000_000, "2000-02-29T00:00:00.000000Z"),
            (1_769_851_800_123_456, "2026-01-31T09:30:00.123456Z"),
            (253_402_300_799_000_000, "9999-12-31T23:59:59.000000Z"),
            (253_402_300_800_000_000, "+010000-01-01T00:00:00.000000Z"),
        ] {
            assert_eq!(Timestamp::from_micros(micros).to_string(), text);
            assert_eq!(text.parse(), Ok(Timestamp::from_micros(micros)));
        }
        assert_eq!(
            "2026-01-31T09:30:00.5Z"
                .parse::<Timestamp>()
                .unwrap()
                .as_micros()
                % 1_000_000,
            500_000
        );
        for nonsense in [
            "",
            "Z",
            "2026-02-30T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:00:00",
            "é",
        ] {
            assert!(nonsense.parse::<Timestamp>().is_err(), "{nonsense}");
        }
    }

    proptest! {
        #[test]
        fn text_round_trips(micros: i64) {
            let time = Timestamp::from_micros(micros);
            prop_assert_eq!(time.to_string().parse::<Timestamp>(), Ok(time));
        }

        #[test]
        fn parsing_never_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<Timestamp>();
        }
    }

    #[test]
    fn windows() {
        let at = Timestamp::from_seconds;
        let window = TimeWindow::between(at(10), at(20)).unwrap();
        assert!(window.contains(at(10)) && !window.contains(at(20)) && !window.contains(at(9)));
        assert!(TimeWindow::between(at(20), at(20)).is_err());
        assert!(TimeWindow::from_time(at(5)).contains(at(5)));
        assert!(serde_json::from_str::<TimeWindow>("{}").is_err());
        assert!(borsh::from_slice::<TimeWindow>(&[0, 0]).is_err());
        assert_eq!(at(5).since(at(9)), Duration::ZERO);
        assert_eq!(Timestamp::MAX + Duration::MAX, Timestamp::MAX);
    }
}
