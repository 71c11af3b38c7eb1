//! Postgres by TLS: a private CA, a client certificate, and the sentence for each mistake.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use sqlx::Connection;

use crate::commands::{stderr, stdout, untold};
use crate::harness::{
    Certificates, Database, OwnPostgres, Settings, System, TestResult, cli, database_on, eventually,
    start_postgres,
};

/// A key that only a password opens. What it holds is never read.
const ENCRYPTED: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
/// The older form.
const ENCRYPTED_PKCS_1: &str = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\
                                DEK-Info: AES-256-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";

/// A server with TLS, which wants a client certificate of its CA from users in the database `app`.
async fn server() -> TestResult<(OwnPostgres, Database, Certificates)> {
    let own = OwnPostgres::new(start_postgres(Vec::new()).await).await;
    let database = database_on(&own.server).await;
    let certificates = Certificates::new();
    let data = own.server.data_directory().to_owned();
    let owner = std::fs::metadata(&data)?;
    for file in ["server.pem", "server.key", "ca.pem", "self-signed.pem", "self-signed.key"] {
        let copy = data.join(file);
        std::fs::copy(certificates.path(file), &copy)?;
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o600))?;
        chown(&copy, Some(owner.uid()), Some(owner.gid()))?;
    }
    let mut admin = Database::at(&own.url()).connect().await;
    for sql in [
        "alter system set ssl_cert_file = 'server.pem'",
        "alter system set ssl_key_file = 'server.key'",
        "alter system set ssl_ca_file = 'ca.pem'",
        "alter system set ssl = on",
        "select pg_reload_conf()",
    ] {
        sqlx::raw_sql(sql).execute(&mut admin).await?;
    }
    let hba = data.join("pg_hba.conf");
    let rules = std::fs::read_to_string(&hba)?;
    std::fs::write(
        &hba,
        format!(
            "hostssl all all 127.0.0.1/32 md5 clientcert=verify-ca\n\
             hostnossl all by_tls 127.0.0.1/32 reject\n{rules}"
        ),
    )?;
    sqlx::raw_sql("select pg_reload_conf()").execute(&mut admin).await?;
    eventually("it speaks TLS", async || {
        let url = format!("{}?sslmode=require", own.url());
        let refused = sqlx::PgConnection::connect(&url).await.err()?;
        refused.as_database_error().map(|_wants_a_certificate| ())
    })
    .await;
    Ok((own, database, certificates))
}

async fn assert_doctor_tells_of_tls(settings: &Settings) {
    let found = stdout(&cli(settings, &["doctor", "--role", "relay"]).await);
    assert!(found.contains("answers, by TLS (TLSv1."), "{found}");
}

#[tokio::test]
async fn a_relay_delivers_by_verified_tls_and_each_mistake_names_its_parameter() -> TestResult {
    let (own, database, certificates) = server().await?;
    let other = Certificates::new();
    let local = database.url().replace("127.0.0.1", "localhost");
    let file = |name: &str| certificates.text(name);
    let client = format!("sslcert={}&sslkey={}", file("client.pem"), file("client.key"));
    let verified = format!("{local}?sslmode=verify-full&sslrootcert={}&{client}", file("ca.pem"));
    let system = System::new().await;
    let relay = system.settings().clone().set("DATABASE_URL", &verified);
    let relay = crate::harness::Process::start("relay", &relay).await;
    relay.wait_for_log("leading").await;
    assert_doctor_tells_of_tls(&system.settings().clone().set("DATABASE_URL", &verified)).await;

    // The name of the server does not count under `require`.
    let required = format!("{}?sslmode=require&sslrootcert={}&{client}", database.url(), file("ca.pem"));
    let status = cli(&system.settings().clone().set("DATABASE_URL", required), &["status"]).await;
    assert_eq!(status.status.code(), Some(0), "{}", stderr(&status));

    let full = "sslmode=verify-full";
    let other_ca = certificates.write("other-ca.pem", std::fs::read(other.path("ca.pem"))?);
    let others_client = format!("sslcert={}&sslkey={}", other.text("client.pem"), other.text("client.key"));
    let (userinfo, host) = local.split_once('@').ok_or("no user")?;
    let (host, name) = host.split_once('/').ok_or("no database")?;
    let several = format!("{userinfo}@{host},{host}/{name}");
    let by_nobody = format!("postgres://by_tls@{host}/{name}");
    let mut failures = Vec::new();
    for (url, sentence) in [
        (format!("{local}?{full}&{client}"), "set sslrootcert in DATABASE_URL"),
        (
            format!("{local}?{full}&{client}&sslrootcert={other_ca}"),
            "other-ca.pem of the database url did not sign",
        ),
        // As libpq does: with a CA, `require` verifies it.
        (
            format!("{local}?sslmode=require&{client}&sslrootcert={other_ca}"),
            "other-ca.pem of the database url did not sign",
        ),
        // Several hosts, of which each is refused.
        (
            format!("{several}?{full}&{client}&sslrootcert={other_ca}"),
            "other-ca.pem of the database url did not sign",
        ),
        (format!("{by_nobody}?sslmode=disable"), "set sslmode=require in DATABASE_URL"),
        (
            format!("{}?{full}&{client}&sslrootcert={}", database.url(), file("ca.pem")),
            "write a name in DATABASE_URL",
        ),
        (
            format!("{local}?{full}&sslrootcert={}&{others_client}", file("ca.pem")),
            "the server refuses the client certificate: check sslcert",
        ),
        (format!("{local}?{full}&sslrootcert={}", file("ca.pem")), "sslcert in DATABASE_URL"),
        (format!("{local}?{full}&sslrootcert={}", file("nowhere.pem")), "cannot read sslrootcert"),
        (format!("{local}?{full}&sslrootcert={}", file("server.key")), "sslrootcert"),
    ] {
        let settings = system.settings().clone().set("DATABASE_URL", url);
        let found = stdout(&cli(&settings, &["doctor", "--output", "json"]).await);
        let is_told = found.contains(sentence);
        failures.extend((!is_told).then(|| format!("{sentence}: the doctor does not say it")));
        failures.extend(untold(&settings, sentence).await);
    }
    assert!(failures.is_empty(), "{failures:#?}");

    let mut admin = Database::at(&format!("{}?sslmode=disable", own.url())).connect().await;
    for sql in [
        "alter system set ssl_cert_file = 'self-signed.pem'",
        "alter system set ssl_key_file = 'self-signed.key'",
        "select pg_reload_conf()",
    ] {
        sqlx::raw_sql(sql).execute(&mut admin).await?;
    }
    let url = format!("{local}?{full}&{client}&sslrootcert={}", file("self-signed.pem"));
    let settings = system.settings().clone().set("DATABASE_URL", url);
    eventually("it says what is wrong with the certificate", async || {
        let said = stderr(&cli(&settings, &["relay"]).await);
        said.contains("basicConstraints CA:FALSE").then_some(())
    })
    .await;
    Ok(())
}

