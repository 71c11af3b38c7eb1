//! `POST /admin/revoke`. Does not check who asks: the caller mounts it behind the operators' gate.

use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use chrono::SecondsFormat;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::event::Topic;
use crate::http::{Json, Problem, request_timeout};
use crate::log;
use crate::ops::audit::Operator;
use crate::ops::revoke::{self, Target};
use crate::postgres::Pool;

/// Characters of a reason at most, as on the operator's page.
const REASON_LEN_MAX: usize = 500;
/// The largest body, in bytes.
const BODY_BYTES_MAX: usize = 16 * 1024;
/// How long the answer may take.
const TAKES: Duration = Duration::from_secs(5);
/// The name in the audit log of an operator who sends the token.
const WHO: &str = "admin endpoint";

/// `POST /admin/revoke` with `{"user": …}`, `{"topic": …}` or `{"token": …}`, and `"reason"`.
pub fn admin(pool: Pool) -> Router {
    Router::new()
        .route("/admin/revoke", post(revoke_one))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(TAKES, request_timeout))
        .with_state(pool)
}

/// Exactly one of the first three.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    user: Option<String>,
    topic: Option<String>,
    token: Option<String>,
    #[serde(default)]
    reason: String,
}

impl Wanted {
    fn parsed(self) -> Result<(Target, Operator), Problem> {
        let target = match (self.user, self.topic, self.token) {
            (Some(user), None, None) => Target::User(user),
            (None, Some(topic), None) => Target::Topic(topic),
            (None, None, Some(token)) => Target::Token(token),
            _ => return Err(Problem::bad_request("send one of 'user', 'topic' and 'token'")),
        };
        check(&target)?;
        // Control characters would steer a terminal on which the audit is read.
        let reason: String = self.reason.trim().chars().filter(|c| !c.is_control()).collect();
        if reason.is_empty() || reason.chars().count() > REASON_LEN_MAX {
            let detail =
                format!("give a 'reason' of 1 to {REASON_LEN_MAX} characters: it is kept in the audit");
            return Err(Problem::bad_request(detail));
        }
        Ok((target, Operator { who: WHO.to_owned(), reason }))
    }
}

/// Refuses what no token can have, so that a slip does not look like a revocation.
fn check(target: &Target) -> Result<(), Problem> {
    let checked = match target {
        Target::User(user) => {
            crate::auth::UserId::new(user.as_str()).map(drop).map_err(|error| error.to_string())
        }
        Target::Topic(topic) => Topic::new(topic.as_str()).map(drop).map_err(|error| error.to_string()),
        Target::Token(id) if id.is_empty() || id.contains('\0') => {
            Err("'token' is a token's 'jti'".to_owned())
        }
        Target::Token(_) => Ok(()),
    };
    checked.map_err(Problem::bad_request)
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Done {
    revoked: Value,
    issued_until: String,
}

async fn revoke_one(State(pool): State<Pool>, Json(wanted): Json<Wanted>) -> Result<Response, Problem> {
    let (target, operator) = wanted.parsed()?;
    let done = async {
        let mut tx = pool.begin().await?;
        let at = revoke::revoke(&mut tx, &target, &operator).await?;
        tx.commit().await?;
        Ok::<_, log::Error>(at)
    };
    let at = done.await.map_err(|error| {
        tracing::warn!(%error, "a revocation was not written");
        Problem::unavailable(
            "the revocation was not written: this server reports the cause in its log (a missing right is \
             granted by `aftercommit grants --operator`)",
        )
    })?;
    let revoked = serde_json::to_value(&target).unwrap_or_default();
    let body = Done { revoked, issued_until: at.to_rfc3339_opts(SecondsFormat::Secs, true) };
    Ok(([(header::CACHE_CONTROL, "no-store")], axum::Json(body)).into_response())
}
