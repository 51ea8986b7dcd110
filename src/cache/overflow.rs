//! Where a body goes that the disk does not take: a full or broken disk costs a hit, never an answer.
//!
//! What is held is bounded for each object and for all of them together. A body that is longer passes through: what every
//! reader has read is let go, and whoever writes waits for the slowest of them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Of one body.
const MAX_OBJECT: u64 = 64 << 20;
/// Of all bodies together, in between, as much as the memory tier may have.
const MAX_ALL: u64 = 256 << 20;
const MIN_ALL: u64 = 32 << 20;
/// Of one body, whatever others hold: it must move on.
const LEAST: u64 = 1 << 20;
/// Whoever was told of a body has this long to begin reading it.
const NO_READER: Duration = Duration::from_secs(5);
/// A reader that does not move for so long is left behind where others wait for it.
const LAGGARD: Duration = Duration::from_secs(60);
/// Where nobody else reads, a reader has as long as one write to a client may take.
const ONLY_READER: Duration = Duration::from_secs(480);
/// `at` of a body that the disk takes.
const NOTHING: u64 = u64::MAX;

static HELD: AtomicU64 = AtomicU64::new(0);
static LIMIT: AtomicU64 = AtomicU64::new(MAX_ALL);

/// Bounds what bodies may take of memory that the disk does not take, by what the memory tier has.
pub fn bound(memory_bytes: u64) {
    LIMIT.store(memory_bytes.clamp(MIN_ALL, MAX_ALL), Relaxed);
}

/// Whether a body of `length` bytes can be held now.
pub(super) fn has_room_for(length: u64) -> bool {
    let limit = LIMIT.load(Relaxed);
    length <= MAX_OBJECT.min(limit) && HELD.load(Relaxed) + length <= limit
}

/// Where the bytes at some offset are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    Held(Bytes),
    /// In the object's body, up to this offset.
    Body(u64),
    /// Nowhere any more: the body passes through, and this reader was left behind.
    Gone,
}

/// Nothing more of a body can be held.
#[derive(Debug, thiserror::Error)]
pub(super) enum Full {
    #[error("it can neither be stored nor held in memory, and nobody reads it")]
    Unread,
    #[error("it can neither be stored nor held in memory, and whoever reads it has stopped")]
    Stalled,
}

/// How far a reader of a growing body has come.
#[derive(Debug)]
pub(super) struct Position(AtomicU64);

/// The part of a body from some offset on, in memory for as long as it is read or until the disk takes it after all.
#[derive(Debug)]
pub(super) struct Overflow {
    /// Where that part begins.
    at: AtomicU64,
    pieces: RwLock<Pieces>,
    readers: Mutex<Vec<Weak<Position>>>,
    /// A reader has moved on, or is gone.
    moved: Notify,
}

#[derive(Debug, Default)]
struct Pieces {
    /// Each with the offset in the body at which it starts.
    list: VecDeque<(u64, Bytes)>,
    held: u64,
    /// Where the next piece starts.
    end: u64,
    /// Some were let go, or are about to be: the whole is nowhere.
    passing: bool,
    /// Nobody reads, so that nothing is held: the body goes on for its length.
    unread: bool,
}

impl Pieces {
    fn has_room_for(&self, length: u64) -> bool {
        let limit = LIMIT.load(Relaxed);
        self.list.is_empty()
            || self.held + length <= LEAST
            || self.held + length <= MAX_OBJECT.min(limit) && HELD.load(Relaxed) + length <= limit
    }

    /// Holds nothing from now on.
    fn stop_holding(&mut self) {
        self.unread = true;
        self.let_go(u64::MAX);
    }

    /// Lets go of what lies before `position`.
    fn let_go(&mut self, position: u64) {
        while let Some((start, piece)) = self.list.front() {
            let length = piece.len() as u64;
            if start + length > position {
                return;
            }
            self.list.pop_front();
            self.held -= length;
            HELD.fetch_sub(length, Relaxed);
        }
    }
}

impl Default for Overflow {
    fn default() -> Self {
        Overflow {
            at: NOTHING.into(),
            pieces: RwLock::default(),
            readers: Mutex::default(),
            moved: Notify::new(),
        }
    }
}

impl Overflow {
    /// From `at` on everything is held here. Only the first call counts.
    pub(super) fn begin(&self, at: u64) {
        if self.at.compare_exchange(NOTHING, at, SeqCst, SeqCst).is_ok() {
            self.pieces.write().end = at;
        }
    }

    pub(super) fn has_begun(&self) -> bool {
        self.at.load(SeqCst) != NOTHING
    }

    /// Whether the body passes through, so that nobody can begin to read it any more.
    pub(super) fn is_passing(&self) -> bool {
        self.pieces.read().passing
    }

