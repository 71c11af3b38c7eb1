//! The loop: connects, leads, steps and waits, and starts over when something breaks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::PgConnection;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::failure::{Failure, Remedy};
use super::idle::Pace;
use super::leader::{self, staying_alive};
use super::monitor::Monitor;
use super::reconcile::Reconciled;
use super::run_error::RunError;
use super::session::{self, SessionError};
use super::state::{Role, StateHandle};
use super::step::{Outcome, Rules, Step, StepError};
use super::{Metrics, PublishError, Settings, Sink, rotation_task, wake};
use crate::backoff::Backoff;
use crate::log;
use crate::postgres;

/// Added to Postgres's own statement timeout. Without an answer by then, the server is gone.
const TIMEOUT_MARGIN: Duration = Duration::from_secs(3);

/// How often the relay looks for a pause while events flow.
const PAUSE_INTERVAL: Duration = Duration::from_secs(1);
/// The first wait after a failure. Most failures are over by then: a connection that a restart has broken.
const BACKOFF_MIN: Duration = Duration::from_millis(50);

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
    let mut backoff = backoff_of(settings);
    let mut relay = Relay {
        settings,
        database,
        retention,
        sink,
        metrics,
        state,
        shutdown: shutdown.clone(),
        pause_looked: None,
        compared: None,
        waiting_rotation: None,
    };
    while !shutdown.is_cancelled() {
        state.progressed();
        let ended = Box::pin(relay.session(&mut backoff)).await;
        metrics.leading.set(0);
        relay.rotation_blocked(None);
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
        sleep_unless_stopped(wait, &shutdown).await;
    }
    if let Err(error) = monitor.await {
        tracing::debug!(%error, "the monitor ended on its own");
    }
}

fn backoff_of(settings: &Settings) -> Backoff {
    let max = Duration::from_millis(settings.backoff_max_ms);
    Backoff::new(BACKOFF_MIN.min(max), max)
}

async fn sleep_unless_stopped(wait: Duration, shutdown: &CancellationToken) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = tokio::time::sleep(wait) => {}
    }
}

/// The reason why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Woken {
    /// A notification came.
    ByBell,
    /// The time was up, or the relay is to end.
    Otherwise,
}

/// The failures since the last success.
struct Failures {
    backoff: Backoff,
    /// Since when the sink has refused everything.
    refused_since: Option<Instant>,
}

impl Failures {
    fn succeeded(&mut self) {
        self.backoff.reset();
        self.refused_since = None;
    }
}

/// Why the log is not rotated while a lead begins paused, or without an answer of the sink (see
/// [`rotation_task::run`]).
const WAITS_FOR_COMPARISON: &str = "Redis has not been compared with the position yet";

/// The loop's inputs and state.
struct Relay<'a, S> {
    settings: &'a Settings,
    database: &'a postgres::Settings,
    sink: &'a mut S,
    metrics: &'a Metrics,
    state: &'a StateHandle,
    shutdown: CancellationToken,
    retention: Duration,
    /// When the relay last saw that it is not paused.
    pause_looked: Option<Instant>,
    /// When the sink was last found to be in step; `None` if a comparison is due.
    compared: Option<Instant>,
    /// The end of the rotation of this session, which the first comparison begins.
    waiting_rotation: Option<CancellationToken>,
}

