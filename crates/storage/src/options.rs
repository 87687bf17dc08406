//! Where the database is and how it is used: plain data, checked before anything is opened.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use quorate_runtime::Secret;

/// Connections that read, unless configured otherwise.
pub const DEFAULT_READERS: u32 = 4;
/// How long a connection may take to be made or to become free.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one statement may run.
pub const DEFAULT_STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// After how long the server ends the transaction of a process that has stopped in the middle of it.
pub const DEFAULT_IDLE_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);
/// PostgreSQL's port.
pub const DEFAULT_POSTGRES_PORT: u16 = 5432;

/// Whether the connection to PostgreSQL is encrypted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Tls {
    /// Never.
    Off,
    /// If the server offers it; its certificate is not checked.
    #[default]
    Prefer,
    /// Always; the server's certificate is not checked.
    Require,
    /// Always, and the server's certificate and name are checked.
    Verify {
        /// The authority that the server's certificate must come from, PEM; the system's if absent.
        root: Option<PathBuf>,
    },
}

/// A database, as an operator names it.
///
/// Understood are PostgreSQL's URLs (`postgres://`, `postgresql://`), SQLite's (`sqlite:path`) and the JDBC forms of
/// both (`jdbc:postgresql://host:5432/db?currentSchema=node`, `jdbc:sqlite:path`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatabaseUrl {
    /// A PostgreSQL server.
    Postgres {
        /// Host name or address.
        host: String,
        /// TCP port.
        port: u16,
        /// The database on that server.
        database: String,
        /// The user, if the URL names one.
        user: Option<String>,
        /// The password, if the URL holds one.
        password: Option<Secret>,
        /// The schema, if the URL names one.
        schema: Option<String>,
        /// Encryption, if the URL says.
        tls: Option<Tls>,
        /// Parameters of the URL that have no meaning here, to be warned about.
        ignored: Vec<String>,
    },
    /// A SQLite file.
    Sqlite {
        /// The file.
        path: PathBuf,
    },
}

/// A database URL cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// An engine that we do not have.
    #[error(
        "the database engine '{engine}' is not supported: use PostgreSQL (jdbc:postgresql://HOST/DATABASE) or SQLite (jdbc:sqlite:FILE)"
    )]
    Engine {
        /// Its name.
        engine: String,
    },
    /// A part is missing or cannot be understood.
    #[error("the database URL cannot be used: {reason}")]
    Malformed {
        /// What is wrong with it.
        reason: String,
    },
}

fn malformed(reason: impl Into<String>) -> UrlError {
    UrlError::Malformed {
        reason: reason.into(),
    }
}

impl FromStr for DatabaseUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let text = text.trim();
        let url = text.strip_prefix("jdbc:").unwrap_or(text);
        let Some((engine, rest)) = url.split_once(':') else {
            return Err(malformed(
                "it names no engine, such as postgres://HOST/DATABASE or sqlite:FILE",
            ));
        };
        match engine.to_ascii_lowercase().as_str() {
            "postgres" | "postgresql" => postgres(rest),
            "sqlite" | "file" => sqlite(rest),
            other => Err(UrlError::Engine {
                engine: other.chars().take(32).collect(),
            }),
        }
    }
}

