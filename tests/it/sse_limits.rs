//! Limits of streams, the refusals that clients get, and the view of operators.

use std::time::Duration;

use reqwest::{Response, StatusCode};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

use aftercommit::event::Topic;
use aftercommit::outbox;

use crate::harness::{Client, Process, System, TestResult, eventually, http, items_of, new_event};

const PATH: &str = "/api/upload/sessions/notifications/stream";
const OPERATOR: &str = "an operator of the tests";

async fn notify(system: &System, user: Uuid, payload: &str) {
    let topic = Topic::new(format!("user-notifications:{user}")).expect("a topic");
    let event = new_event(&topic, "N", &payload);
    outbox::append(&mut system.database.connect().await, &event).await.expect("an append");
}

/// The data of a client's `refused` event.
fn refusal(client: &Client) -> TestResult<Value> {
    let told = client.so_far().into_iter().find(|event| event.event == "refused").ok_or("no refusal")?;
    assert_eq!(told.id, None, "its place stays where it was");
    Ok(serde_json::from_str(&told.data)?)
}

#[tokio::test]
async fn past_the_limit_a_client_is_told_why_and_when_to_come_back_and_gets_in_when_there_is_room()
-> TestResult {
    let system = System::new().await.set("AFTERCOMMIT_SSE_MAX_CONNECTIONS", "1");
    let (_relay, sse, user) = (system.start("relay").await, system.start("sse").await, Uuid::new_v4());
    let (url, token) = (sse.url(PATH), system.token(user));
    let first = Client::open(&url, &token).await;
    let second = Client::begin(url, &token, None);
    second.wait_for_ends(1).await;
    let wait = second.wait_for_retry().await;
    assert!(wait >= 6000, "three times the usual wait");
    let told = refusal(&second)?;
    assert_eq!(told["reason"], "full");
    assert!(told["retryMs"].as_u64().is_some_and(|ms| ms >= 6000), "{told}");
    drop(first);
    eventually("room", async || (!second.last_event_id().is_empty()).then_some(())).await;
    notify(&system, user, "1").await;
    eventually("the event", async || {
        second.so_far().iter().any(|event| event.event == "notification").then_some(())
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn one_user_cannot_take_the_places_of_all() -> TestResult {
    let system = System::new().await.set("AFTERCOMMIT_SSE_MAX_CONNECTIONS_PER_USER", "2");
    let system = system.set("AFTERCOMMIT_LOG_LEVEL", "info,aftercommit::sse=debug");
    let (sse, user) = (system.start("sse").await, Uuid::new_v4());
    let (greedy, modest) = (system.token(user), system.token(Uuid::new_v4()));
    let _first = Client::open(&sse.url(PATH), &greedy).await;
    let second = Client::open(&sse.url(PATH), &greedy).await;
    let third = Client::begin(sse.url(PATH), &greedy, None);
    third.wait_for_ends(1).await;
    assert_eq!(refusal(&third)?["reason"], "user_limit");
    eventually("whoever looks closely finds who was refused", async || {
        sse.log()
            .lines()
            .any(|line| line.contains("refused") && line.contains(&user.to_string()))
            .then_some(())
    })
    .await;
    Client::open(&sse.url(PATH), &modest).await;
    drop(second);
    eventually("room", async || (!third.last_event_id().is_empty()).then_some(())).await;
    Ok(())
}

/// Why a stream of these topics is refused, if it is.
async fn refused(system: &System, sse: &Process, user: Uuid, topics: &[&str]) -> Option<Value> {
    let token = system.token_with(user, Duration::from_secs(3600), &["*"]);
    let query: Vec<String> = topics.iter().map(|topic| format!("topic={topic}")).collect();
    let url = sse.url(&format!("/streams?{}", query.join("&")));
    let response = system.http().get(url).bearer_auth(token).send().await.expect("an answer");
    assert_eq!(response.status(), StatusCode::OK);
    crate::harness::refusal_of(response).await
}

#[tokio::test]
async fn a_process_has_so_many_topics_and_makes_room_where_they_are_used_no_more() -> TestResult {
    let system = System::new().await.set("AFTERCOMMIT_SSE_MAX_TOPICS", "3");
    let (sse, user) = (system.start("sse").await, Uuid::new_v4());
    let token = system.token_with(user, Duration::from_secs(3600), &["*"]);
    let held = Client::open(&sse.url("/streams?topic=a&topic=b"), &token).await;
    let told = refused(&system, &sse, user, &["c", "d"]).await.ok_or("no refusal")?;
    assert_eq!(told["reason"], "topics_full");
    assert!(told["retryMs"].as_u64() >= Some(6000), "{told}");
    assert_eq!(refused(&system, &sse, user, &["a", "b"]).await, None, "topics that are there anyway");
    drop(held);
    // Unused topics are kept for half a minute, but are dropped when others need the room.
    eventually("room", async || refused(&system, &sse, user, &["d", "e", "f"]).await.is_none().then_some(()))
        .await;
    let metric = async |name: &str| crate::harness::metric_of(&sse, name).await;
    assert_eq!(metric("aftercommit_sse_topics_limit").await, 3);
    assert!(metric("aftercommit_sse_topics").await <= 3);
    assert!(metric("aftercommit_sse_refused_total{reason=\"topics_full\"}").await >= 1);
    Ok(())
}

#[tokio::test]
async fn a_user_has_so_many_topics_in_all_their_streams() -> TestResult {
    let system = System::new().await.set("AFTERCOMMIT_SSE_MAX_TOPICS_PER_USER", "3");
    let (sse, user) = (system.start("sse").await, Uuid::new_v4());
    let token = system.token_with(user, Duration::from_secs(3600), &["*"]);
    let held = Client::open(&sse.url("/streams?topic=a&topic=b"), &token).await;
    let told = refused(&system, &sse, user, &["a", "b"]).await.ok_or("no refusal")?;
    assert_eq!(told["reason"], "user_topics_limit");
    assert_eq!(refused(&system, &sse, Uuid::new_v4(), &["a", "b"]).await, None, "another user");
    drop(held);
    eventually("room", async || refused(&system, &sse, user, &["a", "b"]).await.is_none().then_some(()))
        .await;
    Ok(())
}

async fn connections(sse: &Process, query: &str, token: Option<&str>) -> Response {
    let mut request = http().get(sse.url(&format!("/admin/connections{query}")));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    request.send().await.expect("an answer")
}

#[tokio::test]
async fn operators_see_the_slowest_streams_first_and_nobody_else_does() -> TestResult {
    let system = System::new().await.set("AFTERCOMMIT_OPERATOR_TOKEN", OPERATOR);
    let (_relay, sse, user) = (system.start("relay").await, system.start("sse").await, Uuid::new_v4());
    let token = system.token(user);
    let reader = Client::open(&sse.url(PATH), &token).await;
    let mut stuck = tokio::net::TcpStream::connect(&sse.address).await?;
    let request = format!("GET {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n");
    stuck.write_all(request.as_bytes()).await?;
    let address = stuck.local_addr()?.to_string();
    eventually("both streams", async || {
        let told: Value = connections(&sse, "", Some(OPERATOR)).await.json().await.expect("JSON");
        (told["open"] == 2).then_some(())
    })
    .await;
    // More than the sockets' buffers hold, and less than the stream's queue.
    let payload = "x".repeat(200_000);
    let mut sent = 0;
    let slowest = eventually("something waits", async || {
        notify(&system, user, &payload).await;
        sent += 1;
        reader.wait_for_events(sent).await;
        let told: Value = connections(&sse, "?top=1", Some(OPERATOR)).await.json().await.expect("JSON");
        let slowest = items_of(&told["slowest"]).clone();
        assert_eq!(slowest.len(), 1);
        (slowest[0]["queuedBytes"].as_u64() > Some(0) && slowest[0]["stuckMs"].as_u64() > Some(0))
            .then(|| slowest[0].clone())
    })
    .await;
    assert_eq!(slowest["peer"], address);
    assert_eq!(slowest["user"], user.to_string());
    assert_eq!(slowest["topics"][0], format!("user-notifications:{user}"));
    eventually("the gauge of all queues", async || {
        (crate::harness::metric_of(&sse, "aftercommit_sse_queued_bytes").await > 0).then_some(())
    })
    .await;
    for wrong in [None, Some("not the token"), Some(token.as_str())] {
        assert_eq!(connections(&sse, "", wrong).await.status(), StatusCode::UNAUTHORIZED);
    }
    Ok(())
}

#[tokio::test]
async fn without_an_operators_token_nobody_is_let_in() {
    let sse = System::new().await.start("sse").await;
    for token in [None, Some(""), Some("anything")] {
        assert_eq!(connections(&sse, "", token).await.status(), StatusCode::FORBIDDEN);
    }
}

#[tokio::test]
async fn while_streams_are_ended_no_new_one_is_taken_so_that_a_client_goes_elsewhere() -> TestResult {
    let system = System::new().await.set("AFTERCOMMIT_SSE_DRAIN_SECONDS", "3");
    let sse = system.start("sse").await;
    let (address, token) = (sse.address.clone(), system.token(Uuid::new_v4()));
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(Client::open(&sse.url(PATH), &token).await);
    }
    let ending = tokio::spawn(sse.terminate());
    eventually("no new connections", async || {
        tokio::net::TcpStream::connect(&address).await.is_err().then_some(())
    })
    .await;
    let still_open = async |client: &Client| {
        tokio::time::timeout(Duration::from_millis(1), client.wait_for_ends(1)).await.is_err()
    };
    let mut open = 0;
    for client in &clients {
        open += usize::from(still_open(client).await);
    }
    assert!(open > 0, "streams are ended one after the other");
    assert_eq!(ending.await?, 0);
    Ok(())
}

/// The soft limit of a process's open files.
#[cfg(target_os = "linux")]
fn open_files(process: &Process) -> u64 {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.pid())).expect("limits");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("a line");
    line.split_whitespace().next().expect("a number").parse().expect("a number")
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_server_raises_its_limit_of_open_files_and_says_where_it_may_not() {
    let system = System::new().await;
    let sse = Process::start("sse", &system.settings().clone().before("ulimit -Sn 300")).await;
    eventually("room for all streams", async || (open_files(&sse) >= 11_000).then_some(())).await;
    let sse = Process::start("sse", &system.settings().clone().before("ulimit -n 2000")).await;
    sse.wait_for_log("not enough open files").await;
    assert_eq!(open_files(&sse), 2000);
}

/// The backlog of the socket that listens at this address: `Send-Q` of `ss`.
#[cfg(target_os = "linux")]
async fn may_wait_at(address: &str) -> TestResult<usize> {
    let port = address.rsplit(':').next().ok_or("no port")?;
    let mut ss = tokio::process::Command::new("ss");
    ss.args(["-Hltn", "sport", "=", &format!(":{port}")]).env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
    let output = ss.output().await?;
    let line = String::from_utf8(output.stdout)?;
    Ok(line.split_whitespace().nth(2).ok_or("no Send-Q")?.parse()?)
}

/// Without room in the backlog, clients that reconnect together would each wait a second or more.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn thousands_of_connections_may_wait_to_be_accepted() -> TestResult {
    let sse = System::new().await.start("sse").await;
    let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn")?;
    let most: usize = most.trim().parse()?;
    assert_eq!(may_wait_at(&sse.address).await?, most.min(4096));
    Ok(())
}
