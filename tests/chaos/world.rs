//! What is broken: a Postgres, a Redis, two relays, two SSE servers, and a proxy in front of each way that can fail.

use std::path::PathBuf;
use std::time::Duration;

use aftercommit::event::Topic;
use aftercommit::local::{Home, RedisServer, redis::Options};
use aftercommit::outbox::parked::{self, Action};
use redis::aio::MultiplexedConnection;
use secrecy::ExposeSecret;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::harness::{
    Database, OwnPostgres, Process, Proxy, System, database_on, redis_settings_of, start_postgres,
    try_metric_of,
};

/// [relay] takeover_seconds.
const TAKEOVER_SECONDS: &str = "2";
/// Topics, each of a user's.
const TOPICS: usize = 8;
/// Where streams of a user's topic are.
const STREAM: &str = "/api/upload/sessions/notifications/stream";

/// One topic and who may listen to it.
#[derive(Debug, Clone)]
pub(crate) struct Channel {
    pub(crate) topic: Topic,
    pub(crate) token: String,
}

/// An SSE server and the way to it.
#[derive(Debug)]
pub(crate) struct Outlet {
    pub(crate) process: Mutex<Process>,
    pub(crate) proxy: Proxy,
    pub(crate) url: String,
}

/// Everything.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) system: System,
    pub(crate) postgres: OwnPostgres,
    redis_home: PathBuf,
    pub(crate) redis: Mutex<Option<RedisServer>>,
    redis_url: String,
    redis_port: u16,
    pub(crate) relay_redis: Proxy,
    pub(crate) sse_redis: Proxy,
    pub(crate) relays: [Mutex<Process>; 2],
    pub(crate) outlets: [Outlet; 2],
    pub(crate) channels: Vec<Channel>,
    _directory: tempfile::TempDir,
}

impl World {
    pub(crate) async fn start() -> Self {
        let settings =
            [("max_prepared_transactions", "50"), ("synchronous_commit", "on"), ("max_connections", "200")];
        let server = start_postgres(settings.map(|(name, value)| (name, value.to_owned())).into()).await;
        let database = database_on(&server).await;
        let postgres = OwnPostgres::new(server).await;
        let directory = tempfile::tempdir().expect("a directory");
        let redis_home = directory.path().join("redis");
        let redis = start_redis(&redis_home, None).await;
        let (redis_url, redis_port) = (redis.url().expose_secret().to_owned(), redis.port());
        let (relay_redis, sse_redis) = (Proxy::to(redis_port).await, Proxy::to(redis_port).await);
        let relay_url = postgres.proxy.url(database.url());
        let system = System::with(Database::at(database.url()), &sse_redis.url(&redis_url))
            .await
            .set("AFTERCOMMIT_RELAY_TAKEOVER_SECONDS", TAKEOVER_SECONDS)
            .set("AFTERCOMMIT_RELAY_STANDBY_INTERVAL_MS", "100")
            .set("AFTERCOMMIT_RELAY_RECONCILE_INTERVAL_MS", "300")
            .set("AFTERCOMMIT_RELAY_BACKOFF_MAX_MS", "300")
            .set("AFTERCOMMIT_RELAY_BATCH_SIZE", "50")
            .set("AFTERCOMMIT_REDIS_RESPONSE_TIMEOUT_MS", "1000")
            .set("AFTERCOMMIT_SSE_HEARTBEAT_SECONDS", "2")
            .set("AFTERCOMMIT_REDIS_CONNECT_TIMEOUT_MS", "1000");
        let relay_settings = |redis: &str| {
            system.settings().clone().set("REDIS_URL", redis).set("DATABASE_URL", relay_url.as_str())
        };
        let relay_redis_url = relay_redis.url(&redis_url);
        let relays = [
            Mutex::new(Process::start("relay", &relay_settings(&relay_redis_url)).await),
            Mutex::new(Process::start("relay", &relay_settings(&relay_redis_url)).await),
        ];
        let outlets = [Outlet::start(&system).await, Outlet::start(&system).await];
        let channels = (0..TOPICS)
            .map(|_| {
                let user = Uuid::new_v4();
                let topic = Topic::new(format!("user-notifications:{user}")).expect("a topic");
                Channel { topic, token: system.token_for(user, Duration::from_secs(86_400)) }
            })
            .collect();
        Self {
            system,
            postgres,
            redis_home,
            redis: Mutex::new(Some(redis)),
            redis_url,
            redis_port,
            relay_redis,
            sse_redis,
            relays,
            outlets,
            channels,
            _directory: directory,
        }
    }

    /// A fresh relay, behind the proxies.
    pub(crate) async fn new_relay(&self) -> Process {
        let settings = self.system.settings().clone();
        let settings = settings
            .set("REDIS_URL", self.relay_redis.url(&self.redis_url))
            .set("DATABASE_URL", self.postgres.proxy.url(self.system.database.url()));
        Process::start("relay", &settings).await
    }

