//! What happens to a request for an artifact: policy, then the object by its key, then a flight.

use std::borrow::Cow;
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, header};
use pingora_error::Result;
use pingora_proxy::Session;
use url::Url;

use super::dress::Shown;
use super::head::{head_is_enough, head_must_be_get};
use super::relay;
use super::resolve::{self, HotKey, Resolution, Resolved, Target};
use super::serve::{self, Dress};
use super::{Client, Ctx};
use crate::cache::{Key, Left, Object, Origin as CameFrom, now_ms};
use crate::config::{Config, Remote};
use crate::fields;
use crate::fill::set::Standing;
use crate::fill::view::{Kind, Rewriting, Spec, ViewError, has_gzip_bytes, is_gzip};
use crate::fill::{How, Outcome, Wanted, offline};
use crate::formats::links::Style;
use crate::formats::{Asset, Class, Format};
use crate::policy;
use crate::session::public::{self, arrival};
use crate::session::reply::{self, Problem};
use crate::session::writing::Reading;

/// A request that is being answered.
pub(super) struct Request {
    pub(super) resolved: Arc<Resolved>,
    /// The document's key, or that of a set's file.
    key: Key,
    /// The remote's root as this client knows it; empty where no link needs it.
    pub(super) remote_url: String,
    pub(super) head: bool,
    /// Set for a file of a fixed name whose manifest is stored: what that says of it.
    standing: Option<Standing>,
    /// Set where the content is served that a name stands for: what the name is known by.
    pub(super) pointer: Option<Arc<Object>>,
}

impl Deref for Request {
    type Target = Resolved;

    fn deref(&self) -> &Resolved {
        &self.resolved
    }
}

impl Request {
    /// What is to be had from `url` for it.
    pub(super) fn wanted(&self, url: Url) -> Wanted {
        match &self.standing {
            None => Wanted {
                key: self.key.clone(),
                ..Wanted::new(Arc::clone(&self.asset), url, self.policy)
            },
            Some(standing) => Wanted {
                // What belongs to the manifest by its name alone is judged by more than its own age.
                force: standing.expected.is_none(),
                manifest: standing.expected.as_ref().map(|_| standing.manifest.key.clone()),
                ..Wanted::member(
                    Arc::clone(&self.asset),
                    url,
                    self.key.clone(),
                    standing.expected.clone(),
                )
            },
        }
    }

    /// A request for what has neither views nor a manifest.
    pub(super) fn plain(resolved: Arc<Resolved>, head: bool) -> Request {
        Request {
            key: resolved.key.clone(),
            resolved,
            remote_url: String::new(),
            head,
            standing: None,
            pointer: None,
        }
    }

    /// This request, answered by the content of `key`, to which `pointer` leads.
    pub(super) fn for_content(&self, key: Key, pointer: Arc<Object>) -> Request {
        Request {
            key,
            pointer: Some(pointer),
            ..Request::plain(Arc::clone(&self.resolved), self.head)
        }
    }

    /// The name that it is asked for by: what upstream refused by another one does not matter.
    fn asked(&self) -> Key {
        self.asset.name_key().unwrap_or_else(|| self.key.clone())
    }

    /// What is left of an object's freshness. A file of a set is trusted as long as its manifest names it, and a client
    /// should ask again when the manifest is due.
    fn left(&self, object: &Object, now: u64) -> Left {
        let object = self.pointer.as_deref().unwrap_or(object);
        match &self.standing {
            None => object.fresh.left(self.policy.class, self.policy.ttl, now),
            Some(standing)
                if standing.expected.is_none() && object.fresh.checked_at() < standing.manifest.fresh.checked_at() =>
            {
                Left::Expired(std::time::Duration::ZERO)
            }
            Some(standing) => match standing.manifest.fresh.left(self.policy.class, self.policy.ttl, now) {
                Left::Expired(_) => Left::For(std::time::Duration::from_secs(1)),
                left => left,
            },
        }
    }
}

/// An answer that only has to be written.
pub(super) struct Hit<'a> {
    pub object: Arc<Object>,
    pub dress: Dress<'a>,
}

