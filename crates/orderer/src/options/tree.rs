//! The tree of a configuration file with the environment laid over it, and how it is asked.
//!
//! Whoever asks a [`Section`] for a key makes the key known by asking. So the list of known keys, against which typing
//! mistakes are found, cannot differ from what is really read.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_runtime::config::nearest;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::{Remark, value};

/// The prefix of all variables.
const VARIABLE_PREFIX: &str = "ORDERER";

/// A value of the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Null,
    /// A scalar, as text: Fabric's reader converts freely between texts, numbers and booleans.
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Node {
    fn kind(&self) -> &'static str {
        match self {
            Node::Null => "nothing",
            Node::Text(_) => "a plain value",
            Node::List(_) => "a list",
            Node::Map(_) => "a section",
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyNode;
        impl<'de> Visitor<'de> for AnyNode {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value, a list or a section")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
                Ok(Node::Text(value.to_string()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
                Ok(Node::Text(value.to_string()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
                Ok(Node::Text(value.to_string()))
            }

            fn visit_i128<E>(self, value: i128) -> Result<Node, E> {
                Ok(Node::Text(value.to_string()))
            }

            fn visit_u128<E>(self, value: u128) -> Result<Node, E> {
                Ok(Node::Text(value.to_string()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
                Ok(Node::Text(value.to_string()))
            }

            fn visit_str<E>(self, value: &str) -> Result<Node, E> {
                Ok(Node::Text(value.to_owned()))
            }

            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Null)
            }

            fn visit_none<E>(self) -> Result<Node, E> {
                Ok(Node::Null)
            }

            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
                Node::deserialize(deserializer)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
                let mut elements = Vec::new();
                while let Some(element) = access.next_element()? {
                    elements.push(element);
                }
                Ok(Node::List(elements))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
                let mut members = Vec::new();
                while let Some((key, member)) = access.next_entry::<Node, Node>()? {
                    let key = match key {
                        Node::Text(text) => text,
                        other => {
                            return Err(serde::de::Error::custom(format!(
                                "a key is {}, but must be a plain name",
                                other.kind()
                            )));
                        }
                    };
                    members.push((key, member));
                }
                Ok(Node::Map(members))
            }
        }
        deserializer.deserialize_any(AnyNode)
    }
}

/// What came up while a tree was read.
pub(super) struct Report<'a> {
    environment: &'a BTreeMap<String, String>,
    directory: &'a Path,
    problems: RefCell<Vec<String>>,
    remarks: RefCell<Vec<Remark>>,
    variables: RefCell<BTreeSet<String>>,
}

impl<'a> Report<'a> {
    pub(super) fn new(directory: &'a Path, environment: &'a BTreeMap<String, String>) -> Self {
        Self {
            environment,
            directory,
            problems: RefCell::default(),
            remarks: RefCell::default(),
            variables: RefCell::default(),
        }
    }

    /// The directory of the file, to which relative paths are joined.
    pub(super) fn directory(&self) -> &Path {
        self.directory
    }

    pub(super) fn problem(&self, text: impl Into<String>) {
        self.problems.borrow_mut().push(text.into());
    }

    pub(super) fn info(&self, text: impl Into<String>) {
        self.remarks.borrow_mut().push(Remark::Info(text.into()));
    }

    pub(super) fn warn(&self, text: impl Into<String>) {
        self.remarks.borrow_mut().push(Remark::Warning(text.into()));
    }

    /// Warns of variables that begin like ours and set nothing. Only those that name one of `sections`: a platform that
    /// runs a service called `orderer` sets `ORDERER_PORT` and others by itself.
    pub(super) fn warn_of_unused_variables(&self, sections: &[&str]) {
        let known = self.variables.borrow();
        for name in self.environment.keys() {
            let ours = sections.iter().any(|section| {
                name.starts_with(&format!("{VARIABLE_PREFIX}_{}_", section.to_uppercase()))
            });
            if ours && !known.contains(name) {
                let meant = nearest(name, known.iter().map(String::as_str))
                    .map(|meant| format!("; did you mean {meant}?"))
                    .unwrap_or_default();
                self.warn(format!(
                    "the environment variable {name} is ignored: it sets no known key{meant}"
                ));
            }
        }
    }

    pub(super) fn finish(self) -> Result<Vec<Remark>, Vec<String>> {
        let problems = self.problems.into_inner();
        if problems.is_empty() {
            Ok(self.remarks.into_inner())
        } else {
            Err(problems)
        }
    }
}

/// One section of the file, and the variables that override it.
pub(super) struct Section<'a> {
    report: &'a Report<'a>,
    path: String,
    members: Vec<(String, Node)>,
    known: RefCell<Vec<&'static str>>,
}

