//! The bytes that a process holds for its streams: what is in recent events, in pages of histories, in clients' queues and
//! behind them, each byte counted once, however many share it, and until the last of them lets go of it.
//!
//! There may be so many. Whoever wants to read a page waits for room first; while there is none the ticker cuts off the
//! clients that take the least, who come back for the rest.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::sse::wire::frame::{Block, Frame};

/// How long room is waited for. By then the ticker has cut off whom it could.
const WAIT: Duration = Duration::from_secs(10);

/// The account of a process. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct ByteBudget(Arc<Account>);

#[derive(Debug)]
struct Account {
    limit: usize,
    bytes: AtomicUsize,
    /// What those want who wait for room.
    wanted: AtomicUsize,
    /// Told whenever something is let go of while somebody waits.
    freed: Notify,
}

impl Default for ByteBudget {
    /// An account without a limit.
    fn default() -> Self {
        Self::new(usize::MAX)
    }
}

impl ByteBudget {
    pub(crate) fn new(limit: usize) -> Self {
        let (bytes, wanted) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self(Arc::new(Account { limit, bytes, wanted, freed: Notify::new() }))
    }

    /// These bytes, counted until nobody has them any more.
    pub(crate) fn hold(&self, bytes: Bytes) -> Bytes {
        if bytes.is_empty() {
            return bytes;
        }
        let room = self.take(bytes.len());
        Bytes::from_owner(Owner { bytes, _room: room })
    }

    /// The same for the bytes of a block.
    pub(crate) fn block(&self, mut block: Block) -> Block {
        block.bytes = self.hold(block.bytes);
        block
    }

    /// The same for the bytes of an event.
    pub(crate) fn frame(&self, mut frame: Frame) -> Frame {
        frame.block = self.block(frame.block);
        frame
    }

    pub(crate) fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn limit(&self) -> usize {
        self.0.limit
    }

    /// Whether more is held than may be.
    pub(crate) fn is_over(&self) -> bool {
        self.bytes() > self.0.limit
    }

    /// Whether more is held than may be, or so much that somebody waits for room.
    pub(crate) fn is_short(&self) -> bool {
        self.bytes().saturating_add(self.0.wanted.load(Ordering::Relaxed)) > self.0.limit
    }

    /// Whether there is room for so many bytes now.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.bytes().saturating_add(bytes) <= self.0.limit
    }

    /// Waits for room for so many bytes, and takes it until what this returns is dropped. `None` if there is none for long.
    pub(crate) async fn room(&self, bytes: usize) -> Option<Room> {
        if let Some(room) = self.try_room(bytes) {
            return Some(room);
        }
        let _wanted = Wanted::new(self, bytes);
        let waiting = async {
            loop {
                let freed = self.0.freed.notified();
                if let Some(room) = self.try_room(bytes) {
                    return room;
                }
                freed.await;
            }
        };
        timeout(WAIT, waiting).await.ok()
    }

    fn try_room(&self, bytes: usize) -> Option<Room> {
        let fits = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= self.0.limit);
        self.0.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Room { account: self.0.clone(), bytes })
    }

    fn take(&self, bytes: usize) -> Room {
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        Room { account: self.0.clone(), bytes }
    }
}

/// Bytes that are counted as held until this is dropped.
#[derive(Debug)]
pub(crate) struct Room {
    account: Arc<Account>,
    bytes: usize,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.account.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        if self.account.wanted.load(Ordering::Relaxed) > 0 {
            self.account.freed.notify_waiters();
        }
    }
}

/// Somebody waits for room.
struct Wanted<'a> {
    held: &'a ByteBudget,
    bytes: usize,
}

impl<'a> Wanted<'a> {
    fn new(held: &'a ByteBudget, bytes: usize) -> Self {
        held.0.wanted.fetch_add(bytes, Ordering::Relaxed);
        Self { held, bytes }
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        self.held.0.wanted.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Bytes with their room.
struct Owner {
    bytes: Bytes,
    _room: Room,
}

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_byte_counts_once_and_until_the_last_one_lets_go_of_it() {
        let held = ByteBudget::new(100);
        let one = held.hold(vec![b'x'; 60].into());
        let (shared, part) = (one.clone(), one.slice(10..20));
        assert_eq!(held.bytes(), 60);
        drop((one, shared));
        assert_eq!((held.bytes(), part.as_ref()), (60, &b"xxxxxxxxxx"[..]));
        drop(part);
        assert_eq!(held.bytes(), 0);
        assert!(held.hold(Bytes::new()).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_wants_room_waits_until_there_is_some_and_not_for_ever() {
        let held = ByteBudget::new(100);
        let block = held.hold(vec![b'x'; 60].into());
        assert!(held.room(50).await.is_none(), "nobody lets go of anything");
        let waiting = held.room(50);
        let freeing = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(held.is_short() && !held.is_over());
            drop(block);
        };
        let (room, ()) = tokio::join!(waiting, freeing);
        assert_eq!(held.bytes(), 50);
        drop(room);
        assert!(!held.is_short() && held.bytes() == 0);
        let more = held.hold(vec![b'x'; 101].into());
        assert!(held.is_over(), "what is heard is never refused");
        drop(more);
    }
}
