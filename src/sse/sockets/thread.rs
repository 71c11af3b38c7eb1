//! A thread that writes streams.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use mio::{Events, Interest, Poll, Token, Waker};
use socket2::SockRef;

use super::stream::{Connection, OpenedStream, Then};
use crate::http::TakenSocket;
use crate::sse::queue::ready_list::{ReadyHandle, ReadyList};

/// The token of the thread itself: it has been woken, there are sockets to be taken, or its end has come.
const SELF: usize = usize::MAX;

/// Events that the kernel reports at once.
const EVENTS: usize = 1024;

/// Bytes from a client that are read, and dropped, at once.
const SCRATCH: usize = 16 * 1024;

/// The handle of a thread. The thread ends when it is dropped and every stream is over.
#[derive(Debug)]
pub(super) struct Thread {
    list: Arc<ReadyList>,
    arrivals: Arc<Mutex<Vec<(TakenSocket, OpenedStream)>>>,
    /// Dropped to end the thread.
    is_wanted: Option<Arc<()>>,
}

impl Thread {
    /// Starts the thread with this number.
    ///
    /// # Errors
    /// The kernel's own, where there is no room for a thread or its files.
    pub(super) fn start(number: usize) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), Token(SELF))?;
        let list = Arc::new(ReadyList::new(Box::new(move || waker.wake())));
        let (arrivals, is_wanted) = (Arc::default(), Arc::new(()));
        let work = Work {
            poll,
            list: list.clone(),
            arrivals: Arc::clone(&arrivals),
            is_wanted: Arc::downgrade(&is_wanted),
            connections: Vec::new(),
            free: Vec::new(),
            open: 0,
            scratch: vec![0; SCRATCH],
        };
        std::thread::Builder::new().name(format!("sse-sockets-{number}")).spawn(move || work.run())?;
        Ok(Self { list, arrivals, is_wanted: Some(is_wanted) })
    }

    /// Takes a stream's socket.
    pub(super) fn take(&self, taken: TakenSocket, stream: OpenedStream) {
        lock(&self.arrivals).push((taken, stream));
        self.list.push(SELF);
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.is_wanted = None;
        self.list.push(SELF);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has the kernel hold as little as it can for a client that wants the newest events: an event that the
/// kernel holds cannot be replaced by a newer one any more. This process cannot know which bytes the client's
/// own kernel holds.
fn hold_little(socket: SockRef<'_>) -> io::Result<()> {
    // Each kernel has a least size above this; Linux: 4.5 KiB.
    socket.set_send_buffer_size(1)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_notsent_lowat(1)?;
    Ok(())
}

/// The state of a running thread.
struct Work {
    poll: Poll,
    list: Arc<ReadyList>,
    arrivals: Arc<Mutex<Vec<(TakenSocket, OpenedStream)>>>,
    is_wanted: Weak<()>,
    /// By token.
    connections: Vec<Option<Connection>>,
    /// Tokens that are free.
    free: Vec<usize>,
    open: usize,
    scratch: Vec<u8>,
}

impl Work {
    fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS);
        // Streams to look at now, and those to look at again after others had their turn.
        let (mut ready, mut again) = (Vec::new(), Vec::new());
        while self.open > 0 || self.is_wanted.strong_count() > 0 {
            let may_sleep = again.is_empty() && self.list.may_sleep();
            let timeout = if may_sleep { None } else { Some(Duration::ZERO) };
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // The epoll itself is broken: no stream would ever be written again.
                Err(error) => panic!("cannot wait for the sockets of streams: {error}"),
            }
            for event in events.iter().filter(|event| event.token() != Token(SELF)) {
                let scratch = &mut self.scratch;
                let looked_at = self.connections.get_mut(event.token().0).and_then(Option::as_mut);
                if let Some(then) = looked_at.map(|connection| connection.on_event(event, scratch)) {
                    self.then(event.token().0, then, &mut again);
                }
            }
            self.list.take(&mut ready);
            ready.append(&mut again);
            for token in ready.drain(..) {
                if token == SELF {
                    self.take_arrivals();
                } else if let Some(connection) = self.connections.get_mut(token).and_then(Option::as_mut) {
                    let then = connection.write();
                    self.then(token, then, &mut again);
                }
            }
        }
    }

    fn then(&mut self, token: usize, then: Then, again: &mut Vec<usize>) {
        match then {
            Then::Wait => {}
            Then::Again => again.push(token),
            Then::Close => {
                self.connections[token] = None;
                self.free.push(token);
                self.open -= 1;
            }
        }
    }

    fn take_arrivals(&mut self) {
        let arrivals = std::mem::take(&mut *lock(&self.arrivals));
        for (taken, stream) in arrivals {
            if let Err(error) = self.take(taken, stream) {
                // Its client comes back.
                tracing::warn!(%error, "a stream ended before it began");
            }
        }
    }

    fn take(&mut self, taken: TakenSocket, stream: OpenedStream) -> io::Result<()> {
        let TakenSocket { socket, head, lease } = taken;
        let mut socket = mio::net::TcpStream::from_std(socket);
        let token = self.free.pop().unwrap_or(self.connections.len());
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(&mut socket, Token(token), interest) {
            self.free.extend((token < self.connections.len()).then_some(token));
            return Err(error);
        }
        if token == self.connections.len() {
            self.connections.push(None);
        }
        let queue = stream.queue.clone();
        if queue.keeps_newest() {
            hold_little(SockRef::from(&socket))?;
        }
        self.connections[token] = Some(Connection::new(socket, stream, lease));
        self.open += 1;
        queue.attach(ReadyHandle { list: self.list.clone(), token }, head);
        Ok(())
    }
}
