//! Rate limit of the operators' token: wrong guesses are slowed down and logged at every endpoint, and lock
//! no other client out.

use reqwest::StatusCode;

use crate::console::TOKEN;
use crate::harness::{Process, System, eventually, metric_of};

/// A door: its process and its path.
async fn door(system: &System, role: &str) -> (Process, &'static str) {
    let path = if role == "sse" { "/admin/connections" } else { "/console/session" };
    (system.start(role).await, path)
}

async fn system() -> System {
    System::new().await.set("AFTERCOMMIT_OPERATOR_TOKEN", TOKEN)
}

/// The answer to a client of this address, given in the header of a proxy.
async fn tried(system: &System, url: &str, token: &str, forwarded_for: Option<&str>) -> StatusCode {
    let mut request = system.http().get(url).bearer_auth(token);
    if let Some(address) = forwarded_for {
        request = request.header("x-forwarded-for", address);
    }
    request.send().await.expect("an answer").status()
}

#[tokio::test]
async fn at_every_door_guesses_are_counted_logged_and_soon_no_longer_looked_at() {
    let system = system().await;
    for role in ["sse", "relay"] {
        let (process, path) = door(&system, role).await;
        let url = process.url(path);
        let begun = std::time::Instant::now();
        let mut wrong = 0;
        for n in 0..200 {
            match tried(&system, &url, &format!("a guess, number {n}"), None).await {
                StatusCode::UNAUTHORIZED => wrong += 1,
                other => assert_eq!(other, StatusCode::TOO_MANY_REQUESTS, "{role}"),
            }
        }
        let allowed = 6 + begun.elapsed().as_secs();
        assert!(wrong <= allowed, "{role}: {wrong} guesses were looked at, and {allowed} may be");
        process.wait_for_log("a wrong operators' token was sent").await;
        for secret in [TOKEN, "a guess"] {
            assert!(!process.log().contains(secret), "{role}: no token is logged");
        }
        let throttled =
            metric_of(&process, "aftercommit_http_operator_refused_total{reason=\"throttled\"}").await;
        assert!(throttled >= 200 - allowed, "{role}: {throttled}");
        eventually("the right token is taken soon after", async || {
            (tried(&system, &url, TOKEN, None).await == 200).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn an_old_token_that_a_script_sends_again_and_again_keeps_no_operator_out() {
    let system = system().await;
    let (sse, path) = door(&system, "sse").await;
    let mut answers = Vec::new();
    for _ in 0..50 {
        answers.push(tried(&system, &sse.url(path), "the token of last year", None).await);
        assert_eq!(tried(&system, &sse.url(path), TOKEN, None).await, StatusCode::OK);
    }
    assert_eq!(answers[0], StatusCode::UNAUTHORIZED);
    assert!(answers.contains(&StatusCode::TOO_MANY_REQUESTS), "the script is told to wait");
}

#[tokio::test]
async fn behind_a_trusted_proxy_each_client_counts_and_nobody_elses_word_is_believed() {
    let trusting = system().await.set("AFTERCOMMIT_HTTP_TRUSTED_PROXIES", "127.0.0.0/8, ::1");
    let (sse, path) = door(&trusting, "sse").await;
    let url = sse.url(path);
    let mut guesses = 0..;
    eventually("one client has to wait", async || {
        let guess = format!("a guess, number {}", guesses.next().expect("a number"));
        let status = tried(&trusting, &url, &guess, Some("203.0.113.1")).await;
        (status == StatusCode::TOO_MANY_REQUESTS).then_some(())
    })
    .await;
    assert_eq!(
        tried(&trusting, &url, TOKEN, Some("203.0.113.2")).await,
        StatusCode::OK,
        "another one has not"
    );
    sse.wait_for_log("203.0.113.1").await;

    let (wary, mut looked_at) = (system().await, 0);
    let (sse, path) = door(&wary, "sse").await;
    for n in 0..100 {
        let address = format!("198.51.100.{n}");
        let status = tried(&wary, &sse.url(path), &format!("a guess, number {n}"), Some(&address)).await;
        looked_at += usize::from(status == StatusCode::UNAUTHORIZED);
    }
    assert!(looked_at < 50, "whoever makes up addresses is one client: {looked_at}");
}

#[tokio::test]
async fn a_list_of_proxies_that_is_none_is_refused_at_the_start() {
    let system = system().await.set("AFTERCOMMIT_HTTP_TRUSTED_PROXIES", "proxy.example");
    let output = crate::harness::cli(system.settings(), &["sse"]).await;
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("trusted_proxies") && told.contains("proxy.example"), "{told}");
}
