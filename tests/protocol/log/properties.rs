//! What must hold in every state of the log model.

use stateright::Property;

use super::LogModel;
use super::actions::{Action, relay_steps};
use super::state::{State, TOPIC, Writer};

/// When nothing is left to do, every committed event has been published.
pub(super) const DELIVERED: &str = "no committed event is lost";
/// No event is published under two numbers.
pub(super) const ONCE: &str = "no event has two numbers";
/// Events of a topic are published in the order of their rows' ids.
pub(super) const ORDER: &str = "the order within a topic is kept";
/// Only events of committed transactions are published.
pub(super) const COMMITTED: &str = "nothing of a rolled-back transaction is published";
/// No number is offered to the sink for two events.
pub(super) const NUMBERS: &str = "no number is given to two events";

pub(super) fn all() -> Vec<Property<LogModel>> {
    vec![
        Property::always(DELIVERED, |model: &LogModel, state| is_delivered(model, state)),
        Property::always(ONCE, |_, state| is_once(state)),
        Property::always(ORDER, |_, state| is_ordered(state)),
        Property::always(COMMITTED, |_, state| is_committed(state)),
        Property::always(NUMBERS, |_, state: &State| !state.has_conflict),
    ]
}

/// Relays that have stopped by themselves have delivered everything. (One that was killed loads again, which
/// is a step.)
fn is_delivered(model: &LogModel, state: &State) -> bool {
    let mut steps: Vec<Action> = Vec::new();
    for r in 0..model.bounds.relays {
        relay_steps(&model.rules, &model.bounds, state, r, &mut steps);
        if !steps.is_empty() {
            return true;
        }
    }
    let is_published = |w: u8| state.published.contains(&w);
    (0_u8..).zip(&state.writers).all(|(w, writer)| !matches!(writer, Writer::Committed(_)) || is_published(w))
}

fn is_once(state: &State) -> bool {
    state.published.iter().enumerate().all(|(at, event)| !state.published[at + 1..].contains(event))
}

fn is_ordered(state: &State) -> bool {
    let topic = |w: u8| TOPIC[usize::from(w)];
    let id = |w: u8| state.row(w).map(|row| row.id);
    state.published.iter().enumerate().all(|(at, event)| {
        state.published[at + 1..]
            .iter()
            .all(|later| topic(*later) != topic(*event) || id(*later) >= id(*event))
    })
}

fn is_committed(state: &State) -> bool {
    state.published.iter().all(|w| matches!(state.writers[usize::from(*w)], Writer::Committed(_)))
}
