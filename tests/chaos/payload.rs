//! The payload of an event: a function of the run's seed and of the event's key, so that nobody has to
//! remember it.
//!
//! The event's identity names its key. So the judge can compare Redis and the log with the written payloads,
//! byte for byte, and each client with the log.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::value::RawValue;
use uuid::Uuid;

use crate::random::Random;

/// The largest payload that the log takes.
const LARGEST: usize = 1024 * 1024;
/// Types of events, dealt by key.
const TYPES: [&str; 4] = ["CHAOS", "ORDER_PLACED", "a", "x.y-z_9"];
/// Text that JSON, SSE and Redis each could spoil.
const TOKENS: [&str; 10] =
    ["plain ", "\\n", "\\\"", "\\\\", "é", "\u{1F600}", "\\u2028", "data: x", "id: 9-9", "\u{2028}"];

/// The identity of the event of a key.
pub(crate) fn event_id(seed: u64, key: u64) -> Uuid {
    Uuid::from_u64_pair(seed | 1 << 63, key)
}

/// The key of an event's identity, if it is one of this run's.
pub(crate) fn key_of(seed: u64, event_id: Uuid) -> Option<u64> {
    let (high, key) = event_id.as_u64_pair();
    (high == seed | 1 << 63).then_some(key)
}

/// The type of the event of a key.
pub(crate) fn type_of(key: u64) -> &'static str {
    TYPES[usize::try_from(key % TYPES.len() as u64).expect("below a usize")]
}

/// The payload of the event of a key: from 1 byte to 1 MiB, most of them small.
pub(crate) fn of(seed: u64, key: u64) -> String {
    let mut random = Random::new(seed, &format!("payload {key}"));
    let bytes = match random.between(0, 1000) {
        0..80 => {
            return (*random.one_of(&["7", "0", "[]", "{}", "\"\"", "null", "-1.5e3", "true"])).to_owned();
        }
        80..700 => random.between(30, 300),
        700..950 => random.between(300, 4096),
        950..996 => random.between(4096, 32 * 1024),
        996..999 => random.between(32 * 1024, 256 * 1024),
        _ => LARGEST as u64 - random.between(0, 3),
    };
    let bytes = usize::try_from(bytes).expect("below a usize");
    // A line break between two tokens is kept in the log and in Redis; a stream has a space there.
    let gap = random.one_of(&["", " ", "\n", "\r\n", "\t"]);
    let mut text = format!("{{\"k\":{gap}{key},{gap}\"text\":\"");
    let end = bytes - 2;
    while text.len() + 8 < end {
        text.push_str(TOKENS[random.below(TOKENS.len())]);
        let plain =
            usize::try_from(random.between(0, 400)).expect("small").min((end - text.len()).saturating_sub(8));
        let letter = char::from(b'a' + u8::try_from(random.between(0, 26)).expect("a letter"));
        text.extend(std::iter::repeat_n(letter, plain));
    }
    while text.len() < end {
        text.push('.');
    }
    text.push_str("\"}");
    text
}

/// The same as what an event is made of.
pub(crate) fn raw(seed: u64, key: u64) -> Box<RawValue> {
    RawValue::from_string(of(seed, key)).expect("it is JSON")
}

/// A payload as a stream's `data` shows it: one line.
pub(crate) fn as_told(payload: &str) -> String {
    payload.trim_matches([' ', '\t', '\r', '\n']).replace(['\r', '\n'], " ")
}

/// A hash that stands for bytes where there are too many to keep. Different bytes almost always have
/// different marks.
pub(crate) fn mark(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}
