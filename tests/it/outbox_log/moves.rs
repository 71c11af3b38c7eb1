//! What can happen to the log, in any order.

use proptest::prelude::*;

use super::{RELAYS, TOPICS, WRITERS};

/// One move of the world. Moves that make no sense at their moment do nothing, so that any sequence is a
/// valid one.
#[derive(Debug, Clone)]
pub(super) enum Move {
    TakeXid {
        writer: usize,
    },
    Append {
        writer: usize,
        topic: usize,
    },
    Savepoint {
        writer: usize,
    },
    RollbackToSavepoint {
        writer: usize,
    },
    Commit {
        writer: usize,
    },
    Rollback {
        writer: usize,
    },
    Prepare {
        writer: usize,
    },
    FinishPrepared {
        commit: bool,
    },
    StartStep {
        relay: usize,
    },
    FinishStep {
        relay: usize,
    },
    KillStep {
        relay: usize,
        published: usize,
    },
    /// The sink goes back to how it was so many numbers ago.
    Forget {
        numbers: u64,
    },
    NextSlot,
    Rotate,
    Pause,
    Resume,
}

pub(super) fn moves() -> impl Strategy<Value = Vec<Move>> {
    let writer = || 0..WRITERS;
    let relay = || 0..RELAYS;
    let one = prop_oneof![
        4 => writer().prop_map(|writer| Move::TakeXid { writer }),
        12 => (writer(), 0..TOPICS).prop_map(|(writer, topic)| Move::Append { writer, topic }),
        1 => writer().prop_map(|writer| Move::Savepoint { writer }),
        1 => writer().prop_map(|writer| Move::RollbackToSavepoint { writer }),
        6 => writer().prop_map(|writer| Move::Commit { writer }),
        1 => writer().prop_map(|writer| Move::Rollback { writer }),
        1 => writer().prop_map(|writer| Move::Prepare { writer }),
        1 => any::<bool>().prop_map(|commit| Move::FinishPrepared { commit }),
        6 => relay().prop_map(|relay| Move::StartStep { relay }),
        6 => relay().prop_map(|relay| Move::FinishStep { relay }),
        2 => (relay(), 0..4_usize).prop_map(|(relay, published)| Move::KillStep { relay, published }),
        1 => (1..9_u64).prop_map(|numbers| Move::Forget { numbers }),
        1 => Just(Move::NextSlot),
        1 => Just(Move::Rotate),
        1 => Just(Move::Pause),
        2 => Just(Move::Resume),
    ];
    prop::collection::vec(one, 40..120)
}
