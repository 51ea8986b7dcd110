//! What is answered here rather than from a remote: information, health, configuration, metrics, the catalogue, flush, quarantine.

pub(crate) mod access;
mod bulk;
mod flush;
pub mod quarantine;
mod samples;

use std::sync::Arc;

use http::{Method, header};
use pingora_error::Result;
use pingora_proxy::Session;
use serde_json::json;

use crate::access_log::AccessLog;
use crate::backends::Backends;
use crate::breaker::{MAX_SKEW, Standing};
use crate::cache::Key;
use crate::cache::StoreStats;
use crate::catalog::{Artifact, ListAnswer, ListQuery, QueryError, rfc3339};
use crate::config::{Config, Remote, RemoteType};
use crate::fill::neighbours::Neighbour;
use crate::fill::{Fills, Views};
use crate::formats::{self, path};
use crate::in_process::InProcess;
use crate::local::Locals;
use crate::metrics::Metrics;
use crate::secrets::hidden;
use crate::session::reply::{self, Problem};
use crate::state::State;
use crate::upstream::Away;
use access::Need;

/// Bodies of requests to the API are small.
const MAX_BODY: usize = 1 << 20;

/// What is answered here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    Root,
    Health,
    Live,
    Ready,
    Config,
    Metrics,
    Flush,
    Artifacts {
        query: Option<String>,
    },
    Artifact {
        remote: String,
        raw: Vec<u8>,
        query: Option<String>,
    },
    Quarantine(quarantine::Endpoint),
}

/// Answers the endpoints.
pub struct Api {
    state: Arc<State>,
    fills: Arc<Fills>,
    views: Arc<Views>,
    locals: Arc<Locals>,
    metrics: Arc<Metrics>,
    backends: Backends,
    log: Option<Arc<AccessLog>>,
    /// What is held back, and was asked for.
    pub asked: quarantine::Asked,
    /// For what is asked of this process by itself.
    pub in_process: InProcess,
}

impl Api {
    pub fn new(
        state: Arc<State>,
        fills: Arc<Fills>,
        views: Arc<Views>,
        locals: Arc<Locals>,
        metrics: Arc<Metrics>,
        backends: Backends,
        log: Option<Arc<AccessLog>>,
    ) -> Self {
        Api {
            state,
            fills,
            views,
            locals,
            metrics,
            backends,
            log,
            asked: quarantine::Asked::default(),
            in_process: InProcess::default(),
        }
    }

