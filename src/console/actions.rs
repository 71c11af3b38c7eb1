//! What an operator does by hand: each change and its audit row in one transaction, then the bell.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::PgConnection;

use super::Shared;
use super::access::Identity;
use super::change::{Asked, Change};
use super::error::Error;
use crate::event::{StreamId, Topic};
use crate::http::Json;
use crate::log::checkpoint;
use crate::log::parked::Action;
use crate::ops::audit::{self, Operator};
use crate::ops::{parked, pause as pauses};

/// Characters of a reason at most.
const REASON_LEN_MAX: usize = 500;
/// How long an answer waits for the relay to release or discard what it was asked to.
const OUTCOME_LIMIT: Duration = Duration::from_secs(2);

/// Which topic's parked events, and why.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OfTopic {
    relay: String,
    topic: String,
    reason: String,
    /// The last id that is meant. Without it, what is parked when the request comes.
    through: Option<String>,
}

/// Which relay, and why.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OfRelay {
    relay: String,
    reason: String,
}

/// What was done.
#[derive(Debug, Serialize)]
pub(super) struct Done {
    /// In words.
    says: String,
}

type Answer = Result<axum::Json<Done>, Error>;

fn done(says: String) -> Answer {
    Ok(axum::Json(Done { says }))
}

/// `POST /console/parked/release`: the relay publishes a topic's parked events in order, then lets it flow.
pub(super) async fn release(
    State(shared): State<Arc<Shared>>,
    Extension(identity): Extension<Identity>,
    asked: Asked,
    Json(asked_for): Json<OfTopic>,
) -> Answer {
    request(&shared, identity, asked, &asked_for, Action::Release).await
}

/// `POST /console/parked/discard`: the relay gives up a topic's parked events, then lets it flow.
pub(super) async fn discard(
    State(shared): State<Arc<Shared>>,
    Extension(identity): Extension<Identity>,
    asked: Asked,
    Json(asked_for): Json<OfTopic>,
) -> Answer {
    request(&shared, identity, asked, &asked_for, Action::Discard).await
}

/// Hands the request to the relay, and answers what became of it, or that this is not known yet.
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
    tell(shared).await;
    let outcomes = parked::wait(&mut *shared.pool.acquire().await?, &request, OUTCOME_LIMIT).await?;
    shared.feed.look_again();
    let says: Vec<String> = outcomes.iter().map(parked::Outcome::says).collect();
    done(format!("{}.", says.join(". ")))
}

/// `POST /console/pause`. Asking for what is already so is no error.
pub(super) async fn pause(
    State(shared): State<Arc<Shared>>,
    Extension(identity): Extension<Identity>,
    asked: Asked,
    Json(asked_for): Json<OfRelay>,
) -> Answer {
    let operator = operator(identity, &asked_for.reason)?;
    let mut change = Change::begin(&shared, asked).await?;
    if !change.deadline().holds(pause_in(change.connection(), &asked_for.relay, &operator)).await? {
        return done(format!("Relay {} is paused already.", asked_for.relay));
    }
    change.commit().await?;
    tell(&shared).await;
    done(format!("Relay {} is paused.", asked_for.relay))
}

async fn pause_in(tx: &mut PgConnection, relay: &str, operator: &Operator) -> Result<bool, Error> {
    known(tx, relay).await?;
    if !pauses::pause(tx, relay, operator).await? {
        return Ok(false);
    }
    audit::write(tx, operator, "pause", &json!({ "relay": relay }), 0).await?;
    Ok(true)
}

/// `POST /console/resume`. Asking for what is already so is no error.
pub(super) async fn resume(
    State(shared): State<Arc<Shared>>,
    Extension(identity): Extension<Identity>,
    asked: Asked,
    Json(asked_for): Json<OfRelay>,
) -> Answer {
    let operator = operator(identity, &asked_for.reason)?;
    let mut change = Change::begin(&shared, asked).await?;
    if !change.deadline().holds(resume_in(change.connection(), &asked_for.relay, &operator)).await? {
        return done(format!("Relay {} is not paused.", asked_for.relay));
    }
    change.commit().await?;
    tell(&shared).await;
    done(format!("Relay {} delivers again.", asked_for.relay))
}

async fn resume_in(tx: &mut PgConnection, relay: &str, operator: &Operator) -> Result<bool, Error> {
    known(tx, relay).await?;
    if !pauses::resume(tx, relay).await? {
        return Ok(false);
    }
    audit::write(tx, operator, "resume", &json!({ "relay": relay }), 0).await?;
    Ok(true)
}

/// Makes sure that a relay of this name has run on the log.
pub(super) async fn known(connection: &mut PgConnection, relay: &str) -> Result<(), Error> {
    match checkpoint::newest(connection, relay).await? {
        Some(_position) => Ok(()),
        None => Err(Error::NoRelay(relay.to_owned())),
    }
}

/// Who does it and why, for the audit.
pub(super) fn operator(identity: Identity, reason: &str) -> Result<Operator, Error> {
    // Control characters would steer the terminal of whoever reads the audit.
    let reason: String = reason.trim().chars().filter(|c| !c.is_control()).collect();
    if reason.is_empty() || reason.chars().count() > REASON_LEN_MAX {
        return Err(Error::NoReason(REASON_LEN_MAX));
    }
    Ok(Operator { who: identity.who, reason })
}

/// Wakes the relay, which would otherwise find it by polling, and shows what has changed.
async fn tell(shared: &Shared) {
    let told = async { sqlx::query("notify outbox").execute(&mut *shared.pool.acquire().await?).await };
    if let Err(error) = told.await {
        tracing::debug!(%error, "relays will find it by polling");
    }
    shared.feed.look_again();
}
