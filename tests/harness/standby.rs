//! A streaming standby of a test's own Postgres, whose replay can be paused.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;

use sqlx::PgConnection;
use tokio::process::Command;

use super::supervisor::{Supervisor, at_exit};
use super::{Database, OwnPostgres, TestResult, free_port};

/// A physical copy of a server that follows it: the same roles, passwords and databases. It lies in the
/// server's own directory, and has to be dropped before the server is.
#[derive(Debug)]
pub(crate) struct Standby {
    url: String,
    port: u16,
    data: PathBuf,
    pg_ctl: PathBuf,
    /// Ends it if this process is killed.
    _supervisor: Supervisor,
}

impl Standby {
    /// Copies the stopped server's files, starts it again, and follows it. (Not every installation has
    /// `pg_basebackup`.) By a slot, the server keeps the WAL that the standby has not received.
    pub(crate) async fn of(primary: &OwnPostgres) -> TestResult<Self> {
        let data = primary.server.data_directory().with_file_name("standby");
        primary.control(&["stop"]).await;
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(primary.server.data_directory()).arg(&data);
        run(copy).await?;
        primary.start_again().await;
        let mut admin = Database::at(&primary.url()).connect().await;
        sqlx::raw_sql("select pg_create_physical_replication_slot('standby', true)")
            .execute(&mut admin)
            .await?;
        let mut settings = OpenOptions::new().append(true).open(data.join("postgresql.auto.conf"))?;
        writeln!(settings, "primary_conninfo = '{}'\nprimary_slot_name = 'standby'", primary.url())?;
        std::fs::write(data.join("standby.signal"), "")?;
        let port = free_port();
        let mut start = primary.program("pg_ctl");
        start.args(["start", "--wait", "--options", &options(primary, port).await?]);
        start.arg("--pgdata").arg(&data).arg("--log").arg(data.join("start.log"));
        run(start).await?;
        let process = std::fs::read_to_string(data.join("postmaster.pid"))?;
        let pid: u32 = process.lines().next().unwrap_or_default().trim().parse()?;
        let url = primary
            .url()
            .replace(&format!("127.0.0.1:{}", primary.server.port()), &format!("127.0.0.1:{port}"));
        let pg_ctl = data.with_file_name("bin").join("pg_ctl");
        Ok(Self { url, port, data, pg_ctl, _supervisor: at_exit(&format!("kill -s QUIT {pid}")) })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) async fn connect(&self) -> PgConnection {
        Database::at(&self.url).connect().await
    }

    /// From now on it receives changes and does not show them.
    pub(crate) async fn pause(&self) -> TestResult {
        let mut connection = self.connect().await;
        sqlx::raw_sql("select pg_wal_replay_pause()").execute(&mut connection).await?;
        let version: i32 = sqlx::query_scalar("select current_setting('server_version_num')::int")
            .fetch_one(&mut connection)
            .await?;
        // Before version 14, a server only tells whether it was asked to pause.
        let is_paused = match version {
            ..140_000 => "select pg_is_wal_replay_paused()",
            _ => "select pg_get_wal_replay_pause_state() = 'paused'",
        };
        // It pauses at the next record, or soon if none comes.
        while !sqlx::query_scalar::<_, bool>(is_paused).fetch_one(&mut connection).await? {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Makes it the primary. The old one must be dead.
    pub(crate) async fn promote(&self) -> TestResult {
        let mut promote = Command::new(&self.pg_ctl);
        promote.args(["promote", "--wait", "--pgdata"]).arg(&self.data);
        run(promote).await
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// It shows again what it receives.
    pub(crate) async fn resume(&self) -> TestResult {
        sqlx::raw_sql("select pg_wal_replay_resume()").execute(&mut self.connect().await).await?;
        Ok(())
    }
}

impl Drop for Standby {
    /// Waits for its end: its directory is removed with the server's.
    fn drop(&mut self) {
        let mut stop = std::process::Command::new(&self.pg_ctl);
        stop.args(["stop", "--silent", "--mode", "immediate", "--pgdata"]).arg(&self.data);
        // It may have ended already.
        let _status = stop.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

/// The settings of its command line. A standby refuses to start with less room than its server has.
async fn options(primary: &OwnPostgres, port: u16) -> TestResult<String> {
    let room: Vec<String> = sqlx::query_scalar(
        "select format('-c %s=%s', name, setting) from pg_settings
         where name in ('max_connections', 'max_prepared_transactions', 'max_locks_per_transaction',
                        'max_wal_senders', 'max_worker_processes')",
    )
    .fetch_all(&mut Database::at(&primary.url()).connect().await)
    .await?;
    let own = "-c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off -c shared_buffers=16MB";
    Ok(format!("-p {port} {own} {}", room.join(" ")))
}

async fn run(mut command: Command) -> TestResult {
    let ended = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().await;
    assert!(ended?.success(), "{command:?}");
    Ok(())
}
