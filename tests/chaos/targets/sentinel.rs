//! Faults of a Redis behind sentinels.

use crate::harness::{Sentinels, eventually};
use crate::random::Random;

/// Makes a fault, waits until it is over, and returns its name.
pub(super) async fn fail(sentinels: &Sentinels, random: &mut Random) -> &'static str {
    let primary =
        eventually("the primary has both replicas", async || sentinels.settled_primary().await).await;
    match random.between(0, 4) {
        0 => {
            sentinels.signal(primary, "STOP").await;
            tokio::time::sleep(random.millis(100, 700)).await;
            sentinels.signal(primary, "CONT").await;
            "server frozen"
        }
        1 => {
            sentinels.signal(primary, "STOP").await;
            sentinels.wait_for_another_primary_than(primary).await;
            sentinels.signal(primary, "CONT").await;
            "server frozen until a replica took over"
        }
        2 => {
            sentinels.fail_over().await;
            sentinels.wait_for_another_primary_than(primary).await;
            "failover asked for"
        }
        _ => {
            let kind = *random.one_of(&["NORMAL", "PUBSUB"]);
            sentinels.ask(primary, &["CLIENT", "KILL", "TYPE", kind]).await;
            "connections cut"
        }
    }
}
