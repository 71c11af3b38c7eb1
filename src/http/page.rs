//! Pages that a process shows in a browser: the headers that keep foreign content out, and the check that a
//! request comes from the page itself.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::Response;

/// Headers of every answer, besides the policy. Browsers never show the page inside another one.
const GUARDS: [(HeaderName, &str); 5] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Adds the headers of a page to an answer. Browsers then run and load only files of this server, call only
/// this server and the origins in `calls` (separated by spaces), and never build markup from texts.
pub fn guard_page(response: &mut Response, calls: &str) {
    let policy = format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
         connect-src {}; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'",
        format!("'self' {calls}").trim_end()
    );
    // Origins that no header can carry are not allowed either.
    let policy = HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    for (name, value) in GUARDS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}

/// Whether the request's headers show that it comes from a page of this origin. A request without both
/// headers does not come from a browser's page: all browsers send `Origin` with a POST.
pub fn is_same_origin(headers: &HeaderMap) -> bool {
    if let Some(site) = text(headers, "sec-fetch-site") {
        return site == "same-origin";
    }
    let origin = text(headers, header::ORIGIN.as_str()).and_then(|origin| origin.split_once("://"));
    origin.is_some_and(|(_scheme, host)| text(headers, header::HOST.as_str()) == Some(host))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().expect("a value"));
        }
        headers
    }

    #[test]
    fn only_a_page_of_this_very_origin_counts_as_one() {
        let host = ("host", "relay:8082");
        for (sent, expected) in [
            (&[host, ("sec-fetch-site", "same-origin")][..], true),
            (&[host, ("sec-fetch-site", "same-site"), ("origin", "http://relay:8082")], false),
            (&[host, ("sec-fetch-site", "cross-site")], false),
            (&[host, ("sec-fetch-site", "none")], false),
            (&[host, ("origin", "http://relay:8082")], true),
            (&[host, ("origin", "http://relay:9000")], false),
            (&[host, ("origin", "null")], false),
            (&[host], false),
        ] {
            assert_eq!(is_same_origin(&headers(sent)), expected, "{sent:?}");
        }
    }

    #[test]
    fn a_page_calls_its_own_server_and_the_named_origins_only() {
        let policy = |calls: &str| {
            let mut response = Response::default();
            guard_page(&mut response, calls);
            let policy = response.headers()[header::CONTENT_SECURITY_POLICY].clone();
            policy.to_str().expect("a text").to_owned()
        };
        assert!(policy("").contains("connect-src 'self'; form-action"), "{}", policy(""));
        let two = policy("http://127.0.0.1:1 http://127.0.0.1:2");
        assert!(two.contains("connect-src 'self' http://127.0.0.1:1 http://127.0.0.1:2;"), "{two}");
        assert_eq!(policy("http://a\nb"), "default-src 'none'");
    }
}
