//! When releases were published, as the index says that names them: it is read once, from what is stored of it, or fetched for
//! that. Many files of one package cost one question to upstream.

use std::collections::HashMap;
use std::sync::Arc;

use http::{HeaderMap, Method};
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::decoded::Decoded;
use super::view::MAX_HELD;
use super::{Fills, Outcome, Wanted};
use crate::cache::{Object, now_ms};
use crate::formats::release::{Dated, DatedBy};
use crate::formats::{self, Asset, path};
use crate::policy::{self, quarantine};

/// Indexes whose dates are remembered, and files in all of them: some 100 bytes each.
const MAX_INDEXES: usize = 1024;
const MAX_NAMES: u64 = 262_144;
/// Files whose dates are remembered.
const MAX_FILES: usize = 65_536;

/// Dates by the names that an index has for files.
type Published = HashMap<String, u64>;

#[derive(Clone)]
struct ByNames;

impl Weighter<u64, Arc<Published>> for ByNames {
    fn weight(&self, _: &u64, published: &Arc<Published>) -> u64 {
        published.len() as u64 + 1
    }
}

/// What the indexes that were read lately say.
pub struct Dates {
    /// By the id of the index.
    read: Cache<u64, Arc<Published>, ByNames>,
    /// By the id of the file; none where nobody has a date.
    files: Cache<u64, Option<u64>>,
}

impl Default for Dates {
    fn default() -> Self {
        Dates {
            read: Cache::with_weighter(MAX_INDEXES, MAX_NAMES, ByNames),
            files: Cache::new(MAX_FILES),
        }
    }
}

impl Dates {
    /// The date of a file, if it was found out before.
    pub fn known(&self, file: &Object) -> Option<Option<u64>> {
        self.files.get(&file.id)
    }
}

impl Fills {
    /// When `asset` was published, in Unix seconds: by the word of its index, else of `headers`, which upstream sent with its
    /// content; `file` is what is stored of it. `None`: neither says.
    pub async fn published(
        self: &Arc<Self>,
        asset: &Asset,
        headers: Option<&HeaderMap>,
        file: Option<&Object>,
    ) -> Option<u64> {
        if let Some(known) = file.and_then(|file| self.dates.known(file)) {
            return known;
        }
        let by_index = match &asset.dated_by {
            Some(by) => self.dated_by(asset, by).await,
            None => Some(None),
        };
        let published = by_index.flatten().or_else(|| quarantine::published(headers?));
        // An index that cannot be had now may be had later.
        if let (Some(file), Some(_)) = (file, by_index) {
            self.dates.files.insert(file.id, published);
        }
        published
    }

    /// `None`: the index cannot be had.
    async fn dated_by(self: &Arc<Self>, asset: &Asset, by: &DatedBy) -> Option<Option<u64>> {
        let index = path::parse(by.index.as_bytes(), None).ok()?;
        let index = Arc::new(formats::asset(&asset.remote, index, None)?);
        let dated = index.view?.dated?;
        let policy = policy::classify(&index)?;
        let key = index.key();
        let stored = self.store.open_object(&key).await;
        let mut is_fresh = false;
        if let Some(stored) = stored {
            // A date does not change: what is expired tells it as well.
            let published = self.read_dates(&stored, dated).await;
            if let Some(published) = published.as_ref().and_then(|published| published.get(&by.name)) {
                return Some(Some(*published));
            }
            is_fresh = published.is_some() && stored.fresh.left(policy.class, policy.ttl, now_ms()).is_fresh();
        }
        if is_fresh {
            return Some(None);
        }
        if asset.remote.offline || self.remembered(&key).is_some() {
            return None;
        }
        let (outcome, _) = Box::pin(self.obtain(Wanted::of(index, policy)?, Method::GET)).await;
        let Outcome::Object(index, _) = outcome else {
            return None;
        };
        let published = self.read_dates(&index, dated).await?;
        Some(published.get(&by.name).copied())
    }

    async fn read_dates(&self, index: &Arc<Object>, dated: &'static Dated) -> Option<Arc<Published>> {
        if let Some(read) = self.dates.read.get(&index.id) {
            return Some(read);
        }
        let document = Decoded::new(index).await.whole(MAX_HELD).await.ok()?;
        let read = tokio::task::spawn_blocking(move || {
            let releases = (dated.releases)(&document).into_iter();
            Arc::new(
                releases
                    .map(|release| (release.name, release.published))
                    .collect::<Published>(),
            )
        });
        let read = read.await.ok()?;
        self.dates.read.insert(index.id, Arc::clone(&read));
        Some(read)
    }
}
