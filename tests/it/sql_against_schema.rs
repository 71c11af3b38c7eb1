//! Every SQL statement in `src` is prepared against the schema. So a column that is renamed in a migration
//! turns up here, also in a statement that no other test runs.

use std::fs;
use std::path::Path;

use regex::{Captures, Regex};
use sqlx::{AssertSqlSafe, PgConnection};

use crate::append_door::execute;
use crate::harness::{TestResult, database};

/// Values for the placeholders that are no constants, by the file that has them.
const VALUES: [(&str, &str, &str); 9] = [
    ("src/log/overview.rs", "oldest", "select e.created_at, e.id from outbox.event e where e.id > p.high_id"),
    ("src/log/rotate.rs", "slot", "0"),
    ("src/log/rotate.rs", "table", "event_0"),
    ("src/log/rotate.rs", "oldest_events", "(select e.created_at from outbox.event_0 e limit 1)"),
    ("src/ops/renumber.rs", "rows", "{APPENDED_AFTER}"),
    ("src/ops/renumber.rs", "xid", "e.xid"),
    ("src/outbox/schema.rs", "seconds", "60"),
    ("src/postgres/schema.rs", "table", "outbox.migration"),
    ("src/postgres/schema.rs", "function", "outbox.serves_from()"),
];
/// Calls whose SQL is an argument of the function around them: its callers' literals begin with a verb.
const PASSED_ON: [(&str, &str); 5] = [
    ("src/log/contradictions.rs", "sql"),
    ("src/log/overview.rs", "positions"),
    ("src/log/rotate.rs", "facts_of"),
    ("src/ops/replay_sql.rs", "text"),
    ("src/outbox/schema.rs", "rotation_sql"),
];
/// Literals that begin as a statement does and are none, and what makes one of them.
const PARTS: [(&str, &str); 4] = [
    ("select events by topic", ""),
    // Constants that other literals begin with.
    ("\n  with status as (", ""),
    ("\n  with examined as (", ""),
    ("select greatest(least(w.created_at", "select from outbox.position p cross join lateral (PART) oldest"),
];

const VERBS: &str = r"^\s*(select|with|insert|update|delete)\s";
const LITERAL: &str = r#"(?s)(format!\(\s*)?"((?:[^"\\]|\\.)*)""#;
const CALL: &str = r"sqlx::(?:query\w*|raw_sql)(?:::<[^()]*>)?\((?:sqlx::|AssertSqlSafe\(|format!\(|\s)*";

/// A source file without its comments. Its lines keep their numbers.
struct Source {
    file: String,
    text: String,
}

/// A statement with the place where it stands.
type Statement = (String, String);

fn sources(folder: &Path, found: &mut Vec<Source>) -> TestResult {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, found)?;
        } else {
            let file = path.strip_prefix(env!("CARGO_MANIFEST_DIR"))?.display().to_string();
            found.push(Source::new(file, &fs::read_to_string(path)?));
        }
    }
    Ok(())
}

