//! Certificates and keys in PEM files, and the reasons for which a server's certificate is refused.
//!
//! The files are checked before a connection is made: a driver reports a broken file as a broken connection,
//! or as an unknown CA. Nothing here connects.

use std::io;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore};

/// What some editors put before a text in UTF-8. No PEM parser expects it.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";
/// The marks of private keys that only a password opens: PKCS#8, and the older forms.
const ENCRYPTED: [&[u8]; 2] = [b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED"];

/// Why a PEM file cannot be used. Each text names the setting and the file, and never quotes the file.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    /// The file cannot be read.
    #[error("cannot read {file}: {source}")]
    Unreadable {
        /// The setting and its file.
        file: String,
        /// The cause.
        source: io::Error,
    },
    /// The file has no bytes.
    #[error("{0} is empty: name the PEM file that it was meant to be")]
    Empty(String),
    /// The file is in the binary form.
    #[error("{file} is in DER form: convert it by `openssl {command} -inform der -in FILE -out NEW_FILE`")]
    Der {
        /// The setting and its file.
        file: String,
        /// The command of openssl that reads it.
        command: &'static str,
    },
    /// The file does not hold what its setting says.
    #[error("{file} holds no {expected} in PEM form")]
    NotPem {
        /// The setting and its file.
        file: String,
        /// The expected content.
        expected: &'static str,
    },
    /// One of the certificates cannot be read.
    #[error("certificate {number} in {file} is broken: copy it again from where it was issued")]
    Broken {
        /// The setting and its file.
        file: String,
        /// Its place in the file, from 1.
        number: usize,
    },
    /// The key is encrypted.
    #[error(
        "the private key in {0} is encrypted, and nobody can be asked for its password: decrypt it by \
         `openssl pkey -in FILE -out NEW_FILE`, and name that file"
    )]
    Encrypted(String),
    /// The key does not belong to the certificate, or is of an unknown kind.
    #[error("{key} is not the key of {certificate}: {source}")]
    OtherKey {
        /// The setting and the file of the certificate.
        certificate: String,
        /// The setting and the file of the key.
        key: String,
        /// The cause.
        source: rustls::Error,
    },
}

/// The text of a PEM file.
#[derive(Debug)]
pub struct PemFile {
    /// The setting and its file, for messages.
    label: String,
    text: Vec<u8>,
    had_byte_order_mark: bool,
}

impl PemFile {
    /// Reads a file. `label` names the setting and the file in messages.
    ///
    /// # Errors
    /// Returns [`PemError::Unreadable`] if the file cannot be read.
    pub fn read(path: &str, label: String) -> Result<Self, PemError> {
        match std::fs::read(path) {
            Ok(text) => Ok(Self::of(text, label)),
            Err(source) => Err(PemError::Unreadable { file: label, source }),
        }
    }

    /// Takes a text that a setting holds itself.
    pub fn of(text: Vec<u8>, label: String) -> Self {
        match text.strip_prefix(BYTE_ORDER_MARK) {
            Some(behind) => Self { text: behind.to_vec(), label, had_byte_order_mark: true },
            None => Self { text, label, had_byte_order_mark: false },
        }
    }

    /// Whether the file begins with a byte order mark, which is left out here.
    pub fn had_byte_order_mark(&self) -> bool {
        self.had_byte_order_mark
    }

    /// The text, without a byte order mark.
    pub fn into_text(self) -> Vec<u8> {
        self.text
    }

    /// Checks that the file holds certificates of CAs, and nothing that is broken.
    ///
    /// # Errors
    /// Returns a [`PemError`] that says what is wrong with the file.
    pub fn check_authorities(&self) -> Result<(), PemError> {
        self.certificates().map(|_certificates| ())
    }

    /// Checks that the file holds a certificate, and `key` the key of its first one.
    ///
    /// # Errors
    /// Returns a [`PemError`] that says what is wrong with the certificates; [`PemError::Encrypted`] if the key
    /// is encrypted, [`PemError::OtherKey`] if it is not the certificate's, and [`PemError::Empty`],
    /// [`PemError::Der`] or [`PemError::NotPem`] if the file holds no key.
    pub fn check_key(&self, key: &Self) -> Result<(), PemError> {
        let (chain, key_der) = (self.certificates()?, key.private_key()?);
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        CertifiedKey::from_der(chain, key_der, &provider).map(|_pair| ()).map_err(|source| {
            PemError::OtherKey { certificate: self.label.clone(), key: key.label.clone(), source }
        })
    }

