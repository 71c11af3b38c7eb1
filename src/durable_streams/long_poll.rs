//! Reads that wait for the next event, and answer once.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use tokio::time::timeout;

use super::answer::{NOT_STORED, placed, with_body, with_cursor};
use super::catch_up::{etag, first_page};
use super::collapse;
use super::query::ReadQuery;
use crate::auth::User;
use crate::http::{Connection, Problem};
use crate::sse::{EventPage, PageError, TopicReader, Watch};

/// How long an answer waits for an event. Shorter than proxies wait for the first byte, which is 60 s mostly.
const WAIT: Duration = Duration::from_secs(20);

/// Answers with the events after the offset once there are some, or with 204 after [`WAIT`].
pub(super) async fn answer(
    reader: &TopicReader,
    asked: &ReadQuery,
    user: User,
    connection: Connection,
) -> Result<Response, Problem> {
    // Before the history is read, so that an event that comes in between is not missed.
    let watch = reader.watch(user, connection.clone())?;
    let page = tokio::select! {
        page = poll(reader, asked, &watch) => page?,
        why = watch.ended() => return Err(why),
    };
    let is_timeout = page.payloads.is_empty() && page.is_last;
    let mut response = if is_timeout {
        StatusCode::NO_CONTENT.into_response()
    } else {
        with_body(reader.hold(asked.form.body(&page.payloads).into()), asked.form, &connection)
    };
    placed(&mut response, page.next, page.is_last);
    with_cursor(&mut response, collapse::cursor(asked.cursor, Utc::now()));
    response.headers_mut().insert(header::CACHE_CONTROL, NOT_STORED);
    if let Some(tag) = etag(asked.offset, &page).filter(|_| !is_timeout) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    Ok(response)
}

/// The next page with an event, or an empty one at the topic's end.
async fn poll(reader: &TopicReader, asked: &ReadQuery, watch: &Watch) -> Result<Arc<EventPage>, PageError> {
    let page = first_page(reader, asked.offset).await?;
    if !page.payloads.is_empty() || !page.is_last {
        return Ok(Arc::new(page));
    }
    match timeout(WAIT, watch.next(page.next)).await {
        Ok(next) => next,
        Err(_elapsed) if watch.is_at_end(page.next) => Ok(Arc::new(page)),
        // This process cannot tell whether an event has come: ask Redis, or fail.
        Err(_elapsed) => Ok(Arc::new(reader.page(Some(page.next)).await?)),
    }
}
