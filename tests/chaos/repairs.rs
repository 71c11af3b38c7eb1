//! When Redis had everything again: a repair can take longer than the plan leaves it, where other faults or a
//! pause keep the relays from it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aftercommit::event::StreamId;
use aftercommit::log::{Position, checkpoint};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::world::World;

const INTERVAL: Duration = Duration::from_millis(250);

/// The times at which a relay had just written a position, and Redis had all numbers up to it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Repairs(Arc<Mutex<Vec<Instant>>>);

impl Repairs {
    /// Looks at both stores until then.
    pub(crate) fn watch(&self, world: Arc<World>, until: CancellationToken) -> JoinHandle<()> {
        let repairs = self.clone();
        tokio::spawn(async move {
            let mut before = None;
            while !until.is_cancelled() {
                if let Some((position, is_whole)) = look(&world).await {
                    // A rebase writes a position too, of a new epoch, and repairs nothing.
                    let has_moved =
                        before.is_some_and(|(epoch, n)| position.epoch == epoch && position.n > n);
                    if is_whole && has_moved {
                        repairs.0.lock().expect("times").push(Instant::now());
                    }
                    before = Some((position.epoch, position.n));
                }
                tokio::time::sleep(INTERVAL).await;
            }
        })
    }

    /// When Redis was whole again after a fault that ended then; `None` if it was not seen to be.
    pub(crate) fn after(&self, fault: Instant) -> Option<Instant> {
        self.0.lock().expect("times").iter().find(|whole| **whole > fault).copied()
    }
}

/// The position, and whether Redis has used up all of its numbers. The position is read first: the number of
/// Redis only grows from there, unless it forgets.
async fn look(world: &World) -> Option<(Position, bool)> {
    let relay = world.system.redis.relay_name();
    let position = checkpoint::newest(&mut world.postgres().await, &relay).await.ok()??;
    let top = world.tell_redis(&["hget", &world.system.redis.keys().top(&relay), "id"]).await.ok()?;
    let top: String = redis::from_redis_value(top).ok()?;
    let top: StreamId = top.parse().ok()?;
    let is_whole = top >= StreamId::new(position.epoch, position.next_seq - 1);
    Some((position, is_whole))
}
