//! Views: documents rewritten or decoded for clients, made from an original while it arrives, and kept beside it.
//!
//! A view is an object like any other. Its key holds the id of its original, so it never expires: another body has
//! another id, and a re-fetch that brought the same bytes keeps the id and with it the views.

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderValue, header};
use quick_cache::sync::Cache;
use tokio::sync::{Mutex, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use url::Url;

use super::decoded::{DecodeError, Decoded, PIECE, is_gzip};
use super::let_through::{LetThroughs, OfRemote};
use crate::cache::{FOR_EVER, Finish, Head, Key, NoSpace, Object, ReadError, Reader, Store, Writer, now_ms};
use crate::catalog::{Catalog, CatalogError};
use crate::config::Remote;
use crate::formats::hold::{self, Hold};
use crate::formats::links::Style;
use crate::formats::release::{self, Releases};
use crate::formats::{Asset, Class, Fact, IndexError, IndexReader, View, ViewContext};
use crate::headers;
use crate::metrics::Metrics;

/// Base URLs for which views of one document are kept; `Host` comes from outside.
const MAX_BASES: usize = 16;
/// Views for base URLs that a document with views was not asked by yet: so many are made at once, for whoever they are.
const UNSEEN_AT_ONCE: usize = 2;
/// ... of those that are made while their document arrives so many for each document.
const GROWING_BASES: usize = 3;
/// ... and one waits so long for its turn.
const UNSEEN_LIMIT: Duration = Duration::from_secs(30);
/// A view is about as long as its original, and several times as long as that one's gzip form.
const GROWTH: u64 = 2;
const GROWTH_DECODED: u64 = 16;

/// A view with dates that upstream does not tell lasts so long, in seconds: of a file that was stored since, more is known then.
const DATES_LAST: u64 = 3600;
/// ... and one that was made while nobody could say what was seen, so long.
const UNKNOWN_LASTS: u64 = 60;

/// Why there is no view.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    #[error("{0}")]
    NoSpace(#[from] NoSpace),
    #[error("upstream's document is encoded as {0}, which cannot be decoded here")]
    Coding(String),
    #[error("too many clients ask for it under names that it was not asked by before; try again")]
    Busy,
}

/// A rewriting that is asked for.
#[derive(Clone)]
pub struct Rewriting {
    pub asset: Arc<Asset>,
    pub view: View,
    /// The remote's root as clients know it, without trailing slash.
    pub remote_url: String,
    /// What is let through though it is held.
    pub let_through: Arc<OfRemote>,
}

impl Rewriting {
    /// Each base URL has a view of its own.
    fn is_absolute(&self) -> bool {
        self.view.style == Style::Absolute
    }

    fn kind(&self) -> Kind {
        Kind::of(&self.asset.remote, self.view, self.let_through.number)
    }

    fn context<'a>(&'a self, document_url: Url, content_type: &'a str) -> ViewContext<'a> {
        ViewContext {
            remote: &self.asset.remote,
            path: &self.asset.path,
            style: self.view.style,
            document_url,
            content_type,
            remote_url: &self.remote_url,
        }
    }
}

/// Which view of an original.
#[derive(Clone)]
pub struct Spec {
    /// `None`: decoded only.
    pub rewriting: Option<Rewriting>,
    pub gzip: bool,
}

/// Original, what is done to it, whether it is gzip-encoded, hash of the base URL.
type HotKey = (u64, Kind, bool, u64);

/// What is done to an original.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Decoded,
    Rewritten {
        style: Style,
        /// By which policy releases are held back from it, and what is let through.
        held: Option<u64>,
        /// Whether releases are dated in it that upstream does not date.
        dated: bool,
        media_type: Option<&'static str>,
    },
}

impl Kind {
    /// What `view` makes of the documents of `remote`, of which is let through what `let_through` is the number of.
    fn of(remote: &Remote, view: View, let_through: u64) -> Kind {
        Kind::Rewritten {
            style: view.style,
            held: is_filtered(remote, view).then_some(remote.quarantine.fingerprint ^ let_through),
            dated: view.dated.is_some(),
            media_type: view.made_as.map(|made| made.media_type),
        }
    }

    fn is_absolute(self) -> bool {
        matches!(
            self,
            Kind::Rewritten {
                style: Style::Absolute,
                ..
            }
        )
    }

