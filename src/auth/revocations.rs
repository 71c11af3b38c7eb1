//! The credentials that operators have revoked. Does no I/O: the part `revocations` reads the list.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use jsonwebtoken::EncodingKey;
use serde::{Deserialize, Serialize};

use super::error::AuthError;
use super::user_id::UserId;

/// Not a secret: it keeps the marks of tokens from being other hashes of the same text.
const MARK_TOKENS: &[u8] = b"aftercommit: ids of tokens";

/// The length of a mark in characters: 132 bits.
const MARK_CHARS: usize = 22;

/// Which of a user's tokens one is. A ticket has the same as the token for which it was issued.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Credential {
    /// When it was issued (`iat`), in seconds since 1970. `None` counts as before every revocation.
    pub issued_at: Option<i64>,
    /// Its id (`jti`), if it has one.
    pub token: Option<TokenMark>,
}

/// Stands for a token's id, which may be of any length: the beginning of its hash.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TokenMark(Arc<str>);

impl TokenMark {
    /// The mark of the token with this id.
    ///
    /// # Errors
    /// [`AuthError::Signing`] if the hash cannot be made.
    pub fn of(id: &str) -> Result<Self, AuthError> {
        let key = EncodingKey::from_secret(MARK_TOKENS);
        let hash = jsonwebtoken::crypto::sign(id.as_bytes(), &key, jsonwebtoken::Algorithm::HS256);
        let mut mark = hash.map_err(AuthError::Signing)?;
        mark.truncate(MARK_CHARS);
        Ok(Self(mark.into()))
    }
}

/// All revocations. Times are in seconds since 1970.
#[derive(Clone, Default)]
pub struct Revoked {
    users: HashMap<Box<str>, i64>,
    topics: HashMap<Box<str>, i64>,
    tokens: HashSet<TokenMark>,
}

impl fmt::Debug for Revoked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Users and topics are left out.
        f.debug_struct("Revoked").field("count", &self.len()).finish()
    }
}

impl Revoked {
    /// All credentials of a user that were issued until `at`, the whole of that second included.
    pub fn add_user(&mut self, user: String, at: i64) {
        self.users.insert(user.into(), at);
    }

    /// All credentials that were issued until `at`, for this topic.
    pub fn add_topic(&mut self, topic: String, at: i64) {
        self.topics.insert(topic.into(), at);
    }

    /// One token, and its tickets.
    pub fn add_token(&mut self, token: TokenMark) {
        self.tokens.insert(token);
    }

    /// The number of revocations.
    pub fn len(&self) -> usize {
        self.users.len() + self.topics.len() + self.tokens.len()
    }

    /// Whether nothing is revoked.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn has(&self, user: &UserId, credential: &Credential) -> bool {
        credential.token.as_ref().is_some_and(|token| self.tokens.contains(token))
            || self.users.get(user.as_str()).is_some_and(|at| is_before(credential, *at))
    }

    fn has_topic(&self, topic: &str, credential: &Credential) -> bool {
        self.topics.get(topic).is_some_and(|at| is_before(credential, *at))
    }
}

/// Whether it was issued before, or in the same second: `iat` says no more.
fn is_before(credential: &Credential, at: i64) -> bool {
    credential.issued_at.is_none_or(|issued_at| issued_at <= at)
}

/// The list of a process, which is replaced when it changes. Cheap to clone; clones share it. By default
/// nothing is revoked.
#[derive(Debug, Clone)]
pub struct Revocations(Arc<RwLock<Option<Arc<Revoked>>>>);

impl Default for Revocations {
    fn default() -> Self {
        Self(Arc::new(RwLock::new(Some(Arc::default()))))
    }
}

impl Revocations {
    /// A list that has not been read yet: nobody is admitted until it is.
    pub fn unread() -> Self {
        Self(Arc::default())
    }

    /// Takes over a list that has been read.
    pub fn replace(&self, revoked: Revoked) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(revoked));
    }

    fn known(&self) -> Option<Arc<Revoked>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Refuses a user's credential that is revoked as a whole.
    pub(super) fn check_user(&self, user: &UserId, credential: &Credential) -> Result<(), AuthError> {
        let known = self.known().ok_or(AuthError::RevocationsUnknown)?;
        if known.has(user, credential) { Err(AuthError::Revoked) } else { Ok(()) }
    }

    /// Refuses a credential that is revoked for one of these topics.
    pub(super) fn check_topics<'a>(
        &self,
        credential: &Credential,
        topics: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), AuthError> {
        let known = self.known().ok_or(AuthError::RevocationsUnknown)?;
        match topics.into_iter().find(|topic| known.has_topic(topic, credential)) {
            Some(topic) => Err(AuthError::RevokedTopic(topic.to_owned())),
            None => Ok(()),
        }
    }

    /// Whether a stream of these topics must end that this credential has opened.
    pub fn is_revoked<'a>(
        &self,
        user: &UserId,
        credential: &Credential,
        mut topics: impl Iterator<Item = &'a str>,
    ) -> bool {
        let Some(known) = self.known() else { return false };
        known.has(user, credential) || topics.any(|topic| known.has_topic(topic, credential))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> UserId {
        UserId::new(name).expect("a user")
    }

    fn issued(at: Option<i64>) -> Credential {
        Credential { issued_at: at, token: TokenMark::of("7").ok() }
    }

    fn list(fill: impl FnOnce(&mut Revoked)) -> Revocations {
        let (list, mut revoked) = (Revocations::unread(), Revoked::default());
        fill(&mut revoked);
        list.replace(revoked);
        list
    }

    #[test]
    fn a_users_credentials_of_before_and_of_the_same_second_are_revoked_and_later_ones_are_not() {
        let list = list(|revoked| revoked.add_user("ana".to_owned(), 100));
        let is_revoked = |name, at| list.is_revoked(&user(name), &issued(at), std::iter::empty());
        assert!(is_revoked("ana", Some(99)) && is_revoked("ana", Some(100)) && is_revoked("ana", None));
        assert!(!is_revoked("ana", Some(101)));
        assert!(!is_revoked("bob", Some(99)) && !is_revoked("bob", None));
    }

    #[test]
    fn a_stream_ends_with_any_of_its_topics_and_with_its_token() {
        let ana = user("ana");
        let topics = || ["a", "b"].into_iter();
        let of_topic = list(|revoked| revoked.add_topic("b".to_owned(), 100));
        assert!(of_topic.is_revoked(&ana, &issued(Some(100)), topics()));
        assert!(!of_topic.is_revoked(&ana, &issued(Some(101)), topics()));
        assert!(!of_topic.is_revoked(&ana, &issued(None), ["a"].into_iter()));
        let of_token = list(|revoked| revoked.add_token(TokenMark::of("7").expect("a mark")));
        assert!(of_token.is_revoked(&ana, &issued(Some(i64::MAX)), topics()));
        let other = Credential { issued_at: None, token: TokenMark::of("8").ok() };
        assert!(!of_token.is_revoked(&ana, &other, topics()));
        assert!(!of_token.is_revoked(&ana, &Credential::default(), topics()));
    }

    #[test]
    fn nobody_is_admitted_before_the_list_has_been_read() {
        let unread = Revocations::unread();
        assert!(matches!(unread.check_topics(&issued(Some(1)), ["a"]), Err(AuthError::RevocationsUnknown)));
        unread.replace(Revoked::default());
        assert!(unread.check_topics(&issued(Some(1)), ["a"]).is_ok());
    }
}
