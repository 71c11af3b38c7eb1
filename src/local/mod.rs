//! Private Postgres and Redis servers for `aftercommit dev` and for tests.
//!
//! Starts them, finds them again after a crash, and ends them. However this process dies, also by kill -9,
//! its servers end with it (see `supervisor`). They listen on 127.0.0.1 only, with random passwords. Must not
//! end a process without having checked that it is its own server, and knows nothing of the data in them.
//!
//! ```text
//! <data dir>/lock                 held while somebody uses the directory
//!            postgres/bin/        how Postgres is run here (as another user, where we are root)
//!            postgres/data/       its data directory
//!            postgres/password
//!            redis/redis.conf     port and password
//!            redis/appendonlydir/
//! ```

pub mod error;
pub mod postgres;
pub mod redis;

mod account;
mod directory;
mod programs;
mod supervisor;

use std::path::PathBuf;

use secrecy::SecretString;

pub use directory::{free_port, password as kept_secret, random_secret, write_private};
pub use error::LocalError;
pub use postgres::PostgresServer;
pub use redis::RedisServer;

use directory::DataDir;

/// The default data directory of `aftercommit dev`, relative to the current directory.
pub const DATA_DIR: &str = ".aftercommit/dev";

/// The place of a server's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Home {
    /// A directory that survives a restart.
    Kept(PathBuf),
    /// A temporary directory that is removed when the server ends.
    Ephemeral,
}

/// How to start the servers.
#[derive(Debug, Clone)]
pub struct Options {
    /// The data directory; `None` is [`DATA_DIR`]. Ignored if `ephemeral` is set.
    pub data_dir: Option<PathBuf>,
    /// Keep no data: use temporary directories and remove them at the end.
    pub ephemeral: bool,
    /// The preferred port of Postgres. If it is taken, another free one is used.
    pub postgres_port: Option<u16>,
    /// The preferred port of Redis. If it is taken, another free one is used.
    pub redis_port: Option<u16>,
    /// Data reaches the disk before it counts as written (`fsync`, append-only file). Tests switch this off
    /// to be faster.
    pub durable: bool,
    /// Additional settings of Postgres, for example `max_connections`.
    pub postgres_settings: Vec<(String, String)>,
}

impl Options {
    /// Options of `aftercommit dev`: durable, in the given directory or in [`DATA_DIR`].
    pub fn dev(data_dir: Option<PathBuf>) -> Self {
        Self {
            data_dir,
            ephemeral: false,
            postgres_port: None,
            redis_port: None,
            durable: true,
            postgres_settings: Vec::new(),
        }
    }

    /// Keeps no data and never waits for the disk.
    pub fn ephemeral() -> Self {
        Self { ephemeral: true, durable: false, ..Self::dev(None) }
    }
}

/// A running Postgres and a running Redis.
///
/// They end with [`Servers::stop`], when this is dropped (which waits for them), or when this process dies.
#[derive(Debug)]
pub struct Servers {
    postgres: PostgresServer,
    redis: RedisServer,
    // Dropped last: no other process may use the directory before both servers have ended.
    data_dir: Option<DataDir>,
}

impl Servers {
    /// Starts both. Servers that an earlier, killed process left behind in the same directory are ended
    /// first.
    ///
    /// # Errors
    /// [`LocalError::InUse`] if another process uses the directory. Otherwise the errors of
    /// [`PostgresServer::start`] and [`RedisServer::start`].
    pub async fn start(options: &Options) -> Result<Self, LocalError> {
        let data_dir = match (options.ephemeral, &options.data_dir) {
            (true, _) => None,
            (false, Some(path)) => Some(DataDir::open(path).await?),
            (false, None) => Some(DataDir::open(DATA_DIR.as_ref()).await?),
        };
        let home = |name: &str| {
            data_dir.as_ref().map_or(Home::Ephemeral, |data_dir| Home::Kept(data_dir.path().join(name)))
        };
        let lock = data_dir.as_ref().map(DataDir::lock);
        let postgres = postgres::Options {
            home: home("postgres"),
            programs: None,
            port: options.postgres_port,
            durable: options.durable,
            settings: options.postgres_settings.clone(),
        };
        let redis = redis::Options {
            home: home("redis"),
            port: options.redis_port,
            durable: options.durable,
            settings: Vec::new(),
        };
        let (postgres, redis) =
            tokio::join!(PostgresServer::start_in(&postgres, lock), RedisServer::start_in(&redis, lock));
        Ok(Self { postgres: postgres?, redis: redis?, data_dir })
    }

    /// `postgres://…`, with the password.
    pub fn database_url(&self) -> SecretString {
        self.postgres.url(postgres::DATABASE)
    }

    /// `redis://…`, with the password.
    pub fn redis_url(&self) -> SecretString {
        self.redis.url()
    }

    /// Redis, which `aftercommit dev` stops and starts on request.
    pub fn redis(&self) -> &RedisServer {
        &self.redis
    }

    /// The data directory, or `None` if no data is kept.
    pub fn data_dir(&self) -> Option<&std::path::Path> {
        self.data_dir.as_ref().map(DataDir::path)
    }

    /// Stops both servers and waits until they have ended.
    ///
    /// # Errors
    /// [`LocalError::Stop`] if one of them did not stop cleanly.
    pub async fn stop(self) -> Result<(), LocalError> {
        let (postgres, redis) = tokio::join!(self.postgres.stop(), self.redis.stop());
        postgres.and(redis)
    }
}
