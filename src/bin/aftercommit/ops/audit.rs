//! `aftercommit audit`: shows what operators did and why.

use anyhow::Result;
use chrono::{DateTime, Utc};

use aftercommit::ops::audit;
use aftercommit::pluralize::pluralize;
use serde_json::Value;

use super::output::{self, Output};
use super::time;
use crate::config::Config;

/// The indentation of all lines but the first of an entry, and of lines that go on.
const INDENT: usize = 4;

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
    for entry in &entries {
        let events = entry.events.cast_unsigned();
        let counted = if events > 0 { format!(", {}", pluralize(events, "event")) } else { String::new() };
        output::paragraph(&format!("{}  {}{counted}", output::time(entry.at), entry.action), INDENT, None);
        output::paragraph(&format!("  by {}: {}", entry.who, entry.reason), INDENT, None);
        output::paragraph(&format!("  {}", in_words(&entry.selection)), INDENT, None);
    }
    Ok(())
}

/// The fields of a selection, as `relay main, selection.topic order:42`.
fn in_words(selection: &Value) -> String {
    let mut words = Vec::new();
    collect("", selection, &mut words);
    words.join(", ")
}

fn collect(name: &str, value: &Value, words: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                let dot = if name.is_empty() { "" } else { "." };
                collect(&format!("{name}{dot}{field}"), value, words);
            }
        }
        Value::String(text) => words.push(format!("{name} {text}")),
        Value::Null => {}
        other => words.push(format!("{name} {other}")),
    }
}
