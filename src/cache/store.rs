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
use tokio::sync::watch;

use super::Class;
use super::disk::{self, Disk, Record};
use super::memory::Memory;
use super::overflow::{self, Overflow};
use super::sweep::Sweep;
use super::usage::Usage;
use super::writer::{Expected, NoSpace, Writer};
use super::{Body, Finished, Freshness, Hash, Head, Key, Millis, Object, Origin, Progress, State, evict};
use crate::config::{CacheSettings, MinFree};

/// How often uses are written down and the byte counter is saved.
const HOUSEKEEPING: Duration = Duration::from_secs(2);
/// The byte counter is put right by a walk this often.
const RECOUNT: Duration = Duration::from_secs(24 * 3600);
/// Uses remembered between two sweeps.
const MAX_USED: usize = 65_536;

/// Told what happens to stored objects, for the catalogue and the metrics. Never called on a request's path.
pub trait Observer: Send + Sync {
    /// `key` was used `hits` times since the last call.
    fn used(&self, key: &Key, hits: u64);
    /// An object was found on disk that was not in memory: whoever keeps a list may not know it.
    fn found(&self, object: &Object);
    /// The object of `key` is gone from here because space was short; `backed_up` says that the bucket has it.
    fn evicted(&self, key: &str, bytes: u64, backed_up: bool);
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
    /// What is being swept out: see [`Store::begin_sweep`].
    pub(super) sweeps: ArcSwap<Vec<Arc<Sweep>>>,
    /// Held by the walk that makes them.
    pub(super) walking: tokio::sync::Mutex<()>,
    /// Since when the file system's free space keeps things from being stored.
    starved: Mutex<Option<(Instant, String)>>,
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
}

/// A key for logs and errors.
pub fn shown(key: &Key) -> String {
    key.text.replace('\0', " ").trim().to_owned()
}

