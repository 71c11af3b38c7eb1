//! Events as text (`?data=text`), for pages that swap HTML: a payload that is a JSON string becomes its text,
//! one `data:` line for each of its lines. Every other payload stays JSON.

use std::fmt::Write;

use bytes::Bytes;

/// Returns an event's block as text, or `None` if its payload is no JSON string. `head` is the length of the
/// lines before its `data:` line.
///
/// A string with half a surrogate pair is no text, and stays JSON.
pub(super) fn text_of(block: &Bytes, head: usize) -> Option<Bytes> {
    let json = block.get(head..)?.strip_prefix(b"data: ")?.strip_suffix(b"\n\n")?;
    let text: String = serde_json::from_slice(json).ok()?;
    let mut lines = String::with_capacity(block.len());
    lines.push_str(std::str::from_utf8(&block[..head]).ok()?);
    // CR LF is one line break, as for the browser that puts the lines together.
    for line in text.replace("\r\n", "\n").split(['\r', '\n']) {
        // Writing to a String cannot fail.
        let _infallible = writeln!(lines, "data: {line}");
    }
    lines.push('\n');
    Some(lines.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(json: &str) -> Option<String> {
        let block = Bytes::from(format!("id: 1-2\nevent: T\ndata: {json}\n\n"));
        text_of(&block, "id: 1-2\nevent: T\n".len()).map(|text| String::from_utf8_lossy(&text).into_owned())
    }

    #[test]
    fn a_string_becomes_its_lines_and_anything_else_stays() {
        let head = "id: 1-2\nevent: T\n";
        assert_eq!(text(r#""<p>a\n b</p>""#), Some(format!("{head}data: <p>a\ndata:  b</p>\n\n")));
        assert_eq!(text(r#""a\r\nb\rc\n""#), Some(format!("{head}data: a\ndata: b\ndata: c\ndata: \n\n")));
        assert_eq!(text(r#""""#), Some(format!("{head}data: \n\n")));
        assert_eq!(text(r#""id: 9-9\nretry: 1""#), Some(format!("{head}data: id: 9-9\ndata: retry: 1\n\n")));
        for json in [r#"{"a":"b"}"#, "7", "null", r#"["a"]"#, r#""\ud800""#] {
            assert_eq!(text(json), None, "{json}");
        }
    }
}
