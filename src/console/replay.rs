//! Replays: a preview of the events to repeat, then the replay itself in the background. The feed shows its
//! progress.

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

/// The number of events in a preview.
const SAMPLE: u32 = 5;

/// The largest number of previews and replays at a time in this process. Each has a connection of its own.
const AT_A_TIME: usize = 2;

/// The largest rate, in events a second. Without a rate, a replay runs at full speed.
const RATE_MAX: u32 = 100_000;

/// The previews and replays of this process.
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
    /// Interrupts running replays after their current batch. They can be resumed.
    pub(super) async fn end(&self) {
        self.stop.cancel();
        self.running.close();
        self.running.wait().await;
    }
}

/// A connection for one preview or replay. The replay's lock lives as long as this session.
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

/// The selected events. An event must match every part that is set.
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

/// The body of a preview's request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Look {
    relay: String,
    selection: Chosen,
}

/// The body of a request to replay. `rate` is in events a second; without it, the replay runs at full speed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    relay: String,
    selection: Chosen,
    rate: Option<u32>,
    reason: String,
}

/// The body of a request to resume a replay.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Again {
    id: i64,
    rate: Option<u32>,
    reason: String,
}

/// Checks the rate of a request.
fn checked(rate: Option<u32>) -> Result<Option<NonZeroU32>, Error> {
    let Some(rate) = rate else { return Ok(None) };
    match NonZeroU32::new(rate).filter(|rate| rate.get() <= RATE_MAX) {
        Some(rate) => Ok(Some(rate)),
        None => Err(Error::NoRate(RATE_MAX)),
    }
}

/// The answer to a preview's request.
#[derive(Debug, Serialize)]
pub(super) struct Preview {
    events: u64,
    sample: Vec<EventRow>,
}

/// `POST /console/replay/preview`: counts the events and shows some. Changes nothing.
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

/// `POST /console/replay`: begins a replay, which continues in the background.
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

/// `POST /console/replay/resume`: resumes an interrupted replay.
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

/// Runs the replay in the background. The feed shows its progress.
fn carry_on(shared: &Arc<Shared>, mut session: Session, begun: Replay, rate: Option<NonZeroU32>) -> Replay {
    let (mut replay, shared) = (begun.clone(), shared.clone());
    shared.clone().replays.running.spawn(async move {
        let stop = &shared.replays.stop;
        let ran = replay::run(&mut session.connection, &mut replay, rate, stop, |_| {}).await;
        if let Err(error) = ran {
            tracing::warn!(%error, replay = replay.id, "a replay was interrupted; it can be resumed");
        }
        shared.feed.look_again();
    });
    begun
}
