//! The hot tier: small objects whole, larger ones as an open file with its head decoded.

use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::{Body, Hash, Object};

/// What an entry costs beside its body: head, prepared response, map slots, and for a file its descriptor.
const OVERHEAD: u64 = 4 << 10;
/// An open file weighs at least this.
const FILE_WEIGHT: u64 = 64 << 10;

#[derive(Debug, Clone)]
struct ByBytes {
    /// Chosen so that open files take at most a third of the descriptors that the process may have.
    file_weight: u64,
}

impl Weighter<Hash, Arc<Object>> for ByBytes {
    fn weight(&self, _: &Hash, object: &Arc<Object>) -> u64 {
        match &object.body {
            Body::Memory(bytes) => bytes.len() as u64 + OVERHEAD,
            Body::File { .. } => self.file_weight,
        }
    }
}

/// A bounded map of what was used lately (S3-FIFO with sharded locks).
#[derive(Debug)]
pub struct Memory {
    cache: Cache<Hash, Arc<Object>, ByBytes>,
    /// Bodies up to this are held whole.
    pub largest: u64,
}

impl Memory {
    pub fn new(bytes: u64) -> Self {
        let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile)
            .current
            .unwrap_or(65_536);
        let bytes = bytes.max(FILE_WEIGHT);
        let file_weight = FILE_WEIGHT.max(bytes / (descriptors / 3).max(1));
        let items = usize::try_from(bytes / (16 << 10))
            .unwrap_or(usize::MAX)
            .clamp(64, 1 << 20);
        Memory {
            cache: Cache::with_weighter(items, bytes, ByBytes { file_weight }),
            largest: (bytes / 64).min(1 << 20),
        }
    }
    pub fn get(&self, hash: &Hash) -> Option<Arc<Object>> {
        self.cache.get(hash)
    }
    pub fn insert(&self, object: Arc<Object>) {
        self.cache.insert(object.key.hash, object);
    }
    pub fn remove(&self, hash: &Hash) {
        self.cache.remove(hash);
    }
    pub fn weight(&self) -> u64 {
        self.cache.weight()
    }
    pub fn len(&self) -> usize {
        self.cache.len()
    }
}
