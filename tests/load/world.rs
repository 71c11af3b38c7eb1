//! What is put under load: a Postgres that syncs to disk, a Redis, a relay and one or two SSE servers.

use std::net::SocketAddr;
use std::time::Duration;

use aftercommit::event::Topic;
use aftercommit::local::RedisServer;
use secrecy::ExposeSecret;
use uuid::Uuid;

use crate::arguments::Scenario;
use crate::cost::Cost;
use crate::engine::Plan;
use crate::harness::{
    OwnPostgres, Process, System, database_on, metric_of, start_postgres, start_redis, wait_until_leading,
};

/// How long the clients' token is valid.
const TOKEN_LASTS: Duration = Duration::from_secs(24 * 3600);

/// Everything but the clients and the writer.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) system: System,
    pub(crate) relay: Process,
    pub(crate) servers: Vec<Process>,
    pub(crate) topics: Vec<Topic>,
    _postgres: OwnPostgres,
    redis: RedisServer,
}

impl World {
    pub(crate) async fn start(scenario: &Scenario) -> Self {
        // Commits cost what they cost in earnest.
        let durable = ["fsync", "full_page_writes", "synchronous_commit"];
        let server = start_postgres(durable.map(|name| (name, "on".to_owned())).into()).await;
        let database = database_on(&server).await;
        let redis = start_redis(Vec::new(), None).await;
        let system = System::with(database, redis.url().expose_secret()).await;
        let system = system.set("AFTERCOMMIT_SSE_MAX_CONNECTIONS", &scenario.room.to_string());
        // All clients of the load are one user.
        let system = system.set("AFTERCOMMIT_SSE_MAX_CONNECTIONS_PER_USER", "0");
        let mut system = system.set("AFTERCOMMIT_SSE_MAX_TOPICS_PER_USER", "1000000");
        // The tests' own is shorter than what a server has by default.
        system.unset("AFTERCOMMIT_SSE_DRAIN_SECONDS");
        let relay = system.start("relay").await;
        wait_until_leading(&relay).await;
        let mut servers = Vec::new();
        for _ in 0..scenario.kind.servers() {
            servers.push(system.start("sse").await);
        }
        let topics = (0..scenario.topics).map(|n| system.redis.topic(&format!("load:{n}"))).collect();
        Self { system, relay, servers, topics, _postgres: OwnPostgres::new(server).await, redis }
    }

    pub(crate) fn redis_url(&self) -> String {
        self.redis.url().expose_secret().to_owned()
    }

    /// Where clients connect, and with what.
    pub(crate) fn plan(&self, scenario: &Scenario) -> Plan {
        let address = |server: &Process| server.address.parse::<SocketAddr>().expect("an address");
        let patterns: Vec<&str> = self.topics.iter().map(Topic::as_str).collect();
        // A claim that names hundreds of topics would make a token too long for a request.
        let everything = ["*"];
        let allowed = if patterns.len() > 20 { &everything[..] } else { &patterns };
        Plan {
            clients: scenario.connections,
            stuck: scenario.stuck(),
            addresses: self.servers.iter().map(address).collect(),
            paths: self.topics.iter().map(|topic| format!("/streams/{topic}")).collect(),
            token: self.system.token_with(Uuid::new_v4(), TOKEN_LASTS, allowed),
        }
    }

    /// SIGTERM, and when it has ended another one on the same port. Returns how long the first took to end.
    pub(crate) async fn restart_server(&mut self, place: usize) -> Result<Duration, String> {
        let server = self.servers.remove(place);
        let address = server.address.clone();
        let told = std::time::Instant::now();
        let code = server.terminate().await;
        let took = told.elapsed();
        if code != 0 {
            return Err(format!("an SSE server that was told to stop exited with {code}"));
        }
        let settings = self.system.settings().clone().set("AFTERCOMMIT_SSE_LISTEN", address);
        self.servers.insert(place, Process::start("sse", &settings).await);
        Ok(took)
    }

    /// A number of the SSE servers' metrics, all servers together.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let mut sum = 0;
        for server in &self.servers {
            sum += metric_of(server, name).await;
        }
        sum
    }

    /// What the SSE servers have cost so far.
    pub(crate) fn cost(&self) -> Option<Cost> {
        self.servers.iter().map(|server| Cost::of(server.pid())).sum()
    }

    /// Processes that ended although nobody ended them.
    pub(crate) fn crashed(&mut self) -> usize {
        let all = self.servers.iter_mut().chain([&mut self.relay]);
        all.filter_map(|process| process.has_ended().then_some(())).count()
    }
}
