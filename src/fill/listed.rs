//! What indexes say of the files that they name: when they were published, and what they must turn out to be. An index is read
//! once, from what is stored of it, or fetched for that. Many files of one package cost one question to upstream.

use std::pin::Pin;
use std::sync::Arc;

use http::{HeaderMap, Method};
use quick_cache::sync::Cache;
use quick_cache::{OptionsBuilder, Weighter};
use sha2::{Digest as _, Sha256};

use super::decoded::{DecodeError, Decoded};
use super::set::Standing;
use super::{Fills, Outcome, Wanted};
use crate::cache::{Expected, FOR_EVER, Hash, Key, Millis, Object, now_ms};
use crate::config::Verify;
use crate::formats::hold::Dates as FileDates;
use crate::formats::release::{LONGEST, ListedBy, Release, TellingReader, Tells, Told};
use crate::formats::{self, Asset, Binding, IndexError, Location, path};
use crate::policy::{self, Policy, packages, quarantine};

/// Indexes that are remembered, and the memory for all that they name, in bytes.
const MAX_INDEXES: usize = 1024;
const MAX_BYTES: u64 = 32 << 20;
/// Files that are read of one index: all that one repository of a Linux distribution has, several times.
const MAX_LISTED: usize = 400_000;
/// What is read at once of an index that comes in pieces, in bytes.
const STEP: usize = 4 << 10;
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

/// What stands for the name of a file: the first bytes of its SHA-256. Names are long, and some indexes have 100,000.
type Name = [u8; 16];

fn name(file: &str) -> Name {
    let digest: [u8; 32] = Sha256::digest(file).into();
    std::array::from_fn(|at| digest[at])
}

/// What an index says of all files that it names.
#[derive(Debug, Default)]
struct Listing {
    /// In the order of the names.
    files: Vec<(Name, Listed)>,
    /// Indexes that name files in its stead, in its order.
    indexes: Vec<String>,
    /// In memory, all being told.
    bytes: u64,
}

impl Listing {
    /// Takes what a part of the index tells. `false`: that is more than is kept.
    fn take(&mut self, told: impl IntoIterator<Item = Told>) -> bool {
        for told in told {
            match told {
                Told::File(Release {
                    file,
                    published,
                    digest,
                }) => self.files.push((name(&file), Listed { published, digest })),
                Told::Index(path) => self.indexes.push(path),
            }
            if self.files.len() + self.indexes.len() >= MAX_LISTED {
                return false;
            }
        }
        true
    }

    /// Makes it ready to be asked, all being told.
    fn end(mut self) -> Self {
        self.files.sort_by_key(|(name, _)| *name);
        self.files.dedup_by(|(name, other), (first, known)| {
            let is_same = name == first;
            if is_same {
                // Of two files of one name, the younger counts, and which of them a path leads to is not known.
                known.published = known.published.max(other.published);
                if known.digest != other.digest {
                    known.digest = None;
                }
            }
            is_same
        });
        self.files.shrink_to_fit();
        self.bytes = self.bytes();
        self
    }

    /// What it says of `file`.
    fn of(&self, file: &str) -> Option<&Listed> {
        let at = self.files.binary_search_by_key(&name(file), |(name, _)| *name).ok()?;
        self.files.get(at).map(|(_, listed)| listed)
    }

