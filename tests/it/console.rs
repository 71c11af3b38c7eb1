//! The operator's page in a real browser: what a person on call sees there, and what becomes of what they do.

use redis::AsyncCommands;
use reqwest::StatusCode;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use aftercommit::event::Topic;
use aftercommit::redis::keys;

use crate::commands::{commit, json as told};
use crate::harness::{Browser, Process, System, eventually, metric_of, redis_settings_of, start_redis};

const TOKEN: &str = "the operators' token of the tests";

/// A system with a relay that has an operators' token.
async fn system() -> (System, Process) {
    let system = System::new().await.set("AFTERCOMMIT_OPERATOR_TOKEN", TOKEN);
    let relay = system.start("relay").await;
    (system, relay)
}

/// A browser in which Ana has signed in.
async fn signed_in(relay: &Process) -> Browser {
    let browser = Browser::start().await;
    browser.open(&relay.url("/")).await;
    browser.write("#who", "Ana").await;
    browser.write("#token", TOKEN).await;
    browser.click("button.primary").await;
    browser.reads("#link", "Live").await;
    // Until it has all that it shows, things move about.
    browser.reads("#audit", "No operator").await;
    browser
}

/// Agrees to what the page asks, with a reason.
async fn agrees(browser: &Browser, reason: &str) {
    browser.write("#ask-reason", reason).await;
    browser.click("#ask-yes").await;
    eventually("the question is closed", async || {
        let open = browser.run("return document.getElementById('ask').open", &[]).await;
        (open == false).then_some(())
    })
    .await;
}

/// Puts something in the way of a topic's history, so that Redis refuses its events.
async fn block(system: &System, topic: &Topic) {
    let _: () = system.redis.connect().await.set(keys::history(topic), "in the way").await.expect("a string");
}

async fn unblock(system: &System, topic: &Topic) {
    let _: () = system.redis.connect().await.del(keys::history(topic)).await.expect("a deletion");
}

/// The audit, newest first, as (action, reason, events); everything in it was done by Ana.
async fn audit(system: &System) -> Vec<(String, String, i64)> {
    let entries = told(system, &["audit"]).await;
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let entries = entries.as_array().expect("a list").iter();
    entries
        .map(|entry| {
            assert!(text(&entry["who"]).starts_with("Ana as "), "{entry}");
            (text(&entry["action"]), text(&entry["reason"]), entry["events"].as_i64().expect("a number"))
        })
        .collect()
}

fn entry(action: &str, reason: &str, events: i64) -> (String, String, i64) {
    (action.to_owned(), reason.to_owned(), events)
}

async fn delivered(system: &System) -> usize {
    told(system, &["events", "list", "--state", "delivered", "--limit", "100000"])
        .await
        .as_array()
        .expect("a list")
        .len()
}

/// The highest point of a chart's line, from 0 (bottom) to 100.
async fn peak(browser: &Browser, chart: &str) -> f64 {
    let script = "
        const line = document.querySelector(`#${arguments[0]} .line`).getAttribute('d') ?? '';
        const heights = [...line.matchAll(/[ML][\\d.]+ ([\\d.]+)/g)].map((point) => 100 - Number(point[1]));
        return Math.max(0, ...heights)";
    browser.run(script, &[chart]).await.as_f64().expect("a number")
}

#[tokio::test]
async fn the_page_shows_deliveries_as_they_happen_and_complains_of_nothing() {
    let (system, relay) = system().await;
    let browser = signed_in(&relay).await;
    assert_eq!(browser.text("#operator").await.as_deref(), Some("Ana"));
    browser.reads("#verdict", "is delivering").await;
    browser.reads("#verdict", "Nothing waits").await;
    browser.reads("#relays", "1-0").await;
    let redis = browser.reads("#neighbours", "Redis").await;
    assert!(redis.contains("answers"), "{redis}");

    let topic = system.redis.topic("live");
    eventually("the charts of rate and latency rise", async || {
        commit(&system, &topic, "A", 20).await;
        (peak(&browser, "chart-rate").await > 10.0 && peak(&browser, "chart-latency").await > 2.0)
            .then_some(())
    })
    .await;
    let label = browser.run("return document.querySelector('#chart-rate svg').ariaLabel", &[]).await;
    assert!(label.as_str().expect("a label").starts_with("Rate: "), "{label}");

    let committed = told(&system, &["events", "list", "--limit", "100000"]).await;
    let last = format!("1-{}", committed.as_array().expect("a list").len());
    browser.reads("#relays", &last).await;
    assert_eq!(browser.complaints().await, [""; 0]);
}

