//! A TCP proxy in front of a real server: it cuts, stalls, drops one direction, or switches to another
//! server.

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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToClient,
}

/// A running proxy on a port of its own. It ends with the test's runtime.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    upstream: Arc<Mutex<SocketAddr>>,
    flow: watch::Sender<Flow>,
    cuts: watch::Sender<u64>,
}

impl Proxy {
    /// Starts a proxy in front of a server on 127.0.0.1.
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let proxy = Self {
            port: listener.local_addr().expect("an address").port(),
            upstream: Arc::new(Mutex::new(SocketAddr::from(([127, 0, 0, 1], port)))),
            flow: watch::Sender::new(Flow::Pass),
            cuts: watch::Sender::new(0),
        };
        let (upstream, flow, cuts) = (proxy.upstream.clone(), proxy.flow.clone(), proxy.cuts.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if *flow.borrow() == Flow::Refuse {
                    continue;
                }
                let address = *upstream.lock().expect("not poisoned");
                tokio::spawn(serve(client, address, flow.subscribe(), cuts.subscribe()));
            }
        });
        proxy
    }

    /// The same url with this proxy's port.
    pub(crate) fn url(&self, url: &str) -> String {
        let port = self.upstream.lock().expect("not poisoned").port();
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
        self.upstream.lock().expect("not poisoned").set_port(port);
        self.cut();
    }
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
