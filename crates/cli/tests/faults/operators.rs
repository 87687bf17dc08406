//! What operators get wrong, and what somebody does to the lease's table by hand: each has a clear outcome, and an error
//! that says what to do.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quorate_testkit::postgres;
use tokio::time::timeout;

use crate::support::books::Books;
use crate::support::network::{Engine, Machine, Network, NodePlan};
use crate::support::{Alone, PATIENCE, until};

/// Runs a node that must refuse to start: everything it said.
async fn refused(machine: &Machine) -> Result<String> {
    let mut command = tokio::process::Command::from(machine.command(&[]));
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(PATIENCE, command.output())
        .await
        .with_context(|| format!("{} has not refused to start", machine.label))??;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    ensure!(
        !output.status.success(),
        "it has ended as if all were well: {text}"
    );
    ensure!(!text.contains("panicked"), "{text}");
    Ok(text)
}

/// The last line of what it said is the refusal: it names all of this.
fn check_names(text: &str, wanted: &[&str]) -> Result<()> {
    let refusal = text.lines().rev().take(8).collect::<Vec<_>>().join("\n");
    for word in wanted {
        ensure!(
            refusal.contains(word),
            "the refusal does not say '{word}': {text}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interval_that_loses_the_lease_between_two_renewals_is_refused() -> Result<()> {
    let _alone = Alone::on_this_machine()?;
    let plan = [NodePlan::hot_cold("PartyB", &["", ""])];
    let network = Network::make(Engine::Sqlite, &plan).await?;
    for machine in &network.machines {
        for interval in ["500", "499"] {
            let text = machine
                .configuration
                .replace("waitInterval = 1500", &format!("waitInterval = {interval}"));
            machine.configure(&text)?;
            let said = refused(machine).await?;
            check_names(&said, &["waitInterval", "updateInterval", "greater"])?;
        }
    }
    network.finish().await
}

/// The instance's identity is machine name and base directory: a second process with the same is no other instance.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_in_the_same_directory_is_refused() -> Result<()> {
    let _alone = Alone::on_this_machine()?;
    let plan = [NodePlan::hot_cold("PartyB", &["", ""])];
    let mut network = Network::make(Engine::Sqlite, &plan).await?;
    network.start().await?;
    for label in ["PartyB/1", "PartyB/2"] {
        let machine = network.machine(label);
        // Not even for want of a port that both listen on.
        let text = machine
            .configuration
            .lines()
            .filter(|line| !line.starts_with("operations"))
            .collect::<Vec<_>>()
            .join("\n");
        machine.configure(&text)?;
        let said = refused(machine).await?;
        let directory = machine.directory.display().to_string();
        check_names(&said, &[&directory])?;
    }
    let roles = [("PartyB/1", "active"), ("PartyB/2", "standby")];
    for (label, role) in roles {
        let machine = network.machine(label);
        assert_eq!(machine.role().await.as_deref(), Some(role));
        let mut command = machine.command(&["status"]);
        let status = crate::support::network::run(&mut command)?;
        ensure!(
            status.contains(&format!("role: {role}")),
            "{label} is asked for its status: {status}"
        );
    }
    network.finish().await
}

/// Whatever is done to the lease by hand, the one that held it writes no more, the other takes over, and no generation is
/// given out twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_was_edited_by_hand_passes_on_and_never_goes_back() -> Result<()> {
    let _alone = Alone::on_this_machine()?;
    let plan = [NodePlan::hot_cold(
        "PartyB",
        &["whenLost = STANDBY", "whenLost = STANDBY"],
    )];
    let mut network = Network::make(Engine::Sqlite, &plan).await?;
    network.start().await?;
    let mut books = Books::open(&network.machine("PartyB").database).await?;
    for edit in [
        "UPDATE leases SET generation = generation + 7",
        "UPDATE leases SET generation = 1",
        "UPDATE leases SET released = 1",
        "DELETE FROM leases",
        "UPDATE leases SET machine = 'nowhere', base_directory = '/', process_id = 1, host = ''",
        "UPDATE leases SET renewed_at = renewed_at + 3600000000",
        "UPDATE leases SET renewed_at = 0, acquired_at = 0",
    ] {
        let before = books.terms().await?;
        let outcome = async {
            ensure!(books.execute(edit).await? == 1, "there is one lease");
            if edit.contains("machine =") || edit.contains("renewed_at") {
                // Nothing that decides who may write: the holder goes on, or the other one takes over by the rules.
                tokio::time::sleep(Duration::from_millis(800)).await;
            } else {
                until("a new generation", PATIENCE, async || {
                    let terms = books.terms().await?;
                    let newer = terms.len() > before.len();
                    Ok(if newer {
                        Ok(())
                    } else {
                        Err(format!("{terms:?}"))
                    })
                })
                .await?;
            }
            until("one hot and one cold machine", PATIENCE, async || {
                let mut roles = Vec::new();
                for machine in &network.machines {
                    roles.push(machine.role().await.unwrap_or_default());
                }
                roles.sort_unstable();
                Ok(if roles == ["active", "standby"] {
                    Ok(())
                } else {
                    Err(format!("{roles:?}"))
                })
            })
            .await?;
            books.check_one_writer().await
        };
        outcome.await.with_context(|| edit.to_owned())?;
    }

    // What no program can have written stops them all, until somebody takes it away.
    let given = books.terms().await?.len();
    books.execute("UPDATE leases SET generation = -5").await?;
    for machine in &mut network.machines {
        let status = machine.ended().await?;
        ensure!(!status.success(), "{} ended with {status}", machine.label);
        check_names(&machine.tail(), &["lease", "-5 is below zero"])?;
    }
    books.execute("DELETE FROM leases").await?;
    network.start().await?;
    let terms = books.check_one_writer().await?;
    ensure!(terms.len() == given + 1, "{terms:?}");
    network.finish().await
}

