//! `quorate database`: the schema of a node's database, looked at and brought up to date; and the
//! audit of RPC and what a notary has let be spent, read out.
//!
//! For a migration the node must not run: on PostgreSQL it waits for nobody, on SQLite it is
//! refused. Reading the audit disturbs nobody.

use std::fs;
use std::io::{self, BufWriter, ErrorKind, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use quorate_ledger::schema::MappedSchema;
use quorate_ledger::{StateRef, Timestamp};
use quorate_node::config::{DatabaseConfiguration, NodeConfiguration};
use quorate_runtime::Secret;
use quorate_runtime::config::OnUnknownKeys;
use quorate_storage::migrate::{self, Migration, MigrationState};
use quorate_storage::{Engine, RpcAuditFilter, RpcAuditRecord, SpentState, Store};
use serde_json::json;

use crate::node::Place;

/// Look at and migrate a node's database, and read the audit of RPC
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    place: Place,
    /// A database user with the right to change the schema, instead of the node's own
    #[arg(long, global = true, requires = "db_admin_password_file")]
    db_admin_user: Option<String>,
    /// A file whose first line is that user's password
    #[arg(long, global = true, requires = "db_admin_user")]
    db_admin_password_file: Option<PathBuf>,
    /// Which database
    #[arg(long, global = true, value_enum, ignore_case = true, default_value_t)]
    mode: Mode,
    #[command(subcommand)]
    command: Command,
}

/// Which of the databases that a configuration names.
#[derive(Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Mode {
    /// The node's own
    #[default]
    #[value(name = "NODE")]
    Node,
    /// The one that the workers of a notary share: notary.jpa.dataSourceProperties
    #[value(name = "JPA_NOTARY")]
    Notary,
}

