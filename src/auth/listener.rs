//! The user who opens a stream, by header, ticket or cookie. An EventSource in a browser can send only the
//! last two.

use std::sync::Arc;

use axum::extract::{FromRef, FromRequestParts};
use axum::http::header;
use axum::http::request::Parts;

use super::revocations::Revocations;
use super::tickets::TicketTopics;
use super::user::User;
use super::user_id::UserId;
use super::verifier::Verifier;
use crate::http::{Connection, Problem, bearer};

/// The user who asks for a stream.
///
/// The server uses the first credential it finds: `Authorization: Bearer`, the query's `ticket`, the cookie
/// that `jwt.cookie` names. If that one is not valid, the request is refused; later ones are not tried.
/// Handlers of commands take [`User`] instead, which ignores the cookie: a browser sends cookies along with
/// requests from other sites, so a cookie alone must not change anything.
#[derive(Debug, Clone)]
pub struct Listener {
    user: User,
    /// The topics that the ticket covers, if the user came with a ticket.
    only: Option<TicketTopics>,
    revocations: Revocations,
}

impl Listener {
    /// The user's id.
    pub fn id(&self) -> &UserId {
        &self.user.id
    }

    /// Whether the `subscribe` claim allows this topic: the token's own, or that of the token for which the
    /// ticket was issued.
    pub fn may_subscribe(&self, topic: &str) -> bool {
        match &self.only {
            Some(topics) => topics.may_subscribe(topic),
            None => self.user.may_subscribe(topic),
        }
    }

    /// The user, if the credential is valid for all of these topics. The caller decides whether the user may
    /// read them.
    ///
    /// # Errors
    /// 403 if the credential is a ticket that does not cover every topic; 401 if an operator has revoked the
    /// credentials for one of them.
    pub fn of_topics<'a>(
        self,
        topics: impl IntoIterator<Item = &'a str, IntoIter: Clone>,
    ) -> Result<User, Problem> {
        let topics = topics.into_iter();
        let uncovered = self.only.as_ref().and_then(|only| topics.clone().find(|topic| !only.covers(topic)));
        if let Some(topic) = uncovered {
            return Err(Problem::forbidden(format!(
                "this ticket is not for the topic {topic}: name it in POST /api/stream-tickets"
            )));
        }
        self.revocations.check_topics(&self.user.credential, topics)?;
        Ok(self.user)
    }

    /// The user, if the credential is valid for all of these topics and its `subscribe` claim allows them.
    ///
    /// # Errors
    /// 403 if the claim does not allow a topic; 401 and 403 as of [`Self::of_topics`], which come first.
    pub fn subscriber_of<'a>(
        self,
        topics: impl IntoIterator<Item = &'a str, IntoIter: Clone>,
    ) -> Result<User, Problem> {
        let topics = topics.into_iter();
        let unlisted = topics.clone().find(|topic| !self.may_subscribe(topic));
        let user = self.of_topics(topics)?;
        match unlisted {
            Some(topic) => Err(Problem::forbidden(format!(
                "the token's claim 'subscribe' does not allow the topic {topic}: get one that lists it, or \
                 its beginning and *"
            ))),
            None => Ok(user),
        }
    }

    /// The user, if the credential is a token, and valid for all of these topics. A ticket cannot be used to
    /// get further tickets.
    ///
    /// # Errors
    /// 403 if the credential is a ticket; 401 as of [`Self::of_topics`].
    pub fn with_token<'a>(
        self,
        topics: impl IntoIterator<Item = &'a str, IntoIter: Clone>,
    ) -> Result<User, Problem> {
        match self.only {
            Some(_) => Err(Problem::forbidden("a ticket only opens streams: send the token")),
            None => self.of_topics(topics),
        }
    }
}

impl<S> FromRequestParts<S> for User
where
    Arc<Verifier>: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let verifier = Arc::<Verifier>::from_ref(state);
        let token = bearer(&parts.headers).ok_or_else(|| {
            Problem::unauthorized("send a token: the header Authorization: Bearer <token> is missing")
        })?;
        let user = verifier.verify(token).await?;
        vouch(parts);
        Ok(user)
    }
}

impl<S> FromRequestParts<S> for Listener
where
    Arc<Verifier>: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let listener = Self::of(parts, &Arc::<Verifier>::from_ref(state)).await?;
        vouch(parts);
        Ok(listener)
    }
}

impl Listener {
    async fn of(parts: &Parts, verifier: &Verifier) -> Result<Self, Problem> {
        let of = |user, only| Self { user, only, revocations: verifier.revocations().clone() };
        if let Some(token) = bearer(&parts.headers) {
            return Ok(of(verifier.verify(token).await?, None));
        }
        if let Some(ticket) = ticket(parts) {
            let (user, topics) = verifier.verify_ticket(ticket)?;
            return Ok(of(user, Some(topics)));
        }
        let token = cookie(parts, verifier.cookie()).ok_or_else(|| {
            let cookie = match verifier.cookie() {
                "" => String::new(),
                name => format!(", in the cookie {name}"),
            };
            Problem::unauthorized(format!(
                "send a token: as Authorization: Bearer <token>{cookie}, or a ticket \
                 from POST /api/stream-tickets as ?ticket="
            ))
        })?;
        Ok(of(verifier.verify(token).await?, None))
    }
}

/// Keeps the connection of a request with a valid token from giving way to others while the request is in
/// hand.
fn vouch(parts: &Parts) {
    if let Some(connection) = parts.extensions.get::<Connection>() {
        connection.vouch();
    }
}

/// The query's ticket. It has only letters, digits, `-`, `_` and `.`, so it needs no decoding. Of several
/// tickets the last one counts, because clients append a new ticket after the old one.
fn ticket(parts: &Parts) -> Option<&str> {
    parts.uri.query()?.rsplit('&').find_map(|pair| pair.strip_prefix("ticket="))
}

/// The cookie of this name; `None` for an empty name.
fn cookie<'a>(parts: &'a Parts, name: &str) -> Option<&'a str> {
    let headers = parts.headers.get_all(header::COOKIE).iter();
    let mut pairs = headers.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(';'));
    pairs.find_map(|pair| {
        let (found, value) = pair.trim().split_once('=')?;
        (found == name && !name.is_empty()).then_some(value)
    })
}
