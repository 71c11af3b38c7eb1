//! Comparing how far each server has come: reading the tops, and writing them anew after slots have moved.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncCommands, RedisResult};
use futures_util::future::join_all;

use super::facts::Facts;
use super::refusal::Refusal;
use super::server::{Owned, Server};
use super::tops::{Reach, Top, reaches};
use super::{FORMAT, Publisher};
use crate::event::{EventId, Topic};
use crate::redis::kept_times::KeptTimes;
use crate::redis::keys::Keys;
use crate::redis::reply_codes;
use crate::redis::settings::Settings;
use crate::redis::slots::{SlotSet, tag_of};
use crate::relay::failure;
use crate::relay::{PublishError, Reached};

/// How long a server may take to say how far it has come. Then it counts as away.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// Keys that are read at once.
const KEYS_AT_ONCE: usize = 1024;

impl Publisher {
    /// Finds out how far each server that can be reached has come.
    pub(super) async fn compare(&mut self) -> Result<Vec<Option<Reached>>, PublishError> {
        self.group().await?;
        if self.map.is_none() {
            let owned = self.servers[0].owned(&self.settings).await?;
            let server = &self.servers[0];
            self.check_owner(server, &owned)?;
            return Ok(vec![owned.reached(&server.top_key)?]);
        }
        let found = self.look().await?;
        self.is_compared = true;
        (0..self.servers.len()).for_each(|server| self.note_if_whole(server));
        self.tell();
        Ok(found)
    }

    /// Removes the keys of this publisher and of one topic.
    pub(in crate::redis) async fn remove_keys(&mut self, topic: &Topic) -> Result<(), PublishError> {
        self.group().await?;
        let (history, begun) = (self.keys.history(topic), self.keys.begun(topic));
        let owner = self.owner_of(topic).unwrap_or_default();
        let settings = &self.settings;
        let servers = self.servers.iter_mut().enumerate().filter(|(_, server)| !server.is_isolated);
        let removing = servers.map(async |(at, server)| {
            let mut names = vec![server.top_key.clone(), server.log_key.clone()];
            if at == owner {
                names.extend([history.clone(), begun.clone()]);
            }
            let removing = server.on_connection(settings, async |connected| {
                for name in names {
                    connected.connection.del::<_, ()>(name).await?;
                }
                Ok(())
            });
            removing.await.map_err(Refusal::retry)
        });
        self.is_compared = false;
        join_all(removing).await.into_iter().collect()
    }

    fn check_owner(&self, server: &Server, owned: &Owned) -> Result<(), PublishError> {
        let Owned { format, log, .. } = owned;
        if let Some(format) = format.as_ref().filter(|format| **format != FORMAT.to_string()) {
            return Err(self.other_format(server, format));
        }
        if let Some(log) = log.as_ref().filter(|log| **log != self.log.to_string()) {
            return Err(self.foreign(server, log));
        }
        Ok(())
    }

    async fn look(&mut self) -> Result<Vec<Option<Reached>>, PublishError> {
        let settings = &self.settings;
        let looking = self.servers.iter_mut().map(async |server| {
            let looked = tokio::time::timeout(ANSWER_LIMIT, server.owned(settings)).await;
            looked.unwrap_or_else(|_elapsed| Err(of_time()))
        });
        let found = join_all(looking).await;
        for (at, owned) in found.iter().enumerate() {
            if let Err(error) = owned
                && self.servers[at].away.is_none()
                && self.handle_slot_failure(at, None, error)
                // A server that is left behind is away from here on.
                && self.servers.get(at).is_none_or(|server| server.away.is_none())
            {
                return Err(PublishError::retry(error.failure(), error.to_string()));
            }
        }
        if let (false, Some(Err(error))) = (found.iter().any(Result::is_ok), found.first()) {
            self.settings.topology.doubt();
            return Err(PublishError::retry(error.failure(), error.to_string()));
        }
        let mut is_written_down = true;
        for (server, owned) in self.servers.iter().zip(&found) {
            let Ok(owned) = owned else { continue };
            self.check_owner(server, owned)?;
            is_written_down &= owned.slots.as_deref() == Some(server.slots.to_string().as_str());
        }
        for (server, owned) in self.servers.iter_mut().zip(&found) {
            server.recorded = owned.as_ref().ok().and_then(Owned::recorded);
        }
        self.note_answers(&found);
        let reach =
            if is_written_down { self.reach_of(&found)? } else { self.write_slots_down(&found).await? };
        Ok(self.note_reach(reach))
    }

