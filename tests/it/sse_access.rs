//! Access to streams: by token, cookie or ticket, by claim, and by site.

use std::time::Duration;

use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use aftercommit::event::Topic;
use aftercommit::outbox;

use crate::harness::{Client, Process, System, TestResult, new_event, str_of};

const HOUR: Duration = Duration::from_secs(3600);
const NOTIFICATIONS: &str = "/api/upload/sessions/notifications/stream";

/// An SSE server, and a user.
struct Door {
    system: System,
    sse: Process,
    user: Uuid,
}

impl Door {
    async fn new() -> Self {
        Self::with(System::new().await).await
    }

    async fn with(system: System) -> Self {
        let sse = system.start("sse").await;
        Self { system, sse, user: Uuid::new_v4() }
    }

    /// A token of the user's with these patterns.
    fn token(&self, subscribe: &[&str]) -> String {
        self.system.token_with(self.user, HOUR, subscribe)
    }

    async fn get(&self, path: &str, header: Option<(&str, &str)>) -> Response {
        let mut request = self.system.http().get(self.sse.url(path));
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        request.send().await.expect("an answer")
    }

    async fn with_token(&self, path: &str, token: &str) -> StatusCode {
        self.get(path, Some(("authorization", &format!("Bearer {token}")))).await.status()
    }

    async fn ask_for_ticket(&self, topic: &str, token: &str) -> TestResult<Response> {
        let request = self.system.http().post(self.sse.url("/api/stream-tickets")).bearer_auth(token);
        Ok(request.json(&json!({ "topic": topic })).send().await?)
    }

    async fn ticket(&self, topic: &str, token: &str) -> TestResult<String> {
        let response = self.ask_for_ticket(topic, token).await?;
        assert_eq!(response.status(), StatusCode::CREATED);
        let body: Value = response.json().await?;
        Ok(str_of(&body["ticket"]).to_owned())
    }

    fn notifications(&self) -> String {
        format!("user-notifications:{}", self.user)
    }
}

#[tokio::test]
async fn any_topic_that_the_tokens_claim_allows_can_be_listened_to_and_no_other() -> TestResult {
    let door = Door::new().await;
    let _relay = door.system.start("relay").await;
    let token = door.token(&["orders:*", "news"]);
    let client = Client::open(&door.sse.url("/streams/orders:7"), &token).await;
    let event = new_event(&Topic::new("orders:7")?, "PAID", &1);
    outbox::append(&mut door.system.database.connect().await, &event).await?;
    let events = client.wait_for_events(1).await;
    assert_eq!((events[0].event.as_str(), events[0].data.as_str()), ("PAID", "1"));

    assert_eq!(door.with_token("/streams/news", &token).await, StatusCode::OK);
    for other in ["news2", "order", "Orders:7", "upload-session:7"] {
        assert_eq!(door.with_token(&format!("/streams/{other}"), &token).await, StatusCode::FORBIDDEN);
    }
    assert_eq!(door.with_token("/streams/orders:7", &door.token(&[])).await, StatusCode::FORBIDDEN);
    assert_eq!(door.with_token("/streams/not%20a%20topic", &token).await, StatusCode::BAD_REQUEST);
    assert_eq!(door.get("/streams/news", None).await.status(), StatusCode::UNAUTHORIZED);
    Ok(())
}

#[tokio::test]
async fn a_cookie_opens_streams_and_commands_do_not_take_it() -> TestResult {
    let door = Door::new().await;
    let api = door.system.start("api").await;
    let cookie = format!("theme=dark; aftercommit_token={}", door.token(&[]));
    assert_eq!(door.get(NOTIFICATIONS, Some(("cookie", &cookie))).await.status(), StatusCode::OK);
    let other = format!("other_token={}", door.token(&[]));
    assert_eq!(door.get(NOTIFICATIONS, Some(("cookie", &other))).await.status(), StatusCode::UNAUTHORIZED);
    let request = door.system.http().post(api.url("/api/upload/sessions")).header("cookie", cookie);
    let response = request.json(&json!({ "totalPhotos": 1 })).send().await?;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    Ok(())
}

