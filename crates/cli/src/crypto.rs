//! `quorate crypto`: keys and certificates for trying and testing an ordering service.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use quorate_fabric::crypto_material::generate;
use quorate_runtime::Clock;
use time::OffsetDateTime;

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make MSP and TLS folders for the organisations of a crypto-config.yaml
    ///
    /// The folders are those of Fabric's cryptogen. All private keys of all organisations are made here, in one place:
    /// good for trying, not for organisations that do not trust each other.
    Generate {
        /// The organisations
        #[arg(long, value_name = "FILE", default_value = "crypto-config.yaml")]
        config: PathBuf,
        /// Where to make ordererOrganizations and peerOrganizations; an organisation that is there is never replaced
        #[arg(long, value_name = "DIR", default_value = "crypto-config")]
        output: PathBuf,
    },
}

pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    let Command::Generate { config, output } = arguments.command;
    let text =
        fs::read_to_string(&config).with_context(|| format!("reading {}", config.display()))?;
    let now = OffsetDateTime::from_unix_timestamp(Clock::system().now_seconds())
        .context("the system's clock")?;
    let material = generate(&text, now).with_context(|| config.display().to_string())?;
    material.write(&output)?;
    for organization in material.organizations() {
        println!("{}", output.join(organization).display());
    }
    Ok(ExitCode::SUCCESS)
}
