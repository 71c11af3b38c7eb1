//! Every name that aftercommit uses in Redis. Users rely on them, so they must not change.
//!
//! `publish.lua` makes the names of [`Keys::begun`] and [`Keys::live`] from the key of the history, so the
//! script has to change with them.

use crate::event::Topic;

/// The names of one namespace. Without a namespace (the default), keys are `aftercommit:…` and public
/// channels are the topics themselves.
///
/// A namespace keeps several logs on one Redis apart: with `staging`, keys are `aftercommit:staging:…` and
/// public channels are `staging:TOPIC`. Redis's database numbers cannot do that, because pub/sub ignores
/// them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keys {
    /// `NAMESPACE:`, or empty.
    prefix: String,
}

impl Keys {
    /// Makes the names of a namespace. An empty name means no namespace.
    pub fn new(namespace: &str) -> Self {
        let prefix = if namespace.is_empty() { String::new() } else { format!("{namespace}:") };
        Self { prefix }
    }

    /// Returns patterns that match all keys and live channels, and all public channels.
    pub fn patterns(&self) -> (String, String) {
        (format!("aftercommit:{}*", self.prefix), format!("{}*", self.prefix))
    }

    /// Returns the stream with a topic's history. It has one entry an event, with the id `<epoch>-<seq>` and
    /// the fields `event`, `type`, `payload` and `prev`.
    ///
    /// The braces are part of the key: a cluster hash tag, so that all keys of a topic are on one node.
    pub fn history(&self, topic: &Topic) -> String {
        format!("aftercommit:{}{{{topic}}}:history", self.prefix)
    }

    /// Returns a key that outlives a topic's history by a minute. If the history is missing while this key
    /// exists, the history has not expired: it was deleted or evicted.
    pub fn begun(&self, topic: &Topic) -> String {
        format!("aftercommit:{}{{{topic}}}:begun", self.prefix)
    }

    /// Returns the channel of a topic's envelopes (see [`super::envelope`]).
    pub fn live(&self, topic: &Topic) -> String {
        format!("aftercommit:{}{{{topic}}}:live", self.prefix)
    }

    /// Returns the topic of a live channel, or `None` for another kind of channel or another namespace.
    pub fn topic_of_live<'a>(&self, channel: &'a str) -> Option<&'a str> {
        let name = channel.strip_prefix("aftercommit:")?.strip_prefix(self.prefix.as_str())?;
        name.strip_prefix('{')?.strip_suffix("}:live")
    }

    /// Returns the channel of a topic's bare payloads. Other programs may PUBLISH on it.
    pub fn public(&self, topic: &Topic) -> String {
        format!("{}{topic}", self.prefix)
    }

    /// Returns the topic of a public channel, or `None` if the channel is of another namespace.
    pub fn topic_of_public<'a>(&self, channel: &'a str) -> Option<&'a str> {
        channel.strip_prefix(self.prefix.as_str())
    }

    /// Returns the key of a relay's top: the highest number that it has used up, and the event with that
    /// number. It shows whether Redis has forgotten events.
    pub fn top(&self, relay: &str) -> String {
        format!("aftercommit:{}{relay}:top", self.prefix)
    }

    /// Returns the key with the identity of the log that owns this namespace, and the format of its keys.
    pub fn log(&self) -> String {
        format!("aftercommit:{}log", self.prefix)
    }

    /// As [`Keys::top`], for a server of a cluster: the tag stands for a slot of that server.
    pub(super) fn top_at(&self, relay: &str, tag: &str) -> String {
        format!("aftercommit:{}{{{tag}}}:{relay}:top", self.prefix)
    }

    /// A key that nobody writes, in the slot of this tag.
    pub(super) fn nothing_at(&self, tag: &str) -> String {
        format!("aftercommit:{}{{{tag}}}:nothing", self.prefix)
    }

    /// As [`Keys::log`], for a server of a cluster.
    pub(super) fn log_at(&self, tag: &str) -> String {
        format!("aftercommit:{}{{{tag}}}:log", self.prefix)
    }
}

/// Whether a name may be a namespace: at most 60 characters of `A-Z a-z 0-9 . _ -`. Empty is allowed.
pub fn is_namespace(name: &str) -> bool {
    name.len() <= 60
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_of_the_contract() {
        let topic = Topic::new("upload-session:42").expect("a topic");
        let keys = Keys::default();
        assert_eq!(keys.history(&topic), "aftercommit:{upload-session:42}:history");
        assert_eq!(keys.live(&topic), "aftercommit:{upload-session:42}:live");
        assert_eq!(keys.public(&topic), "upload-session:42");
        assert_eq!(keys.topic_of_live(&keys.live(&topic)), Some("upload-session:42"));
        assert_eq!(keys.topic_of_live("upload-session:42"), None);
        assert_eq!(keys.topic_of_public("upload-session:42"), Some("upload-session:42"));
        assert_eq!(keys.top("main"), "aftercommit:main:top");
        assert_eq!(keys.log(), "aftercommit:log");
        assert_eq!(keys.top_at("main", "23"), "aftercommit:{23}:main:top");
        assert_eq!(keys.log_at("23"), "aftercommit:{23}:log");
    }

    #[test]
    fn the_names_of_a_namespace_are_its_own() {
        let topic = Topic::new("order:1").expect("a topic");
        let (none, staging) = (Keys::default(), Keys::new("staging"));
        assert_eq!(staging.history(&topic), "aftercommit:staging:{order:1}:history");
        assert_eq!(staging.live(&topic), "aftercommit:staging:{order:1}:live");
        assert_eq!(staging.public(&topic), "staging:order:1");
        assert_eq!(staging.top("main"), "aftercommit:staging:main:top");
        assert_eq!(staging.log(), "aftercommit:staging:log");
        assert_eq!(staging.topic_of_live(&staging.live(&topic)), Some("order:1"));
        assert_eq!(staging.topic_of_live(&none.live(&topic)), None);
        assert_eq!(none.topic_of_live(&staging.live(&topic)), None);
        assert_eq!(staging.topic_of_public("staging:order:1"), Some("order:1"));
        assert_eq!(staging.topic_of_public("order:1"), None);
    }

    #[test]
    fn a_namespace_is_a_short_name_without_colons_and_braces() {
        for good in ["", "staging", "team-a.v2_x"] {
            assert!(is_namespace(good), "{good}");
        }
        for bad in ["a:b", "{a}", "a b", "\u{e9}", &"x".repeat(61)] {
            assert!(!is_namespace(bad), "{bad}");
        }
    }
}
