//! A scripted OCI registry with a token service and a storage host for its blobs.
//!
//! Each is an [`Upstream`] of its own (another port), which counts what it is asked. Whatever a test wants to be
//! different is said by [`Registry::change`], for one path.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::image::{Blob, Manifest, OCI_INDEX};
use super::upstream::{Body, File, Reply, Seen, Upstream};

type Change = Arc<dyn Fn(&Seen, Reply) -> Reply + Send + Sync>;

#[derive(Clone, Default)]
enum Guard {
    #[default]
    Open,
    /// The `Authorization` that is wanted.
    Basic(String),
    /// What stands in the challenge after `Bearer `, with `{scope}` for the scope; and who knows the tokens.
    Bearer(String, Arc<Mutex<Grants>>),
}

#[derive(Default)]
struct State {
    /// By repository, then digest.
    manifests: BTreeMap<String, BTreeMap<String, Manifest>>,
    /// By repository, then tag.
    tags: BTreeMap<String, BTreeMap<String, String>>,
    /// By repository, then digest.
    blobs: BTreeMap<String, BTreeMap<String, Body>>,
    changes: BTreeMap<String, Change>,
    guard: Guard,
    /// The base URL of the storage host that blobs are redirected to.
    storage: Option<String>,
    signatures: usize,
    referrers: bool,
    page: Option<usize>,
    absolute_links: bool,
    extra: Vec<(String, String)>,
}

/// The registry. Dropping it closes everything.
pub struct Registry {
    pub up: Upstream,
    state: Arc<Mutex<State>>,
    storage: Option<Upstream>,
}

impl Registry {
    /// One that everybody may read, with referrers.
    pub async fn start() -> Self {
        Self::on(Upstream::start().await)
    }

    /// A registry on a listener of the test's choice.
    pub fn on(up: Upstream) -> Self {
        let state = Arc::new(Mutex::new(State {
            referrers: true,
            ..State::default()
        }));
        let (answering, base) = (state.clone(), up.base());
        up.fallback(move |seen| answer(&answering, &base, seen));
        Self {
            up,
            state,
            storage: None,
        }
    }