/// How what is served was come by.
pub(super) struct Origin {
    pub(super) source: &'static str,
    pub(super) cache_status: Cow<'static, str>,
    pub(super) fresh_from_upstream: bool,
}

impl Origin {
    /// After a flight that brought `object`.
    pub(super) fn of(object: &Object, how: &How, expired: bool, joined: bool, ctx: &mut Ctx) -> Origin {
        let stored = if object.head.unframed { "" } else { "; stored" };
        let forwarded = if expired { "stale" } else { "miss" };
        let collapsed = if joined { "; collapsed" } else { "" };
        let (cache, source, cache_status) = match how {
            How::Fetched => (
                if joined { "collapsed" } else { forwarded },
                "remote",
                format!("artifactapi; fwd={forwarded}; fwd-status=200{stored}{collapsed}").into(),
            ),
            How::Found => ("hit", "cache", Cow::Borrowed("artifactapi; hit")),
            How::Restored => ("hit", "cache", Cow::Borrowed("artifactapi; hit; detail=shared")),
            How::Revalidated(status) => (
                "revalidated",
                "cache",
                format!("artifactapi; fwd=stale; fwd-status={status}{collapsed}").into(),
            ),
            How::Stale(status) => {
                let why = status.map_or("detail=unreachable".to_owned(), |status| format!("fwd-status={status}"));
                (
                    "stale",
                    "cache",
                    format!("artifactapi; fwd=stale; {why}{collapsed}").into(),
                )
            }
        };
        ctx.cache = cache;
        Origin {
            source,
            cache_status,
            fresh_from_upstream: *how == How::Fetched,
        }
    }
}

impl Client {
    /// Answers a request that was found to be for `remote`.
    pub(super) async fn artifact(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        config: &Config,
        remote: Arc<Remote>,
        target: Target,
        hot: Option<HotKey>,
    ) -> Result<bool> {
        ctx.remote = Some(Arc::clone(&remote));
        let method = session.req_header().method.clone();
        let accept = accept(session);
        let bound_host = target.bound_host;
        match resolve::resolve(&remote, &method, target, accept.as_deref()) {
            Resolution::Artifact(resolved) => {
                let resolved = Arc::new(resolved);
                if let Some(stand_in) = &resolved.stand_in {
                    return Box::pin(self.list(session, ctx, Arc::clone(&resolved), stand_in)).await;
                }
                // Lists take the long way: of them more is looked at than whether they are fresh.
                if let Some(hot) = hot.filter(|_| resolved.pages.is_none()) {
                    self.hot.insert(hot, Arc::clone(&resolved));
                }
                self.resolved(session, ctx, config, resolved).await
            }
            Resolution::PassThrough(format, asset) => {
                self.pass_through(session, ctx, (format, Arc::from(asset), bound_host))
                    .await
            }
            Resolution::Redirect(location) => {
                let headers = vec![
                    (header::LOCATION, location),
                    (header::CACHE_CONTROL, "public, max-age=3600".to_owned()),
                ];
                reply::send(session, 301, headers, Bytes::new()).await?;
                Ok(true)
            }
            Resolution::Refused(format, problem) => self.refuse(session, format, problem).await,
        }
    }

    /// Answers a request whose meaning is known.
    pub(super) async fn resolved(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        config: &Config,
        resolved: Arc<Resolved>,
    ) -> Result<bool> {
        // Only absolute links need to know under which name clients come (HTTP/1.0 may give none).
        let remote_url = match resolved.view.filter(|view| view.style == Style::Absolute) {
            None => String::new(),
            Some(_) => match public::of_remote(
                &config.settings,
                &arrival(session),
                &resolved.remote.name,
                resolved.bound_host,
            ) {
                Some(url) => url,
                None => {
                    let detail = "the Host header is missing or not a host name";
                    return self
                        .refuse(session, Some(resolved.format), Problem::new(400, detail))
                        .await;
                }
            },
        };
        let standing = match &resolved.manifest {
            None => None,
            Some(manifest) => self.standing(&resolved, manifest).await,
        };
        let key = match &standing {
            None => resolved.key.clone(),
            Some(standing) => standing.key.clone(),
        };
        let head = session.req_header().method == Method::HEAD;
        self.answer(
            session,
            ctx,
            Request {
                resolved,
                key,
                remote_url,
                head,
                standing,
                pointer: None,
            },
        )
        .await
    }

