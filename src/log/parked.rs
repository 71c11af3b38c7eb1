//! Events set aside: what the sink refuses for a reason of its own, and what waits behind it.
//!
//! A parked event keeps its number, and keeps a copy of its own of its payload, so that rotation is not held back.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::Error;
use crate::event::{Event, EventType, StreamId, Topic};

/// An event to be set aside. Later events of its topic wait behind it.
#[derive(Debug, Clone)]
pub struct Parked {
    /// The number that it uses up.
    pub id: StreamId,
    /// The event.
    pub event: Event,
    /// Why, in the sink's words, or that it waits behind another one.
    pub reason: String,
}

/// What an operator requests for a topic's parked events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Publish them in order, then let the topic flow.
    Release,
    /// Give them up, then let the topic flow.
    Discard,
}

impl Action {
    /// The word that stands for it in the log and in what people read.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Discard => "discard",
        }
    }
}

/// Sets events aside. Call it in the transaction that writes the position behind them.
///
/// # Errors
/// [`Error`].
pub async fn park(connection: &mut PgConnection, relay: &str, parked: &[Parked]) -> Result<(), Error> {
    for one in parked {
        sqlx::query(
            "insert into outbox.parked
               (relay, epoch, seq, id, event_id, topic, type, payload, created_at, reason)
             values ($1, $2, $3, $4, $5, $6, $7, $8::json, $9, $10)
             -- A repair can meet an event that was released long ago, and find that it is refused once more.
             on conflict (relay, epoch, seq) do update
               set payload = excluded.payload, reason = excluded.reason, parked_at = excluded.parked_at,
                   settled_as = null, settled_at = null, requested = null, release_epoch = null, release_seq = null
               where parked.settled_as = 'released'",
        )
        .bind(relay)
        .bind(one.id.epoch.cast_signed())
        .bind(one.id.seq.cast_signed())
        .bind(one.event.id)
        .bind(one.event.event_id)
        .bind(one.event.topic.as_str())
        .bind(one.event.event_type.as_str())
        .bind(&one.event.payload)
        .bind(one.event.created_at)
        .bind(&one.reason)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// The topics whose events wait, each with the number of its first parked event. As many as are parked: an operator's
/// concern long before it is memory's.
///
/// # Errors
/// [`Error`].
pub async fn held_topics(
    connection: &mut PgConnection,
    relay: &str,
) -> Result<HashMap<Topic, StreamId>, Error> {
    let rows = sqlx::query(
        "select distinct on (topic) topic, epoch, seq, id from outbox.parked
         where relay = $1 and settled_as is null order by topic, epoch, seq",
    )
    .bind(relay)
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| Ok((topic_of(row)?, number_of(row)?))).collect()
}

/// A topic for whose parked events an operator has requested something, if there is one.
///
/// # Errors
/// [`Error`].
pub async fn next_request(
    connection: &mut PgConnection,
    relay: &str,
) -> Result<Option<(Topic, Action)>, Error> {
    let row = sqlx::query(
        "select topic, requested, id from outbox.parked
         where relay = $1 and requested is not null and settled_as is null
         order by epoch, seq limit 1",
    )
    .bind(relay)
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let action = match row.try_get::<&str, _>("requested")? {
        "discard" => Action::Discard,
        _ => Action::Release,
    };
    Ok(Some((topic_of(&row)?, action)))
}

/// The first parked events of a topic, in order, `limit` at most.
///
/// # Errors
/// [`Error`].
pub async fn of_topic(
    connection: &mut PgConnection,
    relay: &str,
    topic: &Topic,
    limit: u32,
) -> Result<Vec<(StreamId, Event)>, Error> {
    let rows = sqlx::query(
        "select epoch, seq, id, event_id, topic, type, payload::text as payload, created_at
         from outbox.parked
         where relay = $1 and topic = $2 and settled_as is null
         order by epoch, seq limit $3",
    )
    .bind(relay)
    .bind(topic.as_str())
    .bind(i64::from(limit))
    .fetch_all(connection)
    .await?;
    numbered_events(&rows)
}

/// The numbers between two, both included, whose events were set aside. A sink that forgot those that were released since is
/// given them at the numbers of their releases.
///
/// # Errors
/// [`Error`].
pub async fn numbers(
    connection: &mut PgConnection,
    relay: &str,
    first: StreamId,
    last: StreamId,
) -> Result<HashSet<StreamId>, Error> {
    let seqs: Vec<i64> = sqlx::query_scalar(
        "select seq from outbox.parked
         where relay = $1 and epoch = $2 and seq between $3 and $4",
    )
    .bind(relay)
    .bind(first.epoch.cast_signed())
    .bind(first.seq.cast_signed())
    .bind(last.seq.cast_signed())
    .fetch_all(connection)
    .await?;
    Ok(seqs.into_iter().map(|seq| StreamId::new(first.epoch, seq.cast_unsigned())).collect())
}

fn topic_of(row: &PgRow) -> Result<Topic, Error> {
    let id: i64 = row.try_get("id")?;
    Topic::new(row.try_get::<String, _>("topic")?).map_err(|source| Error::NotAnEvent { id, source })
}

fn number_of(row: &PgRow) -> Result<StreamId, Error> {
    let epoch = row.try_get::<i64, _>("epoch")?.cast_unsigned();
    Ok(StreamId::new(epoch, row.try_get::<i64, _>("seq")?.cast_unsigned()))
}

/// The events in these rows, each with its number.
pub(super) fn numbered_events(rows: &[PgRow]) -> Result<Vec<(StreamId, Event)>, Error> {
    rows.iter().map(numbered_event).collect()
}

fn numbered_event(row: &PgRow) -> Result<(StreamId, Event), Error> {
    let id: i64 = row.try_get("id")?;
    let event = Event {
        id,
        event_id: row.try_get("event_id")?,
        topic: topic_of(row)?,
        event_type: EventType::new(row.try_get::<String, _>("type")?)
            .map_err(|source| Error::NotAnEvent { id, source })?,
        payload: row.try_get("payload")?,
        created_at: row.try_get("created_at")?,
        // A trace of long ago is over by the time somebody releases it.
        trace: None,
    };
    Ok((number_of(row)?, event))
}

/// Gives up those parked events of a topic whose discard was requested. Their rows stay, so that a restore leaves them out
/// as well.
///
/// # Errors
/// [`Error`].
pub async fn discard(connection: &mut PgConnection, relay: &str, topic: &Topic) -> Result<(), Error> {
    sqlx::query(
        "update outbox.parked set settled_as = 'discarded', settled_at = clock_timestamp(), requested = null
         where relay = $1 and topic = $2 and requested = 'discard' and settled_as is null",
    )
    .bind(relay)
    .bind(topic.as_str())
    .execute(connection)
    .await?;
    Ok(())
}

/// Drops the rows of events that have left the log and were settled so long ago that no sink keeps them.
///
/// # Errors
/// [`Error`].
pub(super) async fn forget_settled(connection: &mut PgConnection, retention: Duration) -> Result<(), Error> {
    sqlx::query(
        "delete from outbox.parked
         where settled_at < now() - make_interval(secs => $1)
           and id < coalesce((select min(e.id) from outbox.event e), 0)",
    )
    .bind(retention.as_secs_f64())
    .execute(connection)
    .await?;
    Ok(())
}

/// Requests something for a topic's parked events up to and including a number, or for all that are parked now; returns how
/// many these are. Events that are parked later are not among them.
///
/// Write it in the transaction of its audit row, and ring the bell after the commit: the relay carries it out, as it alone
/// knows what of the topic is under way.
///
/// # Errors
/// [`Error`].
pub async fn request(
    connection: &mut PgConnection,
    relay: &str,
    topic: &Topic,
    action: Action,
    through: Option<StreamId>,
) -> Result<u64, Error> {
    let done = sqlx::query(
        "update outbox.parked set requested = $3
         where relay = $1 and topic = $2 and settled_as is null and ($4::bigint is null or (epoch, seq) <= ($4, $5))",
    )
    .bind(relay)
    .bind(topic.as_str())
    .bind(action.as_str())
    .bind(through.map(|through| through.epoch.cast_signed()))
    .bind(through.map(|through| through.seq.cast_signed()))
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}

/// A topic's events were refused once more: keeps them parked, with the sink's words at the first one.
///
/// # Errors
/// [`Error`].
pub async fn refuse_request(
    connection: &mut PgConnection,
    relay: &str,
    topic: &Topic,
    reason: &str,
) -> Result<(), Error> {
    sqlx::query(
        "update outbox.parked p
         set requested = null,
             reason = case when (p.epoch, p.seq) = (first.epoch, first.seq) then $3 else p.reason end
         from (
           select epoch, seq from outbox.parked
           where relay = $1 and topic = $2 and settled_as is null order by epoch, seq limit 1
         ) first
         where p.relay = $1 and p.topic = $2 and p.settled_as is null",
    )
    .bind(relay)
    .bind(topic.as_str())
    .bind(reason)
    .execute(connection)
    .await?;
    Ok(())
}

/// Every topic that has parked events.
///
/// # Errors
/// [`Error`].
pub async fn topics(connection: &mut PgConnection, relay: &str) -> Result<Vec<Topic>, Error> {
    let names: Vec<String> = sqlx::query_scalar(
        "select distinct topic from outbox.parked where relay = $1 and settled_as is null order by topic",
    )
    .bind(relay)
    .fetch_all(connection)
    .await?;
    names
        .into_iter()
        .map(|name| Topic::new(name).map_err(|source| Error::NotAnEvent { id: 0, source }))
        .collect()
}

/// How many events of a topic are parked.
///
/// # Errors
/// [`Error`].
pub async fn count(connection: &mut PgConnection, relay: &str, topic: &Topic) -> Result<u64, Error> {
    let count: i64 = sqlx::query_scalar(
        "select count(*) from outbox.parked where relay = $1 and topic = $2 and settled_as is null",
    )
    .bind(relay)
    .bind(topic.as_str())
    .fetch_one(connection)
    .await?;
    Ok(count.cast_unsigned())
}
