//! `aftercommit completions|man`: files that packages install beside the binary, generated from the command
//! line's definition.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap_complete::Shell;

use crate::ops::output;

/// The shell to generate completions for.
#[derive(Debug, clap::Args)]
pub(crate) struct Completions {
    /// The shell.
    shell: Shell,
}

/// The directory to write man pages into.
#[derive(Debug, clap::Args)]
pub(crate) struct Man {
    /// A directory that exists.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

/// Prints the completions for a shell.
pub(crate) fn completions(command: &mut clap::Command, args: &Completions) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, command, "aftercommit", &mut text);
    output::text(&String::from_utf8(text).context("the completions are not UTF-8")?);
    Ok(())
}

/// Writes a man page for each command: `aftercommit.1`, `aftercommit-status.1` and so on.
pub(crate) fn man(command: clap::Command, args: &Man) -> Result<()> {
    clap_mangen::generate_to(command, &args.dir)
        .with_context(|| format!("cannot write man pages into {}", args.dir.display()))
}
