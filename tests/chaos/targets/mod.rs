//! The campaign on other servers: a Redis Cluster, or a Redis behind sentinels. Random faults of these
//! servers and of our processes, one after the other. At the end, the events that Postgres committed are
//! compared with the histories and with the events that each client received. All numbers must be 0.

mod cluster;
mod sentinel;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aftercommit::event::{StreamId, Topic};
use aftercommit::outbox;
use aftercommit::redis::History;
use sqlx::Connection;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::harness::{
    Client, Cluster, Event, Process, Sentinels, System, free_port, new_event, redis_settings_of,
};
use crate::random::Random;

/// Topics, of which each writer has some.
const TOPICS: usize = 12;
const WRITERS: usize = 3;
/// The time limit for all events to arrive after the last fault.
const SETTLING: Duration = Duration::from_secs(90);
/// The type of events whose transactions are rolled back.
const ROLLED_BACK: &str = "ROLLED_BACK";

/// The servers that take events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Cluster,
    Sentinel,
}

/// The servers, and the faults that they can have.
enum Servers {
    Cluster(Cluster),
    Sentinels(Sentinels),
}

impl Servers {
    async fn start(target: Target) -> Self {
        match target {
            // Without a server of its own, a slot stops no other one.
            Target::Cluster => Self::Cluster(Cluster::with(&[("cluster-require-full-coverage", "no")]).await),
            Target::Sentinel => Self::Sentinels(Sentinels::start().await),
        }
    }

    fn url(&self) -> String {
        match self {
            Self::Cluster(cluster) => cluster.url(),
            Self::Sentinels(sentinels) => sentinels.url(),
        }
    }

    /// Makes a fault of the servers, waits until it is over, and returns its name.
    async fn fail(&self, random: &mut Random, topics: &[Topic]) -> &'static str {
        match self {
            Self::Cluster(cluster) => cluster::fail(cluster, random, topics).await,
            Self::Sentinels(sentinels) => sentinel::fail(sentinels, random).await,
        }
    }
}

/// Everything under test.
struct World {
    servers: Servers,
    system: System,
    topics: Vec<Topic>,
    relays: Vec<Process>,
    sse: Vec<Process>,
    addresses: Vec<String>,
}

impl World {
    async fn start(target: Target) -> Self {
        let servers = Servers::start(target).await;
        let mut system = System::with_redis(&servers.url())
            .await
            .set("AFTERCOMMIT_RELAY_TAKEOVER_SECONDS", "2")
            .set("AFTERCOMMIT_RELAY_RECONCILE_INTERVAL_MS", "300")
            .set("AFTERCOMMIT_RELAY_BACKOFF_MAX_MS", "300")
            .set("AFTERCOMMIT_RELAY_BATCH_SIZE", "50")
            .set("AFTERCOMMIT_REDIS_RESPONSE_TIMEOUT_MS", "1000")
            .set("AFTERCOMMIT_REDIS_HISTORY_MAX_EVENTS", "1000000");
        if let Servers::Sentinels(sentinels) = &servers {
            system = system.set("AFTERCOMMIT_REDIS_SENTINEL_PASSWORD", sentinels.password());
        }
        let topics = (0..TOPICS).map(|n| system.redis.topic(&n.to_string())).collect();
        let relays = vec![system.start("relay").await, system.start("relay").await];
        let addresses: Vec<String> = (0..2).map(|_| format!("127.0.0.1:{}", free_port())).collect();
        let mut world = Self { servers, system, topics, relays, sse: Vec::new(), addresses };
        for at in 0..2 {
            let sse = world.new_sse(at).await;
            world.sse.push(sse);
        }
        world
    }

    async fn new_sse(&self, at: usize) -> Process {
        let settings = self.system.settings().clone().set("AFTERCOMMIT_SSE_LISTEN", &self.addresses[at]);
        Process::start("sse", &settings).await
    }

    /// Makes one fault, waits until it is over, and returns its name.
    async fn fail(&mut self, random: &mut Random) -> &'static str {
        let at = random.below(2);
        match random.between(0, 10) {
            0 => {
                let fresh = self.system.start("relay").await;
                std::mem::replace(&mut self.relays[at], fresh).kill().await;
                "relay killed"
            }
            1 => {
                freeze(self.relays[at].pid(), random.millis(500, 4500)).await;
                "relay frozen"
            }
            2 => {
                let old = self.sse.remove(at);
                old.kill().await;
                let fresh = self.new_sse(at).await;
                self.sse.insert(at, fresh);
                "sse killed"
            }
            3 => {
                freeze(self.sse[at].pid(), random.millis(200, 2500)).await;
                "sse frozen"
            }
            _ => self.servers.fail(random, &self.topics).await,
        }
    }

    fn print_logs(&self) {
        for process in self.relays.iter().chain(&self.sse) {
            eprintln!("--- {}\n{}", process.address, process.log());
        }
    }
}

