//! `PUT /cache/flush`: what is asked, and done.

use http::header;
use pingora_error::Result;
use pingora_proxy::Session;

use super::access::{self, Need};
use super::{Api, MAX_BODY, parsed};
use crate::catalog::FlushRequest;
use crate::config::{Config, RemoteType};
use crate::session::body;
use crate::session::reply::{self, Problem};

impl Api {
    pub(super) async fn flush(&self, session: &mut Session, config: &Config) -> Result<()> {
        let body = match body::read(session, MAX_BODY, &body::FLUSHES, &config.settings.clients).await? {
            Ok(body) => body,
            Err(problem) => return reply::problem(session, None, problem).await,
        };
        // A pattern is compiled, which takes its time.
        let parsed = parsed(move || FlushRequest::parse(&body.bytes)).await;
        let request = match parsed {
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
        let need = request.filter.remote.as_deref().map_or(Need::ManageAll, Need::Manage);
        if let Err(problem) = access::check(session, config, need) {
            return reply::problem(session, None, problem).await;
        }
        if let Some(remote) = request
            .filter
            .remote
            .as_ref()
            .and_then(|remote| config.remotes.get(remote))
            && remote.kind == RemoteType::Local
        {
            let name = &remote.name;
            let detail = format!(
                "{name:?} is a local remote: its files have no other source and are never flushed; remove one with DELETE \
                 /api/v1/remote/{name}/…"
            );
            return reply::problem(session, None, Problem::new(400, detail)).await;
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
}
