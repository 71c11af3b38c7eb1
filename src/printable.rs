//! Text from outside, made safe to show on a terminal or in a log.
//!
//! Topics, payloads, headers, reasons, names and the words of other servers can hold characters that move a
//! terminal's cursor, change its colours, reorder or hide what stands beside them. Here they become visible:
//! `\u{1b}`.

use std::borrow::Cow;
use std::fmt::Write;

/// The text with each character that steers a terminal or hides text written as its escape; also line breaks
/// and tabs. For whatever stands on one line: a cell of a table, a value, a log message.
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, |c| is_unsafe(c) || matches!(c, '\n' | '\t'))
}

/// The same for text of several lines: line breaks and tabs stay.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escaped(text, is_unsafe)
}

/// A JSON document of the same value that is safe to show: inside strings such characters become JSON's own
/// escapes, and outside, where only white space can be one of them, spaces.
pub fn printable_json(document: &str) -> Cow<'_, str> {
    if !document.chars().any(is_unsafe) {
        return Cow::Borrowed(document);
    }
    let mut safe = String::with_capacity(document.len() + 16);
    for c in document.chars() {
        match c {
            c if !is_unsafe(c) => safe.push(c),
            // A string holds no raw character below U+0020: this one is white space.
            c if c < ' ' => safe.push(' '),
            c => push_json_escape(&mut safe, c),
        }
    }
    Cow::Owned(safe)
}

fn escaped(text: &str, is_escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(&is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_escaped(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

/// Writes `\u009b`; a character beyond U+FFFF as its two UTF-16 units.
fn push_json_escape(to: &mut String, c: char) {
    for unit in c.encode_utf16(&mut [0; 2]) {
        // A String takes all that is written.
        let _infallible = write!(to, "\\u{unit:04x}");
    }
}

/// Whether a character steers a terminal, reorders text or is invisible. Line breaks and tabs are not among
/// them.
///
/// Control characters of both ranges, and what Unicode calls default ignorable: bidirectional marks,
/// zero-width characters, fillers, tags. Without the variation selectors of emoji, which change how a
/// character looks and no more; with the line and paragraph separators.
fn is_unsafe(c: char) -> bool {
    match c {
        '\n' | '\t' => false,
        '\0'..='\x1f' | '\x7f'..='\u{9f}' => true,
        ' '..='~' => false,
        _ => matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_or_hides_text_becomes_visible() {
        for (text, safe) in [
            ("\u{1b}[2Jgone", r"\u{1b}[2Jgone"),
            ("\u{9b}31mred", r"\u{9b}31mred"),
            ("gpj.\u{202e}exe", r"gpj.\u{202e}exe"),
            ("\u{2066}a\u{2069}", r"\u{2066}a\u{2069}"),
            ("ok\rWRONG", r"ok\rWRONG"),
            ("a\u{8}b\u{7f}c\0", r"a\u{8}b\u{7f}c\u{0}"),
            ("or\u{200b}der\u{feff}", r"or\u{200b}der\u{feff}"),
            ("\u{e0041}", r"\u{e0041}"),
            ("one\ntwo\tthree\u{2028}", r"one\ntwo\tthree\u{2028}"),
        ] {
            assert_eq!(printable(text), safe);
        }
        assert_eq!(printable_lines("one\n\ttwo\r\u{1b}"), "one\n\ttwo\\r\\u{1b}");
    }

    #[test]
    fn what_people_write_stays_as_it_is() {
        for text in ["", "order:42", "Zoë paid 12 €: ✓ 👍🏽 ❤\u{fe0f}", "注文", "שלום", r"C:\dir \u{1b}"]
        {
            assert!(matches!(printable(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }

    #[test]
    fn a_json_document_keeps_its_value() {
        let nasty: String = ('\u{80}'..='\u{a0}').chain("\u{7f}\u{202e}\u{e0041}\u{200b}é".chars()).collect();
        let value = serde_json::json!({ "reason": nasty });
        let document = serde_json::to_string(&value).expect("JSON");
        let shown = printable_json(&format!("{{\r\n\"a\":{document}}}")).into_owned();
        assert!(!shown.chars().any(is_unsafe), "{shown:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).expect("JSON")["a"], value);
        assert!(matches!(printable_json("{\n  \"a\": \"é\"\n}"), Cow::Borrowed(_)));
    }
}
