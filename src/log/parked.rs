//! Parked events: events that the sink refuses for a reason of their own, and the later events of their
//! topics.
//!
//! This part only stores them. `relay::publication` decides that an event is parked, and `relay::handing`
//! which event of a batch the sink refuses.
//!
//! A parked event keeps its number. Its row holds a copy of its payload, so that it does not hold back
//! rotation.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{ColumnIndex, PgConnection, Row};

use super::Error;
use crate::event::{Event, EventType, StreamId, Topic};

/// An event to park. Later events of its topic wait behind it.
#[derive(Debug, Clone)]
pub struct Parked {
    /// The number that the event uses up.
    pub id: StreamId,
    /// The event.
    pub event: Event,
    /// The sink's words, or that the event waits behind another one.
    pub reason: String,
    /// Whether clients may have received it in an earlier try, which the sink has forgotten.
    pub may_have_arrived: bool,
}

/// An operator's request for a topic's parked events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Publish them in order, and then let the topic flow.
    Release,
    /// Give them up, and then let the topic flow. Refused if clients may have received one of them.
    Discard,
    /// Give them up, also those that clients may have received.
    DiscardArrived,
}

impl Action {
    /// The action's name in the database and in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Discard => "discard",
            Self::DiscardArrived => "discard_arrived",
        }
    }
}

/// Parks events. Call it in the transaction that writes the position after them.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if Postgres
/// refuses the statement or the connection breaks.
pub async fn park(connection: &mut PgConnection, relay: &str, parked: &[Parked]) -> Result<(), Error> {
    if parked.is_empty() {
        return Ok(());
    }
    // One statement: all topics wait while a refused topic of many events is written down.
    fn column<'p, T>(parked: &'p [Parked], value: impl Fn(&'p Parked) -> T) -> Vec<T> {
        parked.iter().map(value).collect()
    }
    sqlx::query(
        "insert into outbox.parked
           (relay, epoch, seq, id, event_id, topic, type, payload, created_at, reason, may_have_arrived, xid)
         select $1, p.epoch, p.seq, p.id, p.event_id, p.topic, p.type, p.payload::json, p.created_at, p.reason,
                p.may_have_arrived, p.xid::xid8
         from unnest($2::bigint[], $3::bigint[], $4::bigint[], $5::uuid[], $6::text[], $7::text[], $8::text[],
                     $9::timestamptz[], $10::text[], $11::boolean[], $12::text[])
              p (epoch, seq, id, event_id, topic, type, payload, created_at, reason, may_have_arrived, xid)
         -- A repair can meet an event that was released long ago, and the sink can refuse it again.
         on conflict (relay, epoch, seq) do update
           set payload = excluded.payload, reason = excluded.reason, parked_at = excluded.parked_at,
               settled_as = null, settled_at = null, requested = null, release_epoch = null,
               release_seq = null, may_have_arrived = true
           where parked.settled_as = 'released'",
    )
    .bind(relay)
    .bind(column(parked, |one| one.id.epoch.cast_signed()))
    .bind(column(parked, |one| one.id.seq.cast_signed()))
    .bind(column(parked, |one| one.event.id))
    .bind(column(parked, |one| one.event.event_id))
    .bind(column(parked, |one| one.event.topic.as_str()))
    .bind(column(parked, |one| one.event.event_type.as_str()))
    .bind(column(parked, |one| one.event.payload.as_str()))
    .bind(column(parked, |one| one.event.created_at))
    .bind(column(parked, |one| one.reason.as_str()))
    .bind(column(parked, |one| one.may_have_arrived))
    .bind(column(parked, |one| one.event.xid.map(|xid| xid.to_string())))
    .execute(connection)
    .await?;
    Ok(())
}

/// Returns each topic with parked events, and the number of its first one. The result has no bound: a long
/// list of parked topics needs an operator long before it fills memory.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, [`Error::NotAnEvent`] if a row that
/// it returns breaks the rules for topics or types, and [`Error::Database`] if Postgres refuses the statement
/// or the connection breaks.
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

/// Returns the next topic with an operator's request.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, [`Error::NotAnEvent`] if a row that
/// it returns breaks the rules for topics or types, and [`Error::Database`] if Postgres refuses the statement
/// or the connection breaks.
pub async fn next_request(connection: &mut PgConnection, relay: &str) -> Result<Option<Topic>, Error> {
    let row = sqlx::query(
        "select topic, id from outbox.parked
         where relay = $1 and requested is not null and settled_as is null
         order by epoch, seq limit 1",
    )
    .bind(relay)
    .fetch_optional(connection)
    .await?;
    row.as_ref().map(topic_of).transpose()
}

