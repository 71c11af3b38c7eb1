//! `aftercommit pause|resume`: stopping deliveries for a while, and going on.

use anyhow::{Result, bail};
use serde_json::json;
use sqlx::Connection;

use aftercommit::log::checkpoint;
use aftercommit::ops::{audit, pause};

use super::confirm::operator;
use super::output;
use crate::config::Config;

/// Which relay, and why.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  aftercommit pause --reason 'Redis is being moved'
  aftercommit resume --reason 'Redis has moved'

Applications go on appending; nothing is lost. What is committed after the
pause waits for resume; so does, within a second, a backlog from before it. A
pause outlives restarts: only resume ends it. Readiness is red meanwhile, and
`aftercommit status` says so.")]
pub(crate) struct Args {
    /// The relay; [relay] name unless given.
    #[arg(value_name = "RELAY")]
    relay: Option<String>,
    /// Why, for the audit.
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// That nothing is delivered.
    Paused,
    /// That deliveries go on.
    Running,
}

/// Runs the command. Asking for what is already so is no error.
pub(crate) async fn run(config: &Config, args: &Args, wanted: Wanted) -> Result<()> {
    let relay = args.relay.as_ref().unwrap_or(&config.relay.name);
    let mut connection = super::connect(config).await?;
    if checkpoint::newest(&mut connection, relay).await?.is_none() {
        bail!("no relay named '{relay}' has run on this log: `aftercommit relay list` shows those that have");
    }
    let operator = operator(&args.reason);
    let mut tx = connection.begin().await?;
    let (changed, action, done) = match wanted {
        Wanted::Paused => (pause::pause(&mut tx, relay, &operator).await?, "pause", "paused"),
        Wanted::Running => (pause::resume(&mut tx, relay).await?, "resume", "running"),
    };
    if !changed {
        output::line(&format!("relay {relay} is {done} already"));
        return Ok(());
    }
    audit::write(&mut tx, &operator, action, &json!({ "relay": relay }), 0).await?;
    tx.commit().await?;
    super::ring(&mut connection).await;
    output::line(&format!("relay {relay} is {done}"));
    Ok(())
}
