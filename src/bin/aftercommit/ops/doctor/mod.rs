//! `aftercommit doctor`: every check that this product's users trip over, with the evidence and the fix.

mod machine;
mod postgres;
mod redis;

use anyhow::{Result, bail};
use serde::Serialize;

use aftercommit::counted::counted;

use super::output::{self, Output};
use crate::config::Config;

/// How to print it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  aftercommit doctor
  aftercommit doctor --output json | jq '.[] | select(.verdict == \"wrong\")'

Exits with 1 if something is wrong. Changes nothing, but for a stream of one
entry in Redis that it removes again.")]
pub(crate) struct Args {
    /// Name transactions that are open for longer than this, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    open_for: u32,
    /// How to print the data.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// How a check turned out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// It works, and may hurt one day.
    Warning,
    Wrong,
}

/// One check.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    /// What was seen.
    evidence: String,
    /// What to do; empty if nothing.
    fix: &'static str,
}

impl Finding {
    fn ok(check: &'static str, evidence: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, evidence: evidence.into(), fix: "" }
    }

    fn wrong(check: &'static str, evidence: impl Into<String>, fix: &'static str) -> Self {
        Self { check, verdict: Verdict::Wrong, evidence: evidence.into(), fix }
    }

    /// Fine if `holds`, else a warning with a fix.
    fn should(check: &'static str, holds: bool, evidence: impl Into<String>, fix: &'static str) -> Self {
        if holds {
            return Self::ok(check, evidence);
        }
        Self { check, verdict: Verdict::Warning, evidence: evidence.into(), fix }
    }

    /// Fine if `holds`, else wrong, with a fix.
    fn must(check: &'static str, holds: bool, evidence: impl Into<String>, fix: &'static str) -> Self {
        if holds { Self::ok(check, evidence) } else { Self::wrong(check, evidence, fix) }
    }
}

/// Runs every check and prints what it found.
pub(crate) async fn run(config: &Config, args: &Args) -> Result<()> {
    let (postgres, redis) = tokio::join!(postgres::examine(config, args.open_for), redis::examine(config));
    let mut findings = postgres;
    findings.extend(redis);
    findings.extend(machine::examine(config).await);
    match args.output {
        Output::Json => output::json(&findings)?,
        Output::Table => findings.iter().for_each(print),
    }
    let wrong = findings.iter().filter(|finding| finding.verdict == Verdict::Wrong).count();
    match wrong {
        0 => Ok(()),
        n => bail!("{} found something wrong", counted(n as u64, "check")),
    }
}

fn print(finding: &Finding) {
    let verdict = match finding.verdict {
        Verdict::Ok => "ok",
        Verdict::Warning => "WARNING",
        Verdict::Wrong => "WRONG",
    };
    output::line(&format!("{verdict:<8} {}: {}", finding.check, finding.evidence));
    if !finding.fix.is_empty() {
        output::line(&format!("         fix: {}", finding.fix));
    }
}
