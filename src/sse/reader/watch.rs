//! A reader that waits for the next event, or is sent events as they come. It counts as one of the streams:
//! it has their limits, and ends with its token, by a revocation and at shutdown, as they do.

use std::pin::pin;
use std::sync::Arc;

use axum::response::Response;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::page::TopicReader;
use crate::auth::User;
use crate::event::{StreamId, Topic};
use crate::http::{Connection, Problem, Takeover};
use crate::sse::client::admission::{StreamGuard, StreamRequest};
use crate::sse::client::open::{end_of, event_stream};
use crate::sse::history::repair_wait::{RepairWait, between_reads};
use crate::sse::queue::send_queue::Put;
use crate::sse::sockets::OpenedStream;
use crate::sse::topic::event_page::{EventPage, PageError};
use crate::sse::topic::shared_topic::SharedTopic;
use crate::sse::topic::state::TopicState;
use crate::sse::wire::cursor::Cursor;
use crate::sse::wire::query::Keep;
use crate::sse::wire::refusal::Refusal;

/// A reader among the streams. It keeps the topic subscribed for as long as it lives. Make it before you read
/// the history, so that no event in between is missed.
#[derive(Debug, Clone)]
pub struct Watch {
    reader: TopicReader,
    guard: Arc<StreamGuard>,
    topic: Arc<SharedTopic>,
    /// Cancelled when the reader has to end at once.
    end: CancellationToken,
}

impl TopicReader {
    /// Admits a reader that waits for one event, and is answered by the caller.
    ///
    /// # Errors
    /// 429 if the user has as many streams as a user may have; 503 if the process has, or is ending.
    pub fn watch(&self, user: User, connection: Connection) -> Result<Watch, Problem> {
        self.admit(user, connection, false)
    }

    /// Admits a reader that is sent events as they come: see [`Watch::open`].
    ///
    /// # Errors
    /// As [`Self::watch`].
    pub fn stream(&self, user: User, connection: Connection) -> Result<Watch, Problem> {
        self.admit(user, connection, true)
    }

    fn admit(&self, user: User, mut connection: Connection, is_written: bool) -> Result<Watch, Problem> {
        let end = CancellationToken::new();
        connection.end = end.clone();
        let topics: Arc<[Topic]> = Arc::new([self.topic.clone()]);
        let expires_at = Some(end_of(&user));
        let (cursors, keep) = (None, Keep::All);
        let request = StreamRequest { user, topics, cursors, keep, is_written, expires_at, connection };
        let guard = self.shared.admit(request).map_err(|refusal| {
            self.shared.metrics.refused(refusal);
            problem_of(refusal)
        })?;
        let (topic, _) =
            guard.stream_topics(None, false).next().ok_or(Refusal::Unavailable).map_err(problem_of)?;
        Ok(Watch { reader: self.clone(), guard: Arc::new(guard), topic, end })
    }
}

impl Watch {
    /// Waits for events after the place, and returns them. Goes on waiting while Redis cannot be read.
    ///
    /// # Errors
    /// [`PageError::Gone`] and [`PageError::NoRoom`], as [`TopicReader::page`].
    pub async fn next(&self, place: Cursor) -> Result<Arc<EventPage>, PageError> {
        let mut repair = RepairWait::new(self.reader.shared.settings.repair_wait());
        let mut reads = between_reads();
        loop {
            let newest = self.wait_until_behind(place).await;
            let page = match self.reader.page_with(place, newest).await {
                // Messages and reads have connections of their own: one may be back before the other.
                Err(PageError::Read(error)) => {
                    tracing::debug!(%error, "cannot read a history yet");
                    tokio::time::sleep(reads.next_wait()).await;
                    continue;
                }
                page => page?,
            };
            if page.next.id() != place.id() {
                return Ok(page);
            }
            // This process has received an event that the history does not hold, or no longer holds.
            if !repair.wait().await {
                return Err(PageError::Gone);
            }
        }
    }

    /// Waits until the topic is at the end of its history, and that end is past the place. Returns its newest
    /// event.
    async fn wait_until_behind(&self, place: Cursor) -> Option<StreamId> {
        loop {
            let mut message = pin!(self.topic.message_came.notified());
            let mut joined = pin!(self.topic.join_ended.notified());
            // Registered before the look, so that an event that comes in between is not missed.
            message.as_mut().enable();
            joined.as_mut().enable();
            {
                let state = self.topic.state();
                let newest = newest_readable(&state, place);
                if state.is_live() && newest > place.id() {
                    return newest;
                }
            }
            tokio::select! {
                () = message => {}
                () = joined => {}
            }
        }
    }

    /// Whether the process knows that the topic's end is no further than the place.
    pub fn is_at_end(&self, place: Cursor) -> bool {
        let state = self.topic.state();
        state.is_live() && newest_readable(&state, place) <= place.id()
    }

    /// Waits until the reader must end at once. Returns why.
    pub async fn ended(&self) -> Problem {
        self.end.cancelled().await;
        if self.reader.shared.draining.load(std::sync::atomic::Ordering::Relaxed) {
            return problem_of(Refusal::Draining);
        }
        Problem::unauthorized("the token or ticket has expired, or an operator has revoked it: get a new one")
    }

    /// Takes over the socket of the request. The response ends with [`Self::finish`].
    pub fn open(&self) -> Response {
        let stream = OpenedStream::new(self.guard.queue.clone(), self.guard.clone());
        let sockets = self.reader.shared.sockets.clone();
        event_stream(Takeover::response(move |taken| sockets.take(taken, stream)))
    }

    /// Sends bytes once there is room for them. Returns false if nobody reads them any more.
    pub async fn send(&self, bytes: Bytes) -> bool {
        let _room = self.guard.queue.room_for(bytes.len()).await;
        self.guard.queue.put_bytes(self.reader.shared.budget.hold(bytes)) == Put::Queued
    }

    /// Ends the response after the bytes that were sent.
    pub fn finish(&self) {
        self.guard.queue.finish(Bytes::new());
    }

    /// Waits until nobody reads the response any more.
    pub async fn closed(&self) {
        self.guard.queue.closed().await;
    }
}

/// The newest event of the topic that a reader at this place can get. For a reader at the topic's start, a
/// topic whose history has expired counts as one that never had an event.
fn newest_readable(state: &TopicState, place: Cursor) -> Option<StreamId> {
    match place {
        Cursor::Start { .. } => state.tip_of_history(),
        Cursor::After(_) => state.end_cursor().and_then(Cursor::id),
    }
}

fn problem_of(refusal: Refusal) -> Problem {
    match refusal {
        Refusal::User => Problem::too_many("this user has as many streams as a user may have: close some"),
        Refusal::UserTopics => {
            Problem::too_many("the streams of this user have as many topics as a user's may have: close some")
        }
        Refusal::Full => {
            Problem::unavailable("this process has as many streams as it may have: try again after a while")
        }
        Refusal::Topics => Problem::unavailable(
            "this process has as many topics in use as it may have: try again after a while",
        ),
        Refusal::Draining => Problem::unavailable("this process is ending: try again after a while"),
        Refusal::Unavailable => {
            Problem::unavailable("this stream cannot be opened now: try again after a while")
        }
    }
}
