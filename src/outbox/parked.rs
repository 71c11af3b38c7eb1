//! Events set aside: what the sink refuses for a reason of its own, and what waits behind it.
//!
//! A parked event keeps its number, and keeps a copy of its own of its payload, so that rotation is not held back.

use std::collections::HashSet;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::Error;
use crate::event::{Event, EventType, StreamId, Topic};

/// An event to be set aside.
#[derive(Debug, Clone)]
pub struct Parked {
    /// The number that it uses up.
    pub id: StreamId,
    /// The event.
    pub event: Event,
    /// Why, in the sink's words, or behind which number it waits.
    pub reason: String,
    /// Whether later events of its topic wait behind it.
    pub holds_topic: bool,
}

/// What an operator wants done with a topic's parked events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Publish them in order, then let the topic flow.
    Release,
    /// Forget them, then let the topic flow.
    Discard,
}

/// Sets events aside. Call it in the transaction that writes the position behind them.
///
/// # Errors
/// [`Error`].
pub async fn park(connection: &mut PgConnection, relay: &str, parked: &[Parked]) -> Result<(), Error> {
    for one in parked {
        sqlx::query(
            "insert into outbox.parked
               (relay, epoch, seq, id, event_id, topic, type, payload, created_at, reason, holds_topic)
             values ($1, $2, $3, $4, $5, $6, $7, $8::json, $9, $10, $11)
             -- A repair can meet an event that was released long ago, and find that it is refused once more.
             on conflict (relay, epoch, seq) do update
               set payload = excluded.payload, reason = excluded.reason, holds_topic = excluded.holds_topic,
                   parked_at = excluded.parked_at, settled_as = null, settled_at = null, wish = null
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
        .bind(one.holds_topic)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// The topics whose events wait. As many as are parked: an operator's concern long before it is memory's.
///
/// # Errors
/// [`Error`].
pub async fn held_topics(connection: &mut PgConnection, relay: &str) -> Result<HashSet<Topic>, Error> {
    let names: Vec<String> = sqlx::query_scalar(
        "select distinct topic from outbox.parked where relay = $1 and holds_topic and settled_as is null",
    )
    .bind(relay)
    .fetch_all(connection)
    .await?;
    names
        .into_iter()
        .map(|name| Topic::new(name).map_err(|source| Error::NotAnEvent { id: 0, source }))
        .collect()
}

/// A topic that an operator wants something done with, if there is one.
///
/// # Errors
/// [`Error`].
pub async fn next_wish(connection: &mut PgConnection, relay: &str) -> Result<Option<(Topic, Wish)>, Error> {
    let row =
        sqlx::query("select topic, wish from outbox.parked where relay = $1 and wish is not null and settled_as is null limit 1")
            .bind(relay)
            .fetch_optional(connection)
            .await?;
    let Some(row) = row else { return Ok(None) };
    let topic = Topic::new(row.try_get::<String, _>("topic")?)
        .map_err(|source| Error::NotAnEvent { id: 0, source })?;
    let wish = if row.try_get::<String, _>("wish")? == "discard" { Wish::Discard } else { Wish::Release };
    Ok(Some((topic, wish)))
}

/// The first parked events of a topic that hold it, in order, `limit` at most.
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
        "select epoch, seq, id, event_id, type, payload::text as payload, created_at
         from outbox.parked
         where relay = $1 and topic = $2 and holds_topic and settled_as is null
         order by epoch, seq limit $3",
    )
    .bind(relay)
    .bind(topic.as_str())
    .bind(i64::from(limit))
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| numbered_event(row, topic)).collect()
}

/// The numbers between two, both included, that no event stands under in the sink: set aside, and not released since.
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
         where relay = $1 and epoch = $2 and seq between $3 and $4 and settled_as is distinct from 'released'",
    )
    .bind(relay)
    .bind(first.epoch.cast_signed())
    .bind(first.seq.cast_signed())
    .bind(last.seq.cast_signed())
    .fetch_all(connection)
    .await?;
    Ok(seqs.into_iter().map(|seq| StreamId::new(first.epoch, seq.cast_unsigned())).collect())
}

