//! The bytes of an event: framed once, shared by all connections. The format is WHATWG HTML 9.2.6.

use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;

use super::cursor::Cursor;
use super::naming::Naming;
use super::refusal::Refusal;
use super::text;
use crate::event::{EventType, StreamId, Topic};

/// A comment, so that proxies and clients do not take a quiet stream for a dead one.
pub(crate) const HEARTBEAT: Bytes = Bytes::from_static(b":\n\n");

/// One block of a stream's text, made once and shared by all connections that get it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Block {
    /// The whole text, as the stream of one topic has it.
    pub(crate) bytes: Bytes,
    /// The place to which it moves a client; then the text begins with it.
    place: Option<Cursor>,
    /// Length of the `id:` line.
    id_line: usize,
    /// Length of the `event:` line after it, where that names an event of the topic.
    name_line: usize,
    /// The transaction of the event, if it is known.
    xid: Option<u64>,
    /// The hash of the event's type.
    type_hash: Option<u64>,
    /// The text as `?data=text` has it, once a client asked for it; only for a payload that is a JSON string.
    text: Option<Arc<OnceLock<Option<Bytes>>>>,
    /// Why it tells the client to fetch its state anew, if it does.
    reset: Option<ResetReason>,
}

impl Block {
    fn with_place(place: Cursor, rest: std::fmt::Arguments<'_>) -> Self {
        let mut text = format!("id: {place}\n");
        let id_line = text.len();
        // Writing to a String cannot fail.
        let _infallible = text.write_fmt(rest);
        Self { bytes: text.into(), place: Some(place), id_line, ..Self::default() }
    }

    pub(crate) fn cursor(&self) -> Option<Cursor> {
        self.place
    }

    #[cfg(test)]
    pub(crate) fn set_place(&mut self, place: Cursor) {
        self.place = Some(place);
    }

    /// Whether it is an event of the topic, and not one of the server.
    pub(crate) fn is_event(&self) -> bool {
        self.name_line > 0
    }

    /// Why it tells the client to fetch its state anew, if it does.
    pub(crate) fn reset(&self) -> Option<ResetReason> {
        self.reset
    }

    /// The block as text, whose bytes `hold` counts. Clients share it.
    pub(crate) fn as_text(&self, hold: impl FnOnce(Bytes) -> Bytes) -> Self {
        let make = || text::text_of(&self.bytes, self.id_line + self.name_line).map(hold);
        match self.text.as_ref().and_then(|text| text.get_or_init(make).clone()) {
            Some(bytes) => Self { bytes, ..self.clone() },
            None => self.clone(),
        }
    }

    /// The hash of the type of an event.
    pub(crate) fn type_hash(&self) -> Option<u64> {
        self.type_hash
    }

    /// The transaction of the event, if it is known.
    pub(crate) fn xid(&self) -> Option<u64> {
        self.xid
    }

    /// The text without its id.
    pub(crate) fn without_id(&self) -> Bytes {
        self.bytes.slice(self.id_line..)
    }

    /// The text without its id and its event's name.
    pub(crate) fn without_name(&self) -> Bytes {
        self.bytes.slice(self.id_line + self.name_line..)
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// An event of a topic with its place.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) id: StreamId,
    /// Empty for an entry of the history that holds no event.
    pub(crate) block: Block,
}

impl Frame {
    /// Frames an event. Its payload is JSON, in which line breaks stand between tokens only, so they become
    /// spaces. White space around it is left out: an envelope does not keep it, and an event must look the
    /// same from the history.
    pub(crate) fn of_event(id: StreamId, event_type: &EventType, payload: &str, naming: Naming) -> Self {
        let name = match naming {
            Naming::OfType => event_type.as_str(),
            Naming::Fixed(name) => name,
        };
        let mut text = String::with_capacity(payload.len() + name.len() + 48);
        // Writing to a String cannot fail.
        let _infallible = writeln!(text, "id: {id}");
        let id_line = text.len();
        let _infallible = writeln!(text, "event: {name}");
        let name_line = text.len() - id_line;
        text.push_str("data: ");
        let payload = payload.trim_matches([' ', '\t', '\r', '\n']);
        push_one_line(&mut text, payload);
        text.push_str("\n\n");
        let block = Block {
            bytes: text.into(),
            place: Some(Cursor::After(id)),
            id_line,
            name_line,
            type_hash: Some(hash_of(event_type)),
            text: payload.starts_with('"').then(Arc::default),
            ..Block::default()
        };
        Self { id, block }
    }

