//! Signing in and out. The browser sends the token once and receives a cookie, which no script can read and
//! which is sent only to this page. A token in a header would not work for the event stream: a browser cannot
//! set its headers.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::rejection::FormRejection;
use axum::extract::{Extension, Form, FromRequest, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::access::{self, COOKIE, Identity};
use super::pages::{self, SignInError};
use super::{PATH, Shared, sessions};
use crate::http::{Connection, OperatorRefusal, is_same_origin};

/// The longest name of an operator, in characters.
const NAME_LEN_MAX: usize = 60;

/// The sign-in form.
#[derive(Deserialize)]
struct SignIn {
    who: String,
    token: SecretString,
}

/// `POST /console/sign-in`: a form, so that it works without any script.
pub(super) async fn sign_in(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    if !shared.parts.gate.can_open() {
        return pages::no_token();
    }
    // Otherwise a page of another origin could sign a browser in under a name of its choice.
    if !is_same_origin(request.headers()) {
        return access::elsewhere().into_response();
    }
    let is_secure = came_by_https(request.headers());
    let extensions = request.extensions().clone();
    let form: Result<Form<SignIn>, FormRejection> = Form::from_request(request, &()).await;
    let Ok(Form(form)) = form else {
        return pages::sign_in(StatusCode::BAD_REQUEST, SignInError::NotAForm);
    };
    let Some(who) = name(&form.who) else {
        return pages::sign_in(StatusCode::BAD_REQUEST, SignInError::NoName);
    };
    match shared.parts.gate.admit(Some(form.token.expose_secret().trim()), &extensions) {
        Ok(()) => {}
        Err(OperatorRefusal::TooMany(_)) => {
            return pages::sign_in(StatusCode::TOO_MANY_REQUESTS, SignInError::TooMany);
        }
        Err(_) => return pages::sign_in(StatusCode::UNAUTHORIZED, SignInError::WrongToken),
    }
    let client = extensions.get::<Connection>().map(|connection| connection.client);
    tracing::info!(?client, who, "an operator has signed in to the console");
    let id = shared.sessions.begin(who, Instant::now());
    let cookie = cookie(&id, sessions::LASTS.as_secs(), is_secure);
    ([(header::SET_COOKIE, cookie)], Redirect::to(PATH)).into_response()
}

/// `POST /console/sign-out`.
pub(super) async fn sign_out(
    State(shared): State<Arc<Shared>>,
    Extension(identity): Extension<Identity>,
    headers: HeaderMap,
) -> Response {
    if let Some(session) = &identity.session {
        shared.sessions.end(session);
    }
    (StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie("", 0, came_by_https(&headers)))]).into_response()
}

/// The operator who is signed in.
#[derive(Serialize)]
pub(super) struct Who {
    who: String,
}

/// `GET /console/session`: tells a page that has lost its stream whether its sign-in has ended too.
pub(super) async fn who(Extension(identity): Extension<Identity>) -> axum::Json<Who> {
    axum::Json(Who { who: identity.who })
}

/// A name for the audit log, without control characters.
fn name(text: &str) -> Option<String> {
    let name: String = text.trim().chars().filter(|c| !c.is_control()).take(NAME_LEN_MAX).collect();
    (!name.is_empty()).then_some(name)
}

fn cookie(id: &str, seconds: u64, is_secure: bool) -> HeaderValue {
    let secure = if is_secure { "; Secure" } else { "" };
    let text = format!("{COOKIE}={id}; Path={PATH}; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}");
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""))
}

/// Whether a proxy reports that the browser uses TLS. A client that lies here harms only its own cookie.
fn came_by_https(headers: &HeaderMap) -> bool {
    headers.get("x-forwarded-proto").is_some_and(|proto| proto.as_bytes().eq_ignore_ascii_case(b"https"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_something_that_can_be_printed() {
        assert_eq!(name("  Ana \u{1b}[31m\n"), Some("Ana [31m".to_owned()));
        assert_eq!(name(" \n"), None);
        assert_eq!(name(&"x".repeat(1000)).map(|name| name.len()), Some(NAME_LEN_MAX));
    }

    #[test]
    fn the_cookie_goes_to_the_page_alone_and_no_script_reads_it() {
        let text = cookie("abc", 60, true);
        assert_eq!(
            text,
            ("aftercommit_console=abc; Path=/console; Max-Age=60; HttpOnly; SameSite=Strict; Secure")
        );
    }
}
