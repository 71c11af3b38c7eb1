//! A reverse proxy in front of SSE servers: a real nginx or Caddy, run with the sample configuration that
//! `docs/` gives.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::http::http_builder;
use super::{Process, eventually};

/// Directories of programs that only root needs.
const PLACES: [&str; 3] = ["/usr/sbin", "/usr/local/bin", "/opt/homebrew/bin"];

/// Which proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Nginx,
    Caddy,
}

/// A running proxy with TLS on a loopback port. It writes only to its own directory.
#[derive(Debug)]
pub(crate) struct Front {
    child: Child,
    home: TempDir,
    port: u16,
}

impl Front {
    /// Starts a proxy in front of these servers. `changes` are made to the sample configuration beyond ports
    /// and paths.
    pub(crate) async fn start(kind: Kind, servers: [&Process; 2], changes: &[(&str, &str)]) -> Self {
        let home = TempDir::with_prefix("aftercommit-front-").expect("a directory");
        make_certificate(home.path()).await;
        let port = free_port();
        let addresses = servers.map(|server| server.address.as_str());
        let mut command = match kind {
            Kind::Nginx => nginx(home.path(), port, addresses, changes),
            Kind::Caddy => caddy(home.path(), port, addresses, changes),
        };
        let log = std::fs::File::create(home.path().join("output.log")).expect("a log");
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the same log"))
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{kind:?} ({error}): is it installed? scripts/install-servers"));
        let mut front = Self { child, home, port };
        eventually(&format!("{kind:?} listens"), async || {
            if let Some(status) = front.child.try_wait().expect("a status") {
                panic!("{kind:?} ended at once ({status}):\n{}", front.logs());
            }
            TcpStream::connect(("127.0.0.1", port)).await.ok()
        })
        .await;
        front
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.port)
    }

    /// Its log so far.
    pub(crate) fn logs(&self) -> String {
        let files = std::fs::read_dir(self.home.path()).expect("its directory").flatten();
        let logs = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "log"));
        logs.map(|file| std::fs::read_to_string(file.path()).unwrap_or_default()).collect()
    }
}

/// An HTTP client that accepts the proxy's self-signed certificate.
pub(crate) fn trusting() -> reqwest::Client {
    http_builder().danger_accept_invalid_certs(true).build().expect("a client")
}

fn nginx(home: &Path, port: u16, servers: [&str; 2], changes: &[(&str, &str)]) -> Command {
    let logs = format!("{}/", home.display());
    let listen = format!("listen 127.0.0.1:{port} ssl http2;");
    let site = sample("nginx.conf", servers, changes)
        .replacing("listen 443 ssl http2;", &listen)
        .replacing("/etc/ssl/aftercommit/", &logs)
        .replacing("/var/log/nginx/", &logs);
    std::fs::write(home.join("site.conf"), site.0).expect("a file");
    let home = home.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {home}/{kind};\n"))
        .concat();
    // Root's nginx would give its work away to a user who may not read this directory; others' ignores the
    // line. One process that does all: a worker would outlive a master that is killed at the end of a test.
    let main = format!(
        "user root;\ndaemon off;\nmaster_process off;\npid {home}/pid;\nerror_log {home}/error.log;\n\
         events {{}}\nhttp {{\naccess_log off;\n{temporary}include {home}/site.conf;\n}}\n"
    );
    let file = home.to_string() + "/main.conf";
    std::fs::write(&file, main).expect("a file");
    let mut command = Command::new(program("nginx"));
    command.args(["-p", &home.to_string(), "-e", &format!("{home}/error.log"), "-c", &file]);
    command
}

fn caddy(home: &Path, port: u16, servers: [&str; 2], changes: &[(&str, &str)]) -> Command {
    let path = format!("{}/", home.display());
    let site = sample("Caddyfile", servers, changes)
        .replacing("events.example {", &format!("https://localhost:{port} {{\n\tbind 127.0.0.1"))
        .replacing("/etc/ssl/aftercommit/", &path)
        .replacing("/run/caddy/", &path)
        .replacing("/var/log/caddy/", &path);
    let file = home.join("Caddyfile");
    std::fs::write(&file, site.0).expect("a file");
    let mut command = Command::new(program("caddy"));
    command.arg("run").arg("--adapter").arg("caddyfile").arg("--config").arg(file);
    for variable in ["HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"] {
        command.env(variable, home);
    }
    command
}

/// A configuration in the making.
struct Configuration(String);

impl Configuration {
    /// Replaces a text that must be there: a changed sample must fail its test.
    fn replacing(self, old: &str, new: &str) -> Self {
        assert!(self.0.contains(old), "the sample says {old:?}:\n{}", self.0);
        Self(self.0.replace(old, new))
    }
}

fn sample(name: &str, servers: [&str; 2], changes: &[(&str, &str)]) -> Configuration {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/proxies").join(name);
    let text = Configuration(std::fs::read_to_string(path).expect("the sample configuration"));
    let text = text.replacing("127.0.0.1:8081", servers[0]).replacing("127.0.0.1:9001", servers[1]);
    changes.iter().fold(text, |text, (old, new)| text.replacing(old, new))
}

async fn make_certificate(home: &Path) {
    let mut openssl = Command::new("openssl");
    openssl
        .args(["req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
        .args(["-keyout", "key.pem", "-out", "certificate.pem"])
        .current_dir(home);
    let made = openssl.output().await.expect("openssl is installed");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// A program of this machine, on `PATH` or where only root looks.
pub(super) fn program(name: &str) -> PathBuf {
    which::which(name)
        .ok()
        .or_else(|| PLACES.map(|place| Path::new(place).join(name)).into_iter().find(|p| p.exists()))
        .unwrap_or_else(|| panic!("{name} is not installed: run scripts/install-servers"))
}

pub(crate) fn free_port() -> u16 {
    aftercommit::local::free_port(None).expect("a port")
}
