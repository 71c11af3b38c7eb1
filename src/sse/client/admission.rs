//! Admits a stream if the limits allow it, and counts it for as long as it lives.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use chrono::Utc;
use tokio::time::Instant;

use crate::auth::User;
use crate::event::{ResumeToken, Topic};
use crate::http::Connection;
use crate::sse::queue::open_streams::{OpenStream, StreamLimits};
use crate::sse::queue::send_queue::{SendLimits, SendQueue, StreamTopic};
use crate::sse::shared::Shared;
use crate::sse::topic::shared_topic::SharedTopic;
use crate::sse::topic::state::TopicState;
use crate::sse::wire::multi_topic::StreamCursors;
use crate::sse::wire::query::Keep;
use crate::sse::wire::refusal::Refusal;
use crate::sse::wire::resume::Resume;

/// How often unused topics are released before their time, where there are too many.
const MAKE_ROOM_EVERY: Duration = Duration::from_secs(1);

/// Counts a stream against the limits until it is dropped.
#[derive(Debug)]
pub(crate) struct StreamGuard {
    shared: Arc<Shared>,
    /// In the order of the stream's topics.
    topics: Vec<Arc<SharedTopic>>,
    pub(crate) queue: Arc<SendQueue>,
}

impl StreamGuard {
    /// Each topic of the stream, with its entry to the send queue.
    /// `token` is the client's resume token.
    pub(crate) fn stream_topics(
        &self,
        token: Option<&Arc<ResumeToken>>,
        is_text: bool,
    ) -> impl Iterator<Item = (Arc<SharedTopic>, StreamTopic)> {
        self.topics.iter().enumerate().map(move |(at, topic)| {
            let epoch = |token: &Arc<ResumeToken>| token.epoch_of(&self.shared.relay);
            let resume = token.map(|token| Resume::new(token.clone(), epoch(token), topic.topic.clone()));
            (
                topic.clone(),
                StreamTopic { queue: self.queue.clone(), at, resume: resume.map(Arc::new), is_text },
            )
        })
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.queue.close();
        for topic in &self.topics {
            topic.remove_subscriber(self.queue.number());
        }
        self.shared.metrics.connections.dec();
        if let Some(gone) = self.shared.open_streams.remove(self.queue.number())
            && self.queue.was_slow()
        {
            let sent_bytes = self.queue.load(Instant::now()).taken_bytes;
            tracing::info!(
                user = %gone.user,
                peer = %gone.peer,
                since = %gone.since,
                sent_bytes,
                "a client that does not keep up was cut off"
            );
            self.shared.metrics.slow_closes.inc();
        }
    }
}

/// A request for a stream.
#[derive(Debug)]
pub(crate) struct StreamRequest {
    pub(crate) user: User,
    pub(crate) topics: Arc<[Topic]>,
    /// The cursors of a stream of several topics.
    pub(crate) cursors: Option<StreamCursors>,
    pub(crate) keep: Keep,
    /// Whether the stream has a socket, to which its blocks are written.
    pub(crate) is_written: bool,
    pub(crate) expires_at: Option<Instant>,
    pub(crate) connection: Connection,
}

impl Shared {
    /// Admits a stream, or says why not.
    pub(crate) fn admit(self: &Arc<Self>, request: StreamRequest) -> Result<StreamGuard, Refusal> {
        if self.draining.load(Ordering::Relaxed) {
            return Err(Refusal::Draining);
        }
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let limits =
            SendLimits { queued_bytes: self.settings.max_queued_bytes, expires_at: request.expires_at };
        let queue = SendQueue::new(number, limits, request.cursors, request.connection.end);
        let queue = queue.with_budget(self.budget.clone());
        let queue = if request.is_written { queue } else { queue.unwritten() };
        let queue = Arc::new(match request.keep {
            Keep::All => queue,
            Keep::Newest { tells } => queue.with_newest(request.topics.clone(), tells),
        });
        let stream = OpenStream {
            queue: queue.clone(),
            user: request.user.id,
            credential: request.user.credential,
            topics: request.topics.clone(),
            peer: request.connection.peer,
            since: Utc::now(),
        };
        let limits = StreamLimits {
            streams: self.settings.max_connections,
            streams_per_user: self.settings.max_connections_per_user,
            topics_per_user: self.settings.max_topics_per_user,
        };
        self.open_streams.admit(stream, limits)?;
        let topics =
            self.acquire_topics(&request.topics).inspect_err(|_| drop(self.open_streams.remove(number)))?;
        self.metrics.connections.inc();
        // The credential may have been revoked since it was checked, and nothing else would notice.
        self.end_revoked(Some(number));
        Ok(StreamGuard { shared: self.clone(), topics, queue })
    }

    /// The topics, each with one more stream, if there is room for those that are new.
    fn acquire_topics(self: &Arc<Self>, wanted: &[Topic]) -> Result<Vec<Arc<SharedTopic>>, Refusal> {
        let mut topics = self.topics();
        let fits = |topics: &HashMap<Topic, Arc<SharedTopic>>| {
            let new = wanted.iter().filter(|topic| !topics.contains_key(*topic)).count();
            topics.len() + new <= self.settings.max_topics || new == 0
        };
        if !fits(&topics) {
            self.make_room(&mut topics);
        }
        if !fits(&topics) {
            return Err(Refusal::Topics);
        }
        Ok(wanted.iter().map(|topic| self.acquire_topic(&mut topics, topic)).collect())
    }

    /// Releases unused topics before their time; at most once a second, because it looks at every topic.
    fn make_room(&self, topics: &mut HashMap<Topic, Arc<SharedTopic>>) {
        let now = Instant::now();
        let mut made = self.made_room.lock().unwrap_or_else(PoisonError::into_inner);
        if made.is_none_or(|made| now.saturating_duration_since(made) >= MAKE_ROOM_EVERY) {
            *made = Some(now);
            self.release(topics, now, Duration::ZERO);
        }
    }

    /// The topic, with one more stream. A new topic begins to join.
    fn acquire_topic(
        self: &Arc<Self>,
        topics: &mut HashMap<Topic, Arc<SharedTopic>>,
        topic: &Topic,
    ) -> Arc<SharedTopic> {
        let found = topics.get(topic).cloned();
        let is_new = found.is_none();
        let shared_topic = found.unwrap_or_else(|| {
            let naming = (self.naming)(topic.as_str());
            let made = Arc::new(SharedTopic::new(topic.clone(), naming, self.joining(topic)));
            topics.insert(topic.clone(), made.clone());
            made
        });
        // Under the map's lock, so that a topic without streams cannot be removed in between.
        shared_topic.add_subscriber();
        self.metrics.topics.set(topics.len().try_into().unwrap_or(i64::MAX));
        if is_new {
            self.must_join(&shared_topic);
        }
        shared_topic
    }

    fn joining(&self, topic: &Topic) -> TopicState {
        TopicState::new(
            topic.clone(),
            self.recent_limits.clone(),
            self.pending_bytes.clone(),
            self.metrics.clone(),
        )
    }
}
