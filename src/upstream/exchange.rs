//! One question to upstream, redirects included: the peer to connect to, the request to send, and what the answer's
//! header means. Shared by fills and by what passes by.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, header};
use pingora_core::upstreams::peer::{ALPN, HttpPeer, HttpUpstreamRequestPolicy};
use pingora_error::{Error, ErrorSource, ErrorType, Result, RetryType};
use pingora_http::{RequestHeader, ResponseHeader};
use url::Url;

use super::failure::Failure;
use super::negotiation::{Negotiation, Verdict};
use super::range::range_matches;
use super::resolver::ResolveError;
use super::trust::{listed, same_origin, within_credentials};
use super::tunnel::{self, Tunnel};
use super::{Upstream, address, own};
use crate::config::{OwnHost, Remote};
use crate::deadline::Deadline;
use crate::exact_url::ExactUrl;
use crate::fields;

/// Redirects followed for one question.
const MAX_REDIRECTS: u8 = 10;
/// Answers that only announce one (1xx), taken for one question.
const MAX_INTERIM: u8 = 100;
/// Idle upstream connections are kept this long.
const POOL_IDLE: Duration = Duration::from_secs(60);
/// Not a failure: the question goes on, at another place or with another authorization.
const ASK_ON: ErrorType = ErrorType::Custom("asking on");

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Ask {
    pub method: Method,
    /// `Accept`; `*/*` if none.
    pub accept: Option<&'static str>,
    /// Ask for gzip (documents that are decoded here) instead of identity (files).
    pub gzip: bool,
    /// Sent as they are: what a passed-by request brings along (`Range`, `Content-Type` of a POST …).
    pub headers: Vec<(HeaderName, http::HeaderValue)>,
    /// The whole length that a range must be part of.
    pub total: Option<u64>,
    /// Keep the `If-None-Match` and `If-Modified-Since` that Pingora's cache put in.
    pub conditional: bool,
}

/// Who is asking: what goes along to whom.
#[derive(Debug)]
enum Authority {
    /// The remote's credentials and headers, to where they may go.
    Remote,
    /// What opens a scope, to where the credentials may go, once the registry says what it wants.
    Scope(Negotiation),
    /// This, to the host of the first URL, which is a token service.
    TokenService(Url, Option<HeaderValue>),
}

/// The state of one question.
#[derive(Debug)]
pub struct Exchange {
    pub remote: Arc<Remote>,
    upstream: Arc<Upstream>,
    ask: Ask,
    /// Where the question is now.
    url: Url,
    /// The query of `url` as it was written: by who asks, or by who redirected.
    query: Option<String>,
    redirects: u8,
    interim: u8,
    addresses: Vec<SocketAddr>,
    tried: usize,
    pub deadline: Arc<Deadline>,
    pace: Option<Pace>,
    /// Set where the reason is known better than Pingora's error can tell.
    failure: Option<Failure>,
    authority: Authority,
    /// `Authorization` for the remote's own host.
    authorization: Option<HeaderValue>,
}

/// How a body comes, on the clock that counts what upstream is waited for.
#[derive(Debug)]
struct Pace {
    began: Duration,
    /// When the rate was looked at last, and the bytes since then.
    looked: Duration,
    bytes: u64,
}

/// Makes Pingora ask again.
fn ask_on() -> Box<Error> {
    let mut error = Error::explain(ASK_ON, "the question goes on").into_up();
    error.set_retry(true);
    error
}

impl Exchange {
    pub fn new(upstream: Arc<Upstream>, remote: Arc<Remote>, url: Url, ask: Ask) -> Self {
        Exchange {
            remote,
            upstream,
            ask,
            url,
            query: None,
            redirects: 0,
            interim: 0,
            addresses: Vec::new(),
            tried: 0,
            deadline: Arc::default(),
            pace: None,
            failure: None,
            authority: Authority::Remote,
            authorization: None,
        }
    }

    /// To a token service, with these credentials, which no other host will see.
    pub(super) fn to_token_service(
        upstream: Arc<Upstream>,
        remote: Arc<Remote>,
        url: Url,
        ask: Ask,
        credentials: Option<HeaderValue>,
    ) -> Self {
        let authority = Authority::TokenService(url.clone(), credentials);
        let mut exchange = Exchange::new(upstream, remote, url, ask);
        exchange.authority = authority;
        exchange
    }

