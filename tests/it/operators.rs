//! The work of a person on call: pause, parked topics, audit, status and readiness.

use secrecy::ExposeSecret;
use serde_json::Value;
use sqlx::AssertSqlSafe;

use aftercommit::event::Topic;

use crate::commands::{assert_fails, commit, json, stdout, unwrapped};
use crate::harness::{
    Process, System, TestResult, cli, empty_database, eventually, http_get, items_of, on_terminal,
    start_redis, str_of,
};
use crate::postgres_version::postgres_version;

/// Readiness as (status, checks that do not hold with their reasons).
pub(crate) async fn not_ready(process: &Process) -> (u16, Vec<(String, String)>) {
    let response = http_get(process.url("/readyz")).await.expect("an answer");
    let status = response.status().as_u16();
    let body: Value = response.json().await.expect("JSON");
    let failing = items_of(&body["checks"]).iter().filter(|check| check["ok"] == false);
    let text = |value: &Value| str_of(value).to_owned();
    (status, failing.map(|check| (text(&check["name"]), text(&check["reason"]))).collect())
}

/// Waits until this check fails with a reason that contains these words. The reason may change: the end of a
/// session is known before the reason why there is no new one.
pub(crate) async fn wait_until_red(process: &Process, name: &str, reason: &str) {
    eventually(&format!("{name} is red: {reason}"), async || {
        let (status, failing) = not_ready(process).await;
        let found = failing.into_iter().find(|(check, why)| check == name && why.contains(reason));
        found.map(|_| assert_eq!(status, 503))
    })
    .await;
}

pub(crate) async fn wait_until_green(process: &Process) {
    eventually("readiness is green", async || (not_ready(process).await.0 == 200).then_some(())).await;
}

async fn delivered(system: &System) -> usize {
    let listed = json(system, &["events", "list", "--state", "delivered"]).await;
    items_of(&listed).len()
}

async fn does(system: &System, arguments: &[&str]) -> String {
    let output = cli(system.settings(), arguments).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    stdout(&output)
}

