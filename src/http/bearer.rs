//! The token of a request's `Authorization: Bearer` header.

use axum::http::{HeaderMap, header};

/// The token of an `Authorization: Bearer …` header. The scheme is case-insensitive (RFC 9110, 11.1). Tokens
/// of other schemes are ignored.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_is_bearer_in_any_case_and_no_other() {
        let token = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().expect("a value"));
            bearer(&headers).map(str::to_owned)
        };
        for taken in ["Bearer t", "bearer t", "BEARER  t "] {
            assert_eq!(token(taken).as_deref(), Some("t"), "{taken}");
        }
        for other in ["Basic t", "Bearer", "Bearert", "Bear t", "t", " t"] {
            assert_eq!(token(other), None, "{other}");
        }
        assert_eq!(bearer(&HeaderMap::new()), None);
    }
}
