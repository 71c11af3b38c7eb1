//! The topics that have parked events, as an operator sees them.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgConnection, Row};

use crate::log::Error;

/// A topic with parked events.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ParkedTopic {
    /// The topic.
    pub topic: String,
    /// How many of its events are set aside.
    pub events: i64,
    /// The number of the first one.
    pub first_id: String,
    /// The number of the last one.
    pub last_id: String,
    /// Since when.
    pub since: DateTime<Utc>,
    /// The sink's error for the first one.
    pub reason: String,
    /// How many of them clients may have received.
    pub may_have_arrived: i64,
    /// `release`, `discard` or `discard_arrived`, if that was requested and has not been done yet.
    pub requested: Option<String>,
}

/// The topics of `relay` that have parked events, the oldest first, `limit` at most.
///
/// # Errors
/// [`Error`].
pub async fn list(connection: &mut PgConnection, relay: &str, limit: u32) -> Result<Vec<ParkedTopic>, Error> {
    let rows = sqlx::query(
        "select k.topic, count(*) as events, count(*) filter (where k.may_have_arrived) as may_have_arrived,
                min(k.parked_at) as since, min(k.requested) as requested,
                (array_agg(k.reason order by k.epoch, k.seq))[1] as reason,
                (array_agg(k.epoch || '-' || k.seq order by k.epoch, k.seq))[1] as first_id,
                (array_agg(k.epoch || '-' || k.seq order by k.epoch desc, k.seq desc))[1] as last_id
         from outbox.parked k
         where k.relay = $1 and k.settled_as is null
         group by k.topic order by min(k.parked_at), k.topic limit $2",
    )
    .bind(relay)
    .bind(i64::from(limit))
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(ParkedTopic {
                topic: row.try_get("topic")?,
                events: row.try_get("events")?,
                first_id: row.try_get("first_id")?,
                since: row.try_get("since")?,
                reason: row.try_get("reason")?,
                last_id: row.try_get("last_id")?,
                may_have_arrived: row.try_get("may_have_arrived")?,
                requested: row.try_get("requested")?,
            })
        })
        .collect()
}
