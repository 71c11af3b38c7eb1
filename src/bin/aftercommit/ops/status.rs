//! `aftercommit status`: where each relay stands.

use anyhow::Result;

use aftercommit::outbox::overview::{self, RelayOverview};

use super::output::{self, Output};
use crate::config::Config;

/// How to print it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How to print the data.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Prints one line for each relay.
pub(crate) async fn run(config: &Config, args: &Args) -> Result<()> {
    let mut connection = super::connect_for_lookups(config).await?;
    let relays = overview::relays(&mut connection).await?;
    if args.output == Output::Json {
        return output::json(&relays);
    }
    if relays.is_empty() {
        eprintln!("no relay has run on this database yet: start one with `aftercommit relay`");
        return Ok(());
    }
    output::table(
        ["RELAY", "LEADER", "LAST ID", "WAITING", "OLDEST", "PARKED", "MOVED"],
        relays.iter().map(row),
    );
    Ok(())
}

fn row(relay: &RelayOverview) -> [String; 7] {
    let waiting = match (relay.oldest_pending_at, relay.backlog_at_most) {
        (None, _) => "0".to_owned(),
        (Some(_), at_most) => format!("≤ {}", at_most.max(1)),
    };
    let parked = match (relay.parked_events, relay.parked_topics) {
        (0, _) => "0".to_owned(),
        (events, topics) => format!("{events} in {topics} topics"),
    };
    [
        relay.relay.clone(),
        relay.leader.clone().unwrap_or_else(|| "none".to_owned()),
        relay.last_id.clone(),
        waiting,
        relay.oldest_pending_seconds.map_or_else(|| "-".to_owned(), output::seconds),
        parked,
        output::ago(relay.moved_at),
    ]
}
