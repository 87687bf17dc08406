//! The sentences of ARCHITECTURE.md that a machine can check.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .expect("the workspace is there")
}

/// Every crate of the workspace by folder name, with its manifest.
fn manifests() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for folder in ["crates", "apps"] {
        for entry in fs::read_dir(root().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            found.insert(name, fs::read_to_string(path.join("Cargo.toml")).unwrap());
        }
    }
    found
}

/// The dependencies in one section of a manifest.
fn dependencies(manifest: &str, section: &str) -> Vec<String> {
    manifest
        .split("\n[")
        .filter(|part| part.starts_with(&format!("{section}]")))
        .flat_map(str::lines)
        .filter_map(|line| {
            let name = line.split(['.', ' ', '=']).next()?;
            let known = name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
            (known && !name.is_empty()).then(|| name.to_owned())
        })
        .collect()
}

fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut all = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                all.push((path, text));
            }
        }
    }
    all
}

#[test]
fn only_storage_has_sql() {
    for (name, manifest) in manifests() {
        let uses = dependencies(&manifest, "dependencies").contains(&"sqlx".to_owned());
        assert_eq!(uses, name == "storage", "crate {name} and sqlx");
    }
}

#[test]
fn pure_crates_have_neither_runtime_nor_input_and_output() {
    const IMPURE: [&str; 6] = ["tokio", "sqlx", "tonic", "axum", "rand", "fe2o3-amqp"];
    for (name, manifest) in manifests() {
        if ["identity", "ledger", "flow", "fabric", "cash"].contains(&name.as_str()) {
            for dependency in dependencies(&manifest, "dependencies") {
                assert!(
                    !IMPURE.contains(&dependency.as_str()),
                    "{name} imports {dependency}"
                );
            }
        }
    }
    for name in ["ledger", "flow"] {
        for (path, text) in sources(&root().join("crates").join(name).join("src")) {
            for ambient in [
                "HashMap",
                "HashSet",
                "SystemTime",
                "Instant::now",
                "std::fs",
                "TcpStream",
                "UdpSocket",
            ] {
                assert!(!text.contains(ambient), "{} uses {ambient}", path.display());
            }
        }
    }
}

#[test]
fn crates_import_what_the_table_says() {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let table: BTreeMap<String, String> = page
        .lines()
        .filter(|line| line.starts_with("| `"))
        .filter_map(|line| {
            let columns: Vec<&str> = line.split('|').map(str::trim).collect();
            let name = columns
                .get(1)?
                .trim_matches('`')
                .rsplit('/')
                .next()?
                .to_owned();
            Some((name, (*columns.get(3)?).to_owned()))
        })
        .collect();
    for (name, manifest) in manifests() {
        let allowed = table
            .get(&name)
            .unwrap_or_else(|| panic!("crate {name} is not in the table of ARCHITECTURE.md"));
        if allowed.starts_with("all of the above") || allowed.starts_with("everything") {
            continue;
        }
        for dependency in dependencies(&manifest, "dependencies") {
            if let Some(ours) = dependency.strip_prefix("quorate-") {
                let known = allowed.split(", ").any(|word| word == ours);
                assert!(known, "{name} imports {ours}, the table allows: {allowed}");
            }
        }
    }
}

#[test]
fn only_runtime_spawns_tasks() {
    // The client of the API is used by programs that have no `runtime`; its one task ends with it.
    const EXEMPT: [&str; 3] = ["runtime", "rpc", "testkit"];
    for name in manifests()
        .into_keys()
        .filter(|name| !EXEMPT.contains(&name.as_str()))
    {
        for (path, text) in sources(&root().join("crates").join(&name).join("src")) {
            let spawns = text.contains("tokio::spawn") || text.contains("task::spawn");
            let own_tests = path.file_name().is_some_and(|file| file == "tests.rs");
            assert!(
                !spawns || own_tests,
                "{} spawns a task of its own",
                path.display()
            );
        }
    }
}
