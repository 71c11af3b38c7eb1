//! Reads the history of a topic: its newest entries, the entries from an id on, and what its absence means.
//! Never writes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use ::redis::streams::{StreamId as RawEntry, StreamRangeReply};
use ::redis::{Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, ServerErrorKind};
use futures_util::future::join_all;

use super::connect_error::ConnectError;
use super::continuity::{Absence, Link, Loss, Prev};
use super::endpoint::Endpoint;
use super::error_text::error_text;
use super::kept_times::KeptTimes;
use super::keys::Keys;
use super::links::ConnectionCache;
use super::reply_codes;
use super::settings::Settings;
use super::slots::{SlotSet, tag_of};
use crate::event::{EventId, EventType, LogId, StreamId, Topic};

/// By how much the key `…:begun` outlives the history, in milliseconds, as `publish.lua` sets it. With more
/// time left, the history has not expired.
const BEGUN_OUTLIVES_MS: i64 = 60_000;
/// PTTL of a key that does not exist.
const NO_KEY: i64 = -2;

/// The most entries of one read of UUIDs.
const UUID_PAGE: usize = 1000;

/// An entry of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The event's place.
    pub id: StreamId,
    /// The topic's event before it.
    pub prev: Prev,
    /// The transaction of the event; `None` if the entry does not name it.
    pub xid: Option<u64>,
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
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// There is no connection. Every caller that waited for the same attempt gets the same error.
    #[error(transparent)]
    Connect(#[from] Arc<ConnectError>),
    /// Redis failed, or did not answer in time.
    #[error("reading a history from Redis failed: {}", error_text(.0))]
    Redis(#[from] RedisError),
    /// The server of the cluster that has this history does not answer.
    #[error("{0}")]
    Server(String),
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
            Self::Redis(error) => error.code().is_some_and(|code| !reply_codes::is_about_slots(code)),
            Self::Id { .. } => true,
            Self::Connect(_) | Self::Server(_) => false,
        }
    }
}

/// Reads histories, each at the server that has it.
#[derive(Debug)]
pub struct History {
    keys: Keys,
    links: ConnectionCache,
    ttl: Duration,
    /// As the relay has said last; `None` if it was not asked yet.
    kept: Mutex<Option<KeptTimes>>,
    has_logged_ttl: Once,
}

impl History {
    /// Makes a reader that has not connected yet.
    pub fn new(settings: Settings) -> Self {
        let (ttl, kept, has_logged_ttl) = (settings.history_ttl(), Mutex::default(), Once::new());
        Self { keys: settings.keys(), links: ConnectionCache::new(settings), ttl, kept, has_logged_ttl }
    }

    /// For how long the history of an event of this time (milliseconds since 1970) or a later one is kept at
    /// least, going by this process's settings and by [`Self::loss`]'s last look at what the relay says.
    pub fn kept_since(&self, at_ms: u64) -> Duration {
        self.known_times().unwrap_or_default().since(at_ms, self.ttl)
    }

    /// Whether [`Self::loss`] has looked.
    pub fn knows_times(&self) -> bool {
        self.known_times().is_some()
    }

