//! Opens a stream: decides where it begins and whether there is room, and makes the response. The caller has
//! checked that the user may have it.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use chrono::Utc;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::admission::{StreamGuard, StreamRequest};
use super::catch_up::CatchUp;
use super::opening::Opening;
use crate::auth::User;
use crate::event::{ResumeToken, Topic};
use crate::http::{Connection, Takeover};
use crate::sse::hub::Hub;
use crate::sse::queue::send_queue::Put;
use crate::sse::shared::Shared;
use crate::sse::sockets::OpenedStream;
use crate::sse::wire::cursor::Cursor;
use crate::sse::wire::frame::{self, ResetReason};
use crate::sse::wire::multi_topic::{MultiTopic, StreamCursors};
use crate::sse::wire::query::StreamQuery;
use crate::sse::wire::refusal::Refusal;
use crate::sse::wire::start::{Start, StartAt};

/// A client that is refused reconnects after this many times the usual wait: others need the time to leave.
const REFUSED_WAIT: u32 = 3;

/// A stream that a user is allowed to have.
#[derive(Debug, Clone)]
pub struct StreamGrant {
    /// Its topics.
    pub topics: Topics,
    /// The user, whose streams are limited and end with the token.
    pub user: User,
}

/// The topics of a stream.
#[derive(Debug, Clone)]
pub enum Topics {
    /// One topic; its ids are those of the topic's history.
    One(Topic),
    /// One or more topics; its ids hold a cursor for each.
    Multi(MultiTopic),
}

impl Topics {
    fn list(&self) -> &[Topic] {
        match self {
            Self::One(topic) => std::slice::from_ref(topic),
            Self::Multi(multi_topic) => multi_topic.topics(),
        }
    }
}

/// Opens a stream. The caller has checked that the client may have it.
///
/// The answer is always 200: EventSource gives up for ever on any other status. Where there is no room the
/// stream says when to reconnect, and ends.
pub async fn open(
    hub: &Hub,
    grant: StreamGrant,
    headers: &HeaderMap,
    query: &StreamQuery,
    connection: Connection,
) -> Response {
    let shared = &hub.0;
    let parsed =
        |text: &String| ResumeToken::parse(text).map(Arc::new).map_err(|_not_one| ResetReason::BadToken);
    let token = query.resume.as_ref().map(parsed);
    let starts = starts_of(&grant.topics, headers, query, &token);
    let token = token.and_then(Result::ok);
    let cursors = match &grant.topics {
        Topics::One(_) => None,
        Topics::Multi(multi_topic) => Some(StreamCursors::new(multi_topic, &starts)),
    };
    let expires_at = Some(end_of(&grant.user));
    let topics = grant.topics.list().into();
    let (user, peer) = (grant.user.id.clone(), connection.peer);
    let keep = query.keep;
    let request =
        StreamRequest { user: grant.user, topics, cursors, keep, is_written: true, expires_at, connection };
    match shared.admit(request) {
        Err(refusal) => {
            // A full server refuses thousands a minute: always counted, logged at debug level only.
            tracing::debug!(%user, %peer, reason = refusal.as_str(), "refused");
            refused(shared, refusal)
        }
        Ok(guard) => {
            let guard = Arc::new(guard);
            // The first bytes at once, so that `open` fires and proxies let the response through.
            let _queued: Put = guard.queue.put_bytes(frame::retry(shared.retry_after(1)));
            // Made before the first await: if the request is given up meanwhile, dropping it closes the queue.
            let stream = OpenedStream::new(guard.queue.clone(), guard.clone());
            attach(shared, &guard, &starts, token.as_ref(), query.is_text).await;
            let sockets = shared.sockets.clone();
            event_stream(Takeover::response(move |taken| sockets.take(taken, stream)))
        }
    }
}

/// Starts to bring the stream to the end of its topics. Waits until its place in each is known, but not for
/// long.
async fn attach(
    shared: &Arc<Shared>,
    guard: &Arc<StreamGuard>,
    starts: &[StartAt],
    token: Option<&Arc<ResumeToken>>,
    is_text: bool,
) {
    let mut all_placed = Vec::with_capacity(starts.len());
    // Cancelled when the response begins without waiting any longer.
    let opened = CancellationToken::new();
    for ((topic, stream), from) in guard.stream_topics(token, is_text).zip(starts) {
        let (placed, is_placed) = oneshot::channel();
        let catch_up =
            CatchUp::new(shared.clone(), topic, stream, *from, Opening::new(placed, opened.clone()));
        tokio::spawn(catch_up_unless_gone(guard.clone(), catch_up));
        all_placed.push(is_placed);
    }
    tokio::select! {
        // A client that is gone reports no place: its sender is dropped.
        _placed_or_gone = futures_util::future::join_all(all_placed) => {}
        // Events of the other topics come meanwhile, and the client can read none of them yet.
        () = guard.queue.wait_until_half_full() => opened.cancel(),
    }
}

