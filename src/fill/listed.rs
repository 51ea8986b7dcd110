//! What indexes say of the files that they name: when they were published, and what they must turn out to be. An index is read
//! once, from what is stored of it, or fetched for that. Many files of one package cost one question to upstream.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use http::{HeaderMap, Method};
use quick_cache::sync::Cache;
use quick_cache::{OptionsBuilder, Weighter};

use super::decoded::{DecodeError, Decoded};
use super::{Fills, Outcome, Wanted};
use crate::cache::{Expected, FOR_EVER, Hash, Key, Millis, Object, now_ms};
use crate::config::Verify;
use crate::formats::hold::Dates as FileDates;
use crate::formats::release::{LONGEST, ListedBy, Release, Tell};
use crate::formats::{self, Asset, path};
use crate::policy::{self, Policy, packages, quarantine};

/// Indexes that are remembered, and the memory for all that they name, in bytes.
const MAX_INDEXES: usize = 1024;
const MAX_BYTES: u64 = 32 << 20;
/// What is kept of a file beside its name, with what the map takes for it.
const FILE_BYTES: usize = 2 * size_of::<(String, Listed)>();
/// Files whose dates are remembered.
const MAX_FILES: usize = 65_536;
/// What no index says now is asked again after this; so is an index that cannot be had.
const AGAIN_MS: Millis = 60_000;

/// What an index says of one file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Listed {
    /// In Unix seconds.
    published: Option<u64>,
    digest: Option<Expected>,
}

/// What an index says of all files that it names.
#[derive(Debug, Default)]
struct Listing {
    /// By the names that the index has for them.
    files: HashMap<String, Listed>,
    /// In memory.
    bytes: u64,
}

impl Listing {
    fn of(releases: Vec<Release>) -> Self {
        let mut listing = Listing::default();
        for Release {
            file,
            published,
            digest,
        } in releases
        {
            let bytes = (file.len() + FILE_BYTES) as u64;
            match listing.files.entry(file) {
                Entry::Vacant(entry) => {
                    entry.insert(Listed { published, digest });
                    listing.bytes += bytes;
                }
                Entry::Occupied(mut entry) => {
                    let known = entry.get_mut();
                    // Of two files of one name, the younger counts, and which of them a path leads to is not known.
                    known.published = known.published.max(published);
                    if known.digest != digest {
                        known.digest = None;
                    }
                }
            }
        }
        listing
    }
}

#[derive(Clone)]
struct InMemory;

impl Weighter<u64, Arc<Listing>> for InMemory {
    /// One that is heavier than what there is room for would not be kept at all, and be read again for each file.
    fn weight(&self, _: &u64, listing: &Arc<Listing>) -> u64 {
        (listing.bytes + 1).min(MAX_BYTES / 2)
    }
}

/// What the indexes that were read lately say.
pub struct Listings {
    /// By the id of the index.
    read: Cache<u64, Arc<Listing>, InMemory>,
    /// By the id of the file: its dates, and until when they are not asked about again.
    files: Cache<u64, (FileDates, Millis)>,
    /// Indexes that could not be had, by the hash of their key, and until when they are not asked for again.
    away: Cache<Hash, Millis>,
}

impl Default for Listings {
    fn default() -> Self {
        let mut options = OptionsBuilder::new();
        // One part: a large index has to fit into it.
        let options = options.shards(1).estimated_items_capacity(MAX_INDEXES);
        let read = match options.weight_capacity(MAX_BYTES).build() {
            Ok(options) => Cache::with_options(options, InMemory, Default::default(), Default::default()),
            // Only an option that is missing is an error.
            Err(_) => Cache::with_weighter(MAX_INDEXES, MAX_BYTES, InMemory),
        };
        Listings {
            read,
            files: Cache::new(MAX_FILES),
            away: Cache::new(MAX_INDEXES),
        }
    }
}

impl Listings {
    /// The dates of a file, if they were found out before, and are not asked about again at `now`.
    pub fn known(&self, file: &Object, now: Millis) -> Option<FileDates> {
        let (dates, until) = self.files.get(&file.id)?;
        (now < until).then_some(dates)
    }
}

/// What is asked of an index.
#[derive(Clone, Copy)]
struct Question<'a> {
    /// What the index calls the file.
    file: &'a str,
    /// Whether what it says of the file is an answer.
    is_answer: fn(&Listed) -> bool,
    /// A stored index that has expired answers as well: what is asked for does not change.
    lasts: bool,
    /// An index that was checked before this may not name the file yet.
    since: Option<Millis>,
}

/// What an index says of a file.
enum Said {
    /// The second: the key of the index.
    Listed(Listed, Key),
    /// The index does not name the file, or does not say what was asked.
    Nothing,
    /// The index cannot be had.
    Away,
}

