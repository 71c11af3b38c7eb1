//! Writers of events: transactions that roll back, commit late, roll back to savepoints, are prepared and
//! forgotten, and one that stays open for the whole run.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aftercommit::event::{EventType, NewEvent, Topic};
use aftercommit::outbox;
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::payload;
use crate::random::Random;
use crate::world::World;

const WRITERS: usize = 8;
/// The transaction that stays prepared until an operator finds it.
const FORGOTTEN: &str = "forgotten";

/// The time when its writer learned of each event's commit, by key.
pub(crate) type Commits = HashMap<u64, Instant>;

/// Writers at work.
#[derive(Debug)]
pub(crate) struct Writers {
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    cleaned: CancellationToken,
    cleaner: JoinHandle<()>,
    commits: Arc<Mutex<Commits>>,
    keys: Arc<AtomicU64>,
}

struct Writer {
    world: Arc<World>,
    random: Random,
    keys: Arc<AtomicU64>,
    commits: Arc<Mutex<Commits>>,
    stop: CancellationToken,
}

/// How a transaction ends.
enum End {
    Commit,
    Rollback,
    /// Prepared, and committed by somebody later.
    Prepare,
}

pub(crate) fn begin(world: &Arc<World>, seed: u64) -> Writers {
    let (stop, commits) = (CancellationToken::new(), Arc::new(Mutex::new(Commits::new())));
    let keys = Arc::new(AtomicU64::new(1));
    let mut tasks = Vec::new();
    for n in 0..WRITERS + 2 {
        let mut writer = Writer {
            world: world.clone(),
            random: Random::new(seed, &format!("writer {n}")),
            keys: keys.clone(),
            commits: commits.clone(),
            stop: stop.clone(),
        };
        tasks.push(tokio::spawn(async move {
            match n {
                0..WRITERS => writer.write().await,
                WRITERS => writer.forget_one().await,
                _ => writer.hold_open().await,
            }
        }));
    }
    let cleaned = CancellationToken::new();
    let cleaner = tokio::spawn(clean_up(world.clone(), cleaned.clone()));
    Writers { stop, tasks, cleaned, cleaner, commits, keys }
}

impl Writers {
    /// Appends an event to each topic: the last one of a round.
    pub(crate) async fn mark_the_end(&self, world: &Arc<World>) {
        let mut writer = Writer {
            world: world.clone(),
            random: Random::new(world.seed, "the end"),
            keys: self.keys.clone(),
            commits: self.commits.clone(),
            stop: self.stop.clone(),
        };
        for channel in &world.channels {
            while writer.append_alone(&channel.topic).await.is_err() {
                writer.pause(50, 100).await;
            }
        }
    }

    /// The commits so far.
    pub(crate) fn commits(&self) -> Commits {
        self.commits.lock().expect("commits").clone()
    }

    /// No transaction begins any more.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits for the end of all writers.
    pub(crate) async fn finish(self) {
        self.stop();
        for task in self.tasks {
            task.await.expect("a writer");
        }
        self.cleaned.cancel();
        self.cleaner.await.expect("a cleaner");
    }
}

impl Writer {
    async fn write(&mut self) {
        let mut connection = self.world.writer().await;
        while !self.stop.is_cancelled() {
            if self.transaction(&mut connection).await.is_err() {
                // The log will show whether it was committed.
                connection = self.world.writer().await;
            }
            self.pause(0, 30).await;
        }
    }

    async fn pause(&mut self, least: u64, most: u64) {
        tokio::time::sleep(self.random.millis(least, most)).await;
    }

    async fn transaction(&mut self, connection: &mut PgConnection) -> Result<(), outbox::AppendError> {
        let world = self.world.clone();
        let _open = world.transactions.read().await;
        if self.stop.is_cancelled() {
            return Ok(());
        }
        execute(connection, "begin").await?;
        if self.random.percent(50) {
            // An xid now and ids later: what a snapshot's xmax does not tell of.
            execute(connection, "select pg_current_xact_id()").await?;
            self.pause(0, 60).await;
        }
        let mut topics = vec![self.topic()];
        if self.random.percent(20) {
            topics.push(self.topic());
            topics.sort();
            topics.dedup();
        }
        let mut keys = Vec::new();
        for topic in &topics {
            outbox::lock_topic(connection, topic).await?;
            for _ in 0..self.random.between(1, 4) {
                keys.push(self.append(connection, topic).await?);
            }
            if self.random.percent(15) {
                execute(connection, "savepoint s").await?;
                self.append(connection, topic).await?;
                execute(connection, "rollback to savepoint s").await?;
            }
        }
        self.dawdle().await;
        self.end(connection, &keys).await
    }

    /// Between an append and its commit: mostly a moment, now and then long.
    async fn dawdle(&mut self) {
        if self.random.percent(4) { self.pause(300, 1500).await } else { self.pause(0, 25).await }
    }

