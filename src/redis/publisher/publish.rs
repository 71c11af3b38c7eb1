//! Publishing a batch: chunk by chunk, and each chunk at all servers at once.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use ::redis::AsyncCommands;
use ::redis::streams::StreamRangeReply;
use chrono::Utc;
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::FuturesOrdered;

use super::Publisher;
use super::chunk::{Chunk, Chunks, ServerArguments, SharedArguments};
use super::flight::{Call, ChunkAnswers, send_calls};
use super::part::{Part, only_part, parts_of};
use super::refusal::Refusal;
use super::server::{Answer, Server};
use super::topic_heads::TopicHead;
use crate::event::{EventId, LogId, StreamId, Topic};
use crate::pluralize::pluralize;
use crate::redis::reply_codes;
use crate::relay::failure::{self, Failure, Remedy};
use crate::relay::{Batch, Delivery, PublishError, PublishMode, Reached, Sink};
use crate::trace;

/// The topic's server is away: its newest event is unknown, so a release has to wait.
const AWAY: Failure = Failure { class: "away", remedy: Remedy::SetAside };

/// The result of a chunk's calls.
#[derive(Default)]
struct Outcome {
    /// The servers that took their parts.
    taken: Vec<usize>,
    /// The servers that failed, and how.
    failed: Vec<(usize, PublishError)>,
    /// The topic at which a server of these stopped.
    stopped_at: HashMap<usize, Topic>,
    /// The first event that is refused, or the reason why nothing may go on.
    refused: Option<PublishError>,
}

impl Outcome {
    fn fail(&mut self, server: usize, topic: Option<&Topic>, error: PublishError) {
        self.stopped_at.extend(topic.map(|topic| (server, topic.clone())));
        self.failed.push((server, error));
    }

    /// Keeps the graver of two refusals: a stop, then a server that forgot, then the first event that is
    /// refused.
    fn refuse(&mut self, error: PublishError) {
        let rank = |error: &PublishError| match error {
            PublishError::Stop(_) => (0, 0),
            PublishError::Forgot { .. } => (1, 0),
            PublishError::Poison { at, .. } => (2, *at),
            PublishError::Retry { .. } => (3, 0),
        };
        if self.refused.as_ref().is_none_or(|known| rank(&error) < rank(known)) {
            self.refused = Some(error);
        }
    }
}

impl Sink for Publisher {
    fn begin_lead(&mut self, log: LogId) {
        self.log = log;
        self.heads.clear();
        (self.is_compared, self.passed, self.taken, self.vouched) = (false, None, None, None);
        self.servers.iter_mut().for_each(|server| server.is_in_step = false);
    }

    async fn publish(&mut self, batch: Batch<'_>) -> Result<(), PublishError> {
        if !batch.has_one_epoch() {
            return Err(PublishError::Stop(format!(
                "a batch from {} on mixes epochs, and none of it was published: report this as a bug of \
                 aftercommit",
                batch.first
            )));
        }
        self.follow().await?;
        if batch.mode.is_restore() {
            // This Redis has lost data, and the cached heads are from before the loss.
            self.heads.clear();
        }
        // The cached heads are dropped with the connection.
        self.servers.iter_mut().for_each(Server::drop_given_up);
        let before = self.taken;
        let mut max_arrived = None;
        let published = self.publish_chunks(batch, &mut max_arrived).await;
        self.taken = before.max(max_arrived);
        let written = published?;
        self.passed = self.passed.max(batch.through);
        self.replicated(written).await
    }

    fn vouch(&mut self, through: StreamId) {
        self.vouched = Some(through);
    }

    async fn reached(&mut self) -> Result<Vec<Option<Reached>>, PublishError> {
        self.compare().await
    }

    async fn newest_of(&mut self, topic: &Topic) -> Result<Option<Reached>, PublishError> {
        self.follow().await?;
        let history = self.keys.history(topic);
        let at = self.server_of(topic)?;
        let newest = self.servers[at].on_connection(&self.settings, async |connected| {
            let connection = &mut connected.connection;
            connection.xrevrange_count::<_, _, _, _, StreamRangeReply>(&history, "+", "-", 1).await
        });
        match newest.await {
            // An entry whose id cannot be read was not written by a relay.
            Ok(reply) => Ok(reply.ids.first().and_then(|entry| {
                let event = entry.get::<String>("event").and_then(|event| EventId::parse_str(&event).ok());
                Some(Reached { id: entry.id.parse().ok()?, event, recorded: None })
            })),
            Err(Refusal { failure, text, is_reply: true }) if failure.class == "wrongtype" => {
                Err(PublishError::Poison { at: 0, reason: format!("{text} ({history})") })
            }
            Err(refusal) => {
                let error = refusal.retry();
                self.handle_slot_failure(at, Some(topic), &error);
                Err(error)
            }
        }
    }

