//! Which addresses a remote may be sent to, and which hosts are asked without the outbound proxy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use url::{Host, Url};

/// Why an address is not one that upstreams on the internet have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Special {
    /// For people.
    pub kind: &'static str,
    /// Nobody is sent there, not even who is private: a cloud's machines get their credentials from such addresses.
    pub is_metadata: bool,
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(first: [u16; 4], last: [u16; 4], prefix: u8) -> Ipv6Net {
    let ([a, b, c, d], [e, f, g, h]) = (first, last);
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), prefix)
}

/// IANA's IPv4 Special-Purpose Address Registry, what is multicast, and clouds' own; the first that matches counts.
/// `None`: globally reachable all the same.
const V4: &[(Ipv4Net, Option<Special>)] = &[
    (v4(169, 254, 0, 0, 16), metadata("link-local")),
    (v4(100, 100, 100, 200, 32), metadata("metadata")),
    (v4(192, 0, 0, 192, 32), metadata("metadata")),
    (v4(168, 63, 129, 16, 32), metadata("metadata")),
    (v4(0, 0, 0, 0, 8), special("unspecified")),
    (v4(10, 0, 0, 0, 8), special("private")),
    (v4(100, 64, 0, 0, 10), special("shared (100.64/10)")),
    (v4(127, 0, 0, 0, 8), special("loopback")),
    (v4(172, 16, 0, 0, 12), special("private")),
    (v4(192, 0, 0, 9, 32), None),
    (v4(192, 0, 0, 10, 32), None),
    (v4(192, 0, 0, 0, 24), special("protocol-assignment (192.0.0/24)")),
    (v4(192, 0, 2, 0, 24), special("documentation")),
    (v4(192, 88, 99, 0, 24), special("6to4 relay")),
    (v4(192, 168, 0, 0, 16), special("private")),
    (v4(198, 18, 0, 0, 15), special("benchmarking")),
    (v4(198, 51, 100, 0, 24), special("documentation")),
    (v4(203, 0, 113, 0, 24), special("documentation")),
    (v4(224, 0, 0, 0, 4), special("multicast")),
    (v4(240, 0, 0, 0, 4), special("reserved or broadcast")),
];

/// What addresses of IPv6 are for. What holds an IPv4 address is judged by that first.
const V6: &[(Ipv6Net, Option<Special>)] = &[
    (v6([0xfe80, 0, 0, 0], [0, 0, 0, 0], 10), metadata("link-local")),
    (v6([0xfd00, 0xec2, 0, 0], [0, 0, 0, 0], 32), metadata("metadata")),
    (v6([0xfd20, 0xce, 0, 0], [0, 0, 0, 0x254], 128), metadata("metadata")),
    (v6([0, 0, 0, 0], [0, 0, 0, 1], 128), special("loopback")),
    (v6([0, 0, 0, 0], [0, 0, 0, 0], 128), special("unspecified")),
    (v6([0, 0, 0, 0], [0, 0xffff, 0, 0], 96), None),
    (v6([0, 0, 0, 0], [0, 0, 0, 0], 96), special("IPv4-compatible")),
    (v6([0x64, 0xff9b, 0, 0], [0, 0, 0, 0], 96), None),
    (v6([0x64, 0xff9b, 1, 0], [0, 0, 0, 0], 48), special("local NAT64")),
    (v6([0x100, 0, 0, 0], [0, 0, 0, 0], 64), special("discard-only")),
    (v6([0x100, 0, 0, 1], [0, 0, 0, 0], 64), special("dummy")),
    (v6([0x2001, 0, 0, 0], [0, 0, 0, 0], 32), special("Teredo")),
    (v6([0x2001, 1, 0, 0], [0, 0, 0, 1], 128), None),
    (v6([0x2001, 1, 0, 0], [0, 0, 0, 2], 128), None),
    (v6([0x2001, 1, 0, 0], [0, 0, 0, 3], 128), None),
    (v6([0x2001, 3, 0, 0], [0, 0, 0, 0], 32), None),
    (v6([0x2001, 4, 0x112, 0], [0, 0, 0, 0], 48), None),
    (v6([0x2001, 0x20, 0, 0], [0, 0, 0, 0], 28), None),
    (v6([0x2001, 0x30, 0, 0], [0, 0, 0, 0], 28), None),
    (
        v6([0x2001, 0, 0, 0], [0, 0, 0, 0], 23),
        special("protocol-assignment (2001::/23)"),
    ),
    (v6([0x2001, 0xdb8, 0, 0], [0, 0, 0, 0], 32), special("documentation")),
    (v6([0x2002, 0, 0, 0], [0, 0, 0, 0], 16), special("6to4")),
    (v6([0x3fff, 0, 0, 0], [0, 0, 0, 0], 20), special("documentation")),
    (v6([0x5f00, 0, 0, 0], [0, 0, 0, 0], 16), special("segment-routing")),
    (v6([0xfc00, 0, 0, 0], [0, 0, 0, 0], 7), special("unique-local")),
    (v6([0xfec0, 0, 0, 0], [0, 0, 0, 0], 10), special("site-local")),
    (v6([0xff00, 0, 0, 0], [0, 0, 0, 0], 8), special("multicast")),
];

const fn special(kind: &'static str) -> Option<Special> {
    let is_metadata = false;
    Some(Special { kind, is_metadata })
}

const fn metadata(kind: &'static str) -> Option<Special> {
    let is_metadata = true;
    Some(Special { kind, is_metadata })
}

