//! Streams through real proxies, set up as docs/proxies/ says: over HTTP/2, at once, and past servers that
//! are killed.

use futures_util::StreamExt;
use reqwest::{StatusCode, Version};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::harness::{
    Client, Feed, Front, FrontKind, LIMIT, NOTIFICATIONS, Parser, Process, System, TestResult, eventually,
    metric_of, numbers, str_of, trusting,
};

/// A feed, two servers, and a proxy in front of them.
struct Edge {
    feed: Feed,
    servers: [Process; 2],
    front: Front,
}

impl Edge {
    async fn new(kind: FrontKind) -> Self {
        Self::with(System::new().await, kind, &[]).await
    }

    async fn with(system: System, kind: FrontKind, changes: &[(&str, &str)]) -> Self {
        let feed = Feed::with(system).await;
        let servers = [feed.sse().await, feed.sse().await];
        let front = Front::start(kind, servers.each_ref(), changes).await;
        Self { feed, servers, front }
    }

    /// A client of the proxy, with a connection of its own.
    async fn client(&self) -> Client {
        let url = self.front.url(NOTIFICATIONS);
        let client = Client::through(trusting(), url, &self.feed.token(), None);
        client.wait_until_placed().await;
        client
    }

    async fn streams(&self, server: usize) -> u64 {
        metric_of(&self.servers[server], "aftercommit_sse_connections").await
    }
}

async fn each_event_arrives_before_the_next_is_committed(edge: Edge) -> TestResult {
    let request = trusting().get(edge.front.url(NOTIFICATIONS)).bearer_auth(edge.feed.token());
    let response = tokio::time::timeout(LIMIT, request.send()).await?;
    let response = response?;
    assert_eq!((response.status(), response.version()), (StatusCode::OK, Version::HTTP_2));
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["cache-control"], "no-store, no-transform");
    // Pages of topics are passed too: this answer is the server's.
    let page = trusting().get(edge.front.url("/ds/orders:7")).bearer_auth(edge.feed.token()).send().await?;
    assert_eq!(page.status(), StatusCode::FORBIDDEN);
    let mut parser = Parser::default();
    let mut bytes = response.bytes_stream();
    let mut events = Vec::new();
    while parser.last_event_id().is_empty() {
        let chunk = tokio::time::timeout(LIMIT, bytes.next()).await?;
        parser.feed(&chunk.ok_or("no open stream")??, |event| events.push(event));
    }
    for n in 0..20 {
        edge.feed.commit([n]).await;
        while events.len() <= n as usize {
            let chunk = tokio::time::timeout(LIMIT, bytes.next()).await?;
            parser.feed(&chunk.ok_or("no open stream")??, |event| events.push(event));
        }
    }
    assert_eq!(numbers(&events), (0..20).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test]
async fn through_nginx_each_event_arrives_before_the_next_is_committed() -> TestResult {
    each_event_arrives_before_the_next_is_committed(Edge::new(FrontKind::Nginx).await).await
}

/// A common setting of nginx: it holds back a partly filled buffer unless the response forbids it.
#[tokio::test]
async fn also_through_an_nginx_that_speaks_http_1_0_to_the_server() -> TestResult {
    let old = [("proxy_http_version 1.1;", "proxy_http_version 1.0;")];
    let edge = Edge::with(System::new().await, FrontKind::Nginx, &old).await;
    each_event_arrives_before_the_next_is_committed(edge).await?;
    Ok(())
}

#[tokio::test]
async fn through_caddy_each_event_arrives_before_the_next_is_committed() -> TestResult {
    each_event_arrives_before_the_next_is_committed(Edge::new(FrontKind::Caddy).await).await
}

async fn servers_that_are_killed_cost_nothing(kind: FrontKind) -> TestResult {
    let Edge { feed, servers: [first, second], front } = Edge::new(kind).await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        let client = Client::through(trusting(), front.url(NOTIFICATIONS), &feed.token(), None);
        client.wait_until_placed().await;
        clients.push(client);
    }
    let stop = CancellationToken::new();
    let committing = feed.keep_committing(stop.clone());
    for client in &clients {
        client.wait_for_events(20).await;
    }
    // The streams of the one go to the other, while it is away.
    let address = first.address.clone();
    first.kill().await;
    eventually("all streams at the second server", async || {
        (metric_of(&second, "aftercommit_sse_connections").await == 4).then_some(())
    })
    .await;
    let first = feed.sse_at(&address).await;
    // And the other way round, to a server that has seen none of them.
    let second = feed.replaced(second).await;
    for client in &clients {
        client.wait_for_ends(1).await;
        let before = client.so_far().len();
        client.wait_for_events(before + 20).await;
    }
    stop.cancel();
    let count = committing.await?;
    for client in &clients {
        let events = client.wait_for_events(usize::try_from(count)?).await;
        assert_eq!(numbers(&events), (0..count).collect::<Vec<_>>(), "{:?}", client.counts());
    }
    drop((first, second));
    Ok(())
}

#[tokio::test]
async fn behind_nginx_servers_that_are_killed_cost_nothing() -> TestResult {
    servers_that_are_killed_cost_nothing(FrontKind::Nginx).await
}

#[tokio::test]
async fn behind_caddy_servers_that_are_killed_cost_nothing() -> TestResult {
    servers_that_are_killed_cost_nothing(FrontKind::Caddy).await
}

