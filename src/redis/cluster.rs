//! Finds out whether an address leads to a cluster, and which of its servers have which slots.
//!
//! The server says itself whether it is a node of a cluster. Several nodes are asked for the slots, because a
//! node that is cut off from the others does not know of the newest change. Of two claims to a slot the later
//! one counts. The nodes are asked again each second, and at once when a caller has met a server without a
//! slot that it should have had.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{RedisError, RedisResult, Value, from_redis_value_ref};
use futures_util::future::join_all;
use tokio::time::{sleep, timeout};

use super::connect_error::ConnectError;
use super::endpoint::Endpoint;
use super::error_text::error_text;
use super::settings::Settings;
use super::slot_map::{Layout, Shared, SlotMap, Topology, View};

/// How often the servers are asked.
const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// The least time between two look-ups that callers have requested.
const ASK_SPACING: Duration = Duration::from_millis(100);
/// How long a server may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// Servers that are asked at once: enough to outvote one that is cut off.
const ASKED_AT_ONCE: usize = 3;

impl Settings {
    /// Returns what is known of the servers behind the address; asks, if nothing is known yet. From then on
    /// the slots of a cluster are followed, as long as somebody holds these settings.
    ///
    /// # Errors
    /// Fails as [`Settings::connect`], and returns [`ConnectError::NoCluster`] if the address names several
    /// servers and they are no cluster, and [`ConnectError::NoSlots`] if no server says which slots it has.
    pub(super) async fn layout(&self) -> Result<Layout, ConnectError> {
        if let Some(known) = self.topology.layout() {
            return Ok(known);
        }
        let mut connection = self.connect_for_long().await?.connection;
        let is_node = is_node(&mut connection).await.map_err(ConnectError::Undecided)?;
        let Some(seeds) = self.seeds()? else {
            // Sentinels, or a socket of this machine.
            if is_node {
                return Err(ConnectError::ClusterBySocket);
            }
            self.topology.0.note(Layout::Single);
            return Ok(Layout::Single);
        };
        if !is_node {
            if let [_, _, ..] = seeds[..] {
                let address = seeds.iter().map(Endpoint::to_string).collect::<Vec<_>>().join(", ");
                return Err(ConnectError::NoCluster { address });
            }
            self.topology.0.note(Layout::Single);
            return Ok(Layout::Single);
        }
        // Settings of its own: these would keep the topology alive, and the task ends when that is dropped.
        let settings = Self { topology: Topology::default(), ..self.clone() };
        let mut looker = SlotMapPoller { settings, seeds, connections: HashMap::new(), turn: 0 };
        let found = Layout::Cluster(Arc::new(looker.look(None).await?));
        if self.topology.0.note(found.clone()) {
            tokio::spawn(follow(Arc::downgrade(&self.topology.0), looker));
        }
        Ok(self.topology.layout().unwrap_or(found))
    }

    /// Finds out whether the address leads to one server or to a cluster, and whether it can be used.
    ///
    /// # Errors
    /// Fails as [`Settings::connect`], and returns [`ConnectError::NoCluster`] if the address names several
    /// servers and they are no cluster, and [`ConnectError::NoSlots`] if no server of a cluster says which
    /// slots it has.
    pub async fn look_up(&self) -> Result<(), ConnectError> {
        self.layout().await.map(|_layout| ())
    }

    /// Connects to each primary of a cluster. Returns `None` if this is no cluster.
    ///
    /// # Errors
    /// Fails if it cannot be found out which primaries there are. A primary that cannot be reached is an
    /// error of its own.
    pub async fn connect_to_primaries(&self) -> Result<Option<Vec<Primary>>, ConnectError> {
        let Layout::Cluster(map) = self.layout().await? else { return Ok(None) };
        let mut slots = map.slots();
        let connecting = map.primaries().iter().map(|endpoint| {
            let slots = slots.remove(endpoint).unwrap_or_default().to_string();
            async move {
                let connection = self.connect_at(endpoint).await.map(|connected| connected.connection);
                Primary { address: endpoint.to_string(), slots, connection }
            }
        });
        Ok(Some(join_all(connecting).await))
    }
}

/// A primary of a cluster.
#[derive(Debug)]
pub struct Primary {
    /// Host and port.
    pub address: String,
    /// Its slots, as in `0-5460`.
    pub slots: String,
    /// A connection to it.
    pub connection: Result<MultiplexedConnection, ConnectError>,
}

/// Whether the server is a node of a cluster. The answer is kept, so a server that does not give one is asked
/// again: a connection that broke, or a user without the right, says nothing.
async fn is_node(connection: &mut MultiplexedConnection) -> RedisResult<bool> {
    let info: RedisResult<String> = ::redis::cmd("INFO").arg("cluster").query_async(connection).await;
    match info {
        Ok(info) => Ok(info.lines().any(|line| line.trim() == "cluster_enabled:1")),
        // A server that does not know the command is none.
        Err(error) if error.code() == Some("ERR") => Ok(false),
        Err(error) => Err(error),
    }
}

/// Keeps asking as long as somebody holds the topology.
async fn follow(shared: Weak<Shared>, mut looker: SlotMapPoller) {
    loop {
        sleep(ASK_SPACING).await;
        let Some(known) = shared.upgrade() else { return };
        // A doubt ends the wait; so does the time.
        let _waited = timeout(ASK_INTERVAL, known.doubted()).await;
        let before = Topology(known.clone()).map();
        match looker.look(before.as_deref()).await {
            Ok(map) => {
                if known.note(Layout::Cluster(Arc::new(map))) {
                    tracing::warn!("slots of the cluster have moved, or a server of it has been replaced");
                }
            }
            Err(error) => tracing::debug!(%error, "the slots of the cluster stay as they are"),
        }
    }
}

