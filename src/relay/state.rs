//! What a relay is doing right now, for readiness and status. Written by the loop, read by anyone.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlook {
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
    pub outlook: Option<Outlook>,
}

/// A shared, cheap handle on the state.
#[derive(Debug, Clone)]
pub struct StateHandle(Arc<Mutex<State>>);

impl Default for StateHandle {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State {
            role: Role::Disconnected,
            error: None,
            last_success: None,
            rotation_blocked: None,
            listening: false,
            outlook: None,
        })))
    }
}

impl StateHandle {
    /// The state now.
    pub fn get(&self) -> State {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn role(&self, role: Role) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).role = role;
    }

    pub(super) fn succeeded(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.error = None;
        state.last_success = Some(Instant::now());
    }

    pub(super) fn rotation_blocked(&self, reason: Option<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).rotation_blocked = reason;
    }

    pub(super) fn listening(&self, listening: bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).listening = listening;
    }

    pub(super) fn looked(&self, outlook: Option<Outlook>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).outlook = outlook;
    }

    pub(super) fn failed(&self, error: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).error = Some(error.to_owned());
    }
}
