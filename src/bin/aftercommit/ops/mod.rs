//! The operator's commands: each parses its arguments, connects, calls the use case and prints. Must not
//! contain the SQL of a use case; only doctor's checks have SQL of their own.

pub(crate) mod audit;
mod confirm;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod grants;
pub(crate) mod output;
pub(crate) mod parked;
pub(crate) mod pause;
pub(crate) mod probe;
pub(crate) mod rebase;
pub(crate) mod relays;
pub(crate) mod replay;
pub(crate) mod revoke;
pub(crate) mod status;
mod time;

use std::borrow::Cow;

use anyhow::Result;
use sqlx::PgConnection;

use aftercommit::log::read;
use aftercommit::ops::undelivered;
use aftercommit::outbox::schema;

use crate::config::Config;

/// Wrong usage that only the command itself can detect. Exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct WrongUsage(pub(crate) Cow<'static, str>);

/// The line in place of an empty list of relays: no relay has run, and the events that wait for one.
async fn no_relay(connection: &mut PgConnection) -> Result<String> {
    const NONE: &str = "no relay has run on this database yet";
    Ok(match undelivered::of_new_relay(connection).await? {
        None => format!("{NONE}: start one with `aftercommit relay`"),
        Some(waiting) => format!("{NONE}: {}: start `aftercommit relay`", output::undelivered(&waiting)),
    })
}

/// Connects to Postgres for reading the log, and checks that this binary understands the schema.
async fn connect(config: &Config) -> Result<PgConnection> {
    let mut connection = config.database.connect("aftercommit ops").await?;
    schema::SCHEMA.check(&mut connection).await?;
    Ok(connection)
}

/// The same, with query plans that use only index look-ups.
async fn connect_for_lookups(config: &Config) -> Result<PgConnection> {
    let mut connection = connect(config).await?;
    read::prepare_session(&mut connection).await?;
    Ok(connection)
}
