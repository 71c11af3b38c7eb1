//! Whatever a payload holds, the frame is one event with the fields that it was made of: no payload can forge an
//! id, an event or the end of one. The reader is the load client's, which shares no code with the server.

#![no_main]

#[path = "../../tests/load/engine/event_stream.rs"]
mod event_stream;

use aftercommit::sse::fuzzed;
use event_stream::{EventStream, Field};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

/// The fields of the one event of a frame.
fn read(frame: &[u8]) -> (String, String, Vec<String>) {
    let (mut ids, mut names, mut data, mut ends) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    let read = EventStream::default().feed(frame, |field| match field {
        Field::Id(id) => ids.push(text(id)),
        Field::Event(name) => names.push(text(name)),
        Field::Data(line) => data.push(text(line)),
        Field::End => ends += 1,
        other => panic!("not a field of an event: {other:?}"),
    });
    read.expect("lines of a fitting length");
    assert_eq!((ids.len(), names.len(), ends), (1, 1, 1), "{:?}", String::from_utf8_lossy(frame));
    assert!(frame.ends_with(b"\n\n"));
    (ids.remove(0), names.remove(0), data)
}

fuzz_target!(|payload: &str| {
    let (frame, as_text) = fuzzed::frame((7, 42), "PHOTO_UPLOADED", payload);
    let (id, name, data) = read(&frame);
    assert_eq!((id.as_str(), name.as_str(), data.len()), ("7-42", "PHOTO_UPLOADED", 1));
    let Ok(value) = serde_json::from_str::<Value>(payload) else { return };
    assert_eq!(serde_json::from_str::<Value>(&data[0]).expect("JSON"), value);
    let (id, name, data) = read(&as_text);
    assert_eq!((id.as_str(), name.as_str()), ("7-42", "PHOTO_UPLOADED"));
    if let Value::String(text) = value {
        // EventSource joins the lines with \n, and knows no other end of a line.
        assert_eq!(data.join("\n"), text.replace("\r\n", "\n").replace('\r', "\n"));
    }
});
