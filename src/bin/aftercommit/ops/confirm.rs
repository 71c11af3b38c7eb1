//! Asks for confirmation before a change, and identifies the operator for the audit log.

use std::io::{BufRead, IsTerminal};

use anyhow::{Context, Result, bail};

use aftercommit::ops::audit::Operator;

use super::WrongUsage;
use crate::telemetry;

/// Confirmation and reason, for commands that change something.
#[derive(Debug, clap::Args)]
pub(crate) struct Consent {
    /// Do not ask for confirmation.
    #[arg(long)]
    yes: bool,
    /// The reason, for the audit log.
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
}

impl Consent {
    /// Requires a reason. For changes that every client sees.
    pub(super) fn needs_a_reason(&self) -> Result<()> {
        if self.reason.trim().is_empty() {
            bail!(WrongUsage("give a reason for the audit log: --reason '...'".into()));
        }
        Ok(())
    }

    /// Asks for confirmation of `what`, unless `--yes` was given.
    pub(super) fn to(&self, what: &str) -> Result<()> {
        if self.yes { Ok(()) } else { ask(what) }
    }

    /// The operator, for the audit log.
    pub(super) fn operator(&self) -> Operator {
        operator(&self.reason)
    }
}

/// Asks on the terminal. Without a terminal, `--yes` is required.
fn ask(what: &str) -> Result<()> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        bail!("this would {what}: use --yes to confirm");
    }
    telemetry::say(format_args!("This will {what}. Continue? [y/N] "));
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer).context("cannot read the answer")?;
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        bail!("cancelled: nothing was changed");
    }
    Ok(())
}

/// The user who runs this command, and the reason, for the audit log.
pub(super) fn operator(reason: &str) -> Operator {
    let who = std::env::var("SUDO_USER")
        .or_else(|_| std::env::var("USER"))
        .unwrap_or_else(|_| "unknown".to_owned());
    Operator { who, reason: reason.to_owned() }
}
