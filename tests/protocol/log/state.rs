//! The state of the log model: Postgres's transactions and tables, a server that lags, two relays, and what
//! was published.

/// Transactions that write events, one event each.
pub(in crate::log) const WRITERS: usize = 3;
/// The topic of each writer's event. Writers of one topic hold the same row lock from their append to their
/// commit.
pub(in crate::log) const TOPIC: [u8; WRITERS] = [0, 1, 0];

/// A `pg_snapshot`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::log) struct Snapshot {
    /// The highest xid that had ended, plus one.
    pub(in crate::log) xmax: u8,
    /// The xids below `xmax` that had not ended.
    pub(in crate::log) xip: u32,
}

impl Snapshot {
    /// `pg_visible_in_snapshot`.
    pub(in crate::log) fn sees(self, xid: u8) -> bool {
        xid < self.xmax && !self.was_running(xid)
    }

    pub(in crate::log) fn was_running(self, xid: u8) -> bool {
        self.xip & (1 << xid) != 0
    }
}

/// A writer's transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::log) enum Writer {
    Idle,
    /// It has its xid. Its row has no id yet.
    Begun {
        xid: u8,
    },
    Appended(Row),
    Committed(Row),
    RolledBack,
}

/// A row of `outbox.event`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::log) struct Row {
    pub(in crate::log) xid: u8,
    pub(in crate::log) id: u8,
}

/// A row of `outbox.checkpoint`; its number is its place in the table, from 1 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::log) struct Position {
    pub(in crate::log) lower: Snapshot,
    pub(in crate::log) lower_horizon: u8,
    pub(in crate::log) high_id: u8,
    pub(in crate::log) window: Option<Window>,
    pub(in crate::log) next_seq: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::log) struct Window {
    pub(in crate::log) upper: Snapshot,
    pub(in crate::log) upper_horizon: u8,
    pub(in crate::log) after_id: u8,
}

/// Events of a window, by writer, and whether they are its last ones.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::log) struct Batch {
    pub(in crate::log) events: Vec<u8>,
    pub(in crate::log) last_id: u8,
    pub(in crate::log) is_last: bool,
}

/// A relay process: what it holds in memory between two effects.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::log) enum Relay {
    Down,
    /// It knows row `n`.
    At {
        n: u8,
        position: Position,
    },
    /// Its statement that opens a window has taken its snapshot.
    Opening {
        n: u8,
        position: Position,
        snapshot: Snapshot,
        horizon: Option<u8>,
    },
    /// It holds a batch that it has not published.
    Holding {
        n: u8,
        position: Position,
        batch: Batch,
    },
    /// It has published a batch and has not written it down.
    Published {
        n: u8,
        position: Position,
        batch: Batch,
    },
}

/// A server that replays the primary's log and lags behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::log) struct Replica {
    /// The writers whose commits it has replayed.
    pub(in crate::log) committed: u8,
    /// The checkpoint rows that it has replayed.
    pub(in crate::log) rows: u8,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::log) struct State {
    pub(in crate::log) writers: [Writer; WRITERS],
    pub(in crate::log) next_xid: u8,
    pub(in crate::log) next_id: u8,
    /// The xids that have not ended.
    pub(in crate::log) running: u32,
    /// The highest xid that has ended.
    pub(in crate::log) completed: u8,
    pub(in crate::log) checkpoints: Vec<Position>,
    pub(in crate::log) replica: Replica,
    pub(in crate::log) relays: [Relay; 2],
    /// The sink: the event, by writer, that each number was given to. Number 1 is the first.
    pub(in crate::log) published: Vec<u8>,
    /// A number was offered to the sink for another event than the one that has it.
    pub(in crate::log) has_conflict: bool,
    /// Processes that may still be killed.
    pub(in crate::log) kills_left: u8,
}

impl crate::explore::Begin for State {
    fn begin(&self) -> String {
        String::new()
    }
}

impl State {
    /// An empty log, whose first checkpoint is written.
    pub(in crate::log) fn new(kills: u8) -> Self {
        let nothing = Snapshot { xmax: 1, xip: 0 };
        let first = Position { lower: nothing, lower_horizon: 1, high_id: 0, window: None, next_seq: 1 };
        Self {
            writers: [Writer::Idle; WRITERS],
            next_xid: 1,
            next_id: 1,
            running: 0,
            completed: 0,
            checkpoints: vec![first],
            replica: Replica { committed: 0, rows: 1 },
            relays: [Relay::Down, Relay::Down],
            published: Vec::new(),
            has_conflict: false,
            kills_left: kills,
        }
    }

    /// `pg_current_snapshot()`.
    pub(in crate::log) fn snapshot(&self) -> Snapshot {
        let xmax = self.completed + 1;
        Snapshot { xmax, xip: self.running & ((1 << xmax) - 1) }
    }

    /// `pg_current_xact_id()` of a transaction that has none.
    pub(in crate::log) fn take_xid(&mut self) -> u8 {
        let xid = self.next_xid;
        self.next_xid += 1;
        self.running |= 1 << xid;
        xid
    }

    /// A transaction ends, either way.
    pub(in crate::log) fn end(&mut self, xid: u8) {
        self.running &= !(1 << xid);
        self.completed = self.completed.max(xid);
    }

    /// The writers whose rows are committed, as bits.
    pub(in crate::log) fn committed(&self) -> u8 {
        let bit = |(at, writer): (usize, &Writer)| u8::from(matches!(writer, Writer::Committed(_))) << at;
        self.writers.iter().enumerate().map(bit).sum()
    }

    /// The number of the newest checkpoint.
    pub(in crate::log) fn newest(&self) -> u8 {
        u8::try_from(self.checkpoints.len()).expect("few checkpoints")
    }

    pub(in crate::log) fn row(&self, writer: u8) -> Option<Row> {
        match self.writers[usize::from(writer)] {
            Writer::Appended(row) | Writer::Committed(row) => Some(row),
            Writer::Idle | Writer::Begun { .. } | Writer::RolledBack => None,
        }
    }
}
