//! When releases were published, as the index says that names them: it is read once, from what is stored of it, or fetched for
//! that. Many files of one package cost one question to upstream.

use std::collections::HashMap;
use std::sync::Arc;

use http::{HeaderMap, Method};
use quick_cache::sync::Cache;
use quick_cache::{OptionsBuilder, Weighter};

use super::decoded::{DecodeError, Decoded};
use super::{Fills, Outcome, Wanted};
use crate::cache::{FOR_EVER, Hash, Millis, Object, now_ms};
use crate::formats::hold::Dates as FileDates;
use crate::formats::release::{LONGEST, ListedBy, Releases};
use crate::formats::{self, Asset, path};
use crate::policy::{self, quarantine};

/// Indexes whose dates are remembered, and files in all of them: some 100 bytes each.
const MAX_INDEXES: usize = 1024;
const MAX_NAMES: u64 = 262_144;
/// Files whose dates are remembered.
const MAX_FILES: usize = 65_536;
/// What no index says now is asked again after this; so is an index that cannot be had.
const AGAIN_MS: Millis = 60_000;

/// Dates by the names that an index has for files.
type ByName = HashMap<String, u64>;

#[derive(Clone)]
struct PerFile;

impl Weighter<u64, Arc<ByName>> for PerFile {
    /// One that is heavier than what there is room for would not be kept at all, and be read again for each file.
    fn weight(&self, _: &u64, published: &Arc<ByName>) -> u64 {
        (published.len() as u64 + 1).min(MAX_NAMES / 2)
    }
}

/// What the indexes that were read lately say.
pub struct Dates {
    /// By the id of the index.
    read: Cache<u64, Arc<ByName>, PerFile>,
    /// By the id of the file: its date, if there is one, and until when that is not asked about again.
    files: Cache<u64, (Option<u64>, Millis)>,
    /// Indexes that could not be had, by the hash of their key, and until when they are not asked for again.
    away: Cache<Hash, Millis>,
}

impl Default for Dates {
    fn default() -> Self {
        let mut options = OptionsBuilder::new();
        // One part: a large index has to fit into it.
        let options = options.shards(1).estimated_items_capacity(MAX_INDEXES);
        let read = match options.weight_capacity(MAX_NAMES).build() {
            Ok(options) => Cache::with_options(options, PerFile, Default::default(), Default::default()),
            // Only an option that is missing is an error.
            Err(_) => Cache::with_weighter(MAX_INDEXES, MAX_NAMES, PerFile),
        };
        Dates {
            read,
            files: Cache::new(MAX_FILES),
            away: Cache::new(MAX_INDEXES),
        }
    }
}

impl Dates {
    /// The dates of a file, if they were found out before.
    pub fn known(&self, file: &Object) -> Option<FileDates> {
        let (published, until) = self.files.get(&file.id)?;
        (now_ms() < until).then_some(FileDates {
            published,
            first_seen: None,
        })
    }
}

/// What an index says of a file.
enum Dating {
    Published(u64),
    /// The index does not name the file, or does not date it.
    Nothing,
    /// The index cannot be had.
    Away,
}

impl Fills {
    /// When `asset` was published, by the word of its index, else of `headers`, which upstream sent with its content; `file` is
    /// what is stored of it.
    pub async fn dates_of(
        self: &Arc<Self>,
        asset: &Asset,
        headers: Option<&HeaderMap>,
        file: Option<&Object>,
    ) -> FileDates {
        if let Some(known) = file.and_then(|file| self.dates.known(file)) {
            return known;
        }
        let own = || quarantine::published(headers?);
        let (published, until) = match &asset.listed_by {
            None => (own(), FOR_EVER),
            Some(by) => match self.listed_by(asset, by, file).await {
                Some(published) => (Some(published), FOR_EVER),
                // The index may name it later.
                None => (own(), now_ms() + AGAIN_MS),
            },
        };
        if let Some(file) = file {
            self.dates.files.insert(file.id, (published, until));
        }
        FileDates {
            published,
            first_seen: None,
        }
    }

