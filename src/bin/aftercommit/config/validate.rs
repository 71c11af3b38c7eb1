//! The settings that each role needs. A role checks its settings before it binds or connects; `config check`
//! checks them for all roles.
//!
//! The checks build the same objects as the roles (the gate, the verifier, the connection's options), so that
//! settings that pass here do not stop a role.

use std::collections::BTreeSet;
use std::net::IpAddr;

use aftercommit::http::{self, OperatorGate, Origins};
use aftercommit::log::rotate;
use aftercommit::postgres::ConnectError as PostgresError;
use aftercommit::redis::ConnectError as RedisError;
use aftercommit::{auth, trace};

use super::{Config, Invalid, Problem};
use crate::{lifecycle, telemetry};

/// A long-running process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Api,
    Sse,
    Relay,
}

impl Role {
    pub(crate) const ALL: [Self; 3] = [Self::Api, Self::Sse, Self::Relay];

    /// Checks that this role can start with these settings.
    ///
    /// # Errors
    /// [`Invalid`] with all problems.
    pub(crate) fn check(self, config: &Config) -> Result<(), Invalid> {
        let problems = problems(&[self], config);
        if problems.is_empty() { Ok(()) } else { Err(Invalid(problems)) }
    }
}

/// All problems for these roles, without duplicates.
pub(crate) fn problems(roles: &[Role], config: &Config) -> Vec<Problem> {
    let mut seen = BTreeSet::new();
    let mut problems: Vec<Problem> = roles.iter().flat_map(|role| of_role(*role, config)).collect();
    problems.retain(|problem| seen.insert(problem.text.clone()));
    problems
}

fn of_role(role: Role, config: &Config) -> Vec<Problem> {
    let mut problems = Vec::new();
    problems.extend(telemetry::check(&config.log).err().map(Problem::new_of));
    problems.extend(trace::check(&config.telemetry).err().map(Problem::new_of));
    problems.extend(postgres(config));
    match role {
        Role::Api => {
            problems.extend(listen("api.listen", &config.api.listen));
            problems.extend(tokens(config));
        }
        Role::Sse => {
            problems.extend(listen("sse.listen", &config.sse.listen));
            problems.extend(redis(config));
            problems.extend(tokens(config));
            problems.extend(
                OperatorGate::new(&config.operator, http::Metrics::default()).err().map(Problem::new_of),
            );
            problems.extend(Origins::new(&config.sse.cors_origins).err().map(Problem::new_of));
        }
        Role::Relay => {
            problems.extend(listen("relay.listen", &config.relay.listen));
            problems.extend(redis(config));
            problems.extend(
                OperatorGate::new(&config.operator, http::Metrics::default()).err().map(Problem::new_of),
            );
            problems.extend(config.relay.check().err().map(Problem::new_of));
            problems.extend(retention(config));
        }
    }
    problems
}

impl Problem {
    fn new_of(error: impl ToString) -> Self {
        Self::new(error.to_string())
    }
}

fn listen(setting: &str, text: &str) -> Option<Problem> {
    lifecycle::check_listen(text).err().map(|error| Problem::new(format!("{setting} {error}")))
}

fn postgres(config: &Config) -> Option<Problem> {
    let error = config.database.check().err()?;
    let is_missing = matches!(error, PostgresError::NoUrl);
    Some(Problem { text: format!("database.url: {error}"), is_missing })
}

fn redis(config: &Config) -> Option<Problem> {
    let error = config.redis.check().err()?;
    let is_missing = matches!(error, RedisError::NoUrl);
    Some(Problem { text: format!("redis.url: {error}"), is_missing })
}

fn tokens(config: &Config) -> Vec<Problem> {
    let problem = |error: auth::AuthError| {
        let is_missing = matches!(error, auth::AuthError::NoKey);
        Problem { text: error.to_string(), is_missing }
    };
    auth::problems(&config.jwt).into_iter().map(problem).collect()
}

