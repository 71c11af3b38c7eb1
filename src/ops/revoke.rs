//! Revoking credentials: of a user, for a topic, or one token.
//!
//! The SSE servers keep the list in memory (the part `revocations`). The notification is a part of the
//! transaction, so they hear of each revocation that is committed. A server that does not hear of one finds
//! it in the list, which it reads again now and then.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::{PgConnection, Row};

use super::audit::{self, Operator};
use crate::log::{Error, time};

/// The channel on which revocations are told. Notifications carry nothing.
pub const CHANNEL: &str = "outbox_revoked";

/// The credentials that are revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// All of a user: the text of `sub`.
    User(String),
    /// All of everybody, for this topic.
    Topic(String),
    /// The token with this id (`jti`), and its tickets.
    Token(String),
}

impl Target {
    fn kind(&self) -> &'static str {
        match self {
            Self::User(_) => "user",
            Self::Topic(_) => "topic",
            Self::Token(_) => "token",
        }
    }

    fn subject(&self) -> &str {
        match self {
            Self::User(text) | Self::Topic(text) | Self::Token(text) => text,
        }
    }

    fn of(kind: &str, subject: String) -> Option<Self> {
        match kind {
            "user" => Some(Self::User(subject)),
            "topic" => Some(Self::Topic(subject)),
            "token" => Some(Self::Token(subject)),
            _ => None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.subject().escape_debug())
    }
}

/// A revocation: credentials that were issued until its time are refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// The user, topic or token whose credentials are revoked.
    pub target: Target,
    /// When.
    pub at: DateTime<Utc>,
}

/// Revokes the credentials that were issued until now, writes that into the audit, and tells the servers at
/// the commit. Returns the time. Call it in a transaction.
///
/// # Errors
/// [`Error`].
pub async fn revoke(
    tx: &mut PgConnection,
    target: &Target,
    operator: &Operator,
) -> Result<DateTime<Utc>, Error> {
    let row = sqlx::query(
        "insert into outbox.revocation (kind, subject, who, reason) values ($1, $2, $3, $4)
         on conflict (kind, subject) do update
         set at = excluded.at, who = excluded.who, reason = excluded.reason
         returning at",
    )
    .bind(target.kind())
    .bind(target.subject())
    .bind(&operator.who)
    .bind(&operator.reason)
    .fetch_one(&mut *tx)
    .await?;
    let selection = json!({ target.kind(): target.subject() });
    audit::write(&mut *tx, operator, "revoke", &selection, 0).await?;
    sqlx::query("select pg_catalog.pg_notify($1, '')").bind(CHANNEL).execute(&mut *tx).await?;
    Ok(time::shown(&row, "at")?)
}

/// All revocations.
///
/// # Errors
/// [`Error`].
pub async fn list(connection: &mut PgConnection) -> Result<Vec<Revocation>, Error> {
    let rows = sqlx::query("select kind, subject, at from outbox.revocation").fetch_all(connection).await?;
    let mut list = Vec::with_capacity(rows.len());
    for row in &rows {
        let kind: String = row.try_get("kind")?;
        let at = time::shown(row, "at")?;
        // A newer program may know more kinds.
        list.extend(Target::of(&kind, row.try_get("subject")?).map(|target| Revocation { target, at }));
    }
    Ok(list)
}
