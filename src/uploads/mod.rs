//! The bundled application and first user of the outbox: photo uploads that report their progress live.
//!
//! Each command is load, decide, save, append, commit: the decision is a pure function of `session`, and state change
//! and events are one transaction. Everything below it in the tree knows nothing of uploads.

mod api;
mod commands;
mod error;
mod messages;
mod owners;
pub mod schema;
mod session;
mod settings;
mod store;
mod streams;

pub use api::{ApiState, router};
pub use settings::Settings;
pub use streams::{StreamsState, naming, router as streams_router};
