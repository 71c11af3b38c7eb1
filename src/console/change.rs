//! A change that an operator asks for: carried out within a time limit and while they wait for it, or not at
//! all.
//!
//! A request can wait unseen: in the browser for a free connection, in the kernel for a relay that is frozen.
//! By the time it is read, its operator may have decided otherwise. So the page says until when it waits, by
//! this relay's clock, and what is read later is refused. When the page gives up, it closes the connection:
//! the handler is dropped with it, and with the handler its transaction.

use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::HeaderName;
use axum::http::request::Parts;
use chrono::Utc;
use sqlx::{PgConnection, Postgres, Transaction};
use tokio::time::{Instant, timeout, timeout_at};

use super::Shared;
use super::error::Error;

/// Until when the page waits: Unix time in milliseconds, by the clock that its samples carry.
pub(super) const BEFORE: HeaderName = HeaderName::from_static("aftercommit-before");

/// How long a change may take here. `LIMIT_MS` of `ask.js`, how long the page waits, is twice that.
pub(super) const LIMIT: Duration = Duration::from_secs(5);
/// The same for the begin of a replay, which counts its events first. `REPLAY_LIMIT_MS` of `replay.js` is
/// twice that.
pub(super) const REPLAY_LIMIT: Duration = Duration::from_secs(60);
/// How long a commit may take before nobody waits for its answer.
const COMMIT_LIMIT: Duration = Duration::from_secs(2);

/// When a change was asked for, and until when its page waits. An extractor; it refuses what comes too late.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    at: Instant,
    /// The rest of the page's time limit; scripts send none.
    remaining: Option<Duration>,
}

impl<S: Sync> FromRequestParts<S> for Asked {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Error> {
        let at = Instant::now();
        let Some(before) = parts.headers.get(BEFORE) else { return Ok(Self { at, remaining: None }) };
        let before: Option<i64> = before.to_str().ok().and_then(|text| text.parse().ok());
        let left = before.ok_or(Error::NoTime)?.saturating_sub(Utc::now().timestamp_millis());
        match u64::try_from(left) {
            Ok(left @ 1..) => Ok(Self { at, remaining: Some(Duration::from_millis(left)) }),
            _ => Err(Error::TooOld),
        }
    }
}

impl Asked {
    /// By when it must be done, if it may take `limit` at most.
    pub(super) fn deadline(self, limit: Duration) -> Deadline {
        let time = self.remaining.map_or(limit, |remaining| remaining.min(limit));
        Deadline { at: self.at + time }
    }
}

/// By when a change must be done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    at: Instant,
}

impl Deadline {
    /// Runs a part of the change.
    ///
    /// # Errors
    /// [`Error::Late`] when the time is over; the part is dropped then. Its own otherwise.
    pub(super) async fn holds<T, E: Into<Error>>(
        self,
        part: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Error> {
        match timeout_at(self.at, part).await {
            Ok(done) => done.map_err(Into::into),
            Err(_elapsed) => Err(Error::Late),
        }
    }

    /// Makes sure, right before the step that cannot be undone, that the time is not over and the operator
    /// still waits.
    ///
    /// # Errors
    /// [`Error::Late`].
    pub(super) async fn is_ahead(self) -> Result<(), Error> {
        // The server drops a handler when it sees that the connection has been closed. This lets it look once
        // more.
        tokio::task::yield_now().await;
        if self.at <= Instant::now() { Err(Error::Late) } else { Ok(()) }
    }
}

/// The transaction of one change. Dropped without [`Self::commit`], it is rolled back.
pub(super) struct Change {
    tx: Transaction<'static, Postgres>,
    deadline: Deadline,
}

impl Change {
    /// Begins the transaction. No statement of it, nor its wait for a lock, outlasts the change's time.
    ///
    /// # Errors
    /// [`Error::Late`], [`Error::Log`].
    pub(super) async fn begin(shared: &Shared, asked: Asked) -> Result<Self, Error> {
        let deadline = asked.deadline(LIMIT);
        let mut tx = deadline.holds(shared.pool.begin()).await?;
        let left = deadline.at.saturating_duration_since(Instant::now()).as_millis().max(1).to_string();
        let limiting = sqlx::query(
            "select pg_catalog.set_config('statement_timeout', $1, true),
                    pg_catalog.set_config('lock_timeout', $1, true)",
        );
        deadline.holds(limiting.bind(left).execute(&mut *tx)).await?;
        Ok(Self { tx, deadline })
    }

    /// By when it must be done.
    pub(super) fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// Where its statements go.
    pub(super) fn connection(&mut self) -> &mut PgConnection {
        &mut self.tx
    }

    /// Commits, if its time is not over and its operator still waits.
    ///
    /// # Errors
    /// [`Error::Late`]; [`Error::Unknown`] if Postgres does not answer the commit.
    pub(super) async fn commit(self) -> Result<(), Error> {
        self.deadline.is_ahead().await?;
        match timeout(COMMIT_LIMIT, self.tx.commit()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error @ sqlx::Error::Database(_))) => Err(error.into()),
            Ok(Err(_)) | Err(_) => Err(Error::Unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn asked(before: &str) -> Result<Asked, Error> {
        let request = axum::http::Request::builder().header(BEFORE, before).body(()).expect("a request");
        Asked::from_request_parts(&mut request.into_parts().0, &()).await
    }

    #[tokio::test]
    async fn what_its_page_no_longer_waits_for_is_refused() {
        let in_time = |ms: i64| (Utc::now().timestamp_millis() + ms).to_string();
        assert!(matches!(asked(&in_time(-1)).await, Err(Error::TooOld)));
        assert!(matches!(asked("soon").await, Err(Error::NoTime)));
        let soon = asked(&in_time(1000)).await.expect("in time");
        assert!(soon.deadline(LIMIT).at <= soon.at + Duration::from_secs(1));
        let far = asked(&in_time(i64::MAX / 4)).await.expect("in time");
        assert_eq!(far.deadline(LIMIT).at, far.at + LIMIT);
    }
}
