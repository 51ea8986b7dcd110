//! Where a body goes that the disk does not take: a full or broken disk costs a hit, never an answer. Bounded for each
//! object and for all of them together; what is longer fails and is resumed by Range.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use parking_lot::RwLock;

/// Of one body.
const MAX_OBJECT: u64 = 64 << 20;
/// Of all bodies together.
const MAX_ALL: u64 = 256 << 20;

static HELD: AtomicU64 = AtomicU64::new(0);

/// Whether a body of `length` bytes can be held now.
pub fn has_room_for(length: u64) -> bool {
    length <= MAX_OBJECT && HELD.load(Relaxed) + length <= MAX_ALL
}

/// The part of a body from `at` on, in memory for as long as it is read.
#[derive(Debug)]
pub struct Overflow {
    pub at: u64,
    pieces: RwLock<Pieces>,
}

#[derive(Debug, Default)]
struct Pieces {
    /// Each with the offset in the body at which it starts.
    list: Vec<(u64, Bytes)>,
    length: u64,
}

impl Overflow {
    pub fn new(at: u64) -> Self {
        Overflow {
            at,
            pieces: RwLock::default(),
        }
    }

    /// Appends a piece; `false` where that would be more than may be held.
    pub fn push(&self, data: Bytes) -> bool {
        let length = data.len() as u64;
        let mut pieces = self.pieces.write();
        if pieces.length + length > MAX_OBJECT || HELD.fetch_add(length, Relaxed) + length > MAX_ALL {
            if pieces.length + length <= MAX_OBJECT {
                HELD.fetch_sub(length, Relaxed);
            }
            return false;
        }
        let start = self.at + pieces.length;
        pieces.list.push((start, data));
        pieces.length += length;
        true
    }

    /// The bytes from `position` up to `limit` that lie in one piece; empty if there are none.
    pub fn read(&self, position: u64, limit: u64) -> Bytes {
        let pieces = self.pieces.read();
        let index = pieces.list.partition_point(|(start, _)| *start <= position);
        let Some((start, data)) = index.checked_sub(1).and_then(|index| pieces.list.get(index)) else {
            return Bytes::new();
        };
        let from = ((position - start) as usize).min(data.len());
        let to = ((limit.saturating_sub(*start)) as usize).min(data.len());
        if from < to { data.slice(from..to) } else { Bytes::new() }
    }
}

impl Drop for Overflow {
    fn drop(&mut self) {
        HELD.fetch_sub(self.pieces.read().length, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_found_by_offset_and_bounded() {
        let overflow = Overflow::new(10);
        assert!(overflow.push(Bytes::from_static(b"abc")));
        assert!(overflow.push(Bytes::from_static(b"defg")));
        assert_eq!(overflow.read(10, 100), "abc");
        assert_eq!(overflow.read(12, 100), "c");
        assert_eq!(overflow.read(13, 15), "de");
        assert_eq!(overflow.read(17, 100), "");
        let piece = Bytes::from(vec![0; 1 << 20]);
        let pushed = (0..100).filter(|_| overflow.push(piece.clone())).count();
        assert_eq!(pushed, 63);
        drop(overflow);
        let again = Overflow::new(0);
        assert_eq!((0..100).filter(|_| again.push(piece.clone())).count(), 64);
    }
}
