//! Reads as a stream of events, which ends after a while: the client goes on with a new one.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderValue, header};
use axum::response::Response;
use chrono::Utc;
use tokio::time::timeout;

use super::body::{Form, events};
use super::catch_up::first_page;
use super::collapse;
use super::query::ReadQuery;
use crate::auth::User;
use crate::backoff::random_fraction;
use crate::http::{Connection, Problem};
use crate::sse::{EventPage, TopicReader, Watch};

/// How long a response lasts at least, and by how much longer at most: clients that came together do not come
/// back together.
const LASTS: Duration = Duration::from_secs(55);
const LASTS_LONGER: Duration = Duration::from_secs(10);

/// Answers with a stream that begins with the page after the offset.
pub(super) async fn answer(
    reader: TopicReader,
    asked: &ReadQuery,
    user: User,
    connection: Connection,
) -> Result<Response, Problem> {
    // Before the history is read, so that an event that comes in between is not missed.
    let watch = reader.stream(user, connection)?;
    let first = first_page(&reader, asked.offset).await?;
    let mut response = watch.open();
    let unstored = HeaderValue::from_static("no-cache, no-store, no-transform");
    response.headers_mut().insert(header::CACHE_CONTROL, unstored);
    let feed = Feed { reader, watch, form: asked.form, cursor: asked.cursor };
    tokio::spawn(feed.run(first));
    Ok(response)
}

/// The task that feeds one response.
struct Feed {
    reader: TopicReader,
    watch: Watch,
    form: Form,
    /// The cursor that the client has.
    cursor: Option<u64>,
}

impl Feed {
    async fn run(self, first: EventPage) {
        let lasts = LASTS + LASTS_LONGER.mul_f64(random_fraction());
        let watch = self.watch.clone();
        tokio::select! {
            () = watch.closed() => {}
            // The time is up, or nothing more can be proven. In that case the next request gets the error.
            _ended = timeout(lasts, self.send(first)) => watch.finish(),
        }
    }

    /// Sends page after page, until there is none or the client is gone.
    async fn send(&self, first: EventPage) {
        // One cursor past the client's for the whole response, unless time passes it.
        let begun = collapse::cursor(self.cursor, Utc::now());
        let mut page = Arc::new(first);
        loop {
            let cursor = begun.max(collapse::cursor(None, Utc::now()));
            if !self.watch.send(events(&page, self.form, cursor)).await {
                return;
            }
            let next = if page.is_last {
                self.watch.next(page.next).await
            } else {
                self.reader.page(Some(page.next)).await.map(Arc::new)
            };
            match next {
                Ok(next) => page = next,
                Err(error) => return tracing::debug!(%error, "a stream of events ends"),
            }
        }
    }
}
