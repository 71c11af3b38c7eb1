//! Verification of tokens: by key file, and by the issuer's list of keys (JWKS) during rotation, floods and
//! failures.
//!
//! The keys in `keys/` are the tests' own and sign nothing else.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::http::StatusCode as Status;
use futures_util::future::join_all;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

use crate::commands::unwrapped;
use crate::harness::{
    Browser, LIMIT, Process, System, TestResult, cli, eventually, http, http_get, metric_of, refusal_of,
    str_of,
};

const NOTIFICATIONS: &str = "/api/upload/sessions/notifications/stream";

/// A key that signs.
#[derive(Debug, Clone, Copy)]
struct Signer {
    algorithm: Algorithm,
    name: &'static str,
    private: &'static [u8],
    public_file: &'static str,
    jwk: &'static str,
}

macro_rules! signer {
    ($algorithm:ident, $name:literal) => {
        Signer {
            algorithm: Algorithm::$algorithm,
            name: stringify!($algorithm),
            private: include_bytes!(concat!("keys/", $name, ".pem")),
            public_file: concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/keys/", $name, ".pub.pem"),
            jwk: include_str!(concat!("keys/", $name, ".jwk.json")),
        }
    };
}

const RS256: Signer = signer!(RS256, "rs256");
const ES256: Signer = signer!(ES256, "es256");
const EDDSA: Signer = signer!(EdDSA, "eddsa");

impl Signer {
    fn token(self, kid: Option<&str>) -> String {
        let key = match self.algorithm {
            Algorithm::RS256 => EncodingKey::from_rsa_pem(self.private),
            Algorithm::ES256 => EncodingKey::from_ec_pem(self.private),
            _ => EncodingKey::from_ed_pem(self.private),
        };
        let mut header = Header::new(self.algorithm);
        header.kid = kid.map(str::to_owned);
        jsonwebtoken::encode(&header, &claims(), &key.expect("a key")).expect("a token")
    }

    /// Its public half as the issuer lists it.
    fn jwk(self, kid: &str, more: &Value) -> Value {
        let mut jwk: Value = serde_json::from_str(self.jwk).expect("JSON");
        jwk["kid"] = json!(kid);
        for (name, value) in more.as_object().expect("fields") {
            jwk[name] = value.clone();
        }
        jwk
    }
}

fn claims() -> Value {
    json!({ "sub": Uuid::new_v4(), "exp": chrono::Utc::now().timestamp() + 3600 })
}

/// An issuer that lists its keys, and can be told to fail.
#[derive(Debug, Clone)]
struct Issuer {
    url: String,
    answer: Arc<Mutex<(Status, String)>>,
    asked: Arc<AtomicUsize>,
}

impl Issuer {
    async fn listing(keys: &[Value]) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/keys", listener.local_addr().expect("an address"));
        let answer = Arc::new(Mutex::new((Status::OK, json!({ "keys": keys }).to_string())));
        let issuer = Self { url, answer, asked: Arc::default() };
        let served = issuer.clone();
        let answer = async move || {
            served.asked.fetch_add(1, Ordering::SeqCst);
            let (status, body) = served.answer.lock().expect("a lock").clone();
            (status, [("location", "/keys")], body)
        };
        let router = axum::Router::new().route("/keys", axum::routing::get(answer));
        tokio::spawn(async move { axum::serve(listener, router).await });
        issuer
    }

    fn lists(&self, keys: &[Value]) {
        self.answers(Status::OK, &json!({ "keys": keys }).to_string());
    }

    fn answers(&self, status: Status, body: &str) {
        *self.answer.lock().expect("a lock") = (status, body.to_owned());
    }

    /// A system whose tokens this issuer signs, and whose list is looked at every second.
    async fn system(&self, signer: Signer) -> System {
        let system = System::new().await.set("AFTERCOMMIT_JWT_ALGORITHM", signer.name);
        let system = system.set("AFTERCOMMIT_JWT_JWKS_COOLDOWN_SECONDS", "1");
        system.set("AFTERCOMMIT_JWT_JWKS_URL", &self.url)
    }
}

/// The outcome of a request for a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Opened,
    /// A `refused` event with status 200, so that EventSource reconnects.
    ToComeBack,
    Refused(StatusCode),
}

const UNAUTHORIZED: Told = Told::Refused(StatusCode::UNAUTHORIZED);

async fn open(sse: &Process, token: &str) -> Told {
    open_with(&http(), sse, NOTIFICATIONS, token).await
}

