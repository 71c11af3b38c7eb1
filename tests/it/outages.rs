//! An outage costs a fixed amount of memory; a forgotten transaction costs nothing.

use std::time::Instant;

use crate::harness::keys;
use sqlx::PgConnection;

use crate::harness::{Flow, Line, TestResult, eventually};

const TOPICS: i64 = 100;

/// Appends events to a hundred topics in turn, in one statement.
async fn fill(line: &Line, events: i64) -> TestResult {
    let mut connection = line.system.database.connect().await;
    let sql = "select outbox.append($1 || ':' || (n % $2), 'T', json_build_object('n', n))
               from generate_series(1, $3) n";
    let name = line.topic.as_str();
    let filling = sqlx::query(sql).bind(name).bind(TOPICS).bind(events).execute(&mut connection);
    filling.await?;
    Ok(())
}

/// Waits until the relay has delivered `events`, as long as it makes progress.
async fn wait_until_drained(line: &Line, events: u64) {
    let mut before = 0;
    while before < events {
        before = eventually("progress", async || {
            let published = line.metric("aftercommit_relay_published_total").await;
            (published > before || published >= events).then_some(published)
        })
        .await;
    }
}

/// The relay's peak memory, in KiB.
#[cfg(target_os = "linux")]
fn peak_kib(line: &Line) -> TestResult<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", line.relay.pid()))?;
    let peak = status.lines().find_map(|text| text.strip_prefix("VmHWM:")).ok_or("no peak")?;
    Ok(peak.trim().trim_end_matches(" kB").parse()?)
}

/// `BACKLOG` in the environment says how many events; a million take a minute or two.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_backlog_of_an_outage_arrives_in_order_and_costs_no_memory() -> TestResult {
    let events: u64 = std::env::var("BACKLOG").map_or(40_000, |text| text.parse().expect("a number"));
    let mut line = Line::new().await;
    line.append(1).await;
    line.wait_until_whole().await;
    line.proxy.flow(Flow::Refuse);
    line.proxy.cut();
    fill(&line, events.cast_signed()).await?;
    line.wait_for_failure("connection").await;
    let before = peak_kib(&line)?;
    line.proxy.flow(Flow::Pass);
    let begun = Instant::now();
    wait_until_drained(&line, events + 1).await;
    let took = begun.elapsed();
    let peak = peak_kib(&line)?;
    for topic in 0..TOPICS {
        let topic = aftercommit::event::Topic::new(format!("{}:{topic}", line.topic))?;
        let history: redis::streams::StreamRangeReply =
            redis::AsyncCommands::xrange_all(&mut line.redis().await, keys::history(&topic)).await?;
        let number = |entry: &redis::streams::StreamId| {
            let payload = entry.get::<String>("payload").expect("a payload");
            serde_json::from_str::<serde_json::Value>(&payload).expect("JSON")["n"]
                .as_u64()
                .expect("a number")
        };
        let numbers: Vec<u64> = history.ids.iter().map(number).collect();
        assert!(numbers.is_sorted_by(|a, b| b - a == TOPICS.unsigned_abs()), "each one, in order");
        assert_eq!(numbers.len() as u64, events / TOPICS.unsigned_abs());
    }
    println!(
        "{events} events after an outage: {took:.1?}; peak memory before {before} KiB, after {peak} KiB"
    );
    assert!(peak < 128 * 1024, "{peak} KiB");
    Ok(())
}

/// The rate of a drain in events a second, measured from its first progress on.
async fn rate_of_a_drain(line: &Line, events: u64) -> TestResult<f64> {
    let before = line.delivered_in_all().await;
    line.proxy.flow(Flow::Refuse);
    line.proxy.cut();
    fill(line, events.cast_signed()).await?;
    line.proxy.flow(Flow::Pass);
    let passed = Instant::now();
    let first = eventually("progress", async || {
        let published = line.delivered_in_all().await;
        (published > before).then_some(published)
    })
    .await;
    if first >= before + events {
        return Ok(events as f64 / passed.elapsed().as_secs_f64());
    }
    let begun = Instant::now();
    wait_until_drained(line, before + events).await;
    Ok((before + events - first) as f64 / begun.elapsed().as_secs_f64())
}

async fn dead_tuples(connection: &mut PgConnection) -> TestResult<i64> {
    Ok(sqlx::query_scalar(
        "select coalesce(sum(n_dead_tup), 0)::bigint from pg_stat_user_tables
         where schemaname = 'outbox' and (relname like 'event_%' or relname like 'checkpoint_%')",
    )
    .fetch_one(connection)
    .await?)
}

/// `DRAIN` in the environment says how many events each drain has.
#[tokio::test]
async fn a_transaction_that_stays_open_and_one_that_is_prepared_and_forgotten_cost_nothing() -> TestResult {
    let events: u64 = std::env::var("DRAIN").map_or(10_000, |text| text.parse().expect("a number"));
    let line = Line::new().await;
    line.wait_until_leading().await;
    let mut free: f64 = 0.0;
    for _ in 0..3 {
        free = free.max(rate_of_a_drain(&line, events).await?);
    }
    let mut open = line.system.database.connect().await;
    let gid = uuid::Uuid::new_v4();
    let held = format!(
        "begin; select outbox.append('forgotten', 'T', '1'); prepare transaction '{gid}';
         begin; select outbox.append('open', 'T', '1')"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(held)).execute(&mut open).await?;
    let mut held: f64 = 0.0;
    for _ in 0..3 {
        held = held.max(rate_of_a_drain(&line, events).await?);
    }
    let dead = dead_tuples(&mut line.system.database.connect().await).await?;
    println!(
        "{events} events: {free:.0} a second without, {held:.0} with both held ({:+.1} %); {dead} dead \
         tuples",
        (held / free - 1.0) * 100.0
    );
    assert_eq!(dead, 0);
    // A wide limit, for busy machines: the fault that this test looks for is many times slower.
    assert!(held > free / 4.0, "{free} a second without, {held} with");
    let end = format!("commit; commit prepared '{gid}'");
    for sql in end.split("; ") {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&mut open).await?;
    }
    // Both events arrive, though late.
    let all = line.delivered_in_all().await;
    wait_until_drained(&line, all.max(6 * events + 2)).await;
    line.wait_until_leading().await;
    Ok(())
}
