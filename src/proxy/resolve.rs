//! What a request for an artifact means: canonical path, policy, form, key. The same for every request of one target under
//! one configuration, so it is remembered for the hot path.

use std::sync::Arc;

use http::{Method, header};
use quick_cache::sync::Cache;

use crate::cache::Key;
use crate::config::{Config, Package, Remote, RemoteType};
use crate::fill::set::Set;
use crate::formats::{self, ArtifactPath, Form, Format, Handling, View, links, path};
use crate::policy::{self, Policy};
use crate::session::reply::Problem;

/// Targets whose meaning is remembered.
const REMEMBERED: usize = 16_384;
/// Longer ones are resolved anew each time.
const MAX_KEY: usize = 1024;

/// A target below a remote, as received.
#[derive(Debug, Clone)]
pub struct Target {
    pub raw: Vec<u8>,
    pub query: Option<String>,
    /// By the name of a host that is bound to the remote.
    pub bound_host: bool,
    /// By the registry API.
    pub registry: bool,
}

/// A request, understood.
pub struct Resolved {
    pub remote: Arc<Remote>,
    pub format: &'static dyn Format,
    pub path: ArtifactPath,
    pub policy: Policy,
    pub form: Form,
    pub key: Key,
    pub view: Option<View>,
    /// See [`Format::presented_as`].
    pub presented_as: Option<&'static str>,
    /// The manifest that this file of a fixed name goes with, and its key.
    pub manifest: Option<(Key, Set)>,
    pub bound_host: bool,
}

/// What is to be done.
pub enum Resolution {
    Artifact(Resolved),
    PassThrough(&'static dyn Format, ArtifactPath),
    /// A relative reference.
    Redirect(String),
    Refused(Option<&'static dyn Format>, Problem),
}

/// Reads a request for `target` below `remote`.
pub fn resolve(remote: &Arc<Remote>, method: &Method, target: Target, accept: Option<&str>) -> Resolution {
    let shown = String::from_utf8_lossy(&target.raw).into_owned();
    // A local remote holds plain files, whatever package they belong to.
    let package = if remote.kind == RemoteType::Local {
        Package::Generic
    } else {
        remote.package
    };
    let format = formats::of(package);
    if !target.registry && package == Package::Docker {
        let detail = if target.bound_host {
            "this is a Docker registry: it is served under /v2/…".to_owned()
        } else {
            format!(
                "remote {name} is a Docker registry: ask for /v2/{name}/{below}",
                name = remote.name,
                below = shown.strip_prefix("v2/").unwrap_or(&shown),
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
    let path = match format.handle(remote, method, path.clone()) {
        Handling::Artifact(path) => path,
        Handling::PassThrough => return Resolution::PassThrough(format, path),
        Handling::Redirect(location) => return Resolution::Redirect(location),
        Handling::Refused { status, detail } => {
            return Resolution::Refused(
                Some(format),
                Problem::new(status, detail).at(&remote.name, &path.encoded),
            );
        }
    };
    let refused = |status, detail: &str| {
        let problem = Problem::new(status, detail).at(&remote.name, &path.encoded);
        Resolution::Refused(Some(format), problem)
    };
    if !matches!(*method, Method::GET | Method::HEAD) {
        let detail = match (remote.kind, method) {
            (RemoteType::Local, &Method::PUT | &Method::DELETE) => {
                "uploads to local remotes are not part of this version".to_owned()
            }
            _ => format!("{method} is not allowed on a remote of type `remote`: it serves GET and HEAD"),
        };
        let problem = Problem::new(405, detail)
            .at(&remote.name, &path.encoded)
            .header(header::ALLOW, "GET, HEAD");
        return Resolution::Refused(Some(format), problem);
    }
    // Patterns see the path on the other host, not our spelling of where it is.
    let governed = links::split_foreign(&path.decoded).map_or(path.decoded.as_str(), |(_, path)| path);
    let Some(policy) = policy::classify(remote, format, governed) else {
        return refused(
            403,
            "no pattern of this remote allows the path; add one to `immutable_patterns` or `mutable_patterns`",
        );
    };
    if remote.kind == RemoteType::Local {
        return refused(404, "no such file in this local remote");
    }
    let Some(form) = format.negotiate(&path.decoded, accept) else {
        let problem = Problem::new(406, "none of the forms that `Accept` names can be served")
            .at(&remote.name, &path.encoded)
            .header(header::VARY, "Accept");
        return Resolution::Refused(Some(format), problem);
    };
    let view = format.has_view(remote, &path.decoded);
    let raw = &target.raw;
    if view.is_some() && (raw.starts_with(b"/") || raw.windows(2).any(|two| two == b"//")) {
        // Relative links count the slashes of the path that was asked for.
        let up = "../".repeat(raw.iter().filter(|byte| **byte == b'/').count());
        let query = path.query.as_deref().map_or(String::new(), |query| format!("?{query}"));
        return Resolution::Redirect(format!("{up}{}{query}", path.encoded));
    }
    let manifest = format
        .manifest_of(&path.decoded)
        .filter(|_| path.query.is_none())
        .and_then(|manifest| {
            let encoded = path::of_decoded(&manifest).ok()?.encoded;
            Some((
                Key::new(&remote.name, &encoded, None, ""),
                Set { format, path: manifest },
            ))
        });
    let key = match format.stored_as(&path.decoded) {
        Some(shared) => Key::new(&remote.name, &shared, None, ""),
        None => Key::new(&remote.name, &path.encoded, path.query.as_deref(), form.name),
    };
    Resolution::Artifact(Resolved {
        key,
        presented_as: format.presented_as(&path.decoded, accept),
        remote: Arc::clone(remote),
        format,
        path,
        policy,
        form,
        view,
        manifest,
        bound_host: target.bound_host,
    })
}

/// Everything that [`resolve`] goes by, in one comparable piece.
pub type HotKey = Box<[u8]>;

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
