//! The task that reads a subscriber connection: it classifies each message and puts it into the inbox. Never
//! waits for anything but the socket.

use ::redis::aio::PubSubStream;
use futures_util::StreamExt;

use super::inbox::{InboxSender, PubSubMessage};
use crate::event::PAYLOAD_BYTES_MAX;
use crate::redis::envelope;
use crate::redis::keys::Keys;

/// Bytes of one message at most: more than the envelope of the largest event. The relay sends no larger
/// message. Larger ones are dropped, because a few of them would fill the inbox and have every topic joined
/// anew.
const MESSAGE_BYTES: usize = PAYLOAD_BYTES_MAX + 64 * 1024;

/// Reads until the connection ends or the inbox has no room, and returns the reason.
pub(super) async fn read(mut stream: PubSubStream, keys: Keys, inbox: InboxSender) -> String {
    let mut classifier = Classifier { keys, is_of_cluster: false, twin: None };
    while let Some(message) = stream.next().await {
        if let Some(message) = classifier.classify(message.get_channel_name(), message.get_payload_bytes())
            && !inbox.push(message)
        {
            return TOO_FAST.to_owned();
        }
    }
    "the connection was closed".to_owned()
}

/// The reason for giving up a connection whose messages have no room.
pub(super) const TOO_FAST: &str = "messages came faster than they could be processed";

/// The bare payload that follows an envelope: its topic, and the payload.
pub(super) type Twin = (String, String);

/// Tells an event's envelope from its twin and from messages of other programs.
pub(super) struct Classifier {
    pub(super) keys: Keys,
    /// In a cluster a twin can come without its envelope.
    pub(super) is_of_cluster: bool,
    /// The bare payload that the script publishes right after the last envelope.
    pub(super) twin: Option<Twin>,
}

impl Classifier {
    /// Returns `None` for a twin and for a message that is dropped.
    pub(super) fn classify(&mut self, channel: &str, bytes: &[u8]) -> Option<PubSubMessage> {
        let expected = self.twin.take();
        if bytes.len() > MESSAGE_BYTES {
            tracing::warn!(
                channel,
                bytes = bytes.len(),
                limit = MESSAGE_BYTES,
                "a message of another program is too large; dropped"
            );
            return None;
        }
        let text = String::from_utf8_lossy(bytes).into_owned();
        if let Some(topic) = self.keys.topic_of_live(channel) {
            let topic = topic.to_owned();
            self.twin = envelope::twin_of(&text).map(|payload| (topic.clone(), payload.to_owned()));
            return Some(PubSubMessage::Envelope { topic, text });
        }
        let topic = self.keys.topic_of_public(channel)?;
        let is_twin = expected.is_some_and(|(of, payload)| of == topic && payload == text);
        let topic = topic.to_owned();
        match (is_twin, self.is_of_cluster) {
            (true, _) => None,
            (false, false) => Some(PubSubMessage::Foreign { topic, text }),
            (false, true) => Some(PubSubMessage::Bare { topic, text }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kinds of these messages of one topic, given as channel and text.
    fn kinds(is_of_cluster: bool, messages: &[(&str, &str)]) -> Vec<&'static str> {
        let keys = Keys::default();
        let topic = crate::event::Topic::new("t").expect("a topic");
        let mut classifier = Classifier { keys: keys.clone(), is_of_cluster, twin: None };
        let channel = |name: &str| if name == "live" { keys.live(&topic) } else { keys.public(&topic) };
        let kind = |(name, text): &(&str, &str)| match classifier.classify(&channel(name), text.as_bytes()) {
            None => "dropped",
            Some(PubSubMessage::Envelope { .. }) => "envelope",
            Some(PubSubMessage::Foreign { .. }) => "foreign",
            Some(PubSubMessage::Bare { .. }) => "bare",
            Some(_) => "another",
        };
        messages.iter().map(kind).collect()
    }

    #[test]
    fn a_twin_is_dropped_and_what_comes_without_its_envelope_is_an_event_only_in_a_cluster() {
        let event = |payload: &str| format!(r#"{{"id":"1-1","prev":null,"payload":{payload}}}"#);
        let messages = [("live", &*event("1")), ("public", "1"), ("public", "1"), ("live", &event("2"))];
        let behind = [("public", "3")];
        let all = [&messages[..], &behind].concat();
        assert_eq!(kinds(false, &all), ["envelope", "dropped", "foreign", "envelope", "foreign"]);
        assert_eq!(kinds(true, &all), ["envelope", "dropped", "bare", "envelope", "bare"]);
        let large = "x".repeat(MESSAGE_BYTES + 1);
        assert_eq!(kinds(false, &[("public", &large)]), ["dropped"]);
    }
}
