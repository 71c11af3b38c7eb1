//! Appending: rows inserted in the caller's own transaction. There is no other way into the log.
//!
//! Order: events of one topic are delivered in the order of their rows' ids. Transactions that write to one
//! topic must not overlap between their append and their commit. So append *after* taking the row lock that
//! they share (the aggregate's), or [`lock_topic`] if they share no row.

use sqlx::PgConnection;
use sqlx::types::Json;

use super::AppendError;
use crate::event::{EventId, NewEvent, Topic};

/// Appends one event in the transaction that `connection` is in, and returns its identity.
///
/// A `&mut Transaction` coerces to the argument. The event is visible and is delivered only if that
/// transaction commits. Ring the [`super::Bell`] after the commit for the lowest latency.
///
/// # Errors
/// Returns [`AppendError::SchemaMissing`] if the schema is missing or too old, [`AppendError::Refused`] if
/// the event breaks a rule of the log, and [`AppendError::Database`] if the connection breaks or Postgres
/// fails otherwise. The transaction is then aborted, as after any failed statement.
pub async fn append(connection: &mut PgConnection, event: &NewEvent) -> Result<EventId, AppendError> {
    // Bound as text and cast: the json type keeps the text byte for byte.
    sqlx::query("select outbox.append($1, $2, $3::json, $4, $5)")
        .bind(event.topic().as_str())
        .bind(event.event_type().as_str())
        .bind(event.payload())
        .bind(event.headers().map(Json))
        .bind(event.event_id())
        .execute(connection)
        .await?;
    Ok(event.event_id())
}

/// Appends events in the given order, in one statement, and returns their identities.
///
/// # Errors
/// Fails as [`append`]. Then none of the events is appended.
pub async fn append_all(
    connection: &mut PgConnection,
    events: &[NewEvent],
) -> Result<Vec<EventId>, AppendError> {
    let ids: Vec<EventId> = events.iter().map(NewEvent::event_id).collect();
    let topics: Vec<&str> = events.iter().map(|e| e.topic().as_str()).collect();
    let types: Vec<&str> = events.iter().map(|e| e.event_type().as_str()).collect();
    let payloads: Vec<&str> = events.iter().map(NewEvent::payload).collect();
    let headers: Vec<_> = events.iter().map(|e| e.headers().map(Json)).collect();
    sqlx::query("select outbox.append_all($1, $2, $3::text[]::json[], $4, $5)")
        .bind(&topics)
        .bind(&types)
        .bind(&payloads)
        .bind(&headers)
        .bind(&ids)
        .execute(connection)
        .await?;
    Ok(ids)
}

/// Returns which events this transaction's statement sees, as a text for `?resume=` of a stream: the stream
/// then leaves out the events that the page's state holds, and gives all others.
///
/// Call it in the transaction that reads the state, which must be a `repeatable read` one, or else have one
/// statement read both (`select ..., outbox.resume_token()`). In a transaction that writes, call it after the
/// last append: a later append is refused.
///
/// # Errors
/// Returns [`AppendError::SchemaMissing`] if the schema is missing or too old, and [`AppendError::Database`]
/// if the connection breaks or Postgres fails otherwise.
pub async fn resume_token(connection: &mut PgConnection) -> Result<String, AppendError> {
    Ok(sqlx::query_scalar("select outbox.resume_token()").fetch_one(connection).await?)
}

/// Waits until no other transaction holds `topic`, and holds it until the end of the caller's transaction.
///
/// For topics whose writers share no row. Take it after every other lock of the transaction. If a transaction
/// takes several topics, all transactions must take them in the same order, or they can deadlock.
///
/// # Errors
/// Returns [`AppendError::SchemaMissing`] if the schema is missing or too old, and [`AppendError::Database`]
/// for example when Postgres ends a deadlock.
pub async fn lock_topic(connection: &mut PgConnection, topic: &Topic) -> Result<(), AppendError> {
    sqlx::query("select outbox.lock_topic($1)").bind(topic.as_str()).execute(connection).await?;
    Ok(())
}
