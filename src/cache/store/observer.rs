//! Who is told what happens to stored objects.

use crate::cache::key::Key;
use crate::cache::object::Object;

/// Told what happens to stored objects, for the catalogue and the metrics. Never called on a request's path.
#[deny(missing_docs)]
pub trait Observer: Send + Sync {
    /// `key` was used `hits` times since the last call.
    fn used(&self, key: &Key, hits: u64);
    /// An object was found on disk that was not in memory: whoever keeps a list may not know it.
    fn found(&self, object: &Object);
    /// The object of `key` is gone from here because space was short; `backed_up` says that the bucket has it.
    fn evicted(&self, key: &str, bytes: u64, backed_up: bool);
    /// The object of `key` is gone from here because its file was damaged or could not be read.
    fn lost(&self, key: &str, backed_up: bool);
}
