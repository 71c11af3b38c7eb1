//! The turns of one lead: compare, step, wait, try again; until shutdown, or until the lead has to end.

use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::failure::Failure;
use super::idle::Pace;
use super::leader::{end_when_silent, staying_alive};
use super::reconcile::Reconciled;
use super::run_error::RunError;
use super::state::StateHandle;
use super::step::{Outcome, Step, StepError, within_timeout};
use super::{Metrics, PublishError, Settings, Sink, rotation_task};
use crate::backoff::Backoff;
use crate::log;
use crate::postgres;

/// Added to Postgres's own statement timeout. Without an answer by then, the server is gone.
const TIMEOUT_MARGIN: Duration = Duration::from_secs(3);
/// How often the relay looks for a pause while events flow.
const PAUSE_INTERVAL: Duration = Duration::from_secs(1);
/// The first wait after a failure. Most failures are over by then: a connection that a restart has broken.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// A relay that sleeps reports progress this often, so that the watchdog does not take it for stuck.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// The reason that is shown while the log is not rotated, because the relay is paused or the sink has not
/// answered since the lead began (see [`rotation_task::run`]).
const WAITS_FOR_COMPARISON: &str = "Redis has not been compared with the position yet";

/// A relay's inputs, the same for all of its sessions.
#[derive(Clone)]
pub(super) struct Inputs<'a> {
    pub(super) settings: &'a Settings,
    pub(super) database: &'a postgres::Settings,
    pub(super) retention: Duration,
    pub(super) metrics: &'a Metrics,
    pub(super) state: &'a StateHandle,
    pub(super) shutdown: CancellationToken,
}

impl Inputs<'_> {
    /// How long Postgres may take to answer.
    pub(super) fn timeout(&self) -> Duration {
        Duration::from_millis(self.database.statement_timeout_ms) + TIMEOUT_MARGIN
    }

    pub(super) fn succeeded(&self) {
        self.state.succeeded();
        self.metrics.failing.set(0);
    }

    pub(super) fn rotation_blocked(&self, by: Option<&str>) {
        self.metrics.rotation_blocked.set(i64::from(by.is_some()));
        self.state.rotation_blocked(by.map(str::to_owned));
    }

    /// A backoff of the waits after failures.
    pub(super) fn backoff(&self) -> Backoff {
        let max = Duration::from_millis(self.settings.backoff_max_ms);
        Backoff::new(BACKOFF_MIN.min(max), max)
    }

    /// Sleeps, but not beyond the shutdown.
    pub(super) async fn sleep(&self, wait: Duration) {
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
        }
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

/// One lead.
pub(super) struct LeadLoop<'a, S> {
    inputs: Inputs<'a>,
    sink: &'a mut S,
    step: Step,
    bell: &'a Notify,
    pace: Pace,
    failures: Failures,
    /// When the relay last saw that it is not paused.
    pause_looked: Option<Instant>,
    /// When the sink was last found to be in step; `None` if a comparison is due.
    compared: Option<Instant>,
    /// Ends the rotation task of this lead; `None` once the first comparison has started that task.
    waiting_rotation: Option<CancellationToken>,
}

impl<'a, S: Sink> LeadLoop<'a, S> {
    /// Begins a lead that ends with `end`. `bell` wakes it.
    pub(super) fn begin(
        inputs: Inputs<'a>,
        sink: &'a mut S,
        step: Step,
        bell: &'a Notify,
        end: CancellationToken,
    ) -> Self {
        sink.begin_lead(step.log());
        Self {
            pace: Pace::new(inputs.settings.poll_interval(), inputs.settings.idle_interval()),
            failures: Failures { backoff: inputs.backoff(), refused_since: None },
            inputs,
            sink,
            step,
            bell,
            pause_looked: None,
            compared: None,
            waiting_rotation: Some(end),
        }
    }

    /// Steps until shutdown, waits while there is nothing to do, and tries again after a refusal of the sink.
    /// A leader that cannot reach the sink for long gives up the lead.
    ///
    /// `session` is the backoff between sessions. Only a turn that succeeds resets it: a lead that ends
    /// before its first turn is no success.
    pub(super) async fn run(&mut self, session: &mut Backoff) -> Result<(), RunError> {
        while !self.inputs.shutdown.is_cancelled() {
            self.inputs.state.progressed();
            if self.is_paused().await? {
                self.say_that_rotation_waits();
                self.wait().await;
                continue;
            }
            let done = match self.turn().await {
                Ok(outcome) => {
                    self.failures.succeeded();
                    session.reset();
                    self.inputs.succeeded();
                    self.go_on(outcome).await
                }
                Err(error) => Err(error),
            };
            if let Err(error) = done {
                self.try_again(error).await?;
            }
        }
        Ok(())
    }