    async fn end(&mut self, connection: &mut PgConnection, keys: &[u64]) -> Result<(), outbox::AppendError> {
        let end = match self.random.between(0, 100) {
            0..15 => End::Rollback,
            15..20 => End::Prepare,
            _ => End::Commit,
        };
        match end {
            End::Rollback => return execute(connection, "rollback").await,
            End::Commit => execute(connection, "commit").await?,
            End::Prepare => {
                let gid = uuid::Uuid::new_v4();
                execute(connection, &format!("prepare transaction '{gid}'")).await?;
                self.pause(0, 300).await;
                execute(connection, &format!("commit prepared '{gid}'")).await?;
            }
        }
        let now = Instant::now();
        self.commits.lock().expect("commits").extend(keys.iter().map(|key| (*key, now)));
        Ok(())
    }

    async fn append(
        &mut self,
        connection: &mut PgConnection,
        topic: &Topic,
    ) -> Result<u64, outbox::AppendError> {
        let key = self.keys.fetch_add(1, Ordering::Relaxed);
        let event_type = EventType::new(payload::type_of(key)).expect("a type");
        let event =
            NewEvent::new(topic.clone(), event_type, &payload::raw(self.world.seed, key)).expect("an event");
        let event = event.with_event_id(payload::event_id(self.world.seed, key));
        outbox::append(connection, &event).await?;
        Ok(key)
    }

    async fn append_alone(&mut self, topic: &Topic) -> Result<(), outbox::AppendError> {
        let mut connection = self.world.writer().await;
        self.append(&mut connection, topic).await.map(|_| ())
    }

    fn topic(&mut self) -> Topic {
        // The last two are for the transactions that outlast the others.
        let channels = &self.world.channels[..self.world.channels.len() - 2];
        channels[self.random.below(channels.len())].topic.clone()
    }

    /// One transaction for the whole run: nothing may wait for it. When Postgres or an operator ends it,
    /// another begins.
    async fn hold_open(&mut self) {
        let topic = self.world.channels.last().expect("a channel").topic.clone();
        let world = self.world.clone();
        while !self.stop.is_cancelled() {
            let _open = world.transactions.read().await;
            if self.stop.is_cancelled() {
                return;
            }
            let mut connection = self.world.writer().await;
            let Ok(()) = execute(&mut connection, "begin").await else { continue };
            let Ok(key) = self.append(&mut connection, &topic).await else { continue };
            let is_asked_to_end = || world.transactions.try_read().is_err();
            while !self.stop.is_cancelled() && !is_asked_to_end() {
                self.pause(100, 300).await;
                if execute(&mut connection, "select 1").await.is_err() {
                    break;
                }
            }
            if execute(&mut connection, "commit").await.is_ok() {
                self.commits.lock().expect("commits").insert(key, Instant::now());
            }
        }
    }

    /// One transaction that is prepared and forgotten; a fresh one as soon as an operator has found it.
    async fn forget_one(&mut self) {
        let topic = self.world.channels[self.world.channels.len() - 2].topic.clone();
        while !self.stop.is_cancelled() {
            drop(self.forget(&topic).await);
            self.pause(800, 1200).await;
        }
    }

    async fn forget(&mut self, topic: &Topic) -> Result<(), outbox::AppendError> {
        let world = self.world.clone();
        let _open = world.transactions.read().await;
        if self.stop.is_cancelled() {
            return Ok(());
        }
        let mut connection = self.world.writer().await;
        execute(&mut connection, "begin").await?;
        let there: bool = sqlx::query_scalar("select exists (select from pg_prepared_xacts where gid = $1)")
            .bind(FORGOTTEN)
            .fetch_one(&mut connection)
            .await?;
        if there {
            return Ok(());
        }
        self.append(&mut connection, topic).await?;
        execute(&mut connection, &format!("prepare transaction '{FORGOTTEN}'")).await
    }
}

/// Commits what was prepared by writers whose session ended before they came to it.
async fn clean_up(world: Arc<World>, until: CancellationToken) {
    while !until.is_cancelled() {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut connection = world.postgres().await;
        let old = "select gid from pg_prepared_xacts where prepared < now() - interval '2 s' and gid <> $1";
        let orphans = sqlx::query_scalar::<_, String>(old).bind(FORGOTTEN).fetch_all(&mut connection).await;
        for gid in orphans.unwrap_or_default() {
            // Its writer may have come to it after all.
            drop(execute(&mut connection, &format!("commit prepared '{gid}'")).await);
        }
    }
}

async fn execute(connection: &mut PgConnection, sql: &str) -> Result<(), outbox::AppendError> {
    // Bounded: a session whose server is frozen or gone must not hold the campaign up.
    let executing = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection);
    match tokio::time::timeout(Duration::from_secs(20), executing).await {
        Ok(done) => done.map(|_| ()).map_err(Into::into),
        Err(_elapsed) => Err(outbox::AppendError::Database(sqlx::Error::PoolTimedOut)),
    }
}
