//! One relay between a database and a Redis of the test's own, which the test may break at will.

use std::process::Stdio;
use std::time::Duration;

use super::http::http_get;
use super::keys;
use aftercommit::event::{EventId, EventType, NewEvent, Topic};
use aftercommit::local::{self, Home, PostgresServer, RedisServer, redis::Options};
use aftercommit::log::parked::{self, Action};
use aftercommit::{outbox, redis::Settings as RedisSettings};
use redis::aio::MultiplexedConnection;
use secrecy::ExposeSecret;
use sqlx::{Connection, PgConnection};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::database::{database, database_on};
use super::redis::settings_of;
use super::servers::start_postgres;
use super::{Process, Proxy, System, eventually, new_event};

impl OwnPostgres {
    pub(crate) async fn new(server: PostgresServer) -> Self {
        let proxy = Proxy::to(server.port()).await;
        Self { server, proxy }
    }

    /// Its address, past the proxy.
    pub(crate) fn url(&self) -> String {
        self.server.url(local::postgres::DATABASE).expose_secret().to_owned()
    }

    /// A program of its version, or the one on PATH if its installation lacks it.
    pub(crate) fn program(&self, name: &str) -> Command {
        let own = self.server.data_directory().with_file_name("bin").join(name);
        Command::new(if own.exists() { own } else { name.into() })
    }

    /// Runs `pg_ctl`, which must succeed.
    pub(crate) async fn control(&self, arguments: &[&str]) {
        assert!(self.tries_to(arguments).await, "pg_ctl {arguments:?}");
    }

    /// Starts it after a kill. False if it does not start yet.
    pub(crate) async fn tries_to_start_again(&self) -> bool {
        self.tries_to(&["restart", "--mode", "immediate"]).await
    }

    async fn tries_to(&self, arguments: &[&str]) -> bool {
        let data = self.server.data_directory();
        let mut command = Command::new(data.with_file_name("bin").join("pg_ctl"));
        command
            .args(arguments)
            .arg("--silent")
            .arg("--pgdata")
            .arg(data)
            .arg("--log")
            .arg(data.join("start.log"));
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().await;
        status.expect("pg_ctl").success()
    }

    /// Starts it with its earlier settings and waits until it answers.
    pub(crate) async fn start_again(&self) {
        // `restart` keeps the earlier settings, and also starts a server that is down.
        self.control(&["restart"]).await;
    }
}

