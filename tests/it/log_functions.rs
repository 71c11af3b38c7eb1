//! The functions and views of the log, tested with Postgres alone.

use aftercommit::log::contradiction::Cause;
use aftercommit::log::{Position, checkpoint, contradictions, read};
use sqlx::{AssertSqlSafe, PgConnection};

use crate::append_door::execute;
use crate::harness::{Database, TestResult, database};

const APPEND: &str = "select outbox.append('t', 'T', '1')";

/// A log with a relay that has delivered nothing yet.
async fn log() -> TestResult<(Database, PgConnection, Position)> {
    let database = database().await;
    let mut admin = database.connect().await;
    read::prepare_session(&mut admin).await?;
    let begun = checkpoint::load_or_begin(&mut admin, "main").await?;
    Ok((database, admin, begun))
}

async fn open(admin: &mut PgConnection, from: &Position) -> TestResult<Position> {
    Ok(checkpoint::open(admin, "main", from).await?.ok_or("no window")?)
}

async fn settle(admin: &mut PgConnection, opened: &Position, last_id: i64, events: u64) -> Position {
    checkpoint::close_window(admin, "main", opened, last_id, events).await.expect("a position")
}

/// The state of each event, in order of id.
async fn states(admin: &mut PgConnection) -> TestResult<Vec<String>> {
    Ok(sqlx::query_scalar("select state from outbox.event_status order by id").fetch_all(admin).await?)
}

#[tokio::test]
async fn the_state_of_an_event_is_what_the_position_and_its_parked_row_say() -> TestResult {
    let (_database, mut admin, begun) = log().await?;
    execute(&mut admin, &[APPEND; 2].join(";")).await;
    let opened = open(&mut admin, &begun).await?;
    let settled = settle(&mut admin, &opened, 2, 2).await;
    // Three more in an open window, of which one is delivered; and one of a transaction with an old xid.
    execute(&mut admin, &[APPEND; 3].join(";")).await;
    let opened = open(&mut admin, &settled).await?;
    checkpoint::advance(&mut admin, "main", &opened, 3, 1).await?;
    execute(&mut admin, "insert into outbox.event (xid, topic, type, payload) values ('3', 't', 'T', '1')")
        .await;
    let expected = ["delivered", "delivered", "delivered", "pending", "pending", "pending"];
    assert_eq!(states(&mut admin).await?, expected);
    let park = "insert into outbox.parked (relay, epoch, seq, id, event_id, topic, type, payload, created_at,
                reason)
                select 'main', 1, e.id, e.id, e.event_id, e.topic, e.type, e.payload, e.created_at, 'a test'
                from outbox.event e where e.id <= 3;
                update outbox.parked set settled_as = 'released' where id = 2;
                update outbox.parked set settled_as = 'discarded' where id = 3";
    execute(&mut admin, park).await;
    assert_eq!(states(&mut admin).await?[..3], ["parked", "delivered", "discarded"]);
    for unknown in ["requested = 'forget'", "settled_as = 'forgotten'"] {
        let sql = AssertSqlSafe(format!("update outbox.parked set {unknown}"));
        assert!(sqlx::raw_sql(sql).execute(&mut admin).await.is_err(), "{unknown}");
    }
    Ok(())
}

#[tokio::test]
async fn an_event_that_was_committed_late_was_delivered_by_the_window_that_saw_it() -> TestResult {
    let (database, mut admin, begun) = log().await?;
    let mut late = database.connect().await;
    execute(&mut late, "begin").await;
    execute(&mut late, APPEND).await;
    execute(&mut admin, APPEND).await;
    let opened = open(&mut admin, &begun).await?;
    let first = settle(&mut admin, &opened, 2, 1).await;
    execute(&mut late, "commit").await;
    assert_eq!(states(&mut admin).await?, ["pending", "delivered"]);
    let opened = open(&mut admin, &first).await?;
    let second = settle(&mut admin, &opened, 1, 1).await;
    let by: Vec<i64> =
        sqlx::query_scalar("select outbox.delivered_in('main', xid, id) from outbox.event order by id")
            .fetch_all(&mut admin)
            .await?;
    assert_eq!(by, [second.n, first.n]);
    Ok(())
}

