//! A Redis Cluster: topics at all of its servers, servers that fail or go back. Nothing is lost or repeated,
//! and the topics of the other servers flow on.

use std::time::Duration;

use redis::AsyncCommands;
use uuid::Uuid;

use crate::cluster_stage::{Stage, keep_committing};
use crate::commands::{assert_fails, stdout};
use crate::harness::{
    Certificates, Client, Cluster, Listener, System, TestResult, cli, eventually, metric_of, numbers,
    start_redis,
};

#[tokio::test]
async fn topics_at_all_servers_flow_and_a_message_of_another_program_comes_once() -> TestResult {
    let stage = Stage::new(Cluster::start().await).await;
    let mut load = stage.load().await;
    let committed = stage.end(&mut load).await?;
    let keys = stage.system.redis.keys();
    for (at, topic) in stage.topics.iter().enumerate() {
        assert_eq!(stage.length_at(at, topic).await?, committed, "the history is at its server");
        // From another server than the topic's.
        let mut elsewhere = stage.cluster.connect_to((at + 1) % 3).await.ok_or("no connection")?;
        let _: () = elsewhere.publish(keys.public(topic), "{\"type\":\"FOREIGN\"}").await?;
    }
    for client in &load.clients {
        let events = client.wait_for_events(usize::try_from(committed)? + 1).await;
        assert_eq!(events.last().map(|event| event.event.as_str()), Some("FOREIGN"));
        assert_eq!(events.iter().filter(|event| event.event == "FOREIGN").count(), 1);
    }
    Ok(())
}

/// A process that was frozen hears the payload of an event long after the event: when many others have come.
#[tokio::test]
async fn the_payload_of_an_event_that_comes_late_is_no_message_of_another_program() -> TestResult {
    let stage = Stage::new(Cluster::start().await).await;
    let mut load = stage.load().await;
    stage.wait_for_more(&load.clients, 300).await;
    let committed = stage.end(&mut load).await?;
    let keys = stage.system.redis.keys();
    for (at, topic) in stage.topics.iter().enumerate() {
        let mut server = stage.cluster.connect_to(at).await.ok_or("no connection")?;
        let first: redis::streams::StreamRangeReply =
            server.xrange_count(keys.history(topic), "-", "+", 1).await?;
        let payload: String = first.ids.first().and_then(|entry| entry.get("payload")).ok_or("no payload")?;
        for text in [payload.as_str(), "{\"type\":\"FOREIGN\"}"] {
            let _: () = server.publish(keys.public(topic), text).await?;
        }
    }
    for client in &load.clients {
        let events = client.wait_for_events(usize::try_from(committed)? + 1).await;
        assert_eq!(events.last().map(|event| event.event.as_str()), Some("FOREIGN"));
    }
    Ok(())
}

/// The servers name each other by the host name of their certificates: their addresses would fail the check.
#[tokio::test]
async fn a_cluster_is_reached_by_tls_also_over_a_failover() -> TestResult {
    let certificates = Certificates::new();
    let cluster = Cluster::with_tls(&certificates).await;
    let url = cluster.tls_url();
    let system = System::with_redis(&url).await;
    let system = system.set("AFTERCOMMIT_REDIS_TLS_CA_FILE", &certificates.text("ca.pem"));
    let stage = Stage::with(cluster, system, &url).await;
    let mut load = stage.load().await;
    stage.cluster.signal(0, "KILL").await;
    stage.cluster.wait_for_failover_of(0).await;
    stage.wait_for_more(&load.clients, 50).await;
    stage.end(&mut load).await?;
    Ok(())
}

#[tokio::test]
async fn a_client_gets_every_event_once_over_a_failover() -> TestResult {
    let stage = Stage::new(Cluster::start().await).await;
    let mut load = stage.load().await;
    let clients = &load.clients;
    stage.cluster.signal(0, "KILL").await;
    stage.cluster.wait_for_failover_of(0).await;
    stage.wait_for_more(clients, 50).await;
    stage.end(&mut load).await?;
    Ok(())
}

/// The replica lacks events that clients have. They are given again, and repeat nothing.
#[tokio::test]
async fn a_replica_that_lagged_is_given_what_it_lacks() -> TestResult {
    let stage = Stage::new(Cluster::start().await).await;
    let mut load = stage.load().await;
    let clients = &load.clients;
    stage.cluster.cut_off(1, 4).await;
    let reached = clients[2].so_far().len();
    clients[2].wait_for_events(reached + 50).await;
    stage.cluster.signal(1, "KILL").await;
    let new = stage.cluster.wait_for_failover_of(1).await;
    stage.wait_for_more(clients, 50).await;
    let committed = stage.end(&mut load).await?;
    assert_eq!(stage.length_at(new, &stage.topics[1]).await?, committed, "the history is whole");
    Ok(())
}