    /// What the form of a view says of it beside the style of its links.
    fn suffix(self) -> String {
        let Kind::Rewritten {
            held,
            dated,
            media_type,
            ..
        } = self
        else {
            return String::new();
        };
        let dated = if dated { " dated" } else { "" };
        let held = held.map_or(String::new(), |policy| format!(" held {policy:016x}"));
        let media_type = media_type.map_or(String::new(), |media_type| format!(" as {media_type}"));
        held + dated + &media_type
    }
}

/// Whether releases that are held are left out of it.
fn is_filtered(remote: &Remote, view: View) -> bool {
    remote.quarantine.is_enforced() && view.releases.is_some()
}

/// The type of what `view` makes of a document of `content_type`, where it makes another one.
fn made_type(view: View, content_type: &str) -> Option<&'static str> {
    view.made_as?.media_type(content_type)
}

/// Whether a release that was held back when `view` was made is due: it is another document now.
fn is_over(view: &Object) -> bool {
    view.fresh.fresh_until() <= now_ms()
}

impl Spec {
    fn kind(&self) -> Kind {
        self.rewriting.as_ref().map_or(Kind::Decoded, Rewriting::kind)
    }

    /// What is done to the document as a whole, before links are rewritten: that needs to know its releases.
    fn edit(&self) -> Option<Edit> {
        let rewriting = self.rewriting.as_ref()?;
        let releases = rewriting.view.releases?;
        let is_held = is_filtered(&rewriting.asset.remote, rewriting.view);
        (is_held || rewriting.view.dated.is_some()).then(|| Edit {
            rewriting: rewriting.clone(),
            releases,
            is_held,
        })
    }
}

/// What is done to a whole document.
struct Edit {
    rewriting: Rewriting,
    releases: &'static Releases,
    /// Whether releases are held back from it.
    is_held: bool,
}

impl Edit {
    /// Whether its policy asks when the releases of the document were first seen.
    fn goes_by_sight(&self) -> bool {
        self.rewriting.asset.remote.quarantine.goes_by_sight()
    }

    /// The document, and when it will be another one by itself, in Unix seconds. Blocks for as long as reading it takes.
    fn apply(&self, document: Vec<u8>, sights: Sights, source: Source) -> Result<(Vec<u8>, Option<u64>), IndexError> {
        let context = self.rewriting.context(source.url, &source.content_type);
        let known = hold::Known {
            let_through: self.rewriting.let_through.files(&self.rewriting.asset),
            first_seen: Arc::new(sights.first_seen),
        };
        let mut hold = Hold::new(&self.rewriting.asset, known, now_ms() / 1000);
        let mut document = document;
        if self.is_held {
            document = (self.releases.without)(&context, &document, &mut hold)?;
        }
        if let Some(dated) = self.rewriting.view.dated {
            document = (dated.fill)(&context, &document, &sights.dates)?;
        }
        Ok((document, hold.changes()))
    }
}

/// Where a document came from, and its `Content-Type`.
#[derive(Clone)]
struct Source {
    url: Url,
    content_type: String,
}

/// What is known here of the releases of a document, in Unix seconds, by what the document calls their files.
struct Sights {
    /// When each was first seen.
    first_seen: HashMap<String, u64>,
    /// Dates for those that the document does not date.
    dates: HashMap<String, u64>,
    /// When more may be known; `None`: that does not matter.
    again: Option<u64>,
}

/// Makes and finds views.
pub struct Views {
    store: &'static Store,
    catalog: Catalog,
    metrics: Arc<Metrics>,
    let_through: Arc<LetThroughs>,
    /// Originals of which a view is looked up and started: by one at a time, so that none is made twice. By id.
    starting: parking_lot::Mutex<HashMap<u64, Arc<Mutex<()>>>>,
    /// Keys made lately, for the hot path: a key is long to write and to hash.
    keys: Cache<HotKey, Arc<Known>>,
    /// Not known outside, so that no `Host` can be made to look like another.
    hasher: RandomState,
    /// Base URLs that there are views of an original for.
    bases: Cache<u64, Arc<parking_lot::Mutex<Vec<Arc<Base>>>>>,
    /// Moves on with every new base URL: what was used since is told by it.
    clock: AtomicU64,
    unseen: Arc<Semaphore>,
    /// Of the forms of views that were looked for: one for each way in which the configuration holds releases back.
    suffixes: parking_lot::Mutex<BTreeSet<String>>,
}

