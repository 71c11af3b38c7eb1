//! An address with several hosts of Postgres: everything goes to the primary, and follows a failover.

use aftercommit::event::Topic;
use aftercommit::outbox;
use redis::AsyncCommands;
use redis::streams::StreamRangeReply;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::commands::{assert_fails, stdout, unwrapped};
use crate::harness::{
    Database, OwnPostgres, Standby, System, TestResult, cli, database_on, eventually, new_event,
    start_postgres,
};

/// A primary with a standby that has each commit before it is confirmed.
async fn synchronous_pair() -> TestResult<(OwnPostgres, Standby, Database)> {
    let own = OwnPostgres::new(start_postgres(Vec::new()).await).await;
    let database = database_on(&own.server).await;
    let standby = Standby::of(&own).await?;
    let mut admin = Database::at(&own.url()).connect().await;
    sqlx::raw_sql("alter system set synchronous_standby_names = '*'").execute(&mut admin).await?;
    sqlx::raw_sql("select pg_reload_conf()").execute(&mut admin).await?;
    eventually("the standby is synchronous", async || {
        let sync = "select exists (select from pg_stat_replication where sync_state = 'sync')";
        sqlx::query_scalar::<_, bool>(sync).fetch_one(&mut admin).await.ok()?.then_some(())
    })
    .await;
    Ok((own, standby, database))
}

async fn append(connection: &mut PgConnection, topic: &Topic, numbers: std::ops::Range<u32>) -> TestResult {
    for n in numbers {
        outbox::append(&mut *connection, &new_event(topic, "T", &n)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_standby_that_is_promoted_takes_over_and_nothing_is_lost_or_repeated() -> TestResult {
    let (own, standby, database) = synchronous_pair().await?;
    let system = System::new().await;
    let (before, behind) = database.url().split_once("127.0.0.1:").ok_or("no host")?;
    let (port, name) = behind.split_once('/').ok_or("no database")?;
    // The standby comes first.
    let hosts = format!("127.0.0.1:{},127.0.0.1:{port}", standby.port());
    let url = format!("{before}{hosts}/{name}?target_session_attrs=read-write");
    let system = system.set("DATABASE_URL", &url).set("AFTERCOMMIT_RELAY_BACKOFF_MAX_MS", "200");
    let topic = system.redis.topic("failover");
    let mut relay = system.start("relay").await;
    let api = system.start("api").await;
    let mut writer = database.connect().await;
    append(&mut writer, &topic, 0..100).await?;
    system.session(&api, Uuid::new_v4(), 1).await;

    let pid = own.server.pid().ok_or("no pid")?;
    let killed = tokio::process::Command::new("kill").args(["-KILL", &pid.to_string()]).status().await?;
    assert!(killed.success());
    standby.promote().await?;
    let new_primary = standby.url().replace("/app", &format!("/{name}"));
    let mut writer = Database::at(&new_primary).connect().await;
    sqlx::raw_sql("set synchronous_commit = local").execute(&mut writer).await?;
    sqlx::raw_sql("alter system set synchronous_standby_names = ''").execute(&mut writer).await?;
    sqlx::raw_sql("select pg_reload_conf()").execute(&mut writer).await?;
    append(&mut writer, &topic, 100..200).await?;
    system.session(&api, Uuid::new_v4(), 1).await;

    let mut redis = system.redis.connect().await;
    let history = system.redis.keys().history(&topic);
    let payloads = eventually("everything has arrived", async || {
        assert!(!relay.has_ended(), "{}", relay.log());
        let reply: StreamRangeReply = redis.xrange_all(&history).await.ok()?;
        (reply.ids.len() >= 200).then_some(reply.ids)
    })
    .await;
    let payloads: Vec<String> = payloads.iter().filter_map(|entry| entry.get("payload")).collect();
    assert_eq!(payloads, (0..200).map(|n| n.to_string()).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test]
async fn hosts_of_which_none_is_a_primary_are_each_told_with_their_answer() -> TestResult {
    let (own, standby, _database) = synchronous_pair().await?;
    let system = System::new().await;
    let url = standby.url();
    let (before, behind) = url.split_once("127.0.0.1:").ok_or("no host")?;
    let (_, name) = behind.split_once('/').ok_or("no database")?;
    let of = |hosts: &str, query: &str| format!("{before}{hosts}/{name}{query}");
    let standby_port = standby.port();
    let none = of(&format!("127.0.0.1:1,127.0.0.1:{standby_port}"), "");
    let found =
        unwrapped(&stdout(&cli(&system.settings().clone().set("DATABASE_URL", none), &["doctor"]).await));
    assert!(found.contains("none of the hosts is a primary"), "{found}");
    assert!(found.contains(&format!("127.0.0.1:{standby_port}/{name}: a standby")), "{found}");
    let standbys = of("127.0.0.1:1,127.0.0.1:2", "?target_session_attrs=standby");
    let settings = system.settings().clone().set("DATABASE_URL", standbys);
    assert_fails(&settings, &["relay"], 1, "only the primary will do here").await;
    let by_parameters = format!("postgres:///{name}?host=127.0.0.1,127.0.0.2");
    let settings = system.settings().clone().set("DATABASE_URL", by_parameters);
    assert_fails(&settings, &["relay"], 1, "write them as postgres://").await;
    drop(own);
    Ok(())
}

/// Applications go through the pooler; relays and operators' commands do not.
#[tokio::test]
async fn a_direct_address_is_for_sessions() -> TestResult {
    let system = System::new().await;
    let direct = system.database.url().to_owned();
    let nowhere = "postgres://nobody@127.0.0.1:1/app";
    let system = system.set("DATABASE_URL", nowhere).set("AFTERCOMMIT_DATABASE_DIRECT_URL", &direct);
    system.start("relay").await.wait_for_log("leading").await;
    let status = cli(system.settings(), &["status"]).await;
    assert_eq!(status.status.code(), Some(0), "{}", stdout(&status));
    Ok(())
}
