//! The open streams of a process: their limits, their users, and which of them read too slowly.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio::time::Instant;

use crate::auth::{Credential, Revocations, UserId};
use crate::event::Topic;
use crate::sse::queue::byte_budget::ByteBudget;
use crate::sse::queue::send_queue::{Load, SendQueue};
use crate::sse::wire::refusal::Refusal;

/// A stream that has taken nothing for this long is cut off where others wait for room.
const STUCK_AT_LEAST: Duration = Duration::from_secs(1);

/// An open stream.
#[derive(Debug, Clone)]
pub(crate) struct OpenStream {
    pub(crate) queue: Arc<SendQueue>,
    pub(crate) user: UserId,
    pub(crate) credential: Credential,
    pub(crate) topics: Arc<[Topic]>,
    pub(crate) peer: SocketAddr,
    pub(crate) since: DateTime<Utc>,
}

/// The open streams of a process.
#[derive(Debug, Default)]
pub(crate) struct OpenStreams(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    by_number: HashMap<u64, OpenStream>,
    of_user: HashMap<UserId, UserUsage>,
}

/// The streams and topics of one user.
#[derive(Debug, Clone, Copy, Default)]
struct UserUsage {
    streams: usize,
    topics: usize,
}

/// How many streams there may be. 0 means no limit for a user.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StreamLimits {
    pub(crate) streams: usize,
    pub(crate) streams_per_user: usize,
    pub(crate) topics_per_user: usize,
}

impl OpenStreams {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a stream if the limits allow it.
    pub(crate) fn admit(&self, stream: OpenStream, limits: StreamLimits) -> Result<(), Refusal> {
        let mut open = self.open();
        if open.by_number.len() >= limits.streams {
            return Err(Refusal::Full);
        }
        let taken = open.of_user.get(&stream.user).copied().unwrap_or_default();
        let taken = UserUsage { streams: taken.streams + 1, topics: taken.topics + stream.topics.len() };
        if limits.streams_per_user > 0 && taken.streams > limits.streams_per_user {
            return Err(Refusal::User);
        }
        if limits.topics_per_user > 0 && taken.topics > limits.topics_per_user {
            return Err(Refusal::UserTopics);
        }
        open.of_user.insert(stream.user.clone(), taken);
        open.by_number.insert(stream.queue.number(), stream);
        Ok(())
    }

    /// Removes a stream.
    pub(crate) fn remove(&self, number: u64) -> Option<OpenStream> {
        let mut open = self.open();
        let gone = open.by_number.remove(&number)?;
        if let Some(taken) = open.of_user.get_mut(&gone.user) {
            taken.streams = taken.streams.saturating_sub(1);
            taken.topics = taken.topics.saturating_sub(gone.topics.len());
            if taken.streams == 0 {
                open.of_user.remove(&gone.user);
            }
        }
        Some(gone)
    }

    /// Every stream's queue.
    pub(crate) fn queues(&self) -> Vec<Arc<SendQueue>> {
        self.open().by_number.values().map(|stream| stream.queue.clone()).collect()
    }

    /// The queues of the streams whose credentials are revoked: of all streams, or of this one.
    pub(crate) fn revoked(&self, revocations: &Revocations, number: Option<u64>) -> Vec<Arc<SendQueue>> {
        let is_revoked = |one: &&OpenStream| {
            let topics = one.topics.iter().map(Topic::as_str);
            revocations.is_revoked(&one.user, &one.credential, topics)
        };
        let open = self.open();
        let queue = |one: &OpenStream| one.queue.clone();
        match number {
            None => open.by_number.values().filter(is_revoked).map(queue).collect(),
            Some(number) => open.by_number.get(&number).filter(is_revoked).map(queue).into_iter().collect(),
        }
    }

    /// Cuts off the slowest streams, slowest first, until there is room. Spares streams for which nothing
    /// waits, and streams that go on reading unless more is held than the limit. Returns how many were cut
    /// off.
    pub(crate) fn cut_off_slowest(&self, budget: &ByteBudget) -> usize {
        let now = Instant::now();
        let loads = self.queues().into_iter().map(|queue| (queue.load(now), queue));
        let mut waiting: Vec<_> = loads.filter(|(load, _)| load.weight().1 > 0).collect();
        waiting.sort_by_key(|(load, _)| std::cmp::Reverse(load.weight()));
        let mut count = 0;
        for (load, queue) in waiting {
            let is_enough =
                if load.weight().0 >= STUCK_AT_LEAST { !budget.is_short() } else { !budget.is_over() };
            if is_enough {
                break;
            }
            queue.cut_off_as_slow();
            count += 1;
        }
        count
    }

    /// The slowest streams, slowest first: by how long they have taken nothing, then by the bytes that wait
    /// for them.
    pub(crate) fn slowest(&self, top: usize) -> Slowest {
        let streams: Vec<OpenStream> = self.open().by_number.values().cloned().collect();
        let now = Instant::now();
        let mut loads: Vec<(Load, &OpenStream)> =
            streams.iter().map(|one| (one.queue.load(now), one)).collect();
        loads.sort_by_key(|(load, _)| std::cmp::Reverse(load.weight()));
        Slowest {
            open: loads.len(),
            queued_bytes: loads.iter().map(|(load, _)| load.queued_bytes).sum(),
            slowest: loads.iter().take(top).map(|(load, one)| Stream::of(one, *load)).collect(),
        }
    }
}

