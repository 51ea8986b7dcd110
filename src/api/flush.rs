//! `PUT /cache/flush`: who may, and what is asked.

use http::header;
use pingora_error::Result;
use pingora_proxy::Session;

use super::{Api, body};
use crate::catalog::FlushRequest;
use crate::config::Config;
use crate::proxy::reply::{self, Problem};

impl Api {
    pub(super) async fn flush(&self, session: &mut Session, config: &Config) -> Result<()> {
        if !self.may_flush(session, config) {
            let detail =
                "flushing is allowed from this machine only; set ARTIFACTAPI_ADMIN_TOKEN to allow it with a token";
            let problem = Problem::new(401, detail).header(header::WWW_AUTHENTICATE, "Bearer realm=\"artifactapi\"");
            return reply::problem(session, None, problem).await;
        }
        let body = match body(session).await? {
            Ok(body) => body,
            Err(problem) => return reply::problem(session, None, problem).await,
        };
        let request = match FlushRequest::parse(&body) {
            Ok(request) => request,
            Err(error) => return reply::problem(session, None, Problem::new(400, error.to_string())).await,
        };
        if let Some(remote) = &request.filter.remote
            && !config.remotes.contains_key(remote)
        {
            let problem = Problem::new(
                404,
                format!("there is no remote {remote:?}; `GET /` lists those there are"),
            );
            return reply::problem(session, None, problem).await;
        }
        let config = self.state.config();
        match self.fills.flush(&self.views, &config, &request).await {
            Ok(answer) => reply::json(session, 200, &serde_json::to_value(answer).unwrap_or_default()).await,
            Err(error) => {
                let problem = Problem::new(503, error.to_string()).header(header::RETRY_AFTER, "5");
                reply::problem(session, None, problem).await
            }
        }
    }

    /// With a token configured it is needed everywhere; without one, peers on this machine may flush.
    fn may_flush(&self, session: &Session, config: &Config) -> bool {
        let headers = &session.req_header().headers;
        match &config.settings.admin_token {
            Some(token) => headers
                .get(header::AUTHORIZATION)
                .and_then(|value| value.to_str().ok())
                .and_then(|value| value.strip_prefix("Bearer "))
                .is_some_and(|given| same(given.trim().as_bytes(), token.reveal().as_bytes())),
            None => {
                let forwarded = ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip"];
                let local = session
                    .client_addr()
                    .and_then(|a| a.as_inet())
                    .is_some_and(|a| a.ip().to_canonical().is_loopback());
                local && !forwarded.iter().any(|name| headers.contains_key(*name))
            }
        }
    }
}

/// Compares in time that depends on the given text's length only.
fn same(given: &[u8], wanted: &[u8]) -> bool {
    let mut difference = given.len() ^ wanted.len();
    for (index, byte) in given.iter().enumerate() {
        difference |= usize::from(byte ^ wanted.get(index).copied().unwrap_or(0));
    }
    difference == 0
}
