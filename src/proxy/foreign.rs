//! Where upstream has what is asked for, when that is on another host: only where an index named it, or the configuration
//! lists the host.

use std::sync::Arc;

use http::{Method, header};
use url::Url;

use super::Client;
use super::artifact::Request;
use crate::cache::{Key, now_ms};
use crate::catalog::CatalogError;
use crate::config::Remote;
use crate::fill::view::{Rewriting, Spec};
use crate::fill::{Outcome, Wanted};
use crate::formats::{links, path};
use crate::policy;
use crate::session::reply::Problem;
use crate::upstream::listed;

impl Client {
    /// Where upstream has it; for a path on another host, whether it may be asked there at all.
    pub(super) async fn upstream_url(&self, request: &Request) -> std::result::Result<Url, Problem> {
        let Some([https, http]) = links::candidates(&request.path) else {
            if request.path.decoded.starts_with("-/host/") {
                return Err(Problem::new(404, "`-/host/` is followed by a host and a path"));
            }
            return Ok(request.format.upstream_url(&request.remote, &request.path));
        };
        let remote = &request.remote;
        for url in [&https, &http] {
            if listed(&remote.file_hosts, url) {
                return Ok(url.clone());
            }
        }
        let Some(named) = links::naming_candidates(request.format, &request.path) else {
            return Err(Problem::new(404, "`-/host/` is followed by a host and a path"));
        };
        let asked = [&https, &http];
        let mut known = self.named_by_an_index(remote, &named, asked).await;
        // Unknown so far: the index that would name it is asked for once.
        let below = links::split_foreign(&request.path.encoded).map_or("", |(_, path)| path);
        if !matches!(known, Ok(Some(_)))
            && let Some(index) = request.format.index_naming(remote, below)
        {
            self.read_index(request, &index, known.is_err()).await;
            known = self.named_by_an_index(remote, &named, asked).await;
        }
        match known {
            Ok(Some(url)) => Ok(url),
            Ok(None) => {
                let host = https.host_str().unwrap_or_default();
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
        named: &[Url; 2],
        asked: [&Url; 2],
    ) -> std::result::Result<Option<Url>, CatalogError> {
        let mut known = Ok(None);
        for (named, asked) in named.iter().zip(asked) {
            match self.fills.catalog.has_link(&remote.name, &links::named(named)).await {
                Ok(true) => return Ok(Some(asked.clone())),
                Ok(false) => {}
                Err(error) => known = Err(error),
            }
        }
        known
    }

    /// Fetches an index, unless it is fresh, and reads it to its end, so that the links it names are known. `anew`: also if
    /// it was read before, for a catalogue that has written them down and is away.
    async fn read_index(&self, request: &Request, index: &str, anew: bool) {
        let Ok(path) = path::parse(index.as_bytes(), None) else {
            return;
        };
        let (remote, format) = (&request.remote, request.format);
        let Some(policy) = policy::classify(remote, format, &path.decoded) else {
            return;
        };
        let Some(form) = format.negotiate(&path.decoded, None) else {
            return;
        };
        let Some(view) = format.has_view(remote, &path.decoded) else {
            return;
        };
        let key = Key::new(&remote.name, &path.encoded, None, form.name);
        let stored = self.fills.store.open_object(&key).await;
        let fresh = stored
            .filter(|object| !object.is_complete() || object.fresh.left(policy.class, policy.ttl, now_ms()).is_fresh());
        let original = match fresh {
            Some(object) => object,
            None if self.fills.remembered(&key).is_some() => return,
            None => {
                let url = format.upstream_url(remote, &path);
                let accept = form.accept;
                let mut wanted = Wanted::new(Arc::clone(remote), key, url, policy);
                wanted.accept = accept;
                wanted.gzip = true;
                match self.fills.obtain(wanted, Method::GET).await {
                    (Outcome::Object(object, _), _) => object,
                    _ => return,
                }
            }
        };
        let spec = Spec {
            rewriting: Some(Rewriting {
                format,
                remote: Arc::clone(remote),
                path,
                remote_url: request.remote_url.clone(),
                absolute: view.absolute,
            }),
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
