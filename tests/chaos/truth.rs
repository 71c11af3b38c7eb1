//! What Postgres committed, and how far Redis and each client are from it.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::clients::{Clients, Received, Seen};
use crate::report::Numbers;
use crate::world::World;
use crate::writers::Commits;

/// The keys of each channel's events, in the order of their rows.
#[derive(Debug)]
pub(crate) struct Truth {
    channels: Vec<Vec<u64>>,
    /// What Redis holds at the end: ids and keys.
    histories: Vec<Vec<(String, u64)>>,
}

/// Waits until Redis holds as many events as Postgres and every client has come to the end. False if it does not.
pub(crate) async fn wait_until_complete(world: &World, clients: &Clients, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        world.release_parked(Duration::from_secs(1)).await;
        let truth = committed(world).await;
        if let Some(histories) = world.histories().await {
            let is_whole = truth.iter().zip(&histories).all(|(rows, history)| rows.len() <= history.len());
            let last: Vec<_> =
                histories.iter().map(|history| history.last().map(|(id, _)| id.clone())).collect();
            if is_whole && clients.have_reached(&last) {
                return true;
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    false
}

async fn committed(world: &World) -> Vec<Vec<u64>> {
    let mut connection = world.postgres().await;
    let mut channels = Vec::new();
    for channel in &world.channels {
        let keys: Vec<i64> = sqlx::query_scalar(
            "select (payload->>'k')::bigint from outbox.event where topic = $1 order by id",
        )
        .bind(channel.topic.as_str())
        .fetch_all(&mut connection)
        .await
        .expect("the log");
        channels.push(keys.into_iter().map(i64::cast_unsigned).collect());
    }
    channels
}

impl Truth {
    pub(crate) async fn read(world: &World) -> Self {
        let histories = world.histories().await.expect("Redis runs again");
        Self { channels: committed(world).await, histories }
    }

    pub(crate) fn events(&self) -> usize {
        self.channels.iter().map(Vec::len).sum()
    }

    /// Events whose commit was confirmed and that the log does not hold.
    pub(crate) fn missing(&self, commits: &Commits) -> usize {
        let held: HashSet<u64> = self.channels.iter().flatten().copied().collect();
        commits.keys().filter(|key| !held.contains(key)).count()
    }

    /// Redis's histories against the log.
    pub(crate) fn compare_redis(&self) -> Numbers {
        let mut numbers = Numbers::default();
        for (rows, history) in self.channels.iter().zip(&self.histories) {
            let keys: Vec<u64> = history.iter().map(|(_, key)| *key).collect();
            numbers.add(&compare(rows, Some(0), &keys, true));
        }
        numbers
    }

    /// What each client received against the log, from where it began to listen.
    pub(crate) fn compare_clients(&self, seen: &[Seen]) -> Numbers {
        let mut numbers = Numbers::default();
        for client in seen {
            numbers.add(&self.compare_client(client));
        }
        numbers
    }

    fn compare_client(&self, client: &Seen) -> Numbers {
        let rows = &self.channels[client.channel];
        let places: HashMap<&str, usize> = self.histories[client.channel]
            .iter()
            .enumerate()
            .map(|(place, (id, _))| (id.as_str(), place + 1))
            .collect();
        let mut numbers = Numbers::default();
        let mut stretch = Vec::new();
        let mut from = match &client.begun {
            // Before the first event that there ever was, if it is none that there is.
            Some(id) => Some(places.get(id.as_str()).copied().unwrap_or(0)),
            None => return numbers,
        };
        for received in &client.received {
            match received {
                Received::Event { key, .. } => stretch.push(*key),
                Received::Reset { id } => {
                    numbers.add(&compare(rows, from, &stretch, false));
                    numbers.resets += 1;
                    // A page fetches everything anew at a reset, so a new account begins: behind the event that the reset
                    // names, or with the next event where it names none.
                    from = places.get(id.as_str()).copied();
                    stretch.clear();
                }
            }
        }
        numbers.add(&compare(rows, from, &stretch, true));
        numbers
    }
}

/// How far what was found is from a run of rows that begins at `from`, or with the first one found, and goes to the end, or
/// to the last one found.
fn compare(rows: &[u64], from: Option<usize>, found: &[u64], to_the_end: bool) -> Numbers {
    let places: HashMap<u64, usize> = rows.iter().enumerate().map(|(place, key)| (*key, place)).collect();
    let from = from.or_else(|| found.first().and_then(|key| places.get(key).copied()));
    let from = from.unwrap_or(rows.len());
    let (mut numbers, mut seen, mut end) = (Numbers::default(), HashSet::new(), from);
    for key in found {
        let Some(&place) = places.get(key) else {
            numbers.invented += 1;
            continue;
        };
        // What lies before the beginning was told before.
        if place < from || !seen.insert(*key) {
            numbers.repeated += 1;
        } else if place < end {
            numbers.reordered += 1;
        } else {
            end = place + 1;
        }
    }
    if to_the_end {
        end = rows.len();
    }
    numbers.lost = end.saturating_sub(from).saturating_sub(seen.len());
    numbers
}
