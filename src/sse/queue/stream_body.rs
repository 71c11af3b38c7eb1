//! The body of a stream's response: it hands the blocks of a send queue to the HTTP connection.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame};

use super::send_queue::SendQueue;

/// The body of a stream's response. Dropping it closes the queue and drops the guard.
pub(crate) struct StreamBody<G> {
    queue: Arc<SendQueue>,
    /// Held for as long as the stream lives.
    _guard: G,
}

impl<G> StreamBody<G> {
    pub(crate) fn new(queue: Arc<SendQueue>, guard: G) -> Self {
        Self { queue, _guard: guard }
    }
}

impl<G> Drop for StreamBody<G> {
    fn drop(&mut self) {
        // The tasks that feed this stream stop, and drop their guards too.
        self.queue.close();
    }
}

impl<G: Unpin> Body for StreamBody<G> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.queue.poll_take(context).map(|taken| taken.map(|bytes| Ok(Frame::data(bytes))))
    }
}
