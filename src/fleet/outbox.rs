//! What is sent without anybody waiting for it. While Redis is away it is kept, for each key only the newest.

use indexmap::IndexMap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Fence, Record};
use crate::cache::{Hash, Key, Millis, now_ms};
use crate::config::Secret;

/// What waits at most. If there is more, other nodes are told to distrust what they know instead.
const BOUND: usize = 10_000;

/// Something for Redis to hear.
#[derive(Debug, Clone)]
pub enum Parcel {
    Word(Key, Word),
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
pub enum Word {
    Is(Record),
    Gone(Fence),
    Expired(Millis),
}

impl Word {
    /// The one that is left of two, of which `self` was said first.
    fn then(self, next: Word) -> Word {
        match (self, next) {
            (Word::Is(a), Word::Is(b)) => Word::Is(if b.generation < a.generation { a } else { b }),
            (Word::Gone(fence), Word::Is(record)) if Fence(record.generation) < fence => Word::Gone(fence),
            (Word::Is(record), Word::Gone(fence)) if fence < Fence(record.generation) => Word::Is(record),
            (Word::Is(record), Word::Expired(at)) | (Word::Expired(at), Word::Is(record)) => Word::Is(Record {
                fresh_until: match record.checked_at < at {
                    true => record.fresh_until.min(at),
                    false => record.fresh_until,
                },
                ..record
            }),
            (Word::Gone(fence), Word::Expired(_)) => Word::Gone(fence),
            (Word::Expired(a), Word::Expired(b)) => Word::Expired(a.max(b)),
            (_, next) => next,
        }
    }
}

/// Of two parcels for one slot the newer replaces the other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Slot {
    Word(Hash),
    Uploaded(Hash),
    Reupload(Hash),
    Release(String),
    Token(String),
    Distrust,
}

impl Parcel {
    fn slot(&self) -> Slot {
        match self {
            Parcel::Word(key, _) => Slot::Word(key.hash),
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
pub struct Outbox {
    waiting: Mutex<IndexMap<Slot, Parcel>>,
    pub wake: Notify,
}

impl Outbox {
    pub fn put(&self, parcel: Parcel) {
        self.add(parcel, false);
        self.wake.notify_one();
    }

    /// Puts back what could not be sent, unless something newer has come since.
    pub fn put_back(&self, parcels: Vec<Parcel>) {
        for parcel in parcels {
            self.add(parcel, true);
        }
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
            if let Some((_, dropped)) = waiting.shift_remove_index(0)
                && dropped.matters()
            {
                waiting.insert(Slot::Distrust, Parcel::Distrust(now_ms()));
            }
        }
        waiting.insert(slot, parcel);
    }

    /// The oldest, at most `count`.
    pub fn take(&self, count: usize) -> Vec<Parcel> {
        let mut waiting = self.waiting.lock();
        let count = count.min(waiting.len());
        waiting.drain(..count).map(|(_, parcel)| parcel).collect()
    }

    pub fn len(&self) -> usize {
        self.waiting.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
