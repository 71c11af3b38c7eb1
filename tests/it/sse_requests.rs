//! Requests for streams: all limits used at the same time, and the headers of all kinds of clients.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use aftercommit::auth::{TICKET_BYTES_MAX, UserId};
use aftercommit::event::{TOPIC_LEN_MAX, Topic};
use aftercommit::outbox;
use aftercommit::sse::{ID_BYTES_MAX, TOPICS_MAX};
use aftercommit::streams::HEAD_BYTES_MAX;

use crate::harness::{Client, Feed, LIMIT, NOTIFICATIONS, System, TestResult, new_event, str_of};

const HOUR: Duration = Duration::from_secs(3600);

/// Names of topics as long as they may be.
fn long_topics() -> Vec<String> {
    (0..TOPICS_MAX).map(|n| format!("{n:02}{}", ":".repeat(TOPIC_LEN_MAX - 2))).collect()
}

/// A ticket for topics.
async fn ticket(system: &System, base: &str, token: &str, topics: &[String]) -> TestResult<String> {
    let request = system.http().post(format!("{base}/api/stream-tickets")).bearer_auth(token);
    let response = request.json(&json!({ "topics": topics })).send().await?;
    assert_eq!(response.status(), StatusCode::CREATED);
    let body: Value = response.json().await?;
    Ok(str_of(&body["ticket"]).to_owned())
}

