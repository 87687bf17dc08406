//! A configuration tree as one sorted map from path to element, which is how Fabric compares configurations and what
//! its refusals name: `[Value]  /Channel/Orderer/BatchSize`.

use std::collections::BTreeMap;

use super::{ConfigError, ROOT_GROUP};
use crate::proto::common::{ConfigGroup, ConfigPolicy, ConfigValue};

/// The longest name of a group, value or policy, in bytes.
const MAX_NAME_LENGTH: usize = 249;

/// One group, value or policy of a configuration.
#[derive(Debug, Clone, Copy)]
pub(super) enum Element<'a> {
    Group(&'a ConfigGroup),
    Value(&'a ConfigValue),
    Policy(&'a ConfigPolicy),
}

impl<'a> Element<'a> {
    pub(super) fn version(self) -> u64 {
        match self {
            Self::Group(group) => group.version,
            Self::Value(value) => value.version,
            Self::Policy(policy) => policy.version,
        }
    }

    pub(super) fn mod_policy(self) -> &'a str {
        match self {
            Self::Group(group) => &group.mod_policy,
            Self::Value(value) => &value.mod_policy,
            Self::Policy(policy) => &policy.mod_policy,
        }
    }

    /// Two spaces where the word is shorter than `Policy`: the paths stand below each other in Fabric's logs.
    fn prefix(self) -> &'static str {
        match self {
            Self::Group(_) => GROUP,
            Self::Value(_) => VALUE,
            Self::Policy(_) => POLICY,
        }
    }
}

const GROUP: &str = "[Group]  ";
const VALUE: &str = "[Value]  ";
const POLICY: &str = "[Policy] ";

/// An element and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Entry<'a> {
    pub(super) element: Element<'a>,
    /// The groups around it, the outermost first; empty for the channel group itself.
    pub(super) path: Vec<&'a str>,
    pub(super) name: &'a str,
}

/// All elements of a configuration.
pub(super) type Elements<'a> = BTreeMap<String, Entry<'a>>;

/// The elements of a tree whose root is the channel group; none if there is no tree.
pub(super) fn elements(group: Option<&ConfigGroup>) -> Result<Elements<'_>, ConfigError> {
    let mut elements = Elements::new();
    if let Some(group) = group {
        collect(&mut elements, &[], ROOT_GROUP, group)?;
    }
    Ok(elements)
}

fn collect<'a>(
    elements: &mut Elements<'a>,
    path: &[&'a str],
    name: &'a str,
    group: &'a ConfigGroup,
) -> Result<(), ConfigError> {
    add(elements, path, name, Element::Group(group))?;
    let path = [path, &[name]].concat();
    for (name, group) in &group.groups {
        collect(elements, &path, name, group)?;
    }
    for (name, value) in &group.values {
        add(elements, &path, name, Element::Value(value))?;
    }
    for (name, policy) in &group.policies {
        add(elements, &path, name, Element::Policy(policy))?;
    }
    Ok(())
}

fn add<'a>(
    elements: &mut Elements<'a>,
    path: &[&'a str],
    name: &'a str,
    element: Element<'a>,
) -> Result<(), ConfigError> {
    check_name(name).map_err(|error| {
        error.within(format_args!(
            "illegal characters in key: {}",
            element.prefix()
        ))
    })?;
    let mut key = element.prefix().to_owned();
    for part in path.iter().chain([&name]) {
        key.push('/');
        key.push_str(part);
    }
    elements.insert(
        key,
        Entry {
            element,
            path: path.to_vec(),
            name,
        },
    );
    Ok(())
}

/// Checks the name of a group, value or policy.
pub(super) fn check_name(name: &str) -> Result<(), ConfigError> {
    let refusal = match name {
        "" => "config ID illegal, cannot be empty".to_owned(),
        _ if name.len() > MAX_NAME_LENGTH => {
            format!("config ID illegal, cannot be longer than {MAX_NAME_LENGTH}")
        }
        "." | ".." => format!("name '{name}' for config ID is not allowed"),
        _ if name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'-') =>
        {
            return Ok(());
        }
        _ => format!("config ID '{name}' contains illegal characters"),
    };
    Err(ConfigError::new(refusal))
}

/// What makes configurations of Fabric v1.0 modifiable: an element whose mod policy was forgotten gets this one.
const DEFAULT_MOD_POLICY: &str = "Admins";
/// Whose presence says that everybody here is newer than v1.0.
const ORDERER_CAPABILITIES: &str = "[Value]  /Channel/Orderer/Capabilities";

/// The tree of those elements that are reachable from the channel group: a group says who its members are, the map
/// says what they look like.
pub(super) fn assemble(elements: &Elements<'_>) -> Result<ConfigGroup, ConfigError> {
    let default_mod_policy = elements
        .contains_key(ORDERER_CAPABILITIES)
        .then_some(DEFAULT_MOD_POLICY);
    assemble_group(elements, &format!("/{ROOT_GROUP}"), default_mod_policy)
}

fn assemble_group(
    elements: &Elements<'_>,
    path: &str,
    default_mod_policy: Option<&str>,
) -> Result<ConfigGroup, ConfigError> {
    let mod_policy = |written: &str| match default_mod_policy {
        Some(default) if written.is_empty() => default.to_owned(),
        _ => written.to_owned(),
    };
    let missing =
        |kind: &str, key: &str| ConfigError::new(format!("missing {kind} at path: {key}"));
    let key = format!("{GROUP}{path}");
    let Some(Element::Group(group)) = elements.get(&key).map(|entry| entry.element) else {
        return Err(missing("group", &key));
    };
    let mut assembled = ConfigGroup {
        version: group.version,
        mod_policy: mod_policy(&group.mod_policy),
        ..ConfigGroup::default()
    };
    for name in group.groups.keys() {
        let member = assemble_group(elements, &format!("{path}/{name}"), default_mod_policy)?;
        assembled.groups.insert(name.clone(), member);
    }
    for name in group.values.keys() {
        let key = format!("{VALUE}{path}/{name}");
        let Some(Element::Value(value)) = elements.get(&key).map(|entry| entry.element) else {
            return Err(missing("value", &key));
        };
        let value = ConfigValue {
            mod_policy: mod_policy(&value.mod_policy),
            ..value.clone()
        };
        assembled.values.insert(name.clone(), value);
    }
    for name in group.policies.keys() {
        let key = format!("{POLICY}{path}/{name}");
        let Some(Element::Policy(policy)) = elements.get(&key).map(|entry| entry.element) else {
            return Err(missing("policy", &key));
        };
        let policy = ConfigPolicy {
            mod_policy: mod_policy(&policy.mod_policy),
            ..policy.clone()
        };
        assembled.policies.insert(name.clone(), policy);
    }
    Ok(assembled)
}
