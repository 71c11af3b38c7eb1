//! `aftercommit revoke`: ends the streams of a user, a topic or a token, and refuses the credentials.

use anyhow::{Result, bail};
use sqlx::Connection;

use aftercommit::auth::UserId;
use aftercommit::event::Topic;
use aftercommit::ops::revoke::{self, Target};

use super::WrongUsage;
use super::confirm::Signature;
use super::output;
use crate::config::Config;

/// Who or what, and the reason.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  aftercommit revoke --user ana --reason 'left the company'
  aftercommit revoke --topic order:42 --reason 'shared by mistake'
  aftercommit revoke --token 0b7f3c1e --reason 'found in a log'

Open streams end within a second, with `event: revoked`. Tokens issued before,
or in this second, are refused from now on, and their tickets; those without
the claim 'iat' too. Tokens issued later are good: let your application issue
none. --token names the claim 'jti'. A repeated revocation moves its time.")]
pub(crate) struct Args {
    #[command(flatten)]
    target: Named,
    #[command(flatten)]
    signature: Signature,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Named {
    /// All tokens of this user: the claim 'sub'.
    #[arg(long, value_name = "USER")]
    user: Option<UserId>,
    /// All tokens of everybody, for this topic.
    #[arg(long, value_name = "TOPIC")]
    topic: Option<Topic>,
    /// The token with this claim 'jti'.
    #[arg(long, value_name = "JTI")]
    token: Option<String>,
}

impl Named {
    fn target(self) -> Result<Target> {
        Ok(match self {
            Self { user: Some(user), .. } => Target::User(user.as_str().to_owned()),
            Self { topic: Some(topic), .. } => Target::Topic(topic.to_string()),
            Self { token: Some(id), .. } if !id.is_empty() => Target::Token(id),
            _ => bail!(WrongUsage("name the token: --token JTI".into())),
        })
    }
}

/// Runs the command.
pub(crate) async fn run(config: &Config, args: Args) -> Result<()> {
    let operator = args.signature.operator()?;
    let target = args.target.target()?;
    let mut connection = super::connect(config).await?;
    let mut tx = connection.begin().await?;
    let at = revoke::revoke(&mut tx, &target, &operator).await?;
    tx.commit().await?;
    output::line(&format!("revoked: {target}, issued until {}", output::time(at)));
    Ok(())
}
