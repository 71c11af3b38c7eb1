//! How far a replay is, on stderr: a bar on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use aftercommit::ops::replay::{Replay, ReplayStatus};
use aftercommit::pluralize::pluralize;

use super::super::output;
use crate::telemetry;

/// How often the bar moves.
const BAR_EVERY: Duration = Duration::from_millis(100);
/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Characters of the bar: the whole line fits 80 columns.
const BAR_WIDTH: u64 = 24;

/// Tells how far a replay is, not more often than anybody wants to read.
pub(super) struct Progress {
    began: Instant,
    before: u64,
    told: Option<Instant>,
    on_terminal: bool,
}

/// Progress that nobody reads any more is no reason to stop.
fn say(text: &str) {
    telemetry::say(format_args!("{text}"));
}

impl Progress {
    /// Says that the replay begins, or goes on.
    pub(super) fn begin(replay: &Replay) -> Self {
        let (id, selected, done) = (replay.id, pluralize(replay.selected, "event"), replay.copied);
        if done == 0 {
            say(&format!("replay {id}: {selected}\n"));
        } else {
            say(&format!("replay {id}: going on after {done} of {selected}\n"));
        }
        Self { began: Instant::now(), before: done, told: None, on_terminal: std::io::stderr().is_terminal() }
    }

    /// Call it after each batch.
    pub(super) fn tell(&mut self, replay: &Replay) {
        let every = if self.on_terminal { BAR_EVERY } else { LINE_EVERY };
        // A full bar is drawn in any case.
        let is_last = self.on_terminal && replay.standing == ReplayStatus::Finished;
        if !is_last && self.told.unwrap_or(self.began).elapsed() < every {
            return;
        }
        self.told = Some(Instant::now());
        let since = self.began.elapsed();
        let line = line(replay, replay.copied.saturating_sub(self.before), since);
        if self.on_terminal {
            let bar = bar(replay.copied, replay.selected);
            say(&format!("\r\x1b[K{bar} {line}"));
        } else {
            say(&format!("replay {}: {line}\n", replay.id));
        }
    }

    /// Leaves the bar's line.
    pub(super) fn end(&self) {
        if self.on_terminal && self.told.is_some() {
            say("\n");
        }
    }
}

/// `1200 of 5000 events, 400/s, 9.5 s left`.
fn line(replay: &Replay, lately: u64, since: Duration) -> String {
    let (copied, selected) = (replay.copied, replay.selected);
    let rate = lately as f64 / since.as_secs_f64().max(0.001);
    let left = selected.saturating_sub(copied);
    let ending = if left > 0 && rate > 0.0 {
        format!(", {} left", output::seconds(left as f64 / rate))
    } else {
        String::new()
    };
    format!("{copied} of {}, {rate:.0}/s{ending}", pluralize(selected, "event"))
}

fn bar(copied: u64, selected: u64) -> String {
    let full = (copied.min(selected) * BAR_WIDTH).checked_div(selected).unwrap_or(BAR_WIDTH);
    format!("[{}{}]", "#".repeat(full as usize), ".".repeat((BAR_WIDTH - full) as usize))
}

/// A replay's standing as people read it.
pub(super) fn word(standing: ReplayStatus) -> &'static str {
    match standing {
        ReplayStatus::Running => "running",
        ReplayStatus::Interrupted => "interrupted",
        ReplayStatus::Finished => "finished",
    }
}

#[cfg(test)]
mod tests {
    use super::bar;

    #[test]
    fn a_bar_is_always_as_wide() {
        assert_eq!(bar(0, 10), "[........................]");
        assert_eq!(bar(5, 10), "[############............]");
        assert_eq!(bar(12, 10), "[########################]");
        assert_eq!(bar(0, 0), "[########################]");
    }
}
