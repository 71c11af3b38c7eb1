//! Postgres by TLS: a private CA, a client certificate, and the sentence for each mistake.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use sqlx::Connection;

use crate::commands::{assert_fails, stdout};
use crate::harness::{
    Certificates, Database, OwnPostgres, System, TestResult, cli, database_on, eventually, start_postgres,
};

/// A server with TLS, which wants a client certificate of its CA from users in the database `app`.
async fn server() -> TestResult<(OwnPostgres, Database, Certificates)> {
    let own = OwnPostgres::new(start_postgres(Vec::new()).await).await;
    let database = database_on(&own.server).await;
    let certificates = Certificates::new();
    let data = own.server.data_directory().to_owned();
    let owner = std::fs::metadata(&data)?;
    for file in ["server.pem", "server.key", "ca.pem"] {
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
    std::fs::write(&hba, format!("hostssl all all 127.0.0.1/32 md5 clientcert=verify-ca\n{rules}"))?;
    sqlx::raw_sql("select pg_reload_conf()").execute(&mut admin).await?;
    eventually("it speaks TLS", async || {
        let url = format!("{}?sslmode=require", own.url());
        let refused = sqlx::PgConnection::connect(&url).await.err()?;
        refused.as_database_error().map(|_wants_a_certificate| ())
    })
    .await;
    Ok((own, database, certificates))
}

#[tokio::test]
async fn a_relay_delivers_by_verified_tls_and_each_mistake_names_its_parameter() -> TestResult {
    let (_own, database, certificates) = server().await?;
    let other = Certificates::new();
    let local = database.url().replace("127.0.0.1", "localhost");
    let file = |name: &str| certificates.text(name);
    let client = format!("sslcert={}&sslkey={}", file("client.pem"), file("client.key"));
    let verified = format!("{local}?sslmode=verify-full&sslrootcert={}&{client}", file("ca.pem"));
    let system = System::new().await;
    let relay = system.settings().clone().set("DATABASE_URL", &verified);
    let relay = crate::harness::Process::start("relay", &relay).await;
    relay.wait_for_log("leading").await;

    let full = "sslmode=verify-full";
    for (url, sentence) in [
        (format!("{local}?{full}&{client}"), "set sslrootcert in DATABASE_URL"),
        (
            format!("{local}?{full}&{client}&sslrootcert={}", other.text("ca.pem")),
            "set sslrootcert in DATABASE_URL",
        ),
        (
            format!("{}?{full}&{client}&sslrootcert={}", database.url(), file("ca.pem")),
            "write a host in DATABASE_URL",
        ),
        (format!("{local}?{full}&sslrootcert={}", file("ca.pem")), "sslcert in DATABASE_URL"),
        (format!("{local}?{full}&sslrootcert={}", file("nowhere.pem")), "cannot read sslrootcert"),
        (format!("{local}?{full}&sslrootcert={}", file("server.key")), "sslrootcert"),
    ] {
        let settings = system.settings().clone().set("DATABASE_URL", url);
        let found = stdout(&cli(&settings, &["doctor", "--output", "json"]).await);
        assert!(found.contains(sentence), "{sentence}: {found}");
        assert_fails(&settings, &["relay"], 1, sentence).await;
    }
    Ok(())
}
