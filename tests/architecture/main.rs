//! Keeps the tree as ARCHITECTURE.md draws it: imports point one way, each part knows only what it may, files
//! and functions stay readable. Fast: it reads the sources and compiles nothing.

mod circles;
mod mutants;

use std::fs;
use std::path::{Path, PathBuf};

/// The parts in the order of the pipeline, with the parts that each may use and the crates that it must never
/// know.
const PARTS: [(&str, &[&str], &[&str]); 26] = [
    // What of a server's address may be told, wherever one is told.
    ("address", &[], &["sqlx", "redis", "axum", "hyper", "tokio"]),
    ("certificates", &[], &["sqlx", "redis", "axum", "hyper", "tokio"]),
    ("event", &[], &["sqlx", "redis", "axum", "hyper", "tokio"]),
    // Words for people, wherever something is told.
    ("backoff", &[], &["sqlx", "redis", "axum", "hyper", "tokio"]),
    ("generations", &[], &["sqlx", "redis", "axum", "hyper", "tokio"]),
    ("pluralize", &[], &["sqlx", "redis", "axum", "hyper", "tokio"]),
    ("printable", &[], &["sqlx", "redis", "axum", "hyper", "tokio"]),
    ("password_command", &["printable"], &["sqlx", "redis", "axum", "hyper"]),
    ("postgres", &["address", "certificates", "password_command"], &["redis", "axum", "hyper"]),
    ("outbox", &["event", "postgres"], &["redis", "axum", "hyper"]),
    ("log", &["event", "postgres", "outbox"], &["redis", "axum", "hyper"]),
    ("ops", &["event", "pluralize", "postgres", "outbox", "log"], &["redis", "axum", "hyper"]),
    // Spans are made where things happen: by the publisher, by the SSE server, and for each request.
    ("trace", &["address", "event"], &["sqlx", "redis", "axum", "hyper", "tokio"]),
    ("failpoint", &[], &["sqlx", "redis", "axum", "hyper"]),
    (
        "relay",
        &["backoff", "event", "pluralize", "postgres", "outbox", "log", "failpoint"],
        &["redis", "axum", "hyper"],
    ),
    (
        "redis",
        &[
            "address",
            "backoff",
            "certificates",
            "event",
            "generations",
            "password_command",
            "pluralize",
            "relay",
            "trace",
        ],
        &["sqlx", "axum", "hyper"],
    ),
    ("http", &["address", "event", "trace"], &["sqlx", "redis"]),
    ("auth", &["address", "failpoint", "http"], &["sqlx", "redis"]),
    ("revocations", &["backoff", "event", "postgres", "log", "ops", "http", "auth"], &["redis", "hyper"]),
    ("sse", &["backoff", "event", "redis", "http", "auth", "trace"], &["sqlx"]),
    ("streams", &["event", "http", "auth", "sse"], &["sqlx", "redis"]),
    ("durable_streams", &["backoff", "event", "http", "auth", "sse"], &["sqlx", "redis"]),
    // Its charts show what the relay's monitor has measured, so that a sample costs no look at Postgres of
    // its own.
    (
        "console",
        &["event", "pluralize", "postgres", "outbox", "log", "ops", "relay", "http"],
        &["redis", "hyper"],
    ),
    ("uploads", &["event", "generations", "postgres", "outbox", "http", "auth", "sse"], &["redis"]),
    ("live", &["event", "postgres", "log", "ops", "http"], &["redis", "hyper"]),
    ("local", &[], &["sqlx", "axum"]),
];

/// The parts that any application can use: they must not know the bundled one.
const GENERIC: [&str; 15] = [
    "certificates",
    "event",
    "postgres",
    "outbox",
    "log",
    "trace",
    "relay",
    "redis",
    "http",
    "auth",
    "sse",
    "streams",
    "durable_streams",
    "console",
    "revocations",
];

const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 80;
const NAMES_THAT_SAY_NOTHING: [&str; 5] = ["utils", "util", "helpers", "common", "manager"];

/// A source file.
struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    /// The part of the library that it belongs to.
    fn part(&self) -> Option<&str> {
        let below = self.path.strip_prefix("src").ok()?;
        let first = below.components().next()?.as_os_str().to_str()?;
        Some(first.strip_suffix(".rs").unwrap_or(first))
    }

    /// Its lines without comments, up to its unit tests.
    fn code(&self) -> impl Iterator<Item = &str> {
        let is_test = self.path.to_string_lossy().ends_with("_tests.rs");
        self.text
            .lines()
            .take_while(move |line| !is_test && !line.starts_with("#[cfg(test)]"))
            .filter(|line| !line.trim_start().starts_with("//"))
    }
}

