//! What the header of an answer means: a redirect, a challenge, the answer, or something that cannot be one.

use http::{Method, header};
use pingora_error::Result;
use pingora_http::ResponseHeader;

use super::{Authority, Exchange, ask_on, shown};
use crate::exact_url::ExactUrl;
use crate::fields;
use crate::upstream::failure::Failure;
use crate::upstream::negotiation::Verdict;
use crate::upstream::range::range_matches;

/// Redirects followed for one question.
const MAX_REDIRECTS: u8 = 10;
/// Answers that only announce one (1xx), taken for one question.
const MAX_INTERIM: u8 = 100;

impl Exchange {
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
        if let Some(asked) = self.asked.take() {
            let (metrics, remote) = (&self.upstream.metrics, &self.remote);
            let series = metrics.series(&remote.name, &remote.series);
            metrics.upstream_answered(&remote.name, series, status, asked.elapsed());
        }
        self.deadline.set(self.remote.timeouts.idle);
        if let Some(way) = self.unanswered.take() {
            self.upstream.hosts.answered(&way);
        }
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
}
