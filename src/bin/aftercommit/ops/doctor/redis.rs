//! Checks of Redis.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Result;
use redis::aio::MultiplexedConnection;

use aftercommit::event::Topic;

use super::{Finding, Scope, output};
use crate::config::Config;

/// The smallest output buffer for subscribers, in bytes. Redis disconnects a subscriber that lags behind by
/// more.
const PUBSUB_BUFFER_MIN: u64 = 32 * 1024 * 1024;

/// The time limit for the confirmation of a subscription.
const SUBSCRIBED_WITHIN: Duration = Duration::from_secs(3);

/// Checks Redis.
pub(super) async fn examine(config: &Config, scope: Scope) -> Vec<Finding> {
    const FIX: &str = "see [redis] in the configuration; the message names what is wrong";
    let mut connection = match config.redis.connect().await {
        Ok(connection) => connection,
        Err(error) => return vec![Finding::wrong("redis", error.to_string(), FIX)],
    };
    let mut findings = vec![Finding::ok("redis", "answers")];
    match look(config, scope, &mut connection).await {
        Ok(found) => findings.extend(found),
        Err(error) => findings.push(Finding::wrong(
            "redis",
            format!("a check failed: {}", output::error_text(&error)),
            FIX,
        )),
    }
    findings
}

async fn look(config: &Config, scope: Scope, connection: &mut MultiplexedConnection) -> Result<Vec<Finding>> {
    let text: String = redis::cmd("INFO").query_async(connection).await?;
    let info: HashMap<&str, &str> = text.lines().filter_map(|line| line.trim().split_once(':')).collect();
    let of = |name: &str| info.get(name).copied().unwrap_or("?");
    let version: Vec<u32> = of("redis_version").split('.').map_while(|part| part.parse().ok()).collect();
    let policy = of("maxmemory_policy");
    let is_saved =
        of("aof_enabled") == "1" || setting(connection, "save").await.is_none_or(|save| !save.is_empty());
    let replicas: u32 = of("connected_slaves").parse().unwrap_or(0);
    let mut findings = vec![
        Finding::must(
            "redis version",
            version >= vec![6, 2],
            of("redis_version"),
            "upgrade to Redis 6.2 or later",
        ),
        Finding::must(
            "redis role",
            of("role") == "master",
            of("role"),
            "point REDIS_URL at the primary: this server is a replica",
        ),
        Finding::must(
            "maxmemory-policy",
            policy == "noeviction" || of("maxmemory") == "0",
            format!("{policy}, maxmemory {}", of("maxmemory_human")),
            "set maxmemory-policy noeviction: any other policy drops histories silently",
        ),
        Finding::should(
            "persistence",
            is_saved,
            format!("aof_enabled {}, save {}", of("aof_enabled"), if is_saved { "set" } else { "not set" }),
            "switch appendonly on: otherwise the relay must publish everything again after a restart of \
             Redis",
        ),
        Finding::must(
            "replicas",
            replicas >= config.redis.min_replicas,
            format!("{replicas} connected, {} needed", config.redis.min_replicas),
            "start the replicas, or lower [redis] min_replicas: nothing is delivered without them",
        ),
    ];
    if of("cluster_enabled") == "1" {
        findings.push(Finding::wrong(
            "redis cluster",
            "this Redis is a cluster; clusters are not supported yet",
            "point REDIS_URL at a Redis that is not a cluster, with replicas if it must survive the loss of \
             a server",
        ));
        return Ok(findings);
    }
    if scope.publishes() {
        findings.push(permissions(config).await);
    }
    if scope.subscribes() {
        findings.push(subscriptions(config).await);
    }
    findings.extend(limits(connection).await);
    Ok(findings)
}

/// Subscribes as an SSE server does: to a topic's live channel, and to a channel of each kind of topic in
/// use.
async fn subscriptions(config: &Config) -> Finding {
    const CHECK: &str = "redis subscriptions";
    let channels = channels_of(config).await;
    match tokio::time::timeout(SUBSCRIBED_WITHIN, subscribe(config, &channels)).await {
        Ok(Ok(())) => Finding::ok(CHECK, format!("{} can be subscribed to", channels.join(", "))),
        Ok(Err((channel, why))) => Finding::wrong(
            CHECK,
            format!("the channel {channel} cannot be subscribed to: {why}"),
            "give the SSE server's Redis user its rights: `aftercommit grants --redis --sse USER | \
             redis-cli`; to narrow them, keep &aftercommit:* and one &PREFIX:* for each kind of topic",
        ),
        Err(_elapsed) => Finding::wrong(
            CHECK,
            format!("no confirmation within {} s", SUBSCRIBED_WITHIN.as_secs()),
            "check the path to Redis: a proxy must pass SUBSCRIBE on",
        ),
    }
}

