//! Reads the history of a topic: its newest entries, the entries from an id on, and what its absence means.
//! Never writes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::redis::aio::MultiplexedConnection;
use ::redis::streams::{StreamId as RawEntry, StreamRangeReply};
use ::redis::{AsyncCommands, RedisError, RedisResult};

use super::connect::{ConnectError, Connected};
use super::continuity::{Absence, Link, Loss, Prev};
use super::error_text::error_text;
use super::keys::Keys;
use super::settings::Settings;
use crate::event::{EventType, StreamId, Topic};

/// An entry of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The event's place.
    pub id: StreamId,
    /// The topic's event before it.
    pub prev: Prev,
    /// The event's type and payload; `None` if another program wrote this entry and it holds no event.
    pub event: Option<(EventType, String)>,
}

impl Entry {
    /// The entry's ids, which prove continuity.
    pub fn link(&self) -> Link {
        Link { id: self.id, prev: self.prev }
    }
}

/// Why a history could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no connection. Every caller that waited for the same attempt gets the same error.
    #[error(transparent)]
    Connect(Arc<ConnectError>),
    /// Redis failed, or did not answer in time.
    #[error("reading a history from Redis failed: {}", error_text(.0))]
    Redis(#[from] RedisError),
    /// An entry's id is not of the form `<epoch>-<seq>`.
    #[error("the history of {topic} holds an entry with the id {id}, which no relay wrote")]
    Id {
        /// The topic.
        topic: Topic,
        /// The id.
        id: String,
    },
}

impl ReadError {
    /// Whether Redis answered and refused. Then the connection works, and may serve other topics.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Redis(error) => error.code().is_some(),
            Self::Id { .. } => true,
            Self::Connect(_) => false,
        }
    }
}

/// Reads histories over one connection. The connection is made at the first use, and made anew after a
/// failure.
#[derive(Debug)]
pub struct History {
    settings: Settings,
    keys: Keys,
    kept: Mutex<Kept>,
    /// Held by the task that connects. Reading `kept` or dropping it does not need this lock.
    connecting: tokio::sync::Mutex<()>,
    /// The number of attempts to connect.
    attempts: AtomicU64,
}

/// A connection, and the attempt that made it.
#[derive(Debug, Clone)]
struct Connection {
    attempt: u64,
    connection: MultiplexedConnection,
    /// The version of the primary that it leads to.
    version: u64,
}

/// The result of the newest attempt to connect.
#[derive(Debug)]
enum Kept {
    /// There was no attempt yet, or its connection broke.
    Nothing,
    Connection(Connection),
    Failure {
        attempt: u64,
        error: Arc<ConnectError>,
    },
}

