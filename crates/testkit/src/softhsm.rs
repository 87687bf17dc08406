//! Private tokens of SoftHSM: a hardware security module for tests, of the Debian package `softhsm2`.
//!
//! SoftHSM learns from its environment where its tokens are, and once per process. A test therefore runs in a process of
//! its own, which it starts itself: [`SoftHsm::in_own_process`].

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The variable from which SoftHSM learns where its configuration is.
const CONFIGURATION: &str = "SOFTHSM2_CONF";

/// Where distributions put the library.
const LIBRARIES: [&str; 4] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
];

/// The PIN of every token made here.
pub const PIN: &str = "7294-pin";

/// A folder with tokens, gone when dropped.
#[derive(Debug)]
pub struct SoftHsm {
    folder: tempfile::TempDir,
}

/// The library, if the package is installed.
#[must_use]
pub fn library() -> Option<PathBuf> {
    LIBRARIES
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
}

impl SoftHsm {
    /// An empty module.
    ///
    /// # Errors
    /// The package `softhsm2` is not installed (`scripts/prepare test` does it), or files cannot be written.
    pub fn new() -> io::Result<Self> {
        if library().is_none() {
            return Err(io::Error::other(
                "libsofthsm2.so is not installed; scripts/prepare test installs it",
            ));
        }
        let hsm = Self {
            folder: tempfile::tempdir()?,
        };
        std::fs::create_dir(hsm.tokens())?;
        let configuration = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            hsm.tokens().display()
        );
        std::fs::write(hsm.configuration(), configuration)?;
        Ok(hsm)
    }

    fn tokens(&self) -> PathBuf {
        self.folder.path().join("tokens")
    }

    /// The file whose name processes find in `SOFTHSM2_CONF`.
    #[must_use]
    pub fn configuration(&self) -> PathBuf {
        self.folder.path().join("softhsm2.conf")
    }

    /// Makes a token with [`PIN`].
    ///
    /// # Errors
    /// The tool of the package says no.
    pub fn add_token(&self, label: &str) -> io::Result<()> {
        let output = Command::new("softhsm2-util")
            .args(["--init-token", "--free", "--label", label])
            .args(["--so-pin", "so-pin-of-tests", "--pin", PIN])
            .env(CONFIGURATION, self.configuration())
            .output()?;
        if output.status.success() {
            return Ok(());
        }
        let reason = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(io::Error::other(reason))
    }

    /// Runs the test `name` of the calling test program again, in a process that sees this module's tokens.
    ///
    /// # Errors
    /// The test failed there; its output has been shown.
    pub fn in_own_process(&self, name: &str) -> io::Result<()> {
        let status = Command::new(std::env::current_exe()?)
            .args(["--exact", name, "--nocapture"])
            .env(CONFIGURATION, self.configuration())
            .status()?;
        match status.success() {
            true => Ok(()),
            false => Err(io::Error::other(format!(
                "{name} failed in its own process"
            ))),
        }
    }
}

/// The tokens that this process sees, if it was started by [`SoftHsm::in_own_process`].
#[derive(Debug)]
pub struct Tokens {
    folder: PathBuf,
}

impl Tokens {
    /// Those of this process.
    #[must_use]
    pub fn of_this_process() -> Option<Self> {
        let configuration = std::env::var_os(CONFIGURATION)?;
        let folder = Path::new(&configuration).parent()?.to_owned();
        Some(Self { folder })
    }

    /// Takes all tokens away, as if the module had been unplugged.
    ///
    /// # Errors
    /// The folder cannot be renamed.
    pub fn take_away(&self) -> io::Result<()> {
        std::fs::rename(self.folder.join("tokens"), self.folder.join("away"))?;
        std::fs::create_dir(self.folder.join("tokens"))
    }

    /// Brings them back.
    ///
    /// # Errors
    /// The folder cannot be renamed.
    pub fn bring_back(&self) -> io::Result<()> {
        std::fs::remove_dir_all(self.folder.join("tokens"))?;
        std::fs::rename(self.folder.join("away"), self.folder.join("tokens"))
    }
}
