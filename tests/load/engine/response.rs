//! Reads one HTTP/1.1 response as its bytes arrive: the head, then a body that is chunked, of a given length,
//! or as long as the connection. Body bytes are handed on where they lie.

/// What is wrong with a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

/// Bytes that a head may have.
const HEAD_MAX: usize = 16 * 1024;

/// The reading end of one response.
#[derive(Debug, Default)]
pub(crate) struct Response {
    state: State,
    status: Option<u16>,
}

#[derive(Debug)]
enum State {
    /// What has arrived of the head.
    Head(Vec<u8>),
    Chunk(Chunk),
    /// So many bytes are left.
    Length(u64),
    UntilClose,
    Ended,
}

/// Where in a chunked body the next byte stands.
#[derive(Debug, Clone, Copy)]
enum Chunk {
    /// In a chunk's size; its digits so far.
    Size(u64),
    /// In what may follow a size on its line.
    Extension(u64),
    /// In a chunk; so many bytes are left.
    Data(u64),
    /// In the line break after a chunk.
    Break,
    /// Behind the last chunk, in a line with so many bytes.
    Trailer(usize),
}

impl Default for State {
    fn default() -> Self {
        Self::Head(Vec::new())
    }
}

impl Response {
    /// The status, once the head is complete.
    pub(crate) fn status(&self) -> Option<u16> {
        self.status
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// Whether the end of the connection is the end of the body.
    pub(crate) fn ends_with_connection(&self) -> bool {
        matches!(self.state, State::UntilClose)
    }

    /// Takes what arrived and hands on what is body.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], mut body: impl FnMut(&[u8])) -> Result<(), Malformed> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Head(head) => {
                    let known = head.len();
                    head.extend_from_slice(bytes);
                    let from = known.saturating_sub(3);
                    let Some(end) = head[from..].windows(4).position(|four| four == b"\r\n\r\n") else {
                        return if known > HEAD_MAX { Err(Malformed("its head has no end")) } else { Ok(()) };
                    };
                    let end = from + end + 4;
                    bytes = &bytes[end - known..];
                    let head = std::mem::take(head);
                    (self.status, self.state) = read_head(&head[..end])?;
                }
                State::Chunk(chunk) => match chunk.feed(&mut bytes, &mut body)? {
                    Some(next) => *chunk = next,
                    None => self.state = State::Ended,
                },
                State::Length(left) => {
                    let taken = take(&mut bytes, *left);
                    body(taken);
                    *left -= taken.len() as u64;
                    if *left == 0 {
                        self.state = State::Ended;
                    }
                }
                State::UntilClose => body(std::mem::take(&mut bytes)),
                State::Ended => return Err(Malformed("bytes follow its end")),
            }
        }
        Ok(())
    }
}

impl Chunk {
    /// Takes what belongs together; `None` at the body's end.
    fn feed(self, bytes: &mut &[u8], body: &mut impl FnMut(&[u8])) -> Result<Option<Self>, Malformed> {
        if let Self::Data(left) = self {
            let taken = take(bytes, left);
            body(taken);
            let left = left - taken.len() as u64;
            return Ok(Some(if left == 0 { Self::Break } else { Self::Data(left) }));
        }
        let Some((byte, rest)) = bytes.split_first() else { return Ok(Some(self)) };
        *bytes = rest;
        Ok(match (self, *byte) {
            (Self::Size(0) | Self::Extension(0), b'\n') => Some(Self::Trailer(0)),
            (Self::Size(size) | Self::Extension(size), b'\n') => Some(Self::Data(size)),
            (Self::Size(size), b'\r' | b';') | (Self::Extension(size), _) => Some(Self::Extension(size)),
            (Self::Size(size), digit) => {
                let digit = char::from(digit).to_digit(16).ok_or(Malformed("a chunk's size is no number"))?;
                let size = size.checked_mul(16).ok_or(Malformed("a chunk's size is too large"))?;
                Some(Self::Size(size + u64::from(digit)))
            }
            (Self::Break, b'\r') => Some(Self::Break),
            (Self::Break, b'\n') => Some(Self::Size(0)),
            (Self::Break, _) => return Err(Malformed("a chunk is longer than its size")),
            (Self::Trailer(0), b'\n') => None,
            (Self::Trailer(_), b'\n') => Some(Self::Trailer(0)),
            (Self::Trailer(length), b'\r') => Some(Self::Trailer(length)),
            (Self::Trailer(length), _) => Some(Self::Trailer(length + 1)),
            (Self::Data(_), _) => Some(self), // Handled above.
        })
    }
}

/// At most so many bytes from the front.
fn take<'a>(bytes: &mut &'a [u8], most: u64) -> &'a [u8] {
    let most = usize::try_from(most).unwrap_or(usize::MAX).min(bytes.len());
    let (taken, rest) = bytes.split_at(most);
    *bytes = rest;
    taken
}

fn read_head(head: &[u8]) -> Result<(Option<u16>, State), Malformed> {
    let text = std::str::from_utf8(head).map_err(|_| Malformed("its head is not text"))?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
    let status = status.ok_or(Malformed("it does not begin with a status"))?;
    let mut state = State::UntilClose;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        if name.eq_ignore_ascii_case("transfer-encoding") && value.eq_ignore_ascii_case("chunked") {
            state = State::Chunk(Chunk::Size(0));
        } else if name.eq_ignore_ascii_case("content-length") {
            let length = value.parse().map_err(|_| Malformed("its length is no number"))?;
            state = if length == 0 { State::Ended } else { State::Length(length) };
        }
    }
    Ok((Some(status), state))
}
