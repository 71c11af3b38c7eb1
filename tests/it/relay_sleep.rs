//! A relay whose log is silent sleeps, so that a database that is billed for the time of its work can rest.

use std::time::{Duration, Instant};

use sqlx::PgConnection;

use crate::harness::{Line, TestResult, Wiring, eventually};

/// `[relay] idle_interval_ms` of these tests: much longer than a takeover, which a line has after 2 s.
const SLEEP: Duration = Duration::from_secs(8);

async fn line_that_sleeps() -> Line {
    let line = Line::with(Wiring {
        relay: vec![("AFTERCOMMIT_RELAY_IDLE_INTERVAL_MS", SLEEP.as_millis().to_string())],
        postgres: Some(Vec::new()),
        ..Wiring::default()
    });
    line.await
}

/// Waits until the relay sleeps and has told the log so. The sleep has just begun then.
async fn wait_until_asleep(line: &Line) {
    let mut connection = line.system.database.connect().await;
    let announced = "select exists (select from outbox.heartbeat where asleep_seconds is not null)";
    eventually("the relay sleeps", async || {
        let is_asleep = line.metric("aftercommit_relay_asleep").await == 1;
        let announced: bool = sqlx::query_scalar(announced).fetch_one(&mut connection).await.expect("a row");
        (is_asleep && announced).then_some(())
    })
    .await;
}

/// How many sessions the relay has, and when it last began a query.
async fn sessions(connection: &mut PgConnection) -> TestResult<(i64, Option<String>)> {
    let sql = "select count(*), max(query_start)::text from pg_stat_activity
               where starts_with(application_name, 'aftercommit relay ')";
    Ok(sqlx::query_as(sql).fetch_one(connection).await?)
}

#[tokio::test]
async fn a_relay_that_sleeps_asks_postgres_nothing_and_wakes_at_a_notification() -> TestResult {
    let mut line = line_that_sleeps().await;
    line.append(1).await;
    line.wait_until_whole().await;
    wait_until_asleep(&line).await;
    let mut connection = line.system.database.connect().await;
    let before = sessions(&mut connection).await?;
    // Time in which nothing may happen: longer than each interval of an awake relay, and than a takeover.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(sessions(&mut connection).await?, before);
    line.append(1).await;
    let begun = Instant::now();
    sqlx::query("notify outbox").execute(&mut connection).await?;
    line.wait_until_arrived().await;
    assert!(begun.elapsed() < Duration::from_secs(2), "it slept on for {:?}", begun.elapsed());
    assert_eq!(line.metric("aftercommit_relay_leads_taken_total").await, 1, "{}", line.relay.log());
    Ok(())
}

#[tokio::test]
async fn an_event_without_a_notification_waits_until_the_sleep_ends() -> TestResult {
    let mut line = line_that_sleeps().await;
    line.wait_until_leading().await;
    wait_until_asleep(&line).await;
    let begun = Instant::now();
    line.append(1).await;
    line.wait_until_whole().await;
    let waited = begun.elapsed();
    assert!(waited > SLEEP / 2 && waited < SLEEP + Duration::from_secs(2), "{waited:?}");
    assert_eq!(line.metric("aftercommit_relay_leads_taken_total").await, 1, "{}", line.relay.log());
    Ok(())
}

#[tokio::test]
async fn a_relay_that_sleeps_gives_a_redis_back_what_it_forgets() -> TestResult {
    let mut line = line_that_sleeps().await;
    line.append(3).await;
    line.wait_until_whole().await;
    wait_until_asleep(&line).await;
    let begun = Instant::now();
    line.command("FLUSHALL").await?;
    line.wait_until_arrived().await;
    assert!(begun.elapsed() < SLEEP / 2, "{:?}", begun.elapsed());
    Ok(())
}

/// A database that rests closes its connections, and a new one would wake it.
#[tokio::test]
async fn a_relay_that_sleeps_makes_no_connection_until_it_wakes() -> TestResult {
    let mut line = line_that_sleeps().await;
    line.wait_until_leading().await;
    wait_until_asleep(&line).await;
    let mut connection = line.system.database.connect().await;
    line.postgres().proxy.cut();
    line.append(1).await;
    eventually("its sessions have ended", async || {
        (sessions(&mut connection).await.expect("an answer").0 == 0).then_some(())
    })
    .await;
    let cut = Instant::now();
    // The listener of a relay that is awake connects again after 100 ms.
    while cut.elapsed() < Duration::from_secs(3) {
        assert_eq!(sessions(&mut connection).await?.0, 0);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    line.wait_until_whole().await;
    Ok(())
}
