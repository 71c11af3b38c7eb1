//! Moves the log to a sink, in order: one bounded step, and a loop around it.
//!
//! Guarantees: the log's events reach the sink in the order of the windows. Each event keeps one number for
//! ever, however often and wherever a relay dies. This module uses no type and no command of Redis, and
//! nothing of HTTP. Only its messages name Redis, because operators read them. It never reads a payload.
//!
//! - [`Sink`]: the interface of the place that the relay publishes to.
//! - [`step`]: one batch read, published and written down. It holds all of the ordering.
//! - [`reconcile`]: compares the sink with the position, and restores the events that the sink has forgotten.
//! - `requests`: releases and discards of parked events, as operators ask for them.
//! - [`failure`]: the classes of failures and their remedies.
//! - `turns`: the loop of one lead, with its waits and retries.
//! - [`mod@run`]: the loop around the sessions with Postgres.

pub mod failure;
mod idle;
mod leader;
pub mod metrics;
mod monitor;
mod news;
mod publication;
pub mod reconcile;
mod requests;
mod rotation_task;
pub mod run;
mod run_error;
#[cfg(test)]
mod scripted_sink;
mod session;
pub mod settings;
pub mod sink;
pub mod state;
pub mod step;
mod submit;
mod turns;
mod wake;

pub use metrics::Metrics;
pub use reconcile::Reconciled;
pub use run::run;
pub use settings::{OnPoison, Settings};
pub use sink::{Batch, Delivery, PublishError, PublishMode, Reached, Sink};
pub use state::{BacklogStatus, Role, State, StateHandle};
pub use step::{Outcome, Rules, Step, StepError};
