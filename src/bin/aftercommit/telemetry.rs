//! Logs on stderr, as text or JSON lines, so that stdout holds data only; and the metrics that every process
//! has.
//!
//! Everything that is written to stderr goes through one queue (`line_queue`). So no line can block a process
//! or end it.

mod dropped;
mod line_queue;
mod panics;
mod process;

use std::fmt;
use std::io::{IsTerminal, Write};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result};
use chrono::{SecondsFormat, Utc};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use serde_json::json;
use tracing_subscriber::EnvFilter;

use aftercommit::printable::printable_lines;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{LogFormat, LogSettings};

pub(crate) use line_queue::LineQueue;
pub(crate) use panics::end_the_process as end_the_process_by_panics;

/// The longest time that a short command waits for its lines to be written to stderr.
const TO_BE_READ: Duration = Duration::from_secs(2);

/// The form of log lines, set when a role has read its configuration. Before that, and in short commands,
/// lines are sentences.
static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// The level of a line that is not written by `tracing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Error,
    Warn,
}

/// The queue in front of stderr, for logs and all other lines.
pub(crate) fn stderr() -> &'static LineQueue {
    static QUEUE: OnceLock<LineQueue> = OnceLock::new();
    QUEUE.get_or_init(|| LineQueue::to(std::io::stderr(), lines_dropped))
}

/// The queue in front of stdout, for long-running processes. Short commands print by `ops::output`, which
/// waits.
pub(crate) fn stdout() -> &'static LineQueue {
    static QUEUE: OnceLock<LineQueue> = OnceLock::new();
    QUEUE.get_or_init(|| LineQueue::to(std::io::stdout(), |_| Vec::new()))
}

/// Writes text to stderr, made safe for terminals. Waits a moment until it is written, so that it precedes
/// the output that follows.
pub(crate) fn say(text: fmt::Arguments<'_>) {
    stderr().push(printable_lines(&text.to_string()).as_bytes());
    stderr().flush(TO_BE_READ);
}

/// Writes one line to stderr. Never panics, as `eprintln!` does if stderr is closed or full.
macro_rules! note {
    ($($text:tt)*) => {
        $crate::telemetry::say(format_args!("{}\n", format_args!($($text)*)))
    };
}

/// Reports why a command failed: as a sentence, or as a log line if the log is JSON.
pub(crate) fn say_failure(error: &str) {
    match FORMAT.get() {
        Some(LogFormat::Json) => stderr().push(&line(Level::Error, error)),
        _ => stderr().push(format!("error: {}\n", printable_lines(error)).as_bytes()),
    }
}

/// Waits a moment until all lines are written. Call it last, before the process ends.
pub(crate) fn flush() {
    stderr().flush(TO_BE_READ);
}

/// Formats a line as the log does.
fn line(level: Level, message: &str) -> Vec<u8> {
    let now = || Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true);
    let (long, short) = match level {
        Level::Error => ("ERROR", "error"),
        Level::Warn => ("WARN", "warning"),
    };
    let text = match FORMAT.get() {
        None => format!("{short}: {message}"),
        Some(LogFormat::Text) => format!("{} {long:>5} {message}", now()),
        Some(LogFormat::Json) => {
            json!({ "timestamp": now(), "level": long, "message": message, "target": "aftercommit" })
                .to_string()
        }
    };
    format!("{text}\n").into_bytes()
}

fn lines_dropped(lines: u64) -> Vec<u8> {
    line(Level::Warn, &format!("lines that stderr did not take were dropped: {lines}"))
}

/// Checks the `[log]` section.
///
/// # Errors
/// A sentence that names the setting, if the level is not valid.
pub(crate) fn check(settings: &LogSettings) -> Result<()> {
    filter(settings).map(drop)
}

fn filter(settings: &LogSettings) -> Result<EnvFilter> {
    EnvFilter::try_new(&settings.level)
        .with_context(|| format!("log.level '{}' is not a level or a list of directives", settings.level))
}

/// Sets up logging for the process. `is_role` means a long-running process, whose lines are all log lines.
pub(crate) fn init(settings: &LogSettings, is_role: bool) -> Result<()> {
    // An event that cannot be formatted is left out. By default a macro that panics would report it.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(settings)?)
        .with_writer(ToStderr(settings.format))
        .log_internal_errors(false);
    let set = match settings.format {
        LogFormat::Text => builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    set.map_err(|error| anyhow::anyhow!("cannot set up logging: {error}"))?;
    if is_role {
        FORMAT.get_or_init(|| settings.format);
    }
    Ok(())
}

/// Makes a line of the text log safe for terminals. Keeps its colours: the formatter has escaped every other
/// ESC.
fn safe_line(line: &str) -> String {
    let parts: Vec<_> = line.split('\x1b').map(printable_lines).collect();
    parts.join("\x1b")
}

/// Writes log lines to the queue in front of stderr.
struct ToStderr(LogFormat);

impl<'a> MakeWriter<'a> for ToStderr {
    type Writer = ToQueue;

    fn make_writer(&'a self) -> Self::Writer {
        ToQueue(self.0)
    }
}

/// Hands each line to the queue. Never fails.
struct ToQueue(LogFormat);

impl Write for ToQueue {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        match (self.0, std::str::from_utf8(line)) {
            (LogFormat::Text, Ok(text)) => stderr().push(safe_line(text).as_bytes()),
            // JSON escapes control characters by itself, and programs read it.
            _ => stderr().push(line),
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A registry with the metrics of every process: its build, and its use of the machine.
pub(crate) fn registry(role: &'static str) -> Registry {
    let mut registry = Registry::default();
    let build = Info::new([("version", env!("CARGO_PKG_VERSION")), ("role", role)]);
    registry.register("aftercommit_build", "The version and the role of this process", build);
    registry.register_collector(Box::new(process::Collector));
    registry.register_collector(Box::new(dropped::Collector));
    registry
}

#[cfg(test)]
mod tests {
    use super::safe_line;

    #[test]
    fn a_log_line_keeps_its_colours_and_shows_what_would_steer_a_terminal() {
        let line = "\x1b[32m INFO\x1b[0m topic=a\u{202e}b reason=x\ry\u{9b}31m\n";
        assert_eq!(safe_line(line), "\x1b[32m INFO\x1b[0m topic=a\\u{202e}b reason=x\\ry\\u{9b}31m\n");
    }
}
