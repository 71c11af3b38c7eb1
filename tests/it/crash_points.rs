//! The relay dies: between every two effects of a step, of a release and of a restore, and a hundred times
//! under load.

use std::time::{Duration, Instant};

use aftercommit::log::parked::{self, Action};
use tokio_util::sync::CancellationToken;

use crate::harness::{Line, Listener, TestResult, Wiring, eventually};

/// The time limit from a restart to the next delivery.
const RESTART_LIMIT: Duration = Duration::from_secs(10);

/// A relay that stops at a failpoint when it passes there for the `nth` time, and a subscriber.
async fn line_that_stops_at(place: &str, nth: u32) -> (Line, Listener) {
    let line = Line::with(Wiring {
        relay: vec![
            ("FAILPOINT", format!("{place}@{nth}")),
            // Several chunks a window, so that each failpoint is passed with a partly delivered window.
            ("AFTERCOMMIT_RELAY_BATCH_SIZE", "10".to_owned()),
        ],
        ..Wiring::default()
    })
    .await;
    let client = line.redis_client();
    let listener = Listener::to(&client, &line.topic).await;
    (line, listener)
}

/// Waits until the relay has stopped there, kills it, and starts one that goes on.
async fn kill_there(line: &mut Line, place: &str) {
    let mark = format!("\"failpoint\":\"{place}\"");
    line.relay.wait_for_log(&mark).await;
    line.relay.signal("KILL").await;
    line.system.unset("FAILPOINT");
    line.relay = line.system.start("relay").await;
}

async fn dying_at(place: &str, nth: u32) {
    let (mut line, mut listener) = line_that_stops_at(place, nth).await;
    line.append(35).await;
    kill_there(&mut line, place).await;
    line.append(5).await;
    line.wait_until_whole().await;
    listener.wait_for_exactly(40).await;
}

#[tokio::test]
async fn a_relay_that_dies_with_a_window_written_down_and_nothing_read() {
    dying_at("window_written", 1).await;
}

#[tokio::test]
async fn a_relay_that_dies_with_a_chunk_read_and_nothing_published() {
    dying_at("batch_read", 1).await;
    dying_at("batch_read", 3).await;
}

#[tokio::test]
async fn a_relay_that_dies_with_a_chunk_published_and_nothing_written_down() {
    dying_at("batch_published", 1).await;
    dying_at("batch_published", 4).await;
}

#[tokio::test]
async fn a_relay_that_dies_with_the_position_written_down() {
    dying_at("checkpoint_written", 1).await;
    dying_at("checkpoint_written", 4).await;
}

#[tokio::test]
async fn a_relay_that_dies_with_a_release_written_down_and_nothing_published() -> TestResult {
    dying_in_a_release_at("release_written").await
}

#[tokio::test]
async fn a_relay_that_dies_with_parked_events_released_and_not_yet_written_down() -> TestResult {
    dying_in_a_release_at("released").await
}

async fn dying_in_a_release_at(place: &str) -> TestResult {
    let (mut line, mut listener) = line_that_stops_at(place, 1).await;
    let key = crate::harness::keys::history(&line.topic);
    line.words(&["set", &key, "of another type"]).await?;
    line.append(15).await;
    eventually("they are parked", async || {
        (line.metric("aftercommit_relay_parked_total").await == 15).then_some(())
    })
    .await;
    line.words(&["del", &key]).await?;
    let topic = line.topic.clone();
    line.release(&topic).await;
    kill_there(&mut line, place).await;
    line.append(5).await;
    line.wait_until_whole().await;
    listener.wait_for_exactly(20).await;
    Ok(())
}

/// The operator has named the first event alone. The others only waited behind it, and flow on after it.
#[tokio::test]
async fn a_relay_that_dies_behind_a_discard_leaves_none_of_those_that_waited_behind_it() -> TestResult {
    for action in [Action::Discard, Action::Release] {
        let (mut line, _) = line_that_stops_at("release_written", 1).await;
        let topic = line.system.redis.topic("waited");
        let key = crate::harness::keys::history(&topic);
        line.words(&["set", &key, "of another type"]).await?;
        let parked = line.append_to(&topic, 5).await;
        eventually("they are parked", async || {
            (line.metric("aftercommit_relay_parked_total").await == 5).then_some(())
        })
        .await;
        line.words(&["del", &key]).await?;
        let mut connection = line.system.database.connect().await;
        let relay = line.system.redis.relay_name();
        let first = parked::of_topic(&mut connection, &relay, &topic, 1).await?[0].0;
        parked::request(&mut connection, &relay, &topic, action, Some(first)).await?;
        kill_there(&mut line, "release_written").await;
        let expected = if action == Action::Discard { &parked[1..] } else { &parked[..] };
        eventually("the others arrive", async || (line.history_of(&topic).await == expected).then_some(()))
            .await;
    }
    Ok(())
}

