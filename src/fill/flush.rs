//! A flush: what the catalogue lists after its queue is drained, fills in progress, remembered refusals, the views of what it
//! matches, and its copies in the bucket. Other nodes hear of it, and sweep what they have.

use std::sync::Arc;

use futures_util::{StreamExt as _, stream};

use super::{Fills, Views};
use crate::bucket::PREFIX;
use crate::cache::{Key, Millis, Sweep, now_ms, parse_hash};
use crate::catalog::{CatalogError, Class as Listed, Event, Filter, FlushAnswer, FlushMode, FlushRequest};
use crate::config::{Config, RemoteType};
use crate::fleet::Flush;
use crate::formats::{self, Class};
use crate::policy;

/// Objects of the bucket that are looked at at once.
const SWEEPERS: usize = 8;
/// Rows looked at in one question to the catalogue.
const PAGE: usize = 500;

/// Why a flush was not made.
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    #[error("{0}; flushing all, or all of one remote, works without the catalogue")]
    NeedsCatalogue(CatalogError),
    #[error("{0}")]
    Catalogue(#[from] CatalogError),
}

impl Fills {
    /// Flushes what `request` matches, on every node.
    ///
    /// # Errors
    /// The catalogue does not answer. What was flushed until then stays flushed.
    pub async fn flush(
        self: &Arc<Self>,
        views: &Views,
        config: &Config,
        request: &FlushRequest,
    ) -> Result<FlushAnswer, FlushError> {
        let (catalog, filter) = (&self.catalog, &request.filter);
        let mut answer = FlushAnswer {
            dry_run: request.dry_run,
            ..FlushAnswer::default()
        };
        let is_local = |remote: &str| {
            let remote = config.remotes.get(remote);
            remote.is_some_and(|remote| remote.kind == RemoteType::Local)
        };
        let everything_of = filter.class.is_none() && filter.prefix.is_none() && filter.pattern.is_none();
        let drained = catalog.drain().await;
        if let Err(error) = &drained
            && (!everything_of || request.dry_run)
        {
            return Err(FlushError::NeedsCatalogue(error.clone()));
        }
        let flushed_at = now_ms();
        if !request.dry_run {
            self.tell_of_flush(request, flushed_at).await;
        }
        if drained.is_err() {
            return Ok(self.flush_without_catalogue(filter, request.mode).await);
        }
        let mut after = None;
        loop {
            let page = catalog.matching(filter, after, PAGE).await?;
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
                        if let Some(id) = self.store.id_of(hash).await {
                            views.forget(id).await;
                        }
                        self.store.remove(hash).await;
                        if let Some(bucket) = &self.shared.bucket {
                            let key = format!("{}\0{}\0{}", record.remote, record.path, record.form);
                            bucket.remove(&Key::from_text(&key));
                        }
                        answer.deleted += 1;
                        catalog.record(Event::Removed {
                            remote: record.remote,
                            path: record.path,
                            form: record.form,
                        });
                    }
                    (false, FlushMode::Expire) => {
                        self.store.expire(hash).await;
                        answer.expired += 1;
                        catalog.record(expired(record.remote, record.path, record.form));
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
            for key in self.store.growing_keys() {
                match (matches(&key.text), request.mode) {
                    (true, FlushMode::Delete) => {
                        self.store.remove(key.hash).await;
                        self.release(&key.hash);
                    }
                    (true, FlushMode::Expire) => drop(self.store.expire(key.hash).await),
                    (false, _) => {}
                }
            }
            self.forget(matches);
            // Views of what was no longer listed, and of bases that a restart forgot.
            if filter.remote.is_none() && everything_of && request.mode == FlushMode::Delete {
                self.store.remove_where(|key| key.starts_with('\0')).await;
            }
            if request.mode == FlushMode::Delete && !catalog.is_shared() {
                self.sweep_bucket(filter.remote.clone(), flushed_at);
            }
        }
        Ok(answer)
    }

    /// The other nodes hear of it, and whatever of it is brought back later, from the bucket or another node, is known to be
    /// flushed.
    async fn tell_of_flush(&self, request: &FlushRequest, at: Millis) {
        let flush = Flush {
            at,
            ..Flush::new(request.to_json())
        };
        match &self.shared.fleet {
            Some(fleet) => fleet.flush(flush).await,
            None => self.shared.remember(flush),
        }
    }

