//! Room on the disk: counted before it is used, had by eviction where that helps, and refused where it cannot be had.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::{fs, io};

use super::Store;
use super::length::Length;
use crate::cache::disk::Amount;
use crate::cache::key::Hash;
use crate::cache::object::{Body, Object};
use crate::cache::{disk, evict};
use crate::config::MinFree;

/// What an object needs of the file system beside its bytes: the file, two folders, and one that another fill takes meanwhile.
const FILES: u64 = 4;

/// Nothing can be stored now; the answer passes by unstored.
#[derive(Debug, thiserror::Error)]
pub enum NoSpace {
    #[error("a body whose length upstream does not say is longer than what can be kept")]
    TooLong,
    #[error("the cache's bound of {limit} bytes leaves no room for {needed} more")]
    Bound { needed: u64, limit: u64 },
    #[error("the file system has {free} bytes free, and {kept} are kept free")]
    FileSystem { free: u64, kept: u64 },
    #[error("the file system has room for {free} files (inodes), and {kept} are kept free")]
    Files { free: u64, kept: u64 },
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// How room is had on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) enum Room {
    /// By eviction: it is known that what wants it can be kept.
    Made,
    /// Only what is free.
    Free,
}

/// The space of a growing file.
#[derive(Debug, Default)]
pub(in crate::cache) struct Space {
    /// Where the body starts in the file.
    pub offset: u64,
    pub reserved: u64,
    /// How far room may be made by eviction before the body has ended.
    pub evicts_to: u64,
}

/// Bytes that are counted as used until somebody takes them over: whoever asked for them may have given up.
pub(super) struct Reserved(&'static Store, u64);

impl Reserved {
    /// Counts `bytes` of `store`, which are reserved already, until they are taken over.
    pub(super) fn new(store: &'static Store, bytes: u64) -> Self {
        Reserved(store, bytes)
    }

    /// The bytes are somebody else's to give back.
    pub(super) fn taken_over(mut self) {
        self.1 = 0;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.0.release(self.1);
    }
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

impl Store {
    /// Reserves space for a body that begins at `offset` of its file. Of a body whose length is not known only what stands
    /// before it, and where there is no free room nothing yet: the file waits for what the end of the body tells.
    pub(super) fn space_for(&'static self, offset: u64, length: Length, document: bool) -> Result<Space, NoSpace> {
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
                self.trouble.starved(&why, reserve);
                return Err(why);
            }
        };
        Ok(Space {
            offset,
            reserved,
            evicts_to,
        })
    }

    /// Makes sure that the file of `object` has space up to `end`; `reserved` is what it has.
    pub(in crate::cache) async fn room_for(
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
                self.trouble.starved(&bound, bytes);
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
    pub(in crate::cache) fn could_fit(&self, bytes: u64) -> bool {
        bytes <= self.settings.disk_bytes.saturating_sub(self.pinned())
    }

    /// Whether eviction could make room for a file of `bytes` more.
    pub(super) fn can_make_room(&self, bytes: u64) -> bool {
        let short = self.short_of_free_space(bytes);
        let missing = short.map_or(Amount::default(), |short| short.missing);
        let waiting = self.backup.get().map_or(0, |backup| backup.waiting_bytes());
        let evictable = self.usage.evictable();
        self.could_fit(bytes)
            && missing.bytes <= evictable.bytes.saturating_sub(waiting)
            && missing.files <= evictable.files
    }

    /// Gives back bytes that were counted.
    pub(in crate::cache) fn release(&self, bytes: u64) {
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
                // This file system has as many files as there are bytes for.
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
    pub(super) fn make_room(&'static self, bytes: u64) -> Result<(), NoSpace> {
        self.try_make_room(bytes)
            .inspect_err(|error| self.trouble.starved(error, bytes))
    }

    /// Has the file system keep free what must stay free beside `bytes` more that this store does not hold. Blocks.
    ///
    /// # Errors
    /// Evicting all that can be evicted would not be enough.
    pub(in crate::cache) fn room_beside(&'static self, bytes: u64) -> Result<(), NoSpace> {
        match self.short_of_free_space(bytes) {
            None => Ok(()),
            Some(_) => self.try_make_room(bytes),
        }
    }

    fn try_make_room(&'static self, bytes: u64) -> Result<(), NoSpace> {
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
        Err(match short {
            Some(short) if over() == 0 => short.error(freed),
            _ => NoSpace::Bound { needed: bytes, limit },
        })
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
}
