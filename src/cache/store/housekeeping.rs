//! What is done every now and then: uses are written down, and counters put right.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use super::Store;
use super::walk::say_unlisted;
use crate::cache::clock::Clock;
use crate::cache::disk;
use crate::cache::object::Object;

/// How often uses are written down and the byte counter is saved.
const HOUSEKEEPING: Duration = Duration::from_secs(2);
/// The byte counter is put right by a walk this often.
const RECOUNT: Duration = Duration::from_secs(24 * 3600);
/// ... and so often while a folder cannot be listed.
const RECOUNT_AGAIN: Duration = Duration::from_secs(60);
/// Uses remembered between two sweeps.
const MAX_USED: usize = 65_536;

impl Store {
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

    pub(super) fn keep_house(&'static self, mut clock: Clock) {
        let mut saved = u64::MAX;
        while !self.is_closing() {
            std::thread::sleep(HOUSEKEEPING);
            clock.watch();
            self.write_uses();
            self.trouble.probe(&self.disk, |bytes| self.can_make_room(bytes));
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
    pub(super) fn write_uses(&self) {
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

    pub(super) fn recount(&self) {
        loop {
            let counted = self.usage.recount(self.disk.root());
            let pause = if counted.is_ok() { RECOUNT } else { RECOUNT_AGAIN };
            say_unlisted(counted);
            std::thread::sleep(pause);
        }
    }
}
