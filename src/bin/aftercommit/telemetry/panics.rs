//! A panic in any task ends the process.
//!
//! A task that has panicked does not come back: streams would fall silent, keys would not be fetched, signals
//! would be ignored, while health reports that all is well. Other tasks would use state that the task has
//! changed by half. Every process here can be killed at any point and restarted without a loss. So a panic
//! ends it with one line and exit code 1. This happens in the panic hook, so that it also covers tasks of
//! libraries and panics that are caught. `panic = "abort"` is not used, because it would lose the line if
//! stderr cannot be written at once, and leave a core dump.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::PanicHookInfo;
use std::time::Duration;

use super::{Level, line, stderr};

/// The time limit for writing the last lines.
const LAST_LINES: Duration = Duration::from_millis(500);

/// Makes every panic from now on end the process.
pub(crate) fn end_the_process() {
    std::panic::set_hook(Box::new(|info| {
        stderr().push_last(&line(Level::Error, &sentence(info)));
        stderr().flush(LAST_LINES);
        std::process::exit(1);
    }));
}

fn sentence(info: &PanicHookInfo<'_>) -> String {
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    let place = info.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    let backtrace = Backtrace::capture();
    let trace = match backtrace.status() {
        BacktraceStatus::Captured => format!("\n{backtrace}"),
        _ => String::new(),
    };
    format!("a defect in aftercommit ends this process: a panic at {place}: {text}{trace}")
}
