//! Making the faults of a lane, one after the other, and mending each.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::harness::{Flow, Process, Proxy};
use crate::plan::{Break, Fault, Kind, Lane, Line};
use crate::report::Faults;
use crate::world::World;

/// How long parked events may take to be released when their cause is gone.
const RELEASE: Duration = Duration::from_secs(20);

/// Makes the faults of a lane at their times, and tells which it made.
pub(crate) async fn make(world: Arc<World>, lane: Lane, begun: Instant, verbose: bool) -> Faults {
    let mut made = Faults::default();
    for fault in lane.faults {
        tokio::time::sleep_until((begun + fault.at).into()).await;
        if verbose {
            eprintln!("{:>8.3} s  {} ({})", begun.elapsed().as_secs_f64(), fault.kind, lane.name);
        }
        one(&world, &fault).await;
        made.count(fault.kind);
    }
    made
}

async fn one(world: &World, fault: &Fault) {
    let index = usize::try_from(fault.target % 2).expect("0 or 1");
    match fault.kind {
        Kind::RelayKilled | Kind::RelayFrozen | Kind::RelayTerminated => relay(world, fault, index).await,
        Kind::SseKilled | Kind::SseFrozen | Kind::SseTerminated => sse(world, fault, index).await,
        Kind::PostgresKilled | Kind::PostgresRestarted | Kind::SessionsTerminated => {
            postgres(world, fault).await
        }
        Kind::Line(line, how) => way(proxy(world, line, index), how, fault.lasts).await,
        _ => redis(world, fault).await,
    }
}

async fn relay(world: &World, fault: &Fault, otherwise: usize) {
    let index = world.leader().await.unwrap_or(otherwise);
    let mut process = world.relays[index].lock().await;
    match fault.kind {
        Kind::RelayFrozen => freeze(&process, fault.lasts).await,
        kind => {
            process.signal(if kind == Kind::RelayKilled { "KILL" } else { "TERM" }).await;
            tokio::time::sleep(fault.lasts).await;
            *process = world.new_relay().await;
        }
    }
}

async fn sse(world: &World, fault: &Fault, index: usize) {
    let outlet = &world.outlets[index];
    if fault.kind == Kind::SseFrozen {
        return freeze(&*outlet.process.lock().await, fault.lasts).await;
    }
    let signal = if fault.kind == Kind::SseKilled { "KILL" } else { "TERM" };
    outlet.process.lock().await.signal(signal).await;
    tokio::time::sleep(fault.lasts).await;
    outlet.replace(&world.system).await;
}

async fn freeze(process: &Process, lasts: Duration) {
    process.signal("STOP").await;
    tokio::time::sleep(lasts).await;
    process.signal("CONT").await;
}