#[derive(Subcommand)]
enum Command {
    /// Tell which migrations the database has; exit code 2 if any is missing
    Status,
    /// Print the SQL of the missing migrations, and run nothing
    DryRun,
    /// Run the missing migrations, all or none
    ExecuteMigration,
    /// End a migration that hangs
    ReleaseLock,
    /// Read out what users asked for by RPC, if auditService.eventsToRecord is RPC or ALL
    RpcAudit(Selection),
    /// Read out what the notary has let be spent, and check it; exit code 3 if something is missing
    SpentStates {
        /// This state only, as TRANSACTION(INDEX)
        #[arg(long)]
        state: Option<StateRef>,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Print the SQL of everything that an application keeps, whatever the database has
    #[command(name = "create-migration-sql-for-cordapp")]
    CreateMigrationSql {
        /// The application; all if left out
        application: Option<String>,
        /// For which database; the node's if left out
        #[arg(long)]
        engine: Option<EngineName>,
    },
}

/// Which calls.
#[derive(Args)]
struct Selection {
    /// Recorded at this time or later: 2026-01-31T09:30:00Z
    #[arg(long, value_name = "TIME")]
    from: Option<Timestamp>,
    /// Recorded before this time
    #[arg(long, value_name = "TIME")]
    until: Option<Timestamp>,
    /// Of this user
    #[arg(long)]
    user: Option<String>,
    /// Of this operation, as startFlow
    #[arg(long)]
    action: Option<String>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum EngineName {
    Postgres,
    Sqlite,
}

/// The exit code for a schema that is not current.
const NOT_CURRENT: u8 = 2;

/// The exit codes for a state that is not spent, and for damage.
const NOT_SPENT: u8 = 1;
const BROKEN: u8 = 3;

/// Calls that are read at a time.
const AUDIT_PAGE: u32 = 1_000;

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode> {
    match &arguments.command {
        Command::CreateMigrationSql {
            application,
            engine,
        } => {
            let engine = match engine {
                Some(EngineName::Postgres) => Engine::Postgres,
                Some(EngineName::Sqlite) => Engine::Sqlite,
                None => engine_of(of_mode(&configuration(&arguments)?, arguments.mode)?),
            };
            let schemas = schemas_of(application.as_deref())?;
            print!("{}", migrate::application_sql(engine, schemas)?);
            Ok(ExitCode::SUCCESS)
        }
        command => {
            let store = open(&arguments).await?;
            let result = with_store(command, &store).await;
            store.close().await;
            result
        }
    }
}

async fn with_store(command: &Command, store: &Store) -> Result<ExitCode> {
    match command {
        Command::Status => {
            let migrations = migrate::status(store).await?;
            println!("Database: {}", store.name());
            print_table(&migrations);
            let pending = migrations
                .iter()
                .filter(|migration| migration.state == MigrationState::Pending)
                .count();
            match migrate::check_current(store).await {
                Ok(()) => {
                    println!("The schema is current.");
                    Ok(ExitCode::SUCCESS)
                }
                Err(_) if pending > 0 => {
                    println!(
                        "{pending} missing: see them with `quorate database dry-run`, \
                         run them with `quorate database execute-migration`."
                    );
                    Ok(ExitCode::from(NOT_CURRENT))
                }
                Err(error) => Err(error.into()),
            }
        }
        Command::DryRun => {
            let script = migrate::dry_run(store).await?;
            if script.is_empty() {
                eprintln!("Nothing is missing in {}.", store.name());
            } else {
                print!("{script}");
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::ExecuteMigration => {
            let done = migrate::execute(store).await?;
            println!("Database: {}", store.name());
            if done.is_empty() {
                println!("Nothing was missing.");
            } else {
                let width = component_width(&done);
                for migration in &done {
                    println!(
                        "  {:<width$} {:>3}  {}",
                        migration.component, migration.version, migration.description
                    );
                }
                println!("Done: {} run.", done.len());
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::ReleaseLock => {
            let ended = migrate::release_lock(store).await?;
            if store.engine() == Engine::Sqlite {
                println!(
                    "A SQLite file is locked by a running process only: end that process, and \
                     the lock is gone."
                );
            } else if ended == 0 {
                println!("No migration holds the lock of {}.", store.name());
            } else {
                println!("Ended {ended} migration(s). Nothing of them has happened.");
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::RpcAudit(selection) => {
            migrate::check_current(store).await?;
            read_rpc_audit(selection, store).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::SpentStates { state, json } => {
            migrate::check_current(store).await?;
            match state {
                Some(state) => one_spent_state(state, *json, store).await,
                None => read_spent_states(*json, store).await,
            }
        }
        Command::CreateMigrationSql { .. } => bail!("this needs no database"),
    }
}

/// Prints the calls, oldest first, page by page: there may be millions.
async fn read_rpc_audit(selection: &Selection, store: &Store) -> Result<()> {
    let filter = RpcAuditFilter {
        from: selection.from,
        until: selection.until,
        username: selection.user.clone(),
        action: selection.action.clone(),
    };
    let mut out = BufWriter::new(io::stdout());
    let mut after = None;
    loop {
        let page = store.rpc_audit(&filter, after, AUDIT_PAGE).await?;
        for record in &page {
            let line = if selection.json {
                audit_json(record).to_string()
            } else {
                audit_line(record)
            };
            match writeln!(out, "{line}") {
                // Whoever reads has seen enough.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
                other => other?,
            }
        }
        match page.last() {
            Some(last) if page.len() == AUDIT_PAGE as usize => {
                after = Some((last.recorded_at, last.id));
            }
            _ => break,
        }
    }
    match out.flush() {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Prints everything that is spent, page by page, and counts.
async fn read_spent_states(json: bool, store: &Store) -> Result<ExitCode> {
    let mut out = BufWriter::new(io::stdout());
    let (mut after, mut count, mut broken) = (None, 0_u64, 0_u64);
    loop {
        let page = store.spent_states(after, AUDIT_PAGE).await?;
        for spent in &page {
            count += 1;
            broken += u64::from(spent.request.is_none());
            match writeln!(out, "{}", spent_line(spent, json)) {
                // Whoever reads has seen enough.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                    return Ok(ExitCode::SUCCESS);
                }
                other => other?,
            }
        }
        match page.last() {
            Some(last) if page.len() == AUDIT_PAGE as usize => after = Some(last.state),
            _ => break,
        }
    }
    match out.flush() {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
        other => other?,
    }
    eprintln!("{count} states are spent in {}.", store.name());
    if broken > 0 {
        eprintln!(
            "{broken} of them by transactions that the database lacks: it is damaged, or was edited."
        );
        return Ok(ExitCode::from(BROKEN));
    }
    Ok(ExitCode::SUCCESS)
}

async fn one_spent_state(state: &StateRef, json: bool, store: &Store) -> Result<ExitCode> {
    match store.spent_state(state).await? {
        Some(spent) => {
            println!("{}", spent_line(&spent, json));
            let broken = spent.request.is_none();
            Ok(if broken {
                ExitCode::from(BROKEN)
            } else {
                ExitCode::SUCCESS
            })
        }
        None => {
            eprintln!("{state} is not spent, as far as {} knows.", store.name());
            Ok(ExitCode::from(NOT_SPENT))
        }
    }
}

fn spent_line(spent: &SpentState, json: bool) -> String {
    let SpentState {
        state,
        consumed_by,
        request,
    } = spent;
    match (json, request) {
        (true, request) => json!({
            "state": state,
            "consumedBy": consumed_by,
            "requester": request.as_ref().map(|(requester, _)| requester),
            "committedAt": request.as_ref().map(|(_, at)| at),
        })
        .to_string(),
        (false, Some((requester, at))) => {
            format!("{at}  {state}  by {consumed_by}  for {requester}")
        }
        (false, None) => format!("MISSING  {state}  by {consumed_by}, which the database lacks"),
    }
}

/// Under Corda's names.
fn audit_json(record: &RpcAuditRecord) -> serde_json::Value {
    json!({
        "invocationtime": record.recorded_at,
        "invocationid": call_id(record),
        "username": record.username,
        "interface": record.interface,
        "action": record.action,
        "parameters": record.parameters,
        "allowed": record.allowed,
    })
}

fn audit_line(record: &RpcAuditRecord) -> String {
    let RpcAuditRecord {
        recorded_at,
        username,
        interface,
        action,
        parameters,
        allowed,
        ..
    } = record;
    let allowed = if *allowed { "allowed" } else { "REFUSED" };
    let id = call_id(record);
    format!("{recorded_at}  {id}  {allowed}  {username}  {interface}  {action}({parameters})")
}

fn call_id(record: &RpcAuditRecord) -> String {
    let id = u128::from_be_bytes(record.id);
    format!("{id:032x}")
}

fn configuration(arguments: &Arguments) -> Result<NodeConfiguration> {
    arguments.place.configuration(OnUnknownKeys::default())
}

/// The database that is meant.
fn of_mode(configuration: &NodeConfiguration, mode: Mode) -> Result<&DatabaseConfiguration> {
    let notary = configuration.notary.as_ref();
    match mode {
        Mode::Node => Ok(&configuration.database),
        Mode::Notary => notary
            .and_then(|notary| notary.shared_database.as_ref())
            .context("the configuration has no notary.jpa.dataSourceProperties"),
    }
}

fn engine_of(database: &DatabaseConfiguration) -> Engine {
    match database.url {
        quorate_storage::DatabaseUrl::Postgres { .. } => Engine::Postgres,
        quorate_storage::DatabaseUrl::Sqlite { .. } => Engine::Sqlite,
    }
}

async fn open(arguments: &Arguments) -> Result<Store> {
    let configuration = configuration(arguments)?;
    let database = of_mode(&configuration, arguments.mode)?;
    let mut options = database.store_options();
    if let Some(user) = &arguments.db_admin_user {
        if engine_of(database) == Engine::Sqlite {
            bail!("--db-admin-user has no meaning: a SQLite file has no users");
        }
        options.user = Some(user.clone());
    }
    if let Some(file) = &arguments.db_admin_password_file {
        let text = fs::read_to_string(file)
            .with_context(|| format!("reading the password from {}", file.display()))?;
        options.password = text.lines().next().map(Secret::new);
    }
    let schemas = match arguments.mode {
        Mode::Node => schemas_of(None)?,
        // No application keeps anything there.
        Mode::Notary => Vec::new(),
    };
    Ok(Store::connect(options, schemas).await?)
}

/// The tables of one application, or of all.
fn schemas_of(application: Option<&str>) -> Result<Vec<MappedSchema>> {
    let applications = crate::applications();
    let Some(name) = application else {
        return Ok(applications.iter().flat_map(|app| app.schemas()).collect());
    };
    match applications.iter().find(|app| app.name() == name) {
        Some(app) => Ok(app.schemas()),
        None => {
            let names: Vec<&str> = applications.iter().map(|app| app.name()).collect();
            bail!(
                "the application '{name}' is not installed; installed: {}",
                names.join(", ")
            )
        }
    }
}

fn component_width(migrations: &[Migration]) -> usize {
    let component = |migration: &Migration| migration.component.len();
    migrations.iter().map(component).max().unwrap_or_default()
}

fn print_table(migrations: &[Migration]) {
    let width = component_width(migrations);
    for migration in migrations {
        let state = match migration.state {
            MigrationState::Applied(at) => format!("applied {at}"),
            MigrationState::Pending => "MISSING".to_owned(),
            MigrationState::Changed => "DIFFERENT from this program's".to_owned(),
            MigrationState::Unknown(at) => format!("applied {at}, unknown to this program"),
        };
        println!(
            "  {:<width$} {:>3}  {state:<38}  {}",
            migration.component, migration.version, migration.description
        );
    }
}
