//! The inside of `wire`, for the targets of `fuzz/`. Built for them alone.

use bytes::Bytes;

use super::wire::frame::Frame;
use super::wire::multi_topic::MultiTopic;
use super::wire::naming::Naming;
use super::wire::start::StartAt;
use crate::event::{EventType, StreamId};

/// The frame of an event as a stream has it, and as one with `?data=text` has it.
///
/// # Panics
/// If the name of the type is not allowed.
pub fn frame((epoch, seq): (u64, u64), event_type: &str, payload: &str) -> (Bytes, Bytes) {
    let event_type = EventType::new(event_type).expect("a type");
    let block = Frame::of_event(StreamId::new(epoch, seq), &event_type, payload, Naming::OfType).block;
    let as_text = block.as_text(|bytes| bytes).bytes;
    (block.bytes, as_text)
}

/// Reads the `Last-Event-ID` of a stream of several topics.
pub fn starts(multi_topic: &MultiTopic, id: &str) {
    if let Some(starts) = multi_topic.starts(id, StartAt::Latest) {
        assert_eq!(starts.len(), multi_topic.topics().len(), "one start a topic");
    }
}
