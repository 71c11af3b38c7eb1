//! A log that was moved by logical replication, which brings rows and no sequences; and obstacles to a rebase
//! or, during one, to writers.

use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::Value;
use sqlx::PgConnection;

use crate::append_door::execute;
use crate::commands::stderr;
use crate::harness::{Line, TestResult, cli, eventually};

/// A line that has delivered `events`, whose relay has ended, and a session of the log's owner.
async fn line_of(events: usize) -> (Line, PgConnection) {
    let mut line = Line::new().await;
    line.append(events).await;
    line.wait_until_whole().await;
    let mut admin = line.system.database.connect().await;
    end_relay(&line, &mut admin).await;
    (line, admin)
}

/// Ends the relay once its position says that everything is delivered.
async fn end_relay(line: &Line, admin: &mut PgConnection) {
    eventually("the position is written", async || {
        let sql =
            "select bool_and(p.high_id = (select max(e.id) from outbox.event e)) from outbox.position p";
        sqlx::query_scalar::<_, bool>(sql).fetch_one(&mut *admin).await.ok()?.then_some(())
    })
    .await;
    line.relay.signal("KILL").await;
}

/// Makes the log look as logical replication leaves it in another cluster: its rows have transactions of the
/// old cluster, and the sequences stand at their beginning.
async fn replicate(admin: &mut PgConnection) {
    execute(
        admin,
        "update outbox.event set xid = (900000000 + id)::text::xid8;
         update outbox.checkpoint set lower = '3:1000000000:', lower_horizon = '1000000000';
         update outbox.log set system_identifier = 42;
         select setval('outbox.event_id_seq', 1, false);
         alter table outbox.audit alter column id restart with 1;
         alter table outbox.replay alter column id restart with 1",
    )
    .await;
}

async fn rebase(line: &Line, arguments: &[&str]) -> Output {
    let mut all = vec!["rebase", "--output", "json"];
    all.extend(arguments);
    eventually("nobody leads", async || {
        let output = cli(line.system.settings(), &all).await;
        (!stderr(&output).contains("leads at this moment")).then_some(output)
    })
    .await
}

