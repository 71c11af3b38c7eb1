//! The application's own schema, beside the outbox's.

use sqlx::migrate::Migrator;

use crate::postgres::Schema;

static MIGRATOR: Migrator = sqlx::migrate!("migrations/uploads");

/// The schema `uploads`.
pub static SCHEMA: Schema =
    Schema { name: "uploads", migrator: &MIGRATOR, command: "aftercommit migrate --uploads" };
