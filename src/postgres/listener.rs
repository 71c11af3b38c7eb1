//! A session that receives notifications.

use std::time::Duration;

use sqlx::postgres::{PgListener, PgPoolOptions};

use super::{Settings, never_idle_out};

impl Settings {
    /// Listens on a channel, by a session of its own at the direct address. LISTEN is in force when it returns.
    /// The caller connects again when the session ends, so that it knows when it has missed something.
    ///
    /// # Errors
    /// Returns [`sqlx::Error::Configuration`] for the errors of [`Settings::options`], or the driver's error if
    /// Postgres refuses or cannot be reached.
    pub async fn listener(&self, name: &str, channel: &str) -> Result<PgListener, sqlx::Error> {
        let options = self.options(name).await.map_err(|error| sqlx::Error::Configuration(error.into()))?;
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(Duration::from_secs(5))
            .max_lifetime(None)
            .idle_timeout(None)
            .after_connect(|connection, _| Box::pin(never_idle_out(connection)))
            .connect_lazy_with(options);
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.listen(channel).await?;
        Ok(listener)
    }
}
