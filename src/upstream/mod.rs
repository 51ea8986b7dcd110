//! The way to upstream, for fills and for what passes by: where to connect, as whom, through which proxy, and what a
//! redirect or a failure means. Nothing here knows of caching.

mod address;
mod caps;
mod challenge;
mod direct;
mod exchange;
mod failure;
mod hosts;
mod negotiation;
mod own;
mod password;
mod places;
mod question;
mod range;
mod resolver;
mod token;
mod trust;
mod tunnel;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pingora_core::connectors::http::Connector;
use url::Url;

pub use direct::Answering;
pub use exchange::{Ask, Exchange, shown};
pub use failure::Failure;
pub use hosts::Away;
pub use places::Place;
pub use resolver::{ResolveError, Resolver};
pub use token::SharedTokens;
pub use trust::listed;

use caps::Caps;
use hosts::Hosts;
use places::Places;

use crate::config::{Config, OutboundProxies, ProxyUrl, Remote};
use crate::metrics::Metrics;

/// How long a fetch may wait for one of the concurrent places before it is given up.
const QUEUE_LIMIT: Duration = Duration::from_secs(600);

/// What all fetches share.
pub struct Upstream {
    pub resolver: Resolver,
    outbound: OutboundProxies,
    /// For fills, and for what passes by: slow clients of the latter must not keep the former from starting.
    places: [Arc<Places>; 2],
    hosts: Hosts,
    caps: Caps,
    connector: Connector,
    user_agent: String,
    tokens: token::Tokens,
    passwords: password::Passwords,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Upstream")
    }
}

impl Upstream {
    /// # Errors
    /// The system's resolver configuration cannot be used.
    pub fn new(config: &Config, metrics: Arc<Metrics>) -> Result<Self, ResolveError> {
        let version = env!("CARGO_PKG_VERSION");
        let user_agent = match &config.settings.public_url {
            Some(url) => format!("artifactapi/{version} (+{url})"),
            None => format!("artifactapi/{version} (caching proxy)"),
        };
        let limits = &config.settings.upstream;
        let places = || Places::new(limits.max_concurrent, limits.max_per_remote);
        Ok(Upstream {
            resolver: Resolver::new(&config.settings.resolver)?,
            outbound: config.settings.outbound.clone(),
            places: [places(), places()],
            hosts: Hosts::default(),
            caps: Caps::default(),
            connector: Connector::new(None),
            user_agent,
            tokens: token::Tokens::default(),
            passwords: password::Passwords::default(),
            metrics,
        })
    }

    /// Shares the tokens of registries with other nodes from now on. Only the first call counts.
    pub fn share_tokens(&self, shared: Arc<dyn SharedTokens>) {
        self.tokens.share(shared);
    }

    /// Remotes that wanted more of upstream within the last minute than their caps allow, and which caps.
    pub fn caps_reached(&self) -> BTreeMap<String, Vec<&'static str>> {
        self.caps.reached()
    }

    /// Waits for one of the concurrent places for fills.
    ///
    /// # Errors
    /// None became free within ten minutes.
    pub async fn place(&self, remote: &Remote) -> Result<Place, Failure> {
        self.wait(&self.places[0], remote).await
    }

    /// Waits for one of the concurrent places for what passes by.
    ///
    /// # Errors
    /// None became free within ten minutes.
    pub async fn place_to_pass(&self, remote: &Remote) -> Result<Place, Failure> {
        self.wait(&self.places[1], remote).await
    }

    /// How many fetches run, and how many wait for a place.
    pub fn fetches(&self) -> [u64; 2] {
        let [fills, passing] = self.places.each_ref().map(|places| places.counts());
        [fills[0] + passing[0], fills[1] + passing[1]]
    }

    async fn wait(&self, places: &Arc<Places>, remote: &Remote) -> Result<Place, Failure> {
        let taken = tokio::time::timeout(QUEUE_LIMIT, places.take(&remote.name)).await;
        taken.map_err(|_| Failure {
            status: 503,
            reason: format!(
                "all upstream connections, or all that one remote may have, were busy for {} s; try again, or raise \
                 upstream.max_concurrent and upstream.max_per_remote",
                QUEUE_LIMIT.as_secs()
            ),
            unreachable: false,
        })
    }

    /// The outbound proxy for a request of `remote` to `url`, if it goes through one.
    fn proxy_for<'a>(&'a self, remote: &'a Remote, url: &Url) -> Option<&'a ProxyUrl> {
        if let Some(own) = &remote.proxy {
            return Some(own);
        }
        let proxy = if url.scheme() == "https" {
            self.outbound.https.as_ref()
        } else {
            self.outbound.http.as_ref()
        }?;
        let exempt = self
            .outbound
            .no_proxy
            .iter()
            .any(|entry| address::matches_no_proxy(entry, url));
        (!exempt).then_some(proxy)
    }
}
