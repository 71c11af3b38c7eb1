//! All topics and connections of a process, and the messages that come in for them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::Utc;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connections::{Connected, Connections, Most, Refusal};
use super::frame::{self, Frame};
use super::held::Held;
use super::metrics::Metrics;
use super::naming::Naming;
use super::outlet::{Lane, Outlet, Terms};
use super::pages::Pages;
use super::recent::Budget;
use super::settings::Settings;
use super::several::Lanes;
use super::ticker;
use super::topic::{News, Next, TopicState};
use super::{join, open::Start};
use crate::auth::UserId;
use crate::event::{StreamId, Topic};
use crate::http::Connection;
use crate::redis::continuity::Loss;
use crate::redis::envelope::Envelope;
use crate::redis::subscriber::{Ears, Heard};
use crate::redis::{self, History, Subscriber};
use crate::trace;

/// Reads of histories that may be under way at once.
const READS_AT_ONCE: usize = 32;

/// How often topics that nobody uses are let go of before their time, where there are too many.
const MAKE_ROOM_EVERY: Duration = Duration::from_secs(1);

/// All streams of one process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Hub(pub(super) Arc<Shared>);

/// What a process's streams share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) metrics: Metrics,
    pub(super) history: History,
    /// How long a history is kept after its last event.
    pub(super) history_ttl: Duration,
    pub(super) reads: Semaphore,
    /// What the last repair had to leave out, as the ticker has found it.
    loss: Mutex<Option<Loss>>,
    pub(super) pages: Pages,
    pub(super) subscriber: Subscriber,
    naming: fn(&str) -> Naming,
    ears: Mutex<Option<Ears>>,
    budget: Budget,
    /// What is held for all streams, in bytes.
    pub(super) held: Held,
    /// What all topics keep while they are joining, in bytes.
    heard_bytes: Arc<AtomicUsize>,
    topics: Mutex<HashMap<Topic, Arc<SharedTopic>>>,
    /// When unused topics were last let go of before their time.
    made_room: Mutex<Option<Instant>>,
    pub(super) connections: Connections,
    next_number: AtomicU64,
    pub(super) draining: AtomicBool,
    /// Told whenever the ticker has come one thing further: looked after all streams, or asked Redis about some topics.
    pub(super) ticked: Notify,
    stop: CancellationToken,
}

/// A topic as the process's tasks share it.
#[derive(Debug)]
pub(super) struct SharedTopic {
    pub(super) topic: Topic,
    pub(super) naming: Naming,
    state: Mutex<TopicState>,
    /// Told whenever a join ends.
    pub(super) settled: Notify,
    visits: Mutex<Visits>,
}

/// Who uses a topic.
#[derive(Debug)]
struct Visits {
    count: usize,
    /// Since when there has been nobody.
    empty_since: Instant,
    /// It is not in the hub any more.
    is_gone: bool,
    /// When it was last known to stand at the end of its history.
    verified: Instant,
    /// Redis refuses it.
    is_refused: bool,
}

impl SharedTopic {
    pub(super) fn state(&self) -> MutexGuard<'_, TopicState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn visits(&self) -> MutexGuard<'_, Visits> {
        self.visits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the hub has let go of it, so that nothing needs to be done for it any more.
    pub(super) fn is_gone(&self) -> bool {
        self.visits().is_gone
    }

    /// Whether Redis refuses it, so that nothing of it can be told now.
    pub(super) fn is_refused(&self) -> bool {
        self.visits().is_refused
    }

    /// Notes whether Redis refuses it, and returns what was noted before.
    pub(super) fn set_refused(&self, is_refused: bool) -> bool {
        std::mem::replace(&mut self.visits().is_refused, is_refused)
    }

    pub(super) fn is_verified(&self) {
        self.visits().verified = Instant::now();
    }
}

/// A stream's place in the hub: given up when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    shared: Arc<Shared>,
    /// In the order of the stream's lanes.
    topics: Vec<Arc<SharedTopic>>,
    pub(super) outlet: Arc<Outlet>,
}

