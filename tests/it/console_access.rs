//! Who may sign in to the operator's page, and that other sites in the same browser can do nothing.

use reqwest::StatusCode;
use serde_json::json;

use crate::console::{TOKEN, audit, entry, signed_in, system};
use crate::harness::{Browser, LIMIT, Process, System, TestResult, eventually, http_builder};

/// Signs in without a browser; returns the cookie.
async fn cookie(relay: &Process) -> String {
    let client = http_builder().redirect(reqwest::redirect::Policy::none()).build();
    let answer = client
        .expect("a client")
        .post(relay.url("/console/sign-in"))
        .header("origin", relay.url(""))
        .header("content-type", "application/x-www-form-urlencoded")
        .body(format!("who=Ana&token={}", TOKEN.replace(' ', "+")))
        .send()
        .await
        .expect("an answer");
    assert_eq!(answer.status(), StatusCode::SEE_OTHER);
    let set = answer.headers()["set-cookie"].to_str().expect("a text").to_owned();
    assert!(set.contains("; HttpOnly; SameSite=Strict") && set.contains("Path=/console;"), "{set}");
    set.split(';').next().expect("a cookie").to_owned()
}

#[tokio::test]
async fn nothing_is_shown_or_done_without_the_token_and_no_other_origin_can_make_a_browser_do_it()
-> TestResult {
    let (system, relay) = system().await;
    let pause = json!({ "relay": system.redis.relay_name(), "reason": "a test" });
    let http = system.http();
    for path in ["/console/events", "/console/session"] {
        assert_eq!(http.get(relay.url(path)).send().await?.status(), 401, "{path}");
    }
    let asked = |headers: Vec<(&'static str, String)>| {
        let request = http.post(relay.url("/console/pause")).json(&pause);
        let request = headers.into_iter().fold(request, |request, (name, value)| request.header(name, value));
        async move { request.send().await.expect("an answer").status().as_u16() }
    };
    let sign_in = http.post(relay.url("/console/sign-in")).header("origin", "http://127.0.0.1:1");
    let sign_in = sign_in.header("content-type", "application/x-www-form-urlencoded");
    let sign_in = sign_in.body(format!("who=Eve&token={}", TOKEN.replace(' ', "+"))).send().await;
    assert_eq!(sign_in?.status(), 403, "nobody is signed in under another's name");
    let cookie = cookie(&relay).await;
    let cookie = || ("cookie", cookie.clone());
    let elsewhere = || ("origin", "http://127.0.0.1:1".to_owned());
    assert_eq!(asked(vec![]).await, 401);
    assert_eq!(asked(vec![("authorization", "Bearer a wrong one".to_owned())]).await, 401);
    assert_eq!(asked(vec![cookie()]).await, 403, "no browser leaves out the origin");
    assert_eq!(asked(vec![cookie(), elsewhere()]).await, 403);
    let site = ("sec-fetch-site", "same-site".to_owned());
    assert_eq!(
        asked(vec![cookie(), ("origin", relay.url("")), site]).await,
        403,
        "another port of this host"
    );
    assert_eq!(audit(&system).await, []);
    assert_eq!(asked(vec![cookie(), ("origin", relay.url(""))]).await, 200);
    assert_eq!(audit(&system).await, [entry("pause", "a test", 0)]);

    let plain =
        http.post(relay.url("/console/resume")).header("cookie", cookie().1).header("origin", relay.url(""));
    let plain = plain.body(pause.to_string()).send().await?;
    assert_eq!(plain.status(), 415, "a form of another page cannot send JSON");
    let script = http.post(relay.url("/console/resume")).bearer_auth(TOKEN).json(&pause);
    assert_eq!(script.send().await?.status(), 200, "scripts send the token");
    let silent = json!({ "relay": system.redis.relay_name(), "reason": " " });
    let silent = http.post(relay.url("/console/pause")).bearer_auth(TOKEN).json(&silent).send().await;
    assert_eq!(silent?.status(), 400, "nothing is done without a reason");
    let answer = http.get(relay.url("/console")).send().await?;
    let policy = answer.headers()["content-security-policy"].to_str()?.to_owned();
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
    for path in ["/healthz", "/metrics"] {
        assert_eq!(http.get(relay.url(path)).send().await?.status(), 200, "{path} is open");
    }
    Ok(())
}

#[tokio::test]
async fn a_page_on_another_port_cannot_use_the_cookie_that_its_browser_sends_along() {
    let (_system, relay) = system().await;
    let (_other, elsewhere) = system_without_token().await;
    let browser = signed_in(&relay).await;
    // The same host, so that `SameSite` lets the cookie pass; and nothing but an origin is asked for in a
    // sign-out.
    let sign_out = "
        const sent = { method: 'POST', credentials: 'include', mode: 'no-cors' };
        return fetch(arguments[0], sent).then((answer) => answer.status, (error) => String(error))";
    let url = relay.url("/console/sign-out");
    browser.goes_to(&elsewhere.url("/healthz")).await;
    let answer = browser.runs(sign_out, &[&url]).await;
    assert_eq!(answer, "TypeError: Failed to fetch", "it is refused, and not even that may be read");
    browser.goes_to(&relay.url("/console")).await;
    browser.wait_for_text("#link", "Live").await;
    assert_eq!(browser.runs(sign_out, &[&url]).await, 204, "the page itself may");
    browser.goes_to(&relay.url("/console")).await;
    browser.wait_for_text("h1", "Sign in").await;
}

