//! Hands the socket of a request over to the code that writes the body of its response.
//!
//! For as long as hyper writes a response it keeps a task, a buffer to read and a buffer to write: 16 kB
//! for a stream that may say nothing for hours. A handler that answers with a [`Takeover`] gets the socket
//! itself instead. hyper has read and checked the head of the request by then, as for any other request,
//! and the router has decided about it. So there is one parser of heads, and one way to decide.

use std::fmt;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::http::{HeaderValue, header, response};
use axum::response::Response;
use bytes::Bytes;
use chrono::Utc;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::connection_limiter::ActiveRequest;

/// The function that takes the socket.
type Take = Box<dyn FnOnce(TakenSocket) + Send>;

/// The right to the socket of a request, as an extension of its response. Dropping it without using it must
/// undo what the handler has begun: the client may be gone, or ask with HEAD.
#[derive(Clone)]
pub struct Takeover(Arc<Mutex<Option<Take>>>);

impl fmt::Debug for Takeover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Takeover").finish_non_exhaustive()
    }
}

impl Takeover {
    /// A response with status 200, whose socket `take` is given. `take` must not block.
    pub fn response(take: impl FnOnce(TakenSocket) + Send + 'static) -> Response {
        let takeover = Self(Arc::new(Mutex::new(Some(Box::new(take)))));
        // A body whose length is not known beforehand: the answer to HEAD must not promise one.
        let body =
            Body::from_stream(futures_util::stream::empty::<Result<Bytes, std::convert::Infallible>>());
        let mut response = Response::new(body);
        response.extensions_mut().insert(takeover);
        response
    }

    /// Gives the socket away.
    pub(super) fn give(&self, taken: TakenSocket) {
        let take = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(take) = take {
            take(taken);
        }
    }
}

/// The socket of a request. Nothing of the response has been sent.
#[derive(Debug)]
pub struct TakenSocket {
    /// Does not block, has no Nagle delay, and bounds how much the kernel buffers.
    pub socket: std::net::TcpStream,
    /// The head of the response. It says that the body ends with the connection.
    pub head: Bytes,
    /// To be kept until the socket is closed.
    pub lease: Lease,
}

/// Keeps a connection's place, and the server from ending, until it is dropped.
#[derive(Debug)]
pub struct Lease {
    pub(super) _asking: ActiveRequest,
    pub(super) _open: TaskTrackerToken,
}

/// The head of a response whose body ends with the connection.
///
/// Such a body needs no framing, so that all clients can share the bytes of an event. That an intermediary
/// cannot tell its end from a failure costs nothing: the clients of a stream reconnect after either, and drop
/// an event that is not whole.
pub(super) fn head_until_close(parts: &mut response::Parts) -> Bytes {
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    let reason = parts.status.canonical_reason().unwrap_or_default();
    let mut head = format!("HTTP/1.1 {} {reason}\r\n", parts.status.as_u16()).into_bytes();
    for (name, value) in &parts.headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    let mut date = String::new();
    // Writing to a String cannot fail.
    let _infallible = write!(date, "date: {}\r\n\r\n", Utc::now().format("%a, %d %b %Y %H:%M:%S GMT"));
    head.extend_from_slice(date.as_bytes());
    head.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_of_a_taken_response_says_that_its_body_ends_with_the_connection() {
        let mut parts = Response::new(()).into_parts().0;
        parts.headers.insert("content-type", HeaderValue::from_static("text/event-stream"));
        parts.headers.insert("content-length", HeaderValue::from_static("0"));
        parts.headers.append("vary", HeaderValue::from_static("origin"));
        parts.headers.append("vary", HeaderValue::from_static("accept"));
        let head = head_until_close(&mut parts);
        let head = std::str::from_utf8(&head).expect("a text");
        let lines: Vec<&str> = head.split("\r\n").collect();
        assert_eq!(lines[0], "HTTP/1.1 200 OK");
        for line in ["content-type: text/event-stream", "vary: origin", "vary: accept", "connection: close"] {
            assert!(lines.contains(&line), "{line} is not in {head}");
        }
        assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{head}");
        assert!(lines[lines.len() - 3].starts_with("date: ") && head.ends_with(" GMT\r\n\r\n"), "{head}");
    }
}