    /// Removes from the bucket what was flushed before `at` and this node's catalogue does not list: other nodes put it
    /// there. It is found no more already; this frees the space.
    fn sweep_bucket(self: &Arc<Self>, remote: Option<String>, at: Millis) {
        let Some(bucket) = self.shared.bucket.clone() else {
            return;
        };
        let fills = Arc::clone(self);
        tokio::spawn(async move {
            let mut next = None;
            let mut removed = 0_u64;
            loop {
                let page = match bucket.list(next).await {
                    Ok(page) => page,
                    Err(error) => {
                        tracing::warn!(%error, removed, "the bucket is not swept to its end: what was flushed takes its space until the next flush");
                        return;
                    }
                };
                let of_remote = |object: &str| {
                    let rest = object.strip_prefix(PREFIX);
                    remote
                        .as_ref()
                        .is_none_or(|remote| rest.is_some_and(|rest| rest.starts_with(remote.as_str())))
                };
                let objects = page
                    .objects
                    .into_iter()
                    .map(|listed| listed.object)
                    .filter(|object| of_remote(object));
                let found = stream::iter(objects.map(|object| {
                    let bucket = Arc::clone(&bucket);
                    async move { bucket.describe(&object).await }
                }));
                let mut found = found.buffer_unordered(SWEEPERS);
                while let Some(found) = found.next().await {
                    let Ok(Some(copy)) = found else { continue };
                    if copy.head.stored_at < at && fills.shared.is_flushed(&copy.key, copy.head.stored_at) {
                        bucket.remove(&copy.key);
                        removed += 1;
                    }
                }
                next = page.next;
                if next.is_none() {
                    break;
                }
            }
            tracing::info!(removed, "the bucket was swept");
        });
    }

    /// A flush that another node made.
    pub async fn flushed_elsewhere(self: &Arc<Self>, flush: &Flush) {
        let Some((covers, expire)) = self.shared.read_flush(flush) else {
            tracing::warn!(request = %flush.request, "another node made a flush that is not understood here; is it of a later version?");
            return;
        };
        let covers: Arc<dyn Fn(&str) -> bool + Send + Sync> = covers.into();
        self.forget(&*covers);
        let outdated = self.store.growing_keys().into_iter().filter(|key| covers(&key.text));
        for key in outdated.filter(|_| !expire) {
            self.release(&key.hash);
        }
        let listed_here = !self.catalog.is_shared();
        let catalog = self.catalog.clone();
        let gone = move |key: &str| {
            let key = Key::from_text(key);
            let (remote, path, form) = key.parts();
            if remote.is_empty() || !listed_here {
                return;
            }
            let (remote, path, form) = (remote.to_owned(), path.to_owned(), form.to_owned());
            catalog.record(match expire {
                true => expired(remote, path, form),
                false => Event::Removed { remote, path, form },
            });
        };
        self.store
            .sweep(Sweep {
                at: flush.at,
                covers: Box::new(move |key| covers(key)),
                expire,
                gone: Box::new(gone),
            })
            .await;
        tracing::info!(request = %flush.request, "a flush of another node was made here");
    }

    /// By walking the disk tier.
    async fn flush_without_catalogue(&self, filter: &Filter, mode: FlushMode) -> FlushAnswer {
        let remote = filter.remote.clone();
        let matches = move |key: &str| {
            remote
                .as_ref()
                .is_none_or(|remote| key.split('\0').next() == Some(remote.as_str()))
        };
        self.forget(&matches);
        let (count, bytes) = match mode {
            FlushMode::Delete => self.store.remove_where(matches).await,
            FlushMode::Expire => self.store.expire_where(matches).await,
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

fn expired(remote: String, path: String, form: String) -> Event {
    Event::Refreshed {
        remote,
        path,
        form,
        fresh_until: Some(i64::try_from(now_ms() / 1000).unwrap_or(0)),
        at: crate::catalog::unix_now(),
    }
}

/// Whether the filter covers what is stored, or would be, under `key`.
pub fn covered(config: &Config, filter: &Filter, key: &str) -> bool {
    let mut parts = key.splitn(3, '\0');
    let (Some(remote), Some(path)) = (parts.next(), parts.next()) else {
        return false;
    };
    let Some(configured) = config.remotes.get(remote) else {
        return filter.remote.is_none();
    };
    if configured.kind == RemoteType::Local {
        return false;
    }
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