    fn bytes(&self) -> u64 {
        let of_file = |(_, listed): &(Name, Listed)| match listed.digest {
            Some(Expected::Sha512(_) | Expected::Vouched(_)) => 64,
            _ => 0,
        };
        let beside: usize = self.files.iter().map(of_file).sum();
        let indexes: usize = self.indexes.iter().map(|path| path.len() + size_of::<String>()).sum();
        (self.files.len() * size_of::<(Name, Listed)>() + beside + indexes) as u64
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
    /// Upstream does not answer.
    Silent,
}

/// What a document that is here says of a file.
enum Found {
    Named(Listed),
    Unnamed,
    /// The document cannot be read, or what it leads to cannot.
    Unread,
}

/// An index in one of its forms, and how it is read.
struct Index {
    asset: Arc<Asset>,
    policy: Policy,
    tells: Tells,
    key: Key,
    /// Where it is a file of a set.
    standing: Option<Standing>,
}

impl Index {
    /// `None`: another host has it, or nobody.
    fn wanted(&self) -> Option<Wanted> {
        let asset = Arc::clone(&self.asset);
        match (&self.standing, &self.asset.location) {
            (Some(standing), Location::Upstream(url)) => Some(standing.wanted(asset, url.clone())),
            (Some(_), _) => None,
            (None, _) => Wanted::of(asset, self.policy),
        }
    }
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
                standing: None,
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
        let (published, until) = match asset.dated_by() {
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
        let by = asset.dated_by()?;
        for index in &by.indexes {
            for form in forms_of(asset, by, index)? {
                let Some(stored) = self.store.open_object(&form.key).await else {
                    continue;
                };
                let listing = self.read_index(&stored, &form).await;
                let listed = listing.as_ref().and_then(|listing| listing.of(&by.file));
                if let Some(published) = listed.and_then(|listed| listed.published) {
                    return Some(published);
                }
            }
        }
        None
    }

    /// When this proxy first saw a file, or its name in an index: now, if it never did.
    pub async fn first_seen(&self, asset: &Asset) -> Option<u64> {
        let (index, file) = match asset.dated_by() {
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

    /// The answer of the first of its indexes that has one, and the key of that. What is stored is asked before upstream is.
    async fn listed(self: &Arc<Self>, asset: &Asset, by: &ListedBy, question: Question<'_>) -> Option<(Listed, Key)> {
        let (mut indexes, mut unknown) = (Vec::new(), Vec::new());
        for forms in by.indexes.iter().filter_map(|index| forms_of(asset, by, index)) {
            let mut is_stored = false;
            for form in &forms {
                is_stored |= self.store.open_object(&form.key).await.is_some();
            }
            match is_stored {
                true => indexes.push(forms),
                false => unknown.push(forms),
            }
        }
        indexes.append(&mut unknown);
        let mut is_silent = false;
        for forms in indexes {
            if is_silent {
                // Each would be waited for as long.
                self.note_away(&forms);
                continue;
            }
            match self.said_of(forms, by.steps, question).await {
                Said::Listed(listed, key) => return Some((listed, key)),
                Said::Nothing | Said::Away => {}
                Said::Silent => is_silent = true,
            }
        }
        None
    }

    /// For a while, none of these is asked for.
    fn note_away(&self, forms: &[Index]) {
        for form in forms {
            self.listed.away.insert(form.key.hash, now_ms() + AGAIN_MS);
        }
    }

    /// What an index says, by whichever of its forms is stored; one is fetched where none is, or none that can be believed.
    async fn said_of(self: &Arc<Self>, mut forms: Vec<Index>, steps: usize, question: Question<'_>) -> Said {
        let (mut is_forced, mut is_silent, mut due) = (false, false, None);
        for (at, form) in forms.iter().enumerate() {
            let Some(stored) = self.store.open_object(&form.key).await else {
                continue;
            };
            let left = stored.fresh.left(form.policy.class, form.policy.ttl, now_ms());
            // What an expired index leads to may be gone.
            let is_believed = left.is_fresh() || question.lasts;
            let is_read = is_believed || steps == 0;
            let found = match is_read {
                true => self.found_in(&stored, form, steps, question).await,
                false => Found::Unread,
            };
            if is_believed
                && let Found::Named(listed) = &found
                && (question.is_answer)(listed)
            {
                return Said::Listed(listed.clone(), form.key.clone());
            }
            // What came after the index was seen cannot be in it.
            let checked_at = stored.fresh.checked_at();
            let is_before = |since| checked_at.saturating_add(AGAIN_MS) < since;
            let is_old = is_read && !matches!(found, Found::Named(_)) && question.since.is_some_and(is_before);
            is_silent |= !matches!(found, Found::Unread) && left.is_fresh() && !is_old;
            is_forced |= is_old;
            due.get_or_insert(at);
        }
        let at = due.unwrap_or(0);
        if is_silent || at >= forms.len() {
            return Said::Nothing;
        }
        let form = forms.swap_remove(at);
        let is_away = self
            .listed
            .away
            .get(&form.key.hash)
            .is_some_and(|until| now_ms() < until);
        if form.asset.remote.offline || is_away || self.remembered(&form.key).is_some() {
            return Said::Away;
        }
        let Some(mut wanted) = form.wanted() else {
            return Said::Away;
        };
        wanted.force |= is_forced;
        let found = match self.obtain_aside(wanted, Method::GET).await {
            Outcome::Object(stored, _) => self.found_in(&stored, &form, steps, question).await,
            Outcome::Answer(answer) if answer.reason.is_some() => {
                self.note_away(&[form]);
                return Said::Silent;
            }
            Outcome::Answer(_) | Outcome::Direct => Found::Unread,
        };
        match found {
            Found::Named(listed) if (question.is_answer)(&listed) => Said::Listed(listed, form.key),
            Found::Named(_) | Found::Unnamed => Said::Nothing,
            Found::Unread => {
                self.note_away(&[form]);
                Said::Away
            }
        }
    }

    /// What a document that is here says of a file: itself, or by the indexes that it names, so many steps further. The type is
    /// spelled out because the compiler cannot infer it in a circle.
    fn found_in<'a>(
        self: &'a Arc<Self>,
        stored: &'a Arc<Object>,
        index: &'a Index,
        steps: usize,
        question: Question<'a>,
    ) -> Pin<Box<dyn Future<Output = Found> + Send + 'a>> {
        Box::pin(async move {
            let Some(listing) = self.read_index(stored, index).await else {
                return Found::Unread;
            };
            let Some(left) = steps.checked_sub(1) else {
                return listing.of(question.file).cloned().map_or(Found::Unnamed, Found::Named);
            };
            // What an index names is as old as that says.
            let question = Question {
                since: None,
                ..question
            };
            let mut found = Found::Unnamed;
            for path in &listing.indexes {
                let Some(next) = self.named_by(index, path).await else {
                    continue;
                };
                match self.said_of(vec![next], left, question).await {
                    Said::Listed(listed, _) => return Found::Named(listed),
                    Said::Nothing => {}
                    Said::Away | Said::Silent => found = Found::Unread,
                }
            }
            found
        })
    }

