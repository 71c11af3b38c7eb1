//! The envelope: an event on a live channel, with its own id and the previous one of its topic.
//!
//! ```json
//! {"id":"1-42","prev":"1-40","event":"018f…","type":"PHOTO_UPLOADED","payload":{…}}
//! ```
//!
//! The publishing script writes it; `prev` is `null` for the first event that the script knows of a topic. `payload` is
//! the row's JSON byte for byte. A subscriber that sees every `prev` match the id before it has lost nothing.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::event::{EventId, EventType, StreamId};

/// An event as it travels on a live channel.
#[derive(Debug, Deserialize)]
pub struct Envelope<'a> {
    /// The event's place in the order.
    pub id: StreamId,
    /// The id of the topic's event before this one.
    pub prev: Option<StreamId>,
    /// The event's identity.
    pub event: EventId,
    /// The type.
    #[serde(rename = "type")]
    pub event_type: EventType,
    /// The payload's JSON text.
    #[serde(borrow)]
    pub payload: &'a RawValue,
}

impl<'a> Envelope<'a> {
    /// Reads an envelope.
    ///
    /// # Errors
    /// The parser's, if this is not an envelope: somebody else published on the live channel.
    pub fn parse(message: &'a str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_keeps_the_payload_byte_for_byte() {
        let text = r#"{"id":"1-42","prev":null,"event":"018f3c1e-0000-7000-8000-000000000001","type":"T","payload":{ "b":1,  "a":1.50 }}"#;
        let envelope = Envelope::parse(text).expect("an envelope");
        assert_eq!(envelope.id, StreamId::new(1, 42));
        assert_eq!(envelope.prev, None);
        assert_eq!(envelope.payload.get(), r#"{ "b":1,  "a":1.50 }"#);
    }

    #[test]
    fn what_is_not_an_envelope_is_an_error() {
        for text in ["", "{}", "hello", r#"{"id":"x","prev":null,"event":"","type":"T","payload":1}"#] {
            assert!(Envelope::parse(text).is_err(), "{text}");
        }
    }
}