impl<S: Sink> Relay<'_, S> {
    /// Runs one session with Postgres: stands by, leads, delivers. Returns `Ok` only at shutdown.
    async fn session(&mut self, backoff: &mut Backoff) -> Result<(), RunError> {
        let name = &self.settings.name;
        let mut writer = session::writer(self.database, self.settings).await?;
        if !self.stand_by(&mut writer).await? {
            return Ok(());
        }
        let reader = session::reader(self.database, self.settings, &mut writer).await?;

        // Cancelled when the session ends, whichever way it ends.
        let session = self.shutdown.child_token();
        let _ends_with_session = session.clone().drop_guard();
        let bell = Arc::new(Notify::new());
        tokio::spawn(wake::listen(
            self.database.clone(),
            name.clone(),
            bell.clone(),
            self.state.clone(),
            self.metrics.clone(),
            session.clone(),
        ));

        let mut step = Step::begin(self.rules(), writer, reader).await?;
        tracing::info!(relay = %name, n = step.position().n, next_seq = step.position().next_seq, "leading");
        self.state.role(Role::Leading);
        self.metrics.leading.set(1);
        self.metrics.leads_taken.inc();
        self.waiting_rotation = Some(session);
        self.compared = None;
        self.pause_looked = None;
        self.sink.begin_lead(step.log());
        self.deliver(&mut step, &bell, backoff).await
    }

    fn session_failed(&self, error: &RunError, wait: Duration) {
        let Failure { class, remedy } = error.failure();
        self.metrics.failed(class);
        self.state.failed(&error.to_string());
        let wait_ms = wait.as_millis() as u64;
        if remedy == Remedy::Person {
            tracing::error!(%error, class, wait_ms, "nothing is delivered until this is solved");
        } else {
            tracing::warn!(%error, class, wait_ms, "the relay starts over");
        }
    }

    /// Waits until this process may lead. Returns false at shutdown.
    async fn stand_by(&self, writer: &mut PgConnection) -> Result<bool, RunError> {
        while !self.shutdown.is_cancelled() {
            self.state.progressed();
            let asked = leader::try_lead(writer, &self.settings.name, self.settings.takeover());
            match timeout(self.timeout(), asked).await {
                Ok(Ok(true)) => return Ok(true),
                Ok(Ok(false)) => {}
                Ok(Err(error)) => return Err(SessionError::from(error).into()),
                Err(_elapsed) => return Err(StepError::NoAnswer(self.timeout()).into()),
            }
            if self.state.get().role != Role::Standby {
                tracing::info!(relay = %self.settings.name, "another relay leads; standing by");
                self.state.role(Role::Standby);
            }
            self.succeeded();
            sleep_unless_stopped(self.settings.standby_interval(), &self.shutdown).await;
        }
        Ok(false)
    }

    /// Steps until shutdown, waits while there is nothing to do, and tries again after a refusal of the sink.
    /// A leader that cannot reach the sink for long gives up the lead.
    ///
    /// `session` is the backoff between sessions. It starts over only here, because a lead that ends before
    /// it has done anything is no success.
    async fn deliver(
        &mut self,
        step: &mut Step,
        bell: &Notify,
        session: &mut Backoff,
    ) -> Result<(), RunError> {
        let mut failures = Failures { backoff: backoff_of(self.settings), refused_since: None };
        let mut pace = Pace::new(self.settings.poll_interval());
        while !self.shutdown.is_cancelled() {
            self.state.progressed();
            if self.is_paused(step).await? {
                self.say_that_rotation_waits();
                self.wait(bell, &pace).await;
                continue;
            }
            match self.turn(step).await {
                Ok(outcome) => {
                    failures.succeeded();
                    session.reset();
                    self.succeeded();
                    self.go_on(step, outcome, bell, &mut pace).await;
                }
                Err(error) => self.try_again(step, error, &mut failures).await?,
            }
        }
        Ok(())
    }

    /// Counts what a turn has done. Waits if it found nothing.
    async fn go_on(&self, step: &mut Step, outcome: Outcome, bell: &Notify, pace: &mut Pace) {
        match outcome {
            Outcome::Delivered { published, parked } => {
                self.metrics.published.inc_by(published as u64);
                self.metrics.parked.inc_by(parked as u64);
                pace.found();
            }
            Outcome::Idle if self.wait(bell, pace).await == Woken::ByBell => step.expect_news(),
            Outcome::Idle => {}
        }
    }

    /// Prepares another try after a failed turn, and waits. Fails if this lead has to end.
    async fn try_again(
        &mut self,
        step: &mut Step,
        error: StepError,
        failures: &mut Failures,
    ) -> Result<(), RunError> {
        match error {
            StepError::Outbox(error @ log::Error::Fenced { .. }) => {
                self.metrics.fenced.inc();
                tracing::warn!(%error, "fenced");
                step.reload().await?;
                // The relay that wrote that row may still lead, so this one waits.
                self.back_off(step, failures.backoff.next_wait()).await
            }
            StepError::Publish(error) => {
                let refused_for = failures.refused_since.get_or_insert_with(Instant::now).elapsed();
                // A conflict, or an event that stops everything, would stop another relay just as well.
                let may_be_the_way = matches!(error, PublishError::Retry { .. });
                if may_be_the_way && refused_for > self.settings.takeover() {
                    return Err(RunError::StoodDown(error));
                }
                // The next connection may reach another server, or this one without its last writes.
                self.compared = None;
                self.say_that_rotation_waits();
                let wait = failures.backoff.next_wait();
                self.say(&error, wait);
                self.back_off(step, wait).await
            }
            error => Err(error.into()),
        }
    }

    fn succeeded(&self) {
        self.state.succeeded();
        self.metrics.failing.set(0);
    }

    fn say(&self, error: &PublishError, wait: Duration) {
        let Failure { class, .. } = error.failure();
        let wait_ms = wait.as_millis() as u64;
        self.metrics.failed(class);
        self.state.failed(&error.to_string());
        match error {
            PublishError::Retry { reason, .. } => {
                self.metrics.retries.inc();
                tracing::warn!(%reason, class, wait_ms, "publish failed, retrying");
            }
            PublishError::Forgot { .. } => tracing::warn!(%error, class, "comparing Redis with the position"),
            PublishError::Poison { .. } | PublishError::Stop(_) => {
                tracing::error!(%error, class, wait_ms, "nothing is delivered until this is solved");
            }
        }
    }

    async fn back_off(&self, step: &mut Step, wait: Duration) -> Result<(), RunError> {
        let waiting = sleep_unless_stopped(wait, &self.shutdown);
        Ok(staying_alive(step.session(), self.settings.keepalive(), waiting).await?)
    }

    /// Makes one step, after a comparison if one is due. Between two windows it carries out an operator's
    /// request for parked events.
    async fn turn(&mut self, step: &mut Step) -> Result<Outcome, StepError> {
        if self.compared.is_none() {
            self.compare(step).await?;
        }
        let begun = Instant::now();
        let has_news = step.has_news().await?;
        let outcome = if has_news { step.step(self.sink).await? } else { Outcome::Idle };
        if let Outcome::Delivered { published, parked } = outcome {
            self.metrics.stepped(begun.elapsed(), published + parked);
        }
        let is_idle = outcome == Outcome::Idle;
        if is_idle && self.compared.is_some_and(|at| at.elapsed() >= self.settings.reconcile_interval()) {
            self.compare(step).await?;
        }
        // No window is opened while a request is pending, so the request's turn comes at the end of the open
        // window.
        if is_idle && has_news && step.apply_request(self.sink).await? {
            return Ok(Outcome::Delivered { published: 0, parked: 0 });
        }
        if is_idle {
            step.found_nothing();
        }
        Ok(outcome)
    }

    async fn compare(&mut self, step: &mut Step) -> Result<(), StepError> {
        let compared = step.reconcile(self.sink).await;
        // Count restored events before the repair, so that no scrape shows a repair without them.
        self.metrics.restored.inc_by(step.take_republished());
        if matches!(compared?, Reconciled::Restored { .. }) {
            self.metrics.repairs.inc();
        }
        self.compared = Some(Instant::now());
        if let Some(end) = self.waiting_rotation.take() {
            self.begin_rotation(end);
        }
        Ok(())
    }

    fn rotation_blocked(&self, by: Option<&str>) {
        self.metrics.rotation_blocked.set(i64::from(by.is_some()));
        self.state.rotation_blocked(by.map(str::to_owned));
    }

    /// Says why the log is not rotated, if this lead has not compared the sink yet.
    fn say_that_rotation_waits(&self) {
        if self.waiting_rotation.is_some() {
            self.rotation_blocked(Some(WAITS_FOR_COMPARISON));
        }
    }

    fn begin_rotation(&self, end: CancellationToken) {
        tokio::spawn(rotation_task::run(
            self.database.clone(),
            self.settings.name.clone(),
            self.retention,
            self.metrics.clone(),
            self.state.clone(),
            end,
        ));
    }

    /// Waits until it is time for another look.
    async fn wait(&self, bell: &Notify, pace: &Pace) -> Woken {
        tokio::select! {
            () = self.shutdown.cancelled() => Woken::Otherwise,
            // The Notify keeps a ring that comes during a look, so no ring is missed.
            () = bell.notified() => Woken::ByBell,
            () = tokio::time::sleep(pace.wait()) => {
                self.metrics.woken("poll");
                Woken::Otherwise
            }
        }
    }

    /// Whether an operator has paused the relay. The relay looks before the first delivery of a session and
    /// about once a second, because a window that was open at the pause may hold a large backlog. (No window
    /// is opened after the pause.) While it is paused, it looks at every turn, so that it resumes at once.
    async fn is_paused(&mut self, step: &mut Step) -> Result<bool, RunError> {
        if self.pause_looked.is_some_and(|at| at.elapsed() < PAUSE_INTERVAL) {
            return Ok(false);
        }
        let asked = log::pause::of(step.session(), &self.settings.name);
        let paused = timeout(self.timeout(), asked)
            .await
            .map_err(|_elapsed| StepError::NoAnswer(self.timeout()))?
            .map_err(StepError::Outbox)?
            .is_some();
        self.pause_looked = (!paused).then(Instant::now);
        if paused {
            self.succeeded();
        }
        Ok(paused)
    }

    fn rules(&self) -> Rules {
        Rules {
            relay: self.settings.name.clone(),
            limit: self.settings.limit(),
            on_poison: self.settings.on_poison,
            timeout: self.timeout(),
            keepalive: self.settings.keepalive(),
        }
    }

    fn timeout(&self) -> Duration {
        Duration::from_millis(self.database.statement_timeout_ms) + TIMEOUT_MARGIN
    }
}
