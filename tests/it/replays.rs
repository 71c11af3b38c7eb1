//! Replays: which events, how often, in which order, and the state after its process died.

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use aftercommit::event::Topic;
use aftercommit::log::read;
use aftercommit::ops::audit::Operator;
use aftercommit::ops::browse::Selection;
use aftercommit::ops::replay;

use crate::commands::{assert_fails, commit, json, stdout};
use crate::harness::{Running, System, TestResult, cli, eventually};

/// A system whose relay has delivered this many events of each of two topics, `A` of the first and `B` of the
/// second.
async fn delivered(each: u64) -> (System, [Topic; 2], PgConnection) {
    let system = System::new().await;
    let topics = [system.redis.topic("one"), system.redis.topic("two")];
    let relay = system.start("relay").await;
    for (topic, kind) in topics.iter().zip(["A", "B"]) {
        commit(&system, topic, kind, each).await;
    }
    let mut connection = system.database.connect().await;
    wait_until_all_delivered(&mut connection).await;
    assert_eq!(relay.terminate().await, 0);
    (system, topics, connection)
}

async fn number(connection: &mut PgConnection, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(connection).await.expect("a number")
}

async fn wait_until_all_delivered(connection: &mut PgConnection) {
    eventually("all is delivered", async || {
        let pending = "select count(*) from outbox.event_status where state <> 'delivered' or relay is null";
        (number(connection, pending).await == 0).then_some(())
    })
    .await;
}

/// The rows that a replay's copies repeat, in the order in which they were appended.
async fn repeated(connection: &mut PgConnection, replay: i64) -> Vec<i64> {
    sqlx::query_scalar(
        "select (headers->'replay'->>'row')::bigint from outbox.event
         where (headers->'replay'->>'replay')::bigint = $1 order by id",
    )
    .bind(replay)
    .fetch_all(connection)
    .await
    .expect("copies")
}

async fn originals(connection: &mut PgConnection) -> Vec<i64> {
    sqlx::query_scalar("select id from outbox.event where headers is null order by id")
        .fetch_all(connection)
        .await
        .expect("rows")
}

async fn copied(connection: &mut PgConnection, replay: i64) -> i64 {
    number(connection, &format!("select coalesce(max(copied), 0) from outbox.replay where id = {replay}"))
        .await
}

async fn standing(system: &System) -> Value {
    json(system, &["replay", "list"]).await[0]["standing"].clone()
}

#[tokio::test]
async fn a_replay_repeats_originals_and_copies_only_where_they_are_asked_for() -> TestResult {
    let (system, _, mut connection) = delivered(2).await;
    let forged = r#"select outbox.append('forged', 'A', '1', '{"replay":{"row":1,"replay":1}}')"#;
    sqlx::query(forged).execute(&mut connection).await?;
    let _relay = system.start("relay").await;
    wait_until_all_delivered(&mut connection).await;
    let replays = async |more: &[&str]| {
        let output = cli(system.settings(), &[&ALL[..], more].concat()).await;
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        wait_until_all_delivered(&mut system.database.connect().await).await;
        stdout(&output)
    };
    assert_eq!(replays(&[]).await, "5 events replayed (replay 1)\n");
    assert_eq!(replays(&[]).await, "5 events replayed (replay 2)\n");
    assert_eq!(replays(&["--include-replays"]).await, "15 events replayed (replay 3)\n");
    let event: Uuid = sqlx::query_scalar("select event_id from outbox.event where id = 1")
        .fetch_one(&mut connection)
        .await?;
    let one = json(&system, &["replay", "--event", &event.to_string(), "--dry-run"]).await;
    assert_eq!(one["events"], 1, "{one}");
    let last = number(&mut connection, "select max(id) from outbox.event").await.to_string();
    let named = json(&system, &["replay", "--row", &last, "--dry-run"]).await;
    assert_eq!(named["events"], 1, "a row that is named is asked for: {named}");
    Ok(())
}

const ALL: [&str; 5] = ["replay", "--all", "--yes", "--reason", "a test"];

