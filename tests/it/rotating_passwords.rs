//! Passwords from a program, which change while everything runs.

use std::path::Path;

use crate::commands::{assert_fails, stdout};
use crate::harness::{
    Feed, System, TestResult, cli, database, eventually, numbers, redis_settings_of, start_redis,
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

#[tokio::test]
async fn open_connections_to_redis_log_in_again_and_follow_a_new_password() -> TestResult {
    let redis = start_redis(vec![("user", "app on >first ~* &* +@all".to_owned())], None).await;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("password");
    write(&file, "first")?;
    let system = System::with_redis(&format!("redis://127.0.0.1:{}", redis.port()))
        .await
        .set("AFTERCOMMIT_REDIS_PASSWORD_COMMAND", &format!("cat {}", file.display()));
    let feed = Feed::with(system).await;
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
    sse.wait_for_log("the last password is used until it expires").await;
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
    assert!(found.contains("[database] password_command failed (exit status: 3): no vault"), "{found}");
    let twice = system.settings().clone().set("DATABASE_URL", others);
    assert_fails(&twice, &["relay"], 1, "keep one of them").await;
    Ok(())
}
