//! Who opens a stream: by header, by ticket or by cookie, as an EventSource has only the last two.

use std::sync::Arc;

use axum::extract::{FromRef, FromRequestParts};
use axum::http::header;
use axum::http::request::Parts;

use super::tickets::TicketTopics;
use super::user::User;
use super::user_id::UserId;
use super::verifier::Verifier;
use crate::http::{Connection, Problem, bearer};

/// Somebody who wants to listen.
///
/// Taken in this order: `Authorization: Bearer`, the query's `ticket`, the cookie that `jwt.cookie` names. The first that
/// is there decides; one that is not valid is refused, and not passed over. Commands do not take this extractor but
/// [`User`], so that a cookie alone, which a browser sends along from any site, never changes anything.
#[derive(Debug, Clone)]
pub struct Listener {
    user: User,
    /// The topics that a ticket is good for.
    only: Option<TicketTopics>,
}

impl Listener {
    /// Who it is.
    pub fn id(&self) -> &UserId {
        &self.user.id
    }

    /// Whether the token's `subscribe` claim allows this topic, or that of the token with which the ticket was made.
    pub fn may_subscribe(&self, topic: &str) -> bool {
        match &self.only {
            Some(topics) => topics.may_subscribe(topic),
            None => self.user.may_subscribe(topic),
        }
    }

    /// The user, if they may use what they came with for all of these topics. Whether the topics are theirs the caller
    /// decides.
    ///
    /// # Errors
    /// 403 where it is a ticket that does not cover each of them.
    pub fn of_topics<'a>(self, topics: impl IntoIterator<Item = &'a str>) -> Result<User, Problem> {
        let Some(only) = self.only else { return Ok(self.user) };
        match topics.into_iter().find(|topic| !only.covers(topic)) {
            Some(topic) => Err(Problem::forbidden(format!(
                "this ticket is not for the topic {topic}: name it in POST /api/stream-tickets"
            ))),
            None => Ok(self.user),
        }
    }

    /// The user, if they came with a token and not with a ticket: a ticket makes no further tickets.
    ///
    /// # Errors
    /// 403 where it is a ticket.
    pub fn with_token(self) -> Result<User, Problem> {
        match self.only {
            Some(_) => Err(Problem::forbidden("a ticket opens streams and nothing else: send the token")),
            None => Ok(self.user),
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
        if let Some(token) = bearer(&parts.headers) {
            return Ok(Self { user: verifier.verify(token).await?, only: None });
        }
        if let Some(ticket) = ticket(parts) {
            let (user, topics) = verifier.verify_ticket(ticket)?;
            return Ok(Self { user, only: Some(topics) });
        }
        let token = cookie(parts, verifier.cookie()).ok_or_else(|| {
            let cookie = match verifier.cookie() {
                "" => String::new(),
                name => format!(", in the cookie {name}"),
            };
            Problem::unauthorized(format!(
                "send a token: as Authorization: Bearer <token>{cookie}, or a ticket from POST /api/stream-tickets as ?ticket="
            ))
        })?;
        Ok(Self { user: verifier.verify(token).await?, only: None })
    }
}

/// The connection of a request whose token is valid does not give way to others while the request is in hand.
fn vouch(parts: &Parts) {
    if let Some(connection) = parts.extensions.get::<Connection>() {
        connection.vouch();
    }
}

/// The query's ticket: letters, digits, `-`, `_` and `.` only, so nothing to decode. Of several the last counts: clients
/// that get a new one add it behind the old one.
fn ticket(parts: &Parts) -> Option<&str> {
    parts.uri.query()?.rsplit('&').find_map(|pair| pair.strip_prefix("ticket="))
}

/// The cookie of this name; an empty name is none's.
fn cookie<'a>(parts: &'a Parts, name: &str) -> Option<&'a str> {
    let headers = parts.headers.get_all(header::COOKIE).iter();
    let mut pairs = headers.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(';'));
    pairs.find_map(|pair| {
        let (found, value) = pair.trim().split_once('=')?;
        (found == name && !name.is_empty()).then_some(value)
    })
}