    fn may_have_delivered(&self, id: StreamId) -> bool {
        self.taken.is_some_and(|taken| id <= taken)
    }

    fn keeps(&self) -> Duration {
        self.settings.history_ttl()
    }

    fn lacks_events(&self) -> bool {
        self.servers.iter().any(|server| server.is_behind)
    }

    fn unpublished_above(&self) -> Option<StreamId> {
        self.servers
            .iter()
            .filter(|server| server.is_behind)
            .filter_map(|server| server.unpublished_above)
            .min()
    }
}

impl Publisher {
    /// The index of the server that has a topic, if that one is not away.
    fn server_of(&self, topic: &Topic) -> Result<usize, PublishError> {
        if self.map.is_none() {
            return Ok(0);
        }
        let at = self.owner_of(topic).ok_or_else(|| uncovered(topic))?;
        match &self.servers[at].away {
            Some(away) => Err(PublishError::retry(AWAY, format!("its server is away: {}", away.reason))),
            None => Ok(at),
        }
    }

    /// Publishes a batch chunk by chunk, and returns the servers that took events. `max_arrived` becomes the
    /// highest number of those that may have arrived.
    async fn publish_chunks(
        &mut self,
        batch: Batch<'_>,
        max_arrived: &mut Option<StreamId>,
    ) -> Result<BTreeSet<usize>, PublishError> {
        let mut chunks = Chunks::of(batch, self.chunk_events);
        let (mut flights, mut starts) = (FuturesOrdered::new(), VecDeque::new());
        let mut written = BTreeSet::new();
        // The failure of the first chunk that failed, and one that kept a later chunk from being sent.
        let (mut failed, mut unsent) = (None, None);
        loop {
            while failed.is_none() && unsent.is_none() && flights.len() < self.calls_at_once(&batch) {
                let Some((at, chunk)) = chunks.next() else { break };
                match self.send(chunk).await {
                    Ok(flight) => {
                        starts.push_back(at);
                        flights.push_back(flight);
                    }
                    Err(error) => unsent = Some(error),
                }
            }
            let (Some(answers), Some(at)) = (flights.next().await, starts.pop_front()) else { break };
            *max_arrived = self.ended(&answers).max(*max_arrived);
            if failed.is_some() {
                // The server has refused this chunk, because it lacks the one before.
                continue;
            }
            match self.apply_all(answers).await {
                Ok(taken) => written.extend(taken),
                Err(PublishError::Poison { at: of_chunk, reason }) => {
                    failed = Some(PublishError::Poison { at: at + of_chunk, reason });
                }
                Err(error) => failed = Some(error),
            }
        }
        match failed.or(unsent) {
            Some(error) => Err(error),
            None => Ok(written),
        }
    }

    /// How many chunks may be under way at once. Two keep one server busy. That is safe if each call names
    /// the number before its first event: the server then refuses a chunk whose predecessor failed. Before
    /// the first answer the server may lack the script, and loading it could reorder two calls.
    fn calls_at_once(&self, batch: &Batch<'_>) -> usize {
        let says_numbers = batch.mode == PublishMode::Normal && batch.through.is_some();
        let has_script = self.servers.first().is_some_and(|server| server.has_script);
        if self.map.is_none() && says_numbers && has_script { 2 } else { 1 }
    }

