//! Each table, screen and help text, compared with a file in `tests/it/snapshots`. Values that change from
//! run to run are replaced. `UPDATE_SNAPSHOTS=1` rewrites the files: read the diff before committing it.

use std::fmt::Write;
use std::path::Path;

use redis::AsyncCommands;
use regex::Regex;

use aftercommit::event::Topic;

use crate::commands::{commit, json};
use crate::harness::{Settings, System, TestResult, cli, eventually, items_of};

/// A command's output with the values that change from run to run replaced, in tables by text of the same
/// width.
fn settled(text: &str, names: &[(String, &str)]) -> TestResult<String> {
    let patterns = [
        (
            r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
            "00000000-0000-4000-8000-000000000000",
        ),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", "2026-01-31 10:00:00Z"),
        (r"\b[\d.]+ (ms|s|min)\b {2,}", "N s  "),
        (r"\b[\d.]+ (ms|s|min)\b", "N s"),
        (r"transaction \d+", "transaction XID"),
        (r"from \d+:\d+:[\d,]* to \d+:\d+:[\d,]*", "from XIDS to XIDS"),
        (r"pid \d+( at [0-9.]+)?", "pid PID"),
        (r"\S+:PID(:[0-9a-f]{8})?", "HOST:PID"),
        (r"Redis \d.*", "Redis VERSION"),
        (r"by \S+ as \S+", "by WHO"),
        (r"tests as [a-z]+", "tests as postgres"),
    ];
    let mut text = text.to_owned();
    for (from, to) in names {
        text = text.replace(from, to);
    }
    for (pattern, with) in patterns {
        text = Regex::new(pattern)?.replace_all(&text, with).into_owned();
    }
    Ok(text.lines().map(|line| line.trim_end().to_owned() + "\n").collect())
}

/// Compares with the snapshot of this name, or writes it.
fn assert_as_before(name: &str, text: &str) -> TestResult {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/snapshots").join(format!("{name}.txt"));
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&file, text)?;
        return Ok(());
    }
    let before = std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(text, before, "{name} differs: UPDATE_SNAPSHOTS=1 rewrites {}", file.display());
    Ok(())
}

/// A system with short names, so that its tables are as wide as in production.
struct Screens {
    system: System,
    topic: Topic,
    names: Vec<(String, &'static str)>,
    text: String,
}

impl Screens {
    async fn new() -> Self {
        let mark = uuid::Uuid::new_v4().simple().to_string()[..6].to_owned();
        let mut system = System::new().await.set("AFTERCOMMIT_SSE_LISTEN", "127.0.0.1:1");
        let relay = format!("main-{mark}");
        system.set_again("AFTERCOMMIT_RELAY_NAME", &relay);
        let topic = Topic::new(format!("order:{mark}")).expect("a topic");
        let namespace = system.redis.relay_name();
        let names = vec![(relay, "main-424242"), (topic.to_string(), "order:424242"), (namespace, "staging")];
        Self { system, topic, names, text: String::new() }
    }

    /// Runs a command and keeps what it said.
    async fn shows(&mut self, arguments: &[&str]) -> String {
        let output = cli(self.system.settings(), arguments).await;
        let said = String::from_utf8(output.stdout).expect("UTF-8");
        let besides = String::from_utf8(output.stderr).expect("UTF-8");
        let line = arguments.join(" ");
        write!(self.text, "$ aftercommit {line}\n{said}").expect("a text");
        for line in besides.lines() {
            writeln!(self.text, "! {line}").expect("a text");
        }
        writeln!(self.text, "= {}\n", output.status.code().expect("a code")).expect("a text");
        said
    }

    fn assert_as_before(&self, name: &str) -> TestResult {
        assert_as_before(name, &settled(&self.text, &self.names)?)
    }

