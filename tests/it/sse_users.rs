//! Users whose ids are no UUIDs: whatever text an issuer puts into `sub`.

use reqwest::StatusCode;
use serde_json::{Value, json};
use std::time::Duration;

use aftercommit::auth::UserId;
use aftercommit::event::Topic;
use aftercommit::outbox;

use crate::harness::{Client, NOTIFICATIONS, System, TestResult, eventually, items_of, new_event, str_of};

const OPERATOR: &str = "an operator of the tests";
const HOUR: Duration = Duration::from_secs(3600);

fn user(id: &str) -> TestResult<UserId> {
    Ok(UserId::new(id)?)
}

#[tokio::test]
async fn any_text_is_a_user_of_streams_of_limits_and_of_the_operators_list() -> TestResult {
    let system = System::new().await.set("AFTERCOMMIT_SSE_MAX_CONNECTIONS_PER_USER", "1");
    let system = system.set("AFTERCOMMIT_OPERATOR_TOKEN", OPERATOR);
    let system = system.set("AFTERCOMMIT_LOG_LEVEL", "info,aftercommit::sse=debug");
    let (_relay, sse) = (system.start("relay").await, system.start("sse").await);
    let strange = format!("\u{202e}\"{}", "ü".repeat(253));
    let users = ["17", "auth0|64b1f", "ana@example.com", &strange];
    let mut clients = Vec::new();
    for id in users {
        let token = system.token_with(user(id)?, HOUR, &["orders:*"]);
        clients.push(Client::open(&sse.url("/streams/orders:7"), &token).await);
        let second = Client::begin(sse.url("/streams/orders:7"), &token, None);
        second.wait_for_ends(1).await;
        let refused =
            second.so_far().into_iter().find(|event| event.event == "refused").ok_or("no refusal")?;
        assert!(refused.data.contains("user_limit"), "each user has a limit of their own: {}", refused.data);
    }
    let event = new_event(&Topic::new("orders:7")?, "PAID", &1);
    outbox::append(&mut system.database.connect().await, &event).await?;
    for client in &clients {
        assert_eq!(client.wait_for_events(1).await[0].data, "1");
    }
    let request = system.http().get(sse.url("/admin/connections")).bearer_auth(OPERATOR);
    let told: Value = request.send().await?.json().await?;
    let mut listed: Vec<&str> =
        items_of(&told["slowest"]).iter().filter_map(|one| one["user"].as_str()).collect();
    listed.sort_unstable();
    let mut expected = users.to_vec();
    expected.sort_unstable();
    assert_eq!(listed, expected);
    eventually("the log names who was refused", async || sse.log().contains("auth0|64b1f").then_some(()))
        .await;
    sse.wait_for_log("\\\\u{202e}").await;
    assert!(!sse.log().contains('\u{202e}'), "what turns a terminal's text around is escaped");
    Ok(())
}

#[tokio::test]
async fn uploads_want_a_uuid_and_say_so_and_notifications_want_a_topic() -> TestResult {
    let system = System::new().await;
    let (api, sse) = (system.start("api").await, system.start("sse").await);
    for id in ["17", "auth0|64b1f", "ana@example.com"] {
        let token = system.token(user(id)?);
        let request = system.http().post(api.url("/api/upload/sessions")).bearer_auth(&token);
        let answer = request.json(&json!({ "totalPhotos": 1 })).send().await?;
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{id}");
        let problem: Value = answer.json().await?;
        assert!(str_of(&problem["detail"]).contains("a UUID"), "{problem}");
        let request = system.http().get(sse.url(NOTIFICATIONS)).bearer_auth(&token);
        let answer = request.send().await?;
        if id == "17" {
            assert_eq!(answer.status(), StatusCode::OK);
            continue;
        }
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{id}");
        let problem: Value = answer.json().await?;
        assert!(str_of(&problem["detail"]).contains("'sub'"), "{problem}");
    }
    Ok(())
}
