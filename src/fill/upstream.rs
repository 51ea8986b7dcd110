//! Fills from upstream: a Pingora proxy of its own, with the cache on and no client. Each fill is a subrequest started
//! from one constant template, so that nothing of a client's request can reach it, and nobody can stall or abort it.

use std::io::Cursor;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, header};
use parking_lot::Mutex;
use pingora_cache::{CacheKey, CacheMeta, CachePhase, ForcedFreshness, HitHandler, NoCacheReason, RespCacheable};
use pingora_core::protocols::http::ServerSession;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::subrequest::Ctx as SubrequestCtx;
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session, SubrequestSpawner, http_proxy};
use std::time::{Duration, SystemTime};
use tokio::sync::{OnceCell, oneshot};

use super::Wanted;
use super::answer::{Answer, MAX_BODY};
use crate::cache::storage::{FillHead, FillSpec, cache_key};
use crate::cache::{Head, Object, Store, freshness_until, now_ms};
use crate::headers;
use crate::policy::Policy;
use crate::upstream::{Exchange, Failure};

/// Tries of one fill: addresses and redirects together.
const MAX_TRIES: usize = 32;

/// How a fill begins: what those who wait for it will get.
#[derive(Debug)]
pub enum Opening {
    Growing(Arc<Object>),
    NotModified,
    Answer(Answer),
    /// Content with a digest comes in a coding: not like this.
    Coded,
    /// The answer is not stored (why, if that is worth a warning).
    Direct(Option<String>),
    Failed(Failure),
}

/// What a fill's subrequest is to do.
pub struct Ticket {
    exchange: Exchange,
    spec: Arc<FillSpec>,
    policy: Policy,
    says: HeaderMap,
    is_listed: bool,
    opening: Option<oneshot::Sender<Opening>>,
}

impl Ticket {
    pub fn new(exchange: Exchange, spec: Arc<FillSpec>, wanted: &Wanted, opening: oneshot::Sender<Opening>) -> Self {
        Ticket {
            exchange,
            spec,
            policy: wanted.policy,
            says: wanted.says(),
            is_listed: wanted.index.is_some(),
            opening: Some(opening),
        }
    }

    /// The headers to keep of a 200, and the body's length.
    fn kept(&self, response: &ResponseHeader) -> (HeaderMap, Option<u64>) {
        let asked = headers::Asked {
            path: self.spec.key.parts().path,
            url: self.exchange.url(),
            document: self.spec.document,
            keep: self.exchange.remote.keep(),
        };
        let (mut kept, length) = headers::of_stored(response, &asked);
        for (name, value) in &self.says {
            if name != header::ETAG || !kept.contains_key(name) {
                kept.insert(name.clone(), value.clone());
            }
        }
        (kept, length)
    }

    /// Whether content with a digest of its own comes in some coding. (A file of a set has a name that tells, and so has one that
    /// an index names.)
    fn is_coded(&self, response: &ResponseHeader) -> bool {
        let literal = self.spec.expected.is_some() && !self.says.is_empty();
        let coded = match self.is_listed {
            true => self.spec.expected.is_some() && self.kept(response).0.contains_key(header::CONTENT_ENCODING),
            false => literal && headers::is_coded(&response.headers),
        };
        coded && response.status.as_u16() == 200 && self.exchange.ask().method == Method::GET
    }

    fn say(&mut self, opening: Opening) {
        if let Some(sender) = self.opening.take() {
            // Nobody listens any more: the flight timed out and this task is about to be aborted.
            let _ = sender.send(opening);
        }
    }
}

/// Starts fills.
pub struct FillProxy {
    spawner: SubrequestSpawner,
    template: OnceCell<ServerSession>,
}

impl FillProxy {
    pub fn new(store: &'static Store) -> Self {
        let conf = ServerConf {
            max_retries: MAX_TRIES,
            upstream_keepalive_pool_size: 256,
            ..ServerConf::default()
        };
        let proxy = http_proxy(&Arc::new(conf), Hooks { store });
        FillProxy {
            spawner: SubrequestSpawner::new(Arc::new(proxy)),
            template: OnceCell::new(),
        }
    }

    /// Runs the fill of `ticket` as a task of its own.
    pub async fn spawn(&self, ticket: Ticket) -> tokio::task::JoinHandle<()> {
        let template = self
            .template
            .get_or_init(|| async {
                let request = b"GET /fill HTTP/1.1\r\nHost: fill\r\n\r\n".to_vec();
                let mut session = ServerSession::new_http1(Box::new(Cursor::new(request)));
                if let Err(error) = session.read_request().await {
                    tracing::error!(%error, "the constant template of all fills cannot be read");
                }
                session
            })
            .await;
        let carried: Mutex<Option<Ticket>> = Mutex::new(Some(ticket));
        let ctx = SubrequestCtx::builder().user_ctx(Box::new(carried)).build();
        let (prepared, handle) = self.spawner.create_subrequest(template, ctx);
        handle.drain_tasks();
        tokio::spawn(prepared.run())
    }
}

