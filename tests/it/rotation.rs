//! Rotation: no undelivered event is dropped, no insert fails, and the blocking reason is named.

use std::time::Duration;

use aftercommit::log::rotate::{self, Rotation};
use aftercommit::log::{Error, Position, checkpoint, read};
use aftercommit::outbox::schema::set_rotation;
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use crate::append_door::execute;
use crate::harness::{Line, TestResult, database, eventually};

/// A line whose log takes the next slot each second.
async fn line_with_short_slots() -> TestResult<(Line, PgConnection)> {
    let line = Line::new().await;
    let mut admin = line.system.database.connect().await;
    set_rotation(&mut admin, 1).await?;
    Ok((line, admin))
}

async fn rotate_now(admin: &mut PgConnection) -> Rotation {
    rotate::rotate(admin, Duration::ZERO).await.expect("a rotation")
}

/// Rotates until a slot is kept for a reason that holds this text.
async fn wait_until_blocked_by(admin: &mut PgConnection, reason: &str) {
    eventually(&format!("a slot is kept: {reason}"), async || {
        let rotation = rotate_now(admin).await;
        rotation.blocked.iter().any(|blocked| blocked.by.contains(reason)).then_some(())
    })
    .await;
}

async fn rows(admin: &mut PgConnection) -> i64 {
    sqlx::query_scalar("select count(*) from outbox.event").fetch_one(admin).await.expect("a count")
}

#[tokio::test]
async fn under_load_slots_are_emptied_behind_the_relay_and_nothing_is_lost() -> TestResult {
    let (mut line, mut admin) = line_with_short_slots().await?;
    let stop = CancellationToken::new();
    let writer = line.keep_appending(stop.clone());
    let mut emptied = 0;
    eventually("three slots of the log are emptied", async || {
        let rotation = rotate_now(&mut admin).await;
        emptied += rotation.emptied.iter().filter(|table| table.starts_with("event")).count();
        (emptied >= 3).then_some(())
    })
    .await;
    stop.cancel();
    line.appended = writer.await?;
    line.wait_until_whole().await;
    Ok(())
}