#[tokio::test]
async fn a_page_opened_just_now_shows_what_was_before() {
    let (system, relay) = system().await;
    eventually("something was delivered in a second that the relay has sampled", async || {
        commit(&system, &system.redis.topic("before"), "A", 20).await;
        (metric_of(&relay, "aftercommit_relay_published_total").await >= 200).then_some(())
    })
    .await;
    let browser = signed_in(&relay).await;
    eventually("the chart shows it", async || (peak(&browser, "chart-rate").await > 10.0).then_some(()))
        .await;
}

#[tokio::test]
async fn a_pause_is_asked_for_with_a_reason_shown_at_once_and_ended_from_the_page() {
    let (system, relay) = system().await;
    let browser = signed_in(&relay).await;
    browser.reads("#verdict-button", "Pause").await;
    browser.click("#verdict-button").await;
    // Without a reason nothing happens.
    browser.click("#ask-yes").await;
    agrees(&browser, "a move").await;
    browser.reads("#verdict", "is paused").await;
    browser.reads("#verdict", "Ana paused it: a move").await;
    // The relay looks for a pause about once a second.
    let mut committed = 0;
    eventually("the chart of the backlog rises", async || {
        committed += commit(&system, &system.redis.topic("paused"), "A", 1).await.len();
        (peak(&browser, "chart-backlog").await > 20.0).then_some(())
    })
    .await;
    browser.reads("#relays", "the oldest for").await;
    assert!(delivered(&system).await < committed);

    browser.click("#verdict-button").await;
    agrees(&browser, "moved").await;
    browser.reads("#verdict", "is delivering").await;
    eventually("delivered", async || (delivered(&system).await == committed).then_some(())).await;
    assert_eq!(audit(&system).await, [entry("resume", "moved", 0), entry("pause", "a move", 0)]);
    let shown = browser.reads("#audit", "a move").await;
    assert!(shown.contains("resume") && shown.contains("Ana"), "{shown}");
    assert_eq!(browser.complaints().await, [""; 0]);
}

#[tokio::test]
async fn a_parked_topic_is_released_and_another_one_discarded() {
    let (system, relay) = system().await;
    let browser = signed_in(&relay).await;
    browser.reads("#parked", "Nothing is parked").await;
    let [kept, given_up] = ["kept", "given-up"].map(|name| system.redis.topic(name));
    for topic in [&kept, &given_up] {
        block(&system, topic).await;
        commit(&system, topic, "A", 2).await;
    }
    browser.reads("#verdict", "2 topics are waiting").await;
    browser.reads("#parked", kept.as_str()).await;
    browser.reads("#parked", "WRONGTYPE").await;
    for topic in [&kept, &given_up] {
        unblock(&system, topic).await;
    }

    browser.click(&format!("[data-topic='{kept}'] button:nth-child(1)")).await;
    let asked = browser.reads("#ask", "Release 2 events of").await;
    assert!(asked.contains(kept.as_str()), "{asked}");
    agrees(&browser, "mended").await;
    browser.reads("#told", "publishes 2 parked events").await;
    eventually("released", async || (delivered(&system).await == 2).then_some(())).await;
    browser.click(&format!("[data-topic='{given_up}'] button:nth-child(2)")).await;
    browser.reads("#ask", "This cannot be undone").await;
    agrees(&browser, "a test left it there").await;
    browser.reads("#parked", "Nothing is parked").await;
    browser.reads("#verdict", "is delivering").await;

    let lengths: (u64, u64) = {
        let mut redis = system.redis.connect().await;
        let length = keys::history;
        (
            redis.xlen(length(&kept)).await.expect("kept"),
            redis.xlen(length(&given_up)).await.expect("given up"),
        )
    };
    assert_eq!(lengths, (2, 0));
    let expected = [entry("discard", "a test left it there", 2), entry("release", "mended", 2)];
    assert_eq!(audit(&system).await, expected);
    assert_eq!(browser.complaints().await, [""; 0]);
}

#[tokio::test]
async fn what_fails_is_said_where_it_was_asked_for() {
    let (system, relay) = system().await;
    let browser = signed_in(&relay).await;
    let topic = system.redis.topic("gone");
    block(&system, &topic).await;
    commit(&system, &topic, "A", 1).await;
    browser.click(&format!("[data-topic='{topic}'] button:nth-child(2)")).await;
    let mut connection = system.database.connect().await;
    sqlx::query("delete from outbox.parked").execute(&mut connection).await.expect("somebody was faster");
    browser.write("#ask-reason", "a test").await;
    browser.click("#ask-yes").await;
    browser.reads("#ask-complaint", "Nothing of topic").await;
    browser.click("#ask-no").await;
    browser.reads("#parked", "Nothing is parked").await;
    assert_eq!(audit(&system).await, []);
}

