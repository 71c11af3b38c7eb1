//! `aftercommit config check|show`: what the processes would run with.

use std::path::Path;

use anyhow::Result;
use toml::{Table, Value};

use crate::config;
use crate::ops::output;

/// What to do with the configuration.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Say whether the configuration is valid.
    #[command(after_help = "Example: aftercommit --config aftercommit.toml config check")]
    Check,
    /// Print the configuration in force, without secrets.
    #[command(after_help = "Example: aftercommit config show --defaults > aftercommit.toml")]
    Show {
        /// Print the commented defaults instead.
        #[arg(long)]
        defaults: bool,
    },
}

/// Runs the command. Needs no server.
pub(crate) fn run(command: &Command, file: Option<&Path>) -> Result<()> {
    match command {
        Command::Show { defaults: true } => output::text(config::DEFAULT_TOML),
        Command::Show { defaults: false } => {
            let mut table = config::layered(file, std::env::vars())?;
            config::parse(table.clone())?;
            hide_secrets(&mut table);
            output::text(&table.to_string());
        }
        Command::Check => {
            config::load(file)?;
            output::line("the configuration is valid");
        }
    }
    Ok(())
}

/// Replaces what must not be printed: the token secret, and passwords in addresses.
fn hide_secrets(table: &mut Table) {
    let secrets = [("jwt", "secret"), ("operator", "token")];
    let addresses = [("database", "url"), ("redis", "url"), ("telemetry", "otlp_endpoint")];
    for (section, key) in secrets.into_iter().chain(addresses) {
        if let Some(Value::String(text)) = table.get_mut(section).and_then(|s| s.get_mut(key)) {
            *text = hidden(text, addresses.contains(&(section, key)));
        }
    }
}

fn hidden(text: &str, is_url: bool) -> String {
    if text.is_empty() {
        return String::new();
    }
    if !is_url {
        return "***".to_owned();
    }
    // scheme://user:password@host: everything between the first ':' of the authority and the last '@' is the password.
    let Some((scheme, rest)) = text.split_once("://") else { return "***".to_owned() };
    match rest.rsplit_once('@') {
        None => text.to_owned(),
        Some((login, address)) => {
            let user = login.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}:***@{address}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::hidden;

    #[test]
    fn passwords_and_secrets_are_replaced() {
        assert_eq!(hidden("postgres://u:p@ss@h:5432/d", true), "postgres://u:***@h:5432/d");
        assert_eq!(hidden("redis://h:6379", true), "redis://h:6379");
        assert_eq!(hidden("something else", true), "***");
        assert_eq!(hidden("secret", false), "***");
        assert_eq!(hidden("", false), "");
    }
}
