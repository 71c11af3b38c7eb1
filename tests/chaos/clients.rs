//! Clients: EventSources that alternate between both SSE servers. Some of them disconnect and reconnect all
//! the time.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use aftercommit::event::{StreamId, Topic};
use futures_util::StreamExt;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::harness::{Event, Parser, http_builder};
use crate::payload;
use crate::random::Random;
use crate::world::{Channel, World};

/// Clients of each topic.
const CLIENTS: usize = 3;
/// The reconnect time: the default of EventSource is too long for a campaign of minutes.
const RECONNECT: Duration = Duration::from_millis(100);
/// The client reconnects after this time without a heartbeat: twice the interval that the server was asked
/// for.
const SILENCE: Duration = Duration::from_secs(4);

/// Something that a client received.
#[derive(Debug, Clone)]
pub(crate) enum Received {
    /// An event with its place; `told` is the [`payload::mark`] of its data.
    Event { id: Option<StreamId>, name_fits: bool, told: u64, at: Instant },
    /// A message without a place: somebody else published it, or so the server says.
    Foreign { data: String, connection: usize },
    /// A reset: the stream goes on after this place, and the page fetched the earlier state itself.
    Reset {
        /// Where it was before.
        from: Option<StreamId>,
        id: Option<StreamId>,
        reason: String,
        fits: bool,
        at: Instant,
        state: Arc<OnceLock<State>>,
    },
}

/// The state that a client's page fetched after a reset: all events of its topic so far.
pub(crate) type State = HashSet<Uuid>;

/// The receipts of one client.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) channel: usize,
    /// The place after which it began to listen.
    pub(crate) begun: Option<StreamId>,
    pub(crate) received: Vec<Received>,
    pub(crate) last_event_id: String,
    pub(crate) connections: usize,
}

/// Clients at work.
#[derive(Debug)]
pub(crate) struct Clients {
    tasks: Vec<JoinHandle<()>>,
    seen: Vec<Arc<Mutex<Seen>>>,
}

pub(crate) fn begin(world: &Arc<World>, seed: u64) -> Clients {
    let (mut tasks, mut all) = (Vec::new(), Vec::new());
    for (channel, of) in world.channels.iter().enumerate() {
        for n in 0..CLIENTS {
            let seen = Arc::new(Mutex::new(Seen { channel, ..Seen::default() }));
            all.push(seen.clone());
            let client = Client {
                urls: world.outlets.each_ref().map(|outlet| outlet.url.clone()),
                of: of.clone(),
                world: world.clone(),
                random: Random::new(seed, &format!("client {channel} {n}")),
                is_restless: n == 0,
                seen,
            };
            tasks.push(tokio::spawn(client.listen()));
        }
    }
    Clients { tasks, seen: all }
}

impl Clients {
    /// Whether every client has come to the end of its topic, given the last id of each.
    pub(crate) fn have_reached(&self, last_ids: &[Option<String>]) -> bool {
        self.seen.iter().all(|seen| {
            let seen = seen.lock().expect("what was seen");
            last_ids[seen.channel].as_ref().is_none_or(|last| *last == seen.last_event_id)
        })
    }

    /// The number of pages that still fetch their topic's state after a reset.
    pub(crate) fn fetching(&self) -> usize {
        let is_fetching =
            |received: &&Received| matches!(received, Received::Reset { state, .. } if state.get().is_none());
        self.seen
            .iter()
            .map(|seen| seen.lock().expect("what was seen").received.iter().filter(is_fetching).count())
            .sum()
    }

    /// Ends the clients.
    pub(crate) fn stop(&self) {
        for task in &self.tasks {
            task.abort();
        }
    }

    /// The events that each has received so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.iter().map(|seen| seen.lock().expect("what was seen").clone()).collect()
    }
}

struct Client {
    urls: [String; 2],
    of: Channel,
    world: Arc<World>,
    random: Random,
    is_restless: bool,
    seen: Arc<Mutex<Seen>>,
}

