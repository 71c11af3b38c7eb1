//! TLS to Postgres as the address and libpq's environment variables ask for it: the mode, the files, and the
//! meaning of a failed handshake.
//!
//! The driver reads the files when it connects, so that a renewed certificate needs no restart. They are
//! checked here before, because the driver reports a broken file as a broken connection.

use std::str::FromStr;

use rustls::AlertDescription;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use crate::address;
use crate::certificates::{self, PemError, PemFile, Remedies};

/// Why TLS cannot be spoken as the address and the environment ask for it.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The mode is unknown.
    #[error(
        "{setting} is '{value}', which means nothing: set it to disable, prefer, require, verify-ca or \
         verify-full"
    )]
    Mode {
        /// The parameter or the environment variable.
        setting: &'static str,
        /// Its value.
        value: String,
    },
    /// A file cannot be used.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// A certificate or a key is set to nothing, which the driver would try to read.
    #[error("{0} is set and names no file: take it away, or name one")]
    NoFile(&'static str),
    /// A file begins with a byte order mark, behind which the driver finds nothing.
    #[error("{0} begins with a byte order mark: save the file without one")]
    ByteOrderMark(String),
    /// Only one of the two files of a client certificate is set.
    #[error("{set} is set and {missing} is not: a client certificate needs both")]
    Half {
        /// The setting and its file.
        set: String,
        /// The parameter of the other file.
        missing: &'static str,
    },
}

/// The CA that means the public ones, and no file.
const PUBLIC: &str = "system";
/// The parameters for the mode.
const MODE: [&str; 2] = ["sslmode", "ssl-mode"];
/// The parameters for each file, and the variable that stands in for them.
const CA: ([&str; 3], &str) = (["sslrootcert", "ssl-root-cert", "ssl-ca"], "PGSSLROOTCERT");
const CERTIFICATE: ([&str; 2], &str) = (["sslcert", "ssl-cert"], "PGSSLCERT");
const KEY: ([&str; 2], &str) = (["sslkey", "ssl-key"], "PGSSLKEY");

/// A setting that names a file, or holds its text.
#[derive(Debug, Clone)]
struct Named {
    /// The parameter or the variable.
    setting: &'static str,
    value: String,
    is_variable: bool,
}

impl Named {
    /// The setting and its file, for messages.
    fn label(&self) -> String {
        match (self.is_variable, self.is_a_text()) {
            (true, true) => format!("the text of {}", self.setting),
            (true, false) => format!("{} {}", self.setting, self.value),
            (false, _) => format!("{} {} of the database url", self.setting, self.value),
        }
    }

    /// The driver takes a variable's value for the text itself if it looks like one.
    fn is_a_text(&self) -> bool {
        let text = self.value.trim();
        self.is_variable && text.starts_with("-----BEGIN") && text.ends_with("-----")
    }

    fn read(&self) -> Result<PemFile, TlsError> {
        if self.value.is_empty() {
            return Err(TlsError::NoFile(self.setting));
        }
        if self.is_a_text() {
            return Ok(PemFile::of(self.value.clone().into_bytes(), self.label()));
        }
        let file = PemFile::read(&self.value, self.label())?;
        if file.had_byte_order_mark() {
            return Err(TlsError::ByteOrderMark(self.label()));
        }
        Ok(file)
    }
}

/// The mode and the files that an address asks for.
#[derive(Debug, Clone)]
pub(super) struct Tls {
    mode: PgSslMode,
    ca: Option<Named>,
    certificate: Option<Named>,
    key: Option<Named>,
}

impl Tls {
    /// Reads the address, and the process's environment for all that the address leaves out.
    ///
    /// # Errors
    /// Returns [`TlsError::Mode`] if the mode is none that libpq knows.
    pub(super) fn of(url: &str) -> Result<Self, TlsError> {
        Self::with(url, &|name| std::env::var(name).ok())
    }

