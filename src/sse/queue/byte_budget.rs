//! The budget of bytes that a process holds for its streams: recent events, pages of histories, the send
//! queues, and bytes that have left a queue and are in flight. Each byte counts once, however many share it,
//! until the last of them drops it.
//!
//! Events that Redis sends are always accepted. A page of a history is read only once its bytes are reserved;
//! while there is no room the ticker cuts off the clients that read the least, and they reconnect for the
//! rest.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::sse::wire::frame::{Block, Frame};

/// How long a reservation waits for room. By then the ticker has cut off the clients that it could.
const WAIT: Duration = Duration::from_secs(10);

/// The budget of a process. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct ByteBudget(Arc<Account>);

#[derive(Debug)]
struct Account {
    limit: usize,
    held: AtomicUsize,
    /// Bytes of the reservations that wait.
    wanted: AtomicUsize,
    /// Held by the reservation that is next: they are served in the order in which they came.
    turn: tokio::sync::Mutex<()>,
    /// Notified when bytes are freed.
    freed: Notify,
}

impl Default for ByteBudget {
    /// A budget without a limit.
    fn default() -> Self {
        Self::new(usize::MAX)
    }
}

impl ByteBudget {
    pub(crate) fn new(limit: usize) -> Self {
        Self(Arc::new(Account {
            limit,
            held: AtomicUsize::new(0),
            wanted: AtomicUsize::new(0),
            turn: tokio::sync::Mutex::new(()),
            freed: Notify::new(),
        }))
    }

    /// Counts these bytes until nobody has them any more. Never refuses, also beyond the limit.
    pub(crate) fn hold(&self, bytes: Bytes) -> Bytes {
        if bytes.is_empty() {
            return bytes;
        }
        self.0.held.fetch_add(bytes.len(), Ordering::Relaxed);
        let reservation = Reservation { account: self.0.clone(), bytes: bytes.len() };
        Bytes::from_owner(Counted { bytes, _reservation: reservation })
    }

    /// Counts the bytes of a block.
    pub(crate) fn block(&self, mut block: Block) -> Block {
        block.bytes = self.hold(block.bytes);
        block
    }

    /// Counts the bytes of an event.
    pub(crate) fn frame(&self, mut frame: Frame) -> Frame {
        frame.block = self.block(frame.block);
        frame
    }

    pub(crate) fn held(&self) -> usize {
        self.0.held.load(Ordering::Relaxed)
    }

    pub(crate) fn limit(&self) -> usize {
        self.0.limit
    }

    /// Whether more is held than the limit.
    pub(crate) fn is_over(&self) -> bool {
        self.held() > self.0.limit
    }

    /// Whether more is held than the limit, counting the reservations that wait.
    pub(crate) fn is_short(&self) -> bool {
        self.held().saturating_add(self.0.wanted.load(Ordering::Relaxed)) > self.0.limit
    }

    /// Whether this many bytes could be reserved now, if no reservation waits.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.held().saturating_add(bytes) <= self.0.limit
    }

    /// Reserves bytes, in turn with others. Returns `None` if there is no room for them within 10 s.
    pub(crate) async fn reserve(&self, bytes: usize) -> Option<Reservation> {
        if let Ok(_turn) = self.0.turn.try_lock()
            && let Some(reservation) = self.try_reserve(bytes)
        {
            return Some(reservation);
        }
        let _wanted = Wanted::new(&self.0.wanted, bytes);
        let waiting = async {
            let _turn = self.0.turn.lock().await;
            loop {
                if let Some(reservation) = self.try_reserve(bytes) {
                    return reservation;
                }
                // Keeps one permit, so bytes that were freed since the look end the wait at once.
                self.0.freed.notified().await;
            }
        };
        timeout(WAIT, waiting).await.ok()
    }

    fn try_reserve(&self, bytes: usize) -> Option<Reservation> {
        let fits = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= self.0.limit);
        self.0.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Reservation { account: self.0.clone(), bytes })
    }
}

/// Bytes that count as held until this is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    account: Arc<Account>,
    bytes: usize,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.account.held.fetch_sub(self.bytes, Ordering::Relaxed);
        self.account.freed.notify_one();
    }
}

/// The bytes of a reservation that waits.
struct Wanted<'a> {
    all: &'a AtomicUsize,
    bytes: usize,
}

impl<'a> Wanted<'a> {
    fn new(all: &'a AtomicUsize, bytes: usize) -> Self {
        all.fetch_add(bytes, Ordering::Relaxed);
        Self { all, bytes }
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Bytes that count as held.
struct Counted {
    bytes: Bytes,
    _reservation: Reservation,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::poll;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_byte_counts_once_and_until_the_last_one_lets_go_of_it() {
        let budget = ByteBudget::new(100);
        let one = budget.hold(vec![b'x'; 60].into());
        let (shared, part) = (one.clone(), one.slice(10..20));
        assert_eq!(budget.held(), 60);
        drop((one, shared));
        assert_eq!((budget.held(), part.as_ref()), (60, &b"xxxxxxxxxx"[..]));
        drop(part);
        assert_eq!(budget.held(), 0);
        assert!(budget.hold(Bytes::new()).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reservation_waits_until_there_is_room_and_not_for_ever() {
        let budget = ByteBudget::new(100);
        let block = budget.hold(vec![b'x'; 60].into());
        assert!(budget.reserve(50).await.is_none(), "nobody frees anything");
        let waiting = budget.reserve(50);
        let freeing = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(budget.is_short() && !budget.is_over());
            drop(block);
        };
        let (reservation, ()) = tokio::join!(waiting, freeing);
        assert_eq!(budget.held(), 50);
        drop(reservation);
        assert!(!budget.is_short() && budget.held() == 0);
        let more = budget.hold(vec![b'x'; 101].into());
        assert!(budget.is_over(), "events that Redis sends are never refused");
        drop(more);
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_reservation_is_not_overtaken_by_small_ones_that_come_later() {
        let budget = ByteBudget::new(100);
        let block = budget.hold(vec![b'x'; 60].into());
        let (mut large, mut small) = (pin!(budget.reserve(80)), pin!(budget.reserve(10)));
        assert!(poll!(&mut large).is_pending());
        assert!(poll!(&mut small).is_pending(), "there is room for it, and another one came first");
        drop(block);
        let std::task::Poll::Ready(Some(first)) = poll!(&mut large) else { panic!("there is room now") };
        assert!(poll!(&mut small).is_ready());
        drop(first);
    }
}
