//! The relay's sink: publishes batches to Redis, one script call for a chunk of events.
//!
//! A chunk lands as a prefix or not at all, and every reply is checked: pipelined single commands would reorder on a
//! partial failure, and an unchecked reply would count as delivered what Redis refused.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncCommands, ErrorKind, RedisError, Script};
use chrono::Utc;

use super::complaint::{reply, said};
use super::envelope;
use super::keys;
use super::settings::{ConnectError, Settings};
use super::tails::{Tail, Tails};
use crate::counted::counted;
use crate::event::{EventId, StreamId, Topic};
use crate::relay::failure::{self, Remedy};
use crate::relay::{Batch, Delivery, Metrics, Occasion, PublishError, Reached, Sink, StateHandle};
use crate::trace;

/// How many topics' tails are remembered, at least.
const TAILS: usize = 50_000;
/// Payload bytes of one script call: Redis serves nobody else while it runs one, so about a millisecond's worth.
const CHUNK_BYTES: usize = 1024 * 1024;

/// Publishes to one Redis for one relay.
#[derive(Debug)]
pub struct Publisher {
    settings: Settings,
    top_key: String,
    chunk_events: usize,
    script: Script,
    connection: Option<MultiplexedConnection>,
    tails: Tails,
    metrics: Metrics,
    state: StateHandle,
}

/// Part of a batch: what one script call takes.
#[derive(Debug, Clone, Copy)]
struct Chunk<'a> {
    deliveries: &'a [Delivery<'a>],
    first: StreamId,
    /// The last number that it uses up, if it uses up any.
    through: Option<StreamId>,
    told_before: bool,
}

/// The script's answer.
type Answer = (usize, String, String);

impl Publisher {
    /// A publisher for `relay` that hands Redis at most `chunk_events` at once. It connects when it first publishes.
    pub fn new(settings: Settings, relay: &str, chunk_events: usize) -> Self {
        Self {
            top_key: keys::top(relay),
            chunk_events: chunk_events.max(1),
            script: Script::new(include_str!("publish.lua")),
            connection: None,
            tails: Tails::new(TAILS, settings.history_ttl()),
            metrics: Metrics::default(),
            state: StateHandle::default(),
            settings,
        }
    }

    /// Counts and measures there.
    #[must_use]
    pub fn with_metrics(mut self, metrics: Metrics) -> Self {
        self.metrics = metrics;
        self
    }

    /// Lets whoever watches the relay know of each answer.
    #[must_use]
    pub fn with_state(mut self, state: StateHandle) -> Self {
        self.state = state;
        self
    }

    /// The connection, made if there is none. Give it back with [`Publisher::judge`].
    async fn connection(&mut self) -> Result<MultiplexedConnection, PublishError> {
        if let Some(connection) = self.connection.take() {
            return Ok(connection);
        }
        // Whatever was known of the histories may be of another server, or of this one before it lost something.
        self.tails.clear();
        self.settings.connect().await.map_err(|error| {
            let failure = match &error {
                // What the server answers to a login or a greeting: a password that has changed is not a broken line.
                ConnectError::Refused { source, .. } => Refusal::of(source).failure,
                ConnectError::NoUrl | ConnectError::Url(_) => failure::CONNECTION,
            };
            PublishError::retry(failure, error.to_string())
        })
    }

    /// Keeps the connection if it is as good as before, and turns an error into what to do about it.
    fn judge<T>(
        &mut self,
        connection: MultiplexedConnection,
        result: Result<T, RedisError>,
    ) -> Result<T, Refusal> {
        match result {
            Ok(value) => {
                self.connection = Some(connection);
                Ok(value)
            }
            Err(error) => {
                self.tails.clear();
                let refusal = Refusal::of(&error);
                // Not after a timeout or a broken connection; nor when the server at its end is no longer the primary.
                if refusal.is_reply && refusal.failure.remedy == Remedy::SetAside {
                    self.connection = Some(connection);
                }
                Err(refusal)
            }
        }
    }

    async fn call(&mut self, chunk: Chunk<'_>, now: Instant) -> Result<Answer, CallError> {
        let mut connection = self.connection().await.map_err(CallError::Publish)?;
        let traces = chunk.deliveries.iter().filter_map(|delivery| delivery.event.trace);
        let mut span = trace::publish(traces, chunk.deliveries.len());
        let begun = Instant::now();
        let answer = self.invocation(chunk, now).invoke_async::<Answer>(&mut connection).await;
        if answer.is_ok() {
            self.metrics.publish_seconds.observe(begun.elapsed().as_secs_f64());
        }
        self.state.turned();
        let answer = self.judge(connection, answer);
        match &answer {
            Ok((_, verdict, _)) if verdict == "OK" => {}
            Ok(_) => span.failed("refused"),
            Err(refusal) => span.failed(refusal.failure.class),
        }
        answer.map_err(CallError::Refused)
    }