    /// A registry wants what opens `scope` instead of the remote's credentials.
    pub fn with_scope(mut self, scope: Option<String>) -> Self {
        let own = self
            .remote
            .headers
            .iter()
            .any(|(name, _)| name == header::AUTHORIZATION);
        // Who configured an Authorization header means it.
        if let (Some(scope), false) = (scope, own) {
            self.authority = Authority::Scope(Negotiation::new(scope));
        }
        self
    }

    /// Sends `query` to the letter.
    pub fn with_query(mut self, query: Option<String>) -> Self {
        self.query = query;
        self
    }

    /// Where the answer comes from, after the redirects followed so far.
    pub fn url(&self) -> &Url {
        &self.url
    }

    pub fn ask(&self) -> &Ask {
        &self.ask
    }

    pub(super) fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    fn fail(&mut self, failure: Failure) -> Box<Error> {
        let error = Error::explain(ErrorType::HTTPStatus(failure.status), failure.reason.clone()).into_up();
        self.failure = Some(failure);
        error
    }

    /// For `upstream_peer`: the next address to connect to.
    ///
    /// # Errors
    /// The name does not resolve, or may not be gone to.
    pub async fn peer(&mut self) -> Result<Box<HttpPeer>> {
        self.authorize().await?;
        let timeouts = self.remote.timeouts;
        let tls = self.url.scheme() == "https";
        let host = self
            .url
            .host_str()
            .unwrap_or_default()
            .trim_matches(['[', ']'])
            .to_owned();
        let port = self.url.port_or_known_default().unwrap_or(if tls { 443 } else { 80 });
        let proxy = self.upstream.proxy_for(&self.remote, &self.url).cloned();
        if self.addresses.is_empty() {
            self.addresses = match &proxy {
                Some(proxy) => {
                    self.check_literal(&host).await?;
                    let found = self.resolve(&proxy.host, "the outbound proxy's name").await?;
                    found.into_iter().map(|ip| SocketAddr::new(ip, proxy.port)).collect()
                }
                None => {
                    let found = self.resolve(&host, "upstream's name").await?;
                    let allowed = self.check(found).await?;
                    allowed.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()
                }
            };
            self.tried = 0;
        }
        let address = self.addresses[self.tried.min(self.addresses.len() - 1)];
        let mut peer = HttpPeer::new(address, tls, host.clone());
        let options = &mut peer.options;
        options.connection_timeout = Some(timeouts.connect);
        options.total_connection_timeout = Some(timeouts.connect);
        // Pingora waits this long for each read; the exact limits are kept by `deadline`.
        options.read_timeout = Some(timeouts.first_byte.max(timeouts.idle) + Duration::from_secs(1));
        options.write_timeout = Some(timeouts.idle.max(Duration::from_secs(10)));
        options.idle_timeout = Some(POOL_IDLE);
        options.http_upstream_request_policy = HttpUpstreamRequestPolicy::deny_upgrades();
        if tls {
            options.alpn = ALPN::H2H1;
            options.max_h2_streams = 100;
            options.h2_stream_window_size = Some(4 << 20);
            options.h2_connection_window_size = Some(16 << 20);
        }
        // Connections are shared within a remote and a way there only: what is verified and who is asked differ.
        let mut group = DefaultHasher::new();
        self.remote.name.hash(&mut group);
        proxy.hash(&mut group);
        // What may not be asked twice gets no connection that may have died meanwhile.
        (self.ask.method == Method::POST).hash(&mut group);
        if let Some(proxy) = proxy {
            if tls {
                format!("{host}:{port}").hash(&mut group);
                let authority = if host.contains(':') {
                    format!("[{host}]:{port}")
                } else {
                    format!("{host}:{port}")
                };
                options.custom_l4 = Some(Arc::new(Tunnel {
                    proxy,
                    address,
                    authority,
                    limit: timeouts.connect,
                }));
            } else {
                "absolute form".hash(&mut group);
            }
        }
        peer.group_key = group.finish();
        self.deadline.set(timeouts.connect + timeouts.first_byte);
        Ok(Box::new(peer))
    }

