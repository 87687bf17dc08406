//! When maintenance is due: a cron expression of six fields, in UTC. Pure.
//!
//! Seconds, minutes, hours, days of the month, months, days of the week. A field is `*`, a number, a range `a-b`, each
//! of the two with a step (`*/15`, `10-40/5`), or several of these with commas; months and days of the week may be
//! written as `JAN` and `MON`. As in cron, a day is due if either of the two fields of days names it, unless one of
//! them begins with `*` (or `?`): then both have to.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use quorate_ledger::Timestamp;
use time::{Date, OffsetDateTime, Time};

/// Days that are looked at for the next due one. The longest wait of a schedule that comes at all is for a 29 February
/// of one day of the week: 40 years, across a century without a leap year.
const MAX_DAYS: u32 = 41 * 366;

/// Windows that are looked at for overlaps: more than a week of one each ten seconds.
const MAX_WINDOWS: usize = 70_000;

/// Overlaps that are told one by one.
pub const MAX_OVERLAPS: usize = 5;

/// The longest expression, in bytes.
const MAX_BYTES: usize = 1024;

/// A cron expression of six fields that has a next time.
#[derive(Clone, PartialEq, Eq)]
pub struct Schedule {
    text: String,
    seconds: Numbers,
    minutes: Numbers,
    hours: Numbers,
    days: Numbers,
    months: Numbers,
    weekdays: Numbers,
    /// Whether a day has to be in both fields of days.
    both: bool,
}

/// A set of numbers below 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Numbers(u64);

impl Numbers {
    fn has(self, number: u8) -> bool {
        self.0 >> number & 1 == 1
    }

    /// The smallest that is `least` or more.
    fn from(self, least: u8) -> Option<u8> {
        let rest = self.0.checked_shr(u32::from(least)).unwrap_or(0);
        let next = u32::from(least) + rest.trailing_zeros();
        (rest != 0).then_some(next as u8)
    }
}

/// What a field may hold.
struct Field {
    name: &'static str,
    least: u8,
    most: u8,
    /// Names of its numbers, from `least`.
    names: &'static [&'static str],
}

const FIELDS: [Field; 6] = [
    Field::new("seconds", 0, 59, &[]),
    Field::new("minutes", 0, 59, &[]),
    Field::new("hours", 0, 23, &[]),
    Field::new("days of the month", 1, 31, &[]),
    Field::new(
        "months",
        1,
        12,
        &[
            "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC",
        ],
    ),
    // 7 is another name of Sunday, as in cron.
    Field::new(
        "days of the week",
        0,
        7,
        &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"],
    ),
];

/// A text that is no schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// Another number of fields.
    #[error(
        "has {0} fields but must have 6: seconds, minutes, hours, days of the month, months, days of the week, as in \
         \"00 30 14,15 * * 5\""
    )]
    Fields(usize),
    /// A field is wrong.
    #[error("'{part}' in the field of {field} {reason}")]
    Field {
        /// Which field.
        field: &'static str,
        /// The part of it that is wrong.
        part: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No day has this date.
    #[error("never comes: no month that it names has such a day")]
    Never,
    /// Too long to be one.
    #[error("is longer than {MAX_BYTES} bytes")]
    Long,
}

