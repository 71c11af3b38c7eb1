//! Passwords from a program, which change while everything runs.

use std::path::Path;

use crate::commands::{assert_fails, stdout};
use crate::harness::{
    Feed, System, TestResult, cli, database, eventually, http_get, numbers, redis_settings_of, start_redis,
};
use aftercommit::local::RedisServer;
use secrecy::ExposeSecret;

/// Runs a Redis command as the administrator.
async fn tell(redis: &RedisServer, words: &[&str]) -> TestResult<String> {
    let mut connection = redis_settings_of(redis.url().expose_secret()).connect().await?;
    let value: redis::Value = redis::cmd(words[0]).arg(&words[1..]).query_async(&mut connection).await?;
    Ok(redis::from_redis_value::<String>(value).unwrap_or_default())
}

/// How often clients have logged in, and the ids of the connections of user `app` that take commands.
async fn logins(redis: &RedisServer) -> TestResult<(u64, Vec<String>)> {
    let stats = tell(redis, &["info", "commandstats"]).await?;
    let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_auth:calls=")?.split(',').next());
    let clients = tell(redis, &["client", "list"]).await?;
    let of_app = clients.lines().filter(|line| line.contains("user=app") && line.contains(" sub=0 "));
    let ids = of_app.filter_map(|line| line.split(' ').next().map(str::to_owned)).collect();
    Ok((calls.unwrap_or("0").parse()?, ids))
}