    fn known_times(&self) -> Option<KeptTimes> {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the newest entries of a topic, oldest of them first, at most `count`.
    ///
    /// # Errors
    /// Returns [`ReadError::Connect`] if there is no connection, [`ReadError::Redis`] if Redis fails or does
    /// not answer in time, and [`ReadError::Id`] if an entry's id cannot be read.
    pub async fn newest(&self, topic: &Topic, count: usize) -> Result<Vec<Entry>, ReadError> {
        self.newest_before(topic, None, count).await
    }

    /// Returns the newest entries of a topic before this id, or the newest of all, oldest of them first, at
    /// most `count`.
    ///
    /// # Errors
    /// Fails as [`Self::newest`].
    pub async fn newest_before(
        &self,
        topic: &Topic,
        id: Option<StreamId>,
        count: usize,
    ) -> Result<Vec<Entry>, ReadError> {
        let history = self.keys.history(topic);
        let end = id.map_or_else(|| "+".to_owned(), |id| format!("({id}"));
        let reply = self.ask(&history, Cmd::xrevrange_count(&history, end, "-", count)).await?;
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
        let history = self.keys.history(topic);
        let start = id.map_or_else(|| "-".to_owned(), |id| id.to_string());
        let reply = self.ask(&history, Cmd::xrange_count(&history, start, "+", count)).await?;
        entries_of(topic, reply)
    }

    /// Returns the UUIDs of the events in a topic's history after `id`, in order, as far as the history keeps
    /// them. Clients may have received these events.
    ///
    /// # Errors
    /// Returns [`ReadError::Connect`] if there is no connection, and [`ReadError::Redis`] if Redis fails or
    /// does not answer in time.
    pub async fn uuids_after(&self, topic: &Topic, id: StreamId) -> Result<Vec<EventId>, ReadError> {
        let history = self.keys.history(topic);
        let (mut event_ids, mut start) = (Vec::new(), format!("({id}"));
        loop {
            let page: StreamRangeReply =
                self.ask(&history, Cmd::xrange_count(&history, &start, "+", UUID_PAGE)).await?;
            let Some(last) = page.ids.last() else { return Ok(event_ids) };
            start = format!("({}", last.id);
            // An entry without an event's UUID was written by another program.
            let identity = |entry: &RawEntry| EventId::parse_str(&entry.get::<String>("event")?).ok();
            event_ids.extend(page.ids.iter().filter_map(identity));
        }
    }

    /// Returns the newest id of each topic, in one round trip to each server, and `None` for a topic without
    /// a history. A topic that Redis refuses is an error of its own, and so is each topic of a server that
    /// does not answer.
    ///
    /// # Errors
    /// Returns [`ReadError::Connect`] if there is no connection, and [`ReadError::Redis`] if Redis does not
    /// answer at all.
    pub async fn tips(
        &self,
        topics: &[Topic],
    ) -> Result<Vec<Result<Option<StreamId>, ReadError>>, ReadError> {
        let Some(map) = self.links.map().await? else { return self.tips_at(None, topics).await };
        let mut by_server: HashMap<Option<&Endpoint>, Vec<usize>> = HashMap::new();
        for (at, topic) in topics.iter().enumerate() {
            by_server.entry(map.primary_of(&self.keys.history(topic))).or_default().push(at);
        }
        let mut tips: Vec<_> = topics.iter().map(|_| Ok(None)).collect();
        for (server, at) in by_server {
            let of_server: Vec<Topic> = at.iter().map(|at| topics[*at].clone()).collect();
            match self.tips_at(server.cloned(), &of_server).await {
                Ok(found) => at.into_iter().zip(found).for_each(|(at, tip)| tips[at] = tip),
                Err(error) => {
                    let text = error.to_string();
                    at.into_iter().for_each(|at| tips[at] = Err(ReadError::Server(text.clone())));
                }
            }
        }
        Ok(tips)
    }

    /// Sends a command about a key to the server that has it. In the middle of a slot's move, that server
    /// names the next one for a key that it does not have (any more).
    async fn ask<T: FromRedisValue>(&self, key: &str, command: Cmd) -> Result<T, ReadError> {
        let mut lent = self.links.to(key).await?;
        let reply = command.query_async(&mut lent.connection).await;
        match lent.checked(reply) {
            Err(error) => {
                let next = next_server(&error).ok_or(error)?;
                let mut lent = self.links.at(Some(next)).await?;
                let mut asking = ::redis::pipe();
                asking.cmd("ASKING").ignore().add_command(command);
                let reply = asking.query_async(&mut lent.connection).await;
                let (reply,) = lent.checked(reply)?;
                Ok(reply)
            }
            reply => Ok(reply?),
        }
    }

    async fn tips_at(
        &self,
        server: Option<Endpoint>,
        topics: &[Topic],
    ) -> Result<Vec<Result<Option<StreamId>, ReadError>>, ReadError> {
        let mut lent = self.links.at(server).await?;
        let mut pipeline = ::redis::pipe();
        for topic in topics {
            pipeline.xrevrange_count(self.keys.history(topic), "+", "-", 1);
        }
        let replies = pipeline.ignore_errors().query_async(&mut lent.connection).await;
        let replies: Vec<RedisResult<StreamRangeReply>> = lent.checked(replies)?;
        let tips = topics.iter().zip(replies).map(async |(topic, reply)| {
            let newest = match lent.checked(reply) {
                Err(error) if next_server(&error).is_some() => self.newest(topic, 1).await,
                Err(error) => Err(error.into()),
                Ok(reply) => entries_of(topic, reply),
            };
            newest.map(|newest| newest.first().map(|entry| entry.id))
        });
        Ok(join_all(tips).await)
    }

    /// Returns the facts about a topic without a history, or `None` if it has one.
    ///
    /// # Errors
    /// Returns [`ReadError::Connect`] if there is no connection, and [`ReadError::Redis`] if Redis fails or
    /// does not answer in time.
    pub async fn absence(&self, topic: &Topic) -> Result<Option<Absence>, ReadError> {
        let (history, begun) = (self.keys.history(topic), self.keys.begun(topic));
        let mut lent = self.links.to(&history).await?;
        let answer: RedisResult<(i64, i64)> = ::redis::pipe()
            // Both in one transaction, so that no history begins between the two look-ups.
            .atomic()
            .pttl(&history)
            .pttl(&begun)
            .query_async(&mut lent.connection)
            .await;
        let (history_left, begun_left) = match lent.checked(answer) {
            // In the middle of a slot's move, each key is where it is. A history that begins between the two
            // look-ups is seen by the second one.
            Err(error) if error.code() == Some("EXECABORT") => {
                let begun_left = self.ask(&begun, Cmd::pttl(&begun)).await?;
                (self.ask(&history, Cmd::pttl(&history)).await?, begun_left)
            }
            answer => answer?,
        };
        if history_left != NO_KEY {
            return Ok(None);
        }
        // Read last, so that a loss that is recorded meanwhile is seen.
        let owner = self.owner_of(&history).await?;
        let has_expired = (0..=BEGUN_OUTLIVES_MS).contains(&begun_left);
        Ok(Some(Absence {
            has_vanished: begun_left != NO_KEY && !has_expired,
            has_expired,
            lost_ms: owner.loss.map(|loss| loss.at_ms),
        }))
    }

    /// Returns the identity of the log whose events are here; `None` if no relay has published anything. Of a
    /// cluster, the first server that answers is asked.
    ///
    /// # Errors
    /// Returns [`ReadError::Connect`] if there is no connection, and [`ReadError::Redis`] if Redis fails or
    /// does not answer in time.
    pub async fn log(&self) -> Result<Option<LogId>, ReadError> {
        let Some(map) = self.links.map().await? else {
            return self.log_at(&self.keys.log()).await;
        };
        let mut answer = Ok(None);
        for slots in map.slots().into_values() {
            match self.log_at(&self.log_key(&slots)).await {
                Ok(Some(log)) => return Ok(Some(log)),
                Ok(None) => {}
                Err(error) => answer = Err(error),
            }
        }
        answer
    }

    async fn log_at(&self, key: &str) -> Result<Option<LogId>, ReadError> {
        let log: Option<String> = self.ask(key, Cmd::hget(key, "log")).await?;
        Ok(log.and_then(|log| log.parse().ok()))
    }

    /// The key with the owner of a server of a cluster that has these slots.
    fn log_key(&self, slots: &SlotSet) -> String {
        self.keys.log_at(&tag_of(slots.highest().unwrap_or_default()))
    }

    /// Returns the newest loss that repairs have recorded, if there is one. Notes for how long the relay
    /// keeps histories.
    ///
    /// # Errors
    /// Returns [`ReadError::Connect`] if there is no connection, and [`ReadError::Redis`] if Redis fails or
    /// does not answer in time.
    pub async fn loss(&self) -> Result<Option<Loss>, ReadError> {
        let Some(map) = self.links.map().await? else {
            let owner = self.owner_in(&self.keys.log()).await?;
            self.note_times(owner.times);
            return Ok(owner.loss);
        };
        let mut newest: Option<Loss> = None;
        let mut times = KeptTimes::default();
        let mut answer = Ok(());
        for slots in map.slots().into_values() {
            match self.owner_in(&self.log_key(&slots)).await {
                Ok(found) => {
                    newest = newest.max(found.loss);
                    times = times.and(found.times);
                }
                // The servers that answer are heard all the same. Of the others, what was known holds.
                Err(error) => {
                    times = times.and(self.known_times().unwrap_or_default());
                    answer = Err(error);
                }
            }
        }
        self.note_times(times);
        if newest.is_some() { Ok(newest) } else { answer.map(|()| None) }
    }

    fn note_times(&self, times: KeptTimes) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(times);
        self.compare_ttl(times.ttl);
    }

