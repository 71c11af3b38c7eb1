//! The claims that a token needs, and the refusals of tokens that lack them.

use uuid::Uuid;

use super::*;

fn settings(secret: &str) -> Settings {
    Settings {
        secret: secret.to_owned().into(),
        public_key_file: String::new(),
        jwks_url: String::new(),
        jwks_refresh_seconds: 300,
        jwks_cooldown_seconds: 10,
        algorithm: Algorithm::HS256,
        issuer: String::new(),
        audience: String::new(),
        leeway_seconds: 0,
        cookie: String::new(),
        ticket_seconds: 300,
    }
}

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn signed(claims: &serde_json::Value, algorithm: jsonwebtoken::Algorithm) -> String {
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&Header::new(algorithm), claims, &key).expect("a token")
}

async fn refused(token: &str, settings: &Settings) -> String {
    let verifier = Verifier::new(settings).expect("a verifier");
    verifier.verify(token).await.expect_err("refused").to_string()
}

#[tokio::test]
async fn an_issued_token_speaks_for_its_user() {
    let user = Uuid::new_v4();
    let token = issue(&settings(SECRET), user, Duration::from_secs(60)).expect("a token");
    let found = Verifier::new(&settings(SECRET)).expect("a verifier").verify(&token).await.expect("valid");
    assert_eq!(found.id, user.into());
    assert!(found.expires_at > Utc::now());
}

#[tokio::test]
async fn what_is_wrong_with_a_token_is_said_without_the_token() {
    let id = Uuid::new_v4();
    let now = Utc::now().timestamp();
    let hs256 = jsonwebtoken::Algorithm::HS256;
    let good = settings(SECRET);
    let expired = signed(&serde_json::json!({"sub": id, "exp": now - 5}), hs256);
    assert_eq!(
        refused(&expired, &good).await,
        "the token is not valid: it has expired ('exp'); get a new one"
    );
    let early = signed(&serde_json::json!({"sub": id, "exp": now + 50, "nbf": now + 40}), hs256);
    assert!(refused(&early, &good).await.starts_with("the token is not valid: it is not valid yet ('nbf')"));
    let other = settings("another-secret-of-32-bytes-length");
    let foreign = issue(&other, id, Duration::from_secs(60)).expect("a token");
    assert!(refused(&foreign, &good).await.contains("its signature does not fit; sign it with the key"));
    for garbage in ["", "a", "a.b.c", "🦀"] {
        assert!(refused(garbage, &good).await.starts_with("the token is not valid: it is malformed; send"));
    }
    assert!(refused("..", &good).await.contains("its header cannot be read; it needs 'alg'"));
}

#[tokio::test]
async fn a_token_cannot_choose_its_algorithm() {
    let claims = serde_json::json!({"sub": Uuid::new_v4(), "exp": Utc::now().timestamp() + 50});
    let token = signed(&claims, jsonwebtoken::Algorithm::HS384);
    assert_eq!(
        refused(&token, &settings(SECRET)).await,
        "the token is not valid: its algorithm ('alg') is not the configured one; sign it with [jwt] \
         algorithm of this server"
    );
    let none = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.";
    assert!(refused(none, &settings(SECRET)).await.contains("it needs 'alg'"));
}

#[tokio::test]
async fn issuer_and_audience_must_fit_where_they_are_set() {
    let strict = Settings { issuer: "us".to_owned(), audience: "uploads".to_owned(), ..settings(SECRET) };
    let loose = issue(&settings(SECRET), Uuid::new_v4(), Duration::from_secs(60)).expect("a token");
    let no_issuer = Settings { issuer: String::new(), ..strict.clone() };
    assert!(
        refused(&loose, &no_issuer)
            .await
            .contains("a required claim is missing, or is neither a text nor a list of texts: 'aud'")
    );
    let no_audience = Settings { audience: String::new(), ..strict.clone() };
    assert!(
        refused(&loose, &no_audience).await.contains("a required claim is missing, or is not a text: 'iss'")
    );
    let other = Settings { audience: "billing".to_owned(), ..strict.clone() };
    let other = issue(&other, Uuid::new_v4(), Duration::from_secs(60)).expect("a token");
    assert!(refused(&other, &strict).await.contains("audience"));
    let fits = issue(&strict, Uuid::new_v4(), Duration::from_secs(60)).expect("a token");
    assert!(Verifier::new(&strict).expect("a verifier").verify(&fits).await.is_ok());
}

