//! The tiers as one: find an object, start one, refresh or remove it, and keep the whole within its bounds.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use quick_cache::sync::Cache;

use super::Class;
use super::clock::Clock;
use super::disk::{self, Amount, Disk, Record};
use super::key::shown;
use super::memory::Memory;
use super::object::Keeper;
use super::overflow::{self, Overflow};
use super::scrub::{Scrub, Scrubbed};
use super::sweep::Sweep;
use super::usage::Usage;
use super::writer::{Expected, NoSpace, Space, Writer};
use super::{Body, Finished, Freshness, Hash, Head, Key, Millis, Object, Origin, ReadError, evict};
use crate::config::{CacheSettings, MinFree};

/// How often uses are written down and the byte counter is saved.
const HOUSEKEEPING: Duration = Duration::from_secs(2);
/// The byte counter is put right by a walk this often.
const RECOUNT: Duration = Duration::from_secs(24 * 3600);
/// ... and so often while a folder cannot be listed.
const RECOUNT_AGAIN: Duration = Duration::from_secs(60);
/// Uses remembered between two sweeps.
const MAX_USED: usize = 65_536;
/// Bodies remembered to be what they were when they were stored.
const MAX_PROVEN: usize = 65_536;
/// Bodies remembered that are not to be used again.
const MAX_UNREADABLE: usize = 4096;
/// What an object needs of the file system beside its bytes: the file, two folders, and one that another fill takes meanwhile.
const FILES: u64 = 4;
/// Damage is told by `/health` for so long.
const DAMAGE_TOLD: Duration = Duration::from_secs(600);
/// Lengths remembered of bodies that came without one.
const MAX_LENGTHS: usize = 4096;
/// ... for so long: upstream may have another body by then.
const LENGTH_LIMIT: Duration = Duration::from_secs(3600);
/// What passes through is not tried again for so long.
const PASSING_LIMIT: Duration = Duration::from_secs(60);
/// The disk is given so long for one answer ...
const DISK_LIMIT: Duration = Duration::from_secs(15);
/// ... and if there is none is not asked again for so long: a network file system may hang for hours.
const DISK_PAUSE: Duration = Duration::from_secs(30);

/// Told what happens to stored objects, for the catalogue and the metrics. Never called on a request's path.
pub trait Observer: Send + Sync {
    /// `key` was used `hits` times since the last call.
    fn used(&self, key: &Key, hits: u64);
    /// An object was found on disk that was not in memory: whoever keeps a list may not know it.
    fn found(&self, object: &Object);
    /// The object of `key` is gone from here because space was short; `backed_up` says that the bucket has it.
    fn evicted(&self, key: &str, bytes: u64, backed_up: bool);
    /// The object of `key` is gone from here because its file was damaged or could not be read.
    fn lost(&self, key: &str, backed_up: bool);
}

/// Sees to it that what is stored here, and is not a view, comes to be in the bucket too. Everything may block shortly.
pub trait Backup: Send + Sync {
    /// An object of `hash` is about to get its name. [`Backup::admitted`] follows, however that goes.
    ///
    /// # Errors
    /// It cannot be seen to that the object will be in the bucket: it is not stored.
    fn admitting(&self, hash: &Hash) -> io::Result<()>;
    /// What is stored under `hash` now, and takes `bytes` of the disk, is to be in the bucket.
    fn admitted(&self, hash: &Hash, bytes: u64);
    /// What was stored under `hash` was removed here. (What the bucket holds is not touched by this.)
    fn removed(&self, hash: &Hash);
    /// Whether the bucket does not have yet what is stored under `hash`, so that it must stay.
    fn is_waiting(&self, hash: &Hash) -> bool;
    /// Calls `act` unless [`Backup::is_waiting`], which does not change meanwhile.
    fn unless_waiting(&self, hash: &Hash, act: &mut dyn FnMut());
    /// Bytes of all that waits.
    fn waiting_bytes(&self) -> u64;
}

/// What is stored under a hash, for whoever copies it elsewhere.
#[derive(Debug)]
pub struct Stored {
    pub key: Key,
    pub id: u64,
    pub head: Head,
    pub finished: Finished,
    pub class: Class,
    pub checked_at: Millis,
    pub fresh_until: Millis,
    /// It is known to be in the bucket too.
    pub backed_up: bool,
    pub file: fs::File,
    /// Where the body starts in the file.
    pub offset: u64,
}

impl Stored {
    /// As [`Object::identity`].
    pub fn identity(&self) -> u64 {
        super::identity(&self.finished, self.head.stands_for.as_ref())
    }
}

/// What a walk over all that is stored has done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Walked {
    /// Objects removed, or expired.
    pub count: u64,
    /// Bytes that this freed.
    pub bytes: u64,
    /// Objects of which the disk refused it.
    pub refused: u64,
}

/// How room is had on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// By eviction: it is known that what wants it can be kept.
    Made,
    /// Only what is free.
    Free,
}

/// Bytes that are counted as used until somebody takes them over: whoever asked for them may have given up.
struct Reserved(&'static Store, u64);

impl Drop for Reserved {
    fn drop(&mut self) {
        self.0.release(self.1);
    }
}

/// What is known of the length of a body before it has come.
#[derive(Debug, Clone, Copy)]
enum Length {
    /// Upstream says it.
    Said(u64),
    Unknown,
    /// Longer than what can be held: the body passes through just now.
    Passing,
    /// So long it was, or may become.
    About(u64),
}

/// Why nothing could be stored.
struct Trouble {
    last: Instant,
    why: String,
    /// Under which the file system was asked to store something and failed: it is tried again there.
    probe: Option<Hash>,
}

/// What is missing of the file system's free space.
struct Short {
    missing: Amount,
    free: Amount,
    kept: Amount,
}

impl Short {
    /// Why there is no space, after so much was freed.
    fn error(&self, freed: Amount) -> NoSpace {
        match self.missing.files > freed.files {
            true => NoSpace::Files {
                free: self.free.files,
                kept: self.kept.files,
            },
            false => NoSpace::FileSystem {
                free: self.free.bytes,
                kept: self.kept.bytes,
            },
        }
    }
}

/// Memory and disk tier.
pub struct Store {
    pub(super) disk: Disk,
    pub(super) memory: Memory,
    pub(super) growing: Mutex<HashMap<Hash, Arc<Object>>>,
    settings: CacheSettings,
    /// Bytes on disk, growing files included.
    pub(super) usage: Usage,
    used: Mutex<Vec<(Key, Arc<AtomicU64>)>>,
    /// Change with every change of what is stored, by the first byte of the hash.
    versions: [AtomicU32; 256],
    evicting: Mutex<()>,
    lengths: quick_cache::sync::Cache<Hash, (Instant, Length)>,
    /// When the disk last did not answer in time.
    hangs_since: Mutex<Option<Instant>>,
    /// What is being swept out: see [`Store::begin_sweep`].
    pub(super) sweeps: ArcSwap<Vec<Arc<Sweep>>>,
    /// Held by the walk that makes them.
    pub(super) walking: tokio::sync::Mutex<()>,
    /// Set until something can be stored again.
    trouble: Mutex<Option<Trouble>>,
    /// Times that something could not be stored.
    unstored: AtomicU64,
    /// When a file was last found damaged or unreadable, and which.
    damage: Mutex<Option<(Instant, String)>>,
    /// Files found so.
    lost: AtomicU64,
    /// Ids of bodies that cannot be read, or are not what they were: not used before then (`None`: ever) again, though their
    /// files may still be there.
    unreadable: Cache<u64, Option<Instant>>,
    /// Ids of bodies that were compared with their digest since the start.
    pub(super) proven: Cache<u64, ()>,
    pub(super) scrub: Scrub,
    seed: AtomicU64,
    observer: OnceLock<Box<dyn Observer>>,
    backup: OnceLock<Arc<dyn Backup>>,
    closing: AtomicBool,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("root", &self.disk.root())
            .finish_non_exhaustive()
    }
}