    /// The index under the decoded `path` that `index` names. `None`: it is none.
    async fn named_by(&self, index: &Index, path: &str) -> Option<Index> {
        let asset = formats::asset(&index.asset.remote, path::of_decoded(path).ok()?, None)?;
        let tells = asset.tells?;
        let standing = match asset.binding {
            Binding::Member(_) => Some(self.standing(&index.asset, &asset.path).await?),
            _ => None,
        };
        let (key, policy) = match &standing {
            Some(standing) => (standing.key.clone(), policy::of_set_member()),
            None => (asset.key(), policy::classify(&asset)?),
        };
        Some(Index {
            asset: Arc::new(asset),
            policy,
            tells,
            key,
            standing,
        })
    }

    /// What an index says of its files, read by one at a time.
    async fn read_index(&self, stored: &Arc<Object>, index: &Index) -> Option<Arc<Listing>> {
        let read = async {
            match index.tells {
                Tells::Whole(tells) => {
                    let document = match Decoded::new(stored).await.whole(LONGEST).await {
                        Ok(document) => document,
                        // Nothing that is longer is read.
                        Err(DecodeError::TooLong(_) | DecodeError::TooLarge) => return Ok(Arc::default()),
                        Err(_) => return Err(()),
                    };
                    let reading = tokio::task::spawn_blocking(move || {
                        let mut listing = Listing::default();
                        listing.take(tells(&document).into_iter().map(Told::File));
                        Arc::new(listing.end())
                    });
                    reading.await.map_err(|_| ())
                }
                Tells::Pieces(_) => self.read_pieces(stored, index).await.map(Arc::new),
            }
        };
        self.listed.read.get_or_insert_async(&stored.id, read).await.ok()
    }

