//! The commands that the guide shows are commands of the program, with options that it has.

use std::fs;
use std::path::Path;

use crate::quorate;

/// The commands in a page's blocks of code, each on one line.
fn commands(page: &str) -> Vec<String> {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/guide")).join(page);
    let text = fs::read_to_string(path).unwrap();
    let mut shell = Vec::new();
    let mut commands = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(code) = line.strip_prefix("    ") else {
            continue;
        };
        let code = code.trim_start();
        let code = code.strip_prefix("$ ").unwrap_or(code);
        if let Some((name, value)) = code.split_once("=\"") {
            shell.push((format!("${name}"), value.trim_end_matches('"').to_owned()));
            continue;
        }
        let mut command = code.to_owned();
        while let Some(begun) = command.strip_suffix('\\') {
            command = format!("{begun} {}", lines.next().unwrap().trim());
        }
        if command.starts_with("quorate ") {
            for (name, value) in &shell {
                command = command.replace(name, value);
            }
            commands.push(command);
        }
    }
    commands
}

/// Words of a command line; a text in quotation marks is one.
fn words(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (index, part) in command.split('"').enumerate() {
        if index % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

#[test]
fn the_guides_commands_are_commands() {
    let folder = tempfile::tempdir().unwrap();
    for (page, least) in [("orderer.md", 6), ("reconfigure.md", 9)] {
        let commands = commands(page);
        assert!(commands.len() >= least, "{page}: {commands:?}");
        for command in commands {
            let words = words(&command);
            // What stands for a value is one; what stands for more of the same is left out.
            let mut words: Vec<&str> = words[1..].iter().map(String::as_str).collect();
            for at in (0..words.len()).rev() {
                if words[at] == "\u{2026}" {
                    if words[at - 1].starts_with("--") {
                        words[at] = "1";
                    } else {
                        words.remove(at);
                    }
                }
            }
            words.push("--help");
            let ended = quorate(folder.path(), &words, &[]);
            assert!(
                ended.code == 0 && ended.text().contains("Usage: quorate"),
                "{page}: {command}: {}",
                ended.err
            );
        }
    }
    // The check is one: an option that there is not is found.
    let wrong = ["channel", "set", "--batch-time", "1s", "--help"];
    assert_ne!(quorate(folder.path(), &wrong, &[]).code, 0);
}