    /// Counts the events of a turn. Waits if it found nothing.
    async fn go_on(&mut self, outcome: Outcome) -> Result<(), StepError> {
        let metrics = self.inputs.metrics;
        match outcome {
            Outcome::Delivered { published, parked } => {
                metrics.published.inc_by(published as u64);
                metrics.parked.inc_by(parked as u64);
                self.pace.found();
                return Ok(());
            }
            Outcome::Idle => {}
        }
        let woken = match self.pace.sleep() {
            Some(interval) => self.sleep(interval).await?,
            None => self.wait().await,
        };
        if woken == Woken::ByBell {
            self.pace.heard();
            self.step.expect_news();
        }
        Ok(())
    }

    /// Prepares another try after a failed turn, and waits. Fails if this lead has to end.
    async fn try_again(&mut self, error: StepError) -> Result<(), RunError> {
        match error {
            StepError::Outbox(error @ log::Error::Fenced { .. }) => {
                self.inputs.metrics.fenced.inc();
                tracing::warn!(%error, "fenced");
                self.step.reload().await?;
                // The relay that wrote that row may still lead, so this one waits.
                let wait = self.failures.backoff.next_wait();
                self.back_off(wait).await
            }
            StepError::Publish(error) => {
                let refused_for = self.failures.refused_since.get_or_insert_with(Instant::now).elapsed();
                // A conflict, or an event that stops everything, would stop another relay just as well.
                let another_may_reach = matches!(error, PublishError::Retry { .. });
                if another_may_reach && refused_for > self.inputs.settings.takeover() {
                    return Err(RunError::StoodDown(error));
                }
                // The next connection may reach another server, or the same server without its last writes.
                self.compared = None;
                self.say_that_rotation_waits();
                let wait = self.failures.backoff.next_wait();
                self.say(&error, wait);
                self.back_off(wait).await
            }
            error => Err(error.into()),
        }
    }

    fn say(&self, error: &PublishError, wait: Duration) {
        let Inputs { metrics, state, .. } = &self.inputs;
        let Failure { class, .. } = error.failure();
        let wait_ms = wait.as_millis() as u64;
        metrics.failed(class);
        state.failed(&error.to_string());
        match error {
            PublishError::Retry { reason, .. } => {
                metrics.retries.inc();
                tracing::warn!(%reason, class, wait_ms, "publish failed, retrying");
            }
            PublishError::Forgot { .. } => tracing::warn!(%error, class, "comparing Redis with the position"),
            PublishError::Poison { .. } | PublishError::Stop(_) => {
                tracing::error!(%error, class, wait_ms, "nothing is delivered until this is solved");
            }
        }
    }

    async fn back_off(&mut self, wait: Duration) -> Result<(), RunError> {
        let waiting = self.inputs.sleep(wait);
        Ok(staying_alive(self.step.session(), self.inputs.settings.keepalive(), waiting).await?)
    }

    /// Makes one step, after a comparison if one is due. Between two windows it carries out an operator's
    /// request for parked events.
    async fn turn(&mut self) -> Result<Outcome, StepError> {
        if self.compared.is_none() {
            self.compare().await?;
        }
        let begun = Instant::now();
        let has_news = self.step.has_news().await?;
        let outcome = if has_news { self.step.step(self.sink).await? } else { Outcome::Idle };
        if let Outcome::Delivered { published, parked } = outcome {
            self.inputs.metrics.stepped(begun.elapsed(), published + parked);
        }
        let is_idle = outcome == Outcome::Idle;
        if is_idle && self.is_comparison_due() {
            self.compare().await?;
        }
        // No window is opened while a request is pending, so the request's turn comes at the end of the open
        // window.
        if is_idle && has_news && self.step.apply_request(self.sink).await? {
            return Ok(Outcome::Delivered { published: 0, parked: 0 });
        }
        if is_idle {
            self.step.found_nothing();
        }
        Ok(outcome)
    }

    fn is_comparison_due(&self) -> bool {
        self.compared.is_none_or(|at| at.elapsed() >= self.inputs.settings.reconcile_interval())
    }

