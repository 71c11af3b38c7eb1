//! One relay between a database and a Redis of the test's own, which the test may break at will.

use aftercommit::event::{EventId, EventType, NewEvent, Topic};
use aftercommit::local::{Home, RedisServer, redis::Options};
use aftercommit::redis::keys;
use aftercommit::{outbox, redis::Settings as RedisSettings};
use redis::aio::MultiplexedConnection;
use secrecy::ExposeSecret;

use super::redis::settings_of;
use super::{Process, Proxy, System, eventually};

/// How a line is set up.
#[derive(Debug, Default)]
pub(crate) struct Wiring {
    /// Settings of the Redis server.
    pub(crate) redis: Vec<(&'static str, String)>,
    /// Environment of the relay.
    pub(crate) relay: Vec<(&'static str, String)>,
}

/// A relay and what it works on.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) system: System,
    pub(crate) redis: RedisServer,
    /// Between the relay and Redis.
    pub(crate) proxy: Proxy,
    pub(crate) relay: Process,
    pub(crate) topic: Topic,
    /// What was committed, in order.
    pub(crate) appended: Vec<EventId>,
}

impl Line {
    pub(crate) async fn new() -> Self {
        Self::with(Wiring::default()).await
    }

    pub(crate) async fn with(wiring: Wiring) -> Self {
        let redis = start_redis(wiring.redis, None).await;
        let proxy = Proxy::to(redis.port()).await;
        let mut system = System::with_redis(&proxy.url(redis.url().expose_secret()))
            .await
            .set("AFTERCOMMIT_RELAY_BACKOFF_MAX_MS", "200")
            .set("AFTERCOMMIT_RELAY_RECONCILE_INTERVAL_MS", "200")
            .set("AFTERCOMMIT_RELAY_TAKEOVER_SECONDS", "2")
            .set("AFTERCOMMIT_RELAY_STANDBY_INTERVAL_MS", "100")
            .set("AFTERCOMMIT_REDIS_RESPONSE_TIMEOUT_MS", "700");
        for (name, value) in wiring.relay {
            system = system.set(name, &value);
        }
        let relay = system.start("relay").await;
        let topic = system.redis.topic("line");
        Self { system, redis, proxy, relay, topic, appended: Vec::new() }
    }

    /// A connection to Redis that does not pass the proxy.
    pub(crate) async fn redis(&self) -> MultiplexedConnection {
        self.redis_settings().connect().await.expect("a connection")
    }

    pub(crate) fn redis_settings(&self) -> RedisSettings {
        settings_of(self.redis.url().expose_secret())
    }

    /// Runs one Redis command, given as one text; its words are separated by spaces.
    pub(crate) async fn command(&self, text: &str) -> redis::RedisResult<redis::Value> {
        self.words(&text.split(' ').collect::<Vec<_>>()).await
    }

    /// Runs one Redis command.
    pub(crate) async fn words(&self, words: &[&str]) -> redis::RedisResult<redis::Value> {
        redis::cmd(words[0]).arg(&words[1..]).query_async(&mut self.redis().await).await
    }

    /// Commits so many events to the line's topic.
    pub(crate) async fn append(&mut self, count: usize) {
        let topic = self.topic.clone();
        let appended = self.append_to(&topic, count).await;
        self.appended.extend(appended);
    }

    pub(crate) async fn append_to(&self, topic: &Topic, count: usize) -> Vec<EventId> {
        let mut connection = self.system.database.connect().await;
        let event_type = EventType::new("T").expect("a type");
        let events: Vec<NewEvent> = (0..count)
            .map(|n| NewEvent::new(topic.clone(), event_type.clone(), &n).expect("an event"))
            .collect();
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
    pub(crate) async fn is_whole(&self) {
        eventually("the history is whole", async || {
            (self.history().await.len() >= self.appended.len()).then_some(())
        })
        .await;
        assert_eq!(self.history().await, self.appended, "{}", self.relay.log());
    }

    /// A number of the relay's metrics, 0 while it is not there.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        metric_of(&self.relay, name).await
    }

    /// Waits until the relay has counted a failure of this class.
    pub(crate) async fn fails_with(&self, class: &str) {
        let name = format!("aftercommit_relay_failures_total{{class=\"{class}\"}}");
        eventually(&format!("a failure of class {class}"), async || {
            (self.metric(&name).await > 0).then_some(())
        })
        .await;
    }
}

/// A number of a process's metrics, 0 while it is not there.
pub(crate) async fn metric_of(process: &Process, name: &str) -> u64 {
    let text = reqwest::get(process.url("/metrics")).await.expect("metrics").text().await.expect("text");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0, |number| number.parse().expect("a number"))
}

/// A Redis of the test's own.
pub(crate) async fn start_redis(settings: Vec<(&str, String)>, port: Option<u16>) -> RedisServer {
    let settings = settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let options = Options { home: Home::Ephemeral, port, durable: false, settings };
    RedisServer::start(&options).await.expect("a private Redis")
}