/// The streams of a process, as operators see them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Slowest {
    /// Open streams.
    open: usize,
    /// Bytes that wait for all of them.
    queued_bytes: usize,
    slowest: Vec<Stream>,
}

/// One stream, as operators see it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Stream {
    number: u64,
    user: UserId,
    topics: Vec<String>,
    peer: String,
    since: String,
    queued_bytes: usize,
    sent_bytes: u64,
    /// How long its kernel has taken nothing although something waits, in milliseconds.
    stuck_ms: u64,
}

impl Stream {
    fn of(stream: &OpenStream, load: Load) -> Self {
        Self {
            number: stream.queue.number(),
            user: stream.user.clone(),
            topics: stream.topics.iter().map(ToString::to_string).collect(),
            peer: stream.peer.to_string(),
            since: stream.since.to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
            queued_bytes: load.queued_bytes,
            sent_bytes: load.taken_bytes,
            stuck_ms: load.stuck.as_millis().try_into().unwrap_or(u64::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sse::queue::send_queue::SendLimits;
    use tokio_util::sync::CancellationToken;

    fn stream(number: u64, user: &UserId) -> OpenStream {
        let limits = SendLimits { queued_bytes: 1000, expires_at: None };
        let queue = SendQueue::new(number, limits, None, CancellationToken::new());
        OpenStream {
            queue: Arc::new(queue),
            user: user.clone(),
            credential: Credential::default(),
            topics: Arc::new([]),
            peer: ([127, 0, 0, 1], 1).into(),
            since: Utc::now(),
        }
    }

    #[test]
    fn a_user_has_so_many_streams_and_all_users_together_so_many() {
        let all = OpenStreams::default();
        let limits = StreamLimits { streams: 3, streams_per_user: 2, topics_per_user: 0 };
        let user = |name| UserId::new(name).expect("a user");
        let (ann, bob) = (&user("auth0|ann"), &user("17"));
        assert_eq!(all.admit(stream(1, ann), limits), Ok(()));
        assert_eq!(all.admit(stream(2, ann), limits), Ok(()));
        assert_eq!(all.admit(stream(3, ann), limits), Err(Refusal::User));
        assert_eq!(all.admit(stream(4, bob), limits), Ok(()));
        assert_eq!(all.admit(stream(5, bob), limits), Err(Refusal::Full));
        all.remove(1);
        all.remove(1);
        assert_eq!(all.admit(stream(6, ann), limits), Ok(()));
        let unlimited = StreamLimits { streams: 100, ..StreamLimits { streams_per_user: 0, ..limits } };
        assert_eq!(all.admit(stream(7, ann), unlimited), Ok(()));
    }

    #[test]
    fn a_user_has_so_many_topics_in_all_of_their_streams() {
        let all = OpenStreams::default();
        let limits = StreamLimits { streams: 9, streams_per_user: 0, topics_per_user: 5 };
        let user = UserId::new("ann").expect("a user");
        let topics: Arc<[Topic]> = ["a", "b"].map(|name| Topic::new(name).expect("a topic")).into();
        let with_topics = |number| OpenStream { topics: topics.clone(), ..stream(number, &user) };
        assert_eq!(all.admit(with_topics(1), limits), Ok(()));
        assert_eq!(all.admit(with_topics(2), limits), Ok(()));
        assert_eq!(all.admit(with_topics(3), limits), Err(Refusal::UserTopics));
        all.remove(1);
        assert_eq!(all.admit(with_topics(4), limits), Ok(()));
        all.remove(2);
        all.remove(4);
        assert!(all.open().of_user.is_empty());
    }

    #[test]
    fn for_room_the_slowest_are_cut_off_and_no_more_than_needed() {
        let (all, budget) = (OpenStreams::default(), ByteBudget::new(100));
        let user = UserId::new("ann").expect("a user");
        let queues: Vec<Arc<SendQueue>> = (1..=4)
            .map(|number| {
                let one = stream(number, &user);
                let bytes = vec![b'x'; usize::try_from(number).expect("a number") * 20];
                one.queue.put_bytes(budget.hold(bytes.into()));
                let queue = one.queue.clone();
                all.admit(one, StreamLimits { streams: 9, streams_per_user: 0, topics_per_user: 0 })
                    .expect("room");
                queue
            })
            .collect();
        assert_eq!(budget.held(), 200);
        let cut_off = all.cut_off_slowest(&budget);
        assert!(
            budget.held() <= 100 && (1..4).contains(&cut_off),
            "{} bytes, {cut_off} cut off",
            budget.held()
        );
        assert_eq!(queues.iter().filter(|queue| queue.was_slow()).count(), cut_off);
        assert_eq!(all.cut_off_slowest(&budget), 0);
    }

    #[test]
    fn the_slowest_stream_is_told_first() {
        let all = OpenStreams::default();
        for number in 1..=3 {
            let one = stream(number, &UserId::new("ann").expect("a user"));
            one.queue.put_bytes(vec![b'x'; usize::try_from(number).expect("a number") * 10].into());
            all.admit(one, StreamLimits { streams: 9, streams_per_user: 0, topics_per_user: 0 })
                .expect("room");
        }
        let answer = serde_json::to_value(all.slowest(2)).expect("JSON");
        assert_eq!((answer["open"].as_u64(), answer["queuedBytes"].as_u64()), (Some(3), Some(60)));
        assert_eq!(answer["slowest"].as_array().map(Vec::len), Some(2));
    }
}
