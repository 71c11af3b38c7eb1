//! Reading the history of a topic: its newest entries, what follows an id, and whether anything was ever trimmed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::redis::aio::MultiplexedConnection;
use ::redis::streams::{StreamId as RawEntry, StreamRangeReply};
use ::redis::{AsyncCommands, RedisError};

use super::complaint::said;
use super::keys;
use super::settings::{ConnectError, Settings};
use crate::event::{EventType, StreamId, Topic};

/// An entry of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The event's place.
    pub id: StreamId,
    /// The event's type and payload; `None` if somebody else wrote this entry and it holds no event.
    pub event: Option<(EventType, String)>,
}

/// How much of a history is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// There is none: the topic never had an event, or its last one is older than histories are kept.
    Missing,
    /// Every entry that it ever got.
    Whole,
    /// Less than that.
    Trimmed,
}

/// Why a history could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no connection. Whoever waited for the same attempt is told the same.
    #[error(transparent)]
    Connect(Arc<ConnectError>),
    /// Redis failed, or did not answer in time.
    #[error("reading a history from Redis failed: {}", said(.0))]
    Redis(#[from] RedisError),
    /// An entry's id is not one.
    #[error("the history of {topic} holds an entry with the id {id}, which no relay wrote")]
    Id {
        /// The topic.
        topic: Topic,
        /// The id.
        id: String,
    },
}

/// Reads histories over one connection, which is made when it is needed and made anew after a failure.
#[derive(Debug)]
pub struct History {
    settings: Settings,
    kept: Mutex<Kept>,
    /// Held by whoever connects. Not needed to look at what is kept, or to let go of it.
    connecting: tokio::sync::Mutex<()>,
    /// How often a connection has been tried.
    attempts: AtomicU64,
}

/// A connection, and which attempt made it.
#[derive(Debug, Clone)]
struct Link {
    attempt: u64,
    connection: MultiplexedConnection,
}

/// What the newest attempt to connect has left.
#[derive(Debug)]
enum Kept {
    /// Nothing: there was none yet, or its connection broke.
    Nothing,
    Link(Link),
    Failure {
        attempt: u64,
        error: Arc<ConnectError>,
    },
}

