//! The data directory: its lock, files for secrets that only their owner may read, and free ports.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::error::LocalError;
use super::programs;

/// The longest wait for the supervisors of a killed process to end its servers.
const SUCCESSION: Duration = Duration::from_secs(40);

/// A data directory with its lock held by this process.
#[derive(Debug)]
pub(super) struct DataDir {
    path: PathBuf,
    lock: File,
}

impl DataDir {
    /// Makes the directory if needed and takes its lock.
    ///
    /// If the holder of the lock is alive, this fails at once. If the holder is dead, its supervisors hold
    /// the lock until they have ended its servers, and this waits for them.
    pub(super) async fn open(path: &Path) -> Result<Self, LocalError> {
        make_dir(path, 0o711)?;
        let path = path.canonicalize().map_err(LocalError::io("find", path))?;
        let lock_path = path.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(LocalError::io("open", &lock_path))?;
        let deadline = Instant::now() + SUCCESSION;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(source)) => return Err(LocalError::io("lock", lock_path)(source)),
                Err(TryLockError::WouldBlock) => {}
            }
            let mut holder = String::new();
            lock.rewind()
                .and_then(|()| lock.read_to_string(&mut holder))
                .map_err(LocalError::io("read", &lock_path))?;
            if programs::command_line(holder.trim()).is_some() || Instant::now() > deadline {
                return Err(LocalError::InUse(path));
            }
            // The only signal for a lock that becomes free would be a blocked thread.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(LocalError::io("write", &lock_path))?;
        Ok(Self { path, lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn lock(&self) -> &File {
        &self.lock
    }
}

/// Makes a directory with these permissions, and its parents.
pub(super) fn make_dir(path: &Path, mode: u32) -> Result<(), LocalError> {
    std::fs::create_dir_all(path)
        .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)))
        .map_err(LocalError::io("make", path))
}

/// Writes a file that only its owner may read.
///
/// # Errors
/// [`LocalError::Io`] if the file cannot be written.
pub fn write_private(path: &Path, text: &str) -> Result<(), LocalError> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(LocalError::io("write", path))
}

/// A secret of 122 random bits from the operating system, as 32 characters that need no escaping in a URL.
pub fn random_secret() -> String {
    Uuid::new_v4().simple().to_string()
}

/// The secret in this file. Creates the file with a random secret if it is missing or empty.
///
/// # Errors
/// [`LocalError::Io`] if the file cannot be read or written.
pub fn password(path: &Path) -> Result<String, LocalError> {
    match std::fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(LocalError::io("read", path)(error))
        }
        _ => {
            let password = random_secret();
            write_private(path, &password)?;
            Ok(password)
        }
    }
}

/// The last lines of a log, for an error message.
pub(super) fn last_lines(path: &Path) -> String {
    const SHOWN: usize = 12;
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(SHOWN)..].join("\n")
        }
        Err(error) => format!("({}: {error})", path.display()),
    }
}

/// Ports that systems assign neither to outgoing connections nor to programs that ask for any port. So no
/// program takes one by chance before a server listens there, or while it restarts. The same holds for the
/// ports 10,000 above them, where a Redis that is part of a cluster listens as well.
const QUIET_PORTS: Range<u16> = 10_000..20_000;

/// The ports that this process has drawn: the server that one was drawn for may not have bound it yet.
static DRAWN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// The preferred port of 127.0.0.1 if it is free, otherwise another free one, which this process has not drawn
/// before.
///
/// # Errors
/// The operating system's error if no port is free.
pub fn free_port(preferred: Option<u16>) -> std::io::Result<u16> {
    let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).and_then(|socket| socket.local_addr());
    let quiet = || QUIET_PORTS.start + Uuid::new_v4().as_fields().1 % (QUIET_PORTS.end - QUIET_PORTS.start);
    let is_new = |port: &u16| DRAWN.lock().unwrap_or_else(PoisonError::into_inner).insert(*port);
    let drawn = std::iter::repeat_with(quiet).take(100).filter(is_new);
    let found = preferred.into_iter().chain(drawn).find_map(|port| bind(port).ok());
    Ok(found.map_or_else(|| bind(0), Ok)?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_directory_has_one_user_at_a_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = DataDir::open(dir.path()).await.expect("free");
        let error = DataDir::open(dir.path()).await.expect_err("held");
        assert!(matches!(error, LocalError::InUse(_)), "{error}");
        assert!(error.to_string().starts_with("another aftercommit dev uses "), "{error}");
        // Closing the file is not enough: a child that another test is starting has a copy of it until its
        // exec.
        first.lock.unlock().expect("given back");
        drop(first);
        DataDir::open(dir.path()).await.expect("free again");
    }

    #[test]
    fn a_password_is_kept_and_private() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("password");
        let first = password(&path).expect("a password");
        assert_eq!(first.len(), 32);
        assert_eq!(password(&path).expect("a password"), first);
        let mode = std::fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_port_in_use_is_not_handed_out() {
        let held = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let taken = held.local_addr().expect("an address").port();
        assert_ne!(free_port(Some(taken)).expect("a port"), taken);
        // Closing the file is not enough: a child that another test is starting has a copy of it until its
        // exec.
        socket2::SockRef::from(&held).shutdown(std::net::Shutdown::Both).expect("it listens no more");
        assert_eq!(free_port(Some(taken)).expect("a port"), taken);
    }
}
