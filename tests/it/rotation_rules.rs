//! The rules of rotation one by one, with slots of an hour, so that no test depends on the time of day.

use std::time::Duration;

use aftercommit::log::rotate::{self, Rotation};
use aftercommit::log::{Position, checkpoint, read};
use aftercommit::outbox::schema::set_rotation;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::append_door::execute;
use crate::harness::{Database, TestResult, database, eventually};

const HOUR: Duration = Duration::from_secs(3600);

/// A log whose slots take rows for an hour each.
async fn log() -> TestResult<(Database, PgConnection)> {
    let database = database().await;
    let mut admin = database.connect().await;
    read::prepare_session(&mut admin).await?;
    set_rotation(&mut admin, 3600).await?;
    Ok((database, admin))
}

/// Inserts a row that is two hours old into the slot of a later time; returns the slot's
/// table.
async fn insert(connection: &mut PgConnection, hours: i32) -> String {
    let sql = format!(
        "insert into outbox.event (slot, topic, type, payload, created_at)
         values (outbox.slot_at(now() + interval '{hours} hours'), 't', 'T', '1', now() - interval '2 hours')
         returning 'event_' || slot"
    );
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(connection).await.expect("a row")
}

/// Delivers all visible events as the relay does.
async fn deliver(admin: &mut PgConnection) -> Position {
    let from = checkpoint::load_or_begin(admin, "main").await.expect("a position");
    let opened = match from.window {
        Some(_) => from,
        None => match checkpoint::open(admin, "main", &from).await.expect("a look") {
            Some(opened) => opened,
            None => return from,
        },
    };
    let limit = read::Limit { events: 1000, bytes: u64::MAX };
    let rows = read::batch(admin, "main", &opened, 0, limit).await.expect("a chunk").rows;
    let last = rows.last().expect("a row").id();
    checkpoint::close_window(admin, "main", &opened, last, rows.len() as u64).await.expect("a position")
}

async fn rotate_now(admin: &mut PgConnection, retention: Duration) -> Rotation {
    rotate::rotate(admin, retention).await.expect("a rotation")
}

async fn rows_in(admin: &mut PgConnection, table: &str) -> i64 {
    let sql = AssertSqlSafe(format!("select count(*) from outbox.{table}"));
    sqlx::query_scalar(sql).fetch_one(admin).await.expect("a count")
}

#[tokio::test]
async fn the_slot_that_takes_rows_and_the_next_one_stay_also_where_what_they_hold_is_old() -> TestResult {
    let (_database, mut admin) = log().await?;
    for hours in [0, 1] {
        insert(&mut admin, hours).await;
    }
    let third = insert(&mut admin, 3).await;
    deliver(&mut admin).await;
    let rotation = rotate_now(&mut admin, Duration::ZERO).await;
    assert_eq!((rotation.emptied, rotation.blocked), (vec![third], Vec::new()));
    Ok(())
}

#[tokio::test]
async fn what_no_relay_has_ever_read_stays() -> TestResult {
    let (_database, mut admin) = log().await?;
    let table = insert(&mut admin, 3).await;
    let rotation = rotate_now(&mut admin, Duration::ZERO).await;
    assert_eq!(rotation.emptied, Vec::<String>::new());
    assert!(rotation.blocked[0].by.contains("no relay has ever delivered"), "{rotation:?}");
    assert_eq!(rows_in(&mut admin, &table).await, 1);
    Ok(())
}

#[tokio::test]
async fn a_row_that_was_committed_late_stays_until_it_is_delivered() -> TestResult {
    let (database, mut admin) = log().await?;
    let mut late = database.connect().await;
    execute(&mut late, "begin").await;
    let table = insert(&mut late, 3).await;
    insert(&mut admin, 0).await;
    // The position passes the late row's id without having seen the row.
    deliver(&mut admin).await;
    execute(&mut late, "commit").await;
    let rotation = rotate_now(&mut admin, Duration::ZERO).await;
    assert_eq!(rotation.emptied, Vec::<String>::new());
    assert!(rotation.blocked[0].by.contains("relay main has not delivered"), "{rotation:?}");
    deliver(&mut admin).await;
    assert_eq!(rotate_now(&mut admin, Duration::ZERO).await.emptied, [table]);
    Ok(())
}

