//! A private Redis: the installed `valkey-server` or `redis-server`, on 127.0.0.1, with a random password.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;
use tempfile::TempDir;
use tokio::time::Instant;

use super::directory::{free_port, last_lines, make_dir, password, write_private};
use super::error::LocalError;
use super::supervisor::Supervisor;
use super::{Home, programs};

/// The time limit of a start, which includes reading the append-only file.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How to start the server.
#[derive(Debug, Clone)]
pub struct Options {
    /// The place of its data.
    pub home: Home,
    /// The preferred port. If it is taken, another free one is used.
    pub port: Option<u16>,
    /// Every write reaches the append-only file, synced each second. Otherwise nothing is written to disk.
    pub durable: bool,
    /// Additional settings, for example `cluster-enabled`.
    pub settings: Vec<(String, String)>,
}

/// A running private Redis. It ends when this is dropped or when this process dies.
#[derive(Debug)]
pub struct RedisServer {
    supervisor: Supervisor,
    port: u16,
    password: String,
    home: PathBuf,
    _temporary: Option<TempDir>,
}

/// Starts the server, stops and starts it at each line that says so, and stops it at end-of-file. `$1` is the
/// program, `$2` its configuration, `$3` its directory, `$4` the directory to remove at the end.
const SCRIPT: &str = r#"program=$1 configuration=$2 home=$3 removed=$4 ended=0
cd "$home" || exit 1
start() {
  "$program" "$configuration" </dev/null 3>&- &
  server=$!
  echo "$server" > "$home/pid"
}
stop() {
  kill -TERM "$server" 2>/dev/null
  # A Redis that cannot save its data refuses to end.
  ( i=0; while [ "$i" -lt 100 ] && kill -0 "$server" 2>/dev/null; do i=$((i+1)); sleep 0.1; done
    kill -KILL "$server" 2>/dev/null ) 3>&- &
  wait "$server"
  ended=$?
  rm -f "$home/pid"
}
start
while read -r command; do
  case $command in
    start) if [ ! -f "$home/pid" ]; then start; fi ;;
    stop) if [ -f "$home/pid" ]; then stop; fi ;;
  esac
done
if [ -f "$home/pid" ]; then stop; fi
if [ -n "$removed" ]; then rm -rf "$removed"; fi
exit "$ended"
"#;

impl RedisServer {
    /// Starts a server and waits until it answers.
    ///
    /// # Errors
    /// [`LocalError::Missing`] if no server program is installed, [`LocalError::Redis`] if it does not start.
    pub async fn start(options: &Options) -> Result<Self, LocalError> {
        Self::start_in(options, None).await
    }

    pub(super) async fn start_in(options: &Options, lock: Option<&File>) -> Result<Self, LocalError> {
        let program = programs::redis()?;
        let (home, temporary) = match &options.home {
            Home::Kept(path) => {
                make_dir(path, 0o700)?;
                (path.clone(), None)
            }
            Home::Ephemeral => {
                let dir = TempDir::with_prefix("aftercommit-redis-")
                    .map_err(LocalError::io("make", std::env::temp_dir()))?;
                (dir.path().to_owned(), Some(dir))
            }
        };
        end_leftover(&home).await?;
        let password = password(&home.join("password"))?;
        let port = free_port(options.port).map_err(LocalError::io("find a free port for", "Redis"))?;
        let configuration = home.join("redis.conf");
        write_private(&configuration, &configuration_of(port, &password, options))?;
        let removed = temporary.as_ref().map_or(OsStr::new(""), |dir| dir.path().as_os_str());
        let arguments = [program.as_os_str(), configuration.as_os_str(), home.as_os_str(), removed];
        let supervisor = Supervisor::start("Redis", SCRIPT, &arguments, lock)?;
        let mut server = Self { supervisor, port, password, home, _temporary: temporary };
        server.wait_until_it_answers().await?;
        Ok(server)
    }

