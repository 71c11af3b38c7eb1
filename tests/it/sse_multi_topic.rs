//! Streams of several topics: one connection, and one id with a position in each topic.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::json;
use uuid::Uuid;

use aftercommit::event::Topic;
use aftercommit::outbox;

use crate::harness::{Client, Event, Process, System, TestResult, eventually, metric_of, new_event, str_of};

/// An application of which this server knows nothing.
struct Stage {
    system: System,
    _relay: Process,
    sse: Process,
    token: String,
}

impl Stage {
    async fn new() -> Self {
        Self::with(System::new().await).await
    }

    async fn with(system: System) -> Self {
        let (relay, sse) = (system.start("relay").await, system.start("sse").await);
        let own = format!("{}*", system.redis.topic(""));
        let token = system.token_with(Uuid::new_v4(), Duration::from_secs(3600), &[&own]);
        Self { system, _relay: relay, sse, token }
    }

    fn topic(&self, name: &str) -> Topic {
        self.system.redis.topic(name)
    }

    /// The path of a stream of these topics.
    fn path(&self, names: &[&str]) -> String {
        let pairs: Vec<String> = names.iter().map(|name| format!("topic={}", self.topic(name))).collect();
        format!("/streams?{}", pairs.join("&"))
    }

    fn resume(&self, names: &[&str], last_event_id: &str) -> Client {
        Client::resume(&self.sse.url(&self.path(names)), &self.token, last_event_id)
    }

    async fn open(&self, names: &[&str]) -> Client {
        let client = Client::open(&self.sse.url(&self.path(names)), &self.token).await;
        let is_placed = || client.last_event_id().split(',').count() == names.len();
        eventually("a place in each topic", async || is_placed().then_some(())).await;
        client
    }

    /// Commits one event to a topic; its payload is the topic's name and the number.
    async fn commit(&self, name: &str, number: u64) {
        self.commit_payload(name, &format!("{name}{number}")).await;
    }

    async fn commit_payload(&self, name: &str, payload: &str) {
        let event = new_event(&self.topic(name), "T", &payload);
        let mut connection = self.system.database.connect().await;
        outbox::append(&mut connection, &event).await.expect("an append");
    }

    async fn status(&self, path: &str) -> StatusCode {
        let request = self.system.http().get(self.sse.url(path)).bearer_auth(&self.token);
        request.send().await.expect("an answer").status()
    }
}

/// The payloads of one topic, in the order in which they came.
fn of<'a>(events: &'a [Event], name: &str) -> Vec<&'a str> {
    let payload = |event: &'a Event| event.data.trim_matches('"');
    events.iter().map(payload).filter(|payload| payload.starts_with(name)).collect()
}

#[tokio::test]
async fn events_of_each_topic_come_in_order_and_a_client_that_comes_back_continues_in_all_of_them() {
    let stage = Stage::new().await;
    let client = stage.open(&["a", "b", "c"]).await;
    for n in 0..20 {
        stage.commit("a", n).await;
        stage.commit("b", n).await;
    }
    let events = client.wait_for_events(40).await;
    let expected = |name: &str, numbers: std::ops::Range<u64>| -> Vec<String> {
        numbers.map(|n| format!("{name}{n}")).collect()
    };
    assert_eq!(of(&events, "a"), expected("a", 0..20));
    assert_eq!(of(&events, "b"), expected("b", 0..20));
    let id = client.last_event_id();
    assert_eq!(id.split(',').count(), 3, "{id}");
    drop(client);
    for n in 20..25 {
        stage.commit("b", n).await;
        stage.commit("c", n).await;
    }
    // On a server that has never seen these topics, with the topics in another order.
    let second = stage.system.start("sse").await;
    let url = second.url(&stage.path(&["c", "a", "b"]));
    let events = Client::resume(&url, &stage.token, &id).wait_for_events(10).await;
    assert_eq!(of(&events, "a"), Vec::<&str>::new());
    assert_eq!(of(&events, "b"), expected("b", 20..25));
    assert_eq!(of(&events, "c"), expected("c", 20..25), "nothing is lost of a topic that had no event yet");
}

#[tokio::test]
async fn a_page_that_changes_its_topics_keeps_its_place_in_those_that_stay() {
    let stage = Stage::new().await;
    let client = stage.open(&["a", "b"]).await;
    stage.commit("a", 1).await;
    stage.commit("b", 1).await;
    client.wait_for_events(2).await;
    let id = client.last_event_id();
    drop(client);
    stage.commit("a", 2).await;
    stage.commit("b", 2).await;
    let client = stage.resume(&["b", "d"], &id);
    assert_eq!(of(&client.wait_for_events(1).await, "b"), ["b2"]);
    stage.commit("d", 1).await;
    assert_eq!(of(&client.wait_for_events(2).await, "d"), ["d1"]);
}

