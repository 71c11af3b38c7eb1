//! Sign-ins, kept in memory: a restart signs all operators out.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

/// The lifetime of a sign-in: a shift.
pub(super) const LASTS: Duration = Duration::from_secs(12 * 3600);
/// The largest number of sign-ins. A new one removes the oldest.
const SESSIONS_MAX: usize = 64;

/// Sign-ins by random id.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<HashMap<String, Session>>);

#[derive(Debug, Clone)]
struct Session {
    who: String,
    ends: Instant,
}

impl Sessions {
    /// Signs an operator in. Returns the id for the cookie: 244 random bits.
    pub(super) fn begin(&self, who: String, now: Instant) -> String {
        let id = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        let mut sessions = self.lock();
        sessions.retain(|_, session| session.ends > now);
        let oldest = sessions.iter().min_by_key(|(_, session)| session.ends).map(|(id, _)| id.clone());
        if let Some(oldest) = oldest.filter(|_| sessions.len() >= SESSIONS_MAX) {
            sessions.remove(&oldest);
        }
        sessions.insert(id.clone(), Session { who, ends: now + LASTS });
        id
    }

    /// The operator of this sign-in, if it exists and has not ended.
    pub(super) fn who(&self, id: &str, now: Instant) -> Option<String> {
        self.lock().get(id).filter(|session| session.ends > now).map(|session| session.who.clone())
    }

    /// Ends a sign-in.
    pub(super) fn end(&self, id: &str) {
        self.lock().remove(id);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sign_in_holds_until_it_is_ended_or_has_lasted_long_enough() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let (ana, bo) = (sessions.begin("ana".to_owned(), now), sessions.begin("bo".to_owned(), now));
        assert_ne!(ana, bo);
        assert_eq!(sessions.who(&ana, now).as_deref(), Some("ana"));
        sessions.end(&ana);
        assert_eq!(sessions.who(&ana, now), None);
        assert_eq!(sessions.who(&bo, now + LASTS), None);
        assert_eq!(sessions.who("", now), None);
    }

    #[test]
    fn the_oldest_sign_in_gives_way() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let first = sessions.begin("first".to_owned(), now);
        for n in 1..=SESSIONS_MAX as u64 {
            sessions.begin(n.to_string(), now + Duration::from_secs(n));
        }
        assert_eq!(sessions.who(&first, now), None);
        assert_eq!(sessions.lock().len(), SESSIONS_MAX);
    }
}
