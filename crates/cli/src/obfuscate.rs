//! `quorate node obfuscate-config`: hides the secrets that are marked in a configuration.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use quorate_identity::obfuscation::ObfuscationKey;
use zeroize::Zeroizing;

/// Obfuscates `file`; prints the result, or writes it to `target`.
pub(crate) fn run(key: &ObfuscationKey, file: &Path, target: Option<&Path>) -> Result<ExitCode> {
    let text = Zeroizing::new(
        fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?,
    );
    let (hidden, count) = key
        .obfuscate(&text)
        .with_context(|| file.display().to_string())?;
    let Some(target) = target else {
        print!("{hidden}");
        return Ok(ExitCode::SUCCESS);
    };
    replace(file, target, &hidden).with_context(|| format!("writing {}", target.display()))?;
    println!("{count} value(s) hidden in {}", target.display());
    Ok(ExitCode::SUCCESS)
}

/// Puts a file in the place of `target`, whole or not at all, readable for those who may read `source`.
fn replace(source: &Path, target: &Path, text: &str) -> Result<()> {
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut new = tempfile::NamedTempFile::new_in(folder)?;
    new.write_all(text.as_bytes())?;
    let file = new.as_file();
    file.set_permissions(fs::metadata(source)?.permissions())?;
    file.sync_all()?;
    new.persist(target)?;
    Ok(())
}
