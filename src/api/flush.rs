//! `PUT /cache/flush`: what the catalogue lists after its queue is drained, fills in progress, remembered refusals, and
//! the views of what it matches.

use http::header;
use pingora_error::Result;
use pingora_proxy::Session;

use super::{Api, body};
use crate::cache::{Hash, now_ms};
use crate::catalog::{Class as Listed, Event, Filter, FlushAnswer, FlushMode, FlushRequest};
use crate::config::{Config, RemoteType};
use crate::formats::{self, Class};
use crate::policy;
use crate::proxy::reply::{self, Problem};

/// Rows looked at in one question to the catalogue.
const PAGE: usize = 500;

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
        match self.run_flush(config, &request).await {
            Ok(answer) => {
                tracing::info!(
                    matched = answer.matched,
                    bytes = answer.bytes,
                    dry_run = answer.dry_run,
                    "flushed"
                );
                reply::json(session, 200, &serde_json::to_value(answer).unwrap_or_default()).await
            }
            Err(problem) => reply::problem(session, None, problem).await,
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

    async fn run_flush(&self, config: &Config, request: &FlushRequest) -> std::result::Result<FlushAnswer, Problem> {
        let catalog = &self.fills.catalog;
        let filter = &request.filter;
        let mut answer = FlushAnswer {
            dry_run: request.dry_run,
            ..FlushAnswer::default()
        };
        let is_local = |remote: &str| {
            config
                .remotes
                .get(remote)
                .is_some_and(|remote| remote.kind == RemoteType::Local)
        };
        let everything_of = filter.class.is_none() && filter.prefix.is_none() && filter.pattern.is_none();
        if let Err(error) = catalog.drain().await {
            if !everything_of || request.dry_run {
                let detail = format!("{error}; flushing all, or all of one remote, works without the catalogue");
                return Err(Problem::new(503, detail).header(header::RETRY_AFTER, "5"));
            }
            return Ok(self.flush_without_catalogue(filter, request.mode).await);
        }
        let mut after = None;
        loop {
            let page = catalog
                .matching(filter, after, PAGE)
                .await
                .map_err(|error| Problem::new(503, error.to_string()).header(header::RETRY_AFTER, "5"))?;
            for record in page.records {
                if is_local(&record.remote) {
                    continue;
                }
                answer.matched += 1;
                answer.bytes += record.size;
                let Some(hash) = parse_hash(&record.key) else { continue };
                match (request.dry_run, request.mode) {
                    (true, _) => {}
                    (false, FlushMode::Delete) => {
                        if let Some(id) = self.fills.store.id_of(hash).await {
                            self.views.forget(id).await;
                        }
                        self.fills.store.remove(hash).await;
                        answer.deleted += 1;
                        catalog.record(Event::Removed {
                            remote: record.remote,
                            path: record.path,
                            form: record.form,
                        });
                    }
                    (false, FlushMode::Expire) => {
                        self.fills.store.expire(hash).await;
                        answer.expired += 1;
                        let at = crate::catalog::unix_now();
                        let (remote, path, form) = (record.remote, record.path, record.form);
                        let fresh_until = Some(i64::try_from(now_ms() / 1000).unwrap_or(0));
                        catalog.record(Event::Refreshed {
                            remote,
                            path,
                            form,
                            fresh_until,
                            at,
                        });
                    }
                }
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        if !request.dry_run {
            let matches = |key: &str| covered(config, filter, key);
            for key in self.fills.store.growing_keys() {
                match (matches(&key.text), request.mode) {
                    (true, FlushMode::Delete) => drop(self.fills.store.remove(key.hash).await),
                    (true, FlushMode::Expire) => drop(self.fills.store.expire(key.hash).await),
                    (false, _) => {}
                }
            }
            self.fills.forget(matches);
            // Views of what was no longer listed, and of bases that a restart forgot.
            if filter.remote.is_none() && everything_of && request.mode == FlushMode::Delete {
                self.fills.store.remove_where(|key| key.starts_with('\0')).await;
            }
        }
        Ok(answer)
    }

    /// By walking the disk tier.
    async fn flush_without_catalogue(&self, filter: &Filter, mode: FlushMode) -> FlushAnswer {
        let remote = filter.remote.clone();
        let matches = move |key: &str| {
            remote
                .as_ref()
                .is_none_or(|remote| key.split('\0').next() == Some(remote.as_str()))
        };
        self.fills.forget(&matches);
        let (count, bytes) = match mode {
            FlushMode::Delete => self.fills.store.remove_where(matches).await,
            FlushMode::Expire => self.fills.store.expire_where(matches).await,
        };
        let (deleted, expired) = if mode == FlushMode::Delete {
            (count, 0)
        } else {
            (0, count)
        };
        FlushAnswer {
            matched: count,
            deleted,
            expired,
            bytes,
            dry_run: false,
        }
    }
}

/// Whether the filter covers what is stored, or would be, under `key`.
fn covered(config: &Config, filter: &Filter, key: &str) -> bool {
    let mut parts = key.splitn(3, '\0');
    let (Some(remote), Some(path)) = (parts.next(), parts.next()) else {
        return false;
    };
    let Some(configured) = config.remotes.get(remote) else {
        return filter.remote.is_none();
    };
    let format = formats::of(configured.package);
    let bare = path.split('?').next().unwrap_or(path);
    let decoded = formats::links::decode_once(bare);
    let governed = formats::links::split_foreign(&decoded).map_or(decoded.as_str(), |(_, path)| path);
    let class = match policy::classify(configured, format, governed).map(|policy| policy.class) {
        Some(Class::Immutable) => Listed::Immutable,
        // Stored for all repositories, whichever of them a pattern allows.
        _ if format.names_content(governed).is_some() => Listed::Immutable,
        _ => Listed::Mutable,
    };
    filter.covers(remote, class, path)
}

fn parse_hash(key: &str) -> Option<Hash> {
    let mut hash = [0; 16];
    if key.len() != 32 || !key.is_ascii() {
        return None;
    }
    for (index, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(key.get(index * 2..index * 2 + 2)?, 16).ok()?;
    }
    Some(hash)
}

/// Compares in time that depends on the given text's length only.
fn same(given: &[u8], wanted: &[u8]) -> bool {
    let mut difference = given.len() ^ wanted.len();
    for (index, byte) in given.iter().enumerate() {
        difference |= usize::from(byte ^ wanted.get(index).copied().unwrap_or(0));
    }
    difference == 0
}