async fn without_any_server_clients_are_told_to_come_back_and_lose_nothing(kind: FrontKind) -> TestResult {
    let edge = Edge::new(kind).await;
    let client = edge.client().await;
    edge.feed.commit(0..5).await;
    client.wait_for_events(5).await;
    let Edge { feed, servers: [first, second], front } = edge;
    let address = first.address.clone();
    first.kill().await;
    second.kill().await;
    // The end of its stream, and then the ends of streams that only say when to come back. (On any status but
    // 200 this client would give up, as EventSource does.)
    client.wait_for_ends(3).await;
    assert!((3000..=9000).contains(&client.wait_for_retry().await));
    let request = trusting().get(front.url(NOTIFICATIONS)).header("origin", "https://app.example");
    let answer = request.send().await?;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    assert_eq!(answer.headers()["access-control-allow-origin"], "https://app.example");
    feed.commit(5..9).await;
    let _first = feed.sse_at(&address).await;
    assert_eq!(numbers(&client.wait_for_events(9).await), (0..9).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test]
async fn behind_nginx_without_any_server_clients_come_back_and_lose_nothing() -> TestResult {
    without_any_server_clients_are_told_to_come_back_and_lose_nothing(FrontKind::Nginx).await
}

#[tokio::test]
async fn behind_caddy_without_any_server_clients_come_back_and_lose_nothing() -> TestResult {
    without_any_server_clients_are_told_to_come_back_and_lose_nothing(FrontKind::Caddy).await
}

async fn a_client_that_leaves_the_proxy_frees_its_place_at_the_server(kind: FrontKind) {
    // Without a heartbeat in this time: the proxy has to tell that its client is gone.
    let system = System::new().await.set("AFTERCOMMIT_SSE_HEARTBEAT_SECONDS", "3600");
    let edge = Edge::with(system, kind, &[]).await;
    let clients = [edge.client().await, edge.client().await];
    assert_eq!(edge.streams(0).await + edge.streams(1).await, 2);
    drop(clients);
    eventually("no stream is left", async || {
        (edge.streams(0).await + edge.streams(1).await == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_client_that_leaves_nginx_frees_its_place_at_the_server() {
    a_client_that_leaves_the_proxy_frees_its_place_at_the_server(FrontKind::Nginx).await;
}

#[tokio::test]
async fn a_client_that_leaves_caddy_frees_its_place_at_the_server() {
    a_client_that_leaves_the_proxy_frees_its_place_at_the_server(FrontKind::Caddy).await;
}

#[tokio::test]
async fn heartbeats_keep_a_quiet_stream_open_past_the_read_timeout_of_nginx() {
    let short = [("proxy_read_timeout 60s;", "proxy_read_timeout 3s;")];
    let system = System::new().await.set("AFTERCOMMIT_SSE_HEARTBEAT_SECONDS", "1");
    let edge = Edge::with(system, FrontKind::Nginx, &short).await;
    let client = edge.client().await;
    client.wait_for_comments(8).await;
    assert_eq!(client.counts(), (1, 0), "one stream that has not ended");

    // Without heartbeats nginx ends the stream: the timeout is in force.
    let edge = Edge::with(System::new().await, FrontKind::Nginx, &short).await;
    let client = edge.client().await;
    client.wait_for_ends(1).await;
}

/// A ticket passes the proxy, also where the server behind it is killed, and is in none of its logs.
async fn tickets_are_not_in_the_logs_of_the_proxy(kind: FrontKind) -> TestResult {
    let edge = Edge::new(kind).await;
    let topic = edge.feed.topic();
    let asking = trusting().post(edge.front.url("/api/stream-tickets")).bearer_auth(edge.feed.token());
    let answer = asking.json(&json!({ "topic": topic.as_str() })).send().await?;
    assert_eq!(answer.status(), StatusCode::CREATED);
    let answer: Value = answer.json().await?;
    let ticket = str_of(&answer["ticket"]).to_owned();
    let path = format!("{NOTIFICATIONS}?ticket={ticket}");
    let mut stream = trusting().get(edge.front.url(&path)).send().await?;
    assert_eq!(stream.status(), StatusCode::OK);
    let Edge { servers: [first, second], front, .. } = edge;
    first.kill().await;
    second.kill().await;
    // Errors of all kinds: a stream that breaks off, and a server that is not there.
    while let Ok(Some(_)) = stream.chunk().await {}
    let answer = trusting().get(front.url(&path)).send().await?;
    assert_eq!(answer.status(), StatusCode::OK);
    let logs = eventually("both requests in a log", async || {
        let logs = front.logs();
        (logs.matches(NOTIFICATIONS).count() >= 2).then_some(logs)
    })
    .await;
    assert!(!logs.contains(ticket.rsplit('.').next().ok_or("no signature")?), "{logs}");
    Ok(())
}

#[tokio::test]
async fn tickets_are_not_in_the_logs_of_nginx() -> TestResult {
    tickets_are_not_in_the_logs_of_the_proxy(FrontKind::Nginx).await
}

#[tokio::test]
async fn tickets_are_not_in_the_logs_of_caddy() -> TestResult {
    tickets_are_not_in_the_logs_of_the_proxy(FrontKind::Caddy).await
}

#[tokio::test]
async fn health_and_metrics_stay_behind_the_proxy() -> TestResult {
    for kind in [FrontKind::Nginx, FrontKind::Caddy] {
        let edge = Edge::new(kind).await;
        for path in ["/metrics", "/readyz", "/healthz", "/admin/connections"] {
            let answer = trusting().get(edge.front.url(path)).send().await?;
            assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{kind:?} {path}");
        }
    }
    Ok(())
}
