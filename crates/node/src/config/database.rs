//! `dataSourceProperties` and `database`.

use std::path::Path;
use std::time::Duration;

use quorate_runtime::Secret;
use quorate_runtime::config::Section;
use quorate_storage::{DatabaseUrl, Options, UrlError};

/// The SQLite file that a node without `dataSourceProperties` has in its base directory.
pub const DEFAULT_FILE: &str = "persistence.db";

/// PostgreSQL's bound on names.
const MAX_SCHEMA_BYTES: usize = 63;

/// Where everything durable is.
#[derive(Debug, Clone)]
pub struct DatabaseConfiguration {
    /// The database. `Display` shows it without user and password.
    pub url: DatabaseUrl,
    /// `dataSource.user`; wins over the URL's.
    pub user: Option<String>,
    /// `dataSource.password`; wins over the URL's.
    pub password: Option<Secret>,
    /// `database.schema`
    pub schema: Option<String>,
    /// Whether the schema is brought up to date at start, instead of refusing to start. In development mode this is
    /// the default.
    pub run_migration: bool,
    /// Connections that read, from `maximumPoolSize`.
    pub readers: Option<u32>,
    /// How long a connection may take, from `connectionTimeout`.
    pub connect_timeout: Option<Duration>,
}

/// After how long the server ends the transaction of a worker that has stopped in the middle of it: the other workers wait
/// for it.
const STOPPED_WORKER: Duration = Duration::from_secs(2);

/// Connections for reading what a notary's workers share: they hardly read.
const SHARED_READERS: u32 = 2;

impl DatabaseConfiguration {
    /// What the store is opened with that a notary's workers share.
    pub fn shared_store_options(&self) -> Options {
        let mut options = self.store_options();
        options.readers = self.readers.unwrap_or(SHARED_READERS);
        options.idle_transaction_timeout = STOPPED_WORKER;
        options
    }

    /// What the store is opened with.
    pub fn store_options(&self) -> Options {
        let mut options = Options::new(self.url.clone());
        options.user = self.user.clone();
        options.password = self.password.clone();
        options.schema = self.schema.clone();
        if let Some(readers) = self.readers {
            options.readers = readers;
        }
        if let Some(timeout) = self.connect_timeout {
            options.connect_timeout = timeout;
        }
        options
    }
}

/// The engines that a `dataSourceClassName` may stand for.
#[derive(Clone, Copy, PartialEq)]
enum Engine {
    Postgres,
    Sqlite,
}