/// Its connection stays open: only its numbers show that it has forgotten everything.
#[tokio::test]
async fn a_server_that_is_emptied_is_given_everything_again() -> TestResult {
    let stage = Stage::new(Cluster::start().await).await;
    let mut load = stage.load().await;
    let clients = &load.clients;
    let mut connection = stage.cluster.connect_to(1).await.ok_or("no connection")?;
    let () = redis::cmd("FLUSHALL").query_async(&mut connection).await?;
    stage.wait_for_more(clients, 50).await;
    let committed = stage.end(&mut load).await?;
    assert_eq!(stage.length_at(1, &stage.topics[1]).await?, committed, "the history is whole");
    Ok(())
}

#[tokio::test]
async fn the_topics_of_the_other_servers_flow_on_while_one_is_frozen() -> TestResult {
    // The others take commands without it.
    let cluster = Cluster::with(&[("cluster-require-full-coverage", "no")]).await;
    let stage = Stage::new(cluster).await;
    // At another server than the topic's.
    let public = stage.system.redis.keys().public(&stage.topics[0]);
    let mut listener = Listener::on(&redis::Client::open(stage.cluster.url_of(1))?, &public).await;
    let mut load = stage.load().await;
    let clients = &load.clients;
    // Nobody takes its place.
    stage.cluster.signal(3, "KILL").await;
    stage.cluster.signal(0, "STOP").await;
    stage.wait_until_one_is_behind().await;
    let stopped_at = clients[0].so_far().len();
    stage.wait_for_more(&clients[2..], 200).await;
    assert_eq!(clients[0].so_far().len(), stopped_at, "its topic waits");
    assert!(log_says_that_redis_lacks_events(&stage).await?, "and rotation keeps it");
    stage.cluster.signal(0, "CONT").await;
    clients[0].wait_for_events(stopped_at + 200).await;
    let committed = stage.end(&mut load).await?;
    listener.wait_for_exactly(usize::try_from(committed)?).await;
    assert!(!stage.relay.log().contains("the lead is given up"), "{}", stage.relay.log());
    let whole = async || {
        let behind = metric_of(&stage.relay, "aftercommit_relay_redis_servers_behind").await;
        (behind == 0).then_some(())
    };
    eventually("no server is behind", whole).await;
    eventually("the log may be rotated", async || {
        (!log_says_that_redis_lacks_events(&stage).await.ok()?).then_some(())
    })
    .await;
    Ok(())
}

async fn log_says_that_redis_lacks_events(stage: &Stage) -> TestResult<bool> {
    let sql = "select lacks_events from outbox.relay where name = $1";
    let asked = sqlx::query_scalar(sql).bind(stage.system.redis.relay_name());
    Ok(asked.fetch_one(&mut stage.system.database.connect().await).await?)
}

/// Nobody has been given what the server lacks, however old it is.
#[tokio::test]
async fn a_server_that_was_away_for_longer_than_histories_are_kept_is_given_everything() -> TestResult {
    let cluster = Cluster::with(&[("cluster-require-full-coverage", "no")]).await;
    let url = cluster.url();
    let system = System::with_redis(&url).await.set("AFTERCOMMIT_REDIS_HISTORY_TTL_SECONDS", "3");
    let stage = Stage::with(cluster, system, &url).await;
    let mut load = stage.load().await;
    let clients = &load.clients;
    stage.cluster.signal(3, "KILL").await;
    stage.cluster.signal(0, "STOP").await;
    stage.wait_until_one_is_behind().await;
    let since = std::time::Instant::now();
    while since.elapsed() < Duration::from_secs(6) {
        stage.wait_for_more(&clients[2..], 50).await;
    }
    stage.cluster.signal(0, "CONT").await;
    stage.end(&mut load).await?;
    Ok(())
}

#[tokio::test]
async fn a_relay_that_starts_while_a_server_is_away_delivers_the_topics_of_the_others() -> TestResult {
    let cluster = Cluster::with(&[("cluster-require-full-coverage", "no")]).await;
    let mut stage = Stage::new(cluster).await;
    let mut load = stage.load().await;
    let clients = &load.clients;
    stage.cluster.signal(3, "KILL").await;
    stage.cluster.signal(0, "STOP").await;
    let relay = stage.system.start("relay").await;
    std::mem::replace(&mut stage.relay, relay).kill().await;
    stage.wait_for_more(&clients[2..], 100).await;
    stage.cluster.signal(0, "CONT").await;
    let reached = clients[0].so_far().len();
    clients[0].wait_for_events(reached + 100).await;
    stage.end(&mut load).await?;
    Ok(())
}

