//! Replay: looking first at what would be repeated, then doing it in the background. How far it is comes by the feed.

use std::num::NonZeroU32;
use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::Shared;
use super::access::Identity;
use super::actions::operator;
use super::change::{Asked, REPLAY_LIMIT};
use super::error::Error;
use crate::http::Json;
use crate::log::read;
use crate::ops::browse::{EventRow, Selection};
use crate::ops::relays;
use crate::ops::replay::{self, Plan, Replay};

/// Events that a look shows.
const SAMPLE: u32 = 5;

/// Looks and replays of this process at a time: each has a connection of its own.
const AT_A_TIME: usize = 2;

/// Events a second that can be asked for at most: more is as fast as it goes.
const RATE_MAX: u32 = 100_000;

/// The replays that this process is at.
#[derive(Debug)]
pub(super) struct Replays {
    places: Arc<Semaphore>,
    running: TaskTracker,
    stop: CancellationToken,
}

impl Default for Replays {
    fn default() -> Self {
        let places = Arc::new(Semaphore::new(AT_A_TIME));
        Self { places, running: TaskTracker::new(), stop: CancellationToken::new() }
    }
}

impl Replays {
    /// Ends those that are running after their batch. They can be taken up again.
    pub(super) async fn end(&self) {
        self.stop.cancel();
        self.running.close();
        self.running.wait().await;
    }
}

/// A connection for one look or replay, whose lock lives as long as its session.
struct Session {
    connection: PgConnection,
    _place: OwnedSemaphorePermit,
}

impl Session {
    async fn open(shared: &Shared) -> Result<Self, Error> {
        let place = shared.replays.places.clone().try_acquire_owned().map_err(|_full| Error::Busy)?;
        let mut connection = shared.parts.database.connect("aftercommit console replay").await?;
        read::prepare_session(&mut connection).await?;
        Ok(Self { connection, _place: place })
    }

    async fn plan(&mut self, relay: &str, selection: &Selection) -> Result<Plan, Error> {
        relays::must_exist(&mut self.connection, relay).await?;
        Ok(replay::plan(&mut self.connection, relay, selection).await?)
    }
}

/// Which events. Every part that is set must match.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Chosen {
    #[serde(default)]
    events: Vec<Uuid>,
    topic: Option<String>,
    #[serde(rename = "type")]
    event_type: Option<String>,
    since: Option<DateTime<Utc>>,
    until: Option<DateTime<Utc>>,
}

impl Chosen {
    fn selection(self) -> Result<Selection, Error> {
        let Self { events, topic, event_type, since, until } = self;
        let selection = Selection { events, topic, event_type, since, until, ..Selection::default() };
        if selection.is_everything() { Err(Error::NoSelection) } else { Ok(selection) }
    }
}

/// What to look for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Look {
    relay: String,
    selection: Chosen,
}

/// What to replay, how many events a second at most, and why. Without a rate, as fast as it goes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    relay: String,
    selection: Chosen,
    rate: Option<u32>,
    reason: String,
}

/// Which replay to take up again, how fast, and why.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Again {
    id: i64,
    rate: Option<u32>,
    reason: String,
}

/// A rate that was asked for, if it is one.
fn checked(rate: Option<u32>) -> Result<Option<NonZeroU32>, Error> {
    let Some(rate) = rate else { return Ok(None) };
    match NonZeroU32::new(rate).filter(|rate| rate.get() <= RATE_MAX) {
        Some(rate) => Ok(Some(rate)),
        None => Err(Error::NoRate(RATE_MAX)),
    }
}

/// What would be replayed.
#[derive(Debug, Serialize)]
pub(super) struct Preview {
    events: u64,
    sample: Vec<EventRow>,
}

/// `POST /console/replay/preview`: counts and shows some, and changes nothing.
pub(super) async fn preview(
    State(shared): State<Arc<Shared>>,
    Json(look): Json<Look>,
) -> Result<axum::Json<Preview>, Error> {
    let selection = look.selection.selection()?;
    let mut session = Session::open(&shared).await?;
    let plan = session.plan(&look.relay, &selection).await?;
    let sample = replay::sample(&mut session.connection, &plan, SAMPLE).await?;
    Ok(axum::Json(Preview { events: plan.events, sample }))
}

/// `POST /console/replay`: begins, and goes on in the background.
pub(super) async fn start(
    State(shared): State<Arc<Shared>>,
    Extension(identity): Extension<Identity>,
    asked: Asked,
    Json(wanted): Json<Wanted>,
) -> Result<axum::Json<Replay>, Error> {
    let operator = operator(identity, &wanted.reason)?;
    let (selection, rate) = (wanted.selection.selection()?, checked(wanted.rate)?);
    let deadline = asked.deadline(REPLAY_LIMIT);
    let mut session = deadline.holds(Session::open(&shared)).await?;
    let plan = deadline.holds(session.plan(&wanted.relay, &selection)).await?;
    deadline.is_ahead().await?;
    let begun = replay::begin(&mut session.connection, &plan, &operator).await?;
    Ok(axum::Json(carry_on(&shared, session, begun, rate)))
}

/// `POST /console/replay/resume`: takes up one that was interrupted.
pub(super) async fn resume(
    State(shared): State<Arc<Shared>>,
    Extension(identity): Extension<Identity>,
    asked: Asked,
    Json(again): Json<Again>,
) -> Result<axum::Json<Replay>, Error> {
    let operator = operator(identity, &again.reason)?;
    let rate = checked(again.rate)?;
    let deadline = asked.deadline(REPLAY_LIMIT);
    let mut session = deadline.holds(Session::open(&shared)).await?;
    deadline.is_ahead().await?;
    let resumed = replay::resume(&mut session.connection, again.id, &operator).await?;
    Ok(axum::Json(carry_on(&shared, session, resumed, rate)))
}

/// Runs it in the background; how far it is, the feed tells.
fn carry_on(shared: &Arc<Shared>, mut session: Session, begun: Replay, rate: Option<NonZeroU32>) -> Replay {
    let (mut replay, shared) = (begun.clone(), shared.clone());
    shared.clone().replays.running.spawn(async move {
        let stop = &shared.replays.stop;
        let ran = replay::run(&mut session.connection, &mut replay, rate, stop, |_| {}).await;
        if let Err(error) = ran {
            tracing::warn!(%error, replay = replay.id, "a replay stopped; it can be taken up again");
        }
        shared.feed.look_again();
    });
    begun
}