async fn open_with(http: &reqwest::Client, sse: &Process, path: &str, token: &str) -> Told {
    let request = http.get(sse.url(path)).bearer_auth(token);
    let response = request.send().await.expect("an answer");
    match response.status() {
        StatusCode::OK => match refusal_of(response).await {
            None => Told::Opened,
            Some(refusal) => {
                assert_eq!(refusal["reason"], "unavailable");
                Told::ToComeBack
            }
        },
        status => Told::Refused(status),
    }
}

/// Waits until the token gets this answer.
async fn wait_until_token_gets(sse: &Process, token: &str, told: Told) {
    eventually(&format!("a token gets {told:?}"), async || (open(sse, token).await == told).then_some(()))
        .await;
}

/// What readiness says.
async fn readiness(sse: &Process) -> (StatusCode, String) {
    let response = http_get(sse.url("/readyz")).await.expect("an answer");
    (response.status(), response.text().await.expect("text"))
}

/// Waits until readiness says this.
async fn wait_for_readiness(sse: &Process, text: &str) -> StatusCode {
    eventually(text, async || Some(readiness(sse).await).filter(|(_, says)| says.contains(text))).await.0
}

#[tokio::test]
async fn every_algorithm_is_checked_by_key_file_and_takes_no_other_key() {
    for (signer, other) in [(RS256, ES256), (ES256, EDDSA), (EDDSA, RS256)] {
        let system = System::new().await.set("AFTERCOMMIT_JWT_ALGORITHM", signer.name);
        let sse = system.set("AFTERCOMMIT_JWT_PUBLIC_KEY_FILE", signer.public_file).start("sse").await;
        assert_eq!(open(&sse, &signer.token(None)).await, Told::Opened, "{}", signer.name);
        assert_eq!(open(&sse, &other.token(None)).await, UNAUTHORIZED);
    }
}

#[tokio::test]
async fn every_algorithm_is_checked_by_the_issuers_list() {
    for signer in [RS256, ES256, EDDSA] {
        let issuer = Issuer::listing(&[signer.jwk("a", &json!({ "use": "sig", "alg": signer.name }))]).await;
        let sse = issuer.system(signer).await.start("sse").await;
        assert_eq!(open(&sse, &signer.token(Some("a"))).await, Told::Opened, "{}", signer.name);
        assert_eq!(open(&sse, &signer.token(None)).await, Told::Opened, "there is but one key");
        assert_eq!(wait_for_readiness(&sse, "keys: 1, fetched").await, StatusCode::OK);
    }
}

#[tokio::test]
async fn the_public_key_is_no_secret_that_signs() -> TestResult {
    let issuer = Issuer::listing(&[RS256.jwk("a", &json!({}))]).await;
    let system = issuer.system(RS256).await;
    let public = std::fs::read(RS256.public_file)?;
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some("a".to_owned());
    let forged = jsonwebtoken::encode(&header, &claims(), &EncodingKey::from_secret(&public))?;
    let by_list = system.start("sse").await;
    assert_eq!(open(&by_list, &forged).await, UNAUTHORIZED);
    let system = system.set("AFTERCOMMIT_JWT_JWKS_URL", "");
    let by_file = system.set("AFTERCOMMIT_JWT_PUBLIC_KEY_FILE", RS256.public_file).start("sse").await;
    assert_eq!(open(&by_file, &forged).await, UNAUTHORIZED);
    Ok(())
}

#[tokio::test]
async fn a_key_whose_own_words_do_not_fit_checks_nothing() {
    let unfit = [json!({ "use": "enc" }), json!({ "alg": "ES384" }), json!({ "crv": "P-384" })];
    let mut keys: Vec<Value> = unfit.iter().map(|words| ES256.jwk("unfit", words)).collect();
    keys.push(json!({ "kty": "unheard of", "kid": "new" }));
    keys.push(RS256.jwk("other", &json!({})));
    keys.push(ES256.jwk("fit", &json!({})));
    let issuer = Issuer::listing(&keys).await;
    let sse = issuer.system(ES256).await.start("sse").await;
    assert_eq!(open(&sse, &ES256.token(Some("fit"))).await, Told::Opened);
    assert_eq!(open(&sse, &ES256.token(Some("unfit"))).await, UNAUTHORIZED);
    assert_eq!(open(&sse, &RS256.token(Some("other"))).await, UNAUTHORIZED);
}

