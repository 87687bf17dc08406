//! From two configurations to the update that leads from one to the other.

use std::collections::BTreeMap;

use super::ConfigError;
use crate::proto::common::{Config, ConfigGroup, ConfigPolicy, ConfigUpdate, ConfigValue};

/// The smallest update that turns `original` into `updated`: what `configtxlator compute_update` makes.
///
/// The versions in `updated` are not looked at; those of the update follow from `original`. The result is unsigned.
///
/// # Errors
/// One of them has no channel group, or they do not differ.
pub fn compute_update(
    channel_id: &str,
    original: &Config,
    updated: &Config,
) -> Result<ConfigUpdate, ConfigError> {
    let missing =
        |which: &str| ConfigError::new(format!("no channel group included for {which} config"));
    let original = original
        .channel_group
        .as_ref()
        .ok_or_else(|| missing("original"))?;
    let updated = updated
        .channel_group
        .as_ref()
        .ok_or_else(|| missing("updated"))?;
    let difference = compare(original, updated);
    if !difference.differs {
        return Err(ConfigError::new(
            "no differences detected between original and updated config",
        ));
    }
    Ok(ConfigUpdate {
        channel_id: channel_id.to_owned(),
        read_set: Some(difference.read),
        write_set: Some(difference.write),
        ..ConfigUpdate::default()
    })
}

struct GroupDifference {
    read: ConfigGroup,
    write: ConfigGroup,
    differs: bool,
}

/// Members of one kind, sorted by what the update has to say about them.
struct Members<T> {
    /// Goes into the read set.
    read: BTreeMap<String, T>,
    /// Goes into the write set.
    write: BTreeMap<String, T>,
    /// Unchanged: named in both sets, but only if the group itself changes, which must name all its members.
    same: BTreeMap<String, T>,
    /// Whether a member came or went, which changes the group itself.
    came_or_went: bool,
}

impl<T: Clone> Members<T> {
    fn name_unchanged(&mut self) {
        self.read.extend(self.same.clone());
        self.write.append(&mut self.same);
    }
}

fn compare(original: &ConfigGroup, updated: &ConfigGroup) -> GroupDifference {
    let mut policies = compare_leaves(&original.policies, &updated.policies);
    let mut values = compare_leaves(&original.values, &updated.values);
    let mut groups = compare_groups(&original.groups, &updated.groups);
    let itself = policies.came_or_went
        || values.came_or_went
        || groups.came_or_went
        || original.mod_policy != updated.mod_policy;
    let members =
        !(policies.write.is_empty() && values.write.is_empty() && groups.write.is_empty());
    let (version, mod_policy) = if itself {
        policies.name_unchanged();
        values.name_unchanged();
        groups.name_unchanged();
        (
            original.version.saturating_add(1),
            updated.mod_policy.clone(),
        )
    } else {
        (original.version, String::new())
    };
    GroupDifference {
        read: ConfigGroup {
            version: original.version,
            mod_policy: String::new(),
            policies: policies.read,
            values: values.read,
            groups: groups.read,
        },
        write: ConfigGroup {
            version,
            mod_policy,
            policies: policies.write,
            values: values.write,
            groups: groups.write,
        },
        differs: itself || members,
    }
}

fn compare_groups(
    original: &BTreeMap<String, ConfigGroup>,
    updated: &BTreeMap<String, ConfigGroup>,
) -> Members<ConfigGroup> {
    let mut members = Members {
        read: BTreeMap::new(),
        write: BTreeMap::new(),
        same: BTreeMap::new(),
        came_or_went: original.keys().any(|name| !updated.contains_key(name)),
    };
    for (name, after) in updated {
        if let Some(before) = original.get(name) {
            let difference = compare(before, after);
            if difference.differs {
                members.read.insert(name.clone(), difference.read);
                members.write.insert(name.clone(), difference.write);
            } else {
                members.same.insert(name.clone(), difference.read);
            }
        } else {
            members.came_or_went = true;
            let written = ConfigGroup {
                version: 0,
                mod_policy: after.mod_policy.clone(),
                ..compare(&ConfigGroup::default(), after).write
            };
            members.write.insert(name.clone(), written);
        }
    }
    members
}

/// A value or a policy: what has a version and no members.
trait Leaf: Sized + Clone {
    /// The same content and mod policy at another version.
    fn at(&self, version: u64) -> Self;
    /// Nothing but the version, which is how an unchanged element is named.
    fn mention(&self) -> Self;
    fn version(&self) -> u64;
    /// Whether content and mod policy are the same; the version does not count.
    fn same_as(&self, other: &Self) -> bool;
}

impl Leaf for ConfigValue {
    fn at(&self, version: u64) -> Self {
        Self {
            version,
            ..self.clone()
        }
    }

    fn mention(&self) -> Self {
        Self {
            version: self.version,
            ..Self::default()
        }
    }

    fn version(&self) -> u64 {
        self.version
    }

    fn same_as(&self, other: &Self) -> bool {
        self.value == other.value && self.mod_policy == other.mod_policy
    }
}

impl Leaf for ConfigPolicy {
    fn at(&self, version: u64) -> Self {
        Self {
            version,
            ..self.clone()
        }
    }

    fn mention(&self) -> Self {
        Self {
            version: self.version,
            ..Self::default()
        }
    }

    fn version(&self) -> u64 {
        self.version
    }

