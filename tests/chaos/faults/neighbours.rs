//! Actions of other programs on the same Redis, by mistake or on purpose.

use std::time::Duration;

use crate::harness::Process;
use crate::kinds::Kind;
use crate::plan::Fault;
use crate::world::World;

/// How often Redis is asked while it is away.
const LOOK: Duration = Duration::from_millis(200);

/// Returns false if the fault was not made.
pub(super) async fn make(world: &World, fault: &Fault) -> bool {
    let channel = world.channel_of(fault.target);
    match fault.kind {
        Kind::StrangerCame => {
            let stranger = Process::start("relay", world.neighbour.stranger()).await;
            tokio::time::sleep(fault.lasts).await;
            stranger.kill().await;
            while world.neighbour.take_keys_back(world).await.is_err() {
                tokio::time::sleep(LOOK).await;
            }
            true
        }
        Kind::NeighbourWrote => {
            let words = ["xadd", "orders", "*", "n", "1"];
            publish(world, &words).await && publish(world, &["incr", "aftercommitted"]).await
        }
        Kind::PublicForged => {
            let public = world.system.redis.keys().public(&world.channels[channel].topic);
            let message = public_message(fault.target);
            // Before it is published: it may arrive although the answer gets lost.
            world.ledger.forged(channel, told(&message));
            publish(world, &["publish", &public, &message]).await
        }
        _ => {
            let live = world.system.redis.keys().live(&world.channels[channel].topic);
            publish(world, &["publish", &live, &live_message(fault.target)]).await
        }
    }
}

async fn publish(world: &World, words: &[&str]) -> bool {
    // Redis may be away, full or read-only.
    world.tell_redis(words).await.is_ok()
}

/// A message of another program's: JSON with a type, JSON without, and no JSON at all. No two are alike.
fn public_message(target: u64) -> String {
    match target % 4 {
        0 => format!("{{\"type\":\"PING\",\"n\":{target}}}"),
        1 => format!("{{\"n\":{target},\"type\":\"not valid\"}}"),
        2 => format!("no JSON {target}\nid: 9-9\nevent: reset\n\ndata: x"),
        _ => format!("{target}"),
    }
}

/// What a stream shows of it.
fn told(message: &str) -> String {
    message.to_owned()
}

/// A message that no relay publishes: no JSON, half an envelope, an id far ahead, or an old id without a
/// predecessor.
fn live_message(target: u64) -> String {
    let envelope = |id: &str, prev: &str| {
        format!(
            "{{\"id\":\"{id}\",\"prev\":{prev},\"event\":\"{}\",\"type\":\"FORGED\",\
             \"at\":\"2020-01-01T00:00:00Z\",\"payload\":{{\"forged\":{target}}}}}",
            uuid::Uuid::from_u128(u128::from(target))
        )
    };
    match target % 5 {
        0 => format!("no envelope {target}"),
        1 => "{\"id\":\"1-1\"}".to_owned(),
        2 => envelope(&format!("1-{}", (1_u64 << 60) + target), "\"1-1000000000\""),
        3 => envelope(&format!("900-{target}"), "\"899-1\""),
        _ => envelope("1-1", "null"),
    }
}
