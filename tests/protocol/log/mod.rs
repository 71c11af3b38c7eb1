//! The log model: from a writer's transaction to the numbers that the sink is offered.
//!
//! Covers: transactions that take their xid, later their row's id, and commit late or roll back, with a row
//! lock for each topic; snapshots whose xmax is the latest ended xid plus one; the horizon; windows that are
//! written down before they are read; two relays that both believe that they lead, and can stop between any
//! two effects; the primary key as the fence; a reading connection that ends up at a server that lags.
//!
//! Leaves out what the `sink` model covers: everything that can happen to the sink, and a Postgres that goes
//! back.

mod actions;
mod mutants;
mod properties;
mod rules;
mod state;

use stateright::{Model, Property};

use crate::explore::assert_holds;
use actions::Action;
use rules::{Bounds, Rules};
use state::State;

/// The model, with its rules and bounds.
#[derive(Debug, Clone, Copy)]
struct LogModel {
    rules: Rules,
    bounds: Bounds,
}

impl Model for LogModel {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(self.bounds.kills)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions::enabled(&self.rules, &self.bounds, state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        Some(actions::apply(&self.rules, state, action))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}

/// Three transactions and one relay: what the reading rule has to find.
const LATE_COMMITS: Bounds = Bounds { writers: 3, relays: 1, kills: 1, has_replica: false };
/// Two relays that know nothing of each other.
const TWO_RELAYS: Bounds = Bounds { writers: 2, relays: 2, kills: 1, has_replica: false };
/// One relay whose reads may end up at a server that lags.
const A_LAGGING_SERVER: Bounds = Bounds { writers: 2, relays: 1, kills: 1, has_replica: true };

#[test]
fn late_commits_and_rollbacks_lose_nothing() {
    assert_holds("log, late commits", LogModel { rules: Rules::PROTOCOL, bounds: LATE_COMMITS });
}

#[test]
fn two_relays_lose_and_repeat_nothing() {
    assert_holds("log, two relays", LogModel { rules: Rules::PROTOCOL, bounds: TWO_RELAYS });
}

#[test]
fn a_reader_that_ends_up_at_a_lagging_server_loses_nothing() {
    assert_holds("log, a lagging server", LogModel { rules: Rules::PROTOCOL, bounds: A_LAGGING_SERVER });
}
