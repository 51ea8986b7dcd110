//! The client's side: one thin hook each. A hit, complete or growing, is answered in `request_filter` and never enters
//! Pingora's cache; what is not stored goes on to upstream by itself, cache off.

mod artifact;
mod chunks;
mod dress;
mod foreign;
mod front;
mod gate;
mod head;
mod node;
mod pass;
pub mod range;
mod reference;
mod referrers;
mod registry;
mod relay;
mod resolve;
mod route;
mod serve;
mod threads;
mod wire;

use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Method, Version, header};
use pingora_core::modules::http::HttpModules;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, ErrorSource, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};

use crate::api::Api;
use crate::cache::{Expected, Object, Verifier};
use crate::config::{ClientSettings, Config, Package, Remote};
use crate::fill::{Fills, Views};
use crate::formats::Format;
use crate::headers;
use crate::metrics::Metrics;
use crate::session::reply::{self, Problem};
use crate::session::writing::Reading;
use crate::session::{body, public};
use crate::state::{InFlight, State};
use crate::upstream::{Exchange, Place};
use dress::{NO_CACHE, Shown};
pub use front::Front;
pub use resolve::Hot;
use resolve::{Resolved, Target};
use route::Route;
use wire::Refusal;

/// Everything that answering a client needs.
pub struct Client {
    pub state: Arc<State>,
    pub fills: Arc<Fills>,
    pub views: Arc<Views>,
    pub metrics: Arc<Metrics>,
    pub api: Api,
    pub hot: Hot,
    /// What one client may hold. Settings are not reloaded.
    pub limits: ClientSettings,
}

/// A request that goes on to upstream by itself.
struct PassBy {
    exchange: Exchange,
    cache_status: String,
    format: &'static dyn Format,
    /// The path asked for, with its query.
    path: String,
    /// See [`dress::Shown`].
    decoded: String,
    bound_host: bool,
    /// Headers that stand there whatever upstream says.
    says: HeaderMap,
    /// For a whole body that a digest names.
    check: Option<Check>,
    /// One of the concurrent upstream places, held to the end.
    _place: Place,
}

/// Compares a body with its digest while it passes by. The last piece is held back until it is known to be right.
struct Check {
    expected: Expected,
    verifier: Verifier,
    held: Option<Bytes>,
}

impl Check {
    fn new(expected: Expected) -> Self {
        Check {
            verifier: expected.verifier(),
            expected,
            held: None,
        }
    }

    /// What may be sent on, having got `piece`; `None`: the body was another.
    fn take(&mut self, piece: Option<Bytes>, end: bool) -> Option<Option<Bytes>> {
        let mut free = None;
        if let Some(piece) = piece.filter(|piece| !piece.is_empty()) {
            self.verifier.update(&piece);
            free = self.held.replace(piece);
        }
        if !end {
            return Some(free);
        }
        let verifier = std::mem::replace(&mut self.verifier, self.expected.verifier());
        if !verifier.finds_right(&self.expected) {
            return None;
        }
        Some(match (free, self.held.take()) {
            (Some(free), Some(held)) => Some([free, held].concat().into()),
            (free, held) => free.or(held),
        })
    }
}

/// What is remembered of one request.
pub struct Ctx {
    started: Instant,
    _in_flight: InFlight,
    remote: Option<Arc<Remote>>,
    /// For metrics: how the cache came into it.
    cache: &'static str,
    source: Option<&'static str>,
    sent: u64,
    pass: Option<PassBy>,
}

/// [`Client`] for Pingora, which wants to own it.
pub struct Hooks(pub Arc<Client>);

impl Deref for Hooks {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.0
    }
}

#[async_trait]
impl ProxyHttp for Hooks {
    type CTX = Ctx;

    fn new_ctx(&self) -> Ctx {
        Ctx {
            started: Instant::now(),
            _in_flight: self.state.enter(),
            remote: None,
            cache: "none",
            source: None,
            sent: 0,
            pass: None,
        }
    }

    fn init_downstream_modules(&self, modules: &mut HttpModules) {
        // In place of Pingora's compression, which is never used here.
        modules.add_module(Box::new(registry::VoiceBuilder));
    }

