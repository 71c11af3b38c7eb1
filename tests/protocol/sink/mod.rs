//! The sink model: from the log's position to one reader, with every store and process that can fail.
//!
//! Covers: numbers and epochs; the publishing script with its `top`, its histories and each entry's `prev`;
//! repeats, conflicts and gaps; calls that fail in the middle; two relays that both believe that they lead;
//! parked events, and requests to release and discard them; a Redis that goes back or loses one history, its
//! repair, and what a repair cannot give back; a Postgres that goes back; a rebase; a reader that goes away
//! and comes back with its place.
//!
//! Simpler than the product: events are committed in the order of their rows, as what a window holds is the
//! `log` model's matter; a live message reaches the server at once, or waits while it joins; a repair whose
//! topic is refused waits until that is mended.
//!
//! Known limits:
//!
//! - Both stores going back in one run gives a number to two events: a test in `mutants` shows it.
//! - A reader at the start of a topic whose history vanishes while it is away learns so with the topic's next
//!   event, not before: part of the properties.

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
    let bounds = Bounds { vanishes: 1, trims: 1, departures: 1, ..QUIET };
    holds("sink, a history vanishes", Bounds { kills: 1, ..bounds });
    // A relay that remembers the topic's last id needs no look into the log.
    let rules = Rules { first_is_known: false, ..Rules::PROTOCOL };
    assert_holds("sink, a history vanishes under a relay that remembers", SinkModel { rules, bounds });
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
}

#[test]
fn parked_events_and_a_postgres_that_goes_back() {
    let bounds = Bounds { backlog: 1, events: 1, refusals: 1, postgres_goes_back: 1, ..QUIET };
    holds("sink, parked events and Postgres goes back", bounds);
}

#[test]
fn parked_events_under_two_relays() {
    let bounds = Bounds { backlog: 2, events: 0, refusals: 1, discards: 1, relays: 2, ..QUIET };
    holds("sink, parked events under two relays", bounds);
}

#[test]
fn discarded_events_and_a_redis_that_goes_back() {
    let bounds = Bounds { refusals: 1, discards: 1, redis_goes_back: 1, events: 0, kills: 1, ..QUIET };
    holds("sink, discarded events and Redis goes back", bounds);
}

#[test]
fn released_events_and_a_redis_that_goes_back() {
    let bounds = Bounds { refusals: 1, redis_goes_back: 1, departures: 1, ..QUIET };
    holds("sink, released events and Redis goes back", bounds);
}

#[test]
fn a_history_that_vanishes_under_two_relays() {
    let bounds = Bounds { events: 0, vanishes: 1, relays: 2, batch: 1, ..QUIET };
    holds("sink, a history vanishes under two relays", bounds);
}

#[test]
fn parked_events_under_two_relays_and_a_redis_that_goes_back() {
    let bounds = Bounds { backlog: 1, events: 0, refusals: 1, redis_goes_back: 1, relays: 2, ..QUIET };
    holds("sink, parked events under two relays, Redis goes back", bounds);
}

/// Larger bounds, for a change of the protocol: `cargo test --test protocol -- --ignored --nocapture`.
mod larger {
    use super::{Bounds, QUIET, holds};

    const TWO: Bounds = Bounds { relays: 2, departures: 1, ..QUIET };

    #[test]
    #[ignore = "takes minutes"]
    fn stores_that_go_back() {
        let one = Bounds { departures: 1, ..QUIET };
        holds("sink, Redis goes back twice", Bounds { redis_goes_back: 2, rotations: 1, ..one });
        holds(
            "sink, Postgres goes back, a move",
            Bounds { kills: 1, moves: 1, postgres_goes_back: 1, ..one },
        );
        holds("sink, Redis goes back under two relays", Bounds { redis_goes_back: 1, rotations: 1, ..TWO });
        holds("sink, Postgres goes back under two relays", Bounds { postgres_goes_back: 1, ..TWO });
        let bounds = Bounds { moves: 1, redis_goes_back: 1, events: 0, ..TWO };
        holds("sink, a rebase while Redis goes back under two relays", bounds);
    }

    #[test]
    #[ignore = "takes minutes"]
    fn parked_events() {
        holds("sink, parked events under two relays", Bounds { refusals: 1, discards: 1, ..TWO });
        let bounds = Bounds { refusals: 1, discards: 1, postgres_goes_back: 1, ..QUIET };
        holds("sink, parked events and Postgres goes back", bounds);
    }

    #[test]
    #[ignore = "takes minutes"]
    fn vanished_histories_and_rebases() {
        let bounds = Bounds { vanishes: 1, trims: 1, ..TWO };
        holds("sink, a history vanishes under two relays", bounds);
        let bounds = Bounds { refusals: 2, redis_goes_back: 1, moves: 1, events: 0, relays: 1, ..TWO };
        holds("sink, a rebase while Redis goes back", bounds);
    }
}
