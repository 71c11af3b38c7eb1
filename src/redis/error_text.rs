//! Turns a failure of Redis or of the connection into words for a person.

use ::redis::{ErrorKind, RedisError};

/// Advice for a refused login.
const LOGIN: &str =
    "(check user and password in REDIS_URL or redis.url, or the output of [redis] password_command)";

/// Returns the error's text without the client library's own marks. Adds advice if the login is at fault.
pub fn error_text(error: &RedisError) -> String {
    let words = plain_text(error);
    if is_refused_login(error) { format!("{words} {LOGIN}") } else { words }
}

/// The same without advice, for a login whose user and password are not those of the address.
pub(super) fn plain_text(error: &RedisError) -> String {
    // The library replaces the server's own words by this kind.
    if error.kind() == ErrorKind::AuthenticationFailed {
        return "authentication failed".to_owned();
    }
    match (error.code(), error.detail()) {
        (Some(code @ ("NOAUTH" | "WRONGPASS")), detail) => reply(code, detail),
        (Some(code), Some(detail)) => reply(code, Some(detail)),
        _ => error.to_string(),
    }
}

/// Whether the server refuses user or password, or misses them.
pub(super) fn is_refused_login(error: &RedisError) -> bool {
    error.kind() == ErrorKind::AuthenticationFailed || matches!(error.code(), Some("NOAUTH" | "WRONGPASS"))
}

/// Formats an error reply as Redis writes it: the code, then the words.
pub(super) fn reply(code: &str, detail: Option<&str>) -> String {
    format!("{code} {}", detail.unwrap_or_default()).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use ::redis::{ErrorKind, RedisError, ServerErrorKind};

    use super::error_text;

    #[test]
    fn a_refused_login_names_the_setting_that_holds_it() {
        let refused = RedisError::from((ErrorKind::AuthenticationFailed, "Password authentication failed"));
        assert!(error_text(&refused).contains("REDIS_URL"), "{}", error_text(&refused));
    }

    #[test]
    fn another_reply_is_told_as_redis_says_it() {
        let words = "You can't write against a read only replica.".to_owned();
        let error = RedisError::from((ErrorKind::Server(ServerErrorKind::ReadOnly), "", words));
        assert_eq!(error_text(&error), "READONLY You can't write against a read only replica.");
    }
}
