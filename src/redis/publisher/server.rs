//! One server that takes events: its connection, its keys, and how far it has come.

use std::time::{Duration, Instant};

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncCommands, RedisError, RedisResult};

use super::refusal::{Refusal, of_connecting};
use crate::event::{EventId, StreamId};
use crate::redis::connect::Connected;
use crate::redis::endpoint::Endpoint;
use crate::redis::keys::Keys;
use crate::redis::reply_codes;
use crate::redis::settings::Settings;
use crate::redis::slots::{SlotSet, tag_of};
use crate::relay::{PublishError, Reached};

/// How often a server that is away is tried.
const TRIED_EVERY: Duration = Duration::from_millis(500);

/// The script's answer: events done, verdict, detail.
pub(super) type Answer = (usize, String, String);

/// A server of the sink.
#[derive(Debug)]
pub(super) struct Server {
    /// `None` for the one server of an address that leads to no cluster.
    pub(super) endpoint: Option<Endpoint>,
    /// The slots that it has, if it is of a cluster.
    pub(super) slots: SlotSet,
    /// Whether it stands for slots that are isolated from those of the server at this endpoint (see
    /// `migrating`). It takes nothing.
    pub(super) is_isolated: bool,
    /// The slot of its top.
    pub(super) top_slot: u16,
    pub(super) top_key: String,
    pub(super) log_key: String,
    connection: Option<Connected>,
    /// Calls of the script that have been sent and have not ended.
    calls_under_way: u32,
    /// Whether the connection is new since the last call of the script.
    pub(super) is_fresh: bool,
    /// Whether a call of the script was taken over this connection. So the server has the script.
    pub(super) has_script: bool,
    /// The highest number that it has used up, as far as this publisher knows.
    pub(super) reached: Option<StreamId>,
    /// As in [`Reached`].
    pub(super) recorded: Option<StreamId>,
    /// When a call last used up a number.
    pub(super) moved_at: Option<Instant>,
    /// Since when its calls fail.
    pub(super) failing_since: Option<Instant>,
    /// Since it was left behind, until it answers again.
    pub(super) away: Option<Away>,
    /// Whether it has every event up to the number that this publisher has passed.
    pub(super) is_in_step: bool,
    /// Whether it was left behind and has not been given what it lacks.
    pub(super) is_behind: bool,
    /// The events that it lacks above this number have never been published.
    pub(super) unpublished_above: Option<StreamId>,
}

/// A server that was left behind.
#[derive(Debug)]
pub(super) struct Away {
    /// Its last error.
    pub(super) reason: String,
    /// When it was last tried.
    pub(super) tried_at: Instant,
    /// The slot of the server's own keys that is half moved, if one is: the server answers, but cannot take
    /// everything.
    pub(super) migrating_slot: Option<u16>,
}

/// The facts that a server's own keys hold.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) format: Option<String>,
    pub(super) log: Option<String>,
    pub(super) id: Option<String>,
    pub(super) event: Option<String>,
    pub(super) slots: Option<String>,
    pub(super) recorded: Option<String>,
}

impl Server {
    /// The one server that has all keys.
    pub(super) fn only(keys: &Keys, relay: &str) -> Self {
        Self::with(None, SlotSet::default(), 0, (keys.top(relay), keys.log()))
    }

    /// A server of a cluster. Its own keys are in the highest of its slots, because slots move from the
    /// lowest one on.
    pub(super) fn of_cluster(keys: &Keys, relay: &str, endpoint: Endpoint, slots: SlotSet) -> Self {
        let slot = slots.highest().unwrap_or_default();
        Self::at_slot(keys, relay, endpoint, slots, slot)
    }

    /// Slots that are isolated. Their own keys are in the second highest of the server's other slots.
    pub(super) fn isolated(
        keys: &Keys,
        relay: &str,
        endpoint: Endpoint,
        slots: SlotSet,
        stable: &SlotSet,
    ) -> Self {
        let slot = stable.two_highest().map_or(0, |[_, second]| second);
        let mut server = Self::at_slot(keys, relay, endpoint, slots, slot);
        server.is_isolated = true;
        server.leave_behind("half moved".to_owned());
        server
    }

    /// Slots that no server has. They have no top, because nobody knows which of their events their next
    /// server has.
    pub(super) fn none(slots: SlotSet) -> Self {
        let reason = format!("no server of the cluster has the slots {slots}");
        let mut server = Self::with(None, slots, 0, Default::default());
        server.is_isolated = true;
        server.leave_behind(reason);
        server
    }

    fn at_slot(keys: &Keys, relay: &str, endpoint: Endpoint, slots: SlotSet, top_slot: u16) -> Self {
        let tag = tag_of(top_slot);
        Self::with(Some(endpoint), slots, top_slot, (keys.top_at(relay, &tag), keys.log_at(&tag)))
    }

