//! Texts to things on a network: URLs, host names, addresses, proxies.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;
use percent_encoding::percent_decode_str;
use url::{Host, Url};

use super::model::{FileHost, ProxyUrl, Secret};
use super::problem::Fault;

/// An absolute `http` or `https` URL with nothing but host, port and path.
pub(super) fn web_url(text: &str, credentials_hint: &str) -> Result<Url, Fault> {
    const EXAMPLE: &str = "write it like https://example.com/path";
    let lower = text.to_ascii_lowercase();
    let Some(rest) = lower.strip_prefix("https://").or_else(|| lower.strip_prefix("http://")) else {
        return Err(Fault::new("must begin with http:// or https://").hint(EXAMPLE));
    };
    // The URL parser would quietly repair these.
    if text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '\\') {
        return Err(Fault::new("has a space, a control character or a backslash").hint(EXAMPLE));
    }
    if rest.is_empty() || rest.starts_with(['/', ':', '?', '#']) {
        return Err(Fault::new("has no host").hint(EXAMPLE));
    }
    let url = Url::parse(text).map_err(|error| Fault::new(format!("not a URL: {error}")).hint(EXAMPLE))?;
    if !url.username().is_empty() || url.password().is_some() || rest.split('/').next().is_some_and(|a| a.contains('@'))
    {
        return Err(Fault::new("has credentials in it").hint(credentials_hint));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(Fault::new("has a query or a fragment").hint("remove everything from `?` or `#` on"));
    }
    if url.port() == Some(0) {
        return Err(Fault::new("has the port 0"));
    }
    Ok(url)
}

/// A [`web_url`] with a path that ends in `/`, so that a relative path can be joined.
pub(super) fn base_url(text: &str) -> Result<Url, Fault> {
    let mut url = web_url(text, "use the keys `username` and `password` (or `password_file`)")?;
    if !url.path().ends_with('/') {
        let path = format!("{}/", url.path());
        url.set_path(&path);
    }
    Ok(url)
}

/// A [`web_url`] without slashes at the end (the root's own excepted, which a URL always has).
pub(super) fn link_base(text: &str) -> Result<Url, Fault> {
    let mut url = web_url(text, "links that clients see must not hold credentials")?;
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Ok(url)
}

/// A host name as clients send it: lower case, international names in their ASCII form, no final dot.
pub(super) fn host_name(text: &str) -> Result<String, Fault> {
    const HINT: &str = "write the name only, such as npm.example.com";
    if text.contains("://") {
        return Err(Fault::new("is a URL, not a host name").hint(HINT));
    }
    match host_and_port(text)? {
        (host, None) => Ok(host),
        (_, Some(_)) => Err(Fault::new("has a port").hint("write the name only: hosts are compared without port")),
    }
}

/// `host`, `host:port`, `http://host:port`: https where no scheme is given.
pub(super) fn file_host(text: &str) -> Result<FileHost, Fault> {
    let (scheme, authority) = match text.split_once("://") {
        None => ("https", text),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => ("https", rest),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => ("http", rest),
        Some(_) => {
            return Err(
                Fault::new("must be reached by http or https").hint("write host, host:port or http://host:port")
            );
        }
    };
    let (host, port) = host_and_port(authority.strip_suffix('/').unwrap_or(authority))?;
    let default = if scheme == "http" { 80 } else { 443 };
    Ok(FileHost {
        scheme,
        host,
        port: port.filter(|port| *port != default),
    })
}

/// A [`file_host`], but by https only where it is not on this machine: no other would ever see the credentials.
pub(super) fn token_realm(text: &str) -> Result<FileHost, Fault> {
    let realm = file_host(text)?;
    let local = Host::parse(&realm.host).is_ok_and(|host| is_loopback(&host));
    if realm.scheme == "https" || local {
        return Ok(realm);
    }
    let port = realm.port.map(|port| format!(":{port}")).unwrap_or_default();
    Err(Fault::new("credentials go to a token service over https only")
        .hint(format!("write https://{}{port}", realm.host)))
}