/// A live channel, and a public channel of each kind of topic in use, in the configured namespace.
async fn channels_of(config: &Config) -> Vec<String> {
    let keys = config.redis.keys();
    let scratch = |kind: &str| Topic::new(format!("{kind}aftercommit-doctor"));
    let mut in_use: Vec<Topic> = newest_topics(config).await.unwrap_or_default();
    if in_use.is_empty() {
        in_use.extend(
            ["upload-session:", "user-notifications:"].into_iter().filter_map(|kind| scratch(kind).ok()),
        );
    }
    let live = scratch("").ok().map(|topic| keys.live(&topic));
    live.into_iter().chain(in_use.iter().map(|topic| keys.public(topic))).collect()
}

/// Subscribes to each channel. Returns the first channel that is refused, and the reason.
async fn subscribe(config: &Config, channels: &[String]) -> Result<(), (String, String)> {
    let refused = |channel: &String, error: redis::RedisError| {
        (channel.clone(), aftercommit::redis::error_text(&error))
    };
    let connected = config.redis.connect_pubsub().await;
    let mut connection = connected.map_err(|error| (channels.join(", "), error.to_string()))?;
    for channel in channels {
        connection.subscribe(channel).await.map_err(|error| refused(channel, error))?;
    }
    Ok(())
}

/// A few topics in use, one of each kind.
async fn newest_topics(config: &Config) -> Result<Vec<Topic>> {
    let mut connection = config.database.connect("aftercommit doctor").await?;
    let topics: Vec<String> = sqlx::query_scalar(
        "select max(newest.topic)
         from (select e.topic, e.id from outbox.event e order by e.id desc limit 1000) newest
         group by pg_catalog.split_part(newest.topic, ':', 1) order by max(newest.id) desc limit 5",
    )
    .fetch_all(&mut connection)
    .await?;
    Ok(topics.into_iter().filter_map(|topic| Topic::new(topic).ok()).collect())
}

/// Publishes as the relay does, by its own publishing script.
async fn permissions(config: &Config) -> Finding {
    const CHECK: &str = "redis permissions";
    match aftercommit::redis::rehearse(&config.redis).await {
        Ok(()) => Finding::ok(CHECK, "an event can be published by the relay's own script"),
        Err(why) => Finding::wrong(
            CHECK,
            why,
            "give the relay's Redis user its rights: `aftercommit grants --redis --relay USER | redis-cli`",
        ),
    }
}

async fn limits(connection: &mut MultiplexedConnection) -> Vec<Finding> {
    const NOT_TOLD: &str = "unknown (CONFIG is not allowed)";
    let buffer = setting(connection, "client-output-buffer-limit").await;
    let hard = buffer.as_deref().map(pubsub_hard_limit);
    let timeout = setting(connection, "timeout").await;
    let is_endless = timeout.as_deref().is_none_or(|seconds| seconds == "0");
    vec![
        Finding::should(
            "client-output-buffer-limit",
            hard.is_none_or(|bytes| bytes == 0 || bytes >= PUBSUB_BUFFER_MIN),
            hard.map_or_else(|| NOT_TOLD.to_owned(), |bytes| format!("pubsub {bytes} bytes")),
            "raise the hard limit of pubsub: an SSE server that lags is cut off and has to join again",
        ),
        Finding::should(
            "redis timeout",
            is_endless,
            timeout.map_or_else(|| NOT_TOLD.to_owned(), |seconds| format!("{seconds} s")),
            "set timeout 0: otherwise Redis closes idle connections of the relay, which must reconnect",
        ),
    ]
}

/// The first number after `pubsub` in a setting such as `normal 0 0 0 slave … pubsub 33554432 8388608 60`.
fn pubsub_hard_limit(setting: &str) -> u64 {
    let mut words = setting.split_whitespace().skip_while(|word| *word != "pubsub").skip(1);
    words.next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// A setting of the server; `None` if the server does not tell it.
async fn setting(connection: &mut MultiplexedConnection, name: &str) -> Option<String> {
    let mut command = redis::cmd("CONFIG");
    let answer = command.arg("GET").arg(name).query_async::<HashMap<String, String>>(connection).await;
    answer.ok()?.remove(name)
}
