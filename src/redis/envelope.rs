//! The envelope: an event on a live channel, with its own id and the previous one of its topic.
//!
//! ```json
//! {"id":"1-42","prev":"1-40","event":"018f…","type":"PHOTO_UPLOADED","at":1762857000123,"xid":731,"payload":{…}}
//! ```
//!
//! The publishing script writes it. `prev` is `null` for the first event that the script knows of a topic.
//! `payload` is the row's JSON, byte for byte. If every `prev` matches the id before it, the subscriber has
//! lost nothing.
//!
//! `at` is the time at which the event's transaction began, in milliseconds since 1970. `xid` is that
//! transaction, if it is known. `trace`, a W3C `traceparent`, is present if the event's trace is recorded.
//! `restored` is true if Redis had forgotten the event and the relay restored it.

use std::fmt::Write;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::event::{Event, EventId, EventType, StreamId};

/// An event on a live channel.
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
    /// When the transaction of the event began, in milliseconds since 1970.
    #[serde(default)]
    pub at: Option<i64>,
    /// The transaction of the event.
    #[serde(default)]
    pub xid: Option<u64>,
    /// Whether Redis had forgotten the event and the relay restored it. Then no bare payload follows on the
    /// public channel.
    #[serde(default)]
    pub restored: bool,
    /// The event's place in a trace: a `traceparent`, unparsed.
    #[serde(default, borrow)]
    pub trace: Option<&'a str>,
    /// The payload's JSON text.
    #[serde(borrow)]
    pub payload: &'a RawValue,
}

/// The text of the envelope between the event's UUID and its payload: the same for every topic and number, so
/// the script only joins it.
pub(super) fn middle_of(event: &Event, is_restored: bool) -> String {
    // A type needs no escapes in JSON.
    let (event_type, at) = (event.event_type.as_str(), event.created_at.timestamp_millis());
    let mut middle = format!("\",\"type\":\"{event_type}\",\"at\":{at}");
    // Writing to a String cannot fail.
    if let Some(xid) = event.xid {
        let _infallible = write!(middle, ",\"xid\":{xid}");
    }
    if let Some(trace) = event.trace.filter(|trace| trace.is_sampled) {
        let _infallible = write!(middle, ",\"trace\":\"{trace}\"");
    }
    if is_restored {
        middle.push_str(",\"restored\":true");
    }
    middle.push_str(",\"payload\":");
    middle
}

/// Returns the bare payload that follows an envelope on the topic's public channel; `None` if none follows,
/// or if this is no envelope.
pub(super) fn twin_of(envelope: &str) -> Option<&str> {
    let (facts, payload) = envelope.split_once(",\"payload\":")?;
    if facts.contains(",\"restored\":true") { None } else { payload.strip_suffix('}') }
}

impl<'a> Envelope<'a> {
    /// Reads an envelope.
    ///
    /// # Errors
    /// Returns the parser's error if the message is no envelope: another program published it.
    pub fn parse(message: &'a str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_keeps_the_payload_byte_for_byte() {
        let text = concat!(
            r#"{"id":"1-42","prev":null,"event":"018f3c1e-0000-7000-8000-000000000001","type":"T","#,
            r#""payload":{ "b":1,  "a":1.50 }}"#
        );
        let envelope = Envelope::parse(text).expect("an envelope");
        assert_eq!(envelope.id, StreamId::new(1, 42));
        assert_eq!(envelope.prev, None);
        assert_eq!(envelope.payload.get(), r#"{ "b":1,  "a":1.50 }"#);
    }

    #[test]
    fn an_envelope_of_an_earlier_relay_has_no_time_and_one_of_a_later_relay_may_say_more() {
        let of = |facts: &str| {
            let text = format!(
                concat!(
                    r#"{{"id":"1-2","prev":"1-1","event":"018f3c1e-0000-7000-8000-000000000001","#,
                    r#""type":"T",{facts}"payload":1}}"#
                ),
                facts = facts
            );
            let envelope = Envelope::parse(&text).expect("an envelope");
            (envelope.at, envelope.trace.map(str::to_owned))
        };
        assert_eq!(of(""), (None, None));
        assert_eq!(of(r#""at":17,"#), (Some(17), None));
        assert_eq!(of(r#""at":17,"trace":"00-a-b-01","more":[],"#), (Some(17), Some("00-a-b-01".to_owned())));
    }

    #[test]
    fn what_is_not_an_envelope_is_an_error() {
        for text in ["", "{}", "hello", r#"{"id":"x","prev":null,"event":"","type":"T","payload":1}"#] {
            assert!(Envelope::parse(text).is_err(), "{text}");
        }
    }
}