async fn postgres(world: &World, fault: &Fault) {
    match fault.kind {
        Kind::SessionsTerminated => {
            let mut connection = world.postgres().await;
            let sql = "select pg_terminate_backend(pid) from pg_stat_activity
                       where backend_type = 'client backend' and pid <> pg_backend_pid()";
            // It may end us as well.
            drop(sqlx::query(sql).execute(&mut connection).await);
        }
        Kind::PostgresRestarted => world.postgres.control(&["restart", "--mode", "fast"]).await,
        _ => {
            let pid = world.postgres.server.pid().expect("it runs");
            kill(pid, "KILL").await;
            // Its last sessions are still ending for a moment, and it does not start beside them.
            while !world.postgres.tries_to_start_again().await {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn redis(world: &World, fault: &Fault) {
    let topic =
        &world.channels[usize::try_from(fault.target).expect("an index") % world.channels.len()].topic;
    match fault.kind {
        Kind::RedisFlushed => tell(world, &["flushall"]).await,
        Kind::ScriptForgotten => tell(world, &["script", "flush"]).await,
        Kind::SubscribersCutOff => tell(world, &["client", "kill", "type", "pubsub"]).await,
        Kind::RedisFull => {
            between(world, "config set maxmemory 1", "config set maxmemory 0", fault.lasts).await
        }
        Kind::RedisReadOnly => between(world, "replicaof 127.0.0.1 1", "replicaof no one", fault.lasts).await,
        Kind::RedisFrozen => {
            let pid = world.redis.lock().await.as_ref().and_then(aftercommit::local::RedisServer::pid);
            let pid = pid.expect("it runs");
            kill(pid, "STOP").await;
            tokio::time::sleep(fault.lasts).await;
            kill(pid, "CONT").await;
        }
        Kind::HistoryOfWrongType => {
            let (history, aside) = (world.system.redis.keys().history(topic), format!("aside:{topic}"));
            // Each in one script: nothing may be published in between, which would then be destroyed.
            let breaks =
                "if redis.call('exists', KEYS[1]) == 1 then redis.call('rename', KEYS[1], KEYS[2]) end
                          return redis.call('set', KEYS[1], 'of another type')";
            let mends = "redis.call('del', KEYS[1])
                         if redis.call('exists', KEYS[2]) == 1 then redis.call('rename', KEYS[2], KEYS[1]) end";
            tell(world, &["eval", breaks, "2", &history, &aside]).await;
            tokio::time::sleep(fault.lasts).await;
            tell(world, &["eval", mends, "2", &history, &aside]).await;
            released(world).await;
        }
        Kind::ChannelForbidden | Kind::KeyForbidden => {
            forbid(world, fault, topic.as_str()).await;
            tokio::time::sleep(fault.lasts).await;
            tell(world, &["acl", "setuser", "default", "allkeys", "allchannels"]).await;
            released(world).await;
        }
        _ => {
            let pid = world.redis.lock().await.as_ref().and_then(aftercommit::local::RedisServer::pid);
            kill(pid.expect("it runs"), "KILL").await;
            tokio::time::sleep(fault.lasts).await;
            world.restart_redis(fault.kind == Kind::RedisLostItsData).await;
        }
    }
}

/// What was parked is released; where other faults keep the relays from it for long, the end of the run does it.
async fn released(world: &World) {
    if !world.release_parked(RELEASE).await {
        eprintln!("parked events are still waiting after {} s", RELEASE.as_secs());
    }
}

/// Takes one topic's key or channels away from everybody.
async fn forbid(world: &World, fault: &Fault, topic: &str) {
    let (relay, keys) = (world.system.redis.relay_name(), world.system.redis.keys());
    let mut words = vec!["acl".to_owned(), "setuser".to_owned(), "default".to_owned()];
    let others = world.channels.iter().map(|channel| &channel.topic).filter(|other| other.as_str() != topic);
    if fault.kind == Kind::KeyForbidden {
        words.extend(["resetkeys".to_owned(), format!("~{}", keys.top(&relay))]);
        words.push(format!("~{}", keys.log()));
        // All keys of the other topics.
        words.extend(others.map(|other| format!("~{}", keys.history(other).replace(":history", ":*"))));
    } else {
        words.push("resetchannels".to_owned());
        words.extend(
            others.flat_map(|other| [format!("&{}", keys.public(other)), format!("&{}", keys.live(other))]),
        );
    }
    tell(world, &words.iter().map(String::as_str).collect::<Vec<_>>()).await;
}

async fn between(world: &World, breaks: &str, mends: &str, lasts: Duration) {
    tell(world, &breaks.split(' ').collect::<Vec<_>>()).await;
    tokio::time::sleep(lasts).await;
    tell(world, &mends.split(' ').collect::<Vec<_>>()).await;
}

/// A command that Redis has to obey.
async fn tell(world: &World, words: &[&str]) {
    if let Err(error) = world.tell_redis(words).await {
        panic!("{words:?}: {error}");
    }
}

fn proxy(world: &World, line: Line, index: usize) -> &Proxy {
    match line {
        Line::RelayRedis => &world.relay_redis,
        Line::RelayPostgres => &world.postgres.proxy,
        Line::SseRedis => &world.sse_redis,
        Line::ClientSse => &world.outlets[index].proxy,
    }
}

async fn way(proxy: &Proxy, how: Break, lasts: Duration) {
    let flow = match how {
        Break::Cut => return proxy.cut(),
        Break::Stall => Flow::Stall,
        Break::Swallow => Flow::SwallowReplies,
        Break::Refuse => Flow::Refuse,
    };
    proxy.flow(flow);
    if flow == Flow::Refuse {
        proxy.cut();
    }
    tokio::time::sleep(lasts).await;
    proxy.flow(Flow::Pass);
}

async fn kill(pid: u32, signal: &str) {
    let mut command = tokio::process::Command::new("/bin/sh");
    let status = command.args(["-c", "kill -s \"$1\" \"$2\"", "sh", signal, &pid.to_string()]).status().await;
    assert!(status.expect("a shell").success(), "kill -s {signal}");
}
