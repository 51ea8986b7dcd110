//! Removing what is stored, because somebody asked for that.

use std::io;
use std::sync::atomic::Ordering::SeqCst;

use super::Store;
use super::walk::Walked;
use crate::cache::key::Hash;

impl Store {
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
                tracing::warn!(%error, hash = %hex::encode(hash), "an object could not be removed");
                Err(error)
            }
        }
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

    pub(super) fn is_removed(&self, hash: &Hash) {
        if let Some(backup) = self.backup.get() {
            backup.removed(hash);
        }
    }
}
