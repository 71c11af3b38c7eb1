//! Looking at events: by topic, type, state, time or identity.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::log::{Error, time};

/// The state of an event for a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventState {
    /// Not yet published.
    Pending,
    /// Published.
    Delivered,
    /// Set aside.
    Parked,
    /// Set aside, and given up by an operator.
    Discarded,
}

impl EventState {
    /// The word that the schema and the CLI use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Parked => "parked",
            Self::Discarded => "discarded",
        }
    }
}

/// Which events are meant. Every part that is set must match.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Selection {
    /// These identities.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<Uuid>,
    /// These rows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rows: Vec<i64>,
    /// This topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// This type.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
    /// Appended by a transaction that began at or after this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<DateTime<Utc>>,
    /// Appended by a transaction that began before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<DateTime<Utc>>,
    /// In this state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<EventState>,
    /// For a replay: also the copies that earlier replays made. Rows that are named by number count in any
    /// case.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub include_replays: bool,
}

impl Selection {
    /// Whether nothing is asked for, so that every event matches.
    pub fn is_everything(&self) -> bool {
        self.events.is_empty()
            && self.rows.is_empty()
            && self.topic.is_none()
            && self.event_type.is_none()
            && self.since.is_none()
            && self.until.is_none()
    }
}

/// An event with its state.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EventRow {
    /// The row's number.
    pub id: i64,
    /// The identity.
    pub event_id: Uuid,
    /// The topic.
    pub topic: String,
    /// The type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// The state for the relay that was asked about.
    pub state: String,
    /// When its transaction began.
    pub created_at: DateTime<Utc>,
}

/// All that the log knows of an event.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EventDetail {
    /// The columns that a list shows.
    #[serde(flatten)]
    pub row: EventRow,
    /// The transaction that appended it.
    pub transaction: String,
    /// When it was delivered, set aside or given up; `None` while it is pending, or when the checkpoints of
    /// that time are gone.
    pub since: Option<DateTime<Utc>>,
    /// The headers.
    pub headers: Option<serde_json::Value>,
    /// The payload, as it was appended.
    pub payload: Box<RawValue>,
}

/// The rows of a selection, as `status`: shared by listing and showing.
const SELECTED: &str = "
  with status as (
    select e.id, e.event_id, e.topic, e.type, e.created_at, e.xid, e.payload, e.headers,
           case when k.settled_as = 'released' then 'delivered'
                when k.settled_as is not null then k.settled_as
                when k.seq is not null then 'parked'
                when outbox.is_delivered(e.id, e.xid, p.high_id, p.lower, p.after_id, p.upper)
                  then 'delivered'
                else 'pending' end as state,
           k.settled_at, k.parked_at
    from outbox.event e
    left join outbox.position p on p.relay = $1
    left join outbox.parked k on k.relay = $1 and k.id = e.id
    where (cardinality($2::uuid[]) = 0 or e.event_id = any ($2))
      and (cardinality($3::bigint[]) = 0 or e.id = any ($3))
      and ($4::text is null or e.topic = $4)
      and ($5::text is null or e.type = $5)
      and ($6::timestamptz is null or e.created_at >= $6)
      and ($7::timestamptz is null or e.created_at < $7)
  )";

/// Binds a selection to the parameters 1 to 8 of a statement that begins with [`SELECTED`].
macro_rules! bind_selection {
    ($query:expr, $relay:expr, $selection:expr) => {
        $query
            .bind($relay)
            .bind(&$selection.events)
            .bind(&$selection.rows)
            .bind(&$selection.topic)
            .bind(&$selection.event_type)
            .bind($selection.since)
            .bind($selection.until)
            .bind($selection.state.map(crate::ops::browse::EventState::as_str))
    };
}

/// The newest events of a selection, newest first, `limit` at most, with their state for `relay`.
///
/// # Errors
/// [`Error`].
pub async fn list(
    connection: &mut PgConnection,
    relay: &str,
    selection: &Selection,
    limit: u32,
) -> Result<Vec<EventRow>, Error> {
    let sql = format!(
        "{SELECTED} select id, event_id, topic, type, created_at, state from status
         where ($8::text is null or state = $8) order by id desc limit $9"
    );
    let rows = bind_selection!(sqlx::query(sqlx::AssertSqlSafe(sql)), relay, selection)
        .bind(i64::from(limit))
        .fetch_all(connection)
        .await?;
    rows.iter().map(row_of).collect()
}

/// All that is known of the events of a selection, oldest first, `limit` at most.
///
/// # Errors
/// [`Error`].
pub async fn show(
    connection: &mut PgConnection,
    relay: &str,
    selection: &Selection,
    limit: u32,
) -> Result<Vec<EventDetail>, Error> {
    let sql = format!(
        "{SELECTED} select id, event_id, topic, type, created_at, state, xid::text as transaction,
                headers, payload::text,
                case when parked_at is not null then coalesce(settled_at, parked_at)
                     when state = 'delivered' then outbox.delivered_at($1, xid, id) end as since
         from status where ($8::text is null or state = $8) order by id limit $9"
    );
    let rows = bind_selection!(sqlx::query(sqlx::AssertSqlSafe(sql)), relay, selection)
        .bind(i64::from(limit))
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|row| {
            let payload: String = row.try_get("payload")?;
            Ok(EventDetail {
                row: row_of(row)?,
                transaction: row.try_get("transaction")?,
                since: time::shown_if_any(row, "since")?,
                headers: row.try_get("headers")?,
                payload: RawValue::from_string(payload)
                    .map_err(|error| Error::Database(sqlx::Error::Decode(error.into())))?,
            })
        })
        .collect()
}

pub(super) fn row_of(row: &PgRow) -> Result<EventRow, Error> {
    Ok(EventRow {
        id: row.try_get("id")?,
        event_id: row.try_get("event_id")?,
        topic: row.try_get("topic")?,
        event_type: row.try_get("type")?,
        state: row.try_get("state")?,
        created_at: time::shown(row, "created_at")?,
    })
}
