//! The value that travels: an event, its topic, its type and its place in the order.
//!
//! Owns the rules for topics, types and payloads. Must do no I/O and know nothing of Postgres, Redis, HTTP or
//! any application.

#[cfg(feature = "server")]
mod resume_token;
mod trace_parent;

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

#[cfg(feature = "server")]
pub use resume_token::{NotAResumeToken, ResumeToken, Seen};
pub use trace_parent::{NotATraceParent, TRACE_PARENT, TraceParent};

/// The longest topic, in characters.
pub const TOPIC_LEN_MAX: usize = 200;
/// The longest event type, in characters.
pub const TYPE_LEN_MAX: usize = 100;
/// The largest payload that `append` takes, in bytes of JSON text (1 MiB).
///
/// The schema's functions have the same limit (`outbox.is_event`), so that rows appended by plain SQL obey it
/// too.
pub const PAYLOAD_BYTES_MAX: usize = 1024 * 1024;

/// The largest headers that `append` takes, in bytes of JSON text (16 KiB).
pub const HEADERS_BYTES_MAX: usize = 16 * 1024;
/// Event types that `append` refuses, because the SSE server sends them itself or EventSource fires them on
/// its own.
pub const RESERVED_TYPES: [&str; 7] =
    ["reset", "refused", "token_expired", "revoked", "skipped", "error", "open"];

/// Why a value is not an event. Nothing has been written when one of these is returned.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// The topic is empty, too long, or holds a character outside `A-Z a-z 0-9 : . _ -`.
    #[error(
        "'{}' is not a topic: use 1 to 200 characters of A-Z a-z 0-9 : . _ - (and neither . nor ..)",
        shorten(.0)
    )]
    Topic(String),
    /// The type is empty, too long, or holds a character outside `A-Z a-z 0-9 . _ -`.
    #[error("'{}' is not an event type: use 1 to 100 characters of A-Z a-z 0-9 . _ -", shorten(.0))]
    Type(String),
    /// The type is one of [`RESERVED_TYPES`].
    #[error(
        "'{name}' is not an event type: the server and the browser use {} themselves",
        RESERVED_TYPES.join(", ")
    )]
    ReservedType {
        /// The name.
        name: String,
    },
    /// The payload is longer than [`PAYLOAD_BYTES_MAX`].
    #[error(
        "the payload has {bytes} bytes and the limit is {PAYLOAD_BYTES_MAX}: store large data elsewhere and \
         send a reference"
    )]
    PayloadTooLarge {
        /// Length of the payload's JSON text.
        bytes: usize,
    },
    /// The payload cannot be written as JSON.
    #[error("the payload cannot be written as JSON: give it string keys and finite numbers")]
    Payload(#[source] serde_json::Error),
    /// The text is not a stream id of the form `<epoch>-<seq>`.
    #[error("'{}' is not an event id: it has the form <epoch>-<seq>, for example 1-42", shorten(.0))]
    StreamId(String),
}

