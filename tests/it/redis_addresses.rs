//! Redis by TLS, by a unix socket, and with passwords of any characters; and the sentence for each mistake.

use aftercommit::local::RedisServer;

use crate::commands::{assert_fails, stdout, untold, unwrapped};
use crate::harness::{
    Certificates, Client, Feed, NOTIFICATIONS, Settings, System, TestResult, cli, free_port, numbers,
    start_redis,
};

/// A password that an address has to escape.
const PASSWORD: &str = "p@ss/word:%41?#ü,a+b&c";
/// The same in an address.
const ESCAPED: &str = "p%40ss%2Fword%3A%2541%3F%23%C3%BC,a+b%26c";

/// A Redis with a TLS port and a unix socket, which knows a user `app`.
struct Secured {
    certificates: Certificates,
    server: RedisServer,
    tls_port: u16,
}

impl Secured {
    /// `clients` says whether clients must show a certificate.
    async fn new(clients: &'static str) -> Self {
        Self::with(clients, "server").await
    }

    /// `name` is that of the server's certificate.
    async fn with(clients: &'static str, name: &str) -> Self {
        let certificates = Certificates::new();
        let tls_port = free_port();
        let settings = vec![
            ("tls-port", tls_port.to_string()),
            ("tls-cert-file", certificates.text(&format!("{name}.pem"))),
            ("tls-key-file", certificates.text(&format!("{name}.key"))),
            ("tls-ca-cert-file", certificates.text("ca.pem")),
            ("tls-auth-clients", clients.to_owned()),
            ("unixsocket", certificates.text("redis.sock")),
            ("user", format!("\"app\" on \">{PASSWORD}\" ~* &* +@all")),
            ("user", "np on nopass ~* &* +@all".to_owned()),
        ];
        let server = start_redis(settings, None).await;
        Self { certificates, server, tls_port }
    }

    /// The address of the TLS port under this name.
    fn url(&self, host: &str) -> String {
        format!("rediss://app:{ESCAPED}@{host}:{}", self.tls_port)
    }

    fn with_ca(&self, system: System) -> System {
        system.set("AFTERCOMMIT_REDIS_TLS_CA_FILE", &self.certificates.text("ca.pem"))
    }

    fn with_certificate(&self, system: System) -> System {
        system
            .set("AFTERCOMMIT_REDIS_TLS_CERT_FILE", &self.certificates.text("client.pem"))
            .set("AFTERCOMMIT_REDIS_TLS_KEY_FILE", &self.certificates.text("client.key"))
    }
}

