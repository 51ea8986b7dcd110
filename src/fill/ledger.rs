//! Flushes as this node knows them: what was stored before one, and is covered by it, is flushed, wherever it comes from.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::unfinished::Unfinished;
use crate::cache::{Key, Millis, is_before};
use crate::fleet::{Fence, Fleet, Flush, Record};

/// Flushes that a node without Redis remembers.
const MAX_OWN_FLUSHES: usize = 1000;

/// Tells whether a flush covers the object of a key.
pub type Covers = Box<dyn Fn(&str) -> bool + Send + Sync>;
/// Reads a flush's request.
pub type ReadFlush = Box<dyn Fn(&Flush) -> Option<(Covers, bool)> + Send + Sync>;

/// A flush that was read.
struct Meaning {
    id: String,
    at: Millis,
    covers: Covers,
    /// Whether the bodies stay.
    expire: bool,
}

/// Flushes that were read.
struct Understood {
    of: Arc<Vec<Flush>>,
    flushes: Vec<Arc<Meaning>>,
}

/// The flushes that count here: the fleet's, or this node's own.
pub struct Ledger {
    fleet: Option<Arc<Fleet>>,
    read: ReadFlush,
    unfinished: Option<Arc<Unfinished>>,
    /// Those of this node, where there is no Redis to remember them.
    own: ArcSwap<Vec<Flush>>,
    known: ArcSwap<Understood>,
}

impl Ledger {
    pub fn new(fleet: Option<Arc<Fleet>>, read: ReadFlush, unfinished: Option<Unfinished>) -> Self {
        Ledger {
            fleet,
            read,
            unfinished: unfinished.map(Arc::new),
            own: ArcSwap::default(),
            known: ArcSwap::from_pointee(Understood {
                of: Arc::default(),
                flushes: Vec::new(),
            }),
        }
    }

    /// Notes on disk that a flush was begun here, or was made.
    pub(super) async fn note(&self, flush: &Flush, begun: bool) {
        let Some(unfinished) = self.unfinished.clone() else {
            return;
        };
        let flush = flush.clone();
        let noting = tokio::task::spawn_blocking(move || match begun {
            true => unfinished.begin(&flush),
            false => unfinished.end(&flush),
        });
        // The task fails only when the process ends.
        let _ = noting.await;
    }

    /// The flushes that an earlier process has begun and not made. Blocks, shortly.
    pub(super) fn begun(&self) -> Vec<Flush> {
        self.unfinished
            .as_ref()
            .map_or_else(Vec::new, |unfinished| unfinished.list())
    }

    /// Without Redis: what was flushed here is not brought back from the bucket.
    pub fn remember(&self, flush: Flush) {
        self.own.rcu(|flushes| {
            let mut flushes = Vec::clone(flushes);
            flushes.insert(0, flush.clone());
            flushes.truncate(MAX_OWN_FLUSHES);
            flushes
        });
    }

    /// What a flush asks for, if it can be understood.
    pub fn read(&self, flush: &Flush) -> Option<(Covers, bool)> {
        (self.read)(flush)
    }

    /// Reads what is new, which may mean to compile patterns, so that whoever asks next need not. Blocks.
    pub(super) fn catch_up(&self) {
        self.known();
    }

    fn known(&self) -> Arc<Understood> {
        let of = match &self.fleet {
            Some(fleet) => fleet.flushes(),
            None => self.own.load_full(),
        };
        let known = self.known.load_full();
        if Arc::ptr_eq(&of, &known.of) || (of.is_empty() && known.of.is_empty()) {
            return known;
        }
        let before: HashMap<&str, _> = known.flushes.iter().map(|flush| (&*flush.id, flush)).collect();
        let understood = |flush: &Flush| match before.get(&*flush.id) {
            // A pattern is compiled once, not with every flush that follows.
            Some(known) => Some(Arc::clone(known)),
            None => self.understand(flush),
        };
        let flushes = of.iter().filter_map(understood).collect();
        let known = Arc::new(Understood { of, flushes });
        self.known.store(Arc::clone(&known));
        known
    }

    fn understand(&self, flush: &Flush) -> Option<Arc<Meaning>> {
        let (covers, expire) = (self.read)(flush)?;
        Some(Arc::new(Meaning {
            id: flush.id.clone(),
            at: flush.at,
            covers,
            expire,
        }))
    }

    /// Whether what a word is said of was flushed since the fill that said it began: whoever has it may not have heard of
    /// that. Both times are Redis's.
    pub fn is_flushed_word(&self, key: &Key, record: &Record) -> bool {
        let began = Fence(record.generation).millis();
        self.flushed(key, began, began).is_some()
    }

    /// Whether what was stored at this time was flushed since, body and all.
    pub fn is_flushed(&self, key: &Key, stored_at: Millis) -> bool {
        self.flushed(key, stored_at, Millis::MAX) == Some(false)
    }

    /// Whether what was stored and checked at these times is flushed since: `Some(true)` where the body may still be
    /// revalidated.
    pub(super) fn flushed(&self, key: &Key, stored_at: Millis, checked_at: Millis) -> Option<bool> {
        let mut only_expired = None;
        for flush in &self.known().flushes {
            let moment = if flush.expire { checked_at } else { stored_at };
            if is_before(moment, flush.at) && (flush.covers)(&key.text) {
                if !flush.expire {
                    return Some(false);
                }
                only_expired = Some(true);
            }
        }
        only_expired
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    #[test]
    fn a_flush_is_read_once_however_many_follow() {
        let reads = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&reads);
        let read = move |flush: &Flush| -> Option<(Covers, bool)> {
            counted.fetch_add(1, Relaxed);
            let prefix = flush.request["prefix"].as_str()?.to_owned();
            Some((Box::new(move |key: &str| key.starts_with(&prefix)), false))
        };
        let ledger = Ledger::new(None, Box::new(read), None);
        let key = |path: &str| Key::new("files", path, None, "");
        assert!(!ledger.is_flushed(&key("a/1"), 0));
        for (number, prefix) in ["files\0a/", "files\0b/", "files\0c/"].into_iter().enumerate() {
            ledger.remember(Flush::new(serde_json::json!({"prefix": prefix})));
            ledger.catch_up();
            assert!(ledger.is_flushed(&key("a/1"), 0));
            assert_eq!(ledger.is_flushed(&key("b/1"), 0), number >= 1);
            assert_eq!(reads.load(Relaxed), number + 1);
        }
    }
}