impl Field {
    const fn new(name: &'static str, least: u8, most: u8, names: &'static [&'static str]) -> Self {
        Self {
            name,
            least,
            most,
            names,
        }
    }

    fn error(&self, part: &str, reason: impl Into<String>) -> ScheduleError {
        ScheduleError::Field {
            field: self.name,
            part: part.to_owned(),
            reason: reason.into(),
        }
    }

    fn parse(&self, text: &str) -> Result<Numbers, ScheduleError> {
        let mut bits = 0;
        for part in text.split(',') {
            let (range, step) = match part.split_once('/') {
                None => (part, None),
                Some((range, step)) => {
                    let step = step.parse::<u8>().ok().filter(|step| *step > 0);
                    let step = step.ok_or_else(|| {
                        self.error(part, "has no step: write a number from 1 behind the '/'")
                    })?;
                    (range, Some(step))
                }
            };
            let (first, last) = match (range, range.split_once('-')) {
                ("*" | "?", _) => (self.least, self.most),
                (_, Some((first, last))) => {
                    let ends = (self.number(part, first)?, self.number(part, last)?);
                    if ends.0 > ends.1 {
                        let reason = "is a range that goes down: write it as two, as in 22-23,0-2";
                        return Err(self.error(part, reason));
                    }
                    ends
                }
                (_, None) => {
                    let first = self.number(part, range)?;
                    if step.is_some() {
                        let reason = "steps from a single number: write a range, as in 10-59/5";
                        return Err(self.error(part, reason));
                    }
                    (first, first)
                }
            };
            for number in (first..=last).step_by(usize::from(step.unwrap_or(1))) {
                bits |= 1_u64 << number;
            }
        }
        Ok(Numbers(bits))
    }

    fn number(&self, part: &str, text: &str) -> Result<u8, ScheduleError> {
        let upper = text.to_ascii_uppercase();
        if let Some(index) = self.names.iter().position(|name| *name == upper) {
            return Ok(self.least + index as u8);
        }
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse::<u8>().ok().filter(|_| digits);
        number
            .filter(|number| (self.least..=self.most).contains(number))
            .ok_or_else(|| {
                let names = match (self.names.first(), self.names.last()) {
                    (Some(first), Some(last)) => format!(", {first} to {last}"),
                    _ => String::new(),
                };
                let (least, most) = (self.least, self.most);
                self.error(
                    part,
                    format!("is not a number from {least} to {most}{names}"),
                )
            })
    }
}

impl FromStr for Schedule {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        if text.len() > MAX_BYTES {
            return Err(ScheduleError::Long);
        }
        let fields: Vec<&str> = text.split_ascii_whitespace().collect();
        let Ok([seconds, minutes, hours, days, months, weekdays]) =
            <[&str; 6]>::try_from(fields.as_slice())
        else {
            return Err(ScheduleError::Fields(fields.len()));
        };
        let open = |field: &str| field.starts_with(['*', '?']);
        let both = open(days) || open(weekdays);
        let mut of_week = FIELDS[5].parse(weekdays)?;
        // Sunday is 0 from here on.
        of_week.0 = of_week.0 & 0x7f | of_week.0 >> 7;
        let schedule = Self {
            text: fields.join(" "),
            seconds: FIELDS[0].parse(seconds)?,
            minutes: FIELDS[1].parse(minutes)?,
            hours: FIELDS[2].parse(hours)?,
            days: FIELDS[3].parse(days)?,
            months: FIELDS[4].parse(months)?,
            weekdays: of_week,
            both,
        };
        // Whatever comes at all comes within 41 years, wherever these begin.
        match schedule.next_after(Timestamp::EPOCH) {
            Some(_) => Ok(schedule),
            None => Err(ScheduleError::Never),
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Schedule({})", self.text)
    }
}

/// Two windows of which the second begins before the first has to be over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overlap {
    /// The beginning of the first.
    pub first: Timestamp,
    /// The beginning of the second.
    pub second: Timestamp,
}

impl Schedule {
    /// The first moment after `time` that is due. `None` only at the end of the calendar.
    pub fn next_after(&self, time: Timestamp) -> Option<Timestamp> {
        let second = time.as_seconds().checked_add(1)?;
        let start = OffsetDateTime::from_unix_timestamp(second).ok()?;
        let (mut date, mut since) = (start.date(), start.time());
        for _ in 0..MAX_DAYS {
            if self.has_day(date)
                && let Some(due) = self.time_of_day(since)
            {
                let due = OffsetDateTime::new_utc(date, due).unix_timestamp();
                return Some(Timestamp::from_seconds(due));
            }
            date = date.next_day()?;
            since = Time::MIDNIGHT;
        }
        None
    }

