//! The servers of a cluster: following their slots, and leaving behind those that fail.
//!
//! A server that is left behind lacks the numbers above its top. The position goes on without it. When it is
//! back, `publish` says that the sink forgot something, and the relay gives that server the missing events
//! from the log, as it does for a server that went back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::time::timeout;

use super::refusal::of_connecting;
use super::server::Server;
use super::{CLUSTER_SHEBANG, Publisher, SCRIPT};
use crate::event::StreamId;
use crate::redis::slot_map::{Layout, SlotMap};
use crate::relay::PublishError;

/// How long a server may fail before it is left behind.
const LEFT_BEHIND_AFTER: Duration = Duration::from_secs(1);
/// How long one try of a server that is away may take. The topics of the other servers wait meanwhile.
pub(super) const TRY_LIMIT: Duration = Duration::from_millis(100);

impl Publisher {
    /// Follows the slots before a batch is published.
    ///
    /// # Errors
    /// Returns [`PublishError::Retry`] if it cannot be found out whether this is a cluster, and
    /// [`PublishError::Forgot`] if servers have to be compared first: slots have moved, or a server is back.
    pub(super) async fn follow(&mut self) -> Result<(), PublishError> {
        self.group().await?;
        if self.map.is_none() {
            return Ok(());
        }
        self.try_away().await;
        self.try_isolated().await;
        if !self.is_compared {
            return Err(PublishError::Forgot {
                reached: "an unknown number at one of its servers".to_owned(),
            });
        }
        Ok(())
    }

    /// Makes the list of servers, when it is first used and after slots have moved.
    pub(super) async fn group(&mut self) -> Result<(), PublishError> {
        match self.settings.layout().await.map_err(|error| of_connecting(&error))? {
            Layout::Cluster(map) if self.map.as_ref() == Some(&map) => {}
            Layout::Cluster(map) => self.regroup(map),
            Layout::Single if self.servers.is_empty() => {
                self.servers.push(Server::only(&self.keys, &self.relay));
            }
            Layout::Single => {}
        }
        Ok(())
    }

    pub(super) fn regroup(&mut self, map: Arc<SlotMap>) {
        if self.map.is_none() {
            self.script = Arc::new(::redis::Script::new(&format!("{CLUSTER_SHEBANG}{SCRIPT}")));
        }
        self.migrating.follow(&map);
        let (mut before, mut slots, mut isolated) =
            (std::mem::take(&mut self.servers), map.slots(), Vec::new());
        let with_top = before.iter().filter(|server| server.endpoint.is_some());
        self.former_slots.extend(with_top.map(|server| server.top_slot));
        for primary in map.primaries() {
            let slots = slots.remove(primary).unwrap_or_default();
            let (stable, migrating) = self.migrating.divide(primary, &slots);
            if !migrating.is_empty() {
                let of_it = Server::isolated(&self.keys, &self.relay, primary.clone(), migrating, &stable);
                isolated.push(of_it);
            }
            self.servers.push(Server::of_cluster(&self.keys, &self.relay, primary.clone(), stable));
        }
        self.servers.extend(isolated);
        let uncovered = map.uncovered();
        if !uncovered.is_empty() {
            tracing::error!(slots = %uncovered, "some slots of the cluster have no server: their topics wait");
            self.servers.push(Server::none(uncovered));
        }
        self.hand_on(&before);
        for server in &mut self.servers {
            // The same server, or one that took the place of another.
            let is_same =
                |old: &Server| old.is_isolated == server.is_isolated && old.endpoint == server.endpoint;
            let is_it = |old: &Server| old.is_isolated == server.is_isolated && old.top_key == server.top_key;
            let at = before.iter().position(is_same).or_else(|| before.iter().position(is_it));
            if let Some(at) = at {
                server.follow(before.swap_remove(at));
            }
        }
        self.map = Some(map);
        self.is_compared = false;
        self.heads.clear();
    }

    /// Tries the servers that are away, from time to time.
    async fn try_away(&mut self) {
        let settings = &self.settings;
        let keys = &self.keys;
        let is_due = |server: &mut Server| !server.is_isolated && server.is_due();
        let due = self.servers.iter_mut().filter_map(|server| is_due(server).then_some(server));
        let trying = due.map(async |server| {
            let asking = async {
                match server.is_held() {
                    true => !server.stable_slots(settings, keys).await.is_empty(),
                    false => server.ping(settings).await.is_ok(),
                }
            };
            let is_back = timeout(TRY_LIMIT, asking).await.unwrap_or(false);
            if is_back {
                (server.away, server.failing_since) = (None, None);
            }
            is_back
        });
        if join_all(trying).await.contains(&true) {
            // The server is given the missing events before anything new.
            self.is_compared = false;
        }
    }

    /// Leaves servers behind that have failed for long enough.
    ///
    /// # Errors
    /// Returns the failure if the server may still be waited for, if it is the only one, if no other one
    /// answers, or if it holds the events of a release.
    pub(super) async fn leave_behind(
        &mut self,
        failed: Vec<(usize, PublishError)>,
        has_answer: bool,
        since: Instant,
        holds_release: impl Fn(&(usize, PublishError)) -> bool,
    ) -> Result<(), PublishError> {
        self.settings.topology.doubt();
        let mut waits = self.map.is_none();
        for failure in &failed {
            let has_failed = self.servers[failure.0].has_failed_for(since, LEFT_BEHIND_AFTER);
            waits |= !has_failed || holds_release(failure);
        }
        if waits || !(has_answer || self.any_answers(&failed).await) {
            let first = failed.into_iter().next().map(|(_, error)| error);
            return first.map_or(Ok(()), Err);
        }
        for (at, error) in failed {
            let server = &mut self.servers[at];
            tracing::error!(server = server.name(), %error, "a server of the cluster is left behind: its topics wait");
            server.unpublished_above =
                server.unpublished_above.or(server.reached).or(Some(StreamId::new(1, 0)));
            server.leave_behind(error.to_string());
        }
        self.tell();
        Ok(())
    }

    /// Whether a server answers that is neither away nor one of these.
    async fn any_answers(&mut self, failed: &[(usize, PublishError)]) -> bool {
        let settings = &self.settings;
        let others =
            self.servers.iter_mut().enumerate().filter(|(at, server)| {
                server.away.is_none() && failed.iter().all(|(failed, _)| failed != at)
            });
        let pings = others.map(async |(_, server)| {
            matches!(tokio::time::timeout(LEFT_BEHIND_AFTER, server.ping(settings)).await, Ok(Ok(())))
        });
        join_all(pings).await.contains(&true)
    }

    /// Notes if a server that was left behind has all that it lacked.
    pub(super) fn note_if_whole(&mut self, server: usize) {
        // When a lead begins, no batch has been published whole, and `passed` is `None`.
        let newest = self.servers.iter().filter_map(|server| server.reached).max().max(self.passed);
        let server = &mut self.servers[server];
        if server.is_behind && server.away.is_none() && server.reached >= newest {
            (server.is_behind, server.unpublished_above) = (false, None);
            tracing::warn!(server = server.name(), "a server of the cluster has what it lacked");
            self.tell();
        }
    }

    /// Tells the relay which servers lack events: the log keeps them as long.
    pub(super) fn tell(&self) {
        let behind: Vec<String> = self.servers.iter().filter(|it| it.is_behind).map(Server::name).collect();
        self.metrics.servers_behind.set(behind.len().try_into().unwrap_or(i64::MAX));
        self.state.behind((!behind.is_empty()).then(|| behind.join(", ")));
    }
}
