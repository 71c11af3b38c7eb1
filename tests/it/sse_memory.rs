//! Memory of clients that do not read: bounded for each stream, and bounded for all of them together.

use secrecy::ExposeSecret;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use uuid::Uuid;

use aftercommit::event::Topic;

use crate::harness::{Client, Process, System, TestResult, eventually, http_get, metric_of, start_redis};

const MIB: usize = 1024 * 1024;
const HOUR: std::time::Duration = std::time::Duration::from_secs(3600);

/// A system with its own Redis, and topics with events of almost 1 MiB each.
struct Large {
    system: System,
    topics: Vec<Topic>,
    token: String,
    _relay: Process,
    _redis: aftercommit::local::redis::RedisServer,
}

impl Large {
    async fn new(topics: usize, events: usize, settings: &[(&str, &str)]) -> TestResult<Self> {
        let redis = start_redis(Vec::new(), None).await;
        let system = System::with_redis(redis.url().expose_secret()).await;
        // Those that do not read stay while a slow machine gives each of them its events.
        let system = system.set("AFTERCOMMIT_SSE_WRITE_TIMEOUT_SECONDS", "600");
        let system = settings.iter().fold(system, |system, (name, value)| system.set(name, value));
        let relay = system.start("relay").await;
        let topics: Vec<Topic> = (0..topics).map(|n| system.redis.topic(&format!("large:{n}"))).collect();
        let mut connection = system.database.connect().await;
        for topic in &topics {
            let sql = "select outbox.append($1, 'N', to_json(repeat('x', $2))) from generate_series(1, $3)";
            let append = sqlx::query(sql).bind(topic.as_str()).bind((MIB - 64) as i32).bind(events as i32);
            append.execute(&mut connection).await?;
        }
        let all = (topics.len() * events) as u64;
        eventually("all of it is in Redis", async || {
            (metric_of(&relay, "aftercommit_relay_published_total").await == all).then_some(())
        })
        .await;
        let token = system.token_with(Uuid::new_v4(), HOUR, &["*"]);
        Ok(Self { system, topics, token, _relay: relay, _redis: redis })
    }

    fn path(&self, query: &str) -> String {
        let topics: Vec<String> = self.topics.iter().map(|topic| format!("topic={topic}")).collect();
        format!("/streams?{}&{query}", topics.join("&"))
    }

    /// A client that asks for a stream and reads nothing.
    async fn stuck(&self, sse: &Process, path: &str, last_event_id: &str) -> TestResult<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(4096)?;
        let mut stuck = socket.connect(sse.address.parse()?).await?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nLast-Event-ID: \
             {last_event_id}\r\n\r\n",
            self.token
        );
        stuck.write_all(request.as_bytes()).await?;
        Ok(stuck)
    }
}

/// Waits until an event is queued for each of `streams` streams. The kernel takes the first part of it.
async fn wait_until_all_queued(sse: &Process, streams: usize) {
    let expected = (streams * MIB / 2) as u64;
    eventually("an event waits for each of them", async || {
        (metric_of(sse, "aftercommit_sse_queued_bytes").await >= expected).then_some(())
    })
    .await;
}

/// The peak memory of a process over three seconds, in bytes.
async fn most_memory(process: &Process) -> TestResult<usize> {
    let mut most = 0;
    for _ in 0..60 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no memory")?;
        let kib: usize = line.trim().trim_end_matches(" kB").parse()?;
        most = most.max(kib * 1024);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    Ok(most)
}

