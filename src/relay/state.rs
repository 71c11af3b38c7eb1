//! What a relay is doing right now, for readiness and status. Written by the loop, read by anyone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

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

/// What the pulse saw in Postgres.
#[derive(Debug, Clone, PartialEq)]
pub struct BacklogStatus {
    /// How long the oldest event that waits has waited.
    pub oldest_pending: Option<Duration>,
    /// Events that wait, at most.
    pub backlog_at_most: i64,
    /// Events that are set aside.
    pub parked_events: i64,
    /// Topics that wait behind one.
    pub parked_topics: i64,
    /// Whether a relay of this name leads, here or elsewhere.
    pub has_leader: bool,
    /// Who paused the relay, and why.
    pub paused: Option<String>,
    /// Rows that the position cannot stand beside.
    pub contradiction: Option<String>,
    /// Events a second, as the leading process said last.
    pub rate: f64,
    /// The newest step.
    pub step: i64,
    /// How long the newest event that this step delivered took, if it delivered one.
    pub latency: Option<Duration>,
}

/// A relay's state at a moment.
#[derive(Debug, Clone)]
pub struct State {
    /// Whether this process leads.
    pub role: Role,
    /// What failed last, until something succeeds.
    pub error: Option<String>,
    /// When the last step or look succeeded.
    pub last_success: Option<Instant>,
    /// What keeps old slots of the log from being emptied, if anything does.
    pub rotation_blocked: Option<String>,
    /// Whether notifications are heard.
    pub listening: bool,
    /// What the last look at Postgres has shown; `None` if that failed.
    pub outlook: Option<BacklogStatus>,
}

/// A shared, cheap handle on the state.
#[derive(Debug, Clone)]
pub struct StateHandle {
    state: Arc<Mutex<State>>,
    progressed: Arc<Notify>,
}

impl Default for StateHandle {
    fn default() -> Self {
        let state = State {
            role: Role::Disconnected,
            error: None,
            last_success: None,
            rotation_blocked: None,
            listening: false,
            outlook: None,
        };
        Self { state: Arc::new(Mutex::new(state)), progressed: Arc::default() }
    }
}

impl StateHandle {
    /// The state now.
    pub fn get(&self) -> State {
        self.lock().clone()
    }

    /// Waits until the relay has come one thing further: its loop has progressed, or the sink has answered. For one who
    /// watches whether it is stuck.
    pub async fn turn(&self) {
        self.progressed.notified().await;
    }

    /// The relay has come one thing further. Rung by the loop at each turn and by the sink at each answer, as one turn may
    /// hold many answers; never by a timer.
    pub fn progressed(&self) {
        self.progressed.notify_one();
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

    pub(super) fn looked(&self, outlook: Option<BacklogStatus>) {
        self.lock().outlook = outlook;
    }

    pub(super) fn failed(&self, error: &str) {
        self.lock().error = Some(error.to_owned());
    }
}