    fn is_at_remote(&self) -> bool {
        let base = self.remote.base_url.as_ref();
        base.is_some_and(|base| same_origin(base, &self.url))
    }

    /// Whether the remote's credentials and headers may go where the question is now.
    pub(super) fn may_have_credentials(&self) -> bool {
        within_credentials(&self.remote, &self.url)
    }

    /// Sees to it that upstream gets what it wants to see.
    async fn authorize(&mut self) -> Result<()> {
        if !self.may_have_credentials() {
            return Ok(());
        }
        let had = match &mut self.authority {
            Authority::TokenService(..) => return Ok(()),
            Authority::Remote if self.authorization.is_some() || self.remote.credentials.is_none() => return Ok(()),
            Authority::Remote => {
                self.deadline.clear();
                let basic = self.upstream.passwords.basic(&self.remote, false).await;
                basic.map(|basic| basic.map(|basic| basic.header))
            }
            Authority::Scope(negotiation) => {
                // What is waited for bounds itself.
                self.deadline.clear();
                // Boxed: a token is got by an exchange too.
                Box::pin(negotiation.authorization(&self.upstream, &self.remote)).await
            }
        };
        match had {
            Ok(authorization) => {
                self.authorization = authorization;
                Ok(())
            }
            Err(failure) => Err(self.fail(failure)),
        }
    }

    async fn resolve(&mut self, host: &str, what: &str) -> Result<Vec<IpAddr>> {
        match self
            .upstream
            .resolver
            .addresses(host, self.remote.timeouts.connect)
            .await
        {
            Ok(found) => Ok(found),
            Err(error) => {
                let status = if matches!(error, ResolveError::TimedOut { .. }) {
                    504
                } else {
                    502
                };
                Err(self.fail(Failure {
                    status,
                    reason: format!("{what}: {error}"),
                    unreachable: true,
                }))
            }
        }
    }

    /// Whether the host asked now is one that the configuration names.
    fn is_own_host(&self) -> bool {
        let own = |url: &Option<Url>| url.as_ref().is_some_and(|own| own.host() == self.url.host());
        own(&self.remote.base_url)
            || own(&self.remote.index_url)
            || listed(&self.remote.file_hosts, &self.url)
            || listed(&self.remote.token_realms, &self.url)
    }

    /// The addresses that may be gone to: public ones, and for who is private (the remote, or a host that its configuration
    /// names) all but those that answer to a cloud's machines.
    async fn check(&mut self, found: Vec<IpAddr>) -> Result<Vec<IpAddr>> {
        let is_special = |ip: &IpAddr| address::special_kind(*ip).is_some();
        // Before anything else is asked: what is found now may be what decides.
        let own_host = self.own_host();
        let is_private = own_host.is_some_and(|own| own::decide(own, &found));
        if !found.iter().any(is_special) {
            return Ok(found);
        }
        let is_named = own_host.is_some();
        let is_private = is_private || self.base_is_private().await;
        let mut refused = None;
        let allowed: Vec<IpAddr> = found
            .into_iter()
            .filter(|ip| match address::special_kind(*ip) {
                None => true,
                Some(special) if is_private && !special.is_metadata => true,
                Some(special) => {
                    refused = Some((*ip, special));
                    false
                }
            })
            .collect();
        match refused {
            Some((ip, special)) if allowed.is_empty() => {
                let hint = match (special.is_metadata, is_named) {
                    (true, _) => "no remote may be sent there",
                    (false, true) => {
                        "it had a public address when the configuration was loaded; load it again if it has moved"
                    }
                    (false, false) => "list the host in `file_hosts` if that is meant",
                };
                let host = self.url.host_str().unwrap_or_default();
                let kind = special.kind;
                let reason = format!("{host} is at the {kind} address {ip}, where this remote may not be sent; {hint}");
                Err(self.fail(Failure::refused(reason)))
            }
            _ => Ok(allowed),
        }
    }

    /// Behind an outbound proxy names are not resolved here, so only literal addresses can be checked.
    async fn check_literal(&mut self, host: &str) -> Result<()> {
        match host.parse() {
            Ok(ip) => self.check(vec![ip]).await.map(|_| ()),
            Err(_) => Ok(()),
        }
    }