    fn with(url: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, TlsError> {
        let named = |parameters: &[&'static str], name: &'static str| {
            let in_url = address::last_parameter(url, parameters);
            let of_url = in_url.map(|(setting, value)| Named { setting, value, is_variable: false });
            of_url.or_else(|| Some(Named { setting: name, value: variable(name)?, is_variable: true }))
        };
        let mode = match named(&MODE, "PGSSLMODE") {
            None => PgSslMode::default(),
            Some(Named { setting, value, .. }) => {
                PgSslMode::from_str(&value).map_err(|_error| TlsError::Mode { setting, value })?
            }
        };
        let [ca, certificate, key] =
            [named(&CA.0, CA.1), named(&CERTIFICATE.0, CERTIFICATE.1), named(&KEY.0, KEY.1)];
        let wants_public = ca.as_ref().is_some_and(|ca| ca.value == PUBLIC);
        // Set to nothing, it is not set, for libpq as well.
        let ca = ca.filter(|ca| !ca.value.is_empty() && !wants_public);
        let mode = match mode {
            // As libpq does: anybody can have a certificate of a public CA, but not for each name.
            _ if wants_public => PgSslMode::VerifyFull,
            // As libpq does. The driver would not look at the certificate.
            PgSslMode::Require if ca.is_some() => PgSslMode::VerifyCa,
            mode => mode,
        };
        Ok(Self { mode, ca, certificate, key })
    }

    /// Checks the files, if TLS may be spoken at all.
    ///
    /// # Errors
    /// Returns [`TlsError::Pem`] if a file cannot be used, [`TlsError::ByteOrderMark`] if one begins with a
    /// byte order mark, [`TlsError::NoFile`] if a certificate or a key is set to nothing, and
    /// [`TlsError::Half`] if a certificate has no key or a key no certificate.
    pub(super) fn check(&self) -> Result<(), TlsError> {
        if matches!(self.mode, PgSslMode::Disable | PgSslMode::Allow) {
            return Ok(());
        }
        if let Some(ca) = &self.ca {
            ca.read()?.check_authorities()?;
        }
        match (&self.certificate, &self.key) {
            (None, None) => Ok(()),
            (Some(certificate), Some(key)) => Ok(certificate.read()?.check_key(&key.read()?)?),
            (Some(set), None) => Err(TlsError::Half { set: set.label(), missing: "sslkey" }),
            (None, Some(set)) => Err(TlsError::Half { set: set.label(), missing: "sslcert" }),
        }
    }

    /// Sets the mode. The driver has found the files itself.
    pub(super) fn apply(&self, options: PgConnectOptions) -> PgConnectOptions {
        let options = options.ssl_mode(self.mode);
        // The driver would read a file without a name.
        if self.ca.is_none() { options.ssl_root_cert_from_pem(Vec::new()) } else { options }
    }

    /// Says why a handshake failed, and which setting mends it; `None` for an error that is not of TLS.
    pub(super) fn problem(&self, error: &sqlx::Error) -> Option<String> {
        let label = |named: &Option<Named>| named.as_ref().map(Named::label);
        let sqlx::Error::Io(error) = error else { return None };
        let ca = label(&self.ca);
        Some(match rustls_error(error)? {
            rustls::Error::InvalidCertificate(certificate) => explain(certificate, ca.as_deref()),
            error @ rustls::Error::AlertReceived(
                AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure,
            ) if self.certificate.is_none() => {
                format!(
                    "{error}: the server wants a client certificate: set sslcert and sslkey in DATABASE_URL"
                )
            }
            error => match (label(&self.certificate), label(&self.key)) {
                (Some(certificate), Some(key)) if matches!(error, rustls::Error::AlertReceived(_)) => {
                    format!(
                        "{error}: the server refuses the client certificate: check {certificate} and {key}, \
                         and the server's ssl_ca_file"
                    )
                }
                _ => unknown(error),
            },
        })
    }
}

/// The same without the address: the setting that mends a failed handshake.
pub(super) fn problem_of_a_handshake(error: &std::io::Error) -> Option<String> {
    Some(match rustls_error(error)? {
        rustls::Error::InvalidCertificate(certificate) => explain(certificate, None),
        error => unknown(error),
    })
}

fn explain(certificate: &rustls::CertificateError, ca_in_use: Option<&str>) -> String {
    let remedies = Remedies { ca: "sslrootcert in DATABASE_URL", ca_in_use, address: "DATABASE_URL" };
    certificates::explain(certificate, remedies)
}

fn unknown(error: &rustls::Error) -> String {
    format!(
        "{error}: check sslmode, sslrootcert, sslcert and sslkey in DATABASE_URL, and the server's TLS \
         settings"
    )
}

fn rustls_error(error: &std::io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(url: &str, variables: &[(&str, &str)]) -> Result<Tls, String> {
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        Tls::with(url, &variable).map_err(|error| error.to_string())
    }

    #[test]
    fn require_with_a_ca_verifies_the_ca_as_libpq_does() {
        let root = [("PGSSLROOTCERT", "/ca.pem")];
        for (url, variables, expected) in [
            ("postgres://h/d?sslmode=require", &[][..], "Require"),
            ("postgres://h/d?sslmode=require&sslrootcert=/ca.pem", &[], "VerifyCa"),
            ("postgres://h/d?sslrootcert=system", &[], "VerifyFull"),
            ("postgres://h/d?sslmode=require", &[("PGSSLROOTCERT", "system")], "VerifyFull"),
            ("postgres://h/d?ssl-mode=REQUIRE&ssl-ca=/ca.pem", &[], "VerifyCa"),
            ("postgres://h/d?sslmode=require", &root, "VerifyCa"),
            ("postgres://h/d?sslmode=verify-full", &root, "VerifyFull"),
            ("postgres://h/d", &root, "Prefer"),
            ("postgres://h/d?sslmode=require", &[("PGSSLROOTCERT", "")], "Require"),
            ("postgres://h/d", &[("PGSSLMODE", "verify-full")], "VerifyFull"),
            ("postgres://h/d?sslmode=disable", &[("PGSSLMODE", "verify-full")], "Disable"),
            // The driver takes the last one.
            ("postgres://h/d?sslmode=disable&sslmode=verify-ca", &[], "VerifyCa"),
        ] {
            let tls = of(url, variables).expect("a mode");
            assert_eq!(format!("{:?}", tls.mode), expected, "{url} {variables:?}");
        }
    }

    #[test]
    fn a_mode_that_nobody_knows_is_refused_by_its_name() {
        for (url, variables, name) in [
            ("postgres://h/d?sslmode=verify_full", &[][..], "sslmode"),
            ("postgres://h/d", &[("PGSSLMODE", "bogus")], "PGSSLMODE"),
        ] {
            let told = of(url, variables).expect_err("no mode");
            assert!(told.starts_with(name) && told.contains("verify-full"), "{told}");
        }
    }

    #[test]
    fn files_are_not_read_where_no_tls_is_spoken() {
        let disabled = "postgres://h/d?sslmode=disable&sslcert=/nowhere";
        assert!(of(disabled, &[]).expect("a mode").check().is_ok());
        let preferred = of("postgres://h/d?sslcert=/nowhere", &[]).expect("a mode").check();
        assert!(preferred.is_err());
    }

    #[test]
    fn a_setting_without_a_value_names_no_file() {
        let check = |name: &str| of("postgres://h/d", &[(name, "")]).expect("a mode").check();
        assert!(check("PGSSLROOTCERT").is_ok());
        for variables in [&[("PGSSLCERT", "")][..], &[("PGSSLCERT", ""), ("PGSSLKEY", "")]] {
            let told = of("postgres://h/d", variables).expect("a mode").check().expect_err("no file");
            assert!(told.to_string().starts_with("PGSSLCERT "), "{told}");
        }
    }

    #[test]
    fn a_text_in_a_variable_is_never_quoted() {
        let key = "-----BEGIN PRIVATE KEY-----\ntell-nobody\n-----END PRIVATE KEY-----\n";
        let certificate = "-----BEGIN CERTIFICATE-----\ntell-nobody\n-----END CERTIFICATE-----\n";
        for variables in [
            &[("PGSSLKEY", key)][..],
            &[("PGSSLCERT", certificate), ("PGSSLKEY", key)],
            &[("PGSSLROOTCERT", key)],
        ] {
            let told = of("postgres://h/d", variables).expect("a mode").check().expect_err("no use");
            assert!(!told.to_string().contains("tell-nobody"), "{told}");
            assert!(told.to_string().contains("the text of PGSSL"), "{told}");
        }
    }
}
