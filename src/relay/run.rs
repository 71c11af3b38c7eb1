//! The loop: connect, lead, step, wait; and start over when something breaks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::PgConnection;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::state::{Role, StateHandle};
use super::step::{Outcome, Rules, Step, StepError};
use super::wake::chance;
use super::{Metrics, PublishError, Settings, Sink, keeper, leader, wake};
use crate::outbox::{self, read, schema};
use crate::postgres::{self, ConnectError, SchemaError};

/// Added to Postgres's own statement timeout: when nothing has come by then, the server is gone.
const PATIENCE_BEYOND_SERVER: Duration = Duration::from_secs(3);

/// While events flow without a pause: how often to look for what operators want.
const WISH_INTERVAL: Duration = Duration::from_secs(1);

/// Why a session with Postgres ended. The loop makes a new one.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Schema(#[from] SchemaError),
    #[error(transparent)]
    Step(#[from] StepError),
    #[error("Postgres: {0}")]
    Database(#[from] sqlx::Error),
}

impl From<outbox::Error> for SessionError {
    fn from(error: outbox::Error) -> Self {
        Self::Step(error.into())
    }
}

/// Delivers the log to `sink` until `shutdown`, through every failure of Postgres and of the sink.
///
/// Delivered events stay in the log for `retention` at least. On shutdown the step in hand is finished and nothing more is begun.
pub async fn run<S: Sink>(
    settings: &Settings,
    database: &postgres::Settings,
    retention: Duration,
    sink: &mut S,
    metrics: &Metrics,
    state: &StateHandle,
    shutdown: CancellationToken,
) {
    let mut backoff = backoff_of(settings);
    let mut relay = Relay {
        settings,
        database,
        retention,
        sink,
        metrics,
        state,
        shutdown: shutdown.clone(),
        wishes_due: Instant::now(),
    };
    while !shutdown.is_cancelled() {
        let ended = relay.session(&mut backoff).await;
        metrics.leading.set(0);
        state.role(Role::Disconnected);
        let Err(error) = ended else { break };
        metrics.retries.inc();
        state.failed(&error.to_string());
        let wait = backoff.next(chance());
        tracing::warn!(%error, wait_ms = wait.as_millis() as u64, "the relay starts over");
        pause(wait, &shutdown).await;
    }
}

fn backoff_of(settings: &Settings) -> Backoff {
    Backoff::new(
        Duration::from_millis(settings.backoff_min_ms),
        Duration::from_millis(settings.backoff_max_ms),
    )
}

async fn pause(wait: Duration, shutdown: &CancellationToken) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = tokio::time::sleep(wait) => {}
    }
}

/// What the loop works with.
struct Relay<'a, S> {
    settings: &'a Settings,
    database: &'a postgres::Settings,
    sink: &'a mut S,
    metrics: &'a Metrics,
    state: &'a StateHandle,
    shutdown: CancellationToken,
    retention: Duration,
    wishes_due: Instant,
}