    /// The host asked now, if the configuration names it.
    fn own_host(&self) -> Option<&OwnHost> {
        let name = OwnHost::name_of(self.url.host_str()?);
        let own = self.remote.own_hosts.iter().find(|own| own.name == name);
        own.filter(|_| self.is_own_host())
    }

    async fn base_is_private(&self) -> bool {
        match self.remote.own_hosts.first() {
            Some(base) => self.upstream.is_private(&self.remote, base).await,
            None => false,
        }
    }

    /// For `upstream_request_filter`: replaces whatever request Pingora prepared by the one to be sent. Nothing of a
    /// client's request survives but what [`Ask`] names.
    ///
    /// # Errors
    /// A header that cannot be built.
    pub fn write_request(&mut self, request: &mut RequestHeader) -> Result<()> {
        let names: Vec<HeaderName> = request.headers.keys().cloned().collect();
        for name in names {
            let kept = self.ask.conditional && (name == header::IF_NONE_MATCH || name == header::IF_MODIFIED_SINCE);
            if !kept {
                request.remove_header(&name);
            }
        }
        request.set_method(self.ask.method.clone());
        let mut target = self.url.path().to_owned();
        if let Some(query) = self.query.as_deref().or(self.url.query()) {
            target.push('?');
            target.push_str(query);
        }
        let host = match (self.url.host_str(), self.url.port()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (host, _) => host.unwrap_or_default().to_owned(),
        };
        let proxy = self.upstream.proxy_for(&self.remote, &self.url);
        if let (Some(proxy), "http") = (proxy, self.url.scheme()) {
            target = format!("http://{host}{target}");
            let authorization = tunnel::authorization(proxy).map(HeaderValue::try_from);
            if let Some(Ok(mut authorization)) = authorization {
                authorization.set_sensitive(true);
                request.insert_header(header::PROXY_AUTHORIZATION, authorization)?;
            }
        }
        request.set_raw_path(target.as_bytes())?;
        request.insert_header(header::HOST, host)?;
        request.insert_header(header::USER_AGENT, &self.upstream.user_agent)?;
        request.insert_header(header::ACCEPT, self.ask.accept.unwrap_or("*/*"))?;
        request.insert_header(header::ACCEPT_ENCODING, if self.ask.gzip { "gzip" } else { "identity" })?;
        request.insert_header(header::VIA, "1.1 artifactapi")?;
        for (name, value) in &self.ask.headers {
            request.insert_header(name.clone(), value.clone())?;
        }
        if let Authority::TokenService(service, Some(credentials)) = &self.authority
            && same_origin(service, &self.url)
        {
            request.insert_header(header::AUTHORIZATION, credentials.clone())?;
        } else if self.may_have_credentials() {
            if let Some(authorization) = &self.authorization {
                request.insert_header(header::AUTHORIZATION, authorization.clone())?;
            }
            for (name, value) in &self.remote.headers {
                request.insert_header(name.clone(), value.clone())?;
            }
        }
        self.deadline.set(self.remote.timeouts.first_byte);
        Ok(())
    }

