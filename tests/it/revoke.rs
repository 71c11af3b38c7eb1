//! Putting someone out: streams end on every server, and the credentials are refused from then on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use redis::AsyncCommands;
use reqwest::{Response, StatusCode};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use aftercommit::event::Topic;
use aftercommit::local::RedisServer;
use aftercommit::outbox;

use crate::commands::stdout;
use crate::console::TOKEN;
use crate::harness::{
    Client, Flow, LIMIT, Process, Proxy, System, TestResult, cli, eventually, http, metric_of, new_event,
    refusal_of, start_redis, str_of,
};

const SECRET: &str = "another secret of the tests, of 32 bytes or more";
const OPEN_STREAMS: &str = "aftercommit_sse_connections";
/// How soon the streams of all servers must have ended.
const SOON: Duration = Duration::from_secs(1);

fn now() -> i64 {
    chrono::Utc::now().timestamp()
}

/// A token of this user's for the topics `order:*`, issued at that time.
fn issued(user: &str, at: Option<i64>, id: Option<&str>) -> String {
    let mut claims = json!({ "sub": user, "exp": now() + 3600, "subscribe": ["order:*"] });
    for (claim, value) in [("iat", at.map(Value::from)), ("jti", id.map(Value::from))] {
        if let Some(value) = value {
            claims[claim] = value;
        }
    }
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).expect("a token")
}

/// A token of now.
fn token(user: &str) -> String {
    issued(user, Some(now()), None)
}

/// A system whose secret this file knows, with an operators' token.
fn known(system: System) -> System {
    system.set("AFTERCOMMIT_JWT_SECRET", SECRET).set("AFTERCOMMIT_OPERATOR_TOKEN", TOKEN)
}

async fn system() -> System {
    known(System::new().await)
}

async fn revoke(system: &System, arguments: &[&str]) -> String {
    let output = cli(system.settings(), &[&["revoke", "--reason", "a test"], arguments].concat()).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    stdout(&output)
}

async fn get(system: &System, server: &Process, path: &str, token: &str) -> Response {
    let request = system.http().get(server.url(path)).header("authorization", format!("Bearer {token}"));
    request.send().await.expect("an answer")
}

/// The status, and what the problem says.
async fn answer(system: &System, server: &Process, path: &str, token: &str) -> (StatusCode, String) {
    let response = get(system, server, path, token).await;
    let status = response.status();
    match status {
        StatusCode::OK => (status, String::new()),
        _ => (status, str_of(&response.json::<Value>().await.expect("a problem")["detail"]).to_owned()),
    }
}

/// Waits until the stream has been ended by a revocation, and the credential is refused.
async fn wait_until_out(client: &Client) {
    client.wait_for_ends(1).await;
    let seen = client.so_far();
    let last = seen.last().expect("an event");
    assert_eq!((last.event.as_str(), last.data.as_str()), ("revoked", "{\"reason\":\"revoked\"}"));
}

/// A token of the user's is good that is issued in a later second than the revocation.
async fn wait_for_a_good_token(system: &System, server: &Process, path: &str, user: &str) -> String {
    eventually("a new token is good", async || {
        let token = token(user);
        (get(system, server, path, &token).await.status() == StatusCode::OK).then_some(token)
    })
    .await
}

async fn own_redis() -> TestResult<(RedisServer, System)> {
    let redis = start_redis(Vec::new(), None).await;
    let system = known(System::with_redis(redis.url().expose_secret()).await);
    Ok((redis, system))
}

