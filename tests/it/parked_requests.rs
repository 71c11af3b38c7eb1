//! Releasing and discarding parked events: the selection, and the report of the result.

use redis::AsyncCommands;

use crate::harness::keys;
use aftercommit::event::Topic;

use crate::commands::{assert_fails, commit, json, stderr, stdout};
use crate::console::block;
use crate::harness::{System, TestResult, cli, eventually, items_of};

pub(crate) async fn unblock(system: &System, topic: &Topic) -> TestResult {
    let _: () = system.redis.connect().await.del(keys::history(topic)).await?;
    Ok(())
}

pub(crate) async fn wait_until_parked(system: &System, topic: &Topic, events: u64) {
    eventually(&format!("{events} are parked"), async || {
        let listed = json(system, &["parked", "list"]).await;
        let mut topics = items_of(&listed).iter();
        topics.any(|one| one["topic"] == topic.as_str() && one["events"] == events).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_release_says_whether_it_has_worked_and_fails_where_it_was_refused_again() -> TestResult {
    let system = System::new().await;
    let topic = system.redis.topic("poisoned");
    block(&system, &topic).await;
    let _relay = system.start("relay").await;
    commit(&system, &topic, "A", 2).await;
    wait_until_parked(&system, &topic, 2).await;
    let listed = json(&system, &["parked", "list"]).await;
    assert_eq!((&listed[0]["firstId"], &listed[0]["lastId"]), (&"1-1".into(), &"1-2".into()), "{listed}");
    let shown = cli(system.settings(), &["parked", "list"]).await;
    assert!(stderr(&shown).contains(&format!("parked release {topic} --through 1-2")), "{shown:?}");

    let release = ["parked", "release", topic.as_str(), "--yes", "--reason", "mended"];
    let refused = cli(system.settings(), &release).await;
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let says = stdout(&refused);
    assert!(says.starts_with(&format!("{topic}: 2 events refused again: ")), "{says}");
    assert!(stderr(&refused).contains("parked as before"), "{refused:?}");
    unblock(&system, &topic).await?;
    let released = cli(system.settings(), &release).await;
    assert_eq!(
        (released.status.code(), stdout(&released)),
        (Some(0), format!("{topic}: 2 events released\n"))
    );
    assert_fails(system.settings(), &release, 1, "nothing of topic").await;
    let audit = json(&system, &["audit"]).await;
    assert_eq!(audit[0]["selection"]["through"], serde_json::json!(["1-2"]), "{audit}");
    Ok(())
}

#[tokio::test]
async fn undelivered_events_are_published_and_told_by_one_option() -> TestResult {
    let system = System::new().await;
    let topic = system.redis.topic("undelivered");
    let undelivered = ["replay", "--undelivered", "--yes", "--reason", "mended"];
    commit(&system, &topic, "A", 2).await;
    assert_fails(system.settings(), &undelivered, 1, "2 events wait, the oldest for").await;
    block(&system, &topic).await;
    let relay = system.start("relay").await;
    wait_until_parked(&system, &topic, 2).await;
    unblock(&system, &topic).await?;
    let published = cli(system.settings(), &undelivered).await;
    assert_eq!(
        (published.status.code(), stdout(&published)),
        (Some(0), format!("{topic}: 2 events released\n"))
    );
    assert_eq!(relay.terminate().await, 0);
    commit(&system, &topic, "A", 1).await;
    let waits = cli(system.settings(), &undelivered).await;
    assert_eq!(waits.status.code(), Some(1), "{waits:?}");
    assert!(stderr(&waits).contains("at most 1 event wait for the relay"), "{waits:?}");
    let help = stdout(&cli(system.settings(), &["replay", "--help"]).await);
    assert!(help.contains("--undelivered\n"), "{help}");
    Ok(())
}

#[tokio::test]
async fn without_a_relay_a_request_is_written_down_and_told_as_not_done() -> TestResult {
    let system = System::new().await;
    let topic = system.redis.topic("nobody");
    block(&system, &topic).await;
    let relay = system.start("relay").await;
    commit(&system, &topic, "A", 2).await;
    wait_until_parked(&system, &topic, 2).await;
    assert_eq!(relay.terminate().await, 0);
    unblock(&system, &topic).await?;
    let release = ["parked", "release", topic.as_str(), "--yes"];
    let waited = cli(system.settings(), &[&release[..], &["--output", "json"]].concat()).await;
    assert_eq!(waited.status.code(), Some(1), "{waited:?}");
    assert!(stderr(&waited).contains("none leads: start `aftercommit relay`"), "{waited:?}");
    let told: serde_json::Value = serde_json::from_slice(&waited.stdout)?;
    assert_eq!((&told["topics"][0]["waiting"], &told["topics"][0]["done"]), (&2.into(), &0.into()), "{told}");
    let handed = cli(system.settings(), &[&release[..], &["--no-wait"]].concat()).await;
    assert_eq!(stdout(&handed), "2 events handed to the relay\n");
    // It is done as soon as there is one.
    let _relay = system.start("relay").await;
    eventually("released", async || {
        let listed = json(&system, &["events", "list", "--state", "delivered"]).await;
        (items_of(&listed).len() == 2).then_some(())
    })
    .await;
    Ok(())
}
