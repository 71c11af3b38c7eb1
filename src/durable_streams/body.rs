//! The bytes of messages: as a body, and as events of a stream.

use std::fmt::Write;

use bytes::Bytes;
use serde::Serialize;

use super::offset;
use crate::sse::EventPage;

/// How messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// An array of the payloads.
    Json,
    /// The texts of payloads that are JSON strings, one after the other. Other payloads stay as they are.
    Text,
}

impl Form {
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Text => "text/plain",
        }
    }

    /// The messages of a page.
    pub(super) fn body(self, payloads: &[Bytes]) -> Vec<u8> {
        match self {
            Self::Json => [b"[", &*payloads.join(&b","[..]), b"]"].concat(),
            Self::Text => payloads.iter().flat_map(text_of).collect(),
        }
    }
}

/// A string with half a surrogate pair is no text, and stays JSON.
fn text_of(payload: &Bytes) -> Bytes {
    serde_json::from_slice::<String>(payload).map_or_else(|_not_a_string| payload.clone(), Bytes::from)
}

/// The `control` event that follows messages in a stream of events.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Control {
    stream_next_offset: String,
    stream_cursor: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    up_to_date: bool,
}

/// A page as events: its messages, if it has any, and where the client goes on.
pub(super) fn events(page: &EventPage, form: Form, cursor: u64) -> Bytes {
    let mut text = String::new();
    if !page.payloads.is_empty() {
        text.push_str("event: data\n");
        push_lines(&mut text, &String::from_utf8_lossy(&form.body(&page.payloads)));
        text.push('\n');
    }
    let control = Control {
        stream_next_offset: offset::text_of(page.next),
        stream_cursor: cursor.to_string(),
        up_to_date: page.is_last,
    };
    // Texts and a flag can always be serialized.
    let json = serde_json::to_string(&control).unwrap_or_default();
    let _infallible = write!(text, "event: control\ndata:{json}\n\n");
    text.into()
}

/// Writes each line as a `data:` line. CR LF is one line break, as for the client that puts them together.
fn push_lines(text: &mut String, body: &str) {
    for line in body.replace("\r\n", "\n").split(['\r', '\n']) {
        // The client takes one space off.
        let space = if line.starts_with(' ') { " " } else { "" };
        let _infallible = writeln!(text, "data:{space}{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::StreamId;
    use crate::sse::Cursor;

    fn page(payloads: &[&str], is_last: bool) -> EventPage {
        let payloads = payloads.iter().map(|payload| Bytes::from((*payload).to_owned())).collect();
        EventPage { payloads, next: Cursor::After(StreamId::new(1, 7)), is_last }
    }

    #[test]
    fn json_is_an_array_of_the_payloads_byte_for_byte() {
        let payloads = page(&["{ \"a\":\n1.0}", "[1]", "null"], true).payloads;
        assert_eq!(Form::Json.body(&payloads), b"[{ \"a\":\n1.0},[1],null]");
        assert_eq!(Form::Json.body(&[]), b"[]");
    }

    #[test]
    fn texts_follow_each_other_and_what_is_no_string_stays() {
        let payloads = page(&["\"a\\n\"", "7", "\"\\ud800\"", "\"b\""], true).payloads;
        assert_eq!(Form::Text.body(&payloads), b"a\n7\"\\ud800\"b");
        assert_eq!(Form::Text.body(&[]), b"");
    }

    #[test]
    fn a_page_is_its_messages_and_where_to_go_on_and_no_message_can_pass_for_more() {
        let control = "event: control\ndata:{\"streamNextOffset\":\"00000000000000000001-00000000000000000007\",\
                       \"streamCursor\":\"9\"";
        let text = |page, form| String::from_utf8(events(&page, form, 9).to_vec()).expect("UTF-8");
        assert_eq!(text(page(&[], true), Form::Json), format!("{control},\"upToDate\":true}}\n\n"));
        let nasty = page(&["\" a\\r\\n\\r\\nevent: control\\rdata: x\""], false);
        let expected =
            format!("event: data\ndata:  a\ndata:\ndata:event: control\ndata:data: x\n\n{control}}}\n\n");
        assert_eq!(text(nasty, Form::Text), expected);
    }
}
