//! Faults of Postgres: it dies, loses its sessions, and revokes rights of the relays.

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection};

use super::kill;
use crate::kinds::Kind;
use crate::plan::Fault;
use crate::roles;
use crate::world::World;

pub(super) async fn make(world: &World, fault: &Fault) {
    match fault.kind {
        Kind::SessionsTerminated => {
            let mut connection = world.postgres().await;
            let sql = "select pg_terminate_backend(pid) from pg_stat_activity
                       where backend_type = 'client backend' and pid <> pg_backend_pid()";
            // It may end us as well.
            drop(sqlx::query(sql).execute(&mut connection).await);
        }
        Kind::PostgresRestarted => world.postgres.control(&["restart", "--mode", "fast"]).await,
        Kind::GrantTaken(grant) => {
            let _taken = world.rights.lock().await;
            insist(world, roles::revoked(grant)).await;
            tokio::time::sleep(fault.lasts).await;
            insist(world, &roles::granted().await).await;
        }
        Kind::RowSecurity => {
            let _taken = world.rights.lock().await;
            insist(world, &row_security(true)).await;
            tokio::time::sleep(fault.lasts).await;
            insist(world, &row_security(false)).await;
        }
        _ => {
            let pid = world.postgres.server.pid().expect("it runs");
            kill(pid, "KILL").await;
            // Its last sessions are still ending for a moment, and it does not start beside them.
            while !world.postgres.tries_to_start_again().await {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// In the catalogue: `alter table` would wait for the writers' long transactions, and everybody would wait
/// for it.
fn row_security(on: bool) -> String {
    format!(
        "update pg_class set relrowsecurity = {on}
         where relnamespace = 'outbox'::regnamespace and relkind in ('r', 'p')
           and (relname like 'event%' or relname like 'checkpoint%' or relname in ('parked', 'pause', 'relay'))"
    )
}

/// Runs SQL as the owner. Retried until it succeeds, because other faults stop Postgres.
pub(super) async fn insist(world: &World, sql: &str) {
    while execute(&mut world.postgres().await, sql).await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(super) async fn execute(connection: &mut PgConnection, sql: &str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.map(|_| ())
}
