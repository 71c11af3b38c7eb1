//! `aftercommit pause|resume`: stopping deliveries for a while, and going on.

use anyhow::Result;
use sqlx::Connection;

use aftercommit::ops::{pause, relays};

use super::confirm::Signature;
use super::output;
use crate::config::Config;

/// The relay and the reason.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  aftercommit pause --reason 'Redis is being moved'
  aftercommit resume --reason 'Redis has moved'

Applications go on appending; nothing is lost. What is committed after the
pause waits for resume; so does, within a second, a backlog from before it. A
pause outlives restarts: only resume ends it. Readiness is red meanwhile, and
`aftercommit status` says so. A pause needs a reason.")]
pub(crate) struct Args {
    /// The relay; [relay] name unless given.
    #[arg(value_name = "RELAY")]
    relay: Option<String>,
    #[command(flatten)]
    signature: Signature,
}

/// The state that an operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The relay delivers nothing.
    Paused,
    /// The relay delivers.
    Running,
}

/// Runs the command. Asking for the state in which the relay is already is no error.
pub(crate) async fn run(config: &Config, args: &Args, wanted: Wanted) -> Result<()> {
    let relay = args.relay.as_ref().unwrap_or(&config.relay.name);
    if wanted == Wanted::Paused {
        // The reason is the first that others see of a system that delivers nothing.
        args.signature.needs_a_reason()?;
    }
    let operator = args.signature.operator()?;
    let mut connection = super::connect(config).await?;
    let mut tx = connection.begin().await?;
    let (changed, state) = match wanted {
        Wanted::Paused => (pause::pause(&mut tx, relay, &operator).await?, "paused"),
        Wanted::Running => (pause::resume(&mut tx, relay, &operator).await?, "running"),
    };
    if !changed {
        output::line(&format!("relay {relay} is {state} already"));
        return Ok(());
    }
    tx.commit().await?;
    relays::wake(&mut connection).await;
    output::line(&format!("relay {relay} is {state}"));
    Ok(())
}
