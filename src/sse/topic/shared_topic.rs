//! A topic as the process's tasks share it: its state, and who uses it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::state::TopicState;
use crate::event::Topic;
use crate::sse::wire::naming::Naming;

/// A topic as the process's tasks share it.
#[derive(Debug)]
pub(crate) struct SharedTopic {
    pub(crate) topic: Topic,
    pub(crate) naming: Naming,
    state: Mutex<TopicState>,
    /// Told whenever a join ends.
    pub(crate) settled: Notify,
    visits: Mutex<Visits>,
}

/// Who uses a topic.
#[derive(Debug)]
struct Visits {
    count: usize,
    /// Since when there has been nobody.
    empty_since: Instant,
    /// It is not in the hub any more.
    is_gone: bool,
    /// When it was last known to stand at the end of its history.
    verified: Instant,
    /// Redis refuses it.
    is_refused: bool,
}

impl SharedTopic {
    /// A topic that is new to the process, and that nobody uses yet.
    pub(crate) fn new(topic: Topic, naming: Naming, state: TopicState) -> Self {
        let now = Instant::now();
        let visits = Visits { count: 0, empty_since: now, is_gone: false, verified: now, is_refused: false };
        Self { topic, naming, state: Mutex::new(state), settled: Notify::new(), visits: Mutex::new(visits) }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, TopicState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn visits(&self) -> MutexGuard<'_, Visits> {
        self.visits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the hub has let go of it, so that nothing needs to be done for it any more.
    pub(crate) fn is_gone(&self) -> bool {
        self.visits().is_gone
    }

    /// Whether Redis refuses it, so that nothing of it can be told now.
    pub(crate) fn is_refused(&self) -> bool {
        self.visits().is_refused
    }

    /// Notes whether Redis refuses it, and returns what was noted before.
    pub(crate) fn set_refused(&self, is_refused: bool) -> bool {
        std::mem::replace(&mut self.visits().is_refused, is_refused)
    }

    pub(crate) fn is_verified(&self) {
        self.visits().verified = Instant::now();
    }

    /// Whether somebody uses it, and it was not known to stand at the end of its history for so long.
    pub(crate) fn is_unverified(&self, now: Instant, long: Duration) -> bool {
        let visits = self.visits();
        visits.count > 0 && now.saturating_duration_since(visits.verified) >= long
    }

    /// One more stream uses it.
    pub(crate) fn enter(&self) {
        self.visits().count += 1;
    }

    /// A stream of this number uses it no more.
    pub(crate) fn leave(&self, number: u64) {
        self.state().detach(number);
        let mut visits = self.visits();
        visits.count -= 1;
        visits.empty_since = Instant::now();
    }

    /// Lets go of it if nobody has used it for so long. True if it is gone.
    pub(crate) fn let_go(&self, now: Instant, long: Duration) -> bool {
        let mut visits = self.visits();
        visits.is_gone = visits.count == 0 && now.saturating_duration_since(visits.empty_since) >= long;
        visits.is_gone
    }
}
