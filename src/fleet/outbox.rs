//! What is sent without anybody waiting for it. While Redis is away it is kept, for each key only the newest.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use indexmap::IndexMap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::word::{Fence, Word};
use crate::cache::{Hash, Key, Millis, now_ms};
use crate::config::Secret;

/// What waits at most. If there is more, other nodes are told to distrust what they know instead.
const BOUND: usize = 10_000;

/// Something for Redis to hear.
#[derive(Debug, Clone)]
pub(super) enum Parcel {
    Word(Key, Saying),
    /// The body with this id is in the bucket.
    Uploaded(Key, u64),
    Reupload(Key, u64),
    /// Gives up the lock that was taken under this name.
    Release(Key, String),
    Token {
        name: String,
        token: Secret,
        end: Millis,
    },
    /// Others are to trust nothing that is as old as this.
    Distrust(Millis),
}

/// What is said of a key.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Saying {
    Is(Word),
    Gone(Fence),
    /// For whoever began to fill before the fence; since when.
    Expired(Fence, Millis),
}

impl Saying {
    /// The one that is left of two, of which `self` was said first.
    fn then(self, next: Saying) -> Saying {
        match (self, next) {
            (Saying::Is(a), Saying::Is(b)) => Saying::Is(if b.generation < a.generation { a } else { b }),
            (Saying::Gone(fence), Saying::Is(word)) if Fence(word.generation) < fence => Saying::Gone(fence),
            (Saying::Is(word), Saying::Gone(fence)) if fence < Fence(word.generation) => Saying::Is(word),
            (Saying::Is(word), Saying::Expired(fence, at)) | (Saying::Expired(fence, at), Saying::Is(word)) => {
                let expired = Fence(word.generation) < fence;
                Saying::Is(Word {
                    fresh_until: word.fresh_until.min(if expired { at } else { Millis::MAX }),
                    ..word
                })
            }
            (Saying::Gone(fence), Saying::Expired(..)) => Saying::Gone(fence),
            (_, next) => next,
        }
    }
}

/// Of two parcels for one slot the newer replaces the other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Slot {
    Saying(Hash),
    Uploaded(Hash),
    Reupload(Hash),
    Release(String),
    Token(String),
    Distrust,
}

impl Parcel {
    fn slot(&self) -> Slot {
        match self {
            Parcel::Word(key, _) => Slot::Saying(key.hash),
            Parcel::Uploaded(key, _) => Slot::Uploaded(key.hash),
            Parcel::Reupload(key, _) => Slot::Reupload(key.hash),
            Parcel::Release(_, holding) => Slot::Release(holding.clone()),
            Parcel::Token { name, .. } => Slot::Token(name.clone()),
            Parcel::Distrust(_) => Slot::Distrust,
        }
    }

    /// Whether other nodes go wrong without it: a lock and a token come to their end by themselves.
    fn matters(&self) -> bool {
        !matches!(self, Parcel::Release(..) | Parcel::Token { .. })
    }
}

#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: Mutex<IndexMap<Slot, Parcel>>,
    /// Taken, and neither sent nor put back.
    sending: AtomicUsize,
    pub wake: Notify,
}

impl Outbox {
    pub(super) fn put(&self, parcel: Parcel) {
        self.add(parcel, false);
        self.wake.notify_one();
    }

    /// All that was taken is sent, but for `parcels`: they wait again, unless something newer has come since.
    pub(super) fn put_back(&self, parcels: Vec<Parcel>) {
        for parcel in parcels {
            self.add(parcel, true);
        }
        self.sending.store(0, Relaxed);
    }

    fn add(&self, parcel: Parcel, again: bool) {
        let mut waiting = self.waiting.lock();
        let slot = parcel.slot();
        if let Some(there) = waiting.get_mut(&slot) {
            match (there, parcel) {
                (Parcel::Word(_, there), Parcel::Word(_, word)) => {
                    let known = there.clone();
                    *there = if again { word.then(known) } else { known.then(word) };
                }
                (there, parcel) if !again => *there = parcel,
                _ => {}
            }
            return;
        }
        if waiting.len() >= BOUND {
            // Many at once: taking one from the front moves all others.
            let dropped = waiting.drain(..BOUND / 10);
            if dropped.filter(|(_, parcel)| parcel.matters()).count() > 0 {
                waiting.insert(Slot::Distrust, Parcel::Distrust(now_ms()));
            }
        }
        waiting.insert(slot, parcel);
    }

