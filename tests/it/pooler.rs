//! PgBouncer in transaction mode: an application may use it, the relay may not.

use std::process::{Child, Command, Stdio};

use aftercommit::outbox;
use sqlx::{Connection, PgConnection};

use crate::commands::{assert_fails, stdout};
use crate::harness::{Line, Process, TestResult, Wiring, cli, eventually, http_get, new_event};

/// A running PgBouncer. Ended when dropped.
struct PgBouncer {
    child: Child,
    port: u16,
    _directory: tempfile::TempDir,
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        // A child that has ended already needs no end.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl PgBouncer {
    /// Starts it in front of the line's Postgres. It ignores the start-up parameters in `ignored`.
    async fn start(line: &Line, ignored: &str) -> TestResult<Self> {
        let directory = tempfile::tempdir()?;
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr())?.port();
        let url = line.postgres().url();
        let (_, rest) = url.split_once("://").ok_or("no url")?;
        let (password, _) =
            rest.split_once(':').and_then(|(_, rest)| rest.split_once('@')).ok_or("no password")?;
        let configuration = format!(
            "[databases]\n* = host=127.0.0.1 port={} user=postgres password={password}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             pool_mode = transaction\n\
             auth_type = any\ndefault_pool_size = 3\nignore_startup_parameters = {ignored}\n",
            line.postgres().server.port()
        );
        let path = directory.path().join("pgbouncer.ini");
        std::fs::write(&path, configuration)?;
        let mut command = Command::new("pgbouncer");
        // It refuses to run as root, and reads its configuration before it changes its user.
        if std::fs::metadata("/proc/self").is_ok_and(|of| std::os::unix::fs::MetadataExt::uid(&of) == 0) {
            command.args(["-u", "nobody"]);
        }
        let child = command.arg(&path).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let bouncer = Self { child: child?, port, _directory: directory };
        eventually("PgBouncer answers", async || PgConnection::connect(&bouncer.url()).await.ok().map(drop))
            .await;
        Ok(bouncer)
    }

    fn url(&self) -> String {
        // Its sessions change between transactions, so nothing can be kept prepared in them.
        format!("postgres://postgres@127.0.0.1:{}/postgres?statement-cache-capacity=0", self.port)
    }

    async fn relay(&self, line: &Line) -> Process {
        let settings = line.system.settings().clone().set("DATABASE_URL", self.url());
        Process::start("relay", &settings).await
    }
}

#[tokio::test]
async fn an_application_may_append_through_a_pooler_while_the_relay_goes_straight() -> TestResult {
    let mut line = Line::with(Wiring { postgres: Some(Vec::new()), ..Wiring::default() }).await;
    let bouncer = PgBouncer::start(&line, "extra_float_digits").await?;
    let mut connection = PgConnection::connect(&bouncer.url()).await?;
    for n in 0..50 {
        let event = new_event(&line.topic, "T", &n);
        let mut tx = connection.begin().await?;
        outbox::append(&mut tx, &event).await?;
        if n % 5 == 0 {
            tx.rollback().await?;
        } else {
            tx.commit().await?;
            line.appended.push(event.event_id());
        }
    }
    line.wait_until_whole().await;
    Ok(())
}

#[tokio::test]
async fn a_relay_behind_a_pooler_says_so_and_delivers_nothing() -> TestResult {
    let line = Line::with(Wiring { postgres: Some(Vec::new()), ..Wiring::default() }).await;
    // One pooler refuses the relay's start-up parameters; the other ignores them and shares its sessions.
    for ignored in ["extra_float_digits", "extra_float_digits, options"] {
        let bouncer = PgBouncer::start(&line, ignored).await?;
        let relay = bouncer.relay(&line).await;
        line.relay.signal("STOP").await;
        relay.wait_for_log("through a pooler").await;
        line.relay.signal("CONT").await;
    }
    Ok(())
}

/// The address of applications leads to the pooler, and all processes go straight to Postgres.
#[tokio::test]
async fn with_a_direct_address_every_process_passes_by_the_pooler() -> TestResult {
    let line = Line::with(Wiring { postgres: Some(Vec::new()), ..Wiring::default() }).await;
    let bouncer = PgBouncer::start(&line, "extra_float_digits").await?;
    let settings = line.system.settings().clone();
    let settings = settings
        .set("AFTERCOMMIT_DATABASE_DIRECT_URL", line.postgres().url().as_str())
        .set("DATABASE_URL", bouncer.url());
    for role in ["api", "sse"] {
        let process = Process::start(role, &settings).await;
        eventually("it is ready", async || {
            http_get(process.url("/readyz")).await.ok().filter(|answer| answer.status() == 200)
        })
        .await;
        assert_eq!(process.terminate().await, 0);
    }
    let said = stdout(&cli(&settings, &["doctor", "--role", "relay"]).await);
    assert!(said.contains("url leads to the same log"), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_server_behind_a_pooler_alone_ends_with_the_setting_to_mend() -> TestResult {
    let line = Line::with(Wiring { postgres: Some(Vec::new()), ..Wiring::default() }).await;
    for ignored in ["extra_float_digits", "extra_float_digits, options"] {
        let bouncer = PgBouncer::start(&line, ignored).await?;
        let settings = line.system.settings().clone().set("DATABASE_URL", bouncer.url());
        for role in ["api", "sse"] {
            assert_fails(&settings, &[role], 1, "set [database] direct_url").await;
        }
    }
    Ok(())
}
