//! The task that reads a subscriber connection: it classifies each message and puts it into the inbox. Never
//! waits for anything but the socket.

use ::redis::Msg;
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
    let mut twin = None;
    while let Some(message) = stream.next().await {
        if let Some(message) = classify(&message, &keys, &mut twin)
            && !inbox.push(message)
        {
            return "messages came faster than they could be processed".to_owned();
        }
    }
    "the connection was closed".to_owned()
}

/// The bare payload that follows an envelope: its topic, and the payload.
type Twin = (String, String);

/// Tells an event's envelope from its twin and from messages of other programs. Returns `None` for a twin and
/// for a message that is dropped. `twin` holds the bare payload that the script publishes right behind the
/// last envelope.
fn classify(message: &Msg, keys: &Keys, twin: &mut Option<Twin>) -> Option<PubSubMessage> {
    let channel = message.get_channel_name();
    let expected = twin.take();
    let bytes = message.get_payload_bytes();
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
    if let Some(topic) = keys.topic_of_live(channel) {
        let topic = topic.to_owned();
        *twin = envelope::twin_of(&text).map(|payload| (topic.clone(), payload.to_owned()));
        return Some(PubSubMessage::Envelope { topic, text });
    }
    let topic = keys.topic_of_public(channel)?;
    let is_twin = expected.is_some_and(|(of, payload)| of == topic && payload == text);
    (!is_twin).then(|| PubSubMessage::Foreign { topic: topic.to_owned(), text })
}