    /// The certificates in the file: at least one.
    ///
    /// # Errors
    /// Returns [`PemError::Broken`] if one cannot be read, and [`PemError::Empty`], [`PemError::Der`] or
    /// [`PemError::NotPem`] if there is none.
    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, PemError> {
        let mut certificates = Vec::new();
        for found in CertificateDer::pem_slice_iter(&self.text) {
            let broken = || PemError::Broken { file: self.label.clone(), number: certificates.len() + 1 };
            let certificate = found.map_err(|_error| broken())?;
            // The parser of CAs reads any certificate, as its name and key are all that a CA needs.
            RootCertStore::empty().add(certificate.clone()).map_err(|_error| broken())?;
            certificates.push(certificate);
        }
        if certificates.is_empty() {
            return Err(self.holds_no("certificate", "x509"));
        }
        Ok(certificates)
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, PemError> {
        let holds = |mark: &&[u8]| self.text.windows(mark.len()).any(|part| part == *mark);
        if ENCRYPTED.iter().any(holds) {
            return Err(PemError::Encrypted(self.label.clone()));
        }
        PrivateKeyDer::from_pem_slice(&self.text).map_err(|_error| self.holds_no("private key", "pkey"))
    }

    fn holds_no(&self, expected: &'static str, command: &'static str) -> PemError {
        let file = self.label.clone();
        match self.text.first() {
            None => PemError::Empty(file),
            // An ASN.1 sequence of more than 127 bytes, as each certificate and nearly each key is.
            Some(0x30) if matches!(self.text.get(1), Some(0x81 | 0x82)) => PemError::Der { file, command },
            Some(_) => PemError::NotPem { file, expected },
        }
    }
}

/// The settings that mend a refused certificate of a server.
#[derive(Debug, Clone, Copy)]
pub struct Remedies<'a> {
    /// The setting for the CA's certificate.
    pub ca: &'a str,
    /// The same with its file, if it is set.
    pub ca_in_use: Option<&'a str>,
    /// The setting with the server's name.
    pub address: &'a str,
}

