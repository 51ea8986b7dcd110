//! What happens to a request for an artifact: policy, then the object by its key, then a flight.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, header};
use pingora_error::Result;
use pingora_proxy::Session;

use super::accept::{accept, wants_fresh};
use super::dress::Shown;
use super::head::{head_is_enough, head_must_be_get};
use super::provenance::{Provenance, hit_status};
use super::request::Request;
use super::resolve::{self, HotKey, Resolution, Resolved, Target};
use super::{Client, Ctx, relay};
use crate::api::access::{self, Need};
use crate::cache::{Object, Origin, now_ms};
use crate::config::{Config, Remote, RemoteType};
use crate::fill::ahead::is_due_soon;
use crate::fill::set::Standing;
use crate::fill::{How, Outcome, Wanted, offline};
use crate::formats::links::Style;
use crate::formats::{self, Asset, Class, Format};
use crate::policy;
use crate::session::public::{self, arrival};
use crate::session::reply::{self, Problem};

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
        if let Err(problem) = access::check(session, config, Need::of_artifact(&method, &remote)) {
            return self.forbid(session, Some(formats::of_remote(&remote)), problem).await;
        }
        if remote.kind == RemoteType::Local {
            return Box::pin(self.local(session, ctx, config, remote, target)).await;
        }
        let accept = accept(session);
        let bound_host = target.bound_host;
        match resolve::resolve(&remote, &method, target, accept.as_deref()) {
            Resolution::Artifact(resolved) => {
                let resolved = Arc::new(resolved);
                if let Some(stand_in) = &resolved.stand_in {
                    return Box::pin(self.list(session, ctx, Arc::clone(&resolved), stand_in)).await;
                }
                if let Some(excerpt) = &resolved.excerpt {
                    let asked = (Arc::clone(&resolved), &**excerpt);
                    return Box::pin(self.excerpt(session, ctx, config, asked)).await;
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

    /// Has what is stored and about to expire fetched anew, which nobody waits for.
    async fn refresh_ahead(&self, request: &Request) {
        // A file of a set is trusted as long as its manifest, which is refreshed itself.
        if request.standing.is_none()
            && let Ok(url) = self.upstream_url(&request.asset, &request.remote_url).await
        {
            self.fills.refresh_ahead(request.wanted(url));
        }
    }

    /// Says that the client may not do it, as it understands that.
    pub(super) async fn forbid(
        &self,
        session: &mut Session,
        format: Option<&dyn Format>,
        problem: Problem,
    ) -> Result<bool> {
        let is_registry = format.is_some_and(|format| format.root().is_some());
        let problem = match is_registry {
            true => access::of_registry(problem),
            false => problem,
        };
        self.refuse(session, format, problem).await
    }

    /// Serves what is stored or growing, or has it fetched.
    async fn answer(&self, session: &mut Session, ctx: &mut Ctx, request: Request) -> Result<bool> {
        let store = self.fills.store;
        let now = now_ms();
        let left = |object: &Object| request.left(object, now_ms());
        let found = match request.remote.refresh_ahead {
            // What comes to take the place of something fresh is waited for by nobody.
            true => store
                .stored(&request.key)
                .await
                .filter(|stored| left(stored).is_fresh()),
            false => None,
        };
        let found = match found {
            Some(stored) => Some(stored),
            None => store.open_object(&request.key).await,
        };
        let mut forced = false;
        if let Some(object) = &found {
            if !object.is_complete() {
                let origin = match object.origin() {
                    Origin::Bucket => Provenance {
                        source: "cache",
                        cache_status: Cow::Borrowed("artifactapi; hit; detail=shared"),
                        fresh_from_upstream: false,
                    },
                    // Nothing has to come any more for this answer.
                    _ if object.has_arrived() => Provenance {
                        source: "cache",
                        cache_status: hit_status(left(object)),
                        fresh_from_upstream: false,
                    },
                    Origin::Upstream | Origin::Node => Provenance {
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
                let origin = Provenance {
                    source: "cache",
                    cache_status: hit_status(left(object)),
                    fresh_from_upstream: false,
                };
                ctx.cache = "hit";
                if is_due_soon(&request.remote, request.policy, left(object)) && !request.remote.offline {
                    self.refresh_ahead(&request).await;
                }
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
                if self
                    .is_held(session, &Shown::of(&request), request.policy, (None, None))
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
            let origin = Provenance::of(&object, &How::Restored, expired, false, ctx);
            return self.deliver(session, ctx, &request, object, origin).await;
        }
        // A HEAD on what is not stored goes up as one, on a tag always: where it leads is all that is wanted. On a rewritten
        // document its length is only ours to know.
        if request.head && request.view.is_none() && (!expired || wanted.is_pointer()) {
            let (outcome, joined) = self.fills.obtain(wanted.clone(), Method::HEAD).await;
            if let Outcome::Answer(answer) = &outcome
                && answer.status == 200
                && let found = (Some(&answer.headers), None)
                && self
                    .is_held(session, &Shown::of(&request), request.policy, found)
                    .await?
            {
                ctx.cache = "miss";
                return Ok(true);
            }
            match outcome {
                Outcome::Object(object, how) => {
                    let origin = Provenance::of(&object, &how, expired, joined, ctx);
                    return self.deliver(session, ctx, &request, object, origin).await;
                }
                Outcome::Answer(answer) if head_is_enough(&answer) => {
                    ctx.cache = "miss";
                    let origin = Provenance {
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
                let origin = Provenance::of(&object, &how, expired, joined, ctx);
                self.deliver(session, ctx, &request, object, origin).await
            }
            Outcome::Answer(answer) if answer.status < 400 && request.view.is_some() => {
                // Passed on as it is, it would lead clients past this proxy.
                let detail = format!("upstream answered {} where a document was asked for", answer.status);
                let problem = Problem::new(502, detail).at(&request.remote.name, &request.path.encoded);
                self.refuse(session, Some(request.format), problem).await
            }
            Outcome::Answer(answer) => {
                ctx.cache = if expired { "expired" } else { "miss" };
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
                let wanted = self.fills.verifiable(wanted).await;
                self.pass_by(session, ctx, (&request, &wanted), "artifactapi; fwd=bypass")
                    .await
            }
        }
    }
}
