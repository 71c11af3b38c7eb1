//! A shell command that runs when this test process has ended, however it ended.

use std::process::{Child, Command, Stdio};

/// Held for as long as the test process lives.
#[derive(Debug)]
pub(super) struct Supervisor(#[expect(dead_code, reason = "held, not used: its pipe is what counts")] Child);

/// Runs `script` when this process ends: the kernel then closes the pipe that the shell reads from.
pub(super) fn at_exit(script: &str) -> Supervisor {
    let shell = Command::new("/bin/sh")
        .args(["-c", &format!("trap '' INT TERM HUP\nread -r _\n{script}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("/bin/sh");
    Supervisor(shell)
}
