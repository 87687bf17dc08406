//! Settings of a channel, and updates that travel by file.

use std::fs;

use crate::support::Alone;
use crate::support::client::{Load, transaction};
use crate::support::judge::judge;
use crate::support::network::{Network, Rules};
use crate::tool::Operator;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_are_changed_by_options_and_by_a_file() {
    let _alone = Alone::begin().await;
    let network = Network::start(1, 1, &Rules::default()).await;
    network.leader(&[0]).await;
    let operator = Operator::of(&network, 0);
    let set = async |arguments: &[&str]| operator.channel(&[&["set"], arguments].concat()).await;

    // To look at it changes nothing.
    set(&[
        "--batch-timeout",
        "70ms",
        "--max-message-count",
        "20",
        "--dry-run",
    ])
    .await
    .well(&[
        "channel books, config sequence 0 -> 1",
        "BatchTimeout\n      timeout: 50ms -> 70ms",
        "max_message_count: 10 -> 20",
        "- /Channel/Orderer/Admins: 1 of 1, there are 0",
        "- /Channel/Orderer/OrdererOrg/Admins: a signature of OrdererOrgMSP.admin",
        "signed by nobody yet",
        "nothing was changed",
    ]);
    set(&[
        "--batch-timeout",
        "70ms",
        "--snapshot-interval-size",
        "30 KB",
        "--wait",
    ])
    .await
    .well(&[
        "timeout: 50ms -> 70ms",
        "snapshot_interval_size: 20000 -> 30720",
        "+ /Channel/Orderer/Admins: 1 of 1, there are 1",
        "in force since block 1",
    ]);
    set(&["--batch-timeout", "70ms"])
        .await
        .well(&["the channel is so already"]);

    // What may cost the channel its leader is refused.
    set(&["--tick-interval", "1ms"])
        .await
        .refused(&["an election begins after 10ms", "--force"]);
    set(&["--election-tick", "1"])
        .await
        .refused(&["ElectionTick (1) must be greater than HeartbeatTick (1)"]);
    set(&["--tick-interval", "110ms", "--election-tick", "12"])
        .await
        .well(&["take effect at an orderer when it is started again"]);
    set(&["--preferred-max-bytes", "2 MB"])
        .await
        .refused(&["preferred max bytes (2097152) greater than the absolute max bytes"]);
    set(&["--max-message-count", "many"])
        .await
        .refused(&["Orderer.BatchSize.MaxMessageCount", "many"]);

    // Maintenance, in which clients have to wait.
    set(&["--state", "maintenance", "--wait"])
        .await
        .well(&["state: STATE_NORMAL -> STATE_MAINTENANCE"]);
    set(&["--state", "normal", "--wait"])
        .await
        .well(&["in force"]);

    // The same in the words of configtx.yaml, for whoever keeps channels in a repository.
    let wanted = operator.file("wanted.yaml");
    fs::write(
        &wanted,
        "Orderer:\n  BatchSize: {MaxMessageCount: 25}\n  Capabilities: {V2_0: true}\n",
    )
    .unwrap();
    operator
        .channel(&["update", "wanted.yaml", "--wait"])
        .await
        .well(&["max_message_count: 10 -> 25", "in force on all consenters"]);
    operator
        .channel(&["update", "wanted.yaml"])
        .await
        .well(&["the channel is so already"]);
    fs::write(&wanted, "Orderer:\n  BatchSizes: {}\n").unwrap();
    operator
        .channel(&["update", "wanted.yaml"])
        .await
        .refused(&["wanted.yaml", "line 2", "BatchSizes"]);
    network.orderers[0]
        .line()
        .submit(transaction("afterwards", &network.admin))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_travels_from_organisation_to_organisation() {
    let _alone = Alone::begin().await;
    let network = Network::start(1, 1, &Rules::default()).await;
    network.leader(&[0]).await;
    let load = Load::start(&network, &[0], 2, 41);
    let operator = Operator::of(&network, 0);

    // A capability of the whole channel takes the orderers and the applications.
    let capability = ["set", "--capability", "channel=V1_4_3"];
    operator
        .channel(&capability)
        .await
        .refused(&["signatures are missing", "- /Channel/Application/Admins"]);
    operator
        .channel(&[&capability[..], &["--output", "update.pb"]].concat())
        .await
        .well(&["written to update.pb; signatures are missing"]);
    operator
        .channel(&[&capability[..], &["--output", "update.pb"]].concat())
        .await
        .refused(&["update.pb is there already"]);
    // Org1 looks at it and signs a copy.
    operator
        .channel(&["fetch", "config", "config.block"])
        .await
        .well(&["Received block: 0"]);
    let org1 = operator.org1();
    let org1: Vec<&str> = org1.iter().map(String::as_str).collect();
    let sign = [
        &["channel", "sign", "update.pb"],
        &org1[..],
        &["--output", "org1.pb", "--config-block", "config.block"],
    ]
    .concat();
    operator.run(&sign).await.well(&[
        "an update of channel books",
        "+ V1_4_3",
        "- /Channel/Application/Org1/Admins: a signature of Org1MSP.admin",
        "written to org1.pb",
    ]);
    let again = [&["channel", "sign", "org1.pb"], &org1[..]].concat();
    operator.run(&again).await.well(&["has signed already"]);
    // Neither copy alone is enough; whoever submits adds its own signature, so Org1 alone has too few.
    operator
        .channel(&["update", "update.pb"])
        .await
        .refused(&["signatures are missing"]);
    operator
        .channel_as_org1(&["update", "org1.pb", "--dry-run"])
        .await
        .well(&[
            "+ /Channel/Admins: 2 of 2, there are 2",
            "OrdererOrgMSP: ",
            "Org1MSP: ",
            "nothing was changed",
        ]);
    operator
        .channel(&["update", "update.pb", "org1.pb", "--wait"])
        .await
        .well(&[
            "+ /Channel/Admins: 2 of 2, there are 2",
            "in force since block",
        ]);
    // Once is enough.
    operator
        .channel(&["update", "org1.pb"])
        .await
        .refused(&["make it anew", "but key is at version 1"]);
    operator
        .channel(&["update", "config.block"])
        .await
        .refused(&["config.block holds no update but a block"]);

    // An organisation comes with its peers, and goes.
    let folder = operator.file("crypto/peerOrganizations/org1.test/msp");
    let org = "application/Org9";
    operator
        .channel_as_org1(&[
            "set",
            "--org",
            org,
            "--org-msp-id",
            "Org9MSP",
            "--org-msp-dir",
            &folder.display().to_string(),
            "--anchor-peer",
            "Org9=peer0.org9.test:7051",
            "--wait",
        ])
        .await
        .well(&["+ Org9", "peer0.org9.test:7051", "in force"]);
    // Two now: a majority is both, and Org9's administrator is Org1's by another name.
    let as_org9 = format!(
        "Org9MSP={}",
        operator
            .file("crypto/peerOrganizations/org1.test/users/Admin@org1.test/msp")
            .display()
    );
    let acl = [
        "set",
        "--acl",
        "qscc/GetChainInfo=/Channel/Application/Admins",
    ];
    operator
        .channel_as_org1(&acl)
        .await
        .refused(&["- /Channel/Application/Org9/Admins"]);
    operator
        .channel_as_org1(&[&acl[..], &["--sign-as", &as_org9]].concat())
        .await
        .well(&["in force"]);
    operator
        .channel_as_org1(&["set", "--remove-org", org, "--sign-as", &as_org9])
        .await
        .well(&["- Org9", "in force"]);

    load.progress(20).await;
    let books = load.stop().await;
    judge(&network, &[0], &books).await;
}
