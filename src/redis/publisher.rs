//! The relay's sink: publishes batches to Redis, one script call a chunk of events.
//!
//! A chunk arrives whole, as a prefix, or not at all, and every reply is checked. Pipelined single commands
//! would reorder events on a partial failure, and an unchecked reply would count a refused event as
//! delivered.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use ::redis::streams::StreamRangeReply;
use ::redis::{AsyncCommands, RedisError, Script};
use chrono::Utc;

use super::connect::{ConnectError, Connected};
use super::envelope;
use super::keys::Keys;
use super::refusal::Refusal;
use super::reply_codes;
use super::settings::Settings;
use super::topic_heads::{TopicHead, TopicHeads};
use crate::event::{EventId, LogId, StreamId, Topic};
use crate::pluralize::pluralize;
use crate::relay::failure::{self, Remedy};
use crate::relay::{Batch, Delivery, Metrics, PublishError, PublishMode, Reached, Sink, StateHandle};
use crate::trace;

/// The format of the keys and entries that this program writes and reads: see `docs/redis.md`.
pub const FORMAT: u32 = 1;
/// The least number of topics whose heads are cached.
const TOPIC_HEADS: usize = 50_000;
/// The most payload bytes of one script call. Redis serves no other client during the call: about a
/// millisecond.
const CHUNK_BYTES: usize = 1024 * 1024;

/// Publishes to one Redis for one relay.
#[derive(Debug)]
pub struct Publisher {
    settings: Settings,
    keys: Keys,
    top_key: String,
    log: LogId,
    chunk_events: usize,
    script: Script,
    connection: Option<Connected>,
    heads: TopicHeads,
    /// The highest number that a call in this lead may have brought.
    taken: Option<StreamId>,
    metrics: Metrics,
    state: StateHandle,
}

/// The part of a batch that one script call takes.
#[derive(Debug, Clone, Copy)]
struct Chunk<'a> {
    deliveries: &'a [Delivery<'a>],
    first: StreamId,
    /// The last number that the chunk uses up, if it uses up any.
    through: Option<StreamId>,
    mode: PublishMode,
    lost: Option<StreamId>,
}

/// A topic of a chunk, as the script takes it.
struct TopicArguments<'a> {
    topic: &'a Topic,
    /// The id of the topic's event before the chunk; `None` if the script has to look it up.
    prev: Option<StreamId>,
    ttl_is_due: bool,
}

/// The script's answer: events done, verdict, detail.
type Answer = (usize, String, String);

impl Publisher {
    /// Makes a publisher for `relay` with at most `chunk_events` a call. It connects when it first publishes.
    pub fn new(settings: Settings, relay: &str, chunk_events: usize) -> Self {
        Self::under(settings.keys(), settings, relay, chunk_events)
    }

    /// As [`Publisher::new`], with other names than those of the settings.
    pub(super) fn under(keys: Keys, settings: Settings, relay: &str, chunk_events: usize) -> Self {
        Self {
            top_key: keys.top(relay),
            keys,
            log: LogId::nil(),
            chunk_events: chunk_events.max(1),
            script: Script::new(include_str!("publish.lua")),
            connection: None,
            heads: TopicHeads::new(TOPIC_HEADS, settings.history_ttl()),
            taken: None,
            metrics: Metrics::default(),
            state: StateHandle::default(),
            settings,
        }
    }

    /// Uses these metrics.
    #[must_use]
    pub fn with_metrics(mut self, metrics: Metrics) -> Self {
        self.metrics = metrics;
        self
    }

    /// Reports each answer to the relay's state, for its watchdog.
    #[must_use]
    pub fn with_state(mut self, state: StateHandle) -> Self {
        self.state = state;
        self
    }

