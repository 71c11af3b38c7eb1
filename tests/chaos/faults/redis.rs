//! Faults of Redis: it dies, loses all or single keys, goes back in time, is full, and revokes rights of our
//! users.

use std::time::Duration;

use aftercommit::local::RedisServer;

use super::{kill, operators};
use crate::harness::LIMIT;
use crate::kinds::{Key, Kind};
use crate::plan::Fault;
use crate::roles::User;
use crate::world::World;

/// How long Redis goes on refusing when something was given up.
const GIVEN_UP: Duration = Duration::from_millis(600);
/// How long parked events may take to be released when their cause is gone.
const RELEASE: Duration = Duration::from_secs(20);

pub(super) async fn make(world: &World, fault: &Fault) {
    let channel = world.channel_of(fault.target);
    match fault.kind {
        Kind::RedisFlushed => tell(world, &["flushall"]).await,
        Kind::ScriptForgotten => tell(world, &["script", "flush"]).await,
        Kind::SubscribersCutOff => tell(world, &["client", "kill", "type", "pubsub"]).await,
        Kind::RedisFull => {
            between(world, "config set maxmemory 1", "config set maxmemory 0", fault.lasts).await;
        }
        Kind::RedisReadOnly => between(world, "replicaof 127.0.0.1 1", "replicaof no one", fault.lasts).await,
        Kind::RedisFrozen => {
            let pid = pid(world).await;
            kill(pid, "STOP").await;
            tokio::time::sleep(fault.lasts).await;
            kill(pid, "CONT").await;
        }
        Kind::KeyVanished(key) => vanish(world, channel, key).await,
        Kind::KeyOfWrongType(key) => {
            vanish(world, channel, key).await;
            let name = name(world, channel, key);
            tell(world, &["eval", PUT_IN_THE_WAY, "1", &name]).await;
            tokio::time::sleep(fault.lasts).await;
            tell(world, &["eval", TAKE_AWAY, "1", &name]).await;
            released(world, fault).await;
        }
        Kind::HistoryOfWrongType => {
            history_of_wrong_type(world, fault, channel).await;
            released(world, fault).await;
        }
        Kind::ChannelForbidden | Kind::KeyForbidden => {
            forbid(world, fault.kind, world.channels[channel].topic.as_str()).await;
            tokio::time::sleep(fault.lasts).await;
            given_up(world, fault, channel).await;
            for user in [User::Relay, User::Sse] {
                obey(world, &user.given_back()).await;
            }
            released(world, fault).await;
        }
        Kind::RelayRightTaken(right) => {
            let _taken = world.rights.lock().await;
            obey(world, &User::Relay.taken(right)).await;
            tokio::time::sleep(fault.lasts).await;
            obey(world, &User::Relay.given_back()).await;
            released(world, fault).await;
        }
        Kind::SseRightTaken(right) => {
            let _taken = world.rights.lock().await;
            obey(world, &User::Sse.taken(right)).await;
            tokio::time::sleep(fault.lasts).await;
            obey(world, &User::Sse.given_back()).await;
        }
        Kind::RedisRestored => {
            world.save_redis().await.expect("an RDB");
            tokio::time::sleep(fault.lasts).await;
            kill(pid(world).await, "KILL").await;
            world.restore_redis().await;
        }
        _ => {
            kill(pid(world).await, "KILL").await;
            tokio::time::sleep(fault.lasts).await;
            world.restart_redis(fault.kind == Kind::RedisLostItsData).await;
        }
    }
}

async fn pid(world: &World) -> u32 {
    world.redis.lock().await.as_ref().and_then(RedisServer::pid).expect("it runs")
}

/// Gives a key another type, then deletes it. A program that writes the key meanwhile repairs it.
const PUT_IN_THE_WAY: &str =
    "if redis.call('exists', KEYS[1]) == 0 then redis.call('rpush', KEYS[1], 'in the way') end";
const TAKE_AWAY: &str = "if redis.call('type', KEYS[1]).ok == 'list' then redis.call('del', KEYS[1]) end";
/// The last id of a history, which is deleted in the same moment.
const DESTROY: &str = "local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
                       redis.call('DEL', KEYS[1])
                       return newest[1] and newest[1][1]";

fn name(world: &World, channel: usize, key: Key) -> String {
    let (keys, topic) = (world.system.redis.keys(), &world.channels[channel].topic);
    match key {
        Key::History => keys.history(topic),
        Key::Begun => keys.begun(topic),
        Key::Top => keys.top(&world.system.redis.relay_name()),
        Key::Log => keys.log(),
    }
}

