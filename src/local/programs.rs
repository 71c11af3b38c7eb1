//! Programs of this machine: installed servers, and the command line of a process.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::LocalError;

/// The oldest Postgres that the schema works on.
const POSTGRES_MAJOR_MIN: u32 = 13;

/// An installed Postgres.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct InstalledPostgres {
    pub(super) major: u32,
    /// The directory of `initdb`, `pg_ctl` and `postgres`.
    pub(super) bin: PathBuf,
}

/// The installed Postgres servers, newest first. Of one version, the one on PATH comes first.
pub(super) fn installed_postgres() -> Vec<InstalledPostgres> {
    let mut bins: Vec<PathBuf> = which::which_all("pg_ctl")
        .into_iter()
        .flatten()
        .filter_map(|path| Some(path.canonicalize().ok()?.parent()?.to_owned()))
        .collect();
    // Debian does not put the server's programs on PATH. Homebrew puts only those of the newest version
    // there.
    for parent in ["/usr/lib/postgresql", "/opt/homebrew/opt", "/usr/local/opt"] {
        for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
            if parent.ends_with("postgresql") || entry.file_name().to_string_lossy().starts_with("postgresql")
            {
                bins.push(entry.path().join("bin"));
            }
        }
    }
    let mut found: Vec<InstalledPostgres> = Vec::new();
    for bin in bins {
        if let Some(major) = postgres_major(&bin)
            && major >= POSTGRES_MAJOR_MIN
            && !found.iter().any(|known| known.bin == bin)
        {
            found.push(InstalledPostgres { major, bin });
        }
    }
    found.sort_by_key(|installed| std::cmp::Reverse(installed.major));
    found
}

/// The major version of the server in this directory, or `None` if its programs are incomplete.
pub(super) fn postgres_major(bin: &Path) -> Option<u32> {
    if !["initdb", "pg_ctl", "postgres"].iter().all(|program| bin.join(program).is_file()) {
        return None;
    }
    let output = Command::new(bin.join("postgres")).arg("--version").output().ok()?;
    major_of(&String::from_utf8_lossy(&output.stdout))
}

/// `postgres (PostgreSQL) 15.14 (Debian …)` is 15, `… 18beta1` is 18.
fn major_of(version: &str) -> Option<u32> {
    let number = version.split("(PostgreSQL) ").nth(1)?;
    let digits = number.find(|c: char| !c.is_ascii_digit()).map_or(number, |end| &number[..end]);
    digits.parse().ok()
}

/// The path of valkey-server, or else of redis-server.
pub(super) fn redis() -> Result<PathBuf, LocalError> {
    which::which("valkey-server").or_else(|_| which::which("redis-server")).map_err(|_| LocalError::Missing {
        program: "valkey-server or redis-server",
        debian: "apt-get install redis-server",
        homebrew: "brew install redis",
    })
}

/// The command line of a process, or `None` if there is no such process.
pub(super) fn command_line(pid: &str) -> Option<String> {
    let pid: u32 = pid.parse().ok()?;
    if Path::new("/proc/self/cmdline").exists() {
        let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        // A zombie has an empty command line and holds no files.
        return (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).replace('\0', " "));
    }
    let output = Command::new("ps").args(["-ww", "-o", "args=", "-p", &pid.to_string()]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Asks a process to end. The caller has checked which process it is.
pub(super) fn terminate(pid: &str) -> Result<(), LocalError> {
    // The shell's own `kill`, because a program of that name is not installed everywhere.
    let output = Command::new("/bin/sh")
        .args(["-c", "kill -TERM \"$1\"", "sh", pid])
        .output()
        .map_err(LocalError::io("run", "/bin/sh"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(LocalError::Command {
        command: format!("kill -TERM {pid}"),
        output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_postgres_writes_them() {
        assert_eq!(major_of("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n"), Some(15));
        assert_eq!(major_of("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(major_of("postgres (PostgreSQL) 17\n"), Some(17));
        assert_eq!(major_of("postgres"), None);
    }

    #[test]
    fn a_process_is_known_by_its_command_line() {
        let own = command_line(&std::process::id().to_string()).expect("this process");
        assert!(!own.is_empty());
        assert_eq!(command_line("4194999"), None);
        assert_eq!(command_line(""), None);
        assert_eq!(command_line("-1"), None);
    }
}
