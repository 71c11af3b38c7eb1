//! The supervisor: a small shell that outlives this process just long enough to end its server.
//!
//! The shell's standard input is a pipe whose other end only this process holds. However this process dies,
//! the kernel closes that end. The shell then reads end-of-file, stops the server and removes temporary
//! files. An orderly stop takes the same path, so it is always tested. No signal handler and no unsafe code
//! is needed.
//!
//! The shell runs in a process group of its own. Ctrl-C in a terminal reaches this process, which ends its
//! work in order while both servers still run. Must not know Postgres or Redis: their modules have the
//! scripts.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

use super::error::LocalError;

/// Runs before every script.
///
/// Standard output may be the data directory's lock file. It is kept as descriptor 3 and so stays locked
/// until the shell ends. Otherwise a successor could start a server that this shell would then stop.
const PRELUDE: &str = "trap '' INT TERM HUP QUIT\nexec 3>&1 >/dev/null 2>&1\n";

/// A shell that ends a server at end-of-file.
#[derive(Debug)]
pub(super) struct Supervisor {
    server: &'static str,
    shell: Child,
    stdin: Option<ChildStdin>,
}

impl Supervisor {
    /// Starts the script with its arguments. `lock` stays open as long as the script runs.
    pub(super) fn start(
        server: &'static str,
        script: &str,
        arguments: &[&OsStr],
        lock: Option<&File>,
    ) -> Result<Self, LocalError> {
        let stdout = match lock {
            Some(lock) => Stdio::from(lock.try_clone().map_err(LocalError::io("share", "the lock file"))?),
            None => Stdio::null(),
        };
        let mut shell = Command::new("/bin/sh")
            .arg("-c")
            .arg(format!("{PRELUDE}{script}"))
            .arg("aftercommit-supervisor")
            .args(arguments)
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(stdout)
            .stderr(Stdio::null())
            .spawn()
            .map_err(LocalError::io("run", "/bin/sh"))?;
        let stdin = shell.stdin.take();
        Ok(Self { server, shell, stdin })
    }

    /// The exit status of the script, if it has ended.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.shell.try_wait().ok().flatten()
    }

    /// Sends the script a line.
    pub(super) fn tell(&self, line: &str) -> Result<(), LocalError> {
        let Some(mut stdin) = self.stdin.as_ref() else { return Ok(()) };
        let shell = LocalError::io("tell the supervisor of", self.server);
        stdin.write_all(format!("{line}\n").as_bytes()).map_err(shell)
    }

    /// Tells the script by a line, instead of end-of-file, that there is no server to stop.
    pub(super) fn release(mut self) {
        if let Some(stdin) = self.stdin.as_mut() {
            // If this fails, the shell is gone already and needs no line.
            drop(stdin.write_all(b"\n"));
        }
    }

    /// Makes the script stop the server, and waits for it.
    pub(super) async fn end(mut self) -> Result<(), LocalError> {
        let server = self.server;
        let status = tokio::task::spawn_blocking(move || self.close())
            .await
            .map_err(|error| LocalError::Stop { server, status: error.to_string() })?
            .map_err(|error| LocalError::Stop { server, status: error.to_string() })?;
        if status.success() { Ok(()) } else { Err(LocalError::Stop { server, status: status.to_string() }) }
    }

    fn close(&mut self) -> std::io::Result<ExitStatus> {
        self.stdin = None;
        self.shell.wait()
    }
}

impl Drop for Supervisor {
    /// Waits, so that the server's port and directory are free after the drop.
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(
                server = self.server,
                %error,
                "the supervisor of a private server cannot be waited for"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_script_sees_the_end_of_file_when_the_supervisor_ends() {
        let dir = tempfile::tempdir().expect("a directory");
        let mark = dir.path().join("mark");
        let supervisor = Supervisor::start("test", "read -r _\n: > \"$1\"\n", &[mark.as_os_str()], None)
            .expect("a supervisor");
        assert!(!mark.exists());
        supervisor.end().await.expect("an orderly end");
        assert!(mark.exists());
    }

    #[tokio::test]
    async fn a_script_that_fails_is_an_error() {
        let supervisor = Supervisor::start("test", "read -r _\nexit 3\n", &[], None).expect("a supervisor");
        let error = supervisor.end().await.expect_err("exit 3");
        assert!(error.to_string().contains("exit status: 3"), "{error}");
    }

    #[test]
    fn the_lock_is_held_until_the_script_has_ended() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lock");
        let lock = File::create(&path).expect("a file");
        lock.lock().expect("the lock");
        let supervisor = Supervisor::start("test", "read -r _\n", &[], Some(&lock)).expect("a supervisor");
        drop(lock);
        assert!(File::open(&path).expect("a file").try_lock().is_err(), "the shell still holds it");
        drop(supervisor);
        // A child that another test is starting holds the lock a moment longer: it has a copy of the file
        // until its exec.
        let (told, freed) = std::sync::mpsc::channel();
        std::thread::spawn(move || told.send(File::open(&path).and_then(|file| file.lock())));
        freed.recv_timeout(Duration::from_secs(20)).expect("it comes free").expect("the lock");
    }
}