/// What Pingora carries through one fill.
#[derive(Default)]
struct Ctx {
    ticket: Option<Ticket>,
    not_modified: bool,
    /// Bytes of an error's body that nobody reads: read to its end only where that is near, for the connection's sake.
    discarded: Option<usize>,
    /// An answer that is not stored, while its body arrives.
    passing: Option<(u16, HeaderMap, BytesMut)>,
}

impl Ctx {
    fn ticket(&mut self) -> Result<&mut Ticket> {
        self.ticket
            .as_mut()
            .ok_or_else(|| Error::explain(ErrorType::InternalError, "a fill without its ticket"))
    }
}

struct Hooks {
    store: &'static Store,
}

#[async_trait]
impl ProxyHttp for Hooks {
    type CTX = Ctx;

    fn new_ctx(&self) -> Ctx {
        Ctx::default()
    }

    async fn early_request_filter(&self, session: &mut Session, ctx: &mut Ctx) -> Result<()> {
        let carried = session.subrequest_ctx.as_mut().and_then(|sub| sub.user_ctx_mut());
        ctx.ticket = carried
            .and_then(|user| user.downcast_mut::<Mutex<Option<Ticket>>>())
            .and_then(|t| t.lock().take());
        let method = ctx.ticket()?.exchange.ask().method.clone();
        session.req_header_mut().set_method(method);
        // Without it the reader of the subrequest, which is nobody, would pace the fill.
        session.set_proxy_tasks_enabled(true);
        Ok(())
    }

    fn request_cache_filter(&self, session: &mut Session, ctx: &mut Ctx) -> Result<()> {
        if ctx.ticket()?.exchange.ask().method == Method::GET {
            session.cache.enable(self.store, None, None, None, None);
        }
        Ok(())
    }

    fn cache_key_callback(&self, _: &Session, ctx: &mut Ctx) -> Result<CacheKey> {
        Ok(cache_key(&ctx.ticket()?.spec))
    }

    async fn cache_hit_filter(
        &self,
        _: &mut Session,
        _: &CacheMeta,
        _: &mut HitHandler,
        _: bool,
        ctx: &mut Ctx,
    ) -> Result<Option<ForcedFreshness>> {
        // Whoever starts a fill has found what is stored expired.
        Ok(Some(match ctx.ticket()?.exchange.ask().conditional {
            true => ForcedFreshness::ForceExpired,
            false => ForcedFreshness::ForceMiss,
        }))
    }

    fn should_serve_stale(&self, _: &mut Session, _: &mut Ctx, _: Option<&Error>) -> bool {
        // Decided by the flight, which also knows of failures that Pingora does not see.
        false
    }

    async fn upstream_peer(&self, _: &mut Session, ctx: &mut Ctx) -> Result<Box<HttpPeer>> {
        ctx.ticket()?.exchange.peer().await
    }

