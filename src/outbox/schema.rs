//! The log's schema: applying its migrations, and telling whether a database has them.

use sqlx::migrate::Migrator;

use crate::postgres::Schema;

static MIGRATOR: Migrator = sqlx::migrate!("migrations/outbox");

/// The schema `outbox`, with its own migration table, so that it lives beside an application's schemas undisturbed.
pub static SCHEMA: Schema = Schema { name: "outbox", migrator: &MIGRATOR };
