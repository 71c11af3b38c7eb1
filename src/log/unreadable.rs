//! Parks a row that cannot be read. Its values are copied within the server, and never pass through this
//! process.

use sqlx::{Connection, PgConnection};

use super::Error;
use super::read::{Unreadable, is_about_a_row};
use crate::event::{StreamId, Topic};

/// A row that cannot be read, to be parked.
#[derive(Debug)]
pub struct Parked {
    /// Its id, with the number that it uses up.
    pub id: StreamId,
    /// The row.
    pub row: Unreadable,
    /// As in [`super::parked::Parked`]: it may have been readable when it was published.
    pub may_have_arrived: bool,
}

/// Parks a row under the number that it uses up. Call it in the transaction that writes the position after
/// it.
///
/// A topic or a type that is no valid name is replaced by a name that says so. A topic that can be read is
/// held, because later events must not overtake this one.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if Postgres
/// refuses the statement or the connection breaks.
pub async fn park(
    connection: &mut PgConnection,
    relay: &str,
    Parked { id, row, may_have_arrived }: &Parked,
) -> Result<(), Error> {
    let reason = format!("row {} of outbox.event cannot be read: {}", row.id, row.reason);
    for sql in [COPY, STAND_IN] {
        let mut attempt = connection.begin().await?;
        let parked = sqlx::query(sql)
            .bind(relay)
            .bind(id.epoch.cast_signed())
            .bind(id.seq.cast_signed())
            .bind(row.id)
            .bind(row.topic.as_ref().map(Topic::as_str))
            .bind(&reason)
            .bind(may_have_arrived)
            .execute(&mut *attempt)
            .await
            .map_err(Error::from);
        match parked {
            Ok(_) => return Ok(attempt.commit().await?),
            // A damaged page cannot be copied either.
            Err(error) if sql == COPY && is_about_a_row(&error) => attempt.rollback().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

const COPY: &str = "
  insert into outbox.parked (relay, epoch, seq, id, event_id, topic, type, payload, created_at, reason, xid,
                             may_have_arrived)
  select $1, $2, $3, e.id, coalesce(e.event_id, '00000000-0000-0000-0000-000000000000'),
         coalesce($5::text, 'unreadable:row-' || $4::bigint::text),
         case when e.type collate \"C\" ~ '^[A-Za-z0-9._-]{1,100}$' then e.type else 'unreadable' end,
         coalesce(e.payload, 'null'::json),
         case when e.created_at >= '1970-01-01 00:00:00+00' and e.created_at < '10000-01-01 00:00:00+00'
              then e.created_at else clock_timestamp() end,
         $6, e.xid, $7
  from outbox.event e where e.id = $4
  limit 1
  on conflict (relay, epoch, seq) do nothing";

/// Records that the row exists, where its values cannot be read even within the server.
const STAND_IN: &str = "
  insert into outbox.parked (relay, epoch, seq, id, event_id, topic, type, payload, created_at, reason,
                             may_have_arrived)
  values ($1, $2, $3, $4, '00000000-0000-0000-0000-000000000000',
          coalesce($5::text, 'unreadable:row-' || $4::bigint::text),
          'unreadable', 'null', clock_timestamp(), $6, $7)
  on conflict (relay, epoch, seq) do nothing";