/// Ends when the client is gone: dropping the stream closes the queue.
async fn catch_up_unless_gone(guard: Arc<StreamGuard>, catch_up: CatchUp) {
    tokio::select! {
        () = guard.queue.closed() => {}
        () = catch_up.run() => {}
    }
}

/// Where the stream begins in each topic: the header wins, as it is newer than the URL of a browser that
/// reconnects.
fn starts_of(
    topics: &Topics,
    headers: &HeaderMap,
    query: &StreamQuery,
    token: &Option<Result<Arc<ResumeToken>, ResetReason>>,
) -> Vec<StartAt> {
    const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
    let from_header = headers.get(LAST_EVENT_ID).map(|value| value.to_str().unwrap_or("?"));
    let is_some = |id: &&str| !id.is_empty();
    let id = from_header.filter(is_some).or(query.last_event_id.as_deref()).filter(is_some);
    let fresh = match (token, query.from.unwrap_or(Start::Latest)) {
        (Some(Ok(_)), _) => StartAt::Resume,
        (Some(Err(reason)), _) => StartAt::Reset(*reason),
        (None, Start::Latest) => StartAt::Latest,
        (None, Start::Last) => StartAt::Last,
        (None, Start::Earliest) => StartAt::Earliest,
    };
    let begin = match (id, topics) {
        (None, _) => None,
        (Some(id), Topics::One(_)) => Some(Cursor::parse(id).ok().map(|cursor| vec![StartAt::After(cursor)])),
        (Some(id), Topics::Multi(multi_topic)) => Some(multi_topic.starts(id, fresh)),
    };
    let all = |from| vec![from; topics.list().len()];
    match begin {
        None => all(fresh),
        Some(Some(begin)) => begin,
        Some(None) => all(StartAt::Reset(ResetReason::BadId)),
    }
}

/// The answer to a client that gets no stream now: when to reconnect, and why.
pub(crate) fn refused(shared: &Shared, refusal: Refusal) -> Response {
    shared.metrics.refused(refusal);
    let wait = shared.retry_after(REFUSED_WAIT);
    let text = [frame::retry(wait), frame::refused(refusal, wait)].concat();
    let mut response = event_stream(Response::new(Body::from(Bytes::from(text))));
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// When the user's token expires.
pub(crate) fn end_of(user: &User) -> Instant {
    Instant::now() + (user.expires_at - Utc::now()).to_std().unwrap_or(Duration::ZERO)
}

/// The response with the headers of a stream.
pub(crate) fn event_stream(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
    // nginx buffers responses unless it is told not to, here.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::StreamId;

    fn begin(header: Option<&'static str>, query: Option<&str>, from: Option<Start>) -> StartAt {
        let mut headers = HeaderMap::new();
        if let Some(id) = header {
            headers.insert("last-event-id", HeaderValue::from_static(id));
        }
        let topics = Topics::One(Topic::new("t").expect("a topic"));
        let query = StreamQuery { last_event_id: query.map(str::to_owned), from, ..StreamQuery::default() };
        starts_of(&topics, &headers, &query, &None)[0]
    }

    #[test]
    fn the_header_wins_over_the_url_and_both_over_the_start() {
        let after = |seq| StartAt::After(Cursor::After(StreamId::new(1, seq)));
        assert_eq!(begin(Some("1-9"), Some("1-4"), Some(Start::Last)), after(9));
        assert_eq!(begin(None, Some("1-4"), Some(Start::Last)), after(4));
        assert_eq!(begin(None, None, Some(Start::Last)), StartAt::Last);
        assert_eq!(begin(None, None, None), StartAt::Latest);
        assert_eq!(begin(Some(""), None, None), StartAt::Latest);
        assert_eq!(begin(Some(""), Some("1-4"), None), after(4), "an empty header says nothing");
    }

    #[test]
    fn an_id_that_is_none_is_a_reset_and_never_ignored() {
        for bad in ["x", "1", "1-2-3", "null", "1-2,1-3"] {
            assert_eq!(begin(Some(bad), None, None), StartAt::Reset(ResetReason::BadId), "{bad}");
        }
    }
}
