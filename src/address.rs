//! Addresses of servers (URLs): which of their parts may be shown, and what makes one ambiguous.
//!
//! An address is taken apart first, and only what is known to be harmless is shown: scheme, user, host, port,
//! path, and the query parameters of `SHOWN`. Everything else may be a secret, and is replaced.

use std::borrow::Cow;

/// What stands in the place of a secret.
const HIDDEN: &str = "***";

/// Query parameters whose values may be shown.
const SHOWN: [&str; 13] = [
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "application_name",
    "connect_timeout",
    "target_session_attrs",
    "statement-cache-capacity",
    "protocol",
];

/// Query parameters that are known, and whose values are hidden.
const SECRET: [&str; 5] = ["password", "passfile", "options", "sslkey", "sslpassword"];

/// Why a text cannot be used as an address. Says nothing of the text itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// It is of another form.
    #[error("is not of the form {0}")]
    Form(&'static str),
    /// An `@` stands where it can only belong to a user or a password that was not escaped.
    #[error(
        "has an '@' behind its host: in user and password, write / as %2F, ? as %3F, # as %23, @ as %40 and \
         % as %25"
    )]
    Ambiguous,
}

/// The parts of `scheme://userinfo@host/path?query#fragment`, as they are written.
#[derive(Debug)]
struct Parts<'a> {
    scheme: &'a str,
    userinfo: Option<&'a str>,
    host: &'a str,
    path: &'a str,
    query: Option<&'a str>,
    fragment: Option<&'a str>,
}

impl<'a> Parts<'a> {
    /// Takes an address apart; `None` if it has no scheme and no `//`.
    fn of(text: &'a str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
        if !is_scheme {
            return None;
        }
        let (rest, fragment) = cut(rest, '#');
        let (rest, query) = cut(rest, '?');
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        // A password may hold an '@'; a host cannot.
        let (userinfo, host) = match authority.rsplit_once('@') {
            Some((userinfo, host)) => (Some(userinfo), host),
            None => (None, authority),
        };
        Some(Self { scheme, userinfo, host, path, query, fragment })
    }

    fn parameters(&self) -> impl Iterator<Item = (&'a str, Cow<'a, str>)> {
        let pairs = self.query.into_iter().flat_map(|query| query.split('&')).filter(|pair| !pair.is_empty());
        pairs.map(|pair| (pair, decoded(pair.split('=').next().unwrap_or(pair))))
    }

    /// Whether an `@` stands after the host, outside the value of a known parameter: what looks like the host
    /// is then a part of a password that holds a `/`, a `?` or a `#`.
    fn is_ambiguous(&self) -> bool {
        let is_known = |name: &str| SHOWN.contains(&name) || SECRET.contains(&name);
        self.path.contains('@')
            || self.fragment.is_some_and(|fragment| fragment.contains('@'))
            || self.parameters().any(|(pair, name)| pair.contains('@') && !is_known(&name))
    }

    /// Whether what stands for the host can be one. `user:password` without a host is none.
    fn has_a_host(&self) -> bool {
        let is_host = |text: &str| {
            text.bytes().all(|b| b.is_ascii_alphanumeric() || !b.is_ascii() || b"-._%[]:".contains(&b))
        };
        self.host.split(',').all(|host| {
            let behind_brackets = host.rsplit(']').next().unwrap_or(host);
            let port = behind_brackets.rsplit_once(':').map_or("", |(_, port)| port);
            is_host(host) && (port.is_empty() || port.parse::<u16>().is_ok())
        })
    }

    fn shown_userinfo(&self) -> String {
        match self.userinfo {
            None => String::new(),
            Some(userinfo) => match userinfo.split_once(':') {
                Some((user, _password)) => format!("{user}:{HIDDEN}@"),
                // Postgres takes a user alone; elsewhere a single word is as often a password or a token.
                None if is_postgres(self.scheme) => format!("{userinfo}@"),
                None => format!("{HIDDEN}@"),
            },
        }
    }