/// How a line is set up.
#[derive(Debug, Default)]
pub(crate) struct Wiring {
    /// Settings of the Redis server.
    pub(crate) redis: Vec<(&'static str, String)>,
    /// Environment of the relay.
    pub(crate) relay: Vec<(&'static str, String)>,
    /// A Postgres of the test's own, with these settings, reached by the relay through a proxy.
    pub(crate) postgres: Option<Vec<(&'static str, String)>>,
}

/// A Postgres of the test's own.
#[derive(Debug)]
pub(crate) struct OwnPostgres {
    pub(crate) server: PostgresServer,
    /// Between the relay and it.
    pub(crate) proxy: Proxy,
}

/// A relay with its database and its Redis.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) system: System,
    pub(crate) redis: RedisServer,
    redis_url: String,
    /// Between the relay and Redis.
    pub(crate) proxy: Proxy,
    postgres: Option<OwnPostgres>,
    pub(crate) relay: Process,
    pub(crate) topic: Topic,
    /// The committed events, in order.
    pub(crate) appended: Vec<EventId>,
}

impl Line {
    pub(crate) async fn new() -> Self {
        Self::with(Wiring::default()).await
    }

    pub(crate) async fn with(wiring: Wiring) -> Self {
        let redis = start_redis(wiring.redis, None).await;
        let proxy = Proxy::to(redis.port()).await;
        let redis_url = proxy.url(redis.url().expose_secret());
        let (postgres, database) = match wiring.postgres {
            None => (None, database().await),
            Some(settings) => {
                let server = start_postgres(settings).await;
                let database = database_on(&server).await;
                (Some(OwnPostgres::new(server).await), database)
            }
        };
        let mut system = System::with(database, &redis_url).await;
        if let Some(own) = &postgres {
            let url = own.proxy.url(system.database.url());
            system = system.set("DATABASE_URL", &url);
        }
        let mut system = system
            .set("AFTERCOMMIT_RELAY_BACKOFF_MAX_MS", "200")
            .set("AFTERCOMMIT_RELAY_RECONCILE_INTERVAL_MS", "200")
            .set("AFTERCOMMIT_RELAY_TAKEOVER_SECONDS", "2")
            .set("AFTERCOMMIT_REDIS_RESPONSE_TIMEOUT_MS", "700");
        for (name, value) in wiring.relay {
            system = system.set(name, &value);
        }
        let relay = system.start("relay").await;
        let topic = system.redis.topic("line");
        let redis_url = redis.url().expose_secret().to_owned();
        Self { system, redis, redis_url, proxy, postgres, relay, topic, appended: Vec::new() }
    }

    /// The Postgres of the test's own.
    pub(crate) fn postgres(&self) -> &OwnPostgres {
        self.postgres.as_ref().expect("the wiring asked for one")
    }

    /// A connection to Redis that does not pass the proxy.
    pub(crate) async fn redis(&self) -> MultiplexedConnection {
        self.redis_settings().connect().await.expect("a connection")
    }

    pub(crate) fn redis_client(&self) -> redis::Client {
        redis::Client::open(self.redis_url.as_str()).expect("a client")
    }

    pub(crate) fn redis_settings(&self) -> RedisSettings {
        settings_of(&self.redis_url)
    }

    /// Runs one Redis command, given as one text; its words are separated by spaces.
    pub(crate) async fn command(&self, text: &str) -> redis::RedisResult<redis::Value> {
        self.words(&text.split(' ').collect::<Vec<_>>()).await
    }

    /// Runs one Redis command.
    pub(crate) async fn words(&self, words: &[&str]) -> redis::RedisResult<redis::Value> {
        redis::cmd(words[0]).arg(&words[1..]).query_async(&mut self.redis().await).await
    }

    /// Commits `count` events to the line's topic.
    pub(crate) async fn append(&mut self, count: usize) {
        let topic = self.topic.clone();
        let appended = self.append_to(&topic, count).await;
        self.appended.extend(appended);
    }

    pub(crate) async fn append_to(&self, topic: &Topic, count: usize) -> Vec<EventId> {
        let mut connection = self.system.database.connect().await;
        let events: Vec<NewEvent> = (0..count).map(|n| new_event(topic, "T", &n)).collect();
        outbox::append_all(&mut connection, &events).await.expect("an append");
        events.iter().map(NewEvent::event_id).collect()
    }

    /// The events of a topic's history, in order.
    pub(crate) async fn history_of(&self, topic: &Topic) -> Vec<EventId> {
        let reply: redis::RedisResult<redis::streams::StreamRangeReply> = redis::cmd("XRANGE")
            .arg(keys::history(topic))
            .arg("-")
            .arg("+")
            .query_async(&mut self.redis().await)
            .await;
        let entries = reply.map(|reply| reply.ids).unwrap_or_default();
        let event = |entry: &redis::streams::StreamId| entry.get::<String>("event").expect("an event");
        entries.iter().map(|entry| EventId::parse_str(&event(entry)).expect("a UUID")).collect()
    }

    pub(crate) async fn history(&self) -> Vec<EventId> {
        self.history_of(&self.topic).await
    }

    /// Waits until the history holds exactly what was committed, in order.
    pub(crate) async fn wait_until_arrived(&self) {
        eventually("the history is whole", async || {
            (self.history().await.len() >= self.appended.len()).then_some(())
        })
        .await;
        assert_eq!(self.history().await, self.appended, "{}", self.relay.log());
    }

    /// The same, and waits until no event of any topic is pending in the log: the relay writes the position a
    /// moment later than it publishes.
    pub(crate) async fn wait_until_whole(&self) {
        self.wait_until_arrived().await;
        let mut connection = self.system.database.connect().await;
        let waiting =
            "select exists (select from outbox.event_status where relay = $1 and state = 'pending')";
        eventually("all is written down", async || {
            let relay = self.system.redis.relay_name();
            let waits: bool =
                sqlx::query_scalar(waiting).bind(relay).fetch_one(&mut connection).await.expect("an answer");
            (!waits).then_some(())
        })
        .await;
    }

    /// The value of a metric of the relay, 0 if it is missing.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        metric_of(&self.relay, name).await
    }

    /// Waits until the relay leads.
    pub(crate) async fn wait_until_leading(&self) {
        wait_until_leading(&self.relay).await;
    }

    /// One more relay of the same name, which bypasses the proxies.
    pub(crate) async fn another_relay(&self) -> Process {
        let settings = self.system.settings().clone();
        let settings = settings
            .set("DATABASE_URL", self.system.database.url())
            .set("REDIS_URL", self.redis_url.as_str());
        Process::start("relay", &settings).await
    }

    /// Commits an event every few milliseconds until told to stop, and returns them in order.
    pub(crate) fn keep_appending(&self, until: CancellationToken) -> tokio::task::JoinHandle<Vec<EventId>> {
        let (url, topic) = (self.system.database.url().to_owned(), self.topic.clone());
        tokio::spawn(async move {
            let mut connection = PgConnection::connect(&url).await.expect("a connection");
            let mut appended = Vec::new();
            while !until.is_cancelled() {
                let event = new_event(&topic, "T", &appended.len());
                outbox::append(&mut connection, &event).await.expect("an append");
                appended.push(event.event_id());
                // The pace of the load.
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            appended
        })
    }

    /// How many events this relay has published since it started.
    pub(crate) async fn delivered_in_all(&self) -> u64 {
        self.metric("aftercommit_relay_published_total").await
    }

    /// How many events the history holds.
    pub(crate) async fn delivered(&self) -> u64 {
        redis::AsyncCommands::xlen(&mut self.redis().await, keys::history(&self.topic))
            .await
            .expect("a length")
    }

    /// Replaces the Redis by an empty one. Password and address stay the same.
    pub(crate) async fn replace_redis(&mut self, fresh: RedisServer) {
        let password = self.redis_url.split([':', '@']).nth(2).expect("a password").to_owned();
        let mut connection =
            settings_of(fresh.url().expose_secret()).connect().await.expect("a connection to the fresh one");
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg("requirepass").arg(&password);
        set.exec_async(&mut connection).await.expect("the same password");
        self.proxy.lead_to(fresh.port());
        self.redis_url = format!("redis://:{password}@127.0.0.1:{}", fresh.port());
        std::mem::replace(&mut self.redis, fresh).stop().await.expect("the old one stops");
    }

    /// Requests the release of a topic's parked events. Panics if there are none.
    pub(crate) async fn release(&self, topic: &Topic) {
        let mut connection = self.system.database.connect().await;
        let relay = self.system.redis.relay_name();
        let events =
            parked::request(&mut connection, &relay, topic, Action::Release, None).await.expect("a request");
        assert!(events > 0, "nothing of {topic} is parked");
    }

    /// Waits until the relay has counted a failure of this class.
    pub(crate) async fn wait_for_failure(&self, class: &str) {
        let name = format!("aftercommit_relay_failures_total{{class=\"{class}\"}}");
        eventually(&format!("a failure of class {class}"), async || {
            (self.metric(&name).await > 0).then_some(())
        })
        .await;
    }
}

/// Waits until a relay leads.
pub(crate) async fn wait_until_leading(relay: &Process) {
    eventually("the relay leads", async || {
        (metric_of(relay, "aftercommit_relay_leading").await == 1).then_some(())
    })
    .await;
}

/// The value of a metric of a process, 0 if it is missing.
pub(crate) async fn metric_of(process: &Process, name: &str) -> u64 {
    try_metric_of(process, name).await.expect("metrics")
}

/// The same for a process that may have been killed.
pub(crate) async fn try_metric_of(process: &Process, name: &str) -> reqwest::Result<u64> {
    let text = http_get(process.url("/metrics")).await?.text().await?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line.map_or(0, |number| number.parse().expect("a number")))
}

/// A Redis of the test's own.
pub(crate) async fn start_redis(settings: Vec<(&str, String)>, port: Option<u16>) -> RedisServer {
    let settings = settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let options = Options { home: Home::Ephemeral, port, durable: false, settings };
    RedisServer::start(&options).await.expect("a private Redis")
}
