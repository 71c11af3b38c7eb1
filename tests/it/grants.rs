//! Least privilege: the main stories under roles with exactly the rights that `aftercommit grants` prints,
//! and the statements that each role may not run.

use std::time::Duration;

use redis::AsyncCommands;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

use crate::harness::keys;
use aftercommit::event::{NewEvent, Topic};
use aftercommit::log::rotate;
use aftercommit::outbox;

use crate::commands::{stderr, stdout};
use crate::console::TOKEN;
use crate::harness::{
    Client, Database, Process, Settings, System, TestResult, cli, eventually, items_of, new_event, str_of,
};

pub(crate) const ROLES: [&str; 6] = ["writer", "relay", "sse", "operator", "api", "rebase"];

/// A system with one Postgres role for each part.
pub(crate) struct Cast {
    system: System,
    mark: String,
}

impl Cast {
    /// Roles that may connect and nothing else.
    pub(crate) async fn new() -> Self {
        let cast =
            Self { system: System::new().await, mark: Uuid::new_v4().simple().to_string()[..12].to_owned() };
        for role in ROLES {
            let sql = format!("create role \"{}\" login password 'a test'", cast.name(role));
            cast.owner(&sql).await;
        }
        // As PostgreSQL 15 and later have it.
        cast.owner("revoke create on schema public from public").await;
        cast
    }

    /// The same, with the printed rights of all roles except `rebase`.
    async fn with_rights() -> Self {
        let cast = Self::new().await;
        let sql = cast.printed(&ROLES[..5]).await;
        cast.owner(&sql).await;
        // Once more: it can be run as often as wanted.
        cast.owner(&sql).await;
        cast
    }

    /// A name that needs its quotes.
    fn name(&self, role: &str) -> String {
        format!("aftercommit_test {role}-{}", self.mark)
    }

    pub(crate) async fn printed(&self, roles: &[&str]) -> String {
        let named = roles.iter().flat_map(|role| [format!("--{role}"), self.name(role)]);
        let arguments: Vec<String> = std::iter::once("grants".to_owned()).chain(named).collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        // Without a database: it only prints.
        let output = cli(&Settings::default(), &arguments).await;
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
        stdout(&output)
    }

    pub(crate) async fn owner(&self, sql: &str) {
        let mut connection = self.system.database.connect().await;
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut connection)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    fn url(&self, role: &str) -> String {
        let (_, place) = self.system.database.url().split_once('@').expect("a user");
        format!("postgres://{}:a%20test@{place}", self.name(role).replace(' ', "%20"))
    }

    fn settings(&self, role: &str) -> Settings {
        self.system.settings().clone().set("DATABASE_URL", self.url(role))
    }

    async fn connect(&self, role: &str) -> PgConnection {
        PgConnection::connect(&self.url(role)).await.expect("a connection")
    }

    async fn start(&self, role: &str) -> Process {
        Process::start(role, &self.settings(role)).await
    }

    /// Runs a command as a role; it must end well.
    async fn does(&self, role: &str, arguments: &[&str]) -> String {
        let output = cli(&self.settings(role), arguments).await;
        assert_eq!(output.status.code(), Some(0), "{role} {arguments:?}: {output:?}");
        stdout(&output)
    }

    async fn json(&self, role: &str, arguments: &[&str]) -> Value {
        let said = self.does(role, &[arguments, &["--output", "json"]].concat()).await;
        serde_json::from_str(&said).expect("JSON")
    }

    /// Appends as the writer, by each function of `outbox`.
    async fn append(&self, topic: &Topic, events: u64) -> TestResult {
        let mut connection = self.connect("writer").await;
        let event = |n: u64| new_event(topic, "A", &n);
        let mut tx = connection.begin().await?;
        outbox::lock_topic(&mut tx, topic).await?;
        outbox::append(&mut tx, &event(0)).await?;
        let others: Vec<NewEvent> = (1..events).map(event).collect();
        outbox::append_all(&mut tx, &others).await?;
        tx.commit().await?;
        Ok(())
    }

