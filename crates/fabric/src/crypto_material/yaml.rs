//! The file's shape, and the names that its templates give.

use serde::Deserialize;

use super::authority::Node;
use super::{CryptoError, MAX_PER_ORGANIZATION, setting};

pub(super) fn read(crypto_config: &str) -> Result<Config, CryptoError> {
    let mut options = serde_saphyr::Options::default();
    options.with_snippet = false;
    serde_saphyr::from_str_with_options(crypto_config, options)
        .map_err(|error| CryptoError::Yaml(error.to_string()))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct Config {
    pub(super) orderer_orgs: Option<Vec<Org>>,
    pub(super) peer_orgs: Option<Vec<Org>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct Org {
    pub(super) name: String,
    pub(super) domain: String,
    #[serde(rename = "EnableNodeOUs", default)]
    pub(super) enable_node_ous: bool,
    #[serde(rename = "CA", default)]
    pub(super) ca: Spec,
    pub(super) template: Option<Template>,
    pub(super) specs: Option<Vec<Spec>>,
    pub(super) users: Option<Users>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct Spec {
    pub(super) hostname: Option<String>,
    pub(super) common_name: Option<String>,
    pub(super) country: Option<String>,
    pub(super) province: Option<String>,
    pub(super) locality: Option<String>,
    pub(super) organizational_unit: Option<String>,
    pub(super) street_address: Option<String>,
    pub(super) postal_code: Option<String>,
    #[serde(rename = "SANS")]
    pub(super) sans: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct Template {
    #[serde(default)]
    pub(super) count: u32,
    #[serde(default)]
    pub(super) start: u32,
    pub(super) hostname: Option<String>,
    #[serde(rename = "SANS")]
    pub(super) sans: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct Users {
    #[serde(default)]
    pub(super) count: u32,
}

/// A node as its certificates name it.
pub(super) struct NodeNames {
    pub(super) common_name: String,
    /// Its name, its host's name, and what else it is to be called.
    pub(super) sans: Vec<String>,
}

/// The common name of an organisation's authority.
pub(super) fn ca_name(org: &Org) -> Result<String, CryptoError> {
    let hostname = org.ca.hostname.as_deref().unwrap_or("ca");
    let names = names(org, hostname, org.ca.common_name.as_deref(), &[])?;
    Ok(names.common_name)
}

/// The nodes that are named one by one, then those that are counted.
pub(super) fn nodes(org: &Org, role: Node) -> Result<Vec<NodeNames>, CryptoError> {
    let mut nodes = Vec::new();
    for spec in org.specs.iter().flatten() {
        let hostname = spec.hostname.as_deref().unwrap_or_default();
        let sans = spec.sans.as_deref().unwrap_or_default();
        nodes.push(names(org, hostname, spec.common_name.as_deref(), sans)?);
    }
    if let Some(template) = &org.template {
        if template.count > MAX_PER_ORGANIZATION {
            let problem = format!(
                "Template.Count {} is above {MAX_PER_ORGANIZATION}",
                template.count
            );
            return Err(setting(&org.name, problem));
        }
        for number in 0..template.count {
            let index = (u64::from(template.start) + u64::from(number)).to_string();
            let pattern = template.hostname.as_deref();
            let hostname = fill(
                org,
                pattern.unwrap_or("{{.Prefix}}{{.Index}}"),
                &[
                    ("Prefix", role.unit()),
                    ("Index", &index),
                    ("Domain", &org.domain),
                ],
            )?;
            let sans = template.sans.as_deref().unwrap_or_default();
            nodes.push(names(org, &hostname, None, sans)?);
        }
    }
    Ok(nodes)
}

fn names(
    org: &Org,
    hostname: &str,
    common_name: Option<&str>,
    sans: &[String],
) -> Result<NodeNames, CryptoError> {
    let known = [("Hostname", hostname), ("Domain", org.domain.as_str())];
    let pattern = common_name.unwrap_or("{{.Hostname}}.{{.Domain}}");
    let common_name = fill(org, pattern, &known)?;
    let known = [known[0], known[1], ("CommonName", common_name.as_str())];
    let mut all = vec![common_name.clone(), hostname.to_owned()];
    for san in sans {
        all.push(fill(org, san, &known)?);
    }
    Ok(NodeNames {
        sans: all,
        common_name,
    })
}

/// Fills in `{{.Name}}`, which is all of Go's templates that such files use.
fn fill(org: &Org, pattern: &str, known: &[(&str, &str)]) -> Result<String, CryptoError> {
    let refuse = |problem: String| Err(setting(&org.name, format!("{pattern:?}: {problem}")));
    let mut out = String::new();
    let mut rest = pattern;
    while let Some((before, after)) = rest.split_once("{{") {
        let Some((inner, after)) = after.split_once("}}") else {
            return refuse("'{{' without '}}'".to_owned());
        };
        let name = inner.trim();
        let value = known
            .iter()
            .find(|(known, _)| name.strip_prefix('.') == Some(*known));
        let Some((_, value)) = value else {
            let known: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            return refuse(format!(
                "unknown variable {name:?}; known: .{}",
                known.join(", .")
            ));
        };
        out.push_str(before);
        out.push_str(value);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}
