//! The bytes of an event of the page's stream.

use bytes::Bytes;
use serde::Serialize;

/// One event of the stream.
pub(super) fn event(name: &str, data: &impl Serialize) -> Bytes {
    // Our own types, without maps that have keys other than texts: they can be written. And JSON as it is written here has
    // no line breaks.
    let data = serde_json::to_string(data).unwrap_or_else(|_| "null".to_owned());
    format!("event: {name}\ndata: {data}\n\n").into()
}