#[tokio::test]
async fn a_new_key_is_taken_at_its_first_token_and_the_old_one_is_not_without_a_restart() {
    let issuer = Issuer::listing(&[ES256.jwk("a", &json!({}))]).await;
    // Time enough for the new key's token to come while no fetch is allowed.
    let sse = issuer.system(ES256).await.set("AFTERCOMMIT_JWT_JWKS_COOLDOWN_SECONDS", "3").start("sse").await;
    assert_eq!(open(&sse, &ES256.token(Some("a"))).await, Told::Opened);
    issuer.lists(&[ES256.jwk("b", &json!({}))]);
    assert_eq!(open(&sse, &ES256.token(Some("b"))).await, Told::Opened, "at once, as 401 ends its stream");
    assert_eq!(open(&sse, &ES256.token(Some("a"))).await, UNAUTHORIZED);
    assert_eq!(issuer.asked.load(Ordering::SeqCst), 3, "the first list, the one with b, and one more for a");
}

#[tokio::test]
async fn tokens_of_unknown_keys_have_the_list_fetched_no_oftener_than_allowed_and_hold_no_one_up()
-> TestResult {
    let issuer = Issuer::listing(&[ES256.jwk("a", &json!({}))]).await;
    let begun = Instant::now();
    let sse = issuer.system(ES256).await.start("sse").await;
    // One client for all, as making one takes longer than a request.
    let http = http();
    let open = async |token: &str| open_with(&http, &sse, NOTIFICATIONS, token).await;
    let known = ES256.token(Some("a"));
    assert_eq!(open(&known).await, Told::Opened);
    let tokens: Vec<String> = (0..400).map(|kid| ES256.token(Some(&kid.to_string()))).collect();
    let opens_meanwhile = async {
        for _ in 0..20 {
            assert_eq!(open(&known).await, Told::Opened);
        }
    };
    let (told, ()) = tokio::join!(join_all(tokens.iter().map(|token| open(token))), opens_meanwhile);
    // Requests beyond the waiting room come back later; for the others the issuer was asked.
    assert!(told.iter().all(|told| [UNAUTHORIZED, Told::ToComeBack].contains(told)), "{told:?}");
    assert!(told.contains(&UNAUTHORIZED), "{told:?}");
    for token in &tokens[..5] {
        assert_eq!(open(token).await, UNAUTHORIZED);
    }
    let allowed = 1 + usize::try_from(begun.elapsed().as_secs())?;
    assert!(issuer.asked.load(Ordering::SeqCst) <= allowed, "{issuer:?} in {:?}", begun.elapsed());
    Ok(())
}

#[tokio::test]
async fn keys_work_on_while_the_issuer_is_away_and_unknown_ones_are_told_to_come_back() -> TestResult {
    let issuer = Issuer::listing(&[ES256.jwk("a", &json!({}))]).await;
    let sse = issuer.system(ES256).await.set("AFTERCOMMIT_JWT_JWKS_REFRESH_SECONDS", "1").start("sse").await;
    assert_eq!(open(&sse, &ES256.token(Some("a"))).await, Told::Opened);
    // A good list, but for its length.
    let huge = json!({ "keys": [ES256.jwk("b", &json!({}))], "padding": "p".repeat(300_000) }).to_string();
    for (status, body, told) in [
        (Status::INTERNAL_SERVER_ERROR, "", "status 500"),
        (Status::FOUND, "", "status 302"),
        (Status::OK, huge.as_str(), "more than 262144 bytes"),
        (Status::OK, "<html>", "not a list of keys"),
    ] {
        issuer.answers(status, body);
        assert_eq!(wait_for_readiness(&sse, told).await, StatusCode::OK, "it can check tokens");
        assert_eq!(open(&sse, &ES256.token(Some("a"))).await, Told::Opened);
        // Between two fetches that fail, or after the one that is under way.
        assert_eq!(open(&sse, &ES256.token(Some("b"))).await, Told::ToComeBack);
    }
    for path in ["/streams/orders:1", "/streams?topic=orders:1"] {
        let told = open_with(&http(), &sse, path, &ES256.token(Some("b"))).await;
        assert_eq!(told, Told::ToComeBack, "{path}");
    }
    let refused = "aftercommit_sse_refused_total{reason=\"unavailable\"}";
    assert_eq!(metric_of(&sse, refused).await, 6);
    // A ticket is asked for by a script, which reads the status.
    let request = http().post(sse.url("/api/stream-tickets"));
    let request = request.bearer_auth(ES256.token(Some("b"))).json(&json!({ "topic": "orders:1" }));
    assert_eq!(request.send().await?.status(), StatusCode::SERVICE_UNAVAILABLE);
    Ok(())
}

