//! Several topics in one stream. EventSource keeps one id, so that id holds a cursor for each topic:
//! `3f9a01c2=1-42,77b0e5d1=1-7`.
//!
//! A short tag stands for each topic, so that a page that adds, drops or reorders topics keeps its place in
//! the others. Pages send the text back and do not read it.

use std::fmt;
use std::fmt::Write;

use bytes::Bytes;

use super::cursor::Cursor;
use super::frame::Block;
use crate::event::{RESERVED_TYPES, Topic};
use crate::sse::wire::start::StartAt;

/// Topics that one stream may have: as many as a ticket may name.
pub const TOPICS_MAX: usize = crate::auth::TICKET_TOPICS_MAX;

/// The longest id of a stream of several topics, in bytes: for each a tag, `=`, a cursor of two numbers, and
/// a comma.
pub const ID_BYTES_MAX: usize = TOPICS_MAX * (8 + 1 + 20 + 1 + 20 + 1);

/// Entries of an id that are read at most: more than topics, because a page may have dropped topics since.
const ENTRIES_MAX: usize = 4 * TOPICS_MAX;

/// Why topics cannot share a stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MultiTopicError {
    /// There is none, or too many.
    #[error("name 1 to {TOPICS_MAX} topics, as ?topic=a&topic=b; this request names {0}")]
    Count(usize),
    /// Two topics cannot be told apart in an id.
    #[error("{0} and {1} cannot be had in one stream (their tags are the same): open a stream for each")]
    SameTag(Topic, Topic),
    /// The name of a topic is that of an event which the server or the browser sends itself.
    #[error("{0} is reserved as the name of an event: leave name=topic out, or open a stream for this topic")]
    Reserved(Topic),
}

/// The topics of one stream, each once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MultiTopic {
    topics: Vec<Topic>,
    is_named_by_topic: bool,
}

impl MultiTopic {
    /// These topics, each once. With `is_named_by_topic` every event's `event:` is its topic, so that a page
    /// can tell which topic it came from; otherwise it is what it would be on the topic's own stream.
    ///
    /// # Errors
    /// [`MultiTopicError`].
    pub fn new(mut topics: Vec<Topic>, is_named_by_topic: bool) -> Result<Self, MultiTopicError> {
        topics.sort();
        topics.dedup();
        if topics.is_empty() || topics.len() > TOPICS_MAX {
            return Err(MultiTopicError::Count(topics.len()));
        }
        let is_reserved = |topic: &&Topic| RESERVED_TYPES.contains(&topic.as_str());
        if let Some(topic) = topics.iter().find(is_reserved).filter(|_| is_named_by_topic) {
            return Err(MultiTopicError::Reserved(topic.clone()));
        }
        for (at, topic) in topics.iter().enumerate() {
            if let Some(other) = topics[..at].iter().find(|other| Tag::of(other) == Tag::of(topic)) {
                return Err(MultiTopicError::SameTag(other.clone(), topic.clone()));
            }
        }
        Ok(Self { topics, is_named_by_topic })
    }

    /// The topics, in the order of the stream's topics.
    pub fn topics(&self) -> &[Topic] {
        &self.topics
    }

    /// Where each topic begins for a client that comes with this id, if it is one: a topic that it does not
    /// hold begins as for a client without an id.
    pub(crate) fn starts(&self, id: &str, fresh: StartAt) -> Option<Vec<StartAt>> {
        let known = parse(id)?;
        let place = |topic: &Topic| known.iter().rev().find(|(tag, _)| *tag == Tag::of(topic));
        Some(
            self.topics
                .iter()
                .map(|topic| place(topic).map_or(fresh, |(_, at)| StartAt::After(*at)))
                .collect(),
        )
    }
}

/// A topic in an id: 32 bits of its name's FNV-1a hash, the same on every server and in every version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tag(u32);