/// Asks servers for the slots.
struct SlotMapPoller {
    settings: Settings,
    seeds: Vec<Endpoint>,
    connections: HashMap<Endpoint, MultiplexedConnection>,
    /// Where the next look begins, so that no two servers are asked for ever.
    turn: usize,
}

impl SlotMapPoller {
    async fn look(&mut self, known: Option<&SlotMap>) -> Result<SlotMap, ConnectError> {
        let mut servers = known.map(|map| map.servers().to_vec()).unwrap_or_default();
        servers.extend(self.seeds.iter().filter(|seed| !servers.contains(seed)).cloned().collect::<Vec<_>>());
        self.connections.retain(|endpoint, _| servers.contains(endpoint));
        self.turn = (self.turn + 1) % servers.len().max(1);
        servers.rotate_left(self.turn);
        let mut problem = "none is known".to_owned();
        for some in servers.chunks(ASKED_AT_ONCE) {
            let asked = some
                .iter()
                .map(|endpoint| ask(&self.settings, endpoint, self.connections.get(endpoint).cloned()));
            let mut views = Vec::new();
            for (endpoint, answer) in some.iter().zip(join_all(asked).await) {
                match answer {
                    Ok((view, connection)) => {
                        self.connections.insert(endpoint.clone(), connection);
                        views.push(view);
                    }
                    Err(error) => {
                        self.connections.remove(endpoint);
                        problem = error;
                    }
                }
            }
            if !views.is_empty() {
                return Ok(SlotMap::of(&views));
            }
        }
        Err(ConnectError::NoSlots(problem))
    }
}

async fn ask(
    settings: &Settings,
    endpoint: &Endpoint,
    connection: Option<MultiplexedConnection>,
) -> Result<(View, MultiplexedConnection), String> {
    let asking = async {
        let mut connection = match connection {
            Some(connection) => connection,
            None => settings.connect_at(endpoint).await.map_err(|error| error.to_string())?.connection,
        };
        let view = view_of(&mut connection, endpoint).await.map_err(|error| error_text(&error))?;
        Ok((view, connection))
    };
    match timeout(ANSWER_LIMIT, asking).await {
        Ok(answer) => answer.map_err(|error: String| format!("{endpoint}: {error}")),
        Err(_elapsed) => Err(format!("{endpoint}: no answer in time")),
    }
}

async fn view_of(connection: &mut MultiplexedConnection, asked: &Endpoint) -> RedisResult<View> {
    let slots: Vec<Vec<Value>> = ::redis::cmd("CLUSTER").arg("SLOTS").query_async(connection).await?;
    let nodes: String = ::redis::cmd("CLUSTER").arg("NODES").query_async(connection).await?;
    let epochs = epochs_of(&nodes);
    let mut view = View::default();
    for range in &slots {
        let [first, last, primary, replicas @ ..] = &range[..] else { continue };
        let (first, last) = (from_redis_value_ref(first)?, from_redis_value_ref(last)?);
        if let Some((endpoint, id)) = server_of(primary, asked)? {
            let epoch = epochs.get(&id).copied().unwrap_or(0);
            view.claims.push((first, last, endpoint.clone(), epoch));
            view.servers.push(endpoint);
        }
        for replica in replicas {
            view.servers.extend(server_of(replica, asked)?.map(|(endpoint, _id)| endpoint));
        }
    }
    Ok(view)
}

/// Reads host, port and id of a server in an answer to CLUSTER SLOTS. Without a host it is that of the server
/// that was asked; a host that nobody knows is `?`.
fn server_of(value: &Value, asked: &Endpoint) -> Result<Option<(Endpoint, String)>, RedisError> {
    let Value::Array(parts) = value else { return Ok(None) };
    let [host, port, id, ..] = &parts[..] else { return Ok(None) };
    let host = from_redis_value_ref::<Option<String>>(host)?.filter(|host| !host.is_empty());
    let host = host.unwrap_or_else(|| asked.host.clone());
    let endpoint = Endpoint { host, port: from_redis_value_ref(port)? };
    Ok((endpoint.host != "?").then_some((endpoint, from_redis_value_ref(id)?)))
}

/// The configuration epoch of each server in an answer to CLUSTER NODES, by id: the first and the seventh
/// word of a line.
fn epochs_of(nodes: &str) -> HashMap<String, u64> {
    let epoch = |line: &str| {
        let mut words = line.split(' ');
        Some((words.next()?.to_owned(), words.nth(5)?.parse().ok()?))
    };
    nodes.lines().filter_map(epoch).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_of_a_claim_is_the_seventh_word() {
        let nodes = "29102 127.0.0.1:7101@17101 myself,master - 0 0 7 connected 0-5460\n\
                     4cde5 127.0.0.1:7102@17102,host master - 0 1764 2 connected 5461-10922\n";
        assert_eq!(epochs_of(nodes), HashMap::from([("29102".to_owned(), 7), ("4cde5".to_owned(), 2)]));
    }

    #[test]
    fn a_server_without_a_host_is_the_one_that_was_asked_and_an_unknown_one_is_left_out() {
        let asked = Endpoint { host: "h".to_owned(), port: 1 };
        let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let server = |host: Value| server_of(&Value::Array(vec![host, Value::Int(7), bulk("id")]), &asked);
        let at = |host: &str| Some((Endpoint { host: host.to_owned(), port: 7 }, "id".to_owned()));
        assert_eq!(server(Value::Nil).expect("read"), at("h"));
        assert_eq!(server(bulk("")).expect("read"), at("h"));
        assert_eq!(server(bulk("x")).expect("read"), at("x"));
        assert_eq!(server(bulk("?")).expect("read"), None);
    }
}
