//! Opening a stream: where it begins, whether there is room, and the response.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::catch_up;
use super::cursor::Cursor;
use super::frame::{self, ResetReason};
use super::hub::{Hub, Place, Refusal, Shared};
use super::outlet::{Put, StreamBody};
use super::ticker::retry_of;
use super::topic::From;
use crate::event::Topic;
use crate::http::ConnectionEnd;

/// How long the response waits for the stream's place to be known. With Redis at hand that takes a millisecond; without
/// it the stream is opened all the same, so that the browser is connected, and told later that it may have missed events.
const WAIT_FOR_PLACE: Duration = Duration::from_secs(2);

/// A client that is refused comes back after this many times the usual wait: others need the time to leave.
const REFUSED_WAIT: u32 = 3;

/// The query of a stream's URL.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamQuery {
    /// Continue after this id. For a first connection: a browser that reconnects sends the same URL again, and the header
    /// with its newest id then wins.
    pub last_event_id: Option<String>,
    /// Where a first connection begins: `latest` (the default), `last` or `earliest`.
    pub from: Option<Start>,
}

/// Where a stream without an id begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// With the next event.
    Latest,
    /// With the newest event.
    Last,
    /// With the oldest event in the history.
    Earliest,
}

/// A stream that somebody may have.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Its topic.
    pub topic: Topic,
    /// When the right to it ends.
    pub expires_at: Option<DateTime<Utc>>,
}

/// Opens a stream. The caller has made sure that the client may have it.
///
/// The answer is always 200: EventSource gives up for ever on anything else. Where there is no room it says when to come
/// back, and ends.
pub async fn open(
    hub: &Hub,
    wanted: Wanted,
    headers: &HeaderMap,
    query: &StreamQuery,
    connection: ConnectionEnd,
) -> Response {
    let shared = &hub.0;
    let from = begin_of(headers, query);
    let expires_at = wanted.expires_at.map(|at| {
        let left = (at - Utc::now()).to_std().unwrap_or(Duration::ZERO);
        Instant::now() + left
    });
    match shared.admit(&wanted.topic, expires_at, connection) {
        Err(refusal) => refused(shared, refusal),
        Ok(place) => {
            let place = Arc::new(place);
            // The first bytes at once, so that `open` fires and proxies let the response through.
            let _queued: Put = place.outlet.put(frame::retry(retry_of(shared, 1)));
            // Made before anything is awaited: if the request is given up meanwhile, dropping it gives up the place.
            let body = StreamBody::new(place.outlet.clone(), place.clone());
            attach(shared, &place, from).await;
            stream(Body::new(body))
        }
    }
}

/// Attaches the stream to its topic, and waits until its place is known, but not for long.
async fn attach(shared: &Arc<Shared>, place: &Arc<Place>, from: From) {
    let (placed, is_placed) = oneshot::channel();
    tokio::spawn(catch_up_unless_gone(shared.clone(), place.clone(), from, placed));
    // Too late, or the client is gone already: the task that goes on knows, as nobody takes its word any more.
    let _placed_or_not = tokio::time::timeout(WAIT_FOR_PLACE, is_placed).await;
}

/// Ends when the client leaves, which the body's end tells.
async fn catch_up_unless_gone(
    shared: Arc<Shared>,
    place: Arc<Place>,
    from: From,
    placed: oneshot::Sender<()>,
) {
    tokio::select! {
        () = place.outlet.gone().cancelled() => {}
        () = catch_up::run(&shared, &place, from, placed) => {}
    }
}

/// Where the stream begins: the header wins, as it is newer than the URL of a browser that reconnects.
fn begin_of(headers: &HeaderMap, query: &StreamQuery) -> From {
    const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
    let from_header = headers.get(LAST_EVENT_ID).map(|value| value.to_str().unwrap_or("?"));
    let id = from_header.or(query.last_event_id.as_deref()).filter(|id| !id.is_empty());
    match (id, query.from.unwrap_or(Shared::default_start())) {
        (Some(id), _) => Cursor::parse(id).map_or(From::Reset(ResetReason::BadId), From::After),
        (None, Start::Latest) => From::Latest,
        (None, Start::Last) => From::Last,
        (None, Start::Earliest) => From::Earliest,
    }
}

fn refused(shared: &Shared, refusal: Refusal) -> Response {
    shared.metrics.refused.inc();
    let comment = match refusal {
        Refusal::Full => ": this server is full; come back later\n\n",
        Refusal::Draining => ": this server is stopping; come back later\n\n",
    };
    let retry = frame::retry(retry_of(shared, REFUSED_WAIT));
    let mut response = stream(Body::from(Bytes::from([comment.as_bytes(), &retry].concat())));
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn stream(body: Body) -> Response {
    let mut response = Response::new(body);
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

    fn begin(header: Option<&'static str>, query: Option<&str>, from: Option<Start>) -> From {
        let mut headers = HeaderMap::new();
        if let Some(id) = header {
            headers.insert("last-event-id", HeaderValue::from_static(id));
        }
        begin_of(&headers, &StreamQuery { last_event_id: query.map(str::to_owned), from })
    }

    #[test]
    fn the_header_wins_over_the_url_and_both_over_the_start() {
        let after = |seq| From::After(Cursor::After(StreamId::new(1, seq)));
        assert_eq!(begin(Some("1-9"), Some("1-4"), Some(Start::Last)), after(9));
        assert_eq!(begin(None, Some("1-4"), Some(Start::Last)), after(4));
        assert_eq!(begin(None, None, Some(Start::Last)), From::Last);
        assert_eq!(begin(None, None, None), From::Latest);
        assert_eq!(begin(Some(""), None, None), From::Latest);
    }

    #[test]
    fn an_id_that_is_none_is_a_reset_and_never_ignored() {
        for bad in ["x", "1", "1-2-3", "null", "1-2,1-3"] {
            assert_eq!(begin(Some(bad), None, None), From::Reset(ResetReason::BadId), "{bad}");
        }
    }
}