#[tokio::test]
async fn a_user_is_out_on_every_server_within_a_second_and_stays_out_after_all_have_restarted() -> TestResult
{
    let (redis, system) = own_redis().await?;
    let relay = system.start("relay").await;
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(system.start("sse").await);
    }
    let (ana, bob) = (token("ana"), token("bob"));
    let (mut hers, mut his) = (Vec::new(), Vec::new());
    for server in &servers {
        for path in ["/streams/order:1", "/streams?topic=order:1&topic=order:2"] {
            hers.push(Client::open(&server.url(path), &ana).await);
            his.push(Client::open(&server.url(path), &bob).await);
        }
    }
    let asked = Instant::now();
    let said = revoke(&system, &["--user", "ana"]).await;
    assert!(said.starts_with("revoked: user ana, issued until "), "{said}");
    let begun = Instant::now();
    for client in &hers {
        wait_until_out(client).await;
    }
    let (took, all) = (begun.elapsed(), asked.elapsed());
    println!(
        "{} streams of three servers ended {} ms after the command had begun, {} ms after its end",
        hers.len(),
        all.as_millis(),
        took.as_millis()
    );
    assert!(took < SOON, "{took:?}");
    for server in &servers {
        assert_eq!(metric_of(server, "aftercommit_sse_revoked_total").await, 2);
        let (status, detail) = answer(&system, server, "/streams/order:1", &ana).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        assert!(detail.contains("revoked by an operator"), "{detail}");
    }
    let event = new_event(&Topic::new("order:1")?, "PAID", &1);
    outbox::append(&mut system.database.connect().await, &event).await?;
    for client in &his {
        client.wait_for_events(1).await;
        assert_eq!(client.counts(), (1, 0), "nobody else's stream has ended");
    }

    let client = redis::Client::open(redis.url().expose_secret())?;
    for server in servers {
        assert_eq!(server.terminate().await, 0);
    }
    assert_eq!(relay.terminate().await, 0);
    let _: () = client.get_multiplexed_async_connection().await?.flushall().await?;
    let _relay = system.start("relay").await;
    for _ in 0..3 {
        let server = system.start("sse").await;
        let (status, _) = answer(&system, &server, "/streams/order:1", &ana).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "by the first answer of a server");
        assert_eq!(get(&system, &server, "/streams/order:1", &bob).await.status(), StatusCode::OK);
        let new = wait_for_a_good_token(&system, &server, "/streams/order:1", "ana").await;
        Client::open(&server.url("/streams/order:1"), &new).await;
    }

    let audit = cli(system.settings(), &["audit", "--output", "json"]).await;
    let audit: Value = serde_json::from_slice(&audit.stdout)?;
    let entry = &audit[0];
    assert_eq!((&entry["action"], &entry["reason"]), (&"revoke".into(), &"a test".into()), "{audit}");
    assert_eq!(entry["selection"], json!({ "user": "ana" }));
    Ok(())
}

#[tokio::test]
async fn a_topic_is_revoked_for_everybody_and_a_token_alone() -> TestResult {
    let system = system().await;
    let server = system.start("sse").await;
    let url = |path: &str| server.url(path);
    let (ana, bob) = (token("ana"), token("bob"));
    let one = Client::open(&url("/streams/order:1"), &ana).await;
    let both = Client::open(&url("/streams?topic=order:2&topic=order:1"), &bob).await;
    let other = Client::open(&url("/streams/order:2"), &ana).await;
    revoke(&system, &["--topic", "order:1"]).await;
    wait_until_out(&one).await;
    wait_until_out(&both).await;
    for path in ["/streams/order:1", "/streams?topic=order:2&topic=order:1"] {
        let (status, detail) = answer(&system, &server, path, &bob).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}");
        assert!(detail.contains("the topic order:1 were revoked"), "{detail}");
    }
    wait_for_a_good_token(&system, &server, "/streams/order:1", "bob").await;

    let (first, second) = (issued("ana", Some(now()), Some("a-1")), issued("ana", Some(now()), Some("a-2")));
    let of_first = Client::open(&url("/streams/order:3"), &first).await;
    let of_second = Client::open(&url("/streams/order:3"), &second).await;
    revoke(&system, &["--token", "a-1"]).await;
    wait_until_out(&of_first).await;
    assert_eq!(answer(&system, &server, "/streams/order:3", &first).await.0, StatusCode::UNAUTHORIZED);
    let later = issued("ana", Some(now() + 60), Some("a-1"));
    assert_eq!(answer(&system, &server, "/streams/order:3", &later).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(answer(&system, &server, "/streams/order:3", &second).await.0, StatusCode::OK);
    for client in [&of_second, &other] {
        assert_eq!(client.counts(), (1, 0), "the others go on");
    }
    let none = cli(system.settings(), &["revoke", "--reason", "x"]).await;
    let two = cli(system.settings(), &["revoke", "--user", "a", "--topic", "b"]).await;
    assert_eq!((none.status.code(), two.status.code()), (Some(2), Some(2)));
    Ok(())
}

