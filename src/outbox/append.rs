//! The only way in: rows appended in the caller's own transaction.
//!
//! Order: events of one topic are delivered in the order of their rows' ids. Transactions that write to one topic must
//! not overlap between their append and their commit, so append *after* taking the row lock that they share (the
//! aggregate's), or [`lock_topic`] where they share no row.

use sqlx::PgConnection;

use super::AppendError;
use crate::event::{EventId, NewEvent, Topic};

/// Appends one event in the transaction that `connection` is in, and returns its identity.
///
/// A `&mut Transaction` coerces to the argument. Nothing is visible to anybody, and nothing will be delivered, unless
/// that transaction commits. Ring the [`super::Bell`] after the commit for the lowest latency.
///
/// # Errors
/// [`AppendError`]; the transaction is then aborted, as after any failed statement.
pub async fn append(connection: &mut PgConnection, event: &NewEvent) -> Result<EventId, AppendError> {
    sqlx::query(
        "insert into outbox.event (event_id, topic, type, payload, headers) values ($1, $2, $3, $4::json, $5::jsonb)",
    )
    .bind(event.event_id())
    .bind(event.topic().as_str())
    .bind(event.event_type().as_str())
    // Bound as text and cast: the json type keeps the text byte for byte.
    .bind(event.payload())
    .bind(headers_of(event))
    .execute(connection)
    .await?;
    Ok(event.event_id())
}

/// Appends events in the order given, in one statement, and returns their identities.
///
/// # Errors
/// [`AppendError`]; none of them is then appended.
pub async fn append_all(
    connection: &mut PgConnection,
    events: &[NewEvent],
) -> Result<Vec<EventId>, AppendError> {
    let ids: Vec<EventId> = events.iter().map(NewEvent::event_id).collect();
    let topics: Vec<&str> = events.iter().map(|e| e.topic().as_str()).collect();
    let types: Vec<&str> = events.iter().map(|e| e.event_type().as_str()).collect();
    let payloads: Vec<&str> = events.iter().map(NewEvent::payload).collect();
    let headers: Vec<Option<String>> = events.iter().map(headers_of).collect();
    // Defaults (xid, id) are evaluated above the sort, so ids follow the order given.
    sqlx::query(
        "insert into outbox.event (event_id, topic, type, payload, headers)
         select event_id, topic, type, payload::json, headers::jsonb
         from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[])
              with ordinality as given (event_id, topic, type, payload, headers, position)
         order by position",
    )
    .bind(&ids)
    .bind(&topics)
    .bind(&types)
    .bind(&payloads)
    .bind(&headers)
    .execute(connection)
    .await?;
    Ok(ids)
}

/// Waits until no other transaction holds `topic`, and holds it until the end of the caller's.
///
/// For topics whose writers share no row. Take it after every other lock of the transaction, and in one order where
/// several are taken.
///
/// # Errors
/// [`AppendError::Database`], for example when Postgres ends a deadlock.
pub async fn lock_topic(connection: &mut PgConnection, topic: &Topic) -> Result<(), AppendError> {
    sqlx::query("select outbox.lock_topic($1)").bind(topic.as_str()).execute(connection).await?;
    Ok(())
}

fn headers_of(event: &NewEvent) -> Option<String> {
    event.headers().map(|headers| serde_json::Value::Object(headers.clone()).to_string())
}
