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
