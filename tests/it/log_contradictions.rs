//! Manual changes by the owner of the log: no event is lost, no pending event counts as delivered, the relay
//! reports the contradiction, and `rebase` repairs it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use redis::AsyncCommands;
use redis::streams::StreamRangeReply;
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::append_door::execute;
use crate::commands::unwrapped;
use crate::harness::{Line, TestResult, Wiring, cli, database, eventually, http_get, keys};
use aftercommit::log::checkpoint;
use aftercommit::ops::rebase::Rebase;

/// A line that has delivered six events, and a session of the log's owner.
async fn line_of_six() -> (Line, PgConnection) {
    let mut line = Line::new().await;
    line.append(6).await;
    line.wait_until_whole().await;
    let admin = line.system.database.connect().await;
    (line, admin)
}

async fn states(admin: &mut PgConnection) -> TestResult<Vec<(String, i64)>> {
    Ok(sqlx::query_as("select state, count(*) from outbox.event_status group by 1 order by 1")
        .fetch_all(admin)
        .await?)
}

/// Asserts that the relay refuses, that every screen says so, and that all events arrive in order after a
/// rebase.
async fn assert_refused_and_mended(mut line: Line, admin: &mut PgConnection, waiting: i64) -> TestResult {
    line.wait_for_failure("conflict").await;
    line.relay.wait_for_log("contradicts the position").await;
    line.relay.wait_for_log("aftercommit rebase").await;
    let states = states(admin).await?;
    assert_eq!(
        states.iter().find(|(state, _)| state == "pending").map(|(_, n)| *n),
        Some(waiting),
        "{states:?}"
    );
    // The relay reports it with its next keepalive.
    eventually("status says so", async || {
        let status = cli(line.system.settings(), &["status", "--output", "json"]).await;
        let status: Value = serde_json::from_slice(&status.stdout).expect("JSON");
        let told = [&status["relays"][0]["contradiction"], &status["relays"][0]["processes"][0]["error"]];
        told.iter().any(|told| told.is_string()).then_some(())
    })
    .await;
    let doctor = cli(line.system.settings(), &["doctor"]).await;
    assert_eq!(doctor.status.code(), Some(1));
    let doctor = unwrapped(&String::from_utf8_lossy(&doctor.stdout));
    assert!(doctor.contains("contradicts the position"), "{doctor}");
    let ready = http_get(line.relay.url("/readyz")).await?;
    assert_eq!(ready.status(), 503);

    line.relay.signal("KILL").await;
    eventually("nobody leads, and it is mended", async || {
        let output = cli(line.system.settings(), &["rebase", "--yes"]).await;
        output.status.success().then_some(())
    })
    .await;
    let again = cli(line.system.settings(), &["rebase", "--dry-run"]).await;
    assert_eq!(again.stdout, b"nothing to rebase: Postgres and Redis belong together\n", "{again:?}");
    line.relay = line.system.start("relay").await;
    line.append(3).await;
    line.wait_until_whole().await;
    Ok(())
}

