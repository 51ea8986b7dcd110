//! Names to addresses, without blocking and cached.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;

/// A name that could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    #[error("the resolver cannot be set up: {0}")]
    Setup(String),
    #[error("the name {host} cannot be resolved: {reason}")]
    Name { host: String, reason: String },
    #[error("resolving the name {host} timed out")]
    TimedOut { host: String },
}

/// A caching stub resolver: the system's name servers and hosts file, or those of the configuration.
pub struct Resolver {
    inner: TokioResolver,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Resolver")
    }
}

impl Resolver {
    /// # Errors
    /// The system's configuration cannot be read.
    pub fn new(servers: &[SocketAddr]) -> Result<Self, ResolveError> {
        let setup = |error: &dyn std::fmt::Display| ResolveError::Setup(error.to_string());
        let mut builder = if servers.is_empty() {
            match TokioResolver::builder_tokio() {
                Ok(builder) => builder,
                // A machine without /etc/resolv.conf still has its hosts file and literal addresses.
                Err(error) => {
                    tracing::warn!(%error, "the system's resolver configuration cannot be read: only addresses and the hosts file work");
                    let config =
                        ResolverConfig::from_name_servers(vec![NameServerConfig::udp_and_tcp(IpAddr::from([
                            127, 0, 0, 1,
                        ]))]);
                    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
                }
            }
        } else {
            let named = servers.iter().map(|server| {
                let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                    connection.port = server.port();
                    connection
                });
                NameServerConfig::new(server.ip(), true, connections.to_vec())
            });
            let config = ResolverConfig::from_name_servers(named.collect());
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        let options = builder.options_mut();
        options.cache_size = 4096;
        options.negative_max_ttl = Some(Duration::from_secs(10));
        options.positive_max_ttl = Some(Duration::from_secs(3600));
        Ok(Resolver {
            inner: builder.build().map_err(|error| setup(&error))?,
        })
    }

    /// All addresses of `host`, a name or a literal (IPv6 with or without brackets).
    ///
    /// # Errors
    /// The name does not exist, or no name server answered within `limit`.
    pub async fn addresses(&self, host: &str, limit: Duration) -> Result<Vec<IpAddr>, ResolveError> {
        if let Ok(literal) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Ok(vec![literal]);
        }
        // A trailing dot: the name is whole, no search domain may be tried.
        let name = if host.ends_with('.') || !host.contains('.') {
            host.to_owned()
        } else {
            format!("{host}.")
        };
        let lookup = tokio::time::timeout(limit, self.inner.lookup_ip(name.as_str())).await;
        match lookup {
            Err(_) => Err(ResolveError::TimedOut { host: host.to_owned() }),
            Ok(Err(error)) => Err(ResolveError::Name {
                host: host.to_owned(),
                reason: error.to_string(),
            }),
            Ok(Ok(found)) => {
                let addresses: Vec<IpAddr> = found.iter().collect();
                if addresses.is_empty() {
                    return Err(ResolveError::Name {
                        host: host.to_owned(),
                        reason: "it has no address".to_owned(),
                    });
                }
                Ok(addresses)
            }
        }
    }
}
