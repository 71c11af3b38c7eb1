//! The password in the program's output.

use std::time::Duration;

use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::time::Instant;

use super::error::PasswordError;

/// A password without an expiry serves the connections of this time, so that a hundred connections that are
/// made at once do not start a hundred programs.
const REUSED_FOR: Duration = Duration::from_secs(5);
/// The part of its life after which a password is replaced. The rest is left for a program that fails for a
/// while.
const RENEWED_AFTER: f64 = 0.8;
/// The year 5000, in seconds since 1970: a later time is one in milliseconds.
const SECONDS_MAX: f64 = 95_617_584_000.0;

/// A password, as the program gave it.
#[derive(Debug, Clone)]
pub struct Password {
    /// The password.
    pub password: SecretString,
    /// The user that it belongs to, if the program names one.
    pub user: Option<String>,
    /// When to ask for the next one; `None` if this one does not expire.
    pub renew_at: Option<Instant>,
    /// When it must not be used any more.
    pub(super) expires_at: Option<Instant>,
    asked_at: Instant,
}

/// The JSON form of the output.
#[derive(Deserialize)]
struct Printed {
    password: Option<SecretString>,
    user: Option<String>,
    expires_at: Option<Moment>,
    expires_in: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Moment {
    Seconds(f64),
    Text(String),
}

impl Password {
    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        self.renew_at.unwrap_or(self.asked_at + REUSED_FOR) > now
    }

    /// Whether it has not expired. A password without an expiry is valid until a server refuses it.
    pub(super) fn is_valid(&self, now: Instant) -> bool {
        self.expires_at.is_none_or(|end| end > now)
    }
}

/// Reads the output of a run that ended at this time.
///
/// # Errors
/// Returns [`PasswordError::Output`] if it holds no password that is still valid.
pub(super) fn password_in(output: &[u8], now: DateTime<Utc>) -> Result<Password, PasswordError> {
    let text = std::str::from_utf8(output).map_err(|_| PasswordError::Output("is not UTF-8"))?;
    let text = text.trim_start_matches('\u{feff}');
    let asked_at = Instant::now();
    let Some(printed) = printed_in(text)? else {
        let password = text.trim_end_matches(['\r', '\n']);
        if password.trim().is_empty() {
            return Err(PasswordError::Output("is empty"));
        }
        let password = password.to_owned().into();
        return Ok(Password { password, user: None, renew_at: None, expires_at: None, asked_at });
    };
    let password = printed.password.filter(|password| !password.expose_secret().is_empty());
    let password = password.ok_or(PasswordError::Output("is a JSON object without 'password'"))?;
    let lives = match (printed.expires_at, printed.expires_in) {
        (None, None) => None,
        (None, Some(seconds)) => Some(seconds),
        (Some(moment), None) => Some(seconds_until(&moment, now)?),
        (Some(_), Some(_)) => return Err(PasswordError::Output("has both 'expires_at' and 'expires_in'")),
    };
    let lives = lives.map(|seconds| Duration::try_from_secs_f64(seconds).ok().filter(|life| !life.is_zero()));
    let lives = match lives {
        Some(None) => return Err(PasswordError::Output("is a password that has expired")),
        // The clock of tokio ends earlier than the times that a program may name.
        Some(Some(life)) => Some(life.min(Duration::from_secs(365 * 24 * 3600))),
        None => None,
    };
    Ok(Password {
        password,
        user: printed.user,
        renew_at: lives.map(|life| asked_at + life.mul_f64(RENEWED_AFTER)),
        expires_at: lives.map(|life| asked_at + life),
        asked_at,
    })
}

/// Reads the JSON form; `None` if the output is no JSON object. An output that begins like one must be one,
/// because it is no password that a server has.
fn printed_in(text: &str) -> Result<Option<Printed>, PasswordError> {
    let begins_like_json = text.trim_start().strip_prefix('{').is_some_and(|rest| {
        let rest = rest.trim_start();
        rest.starts_with('"') || rest.starts_with('}')
    });
    if !begins_like_json {
        return Ok(None);
    }
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(text).map_err(|_| PasswordError::Output("begins like JSON, and is none"))?;
    serde_json::from_value(object.into()).map(Some).map_err(|_| {
        PasswordError::Output(
            "has a value of another type than text for 'password' and 'user', a time for 'expires_at', or a \
             number of seconds for 'expires_in'",
        )
    })
}