impl Place {
    /// Each topic of the stream, with its way into it.
    pub(super) fn lanes(&self) -> impl Iterator<Item = (Arc<SharedTopic>, Lane)> {
        let lane = |at| Lane { outlet: self.outlet.clone(), at };
        self.topics.iter().enumerate().map(move |(at, topic)| (topic.clone(), lane(at)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.outlet.leave();
        for topic in &self.topics {
            topic.state().detach(self.outlet.number());
            let mut visits = topic.visits();
            visits.count -= 1;
            visits.empty_since = Instant::now();
        }
        self.shared.metrics.connections.dec();
        if let Some(gone) = self.shared.connections.remove(self.outlet.number())
            && self.outlet.was_slow()
        {
            let sent_bytes = self.outlet.load(Instant::now()).taken_bytes;
            tracing::info!(user = %gone.user, peer = %gone.peer, since = %gone.since, sent_bytes, "a client that does not keep up was cut off");
            self.shared.metrics.slow_closes.inc();
        }
    }
}

/// Who wants a place.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) user: UserId,
    pub(super) topics: Arc<[Topic]>,
    /// Where the stream has several topics.
    pub(super) lanes: Option<Lanes>,
    pub(super) expires_at: Option<Instant>,
    pub(super) connection: Connection,
}

impl Hub {
    /// A hub that reads from one Redis. `naming` says how the events of a topic are named. Must be called within a Tokio
    /// runtime: the connection to Redis is begun at once.
    pub fn new(
        settings: Settings,
        redis: &redis::Settings,
        naming: fn(&str) -> Naming,
        metrics: Metrics,
    ) -> Self {
        metrics.connections_limit.set(settings.max_connections.try_into().unwrap_or(i64::MAX));
        metrics.held_bytes_limit.set(settings.max_held_bytes.try_into().unwrap_or(i64::MAX));
        metrics.topics_limit.set(settings.max_topics.try_into().unwrap_or(i64::MAX));
        let stop = CancellationToken::new();
        let (subscriber, ears) = Subscriber::start(redis.clone(), stop.clone());
        let budget = Budget {
            events: settings.recent_events,
            bytes: settings.recent_bytes_of_topic(),
            all_bytes: settings.recent_bytes_of_all(),
            all_used: Arc::new(AtomicUsize::new(0)),
        };
        Self(Arc::new(Shared {
            history: History::new(redis.clone()),
            history_ttl: redis.history_ttl(),
            reads: Semaphore::new(READS_AT_ONCE),
            loss: Mutex::default(),
            pages: Pages::default(),
            subscriber,
            naming,
            ears: Mutex::new(Some(ears)),
            budget,
            held: Held::new(settings.max_held_bytes),
            heard_bytes: Arc::default(),
            topics: Mutex::default(),
            made_room: Mutex::default(),
            connections: Connections::default(),
            next_number: AtomicU64::new(1),
            draining: AtomicBool::new(false),
            ticked: Notify::new(),
            stop,
            settings,
            metrics,
        }))
    }

    /// Takes in what Redis tells and looks after the streams until `shutdown`; then ends them, spread over the drain time.
    ///
    /// # Panics
    /// If it runs already.
    pub async fn run(&self, shutdown: CancellationToken) {
        let shared = &self.0;
        let ears = shared.ears.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut ears = ears.expect("a hub is run once");
        let hearing = async {
            while let Some(heard) = ears.next().await {
                shared.hear(heard);
            }
        };
        let draining = async {
            shutdown.cancelled().await;
            ticker::drain(shared).await;
        };
        tokio::select! {
            () = hearing => {}
            () = ticker::run(shared) => {}
            () = draining => {}
        }
        shared.stop.cancel();
    }

    /// Says whether Redis answers, for readiness.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn ping(&self) -> Result<(), redis::history::ReadError> {
        self.0.history.ping().await
    }

    /// Waits until all streams have been looked after once more, which happens about twice a second. For one who watches.
    pub async fn tick(&self) {
        self.0.ticked.notified().await;
    }