    /// Reads an index piece by piece. What ends it before its end is said once; what it told before counts.
    async fn read_pieces(&self, stored: &Arc<Object>, index: &Index) -> Result<Listing, ()> {
        let Tells::Pieces(reader) = index.tells else {
            return Err(());
        };
        let mut state = (reader(&index.asset.path.decoded), Listing::default());
        let mut content = Decoded::new(stored).await;
        loop {
            let piece = match content.next().await {
                Ok(piece) => piece,
                Err(DecodeError::TooLarge) => break,
                Err(_) => return Err(()),
            };
            let is_last = piece.is_none();
            let reading = tokio::task::spawn_blocking(move || {
                let (mut reader, mut listing) = state;
                let read = take_piece(reader.as_mut(), &mut listing, piece.as_deref());
                (read, (reader, listing))
            });
            let read;
            (read, state) = reading.await.map_err(|_| ())?;
            if let Err(reason) = &read {
                let (remote, path) = (&index.asset.remote.name, &index.asset.path.encoded);
                tracing::warn!(%remote, %path, %reason, "an index cannot be read to its end: what it would say of further files is not known");
            }
            if is_last || read.is_err() {
                break;
            }
        }
        let ending = tokio::task::spawn_blocking(move || state.1.end());
        ending.await.map_err(|_| ())
    }
}

/// Takes what the next piece of an index tells, or its end.
fn take_piece(reader: &mut dyn TellingReader, listing: &mut Listing, piece: Option<&[u8]>) -> Result<(), IndexError> {
    let mut told = Vec::new();
    let mut take = |told: &mut Vec<Told>, read: Result<(), IndexError>| match listing.take(told.drain(..)) {
        true => read,
        false => Err(IndexError(format!("it names more than {MAX_LISTED} files"))),
    };
    // In small steps: of a bomb's next kilobytes a million files may come.
    for step in piece.unwrap_or_default().chunks(STEP) {
        let read = reader.write(step, &mut told);
        take(&mut told, read)?;
    }
    match piece {
        Some(_) => Ok(()),
        None => {
            let read = reader.end(&mut told);
            take(&mut told, read)
        }
    }
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
        let mut listing = Listing::default();
        let told = [
            release("a", Some(2), Some(1)),
            release("b", Some(1), Some(1)),
            release("a", Some(1), Some(1)),
            release("b", Some(3), Some(2)),
            release("b", None, Some(1)),
            release("c", None, Some(1)),
            release("c", None, None),
        ];
        assert!(listing.take(told.map(Told::File)));
        assert!(listing.take([Told::Index("i".to_owned())]));
        let listing = listing.end();
        let said = |file: &str| {
            let listed = listing.of(file).unwrap();
            (listed.published, listed.digest.clone())
        };
        assert_eq!(said("a"), (Some(2), Some(Expected::Sha256([1; 32]))));
        assert_eq!(said("b"), (Some(3), None));
        assert_eq!(said("c"), (None, None));
        assert_eq!(listing.of("d"), None);
        assert_eq!(
            (listing.files.len(), listing.indexes.as_slice()),
            (3, &["i".to_owned()][..])
        );
    }

    #[test]
    fn a_file_costs_some_dozen_bytes_and_no_index_costs_more_than_its_share() {
        let mut listing = Listing::default();
        let files = |from: usize, to: usize| {
            (from..to).map(|number| Told::File(release(&format!("Packages/{number}"), None, Some(number as u8))))
        };
        assert!(listing.take(files(0, 200_000)));
        assert!(listing.bytes() < MAX_BYTES / 2, "{}", listing.bytes());
        assert!(!listing.take(files(200_000, 500_000)));
        let listing = listing.end();
        assert_eq!(listing.files.len(), MAX_LISTED);
        assert!(listing.bytes() <= MAX_BYTES, "{}", listing.bytes());
        let listed = listing.of("Packages/399999").unwrap();
        assert_eq!(listed.digest, Some(Expected::Sha256([(399_999 % 256) as u8; 32])));
    }
}
