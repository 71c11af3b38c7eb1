//! The log in Postgres as the relay reads it: in windows, with a position that says how far it is.
//!
//! Two append-only tables. `outbox.event` takes what applications append; `outbox.checkpoint` takes one row for each
//! step of a relay, and the newest row is the relay's whole position. Nothing is updated or deleted on the hot path, so
//! there is nothing to vacuum and nothing that a long transaction elsewhere can bloat.
//!
//! Guarantees: every event of a committed transaction comes in exactly one window, no event of another one in any;
//! a window holds the same events in the same order however often it is read. Knows no Redis, no HTTP, no application.

pub mod checkpoint;
pub mod contradiction;
pub mod contradictions;
pub mod delivered_before;
mod error;
pub mod heartbeat;
pub mod identity;
pub mod lead;
pub mod overview;
pub mod parked;
pub mod pause;
pub mod position;
pub mod read;
pub mod release;
pub mod restore;
pub mod rotate;
pub(crate) mod time;
pub mod unreadable;
pub(crate) mod waiting;

pub use error::Error;
pub use position::{Position, Snapshot, Window, Xid};
