//! The client's side: one thin hook each. Every request is answered in `request_filter`; Pingora's own way to upstream and
//! its cache are for fills only.

mod accept;
mod artifact;
mod chunks;
mod client;
mod crowd;
mod deliver;
mod dress;
mod excerpt;
mod foreign;
mod front;
mod gate;
mod head;
mod held;
mod hit;
mod local;
mod node;
mod pass;
mod provenance;
pub mod range;
mod reference;
mod relay;
mod request;
mod resolve;
mod root;
mod route;
mod serve;
mod stand_in;
mod threads;
mod transport;
mod voice;
mod wire;

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, Version, header};
use pingora_core::modules::http::HttpModules;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, ErrorSource, ErrorType, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};

use crate::access_log::{self, AccessLog, Asked, Line};
use crate::api::access::{self, Need};
use crate::cache::Object;
use crate::config::Config;
use crate::metrics::Answered;
use crate::on_behalf::{self, OnBehalf, RequestId};
use crate::session::reply::{self, Problem};
use crate::session::writing::Reading;
use crate::session::{body, public};
pub use client::{Client, Ctx};
pub use front::{Entrance, Front};
pub use resolve::Hot;
use resolve::{Resolved, Target};
use route::Route;
pub use transport::acceptor;
use voice::Voice;
use wire::Refusal;

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
        Ctx::new(self.state.enter())
    }

    fn init_downstream_modules(&self, modules: &mut HttpModules) {
        // In place of Pingora's compression, which is never used here.
        modules.add_module(Box::new(voice::VoiceBuilder));
    }

    async fn early_request_filter(&self, session: &mut Session, ctx: &mut Ctx) -> Result<()> {
        let id = RequestId::of(&session.req_header().headers);
        if let Some(voice) = session.downstream_modules_ctx.get_mut::<Voice>() {
            voice.id = Some(id.clone());
        }
        ctx.request = Some(OnBehalf::new(id));
        let limits = self.state.config().settings.clients;
        // What the client said of it (HTTP/1.0, `Connection: close`) is already in force.
        if session.as_downstream().get_keepalive().is_some() {
            session.set_keepalive(Some(limits.idle_timeout.as_secs().max(1)));
        }
        session
            .as_downstream_mut()
            .set_write_timeout(Some(limits.write_timeout));
        // The gate says it, when the body is waited for.
        session.req_header_mut().remove_header(&header::EXPECT);
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
            Method::GET | Method::HEAD => Hot::key(&config, &host, target, accept::accept(session).as_deref()),
            _ => None,
        };
        if let Some(resolved) = hot.as_ref().and_then(|hot| self.hot.get(hot)) {
            if let Some(root) = resolved.format.root() {
                root::speak(session, root);
            }
            if let Err(problem) = access::check(session, &config, Need::Read(&resolved.remote)) {
                ctx.remote = Some(Arc::clone(&resolved.remote));
                return self.forbid(session, Some(resolved.format), problem).await;
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
            let request = ctx.request();
            // What waits is set up apart, so that what does not stays small.
            return Box::pin(on_behalf::of(request, self.resolved(session, ctx, &config, resolved))).await;
        }
        let request = ctx.request();
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
                    below_root: false,
                };
                Box::pin(on_behalf::of(
                    request,
                    self.artifact(session, ctx, &config, remote, target, hot),
                ))
                .await
            }
            Route::Endpoint(endpoint) => {
                Box::pin(self.api.answer(session, &config, endpoint)).await?;
                Ok(true)
            }
            Route::Root(asked) => {
                Box::pin(on_behalf::of(
                    request,
                    self.below_root(session, ctx, &config, asked, hot),
                ))
                .await
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

    async fn upstream_peer(&self, _: &mut Session, _: &mut Ctx) -> Result<Box<HttpPeer>> {
        Err(Error::explain(
            ErrorType::InternalError,
            "every request is answered by its filter",
        ))
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, _: &mut Ctx) -> FailToProxy {
        let is_begun = session.response_written().is_some();
        let problem = match error.esource() {
            ErrorSource::Downstream if !is_begun => body::problem(error),
            _ => None,
        };
        let mut error_code = 0;
        if let Some(problem) = problem {
            let status = problem.status;
            if reply::problem(session, None, problem).await.is_ok() {
                error_code = status;
            }
        }
        FailToProxy {
            error_code,
            can_reuse_downstream: false,
        }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Ctx) {
        let status = session
            .response_written()
            .map_or(0, |response| response.status.as_u16());
        let remote = ctx.remote.as_ref().map(|remote| remote.name.as_str());
        let took = ctx.started.elapsed();
        self.metrics.request(&Answered {
            remote: remote.unwrap_or_default(),
            status,
            cache: ctx.cache,
            source: ctx.source,
            sent: ctx.sent,
            took,
        });
        if let Some(log) = &self.log {
            self.note(log, session, ctx, (status, took));
        }
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
    /// Writes a line to the access log.
    fn note(&self, log: &AccessLog, session: &Session, ctx: &Ctx, (status, took): (u16, Duration)) {
        let header = session.req_header();
        let request = ctx.request();
        let mut line = Line::default();
        let asked = Asked {
            id: request.id.as_bytes(),
            client: public::client(&self.state.config().settings.trusted_proxies, &public::arrival(session)),
            method: Some(header.method.as_str()),
            target: Some(wire::origin_form(header.raw_path())),
            protocol: match header.version {
                Version::HTTP_2 => "HTTP/2",
                Version::HTTP_10 => "HTTP/1.0",
                _ => "HTTP/1.1",
            },
            user_agent: header.headers.get(header::USER_AGENT).map(|value| value.as_bytes()),
        };
        line.begin(&asked, took);
        log.push(line.end(&access_log::Answered {
            remote: ctx.remote.as_ref().map(|remote| remote.name.as_str()),
            status,
            bytes: session.body_bytes_sent() as u64,
            cache: ctx.cache,
            took,
            upstream: request.waited(),
        }));
    }

    fn check_http2(&self, session: &Session) -> std::result::Result<(), Refusal> {
        let request = session.req_header();
        let arrival = public::arrival(session);
        wire::check_http2(request.raw_path(), arrival.authority, &request.headers)
    }

    /// A hit whose body is in memory and goes out in one piece.
    fn small_hit(&self, session: &Session, config: &Config, resolved: &Resolved) -> Result<Option<SmallHit>> {
        let gzip = resolved.view.is_some() && accept::wants_gzip(session);
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
