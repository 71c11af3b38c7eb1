//! `aftercommit dev`: all roles in one process, with a private Postgres, a private Redis and the live page.

mod guide;
mod live_page;
mod ready;
mod relay_runtime;
mod switches;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use aftercommit::http::Origins;
use aftercommit::live;
use aftercommit::local::{self, Servers};

use self::guide::Guide;
use self::switches::Switches;
use super::{api, sse};
use crate::config::{Config, validate};
use crate::systemd::Notifier;
use crate::{lifecycle, migrate};

/// The usual address of the live page, beside those of the roles.
const LIVE_LISTEN: &str = "127.0.0.1:8083";

/// The data directory and the env file.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: aftercommit dev")]
pub(crate) struct Args {
    /// The directory for the data.
    #[arg(long, value_name = "DIR", default_value = local::DATA_DIR)]
    data_dir: PathBuf,
    /// Use temporary directories and remove them at the end.
    #[arg(long, conflicts_with = "data_dir")]
    ephemeral: bool,
    /// A file for addresses and a token, written once ready.
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
    /// Where the live page listens.
    #[arg(long, value_name = "ADDR", default_value = LIVE_LISTEN, value_parser = on_loopback)]
    live: SocketAddr,
}

/// Parses an address that only this machine reaches. The live page stops servers, and shows their passwords.
fn on_loopback(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Ok(address),
        _ => Err("it must be an address of this machine alone and a port, such as 127.0.0.1:8083".to_owned()),
    }
}

/// The listening sockets of the three roles and of the live page.
struct Sockets {
    api: TcpListener,
    sse: TcpListener,
    relay: TcpListener,
    live: TcpListener,
}

/// Runs until a signal.
pub(crate) async fn run(mut config: Config, args: Args) -> Result<()> {
    let shutdown = lifecycle::shutdown_on_signal()?;
    let options = if args.ephemeral {
        local::Options::ephemeral()
    } else {
        local::Options::dev(Some(args.data_dir.clone()))
    };
    note!("starting a private Postgres and Redis …");
    let starting = Servers::start(&options);
    let servers = tokio::select! {
        servers = starting => servers.map_err(explained)?,
        () = shutdown.cancelled() => return Ok(()),
    };
    config.database.url = servers.database_url();
    config.redis.url = servers.redis_url();
    if config.jwt.secret.expose_secret().is_empty() {
        config.jwt.secret = secret(servers.data_dir(), "jwt-secret")?;
    }
    if config.operator.token.expose_secret().is_empty() {
        config.operator.token = secret(servers.data_dir(), "operator-token")?;
    }
    let ran = match validate::Role::ALL.iter().try_for_each(|role| role.check(&config)) {
        Ok(()) => Box::pin(run_roles(&config, &args, &servers, &shutdown)).await,
        Err(invalid) => Err(invalid.into()),
    };
    // The roles have ended, so their servers can stop, whatever the result.
    servers.stop().await.map_err(explained)?;
    ran
}

async fn run_roles(
    config: &Config,
    args: &Args,
    servers: &Servers,
    shutdown: &CancellationToken,
) -> Result<()> {
    migrate::run(config, migrate::Args { uploads: true, ..Default::default() }).await?;
    let sockets = Sockets {
        api: listen(&config.api.listen).await?,
        sse: listen(&config.sse.listen).await?,
        relay: listen(&config.relay.listen).await?,
        live: listen(&args.live.to_string()).await?,
    };
    let mut sse_settings = config.sse.clone();
    // The operator's page checks the SSE server at the port that it was given.
    sse_settings.listen = sockets.sse.local_addr().context("a listener without an address")?.to_string();
    // The live page, and pages that are being written, are served at some port of this machine.
    sse_settings.cors_origins.extend(Origins::LOOPBACK.map(str::to_owned));
    sse_settings.cors_origins.push(url_of(&sockets.live)?);
    let config = &Config { sse: sse_settings, ..config.clone() };
    let live_key = secret(servers.data_dir(), "live-key")?;
    let guide = Guide::new(config, &sockets, servers, &live_key)?;
    let (switchboard, orders) = live::switchboard();
    let live_page = live_page::LiveServer::new(config, &guide, &sockets, live_key, switchboard).await?;
    let addresses = ready::addresses([&sockets.api, &sockets.sse, &sockets.relay])?;
    // A role that fails stops the others: a part of the demo alone would confuse its user.
    let stop = shutdown.child_token();
    let switches = Switches::start(config, servers, sockets.relay, stop.clone())?;
    let all = async {
        let ran = tokio::try_join!(
            async {
                ready::wait_until_all_are(&addresses, &stop).await;
                guide.tell(args.env_file.as_deref())
            },
            ends_all(Box::pin(api::serve(config, sockets.api, stop.clone(), Notifier::default())), &stop),
            ends_all(Box::pin(sse::serve(config, sockets.sse, stop.clone(), Notifier::default())), &stop),
            ends_all(Box::pin(switches.run(orders)), &stop),
            ends_all(live_page.serve(sockets.live, stop.clone()), &stop),
        );
        ran.map(|_| ())
    };
    let grace = config.sse.drain() + Duration::from_secs(config.shutdown.grace_seconds);
    lifecycle::within_grace(all, shutdown, grace).await?
}

async fn ends_all(role: impl Future<Output = Result<()>>, stop: &CancellationToken) -> Result<()> {
    let ended = role.await;
    stop.cancel();
    ended
}

/// Listens on the configured address, or on a free port if that one is taken.
async fn listen(usual: &str) -> Result<TcpListener> {
    match TcpListener::bind(usual).await {
        Ok(listener) => Ok(listener),
        Err(error) => {
            note!("{usual} cannot be had ({error}): taking a free port");
            TcpListener::bind("127.0.0.1:0").await.context("there is no free port on 127.0.0.1")
        }
    }
}

/// The URL at which this machine finds a listener.
fn url_of(listener: &TcpListener) -> Result<String> {
    Ok(format!("http://{}", reachable(listener)?))
}

/// The address at which this machine finds a listener, also if it listens on all of its addresses.
fn reachable(listener: &TcpListener) -> Result<SocketAddr> {
    let mut address = listener.local_addr().context("a listener without an address")?;
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    Ok(address)
}

/// A secret that is stored in a file with the data, so that tokens stay valid after a restart.
fn secret(data_dir: Option<&Path>, file: &str) -> Result<SecretString> {
    let secret = match data_dir {
        None => local::random_secret(),
        Some(dir) => local::kept_secret(&dir.join(file)).map_err(explained)?,
    };
    Ok(secret.into())
}

/// A private server's error, converted with its cause. Its own sentence leaves the cause out.
fn explained(error: local::LocalError) -> anyhow::Error {
    anyhow::Error::new(error)
}