    fn with(
        endpoint: Option<Endpoint>,
        slots: SlotSet,
        top_slot: u16,
        (top_key, log_key): (String, String),
    ) -> Self {
        Self {
            endpoint,
            slots,
            is_isolated: false,
            top_slot,
            top_key,
            log_key,
            connection: None,
            calls_under_way: 0,
            is_fresh: false,
            has_script: false,
            reached: None,
            recorded: None,
            moved_at: None,
            failing_since: None,
            away: None,
            is_in_step: false,
            is_behind: false,
            unpublished_above: None,
        }
    }

    /// Takes over what is known of the same server from before the slots moved.
    pub(super) fn follow(&mut self, before: Self) {
        if self.endpoint.is_some() && self.endpoint == before.endpoint {
            self.connection = before.connection;
            self.has_script = before.has_script;
            let has_slot = |away: &Away| away.migrating_slot.is_none_or(|slot| self.slots.contains(slot));
            self.away = before.away.filter(has_slot);
        }
        if self.top_key == before.top_key {
            self.unpublished_above = self.unpublished_above.into_iter().chain(before.unpublished_above).min();
            self.is_behind |= before.is_behind;
        }
    }

    /// Whether it is away and has not been tried for some time. It counts as tried from now on.
    pub(super) fn is_due(&mut self) -> bool {
        let Some(away) = self.away.as_mut().filter(|away| away.tried_at.elapsed() >= TRIED_EVERY) else {
            return false;
        };
        away.tried_at = Instant::now();
        true
    }

    /// Its name in messages.
    pub(super) fn name(&self) -> String {
        match &self.endpoint {
            None if self.is_isolated => format!("the server of the slots {} (none has them)", self.slots),
            None => "Redis".to_owned(),
            Some(endpoint) if self.is_isolated => format!("Redis at {endpoint} (half moved: {})", self.slots),
            Some(endpoint) => format!("Redis at {endpoint}"),
        }
    }

    /// Makes a connection if there is none.
    pub(super) async fn connect(&mut self, settings: &Settings) -> Result<(), PublishError> {
        let version = settings.primary_version();
        // A server that is no longer the primary may still take writes.
        if self.connection.as_ref().is_some_and(|connected| connected.version == version) {
            return Ok(());
        }
        self.connection = None;
        let connecting = match &self.endpoint {
            Some(endpoint) => settings.connect_at(endpoint).await,
            None => settings.connect_for_long().await,
        };
        self.connection = Some(connecting.map_err(|error| of_connecting(&error))?);
        (self.is_fresh, self.has_script) = (true, false);
        Ok(())
    }

    /// The connection, for a call of the script that runs beside others. End it by [`Server::ended`].
    pub(super) fn lend(&mut self) -> Option<MultiplexedConnection> {
        let connection = self.connection.as_ref()?.connection.clone();
        self.calls_under_way += 1;
        Some(connection)
    }

    /// Notes that a call has ended, and keeps the connection if it still works.
    pub(super) fn ended(&mut self, still_works: bool) {
        self.calls_under_way = self.calls_under_way.saturating_sub(1);
        if !still_works {
            self.connection = None;
        }
    }

    /// Drops the connection if calls were given up, whose answers may be under way.
    pub(super) fn drop_given_up(&mut self) {
        if std::mem::take(&mut self.calls_under_way) > 0 {
            self.connection = None;
        }
    }

    /// Uses the connection, and keeps it if it still works.
    pub(super) async fn on_connection<T>(
        &mut self,
        settings: &Settings,
        work: impl AsyncFnOnce(&mut Connected) -> RedisResult<T>,
    ) -> Result<T, Refusal> {
        self.drop_given_up();
        if let (true, None, Some(away)) = (self.is_isolated, &self.endpoint, &self.away) {
            let failure = reply_codes::classify("CLUSTERDOWN");
            return Err(Refusal { failure, text: away.reason.clone(), is_reply: false });
        }
        if let Err(error) = self.connect(settings).await {
            return Err(Refusal { failure: error.failure(), text: error.to_string(), is_reply: false });
        }
        // Taken out, so that a call that is dropped leaves no connection with an answer under way.
        let Some(mut connected) = self.connection.take() else {
            return Err(Refusal::of(&RedisError::from(std::io::Error::from(
                std::io::ErrorKind::NotConnected,
            ))));
        };
        match work(&mut connected).await {
            Ok(value) => {
                self.connection = Some(connected);
                Ok(value)
            }
            Err(error) => {
                let refusal = Refusal::of(&error);
                if refusal.keeps_connection() {
                    self.connection = Some(connected);
                }
                Err(refusal)
            }
        }
    }

