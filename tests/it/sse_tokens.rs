//! Tokens and tickets: what they allow, and how they are checked.

use std::time::Duration;

use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;

use crate::harness::{LIMIT, Process, System, TestResult, str_of};

const HOUR: Duration = Duration::from_secs(3600);
const SECRET: &str = "another secret of the tests, of 32 bytes or more";
const NOTIFICATIONS: &str = "/api/upload/sessions/notifications/stream";

/// An SSE server, and a user.
struct Door {
    system: System,
    sse: Process,
    user: Uuid,
}

impl Door {
    async fn with(system: System) -> Self {
        let sse = system.start("sse").await;
        Self { system, sse, user: Uuid::new_v4() }
    }

    async fn open_with(&self, path: &str, token: &str) -> TestResult<Response> {
        let request = self.system.http().get(self.sse.url(path)).bearer_auth(token);
        Ok(request.send().await?)
    }

    async fn open(&self, path: &str) -> TestResult<StatusCode> {
        Ok(self.system.http().get(self.sse.url(path)).send().await?.status())
    }

    async fn ask_for_ticket(&self, body: &Value) -> TestResult<Response> {
        let token = self.system.token_with(self.user, HOUR, &["orders:*"]);
        let request = self.system.http().post(self.sse.url("/api/stream-tickets")).bearer_auth(token);
        Ok(request.json(body).send().await?)
    }

    async fn ticket(&self, body: &Value) -> TestResult<String> {
        let response = self.ask_for_ticket(body).await?;
        assert_eq!(response.status(), StatusCode::CREATED);
        let body: Value = response.json().await?;
        Ok(str_of(&body["ticket"]).to_owned())
    }
}

/// A token with these claims, signed with the secret of [`with_secret`].
fn signed(claims: &Value) -> String {
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), claims, &key).expect("a token")
}

/// A system whose secret this file knows.
async fn with_secret() -> System {
    System::new().await.set("AFTERCOMMIT_JWT_SECRET", SECRET)
}

fn now() -> i64 {
    chrono::Utc::now().timestamp()
}

#[tokio::test]
async fn a_stream_lasts_as_long_as_its_token_is_taken_and_no_longer() -> TestResult {
    const LEEWAY: i64 = 60;
    let door = Door::with(with_secret().await.set("AFTERCOMMIT_JWT_LEEWAY_SECONDS", "60")).await;
    // Expired, and within its leeway for some seconds more.
    let end = now() + 5;
    let token = signed(&json!({ "sub": door.user, "exp": end - LEEWAY }));
    let response = door.open_with(NOTIFICATIONS, &token).await?;
    assert_eq!(response.status(), StatusCode::OK);
    let text = tokio::time::timeout(LIMIT, response.text()).await??;
    assert!(text.contains("event: token_expired"), "{text}");
    assert!(now() >= end, "the stream ended before its token");
    assert_eq!(door.open_with(NOTIFICATIONS, &token).await?.status(), StatusCode::UNAUTHORIZED);
    Ok(())
}

