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

/// The keys of one configuration's elements, in bytes, at most. A channel of ten thousand organisations needs half of it;
/// without a bound, deep trees with long names would grow far beyond the message that brought them.
const MAX_KEY_BYTES: usize = 16 * 1024 * 1024;

/// The elements of a tree whose root is the channel group; none if there is no tree.
pub(super) fn elements(group: Option<&ConfigGroup>) -> Result<Elements<'_>, ConfigError> {
    let mut collector = Collector {
        elements: Elements::new(),
        key_bytes: 0,
    };
    if let Some(group) = group {
        collector.collect(&[], ROOT_GROUP, group)?;
    }
    Ok(collector.elements)
}

struct Collector<'a> {
    elements: Elements<'a>,
    key_bytes: usize,
}

impl<'a> Collector<'a> {
    fn collect(
        &mut self,
        path: &[&'a str],
        name: &'a str,
        group: &'a ConfigGroup,
    ) -> Result<(), ConfigError> {
        self.add(path, name, Element::Group(group))?;
        let path = [path, &[name]].concat();
        for (name, group) in &group.groups {
            self.collect(&path, name, group)?;
        }
        for (name, value) in &group.values {
            self.add(&path, name, Element::Value(value))?;
        }
        for (name, policy) in &group.policies {
            self.add(&path, name, Element::Policy(policy))?;
        }
        Ok(())
    }

    fn add(
        &mut self,
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
        self.key_bytes += key.len();
        if self.key_bytes > MAX_KEY_BYTES {
            return Err(ConfigError::new(format!(
                "the paths of all groups, values and policies are longer than {MAX_KEY_BYTES} bytes: use fewer or shorter names"
            )));
        }
        let entry = Entry {
            element,
            path: path.to_vec(),
            name,
        };
        self.elements.insert(key, entry);
        Ok(())
    }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;

    #[test]
    fn names_are_fabrics() {
        check_name("Org-1.example.COM").unwrap();
        check_name(&"a".repeat(249)).unwrap();
        for (name, refusal) in [
            ("", "config ID illegal, cannot be empty"),
            (".", "name '.' for config ID is not allowed"),
            ("..", "name '..' for config ID is not allowed"),
            ("Org_1", "config ID 'Org_1' contains illegal characters"),
            (
                "Org\u{e9}",
                "config ID 'Org\u{e9}' contains illegal characters",
            ),
        ] {
            assert_eq!(check_name(name).unwrap_err().to_string(), refusal);
        }
        let long = "a".repeat(250);
        assert_eq!(
            check_name(&long).unwrap_err().to_string(),
            "config ID illegal, cannot be longer than 249"
        );
    }

    fn group(mod_policy: &str) -> ConfigGroup {
        ConfigGroup {
            mod_policy: mod_policy.to_owned(),
            ..ConfigGroup::default()
        }
    }

    #[test]
    fn forgotten_mod_policies_become_admins_where_orderers_have_capabilities() {
        let mut channel = group("");
        let mut orderer = group("Writers");
        orderer
            .values
            .insert("BatchSize".to_owned(), ConfigValue::default());
        channel
            .policies
            .insert("Readers".to_owned(), ConfigPolicy::default());
        channel.groups.insert("Orderer".to_owned(), orderer);
        let assembled = assemble(&elements(Some(&channel)).unwrap()).unwrap();
        assert_eq!(assembled, channel);

        let orderer = channel.groups.get_mut("Orderer").unwrap();
        let capabilities = ConfigValue {
            mod_policy: "Readers".to_owned(),
            ..ConfigValue::default()
        };
        orderer
            .values
            .insert("Capabilities".to_owned(), capabilities);
        let assembled = assemble(&elements(Some(&channel)).unwrap()).unwrap();
        assert_eq!(assembled.mod_policy, "Admins");
        assert_eq!(assembled.policies["Readers"].mod_policy, "Admins");
        let orderer = &assembled.groups["Orderer"];
        assert_eq!(orderer.mod_policy, "Writers");
        assert_eq!(orderer.values["BatchSize"].mod_policy, "Admins");
        assert_eq!(orderer.values["Capabilities"].mod_policy, "Readers");
    }

    #[test]
    fn members_that_no_group_names_any_more_are_left_out() {
        let mut before = group("Admins");
        for name in ["Kept", "Dropped"] {
            before
                .values
                .insert(name.to_owned(), ConfigValue::default());
        }
        let mut after = before.clone();
        after.version = 1;
        after.values.remove("Dropped");
        let mut all = elements(Some(&before)).unwrap();
        all.insert(
            "[Group]  /Channel".to_owned(),
            Entry {
                element: Element::Group(&after),
                path: Vec::new(),
                name: ROOT_GROUP,
            },
        );
        assert_eq!(assemble(&all).unwrap(), after);
        all.remove("[Value]  /Channel/Kept");
        assert_eq!(
            assemble(&all).unwrap_err().to_string(),
            "missing value at path: [Value]  /Channel/Kept"
        );
    }

    #[test]
    fn paths_that_grow_beyond_all_bounds_are_refused() {
        let mut tree = group("Admins");
        for number in 0..4096 {
            tree.values
                .insert(format!("Value{number}"), ConfigValue::default());
        }
        for level in 0..20 {
            let mut outer = group("Admins");
            outer
                .groups
                .insert(format!("{}{level}", "g".repeat(240)), tree);
            tree = outer;
        }
        let refused = elements(Some(&tree)).unwrap_err().to_string();
        assert!(refused.contains("use fewer or shorter names"), "{refused}");
    }
}
