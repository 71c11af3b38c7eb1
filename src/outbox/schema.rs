//! The log's schema: applying its migrations, and telling whether a database has them.

use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::postgres::Schema;

static MIGRATOR: Migrator = sqlx::migrate!("migrations/outbox");

/// The schema `outbox`, with its own migration table, so that it lives beside an application's schemas undisturbed.
pub static SCHEMA: Schema = Schema { name: "outbox", migrator: &MIGRATOR, command: "aftercommit migrate" };

/// Sets how long one slot of the log takes rows before the next one does, in seconds, if it is another time than now.
///
/// Rows already written stay where they are: rotation looks at what a slot holds, not at when it was its turn.
///
/// # Errors
/// Postgres's.
pub async fn set_rotation(connection: &mut PgConnection, seconds: u32) -> Result<(), sqlx::Error> {
    let seconds = seconds.max(1);
    let current: i32 =
        sqlx::query_scalar("select outbox.rotation_seconds()").fetch_one(&mut *connection).await?;
    if i64::from(current) == i64::from(seconds) {
        return Ok(());
    }
    // A function rather than a table's row, so that an append reads nothing.
    let sql = format!(
        "create or replace function outbox.rotation_seconds() returns integer
         language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp as $$ begin return {seconds}; end $$"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?;
    Ok(())
}