    fn reach_of(&self, found: &[Result<Owned, PublishError>]) -> Result<Vec<Reach>, PublishError> {
        let mut reach = Vec::new();
        for (server, owned) in self.servers.iter().zip(found) {
            let reached = match owned {
                Ok(owned) => owned.reached(&server.top_key)?,
                Err(_) => None,
            };
            reach.push(reached.map(|reached| (reached.id, reached.event)));
        }
        Ok(reach)
    }

    /// Notes where each server is, and returns the places of those that are not away.
    fn note_reach(&mut self, reach: Vec<Reach>) -> Vec<Option<Reached>> {
        let mut all = Vec::new();
        for (server, reach) in self.servers.iter_mut().zip(reach) {
            if server.away.is_some() {
                continue;
            }
            let (id, event) = reach.unzip();
            // A server stays in step if its number is the one of this publisher's last call to it. The later
            // batches had no event for it.
            server.is_in_step &= id.is_some() && id == server.reached;
            server.reached = id;
            let recorded = server.recorded;
            all.push(match self.passed.filter(|passed| server.is_in_step && Some(*passed) > id) {
                Some(passed) => Some(Reached { id: passed, event: None, recorded }),
                None => id.map(|id| Reached { id, event: event.flatten(), recorded }),
            });
        }
        all
    }

    /// Notes which servers have answered. The others are away.
    fn note_answers(&mut self, found: &[Result<Owned, PublishError>]) {
        for (server, owned) in self.servers.iter_mut().zip(found) {
            match owned {
                Ok(_) if server.is_held() => {}
                Ok(_) => server.away = None,
                Err(error) => {
                    self.settings.topology.doubt();
                    server.leave_behind(error.to_string());
                }
            }
        }
    }

    /// Reads the tops in all slots, writes a new one at each server with the slots that it has now, and
    /// removes those that are left over.
    async fn write_slots_down(
        &mut self,
        answers: &[Result<Owned, PublishError>],
    ) -> Result<Vec<Reach>, PublishError> {
        // Where the tops are, and were.
        let with_top = self.servers.iter().filter(|server| server.endpoint.is_some());
        let now: BTreeSet<u16> = with_top.map(|server| server.top_slot).collect();
        let likely: BTreeSet<u16> = self.former_slots.iter().chain(&now).copied().collect();
        let mut found = self.read_tops(|slot| likely.contains(&slot)).await?;
        let all = found.iter().flatten();
        let spoken_for: HashSet<u16> = all.flat_map(|(_, top, _)| top.slots.iter()).collect();
        let is_spoken_for = |server: &Server| server.slots.iter().all(|slot| spoken_for.contains(&slot));
        if !self.servers.iter().all(is_spoken_for) {
            found = self.read_tops(|_slot| true).await?;
        }
        let (keys, relay, settings) = (&self.keys, &self.relay, &self.settings);
        let tops: Vec<Top> = found.iter().flatten().map(|(_, top, _)| top.clone()).collect();
        // Each server records the newest loss of any of them, also a server that lost nothing, and the other
        // facts likewise: a needless reset is better than a hidden hole.
        let facts = found.iter().flatten().fold(Facts::default(), |all, (_, _, facts)| all.and(*facts));
        let reach = reaches(&tops, self.servers.iter().map(|server| &server.slots));
        for server in &mut self.servers {
            server.recorded = facts.recorded;
        }
        // The tops of slots that are isolated come first: until they are written, the top of their server
        // speaks for these slots.
        for ((server, reach), answer) in self.servers.iter_mut().zip(&reach).zip(answers) {
            if server.is_isolated && answer.is_ok() {
                write_top(server, settings, reach, &facts, &[]).await?;
            }
        }
        let mut found = found.into_iter();
        for (server, reach) in self.servers.iter_mut().zip(&reach) {
            if server.away.is_some() {
                continue;
            }
            let tops_at_it = found.next().unwrap_or_default();
            let left_over = tops_at_it.into_iter().map(|(slot, ..)| slot).filter(|slot| !now.contains(slot));
            let left_over: Vec<String> = left_over
                .flat_map(|slot| {
                    let tag = tag_of(slot);
                    [keys.top_at(relay, &tag), keys.log_at(&tag)]
                })
                .collect();
            write_top(server, settings, reach, &facts, &left_over).await?;
        }
        self.former_slots.clear();
        Ok(reach)
    }

    /// Reads the tops in some slots, at each server that is not away.
    async fn read_tops(
        &mut self,
        is_wanted: impl Fn(u16) -> bool,
    ) -> Result<Vec<Vec<(u16, Top, Facts)>>, PublishError> {
        let (keys, relay, settings) = (&self.keys, &self.relay, &self.settings);
        let is_wanted = &is_wanted;
        let reading = self.servers.iter_mut().filter(|server| server.away.is_none()).map(async |server| {
            let slots: Vec<u16> = server.slots.iter().filter(|slot| is_wanted(*slot)).collect();
            let mut found: Vec<(u16, Top, Facts)> = Vec::new();
            for some in slots.chunks(KEYS_AT_ONCE) {
                found.extend(tops_in(server, settings, keys, relay, some).await?);
            }
            Ok::<_, PublishError>(found)
        });
        join_all(reading).await.into_iter().collect()
    }
}

