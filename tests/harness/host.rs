//! A host of its own on this machine: a network namespace, with a cable to it that can be pulled.

use std::process::{Output, Stdio};

use tokio::process::{Child, Command};

use super::front::program;
use super::supervisor::{Supervisor, at_exit};

/// Set on machines without network namespaces, to skip the tests that need them.
const LEFT_OUT: &str = "TEST_WITHOUT_NAMESPACES";

/// A network namespace with one end of a veth pair; this machine has the other end.
#[derive(Debug)]
pub(crate) struct Host {
    name: String,
    /// This machine's address on the cable.
    pub(crate) ours: String,
    // Removes the namespace, and with it the cable.
    _supervisor: Supervisor,
}

impl Host {
    /// Makes a host and connects it.
    ///
    /// `None` if this machine cannot, and the environment allows to skip. Without that permission it panics:
    /// a test that did not run must not look like one that passed.
    pub(crate) async fn new() -> Option<Self> {
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let (name, cable) = (format!("ac{}", &unique[..8]), format!("ac{}", &unique[8..16]));
        let made = ip(&["netns", "add", &name]).await;
        if !made.status.success() {
            let reason = String::from_utf8_lossy(&made.stderr).trim().to_owned();
            assert!(
                std::env::var_os(LEFT_OUT).is_some(),
                "cannot make a network namespace ({reason}): run as root on Linux, or set {LEFT_OUT}=1"
            );
            eprintln!("NOT TESTED: peers that vanish ({LEFT_OUT} is set; {reason})");
            return None;
        }
        let supervisor = at_exit(&format!("ip link del {cable}\nip netns del {name}"));
        // Two addresses of 198.18.0.0/15, which is reserved for benchmarks and never routed.
        let subnet = u32::from_str_radix(&unique[16..20], 16).expect("hexadecimal digits");
        let address = |n| format!("198.19.{}.{}", subnet >> 8, (subnet & 0xfc) + n);
        let (ours, theirs) = (address(1), address(2));
        let steps: [&[&str]; 5] = [
            &["link", "add", &cable, "type", "veth", "peer", "name", "cable", "netns", &name],
            &["addr", "add", &format!("{ours}/30"), "dev", &cable],
            &["link", "set", &cable, "up"],
            &["-n", &name, "addr", "add", &format!("{theirs}/30"), "dev", "cable"],
            &["-n", &name, "link", "set", "cable", "up"],
        ];
        for step in steps {
            let output = ip(step).await;
            assert!(output.status.success(), "ip {step:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Some(Self { name, ours, _supervisor: supervisor })
    }

    /// Runs a program on this host; its output can be read.
    pub(crate) fn run(&self, arguments: &[&str]) -> Child {
        let mut command = Command::new(program("ip"));
        command.args(["netns", "exec", &self.name]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.kill_on_drop(true).spawn().expect("a program on the other host")
    }

    /// Drops all packets from now on, silently.
    pub(crate) async fn pull_the_cable(&self) {
        let pulled = ip(&["-n", &self.name, "link", "set", "cable", "down"]).await;
        assert!(pulled.status.success(), "{}", String::from_utf8_lossy(&pulled.stderr));
    }
}

async fn ip(arguments: &[&str]) -> Output {
    Command::new(program("ip")).args(arguments).stdin(Stdio::null()).output().await.expect("ip")
}
