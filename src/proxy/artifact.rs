//! What happens to a request for an artifact: policy, then the object by its key, then a flight.

use std::sync::Arc;

use http::{Method, header};
use pingora_error::Result;
use pingora_proxy::Session;
use url::Url;

use super::public::Arrival;
use super::reply::{self, Problem};
use super::serve::{self, Dress};
use super::range::Ranges;
use super::{Client, Ctx, PassBy, public, range};
use crate::cache::{Key, Left, Object, now_ms};
use crate::catalog::CatalogError;
use crate::config::{Config, Package, Remote, RemoteType};
use crate::fill::set::{Set, Standing};
use crate::fill::view::{Rewriting, Spec, ViewError, is_gzip};
use crate::fill::{How, Outcome, Wanted};
use crate::formats::{self, ArtifactPath, Class, Form, Format, Handling, View, links, path};
use crate::policy::{self, Policy};
use crate::upstream::{Ask, Exchange, listed};

/// A range that starts this far ahead of what has arrived does not wait for it.
const FAR_AHEAD: u64 = 8 << 20;

/// A request, understood.
struct Request {
    remote: Arc<Remote>,
    format: &'static dyn Format,
    path: ArtifactPath,
    policy: Policy,
    form: Form,
    key: Key,
    view: Option<View>,
    /// The remote's root as this client knows it.
    remote_url: String,
    head: bool,
    /// See [`Format::presented_as`].
    presented_as: Option<&'static str>,
    /// Set for a file of a fixed name whose manifest is stored: what that says of it.
    standing: Option<Standing>,
}

impl Request {
    /// It, from `url`.
    fn wanted(&self, url: Url) -> Wanted {
        let mut wanted = Wanted::new(Arc::clone(&self.remote), self.key.clone(), url, self.policy);
        wanted.accept = self.form.accept;
        wanted.query = self.path.query.clone();
        wanted
    }

    /// What is left of an object's freshness. A file of a set is trusted as long as its manifest names it, and a client
    /// should ask again when the manifest is due.
    fn left(&self, object: &Object, now: u64) -> Left {
        match &self.standing {
            None => object.fresh.left(self.policy.class, self.policy.ttl, now),
            Some(Standing { expected: None, .. }) => object.fresh.left(self.policy.class, self.policy.ttl, now),
            Some(standing) => match standing.manifest.fresh.left(self.policy.class, self.policy.ttl, now) {
                Left::Expired(_) => Left::For(std::time::Duration::from_secs(1)),
                left => left,
            },
        }
    }
}

/// How what is served was come by.
struct Origin {
    source: &'static str,
    cache_status: String,
    fresh_from_upstream: bool,
}

