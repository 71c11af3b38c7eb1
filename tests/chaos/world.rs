//! The system under test: a Postgres with a standby, a Redis, two relays, two SSE servers, and a proxy on
//! each connection that can fail; and the relay of another log on the same Redis.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aftercommit::event::{StreamId, Topic};
use aftercommit::local::{Home, RedisServer, redis::Options};
use aftercommit::log::parked::{self, Action};
use redis::aio::MultiplexedConnection;
use secrecy::ExposeSecret;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::sync::{Mutex, RwLock};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::clock::Clock;
use crate::harness::{
    Database, LIMIT, OwnPostgres, Process, Proxy, Settings, Standby, System, database_on, redis_settings_of,
    start_postgres, try_metric_of,
};
use crate::ledger::Ledger;
use crate::neighbour::Neighbour;
use crate::payload;
use crate::roles::{self, User};
use crate::truth::KnownNumbers;

/// `[relay] takeover_seconds`.
const TAKEOVER_SECONDS: &str = "2";
/// Topics, each of a user's.
const TOPICS: usize = 8;
/// The path of streams of a user's topic.
const STREAM: &str = "/api/upload/sessions/notifications/stream";

/// One topic and who may listen to it.
#[derive(Debug, Clone)]
pub(crate) struct Channel {
    pub(crate) topic: Topic,
    pub(crate) token: String,
}

/// One entry of a history.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) id: Option<StreamId>,
    pub(crate) event_id: Option<Uuid>,
    pub(crate) event_type: String,
    /// Of its bytes: [`payload::mark`].
    pub(crate) payload: u64,
}

/// An SSE server and the way to it.
#[derive(Debug)]
pub(crate) struct Outlet {
    pub(crate) process: Mutex<Process>,
    pub(crate) proxy: Proxy,
    pub(crate) url: String,
}

/// All parts of the system under test.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) seed: u64,
    /// Print what happens.
    pub(crate) verbose: bool,
    pub(crate) system: System,
    /// Above the server, so that it ends first.
    pub(crate) standby: Standby,
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
    pub(crate) neighbour: Neighbour,
    pub(crate) clock: Option<Clock>,
    pub(crate) ledger: Ledger,
    /// Held while a role or a user lacks a right: a process that starts then ends, and says so on stderr.
    pub(crate) rights: Mutex<()>,
    /// Each writer's transaction holds it, and somebody who needs a log without open ones waits for it.
    pub(crate) transactions: RwLock<()>,
    /// The ids of the log's rows, as far as the judge has learned them.
    pub(crate) numbers: Mutex<KnownNumbers>,
    /// Ends of pipes that nobody reads, and the addresses of those who write to them.
    pub(crate) unread: Mutex<HashMap<String, std::io::PipeReader>>,
    _directory: tempfile::TempDir,
}

