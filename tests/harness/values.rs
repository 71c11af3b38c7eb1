//! Values that tests make and read: events, and the JSON of commands and answers.

use aftercommit::event::{EventType, NewEvent, Topic};
use serde::Serialize;
use serde_json::Value;

/// An event to append.
#[track_caller]
pub(crate) fn new_event(topic: &Topic, kind: &str, payload: &impl Serialize) -> NewEvent {
    let kind = EventType::new(kind).expect("a valid type");
    NewEvent::new(topic.clone(), kind, payload).expect("a payload that serializes")
}

/// The items of a JSON array.
#[track_caller]
pub(crate) fn items_of(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("not an array: {value}"))
}

/// The text of a JSON string.
#[track_caller]
pub(crate) fn str_of(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("not a string: {value}"))
}
