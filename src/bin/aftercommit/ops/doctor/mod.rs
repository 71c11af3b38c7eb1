//! `aftercommit doctor`: checks for common mistakes, with the evidence and the fix.

mod log;
mod machine;
mod postgres;
mod redis;
mod report;
mod rights;

use std::borrow::Cow;

use anyhow::{Result, bail};
use serde::Serialize;

use aftercommit::ops::rights::Role;
use aftercommit::pluralize::pluralize;

use super::output::{self, Output};
use crate::config::Config;

/// The checks to make, and the output options.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  aftercommit doctor
  aftercommit doctor --role writer
  aftercommit doctor --output json | jq '.[] | select(.verdict == \"wrong\")'

Exits with 1 if something is wrong. Changes nothing, except that it adds a
stream of one entry to Redis and removes it again.")]
pub(crate) struct Args {
    /// Make only this role's checks; by default all, as relay and operator.
    #[arg(long, value_enum, value_name = "ROLE")]
    role: Option<RoleArg>,
    /// Report transactions that are open for longer than this, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    open_for: u32,
    /// How to print the data.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// A role on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum RoleArg {
    Relay,
    Sse,
    Writer,
    Operator,
    Api,
    Rebase,
}

/// The checks to make: those that matter to one role, or all.
#[derive(Debug, Clone, Copy)]
struct Scope(Option<RoleArg>);

impl Scope {
    /// The roles whose rights in Postgres are checked.
    fn roles(self) -> &'static [Role] {
        match self.0 {
            None => &[Role::Relay, Role::Operator],
            Some(RoleArg::Relay) => &[Role::Relay],
            Some(RoleArg::Sse) => &[Role::Sse],
            Some(RoleArg::Writer) => &[Role::Writer],
            Some(RoleArg::Operator) => &[Role::Operator],
            Some(RoleArg::Api) => &[Role::Api],
            Some(RoleArg::Rebase) => &[Role::Rebase],
        }
    }

    fn is_any_of(self, roles: &[RoleArg]) -> bool {
        self.0.is_none_or(|role| roles.contains(&role))
    }

    /// Whether the checks read the log. Only relays, operators and those who rebase have the right to, and
    /// need it.
    fn reads_the_log(self) -> bool {
        self.is_any_of(&[RoleArg::Relay, RoleArg::Operator, RoleArg::Rebase])
    }

    /// A rebase claims its epoch as a relay publishes.
    fn publishes(self) -> bool {
        self.is_any_of(&[RoleArg::Relay, RoleArg::Rebase])
    }

    fn subscribes(self) -> bool {
        self.is_any_of(&[RoleArg::Sse])
    }

    fn uses_redis(self) -> bool {
        self.is_any_of(&[RoleArg::Relay, RoleArg::Sse, RoleArg::Operator, RoleArg::Rebase])
    }

    fn checks_tokens(self) -> bool {
        self.is_any_of(&[RoleArg::Sse, RoleArg::Api])
    }
}

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Ok,
    /// It works, and may cause trouble later.
    Warning,
    Wrong,
}

/// A check and its result.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Outcome,
    /// The observation that led to the verdict.
    evidence: String,
    /// The action that fixes it; empty if none is needed.
    fix: Cow<'static, str>,
}

impl Finding {
    fn ok(check: &'static str, evidence: impl Into<String>) -> Self {
        Self { check, verdict: Outcome::Ok, evidence: evidence.into(), fix: "".into() }
    }

    fn wrong(check: &'static str, evidence: impl Into<String>, fix: impl Into<Cow<'static, str>>) -> Self {
        Self { check, verdict: Outcome::Wrong, evidence: evidence.into(), fix: fix.into() }
    }

    /// Ok if `holds`, otherwise a warning with a fix.
    fn should(
        check: &'static str,
        holds: bool,
        evidence: impl Into<String>,
        fix: impl Into<Cow<'static, str>>,
    ) -> Self {
        if holds {
            return Self::ok(check, evidence);
        }
        Self { check, verdict: Outcome::Warning, evidence: evidence.into(), fix: fix.into() }
    }

    /// Ok if `holds`, otherwise wrong, with a fix.
    fn must(
        check: &'static str,
        holds: bool,
        evidence: impl Into<String>,
        fix: impl Into<Cow<'static, str>>,
    ) -> Self {
        if holds { Self::ok(check, evidence) } else { Self::wrong(check, evidence, fix) }
    }
}

/// Runs every check and prints the findings.
pub(crate) async fn run(config: &Config, args: &Args) -> Result<()> {
    let scope = Scope(args.role);
    let (postgres, redis) = tokio::join!(postgres::examine(config, scope, args.open_for), async {
        if scope.uses_redis() { redis::examine(config, scope).await } else { Vec::new() }
    });
    let mut findings = postgres;
    findings.extend(redis);
    findings.extend(machine::examine(config, scope).await);
    match args.output {
        Output::Json => output::json(&findings)?,
        Output::Table => report::print(&findings),
    }
    let wrong = findings.iter().filter(|finding| finding.verdict == Outcome::Wrong).count();
    match wrong {
        0 => Ok(()),
        n => bail!("{} found something wrong", pluralize(n as u64, "check")),
    }
}