    /// Takes the connection, or makes one. [`Publisher::judge`] puts it back.
    async fn connection(&mut self) -> Result<Connected, PublishError> {
        let version = self.settings.primary_version();
        // A server that is no longer the primary may still take writes.
        if let Some(connected) = self.connection.take().filter(|connected| connected.version == version) {
            return Ok(connected);
        }
        // The cached heads may be those of another server, or of this one before it lost data.
        self.heads.clear();
        self.settings.connect_for_long().await.map_err(|error| {
            let failure = match &error {
                // A changed password is the server's answer to a login, and not a broken connection.
                ConnectError::Refused { source, .. } => Refusal::of(source).failure,
                _ => failure::CONNECTION,
            };
            PublishError::retry(failure, error.to_string())
        })
    }

    /// Keeps the connection if it still works, and classifies an error.
    fn judge<T>(&mut self, connected: Connected, result: Result<T, RedisError>) -> Result<T, Refusal> {
        match result {
            Ok(value) => {
                self.connection = Some(connected);
                Ok(value)
            }
            Err(error) => {
                self.heads.clear();
                let refusal = Refusal::of(&error);
                // Dropped after a time-out, after it broke, and if its server is no longer the primary.
                if refusal.is_reply && refusal.failure.remedy == Remedy::SetAside {
                    self.connection = Some(connected);
                }
                Err(refusal)
            }
        }
    }

    async fn call(&mut self, chunk: Chunk<'_>, now: Instant) -> Result<Answer, PublishError> {
        let mut connected = self.connection().await?;
        let before = self.taken;
        // Noted before the call, which can be dropped in its middle.
        self.note_taken(chunk, chunk.deliveries.len());
        let traces = chunk.deliveries.iter().filter_map(|delivery| delivery.event.trace);
        let mut span = trace::publish(traces, chunk.deliveries.len());
        let begun = Instant::now();
        let answer = self.invocation(chunk, now).invoke_async::<Answer>(&mut connected.connection).await;
        if answer.is_ok() {
            self.metrics.publish_seconds.observe(begun.elapsed().as_secs_f64());
        }
        self.state.progressed();
        let answer = self.judge(connected, answer);
        match &answer {
            Ok((_, verdict, _)) if verdict == "OK" => {}
            Ok((arrived, ..)) => {
                self.taken = before;
                self.note_taken(chunk, *arrived);
                span.failed("refused");
            }
            Err(refusal) => {
                if refusal.is_reply {
                    // The server has not run the script.
                    self.taken = before;
                }
                span.failed(refusal.failure.class);
            }
        }
        answer.map_err(Refusal::retry)
    }

    /// Notes that so many of the chunk's events may have arrived.
    fn note_taken(&mut self, chunk: Chunk<'_>, events: usize) {
        if chunk.mode == PublishMode::Normal {
            self.taken = self.taken.max(chunk.deliveries[..events].last().map(|delivery| delivery.id));
        }
    }