    /// Reads the owner of the keys and the relay's top.
    pub(super) async fn owned(&mut self, settings: &Settings) -> Result<Owned, PublishError> {
        let (log_key, top_key) = (self.log_key.clone(), self.top_key.clone());
        let read = self.on_connection(settings, async |connected| {
            let connection = &mut connected.connection;
            // Two calls and not a pipeline, whose error lacks the server's code.
            let (format, log) = connection.hmget(log_key, &["format", "log"]).await?;
            let fields = ["id", "event", "slots", "recorded"];
            let (id, event, slots, recorded) = connection.hmget(top_key, &fields).await?;
            Ok(Owned { format, log, id, event, slots, recorded })
        });
        read.await.map_err(Refusal::retry)
    }

    /// Returns the slots that are not moving: of all its slots, or only of the slot that it is away for. A
    /// server refuses an absent key of a moving slot, so this reads keys that never exist.
    pub(super) async fn stable_slots(&mut self, settings: &Settings, keys: &Keys) -> Vec<u16> {
        let migrating_slot = self.away.as_ref().and_then(|away| away.migrating_slot);
        let slots: Vec<u16> = migrating_slot.map_or_else(|| self.slots.iter().collect(), |slot| vec![slot]);
        let mut asking = ::redis::pipe();
        for slot in &slots {
            asking.hget(keys.nothing_at(&tag_of(*slot)), "id");
        }
        let asked = self.on_connection(settings, async |connected| {
            asking
                .ignore_errors()
                .query_async::<Vec<RedisResult<Option<String>>>>(&mut connected.connection)
                .await
        });
        // Without an answer, no slot counts as stable.
        let answers = asked.await.unwrap_or_default();
        slots.into_iter().zip(answers).filter(|(_, answer)| answer.is_ok()).map(|(slot, _)| slot).collect()
    }

    /// Checks that it answers.
    pub(super) async fn ping(&mut self, settings: &Settings) -> Result<(), Refusal> {
        self.on_connection(settings, async |connected| {
            ::redis::cmd("PING").query_async::<String>(&mut connected.connection).await.map(|_pong| ())
        })
        .await
    }

    /// Waits until this many replicas have what was written over this connection, and returns how many have.
    pub(super) async fn replicated(&mut self, settings: &Settings, wanted: u32) -> Result<u32, PublishError> {
        // This is less than the connection's time-out, so that the server's count comes first.
        let timeout_ms = (settings.response_timeout_ms / 2).max(1);
        let count = self.on_connection(settings, async |connected| {
            ::redis::cmd("WAIT").arg(wanted).arg(timeout_ms).query_async(&mut connected.connection).await
        });
        count.await.map_err(Refusal::retry)
    }

    /// Notes that a call was taken, and the last number that it used up.
    pub(super) fn took(&mut self, through: Option<StreamId>, now: Instant) {
        self.failing_since = None;
        if let Some(through) = through {
            self.reached = self.reached.max(Some(through));
            self.moved_at = Some(now);
        }
    }

    /// Leaves the server behind: nothing is sent to it until it answers again, and then it is given what it
    /// lacks.
    pub(super) fn leave_behind(&mut self, reason: String) {
        let migrating_slot = self.away.as_ref().and_then(|away| away.migrating_slot);
        self.away = Some(Away { reason, tried_at: Instant::now(), migrating_slot });
        self.unpublished_above = self.unpublished_above.or(self.reached);
        (self.is_behind, self.is_in_step) = (true, false);
    }

    /// Leaves the server behind until this slot is stable.
    pub(super) fn leave_behind_for(&mut self, slot: u16, reason: String) {
        self.leave_behind(reason);
        self.away.iter_mut().for_each(|away| away.migrating_slot = Some(slot));
    }

    /// Whether it answers, but is not to be used.
    pub(super) fn is_held(&self) -> bool {
        self.is_isolated || self.away.as_ref().is_some_and(|away| away.migrating_slot.is_some())
    }

    /// Whether it has failed for this long.
    pub(super) fn has_failed_for(&mut self, since: Instant, patience: Duration) -> bool {
        self.failing_since.get_or_insert(since).elapsed() >= patience
    }
}

impl Owned {
    /// The top, if it can be read.
    pub(super) fn reached(&self, top_key: &str) -> Result<Option<Reached>, PublishError> {
        let Some(id) = &self.id else { return Ok(None) };
        let id = id.parse().map_err(|_| {
            PublishError::Stop(format!(
                "the key {top_key} in Redis holds the id '{id}', which no relay wrote: delete that key, and the \
                 relay publishes again what Redis then lacks"
            ))
        })?;
        let event = self.event.as_deref().and_then(|event| EventId::parse_str(event).ok());
        Ok(Some(Reached { id, event, recorded: self.recorded() }))
    }

    pub(super) fn recorded(&self) -> Option<StreamId> {
        self.recorded.as_ref()?.parse().ok()
    }
}
