//! One look at everything: what `aftercommit status` shows, the parked topics, the replays and the audit.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use sqlx::{Connection, PgConnection};
use tokio::time::timeout;

use super::Shared;
use super::error::Error;
use super::stream_event::event;
use crate::http::Check;
use crate::log::overview::{self, RelayOverview};
use crate::log::read;
use crate::ops::audit::{self, Entry};
use crate::ops::parked_topics::{self, ParkedTopic};
use crate::ops::replay::{self, Replay};
use crate::ops::verdict::Verdict;
use crate::pluralize::pluralize;

/// How long Postgres may take for one look.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often the servers beside the relay are asked.
const NEIGHBOURS_EVERY: Duration = Duration::from_secs(5);
/// Parked topics of one relay, entries of the audit and replays that are shown: what fits a page.
const TOPICS: u32 = 50;
const ENTRIES: u32 = 20;
const REPLAYS: u32 = 3;

/// What was seen, as the events of the feed.
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
    /// Why the log cannot be looked at, if it cannot.
    error: Option<String>,
    relays: Vec<Judged>,
    neighbours: &'a [Check],
}

/// A relay with the verdict and a sentence on it.
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

/// Looks, on a connection of its own that it keeps between looks.
#[derive(Debug, Default)]
pub(super) struct Looker {
    connection: Option<PgConnection>,
    neighbours: Vec<Check>,
    asked: Option<Instant>,
    /// What is still worth showing while Postgres is away.
    lists: Bytes,
}

impl Looker {
    /// Looks at the log and, now and then, at the servers beside the relay.
    pub(super) async fn look(&mut self, shared: &Shared) -> Snapshot {
        let is_due = self.asked.is_none_or(|asked| asked.elapsed() >= NEIGHBOURS_EVERY);
        let neighbours = async { if is_due { Some(shared.parts.neighbours.look().await) } else { None } };
        let log = timeout(PATIENCE, look_at_log(&mut self.connection, shared));
        let (log, neighbours) = tokio::join!(log, neighbours);
        if let Some(neighbours) = neighbours {
            (self.neighbours, self.asked) = (neighbours, Some(Instant::now()));
        }
        let (error, relays) = match log {
            Ok(Ok((relays, lists))) => {
                self.lists = event("lists", &lists);
                (None, relays)
            }
            Ok(Err(error)) => (Some(error.to_string()), Vec::new()),
            Err(_elapsed) => {
                (Some(format!("Postgres did not answer within {} s", PATIENCE.as_secs())), Vec::new())
            }
        };
        if error.is_some() {
            self.connection = None;
        }
        let status = Status { error, relays, neighbours: &self.neighbours };
        Snapshot { status: event("status", &status), lists: self.lists.clone() }
    }

    /// Nobody looks: gives the connection back.
    pub(super) async fn rest(&mut self) {
        if let Some(connection) = self.connection.take() {
            // Whether the goodbye arrives does not matter.
            let _closed = timeout(PATIENCE, connection.close()).await;
        }
        *self = Self::default();
    }
}

async fn look_at_log(
    kept: &mut Option<PgConnection>,
    shared: &Shared,
) -> Result<(Vec<Judged>, Lists), Error> {
    // Taken out and put back, so that a look that is given up takes its connection with it.
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

/// What the verdict means, and what to do where that is not on the page.
fn sentence(relay: &RelayOverview, verdict: Verdict, limit: u64) -> String {
    match verdict {
        Verdict::NoLeader => {
            "Nothing is delivered, as no relay of this name leads. Start one: aftercommit relay".to_owned()
        }
        Verdict::Paused => {
            let (who, reason) = relay.paused.as_ref().map_or(("", ""), |pause| (&pause.who, &pause.reason));
            format!("Nothing is delivered until it is resumed. {who} paused it: {reason}")
        }
        Verdict::Failing => {
            let mut errors = relay.processes.iter().filter_map(|heard| heard.heartbeat.error.as_deref());
            format!("It tries again by itself. Last error: {}", errors.next_back().unwrap_or("unknown"))
        }
        Verdict::Late => format!(
            "The oldest event has waited for {:.0} s; {limit} s are the limit.",
            relay.oldest_pending_seconds.unwrap_or_default()
        ),
        Verdict::Parked if relay.parked_topics == 0 => {
            let events = pluralize(relay.parked_events.cast_unsigned(), "event");
            format!("{events} set aside; all else flows.")
        }
        Verdict::Parked => format!(
            "{} waiting behind an event that Redis refused; all else flows.",
            if relay.parked_topics == 1 {
                "One topic is".to_owned()
            } else {
                format!("{} topics are", relay.parked_topics)
            }
        ),
        Verdict::Delivering => match relay.oldest_pending_seconds {
            None if relay.oldest_is_sampled => {
                "Nothing was seen waiting behind the rows of open or rolled-back transactions.".to_owned()
            }
            None => "Nothing waits: all that committed has been delivered.".to_owned(),
            Some(age) => format!(
                "At most {} on the way, the oldest for {age:.1} s.",
                pluralize(relay.backlog_at_most.max(1).cast_unsigned(), "event")
            ),
        },
    }
}
