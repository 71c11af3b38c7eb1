//! The log in Postgres: appending to it, reading it in windows, and remembering how far.
//!
//! Two append-only tables. `outbox.event` takes what applications append; `outbox.checkpoint` takes one row for each
//! step of a relay, and the newest row is the relay's whole position. Nothing is updated or deleted on the hot path, so
//! there is nothing to vacuum and nothing that a long transaction elsewhere can bloat.
//!
//! Guarantees: every event of a committed transaction comes in exactly one window, no event of another one in any;
//! a window holds the same events in the same order however often it is read. Knows no Redis, no HTTP, no application.
//!
//! ```no_run
//! # async fn example(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
//! use aftercommit::event::{EventType, NewEvent, Topic};
//! use aftercommit::outbox;
//!
//! let mut tx = pool.begin().await?;
//! sqlx::query("update orders set status = 'PAID' where id = $1").bind(42).execute(&mut *tx).await?;
//! let event = NewEvent::new(Topic::new("order:42")?, EventType::new("PAID")?, &serde_json::json!({ "order": 42 }))?;
//! outbox::append(&mut tx, &event).await?;
//! tx.commit().await?;
//! # Ok(())
//! # }
//! ```

pub mod append;
pub mod audit;
pub mod bell;
pub mod browse;
pub mod checkpoint;
pub mod contradiction;
pub mod contradictions;
mod error;
pub mod heartbeat;
pub mod identity;
pub mod lead;
pub mod life;
pub mod overview;
pub mod parked;
pub mod parked_topics;
pub mod pause;
pub mod position;
pub mod read;
pub mod rebase;
pub mod release;
mod renumber;
pub mod replay;
mod replay_sql;
pub mod restore;
pub mod rotate;
pub mod schema;
mod time;
pub mod undelivered;
pub mod unreadable;
pub mod verdict;
mod waiting;

pub use append::{append, append_all, lock_topic};
pub use bell::Bell;
pub use error::{AppendError, Error};
pub use position::{Position, Snapshot, Window, Xid};
