//! Every name that aftercommit uses in Redis, in one place. The contract fixes them.

use crate::event::Topic;

/// The stream that keeps a topic's history: one entry an event, id `<epoch>-<seq>`, fields `event`, `type`, `payload`.
///
/// The braces are part of the key: a cluster hash tag, so that all keys of a topic live on one node.
pub fn history(topic: &Topic) -> String {
    format!("aftercommit:{{{topic}}}:history")
}

/// The channel on which a topic's events travel as envelopes (see [`super::envelope`]).
pub fn live(topic: &Topic) -> String {
    format!("aftercommit:{{{topic}}}:live")
}

/// The topic of a live channel, or `None` if it is another kind of channel.
pub fn topic_of_live(channel: &str) -> Option<&str> {
    channel.strip_prefix("aftercommit:{")?.strip_suffix("}:live")
}

/// The channel on which a topic's bare payloads travel, and on which anybody may PUBLISH: the topic's own name.
pub fn public(topic: &Topic) -> &str {
    topic.as_str()
}

/// The highest id that a relay has published: tells a Redis that forgot from one that did not.
pub fn top(relay: &str) -> String {
    format!("aftercommit:{relay}:top")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_of_the_contract() {
        let topic = Topic::new("upload-session:42").expect("a topic");
        assert_eq!(history(&topic), "aftercommit:{upload-session:42}:history");
        assert_eq!(live(&topic), "aftercommit:{upload-session:42}:live");
        assert_eq!(public(&topic), "upload-session:42");
        assert_eq!(topic_of_live(&live(&topic)), Some("upload-session:42"));
        assert_eq!(topic_of_live("upload-session:42"), None);
        assert_eq!(top("main"), "aftercommit:main:top");
    }
}