async fn rebased(line: &Line) -> TestResult<Value> {
    let output = rebase(line, &["--yes"]).await;
    assert!(output.status.success(), "{}", stderr(&output));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Starts the relay and waits until every event has arrived once, in the order of the appends.
async fn assert_all_arrive(mut line: Line, admin: &mut PgConnection) -> TestResult {
    line.relay = line.system.start("relay").await;
    line.append(2).await;
    line.wait_until_whole().await;
    let twice: i64 =
        sqlx::query_scalar("select count(*) - count(distinct id) from outbox.event").fetch_one(admin).await?;
    assert_eq!(twice, 0, "ids that stand twice in the log");
    Ok(())
}

#[tokio::test]
async fn rows_appended_after_a_move_are_delivered_although_the_sequence_has_passed_the_old_ids() -> TestResult
{
    let (mut line, mut admin) = line_of(5).await;
    replicate(&mut admin).await;
    line.append(8).await;
    let done = rebased(&line).await?;
    assert_eq!((&done["database"], &done["pending"]), (&"other".into(), &8.into()), "{done}");
    assert_all_arrive(line, &mut admin).await
}

/// Two rows of an id wait, and the older one comes first; also where somebody has moved the sequence to the
/// position.
#[tokio::test]
async fn events_that_waited_before_a_move_come_before_those_that_were_appended_after_it() -> TestResult {
    for first in [1, 6] {
        let (mut line, mut admin) = line_of(5).await;
        line.append(4).await;
        replicate(&mut admin).await;
        execute(&mut admin, &format!("select setval('outbox.event_id_seq', {first}, false)")).await;
        line.append(12).await;
        let done = rebased(&line).await?;
        assert_eq!(done["pending"], 16, "{done}");
        assert_all_arrive(line, &mut admin).await?;
    }
    Ok(())
}

/// The new cluster's sequence has not come to their ids.
#[tokio::test]
async fn events_that_waited_come_first_although_their_clock_was_ahead() -> TestResult {
    let (mut line, mut admin) = line_of(5).await;
    line.append(4).await;
    execute(&mut admin, "update outbox.event set created_at = created_at + interval '1 hour' where id > 5")
        .await;
    replicate(&mut admin).await;
    line.append(4).await;
    let done = rebased(&line).await?;
    assert_eq!(done["pending"], 8, "{done}");
    assert_all_arrive(line, &mut admin).await
}

/// The relay has gone on in the old cluster after the writers had moved, and old rows are gone.
#[tokio::test]
async fn rows_appended_before_the_last_position_was_written_are_delivered_as_well() -> TestResult {
    let (mut line, mut admin) = line_of(5).await;
    line.relay = line.system.start("relay").await;
    line.append(1).await;
    line.wait_until_whole().await;
    end_relay(&line, &mut admin).await;
    replicate(&mut admin).await;
    execute(&mut admin, "delete from outbox.event where id <= 3").await;
    line.append(8).await;
    execute(
        &mut admin,
        "update outbox.checkpoint c set created_at = c.created_at + interval '1 hour'
         from outbox.position p where (c.relay, c.n) = (p.relay, p.n)",
    )
    .await;
    let done = rebased(&line).await?;
    assert_eq!(done["pending"], 8, "{done}");
    assert_all_arrive(line, &mut admin).await
}

#[tokio::test]
async fn rows_of_one_id_that_nothing_tells_apart_are_refused_before_anything_is_changed() -> TestResult {
    let (mut line, mut admin) = line_of(5).await;
    replicate(&mut admin).await;
    line.append(3).await;
    // A clock that was wrong, and a table that was rewritten.
    let ids = line.appended[5..].iter().map(|id| format!("'{id}'")).collect::<Vec<_>>().join(", ");
    execute(
        &mut admin,
        &format!(
            "update outbox.event set created_at = created_at - interval '1 year' where event_id in ({ids})"
        ),
    )
    .await;
    for arguments in [&["--dry-run"][..], &["--yes"], &["--yes"]] {
        let refused = rebase(&line, arguments).await;
        assert_eq!(refused.status.code(), Some(1), "{arguments:?}");
        assert!(stderr(&refused).contains("id 1 "), "{refused:?}");
        assert!(stderr(&refused).contains("set created_at = now()"), "{refused:?}");
    }
    execute(&mut admin, &format!("update outbox.event set created_at = now() where event_id in ({ids})"))
        .await;
    let done = rebased(&line).await?;
    assert_eq!((&done["pending"], &done["epoch"]), (&3.into(), &2.into()), "{done}");
    assert_all_arrive(line, &mut admin).await
}

async fn replay(line: &Line) -> Output {
    cli(line.system.settings(), &["replay", "--all", "--reason", "a test", "--yes"]).await
}

#[tokio::test]
async fn sequences_that_did_not_move_with_their_tables_are_raised() -> TestResult {
    let (line, mut admin) = line_of(2).await;
    execute(
        &mut admin,
        "insert into outbox.audit (who, action, reason, selection, events)
         select 'a test', 'pause', 'a test', '{}', 1 from generate_series(1, 3)",
    )
    .await;
    for _ in 0..2 {
        let replayed = replay(&line).await;
        assert!(replayed.status.success(), "{}", stderr(&replayed));
    }
    replicate(&mut admin).await;
    let done = rebased(&line).await?;
    assert_eq!(done["epoch"], 2, "{done}");
    let replayed = replay(&line).await;
    assert!(replayed.status.success(), "{}", stderr(&replayed));
    let sequences: Vec<String> = sqlx::query_scalar(
        "select c.relname::text from pg_class c
         where c.relnamespace = 'outbox'::regnamespace and c.relkind = 'S' order by 1",
    )
    .fetch_all(&mut admin)
    .await?;
    assert_eq!(sequences, ["audit_id_seq", "event_id_seq", "replay_id_seq"], "each is raised by a rebase");
    Ok(())
}

/// As a tool that copies the whole database has it.
#[tokio::test]
async fn a_publication_for_all_tables_does_not_stand_in_the_way() -> TestResult {
    let (mut line, mut admin) = line_of(3).await;
    replicate(&mut admin).await;
    execute(&mut admin, "create publication everything for all tables").await;
    let unnamed: Vec<String> = sqlx::query_scalar(
        "select c.relname::text from pg_class c
         where c.relnamespace = 'outbox'::regnamespace and c.relkind = 'r' and c.relreplident <> 'f'
           and not exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary)",
    )
    .fetch_all(&mut admin)
    .await?;
    assert_eq!(unnamed, [""; 0], "tables whose rows a publication cannot name");
    line.append(2).await;
    let done = rebased(&line).await?;
    assert_eq!((&done["pending"], &done["epoch"]), (&2.into(), &2.into()), "{done}");
    assert_all_arrive(line, &mut admin).await
}