fn sqlite(rest: &str) -> Result<DatabaseUrl, UrlError> {
    let (path, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let path = path.strip_prefix("//").unwrap_or(path);
    let path = path.strip_prefix("file:").unwrap_or(path);
    if path.is_empty() || path.contains(":memory:") || parameters.contains("mode=memory") {
        return Err(malformed(
            "a database in memory is gone with the process; name a file, as in sqlite:node.db",
        ));
    }
    if !parameters.is_empty() {
        return Err(malformed(
            "a SQLite URL takes no parameters; remove what follows '?'",
        ));
    }
    Ok(DatabaseUrl::Sqlite {
        path: PathBuf::from(decode(path)?),
    })
}

fn postgres(rest: &str) -> Result<DatabaseUrl, UrlError> {
    let Some(rest) = rest.strip_prefix("//") else {
        return Err(malformed(
            "after 'postgresql:' comes //HOST[:PORT]/DATABASE",
        ));
    };
    let (address, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = address.split_once('/').unwrap_or((address, ""));
    let (credentials, server) = match authority.rsplit_once('@') {
        Some((credentials, server)) => (Some(credentials), server),
        None => (None, authority),
    };
    if server.contains(',') {
        return Err(malformed(
            "it names several servers; put them behind one address that leads to the primary",
        ));
    }
    let (mut user, mut password) = (None, None);
    if let Some(credentials) = credentials {
        let (name, secret) = match credentials.split_once(':') {
            Some((name, secret)) => (name, Some(secret)),
            None => (credentials, None),
        };
        user = Some(decode(name)?);
        password = secret.map(decode).transpose()?.map(Secret::new);
    }
    // An IPv6 address stands in brackets and has colons of its own.
    let (host, port) = match server
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
    {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => match server.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (server, None),
        },
    };
    let port = match port {
        None | Some("") => DEFAULT_POSTGRES_PORT,
        Some(port) => port
            .parse()
            .map_err(|_| malformed(format!("'{port}' is not a port")))?,
    };
    if host.is_empty() || database.is_empty() {
        return Err(malformed(
            "it lacks a host or a database: //HOST[:PORT]/DATABASE",
        ));
    }
    let (mut schema, mut tls, mut root, mut ignored) = (None, None, None, Vec::new());
    for parameter in parameters
        .split('&')
        .filter(|parameter| !parameter.is_empty())
    {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let value = decode(value)?;
        match name {
            "currentSchema" | "schema" => schema = Some(value),
            "user" => user = Some(value),
            "password" => password = Some(Secret::new(value)),
            "sslrootcert" => root = Some(PathBuf::from(value)),
            "ssl" if value == "false" => tls = Some(Tls::Off),
            "ssl" => tls = Some(Tls::Verify { root: None }),
            "sslmode" => {
                tls = Some(match value.as_str() {
                    "disable" => Tls::Off,
                    "allow" | "prefer" => Tls::Prefer,
                    "require" => Tls::Require,
                    "verify-ca" | "verify-full" => Tls::Verify { root: None },
                    other => return Err(malformed(format!("'{other}' is not an sslmode"))),
                });
            }
            other => ignored.push(other.to_owned()),
        }
    }
    if root.is_some() {
        tls = Some(Tls::Verify { root });
    }
    Ok(DatabaseUrl::Postgres {
        host: host.to_owned(),
        port,
        database: decode(database)?,
        user,
        password,
        schema,
        tls,
        ignored,
    })
}

/// Undoes percent-encoding.
fn decode(text: &str) -> Result<String, UrlError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| byte.and_then(|b| (b as char).to_digit(16));
        match (digit(rest.next()), digit(rest.next())) {
            (Some(high), Some(low)) => bytes.push((high * 16 + low) as u8),
            _ => {
                return Err(malformed(
                    "a '%' is not followed by two hexadecimal digits (write %25 for '%')",
                ));
            }
        }
    }
    String::from_utf8(bytes).map_err(|_| malformed("its percent-encoded characters are not UTF-8"))
}

impl fmt::Display for DatabaseUrl {
    /// Without user, password and parameters: fit for logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postgres {
                host,
                port,
                database,
                ..
            } => write!(f, "postgres://{host}:{port}/{database}"),
            Self::Sqlite { path } => write!(f, "sqlite:{}", path.display()),
        }
    }
}

/// How the units of work of many callers share one database transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupCommit {
    /// Units that may wait; further callers wait until there is room.
    pub queue: usize,
    /// The most units in one transaction.
    pub max_units: usize,
    /// No further unit joins a transaction that holds this many bytes already.
    pub max_bytes: usize,
    /// How long a lost connection is tried again before the waiting units are given up.
    pub patience: Duration,
}

impl Default for GroupCommit {
    fn default() -> Self {
        Self {
            queue: 4_096,
            max_units: 512,
            max_bytes: 16 << 20,
            patience: Duration::from_secs(5),
        }
    }
}

