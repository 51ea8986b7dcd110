//! Whether a remote is private: what it may be sent to follows from that. It is found out when the configuration is loaded
//! and kept, since whoever answers for its name later may be somebody else.

use std::net::IpAddr;

use futures_util::StreamExt as _;

use super::{Upstream, address};
use crate::config::{Config, OwnHost, Remote, RemoteType};

/// Names that are resolved at once when a configuration is loaded.
const AT_ONCE: usize = 16;

impl Upstream {
    /// Finds out of every host that the configuration names whether it is private. Where no name server answers that is
    /// seen to later, when the name is resolved first.
    pub async fn learn(&self, config: &Config) {
        let remotes = config.remotes.values();
        let remotes = remotes.filter(|remote| remote.kind == RemoteType::Remote && !self.is_proxied(remote));
        let hosts = remotes.flat_map(|remote| remote.own_hosts.iter().map(move |own| (remote, own)));
        let hosts: Vec<_> = hosts.collect();
        futures_util::stream::iter(hosts)
            .for_each_concurrent(AT_ONCE, |(remote, own)| async move {
                self.is_private(remote, own).await;
            })
            .await;
    }

    /// Names are resolved by an outbound proxy.
    fn is_proxied(&self, remote: &Remote) -> bool {
        let base = remote.base_url.as_ref();
        base.is_some_and(|base| self.proxy_for(remote, base).is_some())
    }

    /// Whether `own`, a host of `remote`, is private.
    pub(super) async fn is_private(&self, remote: &Remote, own: &OwnHost) -> bool {
        if let Some(known) = own.is_private.get() {
            return *known;
        }
        match self.resolver.addresses(&own.name, remote.timeouts.connect).await {
            Ok(found) => decide(own, &found),
            Err(error) => {
                tracing::debug!(remote = %remote.name, %error, "whether a host is private is not known yet");
                false
            }
        }
    }
}

/// Keeps what the first addresses that are found say: private are those who have no public one.
pub(super) fn decide(own: &OwnHost, found: &[IpAddr]) -> bool {
    let all_special = !found.is_empty() && found.iter().all(|ip| address::special_kind(*ip).is_some());
    *own.is_private.get_or_init(|| all_special)
}
