//! Any client may send any id. One that is understood is written as it was read, and no other does harm.

#![no_main]

use aftercommit::event::Topic;
use aftercommit::sse::{Cursor, MultiTopic, fuzzed};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|id: &str| {
    if let Ok(cursor) = Cursor::parse(id) {
        assert_eq!(Cursor::parse(&cursor.to_string()).expect("its own text"), cursor);
    }
    let topics = ["order:1", "order:2"].map(|topic| Topic::new(topic).expect("a topic"));
    let multi_topic = MultiTopic::new(topics.to_vec(), false).expect("two topics");
    fuzzed::starts(&multi_topic, id);
});