    /// The record of the owner at the server of this history.
    async fn owner_of(&self, history: &str) -> Result<Owner, ReadError> {
        let key = match self.links.map().await? {
            None => self.keys.log(),
            Some(map) => {
                let slots = map.primary_of(history).and_then(|primary| map.slots().remove(primary));
                self.log_key(&slots.unwrap_or_default())
            }
        };
        self.owner_in(&key).await
    }

    async fn owner_in(&self, key: &str) -> Result<Owner, ReadError> {
        type Fields = (Option<String>, Option<String>, Option<u64>, Option<u64>, Option<u64>);
        let fields = ["lost", "lost_at", "ttl", "raised_at", "kept_before"];
        let (through, at, ttl, raised_ms, before): Fields = self.ask(key, Cmd::hmget(key, &fields)).await?;
        let through = through.and_then(|through| through.parse().ok());
        // As in the script, a loss without a time that can be read is a new one.
        let at_ms = at.and_then(|at| at.parse().ok()).unwrap_or(i64::MAX.cast_unsigned());
        let loss = through.map(|through| Loss { through, at_ms });
        Ok(Owner { loss, times: KeptTimes { ttl, raised_ms, before } })
    }

    /// Logs once if the relay keeps histories for less time than this process assumes. If so, an old place
    /// would seem to prove that no event has come since.
    fn compare_ttl(&self, of_relay: Option<u64>) {
        let own = self.ttl.as_secs();
        let Some(of_relay) = of_relay.filter(|ttl| *ttl < own) else { return };
        self.has_logged_ttl.call_once(|| {
            tracing::error!(
                of_relay,
                own,
                "the relay keeps histories for less time than this process takes them to live: set \
                 redis.history_ttl_seconds to the same value for relay and sse"
            );
        });
    }

