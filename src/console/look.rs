//! Reads everything that the page shows: the status as `aftercommit status` shows it, the parked topics, the
//! replays and the audit log.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use sqlx::{Connection, PgConnection};
use tokio::time::timeout;

use super::Shared;
use super::error::Error;
use super::stream_event::event;
use super::streams::Streams;
use crate::http::Check;
use crate::log::overview::{self, RelayOverview};
use crate::log::read;
use crate::ops::audit::{self, Entry};
use crate::ops::parked_topics::{self, ParkedTopic};
use crate::ops::replay::{self, Replay};
use crate::ops::verdict::Verdict;
use crate::pluralize::pluralize;

/// The time limit for reading the log once.
const LOG_TIMEOUT: Duration = Duration::from_secs(3);
/// The interval for checking Redis and the SSE server.
const NEIGHBOURS_EVERY: Duration = Duration::from_secs(5);
/// The number of parked topics of a relay, of audit entries and of replays that the page shows.
const TOPICS: u32 = 50;
const ENTRIES: u32 = 20;
const REPLAYS: u32 = 3;

/// The state of the log, as the events of the feed.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    status: Bytes,
    lists: Bytes,
}

impl Snapshot {
    pub(super) fn blocks(&self) -> [&Bytes; 2] {
        [&self.status, &self.lists]
    }
}

#[derive(Serialize)]
struct Status<'a> {
    /// The error if the log cannot be read.
    error: Option<String>,
    relays: Vec<Judged>,
    neighbours: &'a [Check],
    /// The SSE server's streams; nothing if it does not answer.
    streams: Option<&'a Streams>,
}

/// A relay, the verdict on it, and a sentence that explains the verdict.
#[derive(Serialize)]
struct Judged {
    verdict: Verdict,
    sentence: String,
    #[serde(flatten)]
    relay: RelayOverview,
}

#[derive(Serialize)]
struct Lists {
    parked: Vec<Parked>,
    replays: Vec<Replay>,
    audit: Vec<Entry>,
}

/// A relay's parked topics.
#[derive(Serialize)]
struct Parked {
    relay: String,
    topics: Vec<ParkedTopic>,
}

/// Reads the log through a connection that it keeps between reads.
#[derive(Debug, Default)]
pub(super) struct Looker {
    connection: Option<PgConnection>,
    neighbours: Vec<Check>,
    streams: Option<Streams>,
    asked: Option<Instant>,
    /// The newest lists, which are still shown while Postgres is away.
    lists: Bytes,
}

impl Looker {
    /// Reads the log and, at a longer interval, checks the neighbouring servers.
    pub(super) async fn look(&mut self, shared: &Shared) -> Snapshot {
        let is_due = self.asked.is_none_or(|asked| asked.elapsed() >= NEIGHBOURS_EVERY);
        let parts = &shared.parts;
        let neighbours = async {
            if is_due { Some(tokio::join!(parts.neighbours.look(), parts.streams.look())) } else { None }
        };
        let log = timeout(LOG_TIMEOUT, look_at_log(&mut self.connection, shared));
        let (log, neighbours) = tokio::join!(log, neighbours);
        if let Some(seen) = neighbours {
            ((self.neighbours, self.streams), self.asked) = (seen, Some(Instant::now()));
        }
        let (error, relays) = match log {
            Ok(Ok((relays, lists))) => {
                self.lists = event("lists", &lists);
                (None, relays)
            }
            Ok(Err(error)) => (Some(error.to_string()), Vec::new()),
            Err(_elapsed) => {
                (Some(format!("Postgres did not answer within {} s", LOG_TIMEOUT.as_secs())), Vec::new())
            }
        };
        if error.is_some() {
            self.connection = None;
        }
        let status = Status { error, relays, neighbours: &self.neighbours, streams: self.streams.as_ref() };
        Snapshot { status: event("status", &status), lists: self.lists.clone() }
    }

    /// Closes the connection, because no page is open.
    pub(super) async fn rest(&mut self) {
        if let Some(connection) = self.connection.take() {
            // The connection is dropped even if closing it fails.
            let _closed = timeout(LOG_TIMEOUT, connection.close()).await;
        }
        *self = Self::default();
    }
}

async fn look_at_log(
    kept: &mut Option<PgConnection>,
    shared: &Shared,
) -> Result<(Vec<Judged>, Lists), Error> {
    // The connection is taken out and put back, so that a cancelled read drops it.
    let mut connection = match kept.take() {
        Some(connection) => connection,
        None => {
            let mut made = shared.parts.database.connect("aftercommit console feed").await?;
            read::prepare_session(&mut made).await?;
            made
        }
    };
    let relays = overview::relays(&mut connection).await?;
    let mut parked = Vec::new();
    for relay in relays.iter().filter(|relay| relay.parked_events > 0) {
        let topics = parked_topics::list(&mut connection, &relay.relay, TOPICS).await?;
        parked.push(Parked { relay: relay.relay.clone(), topics });
    }
    let replays = replay::list(&mut connection, REPLAYS).await?;
    let audit = audit::list(&mut connection, None, ENTRIES).await?;
    *kept = Some(connection);
    let limit = shared.parts.pending_limit.as_secs();
    let relays = relays.into_iter().map(|relay| judge(relay, limit)).collect();
    Ok((relays, Lists { parked, replays, audit }))
}

fn judge(relay: RelayOverview, limit: u64) -> Judged {
    let verdict = Verdict::of(&relay, limit);
    Judged { sentence: sentence(&relay, verdict, limit), verdict, relay }
}

/// Explains a verdict, and names the action if the page has no button for it.
fn sentence(relay: &RelayOverview, verdict: Verdict, limit: u64) -> String {
    match verdict {
        Verdict::NoLeader => "Nothing is delivered, because no relay of this name leads. Start one: \
             aftercommit relay"
            .to_owned(),
        Verdict::Paused => {
            let (who, reason) = relay.paused.as_ref().map_or(("", ""), |pause| (&pause.who, &pause.reason));
            format!("Nothing is delivered until it is resumed. {who} paused it: {reason}")
        }
        Verdict::Failing => {
            let mut errors = relay.processes.iter().filter_map(|heard| heard.heartbeat.error.as_deref());
            format!("The relay retries by itself. Last error: {}", errors.next_back().unwrap_or("unknown"))
        }
        Verdict::Late => format!(
            "The oldest event has waited for {:.0} s; the limit is {limit} s.",
            relay.oldest_pending_seconds.unwrap_or_default()
        ),
        Verdict::Parked if relay.parked_topics == 0 => {
            let events = pluralize(relay.parked_events.cast_unsigned(), "event");
            format!("{events} set aside; all others are delivered.")
        }
        Verdict::Parked => format!(
            "{} waiting behind an event that Redis refused; all others are delivered.",
            if relay.parked_topics == 1 {
                "One topic is".to_owned()
            } else {
                format!("{} topics are", relay.parked_topics)
            }
        ),
        Verdict::Delivering => match relay.oldest_pending_seconds {
            None if relay.oldest_is_sampled => {
                "No event is waiting, as far as can be seen behind the rows of open or rolled-back \
                 transactions."
                    .to_owned()
            }
            None => "Nothing waits: all that committed has been delivered.".to_owned(),
            Some(age) => format!(
                "At most {} on the way, the oldest for {age:.1} s.",
                pluralize(relay.backlog_at_most.max(1).cast_unsigned(), "event")
            ),
        },
    }
}