    async fn upstream_request_filter(&self, _: &mut Session, request: &mut RequestHeader, ctx: &mut Ctx) -> Result<()> {
        ctx.ticket()?.exchange.write_request(request)
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        let ticket = ctx.ticket()?;
        ticket.exchange.read_header(response)?;
        if ticket.is_coded(response) {
            ticket.say(Opening::Coded);
            return Err(Error::explain(ErrorType::InternalError, "nobody reads this coding"));
        }
        match response.status.as_u16() {
            // As a HEAD the subrequest does not read its own body back from the store; error bodies come as they are.
            200 => session.req_header_mut().set_method(Method::HEAD),
            304 => {
                session.req_header_mut().set_method(Method::HEAD);
                ctx.not_modified = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn response_cache_filter(&self, _: &Session, response: &ResponseHeader, ctx: &mut Ctx) -> Result<RespCacheable> {
        let not_modified = ctx.not_modified;
        let ticket = ctx.ticket()?;
        if not_modified {
            let now = SystemTime::now();
            return Ok(RespCacheable::Cacheable(CacheMeta::new(
                now,
                now,
                0,
                0,
                response.clone(),
            )));
        }
        if response.status.as_u16() != 200 {
            return Ok(RespCacheable::Uncacheable(NoCacheReason::OriginNotCache));
        }
        let now = now_ms();
        let (kept, content_length) = ticket.kept(response);
        let framed = content_length.is_some()
            || response.version != http::Version::HTTP_11 && response.version != http::Version::HTTP_10
            || headers::is_chunked(response);
        let head = Head {
            url: ticket.exchange.url().to_string(),
            headers: kept,
            content_length,
            stored_at: now,
            // Its end cannot be told from a cut: it may be read, and is not kept.
            unframed: !framed,
            ranges: headers::has_ranges(response),
            stands_for: None,
        };
        let fill = FillHead {
            spec: Arc::clone(&ticket.spec),
            head,
            checked_at: now,
            fresh_until: freshness_until(ticket.policy.class, now, ticket.policy.ttl),
        };
        let time = SystemTime::now();
        let mut meta = CacheMeta::new(time + Duration::from_secs(1), time, 0, 0, response.clone());
        meta.extensions_mut().insert(fill);
        Ok(RespCacheable::Cacheable(meta))
    }

    async fn response_filter(&self, session: &mut Session, response: &mut ResponseHeader, ctx: &mut Ctx) -> Result<()> {
        // The answer is still to come.
        if response.status.is_informational() {
            return Ok(());
        }
        let stored = session.cache.enabled() && session.cache.phase() != CachePhase::Bypass;
        let not_modified = ctx.not_modified;
        let status = response.status.as_u16();
        let ticket = ctx.ticket()?;
        let object = ticket.spec.object.get().cloned();
        if not_modified {
            ticket.say(Opening::NotModified);
        } else if ticket.exchange.ask().method == Method::HEAD {
            let (mut kept, length) = ticket.kept(response);
            if let Some(length) = length {
                kept.insert(header::CONTENT_LENGTH, length.into());
            }
            let retry_after = headers::retry_after(response);
            ticket.say(Opening::Answer(Answer {
                status,
                headers: kept,
                body: Bytes::new(),
                reason: None,
                unreachable: false,
                retry_after,
            }));
        } else if let (200, true, Some(object)) = (status, stored, object) {
            ticket.say(Opening::Growing(object));
        } else if status == 200 {
            let why = ticket.spec.refused.get().cloned();
            ticket.say(Opening::Direct(why));
        } else if status >= 400 {
            // Clients get a body of ours: upstream's may be long, or drip.
            let retry_after = headers::retry_after(response);
            let headers = headers::of_answer(response, ticket.exchange.remote.keep());
            ticket.say(Opening::Answer(Answer {
                status,
                headers,
                body: Bytes::new(),
                reason: None,
                unreachable: false,
                retry_after,
            }));
            ctx.discarded = Some(0);
        } else {
            let headers = headers::of_answer(response, ticket.exchange.remote.keep());
            ctx.passing = Some((status, headers, BytesMut::new()));
        }
        Ok(())
    }

    fn upstream_response_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Ctx,
    ) -> Result<Option<Duration>> {
        let mut pause = Duration::ZERO;
        if let Some(ticket) = &mut ctx.ticket {
            pause = ticket.exchange.body_piece(body.as_ref().map_or(0, Bytes::len), end)?;
        }
        if let (Some(discarded), Some(piece)) = (&mut ctx.discarded, body.as_ref()) {
            *discarded += piece.len();
            if *discarded > MAX_BODY {
                return Err(Error::explain(
                    ErrorType::InternalError,
                    "nobody reads this body any more",
                ));
            }
        }
        let mut long = false;
        if let (Some((_, _, collected)), Some(piece)) = (&mut ctx.passing, body.as_ref()) {
            collected.extend_from_slice(piece);
            long = collected.len() > MAX_BODY;
        }
        if long {
            ctx.passing = None;
            ctx.ticket()?.say(Opening::Direct(None));
        }
        Ok((!pause.is_zero()).then_some(pause))
    }

    fn fail_to_connect(&self, _: &mut Session, _: &HttpPeer, ctx: &mut Ctx, error: Box<Error>) -> Box<Error> {
        match &mut ctx.ticket {
            Some(ticket) => ticket.exchange.connect_failed(error),
            None => error,
        }
    }

    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        _: &mut Session,
        error: Box<Error>,
        ctx: &mut Ctx,
        reused: bool,
    ) -> Box<Error> {
        match &ctx.ticket {
            // Once the header was passed on, another try could only bring a second answer.
            Some(ticket) => ticket.exchange.transfer_failed(error, reused, ticket.opening.is_some()),
            None => error,
        }
    }

    async fn fail_to_proxy(&self, _: &mut Session, error: &Error, ctx: &mut Ctx) -> FailToProxy {
        if let Some(ticket) = &mut ctx.ticket {
            let failure = ticket.exchange.failure(error);
            ticket.say(Opening::Failed(failure));
        }
        // No client: whatever is written here goes nowhere.
        FailToProxy {
            error_code: 502,
            can_reuse_downstream: false,
        }
    }

    async fn logging(&self, _: &mut Session, error: Option<&Error>, ctx: &mut Ctx) {
        let passing = ctx.passing.take();
        let Some(ticket) = &mut ctx.ticket else { return };
        match (passing, error) {
            (Some((status, headers, body)), None) => {
                let retry_after = headers::retry_after_of(&headers);
                ticket.say(Opening::Answer(Answer {
                    status,
                    headers,
                    body: body.freeze(),
                    reason: None,
                    unreachable: false,
                    retry_after,
                }));
            }
            (_, Some(error)) => {
                let failure = ticket.exchange.failure(error);
                ticket.say(Opening::Failed(failure));
            }
            (None, None) => ticket.say(Opening::Failed(Failure {
                status: 502,
                reason: "upstream's answer could not be used".to_owned(),
                unreachable: false,
            })),
        }
    }

    fn suppress_error_log(&self, _: &Session, _: &Ctx, _: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Ctx, _: &Error, _: ProxyWarnLogContext) -> bool {
        true
    }
}
