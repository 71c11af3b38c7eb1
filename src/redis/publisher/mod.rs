//! The relay's sink: publishes batches to Redis, one script call for each chunk of events and each server.
//!
//! At one server a chunk arrives whole, as a prefix, or not at all, and every reply is checked. Pipelined
//! single commands would reorder events on a partial failure, and an unchecked reply would count a refused
//! event as delivered.
//!
//! In a cluster each server takes the events of its topics, all servers at once. A server that fails is left
//! behind, so that the topics of the others flow on. It is given what it lacks when it is back: see `fleet`.

mod chunk;
mod compare;
mod facts;
mod fleet;
mod flight;
mod migrating_slots;
mod part;
mod publish;
mod refusal;
mod server;
mod topic_heads;
mod tops;
mod verdict;

use std::sync::Arc;

use ::redis::Script;

use self::migrating_slots::MigratingSlots;
use self::server::Server;
use self::topic_heads::TopicHeads;
use super::keys::Keys;
use super::settings::Settings;
use super::slot_map::SlotMap;
use crate::event::{LogId, StreamId};
use crate::relay::{Metrics, StateHandle};

/// The format of the keys and entries that this program writes and reads: see `docs/redis.md`.
pub const FORMAT: u32 = 1;
/// The least number of topics whose heads are cached.
const TOPIC_HEADS: usize = 50_000;

/// The publishing script.
const SCRIPT: &str = include_str!("publish.lua");
/// The first line that a cluster wants, where a call touches several slots of one server. (Redis 6 does not
/// know it.)
const CLUSTER_SHEBANG: &str = "#!lua flags=allow-cross-slot-keys\n";

/// Publishes to one Redis for one relay.
#[derive(Debug)]
pub struct Publisher {
    settings: Settings,
    keys: Keys,
    relay: String,
    log: LogId,
    chunk_events: usize,
    script: Arc<Script>,
    /// The servers that take events; none before the first use.
    servers: Vec<Server>,
    /// The slots, if this is a cluster.
    map: Option<Arc<SlotMap>>,
    /// Slots that their servers refuse.
    migrating: MigratingSlots,
    /// Slots in which tops stood before slots moved.
    former_slots: Vec<u16>,
    /// Whether the servers have been asked how far they have come, since their slots last moved.
    is_compared: bool,
    /// The highest number of a batch that has been published whole. Servers without events of it have not
    /// been told.
    passed: Option<StreamId>,
    heads: TopicHeads,
    /// The highest number that a call in this lead may have brought.
    taken: Option<StreamId>,
    /// The number up to which the relay vouches for the events that are there.
    vouched: Option<StreamId>,
    metrics: Metrics,
    state: StateHandle,
}

impl Publisher {
    /// Makes a publisher for `relay` with at most `chunk_events` a call. It connects when it first publishes.
    pub fn new(settings: Settings, relay: &str, chunk_events: usize) -> Self {
        Self::under(settings.keys(), settings, relay, chunk_events)
    }

    /// As [`Publisher::new`], with other names than those of the settings.
    pub(super) fn under(keys: Keys, settings: Settings, relay: &str, chunk_events: usize) -> Self {
        Self {
            keys,
            relay: relay.to_owned(),
            log: LogId::nil(),
            chunk_events: chunk_events.max(1),
            script: Arc::new(Script::new(SCRIPT)),
            servers: Vec::new(),
            map: None,
            migrating: MigratingSlots::default(),
            former_slots: Vec::new(),
            is_compared: false,
            passed: None,
            heads: TopicHeads::new(TOPIC_HEADS, settings.history_ttl()),
            taken: None,
            vouched: None,
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
}