    /// The date by the first of its indexes that has one.
    pub async fn listed_by(self: &Arc<Self>, asset: &Asset, by: &ListedBy, file: Option<&Object>) -> Option<u64> {
        for index in &by.indexes {
            let path = path::parse(index.as_bytes(), None).ok()?;
            let index = formats::asset(&asset.remote, path, None).map(Arc::new)?;
            if let Dating::Published(published) = self.said_of(index, &by.file, file).await? {
                return Some(published);
            }
        }
        None
    }

    /// When `asset` was published, by what is stored of its indexes. Upstream is not asked.
    pub async fn listed_by_stored(self: &Arc<Self>, asset: &Asset) -> Option<u64> {
        let by = asset.listed_by.as_ref()?;
        for index in &by.indexes {
            let path = path::parse(index.as_bytes(), None).ok()?;
            let index = formats::asset(&asset.remote, path, None)?;
            let releases = index.view?.releases?;
            if let Some(stored) = self.store.open_object(&index.key()).await
                && let Some(published) = self.read_dates(&stored, releases).await
                && let Some(published) = published.get(&by.file)
            {
                return Some(*published);
            }
        }
        None
    }

    /// What `index` says of the file that it calls `name`. `None`: it is no index that tells dates.
    async fn said_of(self: &Arc<Self>, index: Arc<Asset>, name: &str, file: Option<&Object>) -> Option<Dating> {
        let releases = index.view?.releases?;
        let policy = policy::classify(&index)?;
        let key = index.key();
        let mut is_forced = false;
        if let Some(stored) = self.store.open_object(&key).await {
            // A date does not change: what is expired tells it as well.
            let published = self.read_dates(&stored, releases).await;
            if let Some(published) = published.as_ref().and_then(|published| published.get(name)) {
                return Some(Dating::Published(*published));
            }
            let checked_at = stored.fresh.checked_at();
            // What came after the index was seen cannot be in it.
            is_forced = file.is_some_and(|file| checked_at.saturating_add(AGAIN_MS) < file.head.stored_at);
            let is_fresh = stored.fresh.left(policy.class, policy.ttl, now_ms()).is_fresh();
            if published.is_some() && is_fresh && !is_forced {
                return Some(Dating::Nothing);
            }
        }
        let is_away = self.dates.away.get(&key.hash).is_some_and(|until| now_ms() < until);
        if index.remote.offline || is_away || self.remembered(&key).is_some() {
            return Some(Dating::Away);
        }
        let mut wanted = Wanted::of(index, policy)?;
        wanted.force = is_forced;
        let (outcome, _) = Box::pin(self.obtain(wanted, Method::GET)).await;
        let read = match outcome {
            Outcome::Object(index, _) => self.read_dates(&index, releases).await,
            Outcome::Answer(_) | Outcome::Direct => None,
        };
        let Some(published) = read else {
            self.dates.away.insert(key.hash, now_ms() + AGAIN_MS);
            return Some(Dating::Away);
        };
        let published = published.get(name);
        Some(published.map_or(Dating::Nothing, |published| Dating::Published(*published)))
    }

    /// The dates of an index, read by one at a time.
    async fn read_dates(&self, index: &Arc<Object>, releases: &'static Releases) -> Option<Arc<ByName>> {
        let read = async {
            let document = match Decoded::new(index).await.whole(LONGEST).await {
                Ok(document) => document,
                // Clients do not get it, either.
                Err(DecodeError::TooLong(_) | DecodeError::TooLarge) => return Ok(Arc::default()),
                Err(_) => return Err(()),
            };
            let reading = tokio::task::spawn_blocking(move || {
                let mut published = ByName::new();
                for release in (releases.read)(&document) {
                    if let Some(at) = release.published {
                        // Of two files of one name, the younger counts.
                        let known = published.entry(release.file).or_default();
                        *known = at.max(*known);
                    }
                }
                Arc::new(published)
            });
            reading.await.map_err(|_| ())
        };
        self.dates.read.get_or_insert_async(&index.id, read).await.ok()
    }
}
