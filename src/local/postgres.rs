//! A private Postgres on 127.0.0.1 with a random password. It is an installed one, or else a downloaded one.
//!
//! The crate `postgresql_embedded` runs it. This module adds what the crate lacks: another account if this
//! process is root, an end together with this process however that dies, and data that reaches the disk.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postgresql_embedded::{PostgreSQL, Settings, VersionReq};
use secrecy::SecretString;
use tempfile::TempDir;

use super::Home;
use super::account::{Account, flat_name, write_programs};
use super::directory::{free_port, last_lines, make_dir, password};
use super::error::LocalError;
use super::programs::{InstalledPostgres, installed_postgres, postgres_major};
use super::supervisor::Supervisor;

/// The database that `aftercommit dev` uses.
pub const DATABASE: &str = "postgres";
const USER: &str = "postgres";
/// The time limit of initdb, of a start (with recovery after a crash) and of a stop.
const LIMIT: Duration = Duration::from_secs(60);
/// The version that is downloaded if none is installed.
const DOWNLOADED: &str = "=17";
/// The directory for data if this process is root and Postgres's account cannot reach the configured one,
/// such as root's home.
const REACHABLE: &str = "/var/lib/aftercommit-dev";

/// How to start the server.
#[derive(Debug, Clone)]
pub struct Options {
    /// The place of its data.
    pub home: Home,
    /// The directory of `initdb`, `pg_ctl` and `postgres`. `None` means the version that wrote the data, or
    /// else the newest installed one.
    pub programs: Option<PathBuf>,
    /// The preferred port. If it is taken, another free one is used.
    pub port: Option<u16>,
    /// Commits reach the disk. Tests switch this off to be faster.
    pub durable: bool,
    /// Additional settings, for example `max_connections`. Values must not contain spaces.
    pub settings: Vec<(String, String)>,
}

/// A running private Postgres. It ends when this is dropped or when this process dies.
#[derive(Debug)]
pub struct PostgresServer {
    supervisor: Supervisor,
    port: u16,
    password: String,
    data: PathBuf,
    _temporary: Option<TempDir>,
}

/// Waits for end-of-file, then stops the server. `$1` is pg_ctl, `$2` the data directory, `$3` the directory
/// to remove at the end. A line instead of end-of-file means that the server never started.
const SCRIPT: &str = r#"if read -r _; then stop=no; else stop=yes; fi
ended=0
if [ "$stop" = yes ] && [ -f "$2/postmaster.pid" ]; then "$1" stop -D "$2" -m fast -w -t 60 3>&-; ended=$?; fi
if [ -n "$3" ]; then rm -rf "$3"; fi
exit "$ended"
"#;

impl PostgresServer {
    /// Starts a server and waits until it answers.
    ///
    /// # Errors
    /// [`LocalError::Postgres`] if it does not start, [`LocalError::Download`] if none is installed and none
    /// can be downloaded, [`LocalError::OtherVersion`] if its data was written by a version that is not
    /// installed.
    pub async fn start(options: &Options) -> Result<Self, LocalError> {
        Self::start_in(options, None).await
    }

    pub(super) async fn start_in(options: &Options, lock: Option<&File>) -> Result<Self, LocalError> {
        let account = Account::for_postgres()?;
        let (home, temporary) = home_of(&options.home, account.as_ref())?;
        let data = home.join("data");
        let programs = match &options.programs {
            Some(programs) => programs.clone(),
            None => programs_for(&data).await?,
        };
        write_programs(&home.join("bin"), &programs, &home, account.as_ref())?;
        stop_leftover(&home, &data).await?;
        let password = password(&home.join("password"))?;
        let port = free_port(options.port).map_err(LocalError::io("find a free port for", "Postgres"))?;
        let mut server = PostgreSQL::new(settings_of(&home, port, &password, options));
        if let Some(account) = &account {
            account.own(&home)?;
            account.own(&home.join("password"))?;
        }
        // The server may run from here on. The supervisor starts first, so that the server ends even if this
        // process dies during the start.
        let pg_ctl = home.join("bin/pg_ctl");
        let removed = temporary.as_ref().map_or(OsStr::new(""), |dir| dir.path().as_os_str());
        let supervisor =
            Supervisor::start("Postgres", SCRIPT, &[pg_ctl.as_os_str(), data.as_os_str(), removed], lock)?;
        let started = match server.setup().await {
            Ok(()) => server.start().await.map_err(|source| ("did not start", source)),
            Err(source) => Err(("could not make its data directory", source)),
        };
        // Dropping it would stop the server in the crate's way. The supervisor stops it instead.
        std::mem::forget(server);
        match started {
            Ok(()) => Ok(Self { supervisor, port, password, data, _temporary: temporary }),
            Err((failed, source)) => {
                supervisor.release();
                let log = last_lines(&data.join("start.log"));
                Err(LocalError::Postgres { failed, log, source: Box::new(source) })
            }
        }
    }