    /// Behind Redis's host stands the number of a database. Anything else has lost its way there.
    fn shown_path(&self) -> Cow<'a, str> {
        let is_redis =
            ["redis", "rediss", "valkey", "valkeys"].iter().any(|it| self.scheme.eq_ignore_ascii_case(it));
        if is_redis && !self.path.bytes().all(|b| b == b'/' || b.is_ascii_digit()) {
            return format!("/{HIDDEN}").into();
        }
        self.path.into()
    }

    fn shown_query(&self) -> String {
        if self.query.is_none() {
            return String::new();
        }
        let shown = self.parameters().map(|(pair, name)| match pair.split_once('=') {
            Some(_) if SHOWN.contains(&&*name) => pair.to_owned(),
            Some((written, _)) if is_plain(&name) => format!("{written}={HIDDEN}"),
            _ => HIDDEN.to_owned(),
        });
        format!("?{}", shown.collect::<Vec<_>>().join("&"))
    }
}

fn cut(text: &str, at: char) -> (&str, Option<&str>) {
    text.split_once(at).map_or((text, None), |(before, behind)| (before, Some(behind)))
}

fn is_postgres(scheme: &str) -> bool {
    ["postgres", "postgresql"].iter().any(|known| scheme.eq_ignore_ascii_case(known))
}

/// Whether a parameter's name looks like one, and so may be shown.
fn is_plain(name: &str) -> bool {
    name.len() <= 40 && name.bytes().all(|b| b.is_ascii_lowercase() || b"_-[].".contains(&b))
}

/// Resolves `%XX` in a parameter's name. What is malformed stays, and is of no known name.
fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((&first, behind)) = rest.split_first() {
        let hex = behind.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.filter(|_| first == b'%').and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[2..];
            }
            None => {
                bytes.push(first);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned().into()
}

/// The address without its secrets. A text that cannot be taken apart for certain is hidden, except for its
/// scheme.
pub fn shown(text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    let Some(parts) = Parts::of(text) else { return HIDDEN.to_owned() };
    if parts.is_ambiguous() || !parts.has_a_host() {
        return format!("{}://{HIDDEN}", parts.scheme);
    }
    let fragment = parts.fragment.map_or(String::new(), |_| format!("#{HIDDEN}"));
    format!(
        "{}://{}{}{}{}{fragment}",
        parts.scheme,
        parts.shown_userinfo(),
        parts.host,
        parts.shown_path(),
        parts.shown_query()
    )
}

/// Whether the text is an address with one of these schemes, whose host cannot be confused with a part of its
/// password.
///
/// # Errors
/// [`AddressError::Form`] with `form`, and [`AddressError::Ambiguous`].
pub fn check(text: &str, schemes: &[&str], form: &'static str) -> Result<(), AddressError> {
    let parts = Parts::of(text).ok_or(AddressError::Form(form))?;
    if !schemes.iter().any(|scheme| parts.scheme.eq_ignore_ascii_case(scheme)) {
        return Err(AddressError::Form(form));
    }
    if parts.is_ambiguous() {
        return Err(AddressError::Ambiguous);
    }
    Ok(())
}

/// The addresses of the several hosts that one address names, each as an address of its own with this scheme
/// and the same user and password; and the name after them. `None` if the text cannot be taken apart.
pub fn each_host(text: &str, scheme: &str) -> Option<(Vec<String>, String)> {
    let Parts { userinfo, host, path, .. } = Parts::of(text)?;
    let userinfo = userinfo.map_or_else(String::new, |userinfo| format!("{userinfo}@"));
    let hosts = host.split(',').map(|host| format!("{scheme}://{userinfo}{host}")).collect();
    Some((hosts, path.trim_start_matches('/').to_owned()))
}

/// The scheme of an address, in lower case.
pub fn scheme(text: &str) -> Option<String> {
    Some(Parts::of(text)?.scheme.to_ascii_lowercase())
}

/// The hosts of an address as they are written, with ports and commas.
pub fn hosts(text: &str) -> &str {
    Parts::of(text).map_or("", |parts| parts.host)
}

/// The last parameter with one of these names, and its decoded value: where an address repeats one, drivers
/// take the last.
pub fn last_parameter<'n>(text: &str, names: &[&'n str]) -> Option<(&'n str, String)> {
    let parts = Parts::of(text)?;
    let named = parts.parameters().filter_map(|(pair, found)| {
        let name = names.iter().find(|name| **name == found)?;
        Some((*name, decoded(pair.split_once('=').map_or("", |(_, value)| value)).into_owned()))
    });
    named.last()
}

