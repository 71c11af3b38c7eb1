//! Exploring a model: every state within its bounds, and the shortest way to a state that breaks a property.

use std::collections::BTreeSet;
use std::fmt::{Debug, Display, Write as _};
use std::hash::Hash;
use std::io::Write as _;
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model, Path};

/// How many threads one exploration takes. The test runner explores several models at once.
const THREADS: usize = 1;

/// A state that an exploration can begin with.
pub(super) trait Begin {
    /// What tells it from other ones, as a line of a trace.
    fn begin(&self) -> String;
}

/// Explores all states and asserts that every property holds in each of them.
pub(super) fn assert_holds<M>(name: &str, model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: Begin + Clone + Debug + Hash + Send + Sync + PartialEq + 'static,
    M::Action: Display + PartialEq + Debug + Clone,
{
    let begun = Instant::now();
    let finish = HasDiscoveries::AnyFailures;
    let checker = model.checker().threads(THREADS).finish_when(finish).spawn_bfs().join();
    if let Some((property, path)) = checker.discoveries().into_iter().next() {
        panic!("{name}: '{property}' does not hold after\n{}", trace(path));
    }
    assert!(checker.is_done(), "{name}: the exploration is complete");
    print(name, "every property holds", checker.unique_state_count(), begun);
}

/// Explores states until one breaks the named property, and asserts that there is one. Prints the shortest
/// way to it.
pub(super) fn assert_breaks<M>(name: &str, property: &'static str, model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: Begin + Clone + Debug + Hash + Send + Sync + PartialEq + 'static,
    M::Action: Display + PartialEq + Debug + Clone,
{
    let begun = Instant::now();
    let finish = HasDiscoveries::AllOf(BTreeSet::from([property]));
    let checker = model.checker().threads(THREADS).finish_when(finish).spawn_bfs().join();
    let states = checker.unique_state_count();
    let Some(path) = checker.discovery(property) else {
        panic!("{name}: no counterexample for '{property}' among {states} states");
    };
    print(name, &format!("'{property}' breaks"), states, begun);
    println!("{}", trace(path));
}

/// Says how much was explored, past the test runner, which shows only what failing tests print.
fn print(name: &str, outcome: &str, states: usize, begun: Instant) {
    let seconds = begun.elapsed().as_secs_f64();
    let line = format!("protocol: {name}: {states} states in {seconds:.1} s: {outcome}\n");
    // A line that cannot be written changes no result.
    let _written = std::io::stderr().write_all(line.as_bytes());
}

fn trace<S: Begin, A: Display>(path: Path<S, A>) -> String {
    let steps = path.into_vec();
    let mut text = steps.first().map_or_else(String::new, |(state, _)| state.begin());
    for (at, action) in steps.iter().filter_map(|(_, action)| action.as_ref()).enumerate() {
        // Writing to a String cannot fail.
        let _infallible = writeln!(text, "  {:>2}. {action}", at + 1);
    }
    text
}