impl Store {
    /// Opens the store below `data_dir` and starts its housekeeper. Reads no object, so it takes the same time whatever
    /// is stored. The store lives as long as the process: Pingora's storage interface asks for that.
    ///
    /// # Errors
    /// The folder cannot be made or written.
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
            sweeps: ArcSwap::default(),
            walking: tokio::sync::Mutex::new(()),
            starved: Mutex::new(None),
            seed: AtomicU64::new(seed),
            observer: OnceLock::new(),
            backup: OnceLock::new(),
            closing: AtomicBool::new(false),
        }));
        std::thread::Builder::new()
            .name("housekeeper".into())
            .spawn(|| store.keep_house())?;
        std::thread::Builder::new()
            .name("recount".into())
            .spawn(|| store.recount())?;
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
        let (file, record) = self.disk.load(hash)?;
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
        evict::each_hash_while(self.disk.root(), |hash| {
            let modified = fs::metadata(self.disk.path(&hash)).and_then(|meta| meta.modified());
            let is_old = modified.is_ok_and(|modified| modified < since);
            is_old || self.open_stored(&hash).is_none_or(&mut visit)
        });
    }

    /// Calls `visit` with the hash of all that is stored, without opening any of it, as long as it says so. Blocks, for as
    /// long as a walk takes.
    pub fn each_hash(&self, visit: impl FnMut(Hash) -> bool) {
        evict::each_hash_while(self.disk.root(), visit);
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
        self.disk.size(hash)
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
        if let Some(object) = self.growing.lock().get(&key.hash) {
            return Some(Arc::clone(object));
        }
        self.stored(key).await
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
            return Some(if self.belongs_in_memory(&object) {
                self.promote(object).await
            } else {
                object
            });
        }
        let (store, hash) = (self, key.hash);
        let before = self.version(&hash).load(SeqCst);
        // On this thread, as nginx does: most names that are not there are known to the system.
        let file = self.disk.open_file(&hash)?;
        let (file, mut record) = tokio::task::spawn_blocking(move || store.disk.read(&hash, file))
            .await
            .ok()??;
        if record.key_text != *key.text || !self.survives_sweeps(&hash, &mut record) {
            return None;
        }
        let object = Arc::new(loaded(key.clone(), file, record));
        let object = self.in_memory_if_small(object).await;
        self.remember(&object, before);
        if let Some(observer) = self.observer.get() {
            observer.found(&object);
        }
        Some(object)
    }

    /// Whether the body is in a file and small enough for memory.
    fn belongs_in_memory(&self, object: &Object) -> bool {
        match (&object.body, object.finished()) {
            (Body::File { .. }, Some(finished)) => finished.length <= self.memory.largest,
            _ => false,
        }
    }

    async fn promote(&'static self, object: Arc<Object>) -> Arc<Object> {
        let before = self.version(&object.key.hash).load(SeqCst);
        let promoted = self.in_memory_if_small(Arc::clone(&object)).await;
        if !Arc::ptr_eq(&promoted, &object) {
            self.remember(&promoted, before);
        }
        promoted
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

    /// A copy of `object` whose body is in memory, where it is small enough and can be read.
    async fn in_memory_if_small(&'static self, object: Arc<Object>) -> Arc<Object> {
        let Some(finished) = object
            .finished()
            .filter(|finished| finished.length <= self.memory.largest)
        else {
            return object;
        };
        let Ok(bytes) = super::Reader::new(Arc::clone(&object))
            .collect(finished.length as usize)
            .await
        else {
            return object;
        };
        if bytes.len() as u64 != finished.length {
            return object;
        }
        Arc::new(Object {
            key: object.key.clone(),
            id: object.id,
            head: object.head.clone(),
            fresh: Arc::clone(&object.fresh),
            body: super::memory::body(bytes),
            origin: object.origin(),
            taken_over: AtomicBool::new(false),
            overflow: OnceLock::new(),
            finished: finished.into(),
            growth: None,
            prepared: OnceLock::new(),
            uses: Arc::default(),
            doomed: AtomicBool::new(false),
        })
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
        let reserve = disk::occupied(offset.saturating_add(head.content_length.unwrap_or(0)));
        let (file, body, reserved) = match self.open_new(encoded, reserve).await {
            Ok((unnamed, file)) => (Some(unnamed), Body::File { file, offset }, reserve),
            // What is short enough is shared from memory while it is read, and not kept.
            Err(why) if head.content_length.map_or(document, overflow::has_room_for) => {
                tracing::debug!(key = %shown(&key), %why, "an answer is held in memory instead of being stored");
                (None, Body::Memory(bytes::Bytes::new(), None), 0)
            }
            Err(why) => return Err(why),
        };
        let kept = file.is_some() && !head.unframed;
        let overflow = OnceLock::new();
        if file.is_none() {
            let _ = overflow.set(Overflow::new(0));
        }
        let (growth, _) = watch::channel(Progress {
            visible: 0,
            state: State::Growing,
        });
        let object = Arc::new(Object {
            key,
            id,
            head,
            fresh: Arc::new(Freshness::new(class, checked_at, fresh_until)),
            body,
            origin,
            taken_over: AtomicBool::new(false),
            overflow,
            finished: OnceLock::new(),
            growth: Some(growth),
            prepared: OnceLock::new(),
            uses: Arc::default(),
            doomed: AtomicBool::new(!kept),
        });
        if is_shown {
            self.growing.lock().insert(object.key.hash, Arc::clone(&object));
        }
        Ok(Writer::new(self, object, file, previous, expected, offset, reserved))
    }

    /// A new file with its space reserved and counted.
    async fn open_new(&'static self, encoded: Vec<u8>, reserve: u64) -> Result<(disk::Unnamed, fs::File), NoSpace> {
        self.reserve(reserve).await?;
        let opened = tokio::task::spawn_blocking(move || {
            use std::os::unix::fs::FileExt;
            let unnamed = self.disk.create(reserve)?;
            unnamed.file.write_all_at(&encoded, 0)?;
            let reading = unnamed.file.try_clone()?;
            Ok::<_, io::Error>((unnamed, reading))
        })
        .await;
        let error = match opened {
            Ok(Ok(files)) => return Ok(files),
            Ok(Err(error)) => error,
            Err(_) => io::Error::other("opening a file was given up"),
        };
        self.release(reserve);
        let error = NoSpace::Io(error);
        self.say_starved(&error);
        Err(error)
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
            let replaced = self.disk.size(&hash);
            // Before it can be found: nothing is stored that a crash keeps from the bucket.
            let published = match backup.map_or(Ok(()), |backup| backup.admitting(&hash)) {
                Ok(()) => self.disk.publish(&mut taken, &hash, self.settings.sync),
                Err(error) => Err(error),
            };
            if let Some(backup) = backup {
                backup.admitted(&hash, disk::occupied(offset + finished.length));
            }
            published.map(|()| replaced)
        })
        .await;
        let replaced = match published {
            Ok(Ok(replaced)) => replaced,
            Ok(Err(error)) => return Err(format!("storing it failed: {error}")),
            Err(_) => return Err("storing it was given up".to_owned()),
        };
        self.usage.removed(&hash, replaced);
        self.usage.stored(&hash, disk::occupied(offset + finished.length));
        // A flush that came while it was given its name found nothing to remove.
        if object.doomed.load(SeqCst) {
            let freed = self.disk.remove(&hash).unwrap_or(0);
            self.usage.removed(&hash, freed);
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
        let mut growing = self.growing.lock();
        if growing
            .get(&object.key.hash)
            .is_some_and(|current| Arc::ptr_eq(current, object))
        {
            growing.remove(&object.key.hash);
        }
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
        let written =
            tokio::task::spawn_blocking(move || self.disk.refresh(&hash, id, class, checked_at, fresh_until)).await;
        self.version(&hash).fetch_add(1, SeqCst);
        // The memory tier may hold a copy of the same body that was read from disk a moment ago.
        if let Some(hot) = self.memory.get(&hash).filter(|hot| hot.id == id) {
            hot.fresh.set(class, checked_at, fresh_until);
        }
        match written {
            Ok(Ok(there)) => there,
            Ok(Err(error)) => {
                // The copy in memory knows; after a restart the object merely counts as expired earlier.
                tracing::debug!(%error, "a refresh could not be written");
                true
            }
            Err(_) => true,
        }
    }

    /// Marks the object of `hash` expired; its body stays. Whether there was one.
    pub async fn expire(&'static self, hash: Hash) -> bool {
        let now = super::now_ms();
        if let Some(growing) = self.growing(&hash) {
            growing.fresh.expire(now);
        }
        tokio::task::spawn_blocking(move || self.expire_stored(&hash, now))
            .await
            .unwrap_or(false)
    }

    /// [`Store::expire`] of what is complete, on this thread.
    pub fn expire_stored(&self, hash: &Hash, now: Millis) -> bool {
        let expired = self.disk.load(hash).is_some_and(|(_, record)| {
            let until = now.min(record.fresh_until);
            self.disk
                .refresh(hash, record.id, record.class, record.checked_at, until)
                .unwrap_or(false)
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
        let Some((_, record)) = self.disk.load(hash) else {
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
        tokio::task::spawn_blocking(move || self.remove_stored(&hash))
            .await
            .unwrap_or(0)
    }

    /// [`Store::remove`] of what is complete, on this thread.
    pub fn remove_stored(&self, hash: &Hash) -> u64 {
        let freed = self.disk.remove(hash);
        self.version(hash).fetch_add(1, SeqCst);
        self.memory.remove(hash);
        self.is_removed(hash);
        match freed {
            Ok(bytes) => {
                self.usage.removed(hash, bytes);
                bytes
            }
            Err(error) => {
                tracing::warn!(%error, hash = %super::hex(hash), "an object could not be removed");
                0
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
        tokio::task::spawn_blocking(move || self.disk.load(&hash).map(|(_, record)| record.id))
            .await
            .ok()?
    }

    /// The keys of all objects that grow now.
    pub fn growing_keys(&self) -> Vec<Key> {
        self.growing.lock().values().map(|object| object.key.clone()).collect()
    }

    /// Removes every object whose key `matches`: a walk over the whole disk tier, for a flush that the catalogue cannot
    /// serve. Objects and bytes removed.
    pub async fn remove_where(&'static self, matches: impl Fn(&str) -> bool + Send + 'static) -> (u64, u64) {
        for key in self.growing_keys() {
            if matches(&key.text)
                && let Some(growing) = self.growing.lock().remove(&key.hash)
            {
                growing.doomed.store(true, SeqCst);
            }
        }
        self.walk(matches, |store, hash, _| {
            let freed = store.disk.remove(&hash).ok()?;
            store.version(&hash).fetch_add(1, SeqCst);
            store.memory.remove(&hash);
            store.usage.removed(&hash, freed);
            store.is_removed(&hash);
            Some(freed)
        })
        .await
    }

    /// Expires every object whose key `matches`, by a walk. Objects expired, and 0.
    pub async fn expire_where(&'static self, matches: impl Fn(&str) -> bool + Send + 'static) -> (u64, u64) {
        self.walk(matches, |store, hash, record| {
            let now = super::now_ms();
            if let Some(hot) = store.memory.get(&hash) {
                hot.fresh.expire(now);
            }
            let until = now.min(record.fresh_until);
            store
                .disk
                .refresh(&hash, record.id, record.class, record.checked_at, until)
                .ok()
                .map(|_| 0)
        })
        .await
    }

    pub(super) async fn walk(
        &'static self,
        matches: impl Fn(&str) -> bool + Send + 'static,
        act: impl Fn(&Store, Hash, &Record) -> Option<u64> + Send + 'static,
    ) -> (u64, u64) {
        tokio::task::spawn_blocking(move || {
            let (mut count, mut bytes) = (0, 0);
            evict::each_hash(self.disk.root(), |hash| {
                let Some((_, record)) = self.disk.load(&hash) else {
                    return;
                };
                if matches(&record.key_text)
                    && let Some(freed) = act(self, hash, &record)
                {
                    count += 1;
                    bytes += freed;
                }
            });
            (count, bytes)
        })
        .await
        .unwrap_or((0, 0))
    }

    /// Makes sure that `file` has space up to `end`; `reserved` is what it has.
    pub(super) async fn room_for(&'static self, file: &disk::Unnamed, end: u64, reserved: &mut u64) -> io::Result<()> {
        let needed = disk::occupied(end);
        if needed <= *reserved {
            return Ok(());
        }
        let more = (needed - *reserved).max(super::writer::STEP);
        self.reserve(more).await.map_err(io::Error::other)?;
        disk::allocate(&file.file, *reserved, more).inspect_err(|_| self.release(more))?;
        *reserved += more;
        Ok(())
    }

    /// Counts `bytes` as used, making room where there is too little.
    pub(super) async fn reserve(&'static self, bytes: u64) -> Result<(), NoSpace> {
        let limit = self.settings.disk_bytes;
        if bytes > limit {
            return Err(NoSpace::Bound { needed: bytes, limit });
        }
        // Counted first: those who reserve at the same time see each other.
        self.usage.reserve(bytes);
        if self.usage.total() > limit || self.short_of_free_space(bytes).is_some() {
            let made = tokio::task::spawn_blocking(move || self.make_room(bytes)).await;
            let made = made.unwrap_or_else(|_| Err(io::Error::other("making room was given up").into()));
            if let Err(error) = made {
                self.usage.release(bytes);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Gives back bytes that were counted.
    pub(super) fn release(&self, bytes: u64) {
        self.usage.release(bytes);
    }

    /// `Some((free, kept))` when `bytes` more would eat into what must stay free.
    fn short_of_free_space(&self, bytes: u64) -> Option<(u64, u64)> {
        let (free, whole) = self.disk.space().ok()?;
        let kept = match self.settings.disk_min_free {
            MinFree::Bytes(kept) => kept,
            MinFree::Percent(percent) => (whole as f64 * percent / 100.0) as u64,
        };
        (free < kept.saturating_add(bytes)).then_some((free, kept))
    }

    /// Evicts until the bound holds and `bytes` more leave free what must stay free. Evicts nothing for what cannot be
    /// had.
    fn make_room(&'static self, bytes: u64) -> Result<(), NoSpace> {
        let _one_at_a_time = self.evicting.lock();
        let limit = self.settings.disk_bytes;
        self.write_uses();
        let over = || self.usage.total().saturating_sub(limit);
        // Some file systems give space back late, and files still read give none: what was freed is counted here.
        let (short, kept) = match self.short_of_free_space(bytes) {
            Some((free, kept)) => ((kept + bytes).saturating_sub(free), Some((free, kept))),
            None => (0, None),
        };
        let mut freed = 0;
        let mut fruitless = 0;
        // What waits to be uploaded stays, however short space is.
        let waiting = self.backup.get().map_or(0, |backup| backup.waiting_bytes());
        let possible = over().max(short) <= self.usage.evictable().saturating_sub(waiting);
        while possible && fruitless <= 3 {
            let wanted = over().max(short.saturating_sub(freed));
            if wanted == 0 {
                return Ok(());
            }
            match self.evict(wanted) {
                0 => fruitless += 1,
                bytes => freed += bytes,
            }
        }
        let error = match kept {
            Some((free, kept)) if over() == 0 => NoSpace::FileSystem { free, kept },
            _ => NoSpace::Bound { needed: bytes, limit },
        };
        self.say_starved(&error);
        Err(error)
    }

    fn evict(&self, wanted: u64) -> u64 {
        let mut freed = 0;
        let backup = self.backup.get();
        let spared = |hash: &Hash| backup.is_some_and(|backup| backup.is_waiting(hash));
        for candidate in evict::victims(self.disk.root(), self.random() as u16, spared) {
            if freed >= wanted {
                break;
            }
            let record = self.disk.load(&candidate.hash).map(|(_, record)| record);
            let mut gone = false;
            let mut remove = || gone = fs::remove_file(&candidate.path).is_ok();
            match backup {
                Some(backup) => backup.unless_waiting(&candidate.hash, &mut remove),
                None => remove(),
            }
            if !gone {
                continue;
            }
            self.version(&candidate.hash).fetch_add(1, SeqCst);
            self.memory.remove(&candidate.hash);
            self.usage.removed(&candidate.hash, candidate.size);
            freed += candidate.size;
            if let (Some(observer), Some(record)) = (self.observer.get(), record) {
                observer.evicted(&record.key_text, candidate.size, record.backed_up);
            }
        }
        freed
    }

    fn say_starved(&self, why: &NoSpace) {
        let mut starved = self.starved.lock();
        let quiet = starved
            .as_ref()
            .is_some_and(|(since, _)| since.elapsed() < Duration::from_secs(10));
        if !quiet {
            tracing::error!(%why, "NOTHING CAN BE STORED: answers pass by uncached until there is space again");
        }
        *starved = Some((Instant::now(), why.to_string()));
    }

    pub fn stats(&self) -> StoreStats {
        let starved = self.starved.lock().clone();
        StoreStats {
            disk_bytes: self.usage.total(),
            disk_limit: self.settings.disk_bytes,
            memory_bytes: self.memory.weight(),
            memory_items: self.memory.len(),
            growing: self.growing.lock().len(),
            starved: starved
                .filter(|(since, _)| since.elapsed() < Duration::from_secs(60))
                .map(|(_, why)| why),
        }
    }

    fn keep_house(&'static self) {
        let mut saved = u64::MAX;
        while !self.closing.load(Relaxed) {
            std::thread::sleep(HOUSEKEEPING);
            self.write_uses();
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
            self.usage.recount(self.disk.root());
            std::thread::sleep(RECOUNT);
        }
    }

    /// Writes down what is only in memory. Called once, at the end of the process.
    pub fn close(&self) {
        self.closing.store(true, Relaxed);
        self.write_uses();
        self.usage.save();
    }
}

fn loaded(key: Key, file: fs::File, record: Record) -> Object {
    Object {
        key,
        id: record.id,
        head: record.head,
        fresh: Arc::new(Freshness::new(record.class, record.checked_at, record.fresh_until)),
        body: Body::File {
            file,
            offset: record.offset,
        },
        origin: Origin::Upstream,
        taken_over: AtomicBool::new(false),
        overflow: OnceLock::new(),
        finished: record.finished.into(),
        growth: None,
        prepared: OnceLock::new(),
        uses: Arc::default(),
        doomed: AtomicBool::new(false),
    }
}