#[test]
fn a_missing_or_short_secret_is_refused_at_the_start() {
    assert!(matches!(Verifier::new(&settings("")), Err(AuthError::NoKey)));
    assert!(matches!(Verifier::new(&settings("short")), Err(AuthError::ShortSecret(5))));
}

/// Both expire in the current second and are refused for the whole of it.
#[tokio::test]
async fn neither_a_token_nor_a_ticket_is_taken_in_the_second_in_which_it_expires() {
    let verifier = Verifier::new(&settings(SECRET)).expect("a verifier");
    let expiring = || serde_json::json!({"sub": Uuid::new_v4(), "exp": Utc::now().timestamp()});
    let token = signed(&expiring(), jsonwebtoken::Algorithm::HS256);
    assert_eq!(
        refused(&token, &settings(SECRET)).await,
        "the token is not valid: it has expired ('exp'); get a new one"
    );
    let user = User {
        id: Uuid::new_v4().into(),
        expires_at: Utc::now(),
        subscribe: Vec::new(),
        credential: Default::default(),
    };
    let (ticket, _) = verifier.issue_ticket(&user, &["orders:1"]).expect("a ticket");
    assert!(matches!(verifier.verify_ticket(&ticket), Err(AuthError::Ticket)));
}

/// The claims of a good token, with one of them replaced or left out.
fn with(claim: &str, value: serde_json::Value) -> serde_json::Value {
    let now = Utc::now().timestamp();
    let mut claims = serde_json::json!({"sub": "ana", "exp": now + 50, "iss": "us", "aud": "uploads"});
    claims[claim] = value;
    claims.as_object_mut().expect("an object").retain(|_, value| *value != "left out");
    claims
}

#[tokio::test]
async fn a_wrong_claim_is_named_whatever_is_wrong_with_it() {
    use serde_json::json;
    let strict = Settings { issuer: "us".to_owned(), audience: "uploads".to_owned(), ..settings(SECRET) };
    let long = "x".repeat(UserId::CHARS_MAX + 1);
    let objects = || [json!({"a": 1}), json!([1]), json!([[]]), json!(true)];
    let cases = [
        ("sub", vec![json!("left out"), json!(null), json!(17), json!(""), json!("a\nb"), json!(long)]),
        ("exp", vec![json!("left out"), json!(null), json!("soon"), json!(-5), json!(1.0e30), json!(5)]),
        ("nbf", vec![json!("now"), json!(4.0e9), json!(-1)]),
        ("iss", vec![json!("left out"), json!(null), json!("them"), json!(5)]),
        ("aud", vec![json!("left out"), json!(null), json!("them"), json!(["a", "b"]), json!(5)]),
        ("subscribe", vec![json!("orders:*"), json!(5)]),
    ];
    for (claim, values) in cases {
        for value in values.into_iter().chain(objects()) {
            let token = signed(&with(claim, value.clone()), jsonwebtoken::Algorithm::HS256);
            let told = refused(&token, &strict).await;
            assert!(told.contains(&format!("'{claim}'")), "{claim} = {value}: {told}");
            assert!(!told.contains("ana"), "{told}");
        }
    }
}

#[tokio::test]
async fn any_text_of_up_to_255_characters_is_a_user() {
    let verifier = Verifier::new(&settings(SECRET)).expect("a verifier");
    let longest = "ü".repeat(UserId::CHARS_MAX);
    for user in ["17", "auth0|64b1f", "ana@example.com", longest.as_str()] {
        let token = signed(&with("sub", serde_json::Value::from(user)), jsonwebtoken::Algorithm::HS256);
        assert_eq!(verifier.verify(&token).await.expect("valid").id.as_str(), user);
    }
    let huge: Vec<String> = (0..2_000).map(|n| format!("orders:{n}")).collect();
    let huge = signed(&with("subscribe", huge.into()), jsonwebtoken::Algorithm::HS256);
    assert!(refused(&huge, &settings(SECRET)).await.contains("more than 8192 bytes"));
}