    async fn wait_for_count(&self, state: &str, count: usize) {
        eventually(&format!("{count} are {state}"), async || {
            let listed = self.json("operator", &["events", "list", "--state", state]).await;
            (items_of(&listed).len() == count).then_some(())
        })
        .await;
    }

    /// The findings of doctor for a role that are not ok, as `check: evidence; fix`.
    pub(crate) async fn doctor(&self, role: &str) -> Vec<String> {
        let output = cli(&self.settings(role), &["doctor", "--role", role, "--output", "json"]).await;
        let findings: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
        let text = |value: &Value| str_of(value).to_owned();
        let ours = [
            "privileges",
            "row level security",
            "rights on the log",
            "schema public",
            "sequence",
            "encoding",
        ];
        findings
            .iter()
            .filter(|finding| finding["verdict"] != "ok" && ours.contains(&text(&finding["check"]).as_str()))
            .map(|finding| {
                format!(
                    "{}: {}; {}",
                    text(&finding["check"]),
                    text(&finding["evidence"]),
                    text(&finding["fix"])
                )
            })
            .collect()
    }
}

#[tokio::test]
async fn the_story_from_a_commit_to_a_browser_runs_with_the_rights_that_are_printed() -> TestResult {
    let cast = Cast::with_rights().await;
    let topic = cast.system.redis.topic("granted");
    let (relay, sse) = (cast.start("relay").await, cast.start("sse").await);
    let user = Uuid::new_v4();
    let token = cast.system.token_with(user, Duration::from_secs(3600), &[topic.as_str()]);
    let client = Client::open(&sse.url(&format!("/streams/{topic}")), &token).await;
    cast.append(&topic, 3).await?;
    client.wait_for_events(3).await;

    let api = cast.start("api").await;
    let session = cast.system.session(&api, user, 2).await;
    let stream = session.listen(&sse).await;
    session.settle_all(Some(1)).await;
    stream.wait_for_events(3).await;
    for role in ["writer", "relay", "sse", "operator", "api"] {
        assert_eq!(cast.doctor(role).await, [""; 0], "{role}");
    }
    assert_eq!(relay.terminate().await, 0);
    Ok(())
}