pub(super) fn decode(
    root: &Section<'_>,
    base: &Path,
    dev_mode: bool,
) -> Option<DatabaseConfiguration> {
    let properties = root.section("dataSourceProperties");
    let source = properties.section("dataSource");
    let class = class_name(&properties);
    let found = match url(&source, "url") {
        Url::Missing => url(&properties, "jdbcUrl"),
        found => found,
    };
    let url = match found {
        Url::Is(url) => Some(url),
        Url::Wrong => None,
        Url::Missing if !properties.is_present() || class == Some(Engine::Sqlite) => {
            let url = DatabaseUrl::Sqlite {
                path: DEFAULT_FILE.into(),
            };
            source.show("url", url.to_string());
            Some(url)
        }
        // A refused class has been reported, and a URL would not mend it.
        Url::Missing if properties.has("dataSourceClassName") && class.is_none() => None,
        Url::Missing => {
            properties.problem(
                "dataSource",
                "`url` is missing; write for example \"jdbc:postgresql://host:5432/database\", or remove \
                 dataSourceProperties to use a SQLite file in the base directory",
            );
            None
        }
    };
    if let (Some(class), Some(url)) = (class, &url) {
        let named = if matches!(url, DatabaseUrl::Postgres { .. }) {
            Engine::Postgres
        } else {
            Engine::Sqlite
        };
        if class != named {
            properties.problem(
                "dataSourceClassName",
                "is of another engine than dataSource.url; make them agree",
            );
        }
    }
    let user = source.text("user").or_else(|| properties.text("username"));
    let password = source.secret("password");
    let password = password.or_else(|| properties.secret("password"));
    let is_sqlite = matches!(url, Some(DatabaseUrl::Sqlite { .. }));
    if is_sqlite && (user.is_some() || password.is_some()) {
        source.warning("user", "has no effect: a SQLite file has no users");
    }
    if let Some(DatabaseUrl::Postgres { ignored, .. }) = &url
        && !ignored.is_empty()
    {
        source.warning(
            "url",
            format!("these parameters have no effect: {}", ignored.join(", ")),
        );
    }

    let readers = properties
        .integer("maximumPoolSize", 1..=1000)
        .map(|size| size as u32);
    let connect_timeout = properties.has("connectionTimeout").then(|| {
        properties.duration_or(
            "connectionTimeout",
            "milliseconds",
            Duration::from_secs(10),
            Duration::from_millis(100)..=Duration::from_secs(600),
        )
    });
    for key in [
        "minimumIdle",
        "idleTimeout",
        "maxLifetime",
        "autoCommit",
        "connectionTestQuery",
        "poolName",
    ] {
        properties.unneeded(key, "the connections are managed by the node");
    }

    let section = root.section("database");
    let run_migration = section.boolean_or("runMigration", dev_mode);
    let schema = section.text("schema");
    if let Some(schema) = &schema {
        let odd = |c: char| c.is_control() || matches!(c, '"' | '\'' | '\\' | ';');
        if schema.is_empty() || schema.len() > MAX_SCHEMA_BYTES || schema.contains(odd) {
            section.problem(
                "schema",
                format!("must be a plain name of at most {MAX_SCHEMA_BYTES} bytes"),
            );
        } else if is_sqlite {
            section.warning("schema", "has no effect: a SQLite file has no schemas");
        }
    }
    if let Some(level) = section.raw_text("transactionIsolationLevel") {
        const LEVELS: [&str; 5] = [
            "NONE",
            "READ_UNCOMMITTED",
            "READ_COMMITTED",
            "REPEATABLE_READ",
            "SERIALIZABLE",
        ];
        if LEVELS.contains(&level) {
            section.unneeded(
                "transactionIsolationLevel",
                "each transaction of the node uses the level it needs",
            );
        } else {
            section.problem(
                "transactionIsolationLevel",
                format!("must be one of {}; or remove it", LEVELS.join(", ")),
            );
        }
    }
    for key in ["initialiseSchema", "initialiseAppSchema"] {
        section.unneeded(key, "`runMigration` decides about migrations");
    }
    for key in [
        "exportHibernateJMXStatistics",
        "hibernateDialect",
        "mappedSchemaCacheSize",
        "serverNameTablePrefix",
    ] {
        section.unneeded(key, "there is no Hibernate here");
    }
    section.finish();
    source.finish();
    properties.finish();
    let url = match url? {
        DatabaseUrl::Sqlite { path } => DatabaseUrl::Sqlite {
            path: base.join(path),
        },
        postgres @ DatabaseUrl::Postgres { .. } => postgres,
    };
    Some(DatabaseConfiguration {
        url,
        user,
        password,
        schema,
        run_migration,
        readers,
        connect_timeout,
    })
}

enum Url {
    Missing,
    Wrong,
    Is(DatabaseUrl),
}

fn url(source: &Section<'_>, key: &str) -> Url {
    let Some(text) = source.raw_text(key) else {
        return if source.has(key) {
            Url::Wrong
        } else {
            Url::Missing
        };
    };
    match text.parse::<DatabaseUrl>() {
        Ok(url) => {
            source.show(key, url.to_string());
            Url::Is(url)
        }
        Err(UrlError::Engine { engine }) => {
            source.problem(key, refusal(engine_name(&engine)));
            Url::Wrong
        }
        Err(error) => {
            source.problem(key, error.to_string());
            Url::Wrong
        }
    }
}

/// The engine of `dataSourceClassName`; a class of an engine that we do not have is refused by the engine's name.
fn class_name(properties: &Section<'_>) -> Option<Engine> {
    let class = properties.text("dataSourceClassName")?;
    let lower = class.to_ascii_lowercase();
    if lower.contains("postgresql") {
        return Some(Engine::Postgres);
    }
    if lower.contains("sqlite") {
        return Some(Engine::Sqlite);
    }
    let engine = ["sqlserver", "oracle", "h2", "mysql", "mariadb", "cockroach"]
        .into_iter()
        .find(|engine| lower.contains(engine))
        .map_or_else(
            || format!("that `{}` connects to", class.escape_debug()),
            |engine| engine_name(engine).to_owned(),
        );
    properties.problem("dataSourceClassName", refusal(&engine));
    None
}

/// How an engine is called by people.
fn engine_name(scheme: &str) -> &str {
    match scheme {
        "sqlserver" | "jtds" => "Microsoft SQL Server",
        "oracle" => "Oracle",
        "h2" => "H2",
        "mysql" => "MySQL",
        "mariadb" => "MariaDB",
        "cockroach" | "cockroachdb" => "CockroachDB",
        other => other,
    }
}

fn refusal(engine: &str) -> String {
    format!(
        "the database engine {engine} is not supported; use PostgreSQL (dataSourceClassName = \
         \"org.postgresql.ds.PGSimpleDataSource\", dataSource.url = \"jdbc:postgresql://host:5432/database\"), or remove \
         dataSourceProperties to use a SQLite file in the base directory"
    )
}
