//! Which remote a request below `/v2/` is for. A name begins with its remote's. A container host that takes this proxy for a
//! mirror leaves that out: then `?ns=` says which registry it means, or the configuration does (`docker.default_remote`).

use std::sync::Arc;

use percent_encoding::percent_decode_str;

use super::{PACKAGE, is_hub};
use crate::config::{Config, Remote};
use crate::formats::{ArtifactPath, links};

/// Whether `remote` is the registry that clients call `namespace`: a host, with a port where it is not the usual one.
pub(super) fn is_called(remote: &Remote, namespace: &str) -> bool {
    let Some(base) = &remote.base_url else { return false };
    let host = base.host_str().unwrap_or_default();
    let own = match base.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    own.eq_ignore_ascii_case(namespace)
        || (is_hub(&own) && is_hub(namespace))
        || remote.hosts.iter().any(|host| host.eq_ignore_ascii_case(namespace))
}

/// The remote that a path below `/v2/` is for, and the path below that remote.
///
/// # Errors
/// There is none; what is to be done.
pub(super) fn choose(
    config: &Config,
    bound: Option<&Arc<Remote>>,
    path: &ArtifactPath,
    namespace: Option<&str>,
) -> Result<(Arc<Remote>, ArtifactPath), String> {
    if let Some(remote) = bound {
        return Ok((Arc::clone(remote), path.clone()));
    }
    let (first, rest) = path.encoded.split_once('/').unwrap_or((&path.encoded, ""));
    // containerd, told of `http://this/v2/{remote}` without `override_path`, adds what it thinks is missing.
    let rest = rest.strip_prefix("v2/").filter(|_| namespace.is_some()).unwrap_or(rest);
    let named = config.remotes.get(first);
    let below = || ArtifactPath {
        encoded: rest.to_owned(),
        decoded: links::decode_once(rest),
        query: path.query.clone(),
    };
    let mut registries = config.remotes.values().filter(|remote| *remote.package == PACKAGE);
    let called = namespace.and_then(|namespace| registries.find(|remote| is_called(remote, namespace)));
    // An organisation of that registry may be called as one of our remotes is.
    let named = named.filter(|named| called.is_none_or(|called| Arc::ptr_eq(called, named)));
    let registry = named.filter(|remote| *remote.package == PACKAGE);
    // `manifests/{tag}` alone has no repository left: the first part was one, then.
    let has_name = rest.split('/').count() > 2;
    if let Some(remote) = registry.filter(|_| has_name) {
        return Ok((Arc::clone(remote), below()));
    }
    let unknown = Err;
    if let Some(namespace) = namespace {
        return match called {
            Some(remote) => Ok((Arc::clone(remote), path.clone())),
            None => unknown(format!(
                "no remote's `base_url` is at the registry {namespace:?}, which `?ns=` names; `GET /` lists the remotes"
            )),
        };
    }
    let default = config.settings.default_remotes.get(PACKAGE.name);
    if let Some(remote) = default.and_then(|name| config.remotes.get(name)) {
        return Ok((Arc::clone(remote), path.clone()));
    }
    match (registry, named) {
        (Some(remote), _) => Ok((Arc::clone(remote), below())),
        (None, Some(_)) => unknown(format!(
            "remote {first} is no Docker registry: ask for /api/v1/remote/{first}/{rest}"
        )),
        (None, None) => unknown(format!(
            "there is no remote {first:?}; `GET /` lists those there are, `docker.default_remote` serves names without one"
        )),
    }
}

/// Takes `ns=` out of a query, which containerd adds for mirrors: it is neither part of a key nor upstream's business.
pub(super) fn without_namespace(query: Option<&str>) -> (Option<String>, Option<String>) {
    let Some(query) = query else { return (None, None) };
    let mut namespace = None;
    let mut rest = Vec::new();
    for pair in query.split('&') {
        match pair.strip_prefix("ns=") {
            Some(value) => {
                let value = percent_decode_str(value).decode_utf8_lossy().into_owned();
                namespace = namespace.or(Some(value).filter(|value| !value.is_empty()));
            }
            None => rest.push(pair),
        }
    }
    let rest = rest.join("&");
    (Some(rest).filter(|rest| !rest.is_empty()), namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_is_taken_out_of_the_query() {
        let split = |query: &str| {
            let (rest, namespace) = without_namespace(Some(query));
            (rest.unwrap_or_default(), namespace.unwrap_or_default())
        };
        let is = |query: &str, rest: &str, namespace: &str| {
            assert_eq!(split(query), (rest.to_owned(), namespace.to_owned()), "{query}");
        };
        is("ns=registry.example", "", "registry.example");
        is(
            "n=5&ns=registry.example%3A5000&last=a",
            "n=5&last=a",
            "registry.example:5000",
        );
        is("ns=", "", "");
        is("dns=a&n=1", "dns=a&n=1", "");
        is("ns=a&ns=b", "", "a");
        assert_eq!(without_namespace(None), (None, None));
    }
}
