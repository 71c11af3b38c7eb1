//! A panic ends the process, whichever task it is in.
//!
//! A task that is gone does not come back: streams would fall silent, keys would not be fetched, signals would not be
//! obeyed, while health says that all is well. What the task had half changed, others would go by. Every process here can
//! be killed at any point and started again without a loss, so that is what a panic amounts to: one line, exit code 1. It
//! happens in the panic's own hook, so that it also holds for tasks of libraries and for panics that somebody catches.
//! (Not by `panic = "abort"`: that would keep the line from a stderr which cannot be written at once, and leave a core.)

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::PanicHookInfo;
use std::time::Duration;

use super::{Level, line, stderr};

/// How long the last lines may take to be written.
const LAST_LINES: Duration = Duration::from_millis(500);

/// From now on a panic ends the process.
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
