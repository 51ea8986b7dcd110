//! Small answers that are not stored: shared by those who waited for them, and for a short time remembered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::cache::{Hash, Key};
use crate::upstream::Failure;

/// Bodies of error answers are kept up to this; what is longer is passed by.
pub(super) const MAX_BODY: usize = 64 << 10;
/// Memory for remembered refusals.
const MEMORY: u64 = 16 << 20;

/// An answer of upstream's, or one made here for want of it.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    /// Upstream's headers, cleaned; empty for our own.
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Set where there is no answer of upstream's: the reason for people.
    pub reason: Option<String>,
    /// ... and whether that is that upstream was not reached.
    pub unreachable: bool,
    /// `Retry-After`, where waiting helps.
    pub retry_after: Option<String>,
}

impl Answer {
    pub fn failure(failure: &Failure) -> Self {
        let retry_after = match failure.status {
            503 => Some("5".to_owned()),
            502 | 504 if failure.unreachable => Some("10".to_owned()),
            _ => None,
        };
        Answer {
            status: failure.status,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            reason: Some(failure.reason.clone()),
            unreachable: failure.unreachable,
            retry_after,
        }
    }
}

#[derive(Debug, Clone)]
struct Remembered {
    key: Key,
    answer: Arc<Answer>,
    until: Instant,
}

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<Hash, Remembered> for ByBytes {
    fn weight(&self, _: &Hash, remembered: &Remembered) -> u64 {
        (remembered.answer.body.len() + remembered.key.text.len() + 512) as u64
    }
}

/// Refusals (404, 410, 451) that upstream is not asked about again for a while.
#[derive(Debug)]
pub struct Negative {
    cache: Cache<Hash, Remembered, ByBytes>,
}

impl Default for Negative {
    fn default() -> Self {
        Negative {
            cache: Cache::with_weighter(16_384, MEMORY, ByBytes),
        }
    }
}

impl Negative {
    pub fn get(&self, hash: &Hash) -> Option<Arc<Answer>> {
        let remembered = self.cache.get(hash)?;
        if remembered.until <= Instant::now() {
            self.cache.remove(hash);
            return None;
        }
        Some(remembered.answer)
    }

    pub fn remember(&self, key: &Key, answer: Arc<Answer>, ttl: Duration) {
        if let Some(until) = Instant::now().checked_add(ttl)
            && !ttl.is_zero()
        {
            self.cache.insert(
                key.hash,
                Remembered {
                    key: key.clone(),
                    answer,
                    until,
                },
            );
        }
    }

    pub fn forget(&self, matches: impl Fn(&str) -> bool) {
        self.cache.retain(|_, remembered| !matches(&remembered.key.text));
    }
}
