//! The headers of answers, and how long a client may take for a body.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::body::Form;
use super::offset::text_of;
use crate::http::Connection;
use crate::sse::Cursor;

const NEXT_OFFSET: HeaderName = HeaderName::from_static("stream-next-offset");
const UP_TO_DATE: HeaderName = HeaderName::from_static("stream-up-to-date");
const CURSOR: HeaderName = HeaderName::from_static("stream-cursor");

/// `Cache-Control` of answers that no cache may store.
pub(super) const NOT_STORED: HeaderValue = HeaderValue::from_static("no-store");
/// `Cache-Control` of answers that only the client may store, and must revalidate each time. So a revoked
/// token opens no copy.
pub(super) const ASKED_AGAIN: HeaderValue = HeaderValue::from_static("private, no-cache");

/// Bodies up to this size fit into what the kernel buffers for a client.
const SMALL_BYTES: usize = 64 * 1024;
/// How long a client may take for a larger one.
const TAKEN_WITHIN: Duration = Duration::from_secs(120);

/// Adds the headers that every answer has, errors included: what browsers may do with it, and which headers
/// the pages of allowed origins may read.
pub(super) async fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // Pages of other origins read by CORS, if at all.
    let policy = HeaderName::from_static("cross-origin-resource-policy");
    headers.insert(policy, HeaderValue::from_static("same-origin"));
    headers.insert(
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static("etag, retry-after, stream-cursor, stream-next-offset, stream-up-to-date"),
    );
    response
}

/// The answer to `HEAD`.
pub(super) fn of_tail(tail: Cursor, form: Form) -> Response {
    // A body of unknown length: that of the answer to GET is another one.
    let body = futures_util::stream::empty::<Result<Bytes, std::convert::Infallible>>();
    let mut response = Response::new(Body::from_stream(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(form.content_type()));
    placed(&mut response, tail, false);
    response.headers_mut().insert(header::CACHE_CONTROL, NOT_STORED);
    response
}

/// An answer with messages.
pub(super) fn with_body(body: Bytes, form: Form, connection: &Connection) -> Response {
    let mut response = Response::new(Body::from(limited(body, connection)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(form.content_type()));
    response
}

/// Says where the client goes on, and whether that is the topic's end.
pub(super) fn placed(response: &mut Response, next: Cursor, is_last: bool) {
    let headers = response.headers_mut();
    if let Ok(offset) = HeaderValue::from_str(&text_of(next)) {
        headers.insert(NEXT_OFFSET, offset);
    }
    if is_last {
        headers.insert(UP_TO_DATE, HeaderValue::from_static("true"));
    }
}

/// Adds the cursor of a live read.
pub(super) fn with_cursor(response: &mut Response, cursor: u64) {
    response.headers_mut().insert(CURSOR, HeaderValue::from(cursor));
}

/// The same bytes. The connection ends if the client does not take them in time.
fn limited(body: Bytes, connection: &Connection) -> Bytes {
    if body.len() <= SMALL_BYTES {
        return body;
    }
    let taken = CancellationToken::new();
    let (seen, end) = (taken.clone(), connection.end.clone());
    tokio::spawn(async move {
        if tokio::time::timeout(TAKEN_WITHIN, seen.cancelled()).await.is_err() {
            end.cancel();
        }
    });
    Bytes::from_owner(Untaken { body, _taken: taken.drop_guard() })
}

/// A body that the kernel has not taken yet.
struct Untaken {
    body: Bytes,
    _taken: DropGuard,
}

impl AsRef<[u8]> for Untaken {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}
