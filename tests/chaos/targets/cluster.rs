//! Faults of a cluster.

use std::time::Duration;

use aftercommit::event::Topic;

use crate::harness::{Cluster, eventually};
use crate::random::Random;

/// Servers, primaries and replicas. The replica of each is the one that is half as many further on.
const SERVERS: usize = 6;

/// Makes a fault, waits until it is over, and returns its name.
pub(super) async fn fail(cluster: &Cluster, random: &mut Random, topics: &[Topic]) -> &'static str {
    let topic = &topics[random.below(topics.len())];
    let primary = owner_of(cluster, topic).await;
    let replica = (primary + SERVERS / 2) % SERVERS;
    match random.between(0, 6) {
        0 => {
            // Short enough for nobody to take its place, or long enough.
            frozen(cluster, primary, random.millis(100, 900)).await;
            "server frozen"
        }
        1 => {
            cluster.signal(primary, "STOP").await;
            cluster.wait_for_takeover(topic, primary).await;
            cluster.signal(primary, "CONT").await;
            "server frozen until its replica took over"
        }
        2 => {
            cluster.ask_server(replica, &["CLUSTER", "FAILOVER"]).await;
            cluster.wait_for_takeover(topic, primary).await;
            "replica asked to take over"
        }
        3 => {
            // It lacks what was written meanwhile, and nobody asks the primary.
            cluster.cut_off(primary, replica).await;
            tokio::time::sleep(random.millis(100, 1500)).await;
            cluster.ask_server(replica, &["CLUSTER", "FAILOVER", "TAKEOVER"]).await;
            cluster.wait_for_takeover(topic, primary).await;
            cluster.let_in(replica).await;
            "replica that lagged took over"
        }
        4 => {
            let to = loop {
                let other = owner_of(cluster, &topics[random.below(topics.len())]).await;
                if other != primary {
                    break other;
                }
            };
            cluster.move_slot(topic, primary, to).await;
            "slot moved"
        }
        _ => {
            let kind = *random.one_of(&["NORMAL", "PUBSUB"]);
            cluster.ask_server(primary, &["CLIENT", "KILL", "TYPE", kind]).await;
            "connections cut"
        }
    }
}

async fn frozen(cluster: &Cluster, at: usize, lasts: Duration) {
    cluster.signal(at, "STOP").await;
    tokio::time::sleep(lasts).await;
    cluster.signal(at, "CONT").await;
}

/// The server that has a topic, when all servers say the same and its replica follows it.
async fn owner_of(cluster: &Cluster, topic: &Topic) -> usize {
    eventually("all servers agree", async || cluster.settled_owner_of(topic).await).await
}