impl History {
    /// Makes a reader that has not connected yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            keys: settings.keys(),
            settings,
            kept: Mutex::new(Kept::Nothing),
            connecting: tokio::sync::Mutex::default(),
            attempts: AtomicU64::new(0),
        }
    }

    /// Returns the newest entries of a topic, oldest of them first, at most `count`.
    ///
    /// # Errors
    /// Returns [`ReadError::Connect`] if there is no connection, [`ReadError::Redis`] if Redis fails or does
    /// not answer in time, and [`ReadError::Id`] if an entry's id cannot be read.
    pub async fn newest(&self, topic: &Topic, count: usize) -> Result<Vec<Entry>, ReadError> {
        let Connection { attempt, mut connection, .. } = self.link().await?;
        let reply: StreamRangeReply = self
            .checked(attempt, connection.xrevrange_count(self.keys.history(topic), "+", "-", count).await)?;
        let mut entries = entries_of(topic, reply)?;
        entries.reverse();
        Ok(entries)
    }

    /// Returns the entries of a topic from this id on (the entry of that id included), or from the first one,
    /// at most `count`.
    ///
    /// # Errors
    /// Returns [`ReadError::Connect`] if there is no connection, [`ReadError::Redis`] if Redis fails or does
    /// not answer in time, and [`ReadError::Id`] if an entry's id cannot be read.
    pub async fn from(
        &self,
        topic: &Topic,
        id: Option<StreamId>,
        count: usize,
    ) -> Result<Vec<Entry>, ReadError> {
        let Connection { attempt, mut connection, .. } = self.link().await?;
        let start = id.map_or_else(|| "-".to_owned(), |id| id.to_string());
        let reply: StreamRangeReply = self
            .checked(attempt, connection.xrange_count(self.keys.history(topic), start, "+", count).await)?;
        entries_of(topic, reply)
    }

    /// Returns the newest id of each topic, in one round trip, and `None` for a topic without a history. A
    /// topic that Redis refuses is an error of its own.
    ///
    /// # Errors
    /// Returns [`ReadError::Connect`] if there is no connection, and [`ReadError::Redis`] if Redis does not
    /// answer at all.
    pub async fn tips(
        &self,
        topics: &[Topic],
    ) -> Result<Vec<Result<Option<StreamId>, ReadError>>, ReadError> {
        let Connection { attempt, mut connection, .. } = self.link().await?;
        let mut pipeline = ::redis::pipe();
        for topic in topics {
            pipeline.xrevrange_count(self.keys.history(topic), "+", "-", 1);
        }
        let replies: Vec<RedisResult<StreamRangeReply>> =
            self.checked(attempt, pipeline.ignore_errors().query_async(&mut connection).await)?;
        let tip = |(topic, reply): (&Topic, RedisResult<StreamRangeReply>)| {
            Ok(entries_of(topic, reply?)?.first().map(|entry| entry.id))
        };
        Ok(topics.iter().zip(replies).map(tip).collect())
    }

    /// Returns the facts about a topic without a history, or `None` if it has one.
    ///
    /// # Errors
    /// Returns [`ReadError::Connect`] if there is no connection, and [`ReadError::Redis`] if Redis fails or
    /// does not answer in time.
    pub async fn absence(&self, topic: &Topic) -> Result<Option<Absence>, ReadError> {
        let Connection { attempt, mut connection, .. } = self.link().await?;
        let answer: RedisResult<(bool, bool, Option<u64>)> = ::redis::pipe()
            // Both in one transaction, so that no history begins between the two look-ups.
            .atomic()
            .exists(self.keys.history(topic))
            .exists(self.keys.begun(topic))
            .hget(self.keys.log(), "lost_at")
            .query_async(&mut connection)
            .await;
        let (is_there, has_begun, lost_ms) = self.checked(attempt, answer)?;
        Ok((!is_there).then_some(Absence { has_vanished: has_begun, lost_ms }))
    }

    /// Returns the loss that repairs have recorded, if there is one.
    ///
    /// # Errors
    /// Returns [`ReadError::Connect`] if there is no connection, and [`ReadError::Redis`] if Redis fails or
    /// does not answer in time.
    pub async fn loss(&self) -> Result<Option<Loss>, ReadError> {
        let Connection { attempt, mut connection, .. } = self.link().await?;
        let answer: RedisResult<(Option<String>, Option<u64>)> =
            connection.hmget(self.keys.log(), &["lost", "lost_at"]).await;
        let (through, at_ms) = self.checked(attempt, answer)?;
        let through = through.and_then(|through| through.parse().ok());
        Ok(through.zip(at_ms).map(|(through, at_ms)| Loss { through, at_ms }))
    }

    /// Checks that Redis answers.
    ///
    /// # Errors
    /// Returns [`ReadError::Connect`] if there is no connection, and [`ReadError::Redis`] if Redis fails or
    /// does not answer in time.
    pub async fn ping(&self) -> Result<(), ReadError> {
        let Connection { attempt, mut connection, .. } = self.link().await?;
        let pong: Result<String, RedisError> = ::redis::cmd("PING").query_async(&mut connection).await;
        self.checked(attempt, pong).map(|_pong| ())
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the connection, or makes a new one. A caller that waits while another one connects takes over
    /// that attempt's failure if the attempt began after the call. Otherwise each caller would wait for the
    /// time-outs of all callers before it.
    async fn link(&self) -> Result<Connection, ReadError> {
        let begun_before = self.attempts.load(Ordering::Relaxed);
        if let Some(known) = self.known(begun_before) {
            return known;
        }
        let _turn = self.connecting.lock().await;
        if let Some(known) = self.known(begun_before) {
            return known;
        }
        let attempt = self.attempts.fetch_add(1, Ordering::Relaxed) + 1;
        match self.settings.connect_for_long().await {
            Ok(Connected { connection, version }) => {
                let connected = Connection { attempt, connection, version };
                *self.kept() = Kept::Connection(connected.clone());
                Ok(connected)
            }
            Err(error) => {
                let error = Arc::new(error);
                *self.kept() = Kept::Failure { attempt, error: error.clone() };
                Err(ReadError::Connect(error))
            }
        }
    }

    /// Returns the connection, or the failure of an attempt that is newer than `begun_before`.
    fn known(&self, begun_before: u64) -> Option<Result<Connection, ReadError>> {
        match &*self.kept() {
            Kept::Connection(link) if link.version == self.settings.primary_version() => {
                Some(Ok(link.clone()))
            }
            Kept::Failure { attempt, error } if *attempt > begun_before => {
                Some(Err(ReadError::Connect(error.clone())))
            }
            Kept::Connection(_) | Kept::Failure { .. } | Kept::Nothing => None,
        }
    }

    /// Drops this attempt's connection after a failure, because a broken connection never recovers; keeps it
    /// where Redis answered with an error.
    fn checked<T>(&self, attempt: u64, result: Result<T, RedisError>) -> Result<T, ReadError> {
        if result.as_ref().is_err_and(|error| error.code().is_none()) {
            let mut kept = self.kept();
            // Another caller may have dropped it before and made a new connection.
            if matches!(&*kept, Kept::Connection(connected) if connected.attempt == attempt) {
                *kept = Kept::Nothing;
            }
        }
        Ok(result?)
    }
}

