//! Asks for confirmation before a change, and identifies the operator for the audit log.

use std::io::{BufRead, IsTerminal};

use anyhow::{Context, Result, bail};

use aftercommit::ops::audit::Operator;

use super::WrongUsage;
use crate::telemetry;

/// Where the operator's name comes from, in this order. `sudo` and `su` keep the first.
const NAMES: [&str; 3] = ["SUDO_USER", "USER", "LOGNAME"];

/// Confirmation and the entry of the audit log, for commands that change something.
#[derive(Debug, clap::Args)]
pub(crate) struct Consent {
    /// Do not ask for confirmation.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    signature: Signature,
}

/// The entry of the audit log: who acts, and why.
#[derive(Debug, clap::Args)]
pub(crate) struct Signature {
    /// The reason, for the audit log.
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
    /// Your name, for the audit log, in place of $USER.
    #[arg(long, value_name = "NAME")]
    who: Option<String>,
}

impl Signature {
    /// Requires a reason. For changes that every client sees.
    pub(super) fn needs_a_reason(&self) -> Result<()> {
        if self.reason.trim().is_empty() {
            bail!(WrongUsage("give a reason for the audit log: --reason '...'".into()));
        }
        Ok(())
    }

    /// The operator, for the audit log. Asks for a name if none is known.
    pub(super) fn operator(&self) -> Result<Operator> {
        let who = match named(self.who.as_deref(), |name| std::env::var(name).ok()) {
            Some(who) => who,
            None => ask_who()?,
        };
        Ok(Operator { who, reason: self.reason.clone() })
    }
}

/// The name that was given, or that the environment has. An empty name is none.
fn named(given: Option<&str>, variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    let of_environment = NAMES.into_iter().filter_map(variable);
    let names = given.map(str::to_owned).into_iter().chain(of_environment);
    names.map(|name| name.trim().to_owned()).find(|name| !name.is_empty())
}

/// Asks on the terminal who acts. Without a terminal, `--who` is required.
fn ask_who() -> Result<String> {
    let stdin = std::io::stdin();
    let nobody = || WrongUsage("say who you are, for the audit log: --who NAME ($USER is empty)".into());
    if !stdin.is_terminal() {
        bail!(nobody());
    }
    telemetry::say(format_args!("Your name, for the audit log: "));
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer).context("cannot read the answer")?;
    match answer.trim() {
        "" => bail!(nobody()),
        who => Ok(who.to_owned()),
    }
}

impl Consent {
    /// Requires a reason. For changes that every client sees.
    pub(super) fn needs_a_reason(&self) -> Result<()> {
        self.signature.needs_a_reason()
    }

    /// Asks for confirmation of `what`, unless `--yes` was given.
    pub(super) fn to(&self, what: &str) -> Result<()> {
        if self.yes { Ok(()) } else { ask(what) }
    }

    /// The operator, for the audit log. Ask for it before the change begins: a person may have to answer.
    pub(super) fn operator(&self) -> Result<Operator> {
        self.signature.operator()
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

#[cfg(test)]
mod tests {
    use super::named;

    #[test]
    fn the_operator_is_named_by_the_flag_then_by_the_environment_and_never_by_an_empty_name() {
        let of = |given, variables: &[(&str, &str)]| {
            named(given, |name| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            })
        };
        let ana = Some("ana".to_owned());
        assert_eq!(of(Some("ana"), &[("USER", "root")]), ana);
        assert_eq!(of(None, &[("USER", "root"), ("SUDO_USER", "ana")]), ana);
        assert_eq!(of(Some(" "), &[("SUDO_USER", ""), ("USER", ""), ("LOGNAME", "ana")]), ana);
        assert_eq!(of(None, &[("USER", " ")]), None);
    }
}
