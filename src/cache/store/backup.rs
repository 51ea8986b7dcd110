//! Who copies what is stored.

use std::io;

use crate::cache::key::Hash;

/// Sees to it that what is stored here, and is not a view, comes to be in the bucket too. Everything may block shortly.
#[deny(missing_docs)]
pub trait Backup: Send + Sync {
    /// An object of `hash` is about to get its name. [`Backup::admitted`] follows, however that goes.
    ///
    /// # Errors
    /// That the object will be in the bucket cannot be seen to: it is not stored.
    fn admitting(&self, hash: &Hash) -> io::Result<()>;
    /// What is stored under `hash` now, and takes `bytes` of the disk, is to be in the bucket.
    fn admitted(&self, hash: &Hash, bytes: u64);
    /// What was stored under `hash` was removed here. (What the bucket holds is not touched by this.)
    fn removed(&self, hash: &Hash);
    /// Whether the bucket does not have yet what is stored under `hash`, so that it must stay.
    fn is_waiting(&self, hash: &Hash) -> bool;
    /// Calls `act` unless [`Backup::is_waiting`], which does not change meanwhile.
    fn unless_waiting(&self, hash: &Hash, act: &mut dyn FnMut());
    /// Bytes of all that waits.
    fn waiting_bytes(&self) -> u64;
}