/// Only the sink knows whether the event was published.
#[tokio::test]
async fn a_discard_behind_a_release_that_broke_off_gives_up_only_what_never_arrived() -> TestResult {
    let (mut line, _) = line_that_stops_at("released", 1).await;
    let topic = line.system.redis.topic("released-in-part");
    let key = crate::harness::keys::history(&topic);
    line.words(&["set", &key, "of another type"]).await?;
    // The first ten are published by the release, which dies after them.
    let parked = line.append_to(&topic, 15).await;
    eventually("they are parked", async || {
        (line.metric("aftercommit_relay_parked_total").await == 15).then_some(())
    })
    .await;
    line.words(&["del", &key]).await?;
    line.release(&topic).await;
    let mark = "\"failpoint\":\"released\"";
    line.relay.wait_for_log(mark).await;
    line.relay.signal("KILL").await;
    let mut connection = line.system.database.connect().await;
    let relay = line.system.redis.relay_name();
    parked::request(&mut connection, &relay, &topic, Action::DiscardArrived, None).await?;
    line.system.unset("FAILPOINT");
    line.relay = line.system.start("relay").await;
    let fates = "select settled_as, count(*) from outbox.parked where relay = $1 group by 1 order by 1";
    eventually("the request is carried out", async || {
        let fates: Vec<(Option<String>, i64)> =
            sqlx::query_as(fates).bind(&relay).fetch_all(&mut connection).await.expect("fates");
        (fates == [(Some("discarded".to_owned()), 5), (Some("released".to_owned()), 10)]).then_some(())
    })
    .await;
    assert_eq!(line.history_of(&topic).await, parked[..10]);
    line.command("flushall").await?;
    eventually("what was told is given again", async || {
        (line.history_of(&topic).await == parked[..10]).then_some(())
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn a_relay_that_dies_in_the_middle_of_a_restore() -> TestResult {
    let (mut line, mut listener) = line_that_stops_at("range_restored", 2).await;
    line.append(35).await;
    line.wait_until_whole().await;
    line.command("flushall").await?;
    kill_there(&mut line, "range_restored").await;
    line.append(5).await;
    line.wait_until_whole().await;
    // Published events are not published again.
    listener.wait_for_exactly(40).await;
    Ok(())
}

#[tokio::test]
async fn a_relay_that_dies_in_a_restore_with_events_refused_and_not_yet_set_aside() -> TestResult {
    let (mut line, _) = line_that_stops_at("range_published", 1).await;
    let refused = line.system.redis.topic("refused");
    let key = crate::harness::keys::history(&refused);
    let waiting = line.append_to(&refused, 4).await;
    line.append(12).await;
    line.wait_until_whole().await;
    let forget = "redis.call('FLUSHALL') redis.call('SET', KEYS[1], 'of another type')";
    line.words(&["eval", forget, "1", &key]).await?;
    kill_there(&mut line, "range_published").await;
    line.wait_until_whole().await;
    let mut connection = line.system.database.connect().await;
    let relay = line.system.redis.relay_name();
    eventually("they are set aside", async || {
        let count = parked::count(&mut connection, &relay, &refused).await.expect("a count");
        (count == 4).then_some(())
    })
    .await;
    line.words(&["del", &key]).await?;
    line.release(&refused).await;
    eventually("they are released", async || (line.history_of(&refused).await == waiting).then_some(()))
        .await;
    Ok(())
}

/// `KILLS` in the environment says how often; a campaign of a hundred takes half a minute.
#[tokio::test]
async fn a_relay_that_is_killed_again_and_again_under_load_delivers_again_within_seconds() -> TestResult {
    let kills = std::env::var("KILLS").map_or(15, |text| text.parse().expect("KILLS is a number"));
    let mut line = Line::new().await;
    let client = line.redis_client();
    let mut listener = Listener::to(&client, &line.topic).await;
    let stop = CancellationToken::new();
    let writer = line.keep_appending(stop.clone());
    let mut slowest = Duration::ZERO;
    for kill in 0..kills {
        // Alternate between a takeover by a standby and a fresh start.
        let died = if kill % 2 == 0 {
            let fresh = line.system.start("relay").await;
            std::mem::replace(&mut line.relay, fresh).kill().await;
            Instant::now()
        } else {
            line.relay.signal("KILL").await;
            let died = Instant::now();
            line.relay = line.system.start("relay").await;
            died
        };
        let delivered = line.delivered().await;
        eventually("it delivers again", async || (line.delivered().await > delivered).then_some(())).await;
        slowest = slowest.max(died.elapsed());
    }
    stop.cancel();
    line.appended = writer.await?;
    line.wait_until_whole().await;
    listener.wait_for_exactly(line.appended.len()).await;
    println!(
        "{kills} kills, {} events: lost 0, repeated 0, reordered 0; slowest restart {slowest:?}",
        line.appended.len()
    );
    assert!(slowest < RESTART_LIMIT, "{slowest:?}");
    Ok(())
}
