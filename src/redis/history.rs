//! Reading the history of a topic: its newest entries, what follows an id, and whether anything was ever trimmed.

use ::redis::aio::MultiplexedConnection;
use ::redis::streams::{StreamId as RawEntry, StreamRangeReply};
use ::redis::{AsyncCommands, RedisError};
use tokio::sync::Mutex;

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
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
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
    connection: Mutex<Option<MultiplexedConnection>>,
}

impl History {
    /// A reader that has not connected yet.
    pub fn new(settings: Settings) -> Self {
        Self { settings, connection: Mutex::new(None) }
    }

    /// The newest entries of a topic, oldest of them first, `count` at most.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn newest(&self, topic: &Topic, count: usize) -> Result<Vec<Entry>, ReadError> {
        let mut connection = self.connection().await?;
        let reply: StreamRangeReply =
            self.checked(connection.xrevrange_count(keys::history(topic), "+", "-", count).await).await?;
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
        let mut connection = self.connection().await?;
        let start = id.map_or_else(|| "-".to_owned(), |id| id.to_string());
        let reply: StreamRangeReply =
            self.checked(connection.xrange_count(keys::history(topic), start, "+", count).await).await?;
        entries_of(topic, reply)
    }

    /// The newest id of each topic, `None` for one without a history, in one round trip.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn tips(&self, topics: &[Topic]) -> Result<Vec<Option<StreamId>>, ReadError> {
        let mut connection = self.connection().await?;
        let mut pipeline = ::redis::pipe();
        for topic in topics {
            pipeline.xrevrange_count(keys::history(topic), "+", "-", 1);
        }
        let replies: Vec<StreamRangeReply> =
            self.checked(pipeline.query_async(&mut connection).await).await?;
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
        let mut connection = self.connection().await?;
        let info: Result<::redis::Value, RedisError> =
            ::redis::cmd("XINFO").arg("STREAM").arg(keys::history(topic)).query_async(&mut connection).await;
        match info {
            Err(error) if error.to_string().contains("no such key") => Ok(Extent::Missing),
            info => {
                let info = self.checked(info).await?;
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
        let mut connection = self.connection().await?;
        let pong: Result<String, RedisError> = ::redis::cmd("PING").query_async(&mut connection).await;
        self.checked(pong).await.map(|_pong| ())
    }

    async fn connection(&self) -> Result<MultiplexedConnection, ReadError> {
        let mut kept = self.connection.lock().await;
        if let Some(connection) = kept.as_ref() {
            return Ok(connection.clone());
        }
        let connection = self.settings.connect().await?;
        *kept = Some(connection.clone());
        Ok(connection)
    }

    /// Lets go of the connection after any failure: a new one costs little, and a broken one never mends.
    async fn checked<T>(&self, result: Result<T, RedisError>) -> Result<T, ReadError> {
        match result {
            Ok(value) => Ok(value),
            Err(error) => {
                *self.connection.lock().await = None;
                Err(error.into())
            }
        }
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