/// The address with each `+` of its parameters as `%2B`. Drivers take a `+` there for a space, as forms of
/// browsers do; libpq and people take it for what it is.
pub fn with_literal_plus(text: &str) -> Cow<'_, str> {
    match text.split_once('?') {
        Some((before, query)) if query.contains('+') => {
            Cow::Owned(format!("{before}?{}", query.replace('+', "%2B")))
        }
        _ => Cow::Borrowed(text),
    }
}

/// The decoded value of a query parameter.
pub fn parameter(text: &str, name: &str) -> Option<String> {
    let (pair, _) = Parts::of(text)?.parameters().find(|(_, known)| known == name)?;
    Some(decoded(pair.split_once('=')?.1).into_owned())
}

/// Whether an address holds a password.
pub fn holds_a_password(text: &str) -> bool {
    Parts::of(text).is_some_and(|parts| {
        parts.userinfo.is_some_and(|userinfo| userinfo.contains(':'))
            || parts.parameters().any(|(_, name)| matches!(&*name, "password" | "pass" | "passfile"))
    })
}

/// Whether an address is nothing but scheme, host and path, and so holds nothing that is hidden.
pub fn is_bare(text: &str) -> bool {
    Parts::of(text)
        .is_some_and(|parts| parts.userinfo.is_none() && parts.query.is_none() && parts.fragment.is_none())
}