/// A failure right after the lead was taken is no success: the backoff grows.
#[tokio::test]
async fn a_relay_that_leads_and_fails_at_once_waits_longer_each_time() {
    let relay = vec![("AFTERCOMMIT_RELAY_BACKOFF_MAX_MS", "2000".to_owned())];
    let mut line = Line::with(Wiring { relay, ..Wiring::default() }).await;
    line.append(6).await;
    line.wait_until_whole().await;
    let mut admin = line.system.database.connect().await;
    let begun = Instant::now();
    execute(&mut admin, "select setval('outbox.event_id_seq', 2); select outbox.append('t', 'T', '1')").await;
    let failures = "aftercommit_relay_failures_total{class=\"conflict\"}";
    eventually("it has failed nine times", async || (line.metric(failures).await >= 9).then_some(())).await;
    // Eight waits that double from 50 ms up to 2 s, each at least half as long.
    assert!(begun.elapsed() >= Duration::from_millis(3500), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_sequence_that_was_set_back_is_refused_and_mended() -> TestResult {
    let (mut line, mut admin) = line_of_six().await;
    execute(&mut admin, "select setval('outbox.event_id_seq', 2)").await;
    line.append(9).await;
    assert_refused_and_mended(line, &mut admin, 9).await?;
    Ok(())
}

#[tokio::test]
async fn fewer_new_rows_than_were_delivered_are_refused_as_well() -> TestResult {
    let (mut line, mut admin) = line_of_six().await;
    execute(&mut admin, "truncate outbox.event restart identity").await;
    line.append(2).await;
    assert_refused_and_mended(line, &mut admin, 2).await?;
    Ok(())
}

#[tokio::test]
async fn a_log_that_a_test_cleaner_emptied_is_refused_and_mended() -> TestResult {
    let (mut line, mut admin) = line_of_six().await;
    execute(&mut admin, "truncate outbox.event restart identity").await;
    line.append(9).await;
    assert_refused_and_mended(line, &mut admin, 9).await?;
    Ok(())
}

#[tokio::test]
async fn a_sequence_set_back_while_events_wait_gives_ids_twice_and_none_is_lost() -> TestResult {
    let (mut line, mut admin) = line_of_six().await;
    line.relay.signal("STOP").await;
    line.append(4).await;
    execute(&mut admin, "select setval('outbox.event_id_seq', 7)").await;
    line.append(4).await;
    line.relay.signal("CONT").await;
    assert_refused_and_mended(line, &mut admin, 8).await?;
    Ok(())
}

/// Pending rows have higher ids than later rows, and no id is used twice.
#[tokio::test]
async fn a_sequence_set_back_behind_events_that_wait_leaves_their_order() -> TestResult {
    let (mut line, mut admin) = line_of_six().await;
    line.relay.signal("STOP").await;
    line.append(4).await;
    execute(&mut admin, "select setval('outbox.event_id_seq', 2)").await;
    line.append(3).await;
    line.relay.signal("CONT").await;
    assert_refused_and_mended(line, &mut admin, 7).await?;
    Ok(())
}

#[tokio::test]
async fn an_id_far_above_the_sequence_is_refused_before_it_hides_what_comes_later() -> TestResult {
    let (mut line, mut admin) = line_of_six().await;
    let sql = format!(
        "insert into outbox.event (id, topic, type, payload) values (1152921504606846976, '{}', 'T', '1')
         returning event_id",
        line.topic
    );
    let by_hand = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut admin).await?;
    line.wait_for_failure("conflict").await;
    line.appended.push(by_hand);
    line.append(3).await;
    assert_refused_and_mended(line, &mut admin, 4).await?;
    Ok(())
}

#[tokio::test]
async fn a_sequence_that_counts_down_is_refused_at_the_append_or_by_the_relay() {
    let (mut line, mut admin) = line_of_six().await;
    execute(&mut admin, "alter sequence outbox.event_id_seq increment -1").await;
    line.append(2).await;
    line.wait_for_failure("conflict").await;
    execute(&mut admin, "alter sequence outbox.event_id_seq increment 1").await;
    assert_refused_and_mended_in_any_order(line).await;
}

/// As [`assert_refused_and_mended`], for rows whose ids say nothing about their order.
async fn assert_refused_and_mended_in_any_order(mut line: Line) {
    line.relay.signal("KILL").await;
    eventually("it is mended", async || {
        cli(line.system.settings(), &["rebase", "--yes"]).await.status.success().then_some(())
    })
    .await;
    line.relay = line.system.start("relay").await;
    eventually("all have arrived", async || {
        (line.delivered().await == line.appended.len() as u64).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_xid_chosen_by_hand_hides_no_row() -> TestResult {
    let (mut line, mut admin) = line_of_six().await;
    let sql = format!(
        "insert into outbox.event (xid, topic, type, payload) values ('3', '{}', 'T', '1')
         returning event_id",
        line.topic
    );
    line.appended.push(sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut admin).await?);
    line.append(2).await;
    line.wait_until_whole().await;
    Ok(())
}

/// The limit that docs/guarantees.md states: nothing tells such a row from a delivered one.
#[tokio::test]
async fn a_row_whose_id_and_xid_were_chosen_by_hand_is_named_by_the_doctor() -> TestResult {
    let (line, mut admin) = line_of_six().await;
    let by_hand = "insert into outbox.event (xid, id, topic, type, payload)
                   select e.xid, e.id, e.topic, 'T', '1' from outbox.event e where e.id = 3";
    execute(&mut admin, by_hand).await;
    assert_eq!(states(&mut admin).await?, [("delivered".to_owned(), 7)]);
    let doctor = cli(line.system.settings(), &["doctor", "--role", "operator"]).await;
    let doctor = unwrapped(&String::from_utf8_lossy(&doctor.stdout));
    assert!(doctor.contains("id 3 stands twice in outbox.event"), "{doctor}");
    Ok(())
}

#[tokio::test]
async fn an_xid_of_the_future_is_refused_and_mended() -> TestResult {
    let (mut line, mut admin) = line_of_six().await;
    let sql = format!(
        "insert into outbox.event (xid, topic, type, payload) values ('1099511627776', '{}', 'T', '1')
         returning event_id",
        line.topic
    );
    line.appended.push(sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut admin).await?);
    assert_refused_and_mended(line, &mut admin, 1).await?;
    Ok(())
}

/// Redis has lost the events that a dead relay published without recording them, and the rows of its window
/// are not the first to get new ids.
#[tokio::test]
async fn no_number_is_given_twice_by_a_rebase_that_finds_a_window_open() -> TestResult {
    let failpoint = vec![("FAILPOINT", "batch_published@1".to_owned())];
    let mut line = Line::with(Wiring { relay: failpoint, ..Wiring::default() }).await;
    let (mut admin, mut writer) =
        (line.system.database.connect().await, line.system.database.connect().await);
    // A row with a lower id than those of the window, outside of it.
    execute(&mut writer, "begin; select outbox.append('late', 'T', '1')").await;
    line.append(4).await;
    line.relay.wait_for_log("\"failpoint\":\"batch_published\"").await;
    line.relay.signal("KILL").await;
    execute(&mut writer, "commit").await;
    let told = history(&line).await?;
    assert!(!told.is_empty(), "something was published");
    let mut redis = line.redis().await;
    let _: () = redis::cmd("FLUSHALL").query_async(&mut redis).await?;
    execute(&mut admin, "select setval('outbox.event_id_seq', 2)").await;
    line.append(3).await;

    let output = cli(line.system.settings(), &["rebase", "--yes"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    line.system.unset("FAILPOINT");
    line.relay = line.system.start("relay").await;
    line.wait_until_whole().await;
    let now = history(&line).await?;
    for (id, event) in told {
        assert!(
            now.get(&id).is_none_or(|other| *other == event),
            "{id} was {event} and is {:?}",
            now.get(&id)
        );
    }
    assert!(!now.values().any(|event| event.is_empty()) && now.len() == 7, "{now:?}");
    Ok(())
}

/// A rebase of long ago has found an event in Redis, and the sequence gives its id once more.
#[tokio::test]
async fn a_row_with_the_id_of_one_that_was_delivered_before_is_refused_and_mended() -> TestResult {
    let (mut line, mut admin) = line_of_six().await;
    execute(
        &mut admin,
        "insert into outbox.delivered_before (relay, id, event_id)
         select p.relay, e.id, e.event_id from outbox.position p, outbox.event e where e.id in (3, 4)",
    )
    .await;
    execute(&mut admin, "select setval('outbox.event_id_seq', 2)").await;
    line.append(3).await;
    assert_refused_and_mended(line, &mut admin, 3).await
}

#[tokio::test]
async fn a_row_that_is_no_event_does_not_stand_in_the_way_of_a_rebase() -> TestResult {
    let (mut line, mut admin) = line_of_six().await;
    line.relay.signal("KILL").await;
    let no_event = "insert into outbox.event (topic, type, payload) values ('bad topic!', 'X', '1')";
    execute(&mut admin, no_event).await;
    execute(&mut admin, "select setval('outbox.event_id_seq', 2)").await;
    line.append(2).await;
    line.relay = line.system.start("relay").await;
    assert_refused_and_mended(line, &mut admin, 3).await?;
    eventually("the row is parked", async || {
        let parked = ("parked".to_owned(), 1);
        states(&mut admin).await.ok()?.contains(&parked).then_some(())
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn a_page_of_pending_events_that_ends_between_two_rows_of_one_id_skips_neither() -> TestResult {
    let database = database().await;
    let mut admin = database.connect().await;
    checkpoint::load_or_begin(&mut admin, "main").await?;
    let append = "select outbox.append('t', 'T', '1') from generate_series(1, 3)";
    execute(&mut admin, &format!("{append}; select setval('outbox.event_id_seq', 1); {append}")).await;
    let mut rebase = Rebase::begin(&mut admin, "main").await?;
    let (mut ids, mut last): (Vec<i64>, _) = (Vec::new(), None);
    while let Some(next) = rebase.pending(last.as_ref(), 1).await?.pop() {
        ids.push(next.id);
        last = Some(next);
    }
    assert_eq!(ids, [1, 2, 2, 3, 3, 4]);
    Ok(())
}

/// Later rows have lower ids than the end of the window, which the relay has not reached.
#[tokio::test]
async fn a_rebase_looks_behind_the_open_window() {
    let failpoint = vec![("FAILPOINT", "window_written@1".to_owned())];
    let mut line = Line::with(Wiring { relay: failpoint, ..Wiring::default() }).await;
    let mut admin = line.system.database.connect().await;
    execute(&mut admin, "select setval('outbox.event_id_seq', 100)").await;
    line.append(4).await;
    line.relay.wait_for_log("\"failpoint\":\"window_written\"").await;
    line.relay.signal("KILL").await;
    execute(&mut admin, "select setval('outbox.event_id_seq', 10)").await;
    line.append(3).await;
    // Only the window's own ids show it now.
    execute(&mut admin, "select setval('outbox.event_id_seq', 200)").await;
    let output = cli(line.system.settings(), &["rebase", "--yes"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("nothing to rebase"), "{output:?}");
    line.system.unset("FAILPOINT");
    line.relay = line.system.start("relay").await;
    line.wait_until_whole().await;
    assert_eq!(line.metric("aftercommit_relay_failures_total{class=\"conflict\"}").await, 0);
}

/// Ids and events of the line's topic.
async fn history(line: &Line) -> TestResult<BTreeMap<String, String>> {
    let mut redis = line.redis().await;
    let entries: StreamRangeReply = redis.xrange_all(keys::history(&line.topic)).await?;
    Ok(entries.ids.iter().map(|entry| (entry.id.clone(), entry.get("event").unwrap_or_default())).collect())
}