    /// With an image at a tag.
    pub async fn with(repository: &str, tag: &str, manifest: &Manifest) -> Self {
        let registry = Self::start().await;
        registry.push(repository, tag, manifest);
        registry
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Stores a manifest with all that it names, and puts the tag on it.
    pub fn push(&self, repository: &str, tag: &str, manifest: &Manifest) -> &Self {
        self.store(repository, manifest);
        self.tag(repository, tag, &manifest.digest)
    }

    /// Stores a manifest with all that it names, under its digest only.
    pub fn store(&self, repository: &str, manifest: &Manifest) -> &Self {
        for manifest in manifest.all() {
            for blob in &manifest.blobs {
                self.blob(repository, blob);
            }
            let mut state = self.state();
            let known = state.manifests.entry(repository.to_owned()).or_default();
            known.insert(manifest.digest.clone(), manifest.clone());
        }
        self
    }

    pub fn tag(&self, repository: &str, tag: &str, digest: &str) -> &Self {
        let mut state = self.state();
        let tags = state.tags.entry(repository.to_owned()).or_default();
        tags.insert(tag.to_owned(), digest.to_owned());
        drop(state);
        self
    }

    pub fn untag(&self, repository: &str, tag: &str) -> &Self {
        if let Some(tags) = self.state().tags.get_mut(repository) {
            tags.remove(tag);
        }
        self
    }

    pub fn blob(&self, repository: &str, blob: &Blob) -> &Self {
        let mut state = self.state();
        let blobs = state.blobs.entry(repository.to_owned()).or_default();
        blobs.insert(blob.digest.clone(), blob.body.clone());
        drop(state);
        self
    }

    /// Answers what is asked at `path` (query aside) by changing the answer that it would have given.
    pub fn change(&self, path: &str, change: impl Fn(&Seen, Reply) -> Reply + Send + Sync + 'static) -> &Self {
        self.state().changes.insert(path.to_owned(), Arc::new(change));
        self
    }

    /// Answers what is asked at `path` with this.
    pub fn instead(&self, path: &str, reply: Reply) -> &Self {
        self.change(path, move |_, _| reply.clone())
    }

    /// Takes back `change` and `instead`.
    pub fn normal(&self, path: &str) -> &Self {
        self.state().changes.remove(path);
        self
    }

    /// No referrers API: 404, as most registries answered before it.
    pub fn without_referrers(self) -> Self {
        self.state().referrers = false;
        self
    }

    /// At most this many tags in one answer.
    pub fn paged(self, tags: usize) -> Self {
        self.state().page = Some(tags);
        self
    }

    /// Links to further pages have a scheme and a host.
    pub fn absolute_links(self) -> Self {
        self.state().absolute_links = true;
        self
    }

    /// Every answer to a request for a manifest has this header.
    pub fn header(&self, name: &str, value: &str) -> &Self {
        let mut state = self.state();
        state.extra.retain(|(known, _)| known != name);
        state.extra.push((name.to_owned(), value.to_owned()));
        drop(state);
        self
    }

    /// Wants Basic credentials at the registry itself.
    pub fn basic(self, user: &str, password: &str) -> Self {
        self.state().guard = Guard::Basic(basic(user, password));
        self
    }

    /// Wants a token of this service, which the challenge names as such services usually do.
    pub fn guarded(self, tokens: &Tokens) -> Self {
        let realm = tokens.realm();
        self.challenging(
            tokens,
            &format!("realm=\"{realm}\",service=\"registry.test\",scope=\"{{scope}}\""),
        )
    }

    /// Wants a token; the challenge is `Bearer ` and this, where `{scope}` stands for the scope.
    pub fn challenging(self, tokens: &Tokens, challenge: &str) -> Self {
        self.state().guard = Guard::Bearer(challenge.to_owned(), tokens.grants.clone());
        self
    }

    /// Blobs are redirected to a storage host, which refuses whoever brings an `Authorization`, and whoever comes
    /// with another method than the one that was signed.
    pub async fn redirecting(self) -> Self {
        self.redirecting_to(Upstream::start().await)
    }

    pub fn redirecting_to(mut self, storage: Upstream) -> Self {
        self.state().storage = Some(storage.base());
        let state = self.state.clone();
        storage.fallback(move |seen| stored(&state, seen));
        self.storage = Some(storage);
        self
    }

    #[track_caller]
    pub fn storage(&self) -> &Upstream {
        self.storage.as_ref().expect("a registry that redirects")
    }

    /// How often the storage host was asked for a blob with this method (`*`: any), whatever the signature.
    pub fn stored(&self, method: &str, digest: &str) -> usize {
        let path = storage_path(digest);
        let log = self.storage().log();
        log.iter()
            .filter(|seen| (method == "*" || seen.method == method) && seen.path.starts_with(&path))
            .count()
    }

    /// Requests with this method (`*`: any) for a path, whatever the query.
    pub fn count(&self, method: &str, path: &str) -> usize {
        self.requests(method, path).len()
    }

    pub fn requests(&self, method: &str, path: &str) -> Vec<Seen> {
        let mut log = self.up.log();
        log.retain(|seen| (method == "*" || seen.method == method) && bare(seen) == path);
        log
    }

    /// Those of them that brought an `Authorization`: what is left when challenges do not count.
    pub fn authorized(&self, method: &str, path: &str) -> usize {
        let log = self.requests(method, path);
        log.iter().filter(|seen| seen.header("authorization").is_some()).count()
    }

    pub async fn switch_off(&self) {
        self.up.switch_off().await;
        if let Some(storage) = &self.storage {
            storage.switch_off().await;
        }
    }

    pub async fn switch_on(&self) {
        self.up.switch_on().await;
        if let Some(storage) = &self.storage {
            storage.switch_on().await;
        }
    }

    /// `NAME:` with this registry as a remote, and further keys, one a line.
    pub fn remote(&self, name: &str, keys: &str) -> String {
        let mut yaml = format!("{name}:\n  base_url: {}\n  package: docker\n", self.up.base());
        for key in keys.lines().filter(|line| !line.trim().is_empty()) {
            yaml.push_str(&format!("  {key}\n"));
        }
        yaml
    }
}

/// `/v2/{repository}/manifests/{reference}`
pub fn manifest_at(repository: &str, reference: &str) -> String {
    format!("/v2/{repository}/manifests/{reference}")
}

/// `/v2/{repository}/blobs/{digest}`
pub fn blob_at(repository: &str, digest: &str) -> String {
    format!("/v2/{repository}/blobs/{digest}")
}

/// Where the storage host keeps a blob.
pub fn storage_path(digest: &str) -> String {
    format!("/bucket/{}", digest.replace(':', "/"))
}

/// The value of a Basic `Authorization`.
pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// An error as registries write it.
pub fn error(status: u16, code: &str) -> Reply {
    let body = json!({"errors": [{"code": code, "message": code.to_lowercase(), "detail": null}]});
    Reply::new(status, body.to_string()).content_type("application/json")
}

fn bare(seen: &Seen) -> &str {
    seen.path.split('?').next().unwrap_or_default()
}

/// The parameters of a request's query.
pub fn query(seen: &Seen) -> Vec<(String, String)> {
    let text = seen.path.split_once('?').map(|(_, query)| query).unwrap_or_default();
    url::form_urlencoded::parse(text.as_bytes()).into_owned().collect()
}

fn parameter(seen: &Seen, name: &str) -> Option<String> {
    query(seen).into_iter().find(|(key, _)| key == name).map(|(_, v)| v)
}

fn answer(state: &Mutex<State>, base: &str, seen: &Seen) -> Reply {
    let mut state = state.lock().unwrap();
    let reply = refusal(&state, seen).unwrap_or_else(|| content(&mut state, base, seen));
    let reply = match state.changes.get(bare(seen)) {
        Some(change) => change(seen, reply),
        None => reply,
    };
    reply.header("Docker-Distribution-API-Version", "registry/2.0")
}

/// The repository that a path is about.
fn repository(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/v2/")?;
    // A name may have components like these: the last one counts.
    let middles = ["/manifests/", "/blobs/", "/tags/list", "/referrers/"];
    let at = middles.iter().filter_map(|middle| rest.rfind(middle)).max()?;
    Some(&rest[..at])
}

fn refusal(state: &State, seen: &Seen) -> Option<Reply> {
    let said = seen.header("authorization");
    let challenge = match &state.guard {
        Guard::Open => return None,
        Guard::Basic(wanted) if said == Some(wanted) => return None,
        Guard::Basic(_) => "Basic realm=\"registry\"".to_owned(),
        Guard::Bearer(challenge, grants) => {
            let scope = repository(bare(seen)).map(|name| format!("repository:{name}:pull"));
            let token = said.and_then(|value| value.strip_prefix("Bearer "));
            if token.is_some_and(|token| grants.lock().unwrap().allow(token, scope.as_deref())) {
                return None;
            }
            format!("Bearer {}", challenge.replace("{scope}", &scope.unwrap_or_default()))
        }
    };
    Some(error(401, "UNAUTHORIZED").header("WWW-Authenticate", challenge))
}

fn content(state: &mut State, base: &str, seen: &Seen) -> Reply {
    let path = bare(seen);
    if !matches!(seen.method.as_str(), "GET" | "HEAD") {
        return error(405, "UNSUPPORTED");
    }
    if path == "/v2/" {
        return Reply::ok("{}").content_type("application/json");
    }
    let Some(name) = repository(path) else {
        return error(404, "NAME_UNKNOWN");
    };
    let rest = &path["/v2/".len() + name.len() + 1..];
    if !state.manifests.contains_key(name) && !state.blobs.contains_key(name) {
        return error(404, "NAME_UNKNOWN");
    }
    match rest.split_once('/') {
        Some(("manifests", reference)) => manifest(state, name, reference, seen),
        Some(("blobs", digest)) => blob(state, name, digest, seen),
        Some(("referrers", digest)) => referrers(state, name, digest, seen),
        _ => tags(state, base, name, seen),
    }
}

/// Whether a client that sends these `Accept` headers takes this media type.
fn accepts(seen: &Seen, kind: &str) -> bool {
    let lists = seen.headers_named("accept");
    let mut wanted = lists.iter().flat_map(|list| list.split(',')).map(str::trim);
    wanted.any(|row| row.split(';').next() == Some(kind))
}

fn manifest(state: &State, name: &str, reference: &str, seen: &Seen) -> Reply {
    let known = state.manifests.get(name);
    let is_tag = !reference.contains(':');
    let digest = match state.tags.get(name).and_then(|tags| tags.get(reference)) {
        Some(digest) if is_tag => digest,
        _ if is_tag => return error(404, "MANIFEST_UNKNOWN"),
        _ => reference,
    };
    let Some(mut found) = known.and_then(|known| known.get(digest)) else {
        return error(404, "MANIFEST_UNKNOWN");
    };
    // A tag on an index resolves to the image of the usual platform for a client that knows no index.
    if is_tag && !found.children.is_empty() && !accepts(seen, &found.kind) {
        found = found.of("amd64");
    }
    let mut reply = Reply::ok(found.bytes.clone())
        .content_type(&found.kind)
        .header("Docker-Content-Digest", &found.digest)
        .etag(&format!("\"{}\"", found.digest));
    for (name, value) in &state.extra {
        reply = reply.header(name, value);
    }
    reply
}

fn blob(state: &mut State, name: &str, digest: &str, seen: &Seen) -> Reply {
    let Some(body) = state.blobs.get(name).and_then(|blobs| blobs.get(digest)).cloned() else {
        return error(404, "BLOB_UNKNOWN");
    };
    if let Some(storage) = &state.storage {
        state.signatures += 1;
        let (path, number) = (storage_path(digest), state.signatures);
        let place = format!("{storage}{path}?X-Method={}&X-Signature={number}", seen.method);
        return Reply::redirect(307, place);
    }
    File::new(body)
        .content_type("application/octet-stream")
        .header("Docker-Content-Digest", digest)
        .etag(&format!("\"{digest}\""))
        .reply(seen)
}

/// What the storage host answers.
fn stored(state: &Mutex<State>, seen: &Seen) -> Reply {
    let state = state.lock().unwrap();
    if seen.header("authorization").is_some() {
        return Reply::new(400, "<Error>Only one auth mechanism allowed</Error>");
    }
    if parameter(seen, "X-Method").as_deref() != Some(&seen.method) {
        return Reply::new(403, "<Error>SignatureDoesNotMatch</Error>");
    }
    let path = bare(seen);
    let mut blobs = state.blobs.values().flatten();
    let Some((_, body)) = blobs.find(|(digest, _)| storage_path(digest) == path) else {
        return Reply::new(404, "<Error>NoSuchKey</Error>");
    };
    let reply = File::new(body.clone())
        .content_type("binary/octet-stream")
        .etag("\"storage's own\"")
        .reply(seen);
    match state.changes.get(path) {
        Some(change) => change(seen, reply),
        None => reply,
    }
}

fn tags(state: &State, base: &str, name: &str, seen: &Seen) -> Reply {
    let Some(all) = state.tags.get(name) else {
        return error(404, "NAME_UNKNOWN");
    };
    let last = parameter(seen, "last");
    let most = parameter(seen, "n").and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
    let most = most.min(state.page.unwrap_or(usize::MAX));
    let rest = all.keys().filter(|tag| last.as_ref().is_none_or(|last| *tag > last));
    let rest = rest.cloned().collect::<Vec<_>>();
    let page = &rest[..most.min(rest.len())];
    let mut reply = Reply::ok(json!({"name": name, "tags": page}).to_string()).content_type("application/json");
    if let (true, Some(last)) = (page.len() < rest.len(), page.last()) {
        let host = if state.absolute_links { base } else { "" };
        let link = format!("<{host}/v2/{name}/tags/list?last={last}&n={most}>; rel=\"next\"");
        reply = reply.header("Link", link);
    }
    reply
}

fn referrers(state: &State, name: &str, digest: &str, seen: &Seen) -> Reply {
    if !state.referrers {
        return Reply::new(404, "404 page not found\n").content_type("text/plain");
    }
    let wanted = parameter(seen, "artifactType");
    let known = state.manifests.get(name).into_iter().flat_map(BTreeMap::values);
    let found = known
        .filter(|manifest| manifest.subject.as_deref() == Some(digest))
        .filter(|manifest| {
            wanted
                .as_ref()
                .is_none_or(|wanted| manifest.value["artifactType"] == **wanted)
        })
        .map(|manifest| {
            let mut descriptor = manifest.descriptor();
            descriptor["artifactType"] = manifest.value["artifactType"].clone();
            descriptor
        })
        .collect::<Vec<_>>();
    let body = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found});
    let reply = Reply::ok(body.to_string()).content_type(OCI_INDEX);
    match wanted {
        Some(_) => reply.header("OCI-Filters-Applied", "artifactType"),
        None => reply,
    }
}

