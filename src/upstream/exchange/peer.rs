//! Where to connect: the addresses of the host that is asked now, or of the outbound proxy, and which of them may be gone to.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use pingora_core::upstreams::peer::{ALPN, HttpPeer, HttpUpstreamRequestPolicy};
use pingora_error::Result;

use super::Exchange;
use crate::config::OwnHost;
use crate::upstream::failure::Failure;
use crate::upstream::resolver::ResolveError;
use crate::upstream::trust::listed;
use crate::upstream::tunnel::Tunnel;
use crate::upstream::{address, own};

/// Idle upstream connections are kept this long.
const POOL_IDLE: Duration = Duration::from_secs(60);

impl Exchange {
    /// For `upstream_peer`: the next address to connect to.
    ///
    /// # Errors
    /// The name does not resolve, or may not be gone to.
    pub async fn peer(&mut self) -> Result<Box<HttpPeer>> {
        self.authorize().await?;
        self.await_turn().await?;
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
        if tls {
            options.ca = self.remote.tls.roots.clone();
        }
        // Connections are shared within a remote and a way there only: what is verified and who is asked differ.
        let mut group = DefaultHasher::new();
        self.remote.name.hash(&mut group);
        proxy.hash(&mut group);
        self.remote.tls.own_roots.hash(&mut group);
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
        if tls && self.may_be_known() {
            peer.client_cert_key.clone_from(&self.remote.tls.identity);
        }
        peer.group_key = group.finish();
        self.deadline.set(timeouts.connect + timeouts.first_byte);
        Ok(Box::new(peer))
    }

    /// Waits until the host may be asked, for as long as makes sense.
    async fn await_turn(&mut self) -> Result<()> {
        // The next address of a host is the same question.
        if self.unanswered.is_some() && self.tried > 0 {
            return Ok(());
        }
        let way = self.upstream.way(&self.remote, &self.url);
        if !self.is_probe {
            // What is waited for bounds itself.
            self.deadline.clear();
            let upstream = Arc::clone(&self.upstream);
            let may_ask = upstream.hosts.may_ask(&way, self.is_stored).await;
            if may_ask.is_err() {
                upstream.metrics.upstream_unasked(&self.remote.name);
            }
            let turn = may_ask.and_then(|()| upstream.caps.question(&self.remote));
            let wait = match turn {
                Ok(wait) => wait,
                Err(failure) => return Err(self.fail(failure)),
            };
            if !wait.is_zero() {
                upstream.metrics.upstream_delayed(&self.remote.name, "requests", wait);
                tokio::time::sleep(wait).await;
            }
        }
        self.unanswered = Some(way);
        Ok(())
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

    /// Behind an outbound proxy names are not resolved here, so only literal addresses can be checked.
    async fn check_literal(&mut self, host: &str) -> Result<()> {
        match host.parse() {
            Ok(ip) => self.check(vec![ip]).await.map(|_| ()),
            Err(_) => Ok(()),
        }
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

    /// The host asked now, if the configuration names it.
    fn own_host(&self) -> Option<&OwnHost> {
        let name = OwnHost::name_of(self.url.host_str()?);
        let own = self.remote.own_hosts.iter().find(|own| own.name == name);
        own.filter(|_| self.is_own_host())
    }

    /// Whether the host asked now is one that the configuration names.
    fn is_own_host(&self) -> bool {
        let mut own_urls = self.remote.urls();
        own_urls.any(|own| own.host() == self.url.host())
            || listed(&self.remote.file_hosts, &self.url)
            || listed(self.remote.own.token_realms(), &self.url)
    }

    async fn base_is_private(&self) -> bool {
        match self.remote.own_hosts.first() {
            Some(base) => self.upstream.is_private(&self.remote, base).await,
            None => false,
        }
    }
}
