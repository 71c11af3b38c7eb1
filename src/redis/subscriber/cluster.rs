//! Subscriptions in a cluster: each topic at the server that has its slot, and again at the next server when
//! the slot moves.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::inbox::InboxSender;
use super::node::{self, Report};
use super::standing::Standing;
use super::writer::Command;
use crate::event::Topic;
use crate::redis::endpoint::Endpoint;
use crate::redis::settings::Settings;
use crate::redis::slot_map::SlotMap;

/// How long a server is left alone after its connection ended.
const RECONNECT_AFTER: Duration = Duration::from_millis(100);

/// The subscriptions, and the servers that they are at.
struct Router {
    settings: Settings,
    map: Arc<SlotMap>,
    inbox: InboxSender,
    reports: mpsc::UnboundedSender<Report>,
    nodes: HashMap<Endpoint, Node>,
    /// The server at which each topic was subscribed to.
    topics: HashMap<Topic, Endpoint>,
    /// Servers whose connection has just ended.
    resting: HashMap<Endpoint, Instant>,
    standing: Standing,
}

/// A server with a connection. The tasks end when this is dropped.
struct Node {
    commands: mpsc::UnboundedSender<Command>,
    _task: AbortOnDropHandle<()>,
}

/// Routes commands until no more can come or nobody receives messages.
pub(super) async fn run(
    settings: Settings,
    map: Arc<SlotMap>,
    mut commands: mpsc::UnboundedReceiver<Command>,
    inbox: InboxSender,
    standing: Standing,
) {
    let (reports, mut reported) = mpsc::unbounded_channel();
    let topology = settings.topology.clone();
    let (nodes, topics, resting) = Default::default();
    let mut router = Router { settings, map, inbox, reports, nodes, topics, resting, standing };
    loop {
        let known = router.map.clone();
        let is_received = tokio::select! {
            command = commands.recv() => match command {
                Some(command) => {
                    router.route(command);
                    true
                }
                None => return,
            },
            Some(report) = reported.recv() => router.handle_report(report).await,
            () = topology.changed_from(&known) => router.follow().await,
        };
        if !is_received {
            return;
        }
    }
}

impl Router {
    /// Sends a command to the server that has the topic.
    fn route(&mut self, command: Command) {
        match command {
            Command::Subscribe(topic, confirm) => {
                let Some(primary) = self.map.primary_of(topic.as_str()).cloned() else {
                    // Dropping the confirmation reports that there is none.
                    return self.settings.topology.doubt();
                };
                self.unsubscribe_elsewhere(&topic, &primary);
                self.topics.insert(topic.clone(), primary.clone());
                self.send(&primary, Command::Subscribe(topic, confirm));
            }
            Command::Unsubscribe(topic) => {
                if let Some(endpoint) = self.topics.remove(&topic) {
                    self.send_if_connected(&endpoint, Command::Unsubscribe(topic));
                }
            }
        }
    }

    /// A topic whose slot has moved may still get public messages from the server that had it.
    fn unsubscribe_elsewhere(&mut self, topic: &Topic, primary: &Endpoint) {
        if let Some(before) = self.topics.get(topic).filter(|before| *before != primary).cloned() {
            self.send_if_connected(&before, Command::Unsubscribe(topic.clone()));
        }
    }

    fn send(&mut self, endpoint: &Endpoint, command: Command) {
        let node = self.nodes.entry(endpoint.clone()).or_insert_with(|| {
            let (commands, received) = mpsc::unbounded_channel();
            let begin = self.resting.remove(endpoint).unwrap_or_else(Instant::now);
            let serving = node::run(
                self.settings.clone(),
                endpoint.clone(),
                received,
                self.inbox.clone(),
                self.reports.clone(),
                self.standing.clone(),
            );
            let task = async move {
                sleep_until(begin).await;
                serving.await;
            };
            Node { commands, _task: AbortOnDropHandle::new(tokio::spawn(task)) }
        });
        // A server whose connection has ended reports that.
        let _sent = node.commands.send(command);
    }

    fn send_if_connected(&mut self, endpoint: &Endpoint, command: Command) {
        if let Some(node) = self.nodes.get(endpoint) {
            let _sent = node.commands.send(command);
        }
    }

    /// Heeds the report of a server. Returns false if nobody receives any more.
    async fn handle_report(&mut self, report: Report) -> bool {
        match report {
            Report::Ended(endpoint, reason) => {
                tracing::warn!(%endpoint, %reason, "a subscription ended; its topics are joined anew");
                self.settings.topology.doubt();
                self.nodes.remove(&endpoint);
                self.resting.insert(endpoint.clone(), Instant::now() + RECONNECT_AFTER);
                self.lose(|_, at| *at == endpoint).await
            }
            Report::GaveAway(endpoint, topic) => {
                if self.topics.get(&topic) != Some(&endpoint) {
                    // It was asked to.
                    return true;
                }
                self.settings.topology.doubt();
                self.send_if_connected(&endpoint, Command::Unsubscribe(topic.clone()));
                self.lose(|known, _| *known == topic).await
            }
        }
    }

    /// Follows the slots. Returns false if nobody receives any more.
    async fn follow(&mut self) -> bool {
        let Some(map) = self.settings.topology.map() else { return true };
        self.map = map.clone();
        let has_moved = |topic: &Topic, at: &Endpoint| map.primary_of(topic.as_str()) != Some(at);
        let moved: Vec<(Topic, Endpoint)> = self
            .topics
            .iter()
            .filter(|(topic, at)| has_moved(topic, at))
            .map(|(topic, at)| (topic.clone(), at.clone()))
            .collect();
        for (topic, at) in &moved {
            self.send_if_connected(at, Command::Unsubscribe(topic.clone()));
        }
        self.nodes.retain(|endpoint, _| map.primaries().contains(endpoint));
        self.lose(has_moved).await
    }

    /// Reports that these topics are not subscribed any more.
    async fn lose(&mut self, is_lost: impl Fn(&Topic, &Endpoint) -> bool) -> bool {
        let lost: Vec<Topic> =
            self.topics.extract_if(|topic, at| is_lost(topic, at)).map(|(topic, _)| topic).collect();
        lost.is_empty() || self.inbox.moved(lost).await
    }
}
