//! The bundled application and first user of the outbox: photo uploads that report their progress live.
//!
//! Each command is load, decide, save, append, commit. The decision is a pure function of `session`. The
//! change of state and its events are one transaction. No other part of the library may know uploads.

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
