//! What this node tells the catalogue, the bucket and the other nodes of what it stores, and the fill locks that its words are
//! said under.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::node::Life;
use super::{Fills, record};
use crate::cache::{Hash, Key, Object, now_ms};
use crate::catalog::Event;
use crate::fleet::{Lease, Published, Word};
use crate::formats::Class;

/// What is being said.
#[derive(Default)]
pub(super) struct Said {
    leases: Mutex<HashMap<Hash, Arc<Lease>>>,
    /// What is being announced.
    speaking: Mutex<Vec<Hash>>,
}

impl Said {
    /// Whether this node has still to say what it fetched under `hash`: until then the fleet's word is not on that.
    pub(super) fn is_to_come(&self, hash: &Hash) -> bool {
        self.leases.lock().contains_key(hash) || self.speaking.lock().contains(hash)
    }
}

/// A lease that what is stored under its key is announced with.
pub(super) struct Held {
    fills: Arc<Fills>,
    hash: Hash,
    lease: Weak<Lease>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut leases = self.fills.shared.said.leases.lock();
        if leases
            .get(&self.hash)
            .is_some_and(|lease| Arc::as_ptr(lease) == self.lease.as_ptr())
        {
            leases.remove(&self.hash);
        }
    }
}

/// The word on a key is on its way.
struct Speaking {
    fills: Arc<Fills>,
    hash: Hash,
}

impl Speaking {
    fn of(fills: &Arc<Fills>, hash: Hash) -> Speaking {
        fills.shared.said.speaking.lock().push(hash);
        Speaking {
            fills: Arc::clone(fills),
            hash,
        }
    }
}

impl Drop for Speaking {
    fn drop(&mut self) {
        let mut speaking = self.fills.shared.said.speaking.lock();
        if let Some(at) = speaking.iter().position(|hash| *hash == self.hash) {
            speaking.swap_remove(at);
        }
    }
}

impl Fills {
    pub(super) fn hold(self: &Arc<Self>, key: &Key, lease: Lease) -> Held {
        let lease = Arc::new(lease);
        let held = Held {
            fills: Arc::clone(self),
            hash: key.hash,
            lease: Arc::downgrade(&lease),
        };
        self.shared.said.leases.lock().insert(key.hash, lease);
        held
    }

    /// Tells the catalogue and the other nodes what was stored here.
    pub(super) fn note_stored(self: &Arc<Self>, object: &Arc<Object>, class: Class) {
        if let Some(event) = record::stored(object, class) {
            self.note_listed(object, event);
        }
        self.announce(object);
    }

    /// Tells the catalogue what was stored here. A flush that came between that and this has not found it listed, and it grew
    /// no more.
    pub(super) fn note_listed(self: &Arc<Self>, object: &Arc<Object>, event: Event) {
        self.catalog.record(event);
        let (stored_at, checked_at) = (object.head.stored_at, object.fresh.checked_at());
        let Some(only_expired) = self.shared.ledger.flushed(&object.key, stored_at, checked_at) else {
            return;
        };
        if only_expired && object.fresh.fresh_until() <= now_ms() {
            return;
        }
        let (fills, key) = (Arc::clone(self), object.key.clone());
        tokio::spawn(async move {
            if only_expired {
                fills.store.expire(key.hash).await;
                return;
            }
            fills.store.remove(key.hash).await;
            fills.catalog.record(record::removed(&key));
        });
    }

    /// Tells the catalogue and the other nodes that what is stored here is still right.
    pub(super) fn note_refreshed(self: &Arc<Self>, object: &Arc<Object>) {
        self.catalog.record(record::refreshed(object));
        self.announce(object);
    }

    /// What is stored may not be upstream's any more: it is asked about by whoever needs it next, on every node.
    pub async fn note_doubt(&self, key: &Key) -> bool {
        if let Some(fleet) = self.shared.fleet.as_ref().filter(|_| key.is_shared()) {
            fleet.expired(key);
        }
        self.store.expire(key.hash).await
    }

    /// Tells the catalogue, the bucket and the other nodes that an object is gone upstream.
    pub(super) async fn note_removed(&self, key: &Key) {
        self.catalog.record(record::removed(key));
        if let Some(bucket) = self.shared.bucket.as_ref().filter(|_| key.is_shared()) {
            bucket.remove(key).await;
        }
        if let Some(fleet) = self.shared.fleet.as_ref().filter(|_| key.is_shared()) {
            fleet.removed(key);
        }
    }

    /// Another node published what it fetched under the lock `fence`. If that is a later one than this node's, whose fill of
    /// the same key still goes on, this one's is outdated: whoever reads it may end, and nobody else begins.
    pub(super) fn outrun(&self, hash: &Hash, fence: u64) {
        let lease = self.shared.said.leases.lock().get(hash).cloned();
        if lease.is_some_and(|lease| lease.fence().0 < fence) {
            self.store.forsake(hash);
        }
    }

    /// A fill whose object was flushed while it grew is in nobody's way any more.
    pub(super) fn release(&self, hash: &Hash) {
        self.shared.said.leases.lock().remove(hash);
    }

    pub(super) fn announce(self: &Arc<Self>, object: &Arc<Object>) {
        let (Some(fleet), Some(id)) = (&self.shared.fleet, object.identity()) else {
            return;
        };
        if !object.key.is_shared() {
            return;
        }
        let speaking = Speaking::of(self, object.key.hash);
        // Taken now: the flight may let go of it before the word is out.
        let lease = self.shared.said.leases.lock().get(&object.key.hash).cloned();
        let (fills, fleet, object) = (Arc::clone(self), Arc::clone(fleet), Arc::clone(object));
        tokio::spawn(async move {
            let word = Word {
                id,
                class: object.fresh.class(),
                checked_at: object.fresh.checked_at(),
                fresh_until: object.fresh.fresh_until(),
                etag: object.head.etag().map(str::to_owned),
                generation: 0,
                node: fleet.me().clone(),
                in_bucket: false,
            };
            let fence = match &lease {
                Some(lease) => lease.fence(),
                // Whoever has the lock now may have asked upstream before.
                None => fleet.fence().of_what_was_checked(word.checked_at),
            };
            let published = fleet.publish(&object.key, &word, fence).await;
            drop(speaking);
            if let Published::Outdated(newer) = published {
                tracing::info!(key = %object.key.shown(), "another node has fetched this since: what is stored here is outdated");
                // What is said of what was flushed counts no more than nothing.
                let newer = newer.filter(|newer| !fills.shared.ledger.is_flushed_word(&object.key, newer));
                let (store, hash) = (fills.store, object.key.hash);
                let _ = tokio::task::spawn_blocking(move || match newer {
                    Some(newer) => store.adopt(&hash, newer.id, Life::said_by(&newer).parts()),
                    None => drop(store.expire_stored(&hash, now_ms())),
                })
                .await;
            }
        });
    }
}
