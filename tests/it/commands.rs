//! The commands of the binary: exit codes, what stdout and stderr say, and what they do to the log.

use std::process::Output;

use serde_json::Value;
use sqlx::Connection;
use uuid::Uuid;

use aftercommit::event::{NewEvent, Topic};
use aftercommit::outbox;

use crate::harness::{
    Client, Running, Settings, System, TestResult, cli, database, empty_database, eventually, items_of,
    new_event, shared_url,
};

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// Asserts that the command fails with this exit code and one sentence on stderr that contains the text.
pub(crate) async fn assert_fails(settings: &Settings, arguments: &[&str], code: i32, sentence: &str) {
    let output = cli(settings, arguments).await;
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    assert!(said.contains(sentence), "{arguments:?}: {said}");
    assert!(output.stdout.is_empty(), "{arguments:?}: {}", stdout(&output));
}

/// Runs a relay that must end with this sentence. Returns what it did instead.
pub(crate) async fn untold(settings: &Settings, sentence: &str) -> Option<String> {
    let ended = tokio::time::timeout(std::time::Duration::from_secs(10), cli(settings, &["relay"])).await;
    let Ok(output) = ended else { return Some(format!("{sentence}: it waits")) };
    let said = stderr(&output);
    let is_told = output.status.code() == Some(1) && said.contains(sentence);
    (!is_told).then(|| format!("{sentence}: {said}"))
}

#[tokio::test]
async fn a_wrong_setting_is_named_wherever_it_comes_from() -> TestResult {
    let none = Settings::default();
    let cases = [
        ("AFTERCOMMIT_SSE_LISTN", "x", "AFTERCOMMIT_SSE_LISTN"),
        ("AFTERCOMMIT_NOPE_LISTEN", "x", "AFTERCOMMIT_NOPE_LISTEN"),
        ("AFTERCOMMIT_SSE_MAX_CONNECTIONS", "many", "AFTERCOMMIT_SSE_MAX_CONNECTIONS"),
        ("AFTERCOMMIT_RELAY_ON_POISON", "explode", "explode"),
    ];
    for (name, value, expected) in cases {
        assert_fails(&none.clone().set(name, value), &["config", "check"], 1, expected).await;
    }
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("mine.toml");
    let path = file.to_str().ok_or("no path")?;
    for (text, expected) in [
        ("[sse]\nlistn = \"x\"\n", "no setting 'listn' in [sse]"),
        ("[ssee]\nlisten = \"x\"\n", "no section [ssee]"),
        ("[sse]\nlisten = 5\n", "listen in [sse] must be of type string"),
        ("sse = \n", "not valid TOML"),
    ] {
        std::fs::write(&file, text)?;
        assert_fails(&none, &["--config", path, "config", "check"], 1, expected).await;
    }
    assert_fails(&none, &["--config", "/nowhere.toml", "config", "check"], 1, "/nowhere.toml").await;
    let good = cli(&none.set("AFTERCOMMIT_SSE_LISTEN", "127.0.0.1:9001"), &["config", "show"]).await;
    assert_eq!(good.status.code(), Some(0));
    assert!(stdout(&good).contains("listen = \"127.0.0.1:9001\""));
    Ok(())
}

#[tokio::test]
async fn wrong_usage_is_a_2_and_help_a_0() {
    let none = Settings::default();
    for wrong in [&["nonsense"][..], &["relay", "--nonsense"], &["events"], &["token"], &[]] {
        assert_eq!(cli(&none, wrong).await.status.code(), Some(2), "{wrong:?}");
    }
    let help = cli(&none, &["--help"]).await;
    assert_eq!(help.status.code(), Some(0));
    assert!(stdout(&help).lines().all(|line| line.chars().count() <= 80), "{}", stdout(&help));
}

