//! Streams: every event once and in order, or a reset; with one server and with two.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use redis::AsyncCommands;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;

use aftercommit::event::{NewEvent, Topic};
use aftercommit::outbox;

use crate::harness::{Client, Event, Process, System, TestResult, eventually, metric_of, new_event, str_of};

/// A user with a stream of their own, events for it, and the processes that bring them there.
struct Stage {
    system: System,
    _relay: Process,
    sse: Process,
    user: Uuid,
}

const PATH: &str = "/api/upload/sessions/notifications/stream";

impl Stage {
    async fn new() -> Self {
        Self::with(System::new().await).await
    }

    async fn with(system: System) -> Self {
        let (relay, sse) = (system.start("relay").await, system.start("sse").await);
        Self { system, _relay: relay, sse, user: Uuid::new_v4() }
    }

    fn topic(&self) -> Topic {
        Topic::new(format!("user-notifications:{}", self.user)).expect("a topic")
    }

    fn token(&self) -> String {
        self.system.token(self.user)
    }

    async fn client(&self) -> Client {
        Client::open(&self.sse.url(PATH), &self.token()).await
    }

    fn resume(&self, last_event_id: &str) -> Client {
        Client::resume(&self.sse.url(PATH), &self.token(), last_event_id)
    }

    fn from(&self, from: &str) -> Client {
        Client::begin(self.sse.url(&format!("{PATH}?from={from}")), &self.token(), None)
    }

    /// Commits an event for each number.
    async fn commit(&self, numbers: impl IntoIterator<Item = u64>) {
        let topic = self.topic();
        let events: Vec<NewEvent> = numbers.into_iter().map(|n| new_event(&topic, "N", &n)).collect();
        let mut connection = self.system.database.connect().await;
        outbox::append_all(&mut connection, &events).await.expect("an append");
    }

