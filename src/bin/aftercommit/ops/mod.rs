//! The ops commands: parse, connect, ask the log, print.

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
pub(crate) mod status;
mod time;

use std::borrow::Cow;

use anyhow::Result;
use sqlx::PgConnection;

use aftercommit::log::read;
use aftercommit::ops::undelivered;
use aftercommit::outbox::schema;

use crate::config::Config;

/// A command line that cannot be meant, where only the command itself can tell: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct WrongUsage(pub(crate) Cow<'static, str>);

/// What is said where a list of relays would be empty: that there is none, and what waits for one.
async fn no_relay(connection: &mut PgConnection) -> Result<String> {
    const NONE: &str = "no relay has run on this database yet";
    Ok(match undelivered::of_new_relay(connection).await? {
        None => format!("{NONE}: start one with `aftercommit relay`"),
        Some(waiting) => format!("{NONE}: {}", output::undelivered(&waiting)),
    })
}

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
