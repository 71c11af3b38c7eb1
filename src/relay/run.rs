//! The loop around the sessions with Postgres: connects, leads, and starts over when something breaks.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::failure::{Failure, Remedy};
use super::leader;
use super::monitor::Monitor;
use super::run_error::RunError;
use super::session::{self, SessionError};
use super::state::{Role, StateHandle};
use super::step::{Rules, Step, StepError};
use super::turns::{Inputs, LeadLoop};
use super::{Metrics, Settings, Sink, wake};
use crate::backoff::Backoff;
use crate::postgres;

/// Delivers the log to `sink` until `shutdown`, through every failure of Postgres and of the sink.
///
/// Delivered events stay in the log for at least `retention`. On shutdown the relay finishes the current step
/// and begins nothing more.
pub async fn run<S: Sink>(
    settings: &Settings,
    database: &postgres::Settings,
    retention: Duration,
    sink: &mut S,
    metrics: &Metrics,
    state: &StateHandle,
    shutdown: CancellationToken,
) {
    let monitor = Monitor {
        database: database.clone(),
        settings: settings.clone(),
        metrics: metrics.clone(),
        state: state.clone(),
    };
    let monitor = tokio::spawn(monitor.run(shutdown.clone()));
    let inputs = Inputs { settings, database, retention, metrics, state, shutdown: shutdown.clone() };
    let mut backoff = inputs.backoff();
    let mut relay = Relay { inputs, sink };
    while !shutdown.is_cancelled() {
        state.progressed();
        let ended = Box::pin(relay.session(&mut backoff)).await;
        metrics.leading.set(0);
        relay.inputs.rotation_blocked(None);
        // The next leader finds out for itself. (The state stays, so that nothing is rotated before that.)
        metrics.servers_behind.set(0);
        state.role(Role::Disconnected);
        let Err(error) = ended else { break };
        let error = error.explained();
        let mut wait = backoff.next_wait();
        if let RunError::StoodDown(_) = error {
            // The wait gives each standby the time to ask for the lead.
            wait = wait.max(2 * settings.standby_interval());
        }
        relay.session_failed(&error, wait);
        relay.inputs.sleep(wait).await;
    }
    if let Err(error) = monitor.await {
        tracing::debug!(%error, "the monitor ended on its own");
    }
}

/// A relay between and in its sessions.
struct Relay<'a, S> {
    inputs: Inputs<'a>,
    sink: &'a mut S,
}

impl<S: Sink> Relay<'_, S> {
    /// Runs one session with Postgres: stands by, leads, delivers. Returns `Ok` only at shutdown.
    async fn session(&mut self, backoff: &mut Backoff) -> Result<(), RunError> {
        let Inputs { settings, database, metrics, state, shutdown, .. } = self.inputs.clone();
        let mut writer = session::writer(database, settings).await?;
        if !self.stand_by(&mut writer).await? {
            return Ok(());
        }
        let reader = session::reader(database, settings, &mut writer).await?;

        // Cancelled when the session ends, whichever way it ends.
        let session = shutdown.child_token();
        let _ends_with_session = session.clone().drop_guard();
        let bell = Arc::new(Notify::new());
        tokio::spawn(wake::listen(
            database.clone(),
            settings.name.clone(),
            bell.clone(),
            state.clone(),
            metrics.clone(),
            session.clone(),
        ));

        let step = Step::begin(self.rules(), writer, reader).await?;
        let (n, next_seq) = (step.position().n, step.position().next_seq);
        tracing::info!(relay = %settings.name, n, next_seq, "leading");
        state.role(Role::Leading);
        metrics.leading.set(1);
        metrics.leads_taken.inc();
        LeadLoop::begin(self.inputs.clone(), self.sink, step, &bell, session).run(backoff).await
    }

    fn session_failed(&self, error: &RunError, wait: Duration) {
        let Failure { class, remedy } = error.failure();
        self.inputs.metrics.failed(class);
        self.inputs.state.failed(&error.to_string());
        let wait_ms = wait.as_millis() as u64;
        if remedy == Remedy::Person {
            tracing::error!(%error, class, wait_ms, "nothing is delivered until this is solved");
        } else {
            tracing::warn!(%error, class, wait_ms, "the relay starts over");
        }
    }

    /// Waits until this process may lead. Returns false at shutdown.
    async fn stand_by(&self, writer: &mut PgConnection) -> Result<bool, RunError> {
        while !self.inputs.shutdown.is_cancelled() {
            self.inputs.state.progressed();
            let asked =
                leader::try_lead(writer, &self.inputs.settings.name, self.inputs.settings.longest_silence());
            match timeout(self.inputs.timeout(), asked).await {
                Ok(Ok(true)) => return Ok(true),
                Ok(Ok(false)) => {}
                Ok(Err(error)) => return Err(SessionError::from(error).into()),
                Err(_elapsed) => return Err(StepError::NoAnswer(self.inputs.timeout()).into()),
            }
            if self.inputs.state.get().role != Role::Standby {
                tracing::info!(relay = %self.inputs.settings.name, "another relay leads; standing by");
                self.inputs.state.role(Role::Standby);
            }
            self.inputs.succeeded();
            self.inputs.sleep(self.inputs.settings.standby_interval()).await;
        }
        Ok(false)
    }

    fn rules(&self) -> Rules {
        Rules {
            relay: self.inputs.settings.name.clone(),
            limit: self.inputs.settings.limit(),
            on_poison: self.inputs.settings.on_poison,
            timeout: self.inputs.timeout(),
            keepalive: self.inputs.settings.keepalive(),
        }
    }
}