/// The index that stands at the fallback tag for what refers to `subject`.
pub fn fallback_index(referring: &[&Manifest]) -> Manifest {
    let rows = referring
        .iter()
        .map(|manifest| {
            let mut descriptor = manifest.descriptor();
            descriptor["artifactType"] = manifest.value["artifactType"].clone();
            descriptor
        })
        .collect::<Vec<_>>();
    let value = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": rows});
    Manifest::new(value, Vec::new(), Vec::new())
}

/// What the tokens that were issued are good for.
#[derive(Default)]
struct Grants {
    issued: HashMap<String, Grant>,
    number: usize,
    /// What stands in the answer beside the token.
    extra: Value,
    name: Option<&'static str>,
    life: Option<Duration>,
    /// The credentials that get a token: none, anybody.
    wanted: Option<String>,
}

struct Grant {
    scopes: Vec<String>,
    until: Option<Instant>,
}

impl Grants {
    fn allow(&self, token: &str, scope: Option<&str>) -> bool {
        let Some(grant) = self.issued.get(token) else {
            return false;
        };
        let fresh = grant.until.is_none_or(|until| Instant::now() < until);
        fresh && scope.is_none_or(|scope| grant.scopes.iter().any(|granted| covers(granted, scope)))
    }

    fn answer(&mut self, seen: &Seen) -> Reply {
        if let Some(wanted) = &self.wanted
            && seen.header("authorization") != Some(wanted)
        {
            return error(401, "UNAUTHORIZED").header("WWW-Authenticate", "Basic realm=\"tokens\"");
        }
        self.number += 1;
        let token = format!("token-{}", self.number);
        let scopes = query(seen)
            .into_iter()
            .filter(|(name, _)| name == "scope")
            .flat_map(|(_, value)| value.split(' ').map(str::to_owned).collect::<Vec<_>>())
            .collect();
        let until = self.life.map(|life| Instant::now() + life);
        self.issued.insert(token.clone(), Grant { scopes, until });
        let mut body = self.extra.clone();
        if !body.is_object() {
            body = json!({});
        }
        body[self.name.unwrap_or("token")] = token.into();
        Reply::ok(body.to_string()).content_type("application/json")
    }
}

