//! What `dev` tells its user: addresses, credentials, and commands that work as they stand.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use aftercommit::auth;
use aftercommit::local::{self, Servers};

use super::{Sockets, explained, url_of};
use crate::config::Config;
use crate::telemetry;

/// How long the printed token is valid: longer than a working day.
const TOKEN_VALID_FOR: Duration = Duration::from_secs(24 * 3600);

/// The addresses and credentials that a user of the demo needs.
pub(super) struct Guide {
    api: String,
    pub(super) sse: String,
    pub(super) relay: String,
    /// The address of the live page, with its key.
    live: String,
    pub(super) database: SecretString,
    redis: SecretString,
    operator_token: SecretString,
    jwt_secret: SecretString,
    user: Uuid,
    pub(super) token: String,
}

impl Guide {
    pub(super) fn new(
        config: &Config,
        sockets: &Sockets,
        servers: &Servers,
        live_key: &SecretString,
    ) -> Result<Self> {
        // The user is the same at every start, so that yesterday's sessions still belong to them.
        let user = Uuid::from_u128(0x0195_0000_0000_7000_8000_0000_0000_0001);
        Ok(Self {
            api: url_of(&sockets.api)?,
            sse: url_of(&sockets.sse)?,
            relay: url_of(&sockets.relay)?,
            // A browser sends the part after # to nobody.
            live: format!("{}/#{}", url_of(&sockets.live)?, live_key.expose_secret()),
            database: servers.database_url(),
            redis: servers.redis_url(),
            operator_token: config.operator.token.clone(),
            jwt_secret: config.jwt.secret.clone(),
            user,
            token: auth::issue_with(&config.jwt, user, TOKEN_VALID_FOR, &["*".to_owned()])?,
        })
    }

    /// Writes the env file and prints the guide.
    pub(super) fn tell(&self, env_file: Option<&Path>) -> Result<()> {
        if let Some(path) = env_file {
            self.write_variables(path)?;
        }
        self.print();
        Ok(())
    }

    /// Writes shell variables to a file that only its owner can read, because it holds a token and passwords.
    fn write_variables(&self, path: &Path) -> Result<()> {
        let text = format!(
            "API_URL={}\nSSE_URL={}\nRELAY_URL={}\nLIVE_URL='{}'\nUSER_ID={}\nTOKEN={}\nOPERATOR_TOKEN={}\n\
             AFTERCOMMIT_JWT_SECRET={}\nDATABASE_URL={}\nREDIS_URL={}\n\
             AFTERCOMMIT_API_LISTEN={}\nAFTERCOMMIT_SSE_LISTEN={}\nAFTERCOMMIT_RELAY_LISTEN={}\n",
            self.api,
            self.sse,
            self.relay,
            self.live,
            self.user,
            self.token,
            self.operator_token.expose_secret(),
            self.jwt_secret.expose_secret(),
            self.database.expose_secret(),
            self.redis.expose_secret(),
            // `status` and `doctor` look for the processes at these addresses.
            host_and_port(&self.api),
            host_and_port(&self.sse),
            host_and_port(&self.relay)
        );
        // Written beside and renamed, so that a reader never sees a part of the file.
        let fresh = path.with_extension("new");
        local::write_private(&fresh, &text).map_err(explained)?;
        std::fs::rename(&fresh, path).with_context(|| format!("cannot write {}", path.display()))
    }

    fn print(&self) {
        let Self { api, sse, relay, live, user, token, .. } = self;
        let operator_token = self.operator_token.expose_secret();
        let (database, redis) = (self.database.expose_secret(), self.redis.expose_secret());
        let secret = self.jwt_secret.expose_secret();
        let text = format!(
            r#"
aftercommit is up; Ctrl-C ends it. Watch it in a browser, and break it there:

  {live}

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

/// The address in a URL of this process.
fn host_and_port(url: &str) -> &str {
    url.strip_prefix("http://").unwrap_or(url)
}
