//! A flush: what it covers is gone, or expired, at once, though finding all of it takes a while. Until it is made, whatever is
//! read from disk is judged by it.

use super::disk::Record;
use super::freshness;
use super::object::Object;
use super::time::Millis;

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
    /// The last moment that is flushed: what is expired was fresh until then, and is not for the rest of a millisecond.
    pub fn last(&self) -> Millis {
        self.at.saturating_sub(1)
    }

    /// Whether what was stored and checked then was there before it was flushed.
    pub fn is_before(&self, stored_at: Millis, checked_at: Millis) -> bool {
        let moment = if self.expire { checked_at } else { stored_at };
        freshness::is_before(moment, self.at)
    }

    fn is_for(&self, key: &str, stored_at: Millis, checked_at: Millis) -> bool {
        self.is_before(stored_at, checked_at) && (self.covers)(key)
    }

    /// Whether `object` is flushed.
    pub fn is_for_object(&self, object: &Object) -> bool {
        self.is_for(&object.key.text, object.head.stored_at, object.fresh.checked_at())
    }

    /// Whether what is stored so is flushed.
    pub fn is_for_record(&self, record: &Record) -> bool {
        self.is_for(&record.key_text, record.head.stored_at, record.checked_at)
    }
}

/// What a sweep found under one hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swept {
    /// Nothing that it is for is there any more; the id of what was.
    Made(Option<u64>),
    /// What is there was stored since.
    Newer,
    /// What is there cannot be removed, expired or read now.
    Failed,
}