    async fn early_request_filter(&self, session: &mut Session, _: &mut Ctx) -> Result<()> {
        // What the client said of it (HTTP/1.0, `Connection: close`) is already in force.
        if session.as_downstream().get_keepalive().is_some() {
            session.set_keepalive(Some(self.limits.idle_timeout.as_secs().max(1)));
        }
        session
            .as_downstream_mut()
            .set_write_timeout(Some(self.limits.write_timeout));
        // What upstream says before its answer is for this proxy.
        session.as_downstream_mut().set_ignore_info_resp(true);
        // The gate says it, when the body is waited for.
        session.req_header_mut().remove_header(&header::EXPECT);
        // A client may close its sending side once the request is out, and still wants the answer.
        session.as_downstream_mut().set_abort_on_close(false);
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Ctx) -> Result<bool> {
        if session.req_header().version == Version::HTTP_2
            && let Err(refusal) = self.check_http2(session)
        {
            reply::problem(session, None, Problem::new(refusal.status, refusal.reason)).await?;
            return Ok(true);
        }
        let config = self.state.config();
        // Which host was asked for matters only where one is bound to a remote.
        let host = match config.hosts.is_empty() {
            true => String::new(),
            false => {
                let public = public::of(&config.settings, &public::arrival(session));
                public.map(|public| public.host).unwrap_or_default()
            }
        };
        let target = wire::origin_form(session.req_header().raw_path());
        if let Some(question) = self.question_of_node(session, target) {
            Box::pin(self.answer_node(session, question)).await?;
            return Ok(true);
        }
        let hot = match session.req_header().method {
            Method::GET | Method::HEAD => Hot::key(&config, &host, target, artifact::accept(session).as_deref()),
            _ => None,
        };
        if let Some(resolved) = hot.as_ref().and_then(|hot| self.hot.get(hot)) {
            if resolved.remote.package == Package::Docker {
                registry::speak(session);
            }
            let plain =
                session.req_header().method == Method::GET && !serve::has_conditions(&session.req_header().headers);
            if plain && let Some(SmallHit { object, header, body }) = self.small_hit(session, &config, &resolved)? {
                self.fills.store.count_use(&object);
                (ctx.remote, ctx.cache, ctx.source) = (Some(Arc::clone(&resolved.remote)), "hit", Some("cache"));
                ctx.sent = body.len() as u64;
                session.write_response_header(header, false).await?;
                Reading { session }.write(body, true).await?;
                return Ok(true);
            }
            ctx.remote = Some(Arc::clone(&resolved.remote));
            // What waits is set up apart, so that what does not stays small.
            return Box::pin(self.resolved(session, ctx, &config, resolved)).await;
        }
        match route::route(&config, &host, target) {
            Route::Artifact {
                remote,
                raw,
                query,
                bound_host,
            } => {
                let target = Target {
                    raw,
                    query,
                    bound_host,
                    registry: false,
                };
                Box::pin(self.artifact(session, ctx, &config, remote, target, hot)).await
            }
            Route::Endpoint(endpoint) => {
                Box::pin(self.api.answer(session, &config, endpoint)).await?;
                Ok(true)
            }
            Route::Registry { raw, query, bound } => {
                let asked = registry::Asked { raw, query, bound };
                Box::pin(self.registry(session, ctx, &config, asked, hot)).await
            }
            Route::UnknownRemote { name, path } => {
                let detail = "there is no such remote; `GET /` lists those there are";
                reply::problem(session, None, Problem::new(404, detail).at(&name, &path)).await?;
                Ok(true)
            }
            Route::NotFound => {
                let detail = "nothing is served here; artifacts are under /api/v1/remote/{remote}/{path}";
                reply::problem(session, None, Problem::new(404, detail)).await?;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(&self, _: &mut Session, ctx: &mut Ctx) -> Result<Box<HttpPeer>> {
        pass(ctx)?.exchange.peer().await
    }

    async fn upstream_request_filter(&self, _: &mut Session, request: &mut RequestHeader, ctx: &mut Ctx) -> Result<()> {
        pass(ctx)?.exchange.write_request(request)
    }

    async fn upstream_response_filter(
        &self,
        _: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        pass(ctx)?.exchange.read_header(response)
    }

    async fn response_filter(&self, _: &mut Session, response: &mut ResponseHeader, ctx: &mut Ctx) -> Result<()> {
        // Nobody is told, and the answer is still to come.
        if response.status.is_informational() {
            return Ok(());
        }
        let pass = pass(ctx)?;
        let remote = Arc::clone(&pass.exchange.remote);
        registry::check_pages(&remote, &pass.decoded, &response.headers)
            .map_err(|reason| Error::explain(ErrorType::HTTPStatus(502), reason))?;
        let shown = Shown {
            remote: &remote,
            format: pass.format,
            path: &pass.decoded,
            bound_host: pass.bound_host,
        };
        let passed = dress::of_passed(response, &shown, &pass.path, pass.exchange.url())?;
        let mut said = passed.header;
        let status = said.status.as_u16();
        // A part, or a coding of it, has no digest that could be compared.
        if status != 200 || passed.is_coded {
            pass.check = None;
        }
        for (name, value) in &pass.says {
            let said_already = name == header::ETAG && said.headers.contains_key(name);
            if !said_already && matches!(status, 200 | 206) {
                said.insert_header(name.clone(), value.clone())?;
            }
        }
        let origin = ("remote", headers::value(&pass.cache_status));
        dress::finish(&mut said, &shown, origin, NO_CACHE)?;
        // Framing is Pingora's: it knows what it will write.
        if let Some(value) = response.headers.get(header::TRANSFER_ENCODING) {
            said.insert_header(header::TRANSFER_ENCODING, value.clone())?;
        }
        said.set_version(response.version);
        *response = said;
        Ok(())
    }

    fn upstream_response_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Ctx,
    ) -> Result<Option<Duration>> {
        if let Some(pass) = &mut ctx.pass {
            pass.exchange.body_piece(body.as_ref().map_or(0, Bytes::len), end)?;
            if let Some(check) = &mut pass.check {
                let Some(free) = check.take(body.take(), end) else {
                    let (remote, expected) = (&pass.exchange.remote.name, &check.expected);
                    self.metrics.wrong_digest(remote);
                    tracing::warn!(%remote, path = %pass.path, %expected, "content that passed by has another digest");
                    return Err(Error::explain(ErrorType::ReadError, "content with another digest"));
                };
                *body = free;
            }
        }
        ctx.sent += body.as_ref().map_or(0, |body| body.len() as u64);
        Ok(None)
    }

    fn fail_to_connect(&self, _: &mut Session, _: &HttpPeer, ctx: &mut Ctx, error: Box<Error>) -> Box<Error> {
        match &mut ctx.pass {
            Some(pass) => pass.exchange.connect_failed(error),
            None => error,
        }
    }

    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        ctx: &mut Ctx,
        reused: bool,
    ) -> Box<Error> {
        let repeatable = session.req_header().method != Method::POST || !session.as_ref().retry_buffer_truncated();
        let nothing_sent = session.response_written().is_none();
        match &ctx.pass {
            Some(pass) => pass.exchange.transfer_failed(error, reused, repeatable && nothing_sent),
            None => error,
        }
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut Ctx) -> FailToProxy {
        let gone = FailToProxy {
            error_code: 0,
            can_reuse_downstream: false,
        };
        if session.response_written().is_some() {
            return gone;
        }
        if error.esource() == &ErrorSource::Downstream {
            let Some(problem) = body::problem(error) else {
                return gone;
            };
            let status = problem.status;
            let sent = reply::problem(session, None, problem).await;
            return FailToProxy {
                error_code: if sent.is_ok() { status } else { 0 },
                can_reuse_downstream: false,
            };
        }
        let Some(pass) = &mut ctx.pass else { return gone };
        let failure = pass.exchange.failure(error);
        let remote = Arc::clone(&pass.exchange.remote);
        let problem = Problem::new(failure.status, failure.reason).at(&remote.name, &pass.path);
        let sent = reply::problem(session, Some(pass.format), problem).await;
        FailToProxy {
            error_code: if sent.is_ok() { failure.status } else { 0 },
            can_reuse_downstream: false,
        }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Ctx) {
        let status = session
            .response_written()
            .map_or(0, |response| response.status.as_u16());
        let remote = ctx.remote.as_ref().map_or("", |remote| remote.name.as_str());
        self.metrics
            .request(remote, status, ctx.cache, ctx.source, ctx.sent, ctx.started.elapsed());
        if let Some(error) = error {
            tracing::debug!(%error, remote, status, "a response ended early");
        }
    }

    fn suppress_error_log(&self, _: &Session, _: &Ctx, _: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Ctx, _: &Error, _: ProxyWarnLogContext) -> bool {
        true
    }
}

/// A hit whose body goes out in one piece.
struct SmallHit {
    object: Arc<Object>,
    header: Box<ResponseHeader>,
    body: Bytes,
}

impl Client {
    fn check_http2(&self, session: &Session) -> std::result::Result<(), Refusal> {
        let request = session.req_header();
        let arrival = public::arrival(session);
        wire::check_http2(request.raw_path(), arrival.authority, &request.headers)
    }

    /// A hit whose body is in memory and goes out in one piece.
    fn small_hit(&self, session: &Session, config: &Config, resolved: &Resolved) -> Result<Option<SmallHit>> {
        let gzip = resolved.view.is_some() && artifact::wants_gzip(session);
        let remote_url = || {
            let arrival = public::arrival(session);
            public::of_remote(&config.settings, &arrival, &resolved.remote.name, resolved.bound_host)
        };
        let Some(hit) = self.hit(resolved, gzip, remote_url) else {
            return Ok(None);
        };
        let Some(body) = serve::small_body(&hit.object) else {
            return Ok(None);
        };
        let header = serve::whole(&hit.object, &hit.dress, body.len())?;
        Ok(Some(SmallHit {
            object: hit.object,
            header,
            body,
        }))
    }
}

fn pass(ctx: &mut Ctx) -> Result<&mut PassBy> {
    ctx.pass
        .as_mut()
        .ok_or_else(|| Error::explain(ErrorType::InternalError, "a request without a way to upstream"))
}
