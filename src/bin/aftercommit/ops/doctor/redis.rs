//! Checks of Redis.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Result;
use redis::aio::MultiplexedConnection;

use aftercommit::event::Topic;
use aftercommit::redis::subscriber::SubscribeError;
use aftercommit::redis::{Primary, SentinelAnswer, Subscriber};
use tokio_util::sync::CancellationToken;

use super::{Finding, Outcome, Scope, output};
use crate::config::Config;

/// The smallest output buffer for subscribers, in bytes. Redis disconnects a subscriber that lags by more.
const PUBSUB_BUFFER_MIN: u64 = 32 * 1024 * 1024;

/// The time limit for the confirmation of a subscription.
const SUBSCRIBED_WITHIN: Duration = Duration::from_secs(3);

/// The wait before a subscription that was lost is tried again.
const TRIED_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Checks Redis: its server, or each primary of a cluster.
pub(super) async fn examine(config: &Config, scope: Scope) -> Vec<Finding> {
    let mut findings = match config.redis.connect_to_primaries().await {
        Err(error) => return vec![Finding::wrong("redis", error.to_string(), FIX)],
        Ok(Some(primaries)) => examine_cluster(config, primaries).await,
        Ok(None) => match config.redis.connect().await {
            Ok(mut connection) => examine_server(config, &mut connection, REDIS_MIN).await,
            Err(error) => vec![Finding::wrong("redis", error.to_string(), FIX)],
        },
    };
    if let Ok(Some(answers)) = config.redis.ask_sentinels().await {
        findings.insert(0, sentinels(&answers));
    }
    if findings.iter().any(|finding| finding.check == "redis" && finding.verdict == Outcome::Wrong) {
        return findings;
    }
    if scope.publishes() {
        findings.push(permissions(config).await);
    }
    if scope.subscribes() {
        findings.push(subscriptions(config).await);
    }
    findings
}

const FIX: &str = "see [redis] in the configuration; the message names what is wrong";
/// The oldest version, and the oldest one of a cluster, which has sharded pub/sub from then on.
const REDIS_MIN: (u32, u32) = (6, 2);
const CLUSTER_MIN: (u32, u32) = (7, 0);

/// Compares the sentinels: a failover needs most of them.
fn sentinels(answers: &[SentinelAnswer]) -> Finding {
    const CHECK: &str = "redis sentinels";
    if let Some(Ok(primary)) = answers.first().map(|answer| &answer.primary)
        && answers.iter().all(|answer| answer.primary.as_ref() == Ok(primary))
    {
        return Finding::ok(CHECK, format!("{} name the primary {primary}", answers.len()));
    }
    let told = answers.iter().map(|SentinelAnswer { sentinel, primary }| match primary {
        Ok(primary) => format!("{sentinel} names {primary}"),
        Err(why) => why.clone(),
    });
    Finding::should(
        CHECK,
        false,
        told.collect::<Vec<_>>().join("; "),
        "start or mend those that name no primary or another one: a failover needs most of them",
    )
}

async fn examine_cluster(config: &Config, primaries: Vec<Primary>) -> Vec<Finding> {
    let shown = |primary: &Primary| format!("{} ({})", primary.address, primary.slots);
    let all = primaries.iter().map(shown).collect::<Vec<_>>().join(", ");
    let mut findings = Vec::new();
    let mut of_each: Vec<(String, Vec<Finding>)> = Vec::new();
    for Primary { address, connection, .. } in primaries {
        match connection {
            Ok(mut connection) => {
                let found = examine_server(config, &mut connection, CLUSTER_MIN).await;
                of_each.push((address, found));
            }
            Err(error) => findings.push(Finding::wrong(
                "redis cluster",
                error.to_string(),
                "start this server or its replica: its topics wait",
            )),
        }
    }
    findings.insert(0, Finding::ok("redis cluster", all));
    findings.extend(joined(of_each));
    findings
}

/// One finding a check: the gravest of the servers, with the addresses of the servers that have it.
fn joined(of_each: Vec<(String, Vec<Finding>)>) -> Vec<Finding> {
    let mut joined: Vec<(Finding, Vec<String>)> = Vec::new();
    for (address, findings) in of_each {
        for finding in findings {
            match joined.iter_mut().find(|(known, _)| known.check == finding.check) {
                None => joined.push((finding, vec![address.clone()])),
                Some((known, _)) if finding.verdict < known.verdict => {}
                Some(graver) if finding.verdict > graver.0.verdict => {
                    *graver = (finding, vec![address.clone()])
                }
                Some((_, addresses)) => addresses.push(address.clone()),
            }
        }
    }
    let named = |(mut finding, addresses): (Finding, Vec<String>)| {
        if finding.verdict != Outcome::Ok {
            finding.evidence = format!("{} (at {})", finding.evidence, addresses.join(", "));
        }
        finding
    };
    joined.into_iter().map(named).collect()
}

async fn examine_server(
    config: &Config,
    connection: &mut MultiplexedConnection,
    oldest: (u32, u32),
) -> Vec<Finding> {
    let transport = config.redis.transport().unwrap_or_default();
    let mut findings = vec![Finding::ok("redis", format!("answers, {transport}"))];
    match look(config, connection, oldest).await {
        Ok(found) => findings.extend(found),
        Err(error) => findings.push(Finding::wrong(
            "redis",
            format!("a check failed: {}", output::error_text(&error)),
            FIX,
        )),
    }
    findings
}