#[tokio::test]
async fn what_a_stuck_relay_has_not_delivered_stays_and_the_relay_is_named() -> TestResult {
    let (mut line, mut admin) = line_with_short_slots().await?;
    line.append(5).await;
    line.wait_until_whole().await;
    line.relay.signal("STOP").await;
    line.append(7).await;
    wait_until_blocked_by(&mut admin, &line.system.redis.relay_name()).await;
    assert!(rows(&mut admin).await >= 7);
    line.relay.signal("CONT").await;
    line.wait_until_whole().await;
    eventually("the slot goes when it has been delivered", async || {
        rotate_now(&mut admin).await;
        (rows(&mut admin).await == 0).then_some(())
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn a_long_reader_holds_a_slot_back_and_is_named_and_holds_nobody_else_up() -> TestResult {
    let (mut line, mut admin) = line_with_short_slots().await?;
    line.append(5).await;
    line.wait_until_whole().await;
    let mut reader = line.system.database.connect().await;
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut reader).await?;
    sqlx::raw_sql("begin; select count(*) from outbox.event").execute(&mut reader).await?;
    wait_until_blocked_by(&mut admin, &format!("pid {pid}")).await;
    line.append(5).await;
    line.wait_until_whole().await;
    sqlx::raw_sql("commit").execute(&mut reader).await?;
    eventually("the slots go", async || {
        rotate_now(&mut admin).await;
        (rows(&mut admin).await == 0).then_some(())
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn a_clock_that_jumps_loses_nothing_and_fails_no_insert() -> TestResult {
    let mut line = Line::new().await;
    let mut admin = line.system.database.connect().await;
    // Slots of an hour, and times whose slots do not meet: the verdict on a slot is about the newest row in
    // it, and with slots of a second it depended on when the test was held up.
    set_rotation(&mut admin, 3600).await?;
    let mut connection = line.system.database.connect().await;
    // As if the clock had stood at these times: the slot is a function of it, and so is the row's age.
    for hours in [0, -30, 45, -1000, 0, 3] {
        let at = format!("now() + interval '{hours} hours'");
        let sql = format!(
            "insert into outbox.event (slot, topic, type, payload, created_at)
             values (outbox.slot_at({at}), '{}', 'T', '1', {at}) returning event_id",
            line.topic
        );
        let id = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&mut connection).await;
        line.appended.push(id?);
        rotate_now(&mut admin).await;
    }
    line.wait_until_whole().await;
    eventually("the slot of thirty hours ago goes, as it is delivered and old", async || {
        rotate_now(&mut admin).await;
        let old = "select count(*) from outbox.event
                   where created_at between now() - interval '31 hours' and now() - interval '29 hours'";
        (sqlx::query_scalar::<_, i64>(old).fetch_one(&mut admin).await.expect("a count") == 0).then_some(())
    })
    .await;
    let young: i64 = sqlx::query_scalar("select count(*) from outbox.event where created_at > now()")
        .fetch_one(&mut admin)
        .await?;
    assert_eq!(young, 2, "rows of the future are kept until they are old");
    Ok(())
}

#[tokio::test]
async fn checkpoints_change_slots_by_time_fence_across_slots_and_live_as_long_as_their_events() -> TestResult
{
    let database = database().await;
    let mut admin = database.connect().await;
    read::prepare_session(&mut admin).await?;
    set_rotation(&mut admin, 1).await?;
    let mut position = checkpoint::load_or_begin(&mut admin, "main").await?;
    let first_slot = position.slot;
    eventually("the next row goes into another slot", async || {
        position = step(&mut admin, &position).await;
        (position.next_slot != first_slot).then_some(())
    })
    .await;
    // Two that come from one row meet in one partition, whichever slot each of them would choose.
    let before = position.clone();
    position = step(&mut admin, &before).await;
    assert_eq!(position.slot, before.next_slot);
    let fenced = checkpoint::advance(&mut admin, "main", &before, 0, 0).await;
    assert!(matches!(fenced, Err(Error::Fenced { .. })), "{fenced:?}");

    // Another relay's rows are as young as this one's, and stay.
    let other = checkpoint::load_or_begin(&mut admin, "other").await?;
    for retention in [Duration::from_secs(3600), Duration::ZERO] {
        let kept = rotate::rotate(&mut admin, retention).await?;
        assert_eq!(
            kept.emptied,
            Vec::<String>::new(),
            "{retention:?}: it has delivered nothing of what is there"
        );
    }
    assert_eq!(checkpoint::newest(&mut admin, "other").await?, Some(other));
    execute(
        &mut admin,
        "delete from outbox.checkpoint where relay = 'other'; delete from outbox.relay where name = 'other'",
    )
    .await;
    // Without a retention, all checkpoints are dropped that no position and no event needs.
    eventually("the first slot goes", async || {
        position = step(&mut admin, &position).await;
        let emptied = rotate::rotate(&mut admin, Duration::ZERO).await.expect("a rotation").emptied;
        emptied.contains(&format!("checkpoint_{first_slot}")).then_some(())
    })
    .await;
    assert_eq!(checkpoint::newest(&mut admin, "main").await?, Some(position));
    Ok(())
}

/// Advances the position by one delivered event.
async fn step(admin: &mut PgConnection, from: &Position) -> Position {
    execute(admin, "select outbox.append('t', 'T', '1')").await;
    let opened = match from.window {
        Some(_) => from.clone(),
        None => checkpoint::open(admin, "main", from).await.expect("a look").expect("a window"),
    };
    let last: i64 =
        sqlx::query_scalar("select max(id) from outbox.event").fetch_one(&mut *admin).await.expect("an id");
    checkpoint::close_window(admin, "main", &opened, last, 1).await.expect("a position")
}
