//! One stream and its socket.

use std::any::Any;
use std::fmt;
use std::io::{ErrorKind, Read};
use std::net::Shutdown;
use std::sync::Arc;

use mio::event::Event;
use mio::net::TcpStream;

use crate::http::Lease;
use crate::sse::queue::send_queue::{Rest, SendQueue, Written};

/// Bytes that a client may send after the head of its request. They are dropped; a client that sends more is
/// cut off.
const RECEIVED_MAX: usize = 64 * 1024;

/// A stream that has been opened, and its guard. Dropping it closes its queue and drops the guard.
pub(crate) struct OpenedStream {
    pub(super) queue: Arc<SendQueue>,
    /// Held for as long as the stream lives.
    _guard: Arc<dyn Any + Send + Sync>,
}

impl OpenedStream {
    pub(crate) fn new(queue: Arc<SendQueue>, guard: Arc<dyn Any + Send + Sync>) -> Self {
        Self { queue, _guard: guard }
    }
}

impl fmt::Debug for OpenedStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenedStream").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl Drop for OpenedStream {
    fn drop(&mut self) {
        // The tasks that feed this stream stop, and drop their guards too.
        self.queue.detach();
    }
}

/// The next action for a connection after it has been looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// Wait for the kernel or the queue.
    Wait,
    /// Look at it again after the others.
    Again,
    /// Close it.
    Close,
}

/// A stream with its socket.
pub(super) struct Connection {
    pub(super) socket: TcpStream,
    pub(super) stream: OpenedStream,
    /// Bytes that the client has sent after the head of its request.
    received: usize,
    /// Dropped after the stream: the server ends when all of these are gone.
    _lease: Lease,
}

impl Connection {
    pub(super) fn new(socket: TcpStream, stream: OpenedStream, lease: Lease) -> Self {
        Self { socket, stream, received: 0, _lease: lease }
    }

    /// Looks at the socket after the kernel has reported something.
    pub(super) fn on_event(&mut self, event: &Event, scratch: &mut [u8]) -> Then {
        // A client that has closed its side of the connection is gone: no client closes only one side.
        if event.is_error() || event.is_read_closed() || event.is_write_closed() {
            return Then::Close;
        }
        if event.is_readable() && !self.drop_received(scratch) {
            return Then::Close;
        }
        if event.is_writable() { self.write() } else { Then::Wait }
    }

    /// Writes the bytes that wait.
    pub(super) fn write(&mut self) -> Then {
        match self.stream.queue.write_to(&mut self.socket) {
            Written::Open(Rest::More) => Then::Again,
            Written::Open(Rest::Nothing | Rest::Blocked) => Then::Wait,
            Written::Ended => {
                // The end of the body is the end of this direction.
                if let Err(error) = self.socket.shutdown(Shutdown::Write) {
                    tracing::trace!(%error, "a client was gone before its stream ended");
                }
                Then::Close
            }
            Written::Broken => Then::Close,
        }
    }

    /// Reads and drops the bytes that the client sends. Returns false if it is gone, or sends too much.
    fn drop_received(&mut self, scratch: &mut [u8]) -> bool {
        while self.received <= RECEIVED_MAX {
            match self.socket.read(scratch) {
                Ok(0) => return false,
                Ok(read) => self.received += read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_gone) => return false,
            }
        }
        false
    }
}