/// Finds the tops in these slots of a server, with the losses recorded beside them.
async fn tops_in(
    server: &mut Server,
    settings: &Settings,
    keys: &Keys,
    relay: &str,
    slots: &[u16],
) -> Result<Vec<(u16, Top, Facts)>, PublishError> {
    if slots.is_empty() {
        return Ok(Vec::new());
    }
    let mut pipeline = ::redis::pipe();
    for slot in slots {
        pipeline
            .cmd("HMGET")
            .arg(keys.top_at(relay, &tag_of(*slot)))
            .arg(&["id", "event", "slots", "recorded"]);
    }
    type Raw = RedisResult<(Option<String>, Option<String>, Option<String>, Option<String>)>;
    let raw = server.on_connection(settings, async |connected| {
        pipeline.ignore_errors().query_async::<Vec<Raw>>(&mut connected.connection).await
    });
    let mut found = Vec::new();
    for (slot, raw) in slots.iter().zip(raw.await.map_err(Refusal::retry)?) {
        let (id, event, spoken_for, recorded) = match raw {
            // Of a half moved slot, a key that is not here cannot be read.
            Err(error) if error.code().is_some_and(reply_codes::is_about_slots) => continue,
            raw => raw.map_err(|error| Refusal::of(&error).retry())?,
        };
        let Some(spoken_for) = spoken_for else { continue };
        let id = id.and_then(|id| id.parse().ok());
        let event = event.and_then(|event| EventId::parse_str(&event).ok());
        let top = Top { id, event, slots: SlotSet::parse(&spoken_for) };
        let log_key = keys.log_at(&tag_of(*slot));
        type Owner = (Option<String>, Option<u64>, Option<u64>, Option<u64>, Option<u64>);
        let fields = ["lost", "lost_at", "ttl", "raised_at", "kept_before"];
        let owner = server.on_connection(settings, async |connected| {
            connected.connection.hmget::<_, _, Owner>(log_key, &fields).await
        });
        let (through, at, ttl, raised_ms, before) = owner.await.map_err(Refusal::retry)?;
        let lost = through.and_then(|through| through.parse().ok()).zip(at);
        let times = KeptTimes { ttl, raised_ms, before };
        let recorded = recorded.and_then(|recorded| recorded.parse().ok());
        found.push((*slot, top, Facts { lost, times, recorded }));
    }
    Ok(found)
}

/// Writes a server's top, and then removes the keys that are left over.
async fn write_top(
    server: &mut Server,
    settings: &Settings,
    reach: &Reach,
    facts: &Facts,
    left_over: &[String],
) -> Result<(), PublishError> {
    let (top_key, log_key, slots) =
        (server.top_key.clone(), server.log_key.clone(), server.slots.to_string());
    let writing = server.on_connection(settings, async |connected| {
        let connection = &mut connected.connection;
        match reach {
            None => {
                // An old number would not be true of the slots that were added.
                connection.del::<_, ()>(&top_key).await?;
                connection.hset::<_, _, _, ()>(&top_key, "slots", slots).await?;
            }
            Some((id, event)) => {
                let event = event.map_or_else(|| "-".to_owned(), |event| event.to_string());
                let fields = ["id", &id.to_string(), "event", &event, "slots", &slots];
                set(&mut *connection, &top_key, &fields).await?;
            }
        }
        if let Some(recorded) = facts.recorded {
            set(&mut *connection, &top_key, &["recorded", &recorded.to_string()]).await?;
        }
        let owner = facts.of_owner();
        if !owner.is_empty() {
            let fields: Vec<&str> = owner.iter().flat_map(|(name, value)| [*name, value.as_str()]).collect();
            set(connection, &log_key, &fields).await?;
        }
        for key in left_over {
            connection.del::<_, ()>(key).await?;
        }
        Ok(())
    });
    writing.await.map_err(Refusal::retry)
}

/// HSET with several fields, for which the driver would send HMSET.
async fn set(connection: &mut MultiplexedConnection, key: &str, fields: &[&str]) -> RedisResult<()> {
    ::redis::cmd("HSET").arg(key).arg(fields).query_async(connection).await
}

fn of_time() -> PublishError {
    PublishError::retry(failure::TIMEOUT, "Redis: no answer in time")
}
