//! A topic as the process's tasks share it: its state, and how many streams use it.

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
    /// Notified when a join ends, and when Redis refuses the topic.
    pub(crate) join_ended: Notify,
    /// Notified when a message has come.
    pub(crate) message_came: Notify,
    subscribers: Mutex<Subscribers>,
}

/// The streams that use a topic, and the topic's state.
#[derive(Debug)]
struct Subscribers {
    count: usize,
    /// Since when no stream uses it.
    empty_since: Instant,
    /// The hub does not have it any more.
    is_released: bool,
    /// When it was last known to stand at the end of its history.
    verified: Instant,
    /// Redis refuses it.
    is_refused: bool,
}

impl SharedTopic {
    /// A topic that is new to the process and has no stream yet.
    pub(crate) fn new(topic: Topic, naming: Naming, state: TopicState) -> Self {
        let now = Instant::now();
        let subscribers =
            Subscribers { count: 0, empty_since: now, is_released: false, verified: now, is_refused: false };
        Self {
            topic,
            naming,
            state: Mutex::new(state),
            join_ended: Notify::new(),
            message_came: Notify::new(),
            subscribers: Mutex::new(subscribers),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, TopicState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn subscribers(&self) -> MutexGuard<'_, Subscribers> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the hub has released it, so that nothing needs to be done for it any more.
    pub(crate) fn is_released(&self) -> bool {
        self.subscribers().is_released
    }

    /// Whether Redis refuses it now.
    pub(crate) fn is_refused(&self) -> bool {
        self.subscribers().is_refused
    }

    /// Notes whether Redis refuses it. Returns the previous value.
    pub(crate) fn set_refused(&self, is_refused: bool) -> bool {
        std::mem::replace(&mut self.subscribers().is_refused, is_refused)
    }

    pub(crate) fn mark_verified(&self) {
        self.subscribers().verified = Instant::now();
    }

    /// Whether it is used, and was last known to be at the end of its history this long ago.
    pub(crate) fn is_unverified(&self, now: Instant, long: Duration) -> bool {
        let subscribers = self.subscribers();
        subscribers.count > 0 && now.saturating_duration_since(subscribers.verified) >= long
    }

    /// Counts one more stream.
    pub(crate) fn add_subscriber(&self) {
        self.subscribers().count += 1;
    }

    /// Detaches the stream of this number.
    pub(crate) fn remove_subscriber(&self, number: u64) {
        self.state().detach(number);
        let mut subscribers = self.subscribers();
        subscribers.count -= 1;
        subscribers.empty_since = Instant::now();
    }

    /// Marks it as released if no stream has used it for this long. Returns whether it is released.
    pub(crate) fn release_if_unused(&self, now: Instant, long: Duration) -> bool {
        let mut subscribers = self.subscribers();
        subscribers.is_released =
            subscribers.count == 0 && now.saturating_duration_since(subscribers.empty_since) >= long;
        subscribers.is_released
    }
}