impl Client {
    /// Answers a request for `raw` below `remote`. `Ok(false)`: it goes on to upstream by itself, as `ctx.pass` says.
    pub(super) async fn artifact(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        config: Arc<Config>,
        remote: Arc<Remote>,
        (raw, query): (Vec<u8>, Option<String>),
        bound_host: bool,
    ) -> Result<bool> {
        ctx.remote = Some(remote.name.clone());
        let shown = String::from_utf8_lossy(&raw).into_owned();
        let Some(format) = formats::of(remote.package) else {
            let detail = format!(
                "remote {name} is a Docker registry: it is served under /v2/{name}/…, not under /api/v1/remote/",
                name = remote.name
            );
            return self
                .refuse(session, None, Problem::new(404, detail).at(&remote.name, &shown))
                .await;
        };
        let method = session.req_header().method.clone();
        let path = match path::parse(&raw, query.as_deref()) {
            Ok(path) => path,
            Err(error) => {
                let problem = Problem::new(400, error.to_string()).at(&remote.name, &shown);
                return self.refuse(session, Some(format), problem).await;
            }
        };
        // A local remote holds plain files, whatever package they belong to.
        let format = match (remote.kind, formats::of(Package::Generic)) {
            (RemoteType::Local, Some(plain)) => plain,
            _ => format,
        };
        let path = match format.handle(&remote, &method, path.clone()) {
            Handling::Artifact(path) => path,
            Handling::PassThrough => return self.pass_through(session, ctx, remote, format, path).await,
            Handling::Redirect(location) => {
                let headers = vec![
                    (header::LOCATION, location),
                    (header::CACHE_CONTROL, "public, max-age=3600".to_owned()),
                ];
                reply::send(session, 301, headers, bytes::Bytes::new()).await?;
                return Ok(true);
            }
            Handling::Refused { status, detail } => {
                let problem = Problem::new(status, detail).at(&remote.name, &path.encoded);
                return self.refuse(session, Some(format), problem).await;
            }
        };
        if !matches!(method, Method::GET | Method::HEAD) {
            let detail = match (remote.kind, &method) {
                (RemoteType::Local, &Method::PUT | &Method::DELETE) => {
                    "uploads to local remotes are not part of this version".to_owned()
                }
                _ => format!("{method} is not allowed on a remote of type `remote`: it serves GET and HEAD"),
            };
            let problem = Problem::new(405, detail)
                .at(&remote.name, &path.encoded)
                .header(header::ALLOW, "GET, HEAD");
            return self.refuse(session, Some(format), problem).await;
        }
        // Patterns see the path on the other host, not our spelling of where it is.
        let governed = links::split_foreign(&path.decoded).map_or(path.decoded.as_str(), |(_, path)| path);
        let Some(policy) = policy::classify(&remote, format, governed) else {
            let detail =
                "no pattern of this remote allows the path; add one to `immutable_patterns` or `mutable_patterns`";
            let problem = Problem::new(403, detail).at(&remote.name, &path.encoded);
            return self.refuse(session, Some(format), problem).await;
        };
        if remote.kind == RemoteType::Local {
            let problem = Problem::new(404, "no such file in this local remote").at(&remote.name, &path.encoded);
            return self.refuse(session, Some(format), problem).await;
        }
        // Several field lines are one list (RFC 9110 section 5.3).
        let accept: Vec<&str> = session
            .req_header()
            .headers
            .get_all(header::ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .collect();
        let accept = (!accept.is_empty()).then(|| accept.join(", "));
        let Ok(form) = format.negotiate(&path.decoded, accept.as_deref()) else {
            let detail = "none of the forms that `Accept` names can be served";
            let problem = Problem::new(406, detail)
                .at(&remote.name, &path.encoded)
                .header(header::VARY, "Accept");
            return self.refuse(session, Some(format), problem).await;
        };
        let view = format.has_view(&remote, &path.decoded);
        // Only absolute links need to know under which name clients come (HTTP/1.0 may give none).
        let remote_url = match view.filter(|view| view.absolute) {
            None => String::new(),
            Some(_) => match self.remote_url(session, &config, &remote, bound_host) {
                Some(url) => url,
                None => {
                    let detail = "the Host header is missing or not a host name";
                    return self.refuse(session, Some(format), Problem::new(400, detail)).await;
                }
            },
        };
        if view.is_some() && (raw.starts_with(b"/") || raw.windows(2).any(|two| two == b"//")) {
            // Relative links count the slashes of the path that was asked for.
            let up = "../".repeat(raw.iter().filter(|byte| **byte == b'/').count());
            let query = path.query.as_deref().map_or(String::new(), |query| format!("?{query}"));
            let location = format!("{up}{}{query}", path.encoded);
            reply::send(session, 301, vec![(header::LOCATION, location)], bytes::Bytes::new()).await?;
            return Ok(true);
        }
        let presented_as = format.presented_as(&path.decoded, accept.as_deref());
        let mut key = Key::new(&remote.name, &path.encoded, path.query.as_deref(), form.name);
        let standing = self.standing(&remote, format, &path).await;
        if let Some(standing) = &standing {
            key = Key::new(&remote.name, &path.encoded, None, &standing.form);
        }
        let head = method == Method::HEAD;
        let request = Request {
            standing,
            presented_as,
            remote,
            format,
            path,
            policy,
            form,
            key,
            view,
            remote_url,
            head,
        };
        self.answer(session, ctx, request).await
    }

    async fn refuse(&self, session: &mut Session, format: Option<&dyn Format>, problem: Problem) -> Result<bool> {
        reply::problem(session, format, problem).await?;
        Ok(true)
    }

    fn remote_url(&self, session: &Session, config: &Config, remote: &Remote, bound_host: bool) -> Option<String> {
        let arrival = arrival(session);
        if bound_host {
            return public::of_bound_host(&config.settings, &arrival);
        }
        let base = public::of(&config.settings, &arrival).ok()?.base;
        Some(format!("{base}/api/v1/remote/{}", remote.name))
    }

    /// What the stored manifest says of a file of a fixed name.
    async fn standing(&self, remote: &Remote, format: &'static dyn Format, path: &ArtifactPath) -> Option<Standing> {
        let manifest = format.manifest_of(&path.decoded).filter(|_| path.query.is_none())?;
        let encoded = path::of_decoded(&manifest).ok()?.encoded;
        let key = Key::new(&remote.name, &encoded, None, "");
        let set = Set { format, path: manifest };
        self.fills.standing(&key, &set, &path.decoded).await
    }

    /// Serves what is stored or growing, or has it fetched.
    async fn answer(&self, session: &mut Session, ctx: &mut Ctx, request: Request) -> Result<bool> {
        let store = self.fills.store;
        let now = now_ms();
        let found = store.open_object(&request.key).await;
        let mut forced = false;
        let left = |object: &Object| request.left(object, now_ms());
        if let Some(object) = &found {
            if !object.is_complete() {
                let origin = Origin {
                    source: "remote",
                    cache_status: "artifactapi; fwd=miss; stored; collapsed".to_owned(),
                    fresh_from_upstream: true,
                };
                ctx.cache = "collapsed";
                return self.deliver(session, ctx, &request, Arc::clone(object), origin).await;
            }
            forced = request.remote.client_revalidation
                && request.policy.class == Class::Mutable
                && wants_fresh(session)
                && object.fresh.checked_at() + 1000 < now;
            if left(object).is_fresh() && !forced || request.remote.offline {
                let ttl = match left(object) {
                    Left::ForEver => "artifactapi; hit".to_owned(),
                    Left::For(left) => format!("artifactapi; hit; ttl={}", left.as_secs()),
                    Left::Expired(since) => format!("artifactapi; hit; ttl=-{}; detail=offline", since.as_secs()),
                };
                let origin = Origin {
                    source: "cache",
                    cache_status: ttl,
                    fresh_from_upstream: false,
                };
                ctx.cache = "hit";
                return self.deliver(session, ctx, &request, Arc::clone(object), origin).await;
            }
        }
        if request.remote.offline {
            let detail = "this remote is offline and the path is not stored; remove `offline: true` to fetch it";
            let problem = Problem::new(504, detail).at(&request.remote.name, &request.path.encoded);
            return self.refuse(session, Some(request.format), problem).await;
        }
        let expired = found.is_some();
        if !expired && let Some(answer) = self.fills.remembered(&request.key) {
            ctx.cache = "negative";
            let at = (request.remote.name.as_str(), request.path.encoded.as_str());
            reply::answer(
                session,
                request.format,
                at,
                &answer,
                ("cache", "artifactapi; hit; detail=negative"),
            )
            .await?;
            return Ok(true);
        }
        let url = match self.upstream_url(&request).await {
            Ok(url) => url,
            Err(problem) => {
                let problem = problem.at(&request.remote.name, &request.path.encoded);
                return self.refuse(session, Some(request.format), problem).await;
            }
        };
        let mut wanted = request.wanted(url);
        wanted.gzip = request.view.is_some();
        wanted.force = forced;
        wanted.set =
            request.format.is_manifest(&request.path.decoded).then(|| Set { format: request.format, path: request.path.decoded.clone() });
        if let Some(standing) = &request.standing {
            wanted.expected = standing.expected.clone();
            // What has a checksum never changes; what belongs to the manifest by its name alone ages as it does.
            if standing.expected.is_some() {
                wanted.policy = policy::of_set_member();
                wanted.manifest = Some(standing.manifest.key.hash);
            }
        }
        // A HEAD on what is not stored goes up as one; on a rewritten document its length is only ours to know.
        if request.head && !expired && request.view.is_none() {
            let (outcome, _) = self.fills.obtain(wanted.clone(), Method::HEAD).await;
            match outcome {
                Outcome::Answer(answer) if head_is_enough(&answer) => {
                    ctx.cache = "miss";
                    return self.answer_head(session, &request, &answer).await;
                }
                Outcome::Answer(answer) if !head_must_be_get(&answer) => {
                    ctx.cache = "miss";
                    let at = (request.remote.name.as_str(), request.path.encoded.as_str());
                    reply::answer(session, request.format, at, &answer, ("remote", "artifactapi; fwd=miss")).await?;
                    return Ok(true);
                }
                _ => {}
            }
        }
        let (outcome, joined) = self.fills.obtain(wanted.clone(), Method::GET).await;
        let forwarded = if expired { "stale" } else { "miss" };
        let collapsed = if joined { "; collapsed" } else { "" };
        match outcome {
            Outcome::Object(object, how) => {
                let origin = match how {
                    How::Fetched => {
                        ctx.cache = if joined { "collapsed" } else { forwarded };
                        Origin {
                            source: "remote",
                            cache_status: format!("artifactapi; fwd={forwarded}; fwd-status=200; stored{collapsed}"),
                            fresh_from_upstream: true,
                        }
                    }
                    How::Found => {
                        ctx.cache = "hit";
                        Origin {
                            source: "cache",
                            cache_status: "artifactapi; hit".to_owned(),
                            fresh_from_upstream: false,
                        }
                    }
                    How::Revalidated => {
                        ctx.cache = "revalidated";
                        Origin {
                            source: "cache",
                            cache_status: format!("artifactapi; fwd=stale; fwd-status=304{collapsed}"),
                            fresh_from_upstream: false,
                        }
                    }
                    How::Stale(status) => {
                        ctx.cache = "stale";
                        let why =
                            status.map_or("detail=unreachable".to_owned(), |status| format!("fwd-status={status}"));
                        Origin {
                            source: "cache",
                            cache_status: format!("artifactapi; fwd=stale; {why}{collapsed}"),
                            fresh_from_upstream: false,
                        }
                    }
                };
                self.deliver(session, ctx, &request, object, origin).await
            }
            Outcome::Answer(answer) if answer.status < 400 && request.view.is_some() => {
                // Passed on as it is, it would lead clients past this proxy.
                let detail = format!("upstream answered {} where a document was asked for", answer.status);
                let problem = Problem::new(502, detail).at(&request.remote.name, &request.path.encoded);
                self.refuse(session, Some(request.format), problem).await
            }
            Outcome::Answer(answer) => {
                ctx.cache = forwarded;
                let at = (request.remote.name.as_str(), request.path.encoded.as_str());
                let status = match &answer.reason {
                    Some(_) => format!("artifactapi; fwd={forwarded}{collapsed}"),
                    None => format!("artifactapi; fwd={forwarded}; fwd-status={}{collapsed}", answer.status),
                };
                reply::answer(session, request.format, at, &answer, ("remote", &status)).await?;
                Ok(true)
            }
            Outcome::Direct => {
                ctx.cache = "bypass";
                if request.view.is_some() {
                    // Passed by as it is, it would send clients past this proxy.
                    let detail = "there is no space to rewrite this document in; free some, or raise cache.disk_bytes";
                    let problem = Problem::new(503, detail)
                        .at(&request.remote.name, &request.path.encoded)
                        .header(header::RETRY_AFTER, "10");
                    return self.refuse(session, Some(request.format), problem).await;
                }
                self.pass_by(session, ctx, &wanted, "artifactapi; fwd=bypass").await
            }
        }
    }

    /// Where upstream has it; for a path on another host, whether it may be asked there at all.
    async fn upstream_url(&self, request: &Request) -> std::result::Result<Url, Problem> {
        let Some([https, http]) = links::candidates(&request.path) else {
            if request.path.decoded.starts_with("-/host/") {
                return Err(Problem::new(404, "`-/host/` is followed by a host and a path"));
            }
            return Ok(request.format.upstream_url(&request.remote, &request.path));
        };
        let remote = &request.remote;
        for url in [&https, &http] {
            if listed(&remote.file_hosts, url) {
                return Ok(url.clone());
            }
        }
        let Some(named) = links::naming_candidates(request.format, &request.path) else {
            return Err(Problem::new(404, "`-/host/` is followed by a host and a path"));
        };
        if let Some(url) = self.named_by_an_index(remote, &named, [&https, &http]).await? {
            return Ok(url);
        }
        // Unknown so far: the index that would name it is asked for once.
        let below = links::split_foreign(&request.path.encoded).map_or("", |(_, path)| path);
        if let Some(index) = request.format.index_naming(remote, below) {
            self.read_index(request, &index).await;
            if let Some(url) = self.named_by_an_index(remote, &named, [&https, &http]).await? {
                return Ok(url);
            }
        }
        let host = https.host_str().unwrap_or_default().to_owned();
        let detail = format!(
            "no index of this remote names this file on {host}; ask for its index first, or list the host in `file_hosts`"
        );
        Err(Problem::new(403, detail))
    }

    async fn named_by_an_index(
        &self,
        remote: &Remote,
        named: &[Url; 2],
        asked: [&Url; 2],
    ) -> std::result::Result<Option<Url>, Problem> {
        for (named, asked) in named.iter().zip(asked) {
            match self.fills.catalog.has_link(&remote.name, &links::named(named)).await {
                Ok(true) => return Ok(Some(asked.clone())),
                Ok(false) => {}
                Err(error) => return Err(catalogue_away(&error)),
            }
        }
        Ok(None)
    }

    /// Fetches an index, unless it is fresh, and reads it to its end, so that the links it names are known.
    async fn read_index(&self, request: &Request, index: &str) {
        let Ok(path) = path::parse(index.as_bytes(), None) else {
            return;
        };
        let (remote, format) = (&request.remote, request.format);
        let Some(policy) = policy::classify(remote, format, &path.decoded) else {
            return;
        };
        let Ok(form) = format.negotiate(&path.decoded, None) else {
            return;
        };
        let Some(view) = format.has_view(remote, &path.decoded) else {
            return;
        };
        let key = Key::new(&remote.name, &path.encoded, None, form.name);
        let stored = self.fills.store.open_object(&key).await;
        let fresh = stored
            .filter(|object| !object.is_complete() || object.fresh.left(policy.class, policy.ttl, now_ms()).is_fresh());
        let original = match fresh {
            Some(object) => object,
            None if self.fills.remembered(&key).is_some() => return,
            None => {
                let url = format.upstream_url(remote, &path);
                let accept = form.accept;
                let mut wanted = Wanted::new(Arc::clone(remote), key, url, policy);
                wanted.accept = accept;
                wanted.gzip = true;
                match self.fills.obtain(wanted, Method::GET).await {
                    (Outcome::Object(object, _), _) => object,
                    _ => return,
                }
            }
        };
        let spec = Spec {
            rewriting: Some(Rewriting {
                format,
                remote: Arc::clone(remote),
                path,
                remote_url: request.remote_url.clone(),
                absolute: view.absolute,
            }),
            gzip: false,
        };
        if let Ok(view) = self.views.open(&original, &spec).await {
            view.settled().await;
        }
    }

    /// Serves an object, through its view where it has one.
    async fn deliver(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        request: &Request,
        original: Arc<Object>,
        origin: Origin,
    ) -> Result<bool> {
        self.fills.store.count_use(&original);
        let gzip_accepted = accepts(session, "gzip") || accepts(session, "x-gzip");
        let encoded = original.head.content_encoding();
        let spec = match request.view {
            Some(view) => Some(Spec {
                rewriting: Some(Rewriting {
                    format: request.format,
                    remote: Arc::clone(&request.remote),
                    path: request.path.clone(),
                    remote_url: request.remote_url.clone(),
                    absolute: view.absolute,
                }),
                gzip: gzip_accepted,
            }),
            // A coding that the client did not accept is taken off.
            None => encoded
                .filter(|coding| is_gzip(coding) && !gzip_accepted)
                .map(|_| Spec {
                    rewriting: None,
                    gzip: false,
                }),
        };
        if let Some(coding) = encoded.filter(|coding| spec.is_none() && !is_gzip(coding) && !accepts(session, coding)) {
            let detail = format!("upstream sent this in the coding {coding}, unasked, and the client does not accept it");
            let problem = Problem::new(502, detail).at(&request.remote.name, &request.path.encoded);
            return self.refuse(session, Some(request.format), problem).await;
        }
        let object = match &spec {
            None => Arc::clone(&original),
            Some(spec) => match self.views.open(&original, spec).await {
                Ok(view) => {
                    self.fills.store.count_use(&view);
                    view
                }
                Err(error) => {
                    let status = if matches!(error, ViewError::NoSpace(_)) {
                        503
                    } else {
                        502
                    };
                    let problem = Problem::new(status, format!("the document cannot be rewritten: {error}"))
                        .at(&request.remote.name, &request.path.encoded);
                    return self.refuse(session, Some(request.format), problem).await;
                }
            },
        };
        if spec.is_none() && !object.is_complete() && self.is_far_ahead(session, &object) {
            return self.range_of_its_own(session, ctx, request, &object).await;
        }
        let usable = if serve::needs_whole(session, &object) {
            object.settled().await
        } else {
            serve::has_begun(&object).await
        };
        if !usable {
            let detail = if spec.is_some() {
                "upstream's document could not be rewritten: it ended early, or is not what its type says"
            } else {
                "the transfer from upstream ended early; try again"
            };
            let problem = Problem::new(502, detail)
                .at(&request.remote.name, &request.path.encoded)
                .header(header::RETRY_AFTER, "1");
            return self.refuse(session, Some(request.format), problem).await;
        }
        let vary = match (
            request.format.varies(&request.path.decoded),
            spec.is_some() || encoded.is_some(),
        ) {
            (true, true) => Some("Accept, Accept-Encoding"),
            (true, false) => Some("Accept"),
            (false, true) => Some("Accept-Encoding"),
            (false, false) => None,
        };
        let now = now_ms();
        let dress = Dress {
            policy: request.policy,
            left: request.left(&original, now),
            age: (!origin.fresh_from_upstream).then(|| now.saturating_sub(original.fresh.checked_at()) / 1000),
            source: origin.source,
            cache_status: origin.cache_status,
            vary,
            content_type: request.format.content_type(&request.path.decoded),
            presented_as: request.presented_as.filter(|_| is_html(original.head.content_type())),
            head_only: request.head,
        };
        ctx.source = Some(origin.source);
        ctx.sent += serve::serve(session, &object, &dress).await?;
        Ok(true)
    }

    fn is_far_ahead(&self, session: &Session, object: &Object) -> bool {
        let request = session.req_header();
        let Some(range) = request.headers.get(header::RANGE).and_then(|value| value.to_str().ok()) else {
            return false;
        };
        let Some(length) = object.length() else { return false };
        let Ranges::One(start, _) = range::parse(range, length) else { return false };
        request.method == Method::GET
            && object.head.ranges
            && object.head.content_encoding().is_none()
            && (object.head.etag().is_some() || object.head.last_modified().is_some())
            && start > object.progress().visible + FAR_AHEAD
            && range::if_range_holds(&request.headers, object.etag().as_deref(), object.head.last_modified())
    }

    /// A range that would have to wait for the fill is fetched as it is, beside it.
    async fn range_of_its_own(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        request: &Request,
        growing: &Object,
    ) -> Result<bool> {
        // The fill may have been redirected to a signed URL, good for once: the question starts where the fill did.
        let url = match self.upstream_url(request).await {
            Ok(url) => url,
            Err(problem) => return self.refuse(session, Some(request.format), problem).await,
        };
        let wanted = request.wanted(url);
        ctx.cache = "partial";
        let mut headers = Vec::new();
        if let Some(range) = session.req_header().headers.get(header::RANGE) {
            headers.push((header::RANGE, range.clone()));
        }
        // Only a part of the very body that is growing may stand beside it.
        let strong = growing.head.etag().filter(|etag| !etag.starts_with("W/"));
        if let Some(validator) = strong.or(growing.head.last_modified()) {
            headers.push((header::IF_RANGE, crate::headers::value(validator)));
        }
        let ask = Ask {
            method: Method::GET,
            accept: wanted.accept,
            gzip: false,
            headers,
            total: growing.length(),
            conditional: false,
        };
        self.pass_with(session, ctx, &wanted, "artifactapi; fwd=partial", ask).await
    }

    async fn pass_by(&self, session: &mut Session, ctx: &mut Ctx, wanted: &Wanted, cache_status: &str) -> Result<bool> {
        let request = session.req_header();
        let method = request.method.clone();
        let single = request
            .headers
            .get(header::RANGE)
            .filter(|value| value.to_str().is_ok_and(|value| !value.contains(',')));
        let mut headers = Vec::new();
        if let Some(range) = single {
            headers.push((header::RANGE, range.clone()));
            if let Some(if_range) = request.headers.get(header::IF_RANGE) {
                headers.push((header::IF_RANGE, if_range.clone()));
            }
        }
        self.pass(session, ctx, wanted, cache_status, method, headers).await
    }

    async fn pass(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        wanted: &Wanted,
        cache_status: &str,
        method: Method,
        headers: Vec<(http::HeaderName, http::HeaderValue)>,
    ) -> Result<bool> {
        let ask = Ask { method, accept: wanted.accept, gzip: false, headers, total: None, conditional: false };
        self.pass_with(session, ctx, wanted, cache_status, ask).await
    }

    async fn pass_with(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        wanted: &Wanted,
        cache_status: &str,
        ask: Ask,
    ) -> Result<bool> {
        let path = wanted.key.parts().1.to_owned();
        let place = match self.fills.upstream.place_to_pass().await {
            Ok(place) => place,
            Err(failure) => {
                let problem = Problem::new(failure.status, failure.reason)
                    .at(&wanted.remote.name, &path)
                    .header(header::RETRY_AFTER, "5");
                return self.refuse(session, formats::of(wanted.remote.package), problem).await;
            }
        };
        let upstream = Arc::clone(&self.fills.upstream);
        let exchange = Exchange::new(upstream, Arc::clone(&wanted.remote), wanted.url.clone(), ask)
            .with_query(wanted.query.clone());
        ctx.source = Some("remote");
        ctx.pass = Some(PassBy { exchange, cache_status: cache_status.to_owned(), path, _place: place });
        Ok(false)
    }

    /// npm's audit and search and their like: there and back, never stored.
    async fn pass_through(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        remote: Arc<Remote>,
        format: &'static dyn Format,
        path: ArtifactPath,
    ) -> Result<bool> {
        if remote.offline {
            let problem = Problem::new(504, "this remote is offline").at(&remote.name, &path.encoded);
            return self.refuse(session, Some(format), problem).await;
        }
        ctx.cache = "pass";
        let request = session.req_header();
        let method = request.method.clone();
        let mut headers = Vec::new();
        for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::ACCEPT] {
            if let Some(value) = request.headers.get(&name) {
                headers.push((name, value.clone()));
            }
        }
        let policy = Policy {
            class: Class::Mutable,
            basis: policy::Basis::BuiltIn,
            ttl: std::time::Duration::ZERO,
            conditional: false,
        };
        let url = format.upstream_url(&remote, &path);
        let key = Key::new(&remote.name, &path.encoded, path.query.as_deref(), "");
        let mut wanted = Wanted::new(remote, key, url, policy);
        wanted.query = path.query;
        if method == Method::POST && session.req_header().headers.contains_key(header::EXPECT) {
            session.as_downstream_mut().write_continue_response().await?;
        }
        self.pass(session, ctx, &wanted, "artifactapi; fwd=bypass", method, headers)
            .await
    }

