//! Overrides from the environment, in the spellings that Corda has and that container platforms allow.

use std::collections::BTreeMap;

use super::Report;
use super::nearest::nearest;
use crate::hocon::{Environment, Kind, MAX_DEPTH, Object, Origin, Value, parse_str};

/// What a variable's name must begin with, in whatever case, before `_` or `.`.
const PREFIXES: [&str; 2] = ["corda", "quorate"];

/// The most parts that a quoted key with dots is taken apart into.
const MAX_PARTS: usize = 8;

/// Lays environment variables over a configuration: `corda_rpcSettings_address`, `CORDA_RPCSETTINGS_ADDRESS`,
/// `corda.rpcSettings.address` and `QUORATE_rpcSettings_address` all set `rpcSettings.address`. The case of letters is
/// only a suggestion, because platforms like to change it. A value that begins with `[` or `{` is read as HOCON.
/// Elements of lists are reached by number: `corda_rpcUsers_0_password`.
///
/// Variables in `reserved` (compared in any case) belong to someone else. A variable that meets no known key becomes a
/// warning, not a problem: a platform that runs a service called `corda` sets `CORDA_PORT` by itself.
pub fn apply_environment(
    root: &mut Value,
    environment: &Environment,
    reserved: &[&str],
    report: &Report,
) {
    let mut set: BTreeMap<String, (&str, &str)> = BTreeMap::new();
    for (name, text) in environment.iter() {
        if reserved
            .iter()
            .any(|reserved| reserved.eq_ignore_ascii_case(name))
        {
            continue;
        }
        let Some(keys) = keys(name) else { continue };
        let origin = Origin::environment(name);
        let canonical = keys.join(".").to_ascii_lowercase();
        if let Some((other, _)) = set.get(&canonical).filter(|(_, before)| *before != text) {
            report.problem(
                Some(origin),
                keys.join("."),
                format!("is also set by `{other}`, differently; unset one of them"),
            );
            continue;
        }
        set.insert(canonical, (name, text));
        let value = if text.trim_start().starts_with(['[', '{']) {
            match parse_str(&format!("value = {text}"), name, &Environment::empty()) {
                Ok(Value {
                    kind: Kind::Object(mut members),
                    ..
                }) if members.len() == 1 => members
                    .remove("value")
                    .map(|value| relocated(value, &origin)),
                _ => None,
            }
        } else {
            Some(Value {
                origin: origin.clone(),
                kind: Kind::String(text.to_owned()),
            })
        };
        match value {
            Some(value) => put(root, &keys, value, &origin, report),
            None => report.problem(
                Some(origin),
                keys.join("."),
                "begins like a list or an object in HOCON, but is not a complete one; correct or quote it",
            ),
        }
    }
}

/// The keys that a variable's name stands for.
fn keys(name: &str) -> Option<Vec<&str>> {
    let (prefix, rest) = name.split_once(['_', '.'])?;
    if !PREFIXES
        .iter()
        .any(|known| known.eq_ignore_ascii_case(prefix))
    {
        return None;
    }
    let separator = if name.as_bytes().get(prefix.len()) == Some(&b'.') {
        '.'
    } else {
        '_'
    };
    let keys: Vec<&str> = rest.split(separator).collect();
    (keys.len() <= MAX_DEPTH && keys.iter().all(|key| !key.is_empty())).then_some(keys)
}

fn put(at: &mut Value, keys: &[&str], value: Value, origin: &Origin, report: &Report) {
    let Some((key, rest)) = keys.split_first() else {
        *at = value;
        return;
    };
    match &mut at.kind {
        Kind::Object(members) => {
            let existing = if members.contains_key(*key) {
                (*key).to_owned()
            } else {
                let same = members.keys().find(|known| known.eq_ignore_ascii_case(key));
                same.cloned().unwrap_or_else(|| (*key).to_owned())
            };
            let member = members.entry(existing).or_insert_with(|| Value {
                origin: origin.clone(),
                kind: if rest.is_empty() {
                    Kind::Null
                } else {
                    Kind::Object(Object::new())
                },
            });
            put(member, rest, value, origin, report);
        }
        Kind::Array(items) => {
            let count = items.len();
            match key.parse::<usize>().ok().and_then(|index| items.get_mut(index)) {
                Some(item) => put(item, rest, value, origin, report),
                None => report.problem(
                    Some(origin.clone()),
                    *key,
                    format!("is not the number of an element: the list at {} has {count}, counted from 0", at.origin),
                ),
            }
        }
        // A platform's own variables (`CORDA_PORT`, `CORDA_PORT_10002_TCP`) do not fit together, and need not.
        _ if at.origin.environment_variable().is_some() => {
            report.warning(
                Some(origin.clone()),
                *key,
                "is ignored: a variable with a shorter name sets a plain value",
            );
        }
        _ => report.problem(
            Some(origin.clone()),
            *key,
            format!(
                "lies below a plain value, written at {}; remove one of them",
                at.origin
            ),
        ),
    }
}

/// The value with everything in it coming from `origin`.
fn relocated(value: Value, origin: &Origin) -> Value {
    let kind = match value.kind {
        Kind::Array(items) => Kind::Array(
            items
                .into_iter()
                .map(|item| relocated(item, origin))
                .collect(),
        ),
        Kind::Object(members) => Kind::Object(
            members
                .into_iter()
                .map(|(key, value)| (key, relocated(value, origin)))
                .collect(),
        ),
        plain => plain,
    };
    Value {
        origin: origin.clone(),
        kind,
    }
}

/// Reads quoted keys with dots (`"dataSource.url" = …`), as generated files have them, as if they were not quoted.
pub fn expand_dotted_keys(value: Value) -> Value {
    let Value { origin, kind } = value;
    let kind = match kind {
        Kind::Array(items) => Kind::Array(items.into_iter().map(expand_dotted_keys).collect()),
        Kind::Object(members) => {
            let mut whole = Value {
                origin: origin.clone(),
                kind: Kind::Object(Object::new()),
            };
            for (key, value) in members {
                let value = expand_dotted_keys(value);
                let mut parts: Vec<&str> = key.split('.').collect();
                if parts.len() > MAX_PARTS || parts.iter().any(|part| part.is_empty()) {
                    parts = vec![&key];
                }
                let mut nested = value;
                for part in parts.into_iter().rev() {
                    let origin = nested.origin.clone();
                    nested = Value {
                        origin,
                        kind: Kind::Object(Object::from([(part.to_owned(), nested)])),
                    };
                }
                whole = whole.overlaid_with(nested);
            }
            whole.kind
        }
        plain => plain,
    };
    Value { origin, kind }
}

/// The remedy for a key that nobody asked for.
pub(super) fn advice<'a>(key: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    /// Up to this many known keys are listed when none is near.
    const LISTED: usize = 12;
    if let Some(meant) = nearest(key, known.clone()) {
        return format!("is not a known key; did you mean `{meant}`?");
    }
    let known: Vec<&str> = known.collect();
    match known.len() {
        1..=LISTED => format!(
            "is not a known key; known here are {}; remove it or correct its place",
            known.join(", ")
        ),
        _ => "is not a known key; remove it, or check its place and spelling".to_owned(),
    }
}
