//! What must hold in every state of the sink model.

use stateright::Property;

use super::SinkModel;
use super::actions::{apply, progress};
use super::postgres::Fate;
use super::reader::{Mode, READ_TOPIC};
use super::state::{Doing, State};

/// L: a reader that is told an event has been told all of its topic before it, or a reset.
pub(super) const LOST: &str = "no event is lost without a reset";
/// D: without a reset, nobody is told an event twice.
pub(super) const TWICE: &str = "no event is told twice";
/// O: events of a topic are told in the order of their rows.
pub(super) const ORDER: &str = "the order within a topic is kept";
/// I: a reader that was told an event which Postgres has lost is reset before it is told anything else.
pub(super) const PHANTOM: &str = "an event that Postgres lost is followed by a reset";
/// S: a reader is reset only after a store went back, a history vanished, a discard, or a rebase.
pub(super) const GROUNDLESS: &str = "no reset without a cause";
/// E: when faults have stopped and nothing is left to do, everything has been delivered.
pub(super) const DELIVERED: &str = "when faults stop, everything is delivered";
/// E, from every state: a run without faults comes to an end, and everything is delivered by then.
pub(super) const ENDS: &str = "a run without faults ends, with everything delivered";
/// R: what an operator asks for is done with the rows that the operator saw.
pub(super) const NAMED: &str = "requests are carried out on the rows that they name";
/// G: what somebody was told is not given up, or a repair would leave it out.
pub(super) const GIVEN_UP: &str = "a discard gives up nothing that was told";

/// More steps than any run without faults takes within the bounds.
const RUN_STEPS: usize = 100;

pub(super) fn all() -> Vec<Property<SinkModel>> {
    vec![
        Property::always(LOST, |_, state: &State| !state.broken.lost),
        Property::always(TWICE, |_, state: &State| !state.broken.twice),
        Property::always(ORDER, |_, state: &State| !state.broken.order),
        Property::always(PHANTOM, |_, state: &State| !state.broken.phantom),
        Property::always(GROUNDLESS, |_, state: &State| !state.broken.groundless_reset),
        Property::always(NAMED, |_, state: &State| !state.broken.unnamed_rows),
        Property::always(GIVEN_UP, |_, state: &State| !state.broken.discarded_after_told),
        Property::always(ENDS, |model: &SinkModel, state| !model.bounds.runs || ends(model, state)),
        Property::always(DELIVERED, |model: &SinkModel, state| is_delivered(model, state)),
    ]
}

/// Where nothing is left to do, no relay waits for a person, and the reader has all of its topic but what is
/// set aside.
fn is_delivered(model: &SinkModel, state: &State) -> bool {
    let mut steps = vec![];
    progress(&model.rules, state, &mut steps);
    if !steps.is_empty() || state.refused != 0 || state.left.relays == 0 {
        return true;
    }
    let relays = &state.relays[..usize::from(state.left.relays)];
    let is_stuck = relays.iter().any(|relay| matches!(relay.doing, Doing::Stopped { .. }));
    !is_stuck && state.log.position.done == state.log.last_row() && has_everything(state)
}

/// Follows one run without faults.
fn ends(model: &SinkModel, from: &State) -> bool {
    let mut state = from.clone();
    state.refused = 0;
    for _ in 0..RUN_STEPS {
        let mut steps = vec![];
        progress(&model.rules, &state, &mut steps);
        // The last one, so that a rebase that holds the log locked goes on before relays try again.
        let Some(step) = steps.last() else { return is_delivered(model, &state) };
        state = apply(&model.rules, &state, *step);
    }
    false
}

fn has_everything(state: &State) -> bool {
    let has = state.reader.told | state.reader.known | state.discarded;
    let is_waiting = |row: u8| state.log.parked.iter().any(|p| p.row == row && p.fate == Fate::Waiting);
    // A reader at the start of a topic cannot tell a history that vanished from one that never was, before
    // the next event.
    let cannot_know = state.causes.vanished && state.reader.place.is_none();
    state.reader.mode == Mode::Live
        && (cannot_know
            || state
                .log
                .rows_of(READ_TOPIC)
                .all(|row| has & (1 << state.log.event(row).uuid) != 0 || is_waiting(row)))
}
