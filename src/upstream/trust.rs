//! Who may be sent which credentials.

use url::{Host, Url};

use crate::config::{CredentialsWithin, FileHost, Remote, is_loopback};
use crate::formats::links;

/// Whether two URLs have one origin (RFC 6454): scheme, host and port.
pub(super) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme() && a.host() == b.host() && a.port_or_known_default() == b.port_or_known_default()
}

/// Whether the credentials and headers of `remote` may go to `url`: by its host, or by its path as well.
pub(super) fn within_credentials(remote: &Remote, url: &Url) -> bool {
    let Some(base) = remote.base_url.as_ref().filter(|base| same_origin(base, url)) else {
        return false;
    };
    match remote.credentials_within {
        CredentialsWithin::Host => true,
        // What may climb out again, to whom an encoded slash is one, is not within.
        CredentialsWithin::BaseUrl => {
            url.path().starts_with(base.path()) && !links::is_refused(&links::normal(url.path(), links::PATH))
        }
    }
}

/// Whether `hosts` lists the host of `url`: with its scheme, and its port.
pub fn listed(hosts: &[FileHost], url: &Url) -> bool {
    hosts.iter().any(|entry| {
        entry.scheme == url.scheme()
            && url
                .host_str()
                .is_some_and(|host| host.eq_ignore_ascii_case(&entry.host))
            && entry
                .port
                .or(if entry.scheme == "https" { Some(443) } else { Some(80) })
                == url.port_or_known_default()
    })
}

/// Whether a token service may see the remote's credentials: one where the registry may see them, one that shares the
/// registry's registrable domain (by the public suffix list; not with `credentials_within: base_url`), or one that
/// `token_realms` lists; and but for the first over https or on this machine only.
pub(super) fn may_see_credentials(remote: &Remote, realm: &Url) -> bool {
    let Some(base) = &remote.base_url else { return false };
    if within_credentials(remote, realm) {
        return true;
    }
    let safe = realm.scheme() == "https" || realm.host().is_some_and(|host| is_loopback(&host));
    let related = remote.credentials_within == CredentialsWithin::Host && same_domain(base, realm);
    safe && (related || listed(remote.own.token_realms(), realm))
}

fn same_domain(a: &Url, b: &Url) -> bool {
    if a.host() == b.host() {
        return true;
    }
    match (a.host(), b.host()) {
        (Some(Host::Domain(a)), Some(Host::Domain(b))) => {
            let (a, b) = (a.to_ascii_lowercase(), b.to_ascii_lowercase());
            let domain = |name: &str| psl::domain_str(name.trim_end_matches('.')).map(str::to_owned);
            matches!((domain(&a), domain(&b)), (Some(a), Some(b)) if a == b)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OwnValue;
    use crate::formats::testing::remote;

    #[test]
    fn credentials_stay_below_the_base_url_where_that_is_asked_for() {
        let mut remote = remote("generic", "https://files.example/team/a/");
        for (url, host, base_url) in [
            ("https://files.example/team/a/", true, true),
            ("https://files.example/team/a/b/c?d=../e", true, true),
            ("https://files.example/team/a/b/../c", true, true),
            ("https://files.example/team/a/100%25", true, true),
            ("https://files.example/team/a", true, false),
            ("https://files.example/team/ab", true, false),
            ("https://files.example/team/a/../b", true, false),
            ("https://files.example/team/a/%2E%2e/b", true, false),
            ("https://files.example/team/a/x%2f..%2F..%2fb", true, false),
            ("https://files.example/team/a/..%5cb", true, false),
            ("https://files.example/Team/a/b", true, false),
            ("https://files.example:8443/team/a/b", false, false),
            ("http://files.example/team/a/b", false, false),
            ("https://other.example/team/a/b", false, false),
        ] {
            let url = Url::parse(url).unwrap();
            for (within, expected) in [(CredentialsWithin::Host, host), (CredentialsWithin::BaseUrl, base_url)] {
                remote.credentials_within = within;
                assert_eq!(within_credentials(&remote, &url), expected, "{url} {within:?}");
            }
        }
    }

    /// A remote, where a token service of it is, and whether that may see the remote's credentials: with
    /// `credentials_within: host`, and with `base_url`.
    #[test]
    fn credentials_go_where_the_registry_is() {
        let listed = ["tokens.example.org"];
        for (base, realm, token_realms, host, base_url) in [
            // The registry itself.
            (
                "https://registry.example.com/",
                "https://registry.example.com/t",
                &[][..],
                true,
                true,
            ),
            (
                "http://registry.example.com/",
                "http://registry.example.com/t",
                &[],
                true,
                true,
            ),
            (
                "https://registry.example.com/team/",
                "https://registry.example.com/team/t",
                &[],
                true,
                true,
            ),
            (
                "https://registry.example.com/team/",
                "https://registry.example.com/t",
                &[],
                true,
                false,
            ),
            // Its domain, over https.
            (
                "https://registry.example.com/",
                "https://auth.example.com/token",
                &[],
                true,
                false,
            ),
            (
                "https://a.example.co.uk/",
                "https://b.example.co.uk/token",
                &[],
                true,
                false,
            ),
            (
                "https://registry.example.com/",
                "https://registry.example.com:8443/t",
                &[],
                true,
                false,
            ),
            (
                "https://registry.example.com/",
                "http://auth.example.com/token",
                &[],
                false,
                false,
            ),
            (
                "https://registry.example.com/",
                "http://registry.example.com/token",
                &[],
                false,
                false,
            ),
            // This machine.
            ("http://127.0.0.1:5000/", "http://127.0.0.1:5001/t", &[], true, false),
            ("http://localhost:5000/", "http://localhost:5001/t", &[], true, false),
            ("http://127.0.0.1:5000/", "http://localhost:5001/t", &[], false, false),
            // Another domain.
            (
                "https://registry.example.com/",
                "https://auth.example.org/token",
                &[],
                false,
                false,
            ),
            ("https://a.co.uk/", "https://b.co.uk/token", &[], false, false),
            (
                "https://a.herokuapp.com/",
                "https://b.herokuapp.com/token",
                &[],
                false,
                false,
            ),
            (
                "https://example.com/",
                "https://example.com.evil.org/token",
                &[],
                false,
                false,
            ),
            ("https://registry/", "https://auth/token", &[], false, false),
            ("https://10.0.0.1/", "https://10.0.0.2/t", &[], false, false),
            // A host that `token_realms` lists, over https.
            (
                "https://registry.example.com/",
                "https://tokens.example.org/t",
                &listed,
                true,
                true,
            ),
            (
                "https://registry.example.com/",
                "https://tokens.example.org:8443/t",
                &listed,
                false,
                false,
            ),
            (
                "https://registry.example.com/",
                "http://tokens.example.org/t",
                &listed,
                false,
                false,
            ),
        ] {
            let mut remote = remote("docker", base);
            let hosts = token_realms.iter().map(|host| FileHost {
                scheme: "https",
                host: (*host).to_owned(),
                port: None,
            });
            let key = remote.package.keys[0];
            remote.own.set(key, OwnValue::TokenRealms(hosts.collect()));
            let realm = Url::parse(realm).unwrap();
            for (within, expected) in [(CredentialsWithin::Host, host), (CredentialsWithin::BaseUrl, base_url)] {
                remote.credentials_within = within;
                assert_eq!(
                    may_see_credentials(&remote, &realm),
                    expected,
                    "{base} {realm} {within:?}"
                );
            }
        }
    }
}
