//! Certificates for servers with TLS: a CA, a server's certificate for `localhost` alone, a client's, and a
//! server's that signs itself as `openssl req -x509` does.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

/// PEM files in a directory of their own, which servers of other users may read.
#[derive(Debug)]
pub(crate) struct Certificates {
    directory: TempDir,
}

impl Certificates {
    /// Makes a CA and the certificates that it signs.
    pub(crate) fn new() -> Self {
        let directory = TempDir::with_prefix("aftercommit-certificates-").expect("a directory");
        let made = Self { directory };
        let key = KeyPair::generate().expect("a key");
        let mut ca = CertificateParams::new(Vec::new()).expect("parameters");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name.push(DnType::CommonName, "a CA of the tests");
        let certificate = ca.self_signed(&key).expect("a CA");
        std::fs::write(made.path("ca.pem"), certificate.pem()).expect("a file");
        let mut self_signed = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        self_signed.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let own_key = KeyPair::generate().expect("a key");
        let certificate = self_signed.self_signed(&own_key).expect("a certificate");
        std::fs::write(made.path("self-signed.pem"), certificate.pem()).expect("a file");
        std::fs::write(made.path("self-signed.key"), own_key.serialize_pem()).expect("a file");
        let issuer = Issuer::new(ca, key);
        for (name, for_name) in [("server", "localhost"), ("client", "client")] {
            let key = KeyPair::generate().expect("a key");
            let parameters = CertificateParams::new(vec![for_name.to_owned()]).expect("parameters");
            let certificate = parameters.signed_by(&key, &issuer).expect("a certificate");
            std::fs::write(made.path(&format!("{name}.pem")), certificate.pem()).expect("a file");
            std::fs::write(made.path(&format!("{name}.key")), key.serialize_pem()).expect("a file");
        }
        made
    }

    /// Settings of a Redis with TLS, also to its replicas.
    pub(crate) fn of_redis(&self, tls_port: u16) -> Vec<(&'static str, String)> {
        vec![
            ("tls-port", tls_port.to_string()),
            ("tls-cert-file", self.text("server.pem")),
            ("tls-key-file", self.text("server.key")),
            ("tls-ca-cert-file", self.text("ca.pem")),
            ("tls-auth-clients", "no".to_owned()),
            ("tls-replication", "yes".to_owned()),
        ]
    }

    /// Writes another file, and returns its path.
    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), text).expect("a file");
        self.text(name)
    }

    /// A file: `ca.pem`, or the `.pem` and the `.key` of `server`, `client` and `self-signed`.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The same as text.
    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }
}