/// An index in one of its forms, and how it is read.
struct Index {
    asset: Arc<Asset>,
    policy: Policy,
    tells: Tell,
    key: Key,
}

/// The forms of the index under `path`. `None`: it is no index that tells of files.
fn forms_of(file: &Asset, by: &ListedBy, path: &str) -> Option<Vec<Index>> {
    let mut forms: Vec<Index> = Vec::new();
    for accept in by.forms {
        let path = path::parse(path.as_bytes(), None).ok()?;
        let asset = formats::asset(&file.remote, path, *accept)?;
        let (tells, key) = (asset.tells?, asset.key());
        // A remote that holds releases back has one form for all.
        if forms.iter().all(|form| form.key.hash != key.hash) {
            forms.push(Index {
                // A path may be read as another package's than that of its index.
                policy: policy::classify(&asset).filter(|_| packages::hidden(&asset).is_none())?,
                asset: Arc::new(asset),
                tells,
                key,
            });
        }
    }
    Some(forms)
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
        if let Some(known) = file.and_then(|file| self.listed.known(file, now_ms())) {
            return known;
        }
        let own = || quarantine::published(headers?);
        let (published, until) = match &asset.listed_by {
            None => (own(), FOR_EVER),
            Some(by) => match self.published_by(asset, by, file).await {
                Some(published) => (Some(published), FOR_EVER),
                // The index may name it later.
                None => (own(), now_ms() + AGAIN_MS),
            },
        };
        let (first_seen, until) = match asset.remote.quarantine.goes_by_sight() {
            false => (None, until),
            true => match self.first_seen(asset).await {
                Some(seen) => (Some(seen), until),
                // The catalogue may know it later.
                None => (None, until.min(now_ms() + AGAIN_MS)),
            },
        };
        let dates = FileDates { published, first_seen };
        if let Some(file) = file {
            self.listed.files.insert(file.id, (dates, until));
        }
        dates
    }

    /// When a file was published, by the first of the indexes of `by` that dates it; `file` is what is stored of it.
    pub async fn published_by(self: &Arc<Self>, asset: &Asset, by: &ListedBy, file: Option<&Object>) -> Option<u64> {
        let question = Question {
            file: &by.file,
            is_answer: |listed| listed.published.is_some(),
            lasts: true,
            since: file.map(|file| file.head.stored_at),
        };
        let (said, _) = self.listed(asset, by, question).await?;
        said.published
    }

    /// When a file was published, by what is stored of its indexes. Upstream is not asked.
    pub async fn published_by_stored(&self, asset: &Asset) -> Option<u64> {
        let by = asset.listed_by.as_ref()?;
        for index in &by.indexes {
            for form in forms_of(asset, by, index)? {
                let Some(stored) = self.store.open_object(&form.key).await else {
                    continue;
                };
                let listing = self.read_index(&stored, form.tells).await;
                let listed = listing.as_ref().and_then(|listing| listing.files.get(&by.file));
                if let Some(published) = listed.and_then(|listed| listed.published) {
                    return Some(published);
                }
            }
        }
        None
    }

    /// When this proxy first saw a file, or its name in an index: now, if it never did.
    pub async fn first_seen(&self, asset: &Asset) -> Option<u64> {
        let (index, file) = match &asset.listed_by {
            Some(by) => (by.indexes.first().map_or("", String::as_str), by.file.clone()),
            None => ("", asset.governing.clone()),
        };
        let remote = &asset.remote.name;
        let seen = self
            .catalog
            .first_seen(remote, index, [file.clone()], now_ms() / 1000)
            .await;
        match seen {
            Ok(seen) => seen.get(&file).copied(),
            Err(error) => {
                tracing::warn!(%remote, path = %asset.path.encoded, %error, "when a file was first seen is not known");
                None
            }
        }
    }

    /// `wanted`, which upstream is about to be asked for, with what its index says that it must turn out to be.
    pub(super) async fn by_its_index(self: &Arc<Self>, wanted: Wanted) -> Wanted {
        let asset = Arc::clone(&wanted.asset);
        let Some(by) = asset.listed_by.as_ref().filter(|_| wanted.expected.is_none()) else {
            return wanted;
        };
        let beside = asset.beside();
        let question = Question {
            file: &format!("{}{beside}", by.file),
            is_answer: |listed| listed.digest.is_some(),
            lasts: false,
            // What stands beside a file is seldom named.
            since: beside.is_empty().then(now_ms),
        };
        let Some((listed, index)) = self.listed(&asset, by, question).await else {
            return wanted;
        };
        let (expected, reported) = match asset.remote.verify {
            Verify::Warn => (None, listed.digest),
            Verify::Enforce | Verify::Off => (listed.digest, None),
        };
        Wanted {
            expected,
            reported,
            index: Some(index),
            ..wanted
        }
    }

    /// The answer of the first of its indexes that has one, and the key of that.
    async fn listed(self: &Arc<Self>, asset: &Asset, by: &ListedBy, question: Question<'_>) -> Option<(Listed, Key)> {
        for index in &by.indexes {
            let forms = forms_of(asset, by, index)?;
            if let Said::Listed(listed, key) = self.said_of(forms, question).await {
                return Some((listed, key));
            }
        }
        None
    }

    /// What an index says, by whichever of its forms is stored; one is fetched where none is, or none that can be believed.
    async fn said_of(self: &Arc<Self>, forms: Vec<Index>, question: Question<'_>) -> Said {
        let (mut is_forced, mut is_silent, mut due) = (false, false, None);
        for (at, form) in forms.iter().enumerate() {
            let Some(stored) = self.store.open_object(&form.key).await else {
                continue;
            };
            let listing = self.read_index(&stored, form.tells).await;
            let left = stored.fresh.left(form.policy.class, form.policy.ttl, now_ms());
            if (left.is_fresh() || question.lasts)
                && let Some(listed) = answer(listing.as_deref(), question)
            {
                return Said::Listed(listed, form.key.clone());
            }
            let is_named = listing
                .as_ref()
                .is_some_and(|listing| listing.files.contains_key(question.file));
            // What came after the index was seen cannot be in it.
            let checked_at = stored.fresh.checked_at();
            let is_before = |since| checked_at.saturating_add(AGAIN_MS) < since;
            let is_old = !is_named && question.since.is_some_and(is_before);
            is_silent |= listing.is_some() && left.is_fresh() && !is_old;
            is_forced |= is_old;
            due.get_or_insert(at);
        }
        if is_silent {
            return Said::Nothing;
        }
        let Some(form) = forms.into_iter().nth(due.unwrap_or(0)) else {
            return Said::Nothing;
        };
        let is_away = self
            .listed
            .away
            .get(&form.key.hash)
            .is_some_and(|until| now_ms() < until);
        if form.asset.remote.offline || is_away || self.remembered(&form.key).is_some() {
            return Said::Away;
        }
        let Some(mut wanted) = Wanted::of(form.asset, form.policy) else {
            return Said::Away;
        };
        wanted.force = is_forced;
        let read = match self.obtain_aside(wanted, Method::GET).await {
            Outcome::Object(index, _) => self.read_index(&index, form.tells).await,
            Outcome::Answer(_) | Outcome::Direct => None,
        };
        if read.is_none() {
            self.listed.away.insert(form.key.hash, now_ms() + AGAIN_MS);
            return Said::Away;
        }
        answer(read.as_deref(), question).map_or(Said::Nothing, |listed| Said::Listed(listed, form.key))
    }

    /// What an index says of its files, read by one at a time.
    async fn read_index(&self, index: &Arc<Object>, tells: Tell) -> Option<Arc<Listing>> {
        let read = async {
            let document = match Decoded::new(index).await.whole(LONGEST).await {
                Ok(document) => document,
                // Nothing that is longer is read.
                Err(DecodeError::TooLong(_) | DecodeError::TooLarge) => return Ok(Arc::default()),
                Err(_) => return Err(()),
            };
            let reading = tokio::task::spawn_blocking(move || Arc::new(Listing::of(tells(&document))));
            reading.await.map_err(|_| ())
        };
        self.listed.read.get_or_insert_async(&index.id, read).await.ok()
    }
}

fn answer(listing: Option<&Listing>, question: Question<'_>) -> Option<Listed> {
    let listed = listing?.files.get(question.file)?;
    (question.is_answer)(listed).then(|| listed.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(file: &str, published: Option<u64>, digest: Option<u8>) -> Release {
        Release {
            file: file.to_owned(),
            published,
            digest: digest.map(|byte| Expected::Sha256([byte; 32])),
        }
    }

    #[test]
    fn of_files_of_one_name_the_younger_counts_and_no_digest() {
        let listing = Listing::of(vec![
            release("a", Some(2), Some(1)),
            release("a", Some(1), Some(1)),
            release("b", Some(1), Some(1)),
            release("b", Some(3), Some(2)),
            release("b", None, Some(1)),
            release("c", None, Some(1)),
            release("c", None, None),
        ]);
        let said = |file: &str| {
            let listed = &listing.files[file];
            (listed.published, listed.digest.clone())
        };
        assert_eq!(said("a"), (Some(2), Some(Expected::Sha256([1; 32]))));
        assert_eq!(said("b"), (Some(3), None));
        assert_eq!(said("c"), (None, None));
        assert_eq!(listing.bytes, 3 * (FILE_BYTES as u64 + 1));
    }
}
