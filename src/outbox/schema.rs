//! The log's schema: applies its migrations, and tells whether a database has them.

use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::postgres::Schema;

static MIGRATOR: Migrator = sqlx::migrate!("migrations/outbox");

/// The schema `outbox`. It has its own migration table, so that it does not interfere with an application's
/// schemas.
pub static SCHEMA: Schema = Schema { name: "outbox", migrator: &MIGRATOR, command: "aftercommit migrate" };

/// Sets how long one slot of the log takes rows before the next one does, in seconds. Does nothing if the
/// value is the current one.
///
/// Rows that are already written stay where they are: rotation looks at the rows that a slot holds, not at
/// the slot's turn.
///
/// # Errors
/// Returns Postgres's error, for example if the role may not replace the function.
pub async fn set_rotation(connection: &mut PgConnection, seconds: u32) -> Result<(), sqlx::Error> {
    let seconds = seconds.max(1);
    let current: i32 =
        sqlx::query_scalar("select outbox.rotation_seconds()").fetch_one(&mut *connection).await?;
    if i64::from(current) == i64::from(seconds) {
        return Ok(());
    }
    sqlx::raw_sql(AssertSqlSafe(rotation_sql(seconds))).execute(connection).await?;
    Ok(())
}

/// The statement that sets how long one slot of the log takes rows, in seconds.
pub fn rotation_sql(seconds: u32) -> String {
    // The value is a function and not a row of a table, so that an append reads no table.
    format!(
        "create or replace function outbox.rotation_seconds() returns integer
         language sql stable parallel safe as $$ select {} $$",
        seconds.max(1)
    )
}
