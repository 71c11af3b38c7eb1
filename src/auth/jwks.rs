//! The issuer's public keys by URL (JWKS, RFC 7517): fetched in the background, and sooner for an unknown
//! key.
//!
//! One task does all fetching and rests after each fetch, so tokens cannot make it ask the issuer more often.
//! A token with an unknown key waits for the next fetch, because a refusal would end its page's stream for
//! ever. The number of waiting tokens and the time that they wait are limited. Keys stay valid while the
//! issuer is away, until it lists other keys or none.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jsonwebtoken::DecodingKey;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use reqwest::{StatusCode, Url, redirect};
use serde::Deserialize;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::error::AuthError;
use super::settings::{Algorithm, Settings};
use crate::failpoint;

/// The time limit of one fetch.
const FETCH_LIMIT: Duration = Duration::from_secs(5);
/// The largest list that is accepted, in bytes.
const BYTES_MAX: usize = 256 * 1024;
/// The longest time that a token waits for a fetch. It spans the default cooldown and is shorter than the
/// default request timeout.
const WAIT_LIMIT: Duration = Duration::from_secs(12);
/// The largest number of tokens that wait at once. Each occupies a connection, and a client that invents key
/// names must not occupy them all.
const WAITING_MAX: usize = 256;

/// The reason why the list could not be fetched. Does not contain the URL.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error(
        "there are no CA certificates to check https by ({}): install the package ca-certificates, or name a \
         file of them in SSL_CERT_FILE",
        innermost(.0)
    )]
    NoCertificates(#[source] reqwest::Error),
    #[error("it cannot be reached: {}", innermost(.0))]
    Unreachable(#[source] reqwest::Error),
    #[error("no answer within {} s", FETCH_LIMIT.as_secs())]
    Late,
    #[error("it answers with status {0} (redirects are not followed)")]
    Status(StatusCode),
    #[error("its answer has more than {BYTES_MAX} bytes")]
    TooLarge,
    #[error("its answer is not a list of keys: {{\"keys\": [...]}}")]
    Malformed,
    #[error("keys that it lists: {0}, and none for {1:?}")]
    NoKey(usize, Algorithm),
}

impl FetchError {
    /// Whether the issuer itself gave this answer: it lists no usable key, and so withdraws the keys that it
    /// listed before.
    fn is_told(&self) -> bool {
        matches!(self, Self::NoKey(..))
    }
}

/// The message of the last error in a chain of causes, which comes from the operating system or the TLS
/// library.
fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// The keys of one fetch.
pub(super) struct KeySet {
    keys: Vec<(Option<String>, DecodingKey)>,
    /// The number of keys for other algorithms and uses.
    pub(super) left_out: usize,
    fetched: Instant,
}

impl KeySet {
    /// Keeps the keys that fit the algorithm. Leaves out others and unknown kinds.
    fn parse(text: &[u8], algorithm: Algorithm) -> Result<Self, FetchError> {
        #[derive(Deserialize)]
        struct List {
            keys: Vec<serde_json::Value>,
        }
        let list: List = serde_json::from_slice(text).map_err(|_| FetchError::Malformed)?;
        let listed = list.keys.len();
        let keys: Vec<_> = list
            .keys
            .into_iter()
            .filter_map(|value| serde_json::from_value::<Jwk>(value).ok())
            .filter(|jwk| fits(jwk, algorithm))
            .filter_map(|jwk| Some((jwk.common.key_id.clone(), DecodingKey::from_jwk(&jwk).ok()?)))
            .collect();
        if keys.is_empty() {
            return Err(FetchError::NoKey(listed, algorithm));
        }
        Ok(Self { left_out: listed - keys.len(), keys, fetched: Instant::now() })
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The key with this id. A token without a key id can only mean the issuer's single key.
    fn find(&self, kid: Option<&str>) -> Option<&DecodingKey> {
        match (kid, self.keys.as_slice()) {
            (None, [(_, only)]) => Some(only),
            (None, _) => None,
            (Some(kid), keys) => keys.iter().find(|(id, _)| id.as_deref() == Some(kid)).map(|(_, key)| key),
        }
    }
}

/// Whether the key may check signatures of this algorithm, according to its own fields.
fn fits(jwk: &Jwk, algorithm: Algorithm) -> bool {
    let common = &jwk.common;
    let of_kind = match (algorithm, &jwk.algorithm) {
        (Algorithm::RS256, AlgorithmParameters::RSA(_)) => true,
        (Algorithm::ES256, AlgorithmParameters::EllipticCurve(key)) => key.curve == EllipticCurve::P256,
        (Algorithm::EdDSA, AlgorithmParameters::OctetKeyPair(key)) => key.curve == EllipticCurve::Ed25519,
        _ => false,
    };
    let named = match algorithm {
        Algorithm::HS256 => KeyAlgorithm::HS256,
        Algorithm::RS256 => KeyAlgorithm::RS256,
        Algorithm::ES256 => KeyAlgorithm::ES256,
        Algorithm::EdDSA => KeyAlgorithm::EdDSA,
    };
    of_kind
        && common.key_algorithm.is_none_or(|alg| alg == named)
        && common.public_key_use.as_ref().is_none_or(|used| *used == PublicKeyUse::Signature)
}

/// The URL of the list, and the client that fetches it.
pub(super) struct Fetcher {
    /// Created at the first fetch, so that missing certificates can be installed while the process runs.
    http: OnceLock<reqwest::Client>,
    url: Url,
    algorithm: Algorithm,
}

impl Fetcher {
    /// Checks the URL and the intervals.
    pub(super) fn new(settings: &Settings) -> Result<Self, AuthError> {
        if settings.jwks_refresh_seconds == 0 || settings.jwks_cooldown_seconds == 0 {
            return Err(AuthError::JwksPace);
        }
        let url = Url::parse(&settings.jwks_url).map_err(|_| AuthError::JwksUrl)?;
        if !matches!(url.scheme(), "http" | "https") || !url.username().is_empty() || url.password().is_some()
        {
            return Err(AuthError::JwksUrl);
        }
        Ok(Self { http: OnceLock::new(), url, algorithm: settings.algorithm })
    }

    fn client(&self) -> Result<&reqwest::Client, FetchError> {
        if let Some(client) = self.http.get() {
            return Ok(client);
        }
        let builder = reqwest::Client::builder().redirect(redirect::Policy::none()).pool_max_idle_per_host(0);
        // Plain HTTP needs no certificates, and a redirect to HTTPS is not followed.
        let builder = if self.url.scheme() == "http" { builder.tls_certs_only([]) } else { builder };
        let client = builder.build().map_err(FetchError::NoCertificates)?;
        Ok(self.http.get_or_init(|| client))
    }

    pub(super) async fn fetch(&self) -> Result<KeySet, FetchError> {
        let reading = async {
            let mut response = self.client()?.get(self.url.clone()).send().await.map_err(unreachable)?;
            if response.status() != StatusCode::OK {
                return Err(FetchError::Status(response.status()));
            }
            let mut text = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
                if text.len() + chunk.len() > BYTES_MAX {
                    return Err(FetchError::TooLarge);
                }
                text.extend_from_slice(&chunk);
            }
            KeySet::parse(&text, self.algorithm)
        };
        tokio::time::timeout(FETCH_LIMIT, reading).await.unwrap_or(Err(FetchError::Late))
    }
}

fn unreachable(error: reqwest::Error) -> FetchError {
    FetchError::Unreachable(error.without_url())
}

/// The state of fetching. Fetches are numbered from 1.
#[derive(Clone, Default)]
struct State {
    keys: Option<Arc<KeySet>>,
    /// The reason why the last fetch brought no keys, if it failed.
    failure: Option<Arc<FetchError>>,
    /// The number of the last fetch that began.
    begun: u64,
    /// The number of the last fetch in which the issuer sent a list of keys.
    listed: u64,
    /// Whether the next fetch must wait.
    resting: bool,
}

impl State {
    /// The key for a token that arrived when `begun` fetches had begun, or its refusal. `None` while the
    /// token must wait: only a fetch that began after the token arrived can prove that the issuer does not
    /// list its key.
    fn answer(&self, kid: Option<&str>, begun: u64) -> Option<Result<&DecodingKey, AuthError>> {
        if let Some(key) = self.keys.as_ref().and_then(|keys| keys.find(kid)) {
            return Some(Ok(key));
        }
        if self.listed > begun {
            return Some(Err(AuthError::Token(match kid {
                Some(_) => {
                    "the issuer lists no key with its 'kid' at [jwt] jwks_url of this server; get a new one"
                }
                None => {
                    "it has no 'kid', and the issuer does not list exactly one key; name the key in 'kid'"
                }
            })));
        }
        let is_away = self.failure.as_ref().is_some_and(|failure| !failure.is_told());
        (is_away && self.resting).then_some(Err(AuthError::KeysUnavailable))
    }

    fn begin(&mut self) {
        self.begun += 1;
        self.resting = false;
    }

    fn end(&mut self, result: Result<KeySet, FetchError>) {
        self.resting = true;
        self.failure = None;
        match result {
            Ok(keys) => {
                self.keys = Some(Arc::new(keys));
                self.listed = self.begun;
            }
            Err(failure) => {
                if failure.is_told() {
                    self.keys = None;
                    self.listed = self.begun;
                }
                self.failure = Some(Arc::new(failure));
            }
        }
    }
}

/// The issuer's keys, kept up to date by a task.
pub(super) struct Jwks {
    state: watch::Receiver<State>,
    wanted: Arc<Notify>,
    places: Semaphore,
    _task: AbortOnDropHandle<()>,
}

impl Jwks {
    /// Starts fetching. Needs a Tokio runtime.
    pub(super) fn start(fetcher: Fetcher, settings: &Settings) -> Self {
        let (states, state) = watch::channel(State::default());
        let wanted = Arc::new(Notify::new());
        let cooldown = Duration::from_secs(settings.jwks_cooldown_seconds);
        let refresh = Duration::from_secs(settings.jwks_refresh_seconds);
        let task = tokio::spawn(keep_fetching(fetcher, states, wanted.clone(), cooldown, refresh));
        let places = Semaphore::new(WAITING_MAX);
        Self { state, wanted, places, _task: AbortOnDropHandle::new(task) }
    }

    /// Runs `check` with the key of this id. Waits only for an unknown key, and only for the next fetch.
    pub(super) async fn with_key<T>(
        &self,
        kid: Option<&str>,
        check: impl Fn(&DecodingKey) -> Result<T, AuthError>,
    ) -> Result<T, AuthError> {
        let now = self.state.borrow().clone();
        if let Some(answer) = now.answer(kid, now.begun) {
            return check(answer?);
        }
        let _place = self.places.try_acquire().map_err(|_| AuthError::KeysUnavailable)?;
        self.wanted.notify_one();
        let mut state = self.state.clone();
        let answered = state.wait_for(|later| later.answer(kid, now.begun).is_some());
        let later = match tokio::time::timeout(WAIT_LIMIT, answered).await {
            Ok(Ok(later)) => later.clone(),
            _ => return Err(AuthError::KeysUnavailable),
        };
        check(later.answer(kid, now.begun).unwrap_or(Err(AuthError::KeysUnavailable))?)
    }

    /// The number of keys and their age, or the reason why there are none.
    pub(super) fn standing(&self) -> Result<String, String> {
        let state = self.state.borrow().clone();
        match (state.keys, state.failure) {
            (None, None) => Err("the issuer's keys are being fetched".to_owned()),
            (None, Some(failure)) if failure.is_told() => {
                Err(format!("no token is accepted, because the issuer lists no usable key: {failure}"))
            }
            (None, Some(failure)) => Err(format!("the issuer's keys cannot be fetched: {failure}")),
            (Some(keys), failure) => {
                let age = keys.fetched.elapsed().as_secs();
                let failure =
                    failure.map_or_else(String::new, |text| format!("; the latest fetch failed: {text}"));
                Ok(format!("keys: {}, fetched {age} s ago{failure}", keys.len()))
            }
        }
    }
}

async fn keep_fetching(
    fetcher: Fetcher,
    states: watch::Sender<State>,
    wanted: Arc<Notify>,
    cooldown: Duration,
    refresh: Duration,
) {
    loop {
        failpoint::reach("keys_wanted").await;
        states.send_modify(State::begin);
        let result = fetcher.fetch().await;
        match &result {
            Ok(keys) => tracing::debug!(keys = keys.len(), "fetched the issuer's keys"),
            Err(error) if error.is_told() => {
                tracing::warn!(%error, "the list at [jwt] jwks_url has no usable key: no token is accepted");
            }
            Err(error) => tracing::warn!(%error, "cannot fetch the issuer's keys from [jwt] jwks_url"),
        }
        let failed = result.is_err();
        states.send_modify(|state| state.end(result));
        tokio::time::sleep(cooldown).await;
        if !failed {
            // Ends early when a token with an unknown key arrives.
            let _ = tokio::time::timeout(refresh.saturating_sub(cooldown), wanted.notified()).await;
        }
    }
}

#[cfg(test)]
#[path = "jwks_tests.rs"]
mod tests;
