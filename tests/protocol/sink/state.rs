//! The state of the sink model.

use super::postgres::{Event, Id, Log, Position, Request};
use super::reader::Reader;
use super::redis::{Call, Redis};
use super::rules::Bounds;
use crate::explore::Begin;

/// What a relay is doing, between two effects.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Doing {
    Down,
    /// It knows a position and has not compared the sink with it.
    Loaded,
    Ready,
    /// It holds a batch that is not published, or not wholly.
    Holding(Batch),
    /// It has published a batch and has not written it down.
    Published(Batch),
    /// It needs a person. `is_conflict`: the sink has another event under a number.
    Stopped {
        is_conflict: bool,
    },
}

/// What one step of a relay publishes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Batch {
    pub(super) call: Call,
    /// The number of the first row.
    pub(super) first: Id,
    /// Rows that the step delivers, set aside ones included.
    pub(super) rows: Vec<u8>,
    /// Rows that are set aside.
    pub(super) aside: Vec<(Id, u8)>,
    /// The operator's request that it carries out.
    pub(super) request: Option<Request>,
    /// Rows of a release that cannot have arrived before it.
    pub(super) fresh: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Relay {
    pub(super) doing: Doing,
    /// Which Postgres its sessions are of.
    pub(super) session: u8,
    pub(super) at: Position,
    /// Topics whose events wait, as bits.
    pub(super) held: u8,
    pub(super) delivered_before: u8,
    /// Whether some of the next batch may have been published, by this relay or by another one.
    pub(super) is_tried: bool,
    /// The last id of each topic that it published in this lead.
    pub(super) tails: [Option<Id>; 2],
}

/// What may explain a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Causes {
    /// Redis went back, or lost a history, or trimmed one.
    pub(super) redis: bool,
    /// The history of the reader's topic vanished.
    pub(super) vanished: bool,
    pub(super) postgres: bool,
    pub(super) rebase: bool,
    pub(super) discard: bool,
}

/// Properties that a transition has broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Broken {
    pub(super) lost: bool,
    pub(super) twice: bool,
    pub(super) order: bool,
    pub(super) groundless_reset: bool,
    pub(super) phantom: bool,
    pub(super) unnamed_rows: bool,
    pub(super) discarded_after_told: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub(super) log: Log,
    pub(super) backup: Option<Box<Log>>,
    /// How often Postgres has gone back: a session of before that is dead.
    pub(super) incarnation: u8,
    pub(super) redis: Redis,
    pub(super) copy: Option<Box<Redis>>,
    /// Topics that the sink refuses, as bits.
    pub(super) refused: u8,
    pub(super) relays: [Relay; 2],
    pub(super) reader: Reader,
    /// Events that a subscriber to bare payloads has heard, as bits of their identities.
    pub(super) heard: u8,
    /// The epoch that a rebase under way has claimed.
    pub(super) rebasing: Option<u64>,
    /// Events that an operator discarded knowingly, as bits of their identities.
    pub(super) discarded: u8,
    pub(super) next_uuid: u8,
    pub(super) left: Bounds,
    pub(super) causes: Causes,
    pub(super) broken: Broken,
}

impl Begin for State {
    fn begin(&self) -> String {
        if self.log.events.is_empty() {
            return "   0. the log is empty\n".to_owned();
        }
        let topics: Vec<String> = self.log.events.iter().map(|event| event.topic.to_string()).collect();
        format!("   0. the log holds events of the topics {}\n", topics.join(", "))
    }
}

impl State {
    /// A log that holds events of these topics, none of them delivered.
    pub(super) fn new(bounds: Bounds, backlog: &[u8]) -> Self {
        let mut log = Log::new();
        log.events = (0..).zip(backlog).map(|(uuid, topic)| Event { uuid, topic: *topic }).collect();
        let relay = Relay {
            doing: Doing::Down,
            session: 0,
            at: log.position,
            held: 0,
            delivered_before: 0,
            is_tried: false,
            tails: [None; 2],
        };
        Self {
            log,
            backup: None,
            incarnation: 0,
            redis: Redis::default(),
            copy: None,
            refused: 0,
            relays: [relay.clone(), relay],
            reader: Reader::new(),
            heard: 0,
            rebasing: None,
            discarded: 0,
            next_uuid: bounds.backlog,
            left: bounds,
            causes: Causes::default(),
            broken: Broken::default(),
        }
    }
}