/// Stops a process for a while.
async fn freeze(pid: u32, lasts: Duration) {
    signal(pid, "STOP").await;
    tokio::time::sleep(lasts).await;
    signal(pid, "CONT").await;
}

async fn signal(pid: u32, name: &str) {
    let sent = tokio::process::Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status();
    assert!(sent.await.expect("kill").success(), "{name}");
}

/// Commits 0, 1, 2, … to each of its topics, with some events that are rolled back. Returns how many of each.
fn write(world: &World, writer: usize, seed: u64, until: CancellationToken) -> JoinHandle<Vec<u64>> {
    let url = world.system.database.url().to_owned();
    let topics: Vec<Topic> = world.topics.iter().skip(writer).step_by(WRITERS).cloned().collect();
    tokio::spawn(async move {
        let mut random = Random::new(seed, &format!("writer {writer}"));
        let mut connection = sqlx::PgConnection::connect(&url).await.expect("a connection");
        let mut counts = vec![0; topics.len()];
        while !until.is_cancelled() {
            let at = random.below(topics.len());
            let mut transaction = connection.begin().await.expect("a transaction");
            let is_rolled_back = random.percent(15);
            let event_type = if is_rolled_back { ROLLED_BACK } else { "N" };
            for _ in 0..random.between(1, 4) {
                let event = new_event(&topics[at], event_type, &counts[at]);
                outbox::append(&mut transaction, &event).await.expect("an append");
                counts[at] += u64::from(!is_rolled_back);
            }
            match is_rolled_back {
                true => transaction.rollback().await.expect("a rollback"),
                false => transaction.commit().await.expect("a commit"),
            }
            // The pace of the load.
            tokio::time::sleep(random.millis(2, 20)).await;
        }
        counts
    })
}

/// Differences between events that must be and events that are.
#[derive(Debug, Default, Clone, Copy)]
struct Differences {
    lost: u64,
    repeated: u64,
    reordered: u64,
    invented: u64,
}

impl Differences {
    /// Compares the numbers of one topic with 0, 1, 2, … up to `committed`.
    fn add(&mut self, numbers: &[Option<u64>], committed: u64) {
        let mut seen: BTreeMap<u64, u64> = BTreeMap::new();
        let mut highest = None;
        for number in numbers {
            match number.filter(|number| *number < committed) {
                None => self.invented += 1,
                Some(number) => {
                    let times = seen.entry(number).or_default();
                    *times += 1;
                    self.repeated += u64::from(*times > 1);
                    self.reordered += u64::from(*times == 1 && highest > Some(number));
                    highest = highest.max(Some(number));
                }
            }
        }
        self.lost += committed - seen.len() as u64;
    }

    fn is_none(&self) -> bool {
        self.lost + self.repeated + self.reordered + self.invented == 0
    }
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lost, repeated, reordered, invented } = self;
        write!(f, "lost {lost}, repeated {repeated}, reordered {reordered}, invented {invented}")
    }
}

/// The result.
pub(crate) struct Report {
    target: Target,
    seed: u64,
    faults: BTreeMap<&'static str, u64>,
    events: u64,
    redis: Differences,
    clients: Differences,
    resets: usize,
}

impl Report {
    pub(crate) fn is_clean(&self) -> bool {
        self.redis.is_none() && self.clients.is_none() && self.resets == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count: u64 = self.faults.values().sum();
        writeln!(f, "{:?}, seed {}: {count} faults, {} events", self.target, self.seed, self.events)?;
        for (name, times) in &self.faults {
            writeln!(f, "  {times:>5} {name}")?;
        }
        writeln!(f, "Redis    {}", self.redis)?;
        writeln!(f, "clients  {}", self.clients)?;
        write!(f, "resets   {}", self.resets)
    }
}

