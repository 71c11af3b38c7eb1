//! Several relays of one name: one leads, the others stand by, and a relay that wrongly believes to lead does
//! no harm.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::harness::{
    Flow, LIMIT, Line, Process, TestResult, Wiring, eventually, metric_of, wait_until_leading,
};

/// `[relay] takeover_seconds` of a line, and a margin for a busy machine.
const TAKEOVER_LIMIT: Duration = Duration::from_secs(2 + 2);

async fn is_leading(relay: &Process) -> bool {
    metric_of(relay, "aftercommit_relay_leading").await == 1
}

/// Waits until one of the relays leads, and returns its index.
async fn wait_for_leader(relays: &[Process]) -> usize {
    eventually("one of them leads", async || {
        for (i, relay) in relays.iter().enumerate() {
            if is_leading(relay).await {
                return Some(i);
            }
        }
        None
    })
    .await
}

#[tokio::test]
async fn a_relay_that_stands_by_takes_over_when_the_leader_is_killed() {
    let mut line = Line::new().await;
    line.wait_until_leading().await;
    let standby = line.another_relay().await;
    standby.wait_for_log("standing by").await;
    line.append(100).await;
    let killed = std::mem::replace(&mut line.relay, standby);
    killed.kill().await;
    let died = Instant::now();
    line.wait_until_leading().await;
    let took = died.elapsed();
    line.append(100).await;
    line.wait_until_whole().await;
    assert!(took < TAKEOVER_LIMIT, "{took:?}");
}

/// The relay's cached topic heads are older than the other relay's lead.
#[tokio::test]
async fn a_relay_that_leads_again_tells_what_was_published_while_it_did_not() -> TestResult {
    let mut line = Line::new().await;
    line.append(1).await;
    line.wait_until_whole().await;
    let other = line.another_relay().await;
    other.wait_for_log("standing by").await;
    line.relay.signal("STOP").await;
    wait_until_leading(&other).await;
    line.append(1).await;
    line.wait_until_whole().await;
    line.relay.signal("CONT").await;
    line.relay.wait_for_log("standing by").await;
    other.kill().await;
    line.wait_until_leading().await;
    let client = line.redis_client();
    let mut live = client.get_async_pubsub().await?;
    live.subscribe(crate::harness::keys::live(&line.topic)).await?;
    line.append(1).await;
    let heard = tokio::time::timeout(LIMIT, live.on_message().next()).await?.ok_or("no message")?;
    let envelope: serde_json::Value = serde_json::from_str(&heard.get_payload::<String>()?)?;
    assert_eq!((&envelope["prev"], &envelope["id"]), (&"1-2".into(), &"1-3".into()));
    line.wait_until_whole().await;
    Ok(())
}

#[tokio::test]
async fn of_three_relays_one_leads_and_a_leader_that_was_frozen_and_wakes_up_does_no_harm() -> TestResult {
    let mut line = Line::new().await;
    line.relay.signal("KILL").await;
    let mut relays = Vec::new();
    for _ in 0..3 {
        relays.push(line.another_relay().await);
    }
    let stop = CancellationToken::new();
    let writer = line.keep_appending(stop.clone());
    let mut leading = wait_for_leader(&relays).await;
    for _ in 0..3 {
        let frozen = relays.remove(leading);
        frozen.signal("STOP").await;
        let froze = Instant::now();
        leading = wait_for_leader(&relays).await;
        assert!(froze.elapsed() < TAKEOVER_LIMIT, "{:?}", froze.elapsed());
        frozen.signal("CONT").await;
        // At the end of the list, so that it is checked last.
        relays.push(frozen);
        eventually("the one that was frozen knows that it does not lead", async || {
            (!is_leading(relays.last().expect("a relay")).await).then_some(())
        })
        .await;
    }
    stop.cancel();
    line.appended = writer.await?;
    line.wait_until_whole().await;
    eventually("one of them leads", async || {
        let mut leaders = 0;
        for relay in &relays {
            leaders += u32::from(is_leading(relay).await);
        }
        (leaders == 1).then_some(())
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn a_leader_behind_a_network_that_swallows_everything_loses_the_lead_and_does_no_harm() -> TestResult {
    let mut line = Line::with(Wiring { postgres: Some(Vec::new()), ..Wiring::default() }).await;
    line.wait_until_leading().await;
    let standby = line.another_relay().await;
    let stop = CancellationToken::new();
    let writer = line.keep_appending(stop.clone());
    line.postgres().proxy.flow(Flow::Stall);
    let cut = Instant::now();
    wait_until_leading(&standby).await;
    assert!(cut.elapsed() < TAKEOVER_LIMIT, "{:?}", cut.elapsed());
    line.postgres().proxy.flow(Flow::Pass);
    eventually("the one behind it knows that it does not lead", async || {
        (line.metric("aftercommit_relay_leading").await == 0).then_some(())
    })
    .await;
    stop.cancel();
    line.appended = writer.await?;
    line.wait_until_whole().await;
    Ok(())
}

#[tokio::test]
async fn a_leader_that_cannot_reach_redis_leaves_the_lead_to_one_that_can() {
    let mut line = Line::new().await;
    line.append(1).await;
    line.wait_until_whole().await;
    let standby = line.another_relay().await;
    standby.wait_for_log("standing by").await;
    line.proxy.flow(Flow::Refuse);
    line.proxy.cut();
    line.append(5).await;
    wait_until_leading(&standby).await;
    line.wait_until_whole().await;
    line.relay.wait_for_log("the lead is given up").await;
}

#[tokio::test]
async fn a_relay_that_a_person_has_to_help_keeps_the_lead_as_another_one_could_do_no_more() -> TestResult {
    let mut line = Line::new().await;
    line.append(1).await;
    line.wait_until_whole().await;
    let log = line.system.redis.keys().log();
    line.words(&["hset", &log, "log", "another"]).await?;
    line.append(1).await;
    line.wait_for_failure("conflict").await;
    let refused = Instant::now();
    let conflicts = "aftercommit_relay_failures_total{class=\"conflict\"}";
    eventually("it has been refused for longer than a lead that fails is kept", async || {
        (refused.elapsed() > TAKEOVER_LIMIT && line.metric(conflicts).await > 10).then_some(())
    })
    .await;
    assert_eq!(line.metric("aftercommit_relay_leads_taken_total").await, 1, "{}", line.relay.log());
    Ok(())
}
