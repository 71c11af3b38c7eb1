//! Pages of histories, read once for all clients that need the same one at the same time.
//!
//! Ten thousand clients that were dropped together come back together, from the same place or nearly so. Each
//! page is read and framed for the first of them; the others wait for it and share its bytes.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::event::Topic;
use crate::redis::history::ReadError;
use crate::sse::wire::cursor::Cursor;
use crate::sse::wire::frame::Frame;

/// How long a page is handed out: long enough for clients that come together, and short enough for the newest
/// page, which soon has successors, to be read anew.
const KEPT: Duration = Duration::from_millis(250);

/// Events that follow a place, or why none are known to follow.
#[derive(Debug, Clone)]
pub(crate) enum Page {
    /// These follow without a hole; nothing may be among them.
    Follows { frames: Arc<[Frame]>, end: PageEnd },
    /// Redis has nothing from the place on: it has forgotten that, or the history has vanished or expired.
    Nothing,
    /// Redis has later events, and one before them is missing.
    Hole,
}

/// The continuation after a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PageEnd {
    /// More may follow.
    More,
    /// Nothing does: the history ends here.
    Last,
    /// Events that do not follow without a hole.
    Hole,
}

/// Why there is no page.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum FeedError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(
        "there is no memory for a page of the history: raise sse.max_held_bytes, or run more sse processes"
    )]
    NoRoom,
}

/// Which page.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) topic: Topic,
    /// The place that it follows; `None` for the first one of the history, whatever came before that.
    pub(crate) after: Option<Cursor>,
    pub(crate) count: usize,
}

/// Pages that are being read, or were read just now.
#[derive(Debug)]
pub(crate) struct Pages<K = Key, P = Page, E = FeedError>(Mutex<HashMap<K, Kept<P, E>>>);

#[derive(Debug)]
struct Kept<P, E> {
    since: Instant,
    page: Arc<OnceCell<Result<P, E>>>,
}

impl<K, P, E> Default for Pages<K, P, E> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash, P: Clone, E: Clone> Pages<K, P, E> {
    fn kept(&self) -> MutexGuard<'_, HashMap<K, Kept<P, E>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the page. Calls `read` unless another caller is reading this page or has just read it.
    ///
    /// # Errors
    /// The error of `read`. All that waited for it get the same error: a server that does not answer would
    /// otherwise let each of them wait once more. It is not handed out later.
    pub(crate) async fn get<R>(&self, key: K, read: impl FnOnce() -> R) -> Result<P, E>
    where
        R: Future<Output = Result<P, E>>,
    {
        let cell = {
            let mut kept = self.kept();
            let fresh = || Kept { since: Instant::now(), page: Arc::default() };
            let found = kept.entry(key.clone()).or_insert_with(fresh);
            if found.since.elapsed() >= KEPT {
                *found = fresh();
            }
            found.page.clone()
        };
        let read = cell.get_or_init(read).await.clone();
        if read.is_err() {
            let mut kept = self.kept();
            if kept.get(&key).is_some_and(|kept| Arc::ptr_eq(&kept.page, &cell)) {
                kept.remove(&key);
            }
        }
        read
    }

    /// Drops every page that has been read, to free its bytes.
    pub(crate) fn make_room(&self) {
        self.kept().retain(|_, kept| kept.page.get().is_none());
    }

    /// Drops the pages that are too old to be handed out.
    pub(crate) fn forget(&self) {
        self.kept().retain(|_, kept| kept.since.elapsed() < KEPT);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::event::StreamId;
    use crate::sse::wire::frame::Frame;

    fn page(frames: &[Frame]) -> Page {
        Page::Follows { frames: Arc::from(frames), end: PageEnd::Last }
    }

    fn key(seq: u64) -> Key {
        let topic = Topic::new("t").expect("a topic");
        Key { topic, after: Some(Cursor::After(StreamId::new(1, seq))), count: 16 }
    }

    #[tokio::test(start_paused = true)]
    async fn clients_that_come_together_share_one_read_and_later_ones_read_anew() {
        let (pages, reads) = (Pages::default(), AtomicUsize::new(0));
        let read = || async {
            reads.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok::<Page, FeedError>(page(&[Frame::empty(StreamId::new(1, 1))]))
        };
        let all = (0..1000).map(|_| pages.get(key(1), read));
        for page in futures_util::future::join_all(all).await {
            assert!(matches!(page, Ok(Page::Follows { frames, .. }) if frames.len() == 1));
        }
        assert_eq!(reads.load(Ordering::Relaxed), 1);
        pages.get(key(2), read).await.expect("another page");
        assert_eq!(reads.load(Ordering::Relaxed), 2);
        tokio::time::sleep(KEPT).await;
        pages.get(key(1), read).await.expect("the page as it is now");
        assert_eq!(reads.load(Ordering::Relaxed), 3);
        tokio::time::sleep(KEPT).await;
        pages.forget();
        assert!(pages.kept().is_empty());
    }

    #[tokio::test]
    async fn a_read_that_fails_fails_once_for_all_that_wait_and_for_nobody_who_comes_later() {
        let (pages, reads) = (Pages::default(), AtomicUsize::new(0));
        let fail = || async {
            reads.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            Err(ReadError::Server("no answer".to_owned()).into())
        };
        let all = (0..1000).map(|_| pages.get(key(1), fail));
        assert!(futures_util::future::join_all(all).await.iter().all(Result::is_err));
        assert_eq!(reads.load(Ordering::Relaxed), 1);
        let read = pages.get(key(1), || async { Ok::<Page, FeedError>(Page::Nothing) }).await;
        assert!(matches!(read, Ok(Page::Nothing)));
    }
}
