//! The relay's sink: publishes batches to Redis, one script call for a chunk of events.
//!
//! A chunk lands as a prefix or not at all, and every reply is checked: pipelined single commands would reorder on a
//! partial failure, and an unchecked reply would count as delivered what Redis refused.

use std::time::Instant;

use ::redis::aio::MultiplexedConnection;
use ::redis::{RedisError, Script};

use super::keys;
use super::settings::Settings;
use super::tails::{Tail, Tails};
use crate::event::{StreamId, Topic};
use crate::relay::{Delivery, PublishError, Sink};

/// How many topics' tails are remembered, at least.
const TAILS: usize = 50_000;

/// Publishes to one Redis for one relay.
#[derive(Debug)]
pub struct Publisher {
    settings: Settings,
    top_key: String,
    chunk_events: usize,
    chunk_bytes: usize,
    script: Script,
    connection: Option<MultiplexedConnection>,
    tails: Tails,
}

/// The script's answer.
type Answer = (usize, String, String);

impl Publisher {
    /// A publisher for `relay` that hands Redis at most `chunk_events` at once. It connects when it first publishes.
    pub fn new(settings: Settings, relay: &str, chunk_events: usize) -> Self {
        Self {
            top_key: keys::top(relay),
            chunk_events: chunk_events.max(1),
            // Redis serves nobody else while it runs a script: about a millisecond's worth of bytes.
            chunk_bytes: 1024 * 1024,
            script: Script::new(include_str!("publish.lua")),
            connection: None,
            tails: Tails::new(TAILS, settings.history_ttl()),
            settings,
        }
    }

    /// The next part of a batch: bounded in events and bytes, never empty.
    fn chunk_of<'b, 'e>(&self, batch: &'b [Delivery<'e>]) -> &'b [Delivery<'e>] {
        let mut bytes = 0;
        let fits = batch
            .iter()
            .take(self.chunk_events)
            .take_while(|delivery| {
                bytes += delivery.event.payload.len();
                bytes <= self.chunk_bytes
            })
            .count();
        &batch[..fits.max(1)]
    }

    async fn call(&mut self, chunk: &[Delivery<'_>], through: StreamId) -> Result<Answer, PublishError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                // Whatever was known of the histories may be of another server, or of this one before it lost something.
                self.tails.clear();
                self.settings.connect().await.map_err(|error| PublishError::Retry(error.to_string()))?
            }
        };
        let answer = self.invocation(chunk, through).invoke_async::<Answer>(&mut connection).await;
        match answer {
            Ok(answer) => {
                self.connection = Some(connection);
                Ok(answer)
            }
            Err(error) => {
                // After a timeout or a broken connection it is not known what has arrived; the numbers make it harmless.
                if keeps_connection(&error) {
                    self.connection = Some(connection);
                }
                self.tails.clear();
                Err(PublishError::Retry(format!("Redis: {error}")))
            }
        }
    }

    fn invocation(&self, chunk: &[Delivery<'_>], through: StreamId) -> ::redis::ScriptInvocation<'_> {
        let now = Instant::now();
        let mut invocation = self.script.prepare_invoke();
        invocation.key(&self.top_key);
        let mut streams: Vec<&Topic> = Vec::new();
        let first = chunk.first().map_or(through.seq, |delivery| delivery.id.seq);
        invocation
            .arg(through.epoch)
            .arg(first)
            .arg(through.seq)
            .arg(self.settings.history_max_events)
            .arg(self.settings.history_ttl_seconds.max(1))
            .arg("1");
        // Where a topic's last id is in this very chunk, that is the previous one.
        let mut in_chunk: std::collections::HashMap<&Topic, (usize, StreamId)> =
            std::collections::HashMap::new();
        for Delivery { id, event } in chunk {
            let before = in_chunk.get(&event.topic).copied();
            let index = match before {
                Some((index, _)) => index,
                None => {
                    streams.push(&event.topic);
                    invocation.key(keys::history(&event.topic));
                    streams.len() + 1
                }
            };
            let previous = match before {
                Some((_, last)) => last.to_string(),
                None => self.tails.get(&event.topic).map_or("?".to_owned(), |tail| tail.last.to_string()),
            };
            let ttl_due = before.is_none() && self.tails.ttl_is_due(&event.topic, now);
            invocation
                .arg(index)
                .arg(event.topic.as_str())
                .arg(id.seq)
                .arg(event.event_id.to_string())
                .arg(event.event_type.as_str())
                .arg(&event.payload)
                .arg(previous)
                .arg(if ttl_due { "1" } else { "0" });
            in_chunk.insert(&event.topic, (index, *id));
        }
        invocation
    }

    /// Remembers the tails that a published chunk left behind.
    fn remember(&mut self, chunk: &[Delivery<'_>]) {
        let now = Instant::now();
        for Delivery { id, event } in chunk {
            let ttl_set = match self.tails.get(&event.topic) {
                Some(tail) if !self.tails.ttl_is_due(&event.topic, now) => tail.ttl_set,
                _ => now,
            };
            self.tails.set(&event.topic, Tail { last: *id, ttl_set });
        }
    }
}

impl Sink for Publisher {
    async fn publish(&mut self, batch: &[Delivery<'_>], through: StreamId) -> Result<(), PublishError> {
        let mut done = 0;
        while done < batch.len() {
            let chunk = self.chunk_of(&batch[done..]);
            let is_last = done + chunk.len() == batch.len();
            let uses_up =
                if is_last { through } else { chunk.last().map_or(through, |delivery| delivery.id) };
            let (arrived, verdict, detail) = self.call(chunk, uses_up).await?;
            if verdict == "OK" {
                self.remember(chunk);
                done += chunk.len();
                continue;
            }
            // Only a prefix arrived: what the tails say of this chunk's topics may be behind.
            self.tails.clear();
            return Err(refusal(done + arrived, &verdict, &detail));
        }
        Ok(())
    }
}

/// What to do about an answer other than OK, `at` being the first event that did not arrive.
fn refusal(at: usize, verdict: &str, detail: &str) -> PublishError {
    match verdict {
        "CONFLICT" => PublishError::Stop(format!(
            "another event stands in Redis under the number that this one has ({detail}): this Redis and this Postgres do \
             not belong together (a restored backup, or the wrong server). Nothing was overwritten. Check REDIS_URL and \
             DATABASE_URL; if Postgres was restored, run `aftercommit rebase`"
        )),
        "AHEAD" => PublishError::Stop(format!(
            "Redis is at {detail}, of a later epoch than Postgres: Postgres was restored from a backup. Run `aftercommit rebase`"
        )),
        "ERROR" if is_of_the_event(detail) => PublishError::Poison { at, reason: detail.to_owned() },
        _ => PublishError::Retry(format!("Redis: {detail}")),
    }
}

/// Whether an error of Redis's is about this event alone (its key, its channel, its size), and would come again for ever.
fn is_of_the_event(error: &str) -> bool {
    error.starts_with("WRONGTYPE")
        || error.starts_with("NOPERM")
        || error.contains("The user executing the script can't")
}

/// Whether the connection is as good as before after this error: the server answered.
fn keeps_connection(error: &RedisError) -> bool {
    !error.is_io_error() && !error.is_timeout() && !error.is_connection_dropped() && error.code().is_some()
}
