//! A log knows in which database it was made, and which programs it may be read by.

use serde_json::Value;

use aftercommit::log;
use aftercommit::log::checkpoint;

use crate::append_door::execute;
use crate::harness::{Line, TestResult, cli, eventually};

#[tokio::test]
async fn a_moved_log_is_refused_for_a_relay_name_that_is_new_to_it() -> TestResult {
    let mut line = Line::new().await;
    line.append(2).await;
    line.wait_until_whole().await;
    line.relay.signal("KILL").await;
    let mut admin = line.system.database.connect().await;
    execute(&mut admin, "update outbox.log set system_identifier = 42").await;
    let name = format!("{}-new", line.system.redis.relay_name());
    line.system.set_again("AFTERCOMMIT_RELAY_NAME", &name);
    line.relay = line.system.start("relay").await;
    line.append(2).await;
    line.wait_for_failure("conflict").await;
    line.relay.wait_for_log("another Postgres database").await;
    let rows: i64 = sqlx::query_scalar("select count(*) from outbox.relay where name = $1")
        .bind(&name)
        .fetch_one(&mut admin)
        .await?;
    assert_eq!(rows, 0);
    assert_eq!(line.delivered().await, 2);
    Ok(())
}

#[tokio::test]
async fn a_copy_on_the_same_server_is_refused_until_it_has_an_identity_of_its_own() -> TestResult {
    let mut line = Line::new().await;
    line.append(2).await;
    line.wait_until_whole().await;
    line.relay.signal("KILL").await;
    let copy = line.system.database.copy().await;
    line.system.set_again("DATABASE_URL", copy.url());
    line.relay = line.system.start("relay").await;
    line.relay.wait_for_log("another Postgres database").await;
    let mut admin = copy.connect().await;
    execute(&mut admin, "select outbox.append('t', 'T', '1')").await;
    let copied = cli(line.system.settings(), &["rebase", "--copy", "--yes", "--output", "json"]).await;
    let copied: Value = serde_json::from_slice(&copied.stdout)?;
    assert_eq!((&copied["database"], &copied["done"]), (&"other".into(), &true.into()), "{copied}");
    assert_eq!(copied["pending"], 1, "the original has delivered all others: {copied}");
    assert!(log::identity::at_home(&mut admin).await.is_ok());
    Ok(())
}

#[tokio::test]
async fn a_format_of_the_future_is_refused_with_what_to_do() {
    let line = Line::new().await;
    let mut admin = line.system.database.connect().await;
    execute(&mut admin, "update outbox.log set format = 99").await;
    let refused = checkpoint::load_or_begin(&mut admin, "main").await.expect_err("a newer format");
    assert!(refused.to_string().contains("run the aftercommit that migrated it"), "{refused}");
}

#[tokio::test]
async fn a_copy_beside_its_original_gets_an_identity_and_numbers_of_its_own() -> TestResult {
    let mut line = Line::new().await;
    line.append(3).await;
    line.wait_until_whole().await;
    line.relay.signal("KILL").await;
    let mut admin = line.system.database.connect().await;
    let identity = log::identity::of(&mut admin).await?;
    let done = eventually("nobody leads", async || {
        let output = cli(line.system.settings(), &["rebase", "--copy", "--yes", "--output", "json"]).await;
        serde_json::from_slice::<Value>(&output.stdout).ok()
    })
    .await;
    assert_eq!(
        (&done["done"], &done["epoch"], &done["copy"]),
        (&true.into(), &2.into(), &true.into()),
        "{done}"
    );
    let copy = log::identity::of(&mut admin).await?;
    assert!(copy.id != identity.id && copy.is_at_home());
    Ok(())
}
