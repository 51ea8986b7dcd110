//! One question to upstream, redirects included, for fills and for what passes by: as whom it is asked, and what its failures
//! mean.

mod answer;
mod pace;
mod peer;
mod request;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue, Method, header};
use pingora_error::{Error, ErrorSource, ErrorType, Result, RetryType};
use url::Url;

use super::Upstream;
use super::failure::Failure;
use super::hosts::Way;
use super::negotiation::Negotiation;
use super::trust::{may_see_credentials, same_origin, within_credentials};
use crate::config::Remote;
use crate::deadline::Deadline;
use crate::on_behalf::{self, RequestId};
use pace::Pace;

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
    /// How the host is come to that has not answered yet.
    unanswered: Option<Way>,
    /// A stored copy takes the place of an answer that does not come.
    is_stored: bool,
    is_probe: bool,
    pub deadline: Arc<Deadline>,
    /// When the question was sent that is not answered yet.
    asked: Option<Instant>,
    /// Of the request that it is asked for.
    request_id: Option<RequestId>,
    pace: Option<Pace>,
    /// Set where the reason is known better than Pingora's error can tell.
    failure: Option<Failure>,
    authority: Authority,
    /// `Authorization` for the remote's own host.
    authorization: Option<HeaderValue>,
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
            unanswered: None,
            is_stored: false,
            is_probe: false,
            deadline: Arc::default(),
            asked: None,
            request_id: on_behalf::request_id(),
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

    /// What is asked about is stored, if `is_stored`: a host that does not answer is not waited for.
    pub fn with_stored(mut self, is_stored: bool) -> Self {
        self.is_stored = is_stored;
        self
    }

    /// Asks a host that does not answer, to find out whether it does again.
    pub(super) fn probing(mut self) -> Self {
        self.is_probe = true;
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

    fn is_at_remote(&self) -> bool {
        let base = self.remote.base_url.as_ref();
        base.is_some_and(|base| same_origin(base, &self.url))
    }

    /// Whether the remote's credentials and headers may go where the question is now.
    pub(super) fn may_have_credentials(&self) -> bool {
        within_credentials(&self.remote, &self.url)
    }

    /// Whether the server that is asked now may see who asks: as the registry may, or its token service.
    fn may_be_known(&self) -> bool {
        match &self.authority {
            Authority::TokenService(service, _) => {
                same_origin(service, &self.url) && may_see_credentials(&self.remote, service)
            }
            Authority::Remote | Authority::Scope(_) => self.may_have_credentials(),
        }
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

    /// For `upstream_response_body_filter`: so many bytes have arrived, the next may take `idle`. How long they are to be
    /// waited for first, because the remote may not have more.
    ///
    /// # Errors
    /// The body drips: it comes at less than the least rate, or takes longer than any may.
    pub fn body_piece(&mut self, length: usize, end: bool) -> Result<Duration> {
        let metrics = &self.upstream.metrics;
        let series = metrics.series(&self.remote.name, &self.remote.series);
        metrics.upstream_sent(series, length as u64);
        let pause = self.upstream.caps.piece(&self.remote, length);
        if !pause.is_zero() {
            metrics.upstream_delayed(&self.remote.name, "bytes", pause);
        }
        if end {
            self.deadline.clear();
            return Ok(pause);
        }
        let limits = self.remote.timeouts;
        self.deadline.set(limits.idle + pause);
        let now = self.deadline.waited();
        let pace = self.pace.get_or_insert_with(|| Pace::new(now));
        let slow = pace.drips(length, now, &limits);
        pace.rests(pause);
        let Some(slow) = slow else {
            return Ok(pause);
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
        let failure = self.meaning(error);
        if failure.unreachable {
            self.note_unanswered(&failure);
        }
        failure
    }

    /// The host that was asked has not answered.
    fn note_unanswered(&mut self, failure: &Failure) {
        if let Some(way) = self.unanswered.take() {
            self.upstream.unanswered(&way, &self.remote, &self.url, failure);
        }
    }

    fn meaning(&mut self, error: &Error) -> Failure {
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
            ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert => {
                let said = error.context.as_ref().map_or(what.as_str(), |context| context.as_str());
                Failure {
                    status: 502,
                    reason: format!(
                        "no TLS connection to {host} ({said}); `tls` of the remote may name a further authority, and a \
                         certificate to be shown"
                    ),
                    unreachable: true,
                }
            }
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

impl Drop for Exchange {
    /// Who asks gives up when the deadline has passed.
    fn drop(&mut self) {
        if self.unanswered.is_some() && self.deadline.is_over() {
            let failure = Failure::timed_out(&self.remote, &self.url);
            self.note_unanswered(&failure);
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
