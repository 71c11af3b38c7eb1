//! Runs the relay of `dev`, and stops and starts it and Redis as the live page orders.

use std::net::SocketAddr;

use anyhow::Result;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use aftercommit::live::{Orders, Part};
use aftercommit::local::Servers;

use super::relay_runtime::RelayRuntime;
use crate::config::Config;
use crate::lifecycle;
use crate::ops::output::error_text;

/// The relay and Redis, each of which may be stopped.
pub(super) struct Switches<'a> {
    pub(super) config: &'a Config,
    pub(super) servers: &'a Servers,
    /// The address of the relay's port.
    address: SocketAddr,
    /// `None` while it is killed.
    relay: Option<RelayRuntime>,
    stop: CancellationToken,
}

impl<'a> Switches<'a> {
    /// Starts the relay on `listener`.
    pub(super) fn start(
        config: &'a Config,
        servers: &'a Servers,
        listener: TcpListener,
        stop: CancellationToken,
    ) -> Result<Self> {
        let address = listener.local_addr()?;
        let relay = Some(RelayRuntime::start(config, listener, stop.clone())?);
        Ok(Self { config, servers, address, relay, stop })
    }

    /// Carries out orders until the relay ends by itself, or until `stop`.
    pub(super) async fn run(mut self, mut orders: Orders) -> Result<()> {
        loop {
            let order = match &mut self.relay {
                Some(relay) => tokio::select! {
                    ended = relay.ended() => return ended,
                    order = orders.next() => order,
                },
                None => tokio::select! {
                    () = self.stop.cancelled() => return Ok(()),
                    order = orders.next() => order,
                },
            };
            let outcome = self.switch(order.part, order.run).await;
            order.done(outcome.map_err(|error| error_text(&error)));
        }
    }

    async fn switch(&mut self, part: Part, run: bool) -> Result<()> {
        match (part, run) {
            (Part::Redis, true) => Ok(self.servers.redis().resume().await?),
            (Part::Redis, false) => Ok(self.servers.redis().halt().await?),
            (Part::Relay, true) => self.start_relay().await,
            (Part::Relay, false) => match self.relay.take() {
                Some(relay) => relay.kill().await,
                None => Ok(()),
            },
        }
    }

    async fn start_relay(&mut self) -> Result<()> {
        if self.relay.is_some() {
            return Ok(());
        }
        let (listener, _) = lifecycle::bind(&self.address.to_string(), "AFTERCOMMIT_RELAY_LISTEN").await?;
        self.relay = Some(RelayRuntime::start(self.config, listener, self.stop.clone())?);
        Ok(())
    }
}