#[tokio::test]
async fn events_can_be_named_by_their_topic() {
    let stage = Stage::new().await;
    let url = stage.sse.url(&format!("{}&name=topic", stage.path(&["a", "b"])));
    let client = Client::open(&url, &stage.token).await;
    stage.commit("b", 1).await;
    assert_eq!(client.wait_for_events(1).await[0].event, stage.topic("b").as_str());
}

#[tokio::test]
async fn a_reset_is_for_one_topic_and_names_it() -> TestResult {
    let stage = Stage::new().await;
    let client = stage.open(&["a", "b"]).await;
    stage.commit("a", 1).await;
    client.wait_for_events(1).await;
    stage.commit("b", 1).await;
    client.wait_for_events(2).await;
    let id = client.last_event_id();
    drop(client);
    // A place past the end of one topic, and the right one in the other.
    let entries: Vec<&str> = id.split(',').collect();
    let wrong: Vec<String> = entries
        .iter()
        .map(
            |entry| {
                if entry.ends_with("=1-1") { entry.replace("=1-1", "=1-900") } else { (*entry).to_owned() }
            },
        )
        .collect();
    assert_ne!(wrong.join(","), id);
    let client = stage.resume(&["a", "b"], &wrong.join(","));
    stage.commit("b", 2).await;
    let events = client.wait_for_events(2).await;
    let reset = events.iter().find(|event| event.event == "reset").ok_or("no reset")?;
    let data: serde_json::Value = serde_json::from_str(&reset.data)?;
    assert_eq!(data, json!({ "reason": "unknown_id", "topic": stage.topic("a").as_str(), "id": "1-1" }));
    assert_eq!(of(&events, "b"), ["b2"]);
    // A malformed id resets each topic.
    let events = stage.resume(&["a", "b"], "1-1").wait_for_events(2).await;
    assert!(events.iter().all(|event| event.event == "reset" && event.data.contains("bad_id")), "{events:?}");
    Ok(())
}

#[tokio::test]
async fn topics_far_behind_with_large_events_share_the_queue_of_the_stream() {
    let system = System::new().await.set("AFTERCOMMIT_SSE_RECENT_EVENTS", "2");
    let stage = Stage::with(system).await;
    let names = ["a", "b", "c", "d"];
    let client = stage.open(&names).await;
    let id = client.last_event_id();
    drop(client);
    for n in 10..16 {
        for name in names {
            stage.commit_payload(name, &format!("{name}{n}{}", "x".repeat(400_000))).await;
        }
    }
    let client = stage.resume(&names, &id);
    let events = client.wait_for_events(24).await;
    for name in names {
        let heads: Vec<&str> = of(&events, name).iter().map(|payload| &payload[..3]).collect();
        assert_eq!(heads, (10..16).map(|n| format!("{name}{n}")).collect::<Vec<_>>());
    }
    client.wait_for_connections(1).await;
}

