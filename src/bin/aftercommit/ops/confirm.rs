//! Asking before something is changed, and who it is that changes it.

use std::io::{BufRead, IsTerminal};

use anyhow::{Context, Result, bail};

use aftercommit::ops::audit::Operator;

use super::WrongUsage;
use crate::telemetry;

/// What a command that changes something wants to know of its operator.
#[derive(Debug, clap::Args)]
pub(crate) struct Consent {
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Why, for the audit.
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
}

impl Consent {
    /// Refuses to go on without a reason: for what every client sees.
    pub(super) fn needs_a_reason(&self) -> Result<()> {
        if self.reason.trim().is_empty() {
            bail!(WrongUsage("say why, for the audit: --reason '...'".into()));
        }
        Ok(())
    }

    /// Asks, unless that is not wanted.
    pub(super) fn to(&self, what: &str) -> Result<()> {
        if self.yes { Ok(()) } else { ask(what) }
    }

    /// Who it is, for the audit.
    pub(super) fn operator(&self) -> Operator {
        operator(&self.reason)
    }
}

/// Asks on the terminal; without one, `--yes` has to be given.
fn ask(what: &str) -> Result<()> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        bail!("this would {what}: give --yes to do it without being asked");
    }
    telemetry::say(format_args!("This will {what}. Go on? [y/N] "));
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer).context("cannot read the answer")?;
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        bail!("nothing was done");
    }
    Ok(())
}

/// Who runs this command, and why, for the audit.
pub(super) fn operator(reason: &str) -> Operator {
    let who = std::env::var("SUDO_USER")
        .or_else(|_| std::env::var("USER"))
        .unwrap_or_else(|_| "unknown".to_owned());
    Operator { who, reason: reason.to_owned() }
}
