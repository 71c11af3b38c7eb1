//! The issuer's public keys by URL (JWKS, RFC 7517): fetched in the background, and sooner for a key that is not known.
//!
//! One task does all fetching, and rests after each fetch: whatever tokens arrive, the issuer is asked no more often. Keys
//! that were fetched once stay good while the issuer is away.

use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::DecodingKey;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use reqwest::{StatusCode, Url, redirect};
use serde::Deserialize;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::settings::{Algorithm, Settings};
use super::verifier::AuthError;

/// How long one fetch may take, and so how long a token may wait for one.
const FETCH_LIMIT: Duration = Duration::from_secs(5);
/// The largest list that is read, in bytes.
const BYTES_MAX: usize = 256 * 1024;

/// Why the list could not be fetched. Tells nothing of the URL but what the configuration says of it.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
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

/// What is at the end of a chain of causes: what the operating system or the TLS library said.
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
    /// Keys for other algorithms and uses.
    pub(super) left_out: usize,
    fetched: Instant,
}

impl KeySet {
    /// Takes the keys that fit the algorithm. Others, and those of kinds that are not known here, are left out.
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

    /// The key of this name. A token that names none can mean only the one that there is.
    fn find(&self, kid: Option<&str>) -> Option<&DecodingKey> {
        match (kid, self.keys.as_slice()) {
            (None, [(_, only)]) => Some(only),
            (None, _) => None,
            (Some(kid), keys) => keys.iter().find(|(id, _)| id.as_deref() == Some(kid)).map(|(_, key)| key),
        }
    }
}

/// Whether a key's own words allow it to check signatures of this algorithm.
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

/// Where the list is, and how it is fetched.
pub(super) struct Fetcher {
    http: reqwest::Client,
    url: Url,
    algorithm: Algorithm,
}

impl Fetcher {
    pub(super) fn new(settings: &Settings) -> Result<Self, AuthError> {
        let url = Url::parse(&settings.jwks_url).map_err(|_| AuthError::JwksUrl)?;
        if !matches!(url.scheme(), "http" | "https") || !url.username().is_empty() || url.password().is_some()
        {
            return Err(AuthError::JwksUrl);
        }
        let http = reqwest::Client::builder()
            .redirect(redirect::Policy::none())
            .timeout(FETCH_LIMIT)
            .pool_max_idle_per_host(0)
            .build()
            .map_err(AuthError::JwksClient)?;
        Ok(Self { http, url, algorithm: settings.algorithm })
    }

    pub(super) async fn fetch(&self) -> Result<KeySet, FetchError> {
        let reading = async {
            let mut response = self.http.get(self.url.clone()).send().await.map_err(refused)?;
            if response.status() != StatusCode::OK {
                return Err(FetchError::Status(response.status()));
            }
            let mut text = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(refused)? {
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

fn refused(error: reqwest::Error) -> FetchError {
    if error.is_timeout() { FetchError::Late } else { FetchError::Unreachable(error.without_url()) }
}

/// What is known of the list.
#[derive(Clone, Default)]
struct State {
    keys: Option<Arc<KeySet>>,
    /// Why the last fetch failed, if it did.
    failure: Option<String>,
    /// Fetches so far.
    fetches: u64,
    /// Whether the next fetch has to wait.
    resting: bool,
}

/// The issuer's keys.
pub(super) struct Jwks {
    state: watch::Receiver<State>,
    wanted: Arc<Notify>,
    _task: AbortOnDropHandle<()>,
}

impl Jwks {
    /// Begins to fetch. Needs a runtime.
    pub(super) fn start(settings: &Settings) -> Result<Self, AuthError> {
        if settings.jwks_refresh_seconds == 0 || settings.jwks_cooldown_seconds == 0 {
            return Err(AuthError::JwksPace);
        }
        let fetcher = Fetcher::new(settings)?;
        let (told, state) = watch::channel(State::default());
        let wanted = Arc::new(Notify::new());
        let cooldown = Duration::from_secs(settings.jwks_cooldown_seconds);
        let refresh = Duration::from_secs(settings.jwks_refresh_seconds);
        let task = tokio::spawn(keep_fetching(fetcher, told, wanted.clone(), cooldown, refresh));
        Ok(Self { state, wanted, _task: AbortOnDropHandle::new(task) })
    }

    /// Runs `check` with the key of this name. Waits only for a key that is not known, and for one fetch at most.
    pub(super) async fn with_key<T>(
        &self,
        kid: Option<&str>,
        check: impl Fn(&DecodingKey) -> Result<T, AuthError>,
    ) -> Result<T, AuthError> {
        let now = self.state.borrow().clone();
        if let Some(key) = now.keys.as_ref().and_then(|keys| keys.find(kid)) {
            return check(key);
        }
        self.wanted.notify_one();
        if now.resting {
            return Err(unknown(&now));
        }
        let mut state = self.state.clone();
        let fetched = state.wait_for(|later| later.fetches > now.fetches);
        // The fetch has a limit of its own; this one is for a task that is not there any more.
        let after = match tokio::time::timeout(FETCH_LIMIT * 2, fetched).await {
            Ok(Ok(after)) => after.clone(),
            _ => return Err(AuthError::KeysUnavailable),
        };
        match after.keys.as_ref().and_then(|keys| keys.find(kid)) {
            Some(key) => check(key),
            None => Err(unknown(&after)),
        }
    }

    /// How many keys there are and since when, or why there are none.
    pub(super) fn standing(&self) -> Result<String, String> {
        let state = self.state.borrow().clone();
        match (state.keys, state.failure) {
            (None, None) => Err("the issuer's keys are being fetched".to_owned()),
            (None, Some(failure)) => Err(format!("the issuer's keys cannot be fetched: {failure}")),
            (Some(keys), failure) => {
                let age = keys.fetched.elapsed().as_secs();
                let failure = failure.map_or_else(String::new, |text| format!("; since then: {text}"));
                Ok(format!("keys: {}, fetched {age} s ago{failure}", keys.len()))
            }
        }
    }
}

/// While the list could not be fetched the token may be good; when it could, the issuer does not know the key.
fn unknown(state: &State) -> AuthError {
    match (&state.keys, &state.failure) {
        (Some(_), None) => AuthError::Token("its issuer lists no key of its 'kid'"),
        _ => AuthError::KeysUnavailable,
    }
}

async fn keep_fetching(
    fetcher: Fetcher,
    told: watch::Sender<State>,
    wanted: Arc<Notify>,
    cooldown: Duration,
    refresh: Duration,
) {
    loop {
        let result = fetcher.fetch().await;
        match &result {
            Ok(keys) => tracing::debug!(keys = keys.len(), "fetched the issuer's keys"),
            Err(error) => tracing::warn!(%error, "cannot fetch the issuer's keys from [jwt] jwks_url"),
        }
        let failed = result.is_err();
        told.send_modify(|state| {
            state.failure = result.as_ref().err().map(ToString::to_string);
            if let Ok(keys) = result {
                state.keys = Some(Arc::new(keys));
            }
            state.fetches += 1;
            state.resting = true;
        });
        tokio::time::sleep(cooldown).await;
        told.send_modify(|state| state.resting = false);
        if !failed {
            // Returns early for a token whose key is not known.
            let _ = tokio::time::timeout(refresh.saturating_sub(cooldown), wanted.notified()).await;
        }
    }
}