/// Says why a server's certificate is refused, and what mends it.
pub fn explain(error: &CertificateError, remedies: Remedies<'_>) -> String {
    let cause = rustls::Error::InvalidCertificate(error.clone());
    let Remedies { ca, ca_in_use, address } = remedies;
    match error {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => match ca_in_use {
            None => format!(
                "{cause}: no CA of this machine signed the server's certificate: set {ca} to the certificate \
                 of the CA that did"
            ),
            Some(file) => format!(
                "{cause}: the CA in {file} did not sign the server's certificate: set it to the certificate \
                 of the CA that did"
            ),
        },
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("{cause}: write a name in {address} for which the server's certificate was issued")
        }
        // The verifier's own words for these are the names of its variants.
        CertificateError::Other(other) if other.to_string() == "CaUsedAsEndEntity" => format!(
            "the server shows the certificate of a CA, as `openssl req -x509` makes it: give the server a \
             certificate with basicConstraints CA:FALSE, signed by that CA, and set {ca} to the CA's"
        ),
        CertificateError::Other(other) if other.to_string() == "UnsupportedCertVersion" => {
            "the server's certificate is of an old version of X.509: issue it again with extensions, and \
             with the server's name as subjectAltName (`openssl x509 -req -extfile`)"
                .to_owned()
        }
        _ => format!("{cause}: give the server a valid certificate, and check this machine's clock"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::{ServerName, UnixTime};

    use super::*;

    /// Of version 1, as `openssl x509 -req` without extensions makes it.
    const VERSION_1: &str = "-----BEGIN CERTIFICATE-----
MIIBIzCBywIUUsbgDDoR5FSwVTLZZKK+1SuXrEwwCgYIKoZIzj0EAwIwFDESMBAG
A1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyNzE2MDAyNVoYDzIxMjYxMTAzMTYwMDI1
WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
AARbGH3PjjF7bMfJgBt9i7USUzStbw2qNOH7U0E6laSs3jvp+T/WvnFIU/30H0Y2
W2i2kHouk//AqZLeb4NRVCzRMAoGCCqGSM49BAMCA0cAMEQCIFeGSScv/FZWt2aS
ECjqieOIha2x4TQKURKhfs54TozyAiBtUsxu440A9C+NJ5Ec+zTdumCbd9I/hHnT
qRS+Bm8yTg==
-----END CERTIFICATE-----
";

    fn file(text: impl Into<Vec<u8>>) -> PemFile {
        PemFile::of(text.into(), "tls_ca_file /ca.pem".to_owned())
    }

    /// A certificate that signs itself, and its key.
    fn self_signed(is_ca: IsCa) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let mut parameters = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        parameters.is_ca = is_ca;
        (parameters.self_signed(&key).expect("a certificate"), key)
    }

    fn told(result: Result<(), PemError>) -> String {
        result.expect_err("no use").to_string()
    }

    #[test]
    fn each_file_that_holds_no_ca_is_told_by_its_cause() {
        let (ca, key) = self_signed(IsCa::Ca(BasicConstraints::Unconstrained));
        let broken = ca.pem().replacen("MII", "MII*", 1);
        let of_text = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (text, expected) in [
            (Vec::new(), "/ca.pem is empty"),
            (ca.der().to_vec(), "/ca.pem is in DER form"),
            (key.serialize_pem().into_bytes(), "/ca.pem holds no certificate in PEM form"),
            (b"nonsense".to_vec(), "/ca.pem holds no certificate in PEM form"),
            (format!("{}{broken}", ca.pem()).into_bytes(), "certificate 2 in tls_ca_file /ca.pem is broken"),
            (format!("{}{of_text}", ca.pem()).into_bytes(), "certificate 2 in tls_ca_file /ca.pem is broken"),
        ] {
            let told = told(file(text).check_authorities());
            assert!(told.contains(expected), "{expected}: {told}");
        }
        assert!(file(ca.pem().repeat(2)).check_authorities().is_ok());
        assert!(file(VERSION_1).check_authorities().is_ok());
    }

    #[test]
    fn a_byte_order_mark_is_left_out() {
        let (ca, _key) = self_signed(IsCa::NoCa);
        let marked = file([BYTE_ORDER_MARK, ca.pem().as_bytes()].concat());
        assert!(marked.had_byte_order_mark());
        assert!(marked.check_authorities().is_ok());
        assert_eq!(marked.into_text(), ca.pem().as_bytes());
    }

    #[test]
    fn a_key_that_is_encrypted_or_of_another_certificate_is_told() {
        let (certificate, key) = self_signed(IsCa::NoCa);
        let (_other, other_key) = self_signed(IsCa::NoCa);
        let certificate = file(certificate.pem());
        assert!(certificate.check_key(&file(key.serialize_pem())).is_ok());
        let pkcs_8 = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let pkcs_1 = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n\
                      AAAA\n-----END RSA PRIVATE KEY-----\n";
        for (text, expected) in [
            (pkcs_8.to_owned(), "openssl pkey"),
            (pkcs_1.to_owned(), "openssl pkey"),
            (other_key.serialize_pem(), "is not the key of"),
            (String::new(), "is empty"),
            ("nonsense".to_owned(), "holds no private key"),
        ] {
            let told = told(certificate.check_key(&file(text)));
            assert!(told.contains(expected), "{expected}: {told}");
        }
    }

    /// What a client with this CA says of this certificate.
    fn said_of(certificate: &CertificateDer<'static>, ca: &CertificateDer<'static>) -> Result<(), String> {
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone()).expect("a CA");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .expect("a verifier");
        let name = ServerName::try_from("localhost").expect("a name");
        let remedies = Remedies { ca: "tls_ca_file", ca_in_use: None, address: "REDIS_URL" };
        match verifier.verify_server_cert(certificate, &[], &name, &[], UnixTime::now()) {
            Ok(_verified) => Ok(()),
            Err(rustls::Error::InvalidCertificate(error)) => Err(explain(&error, remedies)),
            Err(other) => Err(other.to_string()),
        }
    }

    #[test]
    fn a_ca_as_a_server_s_certificate_and_one_of_version_1_get_advice() {
        let (ca, _key) = self_signed(IsCa::Ca(BasicConstraints::Unconstrained));
        let told = said_of(ca.der(), ca.der()).expect_err("a CA");
        assert!(told.contains("CA:FALSE") && !told.contains("Other("), "{told}");
        let old = CertificateDer::from_pem_slice(VERSION_1.as_bytes()).expect("a certificate");
        let told = said_of(&old, &old).expect_err("version 1");
        assert!(told.contains("subjectAltName") && !told.contains("Other("), "{told}");
        let (no_ca, _key) = self_signed(IsCa::ExplicitNoCa);
        assert_eq!(said_of(no_ca.der(), no_ca.der()), Ok(()));
    }
}
