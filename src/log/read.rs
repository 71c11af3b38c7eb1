//! Reads the next events of a window in order, bounded in number and bytes.
//!
//! The reading rule and its trap are documented at the SQL function `outbox.window_rows` in the first
//! migration.
//!
//! One statement answers everything from one snapshot:
//!
//! - It proves that the server shows the checkpoint that opened the window. The empty answer of a server that
//!   lags would otherwise count as the window's end.
//! - It says whether more rows follow.
//! - It names the rows that contradict the position.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};

use super::contradiction::Contradiction;
use super::contradictions::LOOKED_FOR;
use super::parked::xid_of;
use super::position::{Position, Snapshot, Window};
use super::{Error, time};
use crate::event::{Event, EventId, EventType, Topic};

/// The size of one read.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// The most events.
    pub events: u32,
    /// The most bytes of payload and headers. One event is always read, however large.
    pub bytes: u64,
}

/// A part of a window, in order.
#[derive(Debug, Default)]
pub struct Batch {
    /// The rows. Each one uses up a number.
    pub rows: Vec<Row>,
    /// Whether the window has no rows after these.
    pub is_last: bool,
}

/// A row of a window.
#[derive(Debug)]
pub enum Row {
    /// An event.
    Event(Event),
    /// A row that cannot be read as an event.
    Unreadable(Unreadable),
}

/// A row that cannot be read as an event: its text is not in the server's encoding, or a value is outside its
/// type. [`super::unreadable::park`] parks it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// The row's id.
    pub id: i64,
    /// Its topic, if the topic can be read.
    pub topic: Option<Topic>,
    /// The column that cannot be read, and why.
    pub reason: String,
}

impl Row {
    /// The row's id.
    pub fn id(&self) -> i64 {
        match self {
            Self::Event(event) => event.id,
            Self::Unreadable(unreadable) => unreadable.id,
        }
    }
}

/// Reads the next rows of the position's open window in order of id: those with an id above `after_id`.
///
/// The batch is empty if the window holds no more rows, or if no window is open. A window gives the same rows
/// in the same order however often it is read, until rotation drops them. Rotation drops only delivered rows.
///
/// # Errors
/// Returns [`Error::StaleReader`] if the server does not show the position, [`Error::Contradiction`] if rows
/// contradict it (checked where a window begins), [`Error::SchemaMissing`] if the schema is missing or too
/// old, and [`Error::Database`] if Postgres refuses a statement or the connection breaks.
pub async fn batch(
    connection: &mut PgConnection,
    relay: &str,
    position: &Position,
    after_id: i64,
    limit: Limit,
) -> Result<Batch, Error> {
    let Some(window) = &position.window else { return Ok(Batch { rows: Vec::new(), is_last: true }) };
    let asked = ReadArguments { relay, position, window, after_id, limit };
    match asked.rows(connection, true).await {
        Err(error) if is_about_a_row(&error) => {
            // One value that the server cannot send fails the whole statement, so read the rows one by one to
            // find it.
            let mut rows = asked.rows(connection, false).await?;
            for row in &mut rows.rows {
                *row = one(connection, row.id()).await?;
            }
            Ok(rows)
        }
        read => read,
    }
}

/// The arguments of one read.
struct ReadArguments<'a> {
    relay: &'a str,
    position: &'a Position,
    window: &'a Window,
    after_id: i64,
    limit: Limit,
}

impl ReadArguments<'_> {
    /// Reads the rows. Without their texts, all of them are unreadable.
    async fn rows(&self, connection: &mut PgConnection, with_texts: bool) -> Result<Batch, Error> {
        let rows = sqlx::query(READ)
            .bind(self.relay)
            .bind(self.position.n)
            .bind(self.position.slot)
            .bind(&self.position.lower.0)
            .bind(&self.window.upper.0)
            .bind(self.position.next_seq.cast_signed())
            .bind(self.after_id)
            .bind(i64::from(self.limit.events))
            .bind(i64::try_from(self.limit.bytes).unwrap_or(i64::MAX))
            // Contradictions are looked for once a window, before any of it is published.
            .bind(self.window.after_id == 0 && self.after_id == 0)
            .bind(with_texts)
            .bind(LOOKED_FOR)
            .fetch_all(connection)
            .await?;
        let (mut seen, mut batch, mut contradictions) = (None, Batch::default(), Vec::new());
        batch.is_last = true;
        for row in &rows {
            match row.try_get(column::PART)? {
                "seen" => seen = Some(()),
                "row" if row.try_get::<Option<&str>, _>(column::CAUSE)?.is_none() => {
                    batch.is_last = !row.try_get(column::MORE)?;
                    batch.rows.push(read(row)?);
                }
                _contradiction => {
                    let (id, cause) = (row.try_get(column::ID)?, row.try_get(column::CAUSE)?);
                    contradictions.push(Contradiction::of(id, cause));
                }
            }
        }
        if seen.is_none() {
            return Err(Error::StaleReader { relay: self.relay.to_owned(), n: self.position.n });
        }
        if !contradictions.is_empty() {
            return Err(Error::Contradiction { relay: self.relay.to_owned(), rows: contradictions });
        }
        Ok(batch)
    }
}