    /// The frame with the event's transaction.
    #[must_use]
    pub(crate) fn with_xid(mut self, xid: Option<u64>) -> Self {
        self.block.xid = xid;
        self
    }

    /// An entry of the history that holds no event for clients.
    pub(crate) fn empty(id: StreamId) -> Self {
        Self { id, block: Block { place: Some(Cursor::After(id)), ..Block::default() } }
    }
}

fn hash_of(event_type: &EventType) -> u64 {
    let mut hasher = DefaultHasher::new();
    event_type.as_str().hash(&mut hasher);
    hasher.finish()
}

fn push_one_line(text: &mut String, json: &str) {
    if json.contains(['\r', '\n']) {
        text.extend(json.chars().map(|c| if matches!(c, '\r' | '\n') { ' ' } else { c }));
    } else {
        text.push_str(json);
    }
}

/// Frames a message of another program: without an id, named by its `type` where it is JSON with a valid one.
pub(crate) fn foreign(message: &str) -> Block {
    #[derive(serde::Deserialize)]
    struct Typed {
        r#type: EventType,
    }
    let name = match serde_json::from_str::<Typed>(message) {
        Ok(typed) => typed.r#type.as_str().to_owned(),
        Err(_) => "message".to_owned(),
    };
    let mut text = String::with_capacity(message.len() + name.len() + 24);
    let _infallible = writeln!(text, "event: {name}");
    let name_line = text.len();
    if serde_json::from_str::<serde::de::IgnoredAny>(message).is_ok() {
        text.push_str("data: ");
        push_one_line(&mut text, message);
        text.push('\n');
    } else {
        // Not JSON: each line break begins a `data:` line. CR LF is one line break.
        for line in message.replace("\r\n", "\n").split(['\r', '\n']) {
            let _infallible = writeln!(text, "data: {line}");
        }
    }
    text.push('\n');
    Block { bytes: text.into(), name_line, ..Block::default() }
}

/// A block with an id only: moves the client's cursor and fires no event.
pub(crate) fn cursor(cursor: Cursor) -> Block {
    Block::with_place(cursor, format_args!("\n"))
}

/// The time that the client is to wait before it reconnects.
pub(crate) fn retry(wait: Duration) -> Bytes {
    format!("retry: {}\n\n", wait.as_millis()).into()
}

/// Why a client has to fetch its state anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ResetReason {
    /// The `Last-Event-ID` is not one.
    BadId,
    /// The resume token is none, or one of another log.
    BadToken,
    /// The id is past the end of the topic's history, also in a later epoch, and stayed so through a repair.
    UnknownId,
    /// The history no longer reaches back to the id.
    HistoryGone,
    /// Events went missing between Redis and this server, and the history cannot fill the hole.
    Gap,
    /// The stream was opened while Redis could not be reached; events since then may be missing.
    JoinedLate,
    /// The log went back and got a new epoch: events that the client has of the old epoch may not have
    /// happened.
    Rebased,
}

impl ResetReason {
    pub(crate) const ALL: [Self; 7] = [
        Self::BadId,
        Self::BadToken,
        Self::UnknownId,
        Self::HistoryGone,
        Self::Gap,
        Self::JoinedLate,
        Self::Rebased,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::BadId => "bad_id",
            Self::BadToken => "bad_token",
            Self::UnknownId => "unknown_id",
            Self::HistoryGone => "history_gone",
            Self::Gap => "gap",
            Self::JoinedLate => "joined_late",
            Self::Rebased => "rebased",
        }
    }
}

/// Tells a client that contiguity cannot be proven: fetch the state, events go on after `from`.
pub(crate) fn reset(reason: ResetReason, topic: &Topic, from: Cursor) -> Block {
    let text = reason.as_str();
    let block = Block::with_place(
        from,
        format_args!(
            "event: reset\ndata: {{\"reason\":\"{text}\",\"topic\":\"{topic}\",\"id\":\"{from}\"}}\n\n"
        ),
    );
    Block { reset: Some(reason), ..block }
}