/// A server of another relay's cluster may lack them, although the position has passed them.
#[tokio::test]
async fn what_another_relays_redis_lacks_stays() -> TestResult {
    let (_database, mut admin) = log().await?;
    let table = insert(&mut admin, -2).await;
    deliver(&mut admin).await;
    rotate::note_lacking_events(&mut admin, "main", true).await?;
    let rotation = rotate_now(&mut admin, HOUR).await;
    assert_eq!(rotation.blocked.first().map(|blocked| blocked.table.as_str()), Some(table.as_str()));
    assert_eq!(rows_in(&mut admin, &table).await, 1);
    rotate::note_lacking_events(&mut admin, "main", false).await?;
    assert_eq!(rotate_now(&mut admin, HOUR).await.emptied, [table]);
    Ok(())
}

/// A sequence that was set back gives new rows ids that the position has passed. They are not delivered.
#[tokio::test]
async fn rows_that_contradict_a_position_stay_until_a_rebase() -> TestResult {
    let (_database, mut admin) = log().await?;
    let delivered = insert(&mut admin, -2).await;
    insert(&mut admin, -2).await;
    deliver(&mut admin).await;
    execute(&mut admin, "select setval('outbox.event_id_seq', 1, false)").await;
    let table = insert(&mut admin, -3).await;
    assert_ne!(table, delivered);
    let rotation = rotate_now(&mut admin, HOUR).await;
    assert!(rotation.emptied.is_empty(), "{rotation:?}");
    let blocked = rotation.blocked.iter().find(|blocked| blocked.table == table).ok_or("not blocked")?;
    assert!(blocked.by.contains("before `aftercommit rebase`"), "{blocked:?}");
    assert_eq!(rows_in(&mut admin, &table).await, 1);
    Ok(())
}

/// Commits once a rotation waits for the lock of this table, and returns what the rotation did.
async fn commit_when_awaited(database: &Database, writer: &mut PgConnection, table: &str) -> Rotation {
    let (mut rotating, mut looking) = (database.connect().await, database.connect().await);
    let rotation = tokio::spawn(async move { rotate_now(&mut rotating, Duration::ZERO).await });
    let awaited = format!(
        "select exists (select from pg_locks where relation = 'outbox.{table}'::regclass and not granted)"
    );
    loop {
        let awaited = sqlx::query_scalar::<_, bool>(AssertSqlSafe(awaited.clone()));
        if awaited.fetch_one(&mut looking).await.expect("a look") || rotation.is_finished() {
            break;
        }
    }
    execute(writer, "commit").await;
    rotation.await.expect("no panic")
}

#[tokio::test]
async fn what_is_committed_while_a_rotation_waits_for_its_lock_stays() -> TestResult {
    let (database, mut admin) = log().await?;
    let mut writer = database.connect().await;
    eventually("a rotation has the lock right behind the commit", async || {
        let table = insert(&mut admin, 3).await;
        deliver(&mut admin).await;
        execute(&mut writer, "begin").await;
        insert(&mut writer, 3).await;
        let rotation = commit_when_awaited(&database, &mut writer, &table).await;
        assert_eq!(rotation.emptied, Vec::<String>::new());
        assert!(rows_in(&mut admin, &table).await >= 2);
        // If the commit came too late, the reason names the holder of the lock.
        let has_looked_again = rotation.blocked[0].by.contains("relay main has not delivered");
        deliver(&mut admin).await;
        has_looked_again.then_some(())
    })
    .await;
    Ok(())
}

