//! Settings that all HTTP servers share.

use serde::Deserialize;

/// The `[http]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Addresses and networks (`10.0.0.0/8`) of proxies whose `X-Forwarded-For` is trusted.
    pub trusted_proxies: Vec<String>,
    /// The largest number of connections of one peer that have not shown a valid token; 0 for no limit.
    pub max_connections_per_peer: usize,
}