fn write(path: &Path, password: &str) -> TestResult {
    let text = format!(r#"{{"password":"{password}","user":"app","expires_in":8}}"#);
    std::fs::write(path, text)?;
    Ok(())
}

/// A feed whose processes take the password of `app` from this file.
async fn feed_by_file(redis: &RedisServer, file: &Path) -> TestResult<Feed> {
    write(file, "first")?;
    let system = System::with_redis(&format!("redis://127.0.0.1:{}", redis.port()))
        .await
        .set("AFTERCOMMIT_REDIS_PASSWORD_COMMAND", &format!("cat {}", file.display()));
    Ok(Feed::with(system).await)
}

#[tokio::test]
async fn open_connections_to_redis_log_in_again_and_follow_a_new_password() -> TestResult {
    let redis = start_redis(vec![("user", "app on >first ~* &* +@all".to_owned())], None).await;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("password");
    let feed = feed_by_file(&redis, &file).await?;
    let sse = feed.sse().await;
    let client = feed.client(&sse).await;
    feed.commit(0..10).await;
    client.wait_for_events(10).await;

    let (before, connections) = logins(&redis).await?;
    assert!(!connections.is_empty());
    eventually("open connections log in again", async || {
        logins(&redis).await.ok().filter(|(calls, _)| *calls >= before + 6)
    })
    .await;
    let (_, still) = logins(&redis).await?;
    assert!(connections.iter().all(|id| still.contains(id)), "{connections:?} {still:?}");

    // A program that fails takes nothing away before the password expires.
    std::fs::remove_file(&file)?;
    sse.wait_for_log("the last password is used, as long as it is valid").await;
    let ended = sse.log().matches("the subscription to Redis ended").count();
    feed.commit(10..15).await;
    client.wait_for_events(15).await;
    assert_eq!(sse.log().matches("the subscription to Redis ended").count(), ended, "{}", sse.log());

    tell(&redis, &["acl", "setuser", "app", "resetpass", ">second"]).await?;
    write(&file, "second")?;
    tell(&redis, &["client", "kill", "user", "app"]).await?;
    feed.commit(15..20).await;
    assert_eq!(numbers(&client.wait_for_events(20).await), (0..20).collect::<Vec<_>>());
    Ok(())
}

/// The program is ahead of the server: a secret store changes a password before Redis knows it.
#[tokio::test]
async fn streams_go_on_while_redis_does_not_know_the_new_password_yet() -> TestResult {
    let redis = start_redis(vec![("user", "app on >first ~* &* +@all".to_owned())], None).await;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("password");
    let feed = feed_by_file(&redis, &file).await?;
    let sse = feed.sse().await;
    let client = feed.client(&sse).await;
    feed.commit(0..5).await;
    client.wait_for_events(5).await;
    write(&file, "second")?;
    sse.wait_for_log("the old subscription stays: no other can be made").await;
    feed.commit(5..10).await;
    client.wait_for_events(10).await;
    tell(&redis, &["acl", "setuser", "app", ">second"]).await?;
    sse.wait_for_log("the password has been replaced").await;
    feed.commit(10..15).await;
    assert_eq!(numbers(&client.wait_for_events(15).await), (0..15).collect::<Vec<_>>());
    Ok(())
}

/// The connection for commands lives on, and only new logins are refused.
#[tokio::test]
async fn a_server_whose_subscription_cannot_log_in_is_not_ready_and_says_so() -> TestResult {
    let redis = start_redis(vec![("user", "app on >first ~* &* +@all".to_owned())], None).await;
    let system = System::with_redis(&format!("redis://app:first@127.0.0.1:{}", redis.port())).await;
    let feed = Feed::with(system).await;
    let sse = feed.sse().await;
    let client = feed.client(&sse).await;
    feed.commit(0..5).await;
    client.wait_for_events(5).await;
    tell(&redis, &["acl", "setuser", "app", "resetpass", ">second"]).await?;
    tell(&redis, &["client", "kill", "type", "pubsub"]).await?;
    sse.wait_for_log("no connection for subscriptions: its topics get no events").await;
    let said = eventually("it is not ready", async || {
        let answer = http_get(sse.url("/readyz")).await.ok().filter(|answer| answer.status() == 503)?;
        answer.text().await.ok()
    })
    .await;
    assert!(said.contains(r#"{"name":"subscription","ok":false,"reason":"Redis: "#), "{said}");
    tell(&redis, &["acl", "setuser", "app", ">first"]).await?;
    feed.commit(5..10).await;
    assert_eq!(numbers(&client.wait_for_events(10).await), (0..10).collect::<Vec<_>>());
    eventually("it is ready again", async || {
        http_get(sse.url("/readyz")).await.ok().filter(|answer| answer.status() == 200)
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn with_several_hosts_a_refused_password_is_asked_for_anew() -> TestResult {
    let database = database().await;
    let mut admin = database.connect().await;
    let role = format!("app_{}", uuid::Uuid::new_v4().simple());
    let create = format!("create role {role} login superuser password 'first'");
    sqlx::raw_sql(sqlx::AssertSqlSafe(create)).execute(&mut admin).await?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("password");
    let lasting = |password: &str| format!(r#"{{"password":"{password}","expires_in":900}}"#);
    std::fs::write(&file, lasting("first"))?;
    let (_, server) = database.url().rsplit_once('@').ok_or("no user")?;
    let (host, name) = server.split_once('/').ok_or("no database")?;
    // Nothing listens at port 1.
    let url = format!("postgres://{role}@{host},127.0.0.1:1/{name}");
    let mut system = System::new().await;
    system = system
        .set("DATABASE_URL", &url)
        .set("AFTERCOMMIT_DATABASE_PASSWORD_COMMAND", &format!("cat {}", file.display()));
    let relay = system.start("relay").await;
    relay.wait_for_log("leading").await;
    let alter = format!("alter role {role} password 'second'");
    sqlx::raw_sql(sqlx::AssertSqlSafe(alter)).execute(&mut admin).await?;
    std::fs::write(&file, lasting("second"))?;
    let ended = "select pg_terminate_backend(pid) from pg_stat_activity where usename = $1";
    sqlx::query(ended).bind(&role).execute(&mut admin).await?;
    eventually("the relay leads again", async || (relay.log().matches("leading").count() >= 2).then_some(()))
        .await;
    Ok(())
}

#[tokio::test]
async fn everything_follows_a_new_password_of_postgres() -> TestResult {
    let database = database().await;
    let mut admin = database.connect().await;
    let role = format!("app_{}", uuid::Uuid::new_v4().simple());
    let set = async |admin: &mut sqlx::PgConnection, what: &str, password: &str| {
        let sql = format!("{what} role {role} login superuser password '{password}'");
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(admin).await.map(|_| ())
    };
    set(&mut admin, "create", "first").await?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("password");
    std::fs::write(&file, "first\n")?;
    let (_, server) = database.url().rsplit_once('@').ok_or("no user")?;
    let url = format!("postgres://{role}@{server}");
    let mut system = System::new().await;
    let others = database.url().to_owned();
    system = system
        .set("DATABASE_URL", &url)
        .set("AFTERCOMMIT_DATABASE_PASSWORD_COMMAND", &format!("cat {}", file.display()));
    let relay = system.start("relay").await;
    relay.wait_for_log("leading").await;

    set(&mut admin, "alter", "second").await?;
    std::fs::write(&file, "second\n")?;
    let ended = "select pg_terminate_backend(pid) from pg_stat_activity where usename = $1";
    sqlx::query(ended).bind(&role).execute(&mut admin).await?;
    eventually("the relay leads again", async || (relay.log().matches("leading").count() >= 2).then_some(()))
        .await;

    let failing = system.settings().clone();
    let failing = failing.set("AFTERCOMMIT_DATABASE_PASSWORD_COMMAND", "echo no vault >&2; exit 3");
    let found = stdout(&cli(&failing, &["doctor", "--output", "json"]).await);
    assert!(found.contains("[database] password_command failed (exit status: 3)"), "{found}");
    assert!(!found.contains("no vault"), "the words of the program are for the log: {found}");
    let twice = system.settings().clone().set("DATABASE_URL", others);
    assert_fails(&twice, &["relay"], 1, "keep one of them").await;
    Ok(())
}