#[tokio::test]
async fn an_issuer_that_lists_no_key_of_use_has_withdrawn_those_that_it_listed() {
    let issuer = Issuer::listing(&[ES256.jwk("a", &json!({}))]).await;
    let sse = issuer.system(ES256).await.set("AFTERCOMMIT_JWT_JWKS_REFRESH_SECONDS", "1").start("sse").await;
    for (list, told) in [
        (vec![], "keys that it lists: 0, and none for ES256"),
        (vec![RS256.jwk("a", &json!({}))], "keys that it lists: 1, and none for ES256"),
    ] {
        assert_eq!(open(&sse, &ES256.token(Some("a"))).await, Told::Opened);
        issuer.lists(&list);
        assert_eq!(
            wait_for_readiness(&sse, told).await,
            StatusCode::SERVICE_UNAVAILABLE,
            "it takes no token"
        );
        assert_eq!(open(&sse, &ES256.token(Some("a"))).await, UNAUTHORIZED);
        issuer.lists(&[ES256.jwk("a", &json!({}))]);
        assert_eq!(wait_for_readiness(&sse, "keys: 1, fetched").await, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_list_that_does_not_come_to_an_end_is_given_up_and_fetched_again() -> TestResult {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/keys", listener.local_addr()?);
    let (asked, mut connections) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
            connection.write_all(head).await.expect("a head");
            asked.send(()).expect("the test waits for it");
            // An endless trickle of spaces: the connection is never idle.
            tokio::spawn(async move {
                while connection.write_all(b"1\r\n \r\n").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            });
        }
    });
    let system = System::new().await.set("AFTERCOMMIT_JWT_ALGORITHM", "ES256");
    let system = system.set("AFTERCOMMIT_JWT_JWKS_COOLDOWN_SECONDS", "1");
    let sse = system.set("AFTERCOMMIT_JWT_JWKS_URL", &url).start("sse").await;
    assert_eq!(wait_for_readiness(&sse, "no answer within 5 s").await, StatusCode::SERVICE_UNAVAILABLE);
    for _ in 0..2 {
        tokio::time::timeout(LIMIT, connections.recv()).await?.ok_or("no issuer")?;
    }
    Ok(())
}

#[tokio::test]
async fn a_server_starts_without_its_issuer_and_is_ready_when_that_is_there() {
    let issuer = Issuer::listing(&[]).await;
    issuer.answers(Status::BAD_GATEWAY, "");
    let sse = issuer.system(ES256).await.start("sse").await;
    assert_eq!(
        wait_for_readiness(&sse, "the issuer's keys cannot be fetched").await,
        StatusCode::SERVICE_UNAVAILABLE
    );
    assert_eq!(open(&sse, &ES256.token(Some("a"))).await, Told::ToComeBack);
    issuer.lists(&[ES256.jwk("a", &json!({}))]);
    wait_until_token_gets(&sse, &ES256.token(Some("a")), Told::Opened).await;
    assert_eq!(wait_for_readiness(&sse, "keys: 1, fetched").await, StatusCode::OK);
}

#[tokio::test]
async fn a_page_that_comes_while_the_issuer_is_away_comes_back_by_itself_and_gets_in() {
    let issuer = Issuer::listing(&[]).await;
    issuer.answers(Status::BAD_GATEWAY, "");
    let sse = issuer.system(ES256).await.set("AFTERCOMMIT_SSE_RETRY_MS", "200").start("sse").await;
    let browser = Browser::start().await;
    browser.goes_to(&sse.url("/api/realtime/info")).await;
    browser.set_cookie("aftercommit_token", &ES256.token(Some("a"))).await;
    browser.listens_to(NOTIFICATIONS).await;
    let seen = browser.wait_until_seen("two refusals", |seen| seen.errors >= 2).await;
    assert_ne!(seen.ready_state, 2, "it has not given up");
    issuer.lists(&[ES256.jwk("a", &json!({}))]);
    // A stream that was refused is none.
    eventually("it is let in", async || {
        (metric_of(&sse, "aftercommit_sse_connections").await == 1).then_some(())
    })
    .await;
    browser.wait_until_seen("its stream open", |seen| seen.ready_state == 1).await;
}

