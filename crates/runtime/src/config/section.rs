//! One object of the tree, decoded key by key.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use super::environment::advice;
use super::{OnUnknownKeys, REDACTED, Report, Secret, parse_bytes, parse_duration};
use crate::hocon::{Kind, Object, Origin, Value};
use crate::tasks::chain;

/// An object of the configuration, or its absence, in which every key has its default. A value that cannot be decoded
/// becomes a problem in the report, and the getter answers as if the key were absent: the report decides in the end.
pub struct Section<'a> {
    report: &'a Report,
    path: String,
    members: Option<&'a Object>,
    origin: Option<Origin>,
    known: RefCell<BTreeSet<String>>,
}

impl<'a> Section<'a> {
    /// The whole configuration.
    pub fn root(value: &'a Value, report: &'a Report) -> Self {
        Self::at(report, String::new(), Some(value))
    }

    fn at(report: &'a Report, path: String, value: Option<&'a Value>) -> Self {
        let members = value.and_then(Value::as_object);
        if let (Some(value), None) = (value, members) {
            report.problem(
                Some(value.origin.clone()),
                path.clone(),
                format!(
                    "is {} but must be an object `{{ … }}` of keys and values",
                    value.noun()
                ),
            );
        }
        Self {
            report,
            path,
            members,
            origin: value.map(|value| value.origin.clone()),
            known: RefCell::default(),
        }
    }