impl World {
    pub(crate) async fn start(seed: u64, verbose: bool) -> Self {
        let settings =
            [("max_prepared_transactions", "50"), ("synchronous_commit", "on"), ("max_connections", "200")];
        let server = start_postgres(settings.map(|(name, value)| (name, value.to_owned())).into()).await;
        let database = database_on(&server).await;
        roles::make(&mut database.connect().await).await;
        let postgres = OwnPostgres::new(server).await;
        let standby = Standby::of(&postgres).await.expect("a standby");
        let directory = tempfile::tempdir().expect("a directory");
        let redis_home = directory.path().join("redis");
        let redis = start_redis(&redis_home, None, true).await;
        let (redis_url, redis_port) = (redis.url().expose_secret().to_owned(), redis.port());
        let (relay_redis, sse_redis) = (Proxy::to(redis_port).await, Proxy::to(redis_port).await);
        let clock = Clock::find(directory.path());
        let system = System::with(Database::at(database.url()), &User::Sse.url(&sse_redis.url(&redis_url)))
            .await
            .set("AFTERCOMMIT_RELAY_TAKEOVER_SECONDS", TAKEOVER_SECONDS)
            .set("AFTERCOMMIT_RELAY_RECONCILE_INTERVAL_MS", "300")
            .set("AFTERCOMMIT_RELAY_BACKOFF_MAX_MS", "300")
            .set("AFTERCOMMIT_RELAY_BATCH_SIZE", "50")
            .set("AFTERCOMMIT_REDIS_RESPONSE_TIMEOUT_MS", "1000")
            .set("AFTERCOMMIT_REDIS_HISTORY_MAX_EVENTS", "1000000")
            // A history is cut to as many entries as this holds of its newest one's size: none may be,
            // however large it is.
            .set("AFTERCOMMIT_REDIS_HISTORY_MAX_BYTES", "1099511627776")
            .set("AFTERCOMMIT_SSE_HEARTBEAT_SECONDS", "2");
        let sse = clock.iter().fold(system.settings().clone(), |settings, clock| clock.of(settings));
        let sse = sse.set("DATABASE_URL", roles::url(database.url(), "sse"));
        let relay = sse
            .clone()
            .set("REDIS_URL", User::Relay.url(&relay_redis.url(&redis_url)))
            .set("DATABASE_URL", roles::url(&postgres.proxy.url(database.url()), "relay"));
        let relays = [
            Mutex::new(Process::start("relay", &relay).await),
            Mutex::new(Process::start("relay", &relay).await),
        ];
        let outlets = [Outlet::start(&sse).await, Outlet::start(&sse).await];
        let channels: Vec<Channel> = (0..TOPICS)
            .map(|_| {
                let user = Uuid::new_v4();
                let topic = Topic::new(format!("user-notifications:{user}")).expect("a topic");
                Channel { topic, token: system.token_for(user, Duration::from_secs(86_400)) }
            })
            .collect();
        let neighbour = Neighbour::start(&system, &User::Relay.url(&redis_url), &channels[0].topic).await;
        Self {
            seed,
            verbose,
            system,
            standby,
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
            neighbour,
            clock,
            ledger: Ledger::default(),
            rights: Mutex::default(),
            transactions: RwLock::default(),
            numbers: Mutex::default(),
            unread: Mutex::default(),
            _directory: directory,
        }
    }

    /// What a relay behind the proxies is started with.
    pub(crate) fn relay_settings(&self) -> Settings {
        let owners = self.postgres.proxy.url(self.system.database.url());
        self.sse_settings()
            .set("REDIS_URL", User::Relay.url(&self.relay_redis.url(&self.redis_url)))
            .set("DATABASE_URL", roles::url(&owners, "relay"))
    }

    /// What an SSE server behind the proxies is started with.
    pub(crate) fn sse_settings(&self) -> Settings {
        let settings =
            self.clock.iter().fold(self.system.settings().clone(), |settings, clock| clock.of(settings));
        settings.set("DATABASE_URL", roles::url(self.system.database.url(), "sse"))
    }

    /// What a command of an operator's is run with: it passes no proxy, and has the right time.
    pub(crate) fn operator_settings(&self, role: &str) -> Settings {
        let settings = self.system.settings().clone();
        settings
            .set("REDIS_URL", User::Relay.url(&self.redis_url))
            .set("DATABASE_URL", roles::url(self.system.database.url(), role))
    }

    /// A fresh relay, behind the proxies.
    pub(crate) async fn new_relay(&self) -> Process {
        Process::start("relay", &self.relay_settings()).await
    }

    /// The owner's address of Redis, past the proxies.
    pub(crate) fn redis_url(&self) -> &str {
        &self.redis_url
    }

    /// A topic's place among the channels, from a fault's target.
    pub(crate) fn channel_of(&self, target: u64) -> usize {
        usize::try_from(target).expect("an index") % self.channels.len()
    }

    /// A writer's connection, past the proxies. Retried until it succeeds.
    pub(crate) async fn writer(&self) -> PgConnection {
        connected(&roles::url(self.system.database.url(), "writer")).await
    }

    /// The owner's connection, past the proxies. Retried until it succeeds.
    pub(crate) async fn postgres(&self) -> PgConnection {
        connected(self.system.database.url()).await
    }