/// Two machines of one node have the same keys.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_with_other_keys_is_refused() -> Result<()> {
    let _alone = Alone::on_this_machine()?;
    let plan = [NodePlan::hot_cold("PartyB", &["", ""])];
    let mut network = Network::make(Engine::Sqlite, &plan).await?;
    let first = network.machine("PartyB/1");
    first.spawn()?;
    first.serving().await?;
    // In development mode a node without keys makes itself some.
    let other = network.machine("PartyB/2");
    std::fs::remove_dir_all(other.directory.join("certificates"))?;
    let said = refused(other).await?;
    check_names(&said, &["O=PartyB, L=New York, C=US", "certificates"])?;
    network.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_is_too_old_or_too_new_is_refused() -> Result<()> {
    let _alone = Alone::on_this_machine()?;
    let mut network = Network::make(Engine::Sqlite, &[NodePlan::single("PartyB")]).await?;
    let machine = network.machine("PartyB");
    machine.configure(
        &machine
            .configuration
            .replace("runMigration = true", "runMigration = false"),
    )?;
    // The file is made when the node looks at it.
    let said = refused(machine).await?;
    check_names(
        &said,
        &["quorate database execute-migration", "runMigration"],
    )?;

    machine.configure(&machine.configuration)?;
    machine.spawn()?;
    machine.serving().await?;
    machine.kill()?;
    let mut books = Books::open(&machine.database).await?;
    let newer = "INSERT INTO quorate_migrations SELECT component, 99, checksum, description, applied_at FROM quorate_migrations
                 WHERE component = 'quorate' AND version = 1";
    books.execute(newer).await?;
    let said = refused(machine).await?;
    check_names(&said, &["99", "newer"])?;
    network.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_user_without_rights_is_refused() -> Result<()> {
    if postgres::skipped() {
        return Ok(());
    }
    let _alone = Alone::on_this_machine()?;
    let mut network = Network::make(Engine::Postgres, &[NodePlan::single("PartyB")]).await?;
    let server = network.postgres.clone().context("this is on PostgreSQL")?;
    server.psql(
        "partyb",
        "CREATE ROLE nobody_at_all LOGIN; CREATE ROLE reader LOGIN",
    )?;
    let machine = network.machine("PartyB");
    let user = format!("user = \"{}\"", postgres::USER);
    let as_planned = machine.configuration.clone();
    let with = |other: &str| as_planned.replace(&user, &format!("user = \"{other}\""));

    // Nobody has made the tables, and this user may not.
    machine.configure(&with("nobody_at_all"))?;
    let said = refused(machine).await?;
    check_names(&said, &["permission denied for schema public"])?;
    machine.configure(&with("not_even_there"))?;
    let said = refused(machine).await?;
    check_names(&said, &["not_even_there", "does not exist"])?;

    // The tables are there, and this user may only read them.
    machine.configure(&machine.configuration)?;
    machine.spawn()?;
    machine.serving().await?;
    machine.kill()?;
    server.psql(
        "partyb",
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader",
    )?;
    machine.configure(&with("reader").replace("runMigration = true", "runMigration = false"))?;
    let said = refused(machine).await?;
    check_names(&said, &["permission denied for table lease"])?;
    network.finish().await
}
