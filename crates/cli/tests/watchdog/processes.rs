//! The program as processes, and a directory of a node for it.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;

use crate::PATIENCE;

/// The program under test.
pub(crate) fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_quorate")
}

/// Waits for a condition.
pub(crate) fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn pid(id: i32) -> Pid {
    Pid::from_raw(id).expect("a process id is not 0")
}

pub(crate) fn send(id: i32, signal: Signal) {
    kill_process(pid(id), signal).expect("our process can be signalled");
}

pub(crate) fn runs(id: i32) -> bool {
    test_kill_process(pid(id)).is_ok()
}

/// One run of the program; it is killed when dropped, and what it started before that.
pub(crate) struct Process {
    child: Child,
    output: PathBuf,
    _directory: TempDir,
}

impl Process {
    pub(crate) fn start(arguments: &[impl AsRef<str>], environment: &[(&str, String)]) -> Self {
        let directory = tempfile::tempdir().expect("a directory for the output");
        let output = directory.path().join("output");
        let file = File::create(&output).expect("a file for the output");
        let child = Command::new(binary())
            .args(arguments.iter().map(AsRef::as_ref))
            .envs(environment.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("the file twice"))
            .stderr(file)
            .spawn()
            .expect("the program starts");
        Self {
            child,
            output,
            _directory: directory,
        }
    }

    pub(crate) fn id(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a process id")
    }

    pub(crate) fn output(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        send(self.id(), signal);
    }

    /// Waits for the end.
    pub(crate) fn exit_code(&mut self) -> i32 {
        let child = &mut self.child;
        let status = until("the process ends", || {
            child.try_wait().expect("our process can be waited for")
        });
        status.code().unwrap_or(-1)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // A watchdog passes a stop on, and the second one kills; a stopped child needs the second.
        for _ in 0..2 {
            let _ = kill_process(pid(self.id()), Signal::TERM);
            let deadline = Instant::now() + Duration::from_secs(8);
            while Instant::now() < deadline {
                if matches!(self.child.try_wait(), Ok(Some(_))) {
                    return;
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The directory of a node that is a network by itself.
pub(crate) struct BaseDirectory {
    path: PathBuf,
    _root: TempDir,
}

impl BaseDirectory {
    /// A new node; `more` is added to its configuration.
    pub(crate) fn new(more: &str) -> Self {
        let root = tempfile::tempdir().expect("a directory");
        let directory = root.path().canonicalize().expect("the directory's path");
        fs::write(directory.join("Solo_node.conf"), configuration(""))
            .expect("the configuration is written");
        let bootstrap = Command::new(binary())
            .args(["network", "bootstrap", "--dir"])
            .arg(&directory)
            .output()
            .expect("the program runs");
        assert!(bootstrap.status.success(), "{bootstrap:?}");
        let path = directory.join("Solo");
        fs::write(path.join("node.conf"), configuration(more))
            .expect("the configuration is written");
        Self { path, _root: root }
    }

    /// The same node on what stands for another machine: the files that the guide says to copy,
    /// ports of its own, and the same database.
    pub(crate) fn second(&self, more: &str) -> Self {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().canonicalize().expect("the directory's path");
        copy(&self.path.join("network-parameters"), &path);
        for folder in ["certificates", "additional-node-infos"] {
            let to = path.join(folder);
            fs::create_dir(&to).expect("a folder");
            for entry in fs::read_dir(self.path.join(folder)).expect("a folder to copy") {
                copy(&entry.expect("a file to copy").path(), &to);
            }
        }
        let database = self.path.join("persistence.db");
        let more = format!(
            "{more}\ndataSourceProperties.dataSource.url = \"jdbc:sqlite:{}\"",
            database.display()
        );
        fs::write(path.join("node.conf"), configuration(&more))
            .expect("the configuration is written");
        Self { path, _root: root }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Exit code and line of `quorate node health`.
    pub(crate) fn health(&self) -> (i32, String) {
        let output = Command::new(binary())
            .args(["node", "health", "-b"])
            .arg(&self.path)
            .output()
            .expect("the program runs");
        let line = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code().unwrap_or(-1), line)
    }
}

fn copy(from: &Path, into: &Path) {
    let name = from.file_name().expect("a file has a name");
    fs::copy(from, into.join(name)).expect("the file is copied");
}

fn configuration(more: &str) -> String {
    let listeners: Vec<TcpListener> = (0..2)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port"))
        .collect();
    let port = |index: usize| listeners[index].local_addr().expect("a port").port();
    format!(
        "myLegalName = \"O=Solo, L=Osaka, C=JP\"\n\
         devMode = true\n\
         p2pAddress = \"127.0.0.1:{}\"\n\
         messagingServerAddress = ${{p2pAddress}}\n\
         rpcSettings.address = \"127.0.0.1:{}\"\n\
         notary.validating = false\n\
         {more}\n",
        port(0),
        port(1)
    )
}
