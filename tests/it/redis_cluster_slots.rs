//! Slots of a Redis Cluster that move, stay half moved, or have no server. Nothing is lost or repeated, and
//! all other topics flow on.

use std::time::Duration;

use redis::AsyncCommands;

use aftercommit::event::Topic;

use crate::cluster_stage::Stage;
use crate::harness::{Client, Cluster, TestResult, eventually, metric_of};

#[tokio::test]
async fn slots_move_under_load_and_nothing_is_lost_or_repeated() -> TestResult {
    let stage = Stage::new(Cluster::start().await).await;
    let mut load = stage.load().await;
    let clients = &load.clients;
    for (from, to) in [(0, 1), (1, 2), (2, 0), (0, 2)] {
        stage.cluster.move_slot(&stage.topics[0], from, to).await;
        stage.wait_for_more(clients, 50).await;
    }
    stage.end(&mut load).await?;
    Ok(())
}

/// As `redis-cli --cluster reshard` leaves it when it is stopped in its middle.
#[tokio::test]
async fn while_a_slot_stays_half_moved_all_other_topics_flow_on() -> TestResult {
    let mut stage = Stage::new(Cluster::start().await).await;
    let beside = stage.cluster.topic_at(&format!("{}beside-", stage.system.redis.topic("")), 0).await;
    stage.topics.push(beside);
    let mut load = stage.load().await;
    let clients = &load.clients;
    stage.cluster.move_keys(&stage.topics[0], 0, 1).await;
    stage.wait_for_more(&clients[2..], 200).await;
    let behind = metric_of(&stage.relay, "aftercommit_relay_redis_servers_behind").await;
    assert_eq!(behind, 1, "the slot is said to be behind");
    // What the topic has is read at the server that has its keys by now.
    let first = clients[0].so_far().swap_remove(0).id.ok_or("no id")?;
    let fresh = stage.system.start("sse").await;
    let url = fresh.url(&format!("/streams/{}?lastEventId={first}", stage.topics[0]));
    let late = Client::open(&url, &stage.token).await;
    let waiting = tokio::time::timeout(Duration::from_secs(20), late.wait_for_events(40)).await;
    assert!(waiting.is_ok_and(|events| events.iter().all(|event| event.event == "N")), "{:?}", late.so_far());
    // The next leader finds out for itself, and how far the slot has come.
    let relay = stage.system.start("relay").await;
    std::mem::replace(&mut stage.relay, relay).kill().await;
    stage.wait_for_more(&clients[2..], 200).await;
    stage.cluster.finish_move(&stage.topics[0], 0, 1).await;
    stage.wait_for_more(clients, 50).await;
    stage.end(&mut load).await?;
    let restored = metric_of(&stage.relay, "aftercommit_relay_restored_total").await;
    assert!(restored > 0, "the slot has been given what it lacked");
    let log = stage.relay.log();
    assert!(!log.contains("\"reached\":0,"), "and nothing from before that: {log}");
    Ok(())
}

#[tokio::test]
async fn a_move_that_is_called_off_leaves_the_slot_where_it_was() -> TestResult {
    let stage = Stage::new(Cluster::start().await).await;
    let mut load = stage.load().await;
    let clients = &load.clients;
    stage.cluster.move_keys(&stage.topics[0], 0, 1).await;
    stage.wait_until_one_is_behind().await;
    // A relay that writes to the slot meanwhile would keep its keys from coming back.
    stage.relay.signal("STOP").await;
    stage.cluster.call_off_move(&stage.topics[0], 0, 1).await;
    stage.relay.signal("CONT").await;
    stage.wait_for_more(clients, 50).await;
    stage.end(&mut load).await?;
    Ok(())
}

#[tokio::test]
async fn while_no_server_has_a_slot_all_other_topics_flow_on() -> TestResult {
    let cluster = Cluster::with(&[("cluster-require-full-coverage", "no")]).await;
    let mut stage = Stage::new(cluster).await;
    let beside = stage.cluster.topic_at(&format!("{}beside-", stage.system.redis.topic("")), 0).await;
    stage.topics.push(beside);
    let mut load = stage.load().await;
    let clients = &load.clients;
    stage.cluster.assign(&stage.topics[0], None).await;
    stage.wait_until_one_is_behind().await;
    stage.wait_for_more(&clients[2..], 200).await;
    let logs = stage.relay.log();
    assert!(!logs.contains("the lead is given up"), "{logs}");
    stage.cluster.assign(&stage.topics[0], Some(1)).await;
    stage.wait_for_more(clients, 50).await;
    stage.end(&mut load).await?;
    Ok(())
}

/// The relay's own keys at a server are in the highest of its slots.
#[tokio::test]
async fn while_the_highest_slot_of_a_server_stays_half_moved_the_topics_of_the_others_flow_on() -> TestResult
{
    let stage = Stage::new(Cluster::start().await).await;
    let mut load = stage.load().await;
    let clients = &load.clients;
    let highest = Topic::new("41402")?; // in slot 5460
    stage.cluster.move_keys(&highest, 0, 1).await;
    stage.wait_until_one_is_behind().await;
    stage.wait_for_more(&clients[2..], 200).await;
    stage.cluster.finish_move(&highest, 0, 1).await;
    stage.wait_for_more(clients, 50).await;
    stage.end(&mut load).await?;
    Ok(())
}

/// The server's own keys can be read all the while.
#[tokio::test]
async fn while_a_slot_with_keys_of_the_relay_stays_half_moved_the_topics_of_the_others_flow_on() -> TestResult
{
    let mut stage = Stage::new(Cluster::start().await).await;
    let second_highest = stage.cluster.topic_in(stage.system.redis.topic("").as_str(), 5459).await;
    stage.topics.push(second_highest.clone());
    let mut load = stage.load().await;
    let clients = &load.clients;
    stage.cluster.move_keys(&second_highest, 0, 1).await;
    stage.wait_until_one_is_behind().await;
    stage.wait_for_more(&clients[2..6], 200).await;
    stage.cluster.finish_move(&second_highest, 0, 1).await;
    stage.wait_for_more(clients, 50).await;
    stage.end(&mut load).await?;
    let parked: i64 = sqlx::query_scalar("select count(*) from outbox.parked")
        .fetch_one(&mut stage.system.database.connect().await)
        .await?;
    assert_eq!(parked, 0, "nothing was an event's fault");
    Ok(())
}

/// A leader that was frozen may have divided the slots in another way.
#[tokio::test]
async fn a_top_that_speaks_for_other_slots_is_written_anew_before_anything_is_published() -> TestResult {
    let stage = Stage::new(Cluster::start().await).await;
    let mut load = stage.load().await;
    let mut server = stage.cluster.connect_to(0).await.ok_or("no connection")?;
    let tops: Vec<String> = server.keys(format!("*:{}:top", stage.system.redis.relay_name())).await?;
    let [top] = &tops[..] else { return Err(format!("{tops:?}").into()) };
    let slots: String = server.hget(top, "slots").await?;
    let _: () = server.hset(top, "slots", "7").await?;
    eventually("the top speaks for its slots again", async || {
        let now: String = server.clone().hget(top, "slots").await.ok()?;
        (now == slots).then_some(())
    })
    .await;
    stage.end(&mut load).await?;
    Ok(())
}
