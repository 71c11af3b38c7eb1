//! The current state of a relay, for readiness and status. The loop writes it, anybody may read it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

/// Whether this process leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// No session with Postgres.
    Disconnected,
    /// Another relay of this name leads; this one takes over when that one ends.
    Standby,
    /// This process delivers.
    Leading,
}

/// The monitor's findings in Postgres.
#[derive(Debug, Clone, PartialEq)]
pub struct BacklogStatus {
    /// The age of the oldest pending event, if there is one.
    pub oldest_pending: Option<Duration>,
    /// The most events that can be pending.
    pub backlog_at_most: i64,
    /// Events that are parked.
    pub parked_events: i64,
    /// Topics with parked events.
    pub parked_topics: i64,
    /// Whether a relay of this name leads, here or elsewhere.
    pub has_leader: bool,
    /// Who paused the relay, and why.
    pub paused: Option<String>,
    /// Rows that contradict the position.
    pub contradiction: Option<String>,
    /// Events a second, by the leading process's last heartbeat.
    pub rate: f64,
    /// The newest step.
    pub step: i64,
    /// From the beginning of the newest event's transaction until this step delivered it, if the step
    /// delivered one.
    pub latency: Option<Duration>,
}

/// A relay's state at a moment.
#[derive(Debug, Clone)]
pub struct State {
    /// Whether this process leads.
    pub role: Role,
    /// The newest failure, until something succeeds.
    pub error: Option<String>,
    /// When the loop last made a turn without a failure.
    pub last_success: Option<Instant>,
    /// Why old slots of the log cannot be emptied, if so.
    pub rotation_blocked: Option<String>,
    /// Servers of the sink that lack events, if there are any. The log keeps these events.
    pub behind: Option<String>,
    /// Whether the relay receives notifications.
    pub listening: bool,
    /// The monitor's last findings; `None` if it failed.
    pub backlog: Option<BacklogStatus>,
}

/// A handle on the state. Cheap to clone.
#[derive(Debug, Clone)]
pub struct StateHandle {
    state: Arc<Mutex<State>>,
    progressed: Arc<Notify>,
    /// Until when the leader sleeps, if it does.
    asleep: Arc<watch::Sender<Option<Instant>>>,
}

impl Default for StateHandle {
    fn default() -> Self {
        let state = State {
            role: Role::Disconnected,
            error: None,
            last_success: None,
            rotation_blocked: None,
            behind: None,
            listening: false,
            backlog: None,
        };
        Self { state: Arc::new(Mutex::new(state)), progressed: Arc::default(), asleep: Arc::default() }
    }
}

impl StateHandle {
    /// Returns a copy of the state.
    pub fn get(&self) -> State {
        self.lock().clone()
    }

    /// Waits until the relay makes progress: its loop turns, or the sink answers. For a watchdog.
    pub async fn wait_for_progress(&self) {
        self.progressed.notified().await;
    }

    /// Reports progress. The loop calls it at each turn, and the sink at each answer, because one turn may
    /// hold many answers. No timer may call it.
    pub fn progressed(&self) {
        self.progressed.notify_one();
    }

    /// Notes which servers of the sink lack events. The sink calls it.
    pub fn behind(&self, servers: Option<String>) {
        self.lock().behind = servers;
    }

    /// Until when the leader sleeps, if it does. Nothing of this process asks Postgres before that.
    pub(super) fn asleep_until(&self) -> Option<Instant> {
        *self.asleep.borrow()
    }

    /// Waits until the leader is awake.
    pub(super) async fn awake(&self) {
        // The sender is part of this handle, so it lives.
        drop(self.asleep.subscribe().wait_for(Option::is_none).await);
    }

    pub(super) fn falls_asleep(&self, sleep: Duration) {
        self.asleep.send_replace(Some(Instant::now() + sleep));
    }

    pub(super) fn wakes_up(&self) {
        self.asleep.send_replace(None);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn role(&self, role: Role) {
        self.lock().role = role;
    }

    pub(super) fn succeeded(&self) {
        let mut state = self.lock();
        state.error = None;
        state.last_success = Some(Instant::now());
    }

    pub(super) fn rotation_blocked(&self, reason: Option<String>) {
        self.lock().rotation_blocked = reason;
    }

    pub(super) fn listening(&self, listening: bool) {
        self.lock().listening = listening;
    }

    pub(super) fn backlog(&self, backlog: Option<BacklogStatus>) {
        self.lock().backlog = backlog;
    }

    pub(super) fn failed(&self, error: &str) {
        self.lock().error = Some(error.to_owned());
    }
}
