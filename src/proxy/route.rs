//! A request line to what it means: the only place that reads a request's URL.

use std::sync::Arc;

use super::root::BelowRoot;
use crate::api::{Endpoint, quarantine};
use crate::config::{Config, Remote};
use crate::formats;

const REMOTE_PREFIX: &str = "/api/v1/remote/";

/// What a path is about.
pub(super) enum Route {
    /// An artifact: the raw path below the remote, as received.
    Artifact {
        remote: Arc<Remote>,
        raw: Vec<u8>,
        query: Option<String>,
        bound_host: bool,
    },
    /// Below the root of a package type.
    Root(BelowRoot),
    UnknownRemote {
        name: String,
        path: String,
    },
    Endpoint(Endpoint),
    NotFound,
}

/// Reads a request target in origin form (the authority already taken off) for `host`.
pub(super) fn route(config: &Config, host: &str, target: &[u8]) -> Route {
    let (path, query) = match target.iter().position(|byte| *byte == b'?') {
        Some(at) => (
            &target[..at],
            Some(String::from_utf8_lossy(&target[at + 1..]).into_owned()),
        ),
        None => (target, None),
    };
    let bound = config.hosts.get(host);
    for root in formats::roots() {
        let raw = path.strip_prefix(root.path().trim_end_matches('/').as_bytes());
        let raw = raw.filter(|rest| matches!(rest, [] | [b'/', ..]));
        // On the host of another package this is a path like any other.
        let is_meant = bound.is_none_or(|remote| {
            let own = formats::of_remote(remote).root();
            own.is_some_and(|own| own.path() == root.path())
        });
        if let Some(raw) = raw.filter(|_| is_meant) {
            return Route::Root(BelowRoot {
                root,
                raw: raw.strip_prefix(b"/").unwrap_or(raw).to_vec(),
                query,
                bound: bound.map(Arc::clone),
            });
        }
    }
    if let Some(remote) = bound {
        return Route::Artifact {
            remote: Arc::clone(remote),
            raw: path.strip_prefix(b"/").unwrap_or(path).to_vec(),
            query,
            bound_host: true,
        };
    }
    if let Some((name, rest)) = below(path, REMOTE_PREFIX) {
        let name = String::from_utf8_lossy(name).into_owned();
        return match config.remotes.get(&name) {
            Some(remote) => Route::Artifact {
                remote: Arc::clone(remote),
                raw: rest.to_vec(),
                query,
                bound_host: false,
            },
            None => Route::UnknownRemote {
                name,
                path: String::from_utf8_lossy(rest).into_owned(),
            },
        };
    }
    if let Some((remote, raw)) = below(path, "/api/v1/artifacts/") {
        let remote = String::from_utf8_lossy(remote).into_owned();
        return Route::Endpoint(Endpoint::Artifact {
            remote,
            raw: raw.to_vec(),
            query,
        });
    }
    if let Some(endpoint) = quarantine::Endpoint::of(path, query.as_deref()) {
        return Route::Endpoint(Endpoint::Quarantine(endpoint));
    }
    match path {
        b"/" => Route::Endpoint(Endpoint::Root),
        b"/health" => Route::Endpoint(Endpoint::Health),
        b"/health/live" => Route::Endpoint(Endpoint::Live),
        b"/health/ready" => Route::Endpoint(Endpoint::Ready),
        b"/config" => Route::Endpoint(Endpoint::Config),
        b"/metrics" => Route::Endpoint(Endpoint::Metrics),
        b"/cache/flush" => Route::Endpoint(Endpoint::Flush),
        b"/api/v1/artifacts" | b"/api/v1/artifacts/" => Route::Endpoint(Endpoint::Artifacts { query }),
        _ => Route::NotFound,
    }
}

/// The first segment after `prefix`, and what follows it.
fn below<'a>(path: &'a [u8], prefix: &str) -> Option<(&'a [u8], &'a [u8])> {
    let rest = path.strip_prefix(prefix.as_bytes())?;
    let at = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
    let (name, rest) = rest.split_at(at);
    (!name.is_empty()).then(|| (name, rest.strip_prefix(b"/").unwrap_or(rest)))
}