/// Inserts an older row of the relay's, from two hours ago, into a slot of positions.
async fn insert_position(connection: &mut PgConnection, n: i64, slot: i16) {
    let sql = format!(
        "insert into outbox.checkpoint
           (relay, n, slot, next_slot, lower, lower_horizon, high_id, after_id, epoch, next_seq, created_at)
         select relay, {n}, {slot}, next_slot, lower, lower_horizon, high_id, after_id, epoch, next_seq,
                now() - interval '2 hours'
         from outbox.position"
    );
    execute(connection, &sql).await;
}

#[tokio::test]
async fn positions_go_when_they_are_older_than_the_retention_and_than_every_event() -> TestResult {
    let (_database, mut admin) = log().await?;
    checkpoint::load_or_begin(&mut admin, "main").await?;
    insert_position(&mut admin, -5, 7).await;
    assert_eq!(rotate_now(&mut admin, 3 * HOUR).await.emptied, Vec::<String>::new(), "it is younger");
    insert(&mut admin, 0).await;
    deliver(&mut admin).await;
    execute(&mut admin, "update outbox.event set created_at = now() - interval '3 hours'").await;
    assert_eq!(rotate_now(&mut admin, HOUR).await.emptied, Vec::<String>::new(), "an event is older");
    execute(&mut admin, "update outbox.event set created_at = now() - interval '1 hour'").await;
    assert_eq!(rotate_now(&mut admin, HOUR).await.emptied, ["checkpoint_7"]);
    Ok(())
}

#[tokio::test]
async fn the_slot_of_a_position_and_the_one_of_the_row_behind_it_stay_however_old() -> TestResult {
    let (_database, mut admin) = log().await?;
    let position = checkpoint::load_or_begin(&mut admin, "main").await?;
    insert_position(&mut admin, -5, 9).await;
    execute(
        &mut admin,
        "update outbox.checkpoint set created_at = now() - interval '2 hours', next_slot = 9",
    )
    .await;
    assert_eq!(rotate_now(&mut admin, Duration::ZERO).await.emptied, Vec::<String>::new());
    let found = checkpoint::newest(&mut admin, "main").await?.ok_or("no position")?;
    assert_eq!(found.n, position.n);
    execute(&mut admin, "update outbox.checkpoint set next_slot = 0").await;
    assert_eq!(rotate_now(&mut admin, Duration::ZERO).await.emptied, ["checkpoint_9"]);
    Ok(())
}

#[tokio::test]
async fn a_position_that_is_committed_while_a_rotation_waits_for_its_lock_stays() -> TestResult {
    let (database, mut admin) = log().await?;
    checkpoint::load_or_begin(&mut admin, "main").await?;
    let mut writer = database.connect().await;
    for n in 1..=5 {
        execute(&mut admin, "delete from outbox.checkpoint where slot = 7").await;
        insert_position(&mut admin, -5, 7).await;
        execute(&mut writer, "begin").await;
        insert_position(&mut writer, 1000 + n, 7).await;
        let rotation = commit_when_awaited(&database, &mut writer, "checkpoint_7").await;
        assert_eq!(rotation.emptied, Vec::<String>::new());
        assert_eq!(rows_in(&mut admin, "checkpoint_7").await, 2, "attempt {n}");
    }
    Ok(())
}

#[tokio::test]
async fn the_slot_of_the_next_positions_is_an_empty_one_and_the_same_where_none_is() -> TestResult {
    let (_database, mut admin) = log().await?;
    checkpoint::load_or_begin(&mut admin, "main").await?;
    let after = "select outbox.slot_after(0::smallint, now() - interval '2 hours')";
    for slot in 1..=16 {
        let next: i16 = sqlx::query_scalar(after).fetch_one(&mut admin).await?;
        assert_eq!(next, slot % 16);
        if slot < 16 {
            insert_position(&mut admin, -i64::from(slot), slot).await;
        }
    }
    let fresh = "select outbox.slot_after(5::smallint, now())";
    let next: i16 = sqlx::query_scalar(fresh).fetch_one(&mut admin).await?;
    assert_eq!(next, 5, "it has taken rows for less than a rotation");
    Ok(())
}