impl<S: Sink> Relay<'_, S> {
    /// One session with Postgres: stand by, lead, deliver. Ends well only at shutdown.
    async fn session(&mut self, backoff: &mut Backoff) -> Result<(), SessionError> {
        let name = &self.settings.name;
        let mut writer = self.database.connect(&format!("aftercommit relay {name}")).await?;
        prepare(&mut writer).await?;
        schema::SCHEMA.check(&mut writer).await?;
        if !self.stand_by(&mut writer).await? {
            return Ok(());
        }
        let mut reader = self.database.connect(&format!("aftercommit relay {name} reader")).await?;
        read::prepare_session(&mut reader).await?;

        // Ends with the session, whichever way that ends.
        let session = self.shutdown.child_token();
        let _ends_with_session = session.clone().drop_guard();
        let bell = Arc::new(Notify::new());
        let options = self.database.options(&format!("aftercommit relay {name} listener"))?;
        tokio::spawn(wake::listen(options, bell.clone(), session.clone()));

        let mut step = Step::begin(self.rules(), writer, reader).await?;
        tracing::info!(relay = %name, n = step.position().n, next_seq = step.position().next_seq, "leading");
        self.state.role(Role::Leading);
        self.metrics.leading.set(1);
        tokio::spawn(keeper::keep(
            self.database.clone(),
            name.clone(),
            self.retention,
            self.metrics.clone(),
            self.state.clone(),
            session,
        ));
        backoff.reset();
        self.deliver(&mut step, &bell).await
    }

    /// Waits until this process may lead. False at shutdown.
    async fn stand_by(&self, writer: &mut PgConnection) -> Result<bool, SessionError> {
        while !self.shutdown.is_cancelled() {
            let asked = leader::try_lead(writer, &self.settings.name);
            match timeout(self.patience(), asked).await {
                Ok(Ok(true)) => return Ok(true),
                Ok(Ok(false)) => {}
                Ok(Err(error)) => return Err(error.into()),
                Err(_elapsed) => return Err(StepError::NoAnswer(self.patience()).into()),
            }
            if self.state.get().role != Role::Standby {
                tracing::info!(relay = %self.settings.name, "another relay leads; standing by");
                self.state.role(Role::Standby);
            }
            self.state.succeeded();
            pause(self.settings.standby_interval(), &self.shutdown).await;
        }
        Ok(false)
    }

    /// Steps until shutdown, waits while there is nothing to do, and tries again what the sink refused.
    async fn deliver(&mut self, step: &mut Step, bell: &Notify) -> Result<(), SessionError> {
        let mut backoff = backoff_of(self.settings);
        while !self.shutdown.is_cancelled() {
            match self.step_or_wish(step).await {
                Ok(outcome) => {
                    backoff.reset();
                    self.state.succeeded();
                    self.after(outcome, bell).await;
                }
                Err(StepError::Outbox(error @ outbox::Error::Fenced { .. })) => {
                    self.metrics.fenced.inc();
                    tracing::warn!(%error, "fenced");
                    step.reload().await?;
                    // Whoever wrote that row may still lead: let it.
                    pause(backoff.next(chance()), &self.shutdown).await;
                }
                Err(StepError::Publish(error)) => {
                    self.metrics.retries.inc();
                    self.state.failed(&error.to_string());
                    let wait = backoff.next(chance());
                    match error {
                        PublishError::Retry(reason) => {
                            tracing::warn!(%reason, wait_ms = wait.as_millis() as u64, "publishing again");
                        }
                        other => tracing::error!(error = %other, "nothing is delivered until this is solved"),
                    }
                    pause(wait, &self.shutdown).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// One step; and, when there is time, what an operator wants done with parked events.
    async fn step_or_wish(&mut self, step: &mut Step) -> Result<Outcome, StepError> {
        let outcome = step.step(self.sink).await?;
        if outcome == Outcome::Idle || self.wishes_due.elapsed() >= WISH_INTERVAL {
            self.wishes_due = Instant::now();
            if step.grant_wish(self.sink).await? {
                return Ok(Outcome::Delivered { published: 0, parked: 0 });
            }
        }
        Ok(outcome)
    }

    async fn after(&self, outcome: Outcome, bell: &Notify) {
        match outcome {
            Outcome::Delivered { published, parked } => {
                self.metrics.steps.inc();
                self.metrics.published.inc_by(published as u64);
                self.metrics.parked.inc_by(parked as u64);
            }
            Outcome::Idle => {
                tokio::select! {
                    () = self.shutdown.cancelled() => {}
                    // A ring during the last look is kept by the Notify, so nothing is slept through.
                    () = bell.notified() => {}
                    () = tokio::time::sleep(self.settings.poll_interval()) => {}
                }
            }
        }
    }

    fn rules(&self) -> Rules {
        Rules {
            relay: self.settings.name.clone(),
            limit: self.settings.limit(),
            on_poison: self.settings.on_poison,
            patience: self.patience(),
        }
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(self.database.statement_timeout_ms) + PATIENCE_BEYOND_SERVER
    }
}

/// Makes the session's writes durable whatever the server's default is: numbers given to Redis must never be forgotten.
async fn prepare(writer: &mut PgConnection) -> Result<(), SessionError> {
    read::prepare_session(writer).await?;
    sqlx::raw_sql("set synchronous_commit = on").execute(writer).await?;
    Ok(())
}