fn sources(folder: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(Source { text: fs::read_to_string(&path).expect("a text"), path });
            }
        }
    }
    assert!(found.len() > 3, "the sources of {folder} are found");
    found
}

/// Whether a line of code names this crate: `name::…` or `::name::…`, and not as a part of another path or
/// word.
fn names(line: &str, name: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    line.match_indices(name).any(|(at, _)| {
        let before = line[..at].strip_suffix("::").unwrap_or(&line[..at]);
        line[at + name.len()..].starts_with("::") && !before.ends_with(is_word)
    })
}

/// The parts of this crate that a line of code uses.
fn parts_used(line: &str) -> Vec<&'static str> {
    let mut used: Vec<&str> = PARTS
        .iter()
        .map(|(part, ..)| *part)
        .filter(|part| {
            line.contains(&format!("crate::{part}::"))
                || line.contains(&format!("crate::{part};"))
                || line.contains(&format!("crate::{part}("))
        })
        .collect();
    if let Some((_, group)) = line.split_once("use crate::{") {
        let listed = |part: &str| {
            group
                .split(['{', '}', ',', ' ', ';'])
                .any(|word| word == part || word.starts_with(&format!("{part}::")))
        };
        used.extend(PARTS.iter().map(|(part, ..)| *part).filter(|part| listed(part)));
    }
    used
}

fn assert_none(violations: &[String]) {
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

#[test]
fn imports_point_one_way() {
    let mut violations = Vec::new();
    let mut seen = 0;
    for source in sources("src") {
        let Some((part, may_use, _)) = PARTS.iter().find(|(part, ..)| Some(*part) == source.part()) else {
            continue;
        };
        for line in source.code() {
            for used in parts_used(line) {
                seen += 1;
                if used != *part && !may_use.contains(&used) {
                    violations.push(format!("{}: {part} must not use {used}: {line}", source.path.display()));
                }
            }
        }
    }
    assert!(seen > 50, "the scanner sees imports ({seen})");
    assert_none(&violations);
}

#[test]
fn each_part_knows_only_the_crates_that_it_may() {
    let mut violations = Vec::new();
    for source in sources("src") {
        let Some((part, _, never)) = PARTS.iter().find(|(part, ..)| Some(*part) == source.part()) else {
            continue;
        };
        for line in source.code() {
            for forbidden in never.iter().filter(|name| {
                // The part `redis` and the crate of the same name: the crate is written `::redis`.
                let is_part = **name == "redis" && line.contains("crate::redis");
                !is_part && names(line, name)
            }) {
                violations.push(format!(
                    "{}: {part} must not know the crate {forbidden}: {line}",
                    source.path.display()
                ));
            }
        }
    }
    assert_none(&violations);
}

#[test]
fn the_generic_parts_know_nothing_of_uploads() {
    let mut violations = Vec::new();
    for source in
        sources("src").iter().filter(|source| GENERIC.iter().any(|part| Some(*part) == source.part()))
    {
        for line in source.code().filter(|line| line.to_lowercase().contains("upload")) {
            violations.push(format!("{}: {line}", source.path.display()));
        }
    }
    assert_none(&violations);
}

/// `println!` and its like panic where nobody reads, and wait where somebody does not: each program that
/// writes here has a door of its own for that (`telemetry::say`, `note!`, `ops::output`).
#[test]
fn nothing_prints_by_a_macro_that_panics() {
    let mut violations = Vec::new();
    for source in sources("src") {
        for line in source.code() {
            let words = line.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '!'));
            if words
                .into_iter()
                .any(|word| ["print!", "println!", "eprint!", "eprintln!", "dbg!"].contains(&word))
            {
                violations.push(format!("{}: {line}", source.path.display()));
            }
        }
    }
    assert_none(&violations);
}

#[test]
fn every_file_says_what_it_is_and_can_be_read_in_one_sitting() {
    let mut violations = Vec::new();
    for source in sources("src").into_iter().chain(sources("tests")) {
        let name = source.path.display();
        if !source.text.starts_with("//!") {
            violations.push(format!("{name}: does not begin with what it is (//!)"));
        }
        let lines = source.text.lines().count();
        if lines > FILE_LINES_MAX {
            violations.push(format!("{name}: has {lines} lines, and {FILE_LINES_MAX} are the limit"));
        }
        for (function, lines) in functions(&source.text) {
            if lines > FUNCTION_LINES_MAX {
                violations.push(format!(
                    "{name}: {function} has {lines} lines, and {FUNCTION_LINES_MAX} are the limit"
                ));
            }
        }
        if source.path.file_stem().is_some_and(|stem| NAMES_THAT_SAY_NOTHING.iter().any(|name| stem == *name))
        {
            violations.push(format!("{name}: a name that says nothing"));
        }
    }
    assert_none(&violations);
}

