//! The configuration: defaults, then a file, then the environment, checked as a whole.
//!
//! `config/default.toml` is compiled in and is the only home of defaults. Layers are merged as tables, so that a key that
//! is in none of the defaults is an error that names it, wherever it came from.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use toml::{Table, Value};

use aftercommit::http::{self, OperatorSettings};
use aftercommit::{auth, postgres, redis, relay, sse, trace, uploads};

/// The commented defaults.
pub(crate) const DEFAULT_TOML: &str = include_str!("../../../config/default.toml");

/// What every variable of ours begins with.
const PREFIX: &str = "AFTERCOMMIT_";
/// Variables that other programs read as well, and the settings that they stand for.
const CONVENTIONAL: [(&str, &str, &str); 3] = [
    ("DATABASE_URL", "database", "url"),
    ("REDIS_URL", "redis", "url"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "telemetry", "otlp_endpoint"),
];
/// Variables under the prefix that are not settings: read by tests and scripts.
const NOT_SETTINGS: [&str; 1] = ["AFTERCOMMIT_CONFIG"];

/// Everything that can be set.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) database: postgres::Settings,
    pub(crate) redis: redis::Settings,
    pub(crate) outbox: OutboxSettings,
    pub(crate) relay: relay::Settings,
    pub(crate) http: http::Settings,
    pub(crate) api: ApiSettings,
    pub(crate) uploads: uploads::Settings,
    pub(crate) sse: sse::Settings,
    pub(crate) jwt: auth::Settings,
    pub(crate) operator: OperatorSettings,
    pub(crate) log: LogSettings,
    pub(crate) telemetry: trace::Settings,
    pub(crate) shutdown: ShutdownSettings,
}

/// The `[outbox]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OutboxSettings {
    pub(crate) rotation_seconds: u32,
    pub(crate) retention_seconds: u64,
}

/// The `[api]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ApiSettings {
    pub(crate) listen: String,
    pub(crate) max_body_bytes: usize,
    pub(crate) request_timeout_ms: u64,
}

/// The `[log]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogSettings {
    pub(crate) level: String,
    pub(crate) format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// The `[shutdown]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ShutdownSettings {
    pub(crate) grace_seconds: u64,
}

/// Reads the defaults, `file` and the process's environment.
///
/// # Errors
/// One sentence that names the file or variable, the key, and what was expected.
pub(crate) fn load(file: Option<&Path>) -> Result<Config> {
    let table = layered(file, std::env::vars())?;
    parse(table)
}

