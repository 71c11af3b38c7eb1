//! `aftercommit config check|show`: checks and shows the configuration that the processes would use.

use std::path::Path;

use anyhow::Result;
use toml::{Table, Value};

use aftercommit::address;

use crate::config::validate::{self, Role};
use crate::config::{Config, DEFAULT_TOML, Invalid, Layers};
use crate::ops::output;

/// Settings whose whole value is secret.
const SECRETS: [(&str, &str); 5] = [
    ("jwt", "secret"),
    ("operator", "token"),
    ("database", "password_command"),
    ("redis", "password_command"),
    ("redis", "sentinel_password"),
];
/// Settings that are always treated as addresses.
const ADDRESSES: [(&str, &str); 5] = [
    ("database", "url"),
    ("database", "direct_url"),
    ("redis", "url"),
    ("jwt", "jwks_url"),
    ("telemetry", "otlp_endpoint"),
];

/// The subcommands of `aftercommit config`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Say whether the configuration is valid, for every role.
    #[command(after_help = "Example: aftercommit --config aftercommit.toml config check

Names every problem, and exits with 1 if there is one. Connects to nothing:
`aftercommit doctor` does.")]
    Check,
    /// Print the configuration in force, without secrets.
    #[command(after_help = "Example: aftercommit config show --defaults > aftercommit.toml")]
    Show {
        /// Print the commented defaults instead.
        #[arg(long)]
        defaults: bool,
    },
}

/// Runs the command. Connects to no server.
pub(crate) fn run(command: &Command, file: Option<&Path>) -> Result<()> {
    match command {
        Command::Show { defaults: true } => output::text(DEFAULT_TOML),
        Command::Show { defaults: false } => {
            let Layers { mut table, problems } = Layers::read(file, std::env::vars_os());
            if !problems.is_empty() {
                return Err(Invalid(problems).into());
            }
            Config::parse(table.clone()).map_err(Invalid)?;
            hide_secrets(&mut table);
            output::text(&table.to_string());
        }
        Command::Check => check(file)?,
    }
    Ok(())
}

/// Runs every check that any role makes when it starts. A missing setting is only reported, because a machine
/// that runs one role lacks the settings of the others.
fn check(file: Option<&Path>) -> Result<(), Invalid> {
    let Layers { table, mut problems } = Layers::read(file, std::env::vars_os());
    let mut notes = Vec::new();
    match Config::parse(table) {
        Err(more) => problems.extend(more),
        Ok(config) => {
            let (missing, wrong): (Vec<_>, Vec<_>) =
                validate::problems(&Role::ALL, &config).into_iter().partition(|problem| problem.is_missing);
            // A setting that seems missing may be in a layer that could not be read.
            if problems.is_empty() {
                notes.extend(missing.into_iter().map(|problem| problem.text));
            }
            problems.extend(wrong);
            notes.extend(validate::warnings(&config));
        }
    }
    for note in notes {
        note!("note: {note}");
    }
    if !problems.is_empty() {
        return Err(Invalid(problems));
    }
    output::line("the configuration is valid");
    Ok(())
}

/// Hides secrets, and the secrets within addresses, in any setting that holds an address.
fn hide_secrets(table: &mut Table) {
    for (section, keys) in table.iter_mut() {
        for (key, value) in keys.as_table_mut().into_iter().flatten() {
            let setting = (section.as_str(), key.as_str());
            hide(value, SECRETS.contains(&setting), ADDRESSES.contains(&setting));
        }
    }
}

fn hide(value: &mut Value, is_secret: bool, is_address: bool) {
    match value {
        Value::String(text) if is_secret && !text.is_empty() => "***".clone_into(text),
        Value::String(text) if is_address || text.contains("://") => *text = address::shown(text),
        Value::Array(items) => items.iter_mut().for_each(|item| hide(item, is_secret, is_address)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table with this value in one setting, as it is shown.
    fn shown(section: &str, key: &str, text: &str) -> String {
        let mut table: Table = DEFAULT_TOML.parse().expect("defaults");
        let value = match &table[section][key] {
            Value::Array(_) => Value::Array(vec![text.to_owned().into()]),
            _ => text.to_owned().into(),
        };
        table[section].as_table_mut().expect("a section").insert(key.to_owned(), value);
        hide_secrets(&mut table);
        table.to_string()
    }

    #[test]
    fn what_the_configuration_keeps_as_a_secret_is_hidden() {
        let defaults: Table = DEFAULT_TOML.parse().expect("defaults");
        let mut secrets = 0;
        for (section, keys) in &defaults {
            for (key, value) in keys.as_table().expect("a section") {
                let mut table = defaults.clone();
                if !value.is_str() {
                    continue;
                }
                table[section.as_str()].as_table_mut().expect("a section").insert(key.clone(), "MARK".into());
                // A value of a few known words is no secret.
                let Ok(config) = Config::parse(table) else { continue };
                if !format!("{config:?}").contains("MARK") {
                    secrets += 1;
                    assert!(!shown(section, key, "MARK").contains("MARK"), "{section}.{key}");
                }
            }
        }
        assert_eq!(secrets, 8);
    }

    #[test]
    fn an_address_is_shown_without_its_secrets_wherever_it_stands() {
        for (section, key) in
            [("database", "url"), ("jwt", "jwks_url"), ("sse", "cors_origins"), ("relay", "listen")]
        {
            let text = shown(section, key, "https://u:MARK@h/p?user=u&password=MARK");
            assert!(text.contains("https://u:***@h/p?user=u&password=***"), "{text}");
        }
        assert!(!shown("database", "url", "MARK").contains("MARK"));
    }
}
