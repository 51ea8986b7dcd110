//! Sweeps over what is stored, which is judged by them until they are made.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst};

use super::Store;
use crate::cache::disk::Record;
use crate::cache::key::Hash;
use crate::cache::sweep::{Sweep, Swept};

impl Store {
    /// Makes `sweep` on what is stored under `hash`; the bytes freed.
    ///
    /// # Errors
    /// The disk refuses: what is stored is there as before.
    fn make(&self, sweep: &Sweep, hash: &Hash, key: &str) -> io::Result<u64> {
        let freed = match sweep.expire {
            true => self.try_expire(hash, sweep.last()).map(|_| 0)?,
            false => self.try_remove(hash)?,
        };
        (sweep.gone)(key);
        Ok(freed)
    }

    /// From now on whoever asks for what `sweep` covers does not find it, until [`Store::end_sweeps`].
    pub fn begin_sweep(&self, sweep: &Arc<Sweep>) {
        self.sweeps.rcu(|sweeps| {
            let mut sweeps = Vec::clone(sweeps);
            sweeps.push(Arc::clone(sweep));
            sweeps
        });
        // What was read from disk before the sweep was known is not remembered.
        for first in 0..=255 {
            self.version(&[first; 16]).fetch_add(1, SeqCst);
        }
        self.growing.lock().retain(|_, object| {
            let covered = sweep.is_for_object(object);
            match (covered, sweep.expire) {
                (true, true) => object.fresh.expire(sweep.last()),
                (true, false) => object.doomed.store(true, SeqCst),
                (false, _) => {}
            }
            !covered || sweep.expire
        });
        self.memory.retain(|object| {
            let covered = sweep.is_for_object(object);
            if covered && sweep.expire {
                object.fresh.expire(sweep.last());
            }
            !covered || sweep.expire
        });
    }

    /// Makes `sweep` on what is stored under `hash`, which it is known to cover. Blocks.
    pub fn sweep_one(&self, sweep: &Sweep, hash: &Hash) -> Swept {
        let Some((_, record)) = self.load(hash) else {
            return match self.is_missing(hash) {
                true => Swept::Made(None),
                false => Swept::Failed,
            };
        };
        if !sweep.is_before(record.head.stored_at, record.checked_at) {
            return Swept::Newer;
        }
        match self.make(sweep, hash, &record.key_text) {
            Ok(_) => Swept::Made(Some(record.id)),
            Err(_) => Swept::Failed,
        }
    }

    /// These were made on all that is stored.
    pub fn end_sweeps(&self, made: &[Arc<Sweep>]) {
        self.sweeps.rcu(|sweeps| {
            let is_made = |sweep: &Arc<Sweep>| made.iter().any(|made| Arc::ptr_eq(made, sweep));
            let others = sweeps.iter().filter(|sweep| !is_made(sweep));
            others.cloned().collect::<Vec<_>>()
        });
    }

    /// Makes what was begun, by a walk over all that is stored; when this returns, its space is free. `false`: the disk
    /// refused some of it, or something cannot be read now, and the sweep stays in force.
    pub async fn end_by_walk(&'static self, sweep: Arc<Sweep>) -> bool {
        // One walk at a time, which makes all sweeps that wait.
        let _walking = self.walking.lock().await;
        let waiting = self.sweeps.load_full();
        if !waiting.iter().any(|other| Arc::ptr_eq(other, &sweep)) {
            return true;
        }
        let judges = Arc::clone(&waiting);
        let refused: Arc<[AtomicBool]> = waiting.iter().map(|_| AtomicBool::new(false)).collect();
        let refusing = Arc::clone(&refused);
        let walked = self.walk(
            |_| true,
            move |store, hash, record| {
                for (sweep, refused) in judges.iter().zip(refusing.iter()) {
                    if sweep.is_for_record(record) && store.make(sweep, &hash, &record.key_text).is_err() {
                        refused.store(true, Relaxed);
                    }
                }
                Ok(0)
            },
        );
        // Nobody knows what cannot be read: it may be what any of them is for.
        if walked.await.refused > 0 {
            return false;
        }
        let made: Vec<_> = waiting
            .iter()
            .zip(refused.iter())
            .filter(|(_, refused)| !refused.load(Relaxed))
            .map(|(sweep, _)| Arc::clone(sweep))
            .collect();
        self.end_sweeps(&made);
        made.iter().any(|made| Arc::ptr_eq(made, &sweep))
    }

    /// Judges what was read from disk by the sweeps that are under way; `false`: it is gone.
    pub(super) fn survives_sweeps(&self, hash: &Hash, record: &mut Record) -> bool {
        for sweep in self.sweeps.load().iter() {
            if !sweep.is_for_record(record) {
                continue;
            }
            // Where the disk refuses, the object is judged so again next time.
            let _ = self.make(sweep, hash, &record.key_text);
            if !sweep.expire {
                return false;
            }
            record.fresh_until = record.fresh_until.min(sweep.at);
        }
        true
    }
}
