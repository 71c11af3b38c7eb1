//! The configuration: defaults, then a file, then the environment, checked as a whole.
//!
//! - `layers`: merges the layers, and collects the problems of doing so.
//! - `service_links`: variables that Kubernetes sets for its services, which are not settings.
//! - `bounds`: the smallest and largest value of each number.
//! - `validate`: the settings that each role needs. A role checks them when it starts; `config check` checks
//!   them for all roles.

mod bounds;
mod layers;
mod service_links;
pub(crate) mod validate;

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use toml::Table;

use aftercommit::http::{self, OperatorSettings};
use aftercommit::{auth, postgres, redis, relay, sse, trace, uploads};

pub(crate) use layers::{DEFAULT_TOML, Layers};

/// All settings.
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
}

/// The `[log]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogSettings {
    pub(crate) level: String,
    pub(crate) format: LogFormat,
}

/// The form of log lines.
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

/// A problem with the configuration, as a sentence that names the setting and contains no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// The problem and the setting.
    pub(crate) text: String,
    /// Whether a setting that a role needs is missing, rather than wrong.
    pub(crate) is_missing: bool,
}

impl Problem {
    fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), is_missing: false }
    }
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) struct Invalid(pub(crate) Vec<Problem>);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [only] => f.write_str(&only.text),
            problems => {
                write!(f, "the configuration has {} problems", problems.len())?;
                problems.iter().try_for_each(|problem| write!(f, "\n  {}", problem.text))
            }
        }
    }
}

impl Config {
    /// Reads the defaults, `file` and the process's environment.
    ///
    /// # Errors
    /// [`Invalid`] with all problems. Each names the file or variable, the key, and the expected value.
    pub(crate) fn load(file: Option<&Path>) -> Result<Self, Invalid> {
        let layers = Layers::read(file, std::env::vars_os());
        match (layers.problems.is_empty(), Self::parse(layers.table)) {
            (true, parsed) => parsed.map_err(Invalid),
            (false, parsed) => Err(Invalid([layers.problems, parsed.err().unwrap_or_default()].concat())),
        }
    }

    /// Converts the merged table into typed settings.
    pub(crate) fn parse(table: Table) -> Result<Self, Vec<Problem>> {
        let problems = bounds::check(&table);
        if !problems.is_empty() {
            return Err(problems);
        }
        table.try_into().map_err(|error: toml::de::Error| {
            let reason = error.to_string().trim().replace('\n', " ");
            vec![Problem::new(format!("the configuration is not valid: {reason}"))]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(layers: Layers) -> Result<Config, Invalid> {
        if !layers.problems.is_empty() {
            return Err(Invalid(layers.problems));
        }
        Config::parse(layers.table).map_err(Invalid)
    }

    fn with(variables: &[(&str, &str)]) -> Result<Config, Invalid> {
        of(Layers::read(None, variables.iter().map(|(name, value)| (name.into(), value.into()))))
    }

    fn with_file(text: impl AsRef<[u8]>) -> Result<Config, Invalid> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.toml");
        std::fs::write(&path, text).expect("a file");
        of(Layers::read(Some(&path), []))
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