    /// A new reader, at the beginning.
    pub(super) fn reader(&self) -> Arc<Position> {
        let position = Arc::new(Position(AtomicU64::new(0)));
        let mut readers = self.readers.lock();
        if readers.len() == readers.capacity() {
            readers.retain(|reader| reader.strong_count() > 0);
        }
        readers.push(Arc::downgrade(&position));
        position
    }

    /// That reader needs nothing before `position` any more; `u64::MAX` once it is done.
    pub(super) fn move_to(&self, reader: &Position, position: u64) {
        reader.0.store(position, SeqCst);
        if self.has_begun() {
            self.moved.notify_one();
        }
    }

    /// Where the slowest and the fastest reader are; `None` if nobody wants more.
    fn positions(&self) -> Option<(u64, u64)> {
        let readers = self.readers.lock();
        let live = readers.iter().filter_map(Weak::upgrade);
        live.map(|position| position.0.load(SeqCst))
            .filter(|position| *position != u64::MAX)
            .fold(None, |seen: Option<(u64, u64)>, position| {
                Some(seen.map_or((position, position), |(slowest, fastest)| {
                    (slowest.min(position), fastest.max(position))
                }))
            })
    }

    /// Appends a piece as soon as it may be held. `passes` is called when the body begins to pass through. Where nobody reads
    /// any more, a body that `could_fit` goes on all the same: its length, which is all that is learned, lets the next
    /// fetch make room for it.
    ///
    /// # Errors
    /// Nobody reads any more, what is held is all that may be, and the body could not be stored.
    pub(super) async fn push(&self, data: Bytes, could_fit: bool, mut passes: impl FnMut()) -> Result<(), Full> {
        let mut waiting: Option<(Option<u64>, Instant)> = None;
        loop {
            let was_passing = self.is_passing();
            let pushed = self.try_push(&data);
            if !was_passing && self.is_passing() {
                passes();
            }
            let Some(readers) = pushed else { return Ok(()) };
            let slowest = readers.map(|(slowest, _)| slowest);
            let since = match waiting {
                Some((before, since)) if before == slowest => since,
                _ => waiting.insert((slowest, Instant::now())).1,
            };
            let limit = match readers {
                None => NO_READER,
                Some((slowest, fastest)) if fastest > slowest => LAGGARD,
                Some(_) => ONLY_READER,
            };
            if tokio::time::timeout_at(since + limit, self.moved.notified())
                .await
                .is_ok()
            {
                continue;
            }
            match readers {
                None if could_fit => self.pieces.write().stop_holding(),
                None => return Err(Full::Unread),
                Some((slowest, fastest)) if fastest > slowest => self.leave_behind(slowest),
                Some(_) => return Err(Full::Stalled),
            }
        }
    }

    /// `None`: it is held; else where the readers are that it has to wait for.
    fn try_push(&self, data: &Bytes) -> Option<Option<(u64, u64)>> {
        let length = data.len() as u64;
        let mut pieces = self.pieces.write();
        if pieces.unread {
            pieces.end += length;
            return None;
        }
        let full = !pieces.has_room_for(length);
        if full || pieces.passing {
            pieces.passing = true;
            let readers = self.positions();
            if let Some((slowest, _)) = readers {
                pieces.let_go(slowest);
            }
            if readers.is_none() || !pieces.has_room_for(length) {
                return Some(readers);
            }
        }
        HELD.fetch_add(length, Relaxed);
        pieces.held += length;
        let start = pieces.end;
        pieces.end += length;
        pieces.list.push_back((start, data.clone()));
        None
    }

    /// Forgets the readers at `position`: they find nothing any more.
    fn leave_behind(&self, position: u64) {
        let at_least =
            |reader: &Weak<Position>| reader.upgrade().is_some_and(|reader| reader.0.load(SeqCst) > position);
        self.readers.lock().retain(at_least);
    }

    /// Where the bytes from `position` up to `limit` are.
    pub(super) fn find(&self, position: u64, limit: u64) -> Place {
        let at = self.at.load(SeqCst);
        if position < at {
            return Place::Body(limit.min(at));
        }
        let pieces = self.pieces.read();
        // It was stored after all.
        if self.at.load(SeqCst) != at {
            return Place::Body(limit);
        }
        let index = pieces.list.partition_point(|(start, _)| *start <= position);
        let Some((start, data)) = index.checked_sub(1).and_then(|index| pieces.list.get(index)) else {
            return Place::Gone;
        };
        let from = ((position - start) as usize).min(data.len());
        let to = ((limit.saturating_sub(*start)) as usize).min(data.len());
        if from < to {
            Place::Held(data.slice(from..to))
        } else {
            Place::Gone
        }
    }