    /// The oldest, at most `count`, until [`Outbox::put_back`]. For one at a time.
    pub(super) fn take(&self, count: usize) -> Vec<Parcel> {
        let mut waiting = self.waiting.lock();
        let count = count.min(waiting.len());
        self.sending.store(count, Relaxed);
        waiting.drain(..count).map(|(_, parcel)| parcel).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.lock().len() + self.sending.load(Relaxed)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::super::Node;
    use super::*;
    use crate::cache::Class;

    fn record(generation: u64, checked_at: Millis) -> Word {
        Word {
            id: generation,
            class: Class::Mutable,
            checked_at,
            fresh_until: checked_at + 1000,
            etag: None,
            generation,
            node: Node::new(None),
            in_bucket: false,
        }
    }

    #[test]
    fn of_two_words_the_later_fill_counts_and_what_expired_is_not_fresh() {
        let (old, new) = (record(1, 100), record(2, 200));
        let is = |word: &Word| Saying::Is(word.clone());
        let expired = Saying::Is(Word {
            fresh_until: 150,
            ..old.clone()
        });
        for (said, next, left) in [
            (is(&old), is(&new), is(&new)),
            (is(&new), is(&old), is(&new)),
            (Saying::Gone(Fence(2)), is(&old), Saying::Gone(Fence(2))),
            (Saying::Gone(Fence(1)), is(&new), is(&new)),
            (is(&old), Saying::Gone(Fence(2)), Saying::Gone(Fence(2))),
            (is(&new), Saying::Gone(Fence(1)), is(&new)),
            (is(&old), Saying::Expired(Fence(2), 150), expired.clone()),
            (Saying::Expired(Fence(2), 150), is(&old), expired),
            (Saying::Expired(Fence(2), 150), is(&new), is(&new)),
            (
                Saying::Expired(Fence(2), 150),
                Saying::Gone(Fence(1)),
                Saying::Gone(Fence(1)),
            ),
            (
                Saying::Gone(Fence(1)),
                Saying::Expired(Fence(2), 150),
                Saying::Gone(Fence(1)),
            ),
            (
                Saying::Expired(Fence(2), 150),
                Saying::Expired(Fence(3), 160),
                Saying::Expired(Fence(3), 160),
            ),
        ] {
            assert_eq!(said.clone().then(next.clone()), left, "{said:?}, then {next:?}");
        }
    }

    #[test]
    fn the_newest_waits_and_too_much_becomes_distrust() {
        let outbox = Outbox::default();
        let key = |number: usize| Key::new("hub", &format!("/{number}"), None, "raw");
        outbox.put(Parcel::Uploaded(key(0), 1));
        outbox.put(Parcel::Uploaded(key(0), 2));
        let taken = outbox.take(10);
        assert!(matches!(&taken[..], [Parcel::Uploaded(_, 2)]));
        assert_eq!(outbox.len(), 1);
        outbox.put(Parcel::Uploaded(key(0), 3));
        outbox.put_back(taken);
        assert!(matches!(&outbox.take(10)[..], [Parcel::Uploaded(_, 3)]));
        outbox.put_back(Vec::new());
        assert!(outbox.is_empty());

        // What ends by itself may be dropped.
        for number in 0..BOUND / 10 {
            outbox.put(Parcel::Release(key(0), number.to_string()));
        }
        for number in outbox.len()..BOUND {
            outbox.put(Parcel::Word(key(number), Saying::Gone(Fence(1))));
        }
        let distrusts = || outbox.waiting.lock().contains_key(&Slot::Distrust);
        for number in 0..BOUND / 10 {
            outbox.put(Parcel::Reupload(key(number), 1));
        }
        assert!(!distrusts() && outbox.len() == BOUND);
        outbox.put(Parcel::Uploaded(key(0), 1));
        assert!(distrusts() && outbox.len() < BOUND);
    }
}
