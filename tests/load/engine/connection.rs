//! One connection: a socket that never blocks, the request that goes out on it and the stream that comes in.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use mio::net::TcpStream;
use socket2::{Domain, Socket, Type};

use super::event_stream::{EventStream, Field, LineTooLong};
use super::response::{Malformed, Response};

/// What the kernel holds for a client that never reads: little, so that the server notices soon. Others have
/// the kernel's own measure: with a window smaller than a segment of the loopback device, the sender waits
/// for a timer again and again.
const RECEIVE_BUFFER_OF_STUCK: usize = 16 * 1024;

/// An open connection, or one that is being opened.
#[derive(Debug)]
pub(super) struct Connection {
    socket: TcpStream,
    /// What has not been sent of the request.
    unsent: Vec<u8>,
    response: Response,
    stream: EventStream,
}

/// Why a connection is no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Nobody listens there.
    Refused,
    /// The server ended the response, as it should.
    Over,
    /// It broke.
    Lost,
    /// An answer on which EventSource gives up for ever.
    Status(u16),
    Malformed(&'static str),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::ConnectionRefused { Self::Refused } else { Self::Lost }
    }
}

impl Connection {
    /// Begins to connect, from an address of this machine where one is given.
    pub(super) fn begin(
        to: SocketAddr,
        from: Option<IpAddr>,
        request: Vec<u8>,
        reads: bool,
    ) -> Result<Self, End> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        if !reads {
            socket.set_recv_buffer_size(RECEIVE_BUFFER_OF_STUCK)?;
        }
        if let Some(from) = from {
            socket.bind(&SocketAddr::new(from, 0).into())?;
        }
        match socket.connect(&to.into()) {
            // In progress, by one of its names.
            Err(error)
                if error.kind() != io::ErrorKind::WouldBlock
                    && error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) =>
            {
                return Err(error.into());
            }
            _ => {}
        }
        let socket = TcpStream::from_std(socket.into());
        Ok(Self { socket, unsent: request, response: Response::default(), stream: EventStream::default() })
    }

    pub(super) fn socket(&mut self) -> &mut TcpStream {
        &mut self.socket
    }

    /// Whether the server has said yes.
    pub(super) fn is_open(&self) -> bool {
        self.response.status().is_some()
    }

    /// Sends what is left of the request, as far as it goes.
    pub(super) fn send(&mut self) -> Result<(), End> {
        while !self.unsent.is_empty() {
            match self.socket.write(&self.unsent) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Not connected is what a socket says that is still connecting.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected) =>
                {
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.unsent = Vec::new();
        Ok(())
    }

    /// Reads all that has arrived. `take` gets each line of the stream and the time at which it was read.
    ///
    /// `is_closing` says that the server has closed its side, so that the end is looked for too.
    pub(super) fn read(
        &mut self,
        buffer: &mut [u8],
        is_closing: bool,
        mut take: impl FnMut(Field<'_>, Instant),
    ) -> Result<(), End> {
        loop {
            let length = match self.socket.read(buffer) {
                // A body that ends with the connection ends here.
                Ok(0) if self.response.ends_with_connection() => return Err(End::Over),
                Ok(0) => return Err(End::Lost),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            let now = Instant::now();
            let mut lines = Ok(());
            let stream = &mut self.stream;
            let read = self.response.feed(&buffer[..length], |body| {
                lines = lines.and(stream.feed(body, |field| take(field, now)));
            });
            read.map_err(|Malformed(why)| End::Malformed(why))?;
            lines.map_err(|LineTooLong| End::Malformed("a line is too long"))?;
            match self.response.status() {
                Some(status) if status != 200 => return Err(End::Status(status)),
                _ if self.response.has_ended() => return Err(End::Over),
                // Less than there was room for: the kernel has no more, and tells when it does.
                _ if length < buffer.len() && !is_closing => return Ok(()),
                _ => {}
            }
        }
    }
}