    /// Makes the calls for a chunk, one for each server that takes a part of it. They are sent when the
    /// flight is first polled.
    async fn send<'a>(&mut self, chunk: Chunk<'a>) -> Result<BoxFuture<'a, ChunkAnswers<'a>>, PublishError> {
        let now = Instant::now();
        let parts = match &self.map {
            None => vec![only_part(chunk)],
            Some(_) => {
                parts_of(chunk, &self.servers, |topic| self.owner_of(topic), now).map_err(uncovered)?
            }
        };
        let connected = self.connect(&parts).await;
        let calls = parts.iter().zip(connected).map(|(part, connected)| {
            connected?;
            // Noted before the calls, which can be dropped in their middle.
            self.note_taken(part.chunk());
            self.call_of(part, now)
        });
        let calls = calls.collect();
        // The next chunk is made while this one is under way. If any of it fails, the heads are dropped.
        parts.iter().for_each(|part| self.remember(part.chunk().deliveries, now));
        Ok(send_calls(chunk, parts, calls, now))
    }

    /// Connects to the servers of these parts, all at once.
    async fn connect(&mut self, parts: &[Part<'_>]) -> Vec<Result<(), PublishError>> {
        let settings = &self.settings;
        let mut wanted = parts.iter().peekable();
        let servers = self.servers.iter_mut().enumerate();
        let servers: Vec<&mut Server> = servers
            .filter_map(|(at, server)| wanted.next_if(|part| part.server == at).map(|_part| server))
            .collect();
        let connecting = servers.into_iter().map(async |server| {
            let connected = server.connect(settings).await;
            (connected, std::mem::take(&mut server.is_fresh))
        });
        let (connected, fresh): (Vec<_>, Vec<_>) = join_all(connecting).await.into_iter().unzip();
        if fresh.contains(&true) {
            // The cached heads may be those of another server, or of this one before it lost data.
            self.heads.clear();
        }
        connected
    }

    /// The call for one part.
    fn call_of(&mut self, part: &Part<'_>, now: Instant) -> Result<Call, PublishError> {
        let is_of_cluster = self.map.is_some();
        let chunk = part.chunk();
        let traces = chunk.deliveries.iter().filter_map(|delivery| delivery.event.trace);
        let span = trace::publish(traces, chunk.deliveries.len());
        let server = &self.servers[part.server];
        let in_epoch = |id: StreamId| if id.epoch == chunk.first.epoch { id.seq } else { 0 };
        let known = match is_of_cluster {
            false => chunk.first.seq - 1,
            true => server.reached.map_or(0, in_epoch),
        };
        let unpublished_above = server.unpublished_above.map(in_epoch);
        let (top_key, log_key) = (&*server.top_key, &*server.log_key);
        let slots = is_of_cluster.then(|| server.slots.to_string());
        let vouched = self.vouched.map_or(0, in_epoch);
        let to = ServerArguments { top_key, log_key, known, unpublished_above, slots, vouched };
        let caller = SharedArguments {
            settings: &self.settings,
            keys: &self.keys,
            script: &self.script,
            heads: &self.heads,
            log: self.log,
            relay: &self.relay,
            now,
        };
        let command = caller.call(chunk, &to);
        let connection = self.servers[part.server].lend().ok_or_else(|| {
            PublishError::retry(failure::CONNECTION, "Redis: the connection is gone".to_owned())
        })?;
        Ok(Call { script: self.script.clone(), command, connection, span, is_of_cluster })
    }

    /// Notes that the events of a chunk may have arrived.
    fn note_taken(&mut self, chunk: Chunk<'_>) {
        if chunk.mode == PublishMode::Normal {
            self.taken = self.taken.max(chunk.deliveries.last().map(|delivery| delivery.id));
        }
    }

    /// Notes that the calls of a chunk have ended, and returns the highest number that may have arrived.
    fn ended(&mut self, answers: &ChunkAnswers<'_>) -> Option<StreamId> {
        let mut max_arrived = None;
        for (part, answered) in answers.parts.iter().zip(&answers.answered) {
            self.state.progressed();
            if let Some(took) = answered.took {
                self.servers[part.server].ended(answered.still_works);
                if answered.answer.is_ok() {
                    self.metrics.publish_seconds.observe(took.as_secs_f64());
                }
            }
            let chunk = part.chunk();
            if chunk.mode == PublishMode::Normal {
                max_arrived =
                    max_arrived.max(chunk.deliveries[..answered.max_arrived].last().map(|it| it.id));
            }
        }
        max_arrived
    }

    /// Handles the answers to a chunk's calls, and returns the servers that took events.
    async fn apply_all(&mut self, answers: ChunkAnswers<'_>) -> Result<Vec<usize>, PublishError> {
        let ChunkAnswers { chunk, parts, answered, now } = answers;
        let answers = answered.into_iter().map(|answered| answered.answer).collect();
        let Outcome { taken, mut failed, stopped_at, refused } = self.apply(&parts, answers, now);
        if refused.is_some() || !failed.is_empty() {
            // Only a prefix arrived, so the cached heads of this chunk's topics may be wrong.
            self.heads.clear();
        }
        let refused = match refused {
            Some(error) if !matches!(error, PublishError::Poison { .. }) => return Err(error),
            refused => refused,
        };
        let of_slot = failed
            .iter()
            .position(|(server, error)| self.handle_slot_failure(*server, stopped_at.get(server), error));
        if let Some(at) = of_slot {
            return Err(failed.swap_remove(at).1);
        }
        let has_answer = !taken.is_empty();
        if !failed.is_empty() {
            let holds_release = |(server, _): &(usize, _)| {
                chunk.mode == PublishMode::Release
                    && parts.iter().any(|part| part.server == *server && !part.at.is_empty())
            };
            self.leave_behind(failed, has_answer, now, holds_release).await?;
        }
        match refused {
            Some(error) => Err(error),
            None => Ok(taken),
        }
    }

    /// Applies the answers: measures what was taken, and notes how far each server has come.
    fn apply(
        &mut self,
        parts: &[Part<'_>],
        answers: Vec<Result<Answer, PublishError>>,
        now: Instant,
    ) -> Outcome {
        let mut outcome = Outcome::default();
        for (part, answer) in parts.iter().zip(answers) {
            let chunk = part.chunk();
            let (arrived, verdict, detail) = match answer {
                Ok(answer) => answer,
                Err(error) => {
                    outcome.fail(part.server, None, error);
                    continue;
                }
            };
            if verdict == "OK" {
                self.measure(chunk, &detail);
                let server = &mut self.servers[part.server];
                server.has_script = true;
                server.took(chunk.through, now);
                // A normal batch goes only to servers that have been compared, and given what they
                // lacked.
                server.is_in_step |= chunk.mode == PublishMode::Normal || chunk.through >= self.passed;
                self.note_if_whole(part.server);
                outcome.taken.push(part.server);
                continue;
            }
            let topic = chunk.deliveries.get(arrived).map(|delivery| &delivery.event.topic);
            let at = part.at.get(arrived).copied().unwrap_or_default();
            match self.refusal(part.server, at, topic, &verdict, &detail) {
                error @ PublishError::Retry { .. } => outcome.fail(part.server, topic, error),
                error => outcome.refuse(error),
            }
        }
        outcome
    }

    /// Caches the heads of the topics after a chunk. `now` is the time that its call used to decide on TTLs.
    fn remember(&mut self, deliveries: &[Delivery<'_>], now: Instant) {
        for Delivery { id, event } in deliveries {
            let ttl_set = match self.heads.get(&event.topic) {
                Some(head) if !self.heads.ttl_is_due(Some(head), now) => head.ttl_set,
                _ => now,
            };
            self.heads.set(&event.topic, TopicHead { last: *id, ttl_set });
        }
    }

    /// Measures a published chunk, with one look at the clock for all of its events.
    fn measure(&self, chunk: Chunk<'_>, receivers: &str) {
        if let Some((live, public)) = receivers.split_once(' ') {
            self.metrics.received_by(live.parse().unwrap_or(0), public.parse().unwrap_or(0));
        }
        for Delivery { id, event } in chunk.deliveries {
            tracing::trace!(%id, event = %event.event_id, topic = %event.topic, "published");
        }
        if chunk.mode != PublishMode::Normal {
            // The age of these events says nothing about the delay of new ones.
            return;
        }
        let now = Utc::now();
        for delivery in chunk.deliveries {
            let took = (now - delivery.event.created_at).to_std().unwrap_or_default();
            self.metrics.commit_to_publish_seconds.observe(took.as_secs_f64());
        }
    }

    /// Waits until enough replicas of each of these servers have the published events. If too few have, the
    /// batch is published again.
    async fn replicated(&mut self, written: BTreeSet<usize>) -> Result<(), PublishError> {
        let wanted = self.settings.min_replicas;
        if wanted == 0 {
            return Ok(());
        }
        let settings = &self.settings;
        let servers = self.servers.iter_mut().enumerate().filter(|(at, _)| written.contains(at));
        let counts = join_all(servers.map(|(_, server)| server.replicated(settings, wanted))).await;
        for count in counts {
            let count = count?;
            if count < wanted {
                return Err(PublishError::retry(
                    reply_codes::classify("NOREPLICAS"),
                    format!(
                        "Redis: the batch has reached {} and [redis] min_replicas wants {wanted}",
                        pluralize(count.into(), "replica")
                    ),
                ));
            }
        }
        Ok(())
    }
}

fn uncovered(topic: &Topic) -> PublishError {
    let failure = reply_codes::classify("CLUSTERDOWN");
    PublishError::retry(failure, format!("Redis: no server of the cluster has the slot of the topic {topic}"))
}
