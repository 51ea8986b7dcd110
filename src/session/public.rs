//! Under which URL clients know this proxy: for the links in rewritten documents.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, header};
use ipnet::IpNet;
use pingora_proxy::Session;

use crate::config::Settings;
use crate::fields;

/// The public base URL without trailing slash, and the host that was asked for (lower case, without port).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Public {
    pub base: String,
    pub host: String,
}

/// What a request says of how it came here.
pub struct Arrival<'a> {
    pub headers: &'a HeaderMap,
    /// `Host`, or the authority of an HTTP/2 request or an absolute-form target.
    pub authority: Option<&'a str>,
    pub peer: Option<IpAddr>,
    pub tls: bool,
}

/// How a request came here.
pub fn arrival(session: &Session) -> Arrival<'_> {
    let request = session.req_header();
    let authority = request
        .uri
        .authority()
        .map(|authority| authority.as_str())
        .or_else(|| request.headers.get(header::HOST).and_then(|value| value.to_str().ok()));
    Arrival {
        headers: &request.headers,
        authority,
        peer: session
            .client_addr()
            .and_then(|address| address.as_inet())
            .map(|address| address.ip()),
        tls: session.digest().is_some_and(|digest| digest.ssl_digest.is_some()),
    }
}

/// `ARTIFACTAPI_PUBLIC_URL`, else `Forwarded` (RFC 7239) or `X-Forwarded-*` from a trusted proxy, else `Host`. Of a
/// list the value that the last trusted proxy wrote counts: the last one.
///
/// `None`: the host is missing or none.
pub fn of(settings: &Settings, arrival: &Arrival<'_>) -> Option<Public> {
    let mut scheme = if arrival.tls {
        "https".to_owned()
    } else {
        "http".to_owned()
    };
    let mut host = arrival.authority.unwrap_or_default().to_owned();
    let mut prefix = String::new();
    if arrival
        .peer
        .is_some_and(|peer| is_trusted(&settings.trusted_proxies, peer))
    {
        if let Some(forwarded) = forwarded(arrival.headers) {
            for (name, value) in forwarded {
                match name.as_str() {
                    "proto" => scheme = value,
                    "host" => host = value,
                    _ => {}
                }
            }
        } else {
            if let Some(proto) = last(arrival.headers, "x-forwarded-proto") {
                scheme = proto;
            }
            if let Some(forwarded_host) = last(arrival.headers, "x-forwarded-host") {
                host = forwarded_host;
            }
            if let Some(port) = last(arrival.headers, "x-forwarded-port").filter(|port| is_port(port)) {
                let default = if scheme.eq_ignore_ascii_case("https") {
                    "443"
                } else {
                    "80"
                };
                let bare = without_port(&host).to_owned();
                host = if port == default {
                    bare
                } else {
                    format!("{bare}:{port}")
                };
            }
        }
        if let Some(given) = last(arrival.headers, "x-forwarded-prefix").filter(|given| is_prefix(given)) {
            prefix = given.trim_end_matches('/').to_owned();
        }
    }
    let scheme = if scheme.eq_ignore_ascii_case("https") {
        "https"
    } else {
        "http"
    };
    let valid = is_host(&host);
    let name = without_port(&host).to_ascii_lowercase();
    if let Some(url) = &settings.public_url {
        return Some(Public {
            base: url.as_str().trim_end_matches('/').to_owned(),
            host: if valid { name } else { String::new() },
        });
    }
    if !valid {
        return None;
    }
    Some(Public {
        base: format!("{scheme}://{host}{prefix}"),
        host: name,
    })
}

/// The base URL of a host that is bound to a remote: as asked for, whatever the public URL of the rest is.
pub fn of_bound_host(settings: &Settings, arrival: &Arrival<'_>) -> Option<String> {
    let free = Settings {
        public_url: None,
        ..settings.clone()
    };
    of(&free, arrival).map(|public| public.base)
}

/// The URL of a remote's root as the client knows it.
pub fn of_remote(settings: &Settings, arrival: &Arrival<'_>, remote: &str, bound_host: bool) -> Option<String> {
    if bound_host {
        return of_bound_host(settings, arrival);
    }
    let base = of(settings, arrival)?.base;
    Some(format!("{base}/api/v1/remote/{remote}"))
}

/// Who asks: the peer, or whom a trusted proxy names that asks for another. Of a list the last one, as in [`of`].
pub fn client(trusted: &[IpNet], arrival: &Arrival<'_>) -> Option<IpAddr> {
    let peer = arrival.peer?.to_canonical();
    if !is_trusted(trusted, peer) {
        return Some(peer);
    }
    let named = match forwarded(arrival.headers) {
        Some(said) => said.into_iter().find(|(name, _)| name == "for").map(|(_, value)| value),
        None => last(arrival.headers, "x-forwarded-for"),
    };
    Some(named.and_then(|text| node(&text)).unwrap_or(peer))
}

/// The address of a node as proxies write it, with or without a port (RFC 7239 section 6).
fn node(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let address = bare.unwrap_or(text).parse::<IpAddr>();
    let address = address.or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()));
    address.ok().map(|address| address.to_canonical())
}

pub fn is_trusted(trusted: &[IpNet], peer: IpAddr) -> bool {
    let peer = peer.to_canonical();
    trusted.iter().any(|network| network.contains(&peer))
}