/// The merged table: also what `config show` prints.
pub(crate) fn layered(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Table> {
    let mut table: Table = DEFAULT_TOML.parse().context("config/default.toml is not valid TOML")?;
    if let Some(path) = file {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the configuration file {}", path.display()))?;
        let overlay: Table = text
            .parse()
            .with_context(|| format!("the configuration file {} is not valid TOML", path.display()))?;
        lay_over(&mut table, overlay, &path.display().to_string())?;
    }
    // Sorted, so that of two errors the same one is always told.
    let mut variables: Vec<(String, String)> = environment.into_iter().collect();
    variables.sort();
    for (conventional, section, key) in CONVENTIONAL {
        if let Some((_, url)) = variables.iter().find(|(name, _)| name == conventional) {
            set(&mut table, section, key, Value::String(url.clone()));
        }
    }
    for (name, text) in &variables {
        if let Some(path) = name.strip_prefix(PREFIX).filter(|_| !NOT_SETTINGS.contains(&name.as_str())) {
            set_from_variable(&mut table, name, path, text)?;
        }
    }
    Ok(table)
}

/// Gives the merged table its types.
pub(crate) fn parse(table: Table) -> Result<Config> {
    let config: Config = table.try_into().map_err(|error: toml::de::Error| {
        anyhow::anyhow!("the configuration is not valid: {}", error.to_string().trim().replace('\n', " "))
    })?;
    Ok(config)
}

fn lay_over(table: &mut Table, overlay: Table, origin: &str) -> Result<()> {
    for (section, value) in overlay {
        let Some(known) = table.get_mut(&section).and_then(Value::as_table_mut) else {
            bail!(
                "{origin}: there is no section [{section}]; `aftercommit config show --defaults` lists all settings"
            );
        };
        let Value::Table(keys) = value else {
            bail!("{origin}: [{section}] must be a section");
        };
        for (key, value) in keys {
            let Some(default) = known.get(&key) else {
                bail!(
                    "{origin}: there is no setting '{key}' in [{section}]; `aftercommit config show --defaults` lists all settings"
                );
            };
            if default.type_str() != value.type_str() {
                bail!(
                    "{origin}: {key} in [{section}] must be of type {}, not {}",
                    default.type_str(),
                    value.type_str()
                );
            }
            known.insert(key, value);
        }
    }
    Ok(())
}

/// `AFTERCOMMIT_<SECTION>_<KEY>`, whose value takes the type of the default.
fn set_from_variable(table: &mut Table, name: &str, path: &str, text: &str) -> Result<()> {
    let path = path.to_ascii_lowercase();
    let found = path.split_once('_').and_then(|(section, key)| {
        let default = table.get(section)?.as_table()?.get(key)?;
        Some((section.to_owned(), key.to_owned(), default.clone()))
    });
    let Some((section, key, default)) = found else {
        bail!(
            "the environment variable {name} names no setting; `aftercommit config show --defaults` lists all settings"
        );
    };
    let wrong = || format!("{name} must be of type {}", default.type_str());
    let value = match default {
        Value::Integer(_) => Value::Integer(text.trim().parse().with_context(wrong)?),
        Value::Float(_) => Value::Float(text.trim().parse().with_context(wrong)?),
        Value::Boolean(_) => Value::Boolean(text.trim().parse().with_context(wrong)?),
        Value::Array(_) => {
            Value::Array(text.split(',').map(|item| Value::String(item.trim().to_owned())).collect())
        }
        _ => Value::String(text.to_owned()),
    };
    set(table, &section, &key, value);
    Ok(())
}

fn set(table: &mut Table, section: &str, key: &str, value: Value) {
    if let Some(keys) = table.get_mut(section).and_then(Value::as_table_mut) {
        keys.insert(key.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Result<Config> {
        let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        layered(None, variables).and_then(parse)
    }

    fn with_file(text: &str) -> Result<Config> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.toml");
        std::fs::write(&path, text).expect("a file");
        layered(Some(&path), []).and_then(parse)
    }

    #[test]
    fn the_defaults_are_valid_and_those_of_the_contract() {
        let config = with(&[]).expect("valid defaults");
        assert_eq!(config.api.listen, "127.0.0.1:8080");
        assert_eq!(config.sse.listen, "127.0.0.1:8081");
        assert_eq!(config.relay.listen, "127.0.0.1:8082");
        assert_eq!(config.relay.name, "main");
        assert_eq!(config.relay.poll_interval_ms, 100);
        assert_eq!(config.sse.max_connections, 10_000);
    }

    #[test]
    fn the_environment_wins_over_the_conventional_names_and_the_file() {
        use secrecy::ExposeSecret;
        let config = with(&[
            ("DATABASE_URL", "postgres://a"),
            ("AFTERCOMMIT_DATABASE_URL", "postgres://b"),
            ("REDIS_URL", "redis://c"),
            ("AFTERCOMMIT_SSE_LISTEN", "127.0.0.1:9001"),
            ("AFTERCOMMIT_SSE_MAX_CONNECTIONS", "7"),
        ])
        .expect("valid");
        assert_eq!(config.database.url.expose_secret(), "postgres://b");
        assert_eq!(config.redis.url.expose_secret(), "redis://c");
        assert_eq!(config.sse.listen, "127.0.0.1:9001");
        assert_eq!(config.sse.max_connections, 7);
    }

    #[test]
    fn an_unknown_key_is_named_wherever_it_stands() {
        let error = with(&[("AFTERCOMMIT_SSE_LISTNE", "x")]).expect_err("unknown").to_string();
        assert!(error.contains("AFTERCOMMIT_SSE_LISTNE"), "{error}");
        let error = with_file("[sse]\nlistne = \"x\"").expect_err("unknown").to_string();
        assert!(error.contains("'listne' in [sse]"), "{error}");
        let error = with_file("[ssse]\nlisten = \"x\"").expect_err("unknown").to_string();
        assert!(error.contains("[ssse]"), "{error}");
    }

    #[test]
    fn a_value_of_the_wrong_type_is_named_with_the_right_one() {
        let error =
            format!("{:#}", with(&[("AFTERCOMMIT_SSE_MAX_CONNECTIONS", "many")]).expect_err("not a number"));
        assert!(error.contains("AFTERCOMMIT_SSE_MAX_CONNECTIONS must be of type integer"), "{error}");
        let error = with_file("[sse]\nmax_connections = \"many\"").expect_err("not a number").to_string();
        assert!(error.contains("max_connections in [sse] must be of type integer"), "{error}");
    }

    #[test]
    fn a_secret_is_not_printed() {
        let config = with(&[
            ("AFTERCOMMIT_JWT_SECRET", "tell-nobody"),
            ("DATABASE_URL", "postgres://u:tell-nobody@h/d"),
        ]);
        assert!(!format!("{:?}", config.expect("valid")).contains("tell-nobody"));
    }
}
