//! What goes to upstream by itself, cache off: what cannot be stored, a range far ahead of its fill, npm's services.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method, Version, header};
use pingora_error::Result;
use pingora_proxy::Session;

use super::artifact::Request;
use super::dress::{self, NO_CACHE, Shown};
use super::range::{self, Ranges};
use super::resolve::Resolved;
use super::{Check, Client, Ctx, PassBy};
use crate::cache::{Key, Object, Origin};
use crate::config::Remote;
use crate::fill::{How, Wanted};
use crate::formats::{self, ArtifactPath, Format};
use crate::policy;
use crate::session::body;
use crate::session::reply::Problem;
use crate::session::writing::Reading;
use crate::upstream::{Ask, Exchange, Failure};

/// The longest body of a POST: what npm's clients send is a list of packages.
const MAX_BODY: usize = 16 << 20;
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
        self.pass(
            session,
            ctx,
            (Shown::of(request), &wanted),
            "artifactapi; fwd=partial",
            ask,
        )
        .await
    }

    pub(super) async fn pass_by(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        (resolved, wanted): (&Resolved, &Wanted),
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
        let ask = ask(wanted, method, headers);
        self.pass(session, ctx, (Shown::of(resolved), wanted), cache_status, ask)
            .await
    }

    async fn pass(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        (shown, wanted): (Shown<'_>, &Wanted),
        cache_status: &str,
        ask: Ask,
    ) -> Result<bool> {
        let path = wanted.key.parts().1.to_owned();
        // Nobody asked for a body: one that is held back would keep the place for as long.
        if let Err(problem) = body::read(session, 0, &body::UNASKED, &self.limits).await? {
            let problem = problem.at(&wanted.remote.name, &path);
            return self.refuse(session, Some(shown.format), problem).await;
        }
        let place = match self.fills.upstream.place_to_pass(&wanted.remote).await {
            Ok(place) => place,
            Err(failure) => return self.no_place(session, wanted, failure).await,
        };
        let is_whole = ask.method == Method::GET && !ask.headers.iter().any(|(name, _)| name == header::RANGE);
        let check = wanted.expected.clone().filter(|_| is_whole).map(Check::new);
        ctx.source = Some("remote");
        ctx.pass = Some(PassBy {
            exchange: self.exchange(wanted, ask),
            cache_status: cache_status.to_owned(),
            format: shown.format,
            path,
            decoded: shown.path.to_owned(),
            bound_host: shown.bound_host,
            says: wanted.says.clone(),
            check,
            _place: place,
        });
        Ok(false)
    }

    fn exchange(&self, wanted: &Wanted, ask: Ask) -> Exchange {
        let upstream = Arc::clone(&self.fills.upstream);
        Exchange::new(upstream, Arc::clone(&wanted.remote), wanted.url.clone(), ask)
            .with_query(wanted.query.clone())
            .with_scope(wanted.scope.clone())
    }

    async fn no_place(&self, session: &mut Session, wanted: &Wanted, failure: Failure) -> Result<bool> {
        let problem = Problem::new(failure.status, failure.reason)
            .at(&wanted.remote.name, wanted.key.parts().1)
            .header(header::RETRY_AFTER, "5");
        let format = formats::of(wanted.remote.package);
        self.refuse(session, Some(format), problem).await
    }

    /// npm's audit and search and their like: there and back, never stored.
    pub(super) async fn pass_through(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        remote: Arc<Remote>,
        (format, path, bound_host): (&'static dyn Format, ArtifactPath, bool),
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
        let mut wanted = Wanted::new(Arc::clone(&remote), key, url, policy);
        wanted.query = path.query;
        let shown = Shown {
            remote: &remote,
            format,
            path: &path.decoded,
            bound_host,
        };
        let is_post = method == Method::POST;
        let ask = ask(&wanted, method, headers);
        match is_post {
            true => Box::pin(self.post(session, ctx, (shown, &wanted), ask)).await,
            false => {
                self.pass(session, ctx, (shown, &wanted), "artifactapi; fwd=bypass", ask)
                    .await
            }
        }
    }

    /// A POST: its body is read before upstream is asked, so that a client that holds it back takes nobody's place.
    async fn post(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        (shown, wanted): (Shown<'_>, &Wanted),
        ask: Ask,
    ) -> Result<bool> {
        let path = wanted.key.parts().1;
        let body = match body::read(session, MAX_BODY, &body::POSTS, &self.limits).await? {
            Ok(body) => body,
            Err(problem) => {
                let problem = problem.at(&wanted.remote.name, path);
                return self.refuse(session, Some(shown.format), problem).await;
            }
        };
        let _place = match self.fills.upstream.place_to_pass(&wanted.remote).await {
            Ok(place) => place,
            Err(failure) => return self.no_place(session, wanted, failure).await,
        };
        ctx.source = Some("remote");
        let mut answering = match self.exchange(wanted, ask).ask_directly(&body.bytes).await {
            Ok(answering) => answering,
            Err(failure) => {
                let problem = Problem::new(failure.status, failure.reason).at(&wanted.remote.name, path);
                return self.refuse(session, Some(shown.format), problem).await;
            }
        };
        drop(body);
        let mut response = dress::of_passed(&answering.header, &shown, path, answering.exchange.url())?;
        let cache_status = HeaderValue::from_static("artifactapi; fwd=bypass");
        dress::finish(&mut response.header, &shown, ("remote", cache_status), NO_CACHE)?;
        let mut response = response.header;
        let mut next = answering.piece().await?;
        if next.is_some() && !response.headers.contains_key(header::CONTENT_LENGTH) {
            match session.req_header().version {
                // Only the connection's end can be the body's.
                Version::HTTP_10 => session.set_keepalive(None),
                _ => response.insert_header(header::TRANSFER_ENCODING, "chunked")?,
            }
        }
        answering.exchange.deadline.clear();
        session
            .write_response_header(Box::new(response), next.is_none())
            .await?;
        while let Some(piece) = next {
            ctx.sent += piece.len() as u64;
            answering.exchange.deadline.resume();
            next = answering.piece().await?;
            // What a client takes its time for is not upstream's.
            answering.exchange.deadline.clear();
            Reading { session }.write(piece, next.is_none()).await?;
        }
        answering.end().await;
        Ok(true)
    }
}

fn ask(wanted: &Wanted, method: Method, headers: Vec<(HeaderName, HeaderValue)>) -> Ask {
    Ask {
        method,
        accept: wanted.accept,
        gzip: false,
        headers,
        total: None,
        conditional: false,
    }
}
