//! What differs between two configurations, for people: only that, where it stands, and what it was before.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::text;
use crate::proto::common::Config;

/// What differs between two configurations of a channel, as an indented tree. `+` is before what comes, `-` before what
/// goes, and `before -> after` shows what changes. Versions are left out: they follow from the rest. Empty if nothing
/// differs.
#[must_use]
pub fn config_difference(before: &Config, after: &Config) -> String {
    let mut out = Tree::default();
    let root = |config: &Config| super::config(config)["channel_group"].clone();
    out.group(0, &root(before), &root(after));
    out.text
}

#[derive(Default)]
struct Tree {
    text: String,
}

impl Tree {
    fn line(&mut self, depth: usize, text: &str) {
        let indent = 2 * depth;
        writeln!(self.text, "{:indent$}{text}", "").expect("a string takes everything");
    }

    /// A heading, if there is anything below it.
    fn section(&mut self, depth: usize, heading: &str, below: impl FnOnce(&mut Self, usize)) {
        let mut inner = Self::default();
        below(&mut inner, depth + 1);
        if !inner.text.is_empty() {
            self.line(depth, heading);
            self.text.push_str(&inner.text);
        }
    }

    /// The parts of a configuration group, without the words between a group and its parts.
    fn group(&mut self, depth: usize, before: &Value, after: &Value) {
        self.changed(
            depth,
            "mod_policy",
            &before["mod_policy"],
            &after["mod_policy"],
        );
        for kind in ["values", "policies"] {
            for (name, before, after) in pairs(&before[kind], &after[kind]) {
                let content = |entry: &Value| entry[leaf(kind)].clone();
                let mod_policy = |entry: &Value| entry["mod_policy"].clone();
                match (before, after) {
                    (Some(before), Some(after)) => self.section(depth, name, |out, depth| {
                        out.changed(depth, "mod_policy", &mod_policy(before), &mod_policy(after));
                        out.value(depth, &content(before), &content(after));
                    }),
                    (None, Some(after)) => self.whole(depth, '+', name, &content(after)),
                    (Some(before), None) => self.whole(depth, '-', name, &content(before)),
                    (None, None) => {}
                }
            }
        }
        for (name, before, after) in pairs(&before["groups"], &after["groups"]) {
            match (before, after) {
                (Some(before), Some(after)) => {
                    self.section(depth, name, |out, depth| out.group(depth, before, after));
                }
                (None, Some(after)) => self.whole_group(depth, '+', name, after),
                (Some(before), None) => self.whole_group(depth, '-', name, before),
                (None, None) => {}
            }
        }
    }

    fn value(&mut self, depth: usize, before: &Value, after: &Value) {
        if before == after {
            return;
        }
        if let (Some(before), Some(after)) = (text::policy(before), text::policy(after)) {
            return self.line(depth, &format!("{before} -> {after}"));
        }
        match (before, after) {
            (Value::Object(_), Value::Object(_)) => {
                for (name, before, after) in pairs(before, after) {
                    match (before, after) {
                        (Some(before), Some(after)) if is_leaf(before) || is_leaf(after) => {
                            self.changed(depth, name, before, after);
                        }
                        (Some(before), Some(after)) => {
                            self.section(depth, name, |out, depth| out.value(depth, before, after));
                        }
                        (None, Some(after)) => self.whole(depth, '+', name, after),
                        (Some(before), None) => self.whole(depth, '-', name, before),
                        (None, None) => {}
                    }
                }
            }
            (Value::Array(before), Value::Array(after)) => self.list(depth, before, after),
            _ => self.line(
                depth,
                &format!("{} -> {}", text::inline(before), text::inline(after)),
            ),
        }
    }