/// Runs the campaign.
pub(crate) async fn run(target: Target, seed: u64, length: Duration, verbose: bool) -> Report {
    let mut world = World::start(target).await;
    let pattern = format!("{}*", world.system.redis.topic(""));
    let token = world.system.token_with(Uuid::new_v4(), Duration::from_secs(86_400), &[&pattern]);
    let mut clients = Vec::new();
    for topic in &world.topics {
        for sse in &world.sse {
            clients.push(Client::open(&sse.url(&format!("/streams/{topic}")), &token).await);
        }
    }
    let stop = CancellationToken::new();
    let writers: Vec<_> = (0..WRITERS).map(|writer| write(&world, writer, seed, stop.clone())).collect();
    let (begun, mut random, mut faults) = (Instant::now(), Random::new(seed, "faults"), BTreeMap::new());
    while begun.elapsed() < length {
        let name = world.fail(&mut random).await;
        *faults.entry(name).or_default() += 1;
        if verbose {
            eprintln!("{:>8.3} s  {name}", begun.elapsed().as_secs_f64());
        }
        tokio::time::sleep(random.millis(0, 1500)).await;
    }
    stop.cancel();
    let mut committed = vec![0; TOPICS];
    for (writer, counts) in writers.into_iter().enumerate() {
        for (at, count) in counts.await.expect("a writer").into_iter().enumerate() {
            committed[writer + at * WRITERS] = count;
        }
    }
    let (resets, of_clients) = settle(&clients, &committed).await;
    let redis = of_redis(&world, &committed).await;
    let events = committed.iter().sum();
    let report = Report { target, seed, faults, events, redis, clients: of_clients, resets };
    if !report.is_clean() {
        world.print_logs();
        for (at, client) in clients.iter().enumerate() {
            print_wrong(&format!("client {} of topic {}", at % 2, at / 2), &client.so_far());
        }
    }
    report
}

/// Prints the resets and the steps that are none to the next number, each with the id before it.
fn print_wrong(name: &str, events: &[Event]) {
    let mut before: Option<&Event> = None;
    for event in events {
        let number = |event: &Event| number_of(event).flatten();
        let follows = before.is_none_or(|before| number(event) == number(before).map(|number| number + 1));
        if event.event == "reset" || !follows {
            let shown = before.map(|before| (&before.id, &before.data));
            eprintln!("{name}: {} {:?} {} behind {shown:?}", event.event, event.id, event.data);
        }
        before = Some(event);
    }
}

/// Waits until each client has every event, or the time is up. Returns the resets and the differences.
async fn settle(clients: &[Client], committed: &[u64]) -> (usize, Differences) {
    let deadline = Instant::now() + SETTLING;
    loop {
        let (mut resets, mut differences) = (0, Differences::default());
        for (at, client) in clients.iter().enumerate() {
            let events = client.so_far();
            resets += events.iter().filter(|event| event.event == "reset").count();
            let numbers: Vec<Option<u64>> = events.iter().filter_map(number_of).collect();
            differences.add(&numbers, committed[at / 2]);
        }
        if differences.lost == 0 || Instant::now() > deadline {
            return (resets, differences);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The number of an event; `Some(None)` for one that must not be.
fn number_of(event: &Event) -> Option<Option<u64>> {
    match event.event.as_str() {
        "N" => Some(event.data.parse().ok()),
        "reset" => None,
        _ => Some(None),
    }
}

/// Compares the histories.
async fn of_redis(world: &World, committed: &[u64]) -> Differences {
    let mut settings = redis_settings_of(&world.servers.url());
    settings.namespace = world.system.redis.relay_name();
    if let Servers::Sentinels(sentinels) = &world.servers {
        settings.sentinel_password = sentinels.password().into();
    }
    let history = Arc::new(History::new(settings));
    let mut differences = Differences::default();
    for (topic, committed) in world.topics.iter().zip(committed) {
        let (mut numbers, mut after): (Vec<Option<u64>>, Option<StreamId>) = (Vec::new(), None);
        loop {
            let page = history.from(topic, after, 1000).await.expect("a history");
            let fresh: Vec<_> = page.into_iter().filter(|entry| Some(entry.id) > after).collect();
            let Some(last) = fresh.last() else { break };
            after = Some(last.id);
            numbers.extend(fresh.iter().map(|entry| {
                let (event_type, payload) = entry.event.as_ref()?;
                (event_type.as_str() == "N").then(|| payload.parse().ok()).flatten()
            }));
        }
        differences.add(&numbers, *committed);
    }
    differences
}
