//! The writer's API: append events in a transaction, and ring the bell after its commit.
//!
//! ```no_run
//! # async fn example(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
//! use aftercommit::event::{EventType, NewEvent, Topic};
//! use aftercommit::outbox;
//!
//! let mut tx = pool.begin().await?;
//! sqlx::query("update orders set status = 'PAID' where id = $1").bind(42).execute(&mut *tx).await?;
//! let payload = serde_json::json!({ "order": 42 });
//! let event = NewEvent::new(Topic::new("order:42")?, EventType::new("PAID")?, &payload)?;
//! outbox::append(&mut tx, &event).await?;
//! tx.commit().await?;
//! # Ok(())
//! # }
//! ```

pub mod append;
pub mod bell;
mod error;
pub mod schema;

pub use append::{append, append_all, lock_topic, resume_token};
pub use bell::Bell;
pub use error::AppendError;
#[cfg(feature = "server")]
pub(crate) use error::schema_is_missing;
