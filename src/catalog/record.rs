//! One object as the catalogue lists it, and what happens to objects.

use std::time::{SystemTime, UNIX_EPOCH};

/// How long an object may be trusted, as it is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    Immutable,
    Mutable,
}

impl Class {
    /// The class in words, for queries and answers.
    pub fn name(self) -> &'static str {
        match self {
            Class::Immutable => "immutable",
            Class::Mutable => "mutable",
        }
    }

    /// The inverse of [`Class::name`].
    pub fn from_name(name: &str) -> Option<Class> {
        match name {
            "immutable" => Some(Class::Immutable),
            "mutable" => Some(Class::Mutable),
            _ => None,
        }
    }
}

/// One stored object. Times are Unix seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub remote: String,
    /// Percent-encoded in its normal form, without leading slash, with `?query` where there is one.
    pub path: String,
    /// Which of several documents under one path this is (`json`); mostly empty.
    pub form: String,
    pub class: Class,
    pub size: u64,
    /// `sha256:` and 64 hex digits.
    pub digest: String,
    pub content_type: String,
    pub etag: Option<String>,
    pub last_modified: Option<String>,
    /// From upstream's `Last-Modified`.
    pub published_at: Option<i64>,
    pub first_seen: i64,
    pub last_seen: i64,
    pub hits: u64,
    /// `None` means for ever.
    pub fresh_until: Option<i64>,
    /// The store's hash of the object, 32 hex digits: by it a flush finds what to remove.
    pub key: String,
}

/// What happened to an object.
#[derive(Debug, Clone)]
pub enum Event {
    /// A fill was admitted. If the object was known, its `first_seen` and hits are kept; `object.hits` is added.
    Stored { object: Box<Record> },
    /// The object was served. [`super::Catalog::hits`] says the same without owned texts.
    Hit {
        remote: String,
        path: String,
        form: String,
        at: i64,
    },
    /// Its freshness changed, its content did not. An `at` of 0 leaves `last_seen`: nobody asked for it.
    Refreshed {
        remote: String,
        path: String,
        form: String,
        fresh_until: Option<i64>,
        at: i64,
    },
    /// The object is no longer stored: evicted, flushed, or gone upstream.
    Removed { remote: String, path: String, form: String },
}

/// Unix seconds, now.
pub fn unix_now() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX),
    }
}