    /// A connection to Redis past the proxies, if it runs.
    pub(crate) async fn redis(&self) -> Option<MultiplexedConnection> {
        redis_settings_of(&self.redis_url).connect().await.ok()
    }

    /// Runs a Redis command and returns its reply or error.
    pub(crate) async fn tell_redis(&self, words: &[&str]) -> redis::RedisResult<redis::Value> {
        let connected = redis_settings_of(&self.redis_url).connect().await;
        let mut connection = connected.map_err(|_| (redis::ErrorKind::Io, "Redis does not run"))?;
        redis::cmd(words[0]).arg(&words[1..]).query_async(&mut connection).await
    }

    /// Starts Redis at its address, with the data on disk.
    pub(crate) async fn restart_redis(&self, without_data: bool) {
        let mut server = self.redis.lock().await;
        drop(server.take());
        if without_data {
            self.remove_append_only_files();
        }
        *server = Some(start_redis(&self.redis_home, Some(self.redis_port), true).await);
    }

    /// Makes Redis write an RDB for [`Self::restore_redis`].
    pub(crate) async fn save_redis(&self) -> redis::RedisResult<redis::Value> {
        self.tell_redis(&["save"]).await
    }

    /// Starts Redis with its last RDB, as a restored backup, and turns the append-only file on again.
    pub(crate) async fn restore_redis(&self) {
        let mut server = self.redis.lock().await;
        drop(server.take());
        self.remove_append_only_files();
        *server = Some(start_redis(&self.redis_home, Some(self.redis_port), false).await);
        drop(server);
        self.tell_redis(&["config", "set", "appendonly", "yes"]).await.expect("an append-only file");
        // With an incomplete file, the next restart would lose data.
        let deadline = Instant::now() + LIMIT;
        while !self.appends_to_a_whole_file().await {
            assert!(Instant::now() < deadline, "Redis does not write its append-only file");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn appends_to_a_whole_file(&self) -> bool {
        let Ok(info) = self.tell_redis(&["info", "persistence"]).await else { return false };
        let info: String = redis::from_redis_value(info).expect("a text");
        let is_written = |name: &str| info.contains(&format!("{name}:0"));
        let waits = ["aof_rewrite_in_progress", "aof_rewrite_scheduled", "rdb_bgsave_in_progress"];
        waits.into_iter().all(is_written) && self.redis_home.join("appendonlydir").exists()
    }

    fn remove_append_only_files(&self) {
        for entry in std::fs::read_dir(&self.redis_home).expect("its directory").flatten() {
            if entry.file_name().to_string_lossy().starts_with("appendonly") {
                std::fs::remove_dir_all(entry.path()).expect("data that can be lost");
            }
        }
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
        loop {
            let prepared: Vec<String> = sqlx::query_scalar("select gid from pg_prepared_xacts")
                .fetch_all(&mut connection)
                .await
                .expect("a list");
            if prepared.is_empty() {
                return;
            }
            for gid in prepared {
                let sql = format!("commit prepared '{gid}'");
                // Somebody else may have committed it meanwhile.
                drop(sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await);
            }
        }
    }

    /// The history of a channel, as Redis has it.
    pub(crate) async fn history(&self, channel: usize) -> redis::RedisResult<Vec<Entry>> {
        let connected = redis_settings_of(&self.redis_url).connect().await;
        let mut connection = connected.map_err(|_| (redis::ErrorKind::Io, "Redis does not run"))?;
        let key = self.system.redis.keys().history(&self.channels[channel].topic);
        let (mut entries, mut from) = (Vec::new(), "-".to_owned());
        // In pages: some of the entries are large.
        loop {
            let page: redis::streams::StreamRangeReply =
                redis::AsyncCommands::xrange_count(&mut connection, &key, &from, "+", 500).await?;
            let Some(last) = page.ids.last() else { return Ok(entries) };
            from = format!("({}", last.id);
            entries.extend(page.ids.iter().map(Entry::read));
        }
    }

    /// The last id of each channel's history.
    pub(crate) async fn last_ids(&self) -> Option<Vec<Option<String>>> {
        let mut connection = self.redis().await?;
        let mut last = Vec::new();
        for channel in &self.channels {
            let key = self.system.redis.keys().history(&channel.topic);
            let newest: redis::streams::StreamRangeReply =
                redis::AsyncCommands::xrevrange_count(&mut connection, key, "+", "-", 1).await.ok()?;
            last.push(newest.ids.first().map(|entry| entry.id.clone()));
        }
        Some(last)
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

    /// The index of the relay that leads, if one reports it.
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

    /// Restarts processes that ended because their role or user lacked a right at their start, as a
    /// supervisor does.
    pub(crate) async fn supervise(&self, until: CancellationToken) {
        while !until.is_cancelled() {
            for relay in &self.relays {
                if let Ok(mut relay) = relay.try_lock()
                    && relay.ended().is_some()
                    && was_refused(&relay)
                {
                    *relay = self.new_relay().await;
                }
            }
            for outlet in &self.outlets {
                let was_refused = outlet
                    .process
                    .try_lock()
                    .is_ok_and(|mut process| process.ended().is_some() && was_refused(&process));
                if was_refused {
                    outlet.replace(Process::start("sse", &self.sse_settings()).await).await;
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// The number of processes that ended by themselves. Processes that a fault ended have been replaced.
    pub(crate) async fn crashed(&self) -> usize {
        let mut crashed = 0;
        let mut unread_logs = self.unread.lock().await;
        for process in self.relays.iter().chain(self.outlets.iter().map(|outlet| &outlet.process)) {
            let mut process = process.lock().await;
            if let Some(status) = process.ended() {
                let mut log = process.log();
                if let Some(mut unread) = unread_logs.remove(&process.address) {
                    // It has ended, and with it the pipe.
                    unread.read_to_string(&mut log).expect("a log");
                }
                let from = log.len().saturating_sub(4000);
                let last = String::from_utf8_lossy(&log.as_bytes()[from..]);
                eprintln!("{} at {} has ended: {status}\n{last}", process.role(), process.address);
                crashed += 1;
            }
        }
        crashed
    }

    /// Prints the last lines of the running processes' logs.
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

impl Entry {
    fn read(entry: &redis::streams::StreamId) -> Self {
        let text = |name: &str| entry.get::<String>(name).unwrap_or_default();
        Self {
            id: entry.id.parse().ok(),
            event_id: Uuid::parse_str(&text("event")).ok(),
            event_type: text("type"),
            payload: payload::mark(text("payload").as_bytes()),
        }
    }
}

impl Outlet {
    async fn start(settings: &Settings) -> Self {
        let process = Process::start("sse", settings).await;
        let (_, port) = process.address.rsplit_once(':').expect("an address with a port");
        let proxy = Proxy::to(port.parse().expect("a port")).await;
        let url = proxy.url(&process.url(STREAM));
        Self { process: Mutex::new(process), proxy, url }
    }

    /// Replaces a process that has ended.
    pub(crate) async fn replace(&self, fresh: Process) {
        let (_, port) = fresh.address.rsplit_once(':').expect("an address with a port");
        self.proxy.lead_to(port.parse().expect("a port"));
        *self.process.lock().await = fresh;
    }
}

/// Whether the last line of a process says that Postgres or Redis refuses it.
fn was_refused(process: &Process) -> bool {
    let refusals = ["permission denied for", "authentication failed", "NOPERM"];
    let log = process.log();
    log.lines().next_back().is_some_and(|line| refusals.into_iter().any(|refusal| line.contains(refusal)))
}

async fn connected(url: &str) -> PgConnection {
    loop {
        if let Ok(connection) = PgConnection::connect(url).await {
            return connection;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn start_redis(home: &Path, port: Option<u16>, durable: bool) -> RedisServer {
    let settings = vec![User::Relay.configured(), User::Sse.configured()];
    let options = Options { home: Home::Kept(home.to_owned()), port, durable, settings };
    RedisServer::start(&options).await.expect("a private Redis")
}