/// How long an append takes.
async fn time_of_an_append(line: &mut Line) -> Duration {
    let begun = Instant::now();
    line.append(1).await;
    begun.elapsed()
}

#[tokio::test]
async fn a_dry_run_waits_for_no_writer_and_no_writer_waits_for_it() -> TestResult {
    let (mut line, mut admin) = line_of(3).await;
    execute(&mut admin, "update outbox.log set system_identifier = 42").await;
    let mut open = line.system.database.connect().await;
    execute(&mut open, "begin; select outbox.append('open', 'T', '1')").await;
    let settings = line.system.settings().clone();
    let dry = async {
        let begun = Instant::now();
        let output = cli(&settings, &["rebase", "--dry-run"]).await;
        (output, begun.elapsed())
    };
    let ((output, took), slowest) = tokio::join!(dry, async {
        let mut slowest = Duration::ZERO;
        for _ in 0..20 {
            slowest = slowest.max(time_of_an_append(&mut line).await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        slowest
    });
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(took < Duration::from_secs(10) && slowest < Duration::from_secs(3), "{took:?}, {slowest:?}");
    Ok(())
}

/// Two operators rebase at once, and one finds nothing to do.
#[tokio::test]
async fn a_rebase_that_waits_for_a_transaction_holds_up_no_writer_for_long() -> TestResult {
    let (mut line, mut admin) = line_of(3).await;
    execute(&mut admin, "update outbox.log set system_identifier = 42").await;
    let mut open = line.system.database.connect().await;
    execute(&mut open, "begin; select outbox.append('open', 'T', '1')").await;
    let settings = line.system.settings().clone();
    let changing = async || cli(&settings, &["rebase", "--yes", "--output", "json"]).await;
    let (one, other, slowest) = tokio::join!(changing(), changing(), async {
        eventually("it tries to lock the log", async || {
            let sql = "select exists (select from pg_locks where mode = 'ExclusiveLock' and not granted
                         and relation = 'outbox.event'::regclass)";
            sqlx::query_scalar::<_, bool>(sql).fetch_one(&mut admin).await.ok()?.then_some(())
        })
        .await;
        let mut slowest = Duration::ZERO;
        for _ in 0..20 {
            slowest = slowest.max(time_of_an_append(&mut line).await);
        }
        execute(&mut open, "commit").await;
        slowest
    });
    let mut done = 0;
    for output in [one, other] {
        assert!(output.status.success(), "{}", stderr(&output));
        done += usize::from(serde_json::from_slice::<Value>(&output.stdout)?["done"] == true);
    }
    assert_eq!(done, 1, "an epoch is claimed once");
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
    Ok(())
}
