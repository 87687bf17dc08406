//! `quorate channel` and `quorate crypto` through the program, with files that Fabric's own tools and orderers made.

#![allow(clippy::unwrap_used, clippy::panic)]

mod documented;
mod fetch;
mod inspect;
mod make;
mod sign;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A recorded file or folder.
fn fixture(path: &str) -> PathBuf {
    Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../fixtures/fabric"
    ))
    .join(path)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// How a run of the program ended.
#[derive(Debug)]
struct Ended {
    code: i32,
    out: Vec<u8>,
    err: String,
}

impl Ended {
    fn text(&self) -> String {
        String::from_utf8(self.out.clone()).unwrap()
    }

    /// It went well, and here is what it printed.
    fn well(self) -> String {
        assert_eq!(self.code, 0, "{}", self.err);
        self.text()
    }

    /// It did not go well, and says all of this.
    fn badly(&self, words: &[&str]) {
        assert_eq!(self.code, 1, "{}{}", self.text(), self.err);
        for word in words {
            assert!(self.err.contains(word), "no {word:?} in: {}", self.err);
        }
    }
}

fn quorate(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.args(arguments).current_dir(folder);
    for name in [
        "FABRIC_CFG_PATH",
        "CORE_PEER_MSPCONFIGPATH",
        "CORE_PEER_LOCALMSPID",
    ] {
        command.env_remove(name);
    }
    let output = command
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Ended {
        code: output.status.code().unwrap(),
        out: output.stdout,
        err: String::from_utf8(output.stderr).unwrap(),
    }
}
