//! The monitor: once a second, it measures the backlog and writes this process's heartbeat. It has a
//! connection of its own, so that it never delays a delivery, and also runs while this process does not lead.
//! While the leader sleeps, the monitor rests too.

use std::time::{Duration, Instant};

use chrono::Utc;
use sqlx::{Connection, PgConnection};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::settings::Settings;
use super::state::{BacklogStatus, StateHandle};
use super::{Metrics, Role};
use crate::log::heartbeat::{self, Heartbeat};
use crate::log::{overview, read};
use crate::{failpoint, postgres};

const INTERVAL: Duration = Duration::from_secs(1);
/// The time limit of one measurement, with its heartbeat.
const TIMEOUT: Duration = Duration::from_secs(2);

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// The monitor's inputs.
pub(super) struct Monitor {
    pub(super) database: postgres::Settings,
    pub(super) settings: Settings,
    pub(super) metrics: Metrics,
    pub(super) state: StateHandle,
}

impl Monitor {
    /// Runs until `stop`, through every failure of Postgres.
    pub(super) async fn run(self, stop: CancellationToken) {
        let process = process();
        let mut connection = None;
        let mut counted = (Instant::now(), self.metrics.published.get());
        // The sleep of the leader that the last heartbeat has announced.
        let (mut announced, mut told) = (None, None);
        while !stop.is_cancelled() {
            failpoint::reach("monitor").await;
            let asleep = self.state.asleep_until();
            if asleep.is_none() || asleep != announced {
                let rate = self.rate(&mut counted);
                let measured = timeout(TIMEOUT, self.measure(&mut connection, &process, rate, asleep)).await;
                let measured = measured.unwrap_or_else(|_| Err("Postgres did not answer in time".into()));
                announced = asleep;
                let failed = measured.err().map(|error| error.to_string());
                if let Some(error) = &failed {
                    // Once for each reason, because readiness only says that something is unknown.
                    if told.as_ref() != Some(error) {
                        tracing::warn!(%error, "cannot look at the backlog or write the heartbeat");
                    }
                    (connection, announced) = (None, None);
                    self.state.backlog(None);
                }
                told = failed;
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
        failpoint::reach("monitor_ended").await;
        if let Some(mut connection) = connection {
            let ending = heartbeat::end(&mut connection, &self.settings.name, &process);
            if let Ok(Err(error)) = timeout(INTERVAL, ending).await {
                tracing::debug!(%error, "the last heartbeat could not be deleted; it expires");
            }
        }
    }

    async fn measure(
        &self,
        connection: &mut Option<PgConnection>,
        process: &str,
        rate: f64,
        asleep: Option<Instant>,
    ) -> Result<(), Failed> {
        let name = &self.settings.name;
        if connection.is_none() {
            let mut made = self.database.connect(&format!("aftercommit relay {name} monitor")).await?;
            read::prepare_session(&mut made).await?;
            *connection = Some(made);
        }
        let Some(connection) = connection else { return Ok(()) };
        connection.ping().await?;
        let relays = overview::relays(connection).await?;
        let status = relays.iter().find(|relay| relay.relay == *name).map(|relay| BacklogStatus {
            oldest_pending: relay.oldest_pending_seconds.map(duration_of),
            parked_events: relay.parked_events,
            parked_topics: relay.parked_topics,
            backlog_at_most: if relay.oldest_pending_at.is_some() { relay.backlog_at_most } else { 0 },
            has_leader: relay.leader.is_some(),
            paused: relay.paused.as_ref().map(|pause| format!("{}: {}", pause.who, pause.reason)),
            contradiction: relay.contradiction.clone(),
            rate: relay.leader.as_ref().and(relay.leading()).map_or(0.0, |leading| leading.heartbeat.rate),
            step: relay.step,
            latency: relay.latency_seconds.map(duration_of),
        });
        if let Some(status) = &status {
            let age = status.oldest_pending.map_or(0.0, |age| age.as_secs_f64());
            self.metrics.oldest_pending.set(age);
            self.metrics.backlog.set(status.backlog_at_most);
            self.metrics.parked_events.set(status.parked_events);
            self.metrics.parked_topics.set(status.parked_topics);
            self.metrics.has_leader.set(i64::from(status.has_leader));
            self.metrics.paused.set(i64::from(status.paused.is_some()));
        }
        self.metrics.last_look.set(Utc::now().timestamp_millis() as f64 / 1000.0);
        self.state.backlog(status);
        heartbeat::beat(connection, name, &self.heartbeat(process, rate, asleep)).await?;
        Ok(())
    }

    fn heartbeat(&self, process: &str, rate: f64, asleep: Option<Instant>) -> Heartbeat {
        let state = self.state.get();
        let role = match state.role {
            Role::Disconnected => "disconnected",
            Role::Standby => "standby",
            Role::Leading => "leading",
        };
        Heartbeat {
            process: process.to_owned(),
            role: role.to_owned(),
            published: self.metrics.published.get().cast_signed(),
            rate,
            error: state.error,
            rotation_blocked: state.rotation_blocked,
            listen: self.settings.listen.clone(),
            asleep_seconds: asleep.map(|until| until.duration_since(Instant::now()).as_secs_f64()),
        }
    }

    /// Events a second since the previous call.
    fn rate(&self, counted: &mut (Instant, u64)) -> f64 {
        let now = (Instant::now(), self.metrics.published.get());
        let (then, before) = std::mem::replace(counted, now);
        let seconds = now.0.duration_since(then).as_secs_f64();
        if seconds > 0.0 { (now.1 - before) as f64 / seconds } else { 0.0 }
    }
}

/// Converts seconds. They may be negative if clocks differ.
fn duration_of(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}

/// Host, pid, and a part that is unique to this start: in containers of one name every relay is pid 1.
fn process() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let host = host.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_else(|| "unknown".to_owned());
    let (start, ..) = uuid::Uuid::new_v4().as_fields();
    format!("{}:{}:{start:08x}", host.trim(), std::process::id())
}