    /// Answers `endpoint`.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn answer(&self, session: &mut Session, config: &Config, endpoint: Endpoint) -> Result<()> {
        let method = session.req_header().method.clone();
        let allowed: &[Method] = match endpoint {
            Endpoint::Flush => &[Method::PUT],
            Endpoint::Artifacts { .. } => &[Method::GET, Method::HEAD, Method::POST],
            Endpoint::Quarantine(quarantine::Endpoint::Release { .. }) => &[Method::POST, Method::DELETE],
            _ => &[Method::GET, Method::HEAD],
        };
        if !allowed.contains(&method) {
            let names: Vec<&str> = allowed.iter().map(Method::as_str).collect();
            let names = names.join(", ");
            let problem = Problem::new(405, format!("{method} is not allowed here, {names} is"));
            return reply::problem(session, None, problem.header(header::ALLOW, names)).await;
        }
        if let Err(problem) = access::check(session, config, Need::of_endpoint(&endpoint, config)) {
            return reply::problem(session, None, problem).await;
        }
        match endpoint {
            Endpoint::Root => {
                let readable = |remote: &Remote| access::permits(session, config, Need::Read(remote));
                let root = root(config, readable);
                reply::json(session, 200, &root).await
            }
            Endpoint::Live => reply::json(session, 200, &json!({"status": "ok"})).await,
            Endpoint::Health => {
                let health = self.health(session, config);
                reply::json(session, 200, &health).await
            }
            Endpoint::Ready => {
                // Neither a full disk nor the outage of anything that stands behind this node keeps artifacts from being
                // served; stopping does.
                let health = self.health(session, config);
                reply::json(session, if self.state.is_stopping() { 503 } else { 200 }, &health).await
            }
            Endpoint::Config => reply::json(session, 200, &config.to_redacted_json()).await,
            Endpoint::Metrics => {
                let text = self.metrics.render(&self.samples(config));
                let content_type = "text/plain; version=0.0.4; charset=utf-8".to_owned();
                reply::send(session, 200, vec![(header::CONTENT_TYPE, content_type)], text.into()).await
            }
            Endpoint::Artifacts { .. } if method == Method::POST => self.bulk(session, config).await,
            Endpoint::Artifacts { query } => self.list(session, config, query.as_deref().unwrap_or("")).await,
            Endpoint::Artifact { remote, raw, query } => self.one(session, config, &remote, &raw, query).await,
            Endpoint::Flush => self.flush(session, config).await,
            Endpoint::Quarantine(endpoint) => self.quarantine(session, config, endpoint).await,
        }
    }

    fn health(&self, session: &Session, config: &Config) -> serde_json::Value {
        let store = self.fills.store.stats();
        let catalog = self.fills.catalog.status();
        let reload_failed = self.state.last_reload_failed();
        let bucket = self.backends.bucket.as_ref().map(|bucket| bucket.status());
        let fleet = self.backends.fleet.as_ref().map(|fleet| fleet.status());
        let disk = disk(&store);
        let catalogue = match (&catalog.error, catalog.healthy) {
            (_, true) => json!({"status": "ok", "queued": catalog.queued}),
            (why, false) => json!({"status": "degraded", "queued": catalog.queued, "detail": why}),
        };
        let mut dependencies = json!({"disk": disk, "catalogue": catalogue});
        if let Some(why) = self.locals.trouble() {
            dependencies["local_files"] = json!({"status": "degraded", "detail": why});
        }
        if let Some(bucket) = bucket {
            let mut s3 = standing(&bucket.standing, bucket.trouble);
            if let Some((why, since)) = bucket.refusing.filter(|_| bucket.standing.healthy) {
                s3["status"] = json!("degraded");
                s3["detail"] = json!(format!("it takes no uploads, which wait on this node's disk: {why}"));
                s3["seconds"] = json!(since.as_secs());
            }
            s3["uploads_waiting"] = json!(bucket.uploads_waiting);
            s3["bytes_waiting"] = json!(bucket.bytes_waiting);
            s3["oldest_waiting_seconds"] = json!(bucket.oldest_waiting.map(|waiting| waiting.as_secs()));
            s3["removals_waiting"] = json!(bucket.removals_waiting);
            dependencies["s3"] = s3;
        }
        if let Some(fleet) = fleet {
            let deaf = (!fleet.listening).then(|| "news of the other nodes are not heard".to_owned());
            let mut redis = standing(&fleet.redis, None);
            if let Some(why) = deaf.filter(|_| fleet.redis.healthy) {
                redis["status"] = json!("degraded");
                redis["detail"] = json!(why);
            }
            redis["waiting"] = json!(fleet.outbox + fleet.unsent_flushes);
            dependencies["redis"] = redis;
        }
        let neighbours = self.backends.neighbours.list();
        if !neighbours.is_empty() {
            dependencies["nodes"] = nodes(&neighbours);
        }
        for breaker in self
            .backends
            .standings()
            .iter()
            .filter(|breaker| breaker.name == "postgres")
        {
            dependencies["postgres"] = standing(breaker, None);
        }
        // What went wrong names files, hosts and accounts.
        let may_be_told = access::permits(session, config, Need::Configuration);
        for fields in dependencies
            .as_object_mut()
            .into_iter()
            .flat_map(|all| all.values_mut())
        {
            if let Some(fields) = fields.as_object_mut()
                && let Some(detail) = fields.remove("detail")
                && may_be_told
            {
                fields.insert("detail".to_owned(), json!(detail.as_str().map(hidden)));
            }
        }
        let is_ok = |dependency: &serde_json::Value| dependency["status"] == "ok";
        let degraded = reload_failed || !dependencies.as_object().is_some_and(|all| all.values().all(is_ok));
        let failure = self.state.last_reload_failure().map(|failure| {
            json!({
                "at": rfc3339(failure.at),
                "detail": may_be_told.then_some(failure.detail),
            })
        });
        json!({
            "status": if degraded { "degraded" } else { "ok" },
            "version": env!("CARGO_PKG_VERSION"),
            "config_generation": config.generation,
            "config_reload": if reload_failed { "failed" } else { "ok" },
            "config_last_failure": failure,
            "dependencies": dependencies,
            "upstreams_away": may_be_told.then(|| upstreams_away(&self.fills.upstream.away())),
            "caps_reached": may_be_told.then(|| self.fills.upstream.caps_reached()),
        })
    }

    async fn list(&self, session: &mut Session, config: &Config, query: &str) -> Result<()> {
        let query = query.to_owned();
        let mut query = match parsed(move || ListQuery::parse(&query)).await {
            Ok(query) => query,
            Err(error) => return reply::problem(session, None, Problem::new(400, error.to_string())).await,
        };
        query.filter.among = access::readable(session, config);
        if let Err(error) = self.fills.catalog.drain().await {
            return reply::problem(session, None, away(&error)).await;
        }
        match self.fills.catalog.list(query).await {
            Ok(page) => {
                let answer = serde_json::to_value(ListAnswer::from(page)).unwrap_or_default();
                reply::json(session, 200, &answer).await
            }
            Err(error) => reply::problem(session, None, away(&error)).await,
        }
    }

    async fn one(
        &self,
        session: &mut Session,
        config: &Config,
        remote: &str,
        raw: &[u8],
        query: Option<String>,
    ) -> Result<()> {
        let shown = String::from_utf8_lossy(raw).into_owned();
        let Some(configured) = config.remotes.get(remote) else {
            let problem = Problem::new(404, "there is no such remote; `GET /` lists those there are");
            return reply::problem(session, None, problem.at(remote, &shown)).await;
        };
        let path = match path::parse(raw, query.as_deref()) {
            Ok(path) => path,
            Err(error) => {
                return reply::problem(session, None, Problem::new(400, error.to_string()).at(remote, &shown)).await;
            }
        };
        // As it is stored: npm's scoped names have two spellings, and what a digest names is stored for all repositories.
        let key = match formats::asset(configured, path.clone(), None) {
            Some(asset) => asset.key(),
            // Stored under this path, and asked for by others.
            None => Key::new(remote, &path.encoded, path.query.as_deref(), ""),
        };
        let path = key.parts().path.to_owned();
        if let Err(error) = self.fills.catalog.drain().await {
            return reply::problem(session, None, away(&error)).await;
        }
        match self.fills.catalog.get(remote, &path).await {
            Ok(Some(record)) => {
                let answer = serde_json::to_value(Artifact::from(record)).unwrap_or_default();
                reply::json(session, 200, &answer).await
            }
            Ok(None) => reply::problem(session, None, Problem::new(404, "it is not stored").at(remote, &path)).await,
            Err(error) => reply::problem(session, None, away(&error)).await,
        }
    }
}