async fn wait_for_rotation(system: &System, said: &str) {
    eventually(said, async || {
        let status = does(system, &["status"]).await;
        status.contains(&format!("rotation   {said}")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_paused_relay_delivers_nothing_says_so_everywhere_and_stays_paused_over_a_restart() {
    let system = System::new().await.set("AFTERCOMMIT_RELAY_READY_MAX_PENDING_SECONDS", "1");
    let (name, topic) = (system.redis.relay_name(), system.redis.topic("ops"));
    assert_fails(system.settings(), &["pause"], 2, "give a reason for the audit log: --reason").await;
    assert_fails(system.settings(), &["pause", "--reason", "x"], 1, "no relay named").await;
    let relay = system.start("relay").await;
    wait_until_green(&relay).await;
    // A relay that is busy has looked for a pause a moment ago.
    commit(&system, &topic, "A", 1).await;
    eventually("the first is delivered", async || (delivered(&system).await == 1).then_some(())).await;
    assert_eq!(does(&system, &["pause", "--reason", "a move"]).await, format!("relay {name} is paused\n"));
    commit(&system, &topic, "A", 3).await;
    wait_until_red(&relay, "paused", "paused by an operator").await;
    assert_eq!(
        does(&system, &["pause", "--reason", "again"]).await,
        format!("relay {name} is paused already\n")
    );
    wait_until_red(&relay, "pending", "the limit is 1 s").await;
    assert_eq!(relay.terminate().await, 0);

    let relay = system.start("relay").await;
    wait_until_red(&relay, "paused", "paused by an operator").await;
    assert_eq!(delivered(&system).await, 1);
    let status = json(&system, &["status"]).await;
    assert_eq!(status["relays"][0]["paused"]["reason"], "a move", "{status}");
    assert!(does(&system, &["relay", "list"]).await.contains("PAUSED"));
    wait_for_rotation(&system, "BLOCKED: Redis has not been compared with the position yet").await;
    does(&system, &["resume", "--reason", "moved"]).await;
    wait_until_green(&relay).await;
    wait_for_rotation(&system, "not blocked").await;
    assert_eq!(delivered(&system).await, 4);
    let audit = json(&system, &["audit"]).await;
    let actions: Vec<&str> = items_of(&audit).iter().filter_map(|e| e["action"].as_str()).collect();
    assert_eq!(actions, ["resume", "pause"]);
}

#[tokio::test]
async fn a_dead_listener_turns_readiness_red_and_a_new_one_green_again() -> TestResult {
    let system = System::new().await;
    let relay = system.start("relay").await;
    wait_until_green(&relay).await;
    // From another database: a session cannot close its own.
    let elsewhere = empty_database().await;
    let mut server = elsewhere.connect().await;
    let allow = |allowed: bool| {
        let sql = format!("alter database {} allow_connections {allowed}", system.database.name());
        sqlx::raw_sql(AssertSqlSafe(sql))
    };
    // While the database takes no new connections, the listener stays dead.
    allow(false).execute(&mut server).await?;
    let killed: i64 = sqlx::query_scalar(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = $1",
    )
    .bind(format!("aftercommit relay {} listener", system.redis.relay_name()))
    .fetch_one(&mut server)
    .await?;
    assert_eq!(killed, 1);
    wait_until_red(&relay, "listener", "next poll").await;
    allow(true).execute(&mut server).await?;
    wait_until_green(&relay).await;
    Ok(())
}

#[tokio::test]
async fn parked_events_are_listed_and_one_topic_is_released_while_another_is_discarded() -> TestResult {
    use redis::AsyncCommands;
    let system = System::new().await;
    let topics = [system.redis.topic("kept"), system.redis.topic("given-up")];
    let mut redis = system.redis.connect().await;
    for topic in &topics {
        let _: () = redis.set(crate::harness::keys::history(topic), "in the way").await?;
    }
    let relay = system.start("relay").await;
    for topic in &topics {
        commit(&system, topic, "A", 2).await;
    }
    let listed = eventually("parked", async || {
        let listed = json(&system, &["parked", "list"]).await;
        (items_of(&listed).len() == 2).then_some(listed)
    })
    .await;
    assert_eq!((&listed[0]["events"], &listed[0]["firstId"]), (&2.into(), &"1-1".into()), "{listed}");
    assert!(str_of(&listed[0]["reason"]).contains("WRONGTYPE"), "{listed}");
    assert!(does(&system, &["status"]).await.contains("4 events, 2 topics held"));
    for topic in &topics {
        let _: () = redis.del(crate::harness::keys::history(topic)).await?;
    }
    let (kept, given_up) = (topics[0].as_str(), topics[1].as_str());
    assert_fails(system.settings(), &["parked", "discard", given_up], 1, "--yes").await;
    assert_fails(system.settings(), &["parked", "release", "nothing", "--yes"], 1, "parked list").await;
    does(&system, &["parked", "release", kept, "--yes", "--reason", "mended"]).await;
    does(&system, &["parked", "discard", given_up, "--yes", "--reason", "a test"]).await;
    eventually("nothing is parked", async || {
        items_of(&json(&system, &["parked", "list"]).await).is_empty().then_some(())
    })
    .await;
    commit(&system, &topics[1], "A", 1).await;
    eventually("the discarded topic flows", async || (delivered(&system).await == 3).then_some(())).await;
    let lengths: (u64, u64) = (
        redis.xlen(crate::harness::keys::history(&topics[0])).await?,
        redis.xlen(crate::harness::keys::history(&topics[1])).await?,
    );
    assert_eq!(lengths, (2, 1));
    assert_eq!(relay.terminate().await, 0);
    Ok(())
}

#[tokio::test]
async fn an_events_life_tells_who_gave_it_up_also_if_clients_may_have_it() -> TestResult {
    use redis::AsyncCommands;
    let system = System::new().await;
    let topics = [system.redis.topic("given-up"), system.redis.topic("given-up-all-the-same")];
    let mut redis = system.redis.connect().await;
    for topic in &topics {
        let _: () = redis.set(crate::harness::keys::history(topic), "in the way").await?;
    }
    let _relay = system.start("relay").await;
    let ways: [&[&str]; 2] = [&[], &["--may-have-arrived"]];
    for (row, (topic, way)) in (1..).zip(topics.iter().zip(ways)) {
        commit(&system, topic, "A", 1).await;
        let discard = ["parked", "discard", topic.as_str(), "--yes", "--reason", "a test"];
        let state = async || {
            json(&system, &["events", "show", &row.to_string()]).await[0]["state"].as_str().map(str::to_owned)
        };
        eventually("parked", async || (state().await? == "parked").then_some(())).await;
        does(&system, &[&discard, way].concat()).await;
        eventually("discarded", async || (state().await? == "discarded").then_some(())).await;
        let shown = &json(&system, &["events", "show", &row.to_string()]).await[0];
        assert_eq!(shown["discarded"]["reason"], "a test", "{shown}");
    }
    Ok(())
}

#[tokio::test]
async fn an_events_life_tells_when_it_was_parked_who_released_it_and_when_it_arrived() -> TestResult {
    use redis::AsyncCommands;
    let system = System::new().await;
    let topic = system.redis.topic("released");
    let history = crate::harness::keys::history(&topic);
    let mut redis = system.redis.connect().await;
    let _: () = redis.set(&history, "in the way").await?;
    let _relay = system.start("relay").await;
    commit(&system, &topic, "A", 2).await;
    let state = async |state: &str| {
        eventually(state, async || {
            let listed = json(&system, &["events", "list", "--state", state]).await;
            (items_of(&listed).len() == 2).then_some(())
        })
        .await;
    };
    state("parked").await;
    let _: () = redis.del(&history).await?;
    does(&system, &["parked", "release", topic.as_str(), "--yes", "--reason", "mended"]).await;
    state("delivered").await;

    let entries: Vec<(String, Vec<(String, String)>)> = redis.xrange_all(&history).await?;
    for (row, (id, _)) in [1, 2].into_iter().zip(&entries) {
        let shown = &json(&system, &["events", "show", &row.to_string()]).await[0];
        let time = |name: &str| -> chrono::DateTime<chrono::Utc> {
            shown[name]["at"].as_str().and_then(|at| at.parse().ok()).expect("a time")
        };
        assert!(time("parked") < time("released") && time("released") < time("delivered"), "{shown}");
        assert!(str_of(&shown["parked"]["because"]).contains(["WRONGTYPE", "waits behind"][row - 1]));
        assert_eq!(shown["released"]["reason"], "mended", "{shown}");
        assert_eq!(shown["released"]["who"], json(&system, &["audit"]).await[0]["who"], "{shown}");
        assert_eq!(
            (&shown["state"], &shown["streamId"]),
            (&"delivered".into(), &id.as_str().into()),
            "{shown}"
        );
        assert_eq!(shown["since"], shown["delivered"]["at"], "{shown}");
    }
    assert_eq!(entries.len(), 2);
    let again = json(&system, &["replay", "--topic", topic.as_str(), "--dry-run"]).await;
    assert_eq!(again["events"], 2, "what was released was delivered: {again}");
    Ok(())
}

/// The output with the values that change from run to run replaced.
fn settled(text: &str, replaced: &[(&str, &str)]) -> String {
    let mut text = text.to_owned();
    for (from, to) in replaced {
        text = text.replace(from, to);
    }
    text.lines()
        .map(|line| line.split(", moved ").next().unwrap_or(line).trim_end())
        .collect::<Vec<_>>()
        .join("\n")
}

#[tokio::test]
async fn status_is_one_screen_that_says_first_how_the_relay_is() -> TestResult {
    let system = System::new().await.set("AFTERCOMMIT_SSE_LISTEN", "127.0.0.1:1");
    let relay = system.start("relay").await;
    wait_until_green(&relay).await;
    commit(&system, &system.redis.topic("ops"), "A", 2).await;
    let name = system.redis.relay_name();
    let screen = eventually("idle again", async || {
        let text = does(&system, &["status"]).await;
        (text.contains("1-2") && text.contains("0 events/s") && text.contains("nothing\n")).then_some(text)
    })
    .await;
    let leader = screen.lines().find(|line| line.contains("leader")).ok_or("no leader")?;
    let redis = screen.lines().find(|line| line.starts_with("redis")).ok_or("no line on Redis")?;
    assert!(leader.contains(&format!(":{}:", relay.pid())) && leader.contains(" (Postgres pid "), "{leader}");
    assert!(redis.starts_with("redis  ok: Redis "), "{redis}");
    let expected = "\
relay NAME: delivering
LEADER
  standby    0
  position   1-2
  waiting    nothing
  rate       0 events/s
  parked     nothing
  rotation   not blocked
REDIS
sse    DOWN: nothing answers at 127.0.0.1:1: Connection refused (os error 111)";
    assert_eq!(settled(&screen, &[(leader, "LEADER"), (redis, "REDIS"), (&name, "NAME")]), expected);

    assert_eq!(relay.terminate().await, 0);
    let screen = does(&system, &["status"]).await;
    assert!(screen.contains(&format!("relay {name}: NO LEADER\n  leader     none: start one")), "{screen}");
    Ok(())
}

/// The findings that are not ok, as (check, verdict, evidence).
async fn findings_not_ok(system: &System) -> TestResult<Vec<(String, String, String)>> {
    let output = cli(system.settings(), &["doctor", "--open-for", "0", "--output", "json"]).await;
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    let is_wrong = findings.iter().any(|finding| finding["verdict"] == "wrong");
    assert_eq!(output.status.code(), Some(i32::from(is_wrong)), "{output:?}");
    assert!(findings.len() > 15, "{findings:#?}");
    let text = |finding: &Value, key: &str| str_of(&finding[key]).to_owned();
    Ok(findings
        .iter()
        .filter(|finding| finding["verdict"] != "ok")
        .map(|finding| {
            assert_ne!(text(finding, "fix"), "", "{finding}");
            (text(finding, "check"), text(finding, "verdict"), text(finding, "evidence"))
        })
        .collect())
}

#[tokio::test]
async fn the_doctor_names_what_is_wrong_with_its_evidence_and_its_fix() -> TestResult {
    let system = System::new().await;
    let mut connection = system.database.connect().await;
    // The tests' own servers fail these checks on purpose.
    let mut expected = vec!["postgres durability", "persistence", "open files"];
    if postgres_version(&mut connection).await?.0 < 150_000 {
        // As such a server is installed, every role may create objects there.
        expected.push("schema public");
    }
    let before = findings_not_ok(&system).await?;
    assert!(before.iter().all(|(check, ..)| expected.contains(&check.as_str())), "{before:#?}");

    for done in [
        "alter sequence outbox.event_id_seq cache 20",
        "update outbox.log set system_identifier = 42",
        "begin",
        "select outbox.append('t', 'T', '1')",
        "prepare transaction 'forgotten'",
        "begin",
        "select 'left open'",
    ] {
        sqlx::raw_sql(done).execute(&mut connection).await?;
    }
    let mut after = findings_not_ok(&system).await?;
    after.retain(|finding| !before.contains(finding));
    let of = |name: &str| {
        let found = after.iter().find(|(check, ..)| check == name);
        found.unwrap_or_else(|| panic!("{name} is not found: {after:#?}")).clone()
    };
    assert!(of("sequence cache").2.contains("cache 20"));
    assert!(of("identity").2.contains("the log was made in cluster 42"));
    assert!(of("prepared transactions").2.contains("forgotten"));
    let (_, verdict, evidence) = of("long transactions");
    assert_eq!(verdict, "warning");
    assert!(evidence.contains("idle in transaction") && evidence.contains("pid "), "{evidence}");
    assert_eq!(after.len(), 4, "{after:#?}");
    for end in ["rollback", "rollback prepared 'forgotten'"] {
        sqlx::raw_sql(end).execute(&mut connection).await?;
    }

    let away = system.set("REDIS_URL", "redis://127.0.0.1:1").set("AFTERCOMMIT_JWT_SECRET", "short");
    let output = cli(away.settings(), &["doctor"]).await;
    assert_eq!(output.status.code(), Some(1));
    let text = stdout(&output);
    for part in [
        "WRONG    redis: cannot connect to Redis at 127.0.0.1:1",
        "WRONG    jwt: ",
        "         fix: see [jwt]",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    let verdicts = text
        .lines()
        .filter_map(|line| ["WRONG", "WARNING", "ok"].iter().position(|word| line.starts_with(word)));
    assert!(verdicts.is_sorted(), "the gravest first: {text}");

    // Colours only on a terminal, and not for a user who refuses them.
    assert!(!text.contains('\x1b'), "{text}");
    let red = "\x1b[1;31mWRONG\x1b[0m";
    let seen = stdout(&on_terminal(away.settings(), &["doctor"], "").await);
    assert!(seen.contains(red), "{seen}");
    let plain = stdout(&on_terminal(&away.settings().clone().set("NO_COLOR", "1"), &["doctor"], "").await);
    assert!(plain.contains("WRONG") && !plain.contains('\x1b'), "{plain}");
    Ok(())
}

/// While Redis is away, every part of the system reports it.
#[tokio::test]
async fn a_failure_that_every_part_reports_is_said_once() -> TestResult {
    let redis = start_redis(Vec::new(), None).await;
    let mut system = System::with_redis(redis.url().expose_secret()).await;
    let (relay, sse) = (system.start("relay").await, system.start("sse").await);
    wait_until_green(&relay).await;
    system.set_again("AFTERCOMMIT_RELAY_LISTEN", &relay.address);
    system.set_again("AFTERCOMMIT_SSE_LISTEN", &sse.address);
    redis.stop().await?;
    commit(&system, &Topic::new("order:1")?, "A", 1).await;
    wait_until_red(&relay, "delivery", "cannot connect to Redis").await;
    wait_until_red(&sse, "redis", "Redis").await;
    for screen in ["doctor", "status"] {
        let text = unwrapped(&stdout(&cli(system.settings(), &[screen]).await));
        assert_eq!(text.matches("cannot connect to Redis").count(), 1, "{text}");
        assert!(text.contains("see redis"), "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn who_acts_is_asked_for_where_nobody_is_named() -> TestResult {
    let system = System::new().await;
    let relay = system.start("relay").await;
    wait_until_green(&relay).await;
    let nobody = system.settings().clone().set("USER", "");
    assert_fails(&nobody, &["pause", "--reason", "x"], 2, "who you are, for the audit log: --who NAME").await;
    let by_flag = cli(&nobody, &["pause", "--reason", "x", "--who", "ana"]).await;
    assert_eq!(by_flag.status.code(), Some(0), "{by_flag:?}");
    let asked = on_terminal(&nobody, &["resume"], "bob\n").await;
    assert!(stdout(&asked).contains("Your name, for the audit log: "), "{asked:?}");
    assert_eq!(asked.status.code(), Some(0), "{asked:?}");
    let audit = json(&system, &["audit"]).await;
    let who: Vec<&str> = items_of(&audit).iter().filter_map(|entry| entry["who"].as_str()).collect();
    assert!(who.len() == 2 && who[0].starts_with("bob as ") && who[1].starts_with("ana as "), "{who:?}");
    Ok(())
}