fn last(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get_all(name).iter().next_back()?.to_str().ok()?;
    let value = value.rsplit(',').next()?.trim();
    (!value.is_empty()).then(|| value.to_owned())
}

/// What the last proxy said in `Forwarded` (RFC 7239 section 4): parameters, their names in lower case.
fn forwarded(headers: &HeaderMap) -> Option<Vec<(String, String)>> {
    let mut rest = headers.get_all("forwarded").iter().next_back()?.to_str().ok()?;
    let last = loop {
        match fields::element(rest) {
            (_, Some(after)) => rest = after,
            (last, None) => break last,
        }
    };
    let mut parameters = Vec::new();
    let mut rest = last.trim();
    while !rest.is_empty() {
        let (name, mut after) = fields::token(rest.trim_start());
        if let Some(value) = after.trim_start().strip_prefix('=') {
            let (value, behind) = fields::value(value.trim_start(), &[';']);
            parameters.push((name.to_ascii_lowercase(), value));
            after = behind;
        }
        // What is no parameter is passed over.
        rest = after.split_once(';').map_or("", |(_, next)| next);
    }
    (!last.trim().is_empty()).then_some(parameters)
}

fn is_port(text: &str) -> bool {
    fields::number::<u16>(text).is_some()
}

/// A host as it may stand in a URL, with an optional port.
pub fn is_host(host: &str) -> bool {
    let name = without_port(host);
    let rest = &host[name.len()..];
    let port = rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port);
    let name_fits = match name.strip_prefix('[') {
        Some(v6) => v6
            .strip_suffix(']')
            .is_some_and(|v6| v6.parse::<std::net::Ipv6Addr>().is_ok()),
        None => {
            !name.is_empty()
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        }
    };
    port && name_fits && host.len() <= 255
}

pub fn without_port(host: &str) -> &str {
    match host.rfind(':') {
        Some(at) if !host[at..].contains(']') => &host[..at],
        _ => host,
    }
}

fn is_prefix(prefix: &str) -> bool {
    prefix.starts_with('/')
        && !prefix.starts_with("//")
        && !prefix.contains("..")
        && prefix
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for good in ["a", "a.example:8080", "127.0.0.1", "[::1]", "[::1]:80", "under_score"] {
            assert!(is_host(good), "{good}");
        }
        for bad in [
            "",
            "a b",
            "a/b",
            "a:b",
            "a:99999",
            "a:+80",
            "a:",
            "[::1]:+80",
            "[::1",
            "a\"",
            "<x>",
            ":80",
            "a@b",
        ] {
            assert!(!is_host(bad), "{bad}");
        }
        assert_eq!(without_port("[::1]:80"), "[::1]");
        assert_eq!(without_port("[::1]"), "[::1]");
        assert_eq!(without_port("a:1"), "a");
    }

    #[test]
    fn who_asks_is_the_peer_unless_a_proxy_may_say_otherwise() {
        let asks = |trusted: &str, headers: &[(&'static str, &str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(*name, value.parse().unwrap());
            }
            let arrival = Arrival {
                headers: &map,
                authority: None,
                peer: "::ffff:10.0.0.1".parse().ok(),
                tls: false,
            };
            client(&[trusted.parse().unwrap()], &arrival).unwrap().to_string()
        };
        let named = [("x-forwarded-for", "192.0.2.9, 192.0.2.1")];
        assert_eq!(asks("10.0.0.0/8", &named), "192.0.2.1");
        assert_eq!(asks("172.16.0.0/12", &named), "10.0.0.1");
        for (said, client) in [
            ("for=192.0.2.1", "192.0.2.1"),
            ("for=\"192.0.2.1:80\"", "192.0.2.1"),
            ("for=\"[2001:db8::1]:80\"", "2001:db8::1"),
            ("for=\"[2001:db8::1]\"", "2001:db8::1"),
            ("for=unknown", "10.0.0.1"),
            ("proto=https", "10.0.0.1"),
        ] {
            assert_eq!(asks("10.0.0.0/8", &[("forwarded", said), named[0]]), client, "{said}");
        }
        assert_eq!(asks("10.0.0.0/8", &[]), "10.0.0.1");
    }

    #[test]
    fn what_the_last_proxy_said() {
        let said = |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append("forwarded", line.parse().unwrap());
            }
            let said = forwarded(&headers)?
                .into_iter()
                .map(|(name, value)| format!("{name}={value}"));
            Some(said.collect::<Vec<_>>().join(" "))
        };
        for (lines, expected) in [
            (
                &["for=1.2.3.4;host=a.test;Proto=https"][..],
                Some("for=1.2.3.4 host=a.test proto=https"),
            ),
            (&["host=evil.test, host=a.test"], Some("host=a.test")),
            (&["host=evil.test", "host=a.test"], Some("host=a.test")),
            (
                &[r#"host="a.test:8080" ; proto="https""#],
                Some("host=a.test:8080 proto=https"),
            ),
            (
                &[r#"for="[::1]:80, host=evil.test;x";host="a\.test""#],
                Some("for=[::1]:80, host=evil.test;x host=a.test"),
            ),
            (
                &[r#"host=evil.test, for="\",;host=worse.test";host=a.test"#],
                Some("for=\",;host=worse.test host=a.test"),
            ),
            (&[r#"nonsense;host=a.test"#], Some("host=a.test")),
            (&["host=evil.test, "], None),
            (&[], None),
        ] {
            assert_eq!(said(lines).as_deref(), expected, "{lines:?}");
        }
    }
}
