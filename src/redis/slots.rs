//! The 16,384 hash slots of a cluster: which slot a key is in, and how sets of slots are written. Pure.

use std::sync::OnceLock;

/// The number of slots.
pub(super) const COUNT: u16 = 16_384;

/// Returns the slot of a key: the CRC16 (XMODEM) of its hash tag, or of the whole key if it has none. See the
/// cluster specification of Redis, "Hash tags".
pub(super) fn slot_of(key: &str) -> u16 {
    crc16(hash_tag(key).as_bytes()) % COUNT
}

/// The part between the first `{` and the next `}`, unless it is empty.
fn hash_tag(key: &str) -> &str {
    let Some((_, behind)) = key.split_once('{') else { return key };
    match behind.split_once('}') {
        Some((tag, _)) if !tag.is_empty() => tag,
        _ => key,
    }
}

fn crc16(bytes: &[u8]) -> u16 {
    let shift = |crc: u16, _bit: u8| if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
    bytes.iter().fold(0, |crc, byte| (0..8).fold(crc ^ (u16::from(*byte) << 8), shift))
}

/// Returns the hash tag that stands for a slot: the smallest number whose digits hash to that slot.
pub(super) fn tag_of(slot: u16) -> String {
    static TAGS: OnceLock<Vec<u32>> = OnceLock::new();
    let tags = TAGS.get_or_init(|| {
        let mut tags = vec![None; usize::from(COUNT)];
        let mut missing = tags.len();
        for number in 0_u32.. {
            if missing == 0 {
                break;
            }
            let tag = &mut tags[usize::from(slot_of(&number.to_string()))];
            missing -= usize::from(tag.is_none());
            tag.get_or_insert(number);
        }
        tags.into_iter().map(Option::unwrap_or_default).collect()
    });
    tags[usize::from(slot % COUNT)].to_string()
}

/// A set of slots: ranges in order, apart from each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SlotSet(Vec<(u16, u16)>);

impl SlotSet {
    /// Adds a slot that is above all slots of the set.
    pub(super) fn push(&mut self, slot: u16) {
        match self.0.last_mut() {
            Some((_, last)) if *last + 1 == slot => *last = slot,
            _ => self.0.push((slot, slot)),
        }
    }

    /// The slots, in order.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = u16> + '_ {
        self.0.iter().flat_map(|(first, last)| *first..=*last)
    }

    pub(super) fn contains(&self, slot: u16) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&slot))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The highest slot and the one below it; `None` if there are fewer.
    pub(super) fn two_highest(&self) -> Option<[u16; 2]> {
        let mut from_the_highest = self.iter().rev();
        Some([from_the_highest.next()?, from_the_highest.next()?])
    }

    pub(super) fn highest(&self) -> Option<u16> {
        self.0.last().map(|(_, last)| *last)
    }

    /// Reads a set as [`SlotSet::to_string`] writes it. A text that cannot be read holds no slot.
    pub(super) fn parse(text: &str) -> Self {
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some((first.parse().ok()?, last.parse().ok()?))
        };
        Self(
            text.split(',')
                .filter_map(range)
                .filter(|(first, last)| first <= last && *last < COUNT)
                .collect(),
        )
    }
}

/// As in `0-5460,7000`.
impl std::fmt::Display for SlotSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, (first, last)) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_in_the_slot_of_its_hash_tag() {
        // The check value of CRC16/XMODEM, and slots that a server named.
        assert_eq!(crc16(b"123456789"), 0x31C3);
        assert_eq!(slot_of("{t1}"), 8943);
        assert_eq!(slot_of("aftercommit:{t1}:history"), slot_of("t1"));
        assert_eq!(slot_of("a{}b"), crc16(b"a{}b") % COUNT, "an empty tag is none");
        assert_eq!(slot_of("a{b"), crc16(b"a{b") % COUNT);
        assert_eq!(slot_of("{a}{b}"), slot_of("a"), "the first tag counts");
    }

    #[test]
    fn each_slot_has_a_tag_of_its_own() {
        for slot in 0..COUNT {
            assert_eq!(slot_of(&format!("x:{{{}}}:y", tag_of(slot))), slot);
        }
    }

    #[test]
    fn a_set_is_read_as_it_was_written() {
        let mut set = SlotSet::default();
        for slot in [0, 1, 2, 7, 9, 10, 16_383] {
            set.push(slot);
        }
        assert_eq!(set.to_string(), "0-2,7,9-10,16383");
        assert_eq!(SlotSet::parse(&set.to_string()), set);
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 1, 2, 7, 9, 10, 16_383]);
        for nothing in ["", "x", "5-2", "99999"] {
            assert_eq!(SlotSet::parse(nothing), SlotSet::default(), "{nothing}");
        }
    }
}