    /// What is due after `time` and not after `last`, in order.
    pub fn between(
        &self,
        time: Timestamp,
        last: Timestamp,
    ) -> impl Iterator<Item = Timestamp> + '_ {
        std::iter::successors(self.next_after(time), |due| self.next_after(*due))
            .take_while(move |due| *due <= last)
    }

    /// Which windows of this duration overlap, among those that begin after `time` and not after `last`: the first
    /// [`MAX_OVERLAPS`] of them, and how many there are.
    pub fn overlaps(
        &self,
        time: Timestamp,
        last: Timestamp,
        duration: Duration,
    ) -> (Vec<Overlap>, usize) {
        let (mut overlaps, mut count) = (Vec::new(), 0);
        let mut former: Option<Timestamp> = None;
        for second in self.between(time, last).take(MAX_WINDOWS) {
            if let Some(first) = former
                && second < first + duration
            {
                count += 1;
                if overlaps.len() < MAX_OVERLAPS {
                    overlaps.push(Overlap { first, second });
                }
            }
            former = Some(second);
        }
        (overlaps, count)
    }

    fn has_day(&self, date: Date) -> bool {
        let of_month = self.days.has(date.day());
        let of_week = self.weekdays.has(date.weekday().number_days_from_sunday());
        self.months.has(u8::from(date.month()))
            && if self.both {
                of_month && of_week
            } else {
                of_month || of_week
            }
    }

    /// The first time of a day that is due, `since` included.
    fn time_of_day(&self, since: Time) -> Option<Time> {
        let (mut hour, mut minute, mut second) = since.as_hms();
        loop {
            let due = self.hours.from(hour)?;
            if due > hour {
                (hour, minute, second) = (due, 0, 0);
            }
            let Some(due) = self.minutes.from(minute) else {
                (hour, minute, second) = (hour + 1, 0, 0);
                continue;
            };
            if due > minute {
                (minute, second) = (due, 0);
            }
            let Some(due) = self.seconds.from(second) else {
                (minute, second) = (minute + 1, 0);
                continue;
            };
            return Time::from_hms(hour, minute, due).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn schedule(text: &str) -> Schedule {
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn the_next_times_are_those_that_cron_knows() {
        for (text, after, due) in [
            // Half past two and half past three on Fridays.
            (
                "00 30 14,15 * * 5",
                "2026-11-20T14:30:00Z",
                "2026-11-20T15:30:00Z",
            ),
            (
                "00 30 14,15 * * 5",
                "2026-11-20T15:30:00Z",
                "2026-11-27T14:30:00Z",
            ),
            (
                "00 30 14,15 * * FRI",
                "2026-11-16T00:00:00Z",
                "2026-11-20T14:30:00Z",
            ),
            // The moment itself has passed; a part of a second before it has not.
            (
                "0 0 0 * * *",
                "2026-12-31T23:59:59.999999Z",
                "2027-01-01T00:00:00Z",
            ),
            (
                "0 0 0 * * *",
                "2027-01-01T00:00:00Z",
                "2027-01-02T00:00:00Z",
            ),
            (
                "*/20 * * * * *",
                "2026-01-01T00:00:40Z",
                "2026-01-01T00:01:00Z",
            ),
            (
                "5 10-40/15 3 1 jan-mar ?",
                "2026-01-01T03:40:05Z",
                "2026-02-01T03:10:05Z",
            ),
            (
                "0 0 12 29 2 *",
                "2026-01-01T00:00:00Z",
                "2028-02-29T12:00:00Z",
            ),
            (
                "0 0 12 29 2 *",
                "2096-03-01T00:00:00Z",
                "2104-02-29T12:00:00Z",
            ),
            // Either of two days that are named, or both if one begins with a star.
            (
                "0 0 0 13 * 5",
                "2026-11-14T00:00:00Z",
                "2026-11-20T00:00:00Z",
            ),
            (
                "0 0 0 13 * */5",
                "2026-11-01T00:00:00Z",
                "2026-11-13T00:00:00Z",
            ),
            (
                "0 0 0 * * 7",
                "2026-11-20T00:00:00Z",
                "2026-11-22T00:00:00Z",
            ),
            (
                "0 0 0 * * 0",
                "2026-11-20T00:00:00Z",
                "2026-11-22T00:00:00Z",
            ),
            (
                "59 59 23 31 12 *",
                "1969-12-31T23:59:58Z",
                "1969-12-31T23:59:59Z",
            ),
        ] {
            assert_eq!(
                schedule(text).next_after(at(after)),
                Some(at(due)),
                "{text}"
            );
        }
        assert_eq!(schedule(" 0  0 0 * * 1 ").to_string(), "0 0 0 * * 1");
        assert_eq!(schedule("0 0 0 * * *").next_after(Timestamp::MAX), None);
    }

    #[test]
    fn a_mistake_is_named_with_its_field() {
        for (text, wanted) in [
            ("", "has 0 fields"),
            ("30 14 * * 5", "has 5 fields"),
            ("0 30 14 * * 5 root", "has 7 fields"),
            (
                "60 * * * * *",
                "'60' in the field of seconds is not a number from 0 to 59",
            ),
            ("0 * 24 * * *", "hours"),
            (
                "0 * * 0 * *",
                "days of the month is not a number from 1 to 31",
            ),
            (
                "0 * * * 13 *",
                "months is not a number from 1 to 12, JAN to DEC",
            ),
            ("0 * * * * 8", "days of the week"),
            ("0 * * * * MO", "'MO'"),
            ("0 1, * * * *", "'' in the field of minutes"),
            ("0 -1 * * * *", "'-1'"),
            ("0 +1 * * * *", "'+1'"),
            ("0 * 22-2 * * *", "goes down"),
            ("0 */0 * * * *", "step"),
            ("0 */x * * * *", "step"),
            ("0 5/10 * * * *", "range"),
            ("0 0 0 30 2 *", "never comes"),
            ("0 0 0 31 4,6,9,11 *", "never comes"),
        ] {
            let error = text.parse::<Schedule>().unwrap_err().to_string();
            assert!(error.contains(wanted), "{text}: {error}");
        }
        let long = format!("0 0 0 {}1 * *", "1,".repeat(2_000));
        assert_eq!(long.parse::<Schedule>(), Err(ScheduleError::Long));
    }

    #[test]
    fn overlapping_windows_are_found() {
        let week = Duration::from_secs(7 * 86_400);
        let now = at("2026-11-16T00:00:00Z");
        let twice = schedule("0 0,5 2 * * *");
        let (overlaps, count) = twice.overlaps(now, now + week, Duration::from_secs(301));
        assert_eq!((overlaps.len(), count), (MAX_OVERLAPS, 7));
        assert_eq!(overlaps[0].first, at("2026-11-16T02:00:00Z"));
        assert_eq!(overlaps[0].second, at("2026-11-16T02:05:00Z"));
        // To the end of one is not into the next.
        let (_, count) = twice.overlaps(now, now + week, Duration::from_secs(300));
        assert_eq!(count, 0);
        let (_, count) = schedule("* * * * * *").overlaps(now, now + week, week);
        assert_eq!(count, MAX_WINDOWS - 1);
    }

    /// A field as somebody might write it.
    fn field(least: u8, most: u8) -> impl Strategy<Value = String> {
        let number = move || least..=most;
        let part = prop_oneof![
            3 => Just("*".to_owned()),
            1 => (1..=most).prop_map(|step| format!("*/{step}")),
            3 => number().prop_map(|number| number.to_string()),
            2 => (number(), number(), 1..=5_u8).prop_map(|(a, b, step)| {
                format!("{}-{}/{step}", a.min(b), a.max(b))
            }),
        ];
        proptest::collection::vec(part, 1..=3).prop_map(|parts| parts.join(","))
    }

    fn any_schedule() -> impl Strategy<Value = String> {
        let fields = (
            field(0, 59),
            field(0, 59),
            field(0, 23),
            field(1, 28),
            field(1, 12),
            field(0, 7),
        );
        fields.prop_map(|(a, b, c, d, e, f)| format!("{a} {b} {c} {d} {e} {f}"))
    }

    /// Whether a field names a number, found without any of the code above.
    fn names(field: &str, least: u32, most: u32, number: u32) -> bool {
        field.split(',').any(|part| {
            let (range, step) = part.split_once('/').unwrap_or((part, "1"));
            let (first, last) = match range.split_once('-') {
                Some((first, last)) => (first.parse().unwrap(), last.parse().unwrap()),
                None if range == "*" => (least, most),
                None => (range.parse().unwrap(), range.parse().unwrap()),
            };
            let step: u32 = step.parse().unwrap();
            number >= first && number <= last && (number - first).is_multiple_of(step)
        })
    }

    /// Whether a moment is due, by looking at it alone.
    fn is_due(text: &str, time: Timestamp) -> bool {
        let fields: Vec<&str> = text.split(' ').collect();
        let moment = OffsetDateTime::from_unix_timestamp(time.as_seconds()).unwrap();
        let weekday = u32::from(moment.weekday().number_days_from_sunday());
        let of_month = names(fields[3], 1, 31, moment.day().into());
        let of_week = names(fields[5], 0, 7, weekday) || weekday == 0 && names(fields[5], 0, 7, 7);
        let day = if fields[3].starts_with('*') || fields[5].starts_with('*') {
            of_month && of_week
        } else {
            of_month || of_week
        };
        day && names(fields[0], 0, 59, moment.second().into())
            && names(fields[1], 0, 59, moment.minute().into())
            && names(fields[2], 0, 23, moment.hour().into())
            && names(fields[4], 1, 12, u8::from(moment.month()).into())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_next_time_is_due_and_nothing_before_it_is(
            text in any_schedule(),
            start in 0..4_000_000_000_i64,
        ) {
            let Ok(schedule) = text.parse::<Schedule>() else {
                // Days 1 to 28 are in each month: with both fields of days to meet, there may be a week without.
                return Err(TestCaseError::reject("never comes"));
            };
            let start = Timestamp::from_seconds(start);
            let next = schedule.next_after(start).unwrap();
            prop_assert!(next > start);
            prop_assert!(is_due(&text, next), "{text}: {next} is not due");
            // Half an hour second by second from both ends, and places in between.
            let gap = i64::try_from(next.since(start).as_secs()).unwrap();
            let near = (1..1_800).flat_map(|second| [second, gap - second]);
            let between = (1..500).map(|place| gap / 500 * place);
            for second in near.chain(between).filter(|second| (1..gap).contains(second)) {
                let time = Timestamp::from_seconds(start.as_seconds() + second);
                prop_assert!(!is_due(&text, time), "{text}: {time} is due before {next}");
            }
        }

        #[test]
        fn no_text_is_too_much(text in "[-0-9*/,?A-Za-z ]{0,60}") {
            if let Ok(schedule) = text.parse::<Schedule>() {
                prop_assert!(schedule.next_after(Timestamp::from_seconds(1_800_000_000)).is_some());
            }
        }
    }
}