/// A stream that is being opened while its user is revoked is refused or ended: none stays open.
#[tokio::test]
async fn no_stream_slips_through_that_opens_during_a_revocation() -> TestResult {
    let system = system().await;
    let server = system.start("sse").await;
    let (user, out) = (token("ana"), Arc::new(AtomicBool::new(false)));
    let openers: Vec<JoinHandle<(usize, Vec<Response>)>> = (0..8)
        .map(|_| {
            let (http, url, user, out) = (http(), server.url("/streams/order:1"), user.clone(), out.clone());
            tokio::spawn(async move {
                let (mut refused, mut streams) = (0, Vec::new());
                while !(out.load(Ordering::Relaxed) && refused >= 5) {
                    let response = http.get(&url).bearer_auth(&user).send().await.expect("an answer");
                    match response.status() {
                        StatusCode::OK => streams.push(response),
                        _ => refused += 1,
                    }
                }
                (refused, streams)
            })
        })
        .collect();
    eventually("some streams are open", async || (metric_of(&server, OPEN_STREAMS).await > 20).then_some(()))
        .await;
    revoke(&system, &["--user", "ana"]).await;
    out.store(true, Ordering::Relaxed);
    let mut all = Vec::new();
    for opener in openers {
        all.extend(opener.await?.1);
    }
    for stream in all.iter_mut() {
        let mut text = Vec::new();
        while let Some(chunk) = timeout(LIMIT, stream.chunk()).await?? {
            text.extend_from_slice(&chunk);
        }
        let text = String::from_utf8(text)?;
        assert!(text.contains("event: revoked") || text.contains("event: refused"), "{text}");
    }
    assert_eq!(metric_of(&server, OPEN_STREAMS).await, 0);
    Ok(())
}

