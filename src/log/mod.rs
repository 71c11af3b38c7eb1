//! How the relay reads the log in Postgres: in windows, from a stored position.
//!
//! There are two append-only tables. Applications append to `outbox.event`. A relay inserts one row into
//! `outbox.checkpoint` for each step, and the newest row is its whole position. The hot path updates and
//! deletes nothing. So there is nothing to vacuum, and a long transaction elsewhere bloats nothing.
//!
//! Guarantees: each event of a committed transaction is in exactly one window. No event of a transaction that
//! is open or was rolled back is in a window. A window holds the same events in the same order however often
//! it is read.
//!
//! This module must not know Redis, HTTP or any application.

pub mod checkpoint;
pub mod contradiction;
pub mod contradictions;
pub mod database_id;
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