    /// What the stored manifest says of a file of a fixed name. Of a signature it says nothing, so that what is stored
    /// counts only if it came after the manifest was last seen to be upstream's; before another is fetched, so is that.
    async fn standing(&self, resolved: &Resolved, manifest: &Asset) -> Option<Standing> {
        let (remote, path) = (&resolved.remote, &resolved.path);
        let standing = self.fills.standing(manifest, path).await?;
        if standing.expected.is_some() || remote.offline {
            return Some(standing);
        }
        let stored = self.fills.store.open_object(&standing.key).await;
        if self.fills.remembered(&standing.key).is_some() {
            return Some(standing);
        }
        if stored.is_some_and(|stored| stored.fresh.checked_at() >= standing.manifest.fresh.checked_at()) {
            return Some(standing);
        }
        let mut wanted = Wanted::of(Arc::new(manifest.clone()), policy::classify(manifest)?)?;
        wanted.force = true;
        self.fills.obtain(wanted, Method::GET).await;
        self.fills.standing(manifest, path).await
    }

    pub(super) async fn refuse(
        &self,
        session: &mut Session,
        format: Option<&dyn Format>,
        problem: Problem,
    ) -> Result<bool> {
        reply::problem(session, format, problem).await?;
        Ok(true)
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
                let origin = match object.origin() {
                    CameFrom::Bucket => Origin {
                        source: "cache",
                        cache_status: Cow::Borrowed("artifactapi; hit; detail=shared"),
                        fresh_from_upstream: false,
                    },
                    // Nothing has to come any more for this answer.
                    _ if object.has_arrived() => Origin {
                        source: "cache",
                        cache_status: hit_status(left(object)),
                        fresh_from_upstream: false,
                    },
                    CameFrom::Upstream | CameFrom::Node => Origin {
                        source: "remote",
                        cache_status: Cow::Borrowed("artifactapi; fwd=miss; stored; collapsed"),
                        fresh_from_upstream: true,
                    },
                };
                ctx.cache = if origin.fresh_from_upstream { "collapsed" } else { "hit" };
                return self.deliver(session, ctx, &request, Arc::clone(object), origin).await;
            }
            forced = request.remote.client_revalidation
                && request.policy.class == Class::Mutable
                && wants_fresh(session)
                && object.fresh.checked_at() + 1000 < now;
            if left(object).is_fresh() && !forced || request.remote.offline {
                let origin = Origin {
                    source: "cache",
                    cache_status: hit_status(left(object)),
                    fresh_from_upstream: false,
                };
                ctx.cache = "hit";
                return self.deliver(session, ctx, &request, Arc::clone(object), origin).await;
            }
        }
        // Other nodes, or the bucket, may have it all the same.
        if request.remote.offline && self.fills.shared.is_alone() {
            let failure = offline();
            let problem = Problem::new(failure.status, failure.reason).at(&request.remote.name, &request.path.encoded);
            return self.refuse(session, Some(request.format), problem).await;
        }
        let expired = found.is_some();
        if !expired && let Some(answer) = self.fills.remembered(&request.asked()) {
            ctx.cache = "negative";
            let source = ("cache", "artifactapi; hit; detail=negative");
            relay::answer(session, &request, &answer, source).await?;
            return Ok(true);
        }
        let url = match self.upstream_url(&request.asset, &request.remote_url).await {
            Ok(url) => url,
            Err(problem) => {
                // What is held is named by no index that clients get.
                let what = (&*request.resolved.asset, request.resolved.format);
                if self
                    .is_held(session, what, request.resolved.policy, (None, None))
                    .await?
                {
                    return Ok(true);
                }
                let problem = problem.at(&request.remote.name, &request.path.encoded);
                return self.refuse(session, Some(request.format), problem).await;
            }
        };
        let mut wanted = request.wanted(url);
        // A file that its manifest names by a checksum is what it is.
        wanted.force |= forced && request.standing.is_none();
        if !request.head
            && !expired
            && request.view.is_none()
            && session.req_header().headers.contains_key(header::RANGE)
            && let Some(object) = self.fills.elsewhere(&wanted).await
            && self.is_part(session, &object)
        {
            let origin = Origin::of(&object, &How::Restored, expired, false, ctx);
            return self.deliver(session, ctx, &request, object, origin).await;
        }
        // A HEAD on what is not stored goes up as one, on a tag always: where it leads is all that is wanted. On a rewritten
        // document its length is only ours to know.
        if request.head && request.view.is_none() && (!expired || wanted.is_pointer()) {
            let (outcome, joined) = self.fills.obtain(wanted.clone(), Method::HEAD).await;
            if let Outcome::Answer(answer) = &outcome
                && answer.status == 200
                && let what = (&*request.resolved.asset, request.resolved.format)
                && self
                    .is_held(session, what, request.resolved.policy, (Some(&answer.headers), None))
                    .await?
            {
                ctx.cache = "miss";
                return Ok(true);
            }
            match outcome {
                Outcome::Object(object, how) => {
                    let origin = Origin::of(&object, &how, expired, joined, ctx);
                    return self.deliver(session, ctx, &request, object, origin).await;
                }
                Outcome::Answer(answer) if head_is_enough(&answer) => {
                    ctx.cache = "miss";
                    let origin = Origin {
                        source: "remote",
                        cache_status: Cow::Borrowed("artifactapi; fwd=miss"),
                        fresh_from_upstream: true,
                    };
                    let mut headers = answer.headers.clone();
                    for (name, value) in &wanted.says() {
                        if name != header::ETAG || !headers.contains_key(name) {
                            headers.insert(name.clone(), value.clone());
                        }
                    }
                    return self.answer_head(session, &request, &headers, "no-cache", &origin).await;
                }
                Outcome::Answer(answer) if !head_must_be_get(&answer) => {
                    ctx.cache = "miss";
                    let source = ("remote", "artifactapi; fwd=miss");
                    relay::answer(session, &request, &answer, source).await?;
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
                let origin = Origin::of(&object, &how, expired, joined, ctx);
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
                let status = match &answer.reason {
                    Some(_) => format!("artifactapi; fwd={forwarded}{collapsed}"),
                    None => format!("artifactapi; fwd={forwarded}; fwd-status={}{collapsed}", answer.status),
                };
                relay::answer(session, &request, &answer, ("remote", &status)).await?;
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
                self.pass_by(session, ctx, (&request, &wanted), "artifactapi; fwd=bypass")
                    .await
            }
        }
    }

    /// What a plain GET gets: something fresh, complete and already open, which most requests are for; found and dressed
    /// without waiting for anything. Everything else takes the long way.
    pub(super) fn hit<'a>(
        &self,
        resolved: &'a Resolved,
        gzip: bool,
        remote_url: impl FnOnce() -> Option<String>,
    ) -> Option<Hit<'a>> {
        if resolved.manifest.is_some() || resolved.remote.client_revalidation {
            return None;
        }
        let original = self.fills.store.in_memory(&resolved.key)?;
        let now = now_ms();
        let left = original.fresh.left(resolved.policy.class, resolved.policy.ttl, now);
        if self.may_be_held(resolved, resolved.policy, &original) {
            return None;
        }
        if !left.is_fresh() || resolved.view.is_none() && original.head.content_encoding().is_some() {
            return None;
        }
        let object = match resolved.view {
            None => Arc::clone(&original),
            Some(view) => {
                let url = match view.style {
                    Style::Relative => String::new(),
                    Style::Absolute => remote_url()?,
                };
                let kind = Kind::of(&resolved.remote, view);
                self.views.in_memory(&original, kind, gzip, &url)?
            }
        };
        if !object.is_complete() {
            return None;
        }
        if resolved.view.is_some() {
            self.fills.store.count_use(&original);
        }
        let dress = Dress {
            policy: resolved.policy,
            left: left.at_most(of_view(&object, now)),
            age: Some(now.saturating_sub(original.fresh.checked_at()) / 1000),
            source: "cache",
            cache_status: hit_status(left),
            shown: Shown::of(resolved),
            by_coding: resolved.view.is_some(),
            presented_as: resolved.presented_as.filter(|_| is_html(original.head.content_type())),
            head_only: false,
        };
        Some(Hit { object, dress })
    }

    /// What a client gets to see of an original.
    async fn view(
        &self,
        request: &Request,
        original: &Arc<Object>,
        kind: Kind,
        gzip: bool,
    ) -> std::result::Result<Arc<Object>, ViewError> {
        let gzip = gzip && kind != Kind::Decoded;
        if let Some(view) = self.views.known(original, kind, gzip, &request.remote_url).await {
            return Ok(view);
        }
        let view = request.view.filter(|_| kind != Kind::Decoded);
        let rewriting = view.map(|view| Rewriting {
            asset: Arc::clone(&request.asset),
            view,
            remote_url: request.remote_url.clone(),
        });
        self.views.open(original, &Spec { rewriting, gzip }).await
    }

    /// Serves an object, through its view where it has one.
    pub(super) async fn deliver(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        request: &Request,
        original: Arc<Object>,
        origin: Origin,
    ) -> Result<bool> {
        self.fills.store.count_use(&original);
        if original.head.stands_for.is_some() {
            return Box::pin(self.deliver_referent(session, ctx, request, original, origin)).await;
        }
        let resolved = &request.resolved;
        let what = (&*resolved.asset, resolved.format);
        if self
            .is_held(
                session,
                what,
                resolved.policy,
                (Some(&original.head.headers), Some(&original)),
            )
            .await?
        {
            return Ok(true);
        }
        if let Err(reason) = request.asset.check_page(&original.head.headers) {
            let problem = Problem::new(502, reason).at(&request.remote.name, &request.path.encoded);
            return self.refuse(session, Some(request.format), problem).await;
        }
        let encoded = original.head.content_encoding();
        let kind = match (request.view, encoded) {
            (Some(view), _) => Some(Kind::of(&request.remote, view)),
            // A coding that the client did not accept is taken off, and so is one that upstream only names.
            (None, Some(coding)) if is_gzip(coding) => {
                let as_it_is = accepts(session, "gzip") && has_gzip_bytes(&original).await;
                (!as_it_is).then_some(Kind::Decoded)
            }
            (None, _) => None,
        };
        if let Some(coding) = encoded.filter(|coding| kind.is_none() && !is_gzip(coding) && !accepts(session, coding)) {
            let detail =
                format!("upstream sent this in the coding {coding}, unasked, and the client does not accept it");
            let problem = Problem::new(502, detail).at(&request.remote.name, &request.path.encoded);
            return self.refuse(session, Some(request.format), problem).await;
        }
        let object = match kind {
            None => Arc::clone(&original),
            Some(kind) => match self.view(request, &original, kind, wants_gzip(session)).await {
                Ok(view) => {
                    self.fills.store.count_use(&view);
                    view
                }
                Err(error) => {
                    let status = match error {
                        ViewError::NoSpace(_) | ViewError::Busy => 503,
                        ViewError::Coding(_) => 502,
                    };
                    let problem = Problem::new(status, format!("the document cannot be rewritten: {error}"))
                        .at(&request.remote.name, &request.path.encoded);
                    return self.refuse(session, Some(request.format), problem).await;
                }
            },
        };
        if kind.is_none() && !object.is_complete() && self.is_far_ahead(session, &object) {
            return self.range_of_its_own(session, ctx, request, &object).await;
        }
        let usable = if serve::needs_whole(session, &object) {
            object.settled().await
        } else {
            serve::has_begun(&object).await
        };
        if !usable {
            if let Some(copy) = self.fills.copy_before(&original, request.policy).await {
                let origin = Origin::of(&copy, &How::Stale(None), true, false, ctx);
                return Box::pin(self.deliver(session, ctx, request, copy, origin)).await;
            }
            let detail = if kind.is_some() {
                "upstream's document could not be rewritten: it ended early, or is not what its type says"
            } else {
                "the transfer from upstream ended early; try again"
            };
            let problem = Problem::new(502, detail)
                .at(&request.remote.name, &request.path.encoded)
                .header(header::RETRY_AFTER, "1");
            return self.refuse(session, Some(request.format), problem).await;
        }
        let now = now_ms();
        let dress = Dress {
            policy: request.policy,
            left: request.left(&original, now).at_most(of_view(&object, now)),
            age: (!origin.fresh_from_upstream).then(|| {
                let asked_for = request.pointer.as_deref().unwrap_or(&original);
                now.saturating_sub(asked_for.fresh.checked_at()) / 1000
            }),
            source: origin.source,
            cache_status: origin.cache_status,
            shown: Shown::of(request),
            by_coding: kind.is_some() || encoded.is_some(),
            presented_as: request.presented_as.filter(|_| is_html(original.head.content_type())),
            head_only: request.head,
        };
        ctx.source = Some(origin.source);
        ctx.sent += serve::serve(&mut Reading { session }, &object, &dress).await?;
        Ok(true)
    }
}

