//! A TCP line from a browser to the SSE server, on a port of its own. While it is cut, it ends its
//! connections and every new one, as a network that fails does.
//!
//! A port for each client also keeps browsers within their six connections to a server.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A line that can be cut.
#[derive(Debug)]
pub(super) struct Line {
    listener: TcpListener,
    address: SocketAddr,
    target: SocketAddr,
    connected: watch::Sender<bool>,
}

impl Line {
    /// Listens on a free port. [`Line::carry`] connects it to `target`.
    pub(super) async fn open(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address, target, connected: watch::Sender::new(true) })
    }

    /// The origin at which a browser finds the SSE server by this line.
    pub(super) fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn is_connected(&self) -> bool {
        *self.connected.borrow()
    }

    /// Restores the line, or cuts it.
    pub(super) fn connect(&self, connected: bool) {
        self.connected.send_replace(connected);
    }

    /// Accepts and carries connections until `stop`.
    pub(super) async fn carry(&self, stop: &CancellationToken) {
        // Dropped at the end, which ends all of them.
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                Some(_ended) = connections.join_next() => continue,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _peer)) => {
                    connections.spawn(carry_until_cut(stream, self.target, self.connected.subscribe()));
                }
                Err(error) => {
                    tracing::debug!(%error, "a line of the live page cannot accept");
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}

async fn carry_until_cut(mut browser: TcpStream, target: SocketAddr, mut connected: watch::Receiver<bool>) {
    let carried = async {
        let mut server = TcpStream::connect(target).await?;
        // Events are small and must not wait for more.
        server.set_nodelay(true)?;
        browser.set_nodelay(true)?;
        copy_bidirectional(&mut browser, &mut server).await
    };
    tokio::select! {
        // On a line that is cut already, nothing is carried.
        biased;
        _cut = connected.wait_for(|connected| !connected) => {}
        // Both ends see a broken connection, which is all that they can be told.
        _ended = carried => {}
    }
}
