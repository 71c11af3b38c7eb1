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
    pub(crate) join_ended: Notify,
    subscribers: Mutex<Subscribers>,
}

/// Who uses a topic.
#[derive(Debug)]
struct Subscribers {
    count: usize,
    /// Since when there has been nobody.
    empty_since: Instant,
    /// It is not in the hub any more.
    is_released: bool,
    /// When it was last known to stand at the end of its history.
    verified: Instant,
    /// Redis refuses it.
    is_refused: bool,
}

impl SharedTopic {
    /// A topic that is new to the process, and that nobody uses yet.
    pub(crate) fn new(topic: Topic, naming: Naming, state: TopicState) -> Self {
        let now = Instant::now();
        let subscribers =
            Subscribers { count: 0, empty_since: now, is_released: false, verified: now, is_refused: false };
        Self {
            topic,
            naming,
            state: Mutex::new(state),
            join_ended: Notify::new(),
            subscribers: Mutex::new(subscribers),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, TopicState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn subscribers(&self) -> MutexGuard<'_, Subscribers> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the hub has let go of it, so that nothing needs to be done for it any more.
    pub(crate) fn is_released(&self) -> bool {
        self.subscribers().is_released
    }

    /// Whether Redis refuses it, so that nothing of it can be told now.
    pub(crate) fn is_refused(&self) -> bool {
        self.subscribers().is_refused
    }

    /// Notes whether Redis refuses it, and returns what was noted before.
    pub(crate) fn set_refused(&self, is_refused: bool) -> bool {
        std::mem::replace(&mut self.subscribers().is_refused, is_refused)
    }

    pub(crate) fn mark_verified(&self) {
        self.subscribers().verified = Instant::now();
    }

    /// Whether somebody uses it, and it was not known to stand at the end of its history for so long.
    pub(crate) fn is_unverified(&self, now: Instant, long: Duration) -> bool {
        let subscribers = self.subscribers();
        subscribers.count > 0 && now.saturating_duration_since(subscribers.verified) >= long
    }

    /// One more stream uses it.
    pub(crate) fn add_subscriber(&self) {
        self.subscribers().count += 1;
    }

    /// A stream of this number uses it no more.
    pub(crate) fn remove_subscriber(&self, number: u64) {
        self.state().detach(number);
        let mut subscribers = self.subscribers();
        subscribers.count -= 1;
        subscribers.empty_since = Instant::now();
    }

    /// Lets go of it if nobody has used it for so long. True if it is gone.
    pub(crate) fn release_if_unused(&self, now: Instant, long: Duration) -> bool {
        let mut subscribers = self.subscribers();
        subscribers.is_released =
            subscribers.count == 0 && now.saturating_duration_since(subscribers.empty_since) >= long;
        subscribers.is_released
    }
}
