//! Moves the log to a sink, in order: one bounded step, and a loop around it.
//!
//! Guarantees: what the log holds reaches the sink in the order of the windows, each event under one number for ever,
//! however often a relay dies and wherever. Knows neither Redis nor HTTP, and never reads a payload.
//!
//! - [`Sink`]: what the relay needs of the place it publishes to.
//! - [`step`]: one batch read, published and written down. All of the ordering is there.
//! - [`reconcile`]: what the sink has, compared with the position; what it forgot is given again.
//! - [`failure`]: what is done about each error of Redis and Postgres.
//! - [`mod@run`]: leading, waking, waiting, retrying. All of the loops and timers are there.

pub mod failure;
mod handing;
mod leader;
pub mod metrics;
mod monitor;
mod publication;
pub mod reconcile;
mod rotation_task;
pub mod run;
#[cfg(test)]
mod scripted_sink;
mod session;
pub mod settings;
pub mod sink;
pub mod state;
pub mod step;
mod wake;

pub use metrics::Metrics;
pub use reconcile::Reconciled;
pub use run::run;
pub use settings::{OnPoison, Settings};
pub use sink::{Batch, Delivery, PublishError, PublishMode, Reached, Sink};
pub use state::{BacklogStatus, Role, State, StateHandle};
pub use step::{Outcome, Rules, Step, StepError};