    /// `postgres://…` of a database on this server, with the superuser's password.
    pub fn url(&self, database: &str) -> SecretString {
        format!("postgres://{USER}:{}@127.0.0.1:{}/{database}", self.password, self.port).into()
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id of the server's main process, for tests that send it signals.
    pub fn pid(&self) -> Option<u32> {
        std::fs::read_to_string(self.data.join("postmaster.pid")).ok()?.lines().next()?.trim().parse().ok()
    }

    /// The data directory. The programs that control the server are in `../bin`.
    pub fn data_directory(&self) -> &Path {
        &self.data
    }

    /// Stops the server and waits until it has ended.
    ///
    /// # Errors
    /// [`LocalError::Stop`] if it did not stop cleanly.
    pub async fn stop(self) -> Result<(), LocalError> {
        self.supervisor.end().await
    }
}

/// The directory of the server, which its account can reach.
fn home_of(home: &Home, account: Option<&Account>) -> Result<(PathBuf, Option<TempDir>), LocalError> {
    match home {
        Home::Kept(path) => {
            make_dir(path, 0o711)?;
            let Some(account) = account else { return Ok((path.clone(), None)) };
            if account.reaches(path)? {
                return Ok((path.clone(), None));
            }
            let reachable = Path::new(REACHABLE).join(flat_name(path));
            make_dir(Path::new(REACHABLE), 0o711)?;
            make_dir(&reachable, 0o711)?;
            Ok((reachable, None))
        }
        Home::Ephemeral => {
            let dir = TempDir::with_prefix("aftercommit-postgres-")
                .map_err(LocalError::io("make", std::env::temp_dir()))?;
            make_dir(dir.path(), 0o711)?;
            Ok((dir.path().to_owned(), Some(dir)))
        }
    }
}

/// The programs of the version that wrote the data, or of the newest installed version if there is no data
/// yet.
async fn programs_for(data: &Path) -> Result<PathBuf, LocalError> {
    let installed = installed_postgres();
    match std::fs::read_to_string(data.join("PG_VERSION")) {
        Err(_) => match installed.into_iter().next() {
            Some(InstalledPostgres { bin, .. }) => Ok(bin),
            None => download().await,
        },
        Ok(version) => {
            let major = version.trim();
            let same = |found: &InstalledPostgres| found.major.to_string() == major;
            if let Some(found) = installed.into_iter().find(same) {
                return Ok(found.bin);
            }
            let downloaded = download().await?;
            if postgres_major(&downloaded).is_some_and(|found| found.to_string() == major) {
                return Ok(downloaded);
            }
            Err(LocalError::OtherVersion { dir: data.to_owned(), major: major.to_owned() })
        }
    }
}

/// Downloads Postgres if it is not there yet, and returns the directory of its programs.
async fn download() -> Result<PathBuf, LocalError> {
    let scratch = TempDir::new().map_err(LocalError::io("make", std::env::temp_dir()))?;
    // The crate installs and then runs initdb, which refuses root. It skips initdb if it finds this file.
    std::fs::write(scratch.path().join("postgresql.conf"), "")
        .map_err(LocalError::io("write", scratch.path()))?;
    let version = VersionReq::parse(DOWNLOADED).map_err(|_| LocalError::Missing {
        program: "Postgres",
        debian: "apt-get install postgresql",
        homebrew: "brew install postgresql@17",
    })?;
    let settings = Settings {
        installation_dir: Path::new(REACHABLE).join("postgresql"),
        data_dir: scratch.path().to_owned(),
        password_file: scratch.path().join("password"),
        temporary: false,
        version,
        ..Settings::default()
    };
    tracing::info!("no Postgres is installed; downloading one");
    let mut installer = PostgreSQL::new(settings);
    installer.setup().await.map_err(|source| LocalError::Download(Box::new(source)))?;
    Ok(installer.settings().binary_dir())
}

/// Stops the server of an earlier run whose supervisor was killed too. `pg_ctl` checks that the process is
/// that server.
async fn stop_leftover(home: &Path, data: &Path) -> Result<(), LocalError> {
    if !data.join("postmaster.pid").exists() {
        return Ok(());
    }
    let run = |arguments: &'static [&'static str]| {
        tokio::process::Command::new(home.join("bin/pg_ctl")).args(arguments).arg("-D").arg(data).output()
    };
    let status = run(&["status"]).await.map_err(LocalError::io("run", home.join("bin/pg_ctl")))?;
    if !status.status.success() {
        return Ok(()); // The server is dead. The next start replaces its file.
    }
    let stopped =
        run(&["stop", "-m", "fast", "-w"]).await.map_err(LocalError::io("run", home.join("bin/pg_ctl")))?;
    if stopped.status.success() {
        return Ok(());
    }
    Err(LocalError::Command {
        command: "pg_ctl stop".to_owned(),
        output: String::from_utf8_lossy(&stopped.stderr).trim().to_owned(),
    })
}

fn settings_of(home: &Path, port: u16, password: &str, options: &Options) -> Settings {
    let on = |is_on: bool| if is_on { "on" } else { "off" }.to_owned();
    let mut configuration: HashMap<String, String> = [
        ("listen_addresses", "127.0.0.1".to_owned()),
        ("unix_socket_directories", String::new()),
        // The crate turns fsync off; later settings on the command line win.
        ("fsync", on(options.durable)),
        ("full_page_writes", on(options.durable)),
        ("synchronous_commit", on(options.durable)),
        ("log_min_messages", "warning".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    configuration.extend(options.settings.iter().cloned());
    Settings {
        releases_url: String::new(),
        version: VersionReq::STAR,
        installation_dir: home.to_owned(),
        password_file: home.join("password"),
        data_dir: home.join("data"),
        host: "127.0.0.1".to_owned(),
        port,
        username: USER.to_owned(),
        password: password.to_owned(),
        temporary: false,
        timeout: Some(LIMIT),
        configuration,
        trust_installation_dir: true,
        socket_dir: None,
    }
}
