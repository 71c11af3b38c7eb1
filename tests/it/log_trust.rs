//! The log trusts neither roles, search paths, servers, settings nor values.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

use aftercommit::log::rotate;
use aftercommit::log::{Error, Position, checkpoint, read};
use aftercommit::outbox;
use aftercommit::outbox::schema::set_rotation;
use aftercommit::postgres;

use crate::append_door::{execute, window_of};
use crate::harness::{Database, Line, TestResult, cli, database, empty_database, eventually, new_event};
use crate::postgres_version::postgres_version;

/// A role with a password, and the address of a database for it. Dropped with what it owns by
/// [`Guest::leave`].
pub(crate) struct Guest {
    pub(crate) role: String,
    url: String,
}

impl Guest {
    pub(crate) async fn new(database: &Database) -> TestResult<Self> {
        let role = format!("guest_{}", Uuid::new_v4().simple());
        let mut admin = database.connect().await;
        execute(&mut admin, &format!("create role {role} login password 'guest'")).await;
        let address = database.url().rsplit('@').next().ok_or("no address")?;
        Ok(Self { url: format!("postgres://{role}:guest@{address}"), role })
    }

    pub(crate) async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.expect("a guest's connection")
    }

    pub(crate) async fn leave(self, admin: &mut PgConnection) {
        execute(admin, &format!("drop owned by {0}; drop role {0}", self.role)).await;
    }
}

fn settings(database: &Database) -> postgres::Settings {
    postgres::Settings {
        url: database.url().to_owned().into(),
        direct_url: Default::default(),
        password_command: Default::default(),
        max_connections: 2,
        statement_timeout_ms: 20_000,
    }
}

// --- search paths ---