/// The columns of [`READ`] and of [`one`] by their places. A look-up by name costs more than reading the value.
mod column {
    pub(super) const PART: usize = 0;
    pub(super) const ID: usize = 1;
    pub(super) const EVENT_ID: usize = 2;
    pub(super) const TOPIC: usize = 3;
    pub(super) const TYPE: usize = 4;
    pub(super) const PAYLOAD: usize = 5;
    pub(super) const CREATED_AT: usize = 6;
    pub(super) const TRACE: usize = 7;
    pub(super) const XID: usize = 8;
    pub(super) const CAUSE: usize = 9;
    pub(super) const MORE: usize = 10;
}

/// Parameters: 1 to 6 the checkpoint as the relay knows it; 7 the id after which to read; 8 the most rows; 9
/// the most bytes; 10 whether to look for contradictions; 11 whether to send texts; 12 the most
/// contradictions.
const READ: &str = "
  with here as materialized (
    select c.lower, c.lower_horizon, c.high_id, c.upper
    from outbox.checkpoint c
    where c.relay = $1 and c.n = $2 and c.slot = $3 and c.lower::text = $4
      and c.upper::text = $5 and c.next_seq = $6
  )
  select 'seen' as part, null::bigint as id, null::uuid as event_id, null::text as topic, null::text as type,
         null::text as payload, null::timestamptz as created_at, null::text as trace, null::text as xid,
         null::text as cause, null::boolean as more
  from here
  union all
  select 'contradiction', x.row_id, null, null, null, null, null, null, null, x.cause, null
  from here cross join lateral outbox.contradictions(here.lower_horizon, here.high_id, $12) x
  where $10
  union all
  (
    select 'row', cut.id, cut.event_id, case when $11 then cut.topic end, case when $11 then cut.type end,
           case when $11 then cut.payload::text end, cut.created_at,
           case when $11 and octet_length(cut.headers ->> 'traceparent') <= 128
                then cut.headers ->> 'traceparent' end,
           cut.xid::text, case when cut.following = cut.id then 'twice' end, cut.following is not null
    from (
      select w.*, row_number() over place as place, lead(w.id) over place as following,
             sum(w.bytes) over place - w.bytes as bytes_before
      from here
      cross join lateral outbox.window_rows(
        here.lower, here.lower_horizon, here.high_id, here.upper, $7, $8 + 1::bigint) w
      window place as (order by w.id)
    ) cut
    where cut.place <= $8 and coalesce(cut.bytes_before, 0) < $9
    order by cut.id
  )";

/// Reads one row with its texts.
async fn one(connection: &mut PgConnection, id: i64) -> Result<Row, Error> {
    let row = sqlx::query(
        "select 'row', e.id, e.event_id, e.topic, e.type, e.payload::text, e.created_at,
                case when octet_length(e.headers ->> 'traceparent') <= 128
                     then e.headers ->> 'traceparent' end,
                e.xid::text
         from outbox.event e where e.id = $1",
    )
    .bind(id)
    .fetch_one(&mut *connection)
    .await
    .map_err(Error::from);
    let error = match row {
        Ok(row) => return read(&row),
        Err(error) if is_about_a_row(&error) => error,
        Err(error) => return Err(error),
    };
    let topic = sqlx::query_scalar::<_, String>("select e.topic from outbox.event e where e.id = $1")
        .bind(id)
        .fetch_one(connection)
        .await
        .ok()
        .and_then(|topic| Topic::new(topic).ok());
    Ok(Row::Unreadable(Unreadable { id, topic, reason: error.to_string() }))
}

