//! Without deliveries, no check is green.

use serde_json::Value;
use uuid::Uuid;

use crate::commands::{commit, json, stdout, unwrapped};
use crate::harness::{Client, System, TestResult, cli, eventually, items_of, str_of};

/// What doctor finds under `deliveries`, as (verdict, evidence and fix); its exit code fits its findings.
async fn deliveries(system: &System) -> Vec<(String, String)> {
    let output = cli(system.settings(), &["doctor", "--output", "json"]).await;
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    let is_wrong = findings.iter().any(|finding| finding["verdict"] == "wrong");
    assert_eq!(output.status.code(), Some(i32::from(is_wrong)), "{output:?}");
    let text = |value: &Value| str_of(value).to_owned();
    let found = findings.iter().filter(|finding| finding["check"] == "deliveries");
    let said = |finding: &Value| format!("{}; {}", str_of(&finding["evidence"]), str_of(&finding["fix"]));
    found.map(|finding| (text(&finding["verdict"]), said(finding))).collect()
}

async fn screen(system: &System) -> String {
    stdout(&cli(system.settings(), &["status"]).await)
}

#[tokio::test]
async fn events_that_no_relay_has_ever_looked_at_are_wrong_everywhere() {
    let system = System::new().await;
    assert_eq!(deliveries(&system).await, [], "an empty log waits for nobody");
    commit(&system, &system.redis.topic("waiting"), "A", 200).await;
    let found = deliveries(&system).await;
    let [(verdict, evidence)] = &found[..] else { panic!("{found:?}") };
    assert_eq!(verdict, "wrong");
    assert!(evidence.contains("200 events wait, the oldest for "), "{evidence}");
    assert!(evidence.contains("start one: `aftercommit relay`"), "{evidence}");
    let shown = screen(&system).await;
    assert!(shown.contains("no relay has run") && shown.contains("200 events wait"), "{shown}");
    let status = json(&system, &["status"]).await;
    assert_eq!(status["undelivered"]["events"], 200, "{status}");
    assert!(status["noRelay"].as_str().is_some_and(|says| says.contains("200 events wait")), "{status}");
}

#[tokio::test]
async fn a_relay_that_was_stopped_is_wrong_and_so_is_one_of_another_name() {
    let mut system = System::new().await;
    let topic = system.redis.topic("stopped");
    let relay = system.start("relay").await;
    commit(&system, &topic, "A", 1).await;
    eventually("it delivers", async || (deliveries(&system).await.first()?.0 == "ok").then_some(())).await;
    assert_eq!(relay.terminate().await, 0);
    let (verdict, evidence) = deliveries(&system).await.remove(0);
    assert_eq!(verdict, "wrong", "{evidence}");
    commit(&system, &topic, "A", 200).await;
    let (verdict, evidence) = deliveries(&system).await.remove(0);
    assert_eq!(verdict, "wrong");
    assert!(evidence.contains("200 events wait, the oldest for "), "{evidence}");
    assert!(evidence.contains("start one: `aftercommit relay`"), "{evidence}");
    let status = json(&system, &["status"]).await;
    assert_eq!(status["relays"][0]["verdict"], "noLeader", "{status}");

    // A configured relay that has never run, beside one that has.
    let other = format!("{}-other", system.redis.relay_name());
    system.set_again("AFTERCOMMIT_RELAY_NAME", &other);
    let found = deliveries(&system).await;
    let missing = found.iter().find(|(_, evidence)| evidence.contains(&other));
    let (verdict, evidence) = missing.unwrap_or_else(|| panic!("{found:?}"));
    assert!(verdict == "warning" && evidence.contains("201 events wait"), "{verdict} {evidence}");
}

#[tokio::test]
async fn an_sse_server_without_room_says_so_wherever_it_is_asked() -> TestResult {
    let mut system = System::new().await.set("AFTERCOMMIT_SSE_MAX_CONNECTIONS", "1");
    let sse = system.start("sse").await;
    let url = sse.url("/api/upload/sessions/notifications/stream");
    system.set_again("AFTERCOMMIT_SSE_LISTEN", &sse.address);
    let before = screen(&system).await;
    assert!(!before.contains("FULL"), "{before}");
    let _client = Client::open(&url, &system.token(Uuid::new_v4())).await;
    let ready = system.http().get(sse.url("/readyz")).send().await?;
    assert_eq!(ready.status().as_u16(), 200, "it serves those whom it has");
    let ready: Value = ready.json().await?;
    let checks = items_of(&ready["checks"]);
    let full = checks.iter().find(|check| check["name"] == "connections").ok_or("no check")?;
    assert_eq!((&full["ok"], &full["warning"]), (&true.into(), &true.into()), "{full}");
    let shown = unwrapped(&screen(&system).await);
    assert!(shown.contains("FULL, 1 of 1 stream: new clients are told to come back later"), "{shown}");
    let doctor = unwrapped(&stdout(&cli(system.settings(), &["doctor"]).await));
    let line = doctor.lines().find(|line| line.contains("port of sse")).ok_or("no line")?;
    assert!(line.starts_with("WARNING") && line.contains("FULL"), "{line}");
    Ok(())
}
