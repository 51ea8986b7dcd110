//! What goes to upstream by itself: what cannot be stored, a range far ahead of its fill, services.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Version, header};
use pingora_error::{Error, ErrorType, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::dress::{self, NO_CACHE, Shown};
use super::provenance::Provenance;
use super::range::{self, Ranges};
use super::request::Request;
use super::resolve::Resolved;
use super::{Client, Ctx};
use crate::cache::{Expected, Object, Origin, Verifier, Wrong};
use crate::fill::decoded::{GZIP, is_gzip};
use crate::fill::{How, Wanted};
use crate::formats::{Asset, Format};
use crate::headers;
use crate::on_behalf;
use crate::policy;
use crate::session::body;
use crate::session::reply::Problem;
use crate::session::writing::Reading;
use crate::upstream::{Answering, Ask, Exchange, Failure};

/// The longest body of a POST: what npm's clients send is a list of packages.
const MAX_BODY: usize = 16 << 20;
/// A range that starts this far ahead of what has arrived does not wait for it.
const FAR_AHEAD: u64 = 8 << 20;

/// Compares a body with its digest while it passes by. The last piece is held back until it is known to be right.
struct Check {
    verifier: Verifier,
    held: Option<Bytes>,
}

impl Check {
    fn new(expected: &Expected) -> Self {
        Check {
            verifier: expected.verifier(),
            held: None,
        }
    }

    /// What may be sent on, having got `piece`.
    fn take(&mut self, piece: Bytes) -> Option<Bytes> {
        self.verifier.update(&piece);
        self.held.replace(piece)
    }

    /// The last piece; and what is wrong with the body, if anything is.
    fn end(self) -> (Bytes, Option<Wrong>) {
        (self.held.unwrap_or_default(), self.verifier.end().err())
    }
}

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
        let url = match self.upstream_url(&request.asset, &request.remote_url).await {
            Ok(url) => url,
            Err(problem) => return self.refuse(session, Some(request.format), problem).await,
        };
        let wanted = request.wanted(url);
        if growing.origin() == Origin::Bucket
            && let Some(object) = self.fills.elsewhere(&wanted).await
        {
            let origin = Provenance::of(&object, &How::Restored, false, false, ctx);
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
            headers.push((header::IF_RANGE, headers::value(validator)));
        }
        let ask = Ask {
            method: Method::GET,
            accept: wanted.asset.form.accept,
            gzip: false,
            headers,
            total: growing.length(),
            conditional: false,
        };
        let shown = Shown::of(request);
        self.pass(session, ctx, (shown, &wanted), "artifactapi; fwd=partial", ask)
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

    /// Asks upstream, and hands on what it answers, as it comes.
    async fn pass(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        (shown, wanted): (Shown<'_>, &Wanted),
        cache_status: &str,
        ask: Ask,
    ) -> Result<bool> {
        let path = &wanted.asset.path.encoded;
        let (longest, memory) = match ask.method {
            Method::POST => (MAX_BODY, &body::POSTS),
            // Nobody asked for a body.
            _ => (0, &body::UNASKED),
        };
        // Before a place is taken: one that is held back would keep it for as long.
        let limits = self.state.config().settings.clients;
        let body = match body::read(session, longest, memory, &limits).await? {
            Ok(body) => body,
            Err(problem) => {
                let problem = problem.at(&wanted.remote().name, path);
                return self.refuse(session, Some(shown.format), problem).await;
            }
        };
        let _place = match self.fills.upstream.place_to_pass(wanted.remote()).await {
            Ok(place) => place,
            Err(failure) => {
                let problem = Problem::new(failure.status, failure.reason)
                    .at(&wanted.remote().name, path)
                    .header(header::RETRY_AFTER, "5");
                return self.refuse(session, Some(shown.format), problem).await;
            }
        };
        ctx.source = Some("remote");
        // Boxed: most requests do not come here.
        let asking = Box::pin(self.exchange(wanted, ask).ask_directly(&body.bytes));
        let waiting = on_behalf::waiting();
        let answering = asking.await;
        drop((body, waiting));
        let dressed = match answering {
            Ok(answering) => dressed(answering, &shown, wanted, cache_status).await,
            Err(failure) => Err(failure),
        };
        if let Ok((header, _)) = &dressed
            && matches!(header.status.as_u16(), 200 | 206)
            && self
                .is_held(session, &shown, wanted.policy, (Some(&header.headers), None))
                .await?
        {
            return Ok(true);
        }
        match dressed {
            Ok((header, answering)) => Box::pin(self.hand_on(session, ctx, wanted, header, answering)).await,
            Err(failure) => {
                self.metrics.upstream_failed(&wanted.remote().name, failure.kind());
                let problem = Problem::new(failure.status, failure.reason).at(&wanted.remote().name, path);
                self.refuse(session, Some(shown.format), problem).await
            }
        }
    }

    /// Sends the answer to the client. What that one takes its time for is not upstream's.
    async fn hand_on(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        wanted: &Wanted,
        mut header: ResponseHeader,
        mut answering: Answering,
    ) -> Result<bool> {
        // A part, or a coding of it, has no digest that could be compared.
        let is_whole = header.status.as_u16() == 200 && !header.headers.contains_key(header::CONTENT_ENCODING);
        let listed = wanted.expected.as_ref().or(wanted.reported.as_ref());
        let expected = listed.cloned().or(wanted.before.map(Expected::Sha256));
        let mut check = expected.as_ref().filter(|_| is_whole).map(Check::new);
        let has_body = has_body(&answering);
        if has_body && !header.headers.contains_key(header::CONTENT_LENGTH) {
            match session.req_header().version {
                // Only the connection's end can be the body's.
                Version::HTTP_10 => session.set_keepalive(None),
                _ => header.insert_header(header::TRANSFER_ENCODING, "chunked")?,
            }
        }
        session.write_response_header(Box::new(header), !has_body).await?;
        while let Some(piece) = answering.piece().await? {
            let free = match &mut check {
                Some(check) => check.take(piece),
                None => Some(piece),
            };
            if let Some(free) = free {
                ctx.sent += free.len() as u64;
                Reading { session }.write(free, false).await?;
            }
        }
        if has_body {
            let (last, wrong) = check.map_or((Bytes::new(), None), Check::end);
            if let Some(Wrong { expected, found }) = wrong {
                let (remote, path) = (&wanted.remote().name, &wanted.asset.path.encoded);
                match listed {
                    Some(_) => self.fills.note_wrong(wanted),
                    None => self.metrics.changed(remote),
                }
                tracing::warn!(%remote, %path, %expected, %found, "content that passed by has another digest");
                if wanted.reported.is_none() {
                    return Err(Error::explain(ErrorType::ReadError, "content with another digest"));
                }
            }
            ctx.sent += last.len() as u64;
            Reading { session }.write(last, true).await?;
        }
        answering.end().await;
        Ok(true)
    }

    fn exchange(&self, wanted: &Wanted, ask: Ask) -> Exchange {
        let upstream = Arc::clone(&self.fills.upstream);
        Exchange::new(upstream, Arc::clone(wanted.remote()), wanted.url.clone(), ask)
            .with_query(wanted.asset.path.query.clone())
            .with_scope(wanted.asset.token_scope.clone())
    }

    /// What a registry offers besides its files (npm's audit, searches): there and back, never stored.
    pub(super) async fn pass_through(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        (format, asset, bound_host): (&'static dyn Format, Arc<Asset>, bool),
    ) -> Result<bool> {
        let (remote, path) = (&asset.remote, &asset.path.encoded);
        if remote.offline {
            let problem = Problem::new(504, "this remote is offline").at(&remote.name, path);
            return self.refuse(session, Some(format), problem).await;
        }
        let wanted = match self.upstream_url(&asset, "").await {
            Ok(url) => Wanted::new(Arc::clone(&asset), url, policy::of_service()),
            Err(problem) => return self.refuse(session, Some(format), problem.at(&remote.name, path)).await,
        };
        ctx.cache = "pass";
        let request = session.req_header();
        let method = request.method.clone();
        let mut headers = Vec::new();
        for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::ACCEPT] {
            if let Some(value) = request.headers.get(&name) {
                headers.push((name, value.clone()));
            }
        }
        let shown = Shown {
            asset: &asset,
            format,
            bound_host,
        };
        let ask = ask(&wanted, method, headers);
        self.pass(session, ctx, (shown, &wanted), "artifactapi; fwd=bypass", ask)
            .await
    }
}

/// Whether the answer has a body (RFC 9112 section 6.3).
fn has_body(answering: &Answering) -> bool {
    answering.exchange.ask().method != Method::HEAD && !matches!(answering.header.status.as_u16(), 204 | 304)
}

/// The header that clients get, and the answer, as far as it had to be read for that.
async fn dressed(
    mut answering: Answering,
    shown: &Shown<'_>,
    wanted: &Wanted,
    cache_status: &str,
) -> std::result::Result<(ResponseHeader, Answering), Failure> {
    if let Err(reason) = shown.asset.check_page(&answering.header.headers) {
        return Err(Failure::refused(reason));
    }
    match header_of(&mut answering, shown, wanted, cache_status).await {
        Ok(header) => Ok((header, answering)),
        Err(error) => Err(answering.exchange.failure(&error)),
    }
}

async fn header_of(
    answering: &mut Answering,
    shown: &Shown<'_>,
    wanted: &Wanted,
    cache_status: &str,
) -> Result<ResponseHeader> {
    let path = wanted.key.parts().path;
    let mut header = dress::of_passed(&answering.header, shown, path, answering.exchange.url())?;
    let status = header.status.as_u16();
    // A part may begin anywhere, and a header alone shows nothing.
    if has_body(answering)
        && status != 206
        && headers::known_coding(&header.headers).is_some_and(is_gzip)
        && !answering.beginning(GZIP.len()).await?.starts_with(&GZIP)
    {
        answering.header.remove_header(&header::CONTENT_ENCODING);
        header = dress::of_passed(&answering.header, shown, path, answering.exchange.url())?;
    }
    for (name, value) in &wanted.says() {
        let said_already = name == header::ETAG && header.headers.contains_key(name);
        if !said_already && matches!(status, 200 | 206) {
            header.insert_header(name.clone(), value.clone())?;
        }
    }
    dress::finish(&mut header, shown, ("remote", headers::value(cache_status)), NO_CACHE)?;
    Ok(header)
}

fn ask(wanted: &Wanted, method: Method, headers: Vec<(HeaderName, HeaderValue)>) -> Ask {
    Ask {
        method,
        accept: wanted.asset.form.accept,
        gzip: false,
        headers,
        total: None,
        conditional: false,
    }
}
