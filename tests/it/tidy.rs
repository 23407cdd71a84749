//! Rules about the code itself that no linter knows.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Longest file. Past 500 lines a file is usually two ideas; past this it is not to be had.
const MOST_LINES: usize = 700;

/// Where the Rust code lies.
const CRATES: [&str; 7] = [
    "shared",
    "producer-api",
    "consumer-worker",
    "migrations",
    "bench",
    "src",
    "tests",
];

fn rust_files() -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = CRATES
        .iter()
        .map(|name| Path::new(ROOT).join(name))
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                files.push((path.strip_prefix(ROOT).unwrap().to_owned(), text));
            }
        }
    }
    assert!(files.len() > 50, "the code was found");
    files
}

/// Fails with every place that breaks the rule.
fn none_breaks(rule: &str, breaks: impl Fn(&Path, &str) -> Vec<String>) {
    let mut found: Vec<String> = Vec::new();
    for (path, text) in rust_files() {
        found.extend(
            breaks(&path, &text)
                .iter()
                .map(|at| format!("{}: {at}", path.display())),
        );
    }
    assert!(found.is_empty(), "{rule}:\n{}", found.join("\n"));
}

fn lines_with<'a>(text: &'a str, is: impl Fn(&str) -> bool + 'a) -> impl Iterator<Item = String> {
    let numbered = text.lines().zip(1..);
    numbered
        .filter(move |(line, _)| is(line))
        .map(|(line, number)| format!("{number}: {line}"))
}

#[test]
fn every_file_says_what_it_is_for() {
    none_breaks("a file begins with its purpose (`//!`)", |_, text| {
        let first = text.lines().next().unwrap_or_default();
        if first.starts_with("//! ") {
            Vec::new()
        } else {
            vec![first.to_owned()]
        }
    });
}

#[test]
fn no_file_is_too_long() {
    none_breaks("a file has one idea", |_, text| {
        let lines = text.lines().count();
        if lines <= MOST_LINES {
            Vec::new()
        } else {
            vec![format!("{lines} lines")]
        }
    });
}

#[test]
fn no_lint_is_switched_off_without_a_word() {
    let allow = ["#[allow(", "#![allow("];
    none_breaks("expect a lint, with a reason", |path, text| {
        if path.ends_with("tidy.rs") {
            return Vec::new();
        }
        lines_with(text, |line| allow.iter().any(|word| line.contains(word))).collect()
    });
}

#[test]
fn no_end_to_end_test_sleeps() {
    let helper = Path::new("tests/it/harness/wait.rs");
    none_breaks(
        "a test waits on a condition (harness/wait.rs)",
        |path, text| {
            let exempt =
                !path.starts_with("tests/it") || path == helper || path.ends_with("tidy.rs");
            if exempt {
                return Vec::new();
            }
            lines_with(text, |line| line.contains("sleep(")).collect()
        },
    );
}

#[test]
fn no_test_is_named_test_or_ignored() {
    none_breaks("a test's name is a claim", |path, text| {
        if path.ends_with("tidy.rs") {
            return Vec::new();
        }
        let bad = |line: &str| line.contains("fn test_") || line.contains("#[ignore");
        lines_with(text, bad).collect()
    });
}

/// The packages that a crate is built from, by name.
fn dependencies(package: &str) -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--package",
            package,
            "--edges",
            "normal,build",
            "--prefix",
            "none",
        ])
        .args(["--format", "{p}", "--locked", "--offline"])
        .current_dir(ROOT)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let name = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    let names: Vec<String> = text.lines().map(name).collect();
    assert!(names.iter().any(|name| name == "serde"), "{text}");
    names
}

#[test]
fn a_worker_has_no_database() {
    let found = dependencies("sluice-consumer-worker");
    let database = |name: &&String| {
        [
            "sea-",
            "sqlx",
            "libsqlite",
            "rusqlite",
            "postgres",
            "diesel",
        ]
        .iter()
        .any(|prefix| name.starts_with(prefix))
            || *name == "sluice-migrations"
    };
    let found: Vec<&String> = found.iter().filter(database).collect();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn imports_point_one_way() {
    for (package, never) in [
        (
            "sluice-shared",
            &[
                "sluice-producer-api",
                "sluice-consumer-worker",
                "sluice-migrations",
            ][..],
        ),
        ("sluice-consumer-worker", &["sluice-producer-api"]),
        ("sluice-producer-api", &["sluice-consumer-worker"]),
        (
            "sluice-migrations",
            &["sluice-producer-api", "sluice-consumer-worker"],
        ),
    ] {
        let found = dependencies(package);
        for name in never {
            assert!(
                !found.iter().any(|found| found == name),
                "{package} must not use {name}"
            );
        }
    }
    none_breaks(
        "the pure core does no I/O and knows no clock",
        |path, text| {
            if !path.starts_with("shared/src/domain") {
                return Vec::new();
            }
            let bad = [
                "tokio::",
                "std::fs",
                "std::net",
                "crate::clock",
                "crate::broker",
                "crate::live",
            ];
            lines_with(text, move |line| bad.iter().any(|word| line.contains(word))).collect()
        },
    );
}

#[test]
fn every_setting_is_in_the_documentation() {
    let file = Path::new(ROOT).join("docs/configuration.md");
    let Ok(page) = fs::read_to_string(&file) else {
        return;
    };
    let defaults: toml::Table = toml::from_str(sluice_shared::config::DEFAULTS).unwrap();
    let mut missing = Vec::new();
    for (section, settings) in &defaults {
        for key in settings.as_table().unwrap().keys() {
            if !page.contains(&format!("{section}.{key}")) && !page.contains(&format!("`{key}`")) {
                missing.push(format!("{section}.{key}"));
            }
        }
    }
    assert!(
        missing.is_empty(),
        "not in docs/configuration.md: {missing:?}"
    );
}
