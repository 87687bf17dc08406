//! A private PostgreSQL server from the installed binaries, for tests and benchmarks.
//!
//! [`Postgres::start`] makes a cluster in a temporary directory, runs it on a free port as an unprivileged user
//! (PostgreSQL refuses root) and stops it when the value is dropped. The server also stops when this process dies in
//! any other way: it hangs on a pipe whose other end only this process holds.
//!
//! It knows the server and nothing of what is stored in it. Start reading at [`Postgres`].

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// Set to `skip` where no PostgreSQL can be installed: its tests then pass without having run.
pub const SKIP_VARIABLE: &str = "QUORATE_TEST_POSTGRES";

/// How long a server may take until it answers, or until it has gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many free ports are tried: somebody else may take one between our look and the server's bind.
const PORT_ATTEMPTS: usize = 5;

/// Pause between two looks at a condition.
const POLL: Duration = Duration::from_millis(10);

/// The superuser of the private cluster; it needs no password from this machine.
pub const USER: &str = "quorate";

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// No binaries.
    #[error(
        "PostgreSQL's server binaries (initdb, postgres, psql) are not installed: looked in {looked_in}. \
         Install them (Debian, Ubuntu: apt-get install postgresql), or set {SKIP_VARIABLE}=skip to leave these tests out"
    )]
    NotInstalled {
        /// The directories that were tried.
        looked_in: String,
    },
    /// We are root and there is nobody to run it as.
    #[error(
        "PostgreSQL does not run as root, and this machine has neither a user 'postgres' nor 'nobody' to run it as"
    )]
    NoUnprivilegedUser,
    /// A program could not be run.
    #[error("cannot run {program}")]
    Run {
        /// Which.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} failed: {output}")]
    Failed {
        /// Which.
        program: String,
        /// What it said.
        output: String,
    },
    /// A file of the cluster could not be made or read.
    #[error("cannot prepare {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The server did not come up.
    #[error(
        "the PostgreSQL server on port {port} did not answer within {PATIENCE:?}; its log says: {log}"
    )]
    NotReady {
        /// Its port.
        port: u16,
        /// The end of its log.
        log: String,
    },
    /// The server did not go away.
    #[error("the PostgreSQL server with process id {pid} did not stop within {PATIENCE:?}")]
    NotStopped {
        /// Its process.
        pid: u32,
    },
}

/// What kind of server is wanted.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// Commits reach the disk. Off for tests, which is faster; a benchmark needs it on.
    pub durable: bool,
    /// Further settings for `postgresql.conf`, such as `("max_connections", "300")`.
    pub settings: Vec<(String, String)>,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self {
            durable: true,
            settings: Vec::new(),
        }
    }
}

/// Whether the environment says that tests which need PostgreSQL are to be left out.
pub fn skipped() -> bool {
    std::env::var(SKIP_VARIABLE).is_ok_and(|value| value == "skip")
}

/// A running server, stopped when dropped. Its functions block: call them from a thread that may wait.
#[derive(Debug)]
pub struct Postgres {
    binaries: PathBuf,
    account: Option<Account>,
    directory: tempfile::TempDir,
    port: u16,
    running: Mutex<Option<Running>>,
}

/// The unprivileged user under which root runs the server.
#[derive(Debug, Clone)]
struct Account {
    user: u32,
    group: u32,
}

#[derive(Debug)]
struct Running {
    /// Waits for the end of its input and then stops the server.
    guard: Child,
    input: Option<ChildStdin>,
}

impl Postgres {
    /// Makes a new cluster and starts its server.
    pub fn start(options: &PostgresOptions) -> Result<Self, PostgresError> {
        let binaries = find_binaries()?;
        let account = unprivileged_account()?;
        let directory = tempfile::Builder::new()
            .prefix("quorate-postgres-")
            .tempdir()
            .map_err(|source| PostgresError::File {
                path: std::env::temp_dir(),
                source,
            })?;
        if let Some(account) = &account {
            chown(directory.path(), Some(account.user), Some(account.group)).map_err(|source| {
                PostgresError::File {
                    path: directory.path().to_owned(),
                    source,
                }
            })?;
        }
        let mut server = Self {
            binaries,
            account,
            directory,
            port: 0,
            running: Mutex::new(None),
        };
        server.initialise(options)?;
        let mut attempt = 0;
        loop {
            attempt += 1;
            server.port = free_port()?;
            match server.start_again() {
                Err(PostgresError::NotReady { .. }) if attempt < PORT_ATTEMPTS => server.kill()?,
                other => return other.map(|()| server),
            }
        }
    }

