//! How fast a backlog is delivered: into one Redis, and into a cluster of three servers beside it, next to the
//! floor of a bare loop. All three take the same events, one after the other. The events that arrived are
//! counted in the histories.

use std::collections::HashMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use aftercommit::event::{EventType, NewEvent, Topic};
use aftercommit::outbox;
use secrecy::ExposeSecret;
use serde_json::value::RawValue;
use sqlx::Connection;

use crate::arguments::Scenario;
use crate::cost::Cost;
use crate::harness::{
    Cluster, System, database_on, metric_of, redis_settings_of, start_postgres, start_redis,
};
use crate::publish_floor::{self, Floor};

/// Events of one commit.
const EVENTS_A_COMMIT: usize = 1000;
/// The time limit for delivering the backlog.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Delivers a backlog into one Redis, behind the floor of the same events.
pub(crate) async fn beside_floor(scenario: &Scenario) -> (Floor, Drained) {
    let events = (scenario.rate * scenario.length.as_secs_f64()).ceil() as usize;
    let floor = publish_floor::run(events, scenario.topics, scenario.bytes).await;
    let single = start_redis(Vec::new(), None).await;
    let pid = single.pid().expect("a pid");
    let drained = drain(scenario, events, "one server", single.url().expose_secret(), &[pid]).await;
    (floor, drained)
}

/// Runs both. Returns what to print, and whether every event arrived.
pub(crate) async fn run(scenario: &Scenario) -> (String, bool) {
    let (floor, one) = beside_floor(scenario).await;
    let events = one.events;
    let cluster = Cluster::start().await;
    // The primaries.
    let pids: Vec<u32> = cluster.servers[..3].iter().filter_map(|server| server.pid()).collect();
    let three = drain(scenario, events, "three servers", &cluster.url(), &pids).await;
    let (topics, bytes) = (scenario.topics, scenario.bytes);
    let mut table = format!("drain     {events} events of {bytes} bytes, {topics} topics\n");
    table.push_str("redis          events/s  µs an event: relay  redis  arrived  of the floor\n");
    let at_floor = floor.rate(events);
    let redis = floor.redis.as_secs_f64() * 1e6 / events as f64;
    writeln!(table, "the floor      {at_floor:>8.0}  {:>18}  {redis:>5.1}  {events:>7}          1.00", "")
        .expect("a String");
    for drained in [&one, &three] {
        let ratio = drained.rate() / at_floor;
        writeln!(table, "{drained}  {ratio:>12.2}").expect("a String");
    }
    (table, one.arrived == events && three.arrived == events)
}

/// The result of one drain.
pub(crate) struct Drained {
    name: &'static str,
    pub(crate) events: usize,
    took: Duration,
    relay: Duration,
    redis: Duration,
    pub(crate) arrived: usize,
}

impl std::fmt::Display for Drained {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, events, relay, redis, arrived, .. } = self;
        let each = |cpu: &Duration| cpu.as_secs_f64() * 1e6 / *events as f64;
        let rate = self.rate();
        write!(f, "{name:<14} {rate:>8.0}  {:>18.1}  {:>5.1}  {arrived:>7}", each(relay), each(redis))
    }
}

impl Drained {
    /// CPU time of the relay an event.
    pub(crate) fn relay_micros(&self) -> f64 {
        self.relay.as_secs_f64() * 1e6 / self.events as f64
    }

    /// Events a second.
    pub(crate) fn rate(&self) -> f64 {
        self.events as f64 / self.took.as_secs_f64()
    }
}

async fn drain(scenario: &Scenario, events: usize, name: &'static str, url: &str, pids: &[u32]) -> Drained {
    let durable = ["fsync", "full_page_writes", "synchronous_commit"];
    let server = start_postgres(durable.map(|name| (name, "on".to_owned())).into()).await;
    let system = System::with(database_on(&server).await, url).await;
    let topics: Vec<Topic> = (0..scenario.topics).map(|n| system.redis.topic(&format!("load:{n}"))).collect();
    let mut holder = sqlx::PgConnection::connect(system.database.url()).await.expect("a connection");
    let mut held = holder.begin().await.expect("a transaction");
    if scenario.is_held {
        append(&mut held, &topics, 1, scenario.bytes).await;
    }
    let mut connection = sqlx::PgConnection::connect(system.database.url()).await.expect("a connection");
    append(&mut connection, &topics, events, scenario.bytes).await;
    let cost_of = |pids: &[u32]| pids.iter().filter_map(|pid| Cost::of(*pid)).sum::<Cost>().cpu;
    let redis_before = cost_of(pids);
    let begun = Instant::now();
    let relay = system.start("relay").await;
    let mut published = 0;
    while published < events && begun.elapsed() < TIMEOUT {
        tokio::time::sleep(Duration::from_millis(20)).await;
        published = metric_of(&relay, "aftercommit_relay_published_total").await as usize;
    }
    let took = begun.elapsed();
    let (relay, redis) = (cost_of(&[relay.pid()]), cost_of(pids) - redis_before);
    held.rollback().await.expect("the end of the transaction");
    let keys = system.redis.keys();
    let arrived = count(url, topics.iter().map(|topic| keys.history(topic)).collect()).await;
    Drained { name, events, took, relay, redis, arrived }
}

async fn append(connection: &mut sqlx::PgConnection, topics: &[Topic], events: usize, bytes: usize) {
    let payload = RawValue::from_string(format!("\"{}\"", "x".repeat(bytes.max(2) - 2))).expect("JSON");
    let event_type = EventType::new("LOAD").expect("a type");
    let numbers: Vec<usize> = (0..events).collect();
    for some in numbers.chunks(EVENTS_A_COMMIT) {
        let event = |n: &usize| {
            let topic = topics[n % topics.len()].clone();
            NewEvent::new(topic, event_type.clone(), &payload).expect("an event")
        };
        let events: Vec<NewEvent> = some.iter().map(event).collect();
        outbox::append_all(connection, &events).await.expect("an append");
    }
}

/// Events that the histories of these topics have ever taken. Old ones are trimmed from a long history.
async fn count(url: &str, histories: Vec<String>) -> usize {
    let settings = redis_settings_of(url);
    let mut servers = match settings.connect_to_primaries().await.expect("the servers") {
        None => vec![settings.connect().await.expect("a connection")],
        Some(primaries) => primaries.into_iter().map(|it| it.connection.expect("a connection")).collect(),
    };
    let mut events = 0;
    for history in histories {
        for server in &mut servers {
            let mut asked = redis::cmd("XINFO");
            asked.arg("STREAM").arg(&history);
            // A server of a cluster that does not have it says so.
            let Ok(facts) = asked.query_async::<HashMap<String, redis::Value>>(server).await else {
                continue;
            };
            if let Some(redis::Value::Int(added)) = facts.get("entries-added") {
                events += usize::try_from(*added).expect("a count");
            }
        }
    }
    events
}