/// Shortens a text that an error quotes, to fit a terminal and a log line.
fn shorten(text: &str) -> String {
    const SHOWN: usize = 60;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The name of an ordered sequence of events, for example `upload-session:42`.
///
/// 1 to 200 characters of `A-Z a-z 0-9 : . _ -`, except `.` and `..`. So it needs no escaping in a Redis key,
/// a URL path or a log line.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Topic(Box<str>);

impl Topic {
    /// Makes a topic of a valid name.
    ///
    /// # Errors
    /// Returns [`EventError::Topic`] if the name breaks the rules.
    pub fn new(name: impl Into<String>) -> Result<Self, EventError> {
        let name = name.into();
        let fits = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b':' | b'.' | b'_' | b'-');
        // A browser removes `.` and `..` from a path.
        let is_path = name == "." || name == "..";
        if name.is_empty() || name.len() > TOPIC_LEN_MAX || is_path || !name.bytes().all(fits) {
            return Err(EventError::Topic(name));
        }
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The kind of an event, for example `PHOTO_UPLOADED`. 1 to 100 characters of `A-Z a-z 0-9 . _ -`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EventType(Box<str>);

impl EventType {
    /// Makes an event type of a valid name.
    ///
    /// # Errors
    /// Returns [`EventError::Type`] if the name breaks the rules, and [`EventError::ReservedType`] if it is
    /// one of [`RESERVED_TYPES`].
    pub fn new(name: impl Into<String>) -> Result<Self, EventError> {
        let name = name.into();
        let fits = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
        if name.is_empty() || name.len() > TYPE_LEN_MAX || !name.bytes().all(fits) {
            return Err(EventError::Type(name));
        }
        if RESERVED_TYPES.contains(&name.as_str()) {
            return Err(EventError::ReservedType { name });
        }
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The text traits of both names.
macro_rules! name_traits {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
        impl FromStr for $name {
            type Err = EventError;
            fn from_str(text: &str) -> Result<Self, EventError> {
                Self::new(text)
            }
        }
        impl TryFrom<String> for $name {
            type Error = EventError;
            fn try_from(text: String) -> Result<Self, EventError> {
                Self::new(text)
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.into()
            }
        }
    };
}
name_traits!(Topic);
name_traits!(EventType);

/// The identity of an event, the same in Postgres, in Redis, and in every repeat and replay.
pub type EventId = Uuid;

/// The identity of a log, the same in its Postgres and in the Redis that its relay publishes to.
pub type LogId = Uuid;

/// An event that is about to be appended.
#[derive(Debug, Clone)]
pub struct NewEvent {
    event_id: EventId,
    topic: Topic,
    event_type: EventType,
    payload: Box<RawValue>,
    headers: Option<serde_json::Map<String, serde_json::Value>>,
}

impl NewEvent {
    /// Makes an event with a new identity. The payload's JSON text stays the same, byte for byte, on its way
    /// to the client.
    ///
    /// # Errors
    /// Returns [`EventError::Payload`] if the payload cannot be written as JSON, and
    /// [`EventError::PayloadTooLarge`] if its text is longer than [`PAYLOAD_BYTES_MAX`].
    pub fn new(topic: Topic, event_type: EventType, payload: &impl Serialize) -> Result<Self, EventError> {
        let payload = serde_json::value::to_raw_value(payload).map_err(EventError::Payload)?;
        let bytes = payload.get().len();
        if bytes > PAYLOAD_BYTES_MAX {
            return Err(EventError::PayloadTooLarge { bytes });
        }
        Ok(Self { event_id: Uuid::now_v7(), topic, event_type, payload, headers: None })
    }

    /// Sets the event's identity, for example to one derived from a request's idempotency key.
    #[must_use]
    pub fn with_event_id(mut self, event_id: EventId) -> Self {
        self.event_id = event_id;
        self
    }

    /// Sets the headers: facts about the event that are not for the client.
    ///
    /// A W3C `traceparent` under the key [`TRACE_PARENT`] links the relay's and the SSE server's spans to its
    /// trace. [`NewEvent::with_trace`] writes it.
    #[must_use]
    pub fn with_headers(mut self, headers: serde_json::Map<String, serde_json::Value>) -> Self {
        self.headers = Some(headers);
        self
    }

    /// Adds the event's place in a trace to the headers.
    #[must_use]
    pub fn with_trace(mut self, trace: TraceParent) -> Self {
        let headers = self.headers.get_or_insert_default();
        headers.insert(TRACE_PARENT.to_owned(), trace.to_string().into());
        self
    }

    /// The event's identity.
    pub fn event_id(&self) -> EventId {
        self.event_id
    }

    /// The topic.
    pub fn topic(&self) -> &Topic {
        &self.topic
    }

    /// The type.
    pub fn event_type(&self) -> &EventType {
        &self.event_type
    }

    /// The payload's JSON text.
    pub fn payload(&self) -> &str {
        self.payload.get()
    }

    /// The headers, if any.
    pub fn headers(&self) -> Option<&serde_json::Map<String, serde_json::Value>> {
        self.headers.as_ref()
    }
}

/// An event in the outbox log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The row's number: the order within a topic, but not the order of commits. It has gaps.
    pub id: i64,
    /// The event's identity.
    pub event_id: EventId,
    /// The topic.
    pub topic: Topic,
    /// The type.
    pub event_type: EventType,
    /// The payload's JSON text, byte for byte as it was appended.
    pub payload: String,
    /// When the transaction that appended it began.
    pub created_at: DateTime<Utc>,
    /// The transaction that appended it; unknown for a row that could not be read when it was parked.
    pub xid: Option<u64>,
    /// The event's place in a trace, if its headers name one.
    pub trace: Option<TraceParent>,
}

/// The place of an event in the order of delivery: `<epoch>-<seq>`.
///
/// The relay gives it to an event (`relay::publication::publish_batch`); a writer never knows it. `seq`
/// counts the deliveries of a relay without a gap. `epoch` grows when that count cannot go on (a restored
/// database). The pair is the entry's id in the Redis stream, and the `id:` that a browser sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StreamId {
    /// The epoch, from 1 on.
    pub epoch: u64,
    /// The number of the delivery within its epoch, from 1 on.
    pub seq: u64,
}

impl std::borrow::Borrow<str> for Topic {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl StreamId {
    /// The place `seq` in `epoch`.
    pub const fn new(epoch: u64, seq: u64) -> Self {
        Self { epoch, seq }
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.seq)
    }
}

impl FromStr for StreamId {
    type Err = EventError;

    fn from_str(text: &str) -> Result<Self, EventError> {
        // `u64::from_str` accepts a leading '+'. Redis refuses it, and it would give one id two spellings.
        let number = |digits: &str| {
            if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse::<u64>().ok() } else { None }
        };
        text.split_once('-')
            .and_then(|(epoch, seq)| Some(Self { epoch: number(epoch)?, seq: number(seq)? }))
            .ok_or_else(|| EventError::StreamId(text.to_owned()))
    }
}