async fn look(
    config: &Config,
    connection: &mut MultiplexedConnection,
    oldest: (u32, u32),
) -> Result<Vec<Finding>> {
    let text: String = redis::cmd("INFO").query_async(connection).await?;
    let info = Info(text.lines().filter_map(|line| line.trim().split_once(':')).collect());
    let save = setting(connection, "save").await;
    let mut findings = server(&info, oldest);
    findings.push(persistence(&info, save.as_deref()));
    findings.push(replicas(&info, config.redis.min_replicas));
    findings.extend(limits(connection).await);
    Ok(findings)
}

/// The server's answer to `INFO`.
struct Info<'a>(HashMap<&'a str, &'a str>);

impl<'a> Info<'a> {
    fn of(&self, name: &str) -> &'a str {
        self.0.get(name).copied().unwrap_or("?")
    }
}

fn server(info: &Info, oldest: (u32, u32)) -> Vec<Finding> {
    let version = info.of("redis_version");
    let numbers: Vec<u32> = version.split('.').map_while(|part| part.parse().ok()).collect();
    let (role, policy) = (info.of("role"), info.of("maxmemory_policy"));
    vec![
        Finding::must(
            "redis version",
            numbers >= vec![oldest.0, oldest.1],
            version,
            format!("upgrade to Redis {}.{} or later", oldest.0, oldest.1),
        ),
        Finding::must(
            "redis role",
            role == "master",
            role,
            "point REDIS_URL at the primary: this server is a replica",
        ),
        Finding::must(
            "maxmemory-policy",
            policy == "noeviction" || info.of("maxmemory") == "0",
            format!("{policy}, maxmemory {}", info.of("maxmemory_human")),
            "set maxmemory-policy noeviction: any other policy drops histories silently",
        ),
    ]
}

/// Whether the server keeps its data over a restart. `save` is its setting, if it tells that.
fn persistence(info: &Info, save: Option<&str>) -> Finding {
    let appends = info.of("aof_enabled");
    let is_saved = appends == "1" || save.is_none_or(|save| !save.is_empty());
    Finding::should(
        "persistence",
        is_saved,
        format!("aof_enabled {appends}, save {}", if is_saved { "set" } else { "not set" }),
        "switch appendonly on: otherwise the relay must publish everything again after a restart of Redis",
    )
}

fn replicas(info: &Info, needed: u32) -> Finding {
    let connected: u32 = info.of("connected_slaves").parse().unwrap_or(0);
    Finding::must(
        "replicas",
        connected >= needed,
        format!("{connected} connected, {needed} needed"),
        "start the replicas, or lower [redis] min_replicas: nothing is delivered without them",
    )
}

/// Subscribes as an SSE server does, to a topic of each kind in use.
async fn subscriptions(config: &Config) -> Finding {
    const CHECK: &str = "redis subscriptions";
    let topics = topics_to_try(config).await;
    let stop = CancellationToken::new();
    let _stopped = stop.clone().drop_guard();
    let (subscriber, _inbox) = Subscriber::start(config.redis.clone(), stop);
    for topic in &topics {
        let why = match tokio::time::timeout(SUBSCRIBED_WITHIN, subscribe(&subscriber, topic)).await {
            Ok(Ok(())) => continue,
            Ok(Err(why)) => why,
            Err(_elapsed) => {
                return Finding::wrong(
                    CHECK,
                    format!("no confirmation within {} s", SUBSCRIBED_WITHIN.as_secs()),
                    "check the path to Redis: a proxy must pass SUBSCRIBE on",
                );
            }
        };
        return Finding::wrong(
            CHECK,
            format!("the channels of the topic {topic} cannot be subscribed to: {why}"),
            "give the SSE server's Redis user its rights: `aftercommit grants \
             --redis --sse USER | redis-cli`; to narrow them, keep &aftercommit:* and one &PREFIX:* for each kind of topic",
        );
    }
    let names = topics.iter().map(Topic::to_string).collect::<Vec<_>>().join(", ");
    Finding::ok(CHECK, format!("{names} can be subscribed to"))
}

/// Subscribes to a topic. A subscription that is lost is tried again.
async fn subscribe(subscriber: &Subscriber, topic: &Topic) -> Result<(), String> {
    loop {
        match subscriber.subscribe(topic.clone()).await {
            Ok(()) => return Ok(()),
            Err(SubscribeError::Refused(why)) => return Err(why),
            Err(SubscribeError::Lost) => tokio::time::sleep(TRIED_AGAIN_AFTER).await,
        }
    }
}

/// A topic of each kind in use, or of each kind of the bundled application.
async fn topics_to_try(config: &Config) -> Vec<Topic> {
    let scratch = |kind: &str| Topic::new(format!("{kind}aftercommit-doctor")).ok();
    let in_use: Vec<Topic> = newest_topics(config).await.unwrap_or_default();
    match in_use.is_empty() {
        true => ["upload-session:", "user-notifications:"].into_iter().filter_map(scratch).collect(),
        false => in_use,
    }
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
