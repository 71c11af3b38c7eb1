//! `aftercommit relay list`: lists the relays of this log, one line each.

use anyhow::Result;

use aftercommit::log::overview::{self, RelayOverview};
use aftercommit::ops::verdict::Verdict;

use super::output::{self, Output};
use crate::config::Config;

/// The subcommands of `aftercommit relay`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List the relays that have run on this log.
    #[command(after_help = "Example: aftercommit relay list --output json")]
    List {
        /// How to print the data.
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
}

/// Runs the command.
pub(crate) async fn run(config: &Config, Command::List { output }: &Command) -> Result<()> {
    let mut connection = super::connect_for_lookups(config).await?;
    let relays = overview::relays(&mut connection).await?;
    if *output == Output::Json {
        return output::json(&relays);
    }
    if relays.is_empty() {
        note!("{}", super::no_relay(&mut connection).await?);
        return Ok(());
    }
    let limit = config.relay.ready_max_pending_seconds;
    output::table(
        ["RELAY", "STATE", "PROCESSES", "LAST ID", "OLDEST", "PARKED"],
        relays.iter().map(|relay| row(relay, limit)),
    );
    Ok(())
}

fn row(relay: &RelayOverview, limit: u64) -> [String; 6] {
    [
        relay.relay.clone(),
        Verdict::of(relay, limit).to_string(),
        relay.processes.len().to_string(),
        relay.last_id.clone(),
        relay.oldest_pending_seconds.map_or_else(|| "-".to_owned(), output::seconds),
        relay.parked_events.to_string(),
    ]
}