    async fn compare(&mut self) -> Result<(), StepError> {
        let compared = self.step.reconcile(self.sink).await;
        let metrics = self.inputs.metrics;
        // Count restored events before the repair, so that no scrape shows a repair without them.
        metrics.restored.inc_by(self.step.take_republished());
        if matches!(compared?, Reconciled::Restored { .. }) {
            metrics.repairs.inc();
        }
        self.compared = Some(Instant::now());
        if let Some(end) = self.waiting_rotation.take() {
            self.begin_rotation(end);
        }
        Ok(())
    }

    /// Says why the log is not rotated, if this lead has not compared the sink yet.
    fn say_that_rotation_waits(&self) {
        if self.waiting_rotation.is_some() {
            self.inputs.rotation_blocked(Some(WAITS_FOR_COMPARISON));
        }
    }

    fn begin_rotation(&self, end: CancellationToken) {
        let Inputs { settings, database, retention, metrics, state, .. } = self.inputs.clone();
        let (database, relay) = (database.clone(), settings.name.clone());
        tokio::spawn(rotation_task::run(database, relay, retention, metrics.clone(), state.clone(), end));
    }

    /// Waits until it is time for another look.
    async fn wait(&self) -> Woken {
        let woken = self.wait_for(self.pace.wait()).await;
        if woken.is_none() {
            self.inputs.metrics.woken("poll");
        }
        woken.unwrap_or(Woken::Otherwise)
    }

    /// Waits for a notification or the shutdown. Returns `None` if neither comes within `limit`.
    async fn wait_for(&self, limit: Duration) -> Option<Woken> {
        tokio::select! {
            () = self.inputs.shutdown.cancelled() => Some(Woken::Otherwise),
            // The Notify keeps a ring that comes during a look, so no ring is missed.
            () = self.bell.notified() => Some(Woken::ByBell),
            () = tokio::time::sleep(limit) => None,
        }
    }

    /// Sleeps for `interval`, or until a notification. Meanwhile Postgres gets no query from this process, so
    /// that a database that is billed for the time of its work can rest.
    async fn sleep(&mut self, interval: Duration) -> Result<Woken, StepError> {
        let Inputs { settings, state, metrics, .. } = self.inputs.clone();
        // The session sends no sign of life while it sleeps.
        self.end_when_silent(settings.longest_silence()).await?;
        state.falls_asleep(interval);
        metrics.asleep.set(1);
        let woken = self.doze(Instant::now() + interval).await;
        metrics.asleep.set(0);
        state.wakes_up();
        self.end_when_silent(settings.takeover()).await?;
        woken
    }

    async fn end_when_silent(&mut self, silence: Duration) -> Result<(), StepError> {
        within_timeout(self.inputs.timeout(), async {
            Ok(end_when_silent(self.step.session(), silence).await?)
        })
        .await
    }

    /// Waits until `end`, and compares the sink meanwhile. A comparison that finds nothing asks Postgres
    /// nothing.
    async fn doze(&mut self, end: Instant) -> Result<Woken, StepError> {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.inputs.metrics.woken("poll");
                return Ok(Woken::Otherwise);
            }
            if let Some(woken) = self.wait_for(left.min(PROGRESS_INTERVAL)).await {
                return Ok(woken);
            }
            self.inputs.state.progressed();
            if self.is_comparison_due() {
                self.compare().await?;
                self.inputs.succeeded();
            }
        }
    }

    /// Whether an operator has paused the relay. The relay looks before the first delivery of a lead and
    /// about once a second, because a window that was open at the pause may hold a large backlog. (No window
    /// is opened after the pause.) While it is paused, it looks at every turn, so that it resumes at once.
    async fn is_paused(&mut self) -> Result<bool, RunError> {
        if self.pause_looked.is_some_and(|at| at.elapsed() < PAUSE_INTERVAL) {
            return Ok(false);
        }
        let asked = log::pause::of(self.step.session(), &self.inputs.settings.name);
        let paused = timeout(self.inputs.timeout(), asked)
            .await
            .map_err(|_elapsed| StepError::NoAnswer(self.inputs.timeout()))?
            .map_err(StepError::Outbox)?
            .is_some();
        self.pause_looked = (!paused).then(Instant::now);
        if paused {
            self.inputs.succeeded();
        }
        Ok(paused)
    }
}