/// Checks that the retention times do not contradict each other.
fn retention(config: &Config) -> Vec<Problem> {
    let log = &config.outbox;
    let checked =
        rotate::check(log.retention_seconds, config.redis.history_ttl_seconds, log.rotation_seconds);
    checked.err().map(|error| Problem::new(error.to_string())).into_iter().collect()
}

/// Warnings about settings that are valid.
pub(crate) fn warnings(config: &Config) -> Vec<String> {
    console_in_clear(config).into_iter().collect()
}

/// The warning if other machines can reach the operator's page over plain HTTP.
pub(crate) fn console_in_clear(config: &Config) -> Option<String> {
    let host = lifecycle::check_listen(&config.relay.listen).ok()?;
    let is_local = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    let is_open =
        OperatorGate::new(&config.operator, http::Metrics::default()).is_ok_and(|gate| gate.can_open());
    (is_open && !is_local).then(|| {
        format!(
            "relay.listen is {}: the operator's page and its token travel over plain HTTP there; listen on \
             127.0.0.1 behind a proxy that speaks TLS, or let only that proxy connect",
            config.relay.listen
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DEFAULT_TOML, Layers};

    const USABLE: [(&str, &str); 3] = [
        ("DATABASE_URL", "postgres://u:tell-nobody@h/d"),
        ("REDIS_URL", "redis://:tell-nobody@h:6379"),
        ("AFTERCOMMIT_JWT_SECRET", "tell-nobody-tell-nobody-tell-nobody"),
    ];

    fn with(variables: &[(&str, &str)]) -> Config {
        let variables = USABLE.iter().chain(variables).map(|(name, value)| (name.into(), value.into()));
        let layers = Layers::read(None, variables.collect::<std::collections::BTreeMap<_, _>>());
        assert_eq!(layers.problems, []);
        Config::parse(layers.table).expect("valid")
    }

    fn told(variables: &[(&str, &str)]) -> Vec<String> {
        problems(&Role::ALL, &with(variables)).into_iter().map(|problem| problem.text).collect()
    }

    #[test]
    fn each_value_that_stops_a_role_is_named_by_its_setting() {
        assert!(told(&[]).is_empty());
        for (name, value, expected) in [
            ("DATABASE_URL", "mysql://u:tell-nobody@h/d", "database.url: "),
            ("DATABASE_URL", "postgres://u:tell-nobody/x@h/d", "has an '@' behind its host"),
            ("DATABASE_URL", "postgres://a,b/d?target_session_attrs=standby", "database.url: "),
            ("DATABASE_URL", "postgres://a/d?target_session_attrs=standby", "asks for a standby"),
            ("DATABASE_URL", "postgres://a/d?sslmode=verify_full", "sslmode is 'verify_full'"),
            ("DATABASE_URL", "postgres://a/d?port=many", "port of the database url"),
            ("DATABASE_URL", "postgres://a/d?sslrootcert=/", "cannot read sslrootcert / of the database url"),
            ("REDIS_URL", "redis://:tell-nobody@h?db=3", "a parameter 'db'"),
            ("REDIS_URL", "http://h", "redis.url: "),
            ("REDIS_URL", "rediss://:tell-nobody@h:6379/#insecure", "certificates are always checked"),
            ("REDIS_URL", "redis://h:6379/zero", "redis.url: "),
            ("AFTERCOMMIT_JWT_SECRET", "short", "jwt.secret has 5 bytes"),
            ("AFTERCOMMIT_JWT_LEEWAY_SECONDS", "3601", "leeway_seconds is 3601"),
            ("AFTERCOMMIT_JWT_PUBLIC_KEY_FILE", "/nowhere", "[jwt] names more than one source"),
            ("AFTERCOMMIT_JWT_COOKIE", "a b", "jwt.cookie"),
            ("AFTERCOMMIT_OPERATOR_TOKEN", "short", "operator.token has 5 bytes"),
            ("AFTERCOMMIT_API_LISTEN", "8080", "api.listen "),
            ("AFTERCOMMIT_SSE_LISTEN", ":8081", "sse.listen "),
            ("AFTERCOMMIT_SSE_LISTEN", "http://127.0.0.1:8081", "sse.listen "),
            ("AFTERCOMMIT_RELAY_LISTEN", "127.0.0.1:99999", "relay.listen "),
            ("AFTERCOMMIT_RELAY_LISTEN", "::1:8082", "relay.listen "),
            ("AFTERCOMMIT_RELAY_NAME", "", "relay.name "),
            ("AFTERCOMMIT_RELAY_NAME", "a b", "relay.name "),
            ("AFTERCOMMIT_RELAY_NAME", "a{b}", "relay.name "),
            ("AFTERCOMMIT_RELAY_NAME", "a:b", "relay.name "),
            ("AFTERCOMMIT_SSE_CORS_ORIGINS", "*", "sse.cors_origins"),
            ("AFTERCOMMIT_SSE_CORS_ORIGINS", "https://app.example,null", "sse.cors_origins"),
            ("AFTERCOMMIT_LOG_LEVEL", "a=b=c", "log.level"),
            ("AFTERCOMMIT_TELEMETRY_SAMPLE_RATIO", "NaN", "sample_ratio"),
            ("AFTERCOMMIT_TELEMETRY_OTLP_ENDPOINT", "http://u:tell-nobody@h", "otlp_endpoint"),
            ("AFTERCOMMIT_OUTBOX_RETENTION_SECONDS", "3600", "outbox.retention_seconds (3600)"),
            ("AFTERCOMMIT_OUTBOX_ROTATION_SECONDS", "3600", "outbox.rotation_seconds (3600)"),
            // Exactly a sixth of the retention.
            ("AFTERCOMMIT_OUTBOX_ROTATION_SECONDS", "43200", "outbox.rotation_seconds (43200)"),
        ] {
            let told = told(&[(name, value)]);
            assert!(told.len() == 1 && told[0].contains(expected), "{name}={value}: {told:#?}");
            assert!(!told[0].contains("tell-nobody"), "{name}={value}: {told:#?}");
        }
        let all =
            told(&[("AFTERCOMMIT_API_LISTEN", "1"), ("AFTERCOMMIT_SSE_LISTEN", "1"), ("REDIS_URL", "x")]);
        assert_eq!(all.len(), 3, "{all:#?}");
    }

    #[test]
    fn what_was_not_given_is_told_apart_from_what_was_given_wrongly() {
        let config = Config::parse(DEFAULT_TOML.parse().expect("TOML")).expect("defaults");
        let found = problems(&Role::ALL, &config);
        assert_eq!(found.iter().filter(|problem| problem.is_missing).count(), 3, "{found:#?}");
        assert_eq!(found.len(), 3, "{found:#?}");
        // A relay does not check tokens.
        assert_eq!(problems(&[Role::Relay], &config).len(), 2);
    }

    #[test]
    fn an_open_page_on_an_address_of_others_is_warned_of() {
        let token = ("AFTERCOMMIT_OPERATOR_TOKEN", "0123456789abcdef");
        for (listen, is_warned) in [
            ("127.0.0.1:8082", false),
            ("localhost:8082", false),
            ("[::1]:8082", false),
            ("0.0.0.0:8082", true),
            ("[::]:8082", true),
            ("10.0.0.1:8082", true),
            ("relay.example:8082", true),
        ] {
            let listen = ("AFTERCOMMIT_RELAY_LISTEN", listen);
            assert_eq!(warnings(&with(&[listen, token])).len(), usize::from(is_warned), "{listen:?}");
            assert!(warnings(&with(&[listen])).is_empty(), "nobody is let in");
        }
    }
}
