//! Prints a table for people, or JSON for programs. Data goes to stdout, everything else to stderr.
//!
//! All output passes here. Characters that would control a terminal are made visible. JSON is exact for
//! programs; on a terminal it is an equal document in printable characters.

use std::io::{ErrorKind, IsTerminal, Write};

use anyhow::Result;
use chrono::{DateTime, Utc};
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

use ::redis::RedisError;
use aftercommit::ops::undelivered::Undelivered;
use aftercommit::pluralize::pluralize;
use aftercommit::printable::{printable, printable_json};
use aftercommit::{postgres, redis};

/// The output format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// Aligned columns.
    #[default]
    Table,
    /// One JSON document.
    Json,
}

/// Writes data to stdout unchanged. A reader that stops early (`| head`) ends the command, as it ends others.
pub(crate) fn text(text: &str) {
    let mut stdout = std::io::stdout().lock();
    if let Err(error) = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        if error.kind() != ErrorKind::BrokenPipe {
            note!("error: cannot write to stdout: {error}");
        }
        std::process::exit(1);
    }
}

/// Prints one JSON document.
pub(super) fn json(data: &impl Serialize) -> Result<()> {
    let document = serde_json::to_string_pretty(data)? + "\n";
    if std::io::stdout().is_terminal() {
        text(&printable_json(&document));
    } else {
        text(&document);
    }
    Ok(())
}

/// Prints a table without borders. A cell is never wrapped, even if it is too wide for the terminal, so that
/// it can be copied.
pub(super) fn table<const N: usize>(headers: [&str; N], rows: impl IntoIterator<Item = [String; N]>) {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headers);
    for row in rows {
        table.add_row(row.map(|cell| printable(&cell).into_owned()));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    text(&format!("{}\n", table.trim_fmt()));
}

/// Prints one line of data.
pub(crate) fn line(text: &str) {
    self::text(&format!("{}\n", printable(text)));
}

/// Clears the screen if stdout is a terminal.
pub(super) fn clear() {
    if std::io::stdout().is_terminal() {
        text("\x1b[2J\x1b[H");
    }
}

/// A time for people to read, to the second.
pub(super) fn time(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// An error with its causes. Leaves out a cause that the text contains already.
pub(crate) fn error_text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let of_postgres = cause.downcast_ref::<sqlx::Error>().map(postgres::error_text);
        let driver = of_postgres.or_else(|| cause.downcast_ref::<RedisError>().map(redis::error_text));
        let is_whole =
            driver.is_some() || cause.is::<postgres::ConnectError>() || cause.is::<redis::ConnectError>();
        let own = driver.unwrap_or_else(|| cause.to_string());
        if !text.contains(&own) {
            text = if text.is_empty() { own } else { format!("{text}: {own}") };
        }
        // The driver's words below this error repeat it.
        if is_whole {
            break;
        }
    }
    text
}

/// The number and age of waiting events: `200 events wait, the oldest for 18.0 s: start `aftercommit relay``.
pub(super) fn undelivered(waiting: &Undelivered) -> String {
    let events = pluralize(waiting.events, "event");
    let (more, wait) = match (waiting.is_at_least, waiting.events) {
        (true, _) => (" or more", "wait"),
        (false, 1) => ("", "waits"),
        (false, _) => ("", "wait"),
    };
    let age = seconds(waiting.oldest_seconds);
    format!("{events}{more} {wait}, the oldest for {age}: start `aftercommit relay`")
}

/// The time since `at`, for people to read.
pub(super) fn ago(at: DateTime<Utc>) -> String {
    format!("{} ago", seconds((Utc::now() - at).as_seconds_f64()))
}

/// A duration in its largest unit, to one decimal.
pub(super) fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 0.0 => "0 s".to_owned(),
        s if s < 1.0 => format!("{:.0} ms", s * 1000.0),
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.1} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn a_length_of_time_is_told_in_its_largest_unit() {
        assert_eq!(seconds(0.0421), "42 ms");
        assert_eq!(seconds(61.0), "61.0 s");
        assert_eq!(seconds(3600.0), "60.0 min");
        assert_eq!(seconds(90_000.0), "25.0 h");
        assert_eq!(seconds(864_000.0), "10.0 days");
    }
}
