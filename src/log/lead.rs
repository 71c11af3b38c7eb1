//! The lead: an advisory lock whose key is in the relay's row.
//!
//! Every role that may connect can take any advisory lock, and `pg_locks` shows the keys that are held. So
//! the key is random. If a role that may not write positions holds it, that role is no relay, and the key is
//! replaced. Replacing it needs no care for work in progress, because two leaders do no harm (see
//! `relay::leader`).

use std::time::Duration;

use sqlx::{PgConnection, Row};

use super::{Error, identity};

/// A role that holds a relay's lead although it may not write a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranger {
    /// The role, or empty if it is not known.
    pub role: String,
    key: i64,
}

/// Inserts the relay's row if it is missing.
///
/// # Errors
/// Returns [`Error::WrongDatabase`], [`Error::NoIdentity`] or [`Error::NewerFormat`] before anything is
/// written, [`Error::RebaseNeeded`] if the log was rebased for another relay alone, [`Error::SchemaMissing`] if
/// the schema is missing or too old, and [`Error::Database`] if Postgres refuses the statement or the connection
/// breaks.
pub async fn register(connection: &mut PgConnection, relay: &str) -> Result<(), Error> {
    identity::at_home(connection).await?;
    sqlx::query("insert into outbox.relay (name) values ($1) on conflict (name) do nothing")
        .bind(relay)
        .execute(&mut *connection)
        .await?;
    if is_rebase_needed(connection, relay).await? {
        return Err(Error::RebaseNeeded(relay.to_owned()));
    }
    Ok(())
}

/// Whether the log was rebased for other relays, and the sink of this one was not looked at.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if Postgres
/// refuses the statement or the connection breaks.
pub async fn is_rebase_needed(connection: &mut PgConnection, relay: &str) -> Result<bool, Error> {
    let sql = "select rebase_needed from outbox.relay where name = $1";
    Ok(sqlx::query_scalar(sql).bind(relay).fetch_optional(connection).await?.unwrap_or(false))
}

/// Takes the lead for as long as the session lives. Returns false if another session holds it.
///
/// # Errors
/// Returns [`Error::Database`] if Postgres refuses the statement or the connection breaks.
pub async fn try_take(connection: &mut PgConnection, relay: &str) -> Result<bool, Error> {
    let sql = "select pg_try_advisory_lock(lead_key) from outbox.relay where name = $1";
    Ok(sqlx::query_scalar(sql).bind(relay).fetch_one(connection).await?)
}

/// Takes the lead until the end of the transaction, also from a stranger. Returns false if a relay holds it.
///
/// # Errors
/// Returns [`Error::Database`] if Postgres refuses the statement or the connection breaks.
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

/// Whether no relay holds the lead. A stranger's lock does not count, and stays. Takes the lock for a moment
/// in shared mode, so that callers do not disturb each other.
///
/// # Errors
/// Returns [`Error::Database`] if Postgres refuses the statement or the connection breaks.
pub(crate) async fn is_free(connection: &mut PgConnection, relay: &str) -> Result<bool, Error> {
    let sql = "select case when pg_try_advisory_lock_shared(lead_key)
                           then pg_advisory_unlock_shared(lead_key) else false end
               from outbox.relay where name = $1";
    let is_free: bool = sqlx::query_scalar(sql).bind(relay).fetch_one(&mut *connection).await?;
    Ok(is_free || stranger(connection, relay).await?.is_some())
}

/// Returns the holder of the lead if it cannot be a relay.
///
/// # Errors
/// Returns [`Error::Database`] if Postgres refuses the statement or the connection breaks.
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
           and not coalesce(
             has_table_privilege(coalesce(a.usename, p.owner), 'outbox.checkpoint', 'INSERT'), false)
         limit 1",
    )
    .bind(relay)
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let role: Option<String> = row.try_get("role")?;
    Ok(Some(Stranger { role: role.unwrap_or_default(), key: row.try_get("lead_key")? }))
}

/// Ends the session of a relay that holds the lead and has been idle for longer than `silence`, on servers
/// that do not end idle sessions themselves (before PostgreSQL 14). It ends only sessions of its own role,
/// because the server refuses others. Returns whether it ended one.
///
/// # Errors
/// Returns [`Error::Database`] if Postgres refuses the statement or the connection breaks.
pub async fn end_silent(
    connection: &mut PgConnection,
    relay: &str,
    silence: Duration,
) -> Result<bool, Error> {
    let sql = "
        select coalesce(bool_or(pg_terminate_backend(a.pid)), false)
        from outbox.relay r
        join pg_locks l
          on l.locktype = 'advisory' and l.granted and l.objsubid = 1::smallint
          and l.database = (select oid from pg_database where datname = current_database())
          and l.classid::bigint = (r.lead_key >> 32) & 4294967295
          and l.objid::bigint = r.lead_key & 4294967295
        join pg_stat_activity a on a.pid = l.pid
        where r.name = $1 and current_setting('server_version_num')::int < 140000
          and a.usename = current_user and starts_with(a.application_name, 'aftercommit relay ')
          and starts_with(a.state, 'idle')
          and a.state_change < clock_timestamp() - make_interval(secs => $2)";
    Ok(sqlx::query_scalar(sql).bind(relay).bind(silence.as_secs_f64()).fetch_one(connection).await?)
}

/// Gives the relay a new key, so that the stranger's lock means nothing. Does nothing if the key has changed
/// already.
///
/// # Errors
/// Returns [`Error::Database`] if Postgres refuses the statement or the connection breaks.
pub async fn shut_out(connection: &mut PgConnection, relay: &str, stranger: &Stranger) -> Result<(), Error> {
    sqlx::query("update outbox.relay set lead_key = default where name = $1 and lead_key = $2")
        .bind(relay)
        .bind(stranger.key)
        .execute(connection)
        .await?;
    Ok(())
}