/// Returns the first parked events of a topic in order, at most `limit`.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, [`Error::NotAnEvent`] if a row that
/// it returns breaks the rules for topics or types, and [`Error::Database`] if Postgres refuses the statement
/// or the connection breaks.
pub async fn of_topic(
    connection: &mut PgConnection,
    relay: &str,
    topic: &Topic,
    limit: u32,
) -> Result<Vec<(StreamId, Event)>, Error> {
    let rows = sqlx::query(
        "select epoch, seq, id, event_id, topic, type, payload::text as payload, created_at, xid::text
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

/// Returns the numbers from `first` to `last`, both included, whose events were parked. If a sink forgets
/// events that were released since, it receives them again at the numbers of their releases.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if Postgres
/// refuses the statement or the connection breaks.
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

/// Reads the events in these rows, each with its number.
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
        xid: xid_of(row, "xid")?,
        // The trace has ended by the time of the release.
        trace: None,
    };
    Ok((number_of(row)?, event))
}

/// Reads the transaction of a row from this column.
///
/// # Errors
/// Returns the driver's error if the column is missing or no text.
pub(super) fn xid_of(row: &PgRow, column: impl ColumnIndex<PgRow>) -> Result<Option<u64>, sqlx::Error> {
    Ok(row.try_get::<Option<&str>, _>(column)?.and_then(|xid| xid.parse().ok()))
}

/// Marks as discarded the topic's parked events with a requested discard. Their rows stay, so that a restore
/// leaves the events out as well. Returns false, and changes nothing, if clients may have received one of them
/// and the request does not say that this does not matter.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if Postgres
/// refuses the statement or the connection breaks.
pub async fn discard(connection: &mut PgConnection, relay: &str, topic: &Topic) -> Result<bool, Error> {
    let is_refused: bool = sqlx::query_scalar(
        "with refused as materialized (
           select exists (
             select from outbox.parked
             where relay = $1 and topic = $2 and requested = 'discard' and may_have_arrived
               and settled_as is null) as found),
         discarded as (
           update outbox.parked p
           set settled_as = 'discarded', settled_at = clock_timestamp(), requested = null
           from refused
           where p.relay = $1 and p.topic = $2 and p.requested in ('discard', 'discard_arrived')
             and p.settled_as is null and not refused.found)
         select found from refused",
    )
    .bind(relay)
    .bind(topic.as_str())
    .fetch_one(connection)
    .await?;
    Ok(!is_refused)
}

/// Requests the release of all parked events of the topic without a request: they only waited behind those that
/// the operator has named. So a relay that dies before it has released them leaves a request, which the next
/// one carries out.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if Postgres
/// refuses the statement or the connection breaks.
pub async fn request_the_rest(
    connection: &mut PgConnection,
    relay: &str,
    topic: &Topic,
) -> Result<(), Error> {
    sqlx::query(
        "update outbox.parked set requested = 'release'
         where relay = $1 and topic = $2 and requested is null and settled_as is null",
    )
    .bind(relay)
    .bind(topic.as_str())
    .execute(connection)
    .await?;
    Ok(())
}

/// Returns how many of a topic's parked events clients may have received, up to and including `through`.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if Postgres
/// refuses the statement or the connection breaks.
pub async fn may_have_arrived(
    connection: &mut PgConnection,
    relay: &str,
    topic: &Topic,
    through: StreamId,
) -> Result<u64, Error> {
    let count: i64 = sqlx::query_scalar(
        "select count(*) from outbox.parked
         where relay = $1 and topic = $2 and (epoch, seq) <= ($3, $4) and may_have_arrived
           and settled_as is null",
    )
    .bind(relay)
    .bind(topic.as_str())
    .bind(through.epoch.cast_signed())
    .bind(through.seq.cast_signed())
    .fetch_one(connection)
    .await?;
    Ok(count.cast_unsigned())
}

/// Deletes the rows of events that have left the log and were settled longer ago than `retention`, so that no
/// sink keeps them.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if Postgres
/// refuses the statement or the connection breaks.
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

/// Requests `action` for a topic's parked events up to and including `through`, or for all of them if it is
/// `None`. Returns the number of these events. Events that are parked later are not included.
///
/// Call it in the transaction that writes the audit row, and ring the bell after the commit. The relay
/// carries the request out, because only the relay knows which events of the topic are in progress.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if Postgres
/// refuses the statement or the connection breaks.
pub async fn request(
    connection: &mut PgConnection,
    relay: &str,
    topic: &Topic,
    action: Action,
    through: Option<StreamId>,
) -> Result<u64, Error> {
    let done = sqlx::query(
        "update outbox.parked set requested = $3
         where relay = $1 and topic = $2 and settled_as is null
           and ($4::bigint is null or (epoch, seq) <= ($4, $5))",
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

/// Withdraws the request for a topic's events that the sink refused again: keeps them parked, with the sink's
/// words at the first one.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if Postgres
/// refuses the statement or the connection breaks.
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

/// Returns every topic that has parked events.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, [`Error::NotAnEvent`] if a row that
/// it returns breaks the rules for topics or types, and [`Error::Database`] if Postgres refuses the statement
/// or the connection breaks.
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

/// Returns how many events of a topic are parked.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if Postgres
/// refuses the statement or the connection breaks.
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
