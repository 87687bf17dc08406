//! An operator at a shell.

use std::path::PathBuf;
use std::process::Stdio;

use tokio::process::Command;

use crate::support::network::{CHANNEL, Network};

/// How a run of the program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    /// It went well, and says all of this.
    pub(crate) fn well(&self, words: &[&str]) -> &Self {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self.says(words)
    }

    /// It was refused, and says all of this.
    pub(crate) fn refused(&self, words: &[&str]) -> &Self {
        assert_eq!(self.code, 1, "{}{}", self.out, self.err);
        self.says(words)
    }

    fn says(&self, words: &[&str]) -> &Self {
        for word in words {
            assert!(
                self.out.contains(word) || self.err.contains(word),
                "no {word:?} in:\n{}{}",
                self.out,
                self.err
            );
        }
        self
    }
}

/// The administrator of the orderers, who asks one of them first.
pub(crate) struct Operator {
    folder: PathBuf,
    /// Where others reach each orderer.
    addresses: Vec<String>,
    admins: Vec<String>,
    first: usize,
    channel: String,
}

const ORDERER_ORG: &str = "crypto/ordererOrganizations/orderer.test";
const ORG1: &str = "crypto/peerOrganizations/org1.test";

impl Operator {
    pub(crate) fn of(network: &Network, first: usize) -> Self {
        let orderers = network.orderers.iter();
        Self {
            folder: network.path().to_owned(),
            addresses: orderers
                .clone()
                .map(|orderer| format!("127.0.0.1:{}", orderer.cluster))
                .collect(),
            admins: orderers
                .map(|orderer| format!("127.0.0.1:{}", orderer.admin))
                .collect(),
            first,
            channel: CHANNEL.to_owned(),
        }
    }

    /// Looks after another channel.
    pub(crate) fn on(self, channel: &str) -> Self {
        Self {
            channel: channel.to_owned(),
            ..self
        }
    }

    /// Where others reach an orderer.
    pub(crate) fn address(&self, number: usize) -> &str {
        &self.addresses[number]
    }

    /// A file beside the others.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Runs a command as it is.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Ended {
        let output = Command::new(env!("CARGO_BIN_EXE_quorate"))
            .args(arguments)
            .current_dir(&self.folder)
            .env_remove("FABRIC_CFG_PATH")
            .env_remove("CORE_PEER_MSPCONFIGPATH")
            .env_remove("CORE_PEER_LOCALMSPID")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .unwrap();
        Ended {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs a command that talks to the orderers, as their administrator.
    pub(crate) async fn channel(&self, arguments: &[&str]) -> Ended {
        let who = [
            "--msp-id",
            "OrdererOrgMSP",
            "--msp-dir",
            &format!("{ORDERER_ORG}/users/Admin@orderer.test/msp"),
        ];
        self.channel_as(arguments, &who).await
    }

    /// The same as the administrator of Org1.
    pub(crate) async fn channel_as_org1(&self, arguments: &[&str]) -> Ended {
        let who = self.org1();
        let who: Vec<&str> = who.iter().map(String::as_str).collect();
        self.channel_as(arguments, &who).await
    }

    /// The options that make somebody the administrator of Org1.
    pub(crate) fn org1(&self) -> [String; 4] {
        [
            "--msp-id".to_owned(),
            "Org1MSP".to_owned(),
            "--msp-dir".to_owned(),
            format!("{ORG1}/users/Admin@org1.test/msp"),
        ]
    }

    async fn channel_as(&self, arguments: &[&str], who: &[&str]) -> Ended {
        let roots = format!("{ORDERER_ORG}/users/Admin@orderer.test/tls/ca.crt");
        let mut all = vec!["channel"];
        all.extend(arguments);
        all.extend(["-c", &self.channel, "-o", self.address(self.first)]);
        all.extend(["--tls-ca", &roots]);
        all.extend(who);
        self.run(&all).await
    }

    /// Adds an orderer, lets it join and waits until it orders.
    pub(crate) async fn add(&self, network: &Network, number: usize) -> Ended {
        let certificate = network.orderers[number].tls("server.crt");
        let certificate = certificate.display().to_string();
        let admin = format!("{ORDERER_ORG}/users/Admin@orderer.test/tls");
        let files = ["ca.crt", "client.crt", "client.key"].map(|file| format!("{admin}/{file}"));
        self.channel(&[
            "consenter",
            "add",
            self.address(number),
            "--tls-cert",
            &certificate,
            "--join",
            &self.admins[number],
            "--admin-ca-file",
            &files[0],
            "--admin-client-cert",
            &files[1],
            "--admin-client-key",
            &files[2],
            "--wait",
        ])
        .await
    }

    /// Removes an orderer.
    pub(crate) async fn remove(&self, number: usize) -> Ended {
        self.channel(&["consenter", "remove", self.address(number), "--wait"])
            .await
    }
}
