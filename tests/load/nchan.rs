//! nchan beside: pub/sub inside nginx, from Debian's package `libnginx-mod-nchan`. Its events come from an
//! HTTP request each, with no database and no Redis behind them.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::arguments::Scenario;
use crate::beside::{self, Server};
use crate::engine::EVENT;
use crate::harness::free_port;
use crate::report::Report;

const NGINX: &str = "/usr/sbin/nginx";
const MODULE: &str = "/usr/lib/nginx/modules/ngx_nchan_module.so";
/// The time limit for nginx to listen.
const STARTED_WITHIN: Duration = Duration::from_secs(10);

/// Runs the fan-out. Returns `None` where nginx with nchan is not installed.
pub(crate) async fn run(scenario: Scenario) -> io::Result<Option<Report>> {
    if ![NGINX, MODULE].iter().all(|file| Path::new(file).exists()) {
        return Ok(None);
    }
    beside::run(scenario, Nchan::start()?).await.map(Some)
}

/// An nginx with one worker, which ends with this.
struct Nchan {
    child: Child,
    address: SocketAddr,
    worker: u32,
    publisher: TcpStream,
    _directory: tempfile::TempDir,
}

impl Nchan {
    fn start() -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        std::fs::write(directory.path().join("nginx.conf"), configuration(address))?;
        let mut command = Command::new(NGINX);
        command.arg("-p").arg(directory.path()).args(["-c", "nginx.conf", "-e", "stderr"]);
        let child = command.stdin(Stdio::null()).spawn()?;
        let begun = Instant::now();
        let (publisher, worker) = loop {
            if let (Ok(publisher), Some(worker)) = (TcpStream::connect(address), worker_of(child.id())) {
                break (publisher, worker);
            }
            if begun.elapsed() > STARTED_WITHIN {
                return Err(io::Error::other("nginx with nchan does not listen"));
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        publisher.set_nodelay(true)?;
        Ok(Self { child, address, worker, publisher, _directory: directory })
    }
}

impl Server for Nchan {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn path(&self) -> &'static str {
        "/stream"
    }

    fn pid(&self) -> u32 {
        self.worker
    }

    fn places_by_events(&self) -> bool {
        true
    }

    fn publish(&mut self, payload: &str) -> io::Result<()> {
        let request = format!(
            "POST /publish HTTP/1.1\r\nHost: load\r\nX-EventSource-Event: {EVENT}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{payload}",
            payload.len()
        );
        self.publisher.write_all(request.as_bytes())?;
        read_answer(&mut self.publisher)
    }
}

impl Drop for Nchan {
    fn drop(&mut self) {
        // The master ends its worker.
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ended = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _status = self.child.wait();
    }
}

fn configuration(address: SocketAddr) -> String {
    format!(
        "load_module {MODULE};
daemon off;
pid nginx.pid;
worker_processes 1;
worker_rlimit_nofile 30000;
events {{ worker_connections 20000; }}
http {{
  access_log off;
  keepalive_requests 10000000;
  client_body_temp_path body;
  server {{
    listen {address};
    location = /stream {{
      nchan_subscriber eventsource;
      nchan_channel_id load;
      nchan_subscriber_first_message oldest;
    }}
    location = /publish {{
      nchan_publisher http;
      nchan_channel_id load;
      nchan_message_buffer_length 10000;
      nchan_message_timeout 10m;
    }}
  }}
}}
"
    )
}

/// The worker of a master.
fn worker_of(master: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{master}/task/{master}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// Reads one answer to its end.
fn read_answer(from: &mut TcpStream) -> io::Result<()> {
    let mut answer = Vec::new();
    loop {
        let mut bytes = [0; 4096];
        match from.read(&mut bytes)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => answer.extend_from_slice(&bytes[..read]),
        }
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        if !head.starts_with("HTTP/1.1 20") {
            return Err(io::Error::other(format!("nchan takes no event: {head}")));
        }
        let lower = head.to_ascii_lowercase();
        let length =
            lower.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
        if length.is_some_and(|length: usize| body.len() >= length) {
            return Ok(());
        }
    }
}
