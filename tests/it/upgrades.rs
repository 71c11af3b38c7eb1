//! Upgrades: a version with a schema that a later one has migrated, or is migrating.

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection};
use uuid::Uuid;

use crate::commands::{assert_fails, commit, json, stderr};
use crate::harness::{
    Database, System, TestResult, cli, empty_database, eventually, items_of, shared_url, str_of,
};
use crate::operators::wait_until_green;

/// For tools that apply all SQL of a database themselves.
#[tokio::test]
async fn the_sql_that_is_printed_makes_the_schema_as_migrate_does() -> TestResult {
    let system = System::with(empty_database().await, shared_url()).await;
    let printed = cli(system.settings(), &["migrate", "--print", "--uploads"]).await;
    let mut connection = system.database.connect().await;
    let sql = String::from_utf8(printed.stdout)?;
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await?;
    let said = stderr(&cli(system.settings(), &["migrate", "--uploads"]).await);
    assert_eq!(said.matches("up to date").count(), 2, "{said}");
    assert_eq!(cli(system.settings(), &["status"]).await.status.code(), Some(0));
    Ok(())
}

/// What a later `aftercommit migrate` leaves behind, as far as this version can see it.
async fn is_migrated_by_a_later_version(database: &Database, serves_from: &str) -> TestResult {
    let mut connection = database.connect().await;
    let later = format!(
        "insert into outbox.migration (version, description, success, checksum, execution_time)
         values (1000, 'later', true, '', 0);
         create or replace function outbox.serves_from() returns bigint language sql
           as 'select {serves_from}::bigint'"
    );
    sqlx::raw_sql(AssertSqlSafe(later)).execute(&mut connection).await?;
    Ok(())
}

#[tokio::test]
async fn a_later_schema_that_leaves_this_version_what_it_uses_serves_it_during_an_upgrade() -> TestResult {
    let system = System::new().await;
    let topic = system.redis.topic("upgrade");
    let newest = "(select max(version) from outbox.migration where version < 1000)";
    is_migrated_by_a_later_version(&system.database, newest).await?;
    let relay = system.start("relay").await;
    wait_until_green(&relay).await;
    commit(&system, &topic, "A", 2).await;
    eventually("they are delivered", async || {
        let listed = json(&system, &["events", "list", "--state", "delivered"]).await;
        (items_of(&listed).len() == 2).then_some(())
    })
    .await;
    assert!(stderr(&cli(system.settings(), &["migrate"]).await).contains("up to date"));
    let doctor = cli(system.settings(), &["doctor", "--output", "json"]).await;
    let findings: Value = serde_json::from_slice(&doctor.stdout)?;
    let schema = items_of(&findings).iter().find(|f| f["check"] == "schema").ok_or("no verdict")?;
    assert_eq!(schema["verdict"], "warning", "{schema}");
    assert!(str_of(&schema["evidence"]).starts_with("version 1000, which also works for"), "{schema}");
    Ok(())
}

#[tokio::test]
async fn whether_a_later_schema_serves_this_version_must_be_known() -> TestResult {
    let system = System::new().await;
    is_migrated_by_a_later_version(&system.database, "1").await?;
    let mut owner = system.database.connect().await;
    let role = format!("guest_{}", Uuid::new_v4().simple());
    let guest = format!(
        "create role {role} login password 'guest';
         revoke execute on function outbox.serves_from() from public;
         grant usage on schema outbox to {role}; grant select on all tables in schema outbox to {role}"
    );
    sqlx::raw_sql(AssertSqlSafe(guest)).execute(&mut owner).await?;
    let address = system.database.url().rsplit('@').next().ok_or("no address")?;
    let settings =
        system.settings().clone().set("DATABASE_URL", format!("postgres://{role}:guest@{address}"));
    assert_fails(&settings, &["status"], 1, "grant execute on function outbox.serves_from()").await;
    sqlx::raw_sql("drop function outbox.serves_from()").execute(&mut owner).await?;
    assert_fails(&settings, &["status"], 1, "newer than this binary").await;
    let away = format!("drop owned by {role}; drop role {role}");
    sqlx::raw_sql(AssertSqlSafe(away)).execute(&mut owner).await?;
    Ok(())
}

#[tokio::test]
async fn a_later_version_that_migrates_at_the_same_time_and_wins_is_no_failure() -> TestResult {
    let system = System::new().await;
    let mut later = system.database.connect().await;
    // This version finds work to do, and then waits for the lock of the one that does more.
    sqlx::query("delete from outbox.migration where version = (select max(version) from outbox.migration)")
        .execute(&mut later)
        .await?;
    sqlx::query("select pg_advisory_lock($1)")
        .bind(lock_of_migrations(system.database.name()))
        .execute(&mut later)
        .await?;
    let settings = system.settings().clone();
    let migrating = tokio::spawn(async move { cli(&settings, &["migrate"]).await });
    eventually("it has found work, and waits", async || {
        let waits = "select exists (select from pg_stat_activity where datname = current_database()
                     and wait_event_type = 'Lock' and wait_event = 'advisory')";
        sqlx::query_scalar::<_, bool>(waits).fetch_one(&mut later).await.expect("locks").then_some(())
    })
    .await;
    is_migrated_by_a_later_version(&system.database, "1").await?;
    later.close().await?;
    let output = migrating.await?;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    Ok(())
}

/// The advisory lock that sqlx takes while it migrates a database: a CRC-32 of its name, times a number of
/// its own.
fn lock_of_migrations(database: &str) -> i64 {
    let crc = database.bytes().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
    });
    0x3d32_ad9e * i64::from(!crc)
}

#[tokio::test]
async fn a_later_schema_that_takes_away_what_this_version_uses_is_refused() -> TestResult {
    let system = System::new().await;
    is_migrated_by_a_later_version(&system.database, "1000").await?;
    for command in [&["relay"][..], &["status"], &["migrate"]] {
        assert_fails(system.settings(), command, 1, "newer than this binary").await;
    }
    Ok(())
}
