//! `aftercommit audit`: shows what operators did and why.

use anyhow::Result;
use chrono::{DateTime, Utc};

use aftercommit::ops::audit;

use super::output::{self, Output};
use super::time;
use crate::config::Config;

/// The entries to show.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: aftercommit audit --since 7d")]
pub(crate) struct Args {
    /// Only from this time on: RFC 3339, or 90s, 15m, 2h, 3d ago.
    #[arg(long, value_parser = time::parse, value_name = "TIME")]
    since: Option<DateTime<Utc>>,
    /// The largest number of entries to show.
    #[arg(long, default_value_t = 20)]
    limit: u32,
    /// How to print the data.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Prints the entries, newest first.
pub(crate) async fn run(config: &Config, args: &Args) -> Result<()> {
    let mut connection = super::connect(config).await?;
    let entries = audit::list(&mut connection, args.since, args.limit).await?;
    if args.output == Output::Json {
        return output::json(&entries);
    }
    if entries.is_empty() {
        note!("no operator action has been recorded");
        return Ok(());
    }
    output::table(
        ["AT", "WHO", "ACTION", "EVENTS", "REASON", "SELECTION"],
        entries.iter().map(|entry| {
            let (at, selection) = (output::time(entry.at), entry.selection.to_string());
            [
                at,
                entry.who.clone(),
                entry.action.clone(),
                entry.events.to_string(),
                entry.reason.clone(),
                selection,
            ]
        }),
    );
    Ok(())
}