    async fn answer_head(
        &self,
        session: &mut Session,
        request: &Request,
        answer: &crate::fill::Answer,
    ) -> Result<bool> {
        let mut response = pingora_http::ResponseHeader::build(answer.status, Some(answer.headers.len() + 6))?;
        for (name, value) in &answer.headers {
            response.append_header(name.clone(), value.clone())?;
        }
        if !answer.headers.contains_key(header::CONTENT_TYPE) {
            let content_type = request.format.content_type(&request.path.decoded);
            response.insert_header(header::CONTENT_TYPE, content_type)?;
        }
        response.insert_header(header::ACCEPT_RANGES, "bytes")?;
        response.insert_header(header::VIA, "1.1 artifactapi")?;
        response.insert_header("x-artifact-source", "remote")?;
        response.insert_header("cache-status", "artifactapi; fwd=miss")?;
        response.insert_header(header::CACHE_CONTROL, "no-cache")?;
        let (etag, modified) = (
            answer.headers.get(header::ETAG),
            answer.headers.get(header::LAST_MODIFIED),
        );
        let text = |value: Option<&http::HeaderValue>| value.and_then(|value| value.to_str().ok()).map(str::to_owned);
        let condition = range::evaluate(
            &session.req_header().headers,
            text(etag).as_deref(),
            text(modified).as_deref(),
        );
        match condition {
            range::Condition::NotModified => {
                response.set_status(304)?;
                response.remove_header(&header::CONTENT_LENGTH);
            }
            range::Condition::Failed => response.set_status(412)?,
            range::Condition::Pass => {}
        }
        session.write_response_header(Box::new(response), true).await?;
        Ok(true)
    }
}