/// Whether a granted scope (`repository:a/b:pull,push`) covers one that asks for a single action.
fn covers(granted: &str, wanted: &str) -> bool {
    let split = |scope: &str| {
        scope
            .rsplit_once(':')
            .map(|(what, actions)| (what.to_owned(), actions.to_owned()))
    };
    match (split(granted), split(wanted)) {
        (Some((what, actions)), Some((name, action))) => what == name && actions.split(',').any(|one| one == action),
        _ => false,
    }
}

/// The token service.
pub struct Tokens {
    pub up: Upstream,
    grants: Arc<Mutex<Grants>>,
}

impl Tokens {
    /// One that gives a token to anybody.
    pub async fn start() -> Self {
        Self::on(Upstream::start().await)
    }

    pub fn on(up: Upstream) -> Self {
        let grants = Arc::new(Mutex::new(Grants::default()));
        let answering = grants.clone();
        up.on("/token", move |seen| answering.lock().unwrap().answer(seen));
        Self { up, grants }
    }

    /// The URL that a challenge names.
    pub fn realm(&self) -> String {
        self.up.url("/token")
    }

    /// Gives tokens to this user only.
    pub fn to(self, user: &str, password: &str) -> Self {
        self.grants.lock().unwrap().wanted = Some(basic(user, password));
        self
    }