/// Sends events through a relay and an SSE server with these settings.
async fn assert_events_arrive(system: System) -> TestResult {
    let feed = Feed::with(system).await;
    let sse = feed.sse().await;
    let client = Client::open(&sse.url(NOTIFICATIONS), &feed.token()).await;
    feed.commit(0..100).await;
    assert_eq!(numbers(&client.wait_for_events(100).await), (0..100).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test]
async fn events_pass_a_redis_that_wants_a_client_certificate_of_a_private_ca() -> TestResult {
    let redis = Secured::new("yes").await;
    let system = System::with_redis(&redis.url("localhost")).await;
    let system = redis.with_certificate(redis.with_ca(system));
    let found = unwrapped(&stdout(&cli(system.settings(), &["doctor", "--role", "sse"]).await));
    assert!(found.contains("can be subscribed to"), "{found}");
    assert_events_arrive(system).await
}

#[tokio::test]
async fn events_pass_a_redis_behind_a_unix_socket() -> TestResult {
    let redis = Secured::new("no").await;
    let socket = redis.certificates.text("redis.sock");
    assert_events_arrive(System::with_redis(&format!("redis+unix://{socket}?user=app&pass={ESCAPED}")).await)
        .await
}

#[tokio::test]
async fn events_pass_a_redis_whose_address_has_the_scheme_of_valkey() -> TestResult {
    let redis = Secured::new("no").await;
    let url = format!("valkeys://app:{ESCAPED}@localhost:{}", redis.tls_port);
    assert_events_arrive(redis.with_ca(System::with_redis(&url).await)).await
}

#[tokio::test]
async fn each_mistake_with_certificates_is_one_sentence_that_names_the_setting() -> TestResult {
    let redis = Secured::new("yes").await;
    let other = Certificates::new();
    let url = redis.url("localhost");
    let plain = format!("redis://app:{ESCAPED}@localhost:{}", redis.server.port());
    let tls_at_plain = format!("rediss://app:{ESCAPED}@localhost:{}", redis.server.port());
    let plain_at_tls = format!("redis://app:{ESCAPED}@localhost:{}", redis.tls_port);
    let (ca, cert, key) = ("TLS_CA_FILE", "TLS_CERT_FILE", "TLS_KEY_FILE");
    let file = |name: &str| redis.certificates.text(name);
    let ours = [(cert, file("client.pem")), (key, file("client.key"))];
    let with = |more: &[(&'static str, String)]| [&ours[..], more].concat();
    let encrypted = redis.certificates.write(
        "encrypted.key",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    let pem = std::fs::read_to_string(redis.certificates.path("ca.pem"))?;
    let broken = redis.certificates.write("broken.pem", pem.clone() + &pem.replacen("MII", "MII*", 1));
    let empty = redis.certificates.write("empty.pem", "");
    let system = System::new().await;
    let http = system.start("sse").await;
    let tls_at_http = format!("rediss://app:{ESCAPED}@{}", http.address);
    for (url, files, sentence) in [
        (&url, with(&[]), "set [redis] tls_ca_file"),
        (&url, with(&[(ca, other.text("ca.pem"))]), "did not sign the server's certificate"),
        (&redis.url("127.0.0.1"), with(&[(ca, file("ca.pem"))]), "write a name in REDIS_URL"),
        (&url, vec![(ca, file("ca.pem"))], "set [redis] tls_cert_file and tls_key_file"),
        (
            &url,
            vec![(ca, file("ca.pem")), (cert, other.text("client.pem")), (key, other.text("client.key"))],
            "refuses the client certificate",
        ),
        (
            &url,
            vec![(ca, file("ca.pem")), (cert, file("client.pem")), (key, file("server.key"))],
            "is not the key of [redis] tls_cert_file",
        ),
        (&tls_at_http, with(&[(ca, file("ca.pem"))]), "does not speak TLS at this port"),
        // These two may only be away, and relays wait for them.
        (&tls_at_plain, with(&[(ca, file("ca.pem"))]), "does it speak TLS at this port"),
        (&plain_at_tls, vec![], "does it want TLS"),
        (&plain, vec![(ca, file("ca.pem"))], "the address asks for no TLS"),
        (&url, vec![(cert, file("client.pem"))], "a client certificate needs both"),
        (&url, vec![(key, file("client.key"))], "a client certificate needs both"),
        (&url, vec![(ca, file("nowhere.pem"))], "cannot read [redis] tls_ca_file"),
        (&url, vec![(ca, file("server.key"))], "holds no certificate in PEM form"),
        (&url, vec![(cert, file("client.pem")), (key, file("client.pem"))], "tls_key_file"),
        (&url, vec![(cert, file("client.pem")), (key, encrypted)], "encrypted.key is encrypted"),
        (&url, with(&[(ca, broken)]), "certificate 2 in [redis] tls_ca_file"),
        (&url, with(&[(ca, empty)]), "empty.pem is empty"),
    ] {
        let mut settings = system.settings().clone().set("REDIS_URL", url);
        for (name, path) in &files {
            settings = settings.set(&format!("AFTERCOMMIT_REDIS_{name}"), path);
        }
        assert_told(&settings, sentence).await;
    }
    Ok(())
}

/// A user without a password, a CA's file with a byte order mark, and a server's certificate that is a CA's.
#[tokio::test]
async fn a_user_without_a_password_is_used_and_odd_certificates_are_read_or_told() -> TestResult {
    let redis = Secured::with("no", "self-signed").await;
    let system = System::new().await;
    let mut failures = Vec::new();
    let port = redis.server.port();
    for url in [format!("redis://np@localhost:{port}"), format!("redis://np:@localhost:{port}")] {
        let settings = system.settings().clone().set("REDIS_URL", &url);
        let found = stdout(&cli(&settings, &["doctor", "--role", "sse", "--output", "json"]).await);
        failures.extend((!found.contains("can be subscribed to")).then_some(found));
    }
    let pem = std::fs::read_to_string(redis.certificates.path("self-signed.pem"))?;
    let marked = redis.certificates.write("marked.pem", format!("\u{feff}{pem}"));
    let settings = system.settings().clone().set("REDIS_URL", redis.url("localhost"));
    let settings = settings.set("AFTERCOMMIT_REDIS_TLS_CA_FILE", marked);
    failures.extend(untold(&settings, "basicConstraints CA:FALSE").await);
    let nowhere = system.settings().clone().set("REDIS_URL", "unix:///nowhere/redis.sock");
    let found = stdout(&cli(&nowhere, &["doctor", "--role", "sse", "--output", "json"]).await);
    failures.extend((!found.contains("is the path in REDIS_URL right?")).then_some(found));
    assert!(failures.is_empty(), "{failures:#?}");
    Ok(())
}

/// The doctor says it, and so does a relay, which ends.
async fn assert_told(settings: &Settings, sentence: &str) {
    let found = cli(settings, &["doctor", "--role", "sse", "--output", "json"]).await;
    let found = stdout(&found);
    assert!(found.contains(sentence), "{sentence}: {found}");
    if !sentence.starts_with("does it") {
        assert_fails(settings, &["relay"], 1, sentence).await;
    }
}