impl History {
    /// A reader that has not connected yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            kept: Mutex::new(Kept::Nothing),
            connecting: tokio::sync::Mutex::default(),
            attempts: AtomicU64::new(0),
        }
    }

    /// The newest entries of a topic, oldest of them first, `count` at most.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn newest(&self, topic: &Topic, count: usize) -> Result<Vec<Entry>, ReadError> {
        let Link { attempt, mut connection } = self.link().await?;
        let reply: StreamRangeReply =
            self.checked(attempt, connection.xrevrange_count(keys::history(topic), "+", "-", count).await)?;
        let mut entries = entries_of(topic, reply)?;
        entries.reverse();
        Ok(entries)
    }

    /// The entries of a topic from this id on (the entry of that id included), or from the first; `count` at most.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn from(
        &self,
        topic: &Topic,
        id: Option<StreamId>,
        count: usize,
    ) -> Result<Vec<Entry>, ReadError> {
        let Link { attempt, mut connection } = self.link().await?;
        let start = id.map_or_else(|| "-".to_owned(), |id| id.to_string());
        let reply: StreamRangeReply =
            self.checked(attempt, connection.xrange_count(keys::history(topic), start, "+", count).await)?;
        entries_of(topic, reply)
    }

    /// The newest id of each topic, `None` for one without a history, in one round trip.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn tips(&self, topics: &[Topic]) -> Result<Vec<Option<StreamId>>, ReadError> {
        let Link { attempt, mut connection } = self.link().await?;
        let mut pipeline = ::redis::pipe();
        for topic in topics {
            pipeline.xrevrange_count(keys::history(topic), "+", "-", 1);
        }
        let replies: Vec<StreamRangeReply> =
            self.checked(attempt, pipeline.query_async(&mut connection).await)?;
        topics
            .iter()
            .zip(replies)
            .map(|(topic, reply)| Ok(entries_of(topic, reply)?.first().map(|entry| entry.id)))
            .collect()
    }

    /// Whether the history of a topic still holds every entry that it ever got.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn extent(&self, topic: &Topic) -> Result<Extent, ReadError> {
        let Link { attempt, mut connection } = self.link().await?;
        let info: Result<::redis::Value, RedisError> =
            ::redis::cmd("XINFO").arg("STREAM").arg(keys::history(topic)).query_async(&mut connection).await;
        match info {
            Err(error) if error.to_string().contains("no such key") => Ok(Extent::Missing),
            info => {
                let info = self.checked(attempt, info)?;
                let added = number(&info, "entries-added");
                // A Redis older than 7.0 does not count what was added: then nothing can be proven.
                let is_whole = added.is_some() && added == number(&info, "length");
                Ok(if is_whole { Extent::Whole } else { Extent::Trimmed })
            }
        }
    }

    /// Answers whether Redis answers.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn ping(&self) -> Result<(), ReadError> {
        let Link { attempt, mut connection } = self.link().await?;
        let pong: Result<String, RedisError> = ::redis::cmd("PING").query_async(&mut connection).await;
        self.checked(attempt, pong).map(|_pong| ())
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection, or a new one. Whoever waits while others try takes their failure for its own if that attempt was begun
    /// after it had come: one by one, each would wait for the time-outs of all before it.
    async fn link(&self) -> Result<Link, ReadError> {
        let begun_before = self.attempts.load(Ordering::Relaxed);
        if let Some(known) = self.known(begun_before) {
            return known;
        }
        let _turn = self.connecting.lock().await;
        if let Some(known) = self.known(begun_before) {
            return known;
        }
        let attempt = self.attempts.fetch_add(1, Ordering::Relaxed) + 1;
        match self.settings.connect().await {
            Ok(connection) => {
                let link = Link { attempt, connection };
                *self.kept() = Kept::Link(link.clone());
                Ok(link)
            }
            Err(error) => {
                let error = Arc::new(error);
                *self.kept() = Kept::Failure { attempt, error: error.clone() };
                Err(ReadError::Connect(error))
            }
        }
    }

    /// What attempts have left: a connection, or the failure of one that is newer than so many.
    fn known(&self, begun_before: u64) -> Option<Result<Link, ReadError>> {
        match &*self.kept() {
            Kept::Link(link) => Some(Ok(link.clone())),
            Kept::Failure { attempt, error } if *attempt > begun_before => {
                Some(Err(ReadError::Connect(error.clone())))
            }
            Kept::Failure { .. } | Kept::Nothing => None,
        }
    }

    /// Lets go of this attempt's connection after any failure: a new one costs little, and a broken one never mends.
    fn checked<T>(&self, attempt: u64, result: Result<T, RedisError>) -> Result<T, ReadError> {
        if result.is_err() {
            let mut kept = self.kept();
            // Others may have noticed before, and made a new one.
            if matches!(&*kept, Kept::Link(link) if link.attempt == attempt) {
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
    Ok(Entry { id, event: kind.zip(raw.get("payload")) })
}

/// A number of a reply that is a flat list of names and values, as XINFO's is.
fn number(reply: &::redis::Value, name: &str) -> Option<u64> {
    let pairs: Vec<(String, ::redis::Value)> = ::redis::from_redis_value_ref(reply).ok()?;
    let (_, value) = pairs.into_iter().find(|(key, _)| key == name)?;
    ::redis::from_redis_value(value).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::future::join_all;
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::*;

    fn settings(address: std::net::SocketAddr) -> Settings {
        Settings {
            url: format!("redis://{address}").into(),
            connect_timeout_ms: 300,
            response_timeout_ms: 300,
            min_replicas: 0,
            history_max_events: 1,
            history_ttl_seconds: 1,
        }
    }

    #[tokio::test]
    async fn readers_that_wait_for_a_redis_that_is_silent_share_its_failure() {
        // Connections are made, and nobody reads them.
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let history = History::new(settings(silent.local_addr().expect("an address")));
        let begun = Instant::now();
        let answers = join_all((0..20).map(|_| history.ping())).await;
        for answer in answers {
            assert!(matches!(answer, Err(ReadError::Connect(_))), "{answer:?}");
        }
        // One attempt was under way or begun when each of them came; the next one is of all.
        let took = begun.elapsed();
        assert!(took < Duration::from_millis(20 * 300 / 2), "{took:?}");
    }

    #[tokio::test]
    async fn a_reader_whose_connection_broke_is_told_while_another_one_connects() {
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let history = History::new(settings(silent.local_addr().expect("an address")));
        let mut connecting = Box::pin(history.ping());
        assert!(futures_util::poll!(&mut connecting).is_pending(), "it waits for the silent one");
        let broken = RedisError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        // In this very moment, without waiting for anything.
        assert!(matches!(history.checked::<()>(1, Err(broken)), Err(ReadError::Redis(_))));
        assert!(connecting.await.is_err());
    }
}
