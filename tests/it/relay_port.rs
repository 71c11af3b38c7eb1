//! The relay's HTTP port: many connections, or clients that read no answers, do not stop deliveries or the
//! shutdown.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::commands::{commit, json};
use crate::harness::{Process, System, TestResult, eventually, items_of};
use crate::operators::wait_until_green;

/// The relay's limit of connections, as in `roles/relay.rs`.
const CONNECTIONS: usize = 256;

/// An upper limit of the relay's other files, and of displaced connections that are not closed yet: as many
/// as it accepts before it lets other tasks run (Tokio's budget).
const OTHER_FILES: u64 = 60 + 128;

const METRICS: &[u8] = b"GET /metrics HTTP/1.1\r\nhost: relay\r\n\r\n";

async fn crowd(relay: &Process, size: usize) -> Vec<TcpStream> {
    let mut crowd = Vec::new();
    for _ in 0..size {
        crowd.push(TcpStream::connect(&relay.address).await.expect("a connection"));
    }
    crowd
}

/// The relay's number of open files, by its own metric. The request displaces one connection of the crowd.
async fn open_files(relay: &Process) -> u64 {
    let mut stream = TcpStream::connect(&relay.address).await.expect("a connection");
    stream.write_all(METRICS).await.expect("a request");
    let mut answer = String::new();
    let mut buffer = [0; 4096];
    loop {
        let line = answer.lines().find_map(|line| line.strip_prefix("process_open_fds "));
        if let (Some(files), true) = (line, answer.ends_with("# EOF\n")) {
            return files.parse::<f64>().expect("a number") as u64;
        }
        let read = stream.read(&mut buffer).await.expect("an answer");
        assert!(read > 0, "the relay hung up: {answer}");
        answer += std::str::from_utf8(&buffer[..read]).expect("a text");
    }
}

#[tokio::test]
async fn a_crowd_at_the_port_takes_the_relay_no_more_than_its_limit_and_events_flow_on() {
    let system = System::new().await;
    let relay = system.start("relay").await;
    wait_until_green(&relay).await;
    let crowd = crowd(&relay, CONNECTIONS + 200).await;
    eventually("it has taken as many as it may", async || {
        (open_files(&relay).await >= CONNECTIONS as u64).then_some(())
    })
    .await;
    for _ in 0..50 {
        let files = open_files(&relay).await;
        assert!(files < CONNECTIONS as u64 + OTHER_FILES, "{files} open files");
    }
    commit(&system, &system.redis.topic("crowded"), "A", 5).await;
    eventually("events flow", async || {
        let delivered = json(&system, &["events", "list", "--state", "delivered"]).await;
        (items_of(&delivered).len() == 5).then_some(())
    })
    .await;
    drop(crowd);
    wait_until_green(&relay).await;
}

#[tokio::test]
async fn a_peer_that_takes_no_answers_does_not_make_the_end_of_a_relay_look_like_a_failure() -> TestResult {
    let system = System::new().await;
    let relay = system.start("relay").await;
    wait_until_green(&relay).await;
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    let address = relay.address.parse()?;
    let peer = socket.connect(address).await?;
    // Asks on and on until the relay, whose answers nobody takes, has read no further question for a while.
    loop {
        let Ok(writable) = tokio::time::timeout(Duration::from_secs(1), peer.writable()).await else { break };
        writable?;
        match peer.try_write(&METRICS.repeat(1000)) {
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => {
                panic!("the relay hung up: {error}")
            }
            _written_or_full => {}
        }
    }
    assert_eq!(relay.terminate().await, 0, "within the grace time");
    drop(peer);
    Ok(())
}