#[tokio::test]
async fn a_ticket_opens_its_users_stream_of_its_topic_again_and_again_and_nothing_else() -> TestResult {
    let door = Door::new().await;
    let token = door.token(&["orders:*"]);
    let ticket = door.ticket(&door.notifications(), &token).await?;
    let path = format!("{NOTIFICATIONS}?ticket={ticket}");
    for _ in 0..2 {
        assert_eq!(door.get(&path, None).await.status(), StatusCode::OK);
    }
    let elsewhere = door.get(&format!("/streams/orders:7?ticket={ticket}"), None).await;
    assert_eq!(elsewhere.status(), StatusCode::FORBIDDEN, "another topic");
    let ticket_as_token = door.with_token(NOTIFICATIONS, &ticket).await;
    assert_eq!(ticket_as_token, StatusCode::UNAUTHORIZED);
    let token_as_ticket = door.get(&format!("{NOTIFICATIONS}?ticket={token}"), None).await;
    assert_eq!(token_as_ticket.status(), StatusCode::UNAUTHORIZED);
    let more = door.system.http().post(door.sse.url(&format!("/api/stream-tickets?ticket={ticket}")));
    let more = more.json(&json!({ "topic": "orders:7" })).send().await?;
    assert_eq!(more.status(), StatusCode::FORBIDDEN, "a ticket makes no tickets");

    let orders = door.ticket("orders:7", &token).await?;
    assert_eq!(door.get(&format!("/streams/orders:7?ticket={orders}"), None).await.status(), StatusCode::OK);
    let not_allowed = door.ticket("secrets", &token).await?;
    let refused = door.get(&format!("/streams/secrets?ticket={not_allowed}"), None).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN, "the claim did not allow it");
    assert_eq!(door.ask_for_ticket("not a topic", &token).await?.status(), StatusCode::BAD_REQUEST);
    Ok(())
}

#[tokio::test]
async fn a_ticket_that_has_expired_opens_nothing() -> TestResult {
    let door = Door::with(System::new().await.set("AFTERCOMMIT_JWT_TICKET_SECONDS", "0")).await;
    let ticket = door.ticket(&door.notifications(), &door.token(&[])).await?;
    // Its last second is the one in which it was made.
    let mut status = StatusCode::OK;
    crate::harness::eventually("the ticket is refused", async || {
        status = door.get(&format!("{NOTIFICATIONS}?ticket={ticket}"), None).await.status();
        (status != StatusCode::OK).then_some(())
    })
    .await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    Ok(())
}

#[tokio::test]
async fn a_stream_that_a_ticket_opened_ends_when_the_token_behind_it_does() -> TestResult {
    let door = Door::new().await;
    let token = door.system.token_for(door.user, Duration::from_secs(2));
    let ticket = door.ticket(&door.notifications(), &token).await?;
    let response = door.get(&format!("{NOTIFICATIONS}?ticket={ticket}"), None).await;
    let text = tokio::time::timeout(crate::harness::LIMIT, response.text()).await?;
    assert!(text?.ends_with("event: token_expired\ndata: {\"reason\":\"token_expired\"}\n\n"));
    Ok(())
}

#[tokio::test]
async fn neither_tickets_nor_tokens_are_logged() -> TestResult {
    let door = Door::with(System::new().await.set("AFTERCOMMIT_LOG_LEVEL", "trace")).await;
    let token = door.token(&[]);
    let ticket = door.ticket(&door.notifications(), &token).await?;
    assert_eq!(door.get(&format!("{NOTIFICATIONS}?ticket={ticket}"), None).await.status(), StatusCode::OK);
    let log = door.sse.log();
    assert!(log.contains("sse listens"), "{log}");
    for secret in [&token, &ticket] {
        assert!(!log.contains(secret.rsplit('.').next().ok_or("no signature")?), "{log}");
    }
    Ok(())
}

#[tokio::test]
async fn only_pages_of_configured_origins_may_read_streams_from_another_site() {
    let system =
        System::new().await.set("AFTERCOMMIT_SSE_CORS_ORIGINS", "https://a.example,https://b.example");
    let door = Door::with(system).await;
    let url = door.sse.url(NOTIFICATIONS);
    let ask = async |method: Method, origin: &str| {
        let request = door.system.http().request(method, &url).bearer_auth(door.token(&[]));
        let request = request.header("origin", origin).header("access-control-request-method", "GET");
        request.send().await.expect("an answer")
    };
    let allowed = |response: &Response| {
        let value = response.headers().get("access-control-allow-origin");
        value.map(|origin| origin.to_str().expect("text").to_owned())
    };
    for origin in ["https://a.example", "https://b.example"] {
        let preflight = ask(Method::OPTIONS, origin).await;
        assert_eq!(preflight.status(), StatusCode::NO_CONTENT);
        assert_eq!(allowed(&preflight).as_deref(), Some(origin));
        let response = ask(Method::GET, origin).await;
        assert_eq!(allowed(&response).as_deref(), Some(origin));
        assert_eq!(response.headers()["access-control-allow-credentials"], "true");
        assert_eq!(response.headers()["vary"], "origin");
    }
    for origin in ["https://evil.example", "http://a.example", "null"] {
        assert_eq!(allowed(&ask(Method::OPTIONS, origin).await), None);
        assert_eq!(allowed(&ask(Method::GET, origin).await), None);
    }
}
