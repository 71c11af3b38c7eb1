//! Each error of Postgres that the relay handles, caused on a real server: no event is lost or repeated, the
//! class is counted, and all events arrive in order once the cause is gone.
//!
//! A serialization failure is missing: the relay's statements cannot be made to cause one. The table of
//! classes has it all the same.

use std::io::Write;
use std::process::Command;

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::harness::{Line, TestResult, Wiring, eventually};

const END_SESSIONS: &str = "select pg_terminate_backend(pid) from pg_stat_activity
                            where datname = current_database()
                              and application_name like 'aftercommit relay%'";

/// A line that delivers, and a session of an admin.
async fn line_and_admin(wiring: Wiring) -> (Line, PgConnection) {
    let mut line = Line::with(wiring).await;
    line.append(1).await;
    line.wait_until_whole().await;
    let admin = line.system.database.connect().await;
    (line, admin)
}

async fn execute(admin: &mut PgConnection, line: &Line, sql: &str) {
    let sql = sql.replace("{database}", line.system.database.name());
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(admin).await.expect("a statement of the admin's");
}

/// Breaks Postgres by a statement, ends the relay's sessions, waits for the failure, repairs Postgres, and
/// waits until all events have arrived.
async fn assert_survived(break_it: &str, class: &str, mend_it: &str) {
    let (mut line, mut admin) = line_and_admin(Wiring::default()).await;
    execute(&mut admin, &line, break_it).await;
    execute(&mut admin, &line, END_SESSIONS).await;
    line.wait_for_failure(class).await;
    execute(&mut admin, &line, mend_it).await;
    line.append(2).await;
    line.wait_until_whole().await;
}

/// Changes a setting of the database and ends the relay's sessions: the setting counts in new sessions only.
async fn relay_starts_over_with(setting: &str, line: &Line, admin: &mut PgConnection) {
    execute(admin, line, &format!("alter database {{database}} set {setting}")).await;
    execute(admin, line, END_SESSIONS).await;
    line.wait_for_failure("shutdown").await;
    line.wait_until_leading().await;
}

#[tokio::test]
async fn a_postgres_that_ends_the_relays_sessions() {
    assert_survived("select 1", "shutdown", "select 1").await;
}

#[tokio::test]
async fn a_postgres_that_ends_the_session_in_which_a_relay_looks_at_the_schema() {
    let (mut line, mut admin) = line_and_admin(Wiring::default()).await;
    line.relay.signal("KILL").await;
    // A session of its own: within a transaction Postgres shows the sessions as they were at first.
    let mut holder = line.system.database.connect().await;
    execute(&mut holder, &line, "begin; lock table outbox.migration in access exclusive mode").await;
    line.relay = line.system.start("relay").await;
    eventually("it waits for the schema", async || {
        let waiting = "select pg_terminate_backend(pid) from pg_stat_activity
                       where datname = current_database() and wait_event_type = 'Lock'
                       and application_name like 'aftercommit relay%' and query like '%version%'";
        sqlx::query_scalar::<_, bool>(waiting).fetch_optional(&mut admin).await.expect("a look")
    })
    .await;
    line.relay.wait_for_log("Postgres went away at the start").await;
    execute(&mut holder, &line, "commit").await;
    line.append(2).await;
    line.wait_until_whole().await;
    assert!(!line.relay.has_ended());
}

#[tokio::test]
async fn a_database_that_takes_no_connections() {
    assert_survived(
        "update pg_database set datallowconn = false where datname = current_database()",
        "refusing",
        "update pg_database set datallowconn = true where datname = current_database()",
    )
    .await;
}

#[tokio::test]
async fn a_postgres_that_takes_no_writes_is_not_led_from_even_while_there_is_nothing_to_deliver() {
    assert_survived(
        "alter database {database} set default_transaction_read_only = on",
        "readonly",
        "set default_transaction_read_only = off;
         alter database {database} reset default_transaction_read_only",
    )
    .await;
}

#[tokio::test]
async fn a_position_that_is_locked_for_longer_than_the_lock_timeout() {
    let (mut line, mut admin) = line_and_admin(Wiring::default()).await;
    relay_starts_over_with("lock_timeout = '100ms'", &line, &mut admin).await;
    execute(&mut admin, &line, "begin; lock table outbox.checkpoint in exclusive mode").await;
    line.append(2).await;
    line.wait_for_failure("locktimeout").await;
    execute(&mut admin, &line, "commit").await;
    line.wait_until_whole().await;
}

#[tokio::test]
async fn a_position_that_is_locked_for_longer_than_a_statement_may_take() {
    let wiring = Wiring {
        relay: vec![("AFTERCOMMIT_DATABASE_STATEMENT_TIMEOUT_MS", "300".to_owned())],
        ..Wiring::default()
    };
    let (mut line, mut admin) = line_and_admin(wiring).await;
    execute(&mut admin, &line, "begin; lock table outbox.checkpoint in exclusive mode").await;
    line.append(2).await;
    line.wait_for_failure("statementtimeout").await;
    execute(&mut admin, &line, "commit").await;
    line.wait_until_whole().await;
}

