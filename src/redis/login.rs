//! Logins with passwords of `password_command`: open connections log in again before a password expires.

use std::pin::Pin;

use ::redis::{BasicAuth, ErrorKind, RedisError, RedisResult, StreamingCredentialsProvider};
use futures_util::{Stream, stream};
use secrecy::ExposeSecret;
use tokio::time::Instant;

use crate::password_command::{Password, PasswordCommand};

/// The user that Redis takes for a login without one.
const DEFAULT_USER: &str = "default";

/// The passwords of a program, for the driver, which asks for them as long as a connection lives.
pub(super) struct Passwords {
    pub(super) command: PasswordCommand,
    /// The address's user.
    pub(super) user: Option<String>,
}

impl Passwords {
    /// User and password for the server.
    pub(super) fn login(user: Option<&str>, password: &Password) -> BasicAuth {
        let user = password.user.as_deref().or(user).unwrap_or(DEFAULT_USER);
        BasicAuth::new(user.to_owned(), password.password.expose_secret().to_owned())
    }
}

/// The point in a stream of passwords.
enum Next {
    First,
    /// After a password that has to be replaced at this time, if ever.
    After(Option<Instant>),
}

impl StreamingCredentialsProvider for Passwords {
    /// The first item is the newest password, or the error of the program. Each later one replaces the one
    /// before it in time; while the program fails there is none.
    fn subscribe(&self) -> Pin<Box<dyn Stream<Item = RedisResult<BasicAuth>> + Send + 'static>> {
        let (command, user) = (self.command.clone(), self.user.clone());
        Box::pin(stream::unfold(Next::First, move |next| {
            let (command, user) = (command.clone(), user.clone());
            async move {
                let login = |password: &Password| Ok(Self::login(user.as_deref(), password));
                if matches!(next, Next::First) {
                    let answer = command.password().await;
                    let renew_at = answer.as_ref().ok().and_then(|password| password.renew_at);
                    let item = answer.map_err(refused).and_then(|password| login(&password));
                    return Some((item, Next::After(renew_at)));
                }
                let Next::After(Some(renew_at)) = next else { return std::future::pending().await };
                let password = command.replacement(renew_at).await;
                Some((login(&password), Next::After(password.renew_at)))
            }
        }))
    }
}

/// The program's failure as an error of the driver.
fn refused(error: impl std::fmt::Display) -> RedisError {
    (ErrorKind::InvalidClientConfig, "[redis]", error.to_string()).into()
}