impl Source {
    fn new(file: String, text: &str) -> Self {
        let code = |line| if str::trim_start(line).starts_with("//") { "" } else { line };
        let lines: Vec<&str> = text.lines().map(code).collect();
        Self { file, text: lines.join("\n").replace(r#"'"'"#, "' '") }
    }

    fn place(&self, at: usize) -> String {
        format!("{}:{}", self.file, self.text[..at].matches('\n').count() + 1)
    }

    /// Where the literals of all calls begin, and the calls whose SQL cannot be found.
    fn calls(&self) -> TestResult<(Vec<usize>, Vec<String>)> {
        let (mut literals, mut unread) = (Vec::new(), Vec::new());
        for call in Regex::new(CALL)?.find_iter(&self.text) {
            let argument = &self.text[call.end()..];
            let name: String = argument.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let binding = Regex::new(&format!(r#"\b(?:let|const|for) {name}\b[^;{{"]*"#))?;
            let (before, after): (Vec<_>, Vec<_>) =
                binding.find_iter(&self.text).partition(|bound| bound.start() < call.start());
            match before.last().or(after.first()) {
                _ if argument.starts_with('"') => literals.push(call.end()),
                Some(bound) if self.text[bound.end()..].starts_with('"') => literals.push(bound.end()),
                Some(bound) if bound.as_str().contains(" in [") => {}
                _ if PASSED_ON.contains(&(&self.file, &name)) => {}
                _ => unread.push(format!("{}: {name}", self.place(call.start()))),
            }
        }
        Ok((literals, unread))
    }
}

/// Returns all statements, and the calls whose SQL it cannot find.
fn statements(sources: &[Source]) -> TestResult<(Vec<Statement>, Vec<String>)> {
    let (mut statements, mut unread, mut values) = (Vec::new(), Vec::new(), VALUES.to_vec());
    let constant = Regex::new(r#"(?s)const (\w+): [^=]+ = (?:"((?:[^"\\]|\\.)*)"|(\d[^;]*));"#)?;
    let sources: Vec<_> = sources.iter().filter(|source| source.text.contains("sqlx::")).collect();
    for source in &sources {
        values.extend(constant.captures_iter(&source.text).map(|found| {
            let (_, [name, value]) = found.extract();
            (source.file.as_str(), name, value)
        }));
    }
    let (literal, verbs, hole) = (Regex::new(LITERAL)?, Regex::new(VERBS)?, Regex::new(r"\{(\w+)\}")?);
    for source in sources {
        let (asked, unreadable) = source.calls()?;
        unread.extend(unreadable);
        for found in literal.captures_iter(&source.text) {
            let (start, mut sql) = (found.get(2).ok_or("no text")?.start(), found[2].to_owned());
            let part = PARTS.iter().find(|(begin, _)| sql.starts_with(begin));
            if found.get(1).is_some() {
                // The file's own values first, and texts before numbers.
                let value = |name: &Captures<'_>| {
                    let named = values.iter().filter(|value| value.1 == &name[1]);
                    let best = named.min_by_key(|value| {
                        (value.0 != source.file, value.2.starts_with(|first: char| first.is_ascii_digit()))
                    });
                    best.map_or(name[0].to_owned(), |value| value.2.to_owned())
                };
                for _ in 0..2 {
                    sql = hole.replace_all(&sql, value).into_owned();
                }
                sql = sql.replace("{{", "{").replace("}}", "}");
            }
            if let Some((_, whole)) = part {
                sql = whole.replace("PART", &sql);
            }
            if asked.contains(&(start - 1)) || verbs.is_match(&sql) {
                statements.push((source.place(start), sql.replace("\\\"", "\"")));
            }
        }
    }
    // The others need the table.
    statements
        .sort_by_key(|(_, sql)| (sql.starts_with("drop table"), !sql.starts_with("create temporary table")));
    Ok((statements, unread))
}

/// Returns the statements that Postgres refuses, each with its place and the reason.
async fn refused(connection: &mut PgConnection, statements: &[Statement]) -> TestResult<Vec<String>> {
    let verbs = Regex::new(VERBS)?;
    let mut refused = Vec::new();
    execute(connection, "set search_path = pg_catalog, pg_temp; begin").await;
    for (nth, (place, sql)) in statements.iter().enumerate() {
        execute(connection, "savepoint one").await;
        // What cannot be prepared is run.
        let sql = if verbs.is_match(sql) { format!("prepare checked_{nth} as {sql}") } else { sql.clone() };
        if let Err(error) = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await {
            refused.push(format!("{place}: {error}"));
            execute(connection, "rollback to one").await;
        }
    }
    Ok(refused)
}

#[tokio::test]
async fn postgres_accepts_every_statement_of_the_sources() -> TestResult {
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found)?;
    let (statements, unread) = statements(&found)?;
    assert!(unread.is_empty(), "calls whose SQL the test does not find: {unread:#?}");
    assert!(statements.len() > 130, "only {} are found", statements.len());
    let mut connection = database().await.connect().await;
    let refused = refused(&mut connection, &statements).await?;
    assert!(refused.is_empty(), "{}", refused.join("\n"));
    Ok(())
}

#[tokio::test]
async fn a_misspelled_column_is_refused_and_a_call_without_a_literal_is_named() -> TestResult {
    let text = "const GOOD: &str = \"select id from outbox.event\";\n\
                fn f() {\n sqlx::query(GOOD);\n sqlx::query(\"select idd from outbox.event\");\n\
                sqlx::query_scalar::<_, bool>(AssertSqlSafe(made(1)))\n }";
    let (statements, unread) = statements(&[Source::new("src/a.rs".to_owned(), text)])?;
    assert_eq!(unread, ["src/a.rs:5: made"]);
    let mut connection = database().await.connect().await;
    let refused = refused(&mut connection, &statements).await?;
    assert!(refused.len() == 1 && refused[0].starts_with("src/a.rs:4: "), "{refused:?}");
    Ok(())
}
