//! What goes to upstream by itself, cache off: what cannot be stored, a range far ahead of its fill, npm's services.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method, header};
use pingora_error::Result;
use pingora_proxy::Session;

use super::artifact::Request;
use super::range::{self, Ranges};
use super::reply::Problem;
use super::{Check, Client, Ctx, PassBy};
use crate::cache::{Key, Object, Origin};
use crate::config::Remote;
use crate::fill::{How, Wanted};
use crate::formats::{self, ArtifactPath, Format};
use crate::policy;
use crate::upstream::{Ask, Exchange};

/// A range that starts this far ahead of what has arrived does not wait for it.
const FAR_AHEAD: u64 = 8 << 20;

impl Client {
    pub(super) fn is_far_ahead(&self, session: &Session, object: &Object) -> bool {
        let request = session.req_header();
        let Some(range) = request.headers.get(header::RANGE).and_then(|value| value.to_str().ok()) else {
            return false;
        };
        let Some(length) = object.length() else { return false };
        let Ranges::One(start, _) = range::parse(range, length) else {
            return false;
        };
        request.method == Method::GET
            && object.head.ranges
            && object.head.content_encoding().is_none()
            && (object.head.etag().is_some() || object.head.last_modified().is_some())
            && start > object.progress().visible + FAR_AHEAD
            && range::if_range_holds(&request.headers, object.etag().as_deref(), object.head.last_modified())
    }

    /// What is asked for is a part of something large that is elsewhere: a copy of the whole would cost more than it is worth.
    pub(super) fn is_part(&self, session: &Session, object: &Object) -> bool {
        let headers = &session.req_header().headers;
        let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
        let (Some(range), Some(length)) = (range, object.length().filter(|length| *length > FAR_AHEAD)) else {
            return false;
        };
        let is_part = match range::parse(range, length) {
            Ranges::Whole => false,
            Ranges::One(start, end) => end - start < length,
            Ranges::Unsatisfiable | Ranges::Several(_) => true,
        };
        is_part && range::if_range_holds(headers, object.etag().as_deref(), object.head.last_modified())
    }

    /// A range that would have to wait for the fill is fetched as it is, beside it.
    pub(super) async fn range_of_its_own(
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
        if growing.origin() == Origin::Bucket
            && let Some(object) = self.fills.elsewhere(&wanted).await
        {
            let origin = super::artifact::Origin::of(&object, &How::Restored, false, false, ctx);
            return Box::pin(self.deliver(session, ctx, request, object, origin)).await;
        }
        ctx.cache = "partial";
        let mut headers = Vec::new();
        if let Some(range) = session.req_header().headers.get(header::RANGE) {
            headers.push((header::RANGE, range.clone()));
        }
        // Only a part of the very body that is growing may stand beside it. What a digest names is that body anyway, and
        // its validator may be one of ours.
        let strong = growing.head.etag().filter(|etag| !etag.starts_with("W/"));
        if wanted.expected.is_none()
            && let Some(validator) = strong.or(growing.head.last_modified())
        {
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
        self.pass_with(session, ctx, &wanted, "artifactapi; fwd=partial", ask)
            .await
    }

    pub(super) async fn pass_by(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        wanted: &Wanted,
        cache_status: &str,
    ) -> Result<bool> {
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
        headers: Vec<(HeaderName, HeaderValue)>,
    ) -> Result<bool> {
        let ask = Ask {
            method,
            accept: wanted.accept,
            gzip: false,
            headers,
            total: None,
            conditional: false,
        };
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
                return self
                    .refuse(session, Some(formats::of(wanted.remote.package)), problem)
                    .await;
            }
        };
        let upstream = Arc::clone(&self.fills.upstream);
        let is_whole = ask.method == Method::GET && !ask.headers.iter().any(|(name, _)| name == header::RANGE);
        let check = wanted.expected.clone().filter(|_| is_whole).map(Check::new);
        let exchange = Exchange::new(upstream, Arc::clone(&wanted.remote), wanted.url.clone(), ask)
            .with_query(wanted.query.clone())
            .with_scope(wanted.scope.clone());
        ctx.source = Some("remote");
        ctx.pass = Some(PassBy {
            exchange,
            cache_status: cache_status.to_owned(),
            path,
            says: wanted.says.clone(),
            check,
            _place: place,
        });
        Ok(false)
    }

    /// npm's audit and search and their like: there and back, never stored.
    pub(super) async fn pass_through(
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
        let policy = policy::of_service();
        let url = format.upstream_url(&remote, &path);
        let key = Key::new(&remote.name, &path.encoded, path.query.as_deref(), "");
        let mut wanted = Wanted::new(remote, key, url, policy);
        wanted.query = path.query;
        self.pass(session, ctx, &wanted, "artifactapi; fwd=bypass", method, headers)
            .await
    }
}