#[tokio::test]
async fn a_token_that_does_not_say_when_it_was_issued_counts_as_older() -> TestResult {
    let system = system().await;
    let server = system.start("sse").await;
    revoke(&system, &["--user", "ana"]).await;
    let refused = async |token: String| answer(&system, &server, "/streams/order:1", &token).await.0;
    eventually("the server has heard of it", async || {
        (refused(issued("ana", Some(now() - 60), None)).await == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    assert_eq!(refused(issued("ana", None, None)).await, StatusCode::UNAUTHORIZED);
    assert_eq!(refused(issued("bob", None, None)).await, StatusCode::OK);
    assert_eq!(refused(issued("ana", Some(now() + 60), None)).await, StatusCode::OK);
    Ok(())
}

#[tokio::test]
async fn a_ticket_is_revoked_with_its_user_its_topic_and_its_token() -> TestResult {
    let system = system().await;
    let server = system.start("sse").await;
    let ask = async |token: &str| {
        let request = system.http().post(server.url("/api/stream-tickets")).bearer_auth(token);
        request.json(&json!({ "topics": ["order:1", "order:2"] })).send().await.expect("an answer")
    };
    let ticket = async |token: &str| -> TestResult<String> {
        let response = ask(token).await;
        assert_eq!(response.status(), StatusCode::CREATED);
        Ok(str_of(&response.json::<Value>().await?["ticket"]).to_owned())
    };
    let opens = async |topic: &str, ticket: &str| {
        let url = server.url(&format!("/streams/{topic}?ticket={ticket}"));
        system.http().get(url).send().await.expect("an answer").status()
    };
    for (arguments, user, good) in [
        (["--user", "ana"], "ana", None),
        (["--topic", "order:1"], "bob", Some("order:2")),
        (["--token", "c-1"], "cid", None),
    ] {
        let old = issued(user, Some(now()), Some(&format!("{}-1", &user[..1])));
        let of_old = ticket(&old).await?;
        assert_eq!(opens("order:1", &of_old).await, StatusCode::OK);
        let client = Client::open(&server.url(&format!("/streams/order:1?ticket={of_old}")), "").await;
        revoke(&system, &arguments).await;
        wait_until_out(&client).await;
        assert_eq!(opens("order:1", &of_old).await, StatusCode::UNAUTHORIZED, "{arguments:?}");
        assert_eq!(ask(&old).await.status(), StatusCode::UNAUTHORIZED, "{arguments:?}: no new ticket for it");
        if let Some(topic) = good {
            assert_eq!(opens(topic, &of_old).await, StatusCode::OK, "{arguments:?}");
        }
        let new = wait_for_a_good_token(&system, &server, "/streams/order:1", user).await;
        assert_eq!(opens("order:1", &ticket(&new).await?).await, StatusCode::OK, "{arguments:?}");
    }
    Ok(())
}

#[tokio::test]
async fn operators_revoke_over_http_behind_their_gate() -> TestResult {
    let system = system().await;
    let (server, relay) = (system.start("sse").await, system.start("relay").await);
    let post = async |process: &Process, operator: &str, body: &Value| {
        let request = system.http().post(process.url("/admin/revoke")).bearer_auth(operator).json(body);
        request.send().await.expect("an answer")
    };
    let ana = json!({ "user": "ana", "reason": "left" });
    let client = Client::open(&server.url("/streams/order:1"), &token("ana")).await;
    for process in [&server, &relay] {
        assert_eq!(post(process, &token("ana"), &ana).await.status(), StatusCode::UNAUTHORIZED);
        for bad in [
            json!({ "user": "ana" }),
            json!({ "user": "ana", "reason": " \n" }),
            json!({ "reason": "nobody" }),
            json!({ "user": "ana", "topic": "order:1", "reason": "both" }),
            json!({ "topic": "not a topic", "reason": "x" }),
            json!({ "user": "", "reason": "x" }),
        ] {
            assert_eq!(post(process, TOKEN, &bad).await.status(), StatusCode::BAD_REQUEST, "{bad}");
        }
    }
    assert_eq!(client.counts(), (1, 0));
    let done = post(&server, TOKEN, &ana).await;
    assert_eq!(done.status(), StatusCode::OK);
    let done: Value = done.json().await?;
    assert_eq!(done["revoked"], json!({ "user": "ana" }), "{done}");
    assert!(done["issuedUntil"].is_string(), "{done}");
    wait_until_out(&client).await;

    let client = Client::open(&server.url("/streams/order:2"), &token("bob")).await;
    let topic = json!({ "topic": "order:2", "reason": "shared" });
    assert_eq!(post(&relay, TOKEN, &topic).await.status(), StatusCode::OK);
    wait_until_out(&client).await;
    let audit = stdout(&cli(system.settings(), &["audit"]).await);
    assert!(
        audit.contains("shared") && audit.contains("left") && audit.contains("admin endpoint as "),
        "{audit}"
    );
    Ok(())
}

#[tokio::test]
async fn nobody_is_admitted_before_the_list_was_read_and_the_last_list_outlives_an_outage() -> TestResult {
    let system = system().await;
    revoke(&system, &["--user", "ana"]).await;
    let port = system.database.url().rsplit_once(':').and_then(|(_, rest)| rest.split('/').next());
    let to_postgres = Proxy::to(port.ok_or("a port")?.parse()?).await;
    let database = to_postgres.url(system.database.url());
    let system = system.set("DATABASE_URL", &database);
    to_postgres.flow(Flow::Refuse);
    let server = system.start("sse").await;
    let old = issued("ana", Some(now() - 60), None);
    let bob = token("bob");
    for token in [&old, &bob] {
        let refusal = refusal_of(get(&system, &server, "/streams/order:1", token).await).await;
        assert_eq!(refusal.ok_or("a refusal")?["reason"], "unavailable");
    }
    let ready = async || {
        let answer = system.http().get(server.url("/readyz")).send().await.ok()?;
        let status = answer.status();
        let body: Value = answer.json().await.ok()?;
        let checks = body["checks"].as_array()?.clone();
        Some((status, checks.into_iter().find(|check| check["name"] == "revocations")?))
    };
    let (status, check) = ready().await.ok_or("a check")?;
    assert_eq!((status, &check["ok"]), (StatusCode::SERVICE_UNAVAILABLE, &false.into()), "{check}");

    to_postgres.flow(Flow::Pass);
    eventually("the list has been read, and notifications are heard", async || {
        let (_, check) = ready().await?;
        (check["reason"] == "1").then_some(())
    })
    .await;
    assert_eq!(metric_of(&server, "aftercommit_revocations_listening").await, 1);
    to_postgres.flow(Flow::Refuse);
    to_postgres.cut();
    eventually("a warning", async || ready().await.filter(|(_, check)| check["warning"] == true)).await;
    assert_eq!(answer(&system, &server, "/streams/order:1", &old).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(answer(&system, &server, "/streams/order:1", &bob).await.0, StatusCode::OK);
    assert_eq!(ready().await.ok_or("a check")?.0, StatusCode::OK, "it serves on");
    Ok(())
}

/// A notification that comes while nobody listens is lost, so the list is read after each such time.
#[tokio::test]
async fn a_revocation_is_heard_of_that_comes_while_the_listener_is_away() -> TestResult {
    let system = system().await;
    let port = system.database.url().rsplit_once(':').and_then(|(_, rest)| rest.split('/').next());
    let to_postgres = Proxy::to(port.ok_or("a port")?.parse()?).await;
    let settings = system
        .settings()
        .clone()
        .set("AFTERCOMMIT_DATABASE_DIRECT_URL", to_postgres.url(system.database.url()));
    let server = Process::start("sse", &settings).await;
    let client = Client::open(&server.url("/streams/order:1"), &token("ana")).await;
    let heard = |count| {
        let server = &server;
        async move {
            eventually("the listener comes and goes", async || {
                (metric_of(server, "aftercommit_revocations_listening").await == count).then_some(())
            })
            .await;
        }
    };
    heard(1).await;
    to_postgres.flow(Flow::Refuse);
    to_postgres.cut();
    heard(0).await;
    revoke(&system, &["--user", "ana"]).await;
    to_postgres.flow(Flow::Pass);
    let begun = Instant::now();
    wait_until_out(&client).await;
    // The next read without a notification would come half a minute after the last one.
    assert!(begun.elapsed() < LIMIT.min(Duration::from_secs(15)), "{:?}", begun.elapsed());
    Ok(())
}

#[tokio::test]
async fn the_bundled_application_refuses_a_revoked_user_too() -> TestResult {
    let system = system().await;
    let api = system.start("api").await;
    let user = uuid::Uuid::new_v4().to_string();
    let post = async |token: &str| {
        let request = system.http().post(api.url("/api/upload/sessions")).bearer_auth(token);
        request.json(&json!({ "totalPhotos": 1 })).send().await.expect("an answer").status()
    };
    let old = token(&user);
    assert_eq!(post(&old).await, StatusCode::CREATED);
    revoke(&system, &["--user", &user]).await;
    eventually("it is refused", async || (post(&old).await == StatusCode::UNAUTHORIZED).then_some(())).await;
    Ok(())
}