/// Each function's signature line and length, going by rustfmt's indentation.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let is_function =
            ["fn ", "async fn ", "pub ", "pub(", "const fn "].iter().any(|start| trimmed.starts_with(start))
                && trimmed.contains("fn ");
        if !is_function || line.trim_end().ends_with(';') {
            continue;
        }
        let indent = &line[..line.len() - trimmed.len()];
        let end = format!("{indent}}}");
        if let Some(length) = lines[at..].iter().position(|line| *line == end) {
            found.push((trimmed.to_owned(), length + 1));
        }
    }
    found
}

#[test]
fn every_part_has_its_folder_and_every_folder_is_a_part() {
    for entry in fs::read_dir("src").expect("src") {
        let path = entry.expect("an entry").path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("a name").to_owned();
        let known = stem == "lib" || stem == "bin" || PARTS.iter().any(|(part, ..)| *part == stem);
        assert!(
            known,
            "src/{stem} is not a part of the pipeline: name it in this test and in ARCHITECTURE.md"
        );
    }
    for (part, ..) in PARTS {
        assert!(
            Path::new(&format!("src/{part}")).is_dir() || Path::new(&format!("src/{part}.rs")).is_file(),
            "{part}"
        );
    }
}

#[test]
fn the_scanner_sees_what_it_must() {
    assert_eq!(parts_used("use crate::redis::Publisher;"), ["redis"]);
    assert_eq!(parts_used("use crate::{join, redis::keys, sse};"), ["redis", "sse"]);
    assert_eq!(parts_used("    let x = crate::event::Topic::new();"), ["event"]);
    assert!(parts_used("use crate::event_log::X;").is_empty());
    assert!(names("use sqlx::PgPool;", "sqlx") && names("    sqlx::query(x)", "sqlx"));
    assert!(names("let x = ::redis::cmd(y);", "redis") && names("use ::redis::Cmd;", "redis"));
    assert!(!names("use my_sqlx::PgPool;", "sqlx") && !names("use crate::sqlx::X;", "sqlx"));
    let text = "fn a() {\n    1\n}\n\nimpl X {\n    pub async fn b() {\n    }\n}\n";
    assert_eq!(functions(text), [("fn a() {".to_owned(), 3), ("pub async fn b() {".to_owned(), 2)]);
}

#[test]
fn every_test_that_the_sse_checklist_names_exists() {
    let text = fs::read_to_string("docs/sse-checklist.md").expect("the checklist");
    // Every second piece between backticks is code.
    let named = text.split('`').skip(1).step_by(2).filter_map(|code| code.rsplit_once("::"));
    let (mut violations, mut seen) = (Vec::new(), 0);
    for (file, test) in named.filter(|(_, test)| test.len() > 25) {
        seen += 1;
        let path = if file.ends_with(".rs") { file.to_owned() } else { format!("tests/it/{file}.rs") };
        let source = fs::read_to_string(&path).unwrap_or_default();
        if !source.contains(&format!("fn {test}(")) {
            violations.push(format!("{path} has no test {test}"));
        }
    }
    assert!(seen > 50, "the checklist names tests: {seen}");
    assert_none(&violations);
}

#[test]
fn every_place_that_architecture_names_for_a_question_has_what_it_names() {
    let text = fs::read_to_string("ARCHITECTURE.md").expect("the page");
    let (_, table) = text.split_once("## Where it is decided").expect("the table");
    let (table, _) = table.split_once("\n## ").expect("a next chapter");
    let (mut violations, mut seen) = (Vec::new(), 0);
    for row in table.lines().filter(|line| line.starts_with("| ") && line.contains('/')) {
        // Every second piece between backticks is code: a file, and then a name.
        let (_, place) = row.trim_end_matches(" |").rsplit_once(" | ").expect("two columns");
        let code: Vec<&str> = place.split('`').skip(1).step_by(2).collect();
        for pair in code.chunks(2) {
            seen += 1;
            let [file, name] = pair else { panic!("a file and a name: {row}") };
            let defines =
                ["fn ", "struct ", "enum ", "trait ", "function "].map(|kind| format!("{kind}{name}"));
            let source = fs::read_to_string(file).unwrap_or_default();
            let is_there = |define: &String| {
                source.match_indices(define).any(|(at, _)| {
                    let next = source[at + define.len()..].chars().next();
                    next.is_some_and(|next| !next.is_alphanumeric() && next != '_')
                })
            };
            if !defines.iter().any(is_there) {
                violations.push(format!("{file} defines no {name}"));
            }
        }
    }
    assert!(seen > 20, "the table names places: {seen}");
    assert_none(&violations);
}