/// A view that was opened before.
struct Known {
    key: Key,
    base: Option<Arc<Base>>,
}

/// A base URL that there are views for.
#[derive(Debug)]
struct Base {
    url: String,
    /// By [`Views::clock`].
    used: AtomicU64,
}

/// Nobody else starts a view of this original.
struct Turn<'a> {
    views: &'a Views,
    original: u64,
    _lock: OwnedMutexGuard<()>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut starting = self.views.starting.lock();
        // This one and the map's own: nobody waits.
        if starting
            .get(&self.original)
            .is_some_and(|lock| Arc::strong_count(lock) <= 2)
        {
            starting.remove(&self.original);
        }
    }
}

impl Views {
    pub fn new(store: &'static Store, catalog: Catalog, metrics: Arc<Metrics>, let_through: Arc<LetThroughs>) -> Self {
        Views {
            store,
            catalog,
            metrics,
            let_through,
            starting: parking_lot::Mutex::default(),
            keys: Cache::new(16_384),
            hasher: RandomState::new(),
            bases: Cache::new(4096),
            clock: AtomicU64::new(0),
            unseen: Arc::new(Semaphore::new(UNSEEN_AT_ONCE)),
            suffixes: parking_lot::Mutex::default(),
        }
    }

    /// What `view` makes of the documents of `remote` now.
    pub fn kind(&self, remote: &Remote, view: View) -> Kind {
        let let_through = match is_filtered(remote, view) {
            true => self.let_through.number(&remote.name),
            false => 0,
        };
        Kind::of(remote, view, let_through)
    }

    /// What `view` makes of `asset`, for clients that know its remote's root under `remote_url`.
    pub fn rewriting(&self, asset: Arc<Asset>, view: View, remote_url: String) -> Rewriting {
        Rewriting {
            let_through: self.let_through.of(&asset.remote.name),
            asset,
            view,
            remote_url,
        }
    }

    fn key(&self, original: &Object, spec: &Spec) -> Key {
        let form = match &spec.rewriting {
            Some(rewriting) => {
                let links = match rewriting.is_absolute() {
                    true => format!("for {}", rewriting.remote_url),
                    false => "relative".to_owned(),
                };
                let suffix = rewriting.kind().suffix();
                self.suffixes.lock().insert(suffix.clone());
                links + &suffix
            }
            None => "decoded".to_owned(),
        };
        let coding = if spec.gzip { "gzip" } else { "identity" };
        Self::key_of(original.id, &form, coding)
    }

    fn key_of(id: u64, form: &str, coding: &str) -> Key {
        Key::of_view(id, form, coding)
    }

    /// Removes the views of an original that is flushed, as far as they are known. Blocks.
    pub fn forget(&self, id: u64) {
        let bases = self
            .bases
            .remove(&id)
            .map_or_else(Vec::new, |(_, bases)| bases.lock().clone());
        let absolute = bases.into_iter().map(|base| format!("for {}", base.url));
        let links: Vec<String> = absolute.chain(["relative".to_owned()]).collect();
        let suffixes = self.suffixes.lock().clone();
        let rewritten = links
            .iter()
            .flat_map(|links| suffixes.iter().map(move |suffix| format!("{links}{suffix}")));
        for form in rewritten.chain(["decoded".to_owned()]) {
            for coding in ["gzip", "identity"] {
                let hash = Self::key_of(id, &form, coding).hash;
                self.store.forsake(&hash);
                self.store.remove_stored(&hash);
            }
        }
    }

    /// A view of `original` that was opened before.
    pub async fn known(&self, original: &Object, kind: Kind, gzip: bool, remote_url: &str) -> Option<Arc<Object>> {
        let known = self.used(&self.hot_key(original, kind, gzip, remote_url))?;
        self.store.open_object(&known.key).await.filter(|view| !is_over(view))
    }

    /// Such a view, if it is in memory.
    pub fn in_memory(&self, original: &Object, kind: Kind, gzip: bool, remote_url: &str) -> Option<Arc<Object>> {
        let known = self.used(&self.hot_key(original, kind, gzip, remote_url))?;
        self.store.in_memory(&known.key).filter(|view| !is_over(view))
    }

