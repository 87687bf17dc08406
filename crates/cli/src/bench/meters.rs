//! What a node's `/metrics` say about its commits.

use std::collections::BTreeMap;

/// The metrics of one node at one moment, those without labels.
#[derive(Debug, Default)]
pub(super) struct Meters(BTreeMap<String, f64>);

/// The histograms of `storage`: units of work per database transaction, and its duration.
const COMMIT_UNITS: &str = "quorate_database_commit_units";
const COMMIT_SECONDS: &str = "quorate_database_commit_seconds";

/// Database transactions between two looks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Commits {
    pub(super) count: f64,
    /// Units of work in all of them.
    pub(super) units: f64,
    /// Their durations together.
    pub(super) seconds: f64,
}

impl Meters {
    /// Reads Prometheus's text. A line that is something else is left out.
    pub(super) fn read(text: &str) -> Self {
        let values = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.contains('{'))
            .filter_map(|line| {
                let (name, value) = line.split_once(' ')?;
                Some((name.to_owned(), value.trim().parse().ok()?))
            });
        Self(values.collect())
    }

    fn value(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// What happened since an earlier look.
    pub(super) fn commits_since(&self, before: &Self) -> Commits {
        let since = |name: &str| self.value(name) - before.value(name);
        Commits {
            count: since(&format!("{COMMIT_UNITS}_count")),
            units: since(&format!("{COMMIT_UNITS}_sum")),
            seconds: since(&format!("{COMMIT_SECONDS}_sum")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_are_the_difference_of_two_looks() {
        let text = |count, units, seconds| {
            format!(
                "# HELP quorate_database_commit_units Units\n\
                 quorate_database_commit_units_bucket{{le=\"1\"}} 7\n\
                 quorate_database_commit_units_sum {units}\n\
                 quorate_database_commit_units_count {count}\n\
                 quorate_database_commit_seconds_sum {seconds}\n\
                 not a metric\n"
            )
        };
        let before = Meters::read(&text(10, 40, 0.5));
        let after = Meters::read(&text(15, 100, 1.25));
        let commits = after.commits_since(&before);
        assert_eq!(commits.count, 5.0);
        assert_eq!(commits.units, 60.0);
        assert_eq!(commits.seconds, 0.75);
        assert_eq!(after.commits_since(&Meters::read("")).count, 15.0);
    }
}
