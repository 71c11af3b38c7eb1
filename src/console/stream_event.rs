//! The bytes of an event in the page's stream.

use bytes::Bytes;
use serde::Serialize;

/// One event of the stream.
pub(super) fn event(name: &str, data: &impl Serialize) -> Bytes {
    // Serializing cannot fail: these are our own types, and their maps have text keys. This JSON has no line
    // breaks.
    let data = serde_json::to_string(data).unwrap_or_else(|_| "null".to_owned());
    format!("event: {name}\ndata: {data}\n\n").into()
}
