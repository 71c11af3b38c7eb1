//! Gives a body to the answers that hyper makes by itself.
//!
//! A request's head that is too large or malformed never reaches a handler: hyper answers with a bare status.
//! This wrapper stands between hyper and the socket, recognizes such an answer by its form, and writes
//! problem details instead.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Problem;

/// The first bytes of an answer that hyper makes by itself. No handler sends an error without a body.
const BARE: &[u8] = b"HTTP/1.1 4";
const NO_BODY: &[u8] = b"\r\ncontent-length: 0\r\n";

/// A connection whose bare refusals get a body.
#[derive(Debug)]
pub(super) struct Explained<S> {
    stream: S,
    /// The bytes still to be written in place of a bare refusal.
    refusal: Vec<u8>,
    /// The largest head that is read, in bytes.
    head_bytes: usize,
}

impl<S> Explained<S> {
    pub(super) fn new(stream: S, head_bytes: usize) -> Self {
        Self { stream, refusal: Vec::new(), head_bytes }
    }

    /// The connection itself.
    pub(super) fn into_inner(self) -> S {
        self.stream
    }
}

/// The refusal to write in place of these bytes, if they are a bare refusal.
fn explained(written: &[u8], head_bytes: usize) -> Option<Vec<u8>> {
    let head = written.strip_suffix(b"\r\n\r\n").filter(|_| written.starts_with(BARE))?;
    let is_bare = written.windows(NO_BODY.len()).any(|window| window == NO_BODY);
    let status = std::str::from_utf8(head).ok().filter(|_| is_bare)?.get(9..12)?;
    let (status, detail) = match status {
        "431" => (
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            format!(
                "the head of this request has more than {head_bytes} bytes or more than 100 headers: send \
                 fewer cookies, headers or topics"
            ),
        ),
        "414" => (
            StatusCode::URI_TOO_LONG,
            format!(
                "the URL of this request is too long: the whole head of a request may have {head_bytes} bytes"
            ),
        ),
        "400" => (StatusCode::BAD_REQUEST, "the head of this request is not HTTP/1.1".to_owned()),
        _ => return None,
    };
    let body = Problem::new(status, detail).to_json();
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/problem+json\r\ncache-control: no-store\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    Some([head.into_bytes(), body].concat())
}

impl<S: AsyncWrite + Unpin> Explained<S> {
    fn poll_refuse(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.refusal.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, &self.refusal))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.refusal.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Explained<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Explained<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if bytes.starts_with(BARE)
            && let Some(refusal) = explained(bytes, self.head_bytes)
        {
            self.refusal = refusal;
            return Poll::Ready(Ok(bytes.len()));
        }
        ready!(self.poll_refuse(context))?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match slices {
            [only] if only.starts_with(BARE) => self.poll_write(context, only),
            slices => {
                ready!(self.poll_refuse(context))?;
                Pin::new(&mut self.stream).poll_write_vectored(context, slices)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_refuse(context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_refuse(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_refusal_is_explained_and_nothing_else_is_touched() {
        let bare = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\ndate: now\r\n\r\n";
        let told = String::from_utf8(explained(bare, 4711).expect("a refusal")).expect("a text");
        let (head, body) = told.split_once("\r\n\r\n").expect("a body");
        assert!(head.starts_with("HTTP/1.1 431 ") && head.contains("application/problem+json"), "{head}");
        assert!(body.contains("4711 bytes") && head.ends_with(&format!("content-length: {}", body.len())));
        for other in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..],
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\nno",
            b"data: HTTP/1.1 431\r\ncontent-length: 0\r\n\r\n",
        ] {
            assert_eq!(explained(other, 1), None, "{}", String::from_utf8_lossy(other));
        }
    }
}