    fn invocation(&self, chunk: Chunk<'_>, now: Instant) -> ::redis::ScriptInvocation<'_> {
        let mut invocation = self.script.prepare_invoke();
        invocation.key(&self.top_key).key(self.keys.log());
        let (topics, indexes) = self.topics_of(chunk, now);
        invocation
            .arg(FORMAT)
            .arg(self.log.to_string())
            .arg(chunk.first.epoch)
            .arg(chunk.first.seq)
            .arg(chunk.through.map_or(0, |id| id.seq))
            .arg(self.settings.history_ttl_seconds.max(1))
            .arg(word_of(chunk.mode))
            .arg(chunk.lost.map_or_else(String::new, |lost| lost.to_string()))
            .arg(chunk.deliveries.first().map_or(chunk.first.epoch, |delivery| delivery.id.epoch))
            .arg(topics.len());
        for TopicArguments { topic, prev, ttl_is_due } in &topics {
            invocation
                .key(self.keys.history(topic))
                .arg(self.keys.public(topic))
                .arg(prev.map_or_else(|| "?".to_owned(), |prev| prev.to_string()))
                .arg(u8::from(*ttl_is_due));
        }
        for (Delivery { id, event }, index) in chunk.deliveries.iter().zip(indexes) {
            invocation
                .arg(index)
                .arg(id.seq)
                .arg(event.event_id.to_string())
                .arg(event.event_type.as_str())
                .arg(&event.payload)
                .arg(self.settings.history_length(event.payload.len()))
                .arg(envelope::facts_of(event, chunk.mode.is_restore()));
        }
        invocation
    }

    /// Returns the topics of a chunk, each once, and for each event the index of its topic, from 1.
    fn topics_of<'a>(&self, chunk: Chunk<'a>, now: Instant) -> (Vec<TopicArguments<'a>>, Vec<usize>) {
        let mut topics = Vec::new();
        let mut index_of: HashMap<&Topic, usize> = HashMap::new();
        let mut indexes = Vec::with_capacity(chunk.deliveries.len());
        for Delivery { id, event } in chunk.deliveries {
            let index = *index_of.entry(&event.topic).or_insert_with(|| {
                let head = self.heads.get(&event.topic);
                topics.push(TopicArguments {
                    topic: &event.topic,
                    // If a chunk is published once more, the head may be this event's own id, or a later one.
                    prev: head.map(|head| head.last).filter(|last| last < id),
                    ttl_is_due: self.heads.ttl_is_due(head, now),
                });
                topics.len()
            });
            indexes.push(index);
        }
        (topics, indexes)
    }

    /// Caches the heads that a chunk left behind. `now` is the time that its call used to decide on TTLs.
    fn remember(&mut self, deliveries: &[Delivery<'_>], now: Instant) {
        for Delivery { id, event } in deliveries {
            let ttl_set = match self.heads.get(&event.topic) {
                Some(head) if !self.heads.ttl_is_due(Some(head), now) => head.ttl_set,
                _ => now,
            };
            self.heads.set(&event.topic, TopicHead { last: *id, ttl_set });
        }
    }

    /// Measures a published chunk, with one look at the clock for all of its events.
    fn measure(&self, chunk: Chunk<'_>, receivers: &str) {
        if let Some((live, public)) = receivers.split_once(' ') {
            self.metrics.received_by(live.parse().unwrap_or(0), public.parse().unwrap_or(0));
        }
        for Delivery { id, event } in chunk.deliveries {
            tracing::trace!(%id, event = %event.event_id, topic = %event.topic, "published");
        }
        if chunk.mode != PublishMode::Normal {
            // The age of these events says nothing about the delay of new ones.
            return;
        }
        let now = Utc::now();
        for delivery in chunk.deliveries {
            let took = (now - delivery.event.created_at).to_std().unwrap_or_default();
            self.metrics.commit_to_publish_seconds.observe(took.as_secs_f64());
        }
    }

    /// Reads the owner of the keys and the relay's top.
    async fn owner_and_top(&mut self) -> Result<(Owner, Top), PublishError> {
        let mut connected = self.connection().await?;
        let connection = &mut connected.connection;
        let found = async {
            // Two calls and not a pipeline, whose error lacks the server's code.
            let owner = connection.hmget(self.keys.log(), &["format", "log"]).await?;
            Ok((owner, connection.hmget(&self.top_key, &["id", "event"]).await?))
        }
        .await;
        self.judge(connected, found).map_err(Refusal::retry)
    }

    /// Waits until enough replicas have the published events. If too few have, the batch is published again.
    async fn replicated(&mut self) -> Result<(), PublishError> {
        let wanted = self.settings.min_replicas;
        if wanted == 0 {
            return Ok(());
        }
        let mut connected = self.connection().await?;
        let connection = &mut connected.connection;
        // This is less than the connection's time-out, so that the server's count comes first.
        let timeout_ms = self.settings.response_timeout_ms / 2;
        let count =
            ::redis::cmd("WAIT").arg(wanted).arg(timeout_ms.max(1)).query_async::<u32>(connection).await;
        let count = self.judge(connected, count).map_err(Refusal::retry)?;
        if count >= wanted {
            return Ok(());
        }
        Err(PublishError::retry(
            reply_codes::classify("NOREPLICAS"),
            format!(
                "Redis: the batch has reached {} and [redis] min_replicas wants {wanted}",
                pluralize(count.into(), "replica")
            ),
        ))
    }
}

/// The format and the log's identity in the owner's key.
type Owner = (Option<String>, Option<String>);
/// The number and the event of a relay's top.
type Top = (Option<String>, Option<String>);

/// Returns the next part of a batch: bounded in events and bytes, and empty only if the batch is.
fn chunk_of<'b, 'e>(rest: &'b [Delivery<'e>], events: usize) -> &'b [Delivery<'e>] {
    let mut bytes = 0;
    let fits = rest
        .iter()
        .take(events)
        .take_while(|delivery| {
            bytes += delivery.event.payload.len();
            bytes <= CHUNK_BYTES
        })
        .count();
    &rest[..fits.max(1).min(rest.len())]
}