    /// A connection that passes no proxy; as often tried as it takes.
    pub(crate) async fn postgres(&self) -> PgConnection {
        loop {
            if let Ok(connection) = PgConnection::connect(self.system.database.url()).await {
                return connection;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A connection that passes no proxy, if Redis runs.
    pub(crate) async fn redis(&self) -> Option<MultiplexedConnection> {
        redis_settings_of(&self.redis_url).connect().await.ok()
    }

    /// Runs a Redis command; what it answers is the caller's concern.
    pub(crate) async fn tell_redis(&self, words: &[&str]) -> redis::RedisResult<redis::Value> {
        let connected = redis_settings_of(&self.redis_url).connect().await;
        let mut connection = connected.map_err(|_| (redis::ErrorKind::Io, "Redis does not run"))?;
        redis::cmd(words[0]).arg(&words[1..]).query_async(&mut connection).await
    }

    /// Starts Redis again where it was, with the data that it finds there.
    pub(crate) async fn restart_redis(&self, without_data: bool) {
        let mut server = self.redis.lock().await;
        drop(server.take());
        if without_data {
            for entry in std::fs::read_dir(&self.redis_home).expect("its directory").flatten() {
                if entry.file_name().to_string_lossy().starts_with("appendonly") {
                    std::fs::remove_dir_all(entry.path()).expect("data that can be lost");
                }
            }
        }
        *server = Some(start_redis(&self.redis_home, Some(self.redis_port)).await);
    }

    /// Has the relay publish what is parked, and waits until it has. False if that takes too long.
    pub(crate) async fn release_parked(&self, limit: Duration) -> bool {
        let relay = self.system.redis.relay_name();
        let deadline = tokio::time::Instant::now() + limit;
        while tokio::time::Instant::now() < deadline {
            let mut connection = self.postgres().await;
            let Ok(topics) = parked::topics(&mut connection, &relay).await else { continue };
            if topics.is_empty() {
                return true;
            }
            for topic in topics {
                // A failure is tried again in the next round.
                drop(parked::request(&mut connection, &relay, &topic, Action::Release, None).await);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        false
    }

    /// Commits every transaction that is still prepared.
    pub(crate) async fn finish_prepared(&self) {
        let mut connection = self.postgres().await;
        let prepared: Vec<String> = sqlx::query_scalar("select gid from pg_prepared_xacts")
            .fetch_all(&mut connection)
            .await
            .expect("a list");
        for gid in prepared {
            let sql = format!("commit prepared '{gid}'");
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.expect("a commit");
        }
    }

    /// The history of each channel, in their order: ids and keys of payloads.
    pub(crate) async fn histories(&self) -> Option<Vec<Vec<(String, u64)>>> {
        let mut connection = self.redis().await?;
        let mut histories = Vec::new();
        for channel in &self.channels {
            let reply: redis::streams::StreamRangeReply = redis::AsyncCommands::xrange_all(
                &mut connection,
                self.system.redis.keys().history(&channel.topic),
            )
            .await
            .ok()?;
            let entry = |entry: &redis::streams::StreamId| {
                let payload = entry.get::<String>("payload").unwrap_or_default();
                (entry.id.clone(), key_of(&payload))
            };
            histories.push(reply.ids.iter().map(entry).collect());
        }
        Some(histories)
    }

    /// Of the log and of the positions. Only rolled-back appends make any.
    pub(crate) async fn dead_tuples(&self) -> [i64; 2] {
        let mut connection = self.postgres().await;
        let mut counts = [0; 2];
        for (count, tables) in counts.iter_mut().zip(["event_%", "checkpoint_%"]) {
            *count = sqlx::query_scalar(
                "select coalesce(sum(n_dead_tup), 0)::bigint from pg_stat_user_tables
                 where schemaname = 'outbox' and relname like $1",
            )
            .bind(tables)
            .fetch_one(&mut connection)
            .await
            .expect("statistics");
        }
        counts
    }

    /// Which of the relays leads, if one says so.
    pub(crate) async fn leader(&self) -> Option<usize> {
        for (i, relay) in self.relays.iter().enumerate() {
            let relay = relay.lock().await;
            let asked = try_metric_of(&relay, "aftercommit_relay_leading");
            if let Ok(Ok(1)) = tokio::time::timeout(Duration::from_millis(300), asked).await {
                return Some(i);
            }
        }
        None
    }

    /// How many processes have ended although nobody ended them. Those that a fault ended have been replaced.
    pub(crate) async fn crashed(&self) -> usize {
        let mut crashed = 0;
        for process in self.relays.iter().chain(self.outlets.iter().map(|outlet| &outlet.process)) {
            crashed += usize::from(process.lock().await.has_ended());
        }
        crashed
    }

    /// What the processes that still run have said, for finding out what went wrong.
    pub(crate) fn print_logs(&self) {
        let outlets = self.outlets.iter().map(|outlet| &outlet.process);
        for process in self.relays.iter().chain(outlets) {
            if let Ok(process) = process.try_lock() {
                let log = process.log();
                let tail: Vec<&str> = log.lines().rev().take(40).collect();
                for line in tail.iter().rev() {
                    eprintln!("{line}");
                }
            }
        }
    }
}

impl Outlet {
    async fn start(system: &System) -> Self {
        let process = system.start("sse").await;
        let (_, port) = process.address.rsplit_once(':').expect("an address with a port");
        let proxy = Proxy::to(port.parse().expect("a port")).await;
        let url = proxy.url(&process.url(STREAM));
        Self { process: Mutex::new(process), proxy, url }
    }

    /// Puts a fresh process in the place of one that has ended.
    pub(crate) async fn replace(&self, system: &System) {
        let fresh = system.start("sse").await;
        let (_, port) = fresh.address.rsplit_once(':').expect("an address with a port");
        self.proxy.lead_to(port.parse().expect("a port"));
        *self.process.lock().await = fresh;
    }
}

async fn start_redis(home: &std::path::Path, port: Option<u16>) -> RedisServer {
    let options = Options { home: Home::Kept(home.to_owned()), port, durable: true, settings: Vec::new() };
    RedisServer::start(&options).await.expect("a private Redis")
}

/// The number by which an event is known in every place.
pub(crate) fn key_of(payload: &str) -> u64 {
    let value: serde_json::Value = serde_json::from_str(payload).unwrap_or_default();
    value["k"].as_u64().unwrap_or(u64::MAX)
}
