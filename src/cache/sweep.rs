//! A flush of another node: what it covers is gone, or expired, at once, though walking the disk takes a while. Until the
//! walk is over, whatever is read from disk is judged by it.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use super::disk::Record;
use super::freshness::is_ahead;
use super::{Hash, Millis, Object, Store};

/// What is flushed: everything that it `covers` and that was stored (to be expired: last checked) before `at`, or by a
/// clock that was ahead.
pub struct Sweep {
    pub at: Millis,
    /// By the text of the key.
    pub covers: Box<dyn Fn(&str) -> bool + Send + Sync>,
    /// The body stays, for revalidation.
    pub expire: bool,
    /// Told of the key of everything on disk that it is made on.
    pub gone: Box<dyn Fn(&str) + Send + Sync>,
}

impl std::fmt::Debug for Sweep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sweep").field("at", &self.at).finish_non_exhaustive()
    }
}

impl Sweep {
    fn is_for(&self, key: &str, stored_at: Millis, checked_at: Millis) -> bool {
        let moment = if self.expire { checked_at } else { stored_at };
        (moment < self.at || is_ahead(moment, super::now_ms())) && (self.covers)(key)
    }

    fn is_for_object(&self, object: &Object) -> bool {
        self.is_for(&object.key.text, object.head.stored_at, object.fresh.checked_at())
    }

    fn is_for_record(&self, record: &Record) -> bool {
        self.is_for(&record.key_text, record.head.stored_at, record.checked_at)
    }

    /// On what is stored; the bytes freed.
    fn act(&self, store: &Store, hash: &Hash, key: &str) -> u64 {
        (self.gone)(key);
        if self.expire {
            store.expire_stored(hash, self.at);
            return 0;
        }
        store.remove_stored(hash)
    }
}

impl Store {
    /// Flushes what `sweep` covers. Whoever asks for it from now on does not find it; when this returns, its space is free.
    pub async fn sweep(&'static self, sweep: Sweep) {
        let sweep = Arc::new(sweep);
        self.sweeps.rcu(|sweeps| {
            let mut sweeps = Vec::clone(sweeps);
            sweeps.push(Arc::clone(&sweep));
            sweeps
        });
        // What was read from disk before the sweep was known is not remembered.
        for first in 0..=255 {
            self.version(&[first; 16]).fetch_add(1, SeqCst);
        }
        self.growing.lock().retain(|_, object| {
            let covered = sweep.is_for_object(object);
            match (covered, sweep.expire) {
                (true, true) => object.fresh.expire(sweep.at),
                (true, false) => object.doomed.store(true, SeqCst),
                (false, _) => {}
            }
            !covered || sweep.expire
        });
        self.memory.retain(|object| {
            let covered = sweep.is_for_object(object);
            if covered && sweep.expire {
                object.fresh.expire(sweep.at);
            }
            !covered || sweep.expire
        });
        // One walk at a time, which makes all sweeps that wait.
        let _walking = self.walking.lock().await;
        let waiting = self.sweeps.load_full();
        if !waiting.iter().any(|other| Arc::ptr_eq(other, &sweep)) {
            return;
        }
        let judges = Arc::clone(&waiting);
        self.walk(
            |_| true,
            move |store, hash, record| {
                let mut freed = None;
                for sweep in judges.iter().filter(|sweep| sweep.is_for_record(record)) {
                    freed = Some(freed.unwrap_or(0) + sweep.act(store, &hash, &record.key_text));
                }
                freed
            },
        )
        .await;
        self.sweeps.rcu(|sweeps| {
            let is_made = |sweep: &Arc<Sweep>| waiting.iter().any(|made| Arc::ptr_eq(made, sweep));
            let others = sweeps.iter().filter(|sweep| !is_made(sweep));
            others.cloned().collect::<Vec<_>>()
        });
    }

    /// Judges what was read from disk by the sweeps that are under way; `false`: it is gone.
    pub(super) fn survives_sweeps(&self, hash: &Hash, record: &mut Record) -> bool {
        for sweep in self.sweeps.load().iter() {
            if !sweep.is_for_record(record) {
                continue;
            }
            sweep.act(self, hash, &record.key_text);
            if !sweep.expire {
                return false;
            }
            record.fresh_until = record.fresh_until.min(sweep.at);
        }
        true
    }
}
