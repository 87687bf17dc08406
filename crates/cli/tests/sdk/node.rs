//! Node, and the packages from the npm registry that the scripts need.
//!
//! The packages are installed once, by the exact versions and hashes of `tests/sdk/package-lock.json`, into cargo's
//! folder for the files of tests; the source tree stays as it is. `QUORATE_SDK_MODULES` names a `node_modules` folder
//! that has them already, for machines that reach no registry.

use std::env;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::orderer::{Orderer, fixture};

/// Within this time the packages are there, also over a slow line.
const INSTALLATION: Duration = Duration::from_secs(300);

/// Within this time a scenario has done what it does.
const SCENARIO: Duration = Duration::from_secs(120);

fn scripts() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/sdk"))
}

/// A text in what a script saw.
pub(crate) fn text(value: &Value) -> String {
    let text = value.as_str();
    text.unwrap_or_else(|| panic!("not a text: {value}"))
        .to_owned()
}

/// Runs one scenario of the scripts against `orderer`, and gives what it saw.
pub(crate) fn run(scenario: &str, orderer: &Orderer, count: u64) -> Value {
    let fixtures = fixture("").canonicalize().expect("the fixtures are there");
    let settings = json!({
        "orderer": orderer.address(),
        "admin": orderer.admin(),
        "fixtures": fixtures,
        "channel": "fixture1",
        "mutual": orderer.mutual,
        "count": count,
    });
    let mut command = Command::new("node");
    command
        .arg(scripts().join("run.js"))
        .args([scenario, &settings.to_string()])
        .env("NODE_PATH", packages());
    let said = within(SCENARIO, &mut command);
    let last = said.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|error| panic!("{scenario}: {error}: {said}"))
}

/// The folder of the installed packages.
fn packages() -> &'static Path {
    static PACKAGES: OnceLock<PathBuf> = OnceLock::new();
    PACKAGES.get_or_init(|| {
        if let Some(given) = env::var_os("QUORATE_SDK_MODULES") {
            return PathBuf::from(given);
        }
        let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sdk");
        fs::create_dir_all(&home).expect("cargo's folder for tests can be written");
        // Two runs at a time install one after the other.
        let turn = File::create(home.join("lock")).expect("a file to lock");
        turn.lock().expect("the lock is had");
        let modules = home.join("node_modules");
        let installed = home.join("installed.json");
        let wanted = fs::read(scripts().join("package-lock.json")).expect("the list of versions");
        if fs::read(&installed).is_ok_and(|present| present == wanted) {
            return modules;
        }
        for file in ["package.json", "package-lock.json"] {
            fs::copy(scripts().join(file), home.join(file)).expect("the list is copied");
        }
        let mut command = Command::new("npm");
        command
            .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
            .args(["--prefer-offline", "--fetch-retries=3"])
            .arg("--fetch-timeout=60000")
            .current_dir(&home);
        within(INSTALLATION, &mut command);
        // Written last, so that an interrupted installation is done again.
        fs::write(installed, wanted).expect("the mark is written");
        modules
    })
}

/// The output of a program that must end well, and in time.
fn within(patience: Duration, command: &mut Command) -> String {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap_or_else(|error| {
            let program = command.get_program();
            panic!("{program:?} cannot be started ({error}); scripts/prepare test installs it")
        });
    let mut output = child.stdout.take().expect("the output is piped");
    let reader = thread::spawn(move || {
        let mut said = String::new();
        output.read_to_string(&mut said).map(|_| said)
    });
    let deadline = Instant::now() + patience;
    let status = loop {
        if let Some(status) = child.try_wait().expect("the process can be asked") {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().expect("our process can be killed");
            panic!("not done within {patience:?}: {command:?}");
        }
        thread::sleep(Duration::from_millis(20));
    };
    let said = reader.join().expect("the reader ends").expect("a text");
    assert!(status.success(), "{status}: {command:?}: {said}");
    said
}
