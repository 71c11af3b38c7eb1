//! Releasing and discarding parked events: of one topic or several, by the ids that the operator has seen.
//!
//! A request names events up to an id. Events that are parked later are not part of it. The relay carries it
//! out, because only the relay knows which events of the topic are under way. [`wait`] returns the result.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;
use sqlx::{PgConnection, Row};
use tokio::time::Instant;

use crate::event::{StreamId, Topic};
use crate::log::Error;
use crate::log::parked::{self, Action};
use crate::ops::audit::{self, Operator};
use crate::pluralize::pluralize;

/// How often [`wait`] looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The parked events of a topic that a request names.
#[derive(Debug, Clone)]
pub struct Named {
    /// The topic.
    pub topic: Topic,
    /// The first one's id.
    pub first: StreamId,
    /// The last one's id.
    pub through: StreamId,
    /// How many they are.
    pub events: u64,
}

/// The parked events of a topic up to the id `through`; all that are parked now without it. `None` if there
/// are none.
///
/// # Errors
/// [`Error`].
pub async fn name(
    connection: &mut PgConnection,
    relay: &str,
    topic: &Topic,
    through: Option<StreamId>,
) -> Result<Option<Named>, Error> {
    let row = sqlx::query(
        "select count(*) as events,
                (array_agg(k.epoch order by k.epoch, k.seq))[1] as first_epoch,
                (array_agg(k.seq order by k.epoch, k.seq))[1] as first_seq,
                (array_agg(k.epoch order by k.epoch desc, k.seq desc))[1] as last_epoch,
                (array_agg(k.seq order by k.epoch desc, k.seq desc))[1] as last_seq
         from outbox.parked k
         where k.relay = $1 and k.topic = $2 and k.settled_as is null
           and ($3::bigint is null or (k.epoch, k.seq) <= ($3, $4::bigint))",
    )
    .bind(relay)
    .bind(topic.as_str())
    .bind(through.map(|id| id.epoch.cast_signed()))
    .bind(through.map(|id| id.seq.cast_signed()))
    .fetch_one(connection)
    .await?;
    let events: i64 = row.try_get("events")?;
    if events == 0 {
        return Ok(None);
    }
    let number = |name: &str| row.try_get::<i64, _>(name).map(i64::cast_unsigned);
    Ok(Some(Named {
        topic: topic.clone(),
        first: StreamId::new(number("first_epoch")?, number("first_seq")?),
        through: StreamId::new(number("last_epoch")?, number("last_seq")?),
        events: events.cast_unsigned(),
    }))
}

/// Why a request is not made.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Other events are parked than those that were named: settled meanwhile, or more of them.
    #[error(
        "of topic '{topic}' {found} would be concerned and not {named}: look again, as others were at it"
    )]
    Changed {
        /// The topic.
        topic: Topic,
        /// How many events were named.
        named: u64,
        /// How many the request would be about.
        found: u64,
    },
    /// Clients may have received some of the events that are to be discarded.
    #[error(
        "clients may have received {} of topic '{topic}': an earlier try broke off, or Redis has forgotten \
         them. Nothing was discarded: release them, or discard with --may-have-arrived",
        pluralize(*events, "event")
    )]
    MayHaveArrived {
        /// The topic.
        topic: Topic,
        /// How many of the named events.
        events: u64,
    },
    /// The log could not be read or written.
    #[error(transparent)]
    Log(#[from] Error),
}

impl From<sqlx::Error> for RequestError {
    fn from(error: sqlx::Error) -> Self {
        Self::Log(error.into())
    }
}

/// A request that is written down.
#[derive(Debug, Clone)]
pub struct Request {
    relay: String,
    action: Action,
    named: Vec<Named>,
    asked_at: DateTime<Utc>,
}

/// Asks the relay to release or discard the named events, and writes that into the audit. Call it in a
/// transaction; ring the bell after its commit.
///
/// # Errors
/// [`RequestError`]; roll the transaction back.
pub async fn request(
    tx: &mut PgConnection,
    relay: &str,
    named: Vec<Named>,
    action: Action,
    operator: &Operator,
) -> Result<Request, RequestError> {
    let mut events = 0;
    for one in &named {
        if action == Action::Discard {
            let events = parked::may_have_arrived(tx, relay, &one.topic, one.through).await?;
            if events > 0 {
                return Err(RequestError::MayHaveArrived { topic: one.topic.clone(), events });
            }
        }
        let found = parked::request(tx, relay, &one.topic, action, Some(one.through)).await?;
        if found != one.events {
            return Err(RequestError::Changed { topic: one.topic.clone(), named: one.events, found });
        }
        events += found;
    }
    let topics: Vec<&str> = named.iter().map(|one| one.topic.as_str()).collect();
    let through: Vec<String> = named.iter().map(|one| one.through.to_string()).collect();
    let what = json!({ "relay": relay, "topics": topics, "through": through });
    audit::write(tx, operator, action.as_str(), &what, events).await?;
    let asked_at = sqlx::query_scalar("select now()").fetch_one(tx).await?;
    Ok(Request { relay: relay.to_owned(), action, named, asked_at })
}