/// What is left of a view: another one takes its place when a release that was held back is due. The original of a view is
/// trusted by its own policy.
fn of_view(object: &Object, now: u64) -> Left {
    object.fresh.left(Class::Immutable, std::time::Duration::ZERO, now)
}

/// `Cache-Status` of a hit.
fn hit_status(left: Left) -> Cow<'static, str> {
    match left {
        Left::ForEver => Cow::Borrowed("artifactapi; hit"),
        Left::For(left) => format!("artifactapi; hit; ttl={}", left.as_secs()).into(),
        Left::Expired(since) => format!("artifactapi; hit; ttl=-{}; detail=offline", since.as_secs()).into(),
    }
}

fn is_html(content_type: &str) -> bool {
    content_type.to_ascii_lowercase().starts_with("text/html")
}

/// `Accept`; several field lines are one list (RFC 9110 section 5.3).
pub(super) fn accept(session: &Session) -> Option<Cow<'_, str>> {
    let mut values = session
        .req_header()
        .headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let first = values.next()?;
    let mut all = Cow::Borrowed(first);
    for value in values {
        all.to_mut().push_str(", ");
        all.to_mut().push_str(value);
    }
    Some(all)
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

/// Whether the client takes content that is in a coding. One that says nothing of codings takes all (RFC 9110 section
/// 12.5.3).
fn accepts(session: &Session, coding: &str) -> bool {
    let values = session.req_header().headers.get_all(header::ACCEPT_ENCODING);
    values.iter().next().is_none() || accepted(values.iter().filter_map(|value| value.to_str().ok()), coding)
}

/// Whether the client asks for gzip where both forms can be had.
pub(super) fn wants_gzip(session: &Session) -> bool {
    session.req_header().headers.contains_key(header::ACCEPT_ENCODING) && accepts(session, "gzip")
}

/// RFC 9110 section 12.5.3: whether values of `Accept-Encoding` allow a coding.
pub(super) fn accepted<'a>(values: impl Iterator<Item = &'a str>, wanted: &str) -> bool {
    let mut any = None;
    for value in values {
        for item in value.split(',') {
            let mut parts = item.split(';');
            let coding = parts.next().unwrap_or("").trim();
            let allowed = fields::weight(parts) > 0.0;
            if plain(coding).eq_ignore_ascii_case(plain(wanted)) {
                return allowed;
            }
            if coding == "*" {
                any = Some(allowed);
            }
        }
    }
    any.unwrap_or(false)
}

/// `x-gzip` is `gzip`, by another name (RFC 9110 section 8.4.1.3).
fn plain(coding: &str) -> &str {
    let (prefix, rest) = coding.split_at_checked(2).unwrap_or(("", coding));
    if prefix.eq_ignore_ascii_case("x-") {
        rest
    } else {
        coding
    }
}