/// Two services with a database and a relay each, three SSE servers, one cluster: kept apart by namespace.
#[tokio::test]
async fn several_databases_share_one_cluster() -> TestResult {
    let first = Stage::new(Cluster::start().await).await;
    let url = first.cluster.url();
    let other = System::with_redis(&url).await;
    let mut other_topics = Vec::new();
    let prefix = other.redis.topic("").to_string();
    for at in 0..3 {
        other_topics.push(first.cluster.topic_at(&prefix, at).await);
    }
    let relay = other.start("relay").await;
    let sse = other.start("sse").await;
    let token = other.token_with(Uuid::new_v4(), Duration::from_secs(3600), &[&format!("{prefix}*")]);
    let mut other_clients = Vec::new();
    for topic in &other_topics {
        other_clients.push(Client::open(&sse.url(&format!("/streams/{topic}")), &token).await);
    }
    let mut load = first.load().await;
    let committing = keep_committing(&other, &other_topics, load.stop.clone());
    for client in load.clients.iter().chain(&other_clients) {
        client.wait_for_events(100).await;
    }
    first.end(&mut load).await?;
    let committed = committing.await?;
    for client in &other_clients {
        let events = client.wait_for_events(usize::try_from(committed)?).await;
        assert_eq!(numbers(&events), (0..committed).collect::<Vec<_>>(), "{}", relay.log());
    }
    Ok(())
}

/// The users have exactly the rights that `grants` prints.
#[tokio::test]
async fn the_story_runs_under_the_printed_rights_and_doctor_finds_nothing_wrong() -> TestResult {
    let cluster = Cluster::start().await;
    let system = System::with_redis(&cluster.url()).await;
    let namespace = system.redis.relay_name();
    let arguments = ["grants", "--redis", "--cluster", "--namespace", &namespace];
    let users = ["--relay", "relay", "--sse", "sse", "--operator", "operator"];
    let lines = stdout(&cli(system.settings(), &[&arguments[..], &users[..]].concat()).await);
    for at in 0..cluster.servers.len() {
        let mut admin = cluster.connect_to(at).await.ok_or("no connection")?;
        for line in lines.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            redis::cmd(words[0]).arg(&words[1..]).arg(">secret").exec_async(&mut admin).await?;
        }
    }
    let url = cluster.url();
    let url_of = |user: &str| url.replace("app:of-the-cluster", &format!("{user}:secret"));
    let mut stage = Stage::with(cluster, system.set("REDIS_URL", &url_of("relay")), &url_of("sse")).await;
    let mut load = stage.load().await;
    stage.cluster.move_slot(&stage.topics[0], 0, 1).await;
    stage.wait_for_more(&load.clients, 20).await;
    stage.end(&mut load).await?;
    for (user, role) in [("relay", "relay"), ("sse", "sse"), ("operator", "operator")] {
        stage.system.set_again("REDIS_URL", &url_of(user));
        let found = stdout(&cli(stage.system.settings(), &["doctor", "--role", role]).await);
        assert!(!found.contains("WRONG    redis"), "{user}: {found}");
        assert!(found.contains("redis cluster: 127.0.0.1:"), "{user}: {found}");
        let status = cli(stage.system.settings(), &["status"]).await;
        assert_eq!(status.status.code(), Some(0), "{user}: {}", stdout(&status));
        assert!(stdout(&status).contains("Redis Cluster of 3 primary servers"), "{}", stdout(&status));
    }
    Ok(())
}

#[tokio::test]
async fn each_mistake_with_a_cluster_is_one_sentence() -> TestResult {
    let (one, other) = (start_redis(Vec::new(), None).await, start_redis(Vec::new(), None).await);
    let system = System::new().await;
    let password = |server: &aftercommit::local::RedisServer| {
        secrecy::ExposeSecret::expose_secret(&server.url()).to_owned()
    };
    let (one, other) = (password(&one), password(&other));
    let several = format!("{one},127.0.0.1:{}", other.rsplit(':').next().unwrap_or_default());
    let settings = system.settings().clone().set("REDIS_URL", &several);
    assert_fails(&settings, &["relay"], 1, "is no node of a cluster: name one server").await;
    let settings = system.settings().clone().set("REDIS_URL", "redis://127.0.0.1:1,127.0.0.1:2/main");
    assert_fails(&settings, &["relay"], 1, "is not of the form").await;
    // A cluster without slots: nobody has given it any yet.
    let node = start_redis(vec![("cluster-enabled", "yes".to_owned())], None).await;
    let settings = system.settings().clone().set("REDIS_URL", password(&node));
    let found = stdout(&cli(&settings, &["doctor", "--role", "relay", "--output", "json"]).await);
    assert!(found.contains("no server of the cluster has the slot"), "{found}");
    Ok(())
}
