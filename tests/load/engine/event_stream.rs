//! Splits an event stream into fields (WHATWG HTML 9.2.6). Each byte is looked at once, and nothing is
//! allocated for an event: a line that arrived whole is handed on where it lies, and only one that was cut in
//! two is copied.

use std::time::Duration;

/// One line of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field<'a> {
    Id(&'a [u8]),
    Event(&'a [u8]),
    Data(&'a [u8]),
    Retry(Duration),
    /// A comment, or a field that the standard does not know.
    Ignored,
    /// The blank line that ends a block.
    End,
}

/// A line is longer than any that a server may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LineTooLong;

/// What a payload may have at most, and room for its field's name.
const LINE_MAX: usize = 1024 * 1024 + 64;

/// The reading end of one stream.
#[derive(Debug, Default)]
pub(crate) struct EventStream {
    /// The beginning of a line whose end has not arrived.
    partial: Vec<u8>,
    /// The last byte was a CR: an LF that follows belongs to it.
    after_cr: bool,
}

impl EventStream {
    /// Takes what arrived and tells each line that is complete.
    pub(crate) fn feed(
        &mut self,
        mut bytes: &[u8],
        mut found: impl FnMut(Field<'_>),
    ) -> Result<(), LineTooLong> {
        while let Some(first) = bytes.first() {
            if std::mem::take(&mut self.after_cr) && *first == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
                self.partial.extend_from_slice(bytes);
                return if self.partial.len() > LINE_MAX { Err(LineTooLong) } else { Ok(()) };
            };
            if self.partial.is_empty() {
                found(field(&bytes[..end]));
            } else {
                self.partial.extend_from_slice(&bytes[..end]);
                found(field(&self.partial));
                self.partial.clear();
            }
            self.after_cr = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
        }
        Ok(())
    }
}

fn field(line: &[u8]) -> Field<'_> {
    if line.is_empty() {
        return Field::End;
    }
    let colon = line.iter().position(|byte| *byte == b':');
    let (name, value) = colon.map_or((line, &line[line.len()..]), |at| (&line[..at], &line[at + 1..]));
    let value = value.strip_prefix(b" ").unwrap_or(value);
    match name {
        b"data" => Field::Data(value),
        b"id" if !value.contains(&0) => Field::Id(value),
        b"event" => Field::Event(value),
        b"retry" => number(value).map_or(Field::Ignored, |ms| Field::Retry(Duration::from_millis(ms))),
        _ => Field::Ignored,
    }
}

/// A number written in ASCII digits alone.
pub(crate) fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 19 || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(text.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}