#[tokio::test]
async fn of_the_transactions_that_were_running_those_count_that_have_committed_since() -> TestResult {
    let (database, mut admin, begun) = log().await?;
    let (mut writers, mut xids) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let mut writer = database.connect().await;
        execute(&mut writer, "begin").await;
        execute(&mut writer, APPEND).await;
        let xid = sqlx::query_scalar::<_, String>("select pg_current_xact_id()::text").fetch_one(&mut writer);
        xids.push(xid.await?);
        writers.push(writer);
    }
    execute(&mut admin, APPEND).await;
    let opened = open(&mut admin, &begun).await?;
    settle(&mut admin, &opened, 4, 1).await;
    execute(&mut writers[0], "commit").await;
    execute(&mut writers[1], "rollback").await;
    // The server has other databases, and transactions in them.
    let ended: Vec<String> = sqlx::query_scalar(
        "select ended.xid::text from outbox.position p
         cross join lateral outbox.ended_since(p.lower, p.lower_horizon) ended(xid)
         where ended.xid::text = any ($1)",
    )
    .bind(&xids)
    .fetch_all(&mut admin)
    .await?;
    assert_eq!(ended, xids[..1]);
    Ok(())
}

#[tokio::test]
async fn a_sequence_below_what_is_delivered_is_found_before_it_does_harm() -> TestResult {
    let (_database, mut admin, begun) = log().await?;
    execute(&mut admin, &[APPEND; 3].join(";")).await;
    let opened = open(&mut admin, &begun).await?;
    settle(&mut admin, &opened, 3, 3).await;
    assert_eq!(contradictions::of_relay(&mut admin, "main").await?, []);
    // As a test cleaner leaves it, without an event since.
    execute(&mut admin, "truncate outbox.event; select setval('outbox.event_id_seq', 1)").await;
    let found = contradictions::of_relay(&mut admin, "main").await?;
    assert_eq!(found.iter().map(|row| (row.id, row.cause)).collect::<Vec<_>>(), [(1, Cause::Sequence)]);
    Ok(())
}

#[tokio::test]
async fn a_log_has_one_identity() -> TestResult {
    let (_database, mut admin, _) = log().await?;
    for only_row in [true, false] {
        let sql = format!(
            "insert into outbox.log (only_row, system_identifier, database_oid, format)
             values ({only_row}, 1, 1, 1)"
        );
        assert!(sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut admin).await.is_err(), "{only_row}");
    }
    Ok(())
}

#[tokio::test]
async fn the_one_function_without_a_path_is_planned_in_place_and_runs_nothing_planted() -> TestResult {
    let (_database, mut admin, _) = log().await?;
    execute(&mut admin, APPEND).await;
    execute(
        &mut admin,
        "create function public.trap(bigint, bigint) returns boolean language plpgsql as
           $$ begin raise 'planted'; end $$;
         create operator public.<= (function = public.trap, leftarg = bigint, rightarg = bigint);
         create function public.pg_visible_in_snapshot(xid8, pg_snapshot) returns boolean language plpgsql as
           $$ begin raise 'planted'; end $$;
         set search_path = public, pg_catalog",
    )
    .await;
    assert!(
        sqlx::raw_sql("select 1::bigint <= 1::bigint").execute(&mut admin).await.is_err(),
        "it is a trap"
    );
    let is_delivered =
        "select outbox.is_delivered(e.id, e.xid, 1, pg_current_snapshot(), 0, null) from outbox.event e";
    assert!(sqlx::query_scalar::<_, bool>(is_delivered).fetch_one(&mut admin).await?);
    let nothing = "select outbox.is_delivered(1, '3', null, null, null, null)";
    assert!(!sqlx::query_scalar::<_, bool>(nothing).fetch_one(&mut admin).await?);
    let plan: Vec<String> =
        sqlx::query_scalar("explain (verbose, costs off) select state from outbox.event_status")
            .fetch_all(&mut admin)
            .await?;
    let plan = plan.join("\n");
    assert!(plan.contains("pg_visible_in_snapshot") && !plan.contains("is_delivered"), "{plan}");
    Ok(())
}
