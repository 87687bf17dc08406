//! `quorate orderer verify`: stored chains, block by block, without an orderer.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use quorate_orderer::audit::{self, Report, Severity};
use quorate_orderer::backup::chain_folder;

/// How often a person is told how far it is.
const PROGRESS: Duration = Duration::from_secs(1);

/// The exit code where a chain could not be looked at.
const UNKNOWN: u8 = 2;

#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    ledgers: super::Ledgers,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Exit code 0: intact; 1: damaged; 2: some chain could not be looked at.
pub(super) fn run(
    arguments: &Arguments,
    environment: &BTreeMap<String, String>,
) -> Result<ExitCode> {
    match verify(arguments, environment) {
        Ok(code) => Ok(code),
        Err(error) => {
            eprintln!("quorate: {}", quorate_runtime::tasks::chain(error.as_ref()));
            Ok(ExitCode::from(UNKNOWN))
        }
    }
}

fn verify(arguments: &Arguments, environment: &BTreeMap<String, String>) -> Result<ExitCode> {
    let location = arguments.ledgers.location(environment)?;
    let mut reports = Vec::new();
    for channel in arguments.ledgers.channels(&location)? {
        let report = audited(&location, &channel)?;
        if !arguments.json {
            print!("{}", shown(&report));
        }
        reports.push(report);
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&reports)?);
    } else if reports.is_empty() {
        println!("there are no channels in {}", location.display());
    }
    let intact = reports.iter().all(Report::is_intact);
    Ok(if intact {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Verifies one chain; a person who watches is told how far it is.
pub(super) fn audited(location: &std::path::Path, channel: &str) -> Result<Report> {
    let watched = std::io::stderr().is_terminal();
    let mut told = Instant::now();
    let report = audit::chain(&chain_folder(location, channel), channel, &mut |height| {
        if watched && told.elapsed() >= PROGRESS {
            told = Instant::now();
            eprint!("\rchannel {channel}: {height} blocks verified");
            let _ = std::io::stderr().flush();
        }
    });
    if watched {
        eprint!("\r\x1b[K");
    }
    report.with_context(|| format!("channel {channel}"))
}

/// A report for people.
pub(super) fn shown(report: &Report) -> String {
    let Report {
        channel,
        first,
        height,
        configurations,
        head,
        unreported,
        ..
    } = report;
    let verdict = if report.is_intact() {
        "intact"
    } else {
        "DAMAGED"
    };
    let blocks = match height.checked_sub(1) {
        Some(last) if height > first => format!("blocks {first} to {last}"),
        _ => "no blocks".to_owned(),
    };
    let pruned = if *first > 0 {
        ", older ones were pruned"
    } else {
        ""
    };
    let head = head.as_deref().unwrap_or("none");
    let mut text = format!(
        "channel {channel}: {verdict}; {blocks}{pruned}, {configurations} configuration(s), newest hash {head}\n"
    );
    for finding in &report.findings {
        let severity = match finding.severity {
            Severity::Damage => "damage",
            Severity::Note => "note",
        };
        text.push_str(&format!(
            "  {severity}: block {}, {} at offset {}: {}\n",
            finding.block,
            finding.path.display(),
            finding.offset,
            finding.what
        ));
    }
    if *unreported > 0 {
        text.push_str(&format!("  and {unreported} further findings\n"));
    }
    if !report.is_intact() {
        text.push_str(
            "  what to do: docs/guide/orderer-operations.md, \"A damaged ledger\": restore it from a backup, or move the \
             channel's folder away and let the orderer fetch the blocks from the others\n",
        );
    }
    text
}