    fn same_as(&self, other: &Self) -> bool {
        self.policy == other.policy && self.mod_policy == other.mod_policy
    }
}

fn compare_leaves<T: Leaf>(
    original: &BTreeMap<String, T>,
    updated: &BTreeMap<String, T>,
) -> Members<T> {
    let mut members = Members {
        read: BTreeMap::new(),
        write: BTreeMap::new(),
        same: BTreeMap::new(),
        came_or_went: original.keys().any(|name| !updated.contains_key(name)),
    };
    for (name, after) in updated {
        match original.get(name) {
            Some(before) if before.same_as(after) => {
                members.same.insert(name.clone(), before.mention());
            }
            Some(before) => {
                let version = before.version().saturating_add(1);
                members.write.insert(name.clone(), after.at(version));
            }
            None => {
                members.came_or_went = true;
                members.write.insert(name.clone(), after.at(0));
            }
        }
    }
    members
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use proptest::collection::btree_map;
    use proptest::prelude::*;

    use super::super::elements::{Elements, assemble, elements};
    use super::*;
    use crate::proto::common::Policy;

    fn mod_policy() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("Admins".to_owned()),
            Just("/Channel/Admins".to_owned())
        ]
    }

    fn leaf() -> impl Strategy<Value = (u64, Vec<u8>, String)> {
        (
            0_u64..4,
            prop::collection::vec(any::<u8>(), 0..2),
            mod_policy(),
        )
    }

    fn name() -> impl Strategy<Value = String> {
        "[A-D]"
    }

    fn tree() -> impl Strategy<Value = ConfigGroup> {
        let group = |groups: BTreeMap<String, ConfigGroup>| {
            let values = btree_map(name(), leaf(), 0..3);
            let policies = btree_map(name(), leaf(), 0..3);
            (0_u64..4, mod_policy(), values, policies).prop_map(
                move |(version, mod_policy, values, policies)| ConfigGroup {
                    version,
                    mod_policy,
                    groups: groups.clone(),
                    values: values
                        .into_iter()
                        .map(|(name, (version, value, mod_policy))| {
                            (
                                name,
                                ConfigValue {
                                    version,
                                    value,
                                    mod_policy,
                                },
                            )
                        })
                        .collect(),
                    policies: policies
                        .into_iter()
                        .map(|(name, (version, value, mod_policy))| {
                            let policy = Some(Policy { r#type: 1, value });
                            (
                                name,
                                ConfigPolicy {
                                    version,
                                    policy,
                                    mod_policy,
                                },
                            )
                        })
                        .collect(),
                },
            )
        };
        group(BTreeMap::new()).prop_recursive(3, 24, 3, move |inner| {
            btree_map(name(), inner, 0..3).prop_flat_map(group)
        })
    }

    fn config(group: &ConfigGroup) -> Config {
        Config {
            sequence: 3,
            channel_group: Some(group.clone()),
        }
    }

    /// What an orderer makes of an update, signatures aside; checks the versions as an orderer does.
    fn apply(original: &ConfigGroup, update: &ConfigUpdate) -> ConfigGroup {
        let mut current: Elements<'_> = elements(Some(original)).unwrap();
        let read = elements(update.read_set.as_ref()).unwrap();
        let write = elements(update.write_set.as_ref()).unwrap();
        for (key, read) in &read {
            assert_eq!(
                current[key].element.version(),
                read.element.version(),
                "{key}"
            );
        }
        for (key, wanted) in write {
            let version = wanted.element.version();
            if read
                .get(&key)
                .is_some_and(|read| read.element.version() == version)
            {
                continue;
            }
            let expected = current
                .get(&key)
                .map_or(0, |existing| existing.element.version() + 1);
            assert_eq!(version, expected, "{key}");
            current.insert(key, wanted);
        }
        assemble(&current).unwrap()
    }

    fn without_versions(group: &ConfigGroup) -> ConfigGroup {
        let mut group = group.clone();
        group.version = 0;
        group
            .values
            .values_mut()
            .for_each(|value| value.version = 0);
        group
            .policies
            .values_mut()
            .for_each(|policy| policy.version = 0);
        for member in group.groups.values_mut() {
            *member = without_versions(member);
        }
        group
    }

    proptest! {
        #[test]
        fn an_update_leads_from_one_configuration_to_the_other(before in tree(), after in tree()) {
            match compute_update("channel", &config(&before), &config(&after)) {
                Ok(update) => {
                    let reached = apply(&before, &update);
                    prop_assert_eq!(without_versions(&reached), without_versions(&after));
                    let again = compute_update("channel", &config(&reached), &config(&after));
                    prop_assert!(again.is_err());
                }
                Err(_) => prop_assert_eq!(without_versions(&before), without_versions(&after)),
            }
        }

        #[test]
        fn what_does_not_differ_needs_no_update(group in tree()) {
            let error = compute_update("channel", &config(&group), &config(&group)).unwrap_err();
            prop_assert_eq!(
                error.to_string(),
                "no differences detected between original and updated config"
            );
        }
    }

    #[test]
    fn a_configuration_without_groups_has_no_update() {
        let whole = config(&ConfigGroup::default());
        let empty = Config::default();
        let refused = |original, updated| {
            compute_update("channel", original, updated)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            refused(&empty, &whole),
            "no channel group included for original config"
        );
        assert_eq!(
            refused(&whole, &empty),
            "no channel group included for updated config"
        );
    }
}