    /// Checks that Redis answers; of a cluster, that one of its servers does.
    ///
    /// # Errors
    /// Returns [`ReadError::Connect`] if there is no connection, and [`ReadError::Redis`] if Redis fails or
    /// does not answer in time.
    pub async fn ping(&self) -> Result<(), ReadError> {
        let servers = match self.links.map().await? {
            None => vec![None],
            Some(map) => map.primaries().iter().cloned().map(Some).collect(),
        };
        let mut answer = Ok(());
        for server in servers {
            answer = self.ping_at(server).await;
            if answer.is_ok() {
                break;
            }
        }
        answer
    }

    async fn ping_at(&self, server: Option<Endpoint>) -> Result<(), ReadError> {
        let mut lent = self.links.at(server).await?;
        let pong: Result<String, RedisError> = ::redis::cmd("PING").query_async(&mut lent.connection).await;
        Ok(lent.checked(pong).map(|_pong| ())?)
    }
}

/// The facts beside a server's histories that concern all of them.
#[derive(Debug, Clone, Copy)]
struct Owner {
    loss: Option<Loss>,
    times: KeptTimes,
}

/// The server that an ASK names.
fn next_server(error: &RedisError) -> Option<Endpoint> {
    let is_ask = error.kind() == ErrorKind::Server(ServerErrorKind::Ask);
    let (address, _slot) = error.redirect_node().filter(|_| is_ask)?;
    let (host, port) = address.rsplit_once(':')?;
    // An ASK without a host means the host that was asked, which is not known here.
    Some(Endpoint { host: host.to_owned(), port: port.parse().ok()? }).filter(|it| !it.host.is_empty())
}

fn entries_of(topic: &Topic, reply: StreamRangeReply) -> Result<Vec<Entry>, ReadError> {
    reply.ids.iter().map(|raw| entry_of(topic, raw)).collect()
}

fn entry_of(topic: &Topic, raw: &RawEntry) -> Result<Entry, ReadError> {
    let id = raw.id.parse().map_err(|_| ReadError::Id { topic: topic.clone(), id: raw.id.clone() })?;
    let kind = raw.get::<String>("type").and_then(|kind| EventType::new(kind).ok());
    let prev = Prev::parse(raw.get::<String>("prev").as_deref());
    let xid = raw.get::<String>("xid").and_then(|xid| xid.parse().ok());
    Ok(Entry { id, prev, xid, event: kind.zip(raw.get("payload")) })
}
