//! Reads the list of revocations: when one is notified, after each time that the notifications were away, and
//! now and then.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::auth::{AuthError, Revoked, TokenMark};
use crate::backoff::Backoff;
use crate::http::Check;
use crate::log;
use crate::ops::revoke::{self, Target};
use crate::postgres::{Pool, Settings};

/// How often the list is read if no notification comes.
const POLL: Duration = Duration::from_secs(30);
/// How long a read may take.
const READ_LIMIT: Duration = Duration::from_secs(10);
/// How long the first read may hold up the start.
const FIRST_READ: Duration = Duration::from_secs(2);
/// A session that lasted this long was made for good, so the backoff starts over.
const LASTED: Duration = Duration::from_secs(10);

/// Why the list was not read.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Log(#[from] log::Error),
    #[error(transparent)]
    Auth(#[from] AuthError),
    #[error("Postgres does not answer")]
    Late,
}

/// Keeps a process's list. Cheap to clone.
#[derive(Clone)]
pub struct Watch(Arc<Inner>);

struct Inner {
    pool: Pool,
    database: Settings,
    /// Takes the list over.
    apply: Box<dyn Fn(Revoked) + Send + Sync>,
    wake: Notify,
    listening: AtomicBool,
    /// When the list was last read, and how many revocations it held.
    read: Mutex<Option<(Instant, usize)>>,
    /// 1 while notifications are heard.
    heard: Gauge,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

impl Watch {
    /// A watch that reads by `pool`, listens at `database`'s direct address, and hands each list to `apply`.
    pub fn new(pool: Pool, database: Settings, apply: impl Fn(Revoked) + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner {
            pool,
            database,
            apply: Box::new(apply),
            wake: Notify::new(),
            listening: AtomicBool::new(false),
            read: Mutex::default(),
            heard: Gauge::default(),
        }))
    }

    /// Registers the watch's metric. Call it once in a process.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "aftercommit_revocations_listening",
            "1 while notifications of revocations are heard",
            self.0.heard.clone(),
        );
    }

    /// Reads the list before the first client comes, if Postgres is there.
    pub async fn read_first(&self) {
        if let Err(error) = timeout(FIRST_READ, self.read()).await.unwrap_or(Err(ReadError::Late)) {
            tracing::warn!(%error, "cannot read the revocations yet: nobody is admitted until they are read");
        }
    }

    /// Keeps the list. Never returns.
    pub async fn run(&self) {
        tokio::join!(self.listen(), self.keep());
    }

    /// For readiness: whether the list is known, and how old it may be.
    pub fn check(&self) -> Check {
        const NAME: &str = "revocations";
        let read = *self.0.read.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((at, count)) = read else {
            return Check::of(NAME, Err::<String, _>("not read from Postgres yet: nobody is admitted"));
        };
        let age = at.elapsed();
        if age > POLL * 2 {
            let old = format!("{count}, as they were {} s ago: Postgres is away", age.as_secs());
            return Check::of(NAME, Ok::<_, String>(old)).with_warning();
        }
        if !self.0.listening.load(Ordering::Relaxed) {
            let late = format!("{count}; notifications are not heard, so new ones are read every 30 s");
            return Check::of(NAME, Ok::<_, String>(late)).with_warning();
        }
        Check::of(NAME, Ok::<_, String>(count.to_string()))
    }

    async fn read(&self) -> Result<(), ReadError> {
        let mut connection = self.0.pool.acquire().await.map_err(log::Error::from)?;
        let mut revoked = Revoked::default();
        for revocation in revoke::list(&mut connection).await? {
            let at = revocation.at.timestamp();
            match revocation.target {
                Target::User(user) => revoked.add_user(user, at),
                Target::Topic(topic) => revoked.add_topic(topic, at),
                Target::Token(id) => revoked.add_token(TokenMark::of(&id)?),
            }
        }
        let count = revoked.len();
        (self.0.apply)(revoked);
        *self.0.read.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), count));
        Ok(())
    }

    /// Reads the list whenever that is due.
    async fn keep(&self) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut is_failing = false;
        loop {
            // A failed read is tried again soon, also if no notification comes.
            let wait = match timeout(READ_LIMIT, self.read()).await.unwrap_or(Err(ReadError::Late)) {
                Ok(()) => {
                    is_failing = false;
                    backoff.reset();
                    POLL
                }
                Err(error) => {
                    // Once an outage.
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!(%error, "cannot read the revocations; the last list stays in force");
                    }
                    backoff.next_wait()
                }
            };
            tokio::select! {
                () = self.0.wake.notified() => {}
                () = sleep(wait) => {}
            }
        }
    }

    async fn listen(&self) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            let since = Instant::now();
            let ended = self.listen_once().await;
            self.hears(false);
            if since.elapsed() >= LASTED {
                backoff.reset();
            }
            tracing::debug!(error = %ended, "the listener for revocations ended");
            sleep(backoff.next_wait()).await;
        }
    }

    async fn listen_once(&self) -> sqlx::Error {
        let listener = self.0.database.listener("aftercommit revocations", revoke::CHANNEL).await;
        let mut listener = match listener {
            Ok(listener) => listener,
            Err(error) => return error,
        };
        // LISTEN is in force: whatever was revoked before is read now.
        self.hears(true);
        self.0.wake.notify_one();
        loop {
            match listener.try_recv().await {
                Ok(Some(_notification)) => self.0.wake.notify_one(),
                ended => return ended.err().unwrap_or(sqlx::Error::WorkerCrashed),
            }
        }
    }

    fn hears(&self, hears: bool) {
        self.0.listening.store(hears, Ordering::Relaxed);
        self.0.heard.set(hears.into());
    }
}