/// What a client asks for, read where a pattern of its may take long to compile.
async fn parsed<T: Send + 'static>(
    parse: impl FnOnce() -> Result<T, QueryError> + Send + 'static,
) -> Result<T, QueryError> {
    let parsing = tokio::task::spawn_blocking(parse).await;
    parsing.unwrap_or_else(|_| Err(QueryError::new("the process ends")))
}

/// How the store fares: what cannot be stored, or was found damaged lately, is for people to see to.
fn disk(store: &StoreStats) -> serde_json::Value {
    let mut disk = json!({"status": "ok", "bytes": store.disk_bytes, "limit": store.disk_limit});
    let damaged = store.damaged.as_ref().map(|which| {
        format!("a stored file was damaged or could not be read, and is fetched again when it is asked for: {which}")
    });
    if let Some(why) = store.starved.clone().or(damaged) {
        disk["status"] = json!("degraded");
        disk["detail"] = json!(why);
    }
    disk
}

/// How a dependency fares, for people; `trouble` is more than its breaker knows.
fn standing(breaker: &Standing, trouble: Option<String>) -> serde_json::Value {
    let skew = breaker.clock_ahead.filter(|ahead| ahead.abs() >= MAX_SKEW);
    let mut shown = match (&breaker.error, skew) {
        (None, None) => json!({"status": "ok"}),
        (None, Some(_)) => json!({
            "status": "degraded",
            "detail": "its clock and that of this machine differ; let NTP set both",
        }),
        (Some((why, since)), _) => {
            let detail = trouble.unwrap_or_else(|| why.clone());
            json!({"status": "degraded", "detail": detail, "seconds": since.as_secs()})
        }
    };
    if let Some(ahead) = skew {
        shown["clock_ahead_seconds"] = json!(ahead as f64 / 1e6);
    }
    shown
}

/// The upstream hosts that are not asked for now, for people. That somebody else's host is away does not make this node ill.
fn upstreams_away(away: &[Away]) -> serde_json::Value {
    let hosts = away.iter().map(|host| {
        let about = json!({"detail": hidden(&host.why), "seconds": host.since.as_secs()});
        (host.way.clone(), about)
    });
    serde_json::Value::Object(hosts.collect())
}

/// How the other nodes are reached, for people.
fn nodes(neighbours: &[Neighbour]) -> serde_json::Value {
    let troubled = neighbours
        .iter()
        .filter_map(|node| Some((&node.url, node.trouble.as_ref()?)));
    let details: Vec<String> = troubled
        .clone()
        .map(|(url, (why, _))| format!("{url}: {why}"))
        .collect();
    let seconds = troubled.map(|(_, (_, since))| since.as_secs()).max();
    match seconds {
        None => json!({"status": "ok", "others": neighbours.len()}),
        Some(seconds) => json!({
            "status": "degraded",
            "others": neighbours.len(),
            "detail": format!("not reached: {}", details.join("; ")),
            "seconds": seconds,
        }),
    }
}

fn root(config: &Config, is_readable: impl Fn(&Remote) -> bool) -> serde_json::Value {
    let remotes: serde_json::Map<String, serde_json::Value> = config
        .remotes
        .values()
        .filter(|remote| is_readable(remote))
        .map(|remote| {
            let kind = match remote.kind {
                RemoteType::Remote => "remote",
                RemoteType::Local => "local",
            };
            let url = format!("{}{}/", formats::root_of(remote), remote.name);
            let about = json!({
                "type": kind,
                "package": remote.package.name,
                "description": remote.description,
                "url": url,
            });
            (remote.name.clone(), about)
        })
        .collect();
    json!({
        "name": "artifactapi",
        "version": env!("CARGO_PKG_VERSION"),
        "remotes": remotes,
        "endpoints": {
            "artifact": "/api/v1/remote/{remote}/{path}",
            "artifacts": "/api/v1/artifacts",
            "flush": "/cache/flush",
            "quarantine": "/api/v1/quarantine",
            "health": "/health",
            "config": "/config",
            "metrics": "/metrics",
        },
    })
}

fn away(error: &crate::catalog::CatalogError) -> Problem {
    Problem::new(503, error.to_string()).header(header::RETRY_AFTER, "5")
}
