//! The tiers as one, within their bounds. What can be done with them stands in the files below, an idea each.

mod admission;
mod backup;
mod damage;
mod expiry;
mod housekeeping;
mod length;
mod lookup;
mod observer;
mod patience;
mod removal;
mod scrubbing;
mod space;
mod stats;
mod stored;
mod sweeping;
mod trouble;
mod walk;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use quick_cache::sync::Cache;

use super::clock::Clock;
use super::disk::Disk;
use super::key::{Hash, Key};
use super::memory::Memory;
use super::object::Object;
use super::scrub::Scrub;
use super::sweep::Sweep;
use super::usage::Usage;
use crate::config::CacheSettings;
pub use backup::Backup;
use length::Lengths;
pub use observer::Observer;
pub(super) use patience::DISK_LIMIT;
pub(super) use scrubbing::Pace;
pub use space::NoSpace;
pub(super) use space::{Room, Space};
pub use stats::StoreStats;
pub use stored::Stored;
use trouble::Trouble;
pub use walk::Walked;

/// Bodies remembered to be what they were when they were stored.
const MAX_PROVEN: usize = 65_536;
/// Bodies remembered that are not to be used again.
const MAX_UNREADABLE: usize = 4096;

/// Memory and disk tier.
pub struct Store {
    disk: Disk,
    memory: Memory,
    growing: Mutex<HashMap<Hash, Arc<Object>>>,
    settings: CacheSettings,
    /// Bytes on disk, growing files included.
    usage: Usage,
    used: Mutex<Vec<(Key, Arc<AtomicU64>)>>,
    /// Change with every change of what is stored, by the first byte of the hash.
    versions: [AtomicU32; 256],
    evicting: Mutex<()>,
    pub(super) lengths: Lengths,
    /// When the disk last did not answer in time.
    hangs_since: Mutex<Option<Instant>>,
    /// What is being swept out: see [`Store::begin_sweep`].
    sweeps: ArcSwap<Vec<Arc<Sweep>>>,
    /// Held by the walk that makes them.
    walking: tokio::sync::Mutex<()>,
    pub(super) trouble: Trouble,
    /// When a file was last found damaged or unreadable, and which.
    damage: Mutex<Option<(Instant, String)>>,
    /// Files found so.
    lost: AtomicU64,
    /// What a reader found damaged and said, and is being removed.
    dropping: Mutex<HashSet<Hash>>,
    /// Ids of bodies that cannot be read, or are not what they were: not used before then (`None`: ever) again, though their
    /// files may still be there.
    unreadable: Cache<u64, Option<Instant>>,
    /// Ids of bodies that were compared with their digest since the start.
    proven: Cache<u64, ()>,
    scrub: Scrub,
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
            lengths: Lengths::default(),
            hangs_since: Mutex::new(None),
            sweeps: ArcSwap::default(),
            walking: tokio::sync::Mutex::new(()),
            trouble: Trouble::default(),
            damage: Mutex::new(None),
            lost: AtomicU64::new(0),
            dropping: Mutex::default(),
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
            store.trouble.failed(&error, &hash);
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

    fn random(&self) -> u64 {
        // SplitMix64: spread is all that is asked of it.
        let mut z = self.seed.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Counts changes of what is stored near `hash`.
    fn version(&self, hash: &Hash) -> &AtomicU32 {
        &self.versions[usize::from(hash[0])]
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Relaxed)
    }

    /// Writes down what is only in memory. Called once, at the end of the process.
    pub fn close(&self) {
        self.closing.store(true, Relaxed);
        self.write_uses();
        self.usage.save();
    }
}
