//! Who may write: whoever has the administrator's token; without one configured, programs of this machine.

use std::net::IpAddr;

use http::{HeaderMap, header};
use pingora_proxy::Session;
use url::Host;

use crate::config::{Settings, is_loopback};
use crate::session::public::{arrival, without_port};
use crate::session::reply::Problem;

/// What only something that passed a request on for another adds to it. `X-Forwarded-…` counts besides.
const PASSED_ON: [&str; 12] = [
    "forwarded",
    "via",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-original-host",
    "x-original-forwarded-for",
    "cf-connecting-ip",
    "cf-ray",
    "true-client-ip",
    "fastly-client-ip",
    "x-envoy-external-address",
];

/// Whether the request may change what is stored here.
pub(crate) fn may_write(session: &Session, settings: &Settings) -> bool {
    let headers = &session.req_header().headers;
    match &settings.admin_token {
        Some(token) => headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .is_some_and(|given| same(given.trim().as_bytes(), token.reveal().as_bytes())),
        None => {
            let arrival = arrival(session);
            is_from_here(arrival.headers, arrival.authority, arrival.peer)
        }
    }
}

/// What those are told who may not.
pub(crate) fn refusal() -> Problem {
    let detail = "this is allowed only to programs of this machine that ask for it by a name of its own, such as \
                  localhost, and not through a proxy or a website; set ARTIFACTAPI_ADMIN_TOKEN to allow it with a token";
    Problem::new(401, detail).header(header::WWW_AUTHENTICATE, "Bearer realm=\"artifactapi\"")
}

/// Whether a program of this machine asks, and nobody through it. A browser runs here too, and asks for any website: under
/// a foreign name that was made to lead here, or by this machine's own name from a page of another.
fn is_from_here(headers: &HeaderMap, authority: Option<&str>, peer: Option<IpAddr>) -> bool {
    let here = peer.is_some_and(|peer| peer.to_canonical().is_loopback());
    let Some(authority) = authority.filter(|authority| here && is_own_name(authority)) else {
        return false;
    };
    let passed_on = headers
        .keys()
        .any(|name| name.as_str().starts_with("x-forwarded-") || PASSED_ON.contains(&name.as_str()));
    let same_origin = headers.get_all(header::ORIGIN).iter().all(|origin| {
        let origin = origin.to_str().ok();
        let host = origin.and_then(|origin| origin.strip_prefix("http://").or(origin.strip_prefix("https://")));
        host.is_some_and(|host| host.eq_ignore_ascii_case(authority))
    });
    let from_own_page = headers
        .get_all("sec-fetch-site")
        .iter()
        .all(|site| site.as_bytes().eq_ignore_ascii_case(b"same-origin"));
    !passed_on && same_origin && from_own_page
}

/// Whether a name cannot be another machine's.
fn is_own_name(authority: &str) -> bool {
    Host::parse(without_port(authority)).is_ok_and(|host| is_loopback(&host))
}

/// Compares in time that depends on the given text's length only.
fn same(given: &[u8], wanted: &[u8]) -> bool {
    let mut difference = given.len() ^ wanted.len();
    for (index, byte) in given.iter().enumerate() {
        difference |= usize::from(byte ^ wanted.get(index).copied().unwrap_or(0));
    }
    difference == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    fn allowed(host: &str, peer: &str, headers: &[(&str, &str)]) -> bool {
        let headers = headers
            .iter()
            .map(|(name, value)| {
                let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
                (name, HeaderValue::from_str(value).unwrap())
            })
            .collect();
        is_from_here(&headers, Some(host), peer.parse().ok())
    }

    #[test]
    fn programs_of_this_machine_are_let_in() {
        for host in [
            "localhost",
            "LOCALHOST:8000",
            "127.0.0.1:8000",
            "127.1.2.3",
            "[::1]:8000",
            "[::1]",
        ] {
            assert!(allowed(host, "127.0.0.1", &[]), "{host}");
        }
        assert!(allowed("localhost", "::ffff:127.0.0.1", &[]));
        assert!(allowed("localhost:80", "::1", &[("Origin", "http://localhost:80")]));
        assert!(allowed("localhost", "::1", &[("Sec-Fetch-Site", "same-origin")]));
    }

    #[test]
    fn nobody_else_is() {
        for host in [
            "example.org",
            "example.org:8000",
            "localhost.example.org",
            "notlocalhost",
            "10.0.0.1",
            "127.0.0.1.example.org",
            "",
        ] {
            assert!(!allowed(host, "127.0.0.1", &[]), "{host}");
        }
        assert!(!allowed("localhost", "10.0.0.1", &[]));
        assert!(!is_from_here(&HeaderMap::new(), None, "127.0.0.1".parse().ok()));
        assert!(!is_from_here(&HeaderMap::new(), Some("localhost"), None));
        for header in [
            ("Origin", "null"),
            ("Origin", "http://example.org"),
            ("Origin", "http://localhost:81"),
            ("Origin", "localhost"),
            ("Sec-Fetch-Site", "cross-site"),
            ("Sec-Fetch-Site", "same-site"),
            ("Sec-Fetch-Site", "none"),
            ("Forwarded", "for=10.0.0.1"),
            ("Via", "1.1 proxy"),
            ("X-Forwarded-For", "10.0.0.1"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Prefix", "/a"),
            ("X-Forwarded-Server", "a"),
            ("X-Real-IP", "10.0.0.1"),
            ("X-Client-IP", "10.0.0.1"),
            ("CF-Connecting-IP", "10.0.0.1"),
        ] {
            assert!(!allowed("localhost", "127.0.0.1", &[header]), "{header:?}");
        }
    }
}
