//! Actions of operators on the command line, during all other faults.

use std::process::Output;
use std::time::Duration;

use aftercommit::event::StreamId;
use aftercommit::log::parked;
use tokio::time::{Instant, timeout};

use super::postgres::{execute, insist};
use crate::harness::{Running, cli};
use crate::kinds::Kind;
use crate::ledger::Request;
use crate::plan::Fault;
use crate::world::World;

/// How long an operator waits for something that can be released or discarded.
const LOOK: Duration = Duration::from_secs(3);
/// The time limit for a rebase to start, during all other faults.
const REBASE: Duration = Duration::from_secs(600);
/// How long an operator keeps an eye on the relay after a rebase.
const ATTENTION: Duration = Duration::from_secs(6);
/// How long an operator waits until no transaction of a writer is open.
const STANDSTILL: Duration = Duration::from_secs(10);
/// A transaction that is idle for this long blocks a rebase, and the operator ends it.
const IDLE: &str = "500 ms";

/// False if there was nothing to do.
pub(super) async fn make(world: &World, fault: &Fault) -> bool {
    match fault.kind {
        Kind::Paused => {
            let paused = operate(world, &["pause", "--reason", "chaos"]).await.status.success();
            tokio::time::sleep(fault.lasts).await;
            resume(world).await;
            paused
        }
        Kind::Replayed => replay(world, fault).await,
        Kind::SequenceReset => set_back(world, fault).await,
        _ => settle(world, fault).await,
    }
}