    /// Elements that are in one list only. When as many go as come, they are shown beside each other.
    fn list(&mut self, depth: usize, before: &[Value], after: &[Value]) {
        let only = |one: &[Value], other: &[Value]| -> Vec<Value> {
            let mut left = other.to_vec();
            let mut only = Vec::new();
            for element in one {
                match left.iter().position(|found| found == element) {
                    Some(at) => drop(left.remove(at)),
                    None => only.push(element.clone()),
                }
            }
            only
        };
        let (gone, come) = (only(before, after), only(after, before));
        if gone.is_empty() && come.is_empty() {
            return self.line(depth, "another order");
        }
        for element in &gone {
            self.line(depth, &format!("- {}", flat(element)));
        }
        for element in &come {
            self.line(depth, &format!("+ {}", flat(element)));
        }
    }

    fn changed(&mut self, depth: usize, name: &str, before: &Value, after: &Value) {
        if before != after {
            let (before, after) = (text::inline(before), text::inline(after));
            self.line(depth, &format!("{name}: {before} -> {after}"));
        }
    }

    fn whole(&mut self, depth: usize, sign: char, name: &str, value: &Value) {
        match flat(value) {
            nothing if nothing.is_empty() => self.line(depth, &format!("{sign} {name}")),
            shown => self.line(depth, &format!("{sign} {name}: {shown}")),
        }
    }

    fn whole_group(&mut self, depth: usize, sign: char, name: &str, group: &Value) {
        self.line(depth, &format!("{sign} {name}"));
        for kind in ["values", "policies"] {
            for (name, entry) in members(&group[kind]) {
                self.whole(depth + 1, sign, name, &entry[leaf(kind)]);
            }
        }
        for (name, inner) in members(&group["groups"]) {
            self.whole_group(depth + 1, sign, name, inner);
        }
    }
}

/// Where an entry's content stands.
fn leaf(kind: &str) -> &'static str {
    if kind == "values" { "value" } else { "policy" }
}

fn is_leaf(value: &Value) -> bool {
    !matches!(value, Value::Object(_) | Value::Array(_))
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// The members of two objects by name; the names sorted.
fn pairs<'a>(
    before: &'a Value,
    after: &'a Value,
) -> Vec<(&'a String, Option<&'a Value>, Option<&'a Value>)> {
    let names: BTreeSet<&String> = members(before)
        .chain(members(after))
        .map(|(name, _)| name)
        .collect();
    names
        .into_iter()
        .map(|name| (name, before.get(name), after.get(name)))
        .collect()
}

/// A value on one line; what is absent or empty is left out.
fn flat(value: &Value) -> String {
    if let Some(policy) = text::policy(value) {
        return policy;
    }
    match value {
        Value::Null => String::new(),
        Value::Object(members) => {
            if let (Some(host), Some(port)) = (members.get("host"), members.get("port")) {
                return address(members, host, port);
            }
            let shown: Vec<String> = members
                .iter()
                .filter_map(|(name, member)| match flat(member) {
                    // A capability is nothing but its name.
                    nothing if nothing.is_empty() => member.as_object().map(|_| name.clone()),
                    shown => Some(format!("{name} {shown}")),
                })
                .collect();
            shown.join(", ")
        }
        Value::Array(elements) => {
            let shown: Vec<String> = elements.iter().map(flat).collect();
            shown.join(", ")
        }
        scalar => text::inline(scalar),
    }
}

/// A consenter or an anchor peer: its address, and its certificates if it has any.
fn address(members: &Map<String, Value>, host: &Value, port: &Value) -> String {
    let mut shown = format!("{}:{port}", text::inline(host));
    let certificates = ["client_tls_cert", "server_tls_cert"].map(|name| members.get(name));
    let [Some(client), Some(server)] = certificates else {
        return shown;
    };
    // Two certificates may have one subject: only the number tells a rotated one from the old.
    shown.push_str(&format!(", {}", numbered(server)));
    if client != server {
        shown.push_str(&format!(", as client {}", numbered(client)));
    }
    shown
}

fn numbered(certificate: &Value) -> String {
    let shown = text::inline(certificate);
    match text::serial(certificate) {
        Some(number) => format!("{shown}, serial number {number}"),
        None => shown,
    }
}
