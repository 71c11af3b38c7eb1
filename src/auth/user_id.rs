//! The id of a user: the text of a token's `sub`.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The id of a user: 1 to 255 characters without control characters. Issuers choose the form: `17`,
/// `auth0|64b1f`, `ana@example.com`, a UUID. Two ids are equal if their texts are. Cheap to clone.
///
/// `Display` is for logs and people: it escapes characters that a terminal does not print. [`UserId::as_str`]
/// returns the text itself.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct UserId(Arc<str>);

/// The text is not a user's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a user's id must have 1 to {} characters, none of them a control character", UserId::CHARS_MAX)]
pub struct UserIdError;

impl UserId {
    /// The longest id, in characters.
    pub const CHARS_MAX: usize = 255;
    /// The longest id, in bytes of UTF-8.
    pub const BYTES_MAX: usize = Self::CHARS_MAX * 4;

    /// The id with this text.
    ///
    /// # Errors
    /// [`UserIdError`] if the text is empty, too long, or contains a control character.
    pub fn new(text: impl Into<Arc<str>>) -> Result<Self, UserIdError> {
        let text = text.into();
        let is_user = !text.is_empty()
            && text.len() <= Self::BYTES_MAX
            && text.chars().count() <= Self::CHARS_MAX
            && !text.chars().any(char::is_control);
        if is_user { Ok(Self(text)) } else { Err(UserIdError) }
    }

    /// The text, byte for byte.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The UUID that the text spells in any of its usual forms, for applications whose users have UUIDs.
    pub fn as_uuid(&self) -> Option<Uuid> {
        Uuid::try_parse(&self.0).ok()
    }
}

impl TryFrom<String> for UserId {
    type Error = UserIdError;

    fn try_from(text: String) -> Result<Self, UserIdError> {
        Self::new(text)
    }
}

impl From<Uuid> for UserId {
    fn from(id: Uuid) -> Self {
        Self(id.to_string().into())
    }
}

impl std::str::FromStr for UserId {
    type Err = UserIdError;

    fn from_str(text: &str) -> Result<Self, UserIdError> {
        Self::new(text)
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '"' | '\'' | '\\' => write!(f, "{c}"),
            c => c.escape_debug().try_for_each(|c| write!(f, "{c}")),
        })
    }
}

impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_any_text_of_up_to_255_characters_without_control_characters() {
        let longest = "ü".repeat(UserId::CHARS_MAX);
        for user in ["1", "17", "auth0|64b1f", "ana@example.com", "名前", " ", longest.as_str()] {
            assert_eq!(UserId::new(user).as_ref().map(UserId::as_str), Ok(user));
        }
        let too_long = "x".repeat(UserId::CHARS_MAX + 1);
        for bad in ["", "a\nb", "\u{1b}[31m", "\u{7f}", "\u{9b}2J", "a\0", too_long.as_str()] {
            assert_eq!(UserId::new(bad), Err(UserIdError), "{bad:?}");
        }
    }

    #[test]
    fn what_a_terminal_obeys_is_escaped_for_logs_and_nothing_else_is() {
        let told = |text: &str| UserId::new(text).map(|user| user.to_string());
        assert_eq!(told("ana\"'\\|@é"), Ok("ana\"'\\|@é".to_owned()));
        assert_eq!(told("a\u{202e}b"), Ok("a\\u{202e}b".to_owned()));
    }

    #[test]
    fn users_with_a_uuid_are_found_by_it_however_it_is_written() {
        let id = Uuid::from_u128(7);
        assert_eq!(UserId::from(id).as_uuid(), Some(id));
        assert_eq!(UserId::new(id.simple().to_string()).map(|user| user.as_uuid()), Ok(Some(id)));
        assert_eq!(UserId::new("17").map(|user| user.as_uuid()), Ok(None));
    }
}
