//! The tree that a configuration becomes.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Where a value was written.
#[derive(Clone, PartialEq, Eq)]
pub struct Origin {
    /// The file, or `environment variable NAME`.
    pub source: Arc<str>,
    /// Line, from 1; 0 when the source has no lines.
    pub line: u32,
    /// Column in characters, from 1; 0 when the source has no lines.
    pub column: u32,
}

impl Origin {
    /// A source as a whole.
    pub fn file(source: Arc<str>) -> Self {
        Self {
            source,
            line: 0,
            column: 0,
        }
    }

    /// The environment variable `name`.
    pub fn environment(name: &str) -> Self {
        Self {
            source: Arc::from(format!("{ENVIRONMENT}{name}")),
            line: 0,
            column: 0,
        }
    }

    /// The variable's name, if this is the origin of a value that came from the environment.
    pub fn environment_variable(&self) -> Option<&str> {
        if self.line == 0 {
            self.source.strip_prefix(ENVIRONMENT)
        } else {
            None
        }
    }
}

const ENVIRONMENT: &str = "environment variable ";

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            return f.write_str(&self.source);
        }
        write!(f, "{}:{}:{}", self.source, self.line, self.column)
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The members of an object, by key.
pub type Object = BTreeMap<String, Value>;

/// What a value is.
#[derive(Clone, PartialEq, Eq)]
pub enum Kind {
    /// `null`: as good as absent.
    Null,
    /// `true` or `false`, unquoted.
    Boolean(bool),
    /// A number, as written.
    Number(String),
    /// Any other text.
    String(String),
    /// `[…]`
    Array(Vec<Value>),
    /// `{…}`
    Object(Object),
}

/// A value and where it was written. `Debug` does not show contents, which may be secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct Value {
    /// Where it was written.
    pub origin: Origin,
    /// What it is.
    pub kind: Kind,
}

impl Value {
    /// The text of a string, number, boolean or null, as written.
    pub fn text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Null => Some("null"),
            Kind::Boolean(true) => Some("true"),
            Kind::Boolean(false) => Some("false"),
            Kind::Number(text) | Kind::String(text) => Some(text),
            Kind::Array(_) | Kind::Object(_) => None,
        }
    }

    /// The members, if this is an object.
    pub fn as_object(&self) -> Option<&Object> {
        match &self.kind {
            Kind::Object(object) => Some(object),
            _ => None,
        }
    }

    /// What this is, for messages: `a string`, `an object` …
    pub fn noun(&self) -> &'static str {
        match self.kind {
            Kind::Null => "null",
            Kind::Boolean(_) => "a boolean",
            Kind::Number(_) => "a number",
            Kind::String(_) => "a string",
            Kind::Array(_) => "a list",
            Kind::Object(_) => "an object",
        }
    }

    /// The same tree as JSON, secrets and all.
    pub fn to_json(&self) -> serde_json::Value {
        match &self.kind {
            Kind::Null => serde_json::Value::Null,
            Kind::Boolean(value) => (*value).into(),
            Kind::Number(text) => serde_json::from_str::<serde_json::Number>(text)
                .map_or_else(|_| text.clone().into(), serde_json::Value::Number),
            Kind::String(text) => text.clone().into(),
            Kind::Array(items) => items.iter().map(Value::to_json).collect(),
            Kind::Object(members) => serde_json::Value::Object(
                members
                    .iter()
                    .map(|(key, value)| (key.clone(), value.to_json()))
                    .collect(),
            ),
        }
    }

    /// `other` laid over this: objects are merged member by member, anything else replaces.
    pub(crate) fn overlaid_with(self, other: Value) -> Value {
        match (self.kind, other.kind) {
            (Kind::Object(mut below), Kind::Object(above)) => {
                for (key, value) in above {
                    let merged = match below.remove(&key) {
                        Some(old) => old.overlaid_with(value),
                        None => value,
                    };
                    below.insert(key, merged);
                }
                Value {
                    origin: self.origin,
                    kind: Kind::Object(below),
                }
            }
            (_, kind) => Value {
                origin: other.origin,
                kind,
            },
        }
    }

    /// Values and characters in here: what it costs to copy.
    pub(super) fn weight(&self) -> usize {
        1 + match &self.kind {
            Kind::Null | Kind::Boolean(_) => 0,
            Kind::Number(text) | Kind::String(text) => text.len(),
            Kind::Array(items) => items.iter().map(Value::weight).sum(),
            Kind::Object(members) => members
                .iter()
                .map(|(key, value)| key.len() + value.weight())
                .sum(),
        }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.noun(), self.origin)
    }
}