    /// Stops the server and keeps its port, its password and its data. Returns when it has ended; does
    /// nothing if it does not run.
    ///
    /// # Errors
    /// [`LocalError::Redis`] if it does not end in time, [`LocalError::Io`] if its supervisor is gone.
    pub async fn halt(&self) -> Result<(), LocalError> {
        self.supervisor.tell("stop")?;
        let deadline = Instant::now() + START_LIMIT;
        while self.pid().is_some() {
            if Instant::now() > deadline {
                return Err(self.failed(format!("did not end within {} s", START_LIMIT.as_secs())));
            }
            // The supervisor removes the file with the process id, and has no other way to tell.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Starts the server again after [`RedisServer::halt`], and waits until it answers. Does nothing if it
    /// runs.
    ///
    /// # Errors
    /// [`LocalError::Redis`] if it does not answer in time, [`LocalError::Io`] if its supervisor is gone.
    pub async fn resume(&self) -> Result<(), LocalError> {
        self.supervisor.tell("start")?;
        let deadline = Instant::now() + START_LIMIT;
        while let Err(error) = ping(&self.address()).await {
            if Instant::now() > deadline {
                let limit = START_LIMIT.as_secs();
                return Err(self.failed(format!("did not answer within {limit} s ({error})")));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    fn address(&self) -> String {
        // redis-cli 7.0 takes an address without a user's name for one of an empty name, and is refused.
        format!("redis://default:{}@127.0.0.1:{}", self.password, self.port)
    }

    async fn wait_until_it_answers(&mut self) -> Result<(), LocalError> {
        let deadline = Instant::now() + START_LIMIT;
        let address = self.address();
        loop {
            let failed = match ping(&address).await {
                Ok(()) => return Ok(()),
                Err(error) => error.to_string(),
            };
            if let Some(status) = self.supervisor.ended() {
                return Err(self.failed(format!("ended at once ({status})")));
            }
            if Instant::now() > deadline {
                return Err(
                    self.failed(format!("did not answer within {} s ({failed})", START_LIMIT.as_secs()))
                );
            }
            // A server gives no signal when it begins to listen.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn failed(&self, failed: String) -> LocalError {
        LocalError::Redis { failed, log: last_lines(&self.home.join("log")) }
    }

    /// `redis://…`, with the password.
    pub fn url(&self) -> SecretString {
        self.address().into()
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id of the server, for tests that send it signals.
    pub fn pid(&self) -> Option<u32> {
        std::fs::read_to_string(self.home.join("pid")).ok()?.trim().parse().ok()
    }

    /// Stops the server and waits until it has ended.
    ///
    /// # Errors
    /// [`LocalError::Stop`] if it did not stop cleanly.
    pub async fn stop(self) -> Result<(), LocalError> {
        self.supervisor.end().await
    }
}

fn configuration_of(port: u16, password: &str, options: &Options) -> String {
    let append_only = if options.durable { "yes" } else { "no" };
    let mut configuration = format!(
        "bind 127.0.0.1\nport {port}\nrequirepass {password}\ndaemonize no\nlogfile log\nsave \"\"\n\
         appendonly {append_only}\nappendfsync everysec\ndatabases 16\nmaxmemory-policy noeviction\n"
    );
    for (name, value) in &options.settings {
        configuration.push_str(&format!("{name} {value}\n"));
    }
    configuration
}

/// Checks that a server answers.
async fn ping(address: &str) -> Result<(), ::redis::RedisError> {
    let client = ::redis::Client::open(address)?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    ::redis::cmd("PING").query_async(&mut connection).await
}

/// Ends the server of an earlier run whose supervisor was killed too.
async fn end_leftover(home: &Path) -> Result<(), LocalError> {
    let Ok(pid) = std::fs::read_to_string(home.join("pid")) else { return Ok(()) };
    let pid = pid.trim();
    // The process must be a Redis before it is ended, because process ids are reused.
    let is_ours = || {
        programs::command_line(pid)
            .is_some_and(|line| line.contains("redis-server") || line.contains("valkey-server"))
    };
    if !is_ours() {
        return Ok(());
    }
    programs::terminate(pid)?;
    let deadline = Instant::now() + START_LIMIT;
    while is_ours() {
        if Instant::now() > deadline {
            return Err(LocalError::Leftover { server: "Redis", dir: home.to_owned(), pid: pid.to_owned() });
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
