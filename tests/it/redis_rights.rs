//! Least privilege in Redis: the main story under users with exactly the rights that
//! `aftercommit grants --redis` prints, and the commands that each user may not run.

use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use secrecy::ExposeSecret;

use aftercommit::local::RedisServer;

use crate::commands::{assert_fails, stdout};
use crate::harness::{Feed, System, TestResult, cli, eventually, numbers, redis_settings_of, start_redis};

const USERS: [&str; 3] = ["relay", "sse", "operator"];

/// The lines for users whose names are their roles'.
async fn printed(system: &System, namespace: &str) -> String {
    let mut arguments = vec!["grants", "--redis"];
    if !namespace.is_empty() {
        arguments.extend(["--namespace", namespace]);
    }
    arguments.extend(["--relay", "relay", "--sse", "sse", "--operator", "operator"]);
    stdout(&cli(system.settings(), &arguments).await)
}

/// A Redis with these users, and a connection as its administrator.
async fn redis_with(system: &System, namespace: &str) -> TestResult<(RedisServer, MultiplexedConnection)> {
    let redis = start_redis(Vec::new(), None).await;
    let mut admin = redis_settings_of(redis.url().expose_secret()).connect().await?;
    for user in USERS {
        redis::cmd("ACL").arg("SETUSER").arg(user).arg(">secret").exec_async(&mut admin).await?;
    }
    let lines = printed(system, namespace).await;
    // Twice: the lines can be run as often as wanted.
    for line in lines.lines().chain(lines.lines()) {
        let words: Vec<&str> = line.split(' ').collect();
        redis::cmd(words[0]).arg(&words[1..]).exec_async(&mut admin).await?;
    }
    Ok((redis, admin))
}

fn url_of(redis: &RedisServer, user: &str) -> String {
    format!("redis://{user}:secret@127.0.0.1:{}", redis.port())
}

#[tokio::test]
async fn the_story_with_a_repair_runs_under_the_printed_rights() -> TestResult {
    let system = System::new().await;
    let namespace = system.redis.relay_name();
    let (redis, mut admin) = redis_with(&system, &namespace).await?;
    let mut feed = Feed::with(system.set("REDIS_URL", &url_of(&redis, "relay"))).await;
    feed.system.set_again("REDIS_URL", &url_of(&redis, "sse"));
    let sse = feed.sse().await;
    let client = feed.client(&sse).await;
    feed.commit(0..20).await;
    client.wait_for_events(20).await;
    let keys = feed.system.redis.keys();
    let forgotten =
        [keys.history(&feed.topic()), keys.begun(&feed.topic()), keys.top(&namespace), keys.log()];
    let _: () = admin.del(&forgotten).await?;
    eventually("the history is given again", async || {
        let length: usize = admin.xlen(keys.history(&feed.topic())).await.ok()?;
        (length == 20).then_some(())
    })
    .await;
    feed.commit(20..40).await;
    assert_eq!(numbers(&client.wait_for_events(40).await), (0..40).collect::<Vec<_>>());

    for (user, role) in [("relay", "relay"), ("sse", "sse"), ("operator", "api")] {
        let settings = feed.system.settings().clone().set("REDIS_URL", url_of(&redis, user));
        let found = stdout(&cli(&settings, &["doctor", "--role", role]).await);
        assert!(!found.contains("WRONG    redis"), "{user}: {found}");
        let status = cli(&settings, &["status"]).await;
        assert_eq!(status.status.code(), Some(0), "{user}: {}", stdout(&status));
    }
    Ok(())
}

#[tokio::test]
async fn what_is_not_printed_is_refused() -> TestResult {
    let system = System::new().await;
    let (redis, mut admin) = redis_with(&system, "staging").await?;
    let _: () = admin.set("secret", "of another program").await?;
    let history = "aftercommit:staging:{order:1}:history";
    for (user, commands) in [
        (
            "relay",
            &[
                "GET secret",
                "SET secret x",
                "XADD aftercommit:{order:1}:history 1-1 a b",
                "PUBLISH order:1 x",
                "SUBSCRIBE staging:order:1",
                "FLUSHALL",
                "CONFIG GET *",
                "KEYS *",
                "ACL LIST",
            ][..],
        ),
        (
            "sse",
            &[
                "XADD aftercommit:staging:{order:1}:history 1-1 a b",
                "PUBLISH staging:order:1 x",
                "EVAL return 0",
                "SUBSCRIBE order:1",
                "DEL aftercommit:staging:log",
                "FLUSHALL",
            ],
        ),
        ("operator", &["DEL aftercommit:staging:log", "PUBLISH staging:order:1 x", "CONFIG SET save x"]),
    ] {
        let mut connection = redis_settings_of(&url_of(&redis, user)).connect().await?;
        for command in commands {
            let words: Vec<&str> = command.split(' ').collect();
            let refused = redis::cmd(words[0]).arg(&words[1..]).exec_async(&mut connection).await;
            let error = refused.expect_err(command);
            assert_eq!(error.code(), Some("NOPERM"), "{user}: {command}: {error}");
        }
        let _: usize =
            connection.hget::<_, _, Option<usize>>("aftercommit:staging:log", "x").await?.unwrap_or(0);
        let read = redis::cmd("XRANGE").arg(history).arg("-").arg("+").exec_async(&mut connection).await;
        assert!(read.is_ok(), "{user}: {read:?}");
    }
    Ok(())
}

#[tokio::test]
async fn the_docs_show_the_printed_lines_and_a_wrong_name_is_refused() -> TestResult {
    let system = System::new().await;
    let docs = include_str!("../../docs/redis.md").replace(" \\\n  ", " ");
    let users = ["--relay", "relay", "--sse", "sse", "--operator", "operator"];
    let of_cluster = [&["grants", "--redis", "--cluster"], &users[..]].concat();
    let of_cluster = stdout(&cli(system.settings(), &of_cluster).await);
    for line in printed(&system, "").await.lines().chain(of_cluster.lines()) {
        assert!(docs.contains(line), "docs/redis.md lacks: {line}");
    }
    for (arguments, sentence) in [
        (&["grants", "--redis", "--relay", "a b"][..], "is not a user of Redis"),
        (&["grants", "--redis", "--namespace", "a:b", "--relay", "a"], "is not a namespace"),
        (&["grants", "--redis", "--writer", "app"], "writers and the api need no rights in Redis"),
        (&["grants", "--namespace", "a", "--relay", "a"], "--redis"),
    ] {
        assert_fails(system.settings(), arguments, 2, sentence).await;
    }
    Ok(())
}