impl<'a> Section<'a> {
    /// The section `node`; `path` is empty for the whole file.
    pub(super) fn new(report: &'a Report<'a>, path: String, node: Node) -> Self {
        let members = match node {
            Node::Map(members) => members,
            Node::Null => Vec::new(),
            // An empty text where a section belongs: Go's encoders write that for nothing.
            Node::Text(text) if text.is_empty() => Vec::new(),
            other => {
                report.problem(format!(
                    "'{path}' must be a section with keys, but is {}",
                    other.kind()
                ));
                Vec::new()
            }
        };
        Self {
            report,
            path,
            members,
            known: RefCell::default(),
        }
    }

    /// The name of `key` with all sections around it.
    pub(super) fn name(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    fn member(&self, key: &'static str) -> Option<&Node> {
        self.known.borrow_mut().push(key);
        self.members
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(key))
            .map(|(_, node)| node)
    }

    /// A section within this one; empty when the file has none.
    pub(super) fn section(&self, key: &'static str) -> Section<'a> {
        let node = self.member(key).cloned().unwrap_or(Node::Null);
        Section::new(self.report, self.name(key), node)
    }

    /// Makes `key` known and tells whether the file has it with any content.
    pub(super) fn has(&self, key: &'static str) -> bool {
        !matches!(self.member(key), None | Some(Node::Null))
    }

    /// The override from the environment. An empty variable does not count, as in Fabric.
    fn variable(&self, key: &str) -> Option<&'a str> {
        let name = format!(
            "{VARIABLE_PREFIX}_{}",
            self.name(key).replace('.', "_").to_uppercase()
        );
        let found = self.report.environment.get(&name).map(String::as_str);
        self.report.variables.borrow_mut().insert(name);
        found.filter(|value| !value.is_empty())
    }

    /// A text; empty when not set.
    pub(super) fn text(&self, key: &'static str) -> String {
        let node = self.member(key);
        if let Some(text) = self.variable(key) {
            return text.to_owned();
        }
        match node {
            None | Some(Node::Null) => String::new(),
            Some(Node::Text(text)) => text.clone(),
            Some(other) => {
                self.refuse(
                    key,
                    &format!("must be a plain value, but is {}", other.kind()),
                );
                String::new()
            }
        }
    }

    /// A text, or `default` when it is not set.
    pub(super) fn text_or(&self, key: &'static str, default: &str) -> String {
        let text = self.text(key);
        if text.is_empty() {
            default.to_owned()
        } else {
            text
        }
    }

    /// A text, or `default` with Fabric's remark about it.
    pub(super) fn text_or_remark(&self, key: &'static str, default: &str) -> String {
        let text = self.text(key);
        if text.is_empty() {
            self.unset(key, &default);
            return default.to_owned();
        }
        text
    }

    /// A path, made absolute; `None` when not set.
    pub(super) fn path(&self, key: &'static str) -> Option<PathBuf> {
        let text = self.text(key);
        (!text.is_empty()).then(|| self.report.directory.join(text))
    }

    /// A list of paths, made absolute.
    pub(super) fn paths(&self, key: &'static str) -> Vec<PathBuf> {
        let node = self.member(key);
        let elements = match (self.variable(key), node) {
            (Some(text), _) => value::list(text),
            (None, Some(Node::Text(text))) => value::list(text),
            (None, None | Some(Node::Null)) => Vec::new(),
            (None, Some(Node::List(elements))) => elements
                .iter()
                .filter_map(|element| match element {
                    Node::Text(text) => Some(text.clone()),
                    Node::Null => None,
                    other => {
                        self.refuse(
                            key,
                            &format!(
                                "must be a list of file names, but contains {}",
                                other.kind()
                            ),
                        );
                        None
                    }
                })
                .collect(),
            (None, Some(other)) => {
                self.refuse(
                    key,
                    &format!("must be a list of file names, but is {}", other.kind()),
                );
                Vec::new()
            }
        };
        elements
            .into_iter()
            .filter(|element| !element.is_empty())
            .map(|element| self.report.directory.join(element))
            .collect()
    }