    /// The server that all tests of this process share: made by the first who asks, stopped when the last lets go.
    /// It does not wait for the disk.
    pub fn shared() -> Result<Arc<Self>, PostgresError> {
        static SHARED: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = shared.upgrade() {
            return Ok(server);
        }
        let server = Arc::new(Self::start(&PostgresOptions {
            durable: false,
            settings: Vec::new(),
        })?);
        *shared = Arc::downgrade(&server);
        Ok(server)
    }

    fn initialise(&self, options: &PostgresOptions) -> Result<(), PostgresError> {
        let mut initdb = self.command("initdb");
        initdb.arg("-D").arg(self.data()).args([
            "-U",
            USER,
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
        ]);
        initdb.args(["--no-sync", "--no-instructions", "--wal-segsize=4"]);
        finish("initdb", initdb.output())?;
        let switch = if options.durable { "on" } else { "off" };
        let mut settings = format!(
            "listen_addresses = '127.0.0.1'\nunix_socket_directories = ''\nmax_connections = 200\n\
             fsync = {switch}\nsynchronous_commit = on\nfull_page_writes = {switch}\n"
        );
        for (name, value) in &options.settings {
            settings.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
        }
        // Included last, so that it wins over what initdb wrote.
        let path = self.data().join("postgresql.auto.conf");
        fs::write(&path, settings).map_err(|source| PostgresError::File { path, source })
    }

    /// Starts the server again after [`stop`](Self::stop) or [`kill`](Self::kill), on the same port with the same
    /// data. Does nothing if it runs.
    pub fn start_again(&self) -> Result<(), PostgresError> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.is_some() {
            return Ok(());
        }
        let log = fs::File::create(self.log_path()).map_err(|source| PostgresError::File {
            path: self.log_path(),
            source,
        })?;
        // `read` returns when the pipe's other end, which only we hold, is closed by us or by our death.
        let script = r#""$0" "$@" </dev/null & server=$!; read -r line; kill -"${line:-QUIT}" $server; wait $server"#;
        let mut guard = self.unprivileged("sh");
        guard
            .args(["-c", script])
            .arg(self.binaries.join("postgres"));
        guard
            .arg("-D")
            .arg(self.data())
            .args(["-p", &self.port.to_string()]);
        let errors = log.try_clone().map_err(|source| PostgresError::File {
            path: self.log_path(),
            source,
        })?;
        let mut guard = guard
            .current_dir(self.directory.path())
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(|source| PostgresError::Run {
                program: "postgres".into(),
                source,
            })?;
        let input = guard.stdin.take();
        *running = Some(Running { guard, input });
        drop(running);
        self.wait_until_ready()
    }

    fn wait_until_ready(&self) -> Result<(), PostgresError> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            // The pid file's last line is the postmaster's own word for its state.
            let state = fs::read_to_string(self.pid_path()).unwrap_or_default();
            if state
                .lines()
                .nth(7)
                .is_some_and(|status| status.trim() == "ready")
            {
                return Ok(());
            }
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            let ended = running
                .as_mut()
                .is_some_and(|r| matches!(r.guard.try_wait(), Ok(Some(_))));
            // The guard outlives a server that could not bind its port, but the log knows.
            if ended || self.log().contains("could not bind") {
                break;
            }
            drop(running);
            thread::sleep(POLL);
        }
        Err(PostgresError::NotReady {
            port: self.port,
            log: self.log(),
        })
    }

    /// Stops the server in an orderly way: open connections are ended, nothing needs recovery.
    pub fn stop(&self) -> Result<(), PostgresError> {
        self.end("INT")
    }

    /// Ends the server at once, as a crash does; the next start recovers from the log.
    pub fn kill(&self) -> Result<(), PostgresError> {
        self.end("QUIT")
    }

    fn end(&self, signal: &str) -> Result<(), PostgresError> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut process) = running.take() else {
            return Ok(());
        };
        if let Some(mut input) = process.input.take() {
            // A guard that has already gone needs no word.
            let _ = io::Write::write_all(&mut input, format!("{signal}\n").as_bytes());
        }
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if matches!(process.guard.try_wait(), Ok(Some(_))) {
                return Ok(());
            }
            thread::sleep(POLL);
        }
        let pid = process.guard.id();
        let _ = process.guard.kill();
        Err(PostgresError::NotStopped { pid })
    }

    /// The TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The id of the server's first process, whose children are all others; `None` if it does not run.
    pub fn process(&self) -> Option<u32> {
        let text = fs::read_to_string(self.pid_path()).ok()?;
        text.lines().next()?.trim().parse().ok()
    }

    /// The URL of a database of this server.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/{database}", self.port)
    }

    /// Creates an empty database and returns its URL.
    pub fn create_database(&self, name: &str) -> Result<String, PostgresError> {
        self.psql(
            "postgres",
            &format!(
                "CREATE DATABASE \"{}\" TEMPLATE template0",
                name.replace('"', "\"\"")
            ),
        )?;
        Ok(self.url(name))
    }

    /// Runs SQL as the superuser in `database` and returns what `psql` prints, rows without decoration.
    pub fn psql(&self, database: &str, sql: &str) -> Result<String, PostgresError> {
        let mut psql = Command::new(self.binaries.join("psql"));
        psql.args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            "127.0.0.1",
            "-U",
            USER,
        ]);
        psql.args(["-p", &self.port.to_string(), "-d", database, "-c", sql]);
        finish("psql", psql.stdin(Stdio::null()).output())
    }

    /// The server's log since its last start.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("server.log")
    }

    fn pid_path(&self) -> PathBuf {
        self.data().join("postmaster.pid")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.unprivileged(self.binaries.join(program));
        command
            .current_dir(self.directory.path())
            .stdin(Stdio::null());
        command
    }

    /// `program`, to be run as the unprivileged user when we are root.
    fn unprivileged(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = match &self.account {
            None => return Command::new(program),
            Some(account) => {
                let mut command = Command::new("setpriv");
                command.args([
                    format!("--reuid={}", account.user),
                    format!("--regid={}", account.group),
                    "--clear-groups".into(),
                    "--".into(),
                ]);
                command
            }
        };
        command.arg(program);
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Nothing of the data is wanted any more, so the quick way is the right one.
        let _ = self.kill();
    }
}