#[tokio::test]
async fn copies_that_a_rebase_gave_new_ids_are_copies_to_the_next_replay() -> TestResult {
    let (system, [topic, _], mut connection) = delivered(2).await;
    let output = cli(system.settings(), &ALL).await;
    assert_eq!(stdout(&output), "4 events replayed (replay 1)\n");
    // Two events wait, appended after the copies with ids that were given before.
    sqlx::query("select setval('outbox.event_id_seq', 6)").execute(&mut connection).await?;
    commit(&system, &topic, "C", 2).await;
    let output = cli(system.settings(), &["rebase", "--yes"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let moved = "select count(*) from outbox.event where headers ? 'replay' and id > 8";
    assert_eq!(number(&mut connection, moved).await, 4, "all copies have new ids");
    let _relay = system.start("relay").await;
    wait_until_all_delivered(&mut connection).await;
    let plan = json(&system, &["replay", "--all", "--dry-run"]).await;
    assert_eq!(plan["events"], 6, "the originals: {plan}");
    Ok(())
}

#[tokio::test]
async fn a_replay_leaves_out_what_was_parked_when_it_was_confirmed_and_released_before_it_came_there()
-> TestResult {
    let (system, [topic, _], mut connection) = delivered(2).await;
    read::prepare_session(&mut connection).await?;
    let relay = system.redis.relay_name();
    let park = "insert into outbox.parked
                  (relay, epoch, seq, id, event_id, topic, type, payload, created_at, reason, settled_as,
                   settled_at)
                select $1, 1, e.id, e.id, e.event_id, e.topic, e.type, e.payload, e.created_at, 'refused', $3,
                       case when $3 is not null then clock_timestamp() end
                from outbox.event e where e.id = any ($2)";
    let rows = originals(&mut connection).await;
    let parked = sqlx::query(park).bind(&relay).bind(&rows[..1]).bind(None::<&str>);
    parked.execute(&mut connection).await?;
    let selection = Selection { topic: Some(topic.to_string()), ..Selection::default() };
    let plan = replay::plan(&mut connection, &relay, &selection).await?;
    assert_eq!(plan.events, 1);
    let operator = Operator { who: "test".to_owned(), reason: "a test".to_owned() };
    let mut replay = replay::begin(&mut connection, &plan, &operator).await?;
    let released = "update outbox.parked set settled_as = 'released', settled_at = clock_timestamp()";
    sqlx::query(released).execute(&mut connection).await?;
    // A repair could not give it back.
    let parked = sqlx::query(park).bind(&relay).bind(&rows[1..2]).bind(None::<&str>);
    parked.execute(&mut connection).await?;
    let stop = CancellationToken::new();
    replay::run(&mut connection, &mut replay, None, &stop, |_| {}).await?;
    assert_eq!((replay.copied, replay.missing), (1, 0));
    assert_eq!(repeated(&mut connection, replay.id).await, rows[1..2]);
    assert_eq!(replay::plan(&mut connection, &relay, &selection).await?.events, 1, "one is released now");
    Ok(())
}

#[tokio::test]
async fn a_replay_killed_again_and_again_repeats_each_event_once_and_in_order() {
    let (system, _, mut connection) = delivered(500).await;
    let rows = originals(&mut connection).await;
    let mut running = Running::start(system.settings(), &[&ALL[..], &["--rate", "800"]].concat());
    let mut before = 0;
    for _ in 0..3 {
        before = eventually("it moves on", async || {
            let copied = copied(&mut connection, 1).await;
            (copied > before).then_some(copied)
        })
        .await;
        running.kill().await;
        eventually("its death is seen", async || (standing(&system).await == "interrupted").then_some(()))
            .await;
        running = Running::start(system.settings(), &["replay", "--resume", "1", "--rate", "800"]);
    }
    let output = running.end().await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(stdout(&output), "1000 events replayed (replay 1)\n");
    assert!(before < 1000, "it was killed before its end");
    assert_eq!(repeated(&mut connection, 1).await, rows);
    assert_fails(system.settings(), &["replay", "--resume", "1"], 1, "has finished").await;
    assert_fails(system.settings(), &["replay", "--resume", "9"], 1, "no replay 9").await;

    let _relay = system.start("relay").await;
    wait_until_all_delivered(&mut connection).await;
}

#[tokio::test]
async fn a_replay_killed_between_its_copies_and_its_progress_leaves_neither() -> TestResult {
    let (system, _, mut connection) = delivered(20).await;
    let rows = originals(&mut connection).await;
    let running = Running::start(system.settings(), &[&ALL[..], &["--rate", "10"]].concat());
    eventually("it has begun", async || (copied(&mut connection, 1).await > 0).then_some(())).await;
    let mut other = system.database.connect().await;
    // While this lock is held, a batch can append its copies and not write down its progress.
    let mut barrier = other.begin().await?;
    sqlx::query("select from outbox.replay where id = 1 for update").execute(&mut *barrier).await?;
    eventually("a batch waits", async || is_waiting(&mut connection, "with examined").await.then_some(()))
        .await;
    running.kill().await;
    barrier.rollback().await?;
    eventually("its death is seen", async || (standing(&system).await == "interrupted").then_some(())).await;
    let so_far = copied(&mut connection, 1).await;
    assert_eq!(repeated(&mut connection, 1).await.len() as i64, so_far);
    assert!(so_far < 40, "it was killed before its end");
    let done = json(&system, &["replay", "--resume", "1"]).await;
    assert_eq!((&done["events"], &done["missing"]), (&40.into(), &0.into()), "{done}");
    assert_eq!(repeated(&mut connection, 1).await, rows);
    Ok(())
}

#[tokio::test]
async fn a_replay_stopped_by_ctrl_c_says_how_to_go_on_and_nobody_else_can_take_a_running_one() -> TestResult {
    let (system, _, mut connection) = delivered(50).await;
    let running = Running::start(system.settings(), &[&ALL[..], &["--rate", "20"]].concat());
    eventually("it has begun", async || (copied(&mut connection, 1).await > 0).then_some(())).await;
    assert_eq!(standing(&system).await, "running");
    assert_fails(system.settings(), &["replay", "--resume", "1"], 1, "is running already").await;
    running.interrupt().await;
    let output = running.end().await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stderr)?;
    assert!(said.contains("of 100: go on with `aftercommit replay --resume 1`"), "{said}");
    json(&system, &["replay", "--resume", "1"]).await;
    assert_eq!(repeated(&mut connection, 1).await, originals(&mut connection).await);
    let audit = json(&system, &["audit"]).await;
    assert_eq!((&audit[1]["action"], &audit[1]["events"]), (&"replay".into(), &100.into()), "{audit}");
    assert_eq!(
        (&audit[1]["reason"], &audit[1]["selection"]["replay"]),
        (&"a test".into(), &1.into()),
        "{audit}"
    );
    assert_eq!(audit[0]["action"], "resume replay", "{audit}");
    Ok(())
}

#[tokio::test]
async fn a_dry_run_counts_and_shows_and_changes_nothing() {
    let (system, topics, mut connection) = delivered(8).await;
    let everything = "select (select count(*) from outbox.event) + (select count(*) from outbox.audit)
                        + (select count(*) from outbox.replay) 
                        + (select last_value from outbox.event_id_seq)";
    let before = number(&mut connection, everything).await;
    let output = cli(system.settings(), &["replay", "--topic", topics[1].as_str(), "--dry-run"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = stdout(&output);
    assert!(text.starts_with("8 delivered events would be replayed\n\nROW"), "{text}");
    assert_eq!(text.matches(topics[1].as_str()).count(), 5, "{text}");
    assert_eq!(number(&mut connection, everything).await, before);
}

#[tokio::test]
async fn a_selection_is_by_identity_row_topic_type_and_time_and_only_of_what_was_delivered() -> TestResult {
    let (system, topics, mut connection) = delivered(5).await;
    let relay = system.redis.relay_name();
    let rows = originals(&mut connection).await;
    let event: Uuid = sqlx::query_scalar("select event_id from outbox.event where id = $1")
        .bind(rows[2])
        .fetch_one(&mut connection)
        .await?;
    let times: Vec<chrono::DateTime<chrono::Utc>> =
        sqlx::query_scalar("select distinct created_at from outbox.event order by 1")
            .fetch_all(&mut connection)
            .await?;
    // Appended since, and so not delivered: never part of a replay.
    commit(&system, &topics[0], "A", 3).await;
    read::prepare_session(&mut connection).await?;
    let all = Selection::default();
    let of_topic = Selection { topic: Some(topics[0].to_string()), ..all.clone() };
    for (selection, expected) in [
        (all.clone(), &rows[..]),
        (of_topic.clone(), &rows[..5]),
        (Selection { event_type: Some("B".to_owned()), ..all.clone() }, &rows[5..]),
        (Selection { event_type: Some("B".to_owned()), ..of_topic }, &[]),
        (Selection { events: vec![event], ..all.clone() }, &rows[2..3]),
        (Selection { rows: vec![rows[7], rows[6]], ..all.clone() }, &rows[6..8]),
        (Selection { since: Some(times[1]), ..all.clone() }, &rows[5..]),
        (Selection { until: Some(times[1]), ..all.clone() }, &rows[..5]),
    ] {
        let plan = replay::plan(&mut connection, &relay, &selection).await?;
        let sample = replay::sample(&mut connection, &plan, 100).await?;
        let ids: Vec<i64> = sample.iter().map(|event| event.id).collect();
        assert_eq!((ids.as_slice(), plan.events), (expected, expected.len() as u64), "{selection:?}");
    }
    let nobody = replay::plan(&mut connection, "nobody", &all).await?;
    assert_eq!(nobody.events, 0);
    Ok(())
}

#[tokio::test]
async fn an_event_that_was_committed_late_and_not_delivered_yet_is_no_part_of_a_replay() -> TestResult {
    let system = System::new().await;
    let topic = system.redis.topic("late");
    let mut writer = system.database.connect().await;
    let mut late = writer.begin().await?;
    sqlx::query("select outbox.append($1, 'LATE', '1')").bind(topic.as_str()).execute(&mut *late).await?;
    let relay = system.start("relay").await;
    commit(&system, &topic, "A", 3).await;
    let mut connection = system.database.connect().await;
    wait_until_all_delivered(&mut connection).await;
    assert_eq!(relay.terminate().await, 0);
    // Its row comes before those that have been delivered.
    late.commit().await?;
    let (relay, all) = (system.redis.relay_name(), Selection::default());
    let plan = replay::plan(&mut connection, &relay, &all).await?;
    assert_eq!(plan.events, 3);
    let waits = "select count(*) from outbox.event_status where state = 'pending' and id = 1";
    assert_eq!(number(&mut connection, waits).await, 1);
    Ok(())
}

#[tokio::test]
async fn a_rate_is_never_exceeded() -> TestResult {
    let (system, _, mut connection) = delivered(150).await;
    json(&system, &[&ALL[..], &["--rate", "200"]].concat()).await;
    let took: f64 = sqlx::query_scalar(
        "select extract(epoch from moved_at - started_at)::float8 from outbox.replay where finished",
    )
    .fetch_one(&mut connection)
    .await?;
    // The last batch is not waited for.
    assert!(took >= 1.2, "300 events at 200/s took {took} s");
    Ok(())
}

#[tokio::test]
async fn a_replay_of_everything_ends_although_events_keep_coming_and_although_another_one_runs() {
    let (system, topics, mut connection) = delivered(300).await;
    let rows = originals(&mut connection).await;
    let relay = system.start("relay").await;
    let arguments = [&ALL[..], &["--rate", "600"]].concat();
    let running = [(); 2].map(|()| Running::start(system.settings(), &arguments));
    for round in 0.. {
        let copies = "select count(*) from outbox.replay where finished";
        if number(&mut connection, copies).await == 2 {
            assert!(round > 1, "events came meanwhile");
            break;
        }
        commit(&system, &topics[0], "LIVE", 20).await;
    }
    for one in running {
        let output = one.end().await;
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
    for replay in [1, 2] {
        assert_eq!(repeated(&mut connection, replay).await, rows);
    }
    wait_until_all_delivered(&mut connection).await;
    assert_eq!(relay.terminate().await, 0);
}

#[tokio::test]
async fn events_that_left_the_log_before_their_turn_are_counted() -> TestResult {
    let (system, _, mut connection) = delivered(20).await;
    let running = Running::start(system.settings(), &[&ALL[..], &["--rate", "8"]].concat());
    eventually("it has begun", async || (copied(&mut connection, 1).await > 0).then_some(())).await;
    running.kill().await;
    eventually("its death is seen", async || (standing(&system).await == "interrupted").then_some(())).await;
    // As a rotation does after a day.
    sqlx::query("delete from outbox.event where headers is null").execute(&mut connection).await?;
    let output = cli(system.settings(), &["replay", "--resume", "1"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let copied = copied(&mut connection, 1).await;
    let said = String::from_utf8(output.stderr)?;
    let expected = format!("{} selected events had left the log", 40 - copied);
    assert!(copied < 40 && said.contains(&expected), "{said}");
    Ok(())
}

/// Whether a session waits for a lock in a statement with this in it.
async fn is_waiting(connection: &mut PgConnection, statement: &str) -> bool {
    let sql = format!(
        "select count(*) from pg_stat_activity
         where datname = current_database() and wait_event_type = 'Lock' and query like '%{statement}%'"
    );
    number(connection, &sql).await > 0
}