    async fn wait_for_count(&self, state: &str, count: usize) {
        eventually(&format!("{count} are {state}"), async || {
            let listed = json(&self.system, &["events", "list", "--state", state]).await;
            (items_of(&listed).len() == count).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn screens_of_an_empty_log() -> TestResult {
    let mut screens = Screens::new().await;
    for command in ["status", "relay list", "events list", "parked list", "replay list", "audit"] {
        screens.shows(&command.split(' ').collect::<Vec<_>>()).await;
    }
    screens.assert_as_before("empty")?;
    Ok(())
}

#[tokio::test]
async fn screens_of_deliveries_a_pause_and_a_replay() -> TestResult {
    let mut screens = Screens::new().await;
    let topic = screens.topic.clone();
    commit(&screens.system, &topic, "PAID", 1).await;
    screens.shows(&["events", "show", "1"]).await;
    let relay = screens.system.start("relay").await;
    screens.names.push((format!(":{}", relay.pid()), ":PID"));
    screens.wait_for_count("delivered", 1).await;
    commit(&screens.system, &topic, "SHIPPED", 2).await;
    screens.wait_for_count("delivered", 3).await;
    screens.shows(&["events", "list"]).await;
    screens.shows(&["events", "show", "3"]).await;
    screens.shows(&["replay", "--type", "SHIPPED", "--dry-run"]).await;
    screens.shows(&["replay", "--type", "SHIPPED"]).await;
    screens.shows(&["replay", "--type", "SHIPPED", "--yes"]).await;
    screens.shows(&["replay", "--type", "SHIPPED", "--yes", "--reason", "a lost cache"]).await;
    screens.wait_for_count("delivered", 5).await;
    screens.shows(&["replay", "list"]).await;
    screens.shows(&["events", "show", "2"]).await;
    screens.shows(&["events", "show", "4"]).await;
    screens.shows(&["pause", "--reason", "Redis is being moved"]).await;
    // A pause outlives the process.
    assert_eq!(relay.terminate().await, 0);
    let relay = screens.system.start("relay").await;
    screens.names.push((format!(":{}", relay.pid()), ":PID"));
    commit(&screens.system, &topic, "CLOSED", 1).await;
    eventually("the new relay says that it leads", async || {
        let status = json(&screens.system, &["status"]).await;
        (status["relays"][0]["processes"][0]["role"] == "leading").then_some(())
    })
    .await;
    for command in ["status", "relay list", "events show 6", "audit"] {
        screens.shows(&command.split(' ').collect::<Vec<_>>()).await;
    }
    assert_eq!(relay.terminate().await, 0);
    screens.shows(&["rebase", "--dry-run"]).await;
    screens.assert_as_before("deliveries")?;
    Ok(())
}

#[tokio::test]
async fn screens_of_parked_events() -> TestResult {
    let mut screens = Screens::new().await;
    let topic = screens.topic.clone();
    let mut redis = screens.system.redis.connect().await;
    let _: () = redis.set(screens.system.redis.keys().history(&topic), "in the way").await?;
    let relay = screens.system.start("relay").await;
    screens.names.push((format!(":{}", relay.pid()), ":PID"));
    commit(&screens.system, &topic, "PAID", 2).await;
    screens.wait_for_count("parked", 2).await;
    let lines = ["parked list", "replay --parked --dry-run", "events show 2", "parked release nothing --yes"];
    for command in lines {
        screens.shows(&command.split(' ').collect::<Vec<_>>()).await;
    }
    let name: &str = topic.as_str();
    screens.shows(&["parked", "discard", name, "--yes", "--reason", "a test order"]).await;
    eventually("nothing is parked", async || {
        items_of(&json(&screens.system, &["parked", "list"]).await).is_empty().then_some(())
    })
    .await;
    screens.shows(&["events", "show", "2"]).await;
    screens.assert_as_before("parked")?;
    assert_eq!(relay.terminate().await, 0);
    Ok(())
}

#[tokio::test]
async fn screens_of_one_parked_event_and_its_release() -> TestResult {
    let mut screens = Screens::new().await;
    let topic = screens.topic.clone();
    let name = topic.as_str();
    let mut redis = screens.system.redis.connect().await;
    let _: () = redis.set(screens.system.redis.keys().history(&topic), "in the way").await?;
    let relay = screens.system.start("relay").await;
    screens.names.push((format!(":{}", relay.pid()), ":PID"));
    commit(&screens.system, &topic, "PAID", 1).await;
    screens.wait_for_count("parked", 1).await;
    screens.shows(&["parked", "list"]).await;
    screens.shows(&["replay", "--parked", "--reason", "mended"]).await;
    screens.shows(&["parked", "release", name, "--reason", "mended"]).await;
    let _: () = redis.del(screens.system.redis.keys().history(&topic)).await?;
    screens.shows(&["parked", "release", name, "--yes", "--reason", "the key was deleted"]).await;
    screens.wait_for_count("delivered", 1).await;
    screens.shows(&["events", "show", "1"]).await;
    screens.shows(&["replay", "--all", "--dry-run"]).await;
    screens.assert_as_before("released")?;
    assert_eq!(relay.terminate().await, 0);
    Ok(())
}

/// What each check finds depends on the machine; which checks there are, and how they are told, does not.
#[tokio::test]
async fn screen_of_the_doctor() -> TestResult {
    let mut screens = Screens::new().await;
    let text = screens.shows(&["doctor"]).await;
    let mut checks: Vec<String> = text
        .lines()
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| Some(format!("{}\n", line.split_once(": ")?.0.split_at(9).1)))
        .collect();
    checks.sort();
    assert_as_before("doctor", &checks.concat())?;
    Ok(())
}

#[tokio::test]
async fn what_the_usual_mistakes_say() -> TestResult {
    let mut screens = Screens::new().await;
    for command in [
        "events show x",
        "events show",
        "replay x --reason x",
        "pause",
        "events show 77",
        "events list --since yesterday",
        "events list --topic no_such",
        "replay --all --topic order:1 --reason x",
        "replay --resume 77",
        "replay --topic no_such --reason x --yes",
        "parked release no/such --yes",
        "resume nobody",
        "rebase --dry-run",
    ] {
        screens.shows(&command.split(' ').collect::<Vec<_>>()).await;
    }
    screens.system.unset("DATABASE_URL");
    screens.shows(&["status"]).await;
    screens.system.set_again("DATABASE_URL", "postgres://u:p@127.0.0.1:1/app");
    screens.shows(&["status"]).await;
    screens.system.set_again("DATABASE_URL", "postgres://u:p@127.0.0.1:1,127.0.0.1:2/app");
    screens.shows(&["status"]).await;
    screens.assert_as_before("mistakes")?;
    Ok(())
}

/// Each number that `events show` computes is the one that Redis has.
#[tokio::test]
async fn the_stream_id_that_is_told_is_the_one_in_redis() -> TestResult {
    let system =
        System::new().await.set("AFTERCOMMIT_RELAY_BATCH_SIZE", "7").set("AFTERCOMMIT_RELAY_CHUNK_SIZE", "7");
    let topics = [system.redis.topic("a"), system.redis.topic("b")];
    commit(&system, &topics[0], "A", 30).await;
    commit(&system, &topics[1], "A", 5).await;
    let relay = system.start("relay").await;
    eventually("delivered", async || {
        let listed = json(&system, &["events", "list", "--state", "delivered", "--limit", "100"]).await;
        (items_of(&listed).len() == 35).then_some(())
    })
    .await;
    let mut redis = system.redis.connect().await;
    for topic in &topics {
        let entries: Vec<(String, std::collections::HashMap<String, String>)> = redis::cmd("XRANGE")
            .arg(system.redis.keys().history(topic))
            .arg("-")
            .arg("+")
            .query_async(&mut redis)
            .await?;
        assert!(entries.len() >= 5);
        for (id, fields) in entries.iter().step_by(3) {
            let shown = json(&system, &["events", "show", &fields["event"]]).await;
            assert_eq!(shown[0]["streamId"], id.as_str(), "{shown}");
            assert!(shown[0]["delivered"]["afterSeconds"].as_f64().ok_or("no time")? > 0.0, "{shown}");
        }
    }
    // Once the checkpoints of that time are rotated away, the command does not guess.
    let mut connection = system.database.connect().await;
    sqlx::query("delete from outbox.checkpoint c where n < (select max(n) from outbox.checkpoint)")
        .execute(&mut connection)
        .await?;
    let shown = json(&system, &["events", "show", "1"]).await;
    assert_eq!((&shown[0]["streamId"], &shown[0]["delivered"]), (&().into(), &().into()), "{shown}");
    assert_eq!(relay.terminate().await, 0);
    Ok(())
}

#[tokio::test]
async fn every_command_has_a_help_with_an_example_that_fits_80_columns() -> TestResult {
    let none = Settings::default();
    let commands = [
        "",
        "api",
        "relay",
        "relay list",
        "sse",
        "dev",
        "migrate",
        "token",
        "config",
        "config check",
        "config show",
        "status",
        "doctor",
        "grants",
        "events",
        "events list",
        "events show",
        "replay",
        "replay list",
        "parked",
        "parked list",
        "parked release",
        "parked discard",
        "pause",
        "resume",
        "audit",
        "healthcheck",
        "completions",
        "man",
        "rebase",
    ];
    let mut text = String::new();
    for command in commands {
        let arguments: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
        let output = cli(&none, &arguments).await;
        let help = String::from_utf8(output.stdout)?;
        assert!(help.contains("Example"), "{command}: no example\n{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 80), "{command}: too wide\n{help}");
        writeln!(text, "$ aftercommit {}\n{help}", arguments.join(" "))?;
    }
    assert_as_before("help", &settled(&text, &[])?)?;
    Ok(())
}