/// Why `ip` is not a public address; `None` for public ones.
pub(super) fn special_kind(ip: IpAddr) -> Option<Special> {
    match ip {
        IpAddr::V4(ip) => special_v4(ip),
        IpAddr::V6(ip) => {
            let held = embedded(ip).into_iter().filter_map(special_v4);
            // The worst of them.
            let held = held.max_by_key(|special| special.is_metadata);
            held.or_else(|| V6.iter().find(|(net, _)| net.contains(&ip)).and_then(|(_, kind)| *kind))
        }
    }
}

fn special_v4(ip: Ipv4Addr) -> Option<Special> {
    V4.iter().find(|(net, _)| net.contains(&ip)).and_then(|(_, kind)| *kind)
}

/// The IPv4 addresses that one of IPv6 leads to.
fn embedded(ip: Ipv6Addr) -> Vec<Ipv4Addr> {
    let segments = ip.segments();
    let at = |index: usize| {
        let ([a, b], [c, d]) = (segments[index].to_be_bytes(), segments[index + 1].to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match segments {
        // `::` and `::1` hold none.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Vec::new(),
        // Compatible (RFC 4291), mapped, and translated (RFC 6052, RFC 8215: where in the last 80 bits, its operators
        // choose; mostly at the end).
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] | [0x64, 0xff9b, 1, ..] => vec![at(6)],
        // Teredo: the server, and the client's own, inverted (RFC 4380 section 4).
        [0x2001, 0, ..] => vec![at(2), Ipv4Addr::from(!u32::from(at(6)))],
        [0x2002, ..] => vec![at(1)],
        _ => Vec::new(),
    }
}

/// Whether an entry of `NO_PROXY` exempts `url`: `*`, a host, a domain (with or without leading dot, sub-domains
/// included), an address or a network, each with an optional port.
pub(super) fn matches_no_proxy(entry: &str, url: &Url) -> bool {
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

    fn kind(text: &str) -> Option<Special> {
        special_kind(text.parse().unwrap())
    }

    #[test]
    fn special_addresses_are_known_in_every_disguise() {
        for (expected, addresses) in [
            (
                "loopback",
                "127.0.0.1 127.255.255.255 ::1 ::ffff:127.0.0.1 ::127.0.0.1 64:ff9b::7f00:1 64:ff9b:1::7f00:1",
            ),
            ("loopback", "2002:7f00:1:: 2001::80ff:fffe 2001:0:7f00:1::fefe:fefe"),
            (
                "private",
                "10.1.2.3 172.16.0.1 172.31.255.255 192.168.1.1 ::ffff:10.0.0.1 64:ff9b::a00:1 64:ff9b:1::a00:1",
            ),
            ("private", "2002:a00:1::1 2002:c0a8:101::"),
            (
                "link-local",
                "169.254.169.254 fe80::1 febf::1 2002:a9fe:a9fe::1 64:ff9b::a9fe:a9fe",
            ),
            ("shared", "100.64.0.1 100.127.255.254"),
            ("unspecified", "0.0.0.0 0.1.2.3 ::"),
            ("protocol-assignment", "192.0.0.1 192.0.0.171 2001:100::1"),
            (
                "documentation",
                "192.0.2.1 198.51.100.1 203.0.113.255 2001:db8::1 3fff::1",
            ),
            ("benchmarking", "198.18.0.1 198.19.255.255"),
            ("multicast", "224.0.0.1 239.1.2.3 ff02::1"),
            ("reserved", "240.0.0.1 255.255.255.255"),
            ("6to4", "192.88.99.1 2002:101:101::1"),
            ("Teredo", "2001:0:101:101::fefe:fefe"),
            ("unique-local", "fd00::1 fc00::1"),
            ("site-local", "fec0::1 feff::1"),
            ("IPv4-compatible", "::1.1.1.1"),
            ("local NAT64", "64:ff9b:1::101:101"),
            ("discard", "100::1"),
            ("segment-routing", "5f00::1"),
            (
                "metadata",
                "fd00:ec2::254 fd00:ec2::23 fd20:ce::254 100.100.100.200 192.0.0.192 168.63.129.16",
            ),
        ] {
            for text in addresses.split(' ') {
                let found = kind(text).unwrap_or_else(|| panic!("{text} is public"));
                assert!(found.kind.contains(expected), "{text}: {found:?}");
                let metadata = matches!(expected, "metadata" | "link-local");
                assert_eq!(found.is_metadata, metadata, "{text}");
            }
        }
        let public = "1.1.1.1 100.128.0.1 172.32.0.1 192.0.0.9 192.31.196.1 192.0.1.1 223.255.255.255 2606:4700::1111 \
                      64:ff9b::101:101 ::ffff:1.1.1.1 2001:4860::8888 2001:20::1 2001:4:112::1 2a00::1";
        for text in public.split_whitespace() {
            assert_eq!(kind(text), None, "{text}");
        }
    }

    #[test]
    fn nothing_in_a_tunnel_is_better_than_where_it_leads() {
        for (inside, metadata) in [
            ("169.254.169.254", true),
            ("100.100.100.200", true),
            ("10.0.0.1", false),
        ] {
            let [a, b, c, d] = inside.parse::<Ipv4Addr>().unwrap().octets();
            let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            for text in [
                format!("::{inside}"),
                format!("::ffff:{inside}"),
                format!("64:ff9b::{inside}"),
                format!("64:ff9b:1:2:3:4:{inside}"),
                format!("2002:{high:x}:{low:x}::1"),
                format!("2001:0:{high:x}:{low:x}::1"),
                format!("2001:0:101:101:0:0:{:x}:{:x}", !high, !low),
            ] {
                assert_eq!(kind(&text).map(|found| found.is_metadata), Some(metadata), "{text}");
            }
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
