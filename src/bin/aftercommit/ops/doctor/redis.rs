//! What is looked at in Redis.

use std::collections::HashMap;

use anyhow::Result;
use redis::aio::MultiplexedConnection;

use super::{Finding, output};
use crate::config::Config;

/// A subscriber that lags behind by more than this is cut off by Redis, in bytes.
const PUBSUB_BUFFER_MIN: u64 = 32 * 1024 * 1024;
/// The stream of one entry that is written and removed again.
const SCRATCH: &str = "aftercommit:{aftercommit-doctor}:history";

/// Looks at Redis.
pub(super) async fn examine(config: &Config) -> Vec<Finding> {
    const FIX: &str = "see [redis] in the configuration; the message names what is wrong";
    let mut connection = match config.redis.connect().await {
        Ok(connection) => connection,
        Err(error) => return vec![Finding::wrong("redis", error.to_string(), FIX)],
    };
    let mut findings = vec![Finding::ok("redis", "answers")];
    match look(config, &mut connection).await {
        Ok(found) => findings.extend(found),
        Err(error) => {
            findings.push(Finding::wrong("redis", format!("a check failed: {}", output::told(&error)), FIX))
        }
    }
    findings
}

async fn look(config: &Config, connection: &mut MultiplexedConnection) -> Result<Vec<Finding>> {
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
            "set maxmemory-policy noeviction: any other drops histories silently",
        ),
        Finding::should(
            "persistence",
            is_saved,
            format!("aof_enabled {}, save {}", of("aof_enabled"), if is_saved { "set" } else { "not set" }),
            "switch appendonly on: after a restart the relay has to give Redis everything again",
        ),
        Finding::must(
            "replicas",
            replicas >= config.redis.min_replicas,
            format!("{replicas} connected, {} needed", config.redis.min_replicas),
            "start the replicas, or lower [redis] min_replicas: nothing is delivered without them",
        ),
    ];
    if of("cluster_enabled") == "1" {
        findings.push(cluster(connection).await?);
    }
    findings.push(permissions(connection).await);
    findings.extend(limits(connection).await);
    Ok(findings)
}

async fn cluster(connection: &mut MultiplexedConnection) -> Result<Finding> {
    let text: String = redis::cmd("CLUSTER").arg("INFO").query_async(connection).await?;
    let state = text.lines().find_map(|line| line.trim().strip_prefix("cluster_state:")).unwrap_or("?");
    Ok(Finding::must("cluster state", state == "ok", state, "see CLUSTER INFO and CLUSTER NODES there"))
}

/// Does once what the publishing script does, and removes it again.
async fn permissions(connection: &mut MultiplexedConnection) -> Finding {
    const SCRIPT: &str = "redis.call('XADD', KEYS[1], '*', 'event', 'doctor')
        redis.call('PEXPIRE', KEYS[1], 1000)
        redis.call('PUBLISH', KEYS[1], 'doctor')
        return redis.call('DEL', KEYS[1])";
    let done = redis::Script::new(SCRIPT).key(SCRATCH).invoke_async::<i64>(connection).await;
    match done {
        Ok(_) => Finding::ok("redis permissions", "scripts, streams, expiry and publishing are allowed"),
        Err(error) => Finding::wrong(
            "redis permissions",
            aftercommit::redis::said(&error),
            "allow the user EVALSHA, SCRIPT LOAD, XADD, XREVRANGE, EXPIRE, PUBLISH and DEL on aftercommit:* and the channels",
        ),
    }
}

async fn limits(connection: &mut MultiplexedConnection) -> Vec<Finding> {
    const NOT_TOLD: &str = "not told (CONFIG is not allowed)";
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
            "set timeout 0: idle connections of the relay are cut otherwise, and made again",
        ),
    ]
}

/// `normal 0 0 0 slave … pubsub 33554432 8388608 60`: the first number behind `pubsub`.
fn pubsub_hard_limit(setting: &str) -> u64 {
    let mut words = setting.split_whitespace().skip_while(|word| *word != "pubsub").skip(1);
    words.next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// A setting of the server; `None` where it does not tell.
async fn setting(connection: &mut MultiplexedConnection, name: &str) -> Option<String> {
    let mut asked = redis::cmd("CONFIG");
    let told = asked.arg("GET").arg(name).query_async::<HashMap<String, String>>(connection).await;
    told.ok()?.remove(name)
}
