//! When Redis had everything again: a repair can take longer than the plan leaves it, where other faults or a
//! pause keep the relays from it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aftercommit::event::StreamId;
use aftercommit::log::checkpoint;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::world::World;

const INTERVAL: Duration = Duration::from_millis(250);

/// The times at which Redis was seen to have all numbers that the log has given out.
#[derive(Debug, Default)]
pub(crate) struct Repairs(Vec<Instant>);

impl Repairs {
    /// Looks at both stores until then.
    pub(crate) fn watch(world: Arc<World>, until: CancellationToken) -> JoinHandle<Self> {
        tokio::spawn(async move {
            let mut repairs = Self::default();
            while !until.is_cancelled() {
                if is_whole(&world).await == Some(true) {
                    repairs.0.push(Instant::now());
                }
                tokio::time::sleep(INTERVAL).await;
            }
            repairs
        })
    }

    /// When Redis was whole again after a fault that ended then; `None` if it was not seen to be.
    pub(crate) fn after(&self, fault: Instant) -> Option<Instant> {
        self.0.iter().find(|whole| **whole > fault).copied()
    }
}

/// Whether Redis has used up all numbers of the position. The position is read first: the number of Redis only
/// grows from there, unless it forgets.
async fn is_whole(world: &World) -> Option<bool> {
    let relay = world.system.redis.relay_name();
    let position = checkpoint::newest(&mut world.postgres().await, &relay).await.ok()??;
    let top = world.tell_redis(&["hget", &world.system.redis.keys().top(&relay), "id"]).await.ok()?;
    let top: String = redis::from_redis_value(top).ok()?;
    let top: StreamId = top.parse().ok()?;
    Some(top >= StreamId::new(position.epoch, position.next_seq - 1))
}
