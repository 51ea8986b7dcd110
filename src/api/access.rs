//! Who may do what. [`Need::grant`] is the one statement of it; docs/security.md has it as a table.

use std::net::IpAddr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, Method, header};
use pingora_proxy::Session;
use url::Host;

use super::{Endpoint, quarantine};
use crate::cache::now_ms;
use crate::catalog::rfc3339;
use crate::config::{Config, Package, Remote, RemoteType, Scope, Token, is_loopback};
use crate::session::public::{Arrival, arrival, without_port};
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

/// How clients are told to say who they are: most know Basic and put a token where the password belongs.
const CHALLENGE: &str = "Basic realm=\"artifactapi\", Bearer realm=\"artifactapi\"";
/// On a registry `Bearer` would name a token service, and there is none.
const REGISTRY_CHALLENGE: &str = "Basic realm=\"artifactapi\"";

/// What somebody wants to do.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Need<'a> {
    /// What everybody may: health, and lists, which show each reader no more than may be read.
    Nothing,
    Read(&'a Remote),
    /// To be told of all remotes at once, as metrics do.
    ReadAll,
    /// To use the API of a package type, whichever of its remotes is asked for then.
    Enter(&'static Package),
    /// To change what a remote has: an upload, a deletion, or to have something cached.
    Write(&'a Remote),
    /// To change something of remotes that are not named yet.
    WriteSome,
    /// To see the configuration, and what says how things stand behind it.
    Configuration,
    /// To flush a remote, or to let something of it through quarantine.
    Manage(&'a str),
    /// To do that with all remotes.
    ManageAll,
    /// To do that with a remote that is not named yet.
    ManageSome,
}

/// What a token must be good for.
struct Grant<'a> {
    scope: Scope,
    of: Of<'a>,
}

enum Of<'a> {
    Remote(&'a str),
    All,
    Some,
}

impl<'a> Need<'a> {
    /// What an artifact of `remote` is needed for.
    pub(crate) fn of_artifact(method: &Method, remote: &'a Remote) -> Self {
        match (remote.kind, method) {
            (RemoteType::Local, &Method::PUT | &Method::DELETE) => Need::Write(remote),
            _ => Need::Read(remote),
        }
    }

    /// What an endpoint needs before it is looked at what it is asked about.
    pub(super) fn of_endpoint(endpoint: &Endpoint, config: &'a Config) -> Self {
        match endpoint {
            Endpoint::Root
            | Endpoint::Health
            | Endpoint::Live
            | Endpoint::Ready
            | Endpoint::Artifacts { .. }
            | Endpoint::Quarantine(
                quarantine::Endpoint::Report { .. }
                | quarantine::Endpoint::Explain { .. }
                | quarantine::Endpoint::Released,
            ) => Need::Nothing,
            Endpoint::Artifact { remote, .. } => match config.remotes.get(remote) {
                Some(remote) => Need::Read(remote),
                None => Need::Nothing,
            },
            Endpoint::Config => Need::Configuration,
            Endpoint::Metrics => Need::ReadAll,
            Endpoint::Flush | Endpoint::Quarantine(quarantine::Endpoint::Release { .. }) => Need::ManageSome,
        }
    }

    /// What a token must be good for. `None`: this needs none.
    fn grant(self, config: &Config) -> Option<Grant<'a>> {
        let is_any_protected = || config.remotes.values().any(|remote| remote.protected);
        let (scope, of) = match self {
            Need::Nothing => return None,
            Need::Read(remote) if !remote.protected => return None,
            Need::Read(remote) => (Scope::Read, Of::Remote(&remote.name)),
            Need::ReadAll if !is_any_protected() => return None,
            Need::ReadAll => (Scope::Read, Of::All),
            Need::Enter(package) => {
                let mut remotes = config.remotes.values().filter(|remote| *remote.package == *package);
                if !remotes.any(|remote| remote.protected) {
                    return None;
                }
                (Scope::Read, Of::Some)
            }
            Need::WriteSome => (Scope::Write, Of::Some),
            Need::Write(remote) => (Scope::Write, Of::Remote(&remote.name)),
            Need::Configuration if config.settings.tokens.is_empty() => return None,
            Need::Configuration | Need::ManageAll => (Scope::Admin, Of::All),
            Need::Manage(remote) => (Scope::Admin, Of::Remote(remote)),
            Need::ManageSome => (Scope::Admin, Of::Some),
        };
        Some(Grant { scope, of })
    }
}

impl Grant<'_> {
    fn is_covered_by(&self, token: &Token) -> bool {
        match self.of {
            Of::Remote(remote) => token.grants(self.scope, Some(remote)),
            Of::All => token.grants(self.scope, None),
            Of::Some => token.grants_somewhere(self.scope),
        }
    }

    fn shown(&self) -> String {
        let of = match self.of {
            Of::Remote(remote) => format!(" for the remote {remote}"),
            Of::All => " for all remotes".to_owned(),
            Of::Some => String::new(),
        };
        format!("the scope `{}`{of}", self.scope.name())
    }
}