#[tokio::test]
async fn the_page_is_used_without_a_mouse() {
    let (system, relay) = system().await;
    let browser = signed_in(&relay).await;
    browser.reads("#verdict-button", "Pause").await;
    // From the beginning of the page: the sign-out, then the pause.
    browser.press("Tab").await;
    browser.press("Tab").await;
    let focused = browser.run("return document.activeElement.ariaLabel", &[]).await;
    assert_eq!(focused, format!("Pause relay {}", system.redis.relay_name()));
    browser.press("Enter").await;
    browser.reads("#ask-title", "Pause relay").await;
    browser.write("#ask-reason", "by hand").await;
    browser.press("Enter").await;
    browser.reads("#verdict", "Ana paused it: by hand").await;
    let focused = browser.run("return document.activeElement.id", &[]).await;
    assert_eq!(focused, "verdict-button", "the focus comes back");
}

#[tokio::test]
async fn a_replay_is_looked_at_first_then_confirmed_then_followed_to_its_end() {
    let (system, relay) = system().await;
    let topic = system.redis.topic("again");
    commit(&system, &topic, "A", 7).await;
    commit(&system, &topic, "B", 5).await;
    commit(&system, &system.redis.topic("other"), "A", 3).await;
    eventually("delivered", async || (delivered(&system).await == 15).then_some(())).await;
    let browser = signed_in(&relay).await;
    browser.click("#replay-look").await;
    browser.reads("#replay-found", "Say which events").await;
    browser.write("#replay-topic", topic.as_str()).await;
    browser.write("#replay-type", "A").await;
    browser.click("#replay-look").await;
    let found = browser.reads("#replay-found", "7 events would be delivered once more").await;
    assert_eq!(found.matches(topic.as_str()).count(), 5, "a sample: {found}");
    assert_eq!((delivered(&system).await, audit(&system).await.len()), (15, 0), "a look changes nothing");

    // Another selection has to be looked at anew.
    browser.write("#replay-type", "B").await;
    let is_off = browser.run("return document.getElementById('replay-run').disabled", &[]).await;
    assert_eq!(is_off, true);
    browser.run("document.getElementById('replay-type').value = 'B'", &[]).await;
    browser.click("#replay-look").await;
    browser.reads("#replay-run", "Replay 5 events").await;
    browser.click("#replay-run").await;
    agrees(&browser, "a client's bug").await;
    browser.reads("#replays", "done: 5 events").await;
    eventually("replayed", async || (delivered(&system).await == 20).then_some(())).await;
    assert_eq!(audit(&system).await, [entry("replay", "a client's bug", 5)]);
    let length: u64 = system.redis.connect().await.xlen(keys::history(&topic)).await.expect("a length");
    assert_eq!(length, 17);
    assert_eq!(browser.complaints().await, [""; 0]);
}

#[tokio::test]
async fn a_page_that_loses_the_relay_says_so_and_asks_to_sign_in_at_the_next_one() {
    let (mut system, relay) = system().await;
    let browser = signed_in(&relay).await;
    let address = relay.address.clone();
    relay.kill().await;
    browser.reads("#link", "Connection lost").await;
    browser.reads("#lost", "this is how it was").await;
    system.set_again("AFTERCOMMIT_RELAY_LISTEN", &address);
    let _relay = system.start("relay").await;
    browser.reads("h1", "Sign in").await;
}

