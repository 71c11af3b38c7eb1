//! The `[http]` section.

use serde::Deserialize;

/// The `[http]` section: what all processes that serve HTTP share.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Addresses and networks (`10.0.0.0/8`) of proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<String>,
    /// Connections of one peer at most on which nobody has shown a valid token; 0 for no such limit.
    pub max_connections_per_peer: usize,
}
