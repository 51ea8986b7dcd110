//! Finding an object: among those that grow, in memory, or on disk.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use super::Store;
use super::patience::DISK_LIMIT;
use crate::cache::disk::Record;
use crate::cache::freshness::Freshness;
use crate::cache::key::{Hash, Key};
use crate::cache::memory;
use crate::cache::object::{Body, Object, Origin};
use crate::cache::reader::{ReadError, Reader};
use crate::cache::time::now_ms;

impl Store {
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
        let is_over = growing.has_arrived() && growing.fresh.fresh_until() <= now_ms();
        let stored = is_over && tokio::time::timeout(DISK_LIMIT, growing.settled()).await.is_ok();
        (!stored).then_some(growing)
    }

    /// The growing object of `key`, if one grows.
    pub fn growing(&self, hash: &Hash) -> Option<Arc<Object>> {
        self.growing.lock().get(hash).cloned()
    }

    /// The keys of all objects that grow now.
    pub fn growing_keys(&self) -> Vec<Key> {
        self.growing.lock().values().map(|object| object.key.clone()).collect()
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
        let reader = Reader::new(Arc::clone(&object));
        let bytes = match reader.proving().collect(finished.length as usize).await {
            Ok(bytes) if bytes.len() as u64 == finished.length => bytes,
            Ok(_) | Err(ReadError::GivenUp) => return Some(object),
            Err(_) => return None,
        };
        let (key, head, fresh) = (object.key.clone(), object.head.clone(), Arc::clone(&object.fresh));
        let body = memory::body(bytes);
        let in_memory = Object::new(key, object.id, head, fresh, body, object.origin());
        Some(Arc::new(in_memory.complete(finished, true).kept_by(self)))
    }

    /// The object whose file was opened.
    pub(super) fn loaded(&'static self, key: Key, file: fs::File, record: Record) -> Object {
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

    /// The id of what is stored under `hash`.
    pub async fn id_of(&'static self, hash: Hash) -> Option<u64> {
        if let Some(object) = self.memory.get(&hash) {
            return Some(object.id);
        }
        tokio::task::spawn_blocking(move || self.load(&hash).map(|(_, record)| record.id))
            .await
            .ok()?
    }
}
