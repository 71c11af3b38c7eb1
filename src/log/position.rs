//! A relay's position: the rows that it has delivered, and the window that it is delivering.

use std::fmt;

use crate::event::StreamId;

/// A `pg_snapshot`, as Postgres writes it. Only Postgres interprets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(pub(crate) String);

/// An `xid8`, as Postgres writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xid(pub(crate) String);

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Xid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One row of `outbox.checkpoint`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The row's number. The row with the highest number is the relay's position.
    pub n: i64,
    /// The partition that the row is in.
    pub slot: i16,
    /// The partition of row `n + 1`. All relays that continue from this row insert there, and only one
    /// succeeds.
    pub next_slot: i16,
    /// Every row that this snapshot sees has been delivered.
    pub lower: Snapshot,
    /// An xid assigned after `lower` was taken. Every transaction from this xid on has row ids above
    /// `high_id`.
    pub lower_horizon: Xid,
    /// The highest row id that `lower` sees.
    pub high_id: i64,
    /// The open window, if there is one.
    pub window: Option<Window>,
    /// The epoch of the numbers.
    pub epoch: u64,
    /// The number of the next event.
    pub next_seq: u64,
}

/// The rows that `upper` sees and the position's `lower` does not, in order of id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The newer snapshot.
    pub upper: Snapshot,
    /// An xid assigned after `upper` was taken.
    pub upper_horizon: Xid,
    /// All rows of the window up to this id have been delivered.
    pub after_id: i64,
}

/// The number of checkpoint slots: the partitions of `outbox.checkpoint`.
pub(crate) const CHECKPOINT_SLOTS: i16 = 16;

impl Position {
    /// The position of a relay that has never delivered anything: its snapshot sees no transaction of a user.
    ///
    /// 3 is the first xid that a cluster gives out (`FirstNormalTransactionId`).
    pub(crate) fn before_everything() -> Self {
        Self {
            n: 1,
            slot: 0,
            next_slot: 0,
            lower: Snapshot("3:3:".to_owned()),
            lower_horizon: Xid("3".to_owned()),
            high_id: 0,
            window: None,
            epoch: 1,
            next_seq: 1,
        }
    }

    /// The id that the event with this number gets in the position's epoch.
    pub fn stream_id(&self, seq: u64) -> StreamId {
        StreamId::new(self.epoch, seq)
    }

    /// The next row with the same content. Its insert decides which slot follows.
    pub(crate) fn following(&self) -> Self {
        Self { n: self.n + 1, slot: self.next_slot, ..self.clone() }
    }

    /// The position after the window's events up to `after_id` have been delivered. `events` is their number.
    ///
    /// Without an open window the position stays as it is.
    pub(crate) fn advanced(&self, after_id: i64, events: u64) -> Self {
        let window = self.window.clone().map(|window| Window { after_id, ..window });
        Self { window, next_seq: self.next_seq + events, ..self.following() }
    }

    /// The position after the rest of the window has been delivered. `events` is the number of its events,
    /// and `last_id` the id of the last one. The window's upper snapshot becomes the lower one.
    pub(crate) fn closed(&self, last_id: i64, events: u64) -> Self {
        let Some(window) = &self.window else { return self.clone() };
        Self {
            lower: window.upper.clone(),
            lower_horizon: window.upper_horizon.clone(),
            high_id: self.high_id.max(window.after_id).max(last_id),
            window: None,
            next_seq: self.next_seq + events,
            ..self.following()
        }
    }

    /// The same place with one more number used up. No window may be open, because its numbers may be
    /// published already.
    pub(crate) fn releasing(&self) -> Self {
        Self { next_seq: self.next_seq + 1, ..self.following() }
    }

    /// The same place in the log, with the first number of another epoch.
    pub(crate) fn rebased(&self, epoch: u64) -> Self {
        Self { epoch, next_seq: 1, ..self.following() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Position {
        Position {
            high_id: 50,
            window: Some(Window {
                upper: Snapshot("10:12:11".to_owned()),
                upper_horizon: Xid("14".to_owned()),
                after_id: 0,
            }),
            ..Position::before_everything()
        }
    }

    #[test]
    fn a_window_of_late_rows_only_does_not_lower_the_highest_id() {
        let closed = open().closed(7, 3);
        assert_eq!(closed.high_id, 50);
        assert_eq!(closed.next_seq, 4);
        assert_eq!(closed.lower, Snapshot("10:12:11".to_owned()));
        assert_eq!(closed.lower_horizon, Xid("14".to_owned()));
        assert_eq!(closed.window, None);
    }

    #[test]
    fn settling_remembers_the_highest_id_of_earlier_chunks() {
        let closed = open().advanced(90, 40).closed(0, 0);
        assert_eq!((closed.high_id, closed.next_seq, closed.n), (90, 41, 3));
    }

    #[test]
    fn a_release_uses_up_a_number_and_moves_nothing() {
        let closed = open().closed(7, 3);
        let releasing = closed.releasing();
        assert_eq!((releasing.n, releasing.next_seq), (closed.n + 1, closed.next_seq + 1));
        assert_eq!(releasing.high_id, closed.high_id);
    }

    #[test]
    fn a_row_stands_in_the_slot_that_the_one_before_it_names() {
        let at = Position { slot: 3, next_slot: 4, ..open() };
        for next in [at.advanced(60, 1), at.closed(60, 1), at.rebased(2)] {
            assert_eq!((next.n, next.slot), (2, 4));
        }
    }

    #[test]
    fn a_rebase_begins_with_the_first_number_of_its_epoch_at_the_same_place() {
        let rebased = open().rebased(7);
        assert_eq!((rebased.epoch, rebased.next_seq, rebased.n), (7, 1, open().n + 1));
        assert_eq!((rebased.high_id, rebased.window), (open().high_id, open().window));
    }
}