/// Whether the request may do it.
pub(crate) fn permits(session: &Session, config: &Config, need: Need<'_>) -> bool {
    check(session, config, need).is_ok()
}

/// # Errors
/// Why the request may not do it, and what to do: 401 without a token that is known, 403 with one that is not good for it.
pub(crate) fn check(session: &Session, config: &Config, need: Need<'_>) -> Result<(), Problem> {
    match need.grant(config) {
        None => Ok(()),
        Some(grant) => check_grant(&arrival(session), config, &grant),
    }
}

/// Whether a request that was not handed to Pingora may read what `remote` has.
pub(crate) fn may_read(arrival: &Arrival<'_>, config: &Config, remote: &Remote) -> bool {
    let grant = Need::Read(remote).grant(config);
    grant.is_none_or(|grant| check_grant(arrival, config, &grant).is_ok())
}

/// Of the remotes, those that the request may be told of; `None`: whatever there is, and was.
pub(crate) fn readable(session: &Session, config: &Config) -> Option<Vec<String>> {
    let all = Grant {
        scope: Scope::Read,
        of: Of::All,
    };
    if config.settings.tokens.is_empty() || check_grant(&arrival(session), config, &all).is_ok() {
        return None;
    }
    let readable = config
        .remotes
        .values()
        .filter(|remote| permits(session, config, Need::Read(remote)));
    Some(readable.map(|remote| remote.name.clone()).collect())
}

fn check_grant(arrival: &Arrival<'_>, config: &Config, grant: &Grant<'_>) -> Result<(), Problem> {
    let settings = &config.settings;
    if settings.tokens.is_empty() {
        return match settings.open_writes || is_from_here(arrival) {
            true => Ok(()),
            false => Err(only_from_here()),
        };
    }
    let Some(shown) = secret(arrival.headers) else {
        let detail = format!(
            "this needs a token with {}: send it as `Authorization: Bearer TOKEN`, or as the password of any user",
            grant.shown()
        );
        return Err(unauthorized(detail));
    };
    let token = known(config, &shown)?;
    if !grant.is_covered_by(token) {
        let detail = format!(
            "the token {:?} is not good for this, which needs {}",
            token.name,
            grant.shown()
        );
        return Err(Problem::new(403, detail));
    }
    // A browser sends a password that it once was given with whatever any website makes it ask for.
    if grant.scope != Scope::Read && shown.is_password && !is_same_site(arrival) {
        return Err(Problem::new(403, "this was asked for by another website"));
    }
    Ok(())
}

fn known<'c>(config: &'c Config, shown: &Shown) -> Result<&'c Token, Problem> {
    let Some(token) = config.settings.tokens.find(&shown.secret) else {
        return Err(unauthorized("the token that was sent is not known here".to_owned()));
    };
    if token.is_expired(now_ms() / 1000) {
        let expired = token.expires.and_then(|at| i64::try_from(at).ok()).map(rfc3339);
        let detail = format!("the token {:?} expired at {}", token.name, expired.unwrap_or_default());
        return Err(unauthorized(detail));
    }
    Ok(token)
}

/// A token as it came.
struct Shown {
    secret: Vec<u8>,
    /// The secret was the password of Basic authentication, whoever the user.
    is_password: bool,
}