fn finish(program: &str, output: io::Result<Output>) -> Result<String, PostgresError> {
    let output = output.map_err(|source| PostgresError::Run {
        program: program.into(),
        source,
    })?;
    let text = String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned();
    if output.status.success() {
        return Ok(text);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(PostgresError::Failed {
        program: program.into(),
        output: format!("{}{text}", errors.trim_end()),
    })
}

/// The directory that holds `initdb`, `postgres` and `psql`: the newest of Debian's, what `pg_config` names, or PATH.
fn find_binaries() -> Result<PathBuf, PostgresError> {
    let mut candidates: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            Some((
                entry.file_name().to_str()?.parse().ok()?,
                entry.path().join("bin"),
            ))
        })
        .collect();
    candidates.sort_by(|a, b| b.cmp(a));
    let mut directories: Vec<PathBuf> = candidates.into_iter().map(|(_, path)| path).collect();
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
        directories.push(PathBuf::from(
            String::from_utf8_lossy(&output.stdout).trim(),
        ));
    }
    directories.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    let complete = |path: &&PathBuf| {
        ["initdb", "postgres", "psql"]
            .iter()
            .all(|name| path.join(name).is_file())
    };
    directories
        .iter()
        .find(complete)
        .cloned()
        .ok_or_else(|| PostgresError::NotInstalled {
            looked_in: format!(
                "/usr/lib/postgresql/*/bin, pg_config --bindir and PATH ({} directories)",
                directories.len()
            ),
        })
}

/// Nobody if we are not root: then the server runs as ourselves.
fn unprivileged_account() -> Result<Option<Account>, PostgresError> {
    let own = Path::new("/proc/self");
    let user = fs::metadata(own)
        .map_err(|source| PostgresError::File {
            path: own.to_owned(),
            source,
        })?
        .uid();
    if user != 0 {
        return Ok(None);
    }
    let accounts = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let find = |wanted: &str| {
        accounts.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            match fields[..] {
                [name, _, user, group, ..] if name == wanted => Some(Account {
                    user: user.parse().ok()?,
                    group: group.parse().ok()?,
                }),
                _ => None,
            }
        })
    };
    find("postgres")
        .or_else(|| find("nobody"))
        .map(Some)
        .ok_or(PostgresError::NoUnprivilegedUser)
}

fn free_port() -> Result<u16, PostgresError> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|source| PostgresError::Run {
            program: "bind on 127.0.0.1".into(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_starts_keeps_its_data_over_a_crash_and_stops() {
        if skipped() {
            return;
        }
        let server =
            Postgres::start(&PostgresOptions::default()).expect("a private PostgreSQL server");
        server.create_database("one").unwrap();
        server
            .psql("one", "CREATE TABLE t (x bigint); INSERT INTO t VALUES (7)")
            .unwrap();
        server.kill().unwrap();
        assert!(server.psql("one", "SELECT 1").is_err());
        server.start_again().unwrap();
        assert_eq!(server.psql("one", "SELECT x FROM t").unwrap(), "7");
        let pid = server.process().unwrap();
        drop(server);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
