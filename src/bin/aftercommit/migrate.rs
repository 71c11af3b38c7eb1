//! `aftercommit migrate`: applies the schemas of the outbox and of the upload application.

use anyhow::{Context, Result};
use sqlx::Connection;

use aftercommit::counted::counted;
use aftercommit::postgres::Schema;
use aftercommit::{outbox, uploads};

use crate::config::Config;

/// The schemas in the order in which they are applied.
pub(crate) const SCHEMAS: [&Schema; 2] = [&outbox::schema::SCHEMA, &uploads::schema::SCHEMA];

/// Applies what is missing, and says what that was.
pub(crate) async fn run(config: &Config) -> Result<()> {
    let (log, redis) = (&config.outbox, &config.redis);
    outbox::rotate::check(log.retention_seconds, redis.history_ttl_seconds, log.rotation_seconds)?;
    for schema in SCHEMAS {
        // A connection of its own for each: after an error it may still hold the migration lock, and is closed with it.
        let mut connection = config.database.connect("aftercommit migrate").await?;
        let applied = schema.apply(&mut connection).await?;
        connection.close().await?;
        match applied {
            0 => eprintln!("schema {}: up to date", schema.name),
            n => eprintln!("schema {}: applied {}", schema.name, counted(n as u64, "migration")),
        }
    }
    let mut connection = config.database.connect("aftercommit migrate").await?;
    outbox::schema::set_rotation(&mut connection, config.outbox.rotation_seconds)
        .await
        .context("cannot set how often the log rotates")?;
    connection.close().await?;
    Ok(())
}