#[tokio::test]
async fn exactly_one_source_of_keys_may_be_named() {
    let system = System::new().await;
    let fails = async |variables: &[(&str, &str)], told: &str| {
        let mut settings = system.settings().clone();
        for (name, value) in variables {
            settings = settings.set(&format!("AFTERCOMMIT_JWT_{name}"), *value);
        }
        let output = cli(&settings, &["sse"]).await;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(told), "{text}");
    };
    let (file, url) = (("PUBLIC_KEY_FILE", ES256.public_file), ("JWKS_URL", "http://127.0.0.1:1/keys"));
    fails(&[url], "HS256 is checked with the secret").await;
    fails(&[file], "HS256 is checked with the secret").await;
    fails(&[("ALGORITHM", "ES256"), file, url], "keep either public_key_file or jwks_url").await;
    fails(&[("ALGORITHM", "ES256")], "no key for tokens").await;
    fails(&[("ALGORITHM", "ES256"), ("JWKS_URL", "https://u:tell-nobody@h/k")], "without user or password")
        .await;
    fails(&[("ALGORITHM", "ES256"), url, ("JWKS_COOLDOWN_SECONDS", "0")], "must be at least 1").await;
    fails(&[("LEEWAY_SECONDS", "3601")], "may be at most 3600").await;
}

#[tokio::test]
async fn doctor_tells_what_the_issuer_lists_and_what_is_wrong_with_it() {
    let issuer = Issuer::listing(&[ES256.jwk("a", &json!({})), RS256.jwk("b", &json!({}))]).await;
    let system = issuer.system(ES256).await;
    let output = cli(system.settings(), &["doctor"]).await;
    let text = unwrapped(&String::from_utf8_lossy(&output.stdout));
    assert!(text.contains("jwt: keys for ES256: 1 (others: 1) at http://127.0.0.1"), "{text}");
    issuer.answers(Status::NOT_FOUND, "");
    let output = cli(system.settings(), &["doctor"]).await;
    let text = unwrapped(&String::from_utf8_lossy(&output.stdout));
    assert!(text.contains("it answers with status 404"), "{text}");
}

#[tokio::test]
async fn tickets_work_beside_the_issuers_keys_and_no_token_is_logged() -> TestResult {
    let issuer = Issuer::listing(&[ES256.jwk("a", &json!({}))]).await;
    let sse = issuer.system(ES256).await.set("AFTERCOMMIT_LOG_LEVEL", "trace").start("sse").await;
    let token = ES256.token(Some("a"));
    let unknown = ES256.token(Some("unknown"));
    assert_eq!(open(&sse, &unknown).await, UNAUTHORIZED);
    let request = http().post(sse.url("/api/stream-tickets")).bearer_auth(&token);
    let made = request.json(&json!({ "topic": "orders:1" })).send().await?;
    assert_eq!(made.status(), StatusCode::CREATED);
    let ticket: Value = made.json().await?;
    let url = sse.url(&format!("/streams/orders:1?ticket={}", str_of(&ticket["ticket"])));
    let opened = http_get(url).await?.status();
    assert_eq!(opened, StatusCode::FORBIDDEN, "a good ticket for a topic that the claim does not allow");
    let log = sse.log();
    assert!(log.contains("fetched the issuer's keys"), "{log}");
    for secret in [&token, &unknown, &str_of(&ticket["ticket"]).to_owned()] {
        assert!(!log.contains(secret.rsplit('.').next().ok_or("no signature")?), "{log}");
    }
    Ok(())
}

/// Without CA certificates, as in an image that contains only the binary.
fn without_certificates(system: System) -> System {
    system.set("SSL_CERT_FILE", "/nowhere").set("SSL_CERT_DIR", "/nowhere")
}

#[tokio::test]
async fn without_ca_certificates_plain_http_works_and_https_is_not_ready_with_what_to_do() {
    let issuer = Issuer::listing(&[ES256.jwk("a", &json!({}))]).await;
    let plain = without_certificates(issuer.system(ES256).await);
    // The issuer's server takes whatever is sent there.
    let plain = plain.set("OTEL_EXPORTER_OTLP_ENDPOINT", issuer.url.trim_end_matches("/keys"));
    let sse = plain.start("sse").await;
    assert_eq!(open(&sse, &ES256.token(Some("a"))).await, Told::Opened);
    assert_eq!(wait_for_readiness(&sse, "keys: 1, fetched").await, StatusCode::OK);
    assert_eq!(sse.terminate().await, 0);

    let keys = plain.set("AFTERCOMMIT_JWT_JWKS_URL", "https://127.0.0.1:1/keys");
    for role in ["sse", "api"] {
        let process = keys.start(role).await;
        assert_eq!(wait_for_readiness(&process, "ca-certificates").await, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(process.terminate().await, 0);
    }
    let collector = without_certificates(System::new().await);
    let collector = collector.set("OTEL_EXPORTER_OTLP_ENDPOINT", "https://127.0.0.1:1");
    for role in ["sse", "api", "relay"] {
        let process = collector.start(role).await;
        let status = wait_for_readiness(&process, "no spans are sent: there are no CA certificates").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(process.terminate().await, 0);
    }
}
