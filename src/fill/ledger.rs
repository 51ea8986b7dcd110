//! Flushes as this node knows them: what was stored before one, and is covered by it, is flushed, wherever it comes from.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::unfinished::Unfinished;
use crate::cache::{Key, Millis, now_ms, was_before};
use crate::fleet::{Fleet, Flush, Word};

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
    pub fn is_flushed_word(&self, key: &Key, word: &Word) -> bool {
        let began = word.began();
        self.flushed(key, began, began).is_some()
    }

    /// Whether what was stored at this time was flushed since, body and all.
    pub fn is_flushed(&self, key: &Key, stored_at: Millis) -> bool {
        self.flushed(key, stored_at, Millis::MAX) == Some(false)
    }

    /// Whether what was stored and checked at these times is flushed since: `Some(true)` where the body may still be
    /// revalidated.
    pub(super) fn flushed(&self, key: &Key, stored_at: Millis, checked_at: Millis) -> Option<bool> {
        let known = self.known();
        let flushes = known
            .flushes
            .iter()
            .map(|flush| (flush.at, flush.expire, &flush.covers));
        judge(flushes, |covers| covers(&key.text), (stored_at, checked_at), now_ms())
    }
}

/// What becomes, by `flushes` (when, whether bodies stay, and of what, of which `covers` tells whether the object is among it),
/// of what was stored and checked at these times; see [`Ledger::flushed`].
pub(super) fn judge<T>(
    flushes: impl Iterator<Item = (Millis, bool, T)>,
    covers: impl Fn(T) -> bool,
    (stored_at, checked_at): (Millis, Millis),
    now: Millis,
) -> Option<bool> {
    let mut only_expired = None;
    for (at, expire, what) in flushes {
        let moment = if expire { checked_at } else { stored_at };
        if was_before(moment, at, now) && covers(what) {
            if !expire {
                return Some(false);
            }
            only_expired = Some(true);
        }
    }
    only_expired
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;
    use crate::cache::Class;
    use crate::fleet::{Fence, Node};

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

    #[test]
    fn a_word_that_was_said_late_of_what_was_fetched_before_a_flush_is_flushed() {
        let ledger = Ledger::new(None, Box::new(|_| Some((Box::new(|_: &str| true), true))), None);
        let flush = Flush::new(serde_json::Value::Null);
        let (key, at) = (Key::from_text("a\0b\0"), flush.at);
        let word = |fence: Millis, checked_at| Word {
            id: 1,
            class: Class::Mutable,
            checked_at,
            fresh_until: at + 60_000,
            etag: None,
            generation: fence * 1000,
            node: Node::new(None),
            in_bucket: false,
        };
        assert!(!ledger.is_flushed_word(&key, &word(at - 2, at - 1)));
        ledger.remember(flush);
        assert!(ledger.is_flushed_word(&key, &word(at - 2, at - 1)));
        // The flush came between the question to upstream and the lock, which was taken for the rest of the body.
        assert_eq!(Fence(word(at + 1, at - 1).generation).millis(), at + 1);
        assert!(ledger.is_flushed_word(&key, &word(at + 1, at - 1)));
        assert!(ledger.is_flushed_word(&key, &word(at - 1, at + 1)));
        assert!(!ledger.is_flushed_word(&key, &word(at, at + 1)));
    }
}