async fn operate(world: &World, arguments: &[&str]) -> Output {
    let output = cli(&world.operator_settings("operator"), arguments).await;
    if world.verbose && !output.status.success() {
        eprintln!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    output
}

/// Resumes the relays. Retried until it succeeds.
pub(crate) async fn resume(world: &World) {
    loop {
        // It is no error where none is paused.
        if operate(world, &["resume", "--reason", "chaos"]).await.status.success() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The newest events of a topic once more.
async fn replay(world: &World, fault: &Fault) -> bool {
    // The last two have few events.
    let channel = world.channel_of(fault.target) % (world.channels.len() - 2);
    let topic = world.channels[channel].topic.as_str();
    let arguments = ["replay", "--topic", topic, "--since", "8s", "--yes", "--reason", "chaos"];
    operate(world, &arguments).await.status.success()
}

/// Goes on with replays that were interrupted, until none is.
pub(crate) async fn finish_replays(world: &World) {
    loop {
        let mut connection = world.postgres().await;
        let unfinished =
            sqlx::query_scalar::<_, i64>("select id from outbox.replay where not finished limit 1");
        if let Ok(found) = unfinished.fetch_optional(&mut connection).await {
            let Some(id) = found else { return };
            operate(world, &["replay", "--resume", &id.to_string(), "--yes", "--reason", "chaos"]).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Releases or gives up some of a topic's parked events: those up to one of them.
async fn settle(world: &World, fault: &Fault) -> bool {
    let deadline = Instant::now() + LOOK;
    while Instant::now() < deadline {
        if let Some((channel, ids)) = parked_now(world, fault).await {
            let place = usize::try_from(fault.target >> 8).expect("an index") % ids.len();
            return settle_through(world, fault, fault.kind, channel, &ids[..=place]).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    false
}

/// Gives up some of a topic's parked events while Redis refuses them still.
pub(super) async fn give_up_some(world: &World, fault: &Fault, channel: usize) {
    let held = held(world).await.unwrap_or_default();
    if held.contains(&channel) {
        let ids = ids(world, channel).await.unwrap_or_default();
        if !ids.is_empty() {
            let place = usize::try_from(fault.target >> 8).expect("an index") % ids.len();
            settle_through(world, fault, Kind::ParkedDiscarded, channel, &ids[..=place]).await;
        }
    }
}

/// The topics that have parked events.
async fn held(world: &World) -> Option<Vec<usize>> {
    let mut connection = world.postgres().await;
    let held = parked::held_topics(&mut connection, &world.system.redis.relay_name()).await.ok()?;
    Some((0..world.channels.len()).filter(|n| held.contains_key(&world.channels[*n].topic)).collect())
}

/// The ids of a topic's parked events, in order.
async fn ids(world: &World, channel: usize) -> Option<Vec<StreamId>> {
    let (mut connection, relay) = (world.postgres().await, world.system.redis.relay_name());
    let topic = &world.channels[channel].topic;
    let events = parked::of_topic(&mut connection, &relay, topic, 1000).await.ok()?;
    Some(events.into_iter().map(|(id, _)| id).collect())
}

/// A topic that has parked events, and their ids in order.
async fn parked_now(world: &World, fault: &Fault) -> Option<(usize, Vec<StreamId>)> {
    let channels = held(world).await?;
    let place = usize::try_from(fault.target).expect("an index").checked_rem(channels.len())?;
    let ids = ids(world, channels[place]).await?;
    (!ids.is_empty()).then_some((channels[place], ids))
}

async fn settle_through(
    world: &World,
    fault: &Fault,
    kind: Kind,
    channel: usize,
    named: &[StreamId],
) -> bool {
    let action = if kind == Kind::ParkedDiscarded { "discard" } else { "release" };
    let also_arrived = kind == Kind::ParkedDiscarded && fault.target & 1 == 1;
    let (topic, through) = (world.channels[channel].topic.as_str(), named[named.len() - 1].to_string());
    if kind == Kind::ParkedDiscarded {
        // Before it is asked for: it may be done although the answer gets lost.
        let named = named.iter().copied().collect();
        world.ledger.asked(Request { channel, named, also_arrived });
    }
    let mut arguments =
        vec!["parked", action, topic, "--through", &through, "--yes", "--no-wait", "--reason", "chaos"];
    arguments.extend(also_arrived.then_some("--may-have-arrived"));
    operate(world, &arguments).await.status.success()
}

/// Sets the log's sequence back, lets writers go on for a moment, and does as the relay says: stop every
/// relay, rebase. No transaction of a writer is open in the moment of the set-back: of such a one nothing in
/// the log tells the order (docs/guarantees.md).
async fn set_back(world: &World, fault: &Fault) -> bool {
    // So far that the sequence does not come to the ids of events that wait: of those that share an id with
    // another one, not everything can be told.
    let (by, least) = (3000 + fault.target % 3000, 800);
    let sql = format!(
        "select setval('outbox.event_id_seq', greatest(1, last_value - {by})) from outbox.event_id_seq
         where last_value > {least}"
    );
    let stands = sqlx::query_scalar::<_, i64>("select last_value from outbox.event_id_seq");
    if !stands.fetch_one(&mut world.postgres().await).await.is_ok_and(|stands| stands > least) {
        return false;
    }
    {
        let Ok(_none_begins) = timeout(STANDSTILL, world.transactions.write()).await else { return false };
        if timeout(STANDSTILL, wait_until_none_is_open(world)).await.is_err() {
            return false;
        }
        insist(world, &sql).await;
    }
    tokio::time::sleep(fault.lasts).await;
    stop_and_rebase(world).await;
    // A window that was open can hide it from a rebase: then the relay says so when it is through with that.
    let until = Instant::now() + ATTENTION;
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(500)).await;
        if is_contradicted(world).await {
            stop_and_rebase(world).await;
        }
    }
    true
}

/// Waits for transactions that have outlived their writers, and ends those that nobody will end.
async fn wait_until_none_is_open(world: &World) {
    let open = "select exists (
                  select from pg_stat_activity
                  where usename in ('chaos_writer', 'chaos_operator') and xact_start is not null)
                or exists (select from pg_prepared_xacts)";
    let is_open = async || {
        let asked = sqlx::query_scalar(open);
        asked.fetch_one(&mut world.postgres().await).await.unwrap_or(true)
    };
    while is_open().await {
        make_way(world).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whether the log contradicts the relay's position.
async fn is_contradicted(world: &World) -> bool {
    let sql = "select exists (
                 select from outbox.position p
                 cross join lateral outbox.contradictions(p.lower_horizon, p.high_id, 1) x
                 where p.relay = $1)";
    let asked = sqlx::query_scalar(sql).bind(world.system.redis.relay_name());
    asked.fetch_one(&mut world.postgres().await).await.unwrap_or(false)
}

/// Rebases again if the log still contradicts the relay: an open window hid that from the last rebase.
pub(crate) async fn rebase_if_needed(world: &World) {
    let found = cli(&world.operator_settings("rebase"), &["rebase", "--dry-run", "--output", "json"]).await;
    let found: serde_json::Value = serde_json::from_slice(&found.stdout).unwrap_or_default();
    if found["needed"] == true {
        stop_and_rebase(world).await;
    }
}

async fn stop_and_rebase(world: &World) {
    let mut relays = [world.relays[0].lock().await, world.relays[1].lock().await];
    for relay in &mut relays {
        relay.signal_if_it_runs("KILL").await;
    }
    rebase(world).await;
    for relay in &mut relays {
        **relay = world.new_relay().await;
    }
}

async fn rebase(world: &World) {
    let deadline = Instant::now() + REBASE;
    loop {
        let running =
            Running::start(&world.operator_settings("rebase"), &["rebase", "--yes", "--reason", "chaos"]);
        let ended = tokio::spawn(running.end());
        while !ended.is_finished() {
            make_way(world).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let output = ended.await.expect("an end");
        if output.status.success() {
            return;
        }
        assert!(Instant::now() < deadline, "no rebase within {} s: {output:?}", REBASE.as_secs());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Ends what the rebase waits for, as an operator has to: forgotten transactions, and idle ones.
async fn make_way(world: &World) {
    let mut connection = world.postgres().await;
    let idle = format!(
        "select pg_terminate_backend(pid) from pg_stat_activity
         where state = 'idle in transaction' and usename = 'chaos_writer'
           and xact_start < now() - interval '{IDLE}'"
    );
    // Tried again in a moment.
    drop(execute(&mut connection, &idle).await);
    let prepared = sqlx::query_scalar::<_, String>("select gid from pg_prepared_xacts");
    for gid in prepared.fetch_all(&mut connection).await.unwrap_or_default() {
        drop(execute(&mut connection, &format!("commit prepared '{gid}'")).await);
    }
}