impl Sink for Publisher {
    fn begin_lead(&mut self, log: LogId) {
        self.log = log;
        self.heads.clear();
        self.taken = None;
    }

    async fn publish(&mut self, batch: Batch<'_>) -> Result<(), PublishError> {
        if !batch.has_one_epoch() {
            return Err(PublishError::Stop(format!(
                "a batch from {} on mixes epochs, and none of it was published: report this as a bug of \
                 aftercommit",
                batch.first
            )));
        }
        if batch.mode.is_restore() {
            // This Redis has lost data, and the cached heads are from before the loss.
            self.heads.clear();
        }
        let all = batch.deliveries;
        let (mut done, mut first) = (0, batch.first);
        // One call also for a batch without events, because it uses up numbers.
        loop {
            let deliveries = chunk_of(&all[done..], self.chunk_events);
            let is_last = done + deliveries.len() == all.len();
            let through = match (batch.through, deliveries.last()) {
                (Some(_), Some(_)) if !is_last && batch.mode.is_release() => None,
                (Some(_), Some(last)) if !is_last => Some(last.id),
                (through, _) => through,
            };
            let chunk = Chunk { deliveries, first, through, mode: batch.mode, lost: batch.lost };
            let now = Instant::now();
            let (arrived, verdict, detail) = self.call(chunk, now).await?;
            if verdict != "OK" {
                // Only a prefix arrived, so the cached heads of this chunk's topics may be behind.
                self.heads.clear();
                let refused = deliveries.get(arrived).map(|delivery| &delivery.event.topic);
                return Err(self.refusal(done + arrived, refused, &verdict, &detail));
            }
            self.measure(chunk, &detail);
            self.remember(deliveries, now);
            done += deliveries.len();
            if is_last {
                return self.replicated().await;
            }
            first = through.map_or(first, |through| StreamId::new(through.epoch, through.seq + 1));
        }
    }

    async fn reached(&mut self) -> Result<Option<Reached>, PublishError> {
        let ((format, log), (id, event)) = self.owner_and_top().await?;
        if let Some(format) = format.filter(|format| *format != FORMAT.to_string()) {
            return Err(self.other_format(&format));
        }
        if let Some(log) = log.filter(|log| *log != self.log.to_string()) {
            return Err(self.foreign(&log));
        }
        let Some(id) = id else { return Ok(None) };
        let id = id.parse().map_err(|_| {
            PublishError::Stop(format!(
                "the key {} in Redis holds the id '{id}', which no relay wrote: delete that key, and the \
                 relay publishes again what Redis then lacks",
                self.top_key
            ))
        })?;
        Ok(Some(Reached { id, event: event.and_then(|event| EventId::parse_str(&event).ok()) }))
    }

