//! TLS to Redis: the certificates that the `[redis]` section names, and what a failed handshake means.
//!
//! The server's certificate and name are always checked. No setting switches that off.

use std::error::Error;
use std::io;
use std::sync::Arc;

use ::redis::{ClientTlsConfig, RedisError, TlsCertificates};
use rustls::AlertDescription;

use crate::address;
use crate::certificates::{self, PemError, PemFile, Remedies};

/// Why the certificates of the `[redis]` section cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is set, and the address asks for no TLS.
    #[error(
        "[redis] {setting} is set, but the address asks for no TLS: write {scheme} in REDIS_URL, or remove \
         {setting}"
    )]
    NotAskedFor {
        /// The setting.
        setting: &'static str,
        /// The scheme that asks for it.
        scheme: &'static str,
    },
    /// A file is set, and the address is that of a unix socket.
    #[error("[redis] {0} is set, but a unix socket speaks no TLS: remove {0}")]
    UnixSocket(&'static str),
    /// Only one of the two files of a client certificate is set.
    #[error("[redis] {0} is set and {1} is not: a client certificate needs both")]
    Half(&'static str, &'static str),
    /// A file cannot be used.
    #[error(transparent)]
    Pem(#[from] PemError),
}

/// The part of the settings that a handshake depends on. An empty file is none.
#[derive(Debug, Clone)]
pub(super) struct TlsSettings {
    pub(super) ca_file: String,
    pub(super) cert_file: String,
    pub(super) key_file: String,
    /// The schemes of the address, without and with TLS; `None` for a unix socket.
    pub(super) schemes: Option<[&'static str; 2]>,
}

/// The schemes of addresses of this kind, without and with TLS; `None` for a unix socket.
pub(super) fn schemes_of(url: &str) -> Option<[&'static str; 2]> {
    match address::scheme(url).as_deref() {
        Some("unix" | "redis+unix" | "valkey+unix") => None,
        Some("redis+sentinel" | "rediss+sentinel") => Some(["redis+sentinel://", "rediss+sentinel://"]),
        _ => Some(["redis://", "rediss://"]),
    }
}

impl TlsSettings {
    /// Advice for a server that cannot be reached.
    pub(super) fn advice_on_silence(&self, is_tls: bool) -> String {
        let question = match self.schemes {
            None => return "is it running, and is the path in REDIS_URL right?".to_owned(),
            Some(_) if is_tls => "does it speak TLS at this port".to_owned(),
            Some([_, scheme]) => format!("does it want TLS ({scheme})"),
        };
        format!("is it running, {question}, and is REDIS_URL right?")
    }
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
/// Returns a [`TlsError`] if a file is missing, unreadable, broken or of another kind, and if the settings
/// contradict each other or the address.
pub(super) fn certificates(
    settings: &TlsSettings,
    is_tls: bool,
) -> Result<Option<TlsCertificates>, TlsError> {
    let TlsSettings { ca_file, cert_file, key_file, schemes } = settings;
    let files = [("tls_ca_file", ca_file), ("tls_cert_file", cert_file), ("tls_key_file", key_file)];
    let Some((setting, _)) = files.into_iter().find(|(_, path)| !path.is_empty()) else { return Ok(None) };
    if !is_tls {
        return Err(match schemes {
            Some([_, scheme]) => TlsError::NotAskedFor { setting, scheme },
            None => TlsError::UnixSocket(setting),
        });
    }
    let client_tls = match (cert_file.as_str(), key_file.as_str()) {
        ("", "") => None,
        (_, "") => return Err(TlsError::Half("tls_cert_file", "tls_key_file")),
        ("", _) => return Err(TlsError::Half("tls_key_file", "tls_cert_file")),
        (cert, key) => {
            let (cert, key) = (read("tls_cert_file", cert)?, read("tls_key_file", key)?);
            cert.check_key(&key)?;
            Some(ClientTlsConfig { client_cert: cert.into_text(), client_key: key.into_text() })
        }
    };
    let root_cert = match ca_file.as_str() {
        "" => None,
        path => {
            let ca = read("tls_ca_file", path)?;
            ca.check_authorities()?;
            Some(ca.into_text())
        }
    };
    Ok(Some(TlsCertificates { client_tls, root_cert }))
}

fn read(setting: &str, path: &str) -> Result<PemFile, PemError> {
    PemFile::read(path, label(setting, path))
}

/// A setting and its file, for messages.
fn label(setting: &str, path: &str) -> String {
    format!("[redis] {setting} {path}")
}

/// Returns why a handshake failed, and the setting that mends it; `None` for an error that is not of TLS.
pub(super) fn handshake_problem(error: &RedisError, settings: &TlsSettings) -> Option<String> {
    let TlsSettings { ca_file, cert_file, key_file, schemes } = settings;
    let error = rustls_error(error)?;
    let advice = match error {
        rustls::Error::InvalidCertificate(certificate) => {
            let in_use = (!ca_file.is_empty()).then(|| label("tls_ca_file", ca_file));
            let remedies =
                Remedies { ca: "[redis] tls_ca_file", ca_in_use: in_use.as_deref(), address: "REDIS_URL" };
            return Some(certificates::explain(certificate, remedies));
        }
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure,
        ) if cert_file.is_empty() => {
            "the server wants a client certificate: set [redis] tls_cert_file and tls_key_file".to_owned()
        }
        rustls::Error::AlertReceived(_) if !cert_file.is_empty() => format!(
            "the server refuses the client certificate: check {} and {}, and the server's tls-ca-cert-file",
            label("tls_cert_file", cert_file),
            label("tls_key_file", key_file)
        ),
        rustls::Error::InvalidMessage(_) => format!(
            "the server does not speak TLS at this port: use its TLS port, or {} in REDIS_URL",
            schemes.map_or("redis://", |[plain, _]| plain)
        ),
        _ => "check the server's TLS settings".to_owned(),
    };
    Some(format!("{error}: {advice}"))
}

/// The driver wraps an error of TLS once or twice.
fn rustls_error(error: &RedisError) -> Option<&rustls::Error> {
    let wrapped = error.source()?.downcast_ref::<Arc<dyn Error + Send + Sync>>()?;
    wrapped
        .downcast_ref::<rustls::Error>()
        .or_else(|| wrapped.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref())
}