/// Whether a host is this machine, by its name.
pub fn is_loopback<S: AsRef<str>>(host: &Host<S>) -> bool {
    match host {
        Host::Domain(name) => name.as_ref().eq_ignore_ascii_case("localhost"),
        Host::Ipv4(v4) => v4.is_loopback(),
        Host::Ipv6(v6) => v6.is_loopback(),
    }
}

fn host_and_port(text: &str) -> Result<(String, Option<u16>), Fault> {
    const HINT: &str = "write a host name without path, user or wildcard, such as files.example.com";
    if text.contains(|c: char| c.is_whitespace() || c.is_control() || "/\\@?#*%".contains(c)) {
        return Err(Fault::new("not a host name").hint(HINT));
    }
    let (host, port) = match text.rsplit_once(':') {
        // A colon inside of an IPv6 address.
        Some((_, rest)) if rest.ends_with(']') => (text, None),
        Some((host, port)) => (host, Some(port_number(port)?)),
        None => (text, None),
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    match Host::parse(host) {
        Ok(Host::Domain(name)) if name.is_empty() => Err(Fault::new("the host is empty").hint(HINT)),
        Ok(host) => Ok((host.to_string().to_ascii_lowercase(), port)),
        Err(error) => Err(Fault::new(format!("not a host name: {error}")).hint(HINT)),
    }
}

/// 1 to 65535.
pub(super) fn port_number(text: &str) -> Result<u16, Fault> {
    let port = text
        .parse::<u16>()
        .ok()
        .filter(|port| *port > 0 && !text.starts_with('+'));
    port.ok_or_else(|| Fault::new(format!("{text:?} is not a port")).hint("ports are numbers from 1 to 65535"))
}

/// `ip:port`, `[v6]:port` or `localhost:port`. Port 0 lets the system choose.
pub(super) fn listen_address(text: &str) -> Result<SocketAddr, Fault> {
    let local = text
        .rsplit_once(':')
        .filter(|(host, _)| host.eq_ignore_ascii_case("localhost"));
    let address = match local {
        Some((_, port)) => port
            .parse()
            .ok()
            .map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        None => text.parse().ok(),
    };
    address.ok_or_else(|| {
        Fault::new("not an address to listen on")
            .hint("write IP:PORT, such as 127.0.0.1:8000, 0.0.0.0:8000 or [::]:8000 for all interfaces")
    })
}

/// A name server; port 53 unless given.
pub(super) fn resolver_address(text: &str) -> Result<SocketAddr, Fault> {
    let address = text
        .parse()
        .ok()
        .or_else(|| text.parse::<IpAddr>().ok().map(|ip| SocketAddr::from((ip, 53))));
    let address = address.filter(|address| address.port() != 0);
    address.ok_or_else(|| Fault::new("not the address of a name server").hint("write IP:PORT, such as 192.0.2.53:53"))
}

/// `10.0.0.0/8`, or one address.
pub(super) fn network(text: &str) -> Result<IpNet, Fault> {
    let network = text
        .parse::<IpNet>()
        .ok()
        .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    network.map(|network| network.trunc()).ok_or_else(|| {
        Fault::new("not a network").hint("write an address or a network, such as 10.0.0.0/8, 192.0.2.7 or ::1")
    })
}

/// `http://[user:password@]host[:port]`; a proxy without scheme is one too, as in other tools.
pub(super) fn proxy_url(text: &str) -> Result<ProxyUrl, Fault> {
    const HINT: &str = "write http://host:port";
    let rest = match text.split_once("://") {
        None => text,
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
        // Not the scheme itself: without one, a password may stand there.
        Some(_) => {
            return Err(
                Fault::new("only http:// proxies are supported (https targets are tunnelled through them)").hint(HINT),
            );
        }
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    let (host, port) = host_and_port(host).map_err(|fault| fault.hint(HINT))?;
    let credentials = user.filter(|user| !user.is_empty()).map(|user| {
        let text = percent_decode_str(user)
            .decode_utf8()
            .map_err(|_| Fault::new("the credentials are not UTF-8"))?;
        if text.contains(char::is_control) {
            return Err(Fault::new("the credentials hold a control character"));
        }
        Ok(Secret::new(text))
    });
    Ok(ProxyUrl {
        host,
        port: port.unwrap_or(80),
        credentials: credentials.transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls() {
        let of = |text| base_url(text).map(String::from).ok();
        assert_eq!(of("https://Example.COM").as_deref(), Some("https://example.com/"));
        assert_eq!(
            of("HTTP://example.com:8080/a/b").as_deref(),
            Some("http://example.com:8080/a/b/")
        );
        assert_eq!(of("https://[::1]:443/").as_deref(), Some("https://[::1]/"));
        for bad in [
            "",
            "example.com",
            "ftp://example.com",
            "https://",
            "https:///x",
            "https:example.com",
            "https://a/?q",
            "https://a/#f",
            "https://u:p@a/",
            "https://u@a",
            "https://@a",
            "https://a b/",
            "https://a\\b",
            " https://a",
            "https://a:0",
            "https://a:99999",
            "https://?",
            "https://[::1",
        ] {
            assert!(base_url(bad).is_err(), "{bad}");
        }
        assert_eq!(
            link_base("https://h/artifacts/").map(String::from).ok().as_deref(),
            Some("https://h/artifacts")
        );
    }

    #[test]
    fn hosts() {
        assert_eq!(host_name("NPM.example.com.").as_deref(), Ok("npm.example.com"));
        assert_eq!(host_name("bücher.example").as_deref(), Ok("xn--bcher-kva.example"));
        for bad in ["", ".", "a:80", "http://a", "a/b", "*.a", "a b", "u@a", "a?b"] {
            assert!(host_name(bad).is_err(), "{bad}");
        }
        let file = |text| file_host(text).map(|f| (f.scheme, f.host, f.port)).ok();
        assert_eq!(file("Files.example"), Some(("https", "files.example".into(), None)));
        assert_eq!(
            file("files.example:8443"),
            Some(("https", "files.example".into(), Some(8443)))
        );
        assert_eq!(file("http://[::1]:8080"), Some(("http", "[::1]".into(), Some(8080))));
        assert_eq!(file("https://a:443/"), Some(("https", "a".into(), None)));
        for bad in ["", "ftp://a", "a/b", "https://", "a:", "a:0", "a:x"] {
            assert!(file_host(bad).is_err(), "{bad}");
        }
        for good in [
            "a",
            "https://10.0.0.1",
            "http://localhost:1",
            "http://127.1.2.3",
            "http://[::1]:80",
        ] {
            assert_eq!(token_realm(good), file_host(good), "{good}");
        }
        for bad in [
            "http://a",
            "http://10.0.0.1:1",
            "http://[fd00::1]",
            "http://localhost.a",
            "a/b",
        ] {
            assert!(token_realm(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(
            listen_address("localhost:8000"),
            Ok(SocketAddr::from(([127, 0, 0, 1], 8000)))
        );
        assert!(listen_address("[::]:0").is_ok());
        for bad in [
            "",
            ":8000",
            "8000",
            "*:8000",
            "example.com:80",
            "127.0.0.1",
            "::1:8000x",
        ] {
            assert!(listen_address(bad).is_err(), "{bad}");
        }
        assert_eq!(
            resolver_address("192.0.2.1"),
            Ok(SocketAddr::from(([192, 0, 2, 1], 53)))
        );
        assert!(network("::1").is_ok() && network("10.1.2.3/8").is_ok() && network("host").is_err());
    }

    #[test]
    fn proxies() {
        let of = |text| proxy_url(text).ok();
        let proxy = of("http://us%40er:p%3Aw@Proxy.example:3128/");
        assert!(proxy.is_some_and(|p| p.host == "proxy.example"
            && p.port == 3128
            && p.credentials.is_some_and(|c| c.reveal() == "us@er:p:w")));
        assert!(of("proxy.example").is_some_and(|p| p.port == 80 && p.credentials.is_none()));
        for bad in [
            "socks5://h:1080",
            "https://h",
            "",
            "http://",
            "http://h/path",
            "http://h:0",
        ] {
            assert!(of(bad).is_none(), "{bad}");
        }
    }
}