    /// Whether streams are being ended.
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn topics(&self) -> MutexGuard<'_, HashMap<Topic, Arc<SharedTopic>>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a place for a stream.
    pub(super) fn admit(self: &Arc<Self>, guest: Guest) -> Result<Place, Refusal> {
        if self.draining.load(Ordering::Relaxed) {
            return Err(Refusal::Draining);
        }
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let terms = Terms { queued_bytes: self.settings.max_queued_bytes, expires_at: guest.expires_at };
        let outlet = Outlet::new(number, terms, guest.lanes, guest.connection.end);
        let outlet = Arc::new(outlet.counted_in(self.held.clone()));
        let connected = Connected {
            outlet: outlet.clone(),
            user: guest.user,
            topics: guest.topics.clone(),
            peer: guest.connection.peer,
            since: Utc::now(),
        };
        let most = Most {
            of_all: self.settings.max_connections,
            of_a_user: self.settings.max_connections_per_user,
            topics_of_a_user: self.settings.max_topics_per_user,
        };
        self.connections.admit(connected, most)?;
        let topics = self.visit_all(&guest.topics).inspect_err(|_| drop(self.connections.remove(number)))?;
        self.metrics.connections.inc();
        Ok(Place { shared: self.clone(), topics, outlet })
    }

    /// The topics, each with one more visitor, if there is room for those that are new.
    fn visit_all(self: &Arc<Self>, wanted: &[Topic]) -> Result<Vec<Arc<SharedTopic>>, Refusal> {
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
        Ok(wanted.iter().map(|topic| self.visit(&mut topics, topic)).collect())
    }

    /// Lets go of topics that nobody uses before their time, but not all the time: it looks at each of them.
    fn make_room(&self, topics: &mut HashMap<Topic, Arc<SharedTopic>>) {
        let now = Instant::now();
        let mut made = self.made_room.lock().unwrap_or_else(PoisonError::into_inner);
        if made.is_none_or(|made| now.saturating_duration_since(made) >= MAKE_ROOM_EVERY) {
            *made = Some(now);
            self.release(topics, now, Duration::ZERO);
        }
    }

    /// The topic, with one more visitor. One that is new begins to join.
    fn visit(
        self: &Arc<Self>,
        topics: &mut HashMap<Topic, Arc<SharedTopic>>,
        topic: &Topic,
    ) -> Arc<SharedTopic> {
        let found = topics.get(topic).cloned();
        let is_new = found.is_none();
        let shared_topic = found.unwrap_or_else(|| {
            let visits = Visits {
                count: 0,
                empty_since: Instant::now(),
                is_gone: false,
                verified: Instant::now(),
                is_refused: false,
            };
            let made = Arc::new(SharedTopic {
                topic: topic.clone(),
                naming: (self.naming)(topic.as_str()),
                state: Mutex::new(self.joining(topic)),
                settled: Notify::new(),
                visits: Mutex::new(visits),
            });
            topics.insert(topic.clone(), made.clone());
            made
        });
        // Under the map's lock, so that a topic without visitors cannot be removed in between.
        shared_topic.visits().count += 1;
        self.metrics.topics.set(topics.len().try_into().unwrap_or(i64::MAX));
        if is_new {
            tokio::spawn(join::run(self.clone(), shared_topic.clone()));
        }
        shared_topic
    }

    fn joining(&self, topic: &Topic) -> TopicState {
        TopicState::new(topic.clone(), self.budget.clone(), self.heard_bytes.clone(), self.metrics.clone())
    }

    /// Takes in one thing that the subscriber heard.
    fn hear(self: &Arc<Self>, heard: Heard) {
        match heard {
            Heard::Interrupted => {
                self.metrics.interruptions.inc();
                let all: Vec<_> = self.topics().values().cloned().collect();
                for topic in all {
                    self.join_anew(&topic);
                }
            }
            Heard::Envelope { topic, text } => {
                let Some(topic) = self.topics().get(topic.as_str()).cloned() else { return };
                match Envelope::parse(&text) {
                    Ok(envelope) => {
                        let payload = envelope.payload.get();
                        let frame = Frame::of_event(envelope.id, &envelope.event_type, payload, topic.naming);
                        let frame = self.held.frame(frame);
                        tracing::trace!(id = %envelope.id, event = %envelope.event, topic = %topic.topic, "heard");
                        let _delivering = trace::deliver(envelope.trace, &topic.topic, envelope.event);
                        let (prev, is_restored) = (envelope.prev, envelope.restored);
                        self.tell(&topic, News::Event { prev, is_restored, frame });
                        if let Some(at) = envelope.at {
                            self.metrics.told(at);
                        }
                    }
                    Err(error) => {
                        // Not the error's own words: they quote what was sent.
                        let at = error.column();
                        tracing::warn!(topic = %topic.topic, kind = ?error.classify(), at, "not an envelope on a live channel; ignored");
                    }
                }
            }
            Heard::Foreign { topic, text } => {
                let Some(topic) = self.topics().get(topic.as_str()).cloned() else { return };
                self.tell(&topic, News::Foreign(self.held.block(frame::foreign(&text))));
            }
        }
    }