fn seconds_until(moment: &Moment, now: DateTime<Utc>) -> Result<f64, PasswordError> {
    match moment {
        Moment::Seconds(at) if *at > SECONDS_MAX => {
            Err(PasswordError::Output("names an 'expires_at' beyond the year 5000: give seconds since 1970"))
        }
        Moment::Seconds(at) => Ok(at - now.timestamp_millis() as f64 / 1000.0),
        Moment::Text(text) => match (DateTime::parse_from_rfc3339(text), text.parse::<f64>()) {
            (Ok(at), _) => Ok((at.with_timezone(&Utc) - now).as_seconds_f64()),
            (Err(_), Ok(at)) => seconds_until(&Moment::Seconds(at), now),
            (Err(_), Err(_)) => Err(PasswordError::Output("names an 'expires_at' that is no time")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(output: &str) -> Result<(String, Option<String>, Option<u64>), String> {
        let now = DateTime::from_timestamp(1000, 0).expect("a time");
        let password = password_in(output.as_bytes(), now).map_err(|error| error.to_string())?;
        let lives = password.expires_at.map(|at| (at - password.asked_at).as_secs());
        Ok((password.password.expose_secret().to_owned(), password.user, lives))
    }

    #[test]
    fn the_output_is_the_password_or_an_object_with_an_expiry() {
        let plain = |text: &str| Ok((text.to_owned(), None, None));
        assert_eq!(of("s3cret\n"), plain("s3cret"));
        assert_eq!(of(" with spaces \r\n"), plain(" with spaces "));
        assert_eq!(of("{not json"), plain("{not json"));
        assert_eq!(of("\u{feff}s3cret"), plain("s3cret"));
        assert_eq!(of("\"quoted\""), plain("\"quoted\""));
        assert_eq!(of(r#"{"password":"p"}"#), plain("p"));
        let ends = |user: Option<&str>, lives| Ok(("p".to_owned(), user.map(str::to_owned), Some(lives)));
        assert_eq!(of(r#"{"password":"p","user":"u","expires_in":60,"more":1}"#), ends(Some("u"), 60));
        assert_eq!(of(r#"{"password":"p","expires_at":1060}"#), ends(None, 60));
        assert_eq!(of(r#"{"password":"p","expires_at":"1060"}"#), ends(None, 60));
        assert_eq!(of(r#"{"password":"p","expires_at":"1970-01-01T01:17:40+01:00"}"#), ends(None, 60));
    }

    #[test]
    fn an_output_that_cannot_be_used_is_told_without_its_content() {
        for (output, words) in [
            ("\n", "is empty"),
            (r#"{"secret":"tell-nobody"}"#, "without 'password'"),
            (r#"{"password":"tell-nobody","expires_at":"soon"}"#, "no time"),
            (r#"{"password":"tell-nobody","expires_at":999}"#, "has expired"),
            (r#"{"password":"tell-nobody","expires_in":0}"#, "has expired"),
            (r#"{"password":"tell-nobody","expires_in":1,"expires_at":2000}"#, "both"),
            (r#"{"password":"tell-nobody","expires_in":"900"}"#, "another type"),
            (r#"{"password":"tell-nobody","expires_in":true}"#, "another type"),
            (r#"{"password":12345}"#, "another type"),
            (r#"{"password":"tell-nobody","user":5}"#, "another type"),
            (r#"{"password":"tell-nobody","#, "begins like JSON"),
            (r#"{"password":""}"#, "without 'password'"),
            (r#"{"password":"tell-nobody","expires_at":1762857000123}"#, "year 5000"),
            ("  \n", "is empty"),
        ] {
            let error = of(output).expect_err(output);
            assert!(error.contains(words) && !error.contains("nobody"), "{error}");
        }
    }
}