fn entries_of(topic: &Topic, reply: StreamRangeReply) -> Result<Vec<Entry>, ReadError> {
    reply.ids.iter().map(|raw| entry_of(topic, raw)).collect()
}

fn entry_of(topic: &Topic, raw: &RawEntry) -> Result<Entry, ReadError> {
    let id = raw.id.parse().map_err(|_| ReadError::Id { topic: topic.clone(), id: raw.id.clone() })?;
    let kind = raw.get::<String>("type").and_then(|kind| EventType::new(kind).ok());
    let prev = Prev::parse(raw.get::<String>("prev").as_deref());
    Ok(Entry { id, prev, event: kind.zip(raw.get("payload")) })
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::super::settings::CONNECT_TIMEOUT;
    use super::*;

    fn settings(address: std::net::SocketAddr) -> Settings {
        let mut settings = Settings::at(format!("redis://{address}"));
        settings.response_timeout_ms = 300;
        settings
    }

    #[tokio::test]
    async fn readers_that_wait_for_a_redis_that_is_silent_share_its_failure() {
        // The listener accepts connections, and never reads.
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let history = History::new(settings(silent.local_addr().expect("an address")));
        let begun = Instant::now();
        let answers = join_all((0..20).map(|_| history.ping())).await;
        for answer in answers {
            assert!(matches!(answer, Err(ReadError::Connect(_))), "{answer:?}");
        }
        // Callers that came during one attempt share its failure or the next one's.
        let took = begun.elapsed();
        assert!(took < CONNECT_TIMEOUT * 20 / 2, "{took:?}");
    }

    #[tokio::test]
    async fn a_reader_whose_connection_broke_is_told_while_another_one_connects() {
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let history = History::new(settings(silent.local_addr().expect("an address")));
        let mut connecting = Box::pin(history.ping());
        assert!(futures_util::poll!(&mut connecting).is_pending(), "it waits for the silent one");
        let broken = RedisError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        // The failure returns at once, without waiting for the other attempt.
        assert!(matches!(history.checked::<()>(1, Err(broken)), Err(ReadError::Redis(_))));
        assert!(connecting.await.is_err());
    }
}