/// What `/health` and `/metrics` say of the store.
#[derive(Debug, Clone)]
pub struct StoreStats {
    pub disk_bytes: u64,
    pub disk_limit: u64,
    pub memory_bytes: u64,
    pub memory_items: usize,
    pub growing: usize,
    /// Why nothing is stored, if that was so in the last minute.
    pub starved: Option<String>,
    /// Times that something could not be stored.
    pub unstored: u64,
    /// A file that was found damaged or unreadable lately.
    pub damaged: Option<String>,
    /// Files found so.
    pub lost: u64,
    pub scrubbed: Scrubbed,
}

impl Store {
    /// Opens the store below `data_dir` and starts its housekeeper. Reads no object, so it takes the same time whatever
    /// is stored. The store lives as long as the process: Pingora's storage interface asks for that.
    ///
    /// A folder that cannot be written keeps nothing from being served: what it holds, and what passes by.
    ///
    /// # Errors
    /// There is no such folder, and it cannot be made.
    pub fn open(data_dir: &Path, settings: CacheSettings) -> io::Result<&'static Store> {
        let seed = {
            use std::hash::{BuildHasher, Hasher};
            std::hash::RandomState::new().build_hasher().finish()
        };
        let store = Box::leak(Box::new(Store {
            disk: Disk::open(data_dir)?,
            memory: Memory::new(settings.memory_bytes),
            growing: Mutex::default(),
            settings,
            usage: Usage::load(data_dir.join("usage")),
            used: Mutex::default(),
            versions: std::array::from_fn(|_| AtomicU32::new(0)),
            evicting: Mutex::new(()),
            lengths: quick_cache::sync::Cache::new(MAX_LENGTHS),
            hangs_since: Mutex::new(None),
            sweeps: ArcSwap::default(),
            walking: tokio::sync::Mutex::new(()),
            trouble: Mutex::new(None),
            unstored: AtomicU64::new(0),
            damage: Mutex::new(None),
            lost: AtomicU64::new(0),
            unreadable: Cache::new(MAX_UNREADABLE),
            proven: Cache::new(MAX_PROVEN),
            scrub: Scrub::new(data_dir.join("scrubbed")),
            seed: AtomicU64::new(seed),
            observer: OnceLock::new(),
            backup: OnceLock::new(),
            closing: AtomicBool::new(false),
        }));
        let clock = Clock::open(data_dir, &data_dir.join("usage"));
        let hash = [0; 16];
        if let Err(error) = store.disk.probe(&hash) {
            store.note_failure(&error, &hash);
        }
        std::thread::Builder::new()
            .name("housekeeper".into())
            .spawn(|| store.keep_house(clock))?;
        std::thread::Builder::new()
            .name("recount".into())
            .spawn(|| store.recount())?;
        std::thread::Builder::new()
            .name("scrub".into())
            .spawn(|| store.keep_scrubbing(store.settings.scrub_rate))?;
        Ok(store)
    }

    /// Sets who is told of uses and evictions. Only the first call counts.
    pub fn observe(&self, observer: Box<dyn Observer>) {
        let _ = self.observer.set(observer);
    }

    /// Sets who copies what is stored into the bucket. Only the first call counts.
    pub fn back_up(&self, backup: Arc<dyn Backup>) {
        let _ = self.backup.set(backup);
    }

    /// Whether what is stored is to outlast a loss of power.
    pub fn is_synced(&self) -> bool {
        self.settings.sync
    }

    /// What is stored under `hash`, without counting it as a use or putting it into memory. Blocks.
    pub fn open_stored(&self, hash: &Hash) -> Option<Stored> {
        let (file, record) = self.load(hash)?;
        Some(Stored {
            key: Key {
                text: record.key_text.into(),
                hash: *hash,
            },
            id: record.id,
            head: record.head,
            finished: record.finished,
            class: record.class,
            checked_at: record.checked_at,
            fresh_until: record.fresh_until,
            backed_up: record.backed_up,
            file,
            offset: record.offset,
        })
    }

    /// Calls `visit` with all that was stored or used since, in no order, as long as it says so. Blocks, for as long as a
    /// walk takes.
    pub fn each_stored(&self, since: SystemTime, mut visit: impl FnMut(Stored) -> bool) {
        let walked = evict::each_hash_while(self.disk.root(), |hash| {
            let modified = fs::metadata(self.disk.path(&hash)).and_then(|meta| meta.modified());
            let is_old = modified.is_ok_and(|modified| modified < since);
            is_old || self.open_stored(&hash).is_none_or(&mut visit)
        });
        say_unlisted(walked);
    }

    /// Calls `visit` with the hash of all that is stored, without opening any of it, as long as it says so. Blocks, for as
    /// long as a walk takes.
    pub fn each_hash(&self, visit: impl FnMut(Hash) -> bool) {
        say_unlisted(evict::each_hash_while(self.disk.root(), visit));
    }

    /// Some of what is stored, of which `wanted` is true, by chance. Blocks.
    pub fn sample(&self, wanted: impl Fn(&Stored) -> bool) -> Option<Stored> {
        let candidates = evict::victims(self.disk.root(), self.random() as u16, |_| false);
        let mut stored = candidates
            .iter()
            .filter_map(|candidate| self.open_stored(&candidate.hash));
        stored.find(wanted)
    }

    /// Bytes that what is stored under `hash` takes on disk; 0 if nothing is. Blocks.
    pub fn size_of(&self, hash: &Hash) -> u64 {
        self.disk.size(hash).bytes
    }

    /// Whether nothing is stored under `hash`, as far as the disk answers. Blocks.
    pub fn is_missing(&self, hash: &Hash) -> bool {
        self.disk.is_missing(hash)
    }

    /// What stands in front of the body of `hash`, and the file. `None`: not stored, or not to be read.
    pub(super) fn load(&self, hash: &Hash) -> Option<(fs::File, Record)> {
        self.read(hash, self.disk.open_file(hash)?)
    }

    /// [`Store::load`], of the file that was opened. What is damaged is removed; a read that failed for want of memory, or
    /// because a network file system was away, says nothing of the file.
    fn read(&self, hash: &Hash, file: fs::File) -> Option<(fs::File, Record)> {
        match disk::read_record(&file) {
            Ok(record) => {
                let unreadable = self.is_unreadable(record.id);
                (!unreadable).then_some((file, record))
            }
            // One of its readers has said so, and it is on its way out.
            Err(_) if disk::id_of(&file).is_some_and(|id| self.is_unreadable(id)) => None,
            Err(error) if disk::is_damage(&error) => {
                self.discard(hash, &file, None, &error.to_string());
                None
            }
            Err(error) => {
                tracing::warn!(hash = %super::hex(hash), %error, "a stored object cannot be read now: it stays, and is tried again");
                None
            }
        }
    }

    fn is_unreadable(&self, id: u64) -> bool {
        let until = self.unreadable.get(&id);
        until.is_some_and(|until| until.is_none_or(|until| Instant::now() < until))
    }

    /// Whether the body of `stored` is what it was when it was stored; one that is not is removed. `read` is told of the bytes
    /// that were read, and may make it wait. Blocks.
    ///
    /// # Errors
    /// The body cannot be read now, which may pass: it stays.
    pub fn is_intact(&self, stored: &Stored, read: impl FnMut(u64)) -> io::Result<bool> {
        let why = match disk::is_intact(&stored.file, stored.offset, &stored.finished, read) {
            Ok(true) => return Ok(true),
            Ok(false) => "its body does not match its digest".to_owned(),
            Err(error) if disk::is_damage(&error) => error.to_string(),
            Err(error) => return Err(error),
        };
        self.discard(&stored.key.hash, &stored.file, Some(&stored.key.text), &why);
        Ok(false)
    }

    /// The body of `object` cannot be read to its end, or is not what was stored: it is not served to anybody else.
    pub(super) fn lose(&'static self, object: &Arc<Object>, why: &str) {
        let hash = object.key.hash;
        if !object.is_complete() {
            object.doom();
            let mut growing = self.growing.lock();
            if growing.get(&hash).is_some_and(|current| Arc::ptr_eq(current, object)) {
                growing.remove(&hash);
                drop(growing);
                self.say_damaged(&shown(&object.key), why);
            }
            return;
        }
        // One of its readers is the first.
        if object.doomed.swap(true, SeqCst) || self.is_unreadable(object.id) {
            return;
        }
        self.forget_body(object, None);
        self.say_damaged(&shown(&object.key), why);
        let object = Arc::clone(object);
        tokio::task::spawn_blocking(move || {
            if let Body::File { file, .. } = &object.body {
                self.drop_file(&hash, file, Some(&object.key.text));
            }
        });
    }

    /// The body of `object` cannot be read just now, for a reason that may pass: its file stays, and is opened anew a little
    /// later. Until then whoever asks has it fetched again.
    pub(super) fn put_aside(&self, object: &Arc<Object>, why: &io::Error) {
        if why.kind() == io::ErrorKind::OutOfMemory || object.doomed.swap(true, SeqCst) || self.is_unreadable(object.id)
        {
            return;
        }
        self.forget_body(object, Some(Instant::now() + DISK_PAUSE));
        tracing::warn!(key = %shown(&object.key), %why, "a stored object cannot be read now: it stays, and is tried again");
    }

    /// From now on `object` is found neither in memory nor, before `until`, on disk.
    fn forget_body(&self, object: &Object, until: Option<Instant>) {
        let hash = &object.key.hash;
        self.unreadable.insert(object.id, until);
        self.proven.remove(&object.id);
        self.version(hash).fetch_add(1, SeqCst);
        self.memory.forget(hash, object.id);
    }

    /// Removes what is stored in `file` under `hash`, because it is damaged or cannot be read, and says so. Blocks.
    fn discard(&self, hash: &Hash, file: &fs::File, key: Option<&str>, why: &str) {
        let named = key.map_or_else(|| super::hex(hash), |key| shown(&Key::from_text(key)));
        if self.drop_file(hash, file, key) {
            self.say_damaged(&named, why);
        }
    }

    /// Removes what is stored in `file` under `hash`; whether it still was. Blocks.
    fn drop_file(&self, hash: &Hash, file: &fs::File, key: Option<&str>) -> bool {
        let backed_up = disk::read_record(file).is_ok_and(|record| record.backed_up);
        let change = self.usage.change(hash);
        let removed = self.disk.remove(hash, Some(file));
        let was_there = removed.as_ref().map_or(true, |amount| amount.files > 0);
        if !was_there && self.disk.size(hash).files > 0 {
            // What has taken its place is another object.
            return false;
        }
        self.version(hash).fetch_add(1, SeqCst);
        self.memory.remove(hash);
        match removed {
            Ok(amount) => change.removed(amount),
            Err(error) => tracing::error!(hash = %super::hex(hash), %error, "a damaged file could not be removed"),
        }
        self.is_removed(hash);
        if let (Some(observer), Some(key)) = (self.observer.get(), key) {
            observer.lost(key, backed_up);
        }
        was_there
    }

    fn say_damaged(&self, key: &str, why: &str) {
        tracing::error!(
            key,
            why,
            "A STORED FILE IS DAMAGED OR CANNOT BE READ: it is dropped, and fetched again when it is asked for; see to the disk"
        );
        self.lost.fetch_add(1, Relaxed);
        *self.damage.lock() = Some((Instant::now(), format!("{key}: {why}")));
    }

    /// Notes whether the bucket has what is stored under `hash`, if that still is the body with `id`. Blocks.
    pub fn mark_backed_up(&self, hash: &Hash, id: u64, backed_up: bool) {
        // If it cannot be noted, the catalogue believes it gone when it is evicted.
        if let Err(error) = self.disk.mark_backed_up(hash, id, backed_up) {
            tracing::debug!(%error, "it could not be noted whether an object is in the bucket");
        }
    }

    fn random(&self) -> u64 {
        // SplitMix64: spread is all that is asked of it.
        let mut z = self.seed.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The complete object of `key`, if it is in memory.
    pub fn in_memory(&self, key: &Key) -> Option<Arc<Object>> {
        self.memory
            .get(&key.hash)
            .filter(|object| object.key.text == key.text && !self.belongs_in_memory(object))
    }

    /// Finds the object of `key`: growing, in memory, or on disk.
    pub async fn open_object(&'static self, key: &Key) -> Option<Arc<Object>> {
        match self.joinable(&key.hash).await {
            Some(growing) => Some(growing),
            None => self.stored(key).await,
        }
    }

    /// The growing object of `hash`, for whoever asks now. One that has arrived whole and is expired by now brings nobody
    /// what upstream has now: it is waited for, until it is stored.
    pub async fn joinable(&self, hash: &Hash) -> Option<Arc<Object>> {
        let growing = self.growing(hash)?;
        let is_over = growing.has_arrived() && growing.fresh.fresh_until() <= super::now_ms();
        let stored = is_over && tokio::time::timeout(DISK_LIMIT, growing.settled()).await.is_ok();
        (!stored).then_some(growing)
    }

    /// The growing object of `key`, if one grows.
    pub fn growing(&self, hash: &Hash) -> Option<Arc<Object>> {
        self.growing.lock().get(hash).cloned()
    }

    /// Finds the complete object of `key`, passing by one that grows to replace it.
    pub async fn stored(&'static self, key: &Key) -> Option<Arc<Object>> {
        if let Some(object) = self.memory.get(&key.hash) {
            if object.key.text != key.text {
                return None;
            }
            return match self.belongs_in_memory(&object) {
                true => self.promote(object).await,
                false => Some(object),
            };
        }
        let (hash, text) = (key.hash, Arc::clone(&key.text));
        let before = self.version(&hash).load(SeqCst);
        let read = move || {
            let (file, mut record) = self.load(&hash)?;
            let found = record.key_text == *text && self.survives_sweeps(&hash, &mut record);
            found.then_some((file, record))
        };
        // Off this thread: a file system that hangs must not stop whoever is served by it.
        let (file, record) = self.patiently(read).await??;
        let object = Arc::new(self.loaded(key.clone(), file, record));
        let object = self.in_memory_if_small(object).await?;
        self.remember(&object, before);
        if let Some(observer) = self.observer.get() {
            observer.found(&object);
        }
        Some(object)
    }

    /// Does what the disk has to answer, off this thread. `None`: it does not answer, now or since a moment ago, and is not
    /// waited for.
    async fn patiently<T: Send + 'static>(&'static self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        match self.hangs() {
            true => None,
            false => self.in_time(tokio::task::spawn_blocking(work)).await,
        }
    }

    /// Whether the disk did not answer a moment ago.
    fn hangs(&self) -> bool {
        let since = *self.hangs_since.lock();
        since.is_some_and(|since| since.elapsed() < DISK_PAUSE)
    }

    async fn in_time<T>(&self, working: tokio::task::JoinHandle<T>) -> Option<T> {
        match tokio::time::timeout(DISK_LIMIT, working).await {
            Ok(done) => done.ok(),
            Err(_) => {
                *self.hangs_since.lock() = Some(Instant::now());
                self.say_starved("the disk did not answer in time", None);
                None
            }
        }
    }

    /// Does what has to be done on the disk sooner or later, off this thread. `None`: it is not done yet, and is not waited
    /// for.
    async fn eventually<T: Send + 'static>(&'static self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let working = tokio::task::spawn_blocking(work);
        match self.hangs() {
            true => None,
            false => self.in_time(working).await,
        }
    }

    /// Whether the body is in a file and small enough for memory.
    fn belongs_in_memory(&self, object: &Object) -> bool {
        match (&object.body, object.finished()) {
            (Body::File { .. }, Some(finished)) => finished.length <= self.memory.largest,
            _ => false,
        }
    }

    async fn promote(&'static self, object: Arc<Object>) -> Option<Arc<Object>> {
        let before = self.version(&object.key.hash).load(SeqCst);
        let promoted = self.in_memory_if_small(Arc::clone(&object)).await?;
        if !Arc::ptr_eq(&promoted, &object) {
            self.remember(&promoted, before);
        }
        Some(promoted)
    }

    /// Counts changes of what is stored near `hash`.
    pub(super) fn version(&self, hash: &Hash) -> &AtomicU32 {
        &self.versions[usize::from(hash[0])]
    }

    /// Puts what was read from disk into memory, unless it may have been flushed or replaced meanwhile.
    fn remember(&self, object: &Arc<Object>, before: u32) {
        self.memory.insert(Arc::clone(object));
        if self.version(&object.key.hash).load(SeqCst) != before {
            self.memory.remove(&object.key.hash);
        }
    }

    /// A copy of `object` whose body is in memory, where it is small enough. `None`: it cannot be read, or is not what was
    /// stored.
    async fn in_memory_if_small(&'static self, object: Arc<Object>) -> Option<Arc<Object>> {
        let Some(finished) = object
            .finished()
            .filter(|finished| finished.length <= self.memory.largest)
        else {
            return Some(object);
        };
        let reader = super::Reader::new(Arc::clone(&object));
        let bytes = match reader.proving().collect(finished.length as usize).await {
            Ok(bytes) if bytes.len() as u64 == finished.length => bytes,
            Ok(_) | Err(ReadError::GivenUp) => return Some(object),
            Err(_) => return None,
        };
        let (key, head, fresh) = (object.key.clone(), object.head.clone(), Arc::clone(&object.fresh));
        let body = super::memory::body(bytes);
        let in_memory = Object::new(key, object.id, head, fresh, body, object.origin());
        Some(Arc::new(in_memory.complete(finished, true).kept_by(self)))
    }

    /// Counts a use of `object`, for eviction and the catalogue. Cheap: the first use since the last sweep queues the
    /// object, further ones only count.
    pub fn count_use(&self, object: &Arc<Object>) {
        if object.uses.fetch_add(1, Relaxed) > 0 {
            return;
        }
        match self.used.try_lock() {
            Some(mut used) if used.len() < MAX_USED => used.push((object.key.clone(), Arc::clone(&object.uses))),
            // The next use tries again.
            _ => object.uses.store(0, Relaxed),
        }
    }

    /// Starts an object: reserves its space and shows it to others as growing.
    ///
    /// # Errors
    /// There is no space, or the disk fails: the answer then passes by unstored.
    pub async fn create(
        &'static self,
        key: Key,
        head: Head,
        freshness: (Class, Millis, Millis),
        previous: Option<Arc<Object>>,
        expected: Option<Expected>,
        document: bool,
    ) -> Result<Writer, NoSpace> {
        let particulars = (freshness, Origin::Upstream);
        self.start(key, head, particulars, previous, expected, (document, true))
            .await
    }

    /// [`Store::create`], for what the bucket or another node has.
    ///
    /// # Errors
    /// As [`Store::create`].
    pub async fn restore(
        &'static self,
        key: Key,
        head: Head,
        particulars: ((Class, Millis, Millis), Origin),
        previous: Option<Arc<Object>>,
        expected: Option<Expected>,
    ) -> Result<Writer, NoSpace> {
        self.start(key, head, particulars, previous, expected, (true, true))
            .await
    }

    /// [`Store::restore`], of what clients are not to get before it is complete.
    ///
    /// # Errors
    /// As [`Store::create`].
    pub async fn restore_hidden(
        &'static self,
        key: Key,
        head: Head,
        particulars: ((Class, Millis, Millis), Origin),
        expected: Option<Expected>,
    ) -> Result<Writer, NoSpace> {
        self.start(key, head, particulars, None, expected, (true, false)).await
    }

    async fn start(
        &'static self,
        key: Key,
        head: Head,
        ((class, checked_at, fresh_until), origin): ((Class, Millis, Millis), Origin),
        previous: Option<Arc<Object>>,
        expected: Option<Expected>,
        (document, is_shown): (bool, bool),
    ) -> Result<Writer, NoSpace> {
        let id = self.random();
        let encoded = disk::encode(&key.text, id, &head, None, (class, checked_at, fresh_until), false)?;
        let offset = encoded.len() as u64;
        let length = match (head.content_length, self.length_of(&key.hash)) {
            (Some(length), _) => Length::Said(length),
            (None, Some(length)) => length,
            (None, None) => match previous.as_ref().and_then(|previous| previous.length()) {
                Some(length) => Length::About(length),
                None => Length::Unknown,
            },
        };
        let overflow = Overflow::default();
        let (file, body, space) = match self.open_new(key.hash, encoded, length, document).await {
            Ok((unnamed, file, space)) => (Some(unnamed), Body::File { file, offset }, space),
            // What is short enough is shared from memory while it is read, and not kept.
            Err(why) if head.content_length.map_or(document, overflow::has_room_for) => {
                tracing::debug!(key = %shown(&key), %why, "an answer is held in memory instead of being stored");
                overflow.begin(0);
                (None, Body::Memory(bytes::Bytes::new(), None), Space::default())
            }
            Err(why) => return Err(why),
        };
        let kept = file.is_some() && !head.unframed;
        let fresh = Arc::new(Freshness::new(class, checked_at, fresh_until));
        let object = Object::new(key, id, head, fresh, body, origin)
            .growing(overflow)
            .kept_by(self);
        if !kept {
            object.doom();
        }
        let object = Arc::new(object);
        if is_shown {
            self.growing.lock().insert(object.key.hash, Arc::clone(&object));
        }
        Ok(Writer::new(self, object, file, previous, expected, space))
    }

    /// A new file with its space reserved and counted.
    async fn open_new(
        &'static self,
        hash: Hash,
        encoded: Vec<u8>,
        length: Length,
        document: bool,
    ) -> Result<(disk::Unnamed, fs::File, Space), NoSpace> {
        let opened = self
            .patiently(move || {
                let space = self.space_for(encoded.len() as u64, length, document)?;
                let reserved = Reserved(self, space.reserved);
                let create = || {
                    let unnamed = self.disk.create(space.reserved)?;
                    self.disk.begin(&unnamed.file, &encoded)?;
                    let reading = unnamed.file.try_clone()?;
                    Ok::<_, io::Error>((unnamed, reading))
                };
                let (unnamed, reading) = create().inspect_err(|error| self.note_failure(error, &hash))?;
                Ok((unnamed, reading, space, reserved))
            })
            .await;
        let opened = opened.unwrap_or_else(|| Err(NoSpace::Io(io::ErrorKind::TimedOut.into())));
        let (unnamed, reading, space, mut reserved) = opened?;
        // The writer's from now on.
        reserved.1 = 0;
        Ok((unnamed, reading, space))
    }

    /// Reserves space for a body that begins at `offset` of its file. Of a body whose length is not known only what stands
    /// before it, and where there is no free room nothing yet: the file waits for what the end of the body tells.
    fn space_for(&'static self, offset: u64, length: Length, document: bool) -> Result<Space, NoSpace> {
        let occupied = |length: u64| disk::occupied(offset.saturating_add(length));
        let (reserve, evicts_to) = match length {
            Length::Said(length) => {
                let reserved = occupied(length);
                self.reserve(reserved, Room::Made)?;
                let evicts_to = reserved;
                return Ok(Space {
                    offset,
                    reserved,
                    evicts_to,
                });
            }
            Length::About(length) if self.can_make_room(occupied(length)) => (occupied(0), occupied(length)),
            // What another try would only push through again, whoever wants it fetches for himself.
            Length::About(_) | Length::Passing if !document => return Err(NoSpace::TooLong),
            Length::About(_) | Length::Passing | Length::Unknown => (occupied(0), 0),
        };
        let reserved = match self.reserve(reserve, Room::Free) {
            Ok(()) => reserve,
            Err(_) if self.can_make_room(reserve) => 0,
            Err(why) => {
                self.say_starved(&why.to_string(), None);
                return Err(why);
            }
        };
        Ok(Space {
            offset,
            reserved,
            evicts_to,
        })
    }

    fn length_of(&self, hash: &Hash) -> Option<Length> {
        let (at, length) = self.lengths.get(hash)?;
        let limit = match length {
            Length::Passing => PASSING_LIMIT,
            _ => LENGTH_LIMIT,
        };
        (at.elapsed() < limit).then_some(length)
    }

    /// What is about to be stored under `hash`, and comes without a length, is about so long: room may be made for as much.
    pub fn expect_length(&self, hash: &Hash, length: u64) {
        self.lengths.insert(*hash, (Instant::now(), Length::About(length)));
    }

    /// `object` is longer than what can be held and passes through: nobody begins to read it any more.
    pub(super) fn passes(&self, object: &Arc<Object>) {
        object.doomed.store(true, SeqCst);
        self.lengths.insert(object.key.hash, (Instant::now(), Length::Passing));
        self.hide(object);
    }

    /// Gives a complete object its place; `false` if it was flushed meanwhile. Called by its writer only.
    pub(super) async fn admit(
        &'static self,
        object: &Arc<Object>,
        file: &mut disk::Unnamed,
        finished: Finished,
        offset: u64,
    ) -> Result<bool, String> {
        let fresh = &object.fresh;
        let backed_up = object.origin() == Origin::Bucket;
        let preamble = disk::encode(
            &object.key.text,
            object.id,
            &object.head,
            Some(finished),
            (fresh.class(), fresh.checked_at(), fresh.fresh_until()),
            backed_up,
        )
        .map_err(|error| error.to_string())?;
        let mut taken = disk::Unnamed::take(file).map_err(|error| error.to_string())?;
        let hash = object.key.hash;
        let is_new = object.key.is_shared() && object.origin() == Origin::Upstream;
        let backup = self.backup.get().filter(|_| is_new);
        let published = tokio::task::spawn_blocking(move || {
            use std::os::unix::fs::FileExt;
            taken.file.write_all_at(&preamble, 0)?;
            // Gives back what was reserved beyond the body, and makes an empty body's file long enough.
            taken.file.set_len(offset + finished.length)?;
            let change = self.usage.change(&hash);
            let replaced = self.disk.size(&hash);
            // Before it can be found: nothing is stored that a crash keeps from the bucket.
            let published = match backup.map_or(Ok(()), |backup| backup.admitting(&hash)) {
                Ok(()) => self.disk.publish(&mut taken, &hash, self.settings.sync),
                Err(error) => Err(error),
            };
            if let Some(backup) = backup {
                backup.admitted(&hash, disk::occupied(offset + finished.length));
            }
            let folders = published?;
            change.removed(replaced);
            change.stored(Amount::of_file(offset + finished.length) + folders);
            Ok::<_, io::Error>(())
        })
        .await;
        match published {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                self.note_failure(&error, &hash);
                return Err(format!("storing it failed: {error}"));
            }
            Err(_) => return Err("storing it was given up".to_owned()),
        }
        // A flush that came while it was given its name found nothing to remove.
        if object.doomed.load(SeqCst) {
            let change = self.usage.change(&hash);
            change.removed(self.disk.remove(&hash, None).unwrap_or_default());
            self.is_removed(&hash);
            return Ok(false);
        }
        Ok(true)
    }

    /// Ends the growing of `object`: readers that come now find it complete, or not at all. Called by its writer only.
    pub(super) fn settle(&self, object: &Arc<Object>, admitted: bool) {
        if admitted {
            self.version(&object.key.hash).fetch_add(1, SeqCst);
            self.memory.insert(Arc::clone(object));
        }
        self.hide(object);
    }

    /// Whoever looks for what grows does not find `object` any more.
    fn hide(&self, object: &Arc<Object>) {
        let mut growing = self.growing.lock();
        if growing
            .get(&object.key.hash)
            .is_some_and(|current| Arc::ptr_eq(current, object))
        {
            growing.remove(&object.key.hash);
        }
    }

    /// [`Store::hide`], if only its writer holds it beside the list of what grows. `false`: others do.
    pub(super) fn hide_if_alone(&self, object: &Arc<Object>) -> bool {
        let mut growing = self.growing.lock();
        let hash = &object.key.hash;
        let is_listed = growing.get(hash).is_some_and(|current| Arc::ptr_eq(current, object));
        // Under the lock nobody gets it from the list.
        let is_alone = Arc::strong_count(object) <= 1 + usize::from(is_listed);
        if is_alone && is_listed {
            growing.remove(hash);
        }
        is_alone
    }

    /// Notes that `object` is upstream's current one until `fresh_until`. `false`: it is no longer on disk.
    pub async fn refresh(
        &'static self,
        object: &Arc<Object>,
        class: Class,
        checked_at: Millis,
        fresh_until: Millis,
    ) -> bool {
        object.fresh.set(class, checked_at, fresh_until);
        let (hash, id) = (object.key.hash, object.id);
        let written = self
            .patiently(move || self.disk.refresh(&hash, id, class, checked_at, fresh_until))
            .await;
        self.version(&hash).fetch_add(1, SeqCst);
        // The memory tier may hold a copy of the same body that was read from disk a moment ago.
        if let Some(hot) = self.memory.get(&hash).filter(|hot| hot.id == id) {
            hot.fresh.set(class, checked_at, fresh_until);
        }
        match written {
            Some(Ok(there)) => there,
            Some(Err(error)) => {
                // The copy in memory knows; after a restart the object merely counts as expired earlier.
                tracing::debug!(%error, "a refresh could not be written");
                self.note_failure(&error, &hash);
                true
            }
            None => true,
        }
    }

    /// Marks the object of `hash` expired; its body stays. Whether there was one.
    pub async fn expire(&'static self, hash: Hash) -> bool {
        let now = super::now_ms();
        if let Some(growing) = self.growing(&hash) {
            growing.fresh.expire(now);
        }
        if let Some(hot) = self.memory.get(&hash) {
            hot.fresh.expire(now);
        }
        let expired = self.eventually(move || self.expire_stored(&hash, now)).await;
        expired.unwrap_or(false)
    }

    /// [`Store::expire`] of what is complete, on this thread.
    pub fn expire_stored(&self, hash: &Hash, now: Millis) -> bool {
        self.try_expire(hash, now).unwrap_or(false)
    }

    /// [`Store::expire_stored`].
    ///
    /// # Errors
    /// What is on disk is as fresh as before.
    pub(super) fn try_expire(&self, hash: &Hash, now: Millis) -> io::Result<bool> {
        let expired = self.load(hash).map_or(Ok(false), |(_, record)| {
            let until = now.min(record.fresh_until);
            self.disk
                .refresh(hash, record.id, record.class, record.checked_at, until)
        });
        self.version(hash).fetch_add(1, SeqCst);
        if let Some(hot) = self.memory.get(hash) {
            hot.fresh.expire(now);
        }
        expired
    }

    /// Another node's word on what is under `hash`: the content of `identity` is upstream's current one. What is stored
    /// here and is that is fresh as it says, anything else is expired.
    pub fn adopt(&self, hash: &Hash, identity: u64, (class, checked_at, until): (Class, Millis, Millis)) {
        let Some((_, record)) = self.load(hash) else {
            return;
        };
        let same = super::identity(&record.finished, record.head.stands_for.as_ref()) == identity;
        if !same {
            self.expire_stored(hash, super::now_ms());
            return;
        }
        if checked_at >= record.checked_at {
            let _ = self.disk.refresh(hash, record.id, class, checked_at, until);
        }
        self.version(hash).fetch_add(1, SeqCst);
        if let Some(hot) = self.memory.get(hash).filter(|hot| hot.id == record.id)
            && checked_at >= hot.fresh.checked_at()
        {
            hot.fresh.set(class, checked_at, until);
        }
    }

    /// What grows under `hash` may be read to its end by those who do, and is not kept.
    pub fn forsake(&self, hash: &Hash) {
        if let Some(growing) = self.growing.lock().remove(hash) {
            growing.doomed.store(true, SeqCst);
        }
    }

    /// Removes the object of `hash`; one that grows ends unadmitted. The bytes freed.
    pub async fn remove(&'static self, hash: Hash) -> u64 {
        self.forsake(&hash);
        self.version(&hash).fetch_add(1, SeqCst);
        self.memory.remove(&hash);
        let freed = self.eventually(move || self.remove_stored(&hash)).await;
        freed.unwrap_or(0)
    }

    /// [`Store::remove`] of what is complete, on this thread.
    pub fn remove_stored(&self, hash: &Hash) -> u64 {
        self.try_remove(hash).unwrap_or(0)
    }

    /// [`Store::remove_stored`].
    ///
    /// # Errors
    /// The file stays.
    pub(super) fn try_remove(&self, hash: &Hash) -> io::Result<u64> {
        let change = self.usage.change(hash);
        let freed = self.disk.remove(hash, None);
        self.version(hash).fetch_add(1, SeqCst);
        self.memory.remove(hash);
        self.is_removed(hash);
        match freed {
            Ok(amount) => {
                change.removed(amount);
                Ok(amount.bytes)
            }
            Err(error) => {
                tracing::warn!(%error, hash = %super::hex(hash), "an object could not be removed");
                Err(error)
            }
        }
    }

    fn is_removed(&self, hash: &Hash) {
        if let Some(backup) = self.backup.get() {
            backup.removed(hash);
        }
    }

    /// The id of what is stored under `hash`.
    pub async fn id_of(&'static self, hash: Hash) -> Option<u64> {
        if let Some(object) = self.memory.get(&hash) {
            return Some(object.id);
        }
        tokio::task::spawn_blocking(move || self.load(&hash).map(|(_, record)| record.id))
            .await
            .ok()?
    }

    /// The keys of all objects that grow now.
    pub fn growing_keys(&self) -> Vec<Key> {
        self.growing.lock().values().map(|object| object.key.clone()).collect()
    }

    /// Removes every object whose key `matches`: a walk over the whole disk tier, for a flush that the catalogue cannot
    /// serve.
    pub async fn remove_where(&'static self, matches: impl Fn(&str) -> bool + Send + 'static) -> Walked {
        for key in self.growing_keys() {
            if matches(&key.text)
                && let Some(growing) = self.growing.lock().remove(&key.hash)
            {
                growing.doomed.store(true, SeqCst);
            }
        }
        self.walk(matches, |store, hash, _| {
            let change = store.usage.change(&hash);
            let freed = store.disk.remove(&hash, None)?;
            store.version(&hash).fetch_add(1, SeqCst);
            store.memory.remove(&hash);
            change.removed(freed);
            store.is_removed(&hash);
            Ok(freed.bytes)
        })
        .await
    }

    /// Expires every object whose key `matches`, by a walk.
    pub async fn expire_where(&'static self, matches: impl Fn(&str) -> bool + Send + 'static) -> Walked {
        self.walk(matches, |store, hash, record| {
            let now = super::now_ms();
            if let Some(hot) = store.memory.get(&hash) {
                hot.fresh.expire(now);
            }
            let until = now.min(record.fresh_until);
            store
                .disk
                .refresh(&hash, record.id, record.class, record.checked_at, until)
                .map(|_| 0)
        })
        .await
    }

    pub(super) async fn walk(
        &'static self,
        matches: impl Fn(&str) -> bool + Send + 'static,
        act: impl Fn(&Store, Hash, &Record) -> io::Result<u64> + Send + 'static,
    ) -> Walked {
        tokio::task::spawn_blocking(move || {
            let mut found = Walked::default();
            let walked = evict::each_hash_while(self.disk.root(), |hash| {
                if let Some((_, record)) = self.load(&hash)
                    && matches(&record.key_text)
                {
                    match act(self, hash, &record) {
                        Ok(freed) => {
                            found.count += 1;
                            found.bytes += freed;
                        }
                        Err(_) => found.refused += 1,
                    }
                }
                true
            });
            say_unlisted(walked);
            found
        })
        .await
        .unwrap_or_default()
    }

    /// Makes sure that the file of `object` has space up to `end`; `reserved` is what it has.
    pub(super) async fn room_for(
        &'static self,
        object: &Arc<Object>,
        end: u64,
        reserved: &mut u64,
        room: Room,
    ) -> io::Result<()> {
        let needed = disk::occupied(end);
        let from = *reserved;
        let Some(more) = needed.checked_sub(from).filter(|more| *more > 0) else {
            return Ok(());
        };
        let object = Arc::clone(object);
        let had = tokio::task::spawn_blocking(move || {
            let Body::File { file, .. } = &object.body else {
                return Err(io::ErrorKind::Unsupported.into());
            };
            self.reserve(more, room).map_err(io::Error::other)?;
            disk::allocate(file, from, more).inspect_err(|_| self.release(more))
        });
        had.await
            .unwrap_or_else(|_| Err(io::Error::other("making room was given up")))?;
        *reserved += more;
        Ok(())
    }

    /// Counts `bytes` as used, making room where there is too little and that is allowed. Blocks.
    fn reserve(&'static self, bytes: u64, room: Room) -> Result<(), NoSpace> {
        let limit = self.settings.disk_bytes;
        let bound = NoSpace::Bound { needed: bytes, limit };
        // Not counted, so that others do not make room for it in vain.
        if bytes > limit.saturating_sub(self.pinned()) {
            if room == Room::Made && bytes <= limit {
                self.say_starved(&bound.to_string(), None);
            }
            return Err(bound);
        }
        // Counted first: those who reserve at the same time see each other.
        self.usage.reserve(bytes);
        let short = self.short_of_free_space(bytes);
        if self.usage.total() <= limit && short.is_none() {
            return Ok(());
        }
        let made = match (room, short) {
            (Room::Made, _) => self.make_room(bytes),
            (Room::Free, Some(short)) => Err(short.error(Amount::default())),
            (Room::Free, None) => Err(bound),
        };
        made.inspect_err(|_| self.usage.release(bytes))
    }

    /// Bytes that eviction cannot free: what grows, and what waits to be uploaded.
    fn pinned(&self) -> u64 {
        let waiting = self.backup.get().map_or(0, |backup| backup.waiting_bytes());
        self.usage.total().saturating_sub(self.usage.evictable().bytes) + waiting
    }

    /// Whether a file of `bytes` could ever be within the bound.
    pub(super) fn could_fit(&self, bytes: u64) -> bool {
        bytes <= self.settings.disk_bytes.saturating_sub(self.pinned())
    }

    /// Whether eviction could make room for a file of `bytes` more.
    fn can_make_room(&self, bytes: u64) -> bool {
        let short = self.short_of_free_space(bytes);
        let missing = short.map_or(Amount::default(), |short| short.missing);
        let waiting = self.backup.get().map_or(0, |backup| backup.waiting_bytes());
        let evictable = self.usage.evictable();
        self.could_fit(bytes)
            && missing.bytes <= evictable.bytes.saturating_sub(waiting)
            && missing.files <= evictable.files
    }

    /// Gives back bytes that were counted.
    pub(super) fn release(&self, bytes: u64) {
        self.usage.release(bytes);
    }

    /// What is missing where a file of `bytes` more would eat into what must stay free.
    fn short_of_free_space(&self, bytes: u64) -> Option<Short> {
        let space = self.disk.space().ok()?;
        let share = |whole: u64| match self.settings.disk_min_free {
            MinFree::Bytes(_) => 0,
            MinFree::Percent(percent) => (whole as f64 * percent / 100.0) as u64,
        };
        let kept = Amount {
            bytes: match self.settings.disk_min_free {
                MinFree::Bytes(kept) => kept,
                MinFree::Percent(_) => share(space.whole.bytes),
            },
            files: share(space.whole.files),
        };
        let missing = Amount {
            bytes: kept.bytes.saturating_add(bytes).saturating_sub(space.free.bytes),
            files: match space.whole.files {
                // As many as there are bytes for.
                0 => 0,
                _ => (kept.files + FILES).saturating_sub(space.free.files),
            },
        };
        (missing != Amount::default()).then_some(Short {
            missing,
            free: space.free,
            kept,
        })
    }

    /// Evicts until the bound holds and a file of `bytes` more leaves free what must stay free. Evicts nothing for what cannot
    /// be had.
    fn make_room(&'static self, bytes: u64) -> Result<(), NoSpace> {
        let _one_at_a_time = self.evicting.lock();
        let limit = self.settings.disk_bytes;
        self.write_uses();
        let over = || self.usage.total().saturating_sub(limit);
        let short = self.short_of_free_space(bytes);
        let missing = short.as_ref().map_or(Amount::default(), |short| short.missing);
        // Some file systems give space back late, and files still read give none: what was freed is counted here.
        let mut freed = Amount::default();
        let mut fruitless = 0;
        // What waits to be uploaded stays, however short space is.
        let waiting = self.backup.get().map_or(0, |backup| backup.waiting_bytes());
        let evictable = self.usage.evictable();
        let possible =
            over().max(missing.bytes) <= evictable.bytes.saturating_sub(waiting) && missing.files <= evictable.files;
        while possible && fruitless <= 3 {
            let wanted = Amount {
                bytes: over().max(missing.bytes.saturating_sub(freed.bytes)),
                files: missing.files.saturating_sub(freed.files),
            };
            if wanted == Amount::default() {
                return Ok(());
            }
            match self.evict(wanted) {
                Amount { files: 0, .. } => fruitless += 1,
                amount => freed = freed + amount,
            }
        }
        let error = match short {
            Some(short) if over() == 0 => short.error(freed),
            _ => NoSpace::Bound { needed: bytes, limit },
        };
        self.say_starved(&error.to_string(), None);
        Err(error)
    }

    fn evict(&self, wanted: Amount) -> Amount {
        let mut freed = Amount::default();
        let backup = self.backup.get();
        let spared = |hash: &Hash| backup.is_some_and(|backup| backup.is_waiting(hash));
        for candidate in evict::victims(self.disk.root(), self.random() as u16, spared) {
            if freed.bytes >= wanted.bytes && freed.files >= wanted.files {
                break;
            }
            let record = self.load(&candidate.hash).map(|(_, record)| record);
            let mut gone = false;
            let change = self.usage.change(&candidate.hash);
            let mut remove = || gone = fs::remove_file(&candidate.path).is_ok();
            match backup {
                Some(backup) => backup.unless_waiting(&candidate.hash, &mut remove),
                None => remove(),
            }
            if !gone {
                continue;
            }
            let amount = candidate.size + self.disk.prune(&candidate.hash);
            self.version(&candidate.hash).fetch_add(1, SeqCst);
            self.memory.remove(&candidate.hash);
            change.removed(amount);
            freed = freed + amount;
            if let (Some(observer), Some(record)) = (self.observer.get(), record) {
                observer.evicted(&record.key_text, amount.bytes, record.backed_up);
            }
        }
        freed
    }

    /// Storing something under `hash` failed, and not for lack of space.
    pub(super) fn note_failure(&self, error: &io::Error, hash: &Hash) {
        self.say_starved(&error.to_string(), Some(*hash));
    }

    fn say_starved(&self, why: &str, probe: Option<Hash>) {
        self.unstored.fetch_add(1, Relaxed);
        let mut trouble = self.trouble.lock();
        let quiet = trouble
            .as_ref()
            .is_some_and(|trouble| trouble.last.elapsed() < Duration::from_secs(10));
        if !quiet {
            tracing::error!(
                why,
                "NOTHING CAN BE STORED: answers pass by uncached until it can again"
            );
        }
        *trouble = Some(Trouble {
            last: Instant::now(),
            why: why.to_owned(),
            probe,
        });
    }

    /// Looks whether what failed can be done again.
    fn probe(&self) {
        let Some(hash) = self.trouble.lock().as_ref().and_then(|trouble| trouble.probe) else {
            return;
        };
        let probed = self.disk.probe(&hash);
        let mut trouble = self.trouble.lock();
        match (probed, &mut *trouble) {
            (Ok(()), Some(Trouble { probe: Some(_), .. })) => {
                *trouble = None;
                tracing::info!("things can be stored again");
            }
            (Err(error), Some(trouble)) => {
                trouble.last = Instant::now();
                trouble.why = error.to_string();
            }
            _ => {}
        }
    }

    pub fn stats(&self) -> StoreStats {
        let trouble = self.trouble.lock();
        let starved = trouble
            .as_ref()
            .filter(|trouble| trouble.last.elapsed() < Duration::from_secs(60))
            .map(|trouble| trouble.why.clone());
        drop(trouble);
        let damage = self.damage.lock().clone();
        StoreStats {
            disk_bytes: self.usage.total(),
            disk_limit: self.settings.disk_bytes,
            memory_bytes: self.memory.weight(),
            memory_items: self.memory.len(),
            growing: self.growing.lock().len(),
            starved,
            unstored: self.unstored.load(Relaxed),
            damaged: damage
                .filter(|(since, _)| since.elapsed() < DAMAGE_TOLD)
                .map(|(_, which)| which),
            lost: self.lost.load(Relaxed),
            scrubbed: self.scrub.progress(),
        }
    }

    fn keep_house(&'static self, mut clock: Clock) {
        let mut saved = u64::MAX;
        while !self.is_closing() {
            std::thread::sleep(HOUSEKEEPING);
            clock.watch();
            self.write_uses();
            self.probe();
            self.disk.sweep_temporary();
            let used = self.usage.total();
            if used > self.settings.disk_bytes {
                // A crash, or a lower bound than before; what does not help is said by `make_room`.
                let _ = self.make_room(0);
            }
            if used != saved {
                self.usage.save();
                saved = used;
            }
        }
    }

    /// Writes down which objects were used: their files' times, and the catalogue's counters.
    fn write_uses(&self) {
        let used = std::mem::take(&mut *self.used.lock());
        let now = SystemTime::now();
        for (key, uses) in used {
            let hits = uses.swap(0, Relaxed);
            let _ = disk::touch(&self.disk.path(&key.hash), now);
            if let Some(observer) = self.observer.get() {
                observer.used(&key, hits);
            }
        }
    }

    fn recount(&self) {
        loop {
            let counted = self.usage.recount(self.disk.root());
            let pause = if counted.is_ok() { RECOUNT } else { RECOUNT_AGAIN };
            say_unlisted(counted);
            std::thread::sleep(pause);
        }
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Relaxed)
    }

    /// Writes down what is only in memory. Called once, at the end of the process.
    pub fn close(&self) {
        self.closing.store(true, Relaxed);
        self.write_uses();
        self.usage.save();
    }

    /// The object whose file was opened.
    fn loaded(&'static self, key: Key, file: fs::File, record: Record) -> Object {
        let fresh = Arc::new(Freshness::new(record.class, record.checked_at, record.fresh_until));
        let body = Body::File {
            file,
            offset: record.offset,
        };
        let is_proven = self.proven.get(&record.id).is_some();
        Object::new(key, record.id, record.head, fresh, body, Origin::Upstream)
            .complete(record.finished, is_proven)
            .kept_by(self)
    }
}