    /// For `upstream_response_filter`: follows a redirect by an error that makes Pingora ask again, and refuses what
    /// cannot be an answer.
    ///
    /// # Errors
    /// The retry, or the refusal.
    pub fn read_header(&mut self, response: &mut ResponseHeader) -> Result<()> {
        let status = response.status.as_u16();
        if status < 200 {
            return self.read_interim(status);
        }
        self.deadline.set(self.remote.timeouts.idle);
        if self.is_at_remote() {
            self.note_rate_limit(response);
        }
        if self.may_have_credentials()
            && let Authority::Scope(negotiation) = &mut self.authority
        {
            match negotiation.read(&self.remote, status, &response.headers) {
                Verdict::Answer => {}
                Verdict::Again => return Err(ask_on()),
                Verdict::Failed(failure) => return Err(self.fail(failure)),
            }
        }
        let followed = matches!(status, 301 | 302 | 303 | 307 | 308);
        if followed && matches!(self.ask.method, Method::GET | Method::HEAD) {
            let location = response
                .headers
                .get(header::LOCATION)
                .map(|value| value.as_bytes().to_vec());
            let target = self.redirect_target(location).map_err(|failure| self.fail(failure))?;
            self.redirects += 1;
            if self.redirects > MAX_REDIRECTS {
                return Err(self.fail(Failure::refused(format!(
                    "upstream redirected more than {MAX_REDIRECTS} times"
                ))));
            }
            tracing::debug!(remote = %self.remote.name, from = %shown(&self.url), to = %shown(&target.url), "following a redirect");
            self.url = target.url;
            self.query = target.query;
            self.addresses.clear();
            return Err(ask_on());
        }
        // One that comes through a tunnel, or without a proxy, is upstream's own, and an answer like any other.
        let by_proxy = self.url.scheme() == "http" && self.upstream.proxy_for(&self.remote, &self.url).is_some();
        if status == 407 && by_proxy {
            return Err(self.fail(Failure {
                status: 502,
                reason: "the outbound proxy wants other credentials; correct those in its URL".to_owned(),
                unreachable: true,
            }));
        }
        if status == 304 && !self.ask.conditional {
            return Err(self.fail(Failure::refused(
                "upstream answered 304 to a request without conditions",
            )));
        }
        let asked_range = self.ask.headers.iter().find(|(name, _)| *name == header::RANGE);
        if status == 206 {
            let Some((_, range)) = asked_range else {
                return Err(self.fail(Failure::refused("upstream answered 206 to a request without a range")));
            };
            let content_range = response
                .headers
                .get(header::CONTENT_RANGE)
                .and_then(|value| value.to_str().ok());
            let total = content_range.and_then(|value| fields::number::<u64>(value.rsplit_once('/')?.1.trim()));
            let other = self.ask.total.is_some() && total != self.ask.total;
            if other || !range_matches(range.to_str().unwrap_or(""), content_range.unwrap_or("")) {
                return Err(self.fail(Failure::refused("upstream answered another range than was asked for")));
            }
        }
        Ok(())
    }

    /// What comes before the answer is of no interest, unless there is no end of it, or it would end the message: nobody
    /// asked for another protocol.
    fn read_interim(&mut self, status: u16) -> Result<()> {
        self.interim += 1;
        if status == 101 {
            return Err(self.fail(Failure::refused(
                "upstream switched to another protocol, which nobody asked for",
            )));
        }
        if self.interim > MAX_INTERIM {
            return Err(self.fail(Failure::refused(format!(
                "upstream sent more than {MAX_INTERIM} interim answers and no final one"
            ))));
        }
        Ok(())
    }

    /// Docker Hub's `ratelimit-limit: 100;w=21600` and its like.
    fn note_rate_limit(&self, response: &ResponseHeader) {
        let number = |name: &str| {
            let text = response.headers.get(name)?.to_str().ok()?;
            text.split(';').next()?.trim().parse::<i64>().ok()
        };
        let (limit, left) = (number("ratelimit-limit"), number("ratelimit-remaining"));
        self.upstream.metrics.rate_limit(&self.remote.name, limit, left);
    }

    fn redirect_target(&self, location: Option<Vec<u8>>) -> std::result::Result<ExactUrl, Failure> {
        let location = location.ok_or_else(|| Failure::refused("upstream redirected without saying where"))?;
        let location = String::from_utf8(location)
            .map_err(|_| Failure::refused("upstream redirected to something that is not a URL"))?;
        let ExactUrl { url: mut target, query } = ExactUrl::join(&self.url, location.trim()).map_err(|error| {
            Failure::refused(format!("upstream redirected to something that is not a URL: {error}"))
        })?;
        target.set_fragment(None);
        match (self.url.scheme(), target.scheme()) {
            (_, "https") | ("http", "http") => {}
            (_, "http") => {
                let reason = format!(
                    "upstream redirected from https to {}, which is not followed",
                    shown(&target)
                );
                return Err(Failure::refused(reason));
            }
            (_, other) => {
                return Err(Failure::refused(format!(
                    "upstream redirected to a {other} URL, which is not followed"
                )));
            }
        }
        // User and password in a Location are somebody's mistake or trap, never ours to send.
        let _ = target.set_username("");
        let _ = target.set_password(None);
        if target.host_str().is_none_or(str::is_empty) {
            return Err(Failure::refused("upstream redirected to a URL without a host"));
        }
        Ok(ExactUrl { url: target, query })
    }