/// Nothing listens at the address: a relay would wait for it.
#[tokio::test]
async fn each_file_that_cannot_be_used_ends_a_relay_with_its_name() -> TestResult {
    let certificates = Certificates::new();
    let system = System::new().await;
    let file = |name: &str| certificates.text(name);
    let directory = certificates.path("").display().to_string();
    let pem = std::fs::read_to_string(certificates.path("ca.pem"))?;
    let marked = certificates.write("marked.pem", format!("\u{feff}{pem}"));
    let empty = certificates.write("empty.pem", "");
    let broken = certificates.write("broken.pem", pem.clone() + &pem.replacen("MII", "MII*", 1));
    let der = certificates.write("ca.der", [0x30, 0x82, 1, 1]);
    let encrypted = certificates.write("encrypted.key", ENCRYPTED);
    let encrypted_1 = certificates.write("encrypted-1.key", ENCRYPTED_PKCS_1);
    let (cert, key, nowhere) = (file("client.pem"), file("client.key"), file("nowhere.pem"));

    let mut failures = Vec::new();
    for (query, variables, sentence) in [
        (format!("sslrootcert={directory}"), vec![], "cannot read sslrootcert"),
        (
            format!("sslrootcert={marked}"),
            vec![],
            "marked.pem of the database url begins with a byte order mark",
        ),
        (format!("sslrootcert={empty}"), vec![], "empty.pem of the database url is empty"),
        (format!("sslrootcert={der}"), vec![], "ca.der of the database url is in DER form"),
        (format!("sslrootcert={key}"), vec![], "client.key of the database url holds no certificate"),
        (format!("sslrootcert={broken}"), vec![], "certificate 2 in sslrootcert"),
        (format!("sslcert={directory}&sslkey={key}"), vec![], "cannot read sslcert"),
        (format!("sslcert={cert}&sslkey={directory}"), vec![], "cannot read sslkey"),
        (
            format!("sslcert={cert}&sslkey={encrypted}"),
            vec![],
            "encrypted.key of the database url is encrypted",
        ),
        (
            format!("sslcert={cert}&sslkey={encrypted_1}"),
            vec![],
            "encrypted-1.key of the database url is encrypted",
        ),
        (format!("sslcert={cert}&sslkey={}", file("server.key")), vec![], "is not the key of sslcert"),
        (format!("sslcert={cert}"), vec![], "sslkey is not: a client certificate needs both"),
        (format!("sslkey={key}"), vec![], "sslcert is not: a client certificate needs both"),
        (String::new(), vec![("PGSSLROOTCERT", &nowhere)], "cannot read PGSSLROOTCERT"),
        (String::new(), vec![("PGSSLCERT", &nowhere), ("PGSSLKEY", &key)], "cannot read PGSSLCERT"),
        (String::new(), vec![("PGSSLCERT", &cert), ("PGSSLKEY", &nowhere)], "cannot read PGSSLKEY"),
        (String::new(), vec![("PGSSLMODE", &empty)], "PGSSLMODE is '"),
    ] {
        let url = format!("postgres://u:p@127.0.0.1:1/d?{query}");
        let mut settings = system.settings().clone().set("DATABASE_URL", url);
        for (name, value) in variables {
            settings = settings.set(name, value);
        }
        failures.extend(untold(&settings, sentence).await);
    }
    assert!(failures.is_empty(), "{failures:#?}");
    Ok(())
}
