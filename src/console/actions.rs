//! The operator's changes over HTTP. Each is one use case of `ops` in one transaction; this part owns no SQL.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use serde::{Deserialize, Serialize};

use super::Shared;
use super::access::Identity;
use super::change::{Asked, Change};
use super::error::Error;
use crate::event::{StreamId, Topic};
use crate::http::Json;
use crate::log::parked::Action;
use crate::ops::audit::Operator;
use crate::ops::{parked, pause as pausing, relays};

/// Characters of a reason at most.
const REASON_LEN_MAX: usize = 500;
/// How long an answer waits for the relay to carry out a request.
const OUTCOME_LIMIT: Duration = Duration::from_secs(2);

/// A topic's parked events, and the reason.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OfTopic {
    relay: String,
    topic: String,
    reason: String,
    /// The last id that is meant. Without it, all events that are parked when the request arrives.
    through: Option<String>,
    /// Whether a discard is also about events that clients may have received.
    #[serde(default, rename = "mayHaveArrived")]
    may_have_arrived: bool,
}

/// A relay, and the reason.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OfRelay {
    relay: String,
    reason: String,
}

/// The answer to a change.
#[derive(Debug, Serialize)]
pub(super) struct Done {
    /// In words.
    says: String,
}

type Answer = Result<axum::Json<Done>, Error>;

fn done(says: String) -> Answer {
    Ok(axum::Json(Done { says }))
}

/// `POST /console/parked/release`: the relay publishes a topic's parked events in order; then the topic
/// flows.
pub(super) async fn release(
    State(shared): State<Arc<Shared>>,
    Extension(identity): Extension<Identity>,
    asked: Asked,
    Json(asked_for): Json<OfTopic>,
) -> Answer {
    request(&shared, identity, asked, &asked_for, Action::Release).await
}

/// `POST /console/parked/discard`: the relay gives up a topic's parked events; then the topic flows.
pub(super) async fn discard(
    State(shared): State<Arc<Shared>>,
    Extension(identity): Extension<Identity>,
    asked: Asked,
    Json(asked_for): Json<OfTopic>,
) -> Answer {
    let action = if asked_for.may_have_arrived { Action::DiscardArrived } else { Action::Discard };
    request(&shared, identity, asked, &asked_for, action).await
}

/// Hands the request to the relay, and answers with its outcome, or that the outcome is not known yet.
async fn request(
    shared: &Shared,
    identity: Identity,
    asked: Asked,
    asked_for: &OfTopic,
    action: Action,
) -> Answer {
    let operator = operator(identity, &asked_for.reason)?;
    let topic = Topic::new(asked_for.topic.clone())?;
    let through: Option<StreamId> = asked_for.through.as_deref().map(str::parse).transpose()?;
    let mut change = Change::begin(shared, asked).await?;
    let deadline = change.deadline();
    let tx = change.connection();
    let named = deadline.holds(parked::name(tx, &asked_for.relay, &topic, through)).await?;
    let named = named.ok_or_else(|| Error::NotParked(asked_for.topic.clone()))?;
    let requesting = parked::request(tx, &asked_for.relay, vec![named], action, &operator);
    let request = deadline.holds(requesting).await?;
    change.commit().await?;
    publish_change(shared).await;
    let outcomes = parked::wait(&mut *shared.pool.acquire().await?, &request, OUTCOME_LIMIT).await?;
    shared.feed.look_again();
    let says: Vec<String> = outcomes.iter().map(parked::Outcome::says).collect();
    done(format!("{}.", says.join(". ")))
}

/// `POST /console/pause`. It is no error if the relay is in that state already.
pub(super) async fn pause(
    State(shared): State<Arc<Shared>>,
    Extension(identity): Extension<Identity>,
    asked: Asked,
    Json(asked_for): Json<OfRelay>,
) -> Answer {
    let operator = operator(identity, &asked_for.reason)?;
    let mut change = Change::begin(&shared, asked).await?;
    if !change.deadline().holds(pausing::pause(change.connection(), &asked_for.relay, &operator)).await? {
        return done(format!("Relay {} is paused already.", asked_for.relay));
    }
    change.commit().await?;
    publish_change(&shared).await;
    done(format!("Relay {} is paused.", asked_for.relay))
}

/// `POST /console/resume`. It is no error if the relay is in that state already.
pub(super) async fn resume(
    State(shared): State<Arc<Shared>>,
    Extension(identity): Extension<Identity>,
    asked: Asked,
    Json(asked_for): Json<OfRelay>,
) -> Answer {
    let operator = operator(identity, &asked_for.reason)?;
    let mut change = Change::begin(&shared, asked).await?;
    if !change.deadline().holds(pausing::resume(change.connection(), &asked_for.relay, &operator)).await? {
        return done(format!("Relay {} is not paused.", asked_for.relay));
    }
    change.commit().await?;
    publish_change(&shared).await;
    done(format!("Relay {} delivers again.", asked_for.relay))
}

/// The operator and the reason, for the audit.
pub(super) fn operator(identity: Identity, reason: &str) -> Result<Operator, Error> {
    // Control characters would steer a terminal on which the audit is read.
    let reason: String = reason.trim().chars().filter(|c| !c.is_control()).collect();
    if reason.is_empty() || reason.chars().count() > REASON_LEN_MAX {
        return Err(Error::NoReason(REASON_LEN_MAX));
    }
    Ok(Operator { who: identity.who, reason })
}

/// Wakes the relays, and lets the page show the change.
async fn publish_change(shared: &Shared) {
    match shared.pool.acquire().await {
        Ok(mut connection) => relays::wake(&mut connection).await,
        Err(error) => tracing::debug!(%error, "no connection for NOTIFY: relays find the change by polling"),
    }
    shared.feed.look_again();
}
