//! Prints a table for people, or JSON for programs. Data goes to stdout, everything else to stderr.
//!
//! All output passes here. Characters that would control a terminal are made visible. JSON is exact for
//! programs; on a terminal it is an equal document in printable characters.

use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

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

/// The width of screens, in characters.
const WIDTH: usize = 80;

/// The shortest sentence that is worth a reference instead of a repetition, in bytes.
const QUOTED_MIN: usize = 24;

/// Whether the reader of stdout has gone.
static READER_IS_GONE: AtomicBool = AtomicBool::new(false);

/// Writes data to stdout unchanged. A reader that stops early (`| head`) gets no more, and the command goes
/// on: its exit code says how the command ended, not how much of it was read.
pub(crate) fn text(text: &str) {
    if reader_is_gone() {
        return;
    }
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => READER_IS_GONE.store(true, Ordering::Relaxed),
        Err(error) => {
            note!("error: cannot write to stdout: {error}");
            std::process::exit(1);
        }
    }
}

/// Whether nobody reads stdout any more, so that a command that repeats itself must end.
pub(super) fn reader_is_gone() -> bool {
    READER_IS_GONE.load(Ordering::Relaxed)
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

/// Prints a text in lines of 80 characters at most. All lines but the first are indented. `first` is printed in
/// place of the first line's beginning, which has as many characters.
pub(super) fn paragraph(text: &str, indent: usize, first: Option<Painted<'_>>) {
    for (nth, line) in wrapped(&printable(text), indent).into_iter().enumerate() {
        match &first {
            Some(Painted { word, colour }) if nth == 0 && line.starts_with(word) => {
                self::text(&format!("{}{}\n", painted(word, colour), &line[word.len()..]));
            }
            _ => self::text(&format!("{line}\n")),
        }
    }
}

/// Prints a name and, in a column beside it that begins at `indent`, a text. The lines have 80 characters at
/// most.
pub(super) fn named(name: &str, text: &str, indent: usize) {
    let width = indent - 1;
    paragraph(&format!("{name:<width$} {text}"), indent, None);
}

/// A word in a colour.
#[derive(Debug, Clone, Copy)]
pub(super) struct Painted<'a> {
    pub(super) word: &'a str,
    /// Parameters of the escape sequence `ESC [ … m`.
    pub(super) colour: &'a str,
}

/// The word in its colour, if stdout is a terminal whose user has not refused colours (<https://no-color.org>).
fn painted(word: &str, colour: &str) -> String {
    let is_refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
        || std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
    if is_refused || !std::io::stdout().is_terminal() {
        return word.to_owned();
    }
    format!("\x1b[{colour}m{word}\x1b[0m")
}

/// Breaks a text into lines, between words only. Keeps a command in backticks on one line if it fits there, so
/// that it can be copied. Spaces at the begin of the text and two spaces in a row stay.
fn wrapped(text: &str, indent: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut is_empty = true;
    for word in words(text, WIDTH - indent) {
        let length = line.chars().count() + usize::from(!is_empty) + word.chars().count();
        if !is_empty && length > WIDTH {
            lines.push(std::mem::replace(&mut line, " ".repeat(indent)));
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    lines.push(line);
    lines.iter().map(|line| line.trim_end().to_owned()).collect()
}

/// The words of a text. A part in backticks is one word if it has `room`.
fn words(text: &str, room: usize) -> Vec<&str> {
    let mut words = Vec::new();
    let (mut begin, mut is_code) = (0, false);
    for (at, c) in text.char_indices() {
        match c {
            '`' => is_code = !is_code,
            ' ' if !is_code => {
                words.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    words.push(&text[begin..]);
    words
        .into_iter()
        .flat_map(|word| if word.chars().count() > room { word.split(' ').collect() } else { vec![word] })
        .collect()
}

/// The text with each sentence that stands elsewhere on the screen replaced by its place: `see redis`. So a
/// failure that several parts of a system report is said once.
pub(super) fn without_repetitions<'a>(
    text: &str,
    said: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> String {
    let mut text = text.to_owned();
    for (place, sentence) in said {
        if sentence.len() >= QUOTED_MIN && text != sentence {
            text = text.replace(sentence, &format!("see {place}"));
        }
    }
    text
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

/// The number and age of waiting events: `200 events wait, the oldest for 18.0 s`.
pub(super) fn undelivered(waiting: &Undelivered) -> String {
    let events = pluralize(waiting.events, "event");
    let (more, wait) = match (waiting.is_at_least, waiting.events) {
        (true, _) => (" or more", "wait"),
        (false, 1) => ("", "waits"),
        (false, _) => ("", "wait"),
    };
    let age = seconds(waiting.oldest_seconds);
    format!("{events}{more} {wait}, the oldest for {age}")
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
    use super::{seconds, without_repetitions, wrapped};

    #[test]
    fn a_text_is_broken_between_words_and_a_command_stays_whole() {
        let word = "x".repeat(30);
        let text = format!("WRONG    redis: {word} {word} run `aftercommit grants --redis` then");
        let lines = wrapped(&text, 9);
        assert_eq!(lines[0], format!("WRONG    redis: {word} {word}"));
        assert_eq!(lines[1], "         run `aftercommit grants --redis` then");
        // A word that no line can hold stays whole, and so does no command.
        let long = "y".repeat(100);
        assert_eq!(wrapped(&format!("a {long} b"), 2), ["a", &format!("  {long}"), "  b"]);
        let command = format!("`{} {word}`", "z ".repeat(30).trim_end());
        assert!(wrapped(&command, 9).iter().all(|line| line.chars().count() <= 80));
        assert_eq!(wrapped("", 9), [""]);
    }

    #[test]
    fn a_sentence_that_stands_elsewhere_is_referred_to() {
        let said = "cannot connect to Redis at 127.0.0.1:1: Connection refused";
        let told = without_repetitions(&format!("relay main: FAILING: Redis: {said}"), [("redis", said)]);
        assert_eq!(told, "relay main: FAILING: Redis: see redis");
        assert_eq!(without_repetitions(said, [("redis", said)]), said);
        assert_eq!(without_repetitions("postgres: answers", [("redis", "answers")]), "postgres: answers");
    }

    #[test]
    fn a_length_of_time_is_told_in_its_largest_unit() {
        assert_eq!(seconds(0.0421), "42 ms");
        assert_eq!(seconds(61.0), "61.0 s");
        assert_eq!(seconds(3600.0), "60.0 min");
        assert_eq!(seconds(90_000.0), "25.0 h");
        assert_eq!(seconds(864_000.0), "10.0 days");
    }
}
