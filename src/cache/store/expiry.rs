//! Freshness of what is stored: confirmed, or ended. Bodies stay.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use super::Store;
use super::walk::Walked;
use crate::cache::freshness::{Adoption, Class, adoption};
use crate::cache::head;
use crate::cache::key::Hash;
use crate::cache::object::Object;
use crate::cache::time::{Millis, now_ms};

impl Store {
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
                self.trouble.failed(&error, &hash);
                true
            }
            None => true,
        }
    }

    /// Marks the object of `hash` expired; its body stays. Whether there was one.
    pub async fn expire(&'static self, hash: Hash) -> bool {
        let now = now_ms();
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
        let stored = head::identity(&record.finished, record.head.stands_for.as_ref());
        let adopted = |own: Millis| adoption((stored, own), (identity, checked_at));
        match adopted(record.checked_at) {
            Adoption::Expired => {
                self.expire_stored(hash, now_ms());
                return;
            }
            Adoption::Trusted => _ = self.disk.refresh(hash, record.id, class, checked_at, until),
            Adoption::Known => {}
        }
        self.version(hash).fetch_add(1, SeqCst);
        if let Some(hot) = self.memory.get(hash).filter(|hot| hot.id == record.id)
            && adopted(hot.fresh.checked_at()) == Adoption::Trusted
        {
            hot.fresh.set(class, checked_at, until);
        }
    }

    /// Expires every object whose key `matches`, by a walk.
    pub async fn expire_where(&'static self, matches: impl Fn(&str) -> bool + Send + 'static) -> Walked {
        self.walk(matches, |store, hash, record| {
            let now = now_ms();
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
}
