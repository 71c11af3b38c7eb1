//! One client: what EventSource keeps between connections, and an account of what it was given.

use std::time::{Duration, Instant};

use super::account::{Account, Receipt};
use super::connection::Connection;
use super::event_stream::{Field, number};
use super::ledger::Ledger;
use super::tally::Tally;

/// The type of the events that a run commits.
pub(crate) const EVENT: &str = "LOAD";
/// How long EventSource waits before it reconnects if no server has told it.
const RETRY: Duration = Duration::from_secs(3);

/// A client and where it stands.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) topic: usize,
    /// False for one that never reads.
    pub(super) reads: bool,
    pub(super) account: Account,
    /// Which address it tries next, and how many have refused it since it was last let in.
    pub(super) address: usize,
    pub(super) refusals: usize,
    pub(super) connection: Option<Connection>,
    /// The server has not answered this connection's request.
    pub(super) is_opening: bool,
    /// This connection has told its place.
    pub(super) is_placed: bool,
    /// An answer came on which EventSource gives up.
    pub(super) gave_up: bool,
    /// It was told to connect, and counts as back when it has the event of this number.
    pub(super) returns_at: Option<u32>,
    pub(super) retry: Duration,
    last_event_id: Vec<u8>,
    block: Block,
}

/// The block that is being read.
#[derive(Debug, Default)]
struct Block {
    id: Option<Vec<u8>>,
    /// A buffer to use again, so that an id costs no allocation.
    spare: Vec<u8>,
    name: Name,
    data: Data,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Name {
    #[default]
    None,
    Load,
    Reset,
    Other,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Data {
    #[default]
    None,
    Event(Stamp),
    Other,
}

/// What a payload says of its event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) number: u32,
    pub(crate) topic: usize,
    /// The payload's length.
    pub(crate) bytes: usize,
}

impl Stamp {
    /// A payload of so many bytes, or a few more where they are too few.
    pub(crate) fn payload(self) -> String {
        let Self { number, topic, bytes } = self;
        let mut text = format!("{{\"n\":{number},\"topic\":{topic},\"bytes\":{bytes},\"pad\":\"");
        while text.len() + 2 < bytes {
            text.push('x');
        }
        text.push_str("\"}");
        text
    }

    /// Reads a payload. One that is not as long as it says is none.
    pub(crate) fn read(data: &[u8]) -> Option<Self> {
        fn digits<'a>(text: &'a [u8], name: &[u8]) -> Option<(u64, &'a [u8])> {
            let text = text.strip_prefix(name)?;
            let end = text.iter().position(|byte| !byte.is_ascii_digit())?;
            Some((number(&text[..end])?, &text[end..]))
        }
        let (number, rest) = digits(data, b"{\"n\":")?;
        let (topic, rest) = digits(rest, b",\"topic\":")?;
        let (bytes, rest) = digits(rest, b",\"bytes\":")?;
        let stamp = Self {
            number: number.try_into().ok()?,
            topic: topic.try_into().ok()?,
            bytes: bytes.try_into().ok()?,
        };
        let least = data.len() - rest.len() + b",\"pad\":\"\"}".len();
        (data.len() == stamp.bytes.max(least) && rest.ends_with(b"\"}")).then_some(stamp)
    }
}

impl Client {
    pub(super) fn new(topic: usize, address: usize, reads: bool) -> Self {
        Self {
            topic,
            reads,
            account: Account::default(),
            address,
            refusals: 0,
            connection: None,
            is_opening: false,
            is_placed: false,
            gave_up: false,
            returns_at: None,
            retry: RETRY,
            last_event_id: Vec::new(),
            block: Block::default(),
        }
    }

    /// The id that a reconnect sends.
    pub(super) fn last_event_id(&self) -> &[u8] {
        &self.last_event_id
    }

    /// Forgets the connection; what it was in the middle of is void, as with EventSource.
    pub(super) fn disconnect(&mut self) -> Option<Connection> {
        let block = &mut self.block;
        *block = Block { spare: std::mem::take(&mut block.spare), ..Block::default() };
        (self.is_opening, self.is_placed) = (false, false);
        self.connection.take()
    }

    /// Takes one line of the stream.
    pub(super) fn take(&mut self, field: Field<'_>, now: Instant, ledger: &Ledger, tally: &mut Tally) {
        let block = &mut self.block;
        match field {
            Field::Id(id) => {
                let mut kept = block.id.take().unwrap_or_else(|| std::mem::take(&mut block.spare));
                kept.clear();
                kept.extend_from_slice(id);
                block.id = Some(kept);
            }
            Field::Event(name) => {
                block.name = match name {
                    _ if name == EVENT.as_bytes() => Name::Load,
                    b"reset" => Name::Reset,
                    _ => Name::Other,
                }
            }
            Field::Data(data) => {
                block.data = match (block.data, Stamp::read(data)) {
                    (Data::None, Some(stamp)) => Data::Event(stamp),
                    _ => Data::Other,
                }
            }
            Field::Retry(retry) => self.retry = retry,
            Field::Ignored => {}
            Field::End => self.end_block(now, ledger, tally),
        }
    }

    fn end_block(&mut self, now: Instant, ledger: &Ledger, tally: &mut Tally) {
        let block = &mut self.block;
        if let Some(id) = block.id.take() {
            block.spare = std::mem::replace(&mut self.last_event_id, id);
            self.is_placed = true;
        }
        let (name, data) = (std::mem::take(&mut block.name), std::mem::take(&mut block.data));
        match (name, data) {
            (_, Data::None) => {}
            (Name::Load, Data::Event(stamp)) => self.enter(stamp, now, ledger, tally),
            (Name::Reset, _) => self.account.resets += 1,
            _ => tally.invented += 1,
        }
        if self.is_placed && self.returns_at.is_some_and(|number| self.account.highest() >= number) {
            self.returns_at = None;
            tally.is_back(now);
        }
    }

    fn enter(&mut self, stamp: Stamp, now: Instant, ledger: &Ledger, tally: &mut Tally) {
        let age = ledger.age(stamp.topic, stamp.number, now).filter(|_| stamp.topic == self.topic);
        let Some(age) = age else {
            tally.invented += 1;
            return;
        };
        if self.account.enter(stamp.number) == Receipt::New {
            tally.is_delivered(now, self.returns_at.is_none().then_some(age));
        }
    }
}