/// The address without the query parameters that `is_known` does not know, and the names of those, where they
/// may be shown.
pub fn with_known_parameters(text: &str, is_known: impl Fn(&str) -> bool) -> (Cow<'_, str>, Vec<String>) {
    let Some(parts) = Parts::of(text).filter(|parts| parts.query.is_some()) else {
        return (Cow::Borrowed(text), Vec::new());
    };
    let (known, unknown): (Vec<_>, Vec<_>) = parts.parameters().partition(|(_, name)| is_known(name));
    if unknown.is_empty() {
        return (Cow::Borrowed(text), Vec::new());
    }
    let kept = known.iter().map(|(pair, _)| *pair).collect::<Vec<_>>().join("&");
    let before = text.split(['?', '#']).next().unwrap_or(text);
    let question_mark = if kept.is_empty() { "" } else { "?" };
    let names = unknown
        .into_iter()
        .map(|(_, name)| if is_plain(&name) { name.into_owned() } else { HIDDEN.to_owned() });
    (Cow::Owned(format!("{before}{question_mark}{kept}")), names.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_harmless_is_shown() {
        for (address, expected) in [
            ("", ""),
            ("postgres://u:p@h:5432/d", "postgres://u:***@h:5432/d"),
            ("postgres://u:p@ss@h:5432/d", "postgres://u:***@h:5432/d"),
            ("postgres://u@h/d", "postgres://u@h/d"),
            ("postgres://h/d?user=u&password=p", "postgres://h/d?user=u&password=***"),
            ("postgres://h/d?pass%77ord=p&sslmode=require", "postgres://h/d?pass%77ord=***&sslmode=require"),
            ("postgres://h/d?PASSWORD=p", "postgres://h/d?***"),
            ("postgres://h/d?sslpassword=p&sslkey=k", "postgres://h/d?sslpassword=***&sslkey=***"),
            ("postgres://h/d?options=-c%20a=p", "postgres://h/d?options=***"),
            ("postgres://h/d?user=u@corp&password=p@q", "postgres://h/d?user=u@corp&password=***"),
            ("postgres://%2Frun%2Fpg/d", "postgres://%2Frun%2Fpg/d"),
            ("postgres://[::1]:5432/d", "postgres://[::1]:5432/d"),
            ("redis://h:6379", "redis://h:6379"),
            ("redis://:p@h:6379/0", "redis://:***@h:6379/0"),
            ("redis://p@h:6379", "redis://***@h:6379"),
            ("redis://h:6379/p", "redis://h:6379/***"),
            ("redis://h:6379/#p", "redis://h:6379/#***"),
            ("redis+unix:///run/redis.sock?db=1&pass=p", "redis+unix:///run/redis.sock?db=***&pass=***"),
            ("https://h/keys?p", "https://h/keys?***"),
            ("https://h/keys?token=p", "https://h/keys?token=***"),
            ("p", "***"),
            ("host=h password=p", "***"),
            ("pass word://p", "***"),
        ] {
            assert_eq!(shown(address), expected, "{address}");
        }
    }

    /// What the driver would take for the host, the port or the database is a part of the password.
    #[test]
    fn a_password_that_was_not_escaped_is_neither_shown_nor_taken() {
        for address in [
            "postgres://u:12/34@h/d",
            "postgres://u:12?34@h/d",
            "postgres://u:12#34@h/d",
            "postgres://u:p@ss/34@h/d",
            "postgres://u:p@ss?a=34@h/d",
        ] {
            assert_eq!(shown(address), "postgres://***", "{address}");
            assert_eq!(check(address, &["postgres"], "…"), Err(AddressError::Ambiguous), "{address}");
        }
        assert_eq!(shown("postgres://u:secret"), "postgres://***");
        assert_eq!(shown("postgres://u:secret/d"), "postgres://***");
    }

    #[test]
    fn an_address_of_several_hosts_is_taken_apart() {
        let (hosts, name) = each_host("redis+sentinel://u:p@a:1,b,[::1]:2/main", "redis").expect("parts");
        assert_eq!(hosts, ["redis://u:p@a:1", "redis://u:p@b", "redis://u:p@[::1]:2"]);
        assert_eq!(name, "main");
    }

    #[test]
    fn a_parameter_is_found_and_decoded() {
        let address = "postgres://h/d?sslmode=require&sslrootcert=%2Fetc%2Fca.pem";
        assert_eq!(parameter(address, "sslrootcert").as_deref(), Some("/etc/ca.pem"));
        assert_eq!(parameter(address, "sslcert"), None);
    }

    #[test]
    fn the_last_parameter_of_several_names_counts() {
        let address = "postgres://h/d?sslmode=require&ssl-mode=verify-ca&x";
        let last = |names: &[&'static str]| last_parameter(address, names);
        assert_eq!(last(&["sslmode", "ssl-mode"]), Some(("ssl-mode", "verify-ca".to_owned())));
        assert_eq!(last(&["x"]), Some(("x", String::new())));
        assert_eq!(last(&["y"]), None);
    }

    #[test]
    fn a_plus_in_a_parameter_is_a_plus() {
        assert_eq!(with_literal_plus("unix:///a+b?pass=a+b/=="), "unix:///a+b?pass=a%2Bb/==");
        assert_eq!(with_literal_plus("redis://u:a+b@h"), "redis://u:a+b@h");
    }

    #[test]
    fn a_comma_in_a_password_is_none_of_a_host() {
        assert_eq!(hosts("redis://u:a,b@h:1/0"), "h:1");
        assert_eq!(hosts("redis://u:a,b@h:1,i:2"), "h:1,i:2");
        assert_eq!(hosts("unix:///s?pass=a,b"), "");
    }

    #[test]
    fn a_password_in_an_address_is_found() {
        for with in ["redis://:p@h", "redis://u:p@h", "postgres://h/d?password=p", "unix:///s?user=u&pass=p"]
        {
            assert!(holds_a_password(with), "{with}");
        }
        for without in ["redis://u@h", "redis://h:1", "postgres://u@h/d?user=u", "unix:///s?user=u"] {
            assert!(!holds_a_password(without), "{without}");
        }
    }

    #[test]
    fn an_address_of_another_form_is_refused() {
        for other in ["", "nonsense", "mysql://h/d", "://h", "postgres:h"] {
            assert_eq!(check(other, &["postgres"], "…"), Err(AddressError::Form("…")), "{other}");
        }
        for one in ["postgres://h/d", "POSTGRES://h/d", "postgres://h/d?user=u@corp"] {
            assert_eq!(check(one, &["postgres"], "…"), Ok(()), "{one}");
        }
    }

    #[test]
    fn parameters_that_nobody_knows_are_taken_out_and_named_without_their_values() {
        let known = |name: &str| name == "a" || name == "b";
        let of = |text| {
            let (kept, unknown) = with_known_parameters(text, known);
            (kept.into_owned(), unknown.join(","))
        };
        let pair = |kept: &str, unknown: &str| (kept.to_owned(), unknown.to_owned());
        assert_eq!(of("s://h/d?a=1&c=2&%62=3"), pair("s://h/d?a=1&%62=3", "c"));
        assert_eq!(of("s://h/d?c=2&SECRET"), pair("s://h/d", "c,***"));
        assert_eq!(of("s://h/d?a=1#f"), pair("s://h/d?a=1#f", ""));
        assert_eq!(of("s://h/d"), pair("s://h/d", ""));
    }
}
