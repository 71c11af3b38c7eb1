//! TLS to Redis: the certificates that the `[redis]` section names, and what a failed handshake means.
//!
//! The server's certificate and name are always checked. No setting switches that off.

use std::error::Error;
use std::io;
use std::sync::Arc;

use ::redis::{ClientTlsConfig, RedisError, TlsCertificates};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, CertificateError};

use super::settings::Settings;

/// Why the certificates of the `[redis]` section cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is set, and the address asks for no TLS.
    #[error(
        "[redis] {0} is set, but the address asks for no TLS: write rediss:// in REDIS_URL, or remove {0}"
    )]
    NotAskedFor(&'static str),
    /// Only one of the two files of a client certificate is set.
    #[error("[redis] {0} is set and {1} is not: a client certificate needs both")]
    Half(&'static str, &'static str),
    /// A file cannot be read.
    #[error("cannot read [redis] {setting} {path}: {source}")]
    Unreadable {
        /// The setting.
        setting: &'static str,
        /// Its value.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// A file does not hold what its setting says.
    #[error("[redis] {setting} {path} holds no {expected} in PEM form")]
    NotPem {
        /// The setting.
        setting: &'static str,
        /// Its value.
        path: String,
        /// The expected content.
        expected: &'static str,
    },
    /// The key does not belong to the certificate, or is of an unknown kind.
    #[error("[redis] tls_key_file {key} is not the key of tls_cert_file {cert}: {error}")]
    Key {
        /// The file with the certificate.
        cert: String,
        /// The file with the key.
        key: String,
        /// The cause.
        error: rustls::Error,
    },
}

/// Chooses the cryptography of TLS, if the process has not chosen yet. Two libraries are compiled in, and
/// without a choice the driver would panic.
pub(super) fn choose_cryptography() {
    // An error says that the process has chosen.
    let _chosen = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Reads the certificates that the settings name, or returns `None` if they name none.
///
/// The files are read for each connection, so that a renewed certificate needs no restart.
///
/// # Errors
/// Returns a [`TlsError`] if a file is missing, unreadable or of another kind, and if the settings contradict
/// each other or the address.
pub(super) fn certificates(settings: &Settings, is_tls: bool) -> Result<Option<TlsCertificates>, TlsError> {
    let Settings { tls_ca_file, tls_cert_file, tls_key_file, .. } = settings;
    let files =
        [("tls_ca_file", tls_ca_file), ("tls_cert_file", tls_cert_file), ("tls_key_file", tls_key_file)];
    let Some((name, _)) = files.into_iter().find(|(_, path)| !path.is_empty()) else { return Ok(None) };
    if !is_tls {
        return Err(TlsError::NotAskedFor(name));
    }
    let client_tls = match (tls_cert_file.as_str(), tls_key_file.as_str()) {
        ("", "") => None,
        (_, "") => return Err(TlsError::Half("tls_cert_file", "tls_key_file")),
        ("", _) => return Err(TlsError::Half("tls_key_file", "tls_cert_file")),
        (cert, key) => Some(client_certificate(cert, key)?),
    };
    let root_cert = match tls_ca_file.as_str() {
        "" => None,
        path => Some(certificates_in("tls_ca_file", path)?.0),
    };
    Ok(Some(TlsCertificates { client_tls, root_cert }))
}

fn client_certificate(cert: &str, key: &str) -> Result<ClientTlsConfig, TlsError> {
    let setting = "tls_key_file";
    let (client_cert, chain) = certificates_in("tls_cert_file", cert)?;
    let client_key = read(setting, key)?;
    let not_pem = |_| TlsError::NotPem { setting, path: key.to_owned(), expected: "private key" };
    let key_der = PrivateKeyDer::from_pem_slice(&client_key).map_err(not_pem)?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    CertifiedKey::from_der(chain, key_der, &provider).map_err(|error| TlsError::Key {
        cert: cert.to_owned(),
        key: key.to_owned(),
        error,
    })?;
    Ok(ClientTlsConfig { client_cert, client_key })
}

/// Reads a file with certificates: its text, and the certificates.
fn certificates_in(
    setting: &'static str,
    path: &str,
) -> Result<(Vec<u8>, Vec<CertificateDer<'static>>), TlsError> {
    let pem = read(setting, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok((pem, found)),
        _ => Err(TlsError::NotPem { setting, path: path.to_owned(), expected: "certificate" }),
    }
}

fn read(setting: &'static str, path: &str) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Unreadable { setting, path: path.to_owned(), source })
}

/// Returns why a handshake failed, and the setting that mends it; `None` for an error that is not of TLS.
pub(super) fn handshake_problem(error: &RedisError, settings: &Settings) -> Option<String> {
    let error = rustls_error(error)?;
    let advice = match error {
        rustls::Error::InvalidCertificate(certificate) => advice_on(certificate, settings),
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure,
        ) if settings.tls_cert_file.is_empty() => {
            "the server wants a client certificate: set [redis] tls_cert_file and tls_key_file".to_owned()
        }
        rustls::Error::AlertReceived(_) if !settings.tls_cert_file.is_empty() => format!(
            "the server refuses the client certificate: check [redis] tls_cert_file {} and tls_key_file {}, \
             and the server's tls-ca-cert-file",
            settings.tls_cert_file, settings.tls_key_file
        ),
        rustls::Error::InvalidMessage(_) => {
            "the server does not speak TLS at this port: use its TLS port, or redis:// in REDIS_URL"
                .to_owned()
        }
        _ => "check the server's TLS settings".to_owned(),
    };
    Some(format!("{error}: {advice}"))
}

fn advice_on(certificate: &CertificateError, settings: &Settings) -> String {
    match certificate {
        CertificateError::UnknownIssuer | CertificateError::BadSignature
            if settings.tls_ca_file.is_empty() =>
        {
            "no CA of this machine signed the server's certificate: set [redis] tls_ca_file to the \
             certificate of the CA that did"
                .to_owned()
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
            "the CA in [redis] tls_ca_file {} did not sign the server's certificate: set it to the \
             certificate of the CA that did",
            settings.tls_ca_file
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "write a name in REDIS_URL for which the server's certificate was issued".to_owned()
        }
        _ => "give the server a valid certificate, and check this machine's clock".to_owned(),
    }
}

/// The driver wraps an error of TLS once or twice.
fn rustls_error(error: &RedisError) -> Option<&rustls::Error> {
    let wrapped = error.source()?.downcast_ref::<Arc<dyn Error + Send + Sync>>()?;
    wrapped
        .downcast_ref::<rustls::Error>()
        .or_else(|| wrapped.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref())
}
