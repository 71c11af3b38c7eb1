//! Wires the live page together: the page, and the upload application that it calls.

use std::sync::Arc;

use anyhow::Result;
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use aftercommit::auth::Verifier;
use aftercommit::http::{self, Limits, OperatorGate, OperatorSettings, Readiness, Server};
use aftercommit::live::{self, LivePage, Switchboard};
use aftercommit::postgres::Pool;

use super::guide::Guide;
use super::{Sockets, reachable};
use crate::config::Config;
use crate::roles::api;
use crate::telemetry;

/// The live page and its server.
pub(super) struct LiveServer {
    page: LivePage,
    server: Server,
    pool: Pool,
}

impl LiveServer {
    pub(super) async fn new(
        config: &Config,
        guide: &Guide,
        sockets: &Sockets,
        key: SecretString,
        switchboard: Switchboard,
    ) -> Result<Self> {
        let mut registry = telemetry::registry("live");
        let door = http::Metrics::register(&mut registry);
        let pool = config.database.lazy_pool("aftercommit live page")?;
        let page = LivePage::open(live::Parts {
            address: reachable(&sockets.live)?,
            gate: OperatorGate::new(&OperatorSettings { token: key }, door.clone())?,
            api: api::application(config, &pool, &Arc::new(Verifier::new(&config.jwt)?)),
            sse: reachable(&sockets.sse)?,
            database: config.database.clone(),
            relay: config.relay.name.clone(),
            switchboard,
            guide: live::Guide {
                token: guide.token.clone(),
                database: guide.database.clone(),
                sse: guide.sse.clone(),
                console: format!("{}/console", guide.relay),
            },
        })
        .await?;
        let operations = http::operations(registry, Readiness::new(|| std::future::ready(Vec::new())));
        let server = Server::new(page.router(), operations, Limits::default(), &config.http, door)?;
        Ok(Self { page, server, pool })
    }

    /// Serves on `listener` until `stop`.
    pub(super) async fn serve(self, listener: TcpListener, stop: CancellationToken) -> Result<()> {
        tokio::join!(self.server.serve(listener, stop.clone()), self.page.run(stop));
        self.pool.close().await;
        Ok(())
    }
}