    async fn newest_of(&mut self, topic: &Topic) -> Result<Option<Reached>, PublishError> {
        let mut connected = self.connection().await?;
        let history = self.keys.history(topic);
        let newest =
            connected.connection.xrevrange_count::<_, _, _, _, StreamRangeReply>(&history, "+", "-", 1);
        let newest = newest.await;
        match self.judge(connected, newest) {
            // An entry whose id cannot be read was not written by a relay.
            Ok(reply) => Ok(reply.ids.first().and_then(|entry| {
                let event = entry.get::<String>("event").and_then(|event| EventId::parse_str(&event).ok());
                Some(Reached { id: entry.id.parse().ok()?, event })
            })),
            Err(Refusal { failure, text, is_reply: true }) if failure.class == "wrongtype" => {
                Err(PublishError::Poison { at: 0, reason: format!("{text} ({history})") })
            }
            Err(refusal) => Err(refusal.retry()),
        }
    }

    fn may_have_taken(&self, id: StreamId) -> bool {
        self.taken.is_some_and(|taken| id <= taken)
    }

    fn keeps(&self) -> Duration {
        self.settings.history_ttl()
    }
}

impl Publisher {
    /// Turns an answer other than OK into an error about the event at index `at`, which is of `topic`.
    fn refusal(&self, at: usize, topic: Option<&Topic>, verdict: &str, detail: &str) -> PublishError {
        let key = topic.map_or_else(|| self.top_key.clone(), |topic| self.keys.history(topic));
        match verdict {
            "GAP" => PublishError::Forgot { reached: detail.to_owned() },
            "FORMAT" => self.other_format(detail),
            "FOREIGN" => self.foreign(detail),
            "AHEAD" => PublishError::Stop(format!(
                "Redis is at {detail}, of a later epoch than Postgres: Postgres was restored from a backup. \
                 Run `aftercommit rebase`"
            )),
            "CONFLICT" => PublishError::Poison {
                at,
                reason: format!(
                    "another entry stands in {key} at or above the number of this event ({detail}), which no \
                     relay of this log wrote: delete or rename that key"
                ),
            },
            _ => {
                let failure = reply_codes::classify(detail);
                let reason =
                    if detail.contains(&key) { detail.to_owned() } else { format!("{detail} ({key})") };
                if verdict == "ERROR" && failure.remedy == Remedy::SetAside {
                    return PublishError::Poison { at, reason: format!("{reason}{}", advice(failure.class)) };
                }
                PublishError::retry(failure, format!("Redis: {reason}"))
            }
        }
    }

    fn foreign(&self, log: &str) -> PublishError {
        PublishError::Stop(format!(
            "the keys of this Redis belong to another log ({} names {log}; this log is {}): two logs cannot \
             share them. Give one of the two services a namespace of its own ([redis] namespace, for its \
             relay and its sse processes), or another Redis. If this database replaces that log for good, \
             delete that key",
            self.keys.log(),
            self.log
        ))
    }

    fn other_format(&self, format: &str) -> PublishError {
        PublishError::Stop(format!(
            "the keys of this Redis have format {format}, and this aftercommit knows format {FORMAT}: run \
             the version of aftercommit that wrote them, or a later one (see {})",
            self.keys.log()
        ))
    }
}

/// The mode's name in the script.
fn word_of(mode: PublishMode) -> &'static str {
    match mode {
        PublishMode::Normal => "normal",
        PublishMode::Release => "release",
        PublishMode::Restore => "restore",
        PublishMode::RestoreRelease => "restore-release",
    }
}

/// Advice to an operator for an event that is refused with an error of this class.
fn advice(class: &str) -> &'static str {
    match class {
        "wrongtype" => ": another program uses this key; delete or rename it",
        "noperm" => ": give the relay's Redis user this right",
        "toolarge" => ": raise Redis's limit",
        _ => "",
    }
}
