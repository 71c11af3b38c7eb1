//! Who leads: an advisory lock whose key stands in the relay's row.
//!
//! Every role that may connect can take any advisory lock, and `pg_locks` shows the keys that are held. So the key is
//! random, and one that is held by a role without the right to write positions, which can be no relay, is replaced. Two
//! leaders do no harm (see `relay::leader`), so this needs no care for what is under way.

use sqlx::{PgConnection, Row};

use super::{Error, identity};

/// Who holds a relay's lead although its role cannot write a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranger {
    /// The role; empty if it is not known.
    pub role: String,
    key: i64,
}

/// Makes sure that the relay has its row.
///
/// # Errors
/// [`Error::WrongCluster`] before anything is written, [`Error::NewerFormat`], [`Error::Database`].
pub async fn register(connection: &mut PgConnection, relay: &str) -> Result<(), Error> {
    identity::at_home(connection).await?;
    sqlx::query("insert into outbox.relay (name) values ($1) on conflict (name) do nothing")
        .bind(relay)
        .execute(connection)
        .await?;
    Ok(())
}

/// Takes the lead for as long as the session lives. False if somebody has it.
///
/// # Errors
/// [`Error::Database`].
pub async fn try_take(connection: &mut PgConnection, relay: &str) -> Result<bool, Error> {
    let sql = "select pg_try_advisory_lock(lead_key) from outbox.relay where name = $1";
    Ok(sqlx::query_scalar(sql).bind(relay).fetch_one(connection).await?)
}

/// Takes the lead until the end of the transaction, also from a stranger. False if a relay has it.
///
/// # Errors
/// [`Error::Database`].
pub(crate) async fn try_hold(connection: &mut PgConnection, relay: &str) -> Result<bool, Error> {
    let sql = "select pg_try_advisory_xact_lock(lead_key) from outbox.relay where name = $1";
    if sqlx::query_scalar::<_, bool>(sql).bind(relay).fetch_one(&mut *connection).await? {
        return Ok(true);
    }
    match stranger(connection, relay).await? {
        None => Ok(false),
        Some(stranger) => {
            shut_out(connection, relay, &stranger).await?;
            Ok(sqlx::query_scalar(sql).bind(relay).fetch_one(connection).await?)
        }
    }
}

/// Who holds the lead and cannot be a relay.
///
/// # Errors
/// [`Error::Database`].
pub async fn stranger(connection: &mut PgConnection, relay: &str) -> Result<Option<Stranger>, Error> {
    let row = sqlx::query(
        "select r.lead_key, coalesce(a.usename, p.owner)::text as role
         from outbox.relay r
         join pg_locks l
           on l.locktype = 'advisory' and l.granted and l.objsubid = 1::smallint
           and l.database = (select oid from pg_database where datname = current_database())
           and l.classid::bigint = (r.lead_key >> 32) & 4294967295
           and l.objid::bigint = r.lead_key & 4294967295
         left join pg_stat_activity a on a.pid = l.pid
         left join pg_prepared_xacts p on l.virtualtransaction = '-1/' || p.transaction::text
         where r.name = $1
           and not coalesce(has_table_privilege(coalesce(a.usename, p.owner), 'outbox.checkpoint', 'INSERT'), false)
         limit 1",
    )
    .bind(relay)
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let role: Option<String> = row.try_get("role")?;
    Ok(Some(Stranger { role: role.unwrap_or_default(), key: row.try_get("lead_key")? }))
}

/// Gives the relay another key, so that what the stranger holds is worth nothing. Nothing if somebody has done so already.
///
/// # Errors
/// [`Error::Database`].
pub async fn shut_out(connection: &mut PgConnection, relay: &str, stranger: &Stranger) -> Result<(), Error> {
    sqlx::query("update outbox.relay set lead_key = default where name = $1 and lead_key = $2")
        .bind(relay)
        .bind(stranger.key)
        .execute(connection)
        .await?;
    Ok(())
}
