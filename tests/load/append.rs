//! The cost of an append beside its floor: a row in a plain outbox table, as many applications have one. Both
//! take turns on one server, so that a slow moment meets both.

use std::fmt::Write;
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::harness::{Database, database_on, start_postgres};

/// Connections that commit at once.
const WRITERS: [usize; 3] = [1, 16, 32];
/// One turn.
const TURN: Duration = Duration::from_secs(2);
const TURNS: usize = 3;
/// Events of one statement, where several are appended at once.
pub(crate) const TOGETHER: usize = 100;

const PLAIN_TABLE: &str = "create table public.plain_outbox (
  id bigint generated always as identity primary key, event_id uuid not null default gen_random_uuid(),
  topic text not null, type text not null, payload json not null, created_at timestamptz not null default now())";
const PLAIN: &str = "insert into public.plain_outbox (topic, type, payload) values ($1, $2, $3::json)";
const APPEND: &str = "select outbox.append($1, $2, $3::json)";
const PLAIN_ALL: &str = "insert into public.plain_outbox (topic, type, payload)
  select * from unnest($1::text[], $2::text[], $3::text[]::json[])";
const APPEND_ALL: &str = "select outbox.append_all($1, $2, $3::text[]::json[])";

/// Appends, and rows of a plain table.
pub(crate) struct Measured {
    /// For each number of writers: commits a second of the plain table, and of `outbox.append`.
    pub(crate) commits: Vec<(usize, f64, f64)>,
    /// Microseconds an event of the plain table, and of `outbox.append_all`.
    pub(crate) together: (f64, f64),
}

/// Measures all.
pub(crate) async fn measure(bytes: usize) -> Measured {
    let durable = ["fsync", "full_page_writes", "synchronous_commit"];
    let server = start_postgres(durable.map(|name| (name, "on".to_owned())).into()).await;
    let database = database_on(&server).await;
    let mut admin = database.connect().await;
    sqlx::raw_sql(AssertSqlSafe(PLAIN_TABLE)).execute(&mut admin).await.expect("a table");
    let payload = format!("\"{}\"", "x".repeat(bytes.max(2) - 2));
    let mut all = Vec::new();
    for writers in WRITERS {
        let (mut plain, mut append) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            plain.push(commits(&database, writers, PLAIN, &payload).await);
            append.push(commits(&database, writers, APPEND, &payload).await);
        }
        all.push((writers, median(plain), median(append)));
    }
    let (mut plain, mut append) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        plain.push(together(&database, PLAIN_ALL, &payload).await);
        append.push(together(&database, APPEND_ALL, &payload).await);
    }
    Measured { commits: all, together: (median(plain), median(append)) }
}

/// Runs all. Returns a table.
pub(crate) async fn run(bytes: usize) -> String {
    let measured = measure(bytes).await;
    let mut table = format!("append    one event of {bytes} bytes a commit, medians of {TURNS} turns\n");
    table.push_str("writers   commits/s: plain table  append  ratio\n");
    for (writers, plain, append) in measured.commits {
        writeln!(table, "{writers:>7}   {plain:>22.0}  {append:>6.0}  {:>5.2}", append / plain)
            .expect("a String");
    }
    let (plain, append) = measured.together;
    writeln!(
        table,
        "{TOGETHER} events a statement: plain table {plain:.1}, append_all {append:.1} us an event: {:.2} times",
        append / plain
    )
    .expect("a String");
    table
}

/// The commits a second of this number of writers. Each transaction has one statement.
async fn commits(database: &Database, writers: usize, sql: &'static str, payload: &str) -> f64 {
    let mut connections = Vec::new();
    for _ in 0..writers {
        connections.push(database.connect().await);
    }
    let until = Instant::now() + TURN;
    let tasks = connections.into_iter().enumerate().map(|(n, connection)| {
        let payload = payload.to_owned();
        tokio::spawn(commit_until(connection, sql, format!("order:{n}"), payload, until))
    });
    let tasks: Vec<_> = tasks.collect();
    let mut commits = 0;
    for task in tasks {
        commits += task.await.expect("a writer");
    }
    commits as f64 / TURN.as_secs_f64()
}

async fn commit_until(
    mut connection: PgConnection,
    sql: &'static str,
    topic: String,
    payload: String,
    until: Instant,
) -> u64 {
    let mut commits = 0;
    while Instant::now() < until {
        let statement = sqlx::query(sql).bind(&topic).bind("ORDER_PAID").bind(&payload);
        statement.execute(&mut connection).await.expect("a commit");
        commits += 1;
    }
    connection.close().await.expect("a goodbye");
    commits
}

/// Microseconds an event, where one statement brings [`TOGETHER`].
async fn together(database: &Database, sql: &'static str, payload: &str) -> f64 {
    let mut connection = database.connect().await;
    let topics: Vec<String> = (0..TOGETHER).map(|n| format!("order:{n}")).collect();
    let (types, payloads) = (vec!["ORDER_PAID"; TOGETHER], vec![payload; TOGETHER]);
    let (begun, mut statements) = (Instant::now(), 0_u32);
    while begun.elapsed() < TURN {
        let statement = sqlx::query(sql).bind(&topics).bind(&types).bind(&payloads);
        statement.execute(&mut connection).await.expect("a commit");
        statements += 1;
    }
    begun.elapsed().as_secs_f64() * 1e6 / f64::from(statements) / TOGETHER as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