#[tokio::test]
async fn every_function_and_every_connection_pins_its_search_path() -> TestResult {
    let database = database().await;
    let mut admin = database.connect().await;
    let unpinned: Vec<String> = sqlx::query_scalar(
        "select p.oid::regprocedure::text from pg_proc p join pg_namespace n on n.oid = p.pronamespace
         where n.nspname in ('outbox', 'uploads')
           and not coalesce('search_path=pg_catalog, pg_temp' = any (p.proconfig), false)
           and p.proname not in (
             'is_delivered', 'slot_at', 'rotation_seconds', 'is_event', 'bytes_of', 'token_is_taken')",
    )
    .fetch_all(&mut admin)
    .await?;
    assert!(unpinned.is_empty(), "{unpinned:?}");
    let mut ours = settings(&database).connect("a test").await?;
    let mut pooled = settings(&database).lazy_pool("a test")?.acquire().await?;
    for connection in [&mut ours, &mut *pooled] {
        for (setting, value) in [("search_path", "pg_catalog, pg_temp"), ("row_security", "off")] {
            let show = AssertSqlSafe(format!("show {setting}"));
            let found: String = sqlx::query_scalar(show).fetch_one(&mut *connection).await?;
            assert_eq!(found, value, "{setting}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn operators_and_functions_that_others_plant_never_run() -> TestResult {
    let mut line = Line::new().await;
    let mut admin = line.system.database.connect().await;
    let guest = Guest::new(&line.system.database).await?;
    execute(&mut admin, &format!("grant create on schema public to {}", guest.role)).await;
    let mut planter = guest.connect().await;
    execute(&mut planter, "create sequence public.trapped; grant all on sequence public.trapped to public")
        .await;
    let operators = [
        ("%", "bigint", "integer"),
        ("%", "integer", "smallint"),
        ("&", "bigint", "integer"),
        ("||", "text", "bigint"),
        ("=", "xid8", "bigint"),
        ("-", "smallint", "bigint"),
    ];
    for (nth, (operator, left, right)) in operators.into_iter().enumerate() {
        let plant = format!(
            "create function public.trap_{nth}({left}, {right}) returns {left} language plpgsql as
             $$ begin perform nextval('public.trapped'); return $1; end $$;
             create operator public.{operator} (function = public.trap_{nth}, leftarg = {left},
               rightarg = {right})"
        );
        execute(&mut planter, &plant).await;
    }
    for function in
        ["least(bigint, bigint)", "octet_length(json)", "setval(text, bigint)", "greatest(bigint, integer)"]
    {
        let plant = format!(
            "create function public.{} returns bigint language plpgsql as
             $$ begin perform nextval('public.trapped'); return 1; end $$",
            function.replace("least", "\"least\"").replace("greatest", "\"greatest\"")
        );
        execute(&mut planter, &plant).await;
    }
    line.relay.signal("KILL").await;
    line.relay = line.system.start("relay").await;
    line.append(3).await;
    line.wait_until_whole().await;
    execute(
        &mut admin,
        "select outbox.append('t', 'T', '1'::json); select outbox.append('t', 'T', '{}'::jsonb)",
    )
    .await;
    set_rotation(&mut admin, 7).await?;
    for command in [&["status"][..], &["doctor"], &["events", "list"], &["replay", "list"], &["migrate"]] {
        cli(line.system.settings(), command).await;
    }
    line.relay.signal("KILL").await;
    eventually("nobody leads", async || {
        cli(line.system.settings(), &["rebase", "--dry-run"]).await.status.success().then_some(())
    })
    .await;
    rotate::rotate(&mut admin, Duration::ZERO).await?;
    let trapped: bool =
        sqlx::query_scalar("select is_called from public.trapped").fetch_one(&mut admin).await?;
    assert!(!trapped, "something planted has run");
    guest.leave(&mut admin).await;
    Ok(())
}

// --- servers ---

#[tokio::test]
async fn a_server_that_lags_proves_nothing() -> TestResult {
    let database = database().await;
    let (connection, begun) = window_of(&database, 2, 1).await?;
    connection.close().await?;
    let lagging = database.backup().await;
    let mut writer = database.connect().await;
    // The writer closes the window and opens one that the lagging server does not have.
    execute(&mut writer, "select outbox.append('t', 'T', '1')").await;
    let last = 2;
    let position = checkpoint::close_window(&mut writer, "main", &begun, last, 2).await?;
    let mut reader = lagging.connect().await;
    let limit = read::Limit { events: 10, bytes: 1_000_000 };
    let read_there = read::batch(&mut reader, "main", &position, 0, limit).await;
    assert!(matches!(read_there, Err(Error::StaleReader { n: 3, .. })), "{read_there:?}");
    let read_here = read::batch(&mut writer, "main", &position, 0, limit).await?;
    assert_eq!(read_here.rows.len(), 1);
    // The same number with other contents: another relay has advanced that server.
    let other = Position { next_seq: 7, ..position };
    let read_there = read::batch(&mut writer, "main", &other, 0, limit).await;
    assert!(matches!(read_there, Err(Error::StaleReader { .. })), "{read_there:?}");
    Ok(())
}

// --- roles and settings ---

#[tokio::test]
async fn a_role_that_cannot_deliver_cannot_keep_the_lead() -> TestResult {
    let mut line = Line::new().await;
    line.append(1).await;
    line.wait_until_whole().await;
    line.relay.signal("KILL").await;
    let guest = Guest::new(&line.system.database).await?;
    let mut admin = line.system.database.connect().await;
    let key: i64 = sqlx::query_scalar("select lead_key from outbox.relay").fetch_one(&mut admin).await?;
    let mut stranger = guest.connect().await;
    sqlx::query("select pg_advisory_lock($1)").bind(key).execute(&mut stranger).await?;
    line.relay = line.system.start("relay").await;
    line.append(2).await;
    line.wait_until_whole().await;
    line.relay.wait_for_log(&guest.role).await;
    let other: i64 = sqlx::query_scalar("select lead_key from outbox.relay").fetch_one(&mut admin).await?;
    assert_ne!(key, other);
    stranger.close().await?;
    guest.leave(&mut admin).await;
    Ok(())
}

#[tokio::test]
async fn row_level_security_stops_a_relay_that_is_not_the_owner_and_loses_nothing() -> TestResult {
    let mut line = Line::new().await;
    line.append(1).await;
    line.wait_until_whole().await;
    let guest = Guest::new(&line.system.database).await?;
    let mut admin = line.system.database.connect().await;
    let grants = format!(
        "grant usage on schema outbox to {0}; grant all on all tables in schema outbox to {0};
         grant all on all sequences in schema outbox to {0};
         grant execute on all functions in schema outbox to {0};
         alter table outbox.event enable row level security;
         alter table outbox.parked enable row level security;
         alter table outbox.pause enable row level security",
        guest.role
    );
    // Before the tables are locked, one after the other: the relay locks some of them in another order.
    line.relay.signal("KILL").await;
    execute(&mut admin, &grants).await;
    let owners = line.system.database.url().to_owned();
    line.system.set_again("DATABASE_URL", &guest.url);
    line.relay = line.system.start("relay").await;
    line.append(3).await;
    line.wait_for_failure("auth").await;
    line.relay.wait_for_log("row-level security").await;
    let doctor = cli(line.system.settings(), &["doctor"]).await;
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(doctor.contains("WRONG    row level security"), "{doctor}");
    execute(
        &mut admin,
        "alter table outbox.event disable row level security;
         alter table outbox.parked disable row level security;
         alter table outbox.pause disable row level security",
    )
    .await;
    line.wait_until_whole().await;
    line.relay.signal("KILL").await;
    line.system.set_again("DATABASE_URL", &owners);
    eventually("the guest's sessions are gone", async || {
        let sessions = "select not exists (select from pg_stat_activity where usename = $1)";
        sqlx::query_scalar::<_, bool>(sessions)
            .bind(&guest.role)
            .fetch_one(&mut admin)
            .await
            .expect("sessions")
            .then_some(())
    })
    .await;
    guest.leave(&mut admin).await;
    Ok(())
}

#[tokio::test]
async fn a_server_that_ends_idle_sessions_ends_none_of_the_relays() -> TestResult {
    let line = Line::new().await;
    let mut admin = line.system.database.connect().await;
    if postgres_version(&mut admin).await?.0 < 140_000 {
        return Ok(()); // Such a server ends no idle sessions.
    }
    let timeout =
        format!("alter database {} set idle_session_timeout = '200ms'", line.system.database.name());
    execute(&mut admin, &timeout).await;
    execute(
        &mut admin,
        "select pg_terminate_backend(pid) from pg_stat_activity
         where datname = current_database() and application_name like 'aftercommit relay%'",
    )
    .await;
    let pids = "select array_agg(pid order by pid) from pg_stat_activity
                where datname = current_database()
                  and application_name similar to 'aftercommit relay % (reader|listener|monitor)'
                having count(*) = 3";
    let before: Vec<i32> = eventually("the relay's sessions are there", async || {
        sqlx::query_scalar(pids).fetch_optional(&mut admin).await.expect("pids")
    })
    .await;
    for _ in 0..3 {
        // An unprotected session shows when the timeout has passed.
        let mut witness = line.system.database.connect().await;
        let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut witness).await?;
        eventually("the witness is ended", async || {
            let gone = "select not exists (select from pg_stat_activity where pid = $1)";
            sqlx::query_scalar::<_, bool>(gone)
                .bind(pid)
                .fetch_one(&mut admin)
                .await
                .expect("a look")
                .then_some(())
        })
        .await;
    }
    let after: Option<Vec<i32>> = sqlx::query_scalar(pids).fetch_optional(&mut admin).await?;
    assert_eq!(after, Some(before));
    Ok(())
}

#[tokio::test]
async fn what_a_killed_leader_said_is_not_held_against_its_successor() -> TestResult {
    let mut line = Line::new().await;
    line.append(1).await;
    line.wait_until_whole().await;
    let mut admin = line.system.database.connect().await;
    let said = format!(
        "insert into outbox.heartbeat (relay, process, role, published, rate, error, listen)
         values ('{}', 'dead:1:00000000', 'leading', 0, 0, 'it failed', '')",
        line.system.redis.relay_name()
    );
    execute(&mut admin, &said).await;
    eventually("the relay counts as delivering", async || {
        let status = cli(line.system.settings(), &["status"]).await;
        String::from_utf8_lossy(&status.stdout).contains(": delivering").then_some(())
    })
    .await;
    let process: String =
        sqlx::query_scalar("select process from outbox.heartbeat where process <> 'dead:1:00000000'")
            .fetch_one(&mut admin)
            .await?;
    assert_eq!(process.split(':').count(), 3, "host, pid and a random part: {process}");
    Ok(())
}

/// Waits until `events` events are parked.
async fn wait_until_parked(admin: &mut PgConnection, events: i64) {
    eventually("events are parked", async || {
        let count = "select count(*) from outbox.parked";
        let parked: i64 = sqlx::query_scalar(count).fetch_one(&mut *admin).await.expect("a count");
        (parked == events).then_some(())
    })
    .await;
}

// --- values ---

/// The functions check events, and the table does not.
#[tokio::test]
async fn rows_of_the_owner_that_are_no_events_are_parked_and_stop_nothing() -> TestResult {
    let mut line = Line::new().await;
    let mut admin = line.system.database.connect().await;
    for row in ["'a b', 'T'", "'t', ''", "'t', 'a:b'", "repeat('t', 201), 'T'"] {
        let insert = format!("insert into outbox.event (topic, type, payload) values ({row}, '1')");
        execute(&mut admin, &insert).await;
    }
    line.append(2).await;
    line.wait_until_arrived().await;
    wait_until_parked(&mut admin, 4).await;
    Ok(())
}

#[tokio::test]
async fn a_time_that_no_client_can_hold_stops_nothing() {
    let mut line = Line::new().await;
    let mut admin = line.system.database.connect().await;
    let insert = |topic: &str, at: &str| {
        format!(
            "insert into outbox.event (topic, type, payload, created_at) values ('{topic}', 'T', '1', '{at}')"
        )
    };
    let broken = line.system.redis.topic("broken");
    for at in ["infinity", "294276-01-01"] {
        execute(&mut admin, &insert(broken.as_str(), at)).await;
    }
    line.append(2).await;
    wait_until_parked(&mut admin, 2).await;
    line.wait_until_whole().await;
    for command in [&["status"][..], &["events", "list"], &["parked", "list"]] {
        let output = cli(line.system.settings(), command).await;
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    line.relay.wait_for_log("created_at cannot be read").await;
    assert!(!line.relay.has_ended());
}

#[tokio::test]
async fn a_row_that_is_no_text_is_parked_by_name_and_the_rest_flows_on() -> TestResult {
    let mut line = Line::new().await;
    line.relay.signal("KILL").await;
    let mut admin = line.system.database.connect().await;
    let ascii =
        format!("update pg_database set encoding = 0 where datname = '{}'", line.system.database.name());
    execute(&mut admin, &ascii).await;
    let mut writer = line.system.database.connect().await;
    let broken = line.system.redis.topic("broken");
    execute(&mut writer, &format!(r#"select outbox.append('{broken}', 'T', E'"\xff"'::json)"#)).await;
    // As a rebase does that found it delivered: it was readable then.
    let rebased = format!(
        "insert into outbox.relay (name, rebased_id) select '{}', max(id) from outbox.event
         on conflict (name) do update set rebased_id = excluded.rebased_id",
        line.system.redis.relay_name()
    );
    execute(&mut admin, &rebased).await;
    execute(&mut writer, &format!("select outbox.append('{broken}', 'T', '1')")).await;
    line.append(2).await;
    line.relay = line.system.start("relay").await;
    wait_until_parked(&mut admin, 2).await;
    line.wait_until_whole().await;
    line.relay.wait_for_log("a row that cannot be read is parked").await;
    let of_both = "select topic, may_have_arrived from outbox.parked order by seq";
    let held: Vec<(String, bool)> = sqlx::query_as(of_both).fetch_all(&mut admin).await?;
    let expected = [(broken.to_string(), true), (broken.to_string(), false)];
    assert_eq!(held, expected, "the one behind it waits");
    // A release is refused again, and the other topics flow on.
    line.release(&broken).await;
    eventually("the request is refused", async || {
        let refused = "select bool_and(requested is null and settled_as is null) from outbox.parked";
        sqlx::query_scalar::<_, bool>(refused).fetch_one(&mut admin).await.expect("parked").then_some(())
    })
    .await;
    line.append(1).await;
    line.wait_until_whole().await;
    wait_until_parked(&mut admin, 2).await;
    let doctor = cli(line.system.settings(), &["doctor"]).await;
    assert!(String::from_utf8_lossy(&doctor.stdout).contains("WRONG    encoding"));
    Ok(())
}

/// A database with this encoding and without our schemas.
async fn database_of(encoding: &str) -> Database {
    let other = empty_database().await;
    let name = format!("{}_{}", other.name(), encoding.to_lowercase());
    let mut admin = other.connect().await;
    let create = format!(
        "create database {name} encoding '{encoding}' lc_collate 'C' lc_ctype 'C' template template0"
    );
    execute(&mut admin, &create).await;
    Database::at(&other.url().replace(other.name(), &name))
}

#[tokio::test]
async fn a_database_of_no_encoding_is_refused_and_one_of_another_encoding_serves() -> TestResult {
    let mut line = Line::new().await;
    let ascii = database_of("SQL_ASCII").await;
    let settings = line.system.settings().clone().set("DATABASE_URL", ascii.url());
    let refused = cli(&settings, &["migrate"]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("SQL_ASCII"), "{refused:?}");
    assert!(String::from_utf8_lossy(&cli(&settings, &["doctor"]).await.stdout).contains("WRONG    encoding"));

    let latin = database_of("LATIN1").await;
    line.relay.signal("KILL").await;
    line.system.database = Database::at(latin.url());
    line.system.set_again("DATABASE_URL", latin.url());
    assert!(cli(line.system.settings(), &["migrate"]).await.status.success());
    line.relay = line.system.start("relay").await;
    let event = new_event(&line.topic, "T", &"é".repeat(1000));
    outbox::append(&mut latin.connect().await, &event).await?;
    line.appended.push(event.event_id());
    line.append(2).await;
    line.wait_until_whole().await;
    Ok(())
}
