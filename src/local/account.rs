//! The account that runs Postgres. Postgres refuses root, so as root it runs under another account.
//!
//! The crate that drives Postgres has no hook for that. It runs `bin/initdb` and `bin/pg_ctl` of an
//! installation directory, so it is given a directory whose programs are small scripts that change the
//! account and run the real ones.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::directory::make_dir;
use super::error::LocalError;

/// An account other than root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    uid: u32,
    gid: u32,
}

impl Account {
    /// The account under which Postgres must run, or `None` if it can run under ours.
    pub(super) fn for_postgres() -> Result<Option<Self>, LocalError> {
        if id(&["-u"])? != 0 {
            return Ok(None);
        }
        for name in ["postgres", "nobody"] {
            if let (Ok(uid), Ok(gid)) = (id(&["-u", name]), id(&["-g", name])) {
                return Ok(Some(Self { uid, gid }));
            }
        }
        Err(LocalError::Missing {
            program: "the account postgres (Postgres refuses to run as root)",
            debian: "apt-get install postgresql",
            homebrew: "brew install postgresql@17",
        })
    }

    /// Makes the account the owner of a file or directory.
    pub(super) fn own(&self, path: &Path) -> Result<(), LocalError> {
        std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid))
            .map_err(LocalError::io("change the owner of", path))
    }

    /// Whether the account can reach this directory through all directories above it.
    pub(super) fn reaches(&self, path: &Path) -> Result<bool, LocalError> {
        let status = Command::new("setpriv")
            .args(self.setpriv())
            .args(["test", "-x"])
            .arg(path)
            .current_dir("/")
            .status()
            .map_err(LocalError::io("run", "setpriv (package util-linux)"))?;
        Ok(status.success())
    }

    fn setpriv(&self) -> [String; 4] {
        [
            format!("--reuid={}", self.uid),
            format!("--regid={}", self.gid),
            "--init-groups".to_owned(),
            "--".to_owned(),
        ]
    }
}

fn id(arguments: &[&str]) -> Result<u32, LocalError> {
    let output = Command::new("id").args(arguments).output().map_err(LocalError::io("run", "id"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().map_err(|_| LocalError::Command {
        command: format!("id {}", arguments.join(" ")),
        output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Makes the `bin` directory whose programs run those of `real` under the account, from inside `work`.
///
/// The locale is C. A locale that is set but not installed is a common reason for initdb to fail, and the
/// order of text must not depend on the machine.
pub(super) fn write_programs(
    bin: &Path,
    real: &Path,
    work: &Path,
    account: Option<&Account>,
) -> Result<(), LocalError> {
    make_dir(bin, 0o755)?;
    let change = account.map_or(String::new(), |account| format!("setpriv {} ", account.setpriv().join(" ")));
    for program in ["initdb", "pg_ctl", "postgres", "psql", "pg_isready", "pg_dump", "pg_basebackup"] {
        let target = real.join(program);
        if !target.exists() {
            continue;
        }
        let path = bin.join(program);
        let text = format!(
            "#!/bin/sh\nexport LC_ALL=C\ncd {} || exit 1\nexec {change}{} \"$@\"\n",
            quote(work),
            quote(&target)
        );
        // Written beside and renamed, because an old supervisor may be running the script that is replaced.
        let fresh = bin.join(format!(".{program}.new"));
        std::fs::write(&fresh, text)
            .and_then(|()| std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o755)))
            .and_then(|()| std::fs::rename(&fresh, &path))
            .map_err(LocalError::io("write", path))?;
    }
    Ok(())
}

/// A path, quoted for a shell.
fn quote(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}

/// The path of a directory as one directory name: readable and unique.
pub(super) fn flat_name(path: &Path) -> PathBuf {
    let text = path.to_string_lossy();
    PathBuf::from(text.trim_start_matches('/').replace('-', "--").replace('/', "-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_a_quote_stays_one_word() {
        assert_eq!(quote(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }

    #[test]
    fn different_paths_have_different_flat_names() {
        assert_eq!(flat_name(Path::new("/root/app/.x/dev")), Path::new("root-app-.x-dev"));
        assert_ne!(flat_name(Path::new("/a/b-c")), flat_name(Path::new("/a/b/c")));
    }

    #[test]
    fn the_programs_run_the_real_ones_with_their_arguments() {
        let dir = tempfile::tempdir().expect("a directory");
        let real = dir.path().join("real one");
        std::fs::create_dir(&real).expect("a directory");
        std::fs::write(real.join("psql"), "#!/bin/sh\necho \"$LC_ALL $PWD $1\"\n").expect("a script");
        std::fs::set_permissions(real.join("psql"), std::fs::Permissions::from_mode(0o755)).expect("a mode");
        let bin = dir.path().join("bin");
        write_programs(&bin, &real, dir.path(), None).expect("programs");
        let output = Command::new(bin.join("psql")).arg("a b").output().expect("it runs");
        let expected = format!("C {} a b\n", dir.path().display());
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
        assert!(!bin.join("initdb").exists(), "only what is there is wrapped");
    }
}
