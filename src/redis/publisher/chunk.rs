//! The part of a batch that one call of the script takes, and the call's arguments.

use std::collections::HashMap;
use std::time::Instant;

use ::redis::{Cmd, Script};

use super::FORMAT;
use super::topic_heads::TopicHeads;
use crate::event::{LogId, StreamId, Topic};
use crate::redis::envelope;
use crate::redis::keys::Keys;
use crate::redis::settings::Settings;
use crate::relay::{Batch, Delivery, PublishMode};

/// The most payload bytes of one script call. Redis serves no other client during the call: about a
/// millisecond.
const CHUNK_BYTES: usize = 1024 * 1024;

/// The part of a batch that one call takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk<'a> {
    pub(super) deliveries: &'a [Delivery<'a>],
    pub(super) first: StreamId,
    /// The last number that the chunk uses up, if it uses up any.
    pub(super) through: Option<StreamId>,
    pub(super) mode: PublishMode,
    pub(super) lost: Option<StreamId>,
}

/// The arguments of a call that depend on its server.
#[derive(Debug)]
pub(super) struct ServerArguments<'a> {
    pub(super) top_key: &'a str,
    pub(super) log_key: &'a str,
    /// The number that the server has reached, as far as this publisher knows.
    pub(super) known: u64,
    /// Restored events above this number have never been published.
    pub(super) unpublished_above: Option<u64>,
    /// The slots that its top speaks for; `None` if this is no cluster.
    pub(super) slots: Option<String>,
    /// The number up to which the relay vouches for the sink's events.
    pub(super) vouched: u64,
}

/// A topic of a chunk, as the script takes it.
struct TopicArguments<'a> {
    topic: &'a Topic,
    /// The id of the topic's event before the chunk; `None` if the script has to look it up.
    prev: Option<StreamId>,
    ttl_is_due: bool,
}

impl TopicArguments<'_> {
    /// The previous event, and whether the TTL is due. The TTL of an unknown topic always is.
    fn before(&self) -> String {
        match self.prev {
            None => "?".to_owned(),
            Some(prev) if self.ttl_is_due => format!("?{prev}"),
            Some(prev) => prev.to_string(),
        }
    }
}

/// The arguments that all calls of one publisher share.
#[derive(Debug)]
pub(super) struct SharedArguments<'p> {
    pub(super) settings: &'p Settings,
    pub(super) keys: &'p Keys,
    pub(super) script: &'p Script,
    pub(super) heads: &'p TopicHeads,
    pub(super) log: LogId,
    pub(super) relay: &'p str,
    /// The time that decides on TTLs.
    pub(super) now: Instant,
}

impl<'p> SharedArguments<'p> {
    /// The call of the script for a chunk. The script says what each argument is.
    pub(super) fn call(&self, chunk: Chunk<'_>, to: &ServerArguments<'_>) -> Cmd {
        let (topics, indexes) = self.topics_of(chunk);
        let mut call = ::redis::cmd("EVALSHA");
        call.arg(self.script.get_hash());
        self.add_keys(&mut call, &topics, to);
        call.arg(FORMAT)
            .arg(self.log.to_string())
            .arg(chunk.first.epoch)
            .arg(chunk.first.seq)
            .arg(chunk.through.map_or(0, |id| id.seq))
            .arg(self.settings.history_ttl_seconds.max(1))
            .arg(word_of(chunk.mode))
            .arg(chunk.lost.map_or_else(String::new, |lost| lost.to_string()))
            .arg(to.known)
            .arg(
                to.unpublished_above
                    .map_or_else(String::new, |unpublished_above| unpublished_above.to_string()),
            )
            .arg(to.slots.as_deref().unwrap_or_default())
            .arg(to.vouched)
            .arg(self.relay)
            .arg(topics.len());
        for topic in &topics {
            call.arg(self.keys.public(topic.topic)).arg(topic.before());
            if to.slots.is_some() {
                call.arg(self.keys.history(topic.topic));
            }
        }
        self.add_events(&mut call, chunk, &indexes, to);
        call
    }

    /// Adds the keys. A cluster's script names the histories among its arguments, because the keys of a call
    /// have to be of one slot.
    fn add_keys(&self, call: &mut Cmd, topics: &[TopicArguments<'_>], to: &ServerArguments<'_>) {
        let histories = if to.slots.is_some() { &[] } else { topics };
        call.arg(2 + histories.len()).arg(to.top_key).arg(to.log_key);
        for topic in histories {
            call.arg(self.keys.history(topic.topic));
        }
    }

    fn add_events(&self, call: &mut Cmd, chunk: Chunk<'_>, indexes: &[usize], to: &ServerArguments<'_>) {
        // As in the script.
        let number = |id: StreamId| if chunk.mode.is_release() { chunk.first.seq } else { id.seq };
        let is_restored = |id| {
            chunk.mode.is_restore()
                && to.unpublished_above.is_none_or(|unpublished_above| number(id) <= unpublished_above)
        };
        for (Delivery { id, event }, index) in chunk.deliveries.iter().zip(indexes) {
            call.arg(index)
                .arg(id.to_string())
                .arg(&*event.event_id.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()))
                .arg(event.event_type.as_str())
                .arg(&event.payload)
                .arg(self.settings.history_length(event.payload.len()))
                .arg(envelope::middle_of(event, is_restored(*id)))
                .arg(event.xid.map_or_else(String::new, |xid| xid.to_string()));
        }
    }

    /// Returns the topics of a chunk, each once, and for each event the index of its topic, from 1.
    fn topics_of<'a>(&self, chunk: Chunk<'a>) -> (Vec<TopicArguments<'a>>, Vec<usize>) {
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
                    ttl_is_due: self.heads.ttl_is_due(head, self.now),
                });
                topics.len()
            });
            indexes.push(index);
        }
        (topics, indexes)
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

/// The chunks of a batch, in order, each with the index of its first event. A batch without events has one
/// chunk as well, which uses up the numbers.
#[derive(Debug)]
pub(super) struct Chunks<'a> {
    batch: Batch<'a>,
    events: usize,
    done: usize,
    first: StreamId,
    has_ended: bool,
}

impl<'a> Chunks<'a> {
    /// Chunks of at most `events` events, and of as many bytes as one call may carry.
    pub(super) fn of(batch: Batch<'a>, events: usize) -> Self {
        Self { batch, events, done: 0, first: batch.first, has_ended: false }
    }
}

impl<'a> Iterator for Chunks<'a> {
    type Item = (usize, Chunk<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.has_ended {
            return None;
        }
        let Batch { mode, deliveries: all, through, lost, .. } = self.batch;
        let (at, first) = (self.done, self.first);
        let deliveries = chunk_of(&all[at..], self.events);
        self.done += deliveries.len();
        self.has_ended = self.done == all.len();
        let through = match (through, deliveries.last()) {
            (Some(_), Some(_)) if !self.has_ended && mode.is_release() => None,
            (Some(_), Some(last)) if !self.has_ended => Some(last.id),
            (through, _) => through,
        };
        self.first = through.map_or(first, |through| StreamId::new(through.epoch, through.seq + 1));
        Some((at, Chunk { deliveries, first, through, mode, lost }))
    }
}

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