    fn invocation(&self, chunk: Chunk<'_>, now: Instant) -> ::redis::ScriptInvocation<'_> {
        let mut invocation = self.script.prepare_invoke();
        invocation.key(&self.top_key);
        let mut streams = 0;
        invocation
            .arg(chunk.first.epoch)
            .arg(chunk.first.seq)
            .arg(chunk.through.map_or(0, |id| id.seq))
            .arg(self.settings.history_max_events)
            .arg(self.settings.history_ttl_seconds.max(1))
            .arg(if chunk.told_before { "1" } else { "0" });
        // Where a topic's last id is in this very chunk, that is the previous one.
        let mut in_chunk: HashMap<&Topic, (usize, StreamId)> = HashMap::new();
        for Delivery { id, event } in chunk.deliveries {
            let before = in_chunk.get(&event.topic).copied();
            // Of a chunk that is published once more the tail may be this event's own, or a later one's.
            let tail = self.tails.get(&event.topic).filter(|tail| tail.last < *id);
            let index = before.map_or_else(
                || {
                    streams += 1;
                    invocation.key(keys::history(&event.topic));
                    streams + 1
                },
                |(index, _)| index,
            );
            let previous = match before {
                Some((_, last)) => last.to_string(),
                None => tail.map_or("?".to_owned(), |tail| tail.last.to_string()),
            };
            let history = match (before, tail) {
                (Some(_), _) => "kept",
                (None, Some(tail)) => self.tails.history_of(tail, now),
                (None, None) => "new",
            };
            invocation
                .arg(index)
                .arg(event.topic.as_str())
                .arg(id.seq)
                .arg(event.event_id.to_string())
                .arg(event.event_type.as_str())
                .arg(&event.payload)
                .arg(previous)
                .arg(history)
                .arg(envelope::facts_of(event));
            in_chunk.insert(&event.topic, (index, *id));
        }
        invocation
    }

    /// Remembers the tails that a published chunk left behind. `now` is what the chunk's call went by: a TTL that has
    /// become due since was not set by it.
    fn remember(&mut self, deliveries: &[Delivery<'_>], now: Instant) {
        for Delivery { id, event } in deliveries {
            let ttl_set = match self.tails.get(&event.topic) {
                Some(tail) if !self.tails.ttl_is_due(&event.topic, now) => tail.ttl_set,
                _ => now,
            };
            self.tails.set(&event.topic, Tail { last: *id, ttl_set });
        }
    }

    /// Measures a chunk that Redis has: one look at the clock for all of its events.
    fn measure(&self, chunk: Chunk<'_>, occasion: Occasion, told: &str) {
        if let Some((live, public)) = told.split_once(' ') {
            self.metrics.told(live.parse().unwrap_or(0), public.parse().unwrap_or(0));
        }
        for Delivery { id, event } in chunk.deliveries {
            tracing::trace!(%id, event = %event.event_id, topic = %event.topic, "published");
        }
        if occasion != Occasion::Turn {
            return; // How long these took says nothing about how long events take.
        }
        let now = Utc::now();
        for delivery in chunk.deliveries {
            let took = (now - delivery.event.created_at).to_std().unwrap_or_default();
            self.metrics.commit_to_publish_seconds.observe(took.as_secs_f64());
        }
    }

    /// Whether the error of a call with one event is about that event: not if the relay's own key is forbidden too.
    async fn is_of_the_event(&mut self, refusal: &Refusal) -> bool {
        refusal.is_reply && refusal.failure.remedy == Remedy::SetAside && self.top().await.is_ok()
    }

    async fn top(&mut self) -> Result<Option<String>, PublishError> {
        let mut connection = self.connection().await?;
        let top = connection.get(&self.top_key).await;
        self.judge(connection, top).map_err(Refusal::retry)
    }

    /// Waits until enough replicas have what was published. Too few is a failure: the batch comes again as a repeat.
    async fn replicated(&mut self) -> Result<(), PublishError> {
        let wanted = self.settings.min_replicas;
        if wanted == 0 {
            return Ok(());
        }
        let mut connection = self.connection().await?;
        // Less than the connection waits for an answer, so that the server's count comes before our own time-out.
        let patience_ms = self.settings.response_timeout_ms / 2;
        let count = ::redis::cmd("WAIT")
            .arg(wanted)
            .arg(patience_ms.max(1))
            .query_async::<u32>(&mut connection)
            .await;
        let count = self.judge(connection, count).map_err(Refusal::retry)?;
        if count >= wanted {
            return Ok(());
        }
        Err(PublishError::retry(
            failure::of_redis("NOREPLICAS"),
            format!(
                "Redis: the batch has reached {} and [redis] min_replicas wants {wanted}",
                counted(count.into(), "replica")
            ),
        ))
    }
}

/// Why a script call gave no answer.
enum CallError {
    Publish(PublishError),
    Refused(Refusal),
}

/// An error of the client's or the server's, judged.
struct Refusal {
    failure: failure::Failure,
    text: String,
    /// The server said it, so the connection works.
    is_reply: bool,
}

impl Refusal {
    fn of(error: &RedisError) -> Self {
        let text = said(error);
        match error.code() {
            Some(code) => {
                let reply = reply(code, error.detail());
                Self { failure: failure::of_redis(&reply), text, is_reply: true }
            }
            // The client replaces the server's own words.
            None if error.kind() == ErrorKind::AuthenticationFailed => {
                Self { failure: failure::of_redis("WRONGPASS"), text, is_reply: false }
            }
            None if error.is_timeout() => Self { failure: failure::TIMEOUT, text, is_reply: false },
            None => Self { failure: failure::CONNECTION, text, is_reply: false },
        }
    }

    fn retry(self) -> PublishError {
        PublishError::retry(self.failure, format!("Redis: {}", self.text))
    }
}

/// The next part of a batch: bounded in events and bytes, never empty unless the batch is.
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
    async fn publish(&mut self, batch: Batch<'_>) -> Result<(), PublishError> {
        if batch.occasion == Occasion::Restore {
            // This Redis lacks what it once had: what is known of its histories is of before that.
            self.tails.clear();
        }
        let all = batch.deliveries;
        let (mut done, mut first, mut events_at_once) = (0, batch.first, self.chunk_events);
        // Once also for a batch without events: its numbers are used up.
        loop {
            let deliveries = chunk_of(&all[done..], events_at_once);
            let is_last = done + deliveries.len() == all.len();
            let through = match (batch.through, deliveries.last()) {
                (Some(_), Some(last)) if !is_last => Some(last.id),
                (through, _) => through,
            };
            let chunk =
                Chunk { deliveries, first, through, told_before: batch.occasion == Occasion::Restore };
            let now = Instant::now();
            match self.call(chunk, now).await {
                Ok((_, verdict, told)) if verdict == "OK" => {
                    self.measure(chunk, batch.occasion, &told);
                    self.remember(deliveries, now);
                    done += deliveries.len();
                    if is_last {
                        return self.replicated().await;
                    }
                    first = through.map_or(first, |through| StreamId::new(through.epoch, through.seq + 1));
                }
                Ok((arrived, verdict, detail)) => {
                    // Only a prefix arrived: what the tails say of this chunk's topics may be behind.
                    self.tails.clear();
                    return Err(refusal(done + arrived, &verdict, &detail));
                }
                Err(CallError::Publish(error)) => return Err(error),
                // Before it runs the script, Redis checks the permissions of all its keys at once, and does not say
                // which one it was: ask for each event alone.
                Err(CallError::Refused(refused)) if refused.is_reply && deliveries.len() > 1 => {
                    if refused.failure.remedy != Remedy::SetAside {
                        return Err(refused.retry());
                    }
                    events_at_once = 1;
                }
                Err(CallError::Refused(refused)) => {
                    if deliveries.len() == 1 && self.is_of_the_event(&refused).await {
                        return Err(PublishError::Poison { at: done, reason: refused.text });
                    }
                    return Err(refused.retry());
                }
            }
        }
    }

    async fn reached(&mut self) -> Result<Option<Reached>, PublishError> {
        let Some(top) = self.top().await? else { return Ok(None) };
        let (id, event) = top.split_once(' ').unwrap_or((&top, "-"));
        let id = id.parse().map_err(|_| {
            PublishError::Stop(format!(
                "the key {} in Redis holds '{top}', which no relay wrote",
                self.top_key
            ))
        })?;
        Ok(Some(Reached { id, event: EventId::parse_str(event).ok() }))
    }

    fn forget(&mut self) {
        self.tails.clear();
    }

    fn keeps(&self) -> Duration {
        self.settings.history_ttl()
    }
}

/// What to do about an answer other than OK, `at` being the first event that did not arrive.
fn refusal(at: usize, verdict: &str, detail: &str) -> PublishError {
    match verdict {
        "GAP" => PublishError::Forgot { reached: detail.to_owned() },
        "CONFLICT" => PublishError::Stop(format!(
            "another event stands in Redis under the number that this one has ({detail}): this Redis and this Postgres do \
             not belong together (a restored backup, or the wrong server). Nothing was overwritten. Check REDIS_URL and \
             DATABASE_URL; if Postgres was restored, run `aftercommit rebase`"
        )),
        "AHEAD" => PublishError::Stop(format!(
            "Redis is at {detail}, of a later epoch than Postgres: Postgres was restored from a backup. Run `aftercommit rebase`"
        )),
        _ => {
            let failure = failure::of_redis(detail);
            if verdict == "ERROR" && failure.remedy == Remedy::SetAside {
                return PublishError::Poison { at, reason: detail.to_owned() };
            }
            PublishError::retry(failure, format!("Redis: {detail}"))
        }
    }
}