    /// A boolean, false when not set.
    pub(super) fn boolean(&self, key: &'static str) -> bool {
        let text = self.text(key);
        self.read(key, &text, value::boolean(&text))
            .unwrap_or_default()
    }

    /// A number up to `max`, 0 when not set.
    pub(super) fn number(&self, key: &'static str, max: u64) -> u64 {
        let text = self.text(key);
        self.read(key, &text, value::number(&text, max))
            .unwrap_or_default()
    }

    /// A number of bytes up to `max`, `default` when not set or zero.
    pub(super) fn size_or(&self, key: &'static str, max: u64, default: u64) -> u64 {
        let text = self.text(key);
        match self.read(key, &text, value::size(&text, max)) {
            None | Some(0) => default,
            Some(size) => size,
        }
    }

    /// A duration, zero when not set.
    pub(super) fn duration(&self, key: &'static str) -> Duration {
        let text = self.text(key);
        if text.is_empty() {
            return Duration::ZERO;
        }
        let Some((duration, bare)) = self.read(key, &text, value::duration(&text)) else {
            return Duration::ZERO;
        };
        if bare {
            self.report.warn(format!(
                "{} is {text} without a unit, which means nanoseconds; write for example {text}s",
                self.name(key)
            ));
        }
        duration
    }

    /// A duration, or `default` when it is not set or zero.
    pub(super) fn duration_or(&self, key: &'static str, default: Duration) -> Duration {
        let duration = self.duration(key);
        if duration.is_zero() {
            default
        } else {
            duration
        }
    }

    /// One of some words, compared in any case; the first one when not set.
    pub(super) fn word<T: Copy>(&self, key: &'static str, words: &[(&str, T)]) -> T {
        let text = self.text(key);
        let found = words
            .iter()
            .find(|(word, _)| word.eq_ignore_ascii_case(&text));
        if let Some((_, meaning)) = found {
            return *meaning;
        }
        if !text.is_empty() {
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.refuse(
                key,
                &format!(
                    "is `{}`, but must be one of {}",
                    text.escape_debug(),
                    known.join(", ")
                ),
            );
        }
        words[0].1
    }

    /// Fabric's remark about a default.
    pub(super) fn unset(&self, key: &str, default: &dyn fmt::Display) {
        self.report
            .info(format!("{} unset, setting to {default}", self.name(key)));
    }

    /// Says that the value of `key` cannot be used.
    pub(super) fn refuse(&self, key: &str, reason: &str) {
        self.report
            .problem(format!("'{}' {reason}", self.name(key)));
    }

    fn read<T>(&self, key: &str, text: &str, value: Result<T, value::ValueError>) -> Option<T> {
        value
            .map_err(|error| {
                self.refuse(key, &format!("is `{}`, which {error}", text.escape_debug()));
            })
            .ok()
    }

    /// Refuses the keys that nobody asked for, in Fabric's words.
    pub(super) fn end(self) {
        let strangers = self.strangers();
        if !strangers.is_empty() {
            let names: Vec<&str> = strangers.iter().map(|(name, _)| name.as_str()).collect();
            let hints: Vec<&str> = strangers.iter().map(|(_, hint)| hint.as_str()).collect();
            self.report.problem(format!(
                "'{}' has invalid keys: {}{}",
                self.path,
                names.join(", "),
                hints.concat()
            ));
        }
    }

    /// As [`Section::end`], where Fabric itself is lenient: the keys are only warned of.
    pub(super) fn end_leniently(self) {
        for (name, hint) in self.strangers() {
            self.report.warn(format!(
                "{} is not a known key and is ignored{hint}",
                self.name(&name)
            ));
        }
    }

    /// Keys that nobody asked for, and keys written twice in different cases, each with a hint.
    fn strangers(&self) -> Vec<(String, String)> {
        let known = self.known.borrow();
        let mut seen: Vec<&str> = Vec::new();
        let mut strangers = BTreeMap::new();
        for (key, _) in &self.members {
            match known.iter().find(|known| known.eq_ignore_ascii_case(key)) {
                Some(known) if seen.contains(known) => {
                    strangers.insert(key.clone(), format!(" ({known} is given twice)"));
                }
                Some(known) => seen.push(known),
                None => {
                    let hint = nearest(key, known.iter().copied())
                        .map(|meant| format!(" (did you mean {meant}?)"))
                        .unwrap_or_default();
                    strangers.insert(key.clone(), hint);
                }
            }
        }
        strangers.into_iter().collect()
    }
}
