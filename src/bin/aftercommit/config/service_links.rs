//! Environment variables that Kubernetes sets in every container for each service of the namespace
//! (`enableServiceLinks`).
//!
//! The variables of a service named `aftercommit-sse` begin with the prefix of our settings. Only the exact
//! forms that the kubelet writes are recognized, values included, so that a misspelt setting is still
//! reported.

use std::net::{IpAddr, SocketAddr};

/// Protocols of a service's ports.
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];

/// Whether a variable is such a service link, for a service whose name begins with `aftercommit`.
pub(super) fn is_one(name: &str, value: &str) -> bool {
    let is_ours = |service: &str| service == "AFTERCOMMIT" || service.starts_with("AFTERCOMMIT_");
    if let Some(service) = name.strip_suffix("_SERVICE_HOST") {
        return is_ours(service) && is_address(value);
    }
    if let Some((service, port_name)) = name.rsplit_once("_SERVICE_PORT") {
        let is_named = port_name.strip_prefix('_').is_some_and(|name| !name.is_empty());
        return is_ours(service) && (port_name.is_empty() || is_named) && is_port(value);
    }
    if let Some(link) = Link::of(name) {
        return is_ours(link.service) && link.fits(value);
    }
    let Some(service) = name.strip_suffix("_PORT") else { return false };
    is_ours(service) && PROTOCOLS.iter().any(|protocol| url(value, protocol).is_some())
}

/// `<SERVICE>_PORT_<n>_<PROTOCOL>`, alone or followed by `_PROTO`, `_PORT` or `_ADDR`.
struct Link<'a> {
    service: &'a str,
    port: u16,
    protocol: &'static str,
    part: &'a str,
}

impl<'a> Link<'a> {
    fn of(name: &'a str) -> Option<Self> {
        PROTOCOLS.into_iter().find_map(|protocol| {
            let (before, part) = name.rsplit_once(&format!("_{protocol}"))?;
            let (service, port) = before.rsplit_once("_PORT_")?;
            Some(Self { service, port: port.parse().ok()?, protocol, part })
        })
    }

    fn fits(&self, value: &str) -> bool {
        match self.part {
            "" => url(value, self.protocol).is_some_and(|at| at.port() == self.port),
            "_PROTO" => value == self.protocol.to_ascii_lowercase(),
            "_PORT" => value == self.port.to_string(),
            "_ADDR" => is_address(value),
            _ => false,
        }
    }
}

/// The address in a URL such as `tcp://10.0.0.1:80`.
fn url(value: &str, protocol: &str) -> Option<SocketAddr> {
    value.strip_prefix(&protocol.to_ascii_lowercase())?.strip_prefix("://")?.parse().ok()
}

fn is_address(value: &str) -> bool {
    value.parse::<IpAddr>().is_ok()
}

fn is_port(value: &str) -> bool {
    value.bytes().all(|byte| byte.is_ascii_digit()) && value.parse::<u16>().is_ok_and(|port| port > 0)
}

#[cfg(test)]
mod tests {
    use super::is_one;

    #[test]
    fn what_kubernetes_writes_is_known_whatever_the_service_and_the_protocol() {
        for (name, value) in [
            ("AFTERCOMMIT_SERVICE_HOST", "10.96.0.7"),
            ("AFTERCOMMIT_PORT", "tcp://10.96.0.7:80"),
            ("AFTERCOMMIT_SSE_SERVICE_HOST", "10.96.0.7"),
            ("AFTERCOMMIT_SSE_SERVICE_HOST", "fd00::7"),
            ("AFTERCOMMIT_SSE_SERVICE_PORT", "8081"),
            ("AFTERCOMMIT_SSE_SERVICE_PORT_HTTP", "8081"),
            ("AFTERCOMMIT_SSE_SERVICE_PORT_HTTP_METRICS", "8081"),
            ("AFTERCOMMIT_SSE_PORT", "tcp://10.96.0.7:8081"),
            ("AFTERCOMMIT_SSE_PORT", "udp://[fd00::7]:8081"),
            ("AFTERCOMMIT_SSE_PORT_8081_TCP", "tcp://10.96.0.7:8081"),
            ("AFTERCOMMIT_SSE_PORT_8081_TCP_PROTO", "tcp"),
            ("AFTERCOMMIT_SSE_PORT_8081_TCP_PORT", "8081"),
            ("AFTERCOMMIT_SSE_PORT_8081_TCP_ADDR", "10.96.0.7"),
            ("AFTERCOMMIT_MY_RELAY_2_PORT_53_UDP", "udp://10.96.0.7:53"),
            ("AFTERCOMMIT_MY_RELAY_2_PORT_53_UDP_PROTO", "udp"),
            ("AFTERCOMMIT_X_PORT_9_SCTP", "sctp://10.96.0.7:9"),
            ("AFTERCOMMIT_X_PORT_9_SCTP_ADDR", "fd00::7"),
        ] {
            assert!(is_one(name, value), "{name}={value}");
        }
    }

    #[test]
    fn a_misspelt_setting_is_none_of_them() {
        for (name, value) in [
            ("AFTERCOMMIT_SSE_PORT", "8081"),
            ("AFTERCOMMIT_SSE_PORT", "127.0.0.1:8081"),
            ("AFTERCOMMIT_SSE_PORT", "http://10.96.0.7:8081"),
            ("AFTERCOMMIT_SSE_PORT", "tcp://sse:8081"),
            ("AFTERCOMMIT_REDIS_PORT", "6379"),
            ("AFTERCOMMIT_SSE_SERVICE_HOST", "sse.example"),
            ("AFTERCOMMIT_SSE_SERVICE_PORT", "http"),
            ("AFTERCOMMIT_SSE_SERVICE_PORTS", "8081"),
            ("AFTERCOMMIT_SSE_SERVICE_PORT_", "8081"),
            ("AFTERCOMMIT_SSE_PORT_8081_TCP", "tcp://10.96.0.7:8082"),
            ("AFTERCOMMIT_SSE_PORT_8081_TCP_PORT", "8082"),
            ("AFTERCOMMIT_SSE_PORT_8081_TCP_PROTO", "udp"),
            ("AFTERCOMMIT_SSE_PORT_8081_TCP_HOST", "10.96.0.7"),
            ("AFTERCOMMIT_SSE_PORT_HTTP_TCP", "tcp://10.96.0.7:8081"),
            ("AFTERCOMMIT_SSE_LISTNE", "127.0.0.1:8081"),
            ("SSE_PORT", "tcp://10.96.0.7:8081"),
        ] {
            assert!(!is_one(name, value), "{name}={value}");
        }
    }
}
