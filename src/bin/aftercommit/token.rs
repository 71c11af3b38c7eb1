//! `aftercommit token`: prints a token for trying out.

use std::time::Duration;

use anyhow::Result;

use aftercommit::auth::{self, UserId};

use crate::config::Config;
use crate::ops::output;

/// The claims of the token.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  aftercommit token --user 00000000-0000-4000-8000-000000000001 \\
      --subscribe 'order:*'")]
pub(crate) struct Args {
    /// The user that the token speaks for.
    #[arg(long, value_name = "USER")]
    user: UserId,
    /// The token's lifetime in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    valid_for: u64,
    /// Allow a topic, or `prefix*`. May be repeated.
    #[arg(long, value_name = "PATTERN")]
    subscribe: Vec<String>,
}

/// Prints a token that the servers with this configuration accept.
pub(crate) fn run(config: &Config, args: &Args) -> Result<()> {
    let token = auth::issue_with(
        &config.jwt,
        args.user.clone(),
        Duration::from_secs(args.valid_for),
        &args.subscribe,
    )?;
    output::line(&token);
    Ok(())
}
