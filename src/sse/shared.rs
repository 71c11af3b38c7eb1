//! The state that the streams of a process share: topics, connections, limits, and the ways to Redis. Runs no
//! task.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::Utc;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::history::log_of_redis::LogOfRedis;
use super::metrics::Metrics;
use super::queue::byte_budget::ByteBudget;
use super::queue::open_streams::OpenStreams;
use super::settings::Settings;
use super::sockets::Sockets;
use super::topic::event_page::{EventPage, EventPageKey, PageError};
use super::topic::pages::Pages;
use super::topic::recent::RecentLimits;
use super::topic::shared_topic::SharedTopic;
use super::wire::cursor::{Cursor, now_ms};
use super::wire::frame;
use super::wire::naming::Naming;
use crate::auth::Revocations;
use crate::backoff::random_fraction;
use crate::event::{StreamId, Topic};
use crate::redis::continuity::Loss;
use crate::redis::subscriber::Inbox;
use crate::redis::{self, History, Subscriber, history_kept};

/// Bare messages that may wait to be verified.
const BARE_MESSAGES: usize = 4096;
/// How long a stream whose credential is revoked may still read its queue.
const REVOKED_WAIT: Duration = Duration::from_millis(500);
/// Reads of histories that may be under way at once.
const READS_AT_ONCE: usize = 32;
/// Readers of pages that may read at once. Each reserves as many bytes as a page of unknown events may have;
/// more of them would take the room that streams need.
const PAGES_AT_ONCE: usize = 8;

/// The state that a process's streams share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) metrics: Metrics,
    pub(crate) history: History,
    /// How long a history is kept after its last event.
    pub(crate) history_ttl: Duration,
    /// As in [`crate::redis::Settings::history_kept`].
    pub(crate) history_kept: Duration,
    pub(crate) reads: Semaphore,
    /// The turns of readers of pages.
    pub(crate) page_reads: Semaphore,
    /// The events that the last repair had to leave out, as `history::verify` has read it.
    loss: Mutex<Option<Loss>>,
    pub(crate) pages: Pages,
    /// The pages of readers that wait.
    pub(crate) event_pages: Pages<EventPageKey, Arc<EventPage>, PageError>,
    pub(crate) subscriber: Subscriber,
    pub(crate) naming: fn(&str) -> Naming,
    /// The relay whose events these are: a resume token holds the epochs of all relays of its log.
    pub(crate) relay: String,
    /// The log whose events these are.
    pub(crate) log: LogOfRedis,
    /// The inputs of the hub's task; taken when it runs.
    pub(crate) work: Mutex<Option<Work>>,
    /// Topics that have to be brought to the end of their histories.
    joins: mpsc::UnboundedSender<Arc<SharedTopic>>,
    /// Bare messages that may be of another program.
    bare: mpsc::Sender<(Arc<SharedTopic>, String)>,
    pub(crate) recent_limits: RecentLimits,
    /// The bytes that are held for all streams.
    pub(crate) budget: ByteBudget,
    /// Bytes of the messages that wait, of all topics that are joining.
    pub(crate) pending_bytes: Arc<AtomicUsize>,
    topics: Mutex<HashMap<Topic, Arc<SharedTopic>>>,
    /// When unused topics were last released before their time.
    pub(crate) made_room: Mutex<Option<Instant>>,
    pub(crate) open_streams: OpenStreams,
    /// The credentials that operators have revoked.
    pub(crate) revocations: Revocations,
    /// The threads that write the streams.
    pub(crate) sockets: Sockets,
    pub(crate) next_number: AtomicU64,
    pub(crate) draining: AtomicBool,
    /// Notified when the ticker has looked after all streams.
    pub(crate) ticked: Notify,
    pub(crate) stop: CancellationToken,
}

/// The inputs of the hub's task.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) inbox: Inbox,
    pub(crate) joins: mpsc::UnboundedReceiver<Arc<SharedTopic>>,
    pub(crate) bare: mpsc::Receiver<(Arc<SharedTopic>, String)>,
}

impl Shared {
    /// The shared state before the first stream. Starts the connection to Redis and the streams' threads.
    ///
    /// # Errors
    /// The kernel's own, where there is no room for a thread or its files.
    pub(crate) fn new(
        settings: Settings,
        redis: &redis::Settings,
        naming: fn(&str) -> Naming,
        relay: String,
        revocations: Revocations,
        metrics: Metrics,
    ) -> io::Result<Self> {
        let sockets = Sockets::start()?;
        let stop = CancellationToken::new();
        let (subscriber, inbox) = Subscriber::start(redis.clone(), stop.clone());
        let (joins, to_join) = mpsc::unbounded_channel();
        let (bare, to_verify) = mpsc::channel(BARE_MESSAGES);
        let recent_limits = RecentLimits {
            events: settings.recent_events,
            bytes: settings.recent_bytes_of_topic(),
            all_bytes: settings.recent_bytes_of_all(),
            all_used: Arc::new(AtomicUsize::new(0)),
        };
        Ok(Self {
            history: History::new(redis.clone()),
            history_ttl: redis.history_ttl(),
            history_kept: redis.history_kept(),
            reads: Semaphore::new(READS_AT_ONCE),
            page_reads: Semaphore::new(PAGES_AT_ONCE),
            loss: Mutex::default(),
            pages: Pages::default(),
            event_pages: Pages::default(),
            subscriber,
            naming,
            relay,
            log: LogOfRedis::default(),
            work: Mutex::new(Some(Work { inbox, joins: to_join, bare: to_verify })),
            joins,
            bare,
            recent_limits,
            budget: ByteBudget::new(settings.max_held_bytes),
            pending_bytes: Arc::default(),
            topics: Mutex::default(),
            made_room: Mutex::default(),
            open_streams: OpenStreams::default(),
            revocations,
            sockets,
            next_number: AtomicU64::new(1),
            draining: AtomicBool::new(false),
            ticked: Notify::new(),
            stop,
            settings,
            metrics,
        })
    }

