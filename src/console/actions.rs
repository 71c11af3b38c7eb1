//! What an operator does by hand: each change and its audit row in one transaction, then the bell.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::{Connection, PgConnection};

use super::Shared;
use super::access::Identity;
use super::error::Error;
use crate::counted::counted;
use crate::event::Topic;
use crate::http::Json;
use crate::outbox::audit::{self, Operator};
use crate::outbox::parked::{self, Action};
use crate::outbox::{checkpoint, pause as pauses};

/// Characters of a reason at most.
const REASON_LEN_MAX: usize = 500;

/// Which topic's parked events, and why.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OfTopic {
    relay: String,
    topic: String,
    reason: String,
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
    Json(wished): Json<OfTopic>,
) -> Answer {
    let events = settle(&shared, identity, &wished, Action::Release).await?;
    done(format!("The relay publishes {} of {}.", counted(events, "parked event"), wished.topic))
}

/// `POST /console/parked/discard`: the relay gives up a topic's parked events, then lets it flow.
pub(super) async fn discard(
    State(shared): State<Arc<Shared>>,
    Extension(identity): Extension<Identity>,
    Json(wished): Json<OfTopic>,
) -> Answer {
    let events = settle(&shared, identity, &wished, Action::Discard).await?;
    done(format!("The relay gives up {} of {}.", counted(events, "parked event"), wished.topic))
}

async fn settle(shared: &Shared, identity: Identity, wished: &OfTopic, action: Action) -> Result<u64, Error> {
    let operator = operator(identity, &wished.reason)?;
    let topic = Topic::new(wished.topic.clone())?;
    let mut connection = shared.pool.acquire().await?;
    let mut tx = connection.begin().await?;
    let events = parked::request(&mut tx, &wished.relay, &topic, action, None).await?;
    if events == 0 {
        return Err(Error::NotParked(wished.topic.clone()));
    }
    let what = json!({ "relay": wished.relay, "topics": [topic] });
    audit::write(&mut tx, &operator, action.as_str(), &what, events).await?;
    tx.commit().await?;
    tell(shared).await;
    Ok(events)
}

/// `POST /console/pause`. Asking for what is already so is no error.
pub(super) async fn pause(
    State(shared): State<Arc<Shared>>,
    Extension(identity): Extension<Identity>,
    Json(wished): Json<OfRelay>,
) -> Answer {
    let operator = operator(identity, &wished.reason)?;
    let mut connection = shared.pool.acquire().await?;
    let mut tx = connection.begin().await?;
    known(&mut tx, &wished.relay).await?;
    if !pauses::pause(&mut tx, &wished.relay, &operator).await? {
        return done(format!("Relay {} is paused already.", wished.relay));
    }
    audit::write(&mut tx, &operator, "pause", &json!({ "relay": wished.relay }), 0).await?;
    tx.commit().await?;
    tell(&shared).await;
    done(format!("Relay {} is paused.", wished.relay))
}

/// `POST /console/resume`. Asking for what is already so is no error.
pub(super) async fn resume(
    State(shared): State<Arc<Shared>>,
    Extension(identity): Extension<Identity>,
    Json(wished): Json<OfRelay>,
) -> Answer {
    let operator = operator(identity, &wished.reason)?;
    let mut connection = shared.pool.acquire().await?;
    let mut tx = connection.begin().await?;
    known(&mut tx, &wished.relay).await?;
    if !pauses::resume(&mut tx, &wished.relay).await? {
        return done(format!("Relay {} is not paused.", wished.relay));
    }
    audit::write(&mut tx, &operator, "resume", &json!({ "relay": wished.relay }), 0).await?;
    tx.commit().await?;
    tell(&shared).await;
    done(format!("Relay {} delivers again.", wished.relay))
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