impl Client {
    async fn listen(mut self) {
        let http = http_builder().connect_timeout(Duration::from_secs(2)).build().expect("a client");
        loop {
            let url = &self.urls[self.random.below(2)];
            let last_event_id = self.seen.lock().expect("what was seen").last_event_id.clone();
            let mut request = http.get(url).bearer_auth(&self.of.token).header("accept", "text/event-stream");
            if !last_event_id.is_empty() {
                request = request.header("last-event-id", &last_event_id);
            }
            if let Ok(Ok(response)) = tokio::time::timeout(SILENCE, request.send()).await {
                self.read(response, last_event_id).await;
            }
            tokio::time::sleep(RECONNECT).await;
        }
    }

    async fn read(&mut self, response: reqwest::Response, last_event_id: String) {
        if !response.status().is_success() {
            return;
        }
        self.seen.lock().expect("what was seen").connections += 1;
        let stays = if self.is_restless { self.random.millis(50, 2500) } else { Duration::from_secs(86_400) };
        let leaves = tokio::time::sleep(stays);
        tokio::pin!(leaves);
        let mut parser = Parser::resuming(last_event_id);
        let mut chunks = response.bytes_stream();
        loop {
            tokio::select! {
                () = &mut leaves => return,
                chunk = tokio::time::timeout(SILENCE, chunks.next()) => match chunk {
                    Ok(Some(Ok(chunk))) => self.take(&mut parser, &chunk),
                    _ => return,
                },
            }
        }
    }

    fn take(&self, parser: &mut Parser, chunk: &[u8]) {
        let at = Instant::now();
        let mut seen = self.seen.lock().expect("what was seen");
        // Line by line, as the place that it is told first may come together with its first event.
        for line in chunk.split_inclusive(|byte| *byte == b'\n') {
            let from = seen.last_event_id.parse().ok();
            let connection = seen.connections;
            parser.feed(line, |event| seen.received.extend(self.received(event, from, connection, at)));
            if seen.last_event_id != parser.last_event_id() {
                seen.last_event_id = parser.last_event_id().to_owned();
            }
            if seen.begun.is_none() {
                seen.begun = seen.last_event_id.parse().ok();
            }
        }
    }

    /// What a client counts of what it is told: a refusal is no event of its topic.
    fn received(
        &self,
        event: Event,
        from: Option<StreamId>,
        connection: usize,
        at: Instant,
    ) -> Option<Received> {
        let id: Option<StreamId> = event.id.as_ref().and_then(|id| id.parse().ok());
        match (event.event.as_str(), event.id) {
            ("refused", None) => None,
            ("reset", Some(text)) => {
                let data: serde_json::Value = serde_json::from_str(&event.data).unwrap_or_default();
                let fits = data["topic"] == self.of.topic.as_str() && data["id"] == text.as_str();
                let reason = data["reason"].as_str().unwrap_or_default().to_owned();
                let state = Arc::new(OnceLock::new());
                tokio::spawn(fetch(self.world.clone(), self.of.topic.clone(), state.clone()));
                Some(Received::Reset { from, id, reason, fits, at, state })
            }
            (_, None) => Some(Received::Foreign { data: event.data, connection }),
            (name, Some(_)) => {
                let told = payload::mark(event.data.as_bytes());
                Some(Received::Event { id, name_fits: name == "notification", told, at })
            }
        }
    }
}

/// Fetches the state of a topic anew, as a page does at a reset: from Postgres.
async fn fetch(world: Arc<World>, topic: Topic, state: Arc<OnceLock<State>>) {
    loop {
        let mut connection = world.postgres().await;
        let events = sqlx::query_scalar::<_, Uuid>("select event_id from outbox.event where topic = $1")
            .bind(topic.as_str())
            .fetch_all(&mut connection)
            .await;
        if let Ok(events) = events {
            // Nobody else sets it.
            drop(state.set(events.into_iter().collect()));
            return;
        }
    }
}