async fn vanish(world: &World, channel: usize, key: Key) {
    let name = name(world, channel, key);
    if key != Key::History {
        return tell(world, &["del", &name]).await;
    }
    let reply = world.tell_redis(&["eval", DESTROY, "1", &name]).await.expect("Redis runs");
    let last: Option<String> = redis::from_redis_value(reply).expect("an id");
    if let Some(last) = last.and_then(|last| last.parse().ok()) {
        world.ledger.destroyed(channel, last);
    }
}

async fn history_of_wrong_type(world: &World, fault: &Fault, channel: usize) {
    let topic = &world.channels[channel].topic;
    let (history, aside) = (world.system.redis.keys().history(topic), format!("aside:{topic}"));
    // Each in one script: nothing may be published in between, which would then be destroyed.
    let breaks =
        "if redis.call('type', KEYS[1]).ok == 'stream' then redis.call('rename', KEYS[1], KEYS[2]) end
                  return redis.call('set', KEYS[1], 'of another type')";
    let mends = "if redis.call('type', KEYS[1]).ok == 'string' then redis.call('del', KEYS[1]) end
                 if redis.call('exists', KEYS[2]) == 1 then redis.call('rename', KEYS[2], KEYS[1]) end";
    tell(world, &["eval", breaks, "2", &history, &aside]).await;
    tokio::time::sleep(fault.lasts).await;
    given_up(world, fault, channel).await;
    tell(world, &["eval", mends, "2", &history, &aside]).await;
}

/// While Redis refuses a topic an operator gives up some of its events, half of the times; all that is parked
/// later is not meant.
async fn given_up(world: &World, fault: &Fault, channel: usize) {
    if fault.target & 1 << 21 != 0 {
        operators::give_up_some(world, fault, channel).await;
        // Others wait meanwhile; some of them are parked after the request and before the relay comes to it.
        tokio::time::sleep(GIVEN_UP).await;
    }
}

/// Releases the parked events, half of the times; otherwise the operators of the other lane do. If other
/// faults delay the relays for long, the end of the run releases them.
async fn released(world: &World, fault: &Fault) {
    if fault.target & 1 << 20 != 0 && !world.release_parked(RELEASE).await {
        eprintln!("parked events are still waiting after {} s", RELEASE.as_secs());
    }
}

/// Takes one topic's key or channels away from everybody.
async fn forbid(world: &World, kind: Kind, topic: &str) {
    let (relay, keys) = (world.system.redis.relay_name(), world.system.redis.keys());
    let others =
        || world.channels.iter().map(|channel| &channel.topic).filter(|other| other.as_str() != topic);
    let mut rules = Vec::new();
    if kind == Kind::KeyForbidden {
        rules.extend(["resetkeys".to_owned(), format!("~{}", keys.top(&relay)), format!("~{}", keys.log())]);
        // All keys of the other topics.
        rules.extend(others().map(|other| format!("~{}", keys.history(other).replace(":history", ":*"))));
        // And those of the other log.
        rules.push("~aftercommit:neighbour:*".to_owned());
    } else {
        rules.extend([
            "resetchannels".to_owned(),
            "&neighbour:*".to_owned(),
            "&aftercommit:neighbour:*".to_owned(),
        ]);
        rules.extend(
            others().flat_map(|other| [format!("&{}", keys.live(other)), format!("&{}", keys.public(other))]),
        );
    }
    for user in [User::Relay, User::Sse] {
        let words = ["acl", "setuser", user.name()].map(str::to_owned);
        obey(world, &[&words, rules.as_slice()].concat()).await;
    }
}

async fn between(world: &World, breaks: &str, mends: &str, lasts: Duration) {
    tell(world, &breaks.split(' ').collect::<Vec<_>>()).await;
    tokio::time::sleep(lasts).await;
    tell(world, &mends.split(' ').collect::<Vec<_>>()).await;
}

async fn obey(world: &World, words: &[String]) {
    tell(world, &words.iter().map(String::as_str).collect::<Vec<_>>()).await;
}

/// Runs a Redis command that must succeed. On a busy machine connections and answers time out, which says
/// nothing: every command here may run twice.
async fn tell(world: &World, words: &[&str]) {
    let deadline = tokio::time::Instant::now() + LIMIT;
    loop {
        match world.tell_redis(words).await {
            Ok(_reply) => return,
            Err(error) if error.code().is_none() && tokio::time::Instant::now() < deadline => {
                eprintln!("{words:?}: {error}; again");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) => panic!("{words:?}: {error}"),
        }
    }
}