#[tokio::test]
async fn a_stream_of_32_topics_of_large_events_that_is_not_read_holds_little() -> TestResult {
    const STREAMS: usize = 3;
    let large = Large::new(32, 2, &[]).await?;
    let sse = large.system.start("sse").await;
    // The first stream pays for the topics, which all streams share.
    let mut stuck = vec![large.stuck(&sse, &large.path("from=earliest"), "").await?];
    wait_until_all_queued(&sse, 1).await;
    let before = most_memory(&sse).await?;
    for _ in 0..STREAMS {
        stuck.push(large.stuck(&sse, &large.path("from=earliest"), "").await?);
    }
    wait_until_all_queued(&sse, 1 + STREAMS).await;
    let each = most_memory(&sse).await?.saturating_sub(before) / STREAMS;
    println!("a stream of 32 topics of 1 MiB events that is not read holds {} KiB", each / 1024);
    assert!(each < 6 * MIB, "{} KiB a stream", each / 1024);
    let held = metric_of(&sse, "aftercommit_sse_held_bytes").await;
    assert!(held >= MIB as u64, "what is held is counted: {held} bytes");
    // Meanwhile, a client that reads gets all events.
    let reader = Client::begin(sse.url(&large.path("from=earliest")), &large.token, None);
    assert_eq!(reader.wait_for_events(32 * 2).await.len(), 32 * 2);
    Ok(())
}

#[tokio::test]
async fn a_stream_of_large_events_that_continues_and_is_not_read_holds_little() -> TestResult {
    const STREAMS: usize = 8;
    let large = Large::new(1, 12, &[]).await?;
    let path = format!("/streams/{}", large.topics[0]);
    let other = large.system.start("sse").await;
    let reader = Client::begin(other.url(&format!("{path}?from=earliest")), &large.token, None);
    let events = reader.wait_for_events(12).await;
    let sse = large.system.start("sse").await;
    let mut stuck = Vec::new();
    // Each from another id, so that no two of them share a page.
    for event in events.iter().take(STREAMS) {
        stuck.push(large.stuck(&sse, &path, event.id.as_deref().ok_or("no id")?).await?);
    }
    wait_until_all_queued(&sse, STREAMS).await;
    // By the account, as an allocator keeps for itself what reading has needed.
    let each = eventually("pages have been let go of, and what is held is counted", async || {
        let held = metric_of(&sse, "aftercommit_sse_held_bytes").await as usize / STREAMS;
        (MIB / 2..5 * MIB / 2).contains(&held).then_some(held)
    })
    .await;
    println!("a stream of 1 MiB events that continues and is not read holds {} KiB", each / 1024);
    Ok(())
}

#[tokio::test]
async fn all_streams_together_hold_no_more_than_they_may_and_those_who_read_get_all() -> TestResult {
    const LIMIT_BYTES: usize = 16 * MIB;
    const TOPICS: usize = 12;
    let limit = LIMIT_BYTES.to_string();
    let large = Large::new(TOPICS, 3, &[("AFTERCOMMIT_SSE_MAX_HELD_BYTES", limit.as_str())]).await?;
    let sse = large.system.start("sse").await;
    let mut stuck = Vec::new();
    for topic in &large.topics {
        stuck.push(large.stuck(&sse, &format!("/streams/{topic}?from=earliest"), "").await?);
    }
    let reader = Client::begin(sse.url(&large.path("from=earliest")), &large.token, None);
    let reading = async { reader.wait_for_events(TOPICS * 3).await.len() };
    let watching = async {
        let mut most = 0;
        while metric_of(&sse, "aftercommit_sse_relief_closes_total").await == 0 {
            most = most.max(metric_of(&sse, "aftercommit_sse_held_bytes").await);
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        most
    };
    let both = async { tokio::join!(reading, watching) };
    let ended = tokio::time::timeout(crate::harness::LIMIT, both).await;
    let Ok((read, most)) = ended else {
        let metrics = http_get(sse.url("/metrics")).await?.text().await?;
        let metrics: Vec<&str> = metrics.lines().filter(|line| line.starts_with("aftercommit_sse")).collect();
        panic!("{metrics:#?}\n{}", sse.log());
    };
    assert_eq!(read, TOPICS * 3);
    // Pages and queues wait for room; live events and a page larger than expected come on top.
    assert!(most <= (LIMIT_BYTES + 8 * MIB) as u64, "{most} bytes were held");
    sse.wait_for_log("the slowest clients are cut off").await;
    assert_eq!(metric_of(&sse, "aftercommit_sse_held_bytes_limit").await, LIMIT_BYTES as u64);
    Ok(())
}