/// What a relay does now and then: it empties slots, and drops what was noted of their rows.
#[tokio::test]
async fn rotation_runs_with_the_rights_that_are_printed() -> TestResult {
    let cast = Cast::with_rights().await;
    let topic = cast.system.redis.topic("old");
    cast.append(&topic, 3).await?;
    let mut owner = cast.system.database.connect().await;
    outbox::schema::set_rotation(&mut owner, 1).await?;
    let relay = cast.start("relay").await;
    cast.wait_for_count("delivered", 3).await;
    relay.terminate().await;
    // As the relay's rotation does it, and more often.
    let mut connection = cast.connect("relay").await;
    eventually("the slot is emptied", async || {
        rotate::rotate(&mut connection, Duration::from_secs(1)).await.expect("the right to rotate");
        let left: i64 = sqlx::query_scalar("select count(*) from outbox.event")
            .fetch_one(&mut owner)
            .await
            .expect("a number");
        (left == 0).then_some(())
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn operators_work_with_the_rights_that_are_printed() -> TestResult {
    let cast = Cast::with_rights().await;
    let topic = cast.system.redis.topic("operated");
    let mut redis = cast.system.redis.connect().await;
    let relay = cast.start("relay").await;
    cast.append(&topic, 2).await?;
    cast.wait_for_count("delivered", 2).await;
    cast.does("operator", &["pause", "--reason", "a test"]).await;
    assert!(!cast.json("operator", &["status"]).await["relays"][0]["paused"].is_null());
    cast.does("operator", &["resume", "--reason", "a test"]).await;
    assert_eq!(
        cast.does("operator", &["replay", "--all", "--yes", "--reason", "a test"]).await,
        "2 events replayed (replay 1)\n"
    );
    cast.wait_for_count("delivered", 4).await;
    cast.does("operator", &["replay", "list"]).await;
    cast.does("operator", &["revoke", "--user", "ana", "--reason", "a test"]).await;
    cast.does("operator", &["revoke", "--user", "ana", "--reason", "once more"]).await;

    let held = cast.system.redis.topic("held");
    for action in ["release", "discard"] {
        let _: () = redis.del(keys::history(&held)).await?;
        let _: () = redis.set(keys::history(&held), "in the way").await?;
        cast.append(&held, 2).await?;
        cast.wait_for_count("parked", 2).await;
        let _: () = redis.del(keys::history(&held)).await?;
        let done = cast.does("operator", &["parked", action, held.as_str(), "--yes"]).await;
        assert_eq!(
            done,
            format!("{held}: 2 events {action}{}\n", if action == "release" { "d" } else { "ed" })
        );
    }
    let shown = cast.json("operator", &["events", "show", "1"]).await;
    assert_eq!(shown[0]["state"], "delivered");
    cast.does("operator", &["relay", "list"]).await;
    let audit = cast.json("operator", &["audit"]).await;
    let actions: Vec<&str> = items_of(&audit).iter().filter_map(|entry| entry["action"].as_str()).collect();
    assert_eq!(actions, ["discard", "release", "revoke", "revoke", "replay", "resume", "pause"]);
    assert_eq!(relay.terminate().await, 0);
    Ok(())
}

#[tokio::test]
async fn a_relay_with_a_console_has_its_operators_rights_too() -> TestResult {
    let cast = Cast::with_rights().await;
    let both = cast.name("relay");
    let output = cli(&Settings::default(), &["grants", "--operator", &both]).await;
    cast.owner(&stdout(&output)).await;
    let settings = cast.settings("relay").set("AFTERCOMMIT_OPERATOR_TOKEN", TOKEN);
    let relay = Process::start("relay", &settings).await;
    let topic = cast.system.redis.topic("console");
    cast.append(&topic, 1).await?;
    cast.wait_for_count("delivered", 1).await;
    let name = cast.system.redis.relay_name();
    for (path, body) in [
        ("pause", serde_json::json!({ "relay": name, "reason": "x" })),
        ("resume", serde_json::json!({ "relay": name, "reason": "x" })),
        ("replay", serde_json::json!({ "relay": name, "reason": "x", "selection": { "topic": topic } })),
    ] {
        let request =
            cast.system.http().post(relay.url(&format!("/console/{path}"))).bearer_auth(TOKEN).json(&body);
        let answer = request.send().await?;
        assert_eq!(answer.status(), 200, "{path}: {}", answer.text().await?);
    }
    cast.wait_for_count("delivered", 2).await;
    Ok(())
}

#[tokio::test]
async fn a_rebase_runs_with_the_rights_that_are_printed_for_it() -> TestResult {
    let mut cast = Cast::with_rights().await;
    let topic = cast.system.redis.topic("rebased");
    let relay = cast.start("relay").await;
    cast.append(&topic, 3).await?;
    cast.wait_for_count("delivered", 3).await;
    assert_eq!(relay.terminate().await, 0);
    let backup: Database = cast.system.database.backup().await;
    let relay = cast.start("relay").await;
    cast.append(&topic, 2).await?;
    cast.wait_for_count("delivered", 5).await;
    assert_eq!(relay.terminate().await, 0);

    cast.system.database = backup;
    cast.owner(&format!("revoke temporary on database {} from public", cast.system.database.name())).await;
    let lacking = cast.doctor("rebase").await.remove(0);
    assert!(lacking.contains("temporary on database aftercommit_test"), "{lacking}");
    let sql = cast.printed(&["rebase"]).await;
    cast.owner(&sql).await;
    let rebased = cast.json("rebase", &["rebase", "--yes", "--reason", "a test"]).await;
    assert_eq!((&rebased["done"], &rebased["lost"]), (&true.into(), &2.into()), "{rebased}");
    let _relay = cast.start("relay").await;
    cast.append(&topic, 1).await?;
    cast.wait_for_count("delivered", 4).await;
    assert!(
        cast.doctor("rebase").await.iter().any(|found| found.starts_with("rights on the log: ")),
        "to be taken back"
    );
    Ok(())
}

/// Each function of the schema is in the list of rights, unless only the schema's own functions call it.
#[tokio::test]
async fn every_function_is_granted_to_somebody_or_to_nobody_on_purpose() -> TestResult {
    const INTERNAL: [&str; 3] = ["is_event", "refuse_event", "token_is_taken"];
    let cast = Cast::new().await;
    let sql = cast.printed(&ROLES).await;
    let functions: Vec<String> = sqlx::query_scalar(
        "select distinct p.proname::text from pg_proc p where p.pronamespace = 'outbox'::regnamespace
         order by 1",
    )
    .fetch_all(&mut cast.system.database.connect().await)
    .await?;
    for function in functions {
        let is_granted = sql.contains(&format!("grant execute on function outbox.{function}("));
        assert_eq!(is_granted, !INTERNAL.contains(&function.as_str()), "{function}");
    }
    Ok(())
}

/// Statements that a role is refused for want of a right.
#[tokio::test]
async fn no_role_may_do_what_it_does_not_need() -> TestResult {
    let cast = Cast::with_rights().await;
    cast.append(&cast.system.redis.topic("kept"), 1).await?;
    const EVENT: &str = "(event_id, topic, type, payload";
    const VALUES: &str = "(gen_random_uuid(), 't', 'T', '1'";
    let with = |column: &str, value: &str| {
        format!("insert into outbox.event {EVENT}, {column}) values {VALUES}, {value})")
    };
    let changes_rows = [
        "update outbox.event set xid = '1'".to_owned(),
        "delete from outbox.event".to_owned(),
        "truncate outbox.event".to_owned(),
        with("id", "1::bigint << 60"),
        with("xid", "'3'"),
        with("slot", "0"),
        with("created_at", "now() - interval '1 year'"),
        "select setval('outbox.event_id_seq', 1)".to_owned(),
        "update outbox.log set id = gen_random_uuid()".to_owned(),
        "delete from outbox.checkpoint".to_owned(),
        "create table outbox.mine ()".to_owned(),
        "alter table outbox.event add column mine text".to_owned(),
    ];
    let reads = ["event", "parked", "checkpoint", "audit", "pause"]
        .map(|table| format!("select from outbox.{table}"));
    let appends = ["select outbox.append('t', 'T', '1')".to_owned()];
    let operates = [
        "insert into outbox.pause (relay, who, reason) values ('main', 'me', 'mine')".to_owned(),
        "insert into outbox.audit (who, action, reason, selection, events) values ('me', 'x', 'x', '{}', 1)"
            .to_owned(),
        "update outbox.replay set finished = true".to_owned(),
        "insert into outbox.revocation (kind, subject, who, reason) values ('user', 'me', 'me', 'x')"
            .to_owned(),
        "update outbox.revocation set at = now() - interval '1 year'".to_owned(),
    ];
    let forgives = ["delete from outbox.revocation".to_owned()];
    let publishes =
        ["truncate outbox.event_0".to_owned(), "insert into outbox.relay (name) values ('mine')".to_owned()];
    let copies = [
        format!("insert into outbox.event {EVENT}) values {VALUES})"),
        "select nextval('outbox.event_id_seq')".to_owned(),
    ];
    for (role, refused) in [
        ("writer", [&changes_rows[..], &reads, &operates, &forgives, &publishes, &copies].concat()),
        ("sse", [&changes_rows[..], &reads, &operates, &forgives, &publishes, &copies, &appends].concat()),
        (
            "relay",
            [
                &changes_rows[..],
                &operates,
                &forgives,
                &copies,
                &appends,
                &["select from outbox.audit".to_owned()],
            ]
            .concat(),
        ),
        ("operator", [&changes_rows[..], &forgives, &publishes, &appends].concat()),
        ("api", [&changes_rows[..], &reads, &operates, &forgives, &publishes, &copies].concat()),
    ] {
        let mut connection = cast.connect(role).await;
        for sql in refused {
            let mut tx = connection.begin().await?;
            let done = sqlx::raw_sql(AssertSqlSafe(sql.as_str())).execute(&mut *tx).await;
            let code = done.err().and_then(|error| Some(error.as_database_error()?.code()?.into_owned()));
            assert_eq!(code.as_deref(), Some("42501"), "{role} may: {sql}");
            tx.rollback().await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_doctor_names_what_a_role_lacks_what_others_have_too_much_and_what_mends_it() -> TestResult {
    let cast = Cast::new().await;
    for role in ["writer", "relay", "sse", "operator", "api"] {
        let found = cast.doctor(role).await;
        let lacks = found
            .iter()
            .find(|found| found.starts_with("privileges: "))
            .unwrap_or_else(|| panic!("{role}: {found:?}"));
        assert!(lacks.contains("usage on schema outbox"), "{role}: {lacks}");
        assert!(lacks.contains(&format!("aftercommit grants --{role}")), "{role}: {lacks}");
    }
    let sql = cast.printed(&ROLES[..5]).await;
    cast.owner(&sql).await;
    assert_eq!(cast.doctor("operator").await, [""; 0]);

    cast.owner(&format!("revoke insert on outbox.audit from \"{}\"", cast.name("operator"))).await;
    let found = cast.doctor("operator").await;
    assert!(
        found[0].contains("insert on table outbox.audit")
            && found[0].contains("grant insert on table outbox.audit to"),
        "{found:?}"
    );
    cast.owner(&sql).await;

    for (done, role, expected, mend, undone) in [
        (
            "alter table outbox.pause enable row level security",
            "relay",
            "row level security: on for pause",
            "alter table outbox.pause disable row level security",
            "alter table outbox.pause disable row level security",
        ),
        (
            "grant insert on outbox.event to public",
            "operator",
            "PUBLIC insert on outbox.event",
            "aftercommit grants --writer",
            "revoke insert on outbox.event from public",
        ),
        (
            "grant update (xid) on outbox.event to public",
            "operator",
            "PUBLIC update on outbox.event",
            "aftercommit grants --writer",
            "revoke update (xid) on outbox.event from public",
        ),
        (
            "grant create on schema public to public",
            "operator",
            "schema public: every role",
            "revoke create on schema public from public",
            "revoke create on schema public from public",
        ),
    ] {
        cast.owner(done).await;
        let found = cast.doctor(role).await;
        assert!(
            found.iter().any(|found| found.contains(expected) && found.contains(mend)),
            "{done}: {found:?}"
        );
        cast.owner(undone).await;
        assert_eq!(cast.doctor(role).await, [""; 0], "{undone}");
    }
    cast.append(&cast.system.redis.topic("ids"), 5).await?;
    cast.owner("select setval('outbox.event_id_seq', 2)").await;
    let found = cast.doctor("operator").await;
    assert!(
        found.iter().any(|found| found.starts_with("sequence: outbox.event_id_seq is at 2, and ids up to 5")),
        "{found:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_database_that_takes_any_bytes_is_wrong() -> TestResult {
    let system = System::new().await;
    let name = format!("aftercommit_test_{}", Uuid::new_v4().simple());
    let sql =
        format!("create database {name} encoding 'SQL_ASCII' lc_collate 'C' lc_ctype 'C' template template0");
    let mut connection = system.database.connect().await;
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await?;
    let url = system.database.url().replace(system.database.name(), &name);
    let output = cli(&system.settings().clone().set("DATABASE_URL", url), &["doctor"]).await;
    assert_eq!(output.status.code(), Some(1));
    let said = stdout(&output);
    assert!(said.contains("WRONG    encoding: SQL_ASCII\n         fix: move the data"), "{said}");
    Ok(())
}

#[tokio::test]
async fn grants_wants_names_and_takes_any() {
    let none = Settings::default();
    for wrong in [
        &["grants"][..],
        &["grants", "--writer", ""],
        &["grants", "--writer", "a\nb"],
        &["grants", "--nobody", "x"],
    ] {
        assert_eq!(cli(&none, wrong).await.status.code(), Some(2), "{wrong:?}");
    }
    let odd = cli(&none, &["grants", "--sse", "$grants$\"; drop schema outbox cascade; --"]).await;
    assert!(stdout(&odd).contains("to \"$grants$\"\"; drop schema outbox cascade; --\";"), "{odd:?}");
}