#[tokio::test]
async fn completions_and_man_pages_know_every_command() -> TestResult {
    let none = Settings::default();
    for shell in ["bash", "zsh", "fish"] {
        let printed = cli(&none, &["completions", shell]).await;
        assert_eq!(printed.status.code(), Some(0), "{}", stderr(&printed));
        assert!(stdout(&printed).contains("doctor"), "{shell}");
    }
    let dir = tempfile::tempdir()?;
    let path = dir.path().to_str().ok_or("no path")?;
    assert_eq!(cli(&none, &["man", "--dir", path]).await.status.code(), Some(0));
    for page in ["aftercommit.1", "aftercommit-status.1", "aftercommit-parked-release.1"] {
        let text = std::fs::read_to_string(dir.path().join(page)).expect(page);
        assert!(text.contains(".SH NAME"), "{page}");
    }
    assert_fails(&none, &["man", "--dir", "/nowhere/at/all"], 1, "/nowhere/at/all").await;
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_missing_or_wrong_is_one_clear_sentence() -> TestResult {
    let system = System::new().await;
    let settings = system.settings().clone();
    let wrong = |name: &str, url: &str| settings.clone().set(name, url);
    let listening = std::net::TcpListener::bind("127.0.0.1:0")?;
    let taken = listening.local_addr()?.to_string();

    for role in ["api", "relay", "sse"] {
        assert_fails(&wrong("DATABASE_URL", ""), &[role], 1, "set DATABASE_URL").await;
        assert_fails(&wrong("DATABASE_URL", "nonsense"), &[role], 1, "postgres://user:password@host").await;
        let elsewhere = system.database.url().replace(system.database.name(), "no_such_database");
        assert_fails(&wrong("DATABASE_URL", &elsewhere), &[role], 1, "no_such_database").await;
        let listen = format!("AFTERCOMMIT_{}_LISTEN", role.to_uppercase());
        assert_fails(&settings.clone().set(&listen, &taken), &[role], 1, &listen).await;
    }
    for role in ["relay", "sse"] {
        assert_fails(&wrong("REDIS_URL", ""), &[role], 1, "set REDIS_URL").await;
        assert_fails(&wrong("REDIS_URL", "http://x"), &[role], 1, "redis://").await;
    }
    for command in [&["migrate"][..], &["status"], &["events", "list"]] {
        let refused = wrong("DATABASE_URL", "postgres://u:p@127.0.0.1:1/d");
        assert_fails(&refused, command, 1, "127.0.0.1:1/d").await;
    }
    let secret = settings.clone().set("AFTERCOMMIT_JWT_SECRET", "short");
    assert_fails(&secret, &["api"], 1, "at least 32").await;
    Ok(())
}

#[tokio::test]
async fn a_role_waits_for_a_server_that_is_away_and_says_so_in_readiness() {
    let system = System::new().await.set("REDIS_URL", "redis://127.0.0.1:1");
    for role in ["relay", "sse"] {
        let process = system.start(role).await;
        let told = eventually("readiness", async || {
            let response = system.http().get(process.url("/readyz")).send().await.expect("an answer");
            (response.status().as_u16() == 503 && role == "sse" || role == "relay").then_some(())
        });
        told.await;
        process.wait_for_log("starting without Redis").await;
        assert_eq!(process.terminate().await, 0);
    }
}

#[tokio::test]
async fn a_schema_that_is_missing_is_told_and_migrate_mends_it() {
    let empty = empty_database().await;
    let system = System::new().await.set("DATABASE_URL", empty.url());
    let settings = system.settings();
    for command in [&["api"][..], &["relay"], &["status"], &["events", "list"]] {
        assert_fails(settings, command, 1, "run `aftercommit migrate`").await;
    }
    // From many hosts at once, and again.
    let migrating = futures_util::future::join_all((0..6).map(|_| cli(settings, &["migrate"]))).await;
    assert!(migrating.iter().all(|output| output.status.code() == Some(0)), "{migrating:#?}");
    assert!(migrating.iter().all(|output| !stderr(output).contains("already exists")), "{migrating:#?}");
    assert!(stderr(&cli(settings, &["migrate"]).await).contains("up to date"));
}

async fn schemas(system: &System) -> TestResult<Vec<String>> {
    Ok(sqlx::query_scalar(
        "select nspname::text from pg_namespace where nspname in ('outbox', 'uploads') order by 1",
    )
    .fetch_all(&mut system.database.connect().await)
    .await?)
}

#[tokio::test]
async fn migrate_brings_the_bundled_application_into_no_database_that_has_not_asked_for_it() -> TestResult {
    let system = System::with(empty_database().await, shared_url()).await;
    assert_eq!(cli(system.settings(), &["migrate"]).await.status.code(), Some(0));
    assert_eq!(schemas(&system).await?, ["outbox"]);

    // Plain streams work without it, and those of uploads say why they do not.
    let (_relay, sse) = (system.start("relay").await, system.start("sse").await);
    let topic = system.redis.topic("plain");
    let user = Uuid::new_v4();
    let token = system.token_with(user, std::time::Duration::from_secs(3600), &[topic.as_str()]);
    let client = Client::open(&sse.url(&format!("/streams/{topic}")), &token).await;
    commit(&system, &topic, "A", 1).await;
    client.wait_for_events(1).await;
    let stream = format!("/api/upload/sessions/{}/stream", Uuid::new_v4());
    let answer = system.http().get(sse.url(&stream)).bearer_auth(system.token(user)).send().await;
    let answer = answer?;
    assert_eq!(answer.status().as_u16(), 404);
    let says = answer.text().await?;
    assert!(says.contains("aftercommit migrate --uploads"), "{says}");

    // The api brings what it needs.
    let api = system.start("api").await;
    api.wait_for_log("applied the schema").await;
    assert_eq!(schemas(&system).await?, ["outbox", "uploads"]);
    let session = system.session(&api, user, 1).await;
    let _client = session.listen(&sse).await;

    let asked = System::with(empty_database().await, shared_url()).await;
    assert_eq!(cli(asked.settings(), &["migrate", "--uploads"]).await.status.code(), Some(0));
    assert_eq!(schemas(&asked).await?, ["outbox", "uploads"]);
    Ok(())
}

#[tokio::test]
async fn a_printed_token_opens_the_api() -> TestResult {
    let system = System::new().await;
    let api = system.start("api").await;
    let user = Uuid::new_v4().to_string();
    let output = cli(system.settings(), &["token", "--user", &user]).await;
    let token = stdout(&output);
    let request = system.http().post(api.url("/api/upload/sessions")).bearer_auth(token.trim());
    let response = request.json(&serde_json::json!({"totalPhotos": 1})).send().await?;
    assert_eq!(response.status().as_u16(), 201);
    assert_fails(system.settings(), &["token", "--user", ""], 2, "1 to 255 characters").await;
    Ok(())
}

pub(crate) async fn commit(system: &System, topic: &Topic, kind: &str, count: u64) -> Vec<Uuid> {
    let events: Vec<NewEvent> = (0..count).map(|n| new_event(topic, kind, &n)).collect();
    let mut connection = system.database.connect().await;
    let ids = outbox::append_all(&mut connection, &events).await.expect("an append");
    connection.close().await.expect("a goodbye");
    ids
}

pub(crate) async fn json(system: &System, arguments: &[&str]) -> Value {
    let output = cli(system.settings(), &[arguments, &["--output", "json"]].concat()).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[tokio::test]
async fn status_and_events_tell_what_is_pending_and_what_is_delivered() -> TestResult {
    let system = System::new().await;
    let topic = system.redis.topic("ops");
    let ids = commit(&system, &topic, "A", 3).await;
    let status = json(&system, &["status"]).await;
    assert!(items_of(&status["relays"]).is_empty(), "no relay has run: {status}");
    assert_eq!(status["undelivered"]["events"], 3, "{status}");
    let listed = json(&system, &["events", "list"]).await;
    assert_eq!(items_of(&listed).len(), 3);
    assert!(items_of(&listed).iter().all(|event| event["state"] == "pending"));

    let relay = system.start("relay").await;
    eventually("delivered", async || {
        let listed = json(&system, &["events", "list", "--state", "delivered"]).await;
        (items_of(&listed).len() == 3).then_some(())
    })
    .await;
    let status = json(&system, &["status"]).await;
    assert_eq!(
        (&status["relays"][0]["lastId"], &status["relays"][0]["relay"]),
        (&"1-3".into(), &system.redis.relay_name().into())
    );
    assert_eq!(relay.terminate().await, 0);
    commit(&system, &topic, "B", 2).await;
    let status = json(&system, &["status"]).await;
    assert!(status["relays"][0]["oldestPendingSeconds"].as_f64().ok_or("no age")? >= 0.0);

    let pending = json(&system, &["events", "list", "--state", "pending", "--type", "B"]).await;
    assert_eq!(items_of(&pending).len(), 2);
    let shown = json(&system, &["events", "show", &ids[1].to_string()]).await;
    assert_eq!((&shown[0]["payload"], &shown[0]["state"]), (&1.into(), &"delivered".into()));
    let text = stdout(&cli(system.settings(), &["events", "show", &ids[1].to_string()]).await);
    assert!(text.contains("state        delivered since 20"), "{text}");
    assert_fails(system.settings(), &["events", "show", "x"], 2, "neither an event id").await;
    assert_fails(system.settings(), &["events", "show", &Uuid::new_v4().to_string()], 1, "no event").await;
    Ok(())
}

#[tokio::test]
async fn replay_sends_what_was_delivered_once_more_marked_and_audited() -> TestResult {
    let system = System::new().await;
    let user = Uuid::new_v4();
    let topic = Topic::new(format!("user-notifications:{user}"))?;
    let (_relay, sse) = (system.start("relay").await, system.start("sse").await);
    let url = sse.url("/api/upload/sessions/notifications/stream");
    let client = Client::open(&url, &system.token(user)).await;
    let ids = commit(&system, &topic, "A", 4).await;
    client.wait_for_events(4).await;

    assert_fails(system.settings(), &["replay", "--yes"], 2, "say which events").await;
    let dry = json(&system, &["replay", "--topic", topic.as_str(), "--dry-run"]).await;
    assert_eq!(dry["events"], 4, "{dry}");
    assert_eq!(client.so_far().len(), 4);
    let (second, fourth) = (ids[1].to_string(), ids[3].to_string());
    let chosen = ["replay", "--event", &second, "--event", &fourth, "--yes", "--reason", "a test"];
    let done = json(&system, &chosen).await;
    assert_eq!(done["events"], 2, "{done}");
    let events = client.wait_for_events(6).await;
    let data: Vec<&str> = events.iter().map(|event| event.data.as_str()).collect();
    assert_eq!(data, ["0", "1", "2", "3", "1", "3"]);
    let shown = json(&system, &["events", "show", &second]).await;
    assert_eq!(items_of(&shown).len(), 2, "the event and its copy");
    let mut connection = system.database.connect().await;
    let (reason, count): (String, i64) =
        sqlx::query_as("select reason, events from outbox.audit").fetch_one(&mut connection).await?;
    assert_eq!((reason.as_str(), count), ("a test", 2));
    // Without a terminal and without --yes nobody can confirm.
    assert_fails(system.settings(), &["replay", "--all", "--reason", "x"], 1, "--yes").await;
    assert_fails(system.settings(), &["replay", "--all", "--yes"], 2, "--reason").await;
    Ok(())
}

#[tokio::test]
async fn replay_releases_what_was_parked_once_redis_takes_it() -> TestResult {
    use redis::AsyncCommands;
    let system = System::new().await;
    let user = Uuid::new_v4();
    let topic = Topic::new(format!("user-notifications:{user}"))?;
    let key = system.redis.keys().history(&topic);
    let mut redis = system.redis.connect().await;
    let _: () = redis.set(&key, "in the way").await?;
    let (_relay, sse) = (system.start("relay").await, system.start("sse").await);
    commit(&system, &topic, "A", 3).await;
    eventually("parked", async || {
        let listed = json(&system, &["events", "list", "--state", "parked"]).await;
        (items_of(&listed).len() == 3).then_some(())
    })
    .await;
    let status = json(&system, &["status"]).await;
    assert_eq!(status["relays"][0]["parkedEvents"], 3, "{status}");
    let _: () = redis.del(&key).await?;
    let url = sse.url("/api/upload/sessions/notifications/stream");
    let client = Client::open(&url, &system.token(user)).await;
    let released = json(&system, &["replay", "--undelivered", "--yes", "--reason", "mended"]).await;
    assert_eq!(released["events"], 3, "{released}");
    let events = client.wait_for_events(3).await;
    assert_eq!(events.iter().map(|event| event.data.as_str()).collect::<Vec<_>>(), ["0", "1", "2"]);
    commit(&system, &topic, "A", 1).await;
    assert_eq!(client.wait_for_events(4).await.len(), 4);
    Ok(())
}

#[tokio::test]
async fn an_event_that_does_not_fit_is_refused_by_sql_before_anything_is_written() -> TestResult {
    let database = database().await;
    let mut connection = database.connect().await;
    for (topic, kind, payload) in [
        ("a topic", "T", "1"),
        ("t", "a type", "1"),
        ("", "T", "1"),
        ("t", "T:T", "1"),
        ("t", "T", "not json"),
        ("t", "T", &format!("\"{}\"", "x".repeat(1024 * 1024))),
    ] {
        let appended = sqlx::query("select outbox.append($1, $2, $3::text::json)")
            .bind(topic)
            .bind(kind)
            .bind(payload)
            .execute(&mut connection)
            .await;
        assert!(appended.is_err(), "{topic} {kind}");
    }
    let rows: i64 =
        sqlx::query_scalar("select count(*) from outbox.event").fetch_one(&mut connection).await?;
    assert_eq!(rows, 0);
    Ok(())
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_changes_no_exit_code_and_costs_no_word() {
    let system = System::new().await;
    for arguments in [
        &["status"][..],
        &["status", "--watch", "1"],
        &["status", "--output", "json"],
        &["config", "show", "--defaults"],
        &["pause", "--help"],
    ] {
        let ended = Running::unheard(system.settings(), arguments).end().await;
        assert_eq!(ended.status.code(), Some(0), "{arguments:?}");
        assert_eq!(String::from_utf8_lossy(&ended.stderr), "", "{arguments:?}");
    }
    // What is wrong stays wrong: the tests' own servers fail checks of the doctor.
    let ended = Running::unheard(system.settings(), &["doctor"]).end().await;
    assert_eq!(ended.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("found something wrong"), "{ended:?}");
}

/// A text of the doctor with each finding on one line.
pub(crate) fn unwrapped(text: &str) -> String {
    let is_finding = |line: &str| !line.starts_with(' ') || line.starts_with("         fix: ");
    text.lines().fold(String::new(), |joined, line| match is_finding(line) || joined.is_empty() {
        true if joined.is_empty() => line.to_owned(),
        true => format!("{joined}\n{line}"),
        false => format!("{joined} {}", line.trim_start()),
    })
}

#[tokio::test]
async fn a_wrong_password_is_told_once_and_with_what_to_do() -> TestResult {
    let database = database().await;
    let (login, server) = database.url().split_once('@').ok_or("no url with a login")?;
    let (user, _password) = login.rsplit_once(':').ok_or("no password")?;
    let settings = Settings::default().set("DATABASE_URL", format!("{user}:wrong@{server}"));
    let output = cli(&settings, &["status"]).await;
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.matches("password authentication failed").count(), 1, "{said}");
    assert!(said.contains("(check user and password in DATABASE_URL, or the output of"), "{said}");
    Ok(())
}