    /// For `upstream_response_body_filter`: so many bytes have arrived, the next may take `idle`.
    ///
    /// # Errors
    /// The body drips: it comes at less than the least rate, or takes longer than any may.
    pub fn body_piece(&mut self, length: usize, end: bool) -> Result<()> {
        if end {
            self.deadline.clear();
            return Ok(());
        }
        let limits = self.remote.timeouts;
        self.deadline.set(limits.idle);
        let now = self.deadline.waited();
        let pace = self.pace.get_or_insert(Pace {
            began: now,
            looked: now,
            bytes: 0,
        });
        pace.bytes += length as u64;
        let window = now.saturating_sub(pace.looked);
        let slow = if now.saturating_sub(pace.began) >= limits.whole {
            format!("did not end within {} s (transfer_timeout)", limits.whole.as_secs_f32())
        } else if window >= limits.rate_window {
            let rate = pace.bytes as f64 / window.as_secs_f64();
            (pace.looked, pace.bytes) = (now, 0);
            if rate >= limits.least_rate as f64 {
                return Ok(());
            }
            format!("came at {rate:.0} bytes a second (least_rate is {})", limits.least_rate)
        } else {
            return Ok(());
        };
        let reason = format!("the body from {} {slow}", shown(&self.url));
        tracing::warn!(remote = %self.remote.name, %reason, "a transfer from upstream is ended");
        Err(self.fail(Failure {
            status: 504,
            reason,
            unreachable: true,
        }))
    }

    /// For `fail_to_connect`: the next address is tried, if there is one.
    pub fn connect_failed(&mut self, mut error: Box<Error>) -> Box<Error> {
        self.tried += 1;
        if self.tried < self.addresses.len() {
            error.set_retry(true);
        }
        error
    }

    /// For `error_while_proxy`: a redirect asks again, and so does a connection from the pool that turned out dead.
    pub fn transfer_failed(&self, mut error: Box<Error>, reused: bool, may_repeat: bool) -> Box<Error> {
        if error.etype() == &ASK_ON {
            return error;
        }
        if may_repeat {
            error.retry.decide_reuse(reused);
        } else {
            error.retry = RetryType::Decided(false);
        }
        error
    }

    /// What `error` means, once nothing is tried any more.
    pub fn failure(&mut self, error: &Error) -> Failure {
        if let Some(failure) = self.failure.take() {
            return failure;
        }
        let mut host = self.url.host_str().unwrap_or_default().to_owned();
        if let Some(proxy) = self.upstream.proxy_for(&self.remote, &self.url) {
            host = format!("{host} through the outbound proxy {proxy:?}");
        }
        let what = describe(error);
        match error.etype() {
            etype if *etype == ASK_ON => Failure::refused("upstream redirected, or asked for authorization, too often"),
            ErrorType::ConnectTimedout
            | ErrorType::TLSHandshakeTimedout
            | ErrorType::ReadTimedout
            | ErrorType::WriteTimedout => Failure {
                status: 504,
                reason: format!("{host} did not answer in time ({what})"),
                unreachable: true,
            },
            ErrorType::HTTPStatus(status) => Failure {
                status: *status,
                reason: format!("{host}: {what}"),
                unreachable: false,
            },
            _ if error.esource() == &ErrorSource::Upstream => Failure {
                status: 502,
                reason: format!("{host} cannot be reached ({what})"),
                unreachable: true,
            },
            _ => Failure {
                status: 502,
                reason: format!("asking {host} failed ({what})"),
                unreachable: false,
            },
        }
    }
}

/// An error's chain in one line, for people.
fn describe(error: &Error) -> String {
    let mut text = error.etype().as_str().to_owned();
    let root = error.root_cause().to_string();
    let root = root.trim();
    if !root.is_empty() && !text.contains(root) {
        text.push_str(": ");
        text.push_str(&root.chars().take(200).collect::<String>());
    }
    text
}

/// A URL for people: without what may be a secret in its query.
pub fn shown(url: &Url) -> String {
    format!(
        "{}://{}{}",
        url.scheme(),
        url.host_str().unwrap_or_default(),
        url.path()
    )
}
