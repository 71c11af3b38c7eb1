//! `aftercommit dev`: all roles in one process, with a private Postgres and a private Redis.

mod ready;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use aftercommit::auth;
use aftercommit::http::Origins;
use aftercommit::local::{self, Servers};

use super::{api, relay, sse};
use crate::config::{Config, validate};
use crate::systemd::Notifier;
use crate::{lifecycle, migrate, telemetry};

/// How long the printed token is valid: longer than a working day.
const TOKEN_VALID_FOR: Duration = Duration::from_secs(24 * 3600);

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
}

/// The listening sockets of the three roles.
struct Sockets {
    api: TcpListener,
    sse: TcpListener,
    relay: TcpListener,
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
    migrate::run(config, migrate::Args { uploads: true }).await?;
    let sockets = Sockets {
        api: listen(&config.api.listen).await?,
        sse: listen(&config.sse.listen).await?,
        relay: listen(&config.relay.listen).await?,
    };
    // The operator's page checks the SSE server at the port that it was given.
    let config = &Config {
        sse: aftercommit::sse::Settings {
            listen: sockets.sse.local_addr().context("a listener without an address")?.to_string(),
            // Pages that are being written are served at some port of this machine.
            cors_origins: [&config.sse.cors_origins[..], &Origins::LOOPBACK.map(str::to_owned)].concat(),
            ..config.sse.clone()
        },
        ..config.clone()
    };
    let guide = Guide::new(config, &sockets, servers)?;
    let addresses = ready::addresses([&sockets.api, &sockets.sse, &sockets.relay])?;
    // A role that fails stops the others: a part of the demo alone would confuse its user.
    let stop = shutdown.child_token();
    let all = async {
        let ran = tokio::try_join!(
            async {
                ready::wait_until_all_are(&addresses, &stop).await;
                guide.tell(args.env_file.as_deref())
            },
            ends_all(Box::pin(api::serve(config, sockets.api, stop.clone(), Notifier::default())), &stop),
            ends_all(Box::pin(sse::serve(config, sockets.sse, stop.clone(), Notifier::default())), &stop),
            ends_all(Box::pin(relay::serve(config, sockets.relay, stop.clone(), Notifier::default())), &stop),
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

/// The addresses and credentials that a user of the demo needs.
struct Guide {
    api: String,
    sse: String,
    relay: String,
    database: SecretString,
    redis: SecretString,
    operator_token: SecretString,
    jwt_secret: SecretString,
    user: Uuid,
    token: String,
}

impl Guide {
    fn new(config: &Config, sockets: &Sockets, servers: &Servers) -> Result<Self> {
        let url = |listener: &TcpListener| {
            anyhow::Ok(format!("http://{}", listener.local_addr().context("a listener without an address")?))
        };
        // The user is the same at every start, so that yesterday's sessions still belong to them.
        let user = Uuid::from_u128(0x0195_0000_0000_7000_8000_0000_0000_0001);
        Ok(Self {
            api: url(&sockets.api)?,
            sse: url(&sockets.sse)?,
            relay: url(&sockets.relay)?,
            database: servers.database_url(),
            redis: servers.redis_url(),
            operator_token: config.operator.token.clone(),
            jwt_secret: config.jwt.secret.clone(),
            user,
            token: auth::issue_with(&config.jwt, user, TOKEN_VALID_FOR, &["*".to_owned()])?,
        })
    }

    /// Writes the env file and prints the guide.
    fn tell(&self, env_file: Option<&Path>) -> Result<()> {
        if let Some(path) = env_file {
            self.write_variables(path)?;
        }
        self.print();
        Ok(())
    }

    /// Writes shell variables to a file that only its owner can read, because it holds a token and passwords.
    fn write_variables(&self, path: &Path) -> Result<()> {
        let text = format!(
            "API_URL={}\nSSE_URL={}\nRELAY_URL={}\nUSER_ID={}\nTOKEN={}\nOPERATOR_TOKEN={}\n\
             AFTERCOMMIT_JWT_SECRET={}\nDATABASE_URL={}\nREDIS_URL={}\n\
             AFTERCOMMIT_API_LISTEN={}\nAFTERCOMMIT_SSE_LISTEN={}\nAFTERCOMMIT_RELAY_LISTEN={}\n",
            self.api,
            self.sse,
            self.relay,
            self.user,
            self.token,
            self.operator_token.expose_secret(),
            self.jwt_secret.expose_secret(),
            self.database.expose_secret(),
            self.redis.expose_secret(),
            // `status` and `doctor` look for the processes at these addresses.
            ready::host_and_port(&self.api),
            ready::host_and_port(&self.sse),
            ready::host_and_port(&self.relay)
        );
        // Written beside and renamed, so that a reader never sees a part of the file.
        let fresh = path.with_extension("new");
        local::write_private(&fresh, &text).map_err(explained)?;
        std::fs::rename(&fresh, path).with_context(|| format!("cannot write {}", path.display()))
    }

    fn print(&self) {
        let Self { api, sse, relay, user, token, .. } = self;
        let operator_token = self.operator_token.expose_secret();
        let (database, redis) = (self.database.expose_secret(), self.redis.expose_secret());
        let secret = self.jwt_secret.expose_secret();
        let text = format!(
            r#"
aftercommit is up; Ctrl-C ends it.

  api       {api}
  sse       {sse}
  relay     {relay}    health, metrics, and the operator's page
  postgres  {database}
  redis     {redis}

A token for every topic, of the user {user}:

  TOKEN={token}

Your own events. Append one:

  psql '{database}' -c \
    "select outbox.append('order:42', 'ORDER_PAID', '{{\"total\":12}}')"

and read its topic, as a browser's EventSource does:

  curl -N "{sse}/streams/order:42?from=earliest" -H "Authorization: Bearer $TOKEN"

Your application signs its own tokens with the secret

  AFTERCOMMIT_JWT_SECRET={secret}

Pages at any port of localhost or 127.0.0.1 may read streams here. Elsewhere,
AFTERCOMMIT_SSE_CORS_ORIGINS lists the origins that may.

The bundled application:

  # a session of three photos: note sessionId and photoIds
  curl -s {api}/api/upload/sessions -H "Authorization: Bearer $TOKEN" \
    -H 'Content-Type: application/json' -d '{{"totalPhotos":3}}'

  # in a second terminal: the session's events as a browser gets them
  curl -sN {sse}/api/upload/sessions/$SESSION/stream -H "Authorization: Bearer $TOKEN"

  # in a third: your notifications
  curl -sN {sse}/api/upload/sessions/notifications/stream -H "Authorization: Bearer $TOKEN"

  # two photos arrive, one fails
  curl -s -X POST {api}/api/upload/sessions/$SESSION/photos/$PHOTO/complete -H "Authorization: Bearer $TOKEN"
  curl -s -X POST {api}/api/upload/sessions/$SESSION/photos/$PHOTO/fail -H "Authorization: Bearer $TOKEN" \
    -H 'Content-Type: application/json' -d '{{"reason":"the disk is full"}}'

  # the operator's page, in a browser: {relay}/console
  # any name, and this token: {operator_token}

  # where the relay stands, and what it delivered
  DATABASE_URL={database} aftercommit status
  DATABASE_URL={database} aftercommit events list

"#
        );
        // A macro would panic if stdout is closed, and a blocking call would wait for its reader.
        telemetry::stdout().push(text.as_bytes());
    }
}
