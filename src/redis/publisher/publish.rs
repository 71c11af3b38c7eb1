//! Publishing a batch: chunk by chunk, and each chunk at all servers at once.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use ::redis::AsyncCommands;
use ::redis::streams::StreamRangeReply;
use chrono::Utc;
use futures_util::future::join_all;

use super::chunk::{Caller, Chunk, Receiver, chunk_of};
use super::part::{Part, only_part, parts_of};
use super::refusal::Refusal;
use super::server::{Answer, Server};
use super::topic_heads::TopicHead;
use super::{FORMAT, Publisher};
use crate::event::{EventId, LogId, StreamId, Topic};
use crate::pluralize::pluralize;
use crate::redis::reply_codes;
use crate::relay::failure::{self, Failure, Remedy};
use crate::relay::{Batch, Delivery, PublishError, PublishMode, Reached, Sink};
use crate::trace;

/// How long one server of a cluster may take. It is then tried again, and left behind if it goes on like
/// that: the topics of the other servers wait for it.
const PATIENCE_OF_CLUSTER: Duration = Duration::from_secs(2);

/// The server of a topic is away: nothing can be said of the topic, and nothing released.
const AWAY: Failure = Failure { class: "away", remedy: Remedy::SetAside };

/// The result of a chunk's calls.
#[derive(Default)]
struct Outcome {
    /// The servers that took their parts.
    taken: Vec<usize>,
    /// The servers that failed, and how.
    failed: Vec<(usize, PublishError)>,
    /// The first event that is refused, or the reason why nothing may go on.
    refused: Option<PublishError>,
}

impl Outcome {
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
        (self.is_compared, self.passed, self.taken) = (false, None, None);
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
        let all = batch.deliveries;
        let (mut done, mut first) = (0, batch.first);
        let mut written = BTreeSet::new();
        // One call also for a batch without events, because it uses up numbers.
        loop {
            let deliveries = chunk_of(&all[done..], self.chunk_events);
            let is_last = done + deliveries.len() == all.len();
            let through = match (batch.through, deliveries.last()) {
                (Some(_), Some(_)) if !is_last && batch.mode.is_release() => None,
                (Some(_), Some(last)) if !is_last => Some(last.id),
                (through, _) => through,
            };
            let chunk = Chunk { deliveries, first, through, mode: batch.mode, lost: batch.lost };
            written.extend(self.publish_chunk(chunk).await.map_err(|error| match error {
                PublishError::Poison { at, reason } => PublishError::Poison { at: done + at, reason },
                other => other,
            })?);
            done += deliveries.len();
            if is_last {
                self.passed = self.passed.max(batch.through);
                return self.replicated(written).await;
            }
            first = through.map_or(first, |through| StreamId::new(through.epoch, through.seq + 1));
        }
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
                Some(Reached { id: entry.id.parse().ok()?, event })
            })),
            Err(Refusal { failure, text, is_reply: true }) if failure.class == "wrongtype" => {
                Err(PublishError::Poison { at: 0, reason: format!("{text} ({history})") })
            }
            Err(refusal) => Err(refusal.retry()),
        }
    }

    fn may_have_taken(&self, id: StreamId) -> bool {
        self.taken.is_some_and(|taken| id <= taken)
    }

    fn keeps(&self) -> Duration {
        self.settings.history_ttl()
    }
}

impl Publisher {
    /// The index of the server that has a topic, if that one is not away.
    fn server_of(&self, topic: &Topic) -> Result<usize, PublishError> {
        let Some(map) = &self.map else { return Ok(0) };
        let at = map.index_of(topic.as_str()).ok_or_else(|| uncovered(topic))?;
        match &self.servers[at].away {
            Some(reason) => Err(PublishError::retry(AWAY, format!("its server is away: {reason}"))),
            None => Ok(at),
        }
    }

