//! Whatever a payload holds, a parser that was written by others finds one event with exactly that payload.

use eventsource_stream::{Event, EventStream};
use futures_util::{FutureExt, StreamExt, stream};
use proptest::prelude::*;

use super::*;

/// What an independent parser makes of the bytes, cut into pieces of this size.
fn parsed(bytes: &Bytes, piece: usize) -> Vec<Event> {
    let pieces = bytes.chunks(piece).map(|piece| Ok::<_, std::convert::Infallible>(piece.to_vec()));
    let events = EventStream::new(stream::iter(pieces.collect::<Vec<_>>()));
    let events = events.map(|event| event.expect("an event"));
    events.collect().now_or_never().expect("everything is at hand")
}

/// Texts in which the characters that mean something to the format are common.
fn hostile() -> impl Strategy<Value = String> {
    let special = prop_oneof![
        Just("\r".to_owned()),
        Just("\n".to_owned()),
        Just("\r\n".to_owned()),
        Just("\0".to_owned()),
        Just("\u{feff}".to_owned()),
        Just("\u{2028}".to_owned()),
        Just("id: 9-9".to_owned()),
        Just("event: x".to_owned()),
        Just("data:".to_owned()),
        Just(": ".to_owned()),
        any::<char>().prop_map(String::from),
    ];
    proptest::collection::vec(special, 0..24).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_payload_arrives_as_one_event_and_as_it_was_sent(
        text in hostile(),
        space in "[ \r\n\t]{0,4}",
        piece in 1_usize..40,
    ) {
        let value = serde_json::json!({ "text": text });
        let payload = format!("{space}{value}{space}");
        let kind = EventType::new("T").expect("a type");
        let frame = Frame::of_event(StreamId::new(1, 42), &kind, &payload, Naming::OfType);
        let events = parsed(&frame.block.bytes, piece);
        prop_assert_eq!(events.len(), 1);
        prop_assert_eq!((events[0].id.as_str(), events[0].event.as_str()), ("1-42", "T"));
        let found: serde_json::Value = serde_json::from_str(&events[0].data).expect("JSON");
        prop_assert_eq!(found, value);
    }

    #[test]
    fn any_foreign_message_arrives_as_one_event_without_an_id(text in hostile(), piece in 1_usize..40) {
        let events = parsed(&foreign(&text).bytes, piece);
        // JSON stands on one line; in other text a line break is one, however it is written.
        let is_json = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
        let lines = match is_json {
            true => text.replace(['\r', '\n'], " "),
            false => text.replace("\r\n", "\n").replace('\r', "\n"),
        };
        if lines.is_empty() {
            // The format fires no event for empty data.
            prop_assert!(events.iter().all(|event| event.data.is_empty()));
        } else {
            prop_assert_eq!(events.len(), 1);
            prop_assert_eq!((events[0].id.as_str(), events[0].event.as_str()), ("", "message"));
            prop_assert_eq!(&events[0].data, &lines);
        }
    }
}
