//! Periods of the calendar, as HOCON writes them. Pure.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use quorate_ledger::Timestamp;
use time::{Date, Month, OffsetDateTime};

const MICROS_PER_DAY: i64 = 86_400_000_000;

/// The longest period: a hundred years.
const MAX_DAYS: u32 = 36_525;

/// So many days, or so many months of the calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// Days of 24 hours.
    Days(u32),
    /// Months, of whatever length they are.
    Months(u32),
}

/// A text that is no period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "is not a period: write a whole number from 1 and a unit, d (days), w (weeks), m (months) or y (years), as in 100d; \
     at most a hundred years"
)]
pub struct PeriodError;

impl FromStr for Period {
    type Err = PeriodError;

    fn from_str(text: &str) -> Result<Self, PeriodError> {
        let text = text.trim();
        let end = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let number: u32 = number.parse().map_err(|_| PeriodError)?;
        let (factor, most, of): (u32, u32, fn(u32) -> Self) = match unit.trim_start() {
            "" | "d" | "day" | "days" => (1, MAX_DAYS, Self::Days),
            "w" | "week" | "weeks" => (7, MAX_DAYS, Self::Days),
            "m" | "mo" | "month" | "months" => (1, 1_200, Self::Months),
            "y" | "year" | "years" => (12, 1_200, Self::Months),
            _ => return Err(PeriodError),
        };
        match number.checked_mul(factor) {
            Some(count @ 1..) if count <= most => Ok(of(count)),
            _ => Err(PeriodError),
        }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Days(days) => write!(f, "{days}d"),
            Self::Months(months) => write!(f, "{months}m"),
        }
    }
}

impl Period {
    /// So long before `time`. Where the month is too short for the day, its last day.
    pub fn before(self, time: Timestamp) -> Timestamp {
        match self {
            Self::Days(days) => time - Duration::from_secs(u64::from(days) * 86_400),
            Self::Months(months) => months_before(time, months)
                // Beyond the calendar nothing has ever happened.
                .unwrap_or(Timestamp::from_micros(i64::MIN)),
        }
    }
}

fn months_before(time: Timestamp, months: u32) -> Option<Timestamp> {
    let moment = OffsetDateTime::from_unix_timestamp(time.as_seconds()).ok()?;
    let date = moment.date();
    let count = i64::from(date.year()) * 12 + i64::from(u8::from(date.month())) - 1;
    let count = count - i64::from(months);
    let year = i32::try_from(count.div_euclid(12)).ok()?;
    let month = Month::try_from(count.rem_euclid(12) as u8 + 1).ok()?;
    let day = date.day().min(month.length(year));
    let then = Date::from_calendar_date(year, month, day).ok()?;
    let days = i64::from(date.to_julian_day() - then.to_julian_day());
    let micros = time.as_micros().checked_sub(days * MICROS_PER_DAY)?;
    Some(Timestamp::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn periods_are_days_or_months_of_the_calendar() {
        let now: Timestamp = "2026-03-31T10:11:12.131415Z".parse().unwrap();
        for (text, then) in [
            ("100d", "2025-12-21T10:11:12.131415Z"),
            ("7", "2026-03-24T10:11:12.131415Z"),
            ("2 weeks", "2026-03-17T10:11:12.131415Z"),
            ("1m", "2026-02-28T10:11:12.131415Z"),
            ("15 months", "2024-12-31T10:11:12.131415Z"),
            ("2y", "2024-03-31T10:11:12.131415Z"),
        ] {
            let period: Period = text.parse().unwrap();
            assert_eq!(period.before(now), then.parse().unwrap(), "{text}");
        }
        for text in [
            "",
            "d",
            "0d",
            "-1d",
            "1.5d",
            "1h",
            "101y",
            "99999999999d",
            "5 d d",
        ] {
            assert_eq!(text.parse::<Period>(), Err(PeriodError), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_period_goes_back_and_can_be_written_down(
            count in 1..=1_200_u32,
            months: bool,
            now in 0..10_000_000_000_i64,
        ) {
            let period = if months { Period::Months(count) } else { Period::Days(count) };
            prop_assert_eq!(period.to_string().parse(), Ok(period));
            let now = Timestamp::from_seconds(now);
            let then = period.before(now);
            let days = now.since(then).as_secs() / 86_400;
            let (least, most) = if months { (28, 31) } else { (1, 1) };
            prop_assert!((u64::from(count) * least..=u64::from(count) * most).contains(&days));
            prop_assert!(Period::before(period, Timestamp::from_micros(i64::MIN)) <= then);
        }
    }
}