/// Signs in without a browser; returns the cookie.
async fn cookie(relay: &Process) -> String {
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build();
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
async fn nothing_is_shown_or_done_without_the_token_and_no_other_origin_can_make_a_browser_do_it() {
    let (system, relay) = system().await;
    let pause = json!({ "relay": system.redis.relay_name(), "reason": "a test" });
    let http = system.http();
    for path in ["/console/events", "/console/session"] {
        assert_eq!(http.get(relay.url(path)).send().await.expect("an answer").status(), 401, "{path}");
    }
    let asked = |headers: Vec<(&'static str, String)>| {
        let request = http.post(relay.url("/console/pause")).json(&pause);
        let request = headers.into_iter().fold(request, |request, (name, value)| request.header(name, value));
        async move { request.send().await.expect("an answer").status().as_u16() }
    };
    let sign_in = http.post(relay.url("/console/sign-in")).header("origin", "http://127.0.0.1:1");
    let sign_in = sign_in.header("content-type", "application/x-www-form-urlencoded");
    let sign_in = sign_in.body(format!("who=Eve&token={}", TOKEN.replace(' ', "+"))).send().await;
    assert_eq!(sign_in.expect("an answer").status(), 403, "nobody is signed in under another's name");
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
    let plain = plain.body(pause.to_string()).send().await.expect("an answer");
    assert_eq!(plain.status(), 415, "a form of another page cannot send JSON");
    let script = http.post(relay.url("/console/resume")).bearer_auth(TOKEN).json(&pause);
    assert_eq!(script.send().await.expect("an answer").status(), 200, "scripts send the token");
    let answer = http.get(relay.url("/console")).send().await.expect("an answer");
    let policy = answer.headers()["content-security-policy"].to_str().expect("a text").to_owned();
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
    for path in ["/healthz", "/metrics"] {
        assert_eq!(
            http.get(relay.url(path)).send().await.expect("an answer").status(),
            200,
            "{path} is open"
        );
    }
}

#[tokio::test]
async fn a_page_on_another_port_cannot_use_the_cookie_that_its_browser_sends_along() {
    let (_system, relay) = system().await;
    let (_other, elsewhere) = system_without_token().await;
    let browser = signed_in(&relay).await;
    // The same host, so that `SameSite` lets the cookie pass; and nothing but an origin is asked for in a sign-out.
    let sign_out = "
        const sent = { method: 'POST', credentials: 'include', mode: 'no-cors' };
        return fetch(arguments[0], sent).then((answer) => answer.status, (error) => String(error))";
    let url = relay.url("/console/sign-out");
    browser.open(&elsewhere.url("/healthz")).await;
    let answer = browser.run(sign_out, &[&url]).await;
    assert_eq!(answer, "TypeError: Failed to fetch", "it is refused, and not even that may be read");
    browser.open(&relay.url("/console")).await;
    browser.reads("#link", "Live").await;
    assert_eq!(browser.run(sign_out, &[&url]).await, 204, "the page itself may");
    browser.open(&relay.url("/console")).await;
    browser.reads("h1", "Sign in").await;
}

#[tokio::test]
async fn a_link_on_another_site_leads_an_operator_to_the_page_and_not_to_the_sign_in() {
    let (_system, relay) = system().await;
    let (_other, elsewhere) = system_without_token().await;
    let browser = signed_in(&relay).await;
    // To a browser another name of this machine is another site.
    let port = elsewhere.address.rsplit_once(':').expect("a port").1;
    browser.open(&format!("http://localhost:{port}/healthz")).await;
    let origin = browser.run("return location.origin", &[]).await;
    assert_ne!(origin, relay.url("").as_str());
    browser.run("location.href = arguments[0]", &[&relay.url("/console")]).await;
    browser.reads("#link", "Live").await;
}

async fn system_without_token() -> (System, Process) {
    let system = System::new().await;
    let relay = system.start("relay").await;
    (system, relay)
}

#[tokio::test]
async fn without_a_token_the_page_says_how_to_set_one_and_shows_nothing() {
    let (system, relay) = system_without_token().await;
    let browser = Browser::start().await;
    browser.open(&relay.url("/console")).await;
    browser.reads("main", "AFTERCOMMIT_OPERATOR_TOKEN").await;
    for token in ["", "anything at all"] {
        let request = system.http().get(relay.url("/console/events")).bearer_auth(token);
        assert_eq!(request.send().await.expect("an answer").status(), 403);
    }
}

#[tokio::test]
async fn a_wrong_token_is_refused_and_guessing_is_slowed_down() {
    let (system, relay) = system().await;
    let browser = Browser::start().await;
    browser.open(&relay.url("/console")).await;
    browser.write("#who", "Eve").await;
    browser.write("#token", "a wrong one, long enough").await;
    browser.click("button.primary").await;
    browser.reads(".complaint", "not the operators’ token").await;
    let guess = async |token: &str| {
        let request = system.http().get(relay.url("/console/session")).bearer_auth(token);
        request.send().await.expect("an answer")
    };
    let refused = eventually("guesses are no longer looked at", async || {
        let answer = guess("another wrong one").await;
        (answer.status() == StatusCode::TOO_MANY_REQUESTS).then_some(answer)
    })
    .await;
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(guess(TOKEN).await.status(), 429, "the right one neither, or guessing would cost nothing");
    assert_eq!(system.http().get(relay.url("/healthz")).send().await.expect("an answer").status(), 200);
}

#[tokio::test]
async fn a_signed_out_page_asks_to_sign_in_and_its_stream_has_ended() {
    let (system, relay) = system().await;
    let browser = signed_in(&relay).await;
    let cookie = cookie(&relay).await;
    let request = system.http().get(relay.url("/console/events")).header("cookie", &cookie);
    let mut stream = request.send().await.expect("a stream");
    assert!(stream.chunk().await.expect("bytes").is_some());
    let out = system.http().post(relay.url("/console/sign-out")).header("cookie", &cookie);
    let out = out.header("origin", relay.url("")).send().await.expect("an answer");
    assert_eq!(out.status(), StatusCode::NO_CONTENT);
    let ended = async { while stream.chunk().await.expect("an orderly end").is_some() {} };
    tokio::time::timeout(crate::harness::LIMIT, ended).await.expect("the stream ends with the sign-in");
    browser.click("#sign-out").await;
    browser.reads("h1", "Sign in").await;
    assert_eq!(browser.complaints().await, [""; 0]);
    // An open page does not hold up the end of the process.
    assert_eq!(relay.terminate().await, 0);
}

/// Takes pictures of the page as it is now: on a laptop and on a phone, in light and dark.
async fn pictures_of(browser: &Browser, directory: &std::path::Path, name: &str) {
    for (screen, width, height, is_phone) in [("laptop", 1280, 800, false), ("phone", 390, 844, true)] {
        for scheme in ["light", "dark"] {
            browser.looks_like(width, height, is_phone, scheme).await;
            tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
            browser.picture(&directory.join(format!("{name}-{screen}-{scheme}.png"))).await;
        }
    }
}

#[tokio::test]
#[ignore = "takes pictures of the page in its states, for people to look at"]
async fn pictures() {
    let directory = std::env::temp_dir().join("aftercommit-console");
    std::fs::create_dir_all(&directory).expect("a directory");
    let redis = start_redis(Vec::new(), None).await;
    let system = System::with_redis(redis.url().expose_secret()).await.set("AFTERCOMMIT_RELAY_NAME", "main");
    let mut system = system.set("AFTERCOMMIT_OPERATOR_TOKEN", TOKEN);
    let sse = system.start("sse").await;
    system.set_again("AFTERCOMMIT_SSE_LISTEN", &sse.address);
    let (relay, _standby) = (system.start("relay").await, system.start("relay").await);
    let topic = |name: &str| Topic::new(name).expect("a topic");
    let shoot = async |browser: &Browser, name: &str| pictures_of(browser, &directory, name).await;

    let browser = Browser::start().await;
    browser.open(&relay.url("/")).await;
    shoot(&browser, "sign-in").await;
    drop(browser);
    let browser = signed_in(&relay).await;
    for n in 0..120_u32 {
        let wave = (f64::from(n) / 9.0).sin() + 1.3;
        commit(&system, &topic("order:42"), "ORDER_PAID", (wave * 120.0) as u64).await;
        tokio::time::sleep(std::time::Duration::from_millis(700)).await;
    }
    shoot(&browser, "delivering").await;
    let mut connection = redis_settings_of(redis.url().expose_secret()).connect().await.expect("Redis");
    for name in ["order:1042", "customer:7:notifications"] {
        let _: () = connection.set(keys::history(&topic(name)), "in the way").await.expect("a string");
        commit(&system, &topic(name), "ORDER_PAID", 3).await;
    }
    browser.reads("#parked", "WRONGTYPE").await;
    browser.write("#replay-topic", "order:42").await;
    browser.click("#replay-look").await;
    browser.reads("#replay-found", "would be delivered").await;
    shoot(&browser, "parked").await;
    browser.click("#replay-run").await;
    agrees(&browser, "The mail service lost its queue").await;
    browser.click("[data-topic='order:1042'] button:nth-child(2)").await;
    shoot(&browser, "question").await;
    browser.click("#ask-no").await;
    browser.click("#verdict-button").await;
    agrees(&browser, "Redis is being moved to the new machines").await;
    for _ in 0..15 {
        commit(&system, &topic("order:42"), "ORDER_PAID", 200).await;
        tokio::time::sleep(std::time::Duration::from_millis(700)).await;
    }
    shoot(&browser, "paused").await;
    relay.kill().await;
    browser.reads("#link", "Connection lost").await;
    shoot(&browser, "lost").await;
    println!("see {}", directory.display());
}
