//! A node of a local network that is served by two instances.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use quorate_identity::X500Name;

use super::{LocalNetwork, Plan, Ports, configuration, data_source};

/// A node of two instances with one database, of which one is hot.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) organisation: &'static str,
    pub(crate) locality: &'static str,
    pub(crate) country: &'static str,
    /// What the instances are called: their directories, and `machineName`.
    pub(crate) instances: [&'static str; 2],
    /// `updateInterval` and `waitInterval`.
    pub(crate) update_interval: Duration,
    pub(crate) wait_interval: Duration,
    /// Whether peers and clients get the addresses of a load balancer instead of the instances'.
    pub(crate) balanced: bool,
}

impl LocalNetwork {
    /// Adds both instances. They say the same to the network: at which of the addresses somebody
    /// answers changes. Returns the configuration of the second one, which is none of the
    /// bootstrapper's business: it takes every legal name once.
    pub(super) fn add_pair(
        &mut self,
        plan: &Plan,
        pair: &Pair,
        own: [Ports; 2],
        balancer: Ports,
    ) -> Result<String> {
        let Pair {
            organisation,
            locality,
            country,
            ..
        } = pair;
        let name: X500Name = format!("O={organisation}, L={locality}, C={country}").parse()?;
        let advertised = if pair.balanced {
            vec![balancer.p2p]
        } else {
            own.iter().map(|ports| ports.p2p).collect()
        };
        let url = match self.new_database(organisation)? {
            Some(url) => url,
            None => {
                let file = self.path().join(format!("{organisation}.db"));
                format!("jdbc:sqlite:{}", file.display())
            }
        };
        let [mine, other] = own;
        let instances = [(pair.instances[0], mine), (pair.instances[1], other)];
        let [first, second] = instances.map(|(instance, ports)| {
            let mut text = configuration(&name, &advertised, &ports);
            text.push_str(&data_source(&url));
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                r#"enterpriseConfiguration {{ mutualExclusionConfiguration {{
  on = true
  machineName = "{instance}"
  updateInterval = {}
  waitInterval = {}
}} }}
"#,
                pair.update_interval.as_millis(),
                pair.wait_interval.as_millis()
            );
            self.add(plan, instance, name.clone(), ports);
            text
        });
        self.balancer = pair.balanced.then_some(balancer);
        self.write(&format!("{organisation}_node.conf"), &first)?;
        Ok(second)
    }

    /// Makes two directories of the one that the bootstrapper has made for the pair. They hold the
    /// same, keys included, but for their configurations.
    pub(super) fn part(&self, pair: &Pair, configuration: &str) -> Result<()> {
        let made = self.path().join(pair.organisation);
        let [first, second] = pair.instances.map(|instance| self.path().join(instance));
        fs::rename(&made, &first)
            .and_then(|()| copy_directory(&first, &second))
            .with_context(|| format!("copying {} to {}", made.display(), second.display()))?;
        self.write(&format!("{}/node.conf", pair.instances[1]), configuration)
    }
}

/// Copies files and directories, with their permissions.
fn copy_directory(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    for entry in fs::read_dir(from)? {
        let (entry, target) = entry.map(|entry| (entry.path(), to.join(entry.file_name())))?;
        if entry.is_dir() {
            copy_directory(&entry, &target)?;
        } else {
            fs::copy(&entry, &target)?;
        }
    }
    Ok(())
}
