//! Faults of Postgres: it dies, loses its sessions, revokes rights of the relays, and has a standby that they
//! read by accident.

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

/// Leads new connections of the relays to the standby, as a proxy that splits reads does or a name of several
/// addresses: all, or some. Then a leader's writer may be on the primary and its reader on the standby.
/// For two thirds of the time the standby replays nothing. False if no connection came to it.
pub(super) async fn read_standby(world: &World, fault: &Fault) -> bool {
    let (standby, proxy) = (&world.standby, &world.postgres.proxy);
    // Every second one falls into step with the relays: a writer, a writer, and then the leader's reader.
    let some = fault.target.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let pattern = if fault.target.is_multiple_of(8) { u64::MAX } else { some };
    standby.pause().await.expect("a standby that lags");
    proxy.lead_aside(standby.port(), pattern);
    // A leader whose connections both lead to the primary would keep them.
    for _ in 0..2 {
        tokio::time::sleep(fault.lasts / 3).await;
        proxy.cut();
    }
    standby.resume().await.expect("a standby that catches up");
    tokio::time::sleep(fault.lasts / 3).await;
    proxy.lead_back() > 0
}

/// In the catalogue: `alter table` would wait for the writers' long transactions, and everybody would wait
/// for it.
fn row_security(on: bool) -> String {
    format!(
        "update pg_class set relrowsecurity = {on}
         where relnamespace = 'outbox'::regnamespace and relkind in ('r', 'p')
           and (relname like 'event%' or relname like 'checkpoint%'
                or relname in ('parked', 'pause', 'relay'))"
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
