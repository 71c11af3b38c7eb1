//! The sink model: from the log's position to a reader.

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
};

fn holds(name: &str, bounds: Bounds) {
    assert_holds(name, SinkModel { rules: Rules::PROTOCOL, bounds });
}

#[test]
fn quiet() {
    holds("sink, quiet", Bounds { relays: 2, kills: 0, failures: 1, departures: 1, ..QUIET });
}

#[test]
fn redis_back() {
    holds("sink, redis back", Bounds { redis_goes_back: 1, rotations: 1, departures: 1, ..QUIET });
}

#[test]
fn redis_back2() {
    holds("sink, redis back, 2 relays", Bounds { redis_goes_back: 1, rotations: 1, relays: 2, ..QUIET });
}

#[test]
fn redis_vanish() {
    holds("sink, vanish", Bounds { vanishes: 1, trims: 1, kills: 1, departures: 1,  ..QUIET });
}

#[test]
fn postgres_back() {
    holds("sink, postgres back", Bounds { postgres_goes_back: 1, departures: 1,  ..QUIET });
}

#[test]
fn parked() {
    holds("sink, parked", Bounds { refusals: 1, discards: 1,  moves: 1, ..QUIET });
}


fn xn(name: &str, bounds: Bounds) {
    assert_holds(name, SinkModel { rules: Rules { releases_use_up_a_number: true, ..Rules::PROTOCOL }, bounds});
}
#[test]
fn x_a_parked_redis_new() {
    xn("x parked x redis back, new numbers", Bounds { refusals: 1, redis_goes_back: 1, departures: 1, ..QUIET });
}
#[test]
fn x_b_parked_relays_new() {
    xn("x parked x relays new", Bounds { refusals: 1, discards: 1, relays: 2, ..QUIET });
}
#[test]
fn x_b_parked_moves_new() {
    xn("x parked x moves new", Bounds { refusals: 1, discards: 1, moves: 1, ..QUIET });
}
#[test]
fn x_f_both2() {
    holds("x both", Bounds { backlog: 0, events: 2, batch: 1, postgres_goes_back: 1, redis_goes_back: 1, departures: 1, ..QUIET });
}
