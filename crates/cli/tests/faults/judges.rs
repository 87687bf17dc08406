//! The judges of the other tests are judged: whatever is wrong in the books, they notice.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::support::Alone;
use crate::support::books::{self, Books};
use crate::support::network::{DatabasePlace, Engine, Network, NodePlan};
use crate::support::payments::{Load, Payer, issue};

const COINS: usize = 3;
const EACH: i64 = 10_000;

/// Whose books, what is done to them, and a part of the verdict.
const FORGERIES: [(&str, &str, &str); 8] = [
    (
        "PartyB",
        "DELETE FROM transactions WHERE tx_id = (SELECT MAX(tx_id) FROM vault_states)",
        "PartyB does not have",
    ),
    (
        "PartyA",
        "UPDATE vault_states SET status = 0, consumed_by = NULL WHERE tx_id =
             (SELECT MAX(tx_id) FROM vault_states WHERE status = 1)",
        "as unconsumed",
    ),
    (
        "PartyA",
        "UPDATE vault_states SET status = 1, consumed_by = tx_id WHERE tx_id =
             (SELECT MAX(tx_id) FROM vault_states WHERE status = 0)",
        "as consumed by",
    ),
    (
        "PartyB",
        "DELETE FROM vault_states WHERE tx_id = (SELECT MAX(tx_id) FROM vault_states)",
        "lacks",
    ),
    (
        "Notary",
        "DELETE FROM notary_states WHERE tx_id = (SELECT MAX(tx_id) FROM notary_states)",
        "of one side only",
    ),
    (
        "PartyA",
        "UPDATE transactions SET generation = 99 WHERE tx_id = (SELECT MAX(tx_id) FROM transactions)",
        "nobody had generation 99",
    ),
    (
        "PartyA",
        "INSERT INTO lease_history SELECT resource, 2, machine, base_directory, process_id, process_started, host,
             (SELECT MAX(recorded_at) - 1 FROM transactions), last_batch FROM lease_history",
        "but its term was",
    ),
    (
        "PartyA",
        "INSERT INTO lease_history SELECT resource, 2, machine, base_directory, process_id, process_started, host,
             acquired_at - 1, last_batch FROM lease_history",
        "out of order",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn forged_books_are_noticed() -> Result<()> {
    let _alone = Alone::on_this_machine()?;
    let nodes = ["Notary", "PartyA", "PartyB"];
    let mut network = Network::make(Engine::Sqlite, &nodes.map(NodePlan::single)).await?;
    network.start().await?;
    let payer = Payer {
        client: network.client("PartyA")?,
        recipient: network.machine("PartyB").name.clone(),
        prefix: "payment",
    };
    issue(&payer.client, COINS, EACH).await?;
    let settled = Load::closed(payer, COINS, 8).all().await?;
    books::at_rest(&network).await?;
    network.stop().await?;

    let issued = [("PartyA", COINS as i64 * EACH)];
    let judge = async |payments: &[_]| {
        books::reconcile(&network, &issued, &[("PartyA", "PartyB", payments)]).await
    };
    judge(&settled).await?;
    // A payment that nobody was told of, and one that was told twice.
    ensure!(
        judge(&settled[1..]).await.is_err(),
        "a payment too many was not noticed"
    );
    let twice = [&settled[..], &settled[..1]].concat();
    ensure!(
        judge(&twice).await.is_err(),
        "a payment told twice was not noticed"
    );

    for (whose, forgery, wanted) in FORGERIES {
        let place = network
            .of(whose)
            .map(|machine| machine.database.clone())
            .next();
        let Some(DatabasePlace::Sqlite(path)) = place else {
            anyhow::bail!("{whose} has no database file")
        };
        let kept: PathBuf = path.with_extension("kept");
        fs::copy(&path, &kept)?;
        let mut forged = Books::open(&DatabasePlace::Sqlite(path.clone())).await?;
        ensure!(
            forged.execute(forgery).await? > 0,
            "nothing was forged by {forgery}"
        );
        forged.close().await?;
        let verdict = judge(&settled).await;
        let text = verdict.err().map(|error| format!("{error:#}"));
        ensure!(
            text.as_ref().is_some_and(|text| text.contains(wanted)),
            "{forgery}: the verdict was {text:?}"
        );
        fs::copy(&kept, &path)?;
    }
    judge(&settled).await?;
    network.finish().await
}
