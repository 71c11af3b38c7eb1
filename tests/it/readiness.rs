//! Readiness: each cause that keeps events from arriving turns it red with the reason, also while no event is
//! pending, and it turns green again afterwards. (A pause and a dead listener are in `operators`.)

use secrecy::ExposeSecret;
use sqlx::AssertSqlSafe;

use crate::commands::commit;
use crate::harness::{
    Flow, Line, Process, Proxy, Settings, System, TestResult, Wiring, cli, empty_database, eventually,
    metric_of, shared_url, start_redis,
};
use crate::operators::{not_ready, wait_until_green, wait_until_red};
use crate::systemd::port_of;

/// Sends a signal to a server of the test's own.
async fn signal(pid: u32, name: &str) -> TestResult {
    let mut kill = tokio::process::Command::new("/bin/sh");
    let sent = kill.args(["-c", "kill -s \"$1\" \"$2\"", "sh", name, &pid.to_string()]).status().await;
    assert!(sent?.success(), "kill -s {name}");
    Ok(())
}

#[tokio::test]
async fn a_redis_that_cannot_be_reached_turns_an_idle_relay_red() {
    let line = Line::new().await;
    wait_until_green(&line.relay).await;
    for flow in [Flow::Refuse, Flow::Stall] {
        line.proxy.flow(flow);
        line.proxy.cut();
        wait_until_red(&line.relay, "delivery", "Redis").await;
        line.proxy.flow(Flow::Pass);
        wait_until_green(&line.relay).await;
    }
}