    /// Publishes a chunk at all servers that take a part of it, and returns those that took events.
    async fn publish_chunk(&mut self, chunk: Chunk<'_>) -> Result<Vec<usize>, PublishError> {
        let now = Instant::now();
        let parts = match &self.map {
            None => vec![only_part(chunk)],
            Some(map) => {
                let owner = |topic: &Topic| map.index_of(topic.as_str());
                parts_of(chunk, &self.servers, owner, now).map_err(uncovered)?
            }
        };
        let before = self.taken;
        // Noted before the calls, which can be dropped in their middle.
        for part in &parts {
            self.note_taken(part.chunk(), part.at.len());
        }
        let (answers, brought): (Vec<_>, Vec<_>) = self.call(&parts, now).await.into_iter().unzip();
        self.taken = before;
        for (part, events) in parts.iter().zip(brought) {
            self.note_taken(part.chunk(), events);
        }
        let Outcome { taken, failed, refused } = self.heed(&parts, answers, now);
        if refused.is_some() || !failed.is_empty() {
            // Only a prefix arrived, so the cached heads of this chunk's topics may be behind.
            self.heads.clear();
        }
        let refused = match refused {
            Some(error) if !matches!(error, PublishError::Poison { .. }) => return Err(error),
            refused => refused,
        };
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

    /// Notes that the first `events` events of the chunk may have arrived.
    fn note_taken(&mut self, chunk: Chunk<'_>, events: usize) {
        if chunk.mode == PublishMode::Normal {
            self.taken = self.taken.max(chunk.deliveries[..events].last().map(|delivery| delivery.id));
        }
    }

    /// Calls the script at each part's server. Returns the answers, and how many of the part's events may
    /// have arrived.
    async fn call(&mut self, parts: &[Part<'_>], now: Instant) -> Vec<(Result<Answer, PublishError>, usize)> {
        let settings = &self.settings;
        let mut wanted = parts.iter().peekable();
        let servers = self.servers.iter_mut().enumerate();
        let servers: Vec<&mut Server> = servers
            .filter_map(|(at, server)| wanted.next_if(|part| part.server == at).map(|_part| server))
            .collect();
        let connecting = servers.into_iter().map(async |server| (server.connect(settings).await, server));
        let mut connected = join_all(connecting).await;
        let mut is_fresh = false;
        for (_, server) in &mut connected {
            is_fresh |= std::mem::take(&mut server.is_fresh);
        }
        if is_fresh {
            // The cached heads may be those of another server, or of this one before it lost data.
            self.heads.clear();
        }
        let caller = Caller {
            settings,
            keys: &self.keys,
            script: &self.script,
            heads: &self.heads,
            log: self.log,
            now,
        };
        let (metrics, state) = (&self.metrics, &self.state);
        let is_of_cluster = self.map.is_some();
        let calls = parts.iter().zip(connected).map(async |(part, (connecting, server))| {
            if let Err(error) = connecting {
                return (Err(error), 0);
            }
            let chunk = part.chunk();
            let traces = chunk.deliveries.iter().filter_map(|delivery| delivery.event.trace);
            let mut span = trace::publish(traces, chunk.deliveries.len());
            let in_epoch = |id: StreamId| if id.epoch == chunk.first.epoch { id.seq } else { 0 };
            let known = match is_of_cluster {
                false => chunk.first.seq - 1,
                true => server.reached.map_or(0, in_epoch),
            };
            let (top_key, log_key) = (server.top_key.clone(), server.log_key.clone());
            let to = Receiver {
                top_key: &top_key,
                log_key: &log_key,
                known,
                untold: server.untold.map(in_epoch),
                is_of_cluster,
            };
            let call = caller.call(chunk, &to);
            let begun = Instant::now();
            let calling = server.call(settings, &call);
            let answer = match is_of_cluster {
                false => calling.await,
                true => tokio::time::timeout(PATIENCE_OF_CLUSTER, calling).await.unwrap_or_else(|_elapsed| {
                    let text = "no answer in time".to_owned();
                    Err(Refusal { failure: failure::TIMEOUT, text, is_reply: false })
                }),
            };
            if answer.is_ok() {
                metrics.publish_seconds.observe(begun.elapsed().as_secs_f64());
            }
            state.progressed();
            match &answer {
                Ok((_, verdict, _)) if verdict == "OK" => {}
                Ok(_) => span.failed("refused"),
                Err(refusal) => span.failed(refusal.failure.class),
            }
            let brought = match &answer {
                Ok((_, verdict, _)) if verdict == "OK" => chunk.deliveries.len(),
                Ok((arrived, ..)) => *arrived,
                // The server has not run the script.
                Err(Refusal { is_reply: true, .. }) => 0,
                Err(_) => chunk.deliveries.len(),
            };
            (answer.map_err(Refusal::retry), brought)
        });
        join_all(calls).await
    }

    /// Heeds the answers: what was taken is measured and remembered.
    fn heed(
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
                    outcome.failed.push((part.server, error));
                    continue;
                }
            };
            if verdict == "OK" {
                self.measure(chunk, &detail);
                self.remember(chunk.deliveries, now);
                let server = &mut self.servers[part.server];
                server.took(chunk.through, now);
                // A batch in its turn goes only to servers that have been compared, and given what they
                // lacked.
                server.is_in_step |= chunk.mode == PublishMode::Normal || chunk.through >= self.passed;
                self.note_if_whole(part.server);
                outcome.taken.push(part.server);
                continue;
            }
            let topic = chunk.deliveries.get(arrived).map(|delivery| &delivery.event.topic);
            let at = part.at.get(arrived).copied().unwrap_or_default();
            match self.refusal(part.server, at, topic, &verdict, &detail) {
                error @ PublishError::Retry { .. } => outcome.failed.push((part.server, error)),
                error => outcome.refuse(error),
            }
        }
        outcome
    }

    /// Caches the heads that a chunk left behind. `now` is the time that its call used to decide on TTLs.
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

    /// Turns an answer other than OK into an error about the event at index `at`, which is of `topic`.
    fn refusal(
        &self,
        server: usize,
        at: usize,
        topic: Option<&Topic>,
        verdict: &str,
        detail: &str,
    ) -> PublishError {
        let server = &self.servers[server];
        let key = topic.map_or_else(|| server.top_key.clone(), |topic| self.keys.history(topic));
        match verdict {
            "GAP" => PublishError::Forgot { reached: detail.to_owned() },
            "FORMAT" => self.other_format(server, detail),
            "FOREIGN" => self.foreign(server, detail),
            "AHEAD" => PublishError::Stop(format!(
                "Redis is at {detail}, of a later epoch than Postgres: Postgres was restored from a backup. \
                 Run `aftercommit rebase`"
            )),
            "CONFLICT" => PublishError::Poison {
                at,
                reason: format!(
                    "another entry stands in {key} at or above the number of this event ({detail}), which no \
                     relay of this log wrote: delete or rename that key"
                ),
            },
            _ => {
                let failure = reply_codes::classify(detail);
                let reason =
                    if detail.contains(&key) { detail.to_owned() } else { format!("{detail} ({key})") };
                if verdict == "ERROR" && failure.remedy == Remedy::SetAside {
                    return PublishError::Poison { at, reason: format!("{reason}{}", advice(failure.class)) };
                }
                PublishError::retry(failure, format!("{}: {reason}", server.name()))
            }
        }
    }

    pub(super) fn foreign(&self, server: &Server, log: &str) -> PublishError {
        PublishError::Stop(format!(
            "the keys of this Redis belong to another log ({} names {log}; this log is {}): two logs cannot \
             share them. Give one of the two services a namespace of its own ([redis] namespace, for its \
             relay and its sse processes), or another Redis. If this database replaces that log for good, \
             delete that key",
            server.log_key, self.log
        ))
    }

    pub(super) fn other_format(&self, server: &Server, format: &str) -> PublishError {
        PublishError::Stop(format!(
            "the keys of this Redis have format {format}, and this aftercommit knows format {FORMAT}: run \
             the version of aftercommit that wrote them, or a later one (see {})",
            server.log_key
        ))
    }
}

fn uncovered(topic: &Topic) -> PublishError {
    let failure = reply_codes::classify("CLUSTERDOWN");
    PublishError::retry(failure, format!("Redis: no server of the cluster has the slot of the topic {topic}"))
}

/// Advice to an operator for an event that is refused with an error of this class.
fn advice(class: &str) -> &'static str {
    match class {
        "wrongtype" => ": another program uses this key; delete or rename it",
        "noperm" => ": give the relay's Redis user this right",
        "toolarge" => ": raise Redis's limit",
        _ => "",
    }
}