impl Tag {
    fn of(topic: &Topic) -> Self {
        const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0000_0100_0000_01b3;
        let hash =
            topic.as_str().bytes().fold(OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
        Self((hash >> 32) as u32 ^ (hash & u64::from(u32::MAX)) as u32)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

fn parse(id: &str) -> Option<Vec<(Tag, Cursor)>> {
    let entries: Vec<&str> = id.split(',').take(ENTRIES_MAX + 1).collect();
    if entries.len() > ENTRIES_MAX {
        return None;
    }
    entries.into_iter().map(entry).collect()
}

fn entry(text: &str) -> Option<(Tag, Cursor)> {
    let (tag, cursor) = text.split_once('=')?;
    let is_tag = tag.len() == 8 && tag.bytes().all(|byte| byte.is_ascii_hexdigit());
    let tag = is_tag.then(|| u32::from_str_radix(tag, 16).ok()).flatten()?;
    Some((Tag(tag), Cursor::parse(cursor).ok()?))
}

/// One client's place in each topic of its stream, and how blocks are written for it.
#[derive(Debug)]
pub(crate) struct StreamCursors {
    cursors: Vec<(Tag, Option<Cursor>)>,
    /// The `event:` lines, where events are named by topic.
    names: Option<Vec<Bytes>>,
}

impl StreamCursors {
    /// The cursors of a client with these starts.
    pub(crate) fn new(multi_topic: &MultiTopic, starts: &[StartAt]) -> Self {
        let named = |from: &StartAt| match from {
            StartAt::After(cursor) => Some(*cursor),
            _ => None,
        };
        let topics = multi_topic.topics();
        let name = |topic: &Topic| Bytes::from(format!("event: {topic}\n"));
        Self {
            cursors: topics.iter().zip(starts).map(|(topic, from)| (Tag::of(topic), named(from))).collect(),
            names: multi_topic.is_named_by_topic.then(|| topics.iter().map(name).collect()),
        }
    }

    /// The block as this client gets it, in two parts: its own beginning, and the text that all clients
    /// share.
    pub(crate) fn write(&mut self, topic: usize, block: &Block) -> (Bytes, Bytes) {
        let mut own = String::new();
        if let Some(place) = block.cursor() {
            self.cursors[topic].1 = Some(place);
            // Writing to a String cannot fail.
            let _infallible = writeln!(own, "id: {self}");
        }
        match &self.names {
            Some(names) if block.is_event() => {
                own.push_str(std::str::from_utf8(&names[topic]).unwrap_or_default());
                (own.into(), block.without_name())
            }
            _ => (own.into(), block.without_id()),
        }
    }
}

impl fmt::Display for StreamCursors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for (tag, place) in &self.cursors {
            // A topic whose place is not known yet is left out: nothing of it has been promised to the
            // client.
            if let Some(place) = place {
                write!(f, "{comma}{tag}={place}")?;
                comma = ",";
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{EventType, StreamId};
    use crate::sse::Naming;
    use crate::sse::wire::frame::Frame;

    fn multi_topic(topics: &[&str], is_named_by_topic: bool) -> MultiTopic {
        let topics = topics.iter().map(|name| Topic::new(*name).expect("a topic")).collect();
        MultiTopic::new(topics, is_named_by_topic).expect("a stream")
    }

    fn after(seq: u64) -> StartAt {
        StartAt::After(Cursor::After(StreamId::new(1, seq)))
    }

    fn event(seq: u64) -> Block {
        let kind = EventType::new("T").expect("a type");
        Frame::of_event(StreamId::new(1, seq), &kind, "{}", Naming::OfType).block
    }

    fn text(parts: (Bytes, Bytes)) -> String {
        String::from_utf8([parts.0, parts.1].concat()).expect("UTF-8")
    }

    #[test]
    fn an_id_holds_the_place_in_each_topic_and_reads_back() {
        let stream = multi_topic(&["a", "b", "c"], false);
        let mut cursors = StreamCursors::new(&stream, &[StartAt::Latest, after(7), StartAt::Latest]);
        let written = text(cursors.write(0, &event(42)));
        let (id, rest) = written.split_once('\n').expect("an id line");
        assert_eq!(rest, "event: T\ndata: {}\n\n");
        let id = id.strip_prefix("id: ").expect("an id");
        assert_eq!(stream.starts(id, StartAt::Last), Some(vec![after(42), after(7), StartAt::Last]));
        // Another set of topics keeps the places that it shares.
        assert_eq!(
            multi_topic(&["d", "b"], false).starts(id, StartAt::Latest),
            Some(vec![after(7), StartAt::Latest])
        );
    }

    #[test]
    fn events_are_named_by_their_topic_where_that_is_wanted_and_resets_are_not() {
        let stream = multi_topic(&["a", "b"], true);
        let mut cursors = StreamCursors::new(&stream, &[StartAt::Latest, StartAt::Latest]);
        assert!(text(cursors.write(1, &event(1))).ends_with("=1-1\nevent: b\ndata: {}\n\n"));
        let topic = Topic::new("a").expect("a topic");
        let reset = crate::sse::wire::frame::reset(
            crate::sse::wire::frame::ResetReason::Gap,
            &topic,
            Cursor::After(StreamId::new(1, 9)),
        );
        assert!(text(cursors.write(0, &reset)).contains("\nevent: reset\n"));
        let foreign = crate::sse::wire::frame::foreign("x");
        assert_eq!(text(cursors.write(0, &foreign)), "event: a\ndata: x\n\n");
    }

    #[test]
    fn what_is_no_id_of_a_stream_of_several_topics_is_not_taken_for_one() {
        let stream = multi_topic(&["a"], false);
        let too_many = vec!["00000000=1-1"; ENTRIES_MAX + 1].join(",");
        for bad in ["1-42", "", ",", "x=1-1", "3f9a01c2=", "+0000001=1-1", "3f9a01c2=1-1,", &too_many] {
            assert_eq!(stream.starts(bad, StartAt::Latest), None, "{bad}");
        }
    }

    #[test]
    fn a_topic_with_the_name_of_an_event_of_the_server_cannot_name_events() {
        let topics = || vec![Topic::new("reset").expect("a topic"), Topic::new("order:1").expect("a topic")];
        let refused = MultiTopic::new(topics(), true).map_err(|error| error.to_string());
        assert!(refused.is_err_and(|error| error.starts_with("reset is reserved")));
        assert!(MultiTopic::new(topics(), false).is_ok());
    }

    #[test]
    fn a_stream_has_one_to_thirty_two_different_topics() {
        let topics =
            |count: usize| (0..count).map(|n| Topic::new(format!("t{n}")).expect("a topic")).collect();
        assert_eq!(MultiTopic::new(topics(0), false), Err(MultiTopicError::Count(0)));
        assert!(MultiTopic::new(topics(32), false).is_ok());
        assert_eq!(MultiTopic::new(topics(33), false), Err(MultiTopicError::Count(33)));
        assert_eq!(multi_topic(&["a", "b", "a"], false).topics().len(), 2);
    }

    #[test]
    fn a_tag_never_changes() {
        let tag = |name: &str| Tag::of(&Topic::new(name).expect("a topic")).to_string();
        assert_eq!(tag("a"), tag("a"));
        // The published test vector of FNV-1a, folded: af63dc4c ^ 8601ec8c.
        assert_eq!(tag("a"), "296230c0");
    }
}
