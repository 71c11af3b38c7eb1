//! A TCP proxy in front of a real server: it cuts, stalls, drops one direction, switches to another server,
//! or leads some connections to another one.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How the proxy treats bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    /// They pass.
    Pass,
    /// They stay where they are, both ways: a half-open connection.
    Stall,
    /// Replies are dropped: the client does not know whether its request arrived.
    SwallowReplies,
    /// New connections are closed at once.
    Refuse,
}

/// Where new connections lead.
#[derive(Debug)]
struct Route {
    server: SocketAddr,
    detour: Option<Detour>,
}

/// Some connections lead to another server.
#[derive(Debug)]
struct Detour {
    server: SocketAddr,
    /// A bit for each of the next 64 connections, and so on: 1 leads aside.
    pattern: u64,
    /// How many led aside.
    connections: u64,
}

impl Route {
    /// Where the next connection leads.
    fn next(&mut self) -> SocketAddr {
        let Some(detour) = &mut self.detour else { return self.server };
        let leads_aside = detour.pattern & 1;
        detour.pattern = detour.pattern.rotate_right(1);
        detour.connections += leads_aside;
        if leads_aside == 1 { detour.server } else { self.server }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToClient,
}

/// A running proxy on a port of its own. It ends with the test's runtime.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    route: Arc<Mutex<Route>>,
    flow: watch::Sender<Flow>,
    cuts: watch::Sender<u64>,
}

impl Proxy {
    /// Starts a proxy in front of a server on 127.0.0.1.
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let proxy = Self {
            port: listener.local_addr().expect("an address").port(),
            route: Arc::new(Mutex::new(Route { server: local(port), detour: None })),
            flow: watch::Sender::new(Flow::Pass),
            cuts: watch::Sender::new(0),
        };
        let (route, flow, cuts) = (proxy.route.clone(), proxy.flow.clone(), proxy.cuts.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if *flow.borrow() == Flow::Refuse {
                    continue;
                }
                let address = route.lock().expect("not poisoned").next();
                tokio::spawn(serve(client, address, flow.subscribe(), cuts.subscribe()));
            }
        });
        proxy
    }

    /// The same url with this proxy's port.
    pub(crate) fn url(&self, url: &str) -> String {
        let port = self.route.lock().expect("not poisoned").server.port();
        let through = url.replace(&format!("127.0.0.1:{port}"), &format!("127.0.0.1:{}", self.port));
        assert_ne!(through, url, "the url leads to the proxy's server");
        through
    }

    pub(crate) fn flow(&self, flow: Flow) {
        self.flow.send_replace(flow);
    }

    /// Closes every connection.
    pub(crate) fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// New connections lead to this server on 127.0.0.1; the old ones are closed.
    pub(crate) fn lead_to(&self, port: u16) {
        self.route.lock().expect("not poisoned").server = local(port);
        self.cut();
    }

    /// The new connections whose bit of the pattern is 1 lead to this server on 127.0.0.1. The old ones are
    /// closed.
    pub(crate) fn lead_aside(&self, port: u16, pattern: u64) {
        let detour = Detour { server: local(port), pattern, connections: 0 };
        self.route.lock().expect("not poisoned").detour = Some(detour);
        self.cut();
    }

    /// All connections lead to the proxy's server again; the old ones are closed. Returns how many led aside.
    pub(crate) fn lead_back(&self) -> u64 {
        let detour = self.route.lock().expect("not poisoned").detour.take();
        self.cut();
        detour.map_or(0, |detour| detour.connections)
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

async fn serve(
    client: TcpStream,
    upstream: SocketAddr,
    flow: watch::Receiver<Flow>,
    mut cuts: watch::Receiver<u64>,
) {
    let Ok(server) = TcpStream::connect(upstream).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = pump(from_client, to_server, Direction::ToServer, flow.clone()) => {}
        () = pump(from_server, to_client, Direction::ToClient, flow) => {}
        _cut = cuts.changed() => {}
    }
}

/// Carries bytes one way until either side ends.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    direction: Direction,
    mut flow: watch::Receiver<Flow>,
) {
    let mut buffer = vec![0; 64 * 1024];
    let mut has_swallowed = false;
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let flowing = flow.wait_for(|flow| *flow != Flow::Stall).await;
        let Ok(now) = flowing.map(|flow| *flow) else { return };
        if now == Flow::SwallowReplies && direction == Direction::ToClient {
            has_swallowed = true;
            continue;
        }
        // Bytes are missing in the middle of this connection: it cannot be used any more.
        if has_swallowed || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