/// The driver appends the line of Postgres's own source at which a message was made.
#[tokio::test]
async fn what_postgres_says_is_told_without_noise_and_a_refused_redis_login_names_its_setting() -> TestResult
{
    let mut system = System::new().await;
    let api = system.start("api").await;
    wait_until_green(&api).await;
    let elsewhere = empty_database().await;
    let mut server = elsewhere.connect().await;
    let name = system.database.name().to_owned();
    let closing = format!("alter database {name} allow_connections false");
    sqlx::raw_sql(AssertSqlSafe(closing)).execute(&mut server).await?;
    sqlx::query("select pg_terminate_backend(pid) from pg_stat_activity where datname = $1")
        .bind(&name)
        .execute(&mut server)
        .await?;
    let expected = format!("database \"{name}\" is not currently accepting connections");
    // Those words and no others.
    let expected = ("postgres".to_owned(), expected);
    eventually("it is said without noise", async || {
        not_ready(&api).await.1.contains(&expected).then_some(())
    })
    .await;

    let address = shared_url().rsplit(['@', '/']).find(|part| part.contains(':')).ok_or("no address")?;
    system.set_again("REDIS_URL", &format!("redis://nobody:wrong@{address}"));
    let opening = format!("alter database {name} allow_connections true");
    sqlx::raw_sql(AssertSqlSafe(opening)).execute(&mut server).await?;
    let output = cli(system.settings(), &["relay"]).await;
    let said = String::from_utf8(output.stderr)?;
    assert!(said.contains("(check user and password in REDIS_URL or redis.url"), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_frozen_redis_turns_it_red_for_what_fails_and_for_how_long_events_wait() -> TestResult {
    let wiring = Wiring {
        relay: vec![("AFTERCOMMIT_RELAY_READY_MAX_PENDING_SECONDS", "1".to_owned())],
        ..Wiring::default()
    };
    let line = Line::with(wiring).await;
    wait_until_green(&line.relay).await;
    let pid = line.redis.pid().ok_or("it does not run")?;
    signal(pid, "STOP").await?;
    commit(&line.system, &line.topic, "A", 2).await;
    wait_until_red(&line.relay, "pending", "the limit is 1 s").await;
    wait_until_red(&line.relay, "delivery", "Redis").await;
    signal(pid, "CONT").await?;
    wait_until_green(&line.relay).await;
    Ok(())
}

#[tokio::test]
async fn a_postgres_that_does_not_answer_turns_it_red_also_for_what_is_not_known() {
    let wiring = Wiring { postgres: Some(Vec::new()), ..Wiring::default() };
    let line = Line::with(wiring).await;
    wait_until_green(&line.relay).await;
    line.postgres().proxy.flow(Flow::Stall);
    wait_until_red(&line.relay, "pending", "is unknown").await;
    line.postgres().proxy.flow(Flow::Pass);
    wait_until_green(&line.relay).await;
    line.postgres().proxy.flow(Flow::Refuse);
    line.postgres().proxy.cut();
    wait_until_red(&line.relay, "role", "no session with Postgres").await;
    line.postgres().proxy.flow(Flow::Pass);
    wait_until_green(&line.relay).await;
}

#[tokio::test]
async fn relays_none_of_which_may_lead_are_all_red() -> TestResult {
    let system = System::new().await;
    let relays = [system.start("relay").await, system.start("relay").await];
    for relay in &relays {
        wait_until_green(relay).await;
    }
    // Sessions that are made from now on can write nothing, and none of the old ones leads any more.
    let elsewhere = empty_database().await;
    let mut server = elsewhere.connect().await;
    let database = system.database.name();
    let takes_writes = |value: &str| {
        sqlx::raw_sql(AssertSqlSafe(format!(
            "alter database {database} set default_transaction_read_only = {value}"
        )))
    };
    takes_writes("on").execute(&mut server).await?;
    sqlx::query(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1 and datname = $2",
    )
    .bind(format!("aftercommit relay {}", system.redis.relay_name()))
    .bind(database)
    .execute(&mut server)
    .await?;
    for relay in &relays {
        wait_until_red(relay, "leader", "no relay of this name leads").await;
        wait_until_red(relay, "delivery", "read-only").await;
    }
    takes_writes("off").execute(&mut server).await?;
    for relay in &relays {
        wait_until_green(relay).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_loop_that_is_stuck_turns_it_red_although_nothing_has_failed() {
    let system = System::new()
        .await
        .set("AFTERCOMMIT_RELAY_READY_MAX_PENDING_SECONDS", "1")
        .set("FAILPOINT", "batch_published");
    let relay = system.start("relay").await;
    wait_until_green(&relay).await;
    commit(&system, &system.redis.topic("stuck"), "A", 1).await;
    wait_until_red(&relay, "pending", "the limit is 1 s").await;
    wait_until_red(&relay, "delivery", "the last step succeeded").await;
}

#[tokio::test]
async fn a_transaction_that_is_left_open_is_no_event_that_waits() -> TestResult {
    let system = System::new().await.set("AFTERCOMMIT_RELAY_READY_MAX_PENDING_SECONDS", "1");
    let relay = system.start("relay").await;
    wait_until_green(&relay).await;
    let topic = system.redis.topic("open");
    let mut open = system.database.connect().await;
    sqlx::raw_sql("begin; select outbox.append('left-open', 'T', '1')").execute(&mut open).await?;
    commit(&system, &topic, "A", 1).await;
    wait_until_published(&relay, 1).await;
    // Beyond the limit, with the gap open: the monitor has measured several times.
    let waited = std::time::Instant::now();
    eventually("the limit is over", async || (waited.elapsed().as_secs() >= 3).then_some(())).await;
    let (_, failing) = not_ready(&relay).await;
    assert!(failing.iter().all(|(check, _)| check != "pending"), "{failing:?}");
    sqlx::raw_sql("commit").execute(&mut open).await?;
    wait_until_published(&relay, 2).await;
    wait_until_green(&relay).await;
    Ok(())
}

async fn wait_until_published(relay: &Process, count: u64) {
    let name = "aftercommit_relay_published_total";
    eventually("published", async || (metric_of(relay, name).await == count).then_some(())).await;
}

#[tokio::test]
async fn the_api_and_the_sse_server_are_red_without_what_they_need() -> TestResult {
    let redis = start_redis(Vec::new(), None).await;
    let to_redis = Proxy::to(redis.port()).await;
    let system = System::with_redis(&to_redis.url(redis.url().expose_secret())).await;
    let to_postgres = Proxy::to(port_of(system.database.url())?).await;
    let database = to_postgres.url(system.database.url());
    let system = system.set("DATABASE_URL", &database);
    let (api, sse) = (system.start("api").await, system.start("sse").await);
    let of_the_api = (&api, &to_postgres, "postgres", "is the address right");
    let of_the_sse = (&sse, &to_redis, "redis", "cannot connect");
    for (process, proxy, check, reason) in [of_the_api, of_the_sse] {
        wait_until_green(process).await;
        proxy.flow(Flow::Refuse);
        proxy.cut();
        wait_until_red(process, check, reason).await;
        proxy.flow(Flow::Pass);
        wait_until_green(process).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_healthcheck_fails_until_a_process_listens_and_whenever_one_is_not_ready() -> TestResult {
    let line = Line::new().await;
    let nowhere = "127.0.0.1:1";
    let settings = ["API", "RELAY", "SSE"]
        .iter()
        .fold(Settings::default(), |all, role| all.set(&format!("AFTERCOMMIT_{role}_LISTEN"), nowhere));
    let without = cli(&settings, &["healthcheck"]).await;
    let said = String::from_utf8(without.stderr)?;
    assert_eq!(without.status.code(), Some(1), "{said}");
    assert!(said.contains("no process listens here: api at 127.0.0.1:1"), "{said}");

    let settings = settings.set("AFTERCOMMIT_RELAY_LISTEN", &line.relay.address);
    wait_until_green(&line.relay).await;
    let ready = cli(&settings, &["healthcheck"]).await;
    assert_eq!(ready.status.code(), Some(0), "{ready:?}");
    assert_eq!(String::from_utf8(ready.stdout)?, format!("relay: ready at {}\n", line.relay.address));

    line.proxy.flow(Flow::Refuse);
    line.proxy.cut();
    wait_until_red(&line.relay, "delivery", "Redis").await;
    let red = cli(&settings, &["healthcheck"]).await;
    let said = String::from_utf8(red.stderr)?;
    assert_eq!(red.status.code(), Some(1), "{said}");
    assert!(said.contains("relay: not ready at"), "{said}");
    Ok(())
}
