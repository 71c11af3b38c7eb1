//! The rotation task: empties old slots of the log on a connection of its own, so that a large TRUNCATE
//! delays no delivery.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Metrics;
use super::state::StateHandle;
use crate::log::rotate::{self, Blocked, Rotation};
use crate::postgres;

/// The time between two rotations.
const INTERVAL: Duration = Duration::from_secs(30);

/// Rotates the log until `stop`. Begin it when the sink has been compared with the position: before that,
/// nobody knows whether a server of the sink lacks events that only the log still has. A failure or an
/// obstacle is logged once, and the rotation is tried again at the next interval.
pub(super) async fn run(
    database: postgres::Settings,
    relay: String,
    retention: Duration,
    metrics: Metrics,
    state: StateHandle,
    stop: CancellationToken,
) {
    let mut logged: Option<String> = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = state.awake() => {}
        }
        let blocked = match state.get().behind {
            // Only the log still has the events that they lack.
            Some(servers) => {
                Some(format!("events that only the log has must first be restored to {servers}"))
            }
            None => match rotate_once(&database, &relay, retention).await {
                Ok(rotation) => {
                    for table in &rotation.emptied {
                        metrics.emptied(table);
                        tracing::info!(%table, "emptied a slot of the log");
                    }
                    blocked_by(&rotation)
                }
                Err(error) => Some(format!("rotation failed: {error:#}")),
            },
        };
        if stop.is_cancelled() {
            return; // Another relay may lead by now, and rotates.
        }
        if blocked != logged {
            if let Some(reason) = &blocked {
                tracing::warn!(%reason, "the log keeps more than its retention");
            }
            logged.clone_from(&blocked);
        }
        metrics.rotation_blocked.set(i64::from(blocked.is_some()));
        state.rotation_blocked(blocked);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

async fn rotate_once(
    database: &postgres::Settings,
    relay: &str,
    retention: Duration,
) -> Result<Rotation, Box<dyn std::error::Error + Send + Sync>> {
    use sqlx::Connection;
    let mut connection = database.connect(&format!("aftercommit relay {relay} rotation")).await?;
    let rotation = rotate::rotate(&mut connection, retention).await?;
    connection.close().await?;
    Ok(rotation)
}

/// Names each obstacle with all slots that it keeps. One forgotten session often keeps several slots.
fn blocked_by(rotation: &Rotation) -> Option<String> {
    let mut kept: Vec<(&str, Vec<&str>)> = Vec::new();
    for Blocked { table, by } in &rotation.blocked {
        match kept.iter_mut().find(|(known, _)| known == by) {
            Some((_, tables)) => tables.push(table),
            None => kept.push((by, vec![table])),
        }
    }
    let reasons = kept.iter().map(|(by, tables)| format!("{} kept: {by}", tables.join(", ")));
    (!kept.is_empty()).then(|| reasons.collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_several_slots_is_told_once() {
        let blocked = |table: &str, by: &str| Blocked { table: table.to_owned(), by: by.to_owned() };
        let mut rotation = Rotation::default();
        assert_eq!(blocked_by(&rotation), None);
        rotation.blocked =
            vec![blocked("event_0", "pid 7"), blocked("event_1", "pid 8"), blocked("event_4", "pid 7")];
        assert_eq!(
            blocked_by(&rotation).as_deref(),
            Some("event_0, event_4 kept: pid 7; event_1 kept: pid 8")
        );
    }
}
