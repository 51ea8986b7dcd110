//! What a request for an artifact means: canonical path, policy, form, key. The same for every request of one target under
//! one configuration, so it is remembered for the hot path.

use std::ops::Deref;
use std::sync::Arc;

use http::{Method, header};
use quick_cache::sync::Cache;

use crate::cache::Key;
use crate::config::{Config, Remote};
use crate::formats::{self, Asked, Asset, Binding, Format, Reading, path};
use crate::policy::packages::{self, Hidden};
use crate::policy::{self, Policy};
use crate::session::reply::Problem;

/// Targets whose meaning is remembered.
const REMEMBERED: usize = 16_384;
/// Longer ones are resolved anew each time.
const MAX_KEY: usize = 1024;

/// A target below a remote, as received.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub raw: Vec<u8>,
    pub query: Option<String>,
    /// By the name of a host that is bound to the remote.
    pub bound_host: bool,
    /// Below the root of its package type.
    pub below_root: bool,
}

/// A request, understood.
pub struct Resolved {
    pub asset: Arc<Asset>,
    /// Says errors.
    pub format: &'static dyn Format,
    pub policy: Policy,
    pub key: Key,
    /// The manifest that this file of a fixed name goes with.
    pub manifest: Option<Box<Asset>>,
    pub bound_host: bool,
}

impl Deref for Resolved {
    type Target = Asset;

    fn deref(&self) -> &Asset {
        &self.asset
    }
}

/// What is to be done.
pub(super) enum Resolution {
    Artifact(Resolved),
    PassThrough(&'static dyn Format, Box<Asset>),
    /// A relative reference.
    Redirect(String),
    Refused(Option<&'static dyn Format>, Problem),
}

/// Reads a request for `target` below `remote`.
pub(super) fn resolve(remote: &Arc<Remote>, method: &Method, target: Target, accept: Option<&str>) -> Resolution {
    let shown = String::from_utf8_lossy(&target.raw).into_owned();
    let format = formats::of_remote(remote);
    if let Some(root) = format.root().filter(|_| !target.below_root) {
        let (package, root) = (remote.package.name, root.path());
        let detail = if target.bound_host {
            format!("this is a remote of package {package}: it is served under {root}…")
        } else {
            format!(
                "remote {name} is of package {package}: ask for {root}{name}/{below}",
                name = remote.name,
                below = shown.strip_prefix(&root[1..]).unwrap_or(&shown),
            )
        };
        return Resolution::Refused(None, Problem::new(404, detail).at(&remote.name, &shown));
    }
    let path = match path::parse(&target.raw, target.query.as_deref()) {
        Ok(path) => path,
        Err(error) => {
            return Resolution::Refused(
                Some(format),
                Problem::new(400, error.to_string()).at(&remote.name, &shown),
            );
        }
    };
    let encoded = path.encoded.clone();
    let refused = |status, detail: &str| {
        let problem = Problem::new(status, detail).at(&remote.name, &encoded);
        Resolution::Refused(Some(format), problem)
    };
    let reading = format.read(Asked {
        remote,
        method,
        path,
        accept,
    });
    let asset = match reading {
        Reading::Artifact(asset) => asset,
        Reading::PassThrough(asset) => {
            return match packages::hidden_service(&asset) {
                Some(Hidden { status, detail }) => refused(status, &detail),
                None => Resolution::PassThrough(format, asset),
            };
        }
        Reading::Redirect(location) => return Resolution::Redirect(location),
        Reading::Refused { status, detail } => return refused(status, &detail),
        Reading::NotAcceptable => {
            let problem = Problem::new(406, "none of the forms that `Accept` names can be served")
                .at(&remote.name, &encoded)
                .header(header::VARY, "Accept");
            return Resolution::Refused(Some(format), problem);
        }
    };
    let path = &asset.path;
    let refused = |status, detail: &str| {
        let problem = Problem::new(status, detail).at(&remote.name, &path.encoded);
        Resolution::Refused(Some(format), problem)
    };
    if !matches!(*method, Method::GET | Method::HEAD) {
        let detail = format!("{method} is not allowed on a remote of type `remote`: it serves GET and HEAD");
        let problem = Problem::new(405, detail)
            .at(&remote.name, &path.encoded)
            .header(header::ALLOW, "GET, HEAD");
        return Resolution::Refused(Some(format), problem);
    }
    if let Some(Hidden { status, detail }) = packages::hidden(&asset) {
        return refused(status, &detail);
    }
    let Some(policy) = policy::classify(&asset) else {
        return refused(
            403,
            "no pattern of this remote allows the path; add one to `immutable_patterns` or `mutable_patterns`",
        );
    };
    let raw = &target.raw;
    if asset.view.is_some() && (raw.starts_with(b"/") || raw.windows(2).any(|two| two == b"//")) {
        // Relative links count the slashes of the path that was asked for.
        let up = "../".repeat(raw.iter().filter(|byte| **byte == b'/').count());
        let query = path.query.as_deref().map_or(String::new(), |query| format!("?{query}"));
        return Resolution::Redirect(format!("{up}{}{query}", path.encoded));
    }
    let manifest = match &asset.binding {
        Binding::Member(manifests) if path.query.is_none() => manifests.first().and_then(|manifest| {
            let path = path::of_decoded(manifest).ok()?;
            formats::asset(remote, path, None).map(Box::new)
        }),
        _ => None,
    };
    Resolution::Artifact(Resolved {
        key: asset.key(),
        format,
        policy,
        manifest,
        bound_host: target.bound_host,
        asset: Arc::from(asset),
    })
}

/// Everything that [`resolve`] goes by, in one comparable piece.
pub(super) type HotKey = Box<[u8]>;

/// What was resolved lately.
pub struct Hot {
    cache: Cache<HotKey, Arc<Resolved>>,
}

impl Default for Hot {
    fn default() -> Self {
        Hot {
            cache: Cache::new(REMEMBERED),
        }
    }
}

impl Hot {
    /// The key of a GET or HEAD; `None` where it would be too long.
    pub fn key(config: &Config, host: &str, target: &[u8], accept: Option<&str>) -> Option<HotKey> {
        let accept = accept.unwrap_or("");
        let length = 8 + host.len() + accept.len() + target.len() + 2;
        if length > MAX_KEY {
            return None;
        }
        let mut key = Vec::with_capacity(length);
        key.extend_from_slice(&config.generation.to_le_bytes());
        // Neither a host nor a header value has a line feed.
        key.extend_from_slice(host.as_bytes());
        key.push(b'\n');
        key.extend_from_slice(accept.as_bytes());
        key.push(b'\n');
        key.extend_from_slice(target);
        Some(key.into_boxed_slice())
    }

    pub fn get(&self, key: &HotKey) -> Option<Arc<Resolved>> {
        self.cache.get(key)
    }

    pub fn insert(&self, key: HotKey, resolved: Arc<Resolved>) {
        self.cache.insert(key, resolved);
    }
}