/// Whether upstream's answer to a HEAD tells what a GET's header would.
fn head_is_enough(answer: &crate::fill::Answer) -> bool {
    answer.status == 200 && answer.headers.contains_key(header::CONTENT_LENGTH)
}

/// A signed URL is often good for GET only, and a 200 without a length tells too little: a fill's header answers.
fn head_must_be_get(answer: &crate::fill::Answer) -> bool {
    answer.reason.is_none() && matches!(answer.status, 200 | 400 | 403 | 405 | 501)
}

fn catalogue_away(error: &CatalogError) -> Problem {
    Problem::new(
        503,
        format!("whether an index names this file cannot be looked up: {error}"),
    )
    .header(header::RETRY_AFTER, "5")
}

fn is_html(content_type: &str) -> bool {
    content_type.to_ascii_lowercase().starts_with("text/html")
}

/// A client that wants no old answer: `no-cache` or `max-age=0`, or HTTP/1.0's `Pragma`.
fn wants_fresh(session: &Session) -> bool {
    let headers = &session.req_header().headers;
    let says = |name: header::HeaderName, words: &[&str]| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| {
                value
                    .split(',')
                    .any(|word| words.contains(&word.trim().to_ascii_lowercase().as_str()))
            })
    };
    says(header::CACHE_CONTROL, &["no-cache", "max-age=0"]) || says(header::PRAGMA, &["no-cache"])
}

/// RFC 9110 section 12.5.3: whether a coding is acceptable.
fn accepts(session: &Session, wanted: &str) -> bool {
    let values = session.req_header().headers.get_all(header::ACCEPT_ENCODING);
    let mut any = None;
    for value in values.iter().filter_map(|value| value.to_str().ok()) {
        for item in value.split(',') {
            let mut parts = item.split(';');
            let coding = parts.next().unwrap_or("").trim();
            let quality = parts
                .find_map(|part| part.trim().strip_prefix("q=").map(|q| q.trim().parse::<f32>().unwrap_or(0.0)))
                .unwrap_or(1.0);
            if coding.eq_ignore_ascii_case(wanted) {
                return quality > 0.0;
            }
            if coding == "*" {
                any = Some(quality > 0.0);
            }
        }
    }
    any.unwrap_or(false)
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
