//! The ops commands: parse, connect, ask the log, print.

mod confirm;
pub(crate) mod events;
mod output;
pub(crate) mod rebase;
pub(crate) mod replay;
pub(crate) mod status;
mod time;

use anyhow::Result;
use sqlx::PgConnection;

use aftercommit::outbox::{read, schema};

use crate::config::Config;

/// A connection for looking at the log, after making sure that the log is one that this binary understands.
async fn connect(config: &Config) -> Result<PgConnection> {
    let mut connection = config.database.connect("aftercommit ops").await?;
    schema::SCHEMA.check(&mut connection).await?;
    Ok(connection)
}

/// The same, planned for index look-ups only.
async fn connect_for_lookups(config: &Config) -> Result<PgConnection> {
    let mut connection = connect(config).await?;
    read::prepare_session(&mut connection).await?;
    Ok(connection)
}