    fn used(&self, hot: &HotKey) -> Option<Arc<Known>> {
        let known = self.keys.get(hot)?;
        if let Some(base) = &known.base {
            base.used.store(self.clock.load(Relaxed), Relaxed);
        }
        Some(known)
    }

    fn hot_key(&self, original: &Object, kind: Kind, gzip: bool, remote_url: &str) -> HotKey {
        let url = if kind.is_absolute() {
            self.hasher.hash_one(remote_url)
        } else {
            0
        };
        (original.id, kind, gzip, url)
    }

    /// Waits until nobody else starts a view of this original.
    async fn turn(&self, original: u64) -> Turn<'_> {
        let lock = Arc::clone(self.starting.lock().entry(original).or_default());
        Turn {
            views: self,
            original,
            _lock: lock.lock_owned().await,
        }
    }

    /// The view of `original`, complete or growing.
    ///
    /// # Errors
    /// There is no space for it, or the original's coding is not known here.
    pub async fn open(self: &Arc<Self>, original: &Arc<Object>, spec: &Spec) -> Result<Arc<Object>, ViewError> {
        let key = self.key(original, spec);
        let absolute = spec.rewriting.as_ref().filter(|rewriting| rewriting.is_absolute());
        // Before its turn is waited for: who comes by a known name does not wait behind who does not.
        let (base, place) = match absolute {
            Some(rewriting) => {
                let (base, place) = self.base(original, rewriting).await?;
                (Some(base), place)
            }
            None => (None, None),
        };
        let _turn = self.turn(original.id).await;
        let remote_url = absolute.map_or("", |rewriting| rewriting.remote_url.as_str());
        let known = Arc::new(Known { key: key.clone(), base });
        self.keys
            .insert(self.hot_key(original, spec.kind(), spec.gzip, remote_url), known);
        if let Some(view) = self.made(&key).await {
            return Ok(view);
        }
        if let Some(coding) = original.head.content_encoding().filter(|coding| !is_gzip(coding)) {
            return Err(ViewError::Coding(coding.to_owned()));
        }
        // The gzip form is made from the identity form: one rewriting serves both.
        let source = if spec.gzip {
            let plain = Spec {
                gzip: false,
                ..spec.clone()
            };
            Some(Box::pin(self.open_plain(original, &plain)).await?)
        } else {
            None
        };
        let writer = self.create(key, original, spec).await?;
        let view = Arc::clone(writer.object());
        let (views, original, spec) = (Arc::clone(self), Arc::clone(original), spec.clone());
        tokio::spawn(async move {
            let made = match source {
                Some(plain) => views.compress(&original, plain, writer).await,
                None => views.write(&original, &spec, writer).await,
            };
            drop(place);
            views.note(&original, made);
        });
        Ok(view)
    }

    /// The view, made again if it is there: what it names is noted once more.
    ///
    /// # Errors
    /// Those of [`Views::open`].
    pub async fn open_anew(self: &Arc<Self>, original: &Arc<Object>, spec: &Spec) -> Result<Arc<Object>, ViewError> {
        self.store.remove(self.key(original, spec).hash).await;
        self.open(original, spec).await
    }

    async fn open_plain(self: &Arc<Self>, original: &Arc<Object>, spec: &Spec) -> Result<Arc<Object>, ViewError> {
        let key = self.key(original, spec);
        if let Some(view) = self.made(&key).await {
            return Ok(view);
        }
        let writer = self.create(key, original, spec).await?;
        let view = Arc::clone(writer.object());
        let (views, original, spec) = (Arc::clone(self), Arc::clone(original), spec.clone());
        tokio::spawn(async move {
            let made = views.write(&original, &spec, writer).await;
            views.note(&original, made);
        });
        Ok(view)
    }

    /// The view under `key`, if it is what it would be if it were made now.
    async fn made(&self, key: &Key) -> Option<Arc<Object>> {
        let view = self.store.open_object(key).await?;
        if is_over(&view) {
            self.store.remove(key.hash).await;
            return None;
        }
        Some(view)
    }

    fn note(&self, original: &Object, made: Result<(), MakeError>) {
        match made {
            Ok(()) => {}
            Err(MakeError::Unwanted) => {
                tracing::debug!(key = %original.key.shown(), "a view is dropped: nobody waits for it")
            }
            Err(error) => {
                self.metrics.view_failed();
                tracing::warn!(key = %original.key.shown(), %error, "a document could not be rewritten");
            }
        }
    }

    async fn create(&self, key: Key, original: &Object, spec: &Spec) -> Result<Writer, NoSpace> {
        let mut kept = headers::of_view(&original.head.headers);
        if let Kind::Rewritten { held, dated, .. } = spec.kind()
            && (held.is_some() || dated)
        {
            // The document changes when a release is due, too, or a date is known better.
            kept.remove(header::LAST_MODIFIED);
        }
        let view = spec.rewriting.as_ref().map(|rewriting| rewriting.view);
        if let Some(media_type) = view.and_then(|view| made_type(view, original.head.content_type())) {
            kept.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        }
        if spec.gzip {
            kept.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        if let Some(length) = original.length() {
            let growth = match original.head.content_encoding() {
                Some(_) => GROWTH_DECODED,
                None => GROWTH,
            };
            self.store.expect_length(&key.hash, length.saturating_mul(growth));
        }
        let head = Head {
            url: original.head.url.clone(),
            headers: kept,
            content_length: None,
            stored_at: now_ms(),
            unframed: original.head.unframed,
            ranges: true,
            stands_for: None,
        };
        self.store
            .create(key, head, (Class::Immutable, now_ms(), FOR_EVER), None, None, true)
            .await
    }

    async fn write(&self, original: &Arc<Object>, spec: &Spec, mut writer: Writer) -> Result<(), MakeError> {
        let document_url = Url::parse(&original.head.url).unwrap_or_else(|_| NOWHERE.clone());
        let content_type = original.head.content_type();
        let mut index = spec.rewriting.as_ref().map(|rewriting| {
            let view = rewriting.view;
            let content_type = made_type(view, content_type).unwrap_or(content_type);
            (view.reader)(&rewriting.context(document_url.clone(), content_type))
        });
        let mut document = Decoded::new(original).await;
        match spec.edit() {
            Some(edit) => {
                let document = document.whole(release::LONGEST).await?;
                let source = Source {
                    url: document_url,
                    content_type: content_type.to_owned(),
                };
                let (edit, document, sights) = self.sights(edit, document, &source).await?;
                let again = sights.again;
                let edited = move || edit.apply(document, sights, source);
                let (document, changes) = blocking(edited).await??;
                if let Some(changes) = changes.into_iter().chain(again).min() {
                    let fresh = &writer.object().fresh;
                    fresh.set(Class::Immutable, fresh.checked_at(), changes.saturating_mul(1000));
                }
                for part in document.chunks(PIECE) {
                    self.rewrite(part, index.as_deref_mut(), spec, &mut writer).await?;
                }
            }
            None => {
                while let Some(piece) = document.next().await? {
                    self.rewrite(&piece, index.as_deref_mut(), spec, &mut writer).await?;
                }
            }
        }
        if let Some(index) = &mut index {
            let mut out = Vec::new();
            index.end(&mut out)?;
            self.keep_facts(index.as_mut(), spec, &writer).await;
            self.metrics.escaped_links(index.escaped());
            writer.write(out.into()).await?;
        }
        self.finish(original, writer).await
    }

    /// What is known here of the releases of a document, as far as that matters. If nobody can say, all are seen now, and none
    /// gets a date: it might be a later one than clients were told before.
    async fn sights(
        &self,
        edit: Edit,
        document: Vec<u8>,
        source: &Source,
    ) -> Result<(Edit, Vec<u8>, Sights), MakeError> {
        let source = source.clone();
        let (edit, document, files, undated) = blocking(move || {
            let files: Vec<String> = match edit.goes_by_sight() {
                true => (edit.releases.read)(&document)
                    .into_iter()
                    .map(|release| release.file)
                    .collect(),
                false => Vec::new(),
            };
            let undated = match edit.rewriting.view.dated {
                Some(dated) => (dated.undated)(&edit.rewriting.context(source.url, &source.content_type), &document),
                None => Vec::new(),
            };
            (edit, document, files, undated)
        })
        .await?;
        let now = now_ms() / 1000;
        let asset = &edit.rewriting.asset;
        let (remote, index) = (&asset.remote.name, &asset.path.decoded);
        let known = async {
            // A policy that trusts no date of upstream's makes clients trust none, either.
            if edit.goes_by_sight() {
                let undated = undated.iter().map(|undated| undated.file.clone());
                let first_seen = self
                    .catalog
                    .first_seen(remote, index, files.iter().cloned().chain(undated), now)
                    .await?;
                return Ok::<_, CatalogError>((first_seen.clone(), first_seen));
            }
            let files: Vec<_> = undated
                .iter()
                .map(|undated| (undated.file.clone(), undated.path.clone()))
                .collect();
            Ok((HashMap::new(), self.catalog.dates(remote, index, &files, now).await?))
        };
        let sights = match known.await {
            Ok((first_seen, dates)) => Sights {
                first_seen,
                dates,
                again: (!undated.is_empty() && !edit.goes_by_sight()).then_some(now + DATES_LAST),
            },
            Err(error) => {
                tracing::warn!(%remote, index = %asset.path.encoded, %error, "when releases were first seen is not known");
                Sights {
                    first_seen: files.into_iter().map(|file| (file, now)).collect(),
                    dates: HashMap::new(),
                    again: Some(now + UNKNOWN_LASTS),
                }
            }
        };
        Ok((edit, document, sights))
    }

    /// A view whose original was not kept (it had been there already, or there was no space) could never be found.
    async fn finish(&self, original: &Object, writer: Writer) -> Result<(), MakeError> {
        if self
            .store
            .stored(&original.key)
            .await
            .is_none_or(|stored| stored.id != original.id)
        {
            writer.doom();
        }
        match writer.finish().await {
            Finish::Failed(reason) | Finish::Wrong(reason) | Finish::Changed(reason) => {
                Err(MakeError::NotAdmitted(reason))
            }
            _ => Ok(()),
        }
    }

    async fn rewrite(
        &self,
        piece: &[u8],
        index: Option<&mut (dyn IndexReader + 'static)>,
        spec: &Spec,
        writer: &mut Writer,
    ) -> Result<(), MakeError> {
        let mut out = Vec::with_capacity(piece.len() + piece.len() / 8);
        match index {
            Some(index) => {
                index.write(piece, &mut out)?;
                // Before the client can see the link: it may ask for the file at once.
                self.keep_facts(index, spec, writer).await;
            }
            None => out.extend_from_slice(piece),
        }
        writer.write(out.into()).await?;
        tokio::task::yield_now().await;
        is_wanted(writer)
    }

    /// Notes what was found since the last call, in memory: the catalogue writes it later. Only where too much of that waits, for
    /// a database that writes, does the document wait for room, because clients are refused what is not noted.
    async fn keep_facts(&self, index: &mut dyn IndexReader, spec: &Spec, writer: &Writer) {
        let facts = index.take_facts();
        let Some(rewriting) = spec.rewriting.as_ref().filter(|_| !facts.is_empty()) else {
            return;
        };
        let links = facts.into_iter().filter_map(|fact| match fact {
            Fact::Link(name) => Some(name),
            // Whoever shows a set reads its manifest for them.
            Fact::Member(_) => None,
        });
        let remote = &rewriting.asset.remote.name;
        if let Err(error) = self.catalog.add_links(remote, links).await
            && writer.object().is_kept()
        {
            tracing::warn!(%remote, %error, "links to other hosts could not be noted");
            // Made again for who asks next, so that they are noted then.
            writer.doom();
        }
    }

    async fn compress(&self, original: &Object, plain: Arc<Object>, mut writer: Writer) -> Result<(), MakeError> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
        plain.begun().await;
        // What is due in the one is due in the other: known before its first byte.
        let (made, fresh) = (&writer.object().fresh, &plain.fresh);
        made.set(Class::Immutable, fresh.checked_at(), fresh.fresh_until());
        let mut reader = Reader::new(Arc::clone(&plain));
        while let Some(piece) = reader.next().await? {
            for part in piece.chunks(PIECE) {
                encoder.write_all(part)?;
                let out = std::mem::take(encoder.get_mut());
                writer.write(out.into()).await?;
                tokio::task::yield_now().await;
                is_wanted(&writer)?;
            }
        }
        writer.write(encoder.finish()?.into()).await?;
        if !plain.is_kept() {
            writer.doom();
        }
        self.finish(original, writer).await
    }

    fn bases_of(&self, original: &Object) -> Arc<parking_lot::Mutex<Vec<Arc<Base>>>> {
        // Two at once find one list.
        let made = self
            .bases
            .get_or_insert_with(&original.id, || Ok::<_, Infallible>(Arc::default()));
        made.unwrap_or_else(|never| match never {})
    }

    /// The base URL of a view that is about to be used, with a place where one is needed to make it. Base URLs that `original`
    /// has views for already need none, nor do the first ones: others, which anybody can make up, are few at a time.
    async fn base(
        &self,
        original: &Object,
        rewriting: &Rewriting,
    ) -> Result<(Arc<Base>, Option<OwnedSemaphorePermit>), ViewError> {
        // How long a view of what arrives takes, upstream decides: no place is held for it.
        let is_free = |bases: usize| bases == 0 || bases < GROWING_BASES && !original.is_complete();
        if let Some(base) = self.enter(original, rewriting, is_free).await {
            return Ok((base, None));
        }
        let place = async {
            original.settled().await;
            Arc::clone(&self.unseen).acquire_owned().await
        };
        let Ok(Ok(place)) = tokio::time::timeout(UNSEEN_LIMIT, place).await else {
            return Err(ViewError::Busy);
        };
        let base = self.enter(original, rewriting, |_| true).await;
        Ok((base.ok_or(ViewError::Busy)?, Some(place)))
    }

    /// Notes that a base URL is used. `None`: it is a new one, and `admits` no more beside as many as there are. Where a
    /// document has too many, the views of the one go that was not used for the longest time.
    async fn enter(
        &self,
        original: &Object,
        rewriting: &Rewriting,
        admits: impl Fn(usize) -> bool,
    ) -> Option<Arc<Base>> {
        let (base, unused) = {
            let bases = self.bases_of(original);
            let mut bases = bases.lock();
            if let Some(base) = bases.iter().find(|base| base.url == rewriting.remote_url) {
                base.used.store(self.clock.load(Relaxed), Relaxed);
                return Some(Arc::clone(base));
            }
            if !admits(bases.len()) {
                return None;
            }
            let base = Arc::new(Base {
                url: rewriting.remote_url.clone(),
                used: AtomicU64::new(self.clock.fetch_add(1, Relaxed) + 1),
            });
            let unused = match bases.len() >= MAX_BASES {
                true => oldest(&bases).map(|at| bases.swap_remove(at)),
                false => None,
            };
            bases.push(Arc::clone(&base));
            (base, unused)
        };
        if let Some(unused) = unused {
            let rewriting = Rewriting {
                remote_url: unused.url.clone(),
                ..rewriting.clone()
            };
            for gzip in [false, true] {
                let spec = Spec {
                    rewriting: Some(rewriting.clone()),
                    gzip,
                };
                self.store.remove(self.key(original, &spec).hash).await;
            }
        }
        Some(base)
    }
}

