//! Whose a session is: remembered, so that a stream can be opened again while Postgres is away, and so that ten thousand
//! browsers that come back at once ask it little.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::error::Error;
use super::store;
use crate::postgres::Pool;

/// How long an owner is believed without asking. Owners never change; sessions can be deleted.
const BELIEVED: Duration = Duration::from_secs(60);
/// Sessions that are remembered; when there are more, those not used lately are forgotten.
const REMEMBERED: usize = 50_000;

#[derive(Debug, Clone, Copy)]
struct Owner {
    user: Uuid,
    asked: Instant,
}

/// Owners of sessions, two generations of them: the older one is dropped when the newer is full.
#[derive(Debug, Default)]
struct Known {
    young: HashMap<Uuid, Owner>,
    old: HashMap<Uuid, Owner>,
}

impl Known {
    fn get(&self, session: Uuid) -> Option<Owner> {
        self.young.get(&session).or_else(|| self.old.get(&session)).copied()
    }

    fn set(&mut self, session: Uuid, owner: Owner) {
        if self.young.len() >= REMEMBERED {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(session, owner);
    }
}

/// Looks up whose a session is.
#[derive(Debug)]
pub(super) struct Owners {
    pool: Pool,
    known: Mutex<Known>,
}

impl Owners {
    pub(super) fn new(pool: Pool) -> Self {
        Self { pool, known: Mutex::default() }
    }

    /// The owner of a session, or `None` if there is no such session.
    pub(super) async fn of(&self, session: Uuid) -> Result<Option<Uuid>, Error> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(session);
        if let Some(owner) = known.filter(|owner| owner.asked.elapsed() < BELIEVED) {
            return Ok(Some(owner.user));
        }
        match (self.ask(session).await, known) {
            (Ok(found), _) => {
                if let Some(user) = found {
                    let owner = Owner { user, asked: Instant::now() };
                    self.known.lock().unwrap_or_else(PoisonError::into_inner).set(session, owner);
                }
                Ok(found)
            }
            (Err(error), Some(owner)) => {
                tracing::warn!(%error, "cannot ask whose a session is; going by what was known");
                Ok(Some(owner.user))
            }
            (Err(error), None) => Err(error),
        }
    }

    async fn ask(&self, session: Uuid) -> Result<Option<Uuid>, Error> {
        let mut connection = self.pool.acquire().await?;
        Ok(store::session(&mut connection, session).await?.map(|session| session.user_id))
    }
}
