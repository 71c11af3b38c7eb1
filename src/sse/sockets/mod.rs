//! The sockets of the streams, and the few threads that write them.
//!
//! A thread has one epoll, and for each stream a socket, a queue, and nothing more: no task, no timer, no
//! buffer. Fan-out puts a frame into the queues and their entries into the thread's list; the thread goes
//! through the list and gives each socket everything that waits for it, in one call. So frames that come
//! while the thread is busy go out together.
//!
//! The boundary: a socket comes in by [`Sockets::take`], with the head of its response and what must be kept
//! until it is closed. From then on only its queue is used. The end of the queue ends the stream; a client
//! that is gone closes the queue, and releases what was kept.

mod stream;
mod thread;

use std::io;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) use stream::OpenedStream;
use thread::Thread;

use crate::http::TakenSocket;

/// The threads of a process. Cheap to clone. They end when the last clone is dropped and every stream is over.
#[derive(Debug, Clone)]
pub(crate) struct Sockets {
    threads: Arc<[Thread]>,
    next: Arc<AtomicUsize>,
}

impl Sockets {
    /// Starts a thread for every two processors. The other processors are for the work before the writing,
    /// and for the kernel's work after it: with a thread on each processor, clients on the same machine read
    /// later.
    ///
    /// # Errors
    /// The kernel's own, where there is no room for a thread or its files.
    pub(crate) fn start() -> io::Result<Self> {
        let count = std::thread::available_parallelism().map_or(1, NonZero::get).div_ceil(2);
        let threads = (0..count).map(Thread::start).collect::<io::Result<Vec<Thread>>>()?;
        Ok(Self { threads: threads.into(), next: Arc::default() })
    }

    /// Gives a stream's socket to one of the threads.
    pub(crate) fn take(&self, taken: TakenSocket, stream: OpenedStream) {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        self.threads[turn % self.threads.len()].take(taken, stream);
    }
}
