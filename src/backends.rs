//! What stands behind this node: the catalogue's database, the bucket, and Redis. Each that is not configured has its embedded
//! default, which is no file here. None is waited for at the start.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::{Builder, Handle, Runtime};

use crate::breaker::{Breaker, Standing};
use crate::bucket::{Arbiter, Bucket, Undisputed};
use crate::cache::{Store, distrust, now_ms};
use crate::catalog::{Catalog, CatalogError, FlushMode, FlushRequest};
use crate::config::Settings;
use crate::fill::Fills;
use crate::fill::flush::covered;
use crate::fill::ledger::Covers;
use crate::fill::neighbours::Neighbours;
use crate::fill::news::{ByFleet, News};
use crate::fill::node::Peers;
use crate::fill::shared::Shared;
use crate::fill::unfinished::Unfinished;
use crate::fleet::{Fleet, Flush, Node};
use crate::relist::Told;
use crate::state::State;
use crate::upstream::SharedTokens;

/// For the last words to Redis; flushes that it is not told of then, it is told of after the next start.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Why the program could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {address}: {error}")]
    Listen { address: SocketAddr, error: io::Error },
    #[error("cannot use the data folder {folder}: {error}; name another with --data-dir or ARTIFACTAPI_DATA_DIR")]
    Data { folder: String, error: io::Error },
    #[error("{0}")]
    Other(String),
}

/// All of them.
#[derive(Clone)]
pub struct Backends {
    pub catalog: Catalog,
    pub bucket: Option<Arc<Bucket>>,
    pub fleet: Option<Arc<Fleet>>,
    /// The other nodes, as this one reaches them.
    pub neighbours: Arc<Neighbours>,
    postgres: Option<Arc<Breaker>>,
    told: Told,
    runtime: Handle,
}

/// What the connections to all of them live on, out of the way of what clients wait for.
///
/// # Errors
/// The system gives no thread.
pub fn runtime() -> Result<Runtime, StartError> {
    Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("backends")
        .enable_all()
        .build()
        .map_err(|error| StartError::Other(format!("a thread cannot be started: {error}")))
}

impl Backends {
    /// Asks none of them anything yet.
    ///
    /// # Errors
    /// The data folder or a setting cannot be used.
    pub fn new(settings: &Settings, store: &'static Store, handle: Handle) -> Result<Backends, StartError> {
        let data = |error| StartError::Data {
            folder: settings.data_dir.display().to_string(),
            error,
        };
        let (catalog, postgres) = open_catalog(settings, &handle)?;
        let bucket = match &settings.s3 {
            Some(s3) => Some(Bucket::new(s3, &settings.data_dir, store, handle.clone()).map_err(data)?),
            None => None,
        };
        let fleet = match &settings.redis_url {
            Some(url) => {
                let me = Node::new(settings.node_url.as_ref().map(ToString::to_string));
                let fleet = Fleet::new(url, me, &settings.data_dir, handle.clone());
                Some(fleet.map_err(|error| StartError::Other(error.to_string()))?)
            }
            None => None,
        };
        Ok(Backends {
            catalog,
            bucket,
            fleet,
            neighbours: Arc::default(),
            postgres,
            told: Told::new(&settings.data_dir),
            runtime: handle,
        })
    }

    /// What flights ask before upstream.
    ///
    /// # Errors
    /// The system's certificates cannot be used.
    pub fn shared(&self, state: &Arc<State>) -> reqwest::Result<Shared> {
        let settings = &state.config().settings;
        let unfinished = Unfinished::new(&settings.data_dir);
        let peers = match (&settings.node_secret, &self.fleet) {
            (Some(secret), Some(_)) => Some(Peers::new(secret.clone())?),
            _ => None,
        };
        let state = Arc::clone(state);
        let read_flush = move |flush: &Flush| {
            let request = FlushRequest::parse(flush.request.to_string().as_bytes()).ok()?;
            let (state, filter) = (Arc::clone(&state), request.filter);
            let covers: Covers = Box::new(move |key| covered(&state.config(), &filter, key));
            Some((covers, request.mode == FlushMode::Expire))
        };
        Ok(Shared::new(
            self.bucket.clone(),
            self.fleet.clone(),
            peers,
            Box::new(read_flush),
            Some(unfinished),
        ))
    }

    /// Connects them, and lets `fills` hear what other nodes do.
    pub fn start(&self, fills: &Arc<Fills>) {
        fills.finish_flushes(&self.runtime);
        // What was evicted here may be in the bucket, or with another node that writes to the same catalogue.
        let is_alone = self.bucket.is_none() && !self.catalog.is_shared();
        let telling = self.told.clone().keep(self.catalog.clone(), fills.store, is_alone);
        self.runtime.spawn(telling);
        if let Some(fleet) = &self.fleet {
            // What happened while this node was down it is yet to hear.
            distrust(now_ms());
            fleet.start(Arc::new(News(Arc::downgrade(fills))));
            let neighbours = Arc::clone(&self.neighbours);
            self.runtime.spawn(neighbours.keep_trying(Arc::clone(fills)));
        }
        if let Some(bucket) = &self.bucket {
            let arbiter: Arc<dyn Arbiter> = match &self.fleet {
                Some(fleet) => Arc::new(ByFleet(Arc::clone(fleet), Arc::downgrade(fills))),
                None => Arc::new(Undisputed),
            };
            bucket.start(arbiter);
        }
    }

    /// How those that are configured fare.
    pub fn standings(&self) -> Vec<Standing> {
        let breakers = [
            self.bucket.as_ref().map(|bucket| bucket.breaker()),
            self.fleet.as_ref().map(|fleet| fleet.breaker()),
            self.postgres.as_ref(),
        ];
        breakers
            .into_iter()
            .flatten()
            .map(|breaker| breaker.standing())
            .collect()
    }

    /// Writes what is only in memory. `is_last`: no other process goes on with the data folder, for which the catalogue may
    /// still have to be told something.
    pub async fn close(&self, is_last: bool) {
        self.catalog.close().await;
        if is_last && self.catalog.status().queued == 0 {
            self.told.finish(&self.catalog);
        }
        if let Some(fleet) = &self.fleet {
            let _ = tokio::time::timeout(CLOSE_LIMIT, fleet.close()).await;
        }
    }
}

#[async_trait]
impl SharedTokens for Fleet {
    async fn get(&self, name: &str) -> Option<(String, Duration)> {
        self.token(name).await
    }

    fn put(&self, name: &str, token: &str, lifetime: Duration) {
        self.keep_token(name, token.to_owned(), lifetime);
    }
}

/// The catalogue that is configured; with a database, its breaker.
///
/// # Errors
/// The file cannot be used.
pub fn open_catalog(settings: &Settings, runtime: &Handle) -> Result<(Catalog, Option<Arc<Breaker>>), StartError> {
    let failed = |error: CatalogError| StartError::Other(error.to_string());
    match &settings.database {
        Some(database) => {
            let (catalog, breaker) = Catalog::open_postgres(database, runtime).map_err(failed)?;
            Ok((catalog, Some(breaker)))
        }
        None => Ok((Catalog::open(&settings.data_dir).map_err(failed)?, None)),
    }
}
