//! Whether a remote is private: what it may be sent to follows from that. It is found out when the configuration is loaded
//! and kept, since whoever answers for its name later may be somebody else.

use std::net::IpAddr;

use futures_util::StreamExt as _;
use url::Url;

use super::{Upstream, address};
use crate::config::{Config, FileHost, OwnHost, Remote, RemoteType};

/// Names that are resolved at once when a configuration is loaded.
const AT_ONCE: usize = 16;

impl Upstream {
    /// Finds out of every host that the configuration names whether it is private. Where no name server answers that is
    /// seen to later, when the name is resolved first.
    pub async fn learn(&self, config: &Config) {
        let remotes = config.remotes.values();
        let remotes = remotes.filter(|remote| remote.kind == RemoteType::Remote);
        let hosts = remotes.flat_map(|remote| remote.own_hosts.iter().enumerate().map(move |own| (remote, own)));
        let hosts = hosts.filter_map(|(remote, (index, own))| {
            let is_address = own.name.parse::<IpAddr>().is_ok();
            if is_address || !self.is_proxied(remote, own) {
                return Some((remote, own));
            }
            // A name that an outbound proxy resolves says nothing here of where the remote is.
            if index == 0 {
                own.is_private.get_or_init(|| false);
            }
            None
        });
        let hosts: Vec<_> = hosts.collect();
        futures_util::stream::iter(hosts)
            .for_each_concurrent(AT_ONCE, |(remote, own)| async move {
                self.is_private(remote, own).await;
            })
            .await;
    }

    /// Whether nobody but an outbound proxy resolves the name of `own`.
    fn is_proxied(&self, remote: &Remote, own: &OwnHost) -> bool {
        let listed = remote.file_hosts.iter().chain(remote.own.token_realms());
        let listed: Vec<Url> = listed.filter_map(FileHost::url).collect();
        let mut urls = remote.urls().chain(&listed).filter(|url| {
            let host = url.host_str().unwrap_or_default();
            OwnHost::name_of(host) == own.name
        });
        urls.all(|url| self.proxy_for(remote, url).is_some())
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