/// What became of one topic's named events so far.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// The topic.
    pub topic: Topic,
    /// The last id that the request names.
    pub through: String,
    /// How many events it names.
    pub named: u64,
    /// How many were released or discarded, as asked for.
    pub done: u64,
    /// How many were settled otherwise: clients had the events that were to be discarded, or another operator
    /// asked for something else.
    pub otherwise: u64,
    /// How many still wait for the relay.
    pub waiting: u64,
    /// How many the sink has refused again, or wait behind a refused one.
    pub refused: u64,
    /// The sink's error for the refused events.
    pub reason: Option<String>,
    #[serde(skip)]
    action: Action,
}

impl Outcome {
    /// Whether the relay has done all that it was asked for.
    pub fn is_done(&self) -> bool {
        self.waiting == 0 && self.refused == 0
    }

    /// In words.
    pub fn says(&self) -> String {
        let done = match self.action {
            Action::Release => "released",
            Action::Discard | Action::DiscardArrived => "discarded",
        };
        let mut parts = Vec::new();
        if self.done > 0 || self.is_done() {
            parts.push(format!("{} {done}", pluralize(self.done, "event")));
        }
        if self.otherwise > 0 {
            let otherwise = match self.action {
                Action::Release => "discarded by another request",
                Action::Discard | Action::DiscardArrived => "released: clients have received them",
            };
            parts.push(format!("{} {otherwise}", pluralize(self.otherwise, "event")));
        }
        if let Some(reason) = &self.reason {
            parts.push(format!("{} refused again: {reason}", pluralize(self.refused, "event")));
        }
        if self.waiting > 0 {
            parts.push(format!("{} still with the relay", pluralize(self.waiting, "event")));
        }
        format!("{}: {}", self.topic, parts.join("; "))
    }
}

/// Returns the result of a request so far, by topic.
///
/// # Errors
/// [`Error`].
pub async fn outcomes(connection: &mut PgConnection, request: &Request) -> Result<Vec<Outcome>, Error> {
    let mut outcomes = Vec::new();
    for named in &request.named {
        outcomes.push(outcome(connection, request, named).await?);
    }
    Ok(outcomes)
}

async fn outcome(connection: &mut PgConnection, request: &Request, named: &Named) -> Result<Outcome, Error> {
    let row = sqlx::query(
        "select count(*) filter (where k.settled_at >= $7 and k.settled_as = $8) as done,
                count(*) filter (where k.settled_at >= $7 and k.settled_as <> $8) as otherwise,
                count(*) filter (where k.settled_as is null and k.requested is not null) as waiting,
                count(*) filter (where k.settled_as is null and k.requested is null) as refused,
                (array_agg(k.reason order by k.epoch, k.seq)
                   filter (where k.settled_as is null and k.requested is null))[1] as reason
         from outbox.parked k
         where k.relay = $1 and k.topic = $2 and (k.epoch, k.seq) between ($3, $4) and ($5, $6)",
    )
    .bind(&request.relay)
    .bind(named.topic.as_str())
    .bind(named.first.epoch.cast_signed())
    .bind(named.first.seq.cast_signed())
    .bind(named.through.epoch.cast_signed())
    .bind(named.through.seq.cast_signed())
    .bind(request.asked_at)
    .bind(match request.action {
        Action::Release => "released",
        Action::Discard | Action::DiscardArrived => "discarded",
    })
    .fetch_one(connection)
    .await?;
    let number = |name: &str| row.try_get::<i64, _>(name).map(i64::cast_unsigned);
    Ok(Outcome {
        topic: named.topic.clone(),
        through: named.through.to_string(),
        named: named.events,
        done: number("done")?,
        otherwise: number("otherwise")?,
        waiting: number("waiting")?,
        refused: number("refused")?,
        reason: row.try_get("reason")?,
        action: request.action,
    })
}

/// Waits until the relay has dealt with a request, `limit` at most; returns its result by then.
///
/// # Errors
/// [`Error`].
pub async fn wait(
    connection: &mut PgConnection,
    request: &Request,
    limit: Duration,
) -> Result<Vec<Outcome>, Error> {
    let until = Instant::now() + limit;
    loop {
        let outcomes = outcomes(connection, request).await?;
        if outcomes.iter().all(|outcome| outcome.waiting == 0) || Instant::now() >= until {
            return Ok(outcomes);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(done: u64, waiting: u64, refused: u64) -> Outcome {
        Outcome {
            topic: Topic::new("order:7").expect("a topic"),
            through: "1-3".to_owned(),
            named: 3,
            done,
            otherwise: 0,
            waiting,
            refused,
            reason: (refused > 0).then(|| "WRONGTYPE".to_owned()),
            action: Action::Release,
        }
    }

    #[test]
    fn an_outcome_is_told_with_all_its_parts() {
        assert_eq!(outcome(3, 0, 0).says(), "order:7: 3 events released");
        assert_eq!(outcome(0, 0, 3).says(), "order:7: 3 events refused again: WRONGTYPE");
        assert_eq!(outcome(1, 0, 2).says(), "order:7: 1 event released; 2 events refused again: WRONGTYPE");
        assert_eq!(outcome(1, 2, 0).says(), "order:7: 1 event released; 2 events still with the relay");
        let otherwise = Outcome { otherwise: 1, action: Action::Discard, ..outcome(2, 0, 0) };
        let told = "order:7: 2 events discarded; 1 event released: clients have received them";
        assert_eq!(otherwise.says(), told);
        assert!(outcome(3, 0, 0).is_done() && !outcome(0, 0, 3).is_done() && !outcome(0, 3, 0).is_done());
    }
}
