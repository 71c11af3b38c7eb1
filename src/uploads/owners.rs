//! The owners of sessions, cached. So a stream can be opened again while Postgres is away, and ten thousand
//! browsers that reconnect at once cause one query for each session.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use uuid::Uuid;

use super::error::Error;
use super::store;
use crate::generations::Generations;
use crate::http::Problem;
use crate::postgres::Pool;

/// How long a cached owner is used without asking Postgres. Owners never change, but sessions can be deleted.
const BELIEVED: Duration = Duration::from_secs(60);
/// The least number of sessions that a full cache keeps.
const REMEMBERED: usize = 50_000;
/// The longest time that a client waits for Postgres.
const WAIT: Duration = Duration::from_secs(4);
/// The longest time that a client waits if the owner is cached but too old to be used at once.
const WAIT_IF_KNOWN: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
struct Owner {
    user: Uuid,
    asked: Instant,
}

/// The answer of Postgres. An error has been logged once, for all clients that wait.
type Answer = Result<Option<Uuid>, Unanswered>;

/// The reason why there is no answer.
#[derive(Debug, Clone, Copy)]
enum Unanswered {
    /// Postgres is away, or the query failed.
    Away,
    /// The table does not exist: this database has no upload sessions.
    NoSchema,
    /// The database user of this process may not read the table.
    NotAllowed,
}

impl Unanswered {
    fn of(error: &Error) -> Self {
        let Error::Database(error) = error else { return Self::Away };
        let code = error.as_database_error().and_then(|error| error.code());
        match code.as_deref() {
            Some("42P01" | "3F000") => Self::NoSchema,
            Some("42501") => Self::NotAllowed,
            _ => Self::Away,
        }
    }

    /// The refusal that the client receives. A missing schema is final (404). A missing right can be granted
    /// while the client retries (503).
    fn problem(self) -> Problem {
        match self {
            Self::Away => Problem::unavailable(
                "the owner of this session cannot be looked up: the database does not answer; try again",
            ),
            Self::NoSchema => Problem::not_found(
                "there are no upload sessions here: this database has no schema 'uploads' \
                 (aftercommit migrate --uploads)",
            ),
            Self::NotAllowed => Problem::unavailable(
                "the owner of this session cannot be looked up: this server may not read uploads.session \
                 (aftercommit grants)",
            ),
        }
    }
}

type Question = Shared<BoxFuture<'static, Answer>>;

#[derive(Debug)]
struct Memory {
    known: Generations<Uuid, Owner>,
    /// Queries in flight. Only the clients that wait hold them, so there are no more than connections.
    asked: HashMap<Uuid, WeakShared<BoxFuture<'static, Answer>>>,
}

/// Looks up the owners of sessions.
#[derive(Debug)]
pub(super) struct Owners {
    pool: Pool,
    memory: Arc<Mutex<Memory>>,
}

impl Owners {
    pub(super) fn new(pool: Pool) -> Self {
        let memory = Memory { known: Generations::new(REMEMBERED), asked: HashMap::new() };
        Self { pool, memory: Arc::new(Mutex::new(memory)) }
    }

    /// The owner of a session, or `None` if there is no such session. A missing session is not cached,
    /// because it may be created a moment later.
    ///
    /// # Errors
    /// 503 if Postgres does not answer in time or its rights are missing, and the session is not cached. 404
    /// if the database has no upload sessions.
    pub(super) async fn of(&self, session: Uuid) -> Result<Option<Uuid>, Error> {
        let known = locked(&self.memory).known.get(&session);
        if let Some(owner) = known.filter(|owner| owner.asked.elapsed() < BELIEVED) {
            return Ok(Some(owner.user));
        }
        let wait = if known.is_some() { WAIT_IF_KNOWN } else { WAIT };
        match (tokio::time::timeout(wait, self.question(session)).await, known) {
            (Ok(Ok(found)), _) => Ok(found),
            (_, Some(owner)) => {
                tracing::debug!("Postgres does not tell the owner of a session; using the cached one");
                Ok(Some(owner.user))
            }
            (Ok(Err(why)), None) => Err(why.problem().into()),
            (Err(_elapsed), None) => Err(Unanswered::Away.problem().into()),
        }
    }

    /// The query that other clients wait for already, or a new one.
    fn question(&self, session: Uuid) -> Question {
        let mut memory = locked(&self.memory);
        if let Some(asked) = memory.asked.get(&session).and_then(WeakShared::upgrade) {
            return asked;
        }
        let asking = Asking { session, memory: self.memory.clone() };
        let question = ask(self.pool.clone(), asking).boxed().shared();
        if let Some(weak) = question.downgrade() {
            memory.asked.insert(session, weak);
        }
        question
    }
}

/// Queries Postgres, and caches the answer.
async fn ask(pool: Pool, asking: Asking) -> Answer {
    let session = asking.session;
    let answer = async {
        let mut connection = pool.acquire().await?;
        Ok::<_, Error>(store::session(&mut connection, session).await?.map(|session| session.user_id))
    };
    match answer.await {
        Ok(found) => {
            let mut memory = locked(&asking.memory);
            match found {
                Some(user) => memory.known.set(&session, Owner { user, asked: Instant::now() }),
                None => memory.known.remove(&session),
            }
            Ok(found)
        }
        Err(error) => {
            tracing::warn!(%error, "cannot look up the owner of a session in Postgres");
            Err(Unanswered::of(&error))
        }
    }
}

/// Removes a query when it has been answered, or when all clients that waited have left.
#[derive(Debug)]
struct Asking {
    session: Uuid,
    memory: Arc<Mutex<Memory>>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        // This may remove the query of a client that arrived while this one ended. Then the next client
        // starts another query, which does no harm.
        locked(&self.memory).asked.remove(&self.session);
    }
}

fn locked(memory: &Mutex<Memory>) -> MutexGuard<'_, Memory> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No server listens there.
    fn no_postgres() -> Pool {
        let settings = crate::postgres::Settings {
            url: "postgres://nobody@127.0.0.1:1/nothing".to_owned().into(),
            direct_url: Default::default(),
            password_command: Default::default(),
            max_connections: 1,
            statement_timeout_ms: 1000,
        };
        settings.lazy_pool("nobody").expect("a url")
    }

    fn long_ago() -> Instant {
        Instant::now().checked_sub(BELIEVED * 2).expect("a machine that has been up for two minutes")
    }

    #[tokio::test]
    async fn without_postgres_an_owner_that_was_known_once_is_believed_on() {
        let owners = Owners::new(no_postgres());
        let (session, user) = (Uuid::new_v4(), Uuid::new_v4());
        locked(&owners.memory).known.set(&session, Owner { user, asked: long_ago() });
        assert_eq!(owners.of(session).await.expect("an owner"), Some(user));
        assert!(owners.of(Uuid::new_v4()).await.is_err());
        assert!(locked(&owners.memory).asked.is_empty(), "no question outlives those who wait for it");
    }
}
