//! Orders to stop and start the relay and Redis. The page gives them; `aftercommit dev`, which owns both,
//! carries them out one after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};

/// Orders that may wait. More would come from a page that does not wait for its answers.
const ORDERS_MAX: usize = 8;

/// A part of `dev` that the page stops and starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The relay. It is stopped as by kill -9, in the middle of whatever it does.
    Relay,
    /// The private Redis. It is stopped in order, and keeps what it keeps.
    Redis,
}

/// An order was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SwitchError {
    /// The part did not stop or start, as this sentence says.
    #[error("{0}")]
    Failed(String),
    /// `dev` is ending.
    #[error("aftercommit dev is ending")]
    Ending,
}

/// What runs, as far as orders have changed it.
#[derive(Debug)]
struct Running {
    relay: AtomicBool,
    redis: AtomicBool,
}

impl Running {
    fn of(&self, part: Part) -> &AtomicBool {
        match part {
            Part::Relay => &self.relay,
            Part::Redis => &self.redis,
        }
    }
}

/// An order that waits for its execution. Dropping it tells the page that `dev` is ending.
#[derive(Debug)]
pub struct Order {
    /// The part to stop or to start.
    pub part: Part,
    /// Whether the part is to run.
    pub run: bool,
    running: Arc<Running>,
    answer: oneshot::Sender<Result<(), SwitchError>>,
}

impl Order {
    /// Reports the outcome. An error is a sentence for the page's reader.
    pub fn done(self, outcome: Result<(), String>) {
        if outcome.is_ok() {
            self.running.of(self.part).store(self.run, Ordering::Relaxed);
        }
        // The page may be gone. The outcome is kept above.
        drop(self.answer.send(outcome.map_err(SwitchError::Failed)));
    }
}

/// The page's end: gives orders.
#[derive(Debug)]
pub struct Switchboard {
    running: Arc<Running>,
    orders: mpsc::Sender<Order>,
}

/// The end of `dev`: receives orders.
#[derive(Debug)]
pub struct Orders(mpsc::Receiver<Order>);

/// Both ends, while both parts run.
pub fn switchboard() -> (Switchboard, Orders) {
    let (orders, receiver) = mpsc::channel(ORDERS_MAX);
    let running = Arc::new(Running { relay: AtomicBool::new(true), redis: AtomicBool::new(true) });
    (Switchboard { running, orders }, Orders(receiver))
}

impl Orders {
    /// The next order. Waits for ever once the page has ended.
    pub async fn next(&mut self) -> Order {
        match self.0.recv().await {
            Some(order) => order,
            None => std::future::pending().await,
        }
    }
}

impl Switchboard {
    /// Whether a part runs.
    pub(super) fn runs(&self, part: Part) -> bool {
        self.running.of(part).load(Ordering::Relaxed)
    }

    /// Stops or starts a part, and waits until that is done.
    pub(super) async fn switch(&self, part: Part, run: bool) -> Result<(), SwitchError> {
        let (answer, answered) = oneshot::channel();
        let order = Order { part, run, running: self.running.clone(), answer };
        self.orders.send(order).await.map_err(|_| SwitchError::Ending)?;
        answered.await.unwrap_or(Err(SwitchError::Ending))
    }
}