/// Whether one value is at fault: Postgres cannot convert or send it, its page is damaged, or it is not valid
/// text.
pub(crate) fn is_about_a_row(error: &Error) -> bool {
    let error = match error {
        Error::Database(error) => error,
        // A parked row whose type has been reserved since, or was so when it was parked.
        Error::NotAnEvent { .. } => return true,
        _ => return false,
    };
    // No test needs this, because parked rows can be read. Without it, such a value would stop the relay for
    // good.
    if matches!(error, sqlx::Error::ColumnDecode { .. }) {
        return true;
    }
    let code = error.as_database_error().and_then(|error| error.code()).unwrap_or_default();
    code.starts_with("22") || code == "XX001"
}

/// Returns the identity of the `nth` event (from 1) of the open window after the position, or `None` if the
/// window holds fewer.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if Postgres
/// refuses the statement or the connection breaks.
pub async fn identity_of(
    connection: &mut PgConnection,
    position: &Position,
    nth: u64,
) -> Result<Option<EventId>, Error> {
    let Some(window) = &position.window else { return Ok(None) };
    Ok(sqlx::query_scalar(
        "select event_id
         from outbox.window_rows($1::text::pg_snapshot, $2::text::xid8, $3, $4::text::pg_snapshot, $5, $6)
         order by id offset $6 - 1::bigint",
    )
    .bind(&position.lower.0)
    .bind(&position.lower_horizon.0)
    .bind(position.high_id)
    .bind(&window.upper.0)
    .bind(window.after_id)
    .bind(nth.cast_signed())
    .fetch_optional(connection)
    .await?)
}

/// Returns the session's present snapshot: which transactions have ended.
///
/// # Errors
/// Returns [`Error::Database`] if Postgres refuses the statement or the connection breaks.
pub async fn snapshot(connection: &mut PgConnection) -> Result<Snapshot, Error> {
    Ok(Snapshot(sqlx::query_scalar("select pg_current_snapshot()::text").fetch_one(connection).await?))
}

/// Makes the session prefer index scans and keep its plans. That suits every query on the log, also on a
/// table that was just filled and has no statistics. Each statement gets its own snapshot, whatever the
/// database's default is.
///
/// # Errors
/// Returns [`Error::Database`] if Postgres refuses the statement or the connection breaks.
pub async fn prepare_session(connection: &mut PgConnection) -> Result<(), Error> {
    sqlx::raw_sql(
        "set enable_seqscan = off; set enable_bitmapscan = off; set jit = off;
         set plan_cache_mode = force_generic_plan;
         set default_transaction_isolation = 'read committed'",
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Reads a row as an event, or as an unreadable row.
///
/// # Errors
/// Returns [`Error::Database`] if not even the row's id can be read.
fn read(row: &PgRow) -> Result<Row, Error> {
    let id: i64 = row.try_get(column::ID)?;
    let topic = row.try_get::<String, _>(column::TOPIC).map_err(of_column("topic"));
    let topic = topic.and_then(|topic| Topic::new(topic).map_err(|error| error.to_string()));
    Ok(match event_of(row, id, topic.clone()) {
        Ok(event) => Row::Event(event),
        Err(reason) => Row::Unreadable(Unreadable { id, topic: topic.ok(), reason }),
    })
}

fn event_of(row: &PgRow, id: i64, topic: Result<Topic, String>) -> Result<Event, String> {
    let topic = topic?;
    let event_type: String = row.try_get(column::TYPE).map_err(of_column("type"))?;
    Ok(Event {
        id,
        event_id: row.try_get(column::EVENT_ID).map_err(of_column("event_id"))?,
        topic,
        event_type: EventType::new(event_type).map_err(|error| error.to_string())?,
        payload: row.try_get(column::PAYLOAD).map_err(of_column("payload"))?,
        created_at: time::exact(row, column::CREATED_AT).map_err(of_column("created_at"))?,
        xid: xid_of(row, column::XID).map_err(of_column("xid"))?,
        // A malformed trace is ignored.
        trace: row
            .try_get::<Option<&str>, _>(column::TRACE)
            .ok()
            .flatten()
            .and_then(|text| text.parse().ok()),
    })
}

/// Says why a column cannot be read, without its value.
fn of_column(name: &'static str) -> impl Fn(sqlx::Error) -> String {
    move |error| match error {
        sqlx::Error::ColumnDecode { source, .. } => format!("its {name} cannot be read: {source}"),
        other => format!("its {name} cannot be read: {other}"),
    }
}
