//! Where upstream has what is asked for, when that is on another host: only where an index named it, or the configuration
//! lists the host.

use std::sync::Arc;

use http::{Method, header};
use url::Url;

use super::Client;
use crate::cache::now_ms;
use crate::catalog::CatalogError;
use crate::config::Remote;
use crate::fill::view::Spec;
use crate::fill::{Outcome, Wanted};
use crate::formats::{self, Asset, Foreign, Location, path};
use crate::policy::{self, packages};
use crate::session::reply::Problem;
use crate::upstream::listed;

impl Client {
    /// Where upstream has `asset`; for a path on another host, whether it may be asked there at all. `remote_url`: the remote's
    /// root as the client knows it, where that is known.
    pub(super) async fn upstream_url(&self, asset: &Asset, remote_url: &str) -> std::result::Result<Url, Problem> {
        let file = match &asset.location {
            Location::Upstream(url) => return Ok(url.clone()),
            Location::Foreign(file) => file,
            Location::Local | Location::Nowhere => {
                return Err(Problem::new(404, "`-/host/` is followed by a host and a path"));
            }
        };
        let remote = &asset.remote;
        if let Some(url) = file.urls.iter().find(|url| listed(&remote.file_hosts, url)) {
            return Ok(url.clone());
        }
        let mut known = self.named_by_an_index(remote, file).await;
        // Unknown so far: the index that would name it is asked for once.
        if !matches!(known, Ok(Some(_)))
            && let Some(index) = &file.index
        {
            self.read_index(remote, (index, remote_url), known.is_err()).await;
            known = self.named_by_an_index(remote, file).await;
        }
        match known {
            Ok(Some(url)) => Ok(url),
            Ok(None) => {
                let host = file.urls[0].host_str().unwrap_or_default();
                let detail = format!(
                    "no index of this remote names this file on {host}; ask for its index first, or list the host in \
                     `file_hosts`"
                );
                Err(Problem::new(403, detail))
            }
            Err(error) => Err(catalogue_away(&error)),
        }
    }

    /// # Errors
    /// The catalogue does not tell of one that it does not remember.
    async fn named_by_an_index(
        &self,
        remote: &Remote,
        file: &Foreign,
    ) -> std::result::Result<Option<Url>, CatalogError> {
        let mut known = Ok(None);
        for (name, url) in file.names() {
            match self.fills.catalog.has_link(&remote.name, &name).await {
                Ok(true) => return Ok(Some(url.clone())),
                Ok(false) => {}
                Err(error) => known = Err(error),
            }
        }
        known
    }

    /// Fetches an index, unless it is fresh, and reads it to its end, so that the links it names are known. `anew`: also if
    /// it was read before, for a catalogue that has written them down and is away.
    async fn read_index(&self, remote: &Arc<Remote>, (index, remote_url): (&str, &str), anew: bool) {
        let path = path::parse(index.as_bytes(), None).ok();
        let asset = path.and_then(|path| formats::asset(remote, path, None));
        // Upstream is not asked for an index that is hidden, though the file is not.
        let asset = asset.filter(|asset| packages::hidden(asset).is_none());
        let Some(asset) = asset.map(Arc::new) else { return };
        let (Some(policy), Some(view)) = (policy::classify(&asset), asset.view) else {
            return;
        };
        let key = asset.key();
        let stored = self.fills.store.open_object(&key).await;
        let fresh = stored
            .filter(|object| !object.is_complete() || object.fresh.left(policy.class, policy.ttl, now_ms()).is_fresh());
        let original = match fresh {
            Some(object) => object,
            None if self.fills.remembered(&key).is_some() => return,
            None => {
                let Some(wanted) = Wanted::of(Arc::clone(&asset), policy) else {
                    return;
                };
                match self.fills.obtain(wanted, Method::GET).await {
                    (Outcome::Object(object, _), _) => object,
                    _ => return,
                }
            }
        };
        let spec = Spec {
            rewriting: Some(self.views.rewriting(asset, view, remote_url.to_owned())),
            gzip: false,
        };
        let view = match anew {
            true => self.views.open_anew(&original, &spec).await,
            false => self.views.open(&original, &spec).await,
        };
        if let Ok(view) = view {
            view.settled().await;
        }
    }
}

fn catalogue_away(error: &CatalogError) -> Problem {
    Problem::new(
        503,
        format!("whether an index names this file cannot be looked up: {error}"),
    )
    .header(header::RETRY_AFTER, "5")
}