impl TryFrom<String> for StreamId {
    type Error = EventError;
    fn try_from(text: String) -> Result<Self, EventError> {
        text.parse()
    }
}

impl From<StreamId> for String {
    fn from(id: StreamId) -> String {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_takes_what_the_contract_allows_and_nothing_else() {
        for good in ["a", "upload-session:42", "A.b_c-9", &"x".repeat(200)] {
            assert_eq!(Topic::new(good).expect(good).as_str(), good);
        }
        for bad in ["", ".", "..", " ", "a b", "a{b}", "a\n", "ä", "a/b", "a*", &"x".repeat(201)] {
            assert!(matches!(Topic::new(bad), Err(EventError::Topic(_))), "{bad:?}");
        }
    }

    #[test]
    fn a_type_has_no_colon_and_at_most_100_characters() {
        assert!(EventType::new("PHOTO_UPLOADED").is_ok());
        assert!(EventType::new("x".repeat(100)).is_ok());
        for bad in ["", "a:b", "a b", "a\r\nid: 7", &"x".repeat(101)] {
            assert!(matches!(EventType::new(bad), Err(EventError::Type(_))), "{bad:?}");
        }
        for reserved in RESERVED_TYPES {
            assert!(matches!(EventType::new(reserved), Err(EventError::ReservedType { .. })), "{reserved}");
        }
    }

    #[test]
    fn a_stream_id_reads_back_as_written_and_has_one_spelling() {
        let id = StreamId::new(1, 42);
        assert_eq!(id.to_string(), "1-42");
        assert_eq!("1-42".parse::<StreamId>().expect("an id"), id);
        for bad in
            ["", "1", "-", "1-", "-1", "1-2-3", "+1-2", "1-+2", "a-b", " 1-2", "99999999999999999999-1"]
        {
            assert!(bad.parse::<StreamId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn stream_ids_order_by_epoch_first() {
        assert!(StreamId::new(2, 1) > StreamId::new(1, 900));
        assert!(StreamId::new(1, 10) > StreamId::new(1, 9));
    }

    #[test]
    fn a_payload_over_the_limit_is_refused_with_its_size() {
        let topic = Topic::new("t").expect("a topic");
        let kind = EventType::new("T").expect("a type");
        let fits = "x".repeat(PAYLOAD_BYTES_MAX - 2);
        assert!(NewEvent::new(topic.clone(), kind.clone(), &fits).is_ok());
        let over = "x".repeat(PAYLOAD_BYTES_MAX - 1);
        let error = NewEvent::new(topic, kind, &over).expect_err("one byte too many");
        assert!(matches!(error, EventError::PayloadTooLarge { bytes } if bytes == PAYLOAD_BYTES_MAX + 1));
    }

    #[test]
    fn an_error_quotes_a_long_text_shortened() {
        let error = Topic::new("é".repeat(300)).expect_err("not a topic");
        assert!(error.to_string().chars().count() < 150, "{error}");
    }
}
