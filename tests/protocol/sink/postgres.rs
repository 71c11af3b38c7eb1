//! The log in Postgres, as the sink model sees it: committed events in order, a position, and what operators
//! asked for.

pub(super) use aftercommit::event::StreamId as Id;

/// A committed event. Its row's number is its place in the log, from 1 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Event {
    /// Its identity, which no other event ever gets, in no log.
    pub(super) uuid: u8,
    pub(super) topic: u8,
}

/// The newest row of `outbox.checkpoint`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Position {
    pub(super) n: u8,
    pub(super) epoch: u64,
    pub(super) next_seq: u64,
    /// Rows up to this one are delivered.
    pub(super) done: u8,
    /// The open window ends with this row; as `done` if none is open.
    pub(super) end: u8,
}

impl Position {
    /// The number before the next one.
    pub(super) fn delivered(&self) -> u64 {
        self.next_seq - 1
    }

    pub(super) fn has_window(&self) -> bool {
        self.end > self.done
    }
}

/// The rows that one step delivered, in the order of their numbers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Step {
    pub(super) first: Id,
    pub(super) rows: Vec<u8>,
    /// It released parked events, which keep their old numbers: the step has one of its own.
    pub(super) is_release: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Fate {
    Waiting,
    Released,
    Discarded,
}

/// A row of `outbox.parked`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Parked {
    pub(super) id: Id,
    pub(super) row: u8,
    pub(super) topic: u8,
    pub(super) fate: Fate,
    /// The number that its newest release used up.
    pub(super) release: Option<Id>,
    /// Whether clients may have received it in an earlier try.
    pub(super) may_have_arrived: bool,
}

/// What an operator wants done with a topic's parked events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Request {
    pub(super) topic: u8,
    /// The last row that the operator saw.
    pub(super) through: u8,
    pub(super) is_discard: bool,
}

/// One Postgres.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Log {
    pub(super) events: Vec<Event>,
    pub(super) position: Position,
    /// Steps whose checkpoints and rows are kept, oldest first.
    pub(super) steps: Vec<Step>,
    pub(super) parked: Vec<Parked>,
    pub(super) request: Option<Request>,
    /// The relay that began to lead last.
    pub(super) lead: Option<usize>,
    /// Rows that a rebase found in the sink, as bits.
    pub(super) delivered_before: u8,
}

impl Step {
    /// How many numbers it used up.
    pub(super) fn numbers(&self) -> u64 {
        if self.is_release { 1 } else { self.rows.len() as u64 }
    }
}

impl Log {
    pub(super) fn new() -> Self {
        let position = Position { n: 1, epoch: 1, next_seq: 1, done: 0, end: 0 };
        Self {
            events: vec![],
            position,
            steps: vec![],
            parked: vec![],
            request: None,
            lead: None,
            delivered_before: 0,
        }
    }

    pub(super) fn event(&self, row: u8) -> Event {
        self.events[usize::from(row) - 1]
    }

    pub(super) fn last_row(&self) -> u8 {
        u8::try_from(self.events.len()).expect("few events")
    }

    /// The rows of a topic, in order.
    pub(super) fn rows_of(&self, topic: u8) -> impl Iterator<Item = u8> {
        (1..=self.last_row()).filter(move |row| self.event(*row).topic == topic)
    }

    pub(super) fn waiting(&self, topic: u8) -> impl Iterator<Item = &Parked> {
        self.parked.iter().filter(move |parked| parked.topic == topic && parked.fate == Fate::Waiting)
    }

    /// How many numbers releases have used up.
    pub(super) fn releases(&self) -> usize {
        self.steps.iter().filter(|step| step.is_release).count()
    }

    /// The topics whose later events wait, as bits.
    pub(super) fn held(&self) -> u8 {
        let waiting = self.parked.iter().filter(|parked| parked.fate == Fate::Waiting);
        waiting.fold(0, |held, parked| held | 1 << parked.topic)
    }

    /// Does with a topic's waiting events up to a row what was asked for.
    pub(super) fn settle(&mut self, topic: u8, through: u8, fate: Fate) {
        for parked in &mut self.parked {
            if parked.topic == topic && parked.row <= through && parked.fate == Fate::Waiting {
                parked.fate = fate;
            }
        }
    }
}