#[tokio::test]
async fn a_deadlock_that_ends_the_relays_transaction() -> TestResult {
    let (mut line, mut admin) = line_and_admin(Wiring::default()).await;
    let poisoned = line.system.redis.topic("poisoned");
    let key = crate::harness::keys::history(&poisoned);
    line.words(&["set", &key, "of another type"]).await?;
    // The relay writes its position and then what it parks. It looks for a deadlock once, long before the
    // other one does; it must not have looked before there is one.
    execute(
        &mut admin,
        &line,
        "set deadlock_timeout = '60s'; begin; lock table outbox.parked in exclusive mode",
    )
    .await;
    line.append_to(&poisoned, 1).await;
    eventually("the relay waits", async || {
        let waits = "select exists (select from pg_stat_activity where datname = current_database()
                     and wait_event_type = 'Lock' and query like 'insert into outbox.parked%')";
        let mut look = line.system.database.connect().await;
        let waiting: bool = sqlx::query_scalar(waits).fetch_one(&mut look).await.expect("locks");
        waiting.then_some(())
    })
    .await;
    execute(&mut admin, &line, "lock table outbox.checkpoint in exclusive mode").await;
    line.wait_for_failure("deadlock").await;
    execute(&mut admin, &line, "commit").await;
    eventually("it is parked", async || {
        (line.metric("aftercommit_relay_parked_total").await == 1).then_some(())
    })
    .await;
    line.append(1).await;
    line.wait_until_whole().await;
    Ok(())
}

#[tokio::test]
async fn a_postgres_that_is_out_of_connections() {
    let settings =
        vec![("max_connections", "20".to_owned()), ("superuser_reserved_connections", "0".to_owned())];
    let (mut line, mut admin) =
        line_and_admin(Wiring { postgres: Some(settings), ..Wiring::default() }).await;
    let mut taken = Vec::new();
    eventually("nothing is left for the relay", async || {
        while let Ok(connection) = PgConnection::connect(line.system.database.url()).await {
            taken.push(connection);
        }
        execute(&mut admin, &line, END_SESSIONS).await;
        (line.metric("aftercommit_relay_failures_total{class=\"toomanyconnections\"}").await > 0)
            .then_some(())
    })
    .await;
    drop(taken);
    line.append(2).await;
    line.wait_until_whole().await;
}

#[tokio::test]
async fn a_postgres_that_shuts_down_and_starts_again() -> TestResult {
    let (mut line, mut admin) =
        line_and_admin(Wiring { postgres: Some(Vec::new()), ..Wiring::default() }).await;
    // It waits for the admin's session, ends the relay's, and lets nobody in.
    line.postgres().control(&["stop", "--mode", "smart", "--no-wait"]).await;
    eventually("nobody is let in", async || {
        PgConnection::connect(line.system.database.url()).await.is_err().then_some(())
    })
    .await;
    execute(&mut admin, &line, END_SESSIONS).await;
    line.wait_for_failure("startingup").await;
    admin.close().await?;
    line.wait_for_failure("connection").await;
    line.postgres().start_again().await;
    line.append(2).await;
    line.wait_until_whole().await;
    Ok(())
}

#[tokio::test]
async fn a_postgres_that_crashes_and_recovers() {
    let settings = vec![("fsync", "on".to_owned()), ("synchronous_commit", "on".to_owned())];
    let (mut line, _admin) = line_and_admin(Wiring { postgres: Some(settings), ..Wiring::default() }).await;
    for _ in 0..3 {
        line.append(50).await;
        line.postgres().control(&["restart", "--mode", "immediate"]).await;
        line.append(50).await;
    }
    line.wait_until_whole().await;
}

/// A small tmpfs, unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// Mounts it for a user id.
    fn mount(owner: &str) -> TestResult<Self> {
        let dir = tempfile::tempdir()?;
        let options = format!("size=256k,mode=700,uid={owner}");
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path());
        assert!(command.status()?.success(), "a small disk, which only root can mount");
        Ok(Self(dir))
    }

    fn fill(&self) -> TestResult {
        let mut file = std::fs::File::create(self.0.path().join("filler"))?;
        while file.write_all(&[0; 4096]).is_ok() {}
        Ok(())
    }

    fn clear(&self) -> TestResult {
        std::fs::remove_file(self.0.path().join("filler"))?;
        Ok(())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(unmounted.expect("umount").success(), "an unmounted disk");
    }
}

/// On Linux and as root only, as in CI: nobody else can make a disk that is full for one table.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_disk_that_is_full() -> TestResult {
    use std::os::unix::fs::MetadataExt;
    let (mut line, mut admin) =
        line_and_admin(Wiring { postgres: Some(Vec::new()), ..Wiring::default() }).await;
    let owner = std::fs::metadata(line.postgres().server.data_directory())?.uid();
    let disk = SmallDisk::mount(&owner.to_string())?;
    let location = disk.0.path().display().to_string();
    execute(&mut admin, &line, &format!("create tablespace small location '{location}'")).await;
    execute(&mut admin, &line, "alter table outbox.checkpoint_0 set tablespace small").await;
    line.append(1).await;
    line.wait_until_whole().await;
    disk.fill()?;
    // Each event is a row of the position's table until the table wants another page.
    eventually("the disk is full for the relay", async || {
        line.append(5).await;
        (line.metric("aftercommit_relay_failures_total{class=\"diskfull\"}").await > 0).then_some(())
    })
    .await;
    disk.clear()?;
    line.wait_until_whole().await;
    // Move the table off the small disk, so that the server can stop in order.
    for sql in ["alter table outbox.checkpoint_0 set tablespace pg_default", "drop tablespace small"] {
        execute(&mut admin, &line, sql).await;
    }
    Ok(())
}