/// Runs what takes long off the threads that serve.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, IndexError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| IndexError("reading it was given up".to_owned()))
}

fn oldest(bases: &[Arc<Base>]) -> Option<usize> {
    let used = bases.iter().map(|base| base.used.load(Relaxed)).enumerate();
    used.min_by_key(|(_, used)| *used).map(|(at, _)| at)
}

/// A view that nobody waits for is not made to its end: it is made again when somebody asks.
fn is_wanted(writer: &Writer) -> Result<(), MakeError> {
    match writer.leave_if_alone() {
        true => Err(MakeError::Unwanted),
        false => Ok(()),
    }
}

static NOWHERE: std::sync::LazyLock<Url> = std::sync::LazyLock::new(|| {
    // A constant that is a URL.
    Url::parse("https://invalid.invalid/").unwrap_or_else(|_| unreachable!())
});

#[derive(Debug, thiserror::Error)]
enum MakeError {
    #[error("{0}")]
    Read(#[from] ReadError),
    #[error("{0}")]
    Rewrite(#[from] IndexError),
    #[error("{0}")]
    Decode(#[from] DecodeError),
    #[error("{0}")]
    Write(#[from] std::io::Error),
    #[error("{0}")]
    NotAdmitted(String),
    #[error("nobody waits for it")]
    Unwanted,
}