/// The reset for a client at `place` before an event of another epoch. The event follows without a hole, but
/// Postgres may have lost events that the client was given before.
pub(crate) fn rebased(place: Option<StreamId>, next: StreamId, topic: &Topic) -> Option<Block> {
    place
        .filter(|place| place.epoch != next.epoch)
        .map(|place| reset(ResetReason::Rebased, topic, Cursor::After(place)))
}

/// Tells a client why it gets no stream now, and after how many milliseconds EventSource reconnects by
/// itself.
pub(crate) fn refused(refusal: Refusal, wait: Duration) -> Bytes {
    let (reason, wait) = (refusal.as_str(), wait.as_millis());
    format!("event: refused\ndata: {{\"reason\":\"{reason}\",\"retryMs\":{wait}}}\n\n").into()
}

/// Tells a client that Redis does not let this server read a topic now. The stream stays open.
pub(crate) fn topic_refused(topic: &Topic) -> Bytes {
    format!("event: refused\ndata: {{\"reason\":\"topic_refused\",\"topic\":\"{topic}\"}}\n\n").into()
}

/// Tells a client that its token has expired, right before the stream ends.
pub(crate) fn token_expired() -> Bytes {
    Bytes::from_static(b"event: token_expired\ndata: {\"reason\":\"token_expired\"}\n\n")
}

/// Tells a client that an operator has revoked its token or ticket, right before the stream ends. A browser
/// that asks again waits this long: a token of the same second would be refused too.
pub(crate) fn revoked() -> Bytes {
    Bytes::from_static(b"retry: 2000\nevent: revoked\ndata: {\"reason\":\"revoked\"}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(block: &Block) -> &str {
        std::str::from_utf8(&block.bytes).expect("UTF-8")
    }

    fn event(payload: &str, naming: Naming) -> Frame {
        Frame::of_event(StreamId::new(1, 42), &EventType::new("T").expect("a type"), payload, naming)
    }

    #[test]
    fn an_event_has_its_id_its_name_and_its_json_on_one_line() {
        assert_eq!(
            text(&event("{\"a\":1}", Naming::OfType).block),
            "id: 1-42\nevent: T\ndata: {\"a\":1}\n\n"
        );
        assert_eq!(
            text(&event("[1,\r\n2,\n3,\r4]", Naming::Fixed("notification")).block),
            "id: 1-42\nevent: notification\ndata: [1,  2, 3, 4]\n\n"
        );
    }

    #[test]
    fn a_foreign_message_is_named_by_its_valid_type_and_has_no_id() {
        assert_eq!(
            text(&foreign("{\"type\":\"PING\",\n\"n\":1}")),
            "event: PING\ndata: {\"type\":\"PING\", \"n\":1}\n\n"
        );
        for nameless in ["{\"type\":\"not valid\"}", "{\"type\":7}", "{}", "[1]", "\"x\""] {
            assert_eq!(text(&foreign(nameless)), format!("event: message\ndata: {nameless}\n\n"));
        }
    }

    #[test]
    fn a_foreign_message_cannot_smuggle_fields_into_the_stream() {
        assert_eq!(
            text(&foreign("a\nid: 9-9\r\revent: x\r\nb")),
            "event: message\ndata: a\ndata: id: 9-9\ndata: \ndata: event: x\ndata: b\n\n"
        );
        assert_eq!(text(&foreign("")), "event: message\ndata: \n\n");
        assert_eq!(
            text(&foreign("{\"type\":\"X\\nid: 1\"}")),
            "event: message\ndata: {\"type\":\"X\\nid: 1\"}\n\n"
        );
    }

    #[test]
    fn a_reset_says_why_and_where_to_go_on() {
        let topic = Topic::new("t:1").expect("a topic");
        assert_eq!(
            text(&reset(ResetReason::HistoryGone, &topic, Cursor::After(StreamId::new(1, 7)))),
            "id: 1-7\nevent: reset\ndata: {\"reason\":\"history_gone\",\"topic\":\"t:1\",\"id\":\"1-7\"}\n\n"
        );
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod fuzzed;