    /// Waits until the relay has published so many events of the topic.
    async fn wait_until_published(&self, count: usize) {
        let mut redis = self.system.redis.connect().await;
        let key = self.system.redis.keys().history(&self.topic());
        let mut redis = async || redis.xlen::<_, usize>(&key).await.expect("a length");
        let deadline = Instant::now() + crate::harness::LIMIT;
        while redis().await < count {
            assert!(Instant::now() < deadline, "{count} events published in time");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn numbers(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.data.parse().unwrap_or_else(|_| panic!("{event:?}"))).collect()
}

fn reason(event: &Event) -> TestResult<String> {
    assert_eq!(event.event, "reset", "{event:?}");
    let data: serde_json::Value = serde_json::from_str(&event.data)?;
    assert_eq!(data["id"].as_str(), event.id.as_deref());
    Ok(str_of(&data["reason"]).to_owned())
}

#[tokio::test]
async fn five_clients_on_two_servers_each_get_every_event_once_and_in_order() {
    let stage = Stage::new().await;
    let second = stage.system.start("sse").await;
    let mut clients = Vec::new();
    for n in 0..10 {
        let sse = if n % 2 == 0 { &stage.sse } else { &second };
        clients.push(Client::open(&sse.url(PATH), &stage.token()).await);
    }
    for n in 0..200 {
        stage.commit([n]).await;
    }
    let expected: Vec<u64> = (0..200).collect();
    for client in &clients {
        let events = client.wait_for_events(200).await;
        assert_eq!(numbers(&events), expected);
        assert!(events.iter().all(|event| event.event == "notification"));
        let ids: Vec<String> = events.iter().filter_map(|event| event.id.clone()).collect();
        assert_eq!(ids, (1..=200).map(|seq| format!("1-{seq}")).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_client_that_comes_back_continues_right_after_its_last_event() {
    let stage = Stage::new().await;
    let client = stage.client().await;
    stage.commit(0..5).await;
    client.wait_for_events(5).await;
    let id = client.last_event_id();
    drop(client);
    stage.commit(5..9).await;
    stage.wait_until_published(9).await;
    let client = stage.resume(&id);
    assert_eq!(numbers(&client.wait_for_events(4).await), [5, 6, 7, 8]);
    stage.commit([9]).await;
    assert_eq!(numbers(&client.wait_for_events(5).await), [5, 6, 7, 8, 9]);
}

#[tokio::test]
async fn a_first_connection_may_name_its_place_in_the_url_and_the_header_wins() {
    let stage = Stage::new().await;
    stage.commit(0..6).await;
    stage.wait_until_published(6).await;
    let url = stage.sse.url(&format!("{PATH}?lastEventId=1-2"));
    let client = Client::begin(url.clone(), &stage.token(), None);
    assert_eq!(numbers(&client.wait_for_events(4).await), [2, 3, 4, 5]);
    let client = Client::begin(url, &stage.token(), Some("1-5".to_owned()));
    assert_eq!(numbers(&client.wait_for_events(1).await), [5]);
}

#[tokio::test]
async fn a_client_far_behind_is_fed_from_the_history_without_a_hole() {
    let system = System::new().await.set("AFTERCOMMIT_SSE_RECENT_EVENTS", "4");
    let stage = Stage::with(system).await;
    stage.commit(0..3000).await;
    stage.wait_until_published(3000).await;
    let client = stage.resume("1-7");
    stage.commit(3000..3010).await;
    let events = client.wait_for_events(3003).await;
    assert_eq!(numbers(&events), (7..3010).collect::<Vec<u64>>());
    let earliest = stage.from("earliest");
    assert_eq!(numbers(&earliest.wait_for_events(3010).await), (0..3010).collect::<Vec<u64>>());
}

#[tokio::test]
async fn clients_that_come_back_together_share_the_reads_of_the_history() {
    let system = System::new().await.set("AFTERCOMMIT_SSE_RECENT_EVENTS", "4");
    let stage = Stage::with(system).await;
    stage.commit(0..600).await;
    stage.wait_until_published(600).await;
    let reads = async || crate::harness::metric_of(&stage.sse, "aftercommit_sse_history_reads_total").await;
    // The first one makes the topic join.
    stage.resume("1-100").wait_for_events(500).await;
    let before = reads().await;
    assert!(before >= 3, "the newest events, and two pages of older ones: {before}");
    let clients: Vec<Client> = (0..50).map(|_| stage.resume("1-100")).collect();
    for client in &clients {
        assert_eq!(numbers(&client.wait_for_events(500).await), (100..600).collect::<Vec<u64>>());
    }
    let together = reads().await - before;
    // On a busy machine not all of them share a page. Without sharing, each would read twice.
    assert!(together < 50, "{together} reads for fifty clients");
}

#[tokio::test]
async fn a_client_far_behind_with_large_events_is_fed_as_fast_as_it_reads() -> TestResult {
    let system = System::new().await.set("AFTERCOMMIT_SSE_RECENT_EVENTS", "2");
    let stage = Stage::with(system).await;
    let mut connection = stage.system.database.connect().await;
    for n in 0..24 {
        let payload = format!("{n:03}{}", "x".repeat(500_000));
        let event = new_event(&stage.topic(), "N", &payload);
        outbox::append(&mut connection, &event).await?;
    }
    stage.wait_until_published(24).await;
    // Twelve megabytes through a queue of one: nothing is lost and the client is never cut off.
    let client = stage.resume("1-1");
    let events = client.wait_for_events(23).await;
    let seen: Vec<String> = events.iter().map(|event| event.data[1..4].to_owned()).collect();
    assert_eq!(seen, (1..24).map(|n| format!("{n:03}")).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test]
async fn the_newest_event_comes_at_once_for_a_client_that_asks_for_it() {
    let stage = Stage::new().await;
    stage.commit(0..3).await;
    stage.wait_until_published(3).await;
    let client = stage.from("last");
    assert_eq!(numbers(&client.wait_for_events(1).await), [2]);
    stage.commit([3]).await;
    assert_eq!(numbers(&client.wait_for_events(2).await), [2, 3]);
    let latest = stage.from("latest");
    latest.wait_for_connections(1).await;
    eventually("its place", async || (latest.last_event_id() == "1-4").then_some(())).await;
    stage.commit([4]).await;
    assert_eq!(numbers(&latest.wait_for_events(1).await), [4]);
}

#[tokio::test]
async fn a_client_of_a_topic_that_had_no_event_yet_misses_none_while_it_is_away() {
    let stage = Stage::new().await;
    let client = stage.client().await;
    let id = client.last_event_id();
    assert!(id.starts_with("0-"), "{id}");
    drop(client);
    stage.commit(0..3).await;
    stage.wait_until_published(3).await;
    assert_eq!(numbers(&stage.resume(&id).wait_for_events(3).await), [0, 1, 2]);
    // Also by a server that has never seen the topic.
    let second = stage.system.start("sse").await;
    let client = Client::resume(&second.url(PATH), &stage.token(), &id);
    assert_eq!(numbers(&client.wait_for_events(3).await), [0, 1, 2]);
}

#[tokio::test]
async fn where_history_no_longer_reaches_back_the_first_event_is_a_reset() -> TestResult {
    let system = System::new().await.set("AFTERCOMMIT_SSE_RECENT_EVENTS", "2");
    let stage = Stage::with(system).await;
    let mut redis = stage.system.redis.connect().await;
    stage.commit(0..10).await;
    stage.wait_until_published(10).await;
    let _: usize = redis::cmd("XTRIM")
        .arg(stage.system.redis.keys().history(&stage.topic()))
        .arg("MAXLEN")
        .arg(5)
        .query_async(&mut redis)
        .await?;
    let client = stage.resume("1-3");
    let events = client.wait_for_events(1).await;
    assert_eq!(reason(&events[0])?, "history_gone");
    assert_eq!(events[0].id.as_deref(), Some("1-10"));
    stage.commit([10]).await;
    assert_eq!(numbers(&client.wait_for_events(2).await[1..]), [10]);
    // The oldest event that is still there can be continued from; one before the first event no longer.
    assert_eq!(numbers(&stage.resume("1-6").wait_for_events(5).await), [6, 7, 8, 9, 10]);
    assert_eq!(reason(&stage.resume("0-1").wait_for_events(1).await[0])?, "history_gone");
    let now = chrono::Utc::now().timestamp_millis();
    assert_eq!(reason(&stage.resume(&format!("0-{now}")).wait_for_events(1).await[0])?, "history_gone");
    Ok(())
}

/// A history that was evicted or deleted by hand: the next event begins one that looks complete.
#[tokio::test]
async fn where_a_history_vanished_under_the_relay_the_first_event_is_a_reset() -> TestResult {
    let stage = Stage::new().await;
    let before_the_first = stage.client().await.last_event_id();
    assert!(before_the_first.starts_with("0-"), "{before_the_first}");
    stage.commit(0..3).await;
    stage.wait_until_published(3).await;
    let mut redis = stage.system.redis.connect().await;
    let key = stage.system.redis.keys().history(&stage.topic());
    let _: usize = redis.del(&key).await?;
    stage.commit([3]).await;
    stage.wait_until_published(1).await;
    // Another server, which has not received the earlier events.
    let sse = stage.system.start("sse").await;
    let resume = |id: &str| Client::resume(&sse.url(PATH), &stage.token(), id);
    let client = resume(&before_the_first);
    assert_eq!(reason(&client.wait_for_events(1).await[0])?, "history_gone");
    assert_eq!(client.last_event_id(), "1-4");
    assert_eq!(reason(&resume("1-2").wait_for_events(1).await[0])?, "history_gone");
    // It expires as others do.
    assert!(redis.ttl::<_, i64>(&key).await? > 0);
    stage.commit([4]).await;
    assert_eq!(numbers(&client.wait_for_events(2).await[1..]), [4]);
    Ok(())
}

#[tokio::test]
async fn an_id_that_is_none_of_the_topics_is_a_reset_that_says_so() -> TestResult {
    let stage = Stage::new().await;
    stage.commit(0..2).await;
    stage.wait_until_published(2).await;
    for (id, expected) in [("nonsense", "bad_id"), ("1-900", "unknown_id"), ("9-1", "unknown_id")] {
        let client = stage.resume(id);
        let events = client.wait_for_events(1).await;
        assert_eq!(reason(&events[0])?, expected, "{id}");
        assert_eq!(client.last_event_id(), "1-2");
    }
    Ok(())
}

#[tokio::test]
async fn what_somebody_else_publishes_arrives_once_without_an_id() -> TestResult {
    let stage = Stage::new().await;
    let client = stage.client().await;
    let mut redis = stage.system.redis.connect().await;
    let channel = stage.system.redis.keys().public(&stage.topic());
    stage.commit([1]).await;
    client.wait_for_events(1).await;
    for message in ["{\"type\":\"PING\",\"n\":1}", "plain\ntext", "{\"type\":\"not a type\"}"] {
        let receivers: usize = redis.publish(&channel, message).await?;
        assert_eq!(receivers, 1);
    }
    // A public message without its live twin is foreign too.
    let _: usize = redis.publish(&channel, "1").await?;
    stage.commit([2]).await;
    let events = client.wait_for_events(6).await;
    let seen: Vec<(Option<&str>, &str, &str)> =
        events.iter().map(|e| (e.id.as_deref(), e.event.as_str(), e.data.as_str())).collect();
    assert_eq!(
        seen,
        [
            (Some("1-1"), "notification", "1"),
            (None, "PING", "{\"type\":\"PING\",\"n\":1}"),
            (None, "message", "plain\ntext"),
            (None, "message", "{\"type\":\"not a type\"}"),
            (None, "message", "1"),
            (Some("1-2"), "notification", "2"),
        ]
    );
    Ok(())
}

#[tokio::test]
async fn a_message_of_somebody_elses_that_is_larger_than_any_event_is_dropped_alone() -> TestResult {
    let stage = Stage::new().await;
    let client = stage.client().await;
    let mut redis = stage.system.redis.connect().await;
    let channel = stage.system.redis.keys().public(&stage.topic());
    let too_large = "x".repeat(2 * 1024 * 1024);
    for message in ["before", &too_large, "after"] {
        let receivers: usize = redis.publish(&channel, message).await?;
        assert_eq!(receivers, 1);
    }
    stage.commit([1]).await;
    let events = client.wait_for_events(3).await;
    let seen: Vec<&str> = events.iter().map(|event| &event.data[..event.data.len().min(10)]).collect();
    assert_eq!(seen, ["before", "after", "1"]);
    let interruptions = metric_of(&stage.sse, "aftercommit_sse_interruptions_total").await;
    assert_eq!(interruptions, 0, "the other topics of the connection are not joined anew");
    Ok(())
}

#[tokio::test]
async fn a_quiet_stream_gets_heartbeats_and_every_client_its_own_retry_time() {
    let system = System::new().await.set("AFTERCOMMIT_SSE_HEARTBEAT_SECONDS", "1");
    let stage = Stage::with(system).await;
    let mut times = HashSet::new();
    for nth in 0..5 {
        let client = stage.client().await;
        if nth == 0 {
            client.wait_for_comments(2).await;
        }
        times.insert(client.wait_for_retry().await);
    }
    assert!(times.iter().all(|time| (2000..=4000).contains(time)), "{times:?}");
    // Two random values may be equal; five are not.
    assert!(times.len() > 1, "{times:?}");
}

#[tokio::test]
async fn a_stream_has_the_headers_that_proxies_need() -> TestResult {
    let stage = Stage::new().await;
    let request = stage.system.http().get(stage.sse.url(PATH)).bearer_auth(stage.token());
    let response = request.send().await?;
    let header = |name: &str| response.headers()[name].to_str().expect("text").to_owned();
    assert_eq!(header("content-type"), "text/event-stream");
    assert_eq!(header("cache-control"), "no-store, no-transform");
    assert_eq!(header("x-accel-buffering"), "no");
    assert!(!response.headers().contains_key("content-length"));
    Ok(())
}

#[tokio::test]
async fn a_client_that_never_reads_is_cut_off_and_costs_the_others_nothing() -> TestResult {
    let stage = Stage::new().await;
    let reader = stage.client().await;
    let mut stuck = tokio::net::TcpStream::connect(&stage.sse.address).await?;
    let request =
        format!("GET {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n", stage.token());
    stuck.write_all(request.as_bytes()).await?;
    // Its stream is open: from here on it reads nothing.
    let mut head = [0; 12];
    stuck.read_exact(&mut head).await?;
    assert_eq!(&head, b"HTTP/1.1 200");

    let mut connection = stage.system.database.connect().await;
    let payload = "x".repeat(100_000);
    for _ in 0..100 {
        let event = new_event(&stage.topic(), "N", &payload);
        outbox::append(&mut connection, &event).await?;
    }
    assert_eq!(reader.wait_for_events(100).await.len(), 100);
    eventually("the slow client is cut off", async || {
        let text = stage.system.http().get(stage.sse.url("/metrics")).send().await.expect("an answer");
        text.text().await.expect("text").contains("aftercommit_sse_slow_closes_total 1").then_some(())
    })
    .await;
    let log = stage.sse.log();
    let told = log.lines().find(|line| line.contains("a client that does not keep up was cut off"));
    assert!(told.is_some_and(|line| line.contains(&stage.user.to_string())), "{log}");
    Ok(())
}

#[tokio::test]
async fn a_stream_ends_when_its_token_does_and_says_so() {
    let stage = Stage::new().await;
    let token = stage.system.token_for(stage.user, Duration::from_secs(2));
    let client = Client::open(&stage.sse.url(PATH), &token).await;
    let events = client.wait_for_events(1).await;
    assert_eq!((events[0].event.as_str(), events[0].id.as_deref()), ("token_expired", None));
    client.wait_for_ends(1).await;
}

#[tokio::test]
async fn open_streams_end_in_order_when_the_server_is_told_to_stop() {
    let stage = Stage::new().await;
    let (first, second) = (stage.client().await, stage.client().await);
    stage.commit([1]).await;
    first.wait_for_events(1).await;
    second.wait_for_events(1).await;
    let begun = Instant::now();
    let Stage { sse, system, user, .. } = stage;
    assert_eq!(sse.terminate().await, 0);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    first.wait_for_ends(1).await;
    second.wait_for_ends(1).await;
    // The next server, at another address, continues where they were.
    let next = system.start("sse").await;
    let client = Client::resume(&next.url(PATH), &system.token(user), &first.last_event_id());
    eventually("its place", async || (client.last_event_id() == "1-1").then_some(())).await;
    assert!(client.so_far().is_empty());
}

#[tokio::test]
async fn any_payload_arrives_as_it_was_sent_or_is_refused_at_append() {
    let stage = Stage::new().await;
    let client = stage.client().await;
    let mut connection = stage.system.database.connect().await;
    let mut append = async |payload: &str| {
        let sql = "select outbox.append($1, 'N', $2::text::json)";
        let appended =
            sqlx::query(sql).bind(stage.topic().as_str()).bind(payload).execute(&mut connection).await;
        appended.is_ok()
    };
    let largest = format!("\"{}\"", "x".repeat(1024 * 1024 - 2));
    let odd = [
        r#"{"escaped":"\u0000 \ud800 \udc00\ud800 \u2028 \r\n \ufeff"}"#,
        "{\"raw\":\"\u{feff} \u{2028} \u{85} \u{7f} \u{10ffff}\"}",
        "\r\n{\r\"lines\":\n\n[1,\r\n2]}\n",
        "\"data: x\\nid: 9-9\\n\\nevent: y\"",
        "  null  ",
        "1e400",
        &largest,
    ];
    for payload in odd {
        assert!(append(payload).await, "{payload:.40}");
    }
    let too_large = format!("\"{}\"", "x".repeat(1024 * 1024 - 1));
    for refused in ["\u{feff}{}", "", "{", "'x'", "\"\u{1}\"", &too_large] {
        assert!(!append(refused).await, "{refused:.40}");
    }
    let events = client.wait_for_events(odd.len()).await;
    let again = stage.from("earliest").wait_for_events(odd.len()).await;
    assert!(again == events, "an event looks the same from the history");
    for (event, sent) in events.iter().zip(odd) {
        // Line breaks between tokens are told as spaces, as an event's data is one line; white space around
        // it is left out.
        let expected = sent.trim().replace(['\r', '\n'], " ");
        assert!(event.data == expected, "{sent:.40} came as {:.40}", event.data);
    }
}

#[tokio::test]
async fn a_topic_that_was_let_go_of_is_heard_again_by_its_next_client() {
    let stage = Stage::with(System::new().await.set("AFTERCOMMIT_SSE_TOPIC_GRACE_SECONDS", "0")).await;
    let topics = async || crate::harness::metric_of(&stage.sse, "aftercommit_sse_topics").await;
    for n in 0..4 {
        let client = stage.client().await;
        stage.commit([n]).await;
        assert_eq!(numbers(&client.wait_for_events(1).await), [n]);
        drop(client);
        eventually("the topic is let go of", async || (topics().await == 0).then_some(())).await;
    }
}