    fn tell(self: &Arc<Self>, topic: &Arc<SharedTopic>, news: News) {
        // What somebody else publishes says nothing of what the relay has published.
        let is_of_the_relay = matches!(news, News::Event { .. });
        let next = topic.state().hear(news);
        if is_of_the_relay {
            topic.is_verified();
        }
        if self.held.is_over() {
            self.relieve();
        }
        if next == Next::Join {
            tracing::info!(topic = %topic.topic, "a hole before an event; reading the history");
            tokio::spawn(join::run(self.clone(), topic.clone()));
        }
    }

    /// The highest number that may be missing from histories, while a place before it may still be continued from.
    pub(super) fn lost(&self) -> Option<StreamId> {
        let loss = (*self.loss.lock().unwrap_or_else(PoisonError::into_inner))?;
        let now_ms = u64::try_from(Utc::now().timestamp_millis()).unwrap_or(0);
        let age = Duration::from_millis(now_ms.saturating_sub(loss.at_ms));
        (age < self.history_ttl).then_some(loss.through)
    }

    /// Notes what a repair had to leave out. Where that is new, no topic's history proves any more that it is whole.
    pub(super) fn note_loss(self: &Arc<Self>, found: Option<Loss>) {
        let before = std::mem::replace(&mut *self.loss.lock().unwrap_or_else(PoisonError::into_inner), found);
        if found.is_some() && found != before {
            let all: Vec<_> = self.topics().values().cloned().collect();
            for topic in all {
                self.join_anew(&topic);
            }
        }
    }

    /// Cuts off the slowest clients where more is held for all streams than may be.
    pub(super) fn relieve(&self) {
        let cut_off = self.connections.relieve(&self.held);
        if cut_off > 0 {
            let (held, limit) = (self.held.bytes(), self.held.limit());
            tracing::warn!(
                cut_off,
                held,
                limit,
                "the slowest clients are cut off: events for all streams take sse.max_held_bytes"
            );
            self.metrics.relief_closes.inc_by(cut_off as u64);
        }
    }

    /// Joins a topic that may have missed something.
    pub(super) fn join_anew(self: &Arc<Self>, topic: &Arc<SharedTopic>) {
        if topic.state().begin_join() {
            tokio::spawn(join::run(self.clone(), topic.clone()));
        }
    }

    /// Lets go of topics that nobody has used for the grace time.
    pub(super) fn release_topics(&self, now: Instant) {
        self.release(&mut self.topics(), now, self.settings.topic_grace());
    }

    fn release(&self, topics: &mut HashMap<Topic, Arc<SharedTopic>>, now: Instant, grace: Duration) {
        let released = topics.extract_if(|_, topic| {
            let mut visits = topic.visits();
            visits.is_gone = visits.count == 0 && now.saturating_duration_since(visits.empty_since) >= grace;
            visits.is_gone
        });
        for (topic, _) in released {
            // Under the map's lock: a later visit subscribes again, and that must stand behind this in the queue.
            self.subscriber.unsubscribe(topic);
        }
        self.metrics.topics.set(topics.len().try_into().unwrap_or(i64::MAX));
    }

    /// Live topics that nothing was heard of for the time of a verification.
    pub(super) fn unverified(&self, now: Instant) -> Vec<Arc<SharedTopic>> {
        let every = self.settings.verify();
        let topics = self.topics();
        topics
            .values()
            .filter(|topic| {
                let visits = topic.visits();
                visits.count > 0 && now.saturating_duration_since(visits.verified) >= every
            })
            .filter(|topic| topic.state().is_live())
            .cloned()
            .collect()
    }

    /// What a client that names no place begins with.
    pub(super) fn default_start() -> Start {
        Start::Latest
    }
}