    pub(crate) fn topics(&self) -> MutexGuard<'_, HashMap<Topic, Arc<SharedTopic>>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The highest number that a repair had to leave out. `None` if there is none, or if every place before
    /// it has expired.
    pub(crate) fn lost(&self) -> Option<StreamId> {
        let loss = (*self.loss.lock().unwrap_or_else(PoisonError::into_inner))?;
        let now_ms = u64::try_from(Utc::now().timestamp_millis()).unwrap_or(0);
        let age = Duration::from_millis(now_ms.saturating_sub(loss.at_ms));
        (age < self.history_ttl).then_some(loss.through)
    }

    /// Whether this is a start that was seen longer ago than histories are kept: an event since may have
    /// expired.
    pub(crate) async fn is_too_old(&self, cursor: Cursor) -> bool {
        let Cursor::Start { seen_ms } = cursor else { return false };
        if !self.history.knows_times()
            && let Err(error) = self.history.loss().await
        {
            tracing::debug!(%error, "cannot ask for how long the relay keeps histories");
        }
        cursor.is_too_old(now_ms(), self.history.kept_since(seen_ms))
    }

    /// How long a history is kept at least after an event since this time, or after its last one.
    /// `last_proof` is in milliseconds since 1970.
    pub(crate) fn kept_since(&self, last_proof: u64) -> Duration {
        self.history_kept.min(history_kept(self.history.kept_since(last_proof)))
    }

    /// Notes the events that a repair had to leave out. If they are new, no topic's history proves that it is
    /// whole.
    pub(crate) fn note_loss(&self, found: Option<Loss>) {
        let before = std::mem::replace(&mut *self.loss.lock().unwrap_or_else(PoisonError::into_inner), found);
        if found.is_some() && found != before {
            let all: Vec<_> = self.topics().values().cloned().collect();
            for topic in all {
                self.join_anew(&topic);
            }
        }
    }

    /// Cuts off the slowest clients while more is held for all streams than the limit.
    pub(crate) fn cut_off_slowest(&self) {
        let cut_off = self.open_streams.cut_off_slowest(&self.budget);
        if cut_off > 0 {
            let (held, limit) = (self.budget.held(), self.budget.limit());
            tracing::warn!(
                cut_off,
                held,
                limit,
                "the slowest clients are cut off: raise sse.max_held_bytes, or run more sse processes"
            );
            self.metrics.relief_closes.inc_by(cut_off as u64);
        }
    }

    /// Ends the streams whose credentials are revoked; with a `number`, only that stream. Returns how many it
    /// ended.
    pub(crate) fn end_revoked(&self, number: Option<u64>) -> usize {
        let mut ended = self.open_streams.revoked(&self.revocations, number);
        ended.retain(|queue| queue.finish(frame::revoked()));
        let count = ended.len();
        self.metrics.revoked.inc_by(count as u64);
        if count > 0 {
            tokio::spawn(async move {
                tokio::time::sleep(REVOKED_WAIT).await;
                // A client that reads nothing would stay for as long as it likes.
                ended.iter().for_each(|queue| queue.cut_off());
            });
        }
        count
    }

    /// Joins a topic anew that may have missed a message.
    pub(crate) fn join_anew(&self, topic: &Arc<SharedTopic>) {
        if topic.state().begin_join() {
            self.must_join(topic);
        }
    }

    /// Has the hub's task bring a topic that is joining to the end of its history.
    pub(crate) fn must_join(&self, topic: &Arc<SharedTopic>) {
        // Without a receiver the process is ending.
        let _sent = self.joins.send(topic.clone());
    }

    /// Has the hub's task find out whether a bare message is of another program.
    pub(crate) fn must_verify(&self, topic: Arc<SharedTopic>, text: String) {
        if self.bare.try_send((topic, text)).is_err() {
            tracing::warn!(
                "messages of other programs come faster than they can be verified; some are dropped"
            );
        }
    }

    /// Releases topics that no stream has used for the grace time.
    pub(crate) fn release_topics(&self, now: Instant) {
        self.release(&mut self.topics(), now, self.settings.topic_grace());
    }

    pub(crate) fn release(
        &self,
        topics: &mut HashMap<Topic, Arc<SharedTopic>>,
        now: Instant,
        grace: Duration,
    ) {
        let released = topics.extract_if(|_, topic| topic.release_if_unused(now, grace));
        for (topic, _) in released {
            // Under the map's lock: a later stream subscribes again, and that must follow this in the queue.
            self.subscriber.unsubscribe(topic);
        }
        self.metrics.topics.set(topics.len().try_into().unwrap_or(i64::MAX));
    }

    /// Live topics without a message for the time of a verification.
    pub(crate) fn unverified(&self, now: Instant) -> Vec<Arc<SharedTopic>> {
        let every = self.settings.verify();
        let topics = self.topics();
        topics
            .values()
            .filter(|topic| topic.is_unverified(now, every) && topic.state().is_live())
            .cloned()
            .collect()
    }

    /// A random time after which a client reconnects: between `times` and twice `times` the setting.
    pub(crate) fn retry_after(&self, times: u32) -> Duration {
        let base = Duration::from_millis(self.settings.retry_ms) * times;
        base + base.mul_f64(random_fraction())
    }
}