    /// What stands in each answer beside the token (`expires_in`, …).
    pub fn saying(self, extra: Value) -> Self {
        self.grants.lock().unwrap().extra = extra;
        self
    }

    /// `access_token` instead of `token`.
    pub fn named(self, name: &'static str) -> Self {
        self.grants.lock().unwrap().name = Some(name);
        self
    }

    /// How long a token is really good for.
    pub fn good_for(self, life: Duration) -> Self {
        self.grants.lock().unwrap().life = Some(life);
        self
    }

    /// Takes this long for each answer.
    pub fn slow(self, delay: Duration) -> Self {
        let grants = self.grants.clone();
        self.up
            .on("/token", move |seen| grants.lock().unwrap().answer(seen).delay(delay));
        self
    }

    /// No token that was issued is good any longer.
    pub fn revoke(&self) {
        self.grants.lock().unwrap().issued.clear();
    }

    /// All requests for a token.
    pub fn asked(&self) -> Vec<Seen> {
        let mut log = self.up.log();
        log.retain(|seen| bare(seen) == "/token");
        log
    }

    /// How many requests for a token there were.
    pub fn count(&self) -> usize {
        self.asked().len()
    }

    /// The scopes that were asked for, one entry a request.
    pub fn scopes(&self) -> Vec<String> {
        let scope = |seen: &Seen| {
            let scopes = query(seen).into_iter().filter(|(name, _)| name == "scope");
            scopes.map(|(_, value)| value).collect::<Vec<_>>().join(" ")
        };
        self.asked().iter().map(scope).collect()
    }
}
