//! A relay's position: what it has delivered, and the window that it is delivering.

use std::fmt;

/// A `pg_snapshot`, as Postgres writes it. Only Postgres interprets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(pub(super) String);

/// An `xid8`, as Postgres writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xid(pub(super) String);

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
    /// The row's number; the highest of a relay is its position.
    pub n: i64,
    /// Everything that this snapshot sees has been delivered.
    pub lower: Snapshot,
    /// An xid assigned after `lower` was taken: every xid from here on has ids above `high_id`.
    pub lower_horizon: Xid,
    /// The highest id among what `lower` sees.
    pub high_id: i64,
    /// The window being delivered.
    pub window: Option<Window>,
    /// The lineage of the numbers.
    pub epoch: u64,
    /// The number of the next event.
    pub next_seq: u64,
}

/// What `upper` sees and the position's `lower` does not, in order of id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The newer snapshot.
    pub upper: Snapshot,
    /// An xid assigned after `upper` was taken.
    pub upper_horizon: Xid,
    /// All of the window up to this id has been delivered.
    pub after_id: i64,
}

/// What the leader of a relay locks: an SQL expression of the relay's name, `$1`.
pub(crate) const LEAD_KEY: &str = "hashtextextended('outbox.relay:' || $1, 0)";

/// How many checkpoint rows one slot takes before the next one does: the `slot_follows_n` check of the schema.
const ROWS_PER_SLOT_BITS: u32 = 17;
/// Checkpoint slots.
pub(super) const CHECKPOINT_SLOTS: i64 = 16;

/// The slot of checkpoint row `n`.
pub(super) const fn slot_of(n: i64) -> i16 {
    ((n >> ROWS_PER_SLOT_BITS) & (CHECKPOINT_SLOTS - 1)) as i16
}

impl Position {
    /// Where a relay starts that never delivered anything: a snapshot that sees no transaction of a user.
    ///
    /// 3 is the first xid that a cluster gives out (`FirstNormalTransactionId`).
    pub(crate) fn before_everything() -> Self {
        Self {
            n: 1,
            lower: Snapshot("3:3:".to_owned()),
            lower_horizon: Xid("3".to_owned()),
            high_id: 0,
            window: None,
            epoch: 1,
            next_seq: 1,
        }
    }

    /// The position after the window's events up to `after_id`, `events` of them, have been delivered.
    ///
    /// Without an open window there is nothing to advance: the position stays as it is.
    pub(super) fn advanced(&self, after_id: i64, events: u64) -> Self {
        let window = self.window.clone().map(|window| Window { after_id, ..window });
        Self { n: self.n + 1, window, next_seq: self.next_seq + events, ..self.clone() }
    }

    /// The position after the rest of the window, `events` of them and the last with id `last_id`, has been delivered:
    /// its upper snapshot is the new lower one.
    pub(super) fn settled(&self, last_id: i64, events: u64) -> Self {
        let Some(window) = &self.window else { return self.clone() };
        Self {
            n: self.n + 1,
            lower: window.upper.clone(),
            lower_horizon: window.upper_horizon.clone(),
            high_id: self.high_id.max(window.after_id).max(last_id),
            window: None,
            epoch: self.epoch,
            next_seq: self.next_seq + events,
        }
    }

    /// The same place in the log, from which numbers go on in another epoch.
    pub(super) fn rebased(&self, epoch: u64) -> Self {
        Self { n: self.n + 1, epoch, next_seq: 1, ..self.clone() }
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
        let settled = open().settled(7, 3);
        assert_eq!(settled.high_id, 50);
        assert_eq!(settled.next_seq, 4);
        assert_eq!(settled.lower, Snapshot("10:12:11".to_owned()));
        assert_eq!(settled.lower_horizon, Xid("14".to_owned()));
        assert_eq!(settled.window, None);
    }

    #[test]
    fn settling_remembers_the_highest_id_of_earlier_chunks() {
        let settled = open().advanced(90, 40).settled(0, 0);
        assert_eq!((settled.high_id, settled.next_seq, settled.n), (90, 41, 3));
    }

    #[test]
    fn slots_of_checkpoints_follow_their_number() {
        assert_eq!(slot_of(1), 0);
        assert_eq!(slot_of((1 << 17) - 1), 0);
        assert_eq!(slot_of(1 << 17), 1);
        assert_eq!(slot_of(16 << 17), 0);
    }
}
