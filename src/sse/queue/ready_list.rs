//! The streams that have bytes for their sockets: one list for each thread that writes sockets. Fan-out to a
//! thousand streams costs a thousand entries here, and at most one wake-up.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Wakes the thread. Called at most once until the thread has slept again.
pub(crate) type WakeThread = Box<dyn Fn() -> io::Result<()> + Send + Sync>;

/// The tokens of the streams that a thread has to look at, in the order in which they came.
pub(crate) struct ReadyList {
    state: Mutex<State>,
    wake: WakeThread,
}

#[derive(Debug, Default)]
struct State {
    tokens: Vec<usize>,
    /// The thread looks at the tokens before it sleeps.
    is_awake: bool,
}

impl ReadyList {
    /// An empty list of a thread that sleeps until `wake` is called.
    pub(crate) fn new(wake: WakeThread) -> Self {
        Self { state: Mutex::default(), wake }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the thread look at a stream. Never waits.
    pub(crate) fn push(&self, token: usize) {
        let mut state = self.state();
        state.tokens.push(token);
        let was_awake = std::mem::replace(&mut state.is_awake, true);
        drop(state);
        if !was_awake && let Err(error) = (self.wake)() {
            // The kernel has no memory: the thread comes by at its next event.
            tracing::error!(%error, "cannot wake the thread that writes streams");
        }
    }

    /// Moves all tokens into `taken`, which is empty.
    pub(crate) fn take(&self, taken: &mut Vec<usize>) {
        let mut state = self.state();
        state.is_awake = true;
        std::mem::swap(&mut state.tokens, taken);
    }

    /// Whether the thread may sleep now, because there is no token. Then the next one wakes it.
    pub(crate) fn may_sleep(&self) -> bool {
        let mut state = self.state();
        state.is_awake = !state.tokens.is_empty();
        !state.is_awake
    }
}

impl std::fmt::Debug for ReadyList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadyList").field("state", &self.state).finish_non_exhaustive()
    }
}

/// A stream's entry to the list of the thread that writes its socket.
#[derive(Debug)]
pub(crate) struct ReadyHandle {
    pub(crate) list: Arc<ReadyList>,
    pub(crate) token: usize,
}

impl ReadyHandle {
    /// Has the thread look at the stream. Never waits.
    pub(crate) fn schedule(&self) {
        self.list.push(self.token);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_thread_that_sleeps_is_woken_once_and_one_that_is_awake_is_not() {
        let wakes = Arc::new(AtomicUsize::new(0));
        let counted = wakes.clone();
        let list = ReadyList::new(Box::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }));
        let taken = || {
            let mut taken = Vec::new();
            list.take(&mut taken);
            taken
        };
        assert!(list.may_sleep());
        (0..1000).for_each(|token| list.push(token));
        assert_eq!(wakes.load(Ordering::Relaxed), 1);
        assert_eq!(taken(), (0..1000).collect::<Vec<_>>());
        list.push(7);
        assert_eq!(wakes.load(Ordering::Relaxed), 1, "it has not slept since");
        assert!(!list.may_sleep(), "a token has come since it looked");
        assert_eq!(taken(), [7]);
        assert!(list.may_sleep());
        list.push(8);
        assert_eq!(wakes.load(Ordering::Relaxed), 2);
    }
}
