//! The hot tier: small objects whole, larger ones as an open file with its head decoded.

use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::{Body, Hash, Object};

/// What an entry costs beside its body: head, prepared response, map slots, and for a file its descriptor.
const OVERHEAD: u64 = 4 << 10;
/// Open files are bounded by this weight: 256 MB of memory keep at most some 4,000 of them open.
const FILE_WEIGHT: u64 = 64 << 10;

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<Hash, Arc<Object>> for ByBytes {
    fn weight(&self, _: &Hash, object: &Arc<Object>) -> u64 {
        match &object.body {
            Body::Memory(bytes) => bytes.len() as u64 + OVERHEAD,
            Body::File { .. } => FILE_WEIGHT,
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
        let items = usize::try_from(bytes / (16 << 10)).unwrap_or(usize::MAX).clamp(64, 1 << 20);
        Memory { cache: Cache::with_weighter(items, bytes.max(FILE_WEIGHT), ByBytes), largest: (bytes / 64).min(1 << 20) }
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
