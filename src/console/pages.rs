//! The files of `assets`, compiled in.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};

use super::{PATH, Shared, access};
use crate::http::{Path, Problem, guard_page};

const CONSOLE: &str = include_str!("assets/console.html");
const SIGN_IN: &str = include_str!("assets/sign-in.html");
const NO_TOKEN: &str = include_str!("assets/no-token.html");

/// Places in the sign-in page: for an error, and for making the browser repeat its request.
const ERROR_PLACE: &str = "<!-- error -->";
const ONCE_MORE_PLACE: &str = "<!-- once more -->";

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
/// The files with their names and types.
const ASSETS: [(&str, &str, &str); 11] = [
    ("style.css", "text/css; charset=utf-8", include_str!("assets/style.css")),
    ("icon.svg", "image/svg+xml", include_str!("assets/icon.svg")),
    ("main.js", JAVASCRIPT, include_str!("assets/main.js")),
    ("feed.js", JAVASCRIPT, include_str!("assets/feed.js")),
    ("chart.js", JAVASCRIPT, include_str!("assets/chart.js")),
    ("status.js", JAVASCRIPT, include_str!("assets/status.js")),
    ("lists.js", JAVASCRIPT, include_str!("assets/lists.js")),
    ("ask.js", JAVASCRIPT, include_str!("assets/ask.js")),
    ("replay.js", JAVASCRIPT, include_str!("assets/replay.js")),
    ("dom.js", JAVASCRIPT, include_str!("assets/dom.js")),
    ("text.js", JAVASCRIPT, include_str!("assets/text.js")),
];

/// Adds the headers of a page to an answer.
pub(super) async fn guard(mut response: Response) -> Response {
    guard_page(&mut response, "");
    response
}

/// `GET /`.
pub(super) async fn to_console() -> Redirect {
    Redirect::to(PATH)
}

/// `GET /console`: the page, the sign-in, or the page without a token.
pub(super) async fn console(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    if !shared.parts.gate.can_open() {
        return no_token();
    }
    let session = access::session(&headers);
    if session.and_then(|id| shared.sessions.who(id, Instant::now())).is_some() {
        return html(StatusCode::OK, CONSOLE.to_owned());
    }
    // After a link on another site, a browser leaves the cookie out. It sends the cookie when this page makes
    // it repeat the request.
    let from = headers.get("sec-fetch-site").and_then(|site| site.to_str().ok());
    let once_more = match from {
        Some("cross-site" | "same-site") => "<meta http-equiv=\"refresh\" content=\"0; url=/console\">",
        _ => "",
    };
    html(StatusCode::OK, SIGN_IN.replace(ONCE_MORE_PLACE, once_more))
}

/// An error on the sign-in page.
#[derive(Debug, Clone, Copy)]
pub(super) enum SignInError {
    NotAForm,
    NoName,
    WrongToken,
    TooMany,
}

impl SignInError {
    fn text(self) -> &'static str {
        match self {
            Self::NotAForm => "The form is not complete. Please try again.",
            Self::NoName => "Please enter your name: it is kept in the audit log.",
            Self::WrongToken => "This is not the operators’ token.",
            Self::TooMany => "Too many wrong tokens came from your address. Wait a second, then try again.",
        }
    }
}

/// The sign-in page with an error.
pub(super) fn sign_in(status: StatusCode, error: SignInError) -> Response {
    let text = format!("<p class=\"error-text\" role=\"alert\">{}</p>", error.text());
    html(status, SIGN_IN.replace(ERROR_PLACE, &text))
}

/// The page if no token is configured. It says how to set one.
pub(super) fn no_token() -> Response {
    html(StatusCode::FORBIDDEN, NO_TOKEN.to_owned())
}

fn html(status: StatusCode, text: String) -> Response {
    (status, axum::response::Html(text)).into_response()
}

/// `GET /console/assets/{name}`. The files are not secret, and the sign-in page uses them too.
pub(super) async fn asset(Path(name): Path<String>) -> Response {
    match ASSETS.iter().find(|(known, ..)| *known == name) {
        // Browsers ask again each time, so that a new version of the relay brings its new page.
        Some((_, kind, text)) => {
            let headers = [(header::CONTENT_TYPE, *kind), (header::CACHE_CONTROL, "no-cache")];
            (headers, *text).into_response()
        }
        None => Problem::not_found("there is no such file").into_response(),
    }
}
