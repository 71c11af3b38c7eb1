//! The sink model: from the log's position to one reader, with every store and process that can fail.
//!
//! Covers: numbers and epochs; the publishing script with its `top`, its histories and each entry's `prev`; repeats,
//! conflicts and gaps; calls that fail in the middle; two relays that both believe that they lead; parked events, and
//! requests to release and discard them; a Redis that goes back or loses one history, its repair, and what a repair
//! cannot give back; a Postgres that goes back; a rebase; a reader that goes away and comes back with its place.
//!
//! Events are committed in the order of their rows here: what a window holds is the `log` model's matter.
//!
//! Known limits, each shown by a test of its own: a release that leaves no trace in `top`
//! (`mutants::a_release_under_old_numbers_...`), and both stores going back in one run
//! (`mutants::both_stores_going_back_...`). A third one is part of the properties: a reader at the start of a topic whose
//! history vanishes while it is away learns so with the topic's next event, not before.

mod actions;
mod mutants;
mod operators;
mod postgres;
mod properties;
mod reader;
mod redis;
mod relay;
mod rules;
mod state;

use stateright::{Model, Property};

use crate::explore::assert_holds;
use actions::Action;
use rules::{Bounds, Rules};
use state::State;

/// The model, with its rules and bounds.
#[derive(Debug, Clone, Copy)]
struct SinkModel {
    rules: Rules,
    bounds: Bounds,
}

impl Model for SinkModel {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let backlogs = 0_u8..1 << self.bounds.backlog;
        backlogs
            .map(|bits| (0..self.bounds.backlog).map(|at| bits >> at & 1).collect::<Vec<u8>>())
            .map(|topics| State::new(self.bounds, &topics))
            .collect()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions::enabled(&self.rules, state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        Some(actions::apply(&self.rules, state, action))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}

/// No faults but those that a process can have by itself.
const QUIET: Bounds = Bounds {
    backlog: 2,
    events: 1,
    relays: 1,
    batch: 2,
    redis_goes_back: 0,
    vanishes: 0,
    trims: 0,
    rotations: 0,
    postgres_goes_back: 0,
    moves: 0,
    refusals: 0,
    failures: 0,
    kills: 0,
    departures: 0,
    discards: 0,
    runs: false,
};

/// Released events that use up a number of their own.
const NUMBERED_RELEASES: Rules = Rules { releases_use_up_a_number: true, ..Rules::PROTOCOL };

fn holds(name: &str, bounds: Bounds) {
    assert_holds(name, SinkModel { rules: Rules::PROTOCOL, bounds });
}

#[test]
fn two_relays_and_calls_that_fail() {
    holds("sink, two relays", Bounds { relays: 2, failures: 1, departures: 1, ..QUIET });
}

#[test]
fn calls_that_fail_again_and_again() {
    let bounds =
        Bounds { backlog: 3, events: 0, batch: 3, failures: 2, trims: 1, kills: 1, runs: true, ..QUIET };
    holds("sink, failing calls", bounds);
}

#[test]
fn a_redis_that_goes_back() {
    let bounds = Bounds { redis_goes_back: 1, rotations: 1, departures: 1, ..QUIET };
    holds("sink, Redis goes back", Bounds { runs: true, ..bounds });
    holds(
        "sink, Redis goes back, small steps",
        Bounds { backlog: 3, events: 0, rotations: 2, batch: 1, ..bounds },
    );
}

#[test]
fn a_redis_that_goes_back_under_two_relays() {
    let bounds = Bounds { events: 0, redis_goes_back: 1, rotations: 1, relays: 2, departures: 1, ..QUIET };
    holds("sink, Redis goes back under two relays", bounds);
}

#[test]
fn a_history_that_vanishes() {
    let bounds = Bounds { vanishes: 1, trims: 1, kills: 1, departures: 1, ..QUIET };
    holds("sink, a history vanishes", bounds);
}

#[test]
fn a_postgres_that_goes_back() {
    let bounds = Bounds { postgres_goes_back: 1, departures: 1, runs: true, ..QUIET };
    holds("sink, Postgres goes back", bounds);
    holds(
        "sink, Postgres goes back under two relays",
        Bounds { backlog: 1, departures: 0, relays: 2, runs: false, ..bounds },
    );
}

#[test]
fn a_log_that_is_rebased_while_redis_goes_back() {
    let bounds = Bounds { moves: 1, redis_goes_back: 1, departures: 1, ..QUIET };
    holds("sink, a rebase while Redis goes back", bounds);
}

#[test]
fn parked_events_and_a_rebase() {
    let bounds = Bounds { refusals: 1, discards: 1, moves: 1, ..QUIET };
    holds("sink, parked events and a rebase", Bounds { runs: true, ..bounds });
    let rules = NUMBERED_RELEASES;
    assert_holds("sink, numbered releases and a rebase", SinkModel { rules, bounds });
}

#[test]
fn parked_events_under_two_relays() {
    let bounds = Bounds { backlog: 2, events: 0, refusals: 1, discards: 1, relays: 2, ..QUIET };
    holds("sink, parked events under two relays", bounds);
    let rules = NUMBERED_RELEASES;
    assert_holds("sink, numbered releases under two relays", SinkModel { rules, bounds });
}

#[test]
fn numbered_releases_and_a_redis_that_goes_back() {
    let bounds = Bounds { refusals: 1, redis_goes_back: 1, departures: 1, ..QUIET };
    let rules = NUMBERED_RELEASES;
    assert_holds("sink, numbered releases and Redis goes back", SinkModel { rules, bounds });
}

/// Larger bounds, for a change of the protocol: `cargo test --test protocol -- --ignored --nocapture`.
#[test]
#[ignore = "explores millions of states: minutes"]
fn larger_bounds() {
    let two = Bounds { relays: 2, departures: 1, ..QUIET };
    holds("sink, Redis goes back twice", Bounds { redis_goes_back: 2, rotations: 1, departures: 1, ..QUIET });
    holds(
        "sink, a kill and a move",
        Bounds { kills: 1, moves: 1, postgres_goes_back: 1, departures: 1, ..QUIET },
    );
    holds("sink, a history vanishes under two relays", Bounds { vanishes: 1, trims: 1, ..two });
    holds("sink, Redis goes back under two relays", Bounds { redis_goes_back: 1, rotations: 1, ..two });
    holds("sink, Postgres goes back under two relays", Bounds { postgres_goes_back: 1, ..two });
    holds("sink, a rebase under two relays", Bounds { moves: 1, redis_goes_back: 1, events: 0, ..two });
    holds("sink, parked events under two relays", Bounds { refusals: 1, discards: 1, ..two });
    holds(
        "sink, parked events, Postgres goes back",
        Bounds { refusals: 1, discards: 1, postgres_goes_back: 1, ..QUIET },
    );
    let rules = NUMBERED_RELEASES;
    let bounds = Bounds { refusals: 2, redis_goes_back: 1, moves: 1, events: 0, ..two };
    assert_holds(
        "sink, numbered releases and all else",
        SinkModel { rules, bounds: Bounds { relays: 1, ..bounds } },
    );
    let bounds = Bounds { refusals: 1, redis_goes_back: 1, events: 0, ..two };
    assert_holds("sink, numbered releases under two relays", SinkModel { rules, bounds });
}