impl Keeper for Store {
    fn is_proven(&self, id: u64) {
        self.proven.insert(id, ());
    }

    fn lose(&'static self, object: &Arc<Object>, why: &str) {
        Store::lose(self, object, why);
    }

    fn cannot_be_read(&'static self, object: &Arc<Object>, why: &io::Error) {
        match disk::is_damage(why) || !object.is_complete() {
            true => Store::lose(self, object, &why.to_string()),
            false => self.put_aside(object, why),
        }
    }
}

/// A walk over the folders was not a walk over all of them.
fn say_unlisted(walked: io::Result<()>) {
    if let Err(error) = walked {
        tracing::warn!(%error, "what lies there is neither counted, nor evicted, nor flushed by a walk");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{FOR_EVER, Finish, Reader};
    use bytes::Bytes;

    #[test]
    fn what_cannot_be_read_now_is_opened_anew_later_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let settings = CacheSettings {
            disk_bytes: 1 << 30,
            disk_min_free: MinFree::Bytes(0),
            memory_bytes: 0,
            sync: false,
            scrub_rate: 0,
        };
        let store = Store::open(dir.path(), settings).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let key = Key::new("files", "a", None, "");
            let head = Head {
                url: "http://127.0.0.1/a".to_owned(),
                headers: http::HeaderMap::new(),
                content_length: Some(5),
                stored_at: super::super::now_ms(),
                unframed: false,
                ranges: true,
                stands_for: None,
            };
            let freshness = (Class::Immutable, 1, FOR_EVER);
            let mut writer = store
                .create(key.clone(), head, freshness, None, None, false)
                .await
                .unwrap();
            writer.write(Bytes::from_static(b"hello")).await.unwrap();
            assert!(matches!(writer.finish().await, Finish::Admitted(_)));
            store.memory.remove(&key.hash);
            // What reads nothing but is no damage: a file that is open for writing only.
            let (_, record) = store.load(&key.hash).unwrap();
            let path = store.disk.path(&key.hash);
            let unreadable = fs::File::options().write(true).open(&path).unwrap();
            let id = record.id;
            let object = Arc::new(store.loaded(key.clone(), unreadable, record));
            assert!(Reader::new(object).next().await.is_err());
            assert!(store.stored(&key).await.is_none());
            assert!(path.exists());
            assert_eq!(store.stats().lost, 0);
            store.unreadable.insert(id, Some(Instant::now()));
            let again = store.stored(&key).await.unwrap();
            assert_eq!(&Reader::new(again).next().await.unwrap().unwrap()[..], b"hello");
        });
    }
}