fn numbered_event(row: &PgRow, topic: &Topic) -> Result<(StreamId, Event), Error> {
    let id: i64 = row.try_get("id")?;
    let number = StreamId::new(
        row.try_get::<i64, _>("epoch")?.cast_unsigned(),
        row.try_get::<i64, _>("seq")?.cast_unsigned(),
    );
    let event = Event {
        id,
        event_id: row.try_get("event_id")?,
        topic: topic.clone(),
        event_type: EventType::new(row.try_get::<String, _>("type")?)
            .map_err(|source| Error::NotAnEvent { id, source })?,
        payload: row.try_get("payload")?,
        created_at: row.try_get("created_at")?,
        // A trace of long ago is over by the time somebody releases it.
        trace: None,
    };
    Ok((number, event))
}

/// Writes down that a topic's parked events up to and including a number have arrived. Their rows stay as long as those in
/// the log, for whoever asks what became of an event.
///
/// # Errors
/// [`Error`].
pub async fn released(
    connection: &mut PgConnection,
    relay: &str,
    topic: &Topic,
    through: StreamId,
) -> Result<(), Error> {
    sqlx::query(
        "update outbox.parked
         set settled_as = 'released', settled_at = clock_timestamp(), wish = null, payload = 'null'
         where relay = $1 and topic = $2 and (epoch, seq) <= ($3, $4) and holds_topic and settled_as is null",
    )
    .bind(relay)
    .bind(topic.as_str())
    .bind(through.epoch.cast_signed())
    .bind(through.seq.cast_signed())
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes down that nobody wants a topic's parked events. Their rows stay, so that a restore leaves them out as well.
///
/// # Errors
/// [`Error`].
pub async fn discard(connection: &mut PgConnection, relay: &str, topic: &Topic) -> Result<(), Error> {
    sqlx::query(
        "update outbox.parked set settled_as = 'discarded', settled_at = clock_timestamp(), wish = null
         where relay = $1 and topic = $2 and settled_as is null",
    )
    .bind(relay)
    .bind(topic.as_str())
    .execute(connection)
    .await?;
    Ok(())
}

/// Sends on what was set aside alone. Later events of the topic have been published since, so that these can no longer
/// take their own numbers: copies of them go to the end of the log, in order. Returns how many.
///
/// # Errors
/// [`Error`].
pub async fn send_on(connection: &mut PgConnection, relay: &str, topic: &Topic) -> Result<u64, Error> {
    let done = sqlx::query(
        "with settled as (
           update outbox.parked set settled_as = 'copied', settled_at = clock_timestamp(), wish = null
           where relay = $1 and topic = $2 and not holds_topic and settled_as is null
           returning *
         )
         insert into outbox.event (event_id, topic, type, payload, headers)
         select s.event_id, s.topic, s.type, s.payload,
                coalesce(e.headers, '{}') - 'traceparent' - 'tracestate'
                || jsonb_build_object('replay', jsonb_build_object('row', s.id, 'reason', s.reason))
         from settled s left join outbox.event e on e.id = s.id
         order by s.epoch, s.seq",
    )
    .bind(relay)
    .bind(topic.as_str())
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}

/// Drops the rows of settled events that have left the log.
///
/// # Errors
/// [`Error`].
pub async fn forget_settled(connection: &mut PgConnection) -> Result<(), Error> {
    sqlx::query(
        "delete from outbox.parked
         where settled_as is not null and id < coalesce((select min(e.id) from outbox.event e), 0)",
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Tells the relay what an operator wants done with a topic's parked events, and returns how many there are.
///
/// Write it in the transaction of its audit row, and ring the bell after the commit.
///
/// # Errors
/// [`Error`].
pub async fn wish(
    connection: &mut PgConnection,
    relay: &str,
    topic: &Topic,
    wish: Wish,
) -> Result<u64, Error> {
    let word = match wish {
        Wish::Release => "release",
        Wish::Discard => "discard",
    };
    let done = sqlx::query(
        "update outbox.parked set wish = $3 where relay = $1 and topic = $2 and settled_as is null",
    )
    .bind(relay)
    .bind(topic.as_str())
    .bind(word)
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}

/// A topic's last wish fails: keeps the events parked, with the sink's words.
///
/// # Errors
/// [`Error`].
pub async fn refuse_wish(
    connection: &mut PgConnection,
    relay: &str,
    topic: &Topic,
    reason: &str,
) -> Result<(), Error> {
    sqlx::query("update outbox.parked set wish = null, reason = $3 where relay = $1 and topic = $2 and wish is not null and settled_as is null")
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
