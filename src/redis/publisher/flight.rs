//! Calls of the script that are under way: the parts of one chunk, each at its server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::redis::aio::MultiplexedConnection;
use ::redis::{Cmd, RedisResult, Script};
use futures_util::future::{BoxFuture, FutureExt, join_all};

use super::chunk::Chunk;
use super::part::Part;
use super::refusal::Refusal;
use super::server::Answer;
use crate::relay::{PublishError, failure};
use crate::trace;

/// How long one server of a cluster may take. It is then tried again, and left behind if it goes on like
/// that: the topics of the other servers wait for it.
const CLUSTER_CALL_LIMIT: Duration = Duration::from_secs(2);

/// One call of the script, ready to be sent.
pub(super) struct Call {
    pub(super) script: Arc<Script>,
    pub(super) command: Cmd,
    pub(super) connection: MultiplexedConnection,
    pub(super) span: trace::Span,
    pub(super) is_of_cluster: bool,
}

/// The answer to one call.
pub(super) struct Answered {
    pub(super) answer: Result<Answer, PublishError>,
    /// How many of the part's events may have arrived.
    pub(super) max_arrived: usize,
    /// Whether the connection still works.
    pub(super) still_works: bool,
    /// How long it took; `None` if there was no call, because there is no connection.
    pub(super) took: Option<Duration>,
}

/// A chunk whose calls have ended.
pub(super) struct ChunkAnswers<'a> {
    pub(super) chunk: Chunk<'a>,
    pub(super) parts: Vec<Part<'a>>,
    pub(super) answered: Vec<Answered>,
    /// The time that decided on TTLs.
    pub(super) now: Instant,
}

/// Sends the calls of a chunk, one for each part, when it is first polled, and waits for all answers.
/// A part whose server cannot be reached comes with that refusal in place of a call.
pub(super) fn send_calls<'a>(
    chunk: Chunk<'a>,
    parts: Vec<Part<'a>>,
    calls: Vec<Result<Call, PublishError>>,
    now: Instant,
) -> BoxFuture<'a, ChunkAnswers<'a>> {
    async move {
        let answered = join_all(parts.iter().zip(calls).map(async |(part, call)| match call {
            Ok(call) => call.answered(part.at.len()).await,
            Err(error) => Answered { answer: Err(error), max_arrived: 0, still_works: false, took: None },
        }));
        let answered = answered.await;
        ChunkAnswers { chunk, parts, answered, now }
    }
    .boxed()
}

impl Call {
    async fn answered(mut self, events: usize) -> Answered {
        let begun = Instant::now();
        let answer = match self.is_of_cluster {
            false => self.invoke().await.map_err(|error| Refusal::of(&error)),
            true => match tokio::time::timeout(CLUSTER_CALL_LIMIT, self.invoke()).await {
                Ok(answer) => answer.map_err(|error| Refusal::of(&error)),
                Err(_elapsed) => {
                    let text = "no answer in time".to_owned();
                    Err(Refusal { failure: failure::TIMEOUT, text, is_reply: false })
                }
            },
        };
        match &answer {
            Ok((_, verdict, _)) if verdict == "OK" => {}
            Ok(_) => self.span.failed("refused"),
            Err(refusal) => self.span.failed(refusal.failure.class),
        }
        let max_arrived = match &answer {
            Ok((_, verdict, _)) if verdict == "OK" => events,
            Ok((arrived, ..)) => *arrived,
            // The server has not run the script.
            Err(Refusal { is_reply: true, .. }) => 0,
            Err(_) => events,
        };
        let still_works = answer.as_ref().map_or_else(Refusal::keeps_connection, |_| true);
        Answered {
            answer: answer.map_err(Refusal::retry),
            max_arrived,
            still_works,
            took: Some(begun.elapsed()),
        }
    }

    /// Calls the script, and loads it first if the server does not have it.
    async fn invoke(&mut self) -> RedisResult<Answer> {
        let connection = &mut self.connection;
        match self.command.query_async(connection).await {
            Err(error) if error.code() == Some("NOSCRIPT") => {
                self.script.load_async(connection).await?;
                self.command.query_async(connection).await
            }
            answer => answer,
        }
    }
}