    /// All that is held, each piece with its offset in the body.
    pub(super) fn pieces(&self) -> Vec<(u64, Bytes)> {
        self.pieces.read().list.iter().cloned().collect()
    }

    /// The disk has taken it: nothing is held any more, and readers find it in the body.
    pub(super) fn is_stored(&self) {
        let mut pieces = self.pieces.write();
        self.at.store(NOTHING, SeqCst);
        pieces.let_go(u64::MAX);
    }
}

impl Drop for Overflow {
    fn drop(&mut self) {
        self.pieces.get_mut().let_go(u64::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap()
            .block_on(test);
    }

    fn held(bytes: &'static [u8]) -> Place {
        Place::Held(Bytes::from_static(bytes))
    }

    #[test]
    fn pieces_are_found_by_offset_and_go_to_the_disk_when_it_takes_them() {
        run(async {
            let overflow = Overflow::default();
            assert_eq!(overflow.find(3, 100), Place::Body(100));
            overflow.begin(10);
            overflow.begin(50);
            overflow.push(Bytes::from_static(b"abc"), true, || ()).await.unwrap();
            overflow.push(Bytes::from_static(b"defg"), true, || ()).await.unwrap();
            assert_eq!(overflow.find(3, 100), Place::Body(10));
            assert_eq!(overflow.find(10, 100), held(b"abc"));
            assert_eq!(overflow.find(12, 100), held(b"c"));
            assert_eq!(overflow.find(13, 15), held(b"de"));
            assert_eq!(overflow.find(17, 100), Place::Gone);
            assert_eq!(overflow.pieces().len(), 2);
            overflow.is_stored();
            assert_eq!(overflow.find(12, 100), Place::Body(100));
            assert!(overflow.pieces().is_empty());
        });
    }

    // The bound of all is the process's, so one test looks at all of it.
    #[test]
    fn what_is_held_is_bounded_and_a_longer_body_passes_through_at_its_readers_pace() {
        run(async {
            const MB: u64 = 1 << 20;
            let piece = Bytes::from(vec![0; MB as usize]);
            let overflow = Overflow::default();
            overflow.begin(0);
            for _ in 0..64 {
                overflow.push(piece.clone(), false, || ()).await.unwrap();
            }
            assert!(!overflow.is_passing());
            let (slow, fast) = (overflow.reader(), overflow.reader());
            overflow.move_to(&slow, 2 * MB);
            overflow.move_to(&fast, 64 * MB);
            for _ in 0..2 {
                overflow.push(piece.clone(), false, || ()).await.unwrap();
            }
            assert!(overflow.is_passing());
            assert_eq!(overflow.find(MB, 100 * MB), Place::Gone);
            assert!(matches!(overflow.find(2 * MB, 100 * MB), Place::Held(_)));
            // The slow one holds up the next piece until it moves, and is left behind when it does not.
            let waiting = tokio::time::timeout(Duration::from_secs(30), overflow.push(piece.clone(), false, || ()));
            assert!(waiting.await.is_err());
            overflow.move_to(&slow, 3 * MB);
            overflow.push(piece.clone(), false, || ()).await.unwrap();
            let before = Instant::now();
            overflow.move_to(&fast, 67 * MB);
            overflow.push(piece.clone(), false, || ()).await.unwrap();
            assert_eq!(before.elapsed().as_secs(), LAGGARD.as_secs());
            assert_eq!(overflow.find(3 * MB, 100 * MB), Place::Gone);
            assert!(matches!(overflow.find(67 * MB, 100 * MB), Place::Held(_)));
            // Others have their own bound, and together one.
            let others: Vec<Overflow> = (0..5).map(|_| Overflow::default()).collect();
            for other in &others {
                other.begin(0);
                while !other.is_passing() {
                    let _ = tokio::time::timeout(Duration::from_secs(1), other.push(piece.clone(), false, || ())).await;
                }
            }
            assert!(HELD.load(Relaxed) <= MAX_ALL + 5 * LEAST, "{}", HELD.load(Relaxed));
            assert!(!has_room_for(64 * MB));
            drop((slow, fast));
            assert!(matches!(
                overflow.push(piece.clone(), false, || ()).await,
                Err(Full::Unread)
            ));
            // What may be stored the next time is taken to its end, and nothing of it is held.
            let before = Instant::now();
            for _ in 0..100 {
                overflow.push(piece.clone(), true, || ()).await.unwrap();
            }
            assert_eq!(before.elapsed().as_secs(), NO_READER.as_secs());
            assert!(overflow.pieces().is_empty());
            drop((overflow, others));
            assert!(has_room_for(64 * MB));
        });
    }
}
