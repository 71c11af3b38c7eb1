//! The identity of the log whose events Redis holds. A resume token of another log decides nothing here.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::event::LogId;
use crate::redis::History;

/// How long an answer is used: ten thousand pages that load at once make one question.
pub(crate) const ANSWER_KEPT: Duration = Duration::from_secs(1);
/// How often Redis is asked while it names no log. A client's first event is late by at most this long.
pub(crate) const ASKED_EVERY: Duration = Duration::from_millis(200);
/// How long a client waits for the answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Redis did not say which log it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoAnswer;

/// The newest answer of Redis.
#[derive(Debug, Default)]
pub(crate) struct LogOfRedis(Mutex<Option<Answer>>);

/// An answer, and when it came.
#[derive(Debug, Clone, Copy)]
struct Answer {
    at: Instant,
    log: Result<Option<LogId>, NoAnswer>,
}

impl LogOfRedis {
    /// Returns the log's identity, and `None` if no relay has published at this Redis since it was
    /// empty.
    ///
    /// # Errors
    /// Returns [`NoAnswer`] if Redis does not answer in time. It is asked again a second later.
    pub(crate) async fn get(&self, history: &History) -> Result<Option<LogId>, NoAnswer> {
        // Held while Redis is asked, so that all others wait for the same answer.
        let mut newest = self.0.lock().await;
        if let Some(Answer { at, log }) = *newest {
            let kept = if log == Ok(None) { ASKED_EVERY } else { ANSWER_KEPT };
            if at.elapsed() < kept {
                return log;
            }
        }
        let log = match timeout(ANSWER_LIMIT, history.log()).await {
            Ok(Ok(log)) => Ok(log),
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot tell whether resume tokens are of this log");
                Err(NoAnswer)
            }
            Err(_elapsed) => Err(NoAnswer),
        };
        *newest = Some(Answer { at: Instant::now(), log });
        log
    }
}
