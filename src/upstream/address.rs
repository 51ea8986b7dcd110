//! Which addresses a remote may be sent to, and which hosts are asked without the outbound proxy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use url::{Host, Url};

/// Why `ip` is not a public address; `None` for public ones.
pub fn private_kind(ip: IpAddr) -> Option<&'static str> {
    match ip {
        IpAddr::V4(v4) => private_v4(v4),
        IpAddr::V6(v6) => {
            if let Some(v4) = v6.to_ipv4_mapped().or_else(|| nat64(v6)) {
                return private_v4(v4);
            }
            let first = v6.segments()[0];
            if v6.is_loopback() {
                Some("loopback")
            } else if v6.is_unspecified() {
                Some("unspecified")
            } else if first & 0xfe00 == 0xfc00 {
                Some("unique-local")
            } else if first & 0xffc0 == 0xfe80 {
                Some("link-local")
            } else if v6.is_multicast() {
                Some("multicast")
            } else {
                None
            }
        }
    }
}

/// RFC 6052: the well-known prefix holds an IPv4 address in its last 32 bits.
fn nat64(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let segments = v6.segments();
    let well_known = segments[..6] == [0x64, 0xff9b, 0, 0, 0, 0];
    // RFC 8215: for local use; its operators choose where the address is, mostly at the end too.
    let local = segments[..3] == [0x64, 0xff9b, 1];
    (well_known || local).then(|| {
        let [a, b] = segments[6].to_be_bytes();
        let [c, d] = segments[7].to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    })
}

fn private_v4(v4: Ipv4Addr) -> Option<&'static str> {
    let octets = v4.octets();
    if v4.is_loopback() {
        Some("loopback")
    } else if v4.is_private() {
        Some("private")
    } else if v4.is_link_local() {
        Some("link-local")
    } else if octets[0] == 100 && octets[1] & 0xc0 == 64 {
        Some("shared (100.64/10)")
    } else if octets[0] == 0 {
        Some("unspecified")
    } else if v4.is_broadcast() || v4.is_multicast() {
        Some("multicast or broadcast")
    } else {
        None
    }
}

/// Whether an entry of `NO_PROXY` exempts `url`: `*`, a host, a domain (with or without leading dot, sub-domains
/// included), an address or a network, each with an optional port.
pub fn matches_no_proxy(entry: &str, url: &Url) -> bool {
    let entry = entry.trim();
    if entry == "*" {
        return true;
    }
    let host = match url.host() {
        Some(Host::Domain(domain)) => domain.to_ascii_lowercase(),
        Some(Host::Ipv4(v4)) => return matches_ip(entry, IpAddr::V4(v4), url),
        Some(Host::Ipv6(v6)) => return matches_ip(entry, IpAddr::V6(v6), url),
        None => return false,
    };
    let (name, port) = split_port(entry);
    if port.is_some() && port != url.port_or_known_default() {
        return false;
    }
    let name = name.trim_start_matches('.').to_ascii_lowercase();
    !name.is_empty() && (host == name || host.strip_suffix(&name).is_some_and(|rest| rest.ends_with('.')))
}

fn matches_ip(entry: &str, ip: IpAddr, url: &Url) -> bool {
    if let Ok(network) = entry.parse::<IpNet>() {
        return network.contains(&ip);
    }
    if let Ok(address) = entry.trim_matches(['[', ']']).parse::<IpAddr>() {
        return address == ip;
    }
    let (name, port) = split_port(entry);
    port == url.port_or_known_default()
        && name
            .trim_matches(['[', ']'])
            .parse::<IpAddr>()
            .is_ok_and(|entry| entry == ip)
}

fn split_port(entry: &str) -> (&str, Option<u16>) {
    match entry.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') || name.ends_with(']') => match port.parse() {
            Ok(port) => (name, Some(port)),
            Err(_) => (entry, None),
        },
        _ => (entry, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses_are_known_in_every_disguise() {
        for text in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "100.127.255.254",
            "0.0.0.0",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "fc00::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::a00:1",
        ] {
            assert!(private_kind(text.parse().unwrap()).is_some(), "{text}");
        }
        for text in [
            "1.1.1.1",
            "100.128.0.1",
            "172.32.0.1",
            "2606:4700::1111",
            "64:ff9b::101:101",
        ] {
            assert_eq!(private_kind(text.parse().unwrap()), None, "{text}");
        }
    }

    #[test]
    fn no_proxy_entries() {
        let url = |text: &str| Url::parse(text).unwrap();
        assert!(matches_no_proxy("*", &url("https://a.example/")));
        assert!(matches_no_proxy("example.com", &url("https://example.com/")));
        assert!(matches_no_proxy(".example.com", &url("https://a.example.com/")));
        assert!(matches_no_proxy("example.com", &url("https://a.EXAMPLE.com/")));
        assert!(!matches_no_proxy("example.com", &url("https://notexample.com/")));
        assert!(matches_no_proxy("example.com:8443", &url("https://example.com:8443/")));
        assert!(!matches_no_proxy("example.com:8443", &url("https://example.com/")));
        assert!(matches_no_proxy("10.0.0.0/8", &url("http://10.2.3.4/")));
        assert!(matches_no_proxy("127.0.0.1", &url("http://127.0.0.1:8080/")));
        assert!(matches_no_proxy("[::1]:80", &url("http://[::1]/")));
        assert!(!matches_no_proxy("", &url("http://a.example/")));
    }
}