/// How a [`Store`](crate::Store) is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// The database.
    pub url: DatabaseUrl,
    /// The user; wins over the URL's.
    pub user: Option<String>,
    /// The password; wins over the URL's.
    pub password: Option<Secret>,
    /// PostgreSQL's schema for our tables; wins over the URL's. Made by the first migration if it does not exist.
    pub schema: Option<String>,
    /// Encryption of the connection to PostgreSQL; wins over the URL's.
    pub tls: Option<Tls>,
    /// Connections that read.
    pub readers: u32,
    /// How long a connection may take to be made or to become free.
    pub connect_timeout: Duration,
    /// How long one statement may run.
    pub statement_timeout: Duration,
    /// After how long the server ends the transaction of a process that has stopped in the middle of it. A backstop: a
    /// takeover ends it at once.
    pub idle_transaction_timeout: Duration,
    /// Group commit.
    pub group_commit: GroupCommit,
}

impl Options {
    /// The defaults for the database at `url`.
    pub fn new(url: DatabaseUrl) -> Self {
        Self {
            url,
            user: None,
            password: None,
            schema: None,
            tls: None,
            readers: DEFAULT_READERS,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            statement_timeout: DEFAULT_STATEMENT_TIMEOUT,
            idle_transaction_timeout: DEFAULT_IDLE_TRANSACTION_TIMEOUT,
            group_commit: GroupCommit::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_operators_are_understood() {
        let jdbc: DatabaseUrl =
            "jdbc:postgresql://db.example:5433/node?currentSchema=party_b&sslmode=require&x=1"
                .parse()
                .unwrap();
        let DatabaseUrl::Postgres {
            host,
            port,
            database,
            schema,
            tls,
            ignored,
            ..
        } = jdbc.clone()
        else {
            panic!("{jdbc:?}")
        };
        assert_eq!(
            (host.as_str(), port, database.as_str()),
            ("db.example", 5433, "node")
        );
        assert_eq!(
            (schema.as_deref(), tls),
            (Some("party_b"), Some(Tls::Require))
        );
        assert_eq!(ignored, ["x"]);
        let plain: DatabaseUrl = "postgres://me:p%40ss@[::1]/x".parse().unwrap();
        let DatabaseUrl::Postgres {
            host,
            port,
            user,
            password,
            ..
        } = &plain
        else {
            panic!("{plain:?}")
        };
        assert_eq!(
            (host.as_str(), *port, user.as_deref()),
            ("::1", 5432, Some("me"))
        );
        assert_eq!(password.as_ref().map(Secret::expose), Some("p@ss"));
        assert!(!format!("{plain:?} {plain}").contains("p@ss"));
        for url in [
            "sqlite:/a/b.db",
            "jdbc:sqlite:/a/b.db",
            "sqlite:///a/b.db",
            "jdbc:sqlite:file:/a/b.db",
        ] {
            assert_eq!(
                url.parse(),
                Ok(DatabaseUrl::Sqlite {
                    path: "/a/b.db".into()
                }),
                "{url}"
            );
        }
    }

    #[test]
    fn urls_that_cannot_be_used_say_why() {
        for (url, wanted) in [
            ("jdbc:h2:file:./persistence", "'h2' is not supported"),
            (
                "jdbc:sqlserver://x;databaseName=y",
                "'sqlserver' is not supported",
            ),
            ("jdbc:oracle:thin:@x", "'oracle' is not supported"),
            ("node.db", "names no engine"),
            ("postgres:node", "comes //HOST"),
            ("postgres://a:b@/x", "lacks a host"),
            ("postgres://h:port/x", "'port' is not a port"),
            ("postgres://h1,h2/x", "several servers"),
            ("postgres://h/x?sslmode=never", "not an sslmode"),
            ("postgres://h/x%zz", "two hexadecimal digits"),
            ("sqlite::memory:", "gone with the process"),
            ("sqlite:", "gone with the process"),
        ] {
            let error = url.parse::<DatabaseUrl>().unwrap_err().to_string();
            assert!(error.contains(wanted), "{url}: {error}");
        }
    }
}