/// The status of a request whose head is this, and the rest of the answer as far as it comes at once.
async fn answer(address: &str, head: &str) -> TestResult<String> {
    let mut socket = TcpStream::connect(address).await?;
    socket.write_all(head.as_bytes()).await?;
    let (mut answer, mut bytes) = (String::new(), [0; 4096]);
    while !answer.contains("\r\n\r\n") || answer.ends_with("\r\n\r\n") {
        let read = tokio::time::timeout(LIMIT, socket.read(&mut bytes)).await?;
        let read = read.unwrap_or_default();
        if read == 0 {
            break;
        }
        answer.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
    Ok(answer)
}

#[tokio::test]
async fn the_largest_request_that_the_limits_allow_is_taken_and_a_larger_one_is_refused_in_words()
-> TestResult {
    let system = System::new().await;
    let sse = system.start("sse").await;
    let user = UserId::new("\u{10ffff}".repeat(UserId::CHARS_MAX))?;
    let topics = long_topics();
    let ticket = ticket(&system, &sse.url(""), &system.token_with(user, HOUR, &["*"]), &topics).await?;
    assert!(ticket.len() <= TICKET_BYTES_MAX);
    let address: Vec<String> =
        topics.iter().map(|topic| format!("topic={}", topic.replace(':', "%3A"))).collect();
    let id: Vec<String> = (0..TOPICS_MAX).map(|n| format!("{n:08x}={0}-{0}", u64::MAX)).collect();
    let id = id.join(",");
    assert!(id.len() <= ID_BYTES_MAX);
    let escaped = id.replace('=', "%3D").replace(',', "%2C");
    let head = |others: usize| {
        format!(
            "GET /streams?name=topic&from=earliest&{}&lastEventId={escaped}&ticket={ticket} HTTP/1.1\r\n\
             host: x\r\nlast-event-id: {id}\r\ncookie: aftercommit_token={}; other={}\r\n\r\n",
            address.join("&"),
            "x".repeat(8 * 1024),
            "x".repeat(others),
        )
    };
    let taken = answer(&sse.address, &head(8000)).await?;
    assert!(taken.starts_with("HTTP/1.1 200 "), "{taken}");

    let refused = answer(&sse.address, &head(HEAD_BYTES_MAX)).await?;
    assert!(refused.starts_with("HTTP/1.1 431 "), "{refused}");
    assert!(refused.contains("application/problem+json"), "{refused}");
    let body = refused.split_once("\r\n\r\n").ok_or("no body")?.1;
    let problem: Value = serde_json::from_str(body)?;
    assert_eq!(problem["status"], 431);
    assert!(str_of(&problem["detail"]).contains("fewer cookies"), "{problem}");
    sse.wait_for_log("the head of a request cannot be read, or is too large").await;
    let counted = crate::harness::metric_of(&sse, "aftercommit_http_closed_total{reason=\"bad_head\"}").await;
    assert_eq!(counted, 1);
    Ok(())
}

#[tokio::test]
async fn a_stream_of_as_many_topics_as_there_may_be_comes_back_with_its_id() -> TestResult {
    let feed = Feed::new().await;
    let sse = feed.sse().await;
    let topics: Vec<String> = (0..TOPICS_MAX)
        .map(|n| {
            let topic = feed.system.redis.topic(&format!("{n:02}"));
            format!("{topic}{}", ":".repeat(TOPIC_LEN_MAX - topic.as_str().len()))
        })
        .collect();
    let token = feed.system.token_with(feed.user, HOUR, &["*"]);
    let ticket = ticket(&feed.system, &sse.url(""), &token, &topics).await?;
    let query: Vec<String> =
        topics.iter().map(|topic| format!("topic={}", topic.replace(':', "%3A"))).collect();
    let url = sse.url(&format!("/streams?ticket={ticket}&{}", query.join("&")));
    let client = Client::begin(url, "", None);
    client.wait_until_placed().await;
    let commit = async |n: u64| {
        let mut connection = feed.system.database.connect().await;
        for topic in &topics {
            let topic = Topic::new(topic.clone()).expect("a topic");
            let event = new_event(&topic, "N", &n);
            outbox::append(&mut connection, &event).await.expect("an append");
        }
    };
    commit(1).await;
    client.wait_for_events(TOPICS_MAX).await;
    let sse = feed.replaced(sse).await;
    client.wait_for_connections(2).await;
    commit(2).await;
    let events = client.wait_for_events(2 * TOPICS_MAX).await;
    assert!(events.iter().all(|event| event.event == "N"), "nothing is lost, and nobody is reset");
    assert_eq!(client.last_event_id().split(',').count(), TOPICS_MAX);
    drop(sse);
    Ok(())
}

#[tokio::test]
async fn a_preflight_allows_what_fetch_based_clients_and_tracing_libraries_send() -> TestResult {
    let page = "https://app.example";
    let system = System::new().await.set("AFTERCOMMIT_SSE_CORS_ORIGINS", page);
    let sse = system.start("sse").await;
    let wanted = [
        "accept",
        "authorization",
        "baggage",
        "cache-control",
        "content-type",
        "last-event-id",
        "sentry-trace",
        "traceparent",
        "tracestate",
        "x-requested-with",
    ];
    let request = system.http().request(Method::OPTIONS, sse.url(NOTIFICATIONS)).header("origin", page);
    let request = request.header("access-control-request-method", "GET");
    let request = request.header("access-control-request-headers", wanted.join(","));
    let response = request.send().await?;
    assert_eq!(response.status(), StatusCode::NO_CONTENT);
    let allowed = response.headers()["access-control-allow-headers"].to_str()?.to_owned();
    let allowed: Vec<&str> = allowed.split(',').map(str::trim).collect();
    for header in wanted {
        assert!(allowed.contains(&header), "{header} is not among {allowed:?}");
    }
    Ok(())
}

#[tokio::test]
async fn of_a_parameter_that_stands_there_twice_the_last_counts() -> TestResult {
    let feed = Feed::new().await;
    let sse = feed.system.start("sse").await;
    feed.commit(1..=3).await;
    let first = Client::begin(sse.url(&format!("{NOTIFICATIONS}?from=earliest")), &feed.token(), None);
    let ids: Vec<String> =
        first.wait_for_events(3).await.iter().map(|event| event.id.clone().expect("an id")).collect();
    let numbers = async |query: &str, count: usize| {
        let client = Client::begin(sse.url(&format!("{NOTIFICATIONS}?{query}")), &feed.token(), None);
        crate::harness::numbers(&client.wait_for_events(count).await)
    };
    let twice = format!("lastEventId={}&_=17&lastEventId={}", ids[0], ids[1]);
    assert_eq!(numbers(&twice, 1).await, [3]);
    let twice = format!("lastEventId={}&from=nonsense&lastEventId={}&from=last", ids[1], ids[0]);
    assert_eq!(numbers(&twice, 2).await, [2, 3]);
    assert_eq!(numbers("from=nonsense&from=last", 1).await, [3]);
    assert_eq!(numbers("from=last&from=earliest", 3).await, [1, 2, 3]);
    let topic = feed.topic().to_string();
    let token = feed.system.token_with(feed.user, HOUR, &[&topic]);
    let good = ticket(&feed.system, &sse.url(""), &token, std::slice::from_ref(&topic)).await?;
    let status =
        async |path: String| feed.system.http().get(sse.url(&path)).send().await.expect("an answer").status();
    assert_eq!(status(format!("{NOTIFICATIONS}?ticket=old&ticket={good}")).await, StatusCode::OK);
    assert_eq!(status(format!("{NOTIFICATIONS}?ticket={good}&ticket=old")).await, StatusCode::UNAUTHORIZED);
    let streams = format!("/streams?ticket=old&topic={topic}&topic={topic}&ticket={good}");
    assert_eq!(status(format!("{streams}&name=nonsense&name=topic")).await, StatusCode::OK);
    assert_eq!(status(format!("{streams}&name=topic&name=nonsense")).await, StatusCode::BAD_REQUEST);
    let named = Client::begin(sse.url(&format!("{streams}&name=type&name=topic&from=last")), "", None);
    assert_eq!(named.wait_for_events(1).await[0].event, topic);
    Ok(())
}
