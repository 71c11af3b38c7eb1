//! The address of a request's client: the peer's own, or the one that a trusted proxy reports.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use axum::http::HeaderMap;

/// The largest number of `X-Forwarded-For` addresses that are read, starting from the nearest proxy.
const HOPS_MAX: usize = 16;

/// An entry of the list of trusted proxies is neither an address nor a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("[http] trusted_proxies: '{0}' is neither an address nor a network such as 10.0.0.0/8")]
pub struct ProxyError(String);

/// The proxies that are trusted to report a client's address. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct TrustedProxies(Arc<[Network]>);

/// All addresses that share their first `bits` bits with `address`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    bits: u32,
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse().ok()?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(most);
        (bits <= most).then_some(Self { address, bits })
    }

    fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => is_same_prefix(own.to_bits(), other.to_bits(), self.bits),
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let (own, other) = (own.to_bits(), other.to_bits());
                self.bits == 0 || (own ^ other) >> (128 - self.bits) == 0
            }
            _ => false,
        }
    }
}

fn is_same_prefix(one: u32, other: u32, bits: u32) -> bool {
    bits == 0 || (one ^ other) >> (32 - bits) == 0
}

impl TrustedProxies {
    /// Trusts these addresses and networks, and no others.
    ///
    /// # Errors
    /// [`ProxyError`] for an entry that is neither an address nor a network.
    pub fn new(entries: &[String]) -> Result<Self, ProxyError> {
        let entries = entries.iter().map(|entry| entry.trim()).filter(|entry| !entry.is_empty());
        let networks = entries.map(|entry| Network::parse(entry).ok_or_else(|| ProxyError(entry.to_owned())));
        Ok(Self(networks.collect::<Result<_, _>>()?))
    }

    /// Whether this address belongs to a trusted proxy.
    pub fn trust(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(address))
    }

    /// The client's address. This is the peer, unless the peer is a trusted proxy. Then it is the last
    /// address of `X-Forwarded-For` that does not belong to a trusted proxy. Earlier addresses are not read:
    /// an untrusted client may have written them.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        if !self.trust(client) {
            return client;
        }
        let named = headers.get_all("x-forwarded-for").iter().rev();
        let named = named.flat_map(|value| value.to_str().unwrap_or_default().rsplit(','));
        for address in named.take(HOPS_MAX) {
            let Some(address) = address_of(address) else { break };
            client = address;
            if !self.trust(client) {
                break;
            }
        }
        client
    }
}

/// Parses an entry of the header: an address, with or without a port.
fn address_of(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let socket = || text.parse::<std::net::SocketAddr>().map(|socket| socket.ip());
    text.parse::<IpAddr>().or_else(|_| socket()).ok().map(|address| address.to_canonical())
}

/// The address under which a peer is counted. IPv6 clients are assigned networks of 64 bits, so they are
/// counted by network.
pub(super) fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = address.to_bits() >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(trusted: &[&str], peer: &str, forwarded: &[&'static str]) -> String {
        let trusted: Vec<String> = trusted.iter().map(ToString::to_string).collect();
        let proxies = TrustedProxies::new(&trusted).expect("a list");
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append("x-forwarded-for", axum::http::HeaderValue::from_static(value));
        }
        proxies.client(peer.parse().expect("an address"), &headers).to_string()
    }

    #[test]
    fn a_client_is_believed_to_be_who_the_nearest_trusted_proxies_name_and_nobody_else() {
        let proxies = &["10.0.0.0/8", "192.168.1.1", "fd00::/8"][..];
        for (peer, forwarded, expected) in [
            ("198.51.100.7", &["203.0.113.1"][..], "198.51.100.7"),
            ("10.1.2.3", &[], "10.1.2.3"),
            ("10.1.2.3", &["203.0.113.1"], "203.0.113.1"),
            ("10.1.2.3", &["1.1.1.1, 203.0.113.1"], "203.0.113.1"),
            ("10.1.2.3", &["1.1.1.1", "203.0.113.1, 192.168.1.1"], "203.0.113.1"),
            ("10.1.2.3", &["10.9.9.9"], "10.9.9.9"),
            ("10.1.2.3", &["203.0.113.1:4711"], "203.0.113.1"),
            ("10.1.2.3", &["203.0.113.1, unknown"], "10.1.2.3"),
            ("::ffff:10.1.2.3", &["203.0.113.1"], "203.0.113.1"),
            ("fd00::1", &["2001:db8::7"], "2001:db8::7"),
            ("192.168.1.2", &["203.0.113.1"], "192.168.1.2"),
        ] {
            assert_eq!(client(proxies, peer, forwarded), expected, "{peer} {forwarded:?}");
        }
        assert_eq!(client(&["0.0.0.0/0"], "8.8.8.8", &["203.0.113.1"]), "203.0.113.1");
    }

    #[test]
    fn an_entry_that_is_no_address_is_named() {
        for bad in ["proxy.example", "10.0.0.0/33", "10.0.0.0/", "::/129"] {
            let refused = TrustedProxies::new(&[bad.to_owned()]).expect_err("refused").to_string();
            assert!(refused.contains(bad), "{refused}");
        }
        assert!(TrustedProxies::new(&[String::new()]).is_ok(), "an empty variable is an empty list");
    }

    #[test]
    fn an_ipv6_user_is_a_network() {
        let counted = |text: &str| counted_as(text.parse().expect("an address")).to_string();
        assert_eq!(counted("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(counted("::ffff:10.0.0.1"), "10.0.0.1");
    }
}
