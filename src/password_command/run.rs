//! One run of the program.

use std::process::Stdio;

use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::error::{PasswordError, RUN_LIMIT};
use crate::printable::printable;

/// The most bytes of its output. A token of a cloud has a few thousand.
const OUTPUT_BYTES: u64 = 64 * 1024;
/// The most bytes of the program's own words that the log repeats.
const WORDS_BYTES: usize = 300;

/// Runs the program, and returns its output.
///
/// # Errors
/// Returns a [`PasswordError`] if it cannot be run, takes too long or fails.
pub(super) async fn run(command: &str) -> Result<Vec<u8>, PasswordError> {
    let failed = |error: std::io::Error| PasswordError::Run(error.to_string());
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    // The shell's own children end with it, too.
    let mut group = Group(child.id());
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let ended = async {
        let (output, words, status) = tokio::join!(read(stdout), read(stderr), child.wait());
        Ok((output?, words?, status?))
    };
    let (output, words, status) =
        timeout(RUN_LIMIT, ended).await.map_err(|_elapsed| PasswordError::TooSlow)?.map_err(failed)?;
    group.0 = None;
    if !status.success() {
        let words = words.trim_ascii();
        let end = String::from_utf8_lossy(&words[words.len().saturating_sub(WORDS_BYTES)..]).into_owned();
        tracing::warn!(%status, words = %printable(&end), "password_command failed");
        return Err(PasswordError::Failed { status: status.to_string() });
    }
    Ok(output)
}

/// The processes of a run, which are killed when this is dropped: a program that hangs leaves nothing behind.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let pid = self.0.and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // A group that has ended is as good.
            let _killed = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }
}

/// Reads at most [`OUTPUT_BYTES`]. A program that prints more fails by a broken pipe.
async fn read(from: Option<impl tokio::io::AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        from.take(OUTPUT_BYTES).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test]
    async fn a_run_that_is_given_up_leaves_no_process_behind() {
        let pids = tempfile::NamedTempFile::new().expect("a file");
        let command = format!("sleep 600 & echo $! >{}; wait", pids.path().display());
        let given_up = timeout(Duration::from_secs(1), run(&command)).await;
        assert!(given_up.is_err(), "it hangs");
        let pid = std::fs::read_to_string(pids.path()).expect("a pid");
        let stat = format!("/proc/{}/stat", pid.trim());
        let is_alive = || std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
        let begun = Instant::now();
        while is_alive() && begun.elapsed() < Duration::from_secs(5) {
            sleep(Duration::from_millis(10)).await;
        }
        assert!(!is_alive(), "the shell's child lives on");
    }
}