#[tokio::test]
async fn a_link_on_another_site_leads_an_operator_to_the_page_and_not_to_the_sign_in() -> TestResult {
    let (_system, relay) = system().await;
    let (_other, elsewhere) = system_without_token().await;
    let browser = signed_in(&relay).await;
    // To a browser another name of this machine is another site.
    let port = elsewhere.address.rsplit_once(':').ok_or("no port")?.1;
    browser.goes_to(&format!("http://localhost:{port}/healthz")).await;
    let origin = browser.runs("return location.origin", &[]).await;
    assert_ne!(origin, relay.url("").as_str());
    browser.runs("location.href = arguments[0]", &[&relay.url("/console")]).await;
    browser.wait_for_text("#link", "Live").await;
    Ok(())
}

async fn system_without_token() -> (System, Process) {
    let system = System::new().await;
    let relay = system.start("relay").await;
    (system, relay)
}

#[tokio::test]
async fn without_a_token_the_page_says_how_to_set_one_and_shows_nothing() -> TestResult {
    let (system, relay) = system_without_token().await;
    let browser = Browser::start().await;
    browser.goes_to(&relay.url("/console")).await;
    browser.wait_for_text("main", "AFTERCOMMIT_OPERATOR_TOKEN").await;
    for token in ["", "anything at all"] {
        let request = system.http().get(relay.url("/console/events")).bearer_auth(token);
        assert_eq!(request.send().await?.status(), 403);
    }
    Ok(())
}

#[tokio::test]
async fn a_wrong_token_is_refused_and_guessing_is_slowed_down() -> TestResult {
    let (system, relay) = system().await;
    let browser = Browser::start().await;
    browser.goes_to(&relay.url("/console")).await;
    browser.write("#who", "Eve").await;
    browser.write("#token", "a wrong one, long enough").await;
    browser.click("button.primary").await;
    browser.wait_for_text(".error-text", "not the operators’ token").await;
    let guess = async |token: &str| {
        let request = system.http().get(relay.url("/console/session")).bearer_auth(token);
        request.send().await.expect("an answer")
    };
    let mut guesses = 0..;
    let refused = eventually("guesses are no longer looked at", async || {
        let answer = guess(&format!("a wrong one, number {}", guesses.next().expect("a number"))).await;
        (answer.status() == StatusCode::TOO_MANY_REQUESTS).then_some(answer)
    })
    .await;
    assert!(refused.headers().contains_key("retry-after"));
    relay.wait_for_log("a wrong operators' token was sent").await;
    // Wrong guesses do not lock other people out.
    let elsewhere = http_builder().local_address(std::net::IpAddr::from([127, 0, 0, 2])).build();
    let elsewhere = elsewhere?.get(relay.url("/console/session")).bearer_auth(TOKEN);
    assert_eq!(elsewhere.send().await?.status(), 200);
    assert_eq!(system.http().get(relay.url("/healthz")).send().await?.status(), 200);
    Ok(())
}

#[tokio::test]
async fn a_signed_out_page_asks_to_sign_in_and_its_stream_has_ended() -> TestResult {
    let (system, relay) = system().await;
    let browser = signed_in(&relay).await;
    let cookie = cookie(&relay).await;
    let request = system.http().get(relay.url("/console/events")).header("cookie", &cookie);
    let mut stream = request.send().await?;
    assert!(stream.chunk().await?.is_some());
    let out = system.http().post(relay.url("/console/sign-out")).header("cookie", &cookie);
    let out = out.header("origin", relay.url("")).send().await?;
    assert_eq!(out.status(), StatusCode::NO_CONTENT);
    let ended = async { while stream.chunk().await.expect("an orderly end").is_some() {} };
    tokio::time::timeout(LIMIT, ended).await?;
    browser.click("#sign-out").await;
    browser.wait_for_text("h1", "Sign in").await;
    assert_eq!(browser.console_errors().await, [""; 0]);
    Ok(())
}

#[tokio::test]
async fn an_open_page_does_not_hold_up_the_end_of_the_process() -> TestResult {
    let (system, relay) = system().await;
    let request = system.http().get(relay.url("/console/events")).bearer_auth(TOKEN);
    let mut stream = request.send().await?;
    assert!(stream.chunk().await?.is_some());
    assert_eq!(relay.terminate().await, 0);
    while stream.chunk().await?.is_some() {}
    Ok(())
}
