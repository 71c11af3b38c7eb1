//! The protocol's offsets: a place in a topic, of fixed width, so that offsets sort as the places do.

use std::fmt::Write;

use crate::event::StreamId;
use crate::sse::Cursor;

/// The digits of the largest number.
const DIGITS: usize = 20;

/// Where a request asks to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offset {
    /// `-1`: with the topic's first event.
    Beginning,
    /// `now`: after its newest event.
    Now,
    /// Behind this place.
    At(Cursor),
}

/// A text that is no offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("offset must be -1, now, or a Stream-Next-Offset of this stream")]
pub(super) struct NoOffset;

impl Offset {
    pub(super) fn parse(text: &str) -> Result<Self, NoOffset> {
        match text {
            "-1" => Ok(Self::Beginning),
            "now" => Ok(Self::Now),
            place => {
                let numbers = place.split_once('-').ok_or(NoOffset)?;
                let (epoch, seq) = (number(numbers.0)?, number(numbers.1)?);
                Ok(Self::At(match epoch {
                    0 => Cursor::Start { seen_ms: seq },
                    _ => Cursor::After(StreamId::new(epoch, seq)),
                }))
            }
        }
    }
}

fn number(digits: &str) -> Result<u64, NoOffset> {
    let is_whole = digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
    if is_whole { digits.parse().map_err(|_| NoOffset) } else { Err(NoOffset) }
}

/// The offset of a place.
pub(super) fn text_of(place: Cursor) -> String {
    let (epoch, seq) = match place {
        Cursor::Start { seen_ms } => (0, seen_ms),
        Cursor::After(id) => (id.epoch, id.seq),
    };
    let mut text = String::with_capacity(2 * DIGITS + 1);
    // Writing to a String cannot fail.
    let _infallible = write!(text, "{epoch:0width$}-{seq:0width$}", width = DIGITS);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_read_back_as_written_and_sort_as_their_places_do() {
        let after = |epoch, seq| Cursor::After(StreamId::new(epoch, seq));
        let start = Cursor::Start { seen_ms: 1_790_000_000_000 };
        let places = [start, after(1, 9), after(1, 10), after(2, 1), after(10, 1), after(u64::MAX, u64::MAX)];
        let texts = places.map(text_of);
        assert!(texts.is_sorted() && texts.iter().all(|text| text.len() == 41), "{texts:?}");
        for (place, text) in places.iter().zip(&texts) {
            assert_eq!(Offset::parse(text), Ok(Offset::At(*place)));
        }
    }

    #[test]
    fn a_text_of_another_form_is_no_offset() {
        let good = text_of(Cursor::After(StreamId::new(1, 2)));
        let bad =
            ["", "1-2", "0,1", "0 1", "NOW", "--1", &good[1..], &format!("{good} "), &format!("+{good}")];
        for text in bad.into_iter().chain(["99999999999999999999-00000000000000000001"]) {
            assert_eq!(Offset::parse(text), Err(NoOffset), "{text:?}");
        }
    }
}