/// The token that a request shows. An empty one is none: clients without a password send that.
fn secret(headers: &HeaderMap) -> Option<Shown> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let end = value.iter().position(|byte| *byte == b' ')?;
    let (scheme, rest) = (&value[..end], value[end..].trim_ascii());
    let is_password = scheme.eq_ignore_ascii_case(b"basic");
    let secret = if is_password {
        let pair = BASE64_STANDARD.decode(rest).ok()?;
        let colon = pair.iter().position(|byte| *byte == b':')?;
        pair[colon + 1..].to_vec()
    } else if scheme.eq_ignore_ascii_case(b"bearer") {
        rest.to_vec()
    } else {
        return None;
    };
    (!secret.is_empty()).then_some(Shown { secret, is_password })
}

fn unauthorized(detail: String) -> Problem {
    Problem::new(401, detail).header(header::WWW_AUTHENTICATE, CHALLENGE)
}

/// Without a token, what is not open is for programs of this machine.
fn only_from_here() -> Problem {
    unauthorized(
        "this is allowed only to programs of this machine that ask for it by a name of its own, such as \
         localhost, and not through a proxy or a website; set ARTIFACTAPI_ADMIN_TOKEN to allow it with a token"
            .to_owned(),
    )
}

/// `problem` as a registry says it.
pub(crate) fn of_registry(mut problem: Problem) -> Problem {
    for (name, value) in &mut problem.headers {
        if *name == header::WWW_AUTHENTICATE {
            REGISTRY_CHALLENGE.clone_into(value);
        }
    }
    problem
}

/// Whether a program of this machine asks, and nobody through it. A browser runs here too, and asks for any website: under
/// a foreign name that was made to lead here, or by this machine's own name from a page of another.
fn is_from_here(arrival: &Arrival<'_>) -> bool {
    let here = arrival
        .peer
        .is_some_and(|peer: IpAddr| peer.to_canonical().is_loopback());
    let passed_on = || {
        let mut names = arrival.headers.keys().map(|name| name.as_str());
        names.any(|name| name.starts_with("x-forwarded-") || PASSED_ON.contains(&name))
    };
    here && arrival.authority.is_some_and(is_own_name) && !passed_on() && is_same_site(arrival)
}

/// Whether no other website's page asks.
fn is_same_site(arrival: &Arrival<'_>) -> bool {
    let Arrival { headers, authority, .. } = arrival;
    let same_origin = headers.get_all(header::ORIGIN).iter().all(|origin| {
        let origin = origin.to_str().ok();
        let host = origin.and_then(|origin| origin.strip_prefix("http://").or(origin.strip_prefix("https://")));
        host.zip(*authority)
            .is_some_and(|(host, authority)| host.eq_ignore_ascii_case(authority))
    });
    let from_own_page = headers
        .get_all("sec-fetch-site")
        .iter()
        .all(|site| site.as_bytes().eq_ignore_ascii_case(b"same-origin"));
    same_origin && from_own_page
}

/// Whether a name cannot be another machine's.
fn is_own_name(authority: &str) -> bool {
    Host::parse(without_port(authority)).is_ok_and(|host| is_loopback(&host))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    fn allowed(host: &str, peer: &str, headers: &[(&str, &str)]) -> bool {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| {
                let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
                (name, HeaderValue::from_str(value).unwrap())
            })
            .collect();
        is_from_here(&Arrival {
            headers: &headers,
            authority: Some(host),
            peer: peer.parse().ok(),
            tls: false,
        })
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
        for (authority, peer) in [(None, "127.0.0.1".parse().ok()), (Some("localhost"), None)] {
            assert!(!is_from_here(&Arrival {
                headers: &HeaderMap::new(),
                authority,
                peer,
                tls: false,
            }));
        }
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

    #[test]
    fn a_token_is_found_where_clients_put_it() {
        let shown = |value: &str| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap())]);
            secret(&headers).map(|shown| (String::from_utf8(shown.secret).unwrap(), shown.is_password))
        };
        let basic = |pair: &str| format!("basic {}", BASE64_STANDARD.encode(pair));
        assert_eq!(shown("Bearer abc"), Some(("abc".to_owned(), false)));
        assert_eq!(shown("bearer  abc "), Some(("abc".to_owned(), false)));
        assert_eq!(shown(&basic("anybody:a:b")), Some(("a:b".to_owned(), true)));
        assert_eq!(shown(&basic(":abc")), Some(("abc".to_owned(), true)));
        for none in [
            "Bearer",
            "Bearer ",
            "abc",
            "Digest abc",
            "Basic !",
            &basic(":"),
            &basic("abc"),
        ] {
            assert_eq!(shown(none), None, "{none}");
        }
    }
}