/// The events fit into half of the queue; with ids of 32 topics each, they are many times larger.
#[tokio::test]
async fn recent_events_of_many_topics_are_given_as_fast_as_the_client_reads() {
    let stage = Stage::with(System::new().await.set("AFTERCOMMIT_SSE_MAX_QUEUED_BYTES", "20000")).await;
    let names: Vec<String> = (0..32).map(|n| format!("t{n:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let first = stage.open(&names).await;
    let begun = first.last_event_id();
    for number in 0..200 {
        stage.commit("t00", number).await;
    }
    first.wait_for_events(200).await;
    let reads = metric_of(&stage.sse, "aftercommit_sse_history_reads_total").await;
    let client = stage.resume(&names, &begun);
    let events = client.wait_for_events(200).await;
    let expected: Vec<String> = (0..200).map(|number| format!("t00{number}")).collect();
    assert_eq!(of(&events, "t00"), expected);
    assert_eq!(client.counts(), (1, 0), "one stream that has not ended");
    assert_eq!(metric_of(&stage.sse, "aftercommit_sse_history_reads_total").await, reads);
}

/// One topic cannot be joined for so long that the stream starts without it; then the client is cut off.
#[tokio::test]
async fn an_id_that_is_none_resets_each_topic_also_if_the_client_was_cut_off_meanwhile() -> TestResult {
    let stage = Stage::new().await;
    let mut redis = stage.system.redis.connect().await;
    let key = crate::harness::keys::history(&stage.topic("b"));
    redis::cmd("SET").arg(&key).arg("of another type").exec_async(&mut redis).await?;
    let client = stage.resume(&["a", "b"], "nonsense");
    assert_eq!(client.wait_for_events(1).await[0].event, "reset");
    let id = eventually("a place in each topic", async || {
        let id = client.last_event_id();
        (id.split(',').count() == 2).then_some(id)
    })
    .await;
    drop(client);
    redis::cmd("DEL").arg(&key).exec_async(&mut redis).await?;
    let client = stage.resume(&["a", "b"], &id);
    // A `refused` event of the topic may come first.
    let reset =
        eventually("a reset", async || client.so_far().into_iter().find(|event| event.event == "reset"))
            .await;
    let topic = format!("\"topic\":\"{}\"", stage.topic("b"));
    assert!(reset.data.contains(&topic) && reset.data.contains("joined_late"), "{reset:?}");
    Ok(())
}

/// The response would wait two seconds for the other topic; meanwhile the queue limit would be exceeded.
#[tokio::test]
async fn a_topic_that_cannot_be_joined_does_not_keep_the_events_of_another_one_from_flowing() -> TestResult {
    let stage = Stage::with(System::new().await.set("AFTERCOMMIT_SSE_MAX_QUEUED_BYTES", "20000")).await;
    let mut redis = stage.system.redis.connect().await;
    let key = crate::harness::keys::history(&stage.topic("b"));
    redis::cmd("SET").arg(&key).arg("of another type").exec_async(&mut redis).await?;
    let paced_by = stage.open(&["a"]).await;
    let client = stage.resume(&["a", "b"], &paced_by.last_event_id());
    let expected: Vec<String> = (0..15).map(|number| format!("a{number}{}", "x".repeat(5000))).collect();
    for (number, payload) in expected.iter().enumerate() {
        stage.commit_payload("a", payload).await;
        // One by one: many at once would exceed the queue limit.
        paced_by.wait_for_events(number + 1).await;
    }
    let events = client.wait_for_events(16).await;
    assert!(events.iter().any(|event| event.event == "refused"), "it is told that one topic cannot be read");
    assert_eq!(of(&events, "a"), expected);
    assert_eq!(metric_of(&stage.sse, "aftercommit_sse_slow_closes_total").await, 0, "it was never cut off");
    redis::cmd("DEL").arg(&key).exec_async(&mut redis).await?;
    let events = client.wait_for_events(17).await;
    assert!(events[16].event == "reset" && events[16].data.contains("joined_late"), "{:?}", events[16]);
    Ok(())
}

/// On one worker thread, the ids of the other topics are queued before the client can read anything.
#[tokio::test]
async fn an_event_as_large_as_the_queue_leaves_room_for_the_places_of_the_other_topics() {
    let system = System::new().await.set("AFTERCOMMIT_SSE_MAX_QUEUED_BYTES", "20000");
    let stage = Stage::with(system.set("TOKIO_WORKER_THREADS", "1")).await;
    let names: Vec<String> = (0..16).map(|n| format!("t{n:02}")).collect();
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    let begun = stage.open(&["t15"]).await.last_event_id();
    let large = format!("t15{}", "x".repeat(20_000));
    for name in &names {
        stage.commit(name, 1).await;
    }
    stage.commit_payload("t15", &large).await;
    // The events are there to be had.
    stage.resume(&["t15"], &begun).wait_for_events(2).await;
    names.reverse();
    let client = stage.resume(&names, &begun);
    let events = client.wait_for_events(2).await;
    assert_eq!(of(&events, "t15"), ["t151", large.as_str()]);
    let url = format!("{}&from=last", stage.sse.url(&stage.path(&names)));
    let newest = Client::begin(url, &stage.token, None);
    assert_eq!(of(&newest.wait_for_events(16).await, "t15"), [large.as_str()]);
    for client in [client, newest] {
        assert_eq!(client.counts(), (1, 0), "one stream that has not ended");
    }
}

#[tokio::test]
async fn every_topic_must_be_allowed_and_there_must_be_some() -> TestResult {
    let stage = Stage::new().await;
    let many: Vec<String> = (0..33).map(|n| format!("t{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(stage.status(&stage.path(&many)).await, StatusCode::BAD_REQUEST);
    assert_eq!(stage.status("/streams").await, StatusCode::BAD_REQUEST);
    assert_eq!(stage.status("/streams?topic=a%20b").await, StatusCode::BAD_REQUEST);
    assert_eq!(stage.status(&format!("{}&name=x", stage.path(&["a"]))).await, StatusCode::BAD_REQUEST);
    assert_eq!(stage.status(&format!("{}&topic=other", stage.path(&["a"]))).await, StatusCode::FORBIDDEN);
    assert_eq!(stage.status(&stage.path(&many[..32])).await, StatusCode::OK);
    // A ticket is good for all of its topics together, and for no other.
    let topics = [stage.topic("a"), stage.topic("b")];
    let request = stage.system.http().post(stage.sse.url("/api/stream-tickets")).bearer_auth(&stage.token);
    let names: Vec<&str> = topics.iter().map(Topic::as_str).collect();
    let response = request.json(&json!({ "topics": names })).send().await?;
    let body: serde_json::Value = response.json().await?;
    let ticket = str_of(&body["ticket"]);
    let with_ticket = async |names: &[&str]| {
        let url = stage.sse.url(&format!("{}&ticket={ticket}", stage.path(names)));
        stage.system.http().get(url).send().await.expect("an answer").status()
    };
    assert_eq!(with_ticket(&["a", "b"]).await, StatusCode::OK);
    assert_eq!(with_ticket(&["b"]).await, StatusCode::OK);
    assert_eq!(with_ticket(&["a", "c"]).await, StatusCode::FORBIDDEN);
    Ok(())
}
