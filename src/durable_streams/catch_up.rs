//! Reads without waiting: one page from an offset on.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::answer::{ASKED_AGAIN, NOT_STORED, placed, with_body};
use super::offset::{Offset, text_of};
use super::query::ReadQuery;
use crate::http::{Connection, Problem};
use crate::sse::{Cursor, EventPage, PageError, TopicReader};

/// Answers with the page after the offset, or with 304 if the client has it.
pub(super) async fn answer(
    reader: &TopicReader,
    asked: &ReadQuery,
    headers: &HeaderMap,
    connection: &Connection,
) -> Result<Response, Problem> {
    let page = first_page(reader, asked.offset).await?;
    let tag = etag(asked.offset, &page);
    let mut response = if tag.as_ref().is_some_and(|tag| has(headers, tag)) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        with_body(reader.hold(asked.form.body(&page.payloads).into()), asked.form, connection)
    };
    placed(&mut response, page.next, page.is_last);
    let stored = if tag.is_some() { ASKED_AGAIN } else { NOT_STORED };
    response.headers_mut().insert(header::CACHE_CONTROL, stored);
    if let Some(tag) = tag {
        response.headers_mut().insert(header::ETAG, tag);
    }
    Ok(response)
}

/// The first page of a read; an empty one for `now`.
pub(super) async fn first_page(reader: &TopicReader, offset: Offset) -> Result<EventPage, PageError> {
    match offset {
        Offset::Beginning => reader.page(None).await,
        Offset::At(place) => reader.page(Some(place)).await,
        Offset::Now => Ok(EventPage::empty(reader.tail().await?)),
    }
}

/// The ETag of a page. A page can be reused, because the events after a place never change. A page that is no
/// longer the last one has another tag, because a client that reuses it reuses its headers too. `None` for
/// `now`, which is another place each time.
pub(super) fn etag(offset: Offset, page: &EventPage) -> Option<HeaderValue> {
    let from = match offset {
        Offset::Now => return None,
        Offset::Beginning => "-1".to_owned(),
        // A topic without an event has many offsets, and one page.
        Offset::At(Cursor::Start { .. }) => "start".to_owned(),
        Offset::At(place) => text_of(place),
    };
    let end = if page.is_last { ":end" } else { "" };
    HeaderValue::from_str(&format!("\"{from}:{}{end}\"", text_of(page.next))).ok()
}

/// Whether `If-None-Match` names this tag.
fn has(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    let tags = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    tags.flat_map(|tags| tags.split(',')).any(|given| {
        let given = given.trim();
        given == "*" || given.strip_prefix("W/").unwrap_or(given).as_bytes() == tag.as_bytes()
    })
}