#[tokio::test]
async fn a_ticket_for_several_topics_opens_each_of_them_and_no_other() -> TestResult {
    let door = Door::with(System::new().await).await;
    let own = format!("user-notifications:{}", door.user);
    let ticket = door.ticket(&json!({ "topics": ["orders:1", "orders:2", own, "secrets"] })).await?;
    for path in ["/streams/orders:1", "/streams/orders:2", NOTIFICATIONS] {
        assert_eq!(door.open(&format!("{path}?ticket={ticket}")).await?, StatusCode::OK, "{path}");
    }
    let without_own = door.ticket(&json!({ "topics": ["orders:1", "orders:2"] })).await?;
    let refused = door.open(&format!("{NOTIFICATIONS}?ticket={without_own}")).await?;
    assert_eq!(refused, StatusCode::FORBIDDEN, "the user's own, and not what the ticket is for");
    for path in ["/streams/orders:3", "/streams/secrets"] {
        assert_eq!(door.open(&format!("{path}?ticket={ticket}")).await?, StatusCode::FORBIDDEN, "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn a_ticket_is_for_one_to_thirty_two_topics() -> TestResult {
    let door = Door::with(System::new().await).await;
    let many = |count: usize| (0..count).map(|n| format!("orders:{n}")).collect::<Vec<_>>();
    let accepted = door.ask_for_ticket(&json!({ "topics": many(32) })).await?;
    assert_eq!(accepted.status(), StatusCode::CREATED);
    let bodies = [
        json!({ "topics": many(33) }),
        json!({ "topics": [] }),
        json!({ "topics": ["orders:1", "not a topic"] }),
        json!({ "topic": "orders:1", "topics": ["orders:2"] }),
        json!({ "topic": "orders:1", "unknown": 1 }),
        json!({}),
    ];
    for body in bodies {
        assert_eq!(door.ask_for_ticket(&body).await?.status(), StatusCode::BAD_REQUEST, "{body}");
    }
    let huge = door.ask_for_ticket(&json!({ "topics": many(10_000) })).await?;
    assert_eq!(huge.status(), StatusCode::PAYLOAD_TOO_LARGE);
    Ok(())
}

#[tokio::test]
async fn a_token_of_another_issuer_for_another_audience_or_another_time_is_refused() -> TestResult {
    let system = with_secret().await.set("AFTERCOMMIT_JWT_LEEWAY_SECONDS", "100");
    let system = system.set("AFTERCOMMIT_JWT_ISSUER", "us").set("AFTERCOMMIT_JWT_AUDIENCE", "streams");
    let door = Door::with(system).await;
    let with = |changes: &Value| {
        let mut claims =
            json!({ "sub": door.user, "exp": now() + 1000, "iss": "us", "aud": ["other", "streams"] });
        for (name, value) in changes.as_object().expect("claims") {
            claims[name] = value.clone();
        }
        signed(&claims)
    };
    let taken = [
        json!({}),
        json!({ "aud": "streams" }),
        json!({ "nbf": now() + 50 }),
        json!({ "exp": now() - 50 }),
        json!({ "exp": 4_000_000_000.5 }),
    ];
    for changes in taken {
        assert_eq!(
            door.open_with(NOTIFICATIONS, &with(&changes)).await?.status(),
            StatusCode::OK,
            "{changes}"
        );
    }
    let refused = [
        (json!({ "iss": "them" }), "its issuer is another one"),
        (json!({ "iss": null }), "a required claim is missing"),
        (json!({ "aud": "billing" }), "its audience is another one"),
        (json!({ "nbf": now() + 500 }), "it is not valid yet"),
        (json!({ "exp": now() - 500 }), "it has expired"),
        (json!({ "exp": "tomorrow" }), "'exp', in seconds since 1970"),
        (json!({ "sub": 17 }), "'sub', the user's id"),
        (json!({ "sub": "x".repeat(256) }), "the claim 'sub' (the user's id) must have 1 to 255 characters"),
        (json!({ "nbf": "now" }), "the claim 'nbf'"),
        (json!({ "subscribe": "orders:*" }), "the claim 'subscribe' must be a list"),
    ];
    for (changes, told) in refused {
        let response = door.open_with(NOTIFICATIONS, &with(&changes)).await?;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{changes}");
        let text = response.text().await?;
        assert!(text.contains(told), "{changes}: {text}");
    }
    Ok(())
}

/// Sends the head of a POST, and of its body nothing, or a byte now and then for ever; what the server says
/// until it ends the connection.
async fn answer_without_body(
    process: &Process,
    path: &str,
    token: &str,
    is_dawdling: bool,
) -> TestResult<String> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\ncontent-length: 1000\r\n\r\n"
    );
    let connection = tokio::net::TcpStream::connect(&process.address).await?;
    let (mut from, mut to) = connection.into_split();
    to.write_all(head.as_bytes()).await?;
    let dawdling = async {
        while is_dawdling && to.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let reading = async {
        let (mut answer, mut bytes) = (Vec::new(), [0; 1024]);
        // A reset is an end too.
        while let Ok(read @ 1..) = from.read(&mut bytes).await {
            answer.extend_from_slice(&bytes[..read]);
        }
        String::from_utf8_lossy(&answer).into_owned()
    };
    let both = async { tokio::join!(reading, dawdling).0 };
    Ok(tokio::time::timeout(LIMIT, both).await?)
}

#[tokio::test]
async fn a_request_whose_body_does_not_come_is_given_up_and_its_connection_ended() -> TestResult {
    let system = System::new().await;
    let token = system.token(Uuid::new_v4());
    for (role, path) in [("sse", "/api/stream-tickets"), ("api", "/api/upload/sessions")] {
        let process = system.start(role).await;
        let silent = answer_without_body(&process, path, &token, false);
        let dawdling = answer_without_body(&process, path, &token, true);
        for answer in <[String; 2]>::from(tokio::try_join!(silent, dawdling)?) {
            assert!(
                answer.starts_with("HTTP/1.1 503 ") && answer.contains("took too long"),
                "{role}: {answer}"
            );
        }
    }
    Ok(())
}