    /// What was read from a file that `key` of this section names. Its keys are reported below that of the file.
    pub fn read_elsewhere<'b>(&self, key: &str, value: &'b Value) -> Section<'b>
    where
        'a: 'b,
    {
        Section::at(self.report, self.full(key), Some(value))
    }

    /// Whether the section was written at all.
    pub fn is_present(&self) -> bool {
        self.members.is_some()
    }

    /// Whether the key was written, with something else than `null`.
    pub fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// The undecoded value. Makes the key known; what is below it is not checked.
    pub fn value(&self, key: &str) -> Option<&'a Value> {
        self.known.borrow_mut().insert(key.to_owned());
        let members = self.members?;
        let found = members.get(key).or_else(|| {
            // The case of a variable's name is only a suggestion.
            members
                .iter()
                .find(|(name, value)| {
                    value.origin.environment_variable().is_some() && name.eq_ignore_ascii_case(key)
                })
                .map(|(_, value)| value)
        });
        found.filter(|value| value.kind != Kind::Null)
    }

    /// Where the key was written; else where the section was.
    pub fn origin(&self, key: &str) -> Option<Origin> {
        self.value(key)
            .map(|value| value.origin.clone())
            .or_else(|| self.origin.clone())
    }

    /// The full name of a key of this section.
    pub fn full(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// Reports that something is wrong with a key.
    pub fn problem(&self, key: &str, reason: impl Into<String>) {
        self.report
            .problem(self.origin(key), self.full(key), reason);
    }

    /// Reports that something is odd about a key.
    pub fn warning(&self, key: &str, reason: impl Into<String>) {
        self.report
            .warning(self.origin(key), self.full(key), reason);
    }

    /// A key that is accepted for the sake of existing files and has no effect here: a warning, if it was written.
    pub fn ignored(&self, key: &str, why: &str) {
        if self.has(key) {
            self.warning(key, format!("has no effect: {why}"));
        }
    }

    /// A key that existing files have and that is not needed here, without harm: a note, if it was written.
    pub fn unneeded(&self, key: &str, why: &str) {
        if self.has(key) {
            let reason = format!("is not needed: {why}");
            self.report.note(self.origin(key), self.full(key), reason);
        }
    }

    /// A key for something that we do not have: a problem, if it was written.
    pub fn refused(&self, key: &str, why: &str) {
        if self.has(key) {
            self.problem(key, why);
        }
    }

    /// Remembers an effective value that was decoded by hand.
    pub fn show(&self, key: &str, shown: impl Into<String>) {
        let origin = self.value(key).map(|value| value.origin.clone());
        self.report.setting(self.full(key), shown, origin);
    }

    /// A key's text, without remembering it as a setting: for values that need a form of their own to be shown in.
    pub fn raw_text(&self, key: &str) -> Option<&'a str> {
        let value = self.value(key)?;
        if value.text().is_none() {
            self.problem(
                key,
                format!("is {} but must be a single value", value.noun()),
            );
        }
        value.text()
    }

    /// A text. Numbers and booleans are texts too.
    pub fn text(&self, key: &str) -> Option<String> {
        let text = self.raw_text(key)?.to_owned();
        self.show(key, &text);
        Some(text)
    }

    /// A text, or the default.
    pub fn text_or(&self, key: &str, default: &str) -> String {
        self.text(key)
            .unwrap_or_else(|| self.defaulted(key, default.to_owned()))
    }

    /// A text that is read as a `T`.
    pub fn parsed<T>(&self, key: &str) -> Option<T>
    where
        T: FromStr + fmt::Display,
        T::Err: std::error::Error,
    {
        let text = self.raw_text(key)?;
        match text.parse::<T>() {
            Ok(value) => {
                self.show(key, value.to_string());
                Some(value)
            }
            Err(error) => {
                self.problem(key, chain(&error));
                None
            }
        }
    }

    /// A text that is read as a `T`, or the default.
    pub fn parsed_or<T>(&self, key: &str, default: T) -> T
    where
        T: FromStr + fmt::Display,
        T::Err: std::error::Error,
    {
        self.parsed(key)
            .unwrap_or_else(|| self.defaulted(key, default))
    }

    /// A text that must be there; `remedy` says what to write.
    pub fn required<T>(&self, key: &str, remedy: &str) -> Option<T>
    where
        T: FromStr + fmt::Display,
        T::Err: std::error::Error,
    {
        if !self.has(key) {
            self.problem(key, format!("is missing; {remedy}"));
            return None;
        }
        self.parsed(key)
    }

    /// Whether something is asked for that is not offered: `true` is a problem, `false` or nothing is fine.
    pub fn refused_if_true(&self, key: &str, why: &str) {
        if self.has(key) && self.boolean_or(key, false) {
            self.problem(key, why);
        }
    }

    /// `true` or `false`, also in quotes, as generated files have it.
    pub fn boolean_or(&self, key: &str, default: bool) -> bool {
        let value = self
            .raw_text(key)
            .and_then(|text| match text.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" => Some(true),
                "false" | "no" | "off" => Some(false),
                _ => {
                    self.problem(key, "must be true or false");
                    None
                }
            });
        if let Some(value) = value {
            self.show(key, value.to_string());
        }
        value.unwrap_or_else(|| self.defaulted(key, default))
    }

    /// A whole number within bounds, or the default.
    pub fn integer_or(&self, key: &str, default: u64, bounds: RangeInclusive<u64>) -> u64 {
        self.integer(key, bounds)
            .unwrap_or_else(|| self.defaulted(key, default))
    }

    /// A whole number within bounds.
    pub fn integer(&self, key: &str, bounds: RangeInclusive<u64>) -> Option<u64> {
        let text = self.raw_text(key)?;
        match text.parse::<u64>() {
            Ok(value) if bounds.contains(&value) => {
                self.show(key, value.to_string());
                Some(value)
            }
            _ => {
                self.problem(
                    key,
                    format!(
                        "must be a whole number from {} to {}",
                        bounds.start(),
                        bounds.end()
                    ),
                );
                None
            }
        }
    }

    /// A duration, or the default. A number alone counts `unit`s: `milliseconds` or `seconds`.
    pub fn duration_or(
        &self,
        key: &str,
        unit: &'static str,
        default: Duration,
        bounds: RangeInclusive<Duration>,
    ) -> Duration {
        let decoded = self
            .raw_text(key)
            .and_then(|text| match parse_duration(text, unit) {
                Ok(duration) if bounds.contains(&duration) => Some(duration),
                Ok(_) => {
                    self.problem(
                        key,
                        format!("must be from {:?} to {:?}", bounds.start(), bounds.end()),
                    );
                    None
                }
                Err(error) => {
                    self.problem(key, error.to_string());
                    None
                }
            });
        if let Some(duration) = decoded {
            self.show(key, format!("{duration:?}"));
            return duration;
        }
        self.report
            .setting(self.full(key), format!("{default:?}"), None);
        default
    }

    /// A number of bytes, or the default.
    pub fn bytes_or(&self, key: &str, default: u64, bounds: RangeInclusive<u64>) -> u64 {
        let decoded = self.raw_text(key).and_then(|text| match parse_bytes(text) {
            Ok(bytes) if bounds.contains(&bytes) => Some(bytes),
            Ok(_) => {
                self.problem(
                    key,
                    format!("must be from {} to {} bytes", bounds.start(), bounds.end()),
                );
                None
            }
            Err(error) => {
                self.problem(key, error.to_string());
                None
            }
        });
        if let Some(bytes) = decoded {
            self.show(key, bytes.to_string());
        }
        decoded.unwrap_or_else(|| self.defaulted(key, default))
    }

    /// A secret. It is shown nowhere.
    pub fn secret(&self, key: &str) -> Option<Secret> {
        let secret = Secret::new(self.raw_text(key)?);
        self.show(key, REDACTED);
        Some(secret)
    }

    /// A list of texts. A single text is a list of one.
    pub fn texts(&self, key: &str) -> Vec<String> {
        let found: Vec<String> = self
            .elements(key)
            .map(|(_, text)| text.to_owned())
            .collect();
        self.show_list(key, &found);
        found
    }

    /// A list of texts that are read as `T`s.
    pub fn parsed_list<T>(&self, key: &str) -> Vec<T>
    where
        T: FromStr + fmt::Display,
        T::Err: std::error::Error,
    {
        let mut found = Vec::new();
        for (value, text) in self.elements(key) {
            match text.parse::<T>() {
                Ok(parsed) => found.push(parsed),
                Err(error) => {
                    self.report
                        .problem(Some(value.origin.clone()), self.full(key), chain(&error))
                }
            }
        }
        self.show_list(key, &found);
        found
    }

    /// The section below a key, or an absent one.
    pub fn section(&self, key: &str) -> Section<'a> {
        Section::at(self.report, self.full(key), self.value(key))
    }

    /// The sections in a list.
    pub fn sections(&self, key: &str) -> Vec<Section<'a>> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let Kind::Array(items) = &value.kind else {
            self.problem(
                key,
                format!("is {} but must be a list `[ {{ … }}, … ]`", value.noun()),
            );
            return Vec::new();
        };
        let path = self.full(key);
        let numbered =
            |(index, item)| Section::at(self.report, format!("{path}[{index}]"), Some(item));
        items.iter().enumerate().map(numbered).collect()
    }

    /// Ends decoding of this section: from here on, keys that nobody asked for are unknown. Dropping does the same, so
    /// that no section is forgotten; so a section is kept until all its keys have been asked for.
    pub fn finish(self) {}

    fn elements(&self, key: &str) -> impl Iterator<Item = (&'a Value, &'a str)> + '_ {
        let values: &'a [Value] = match self.value(key) {
            None => &[],
            Some(Value {
                kind: Kind::Array(items),
                ..
            }) => items,
            Some(single) => std::slice::from_ref(single),
        };
        let key = key.to_owned();
        values.iter().filter_map(move |value| {
            let text = value.text();
            if text.is_none() {
                let reason = format!("holds {} where a single value is expected", value.noun());
                self.report
                    .problem(Some(value.origin.clone()), self.full(&key), reason);
            }
            text.map(|text| (value, text))
        })
    }

    fn show_list<T: fmt::Display>(&self, key: &str, list: &[T]) {
        let shown: Vec<String> = list.iter().map(ToString::to_string).collect();
        self.show(key, format!("[{}]", shown.join(", ")));
    }

    fn defaulted<T: fmt::Display>(&self, key: &str, default: T) -> T {
        self.report
            .setting(self.full(key), default.to_string(), None);
        default
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        let Some(members) = self.members else { return };
        let known = self.known.borrow();
        for (key, value) in members {
            let from_environment = value.origin.environment_variable().is_some();
            let asked_for = known.contains(key)
                || from_environment && known.iter().any(|known| known.eq_ignore_ascii_case(key));
            if asked_for {
                continue;
            }
            let origin = Some(value.origin.clone());
            let reason = advice(key, known.iter().map(String::as_str));
            match self.report.unknown {
                OnUnknownKeys::Fail if !from_environment => {
                    self.report.problem(origin, self.full(key), reason);
                }
                OnUnknownKeys::Ignore => {}
                _ => self.report.warning(origin, self.full(key), reason),
            }
        }
    }
}

impl fmt::Debug for Section<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Section")
            .field("path", &self.path)
            .field("present", &self.is_present())
            .finish()
    }
}
