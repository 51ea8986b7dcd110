//! A disk that takes nothing: said once, shown, and tried again.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::cache::disk::Disk;
use crate::cache::key::Hash;

/// While something goes wrong again and again, it is said after a pause of this only.
const QUIET: Duration = Duration::from_secs(10);
/// Why nothing is stored is told for so long.
const TOLD: Duration = Duration::from_secs(60);

/// What keeps things from being stored.
#[derive(Default)]
pub(in crate::cache) struct Trouble {
    /// Set until something can be stored again.
    last: Mutex<Option<Failed>>,
    /// Times that something could not be stored.
    failures: AtomicU64,
}

/// Why nothing could be stored.
struct Failed {
    at: Instant,
    why: String,
    lack: Lack,
}

/// What could not be had, and is tried again.
#[derive(Debug, Clone, Copy)]
enum Lack {
    /// To store something under this hash: the file system failed there.
    Place(Hash),
    /// Room for so many bytes.
    Room(u64),
    /// An answer of the disk: told for a while, as nothing tells when it will come.
    Answer,
}

impl Trouble {
    /// Storing something under `hash` failed, and not for lack of space.
    pub(in crate::cache) fn failed(&self, error: &io::Error, hash: &Hash) {
        self.note(error.to_string(), Lack::Place(*hash));
    }

    /// There is no room for `bytes` more.
    pub(super) fn starved(&self, why: impl ToString, bytes: u64) {
        self.note(why.to_string(), Lack::Room(bytes));
    }

    /// The disk does not answer.
    pub(super) fn hangs(&self) {
        self.note("the disk did not answer in time".to_owned(), Lack::Answer);
    }

    fn note(&self, why: String, lack: Lack) {
        self.failures.fetch_add(1, Relaxed);
        let mut last = self.last.lock();
        if last.as_ref().is_none_or(|last| last.at.elapsed() >= QUIET) {
            tracing::error!(
                why,
                "NOTHING CAN BE STORED: answers pass by uncached until it can again"
            );
        }
        let at = Instant::now();
        *last = Some(Failed { at, why, lack });
    }

    /// Looks whether what failed on `disk` can be done again. `has_room` tells whether so many bytes more could be stored.
    pub(super) fn probe(&self, disk: &Disk, has_room: impl Fn(u64) -> bool) {
        let Some((since, lack)) = self.last.lock().as_ref().map(|last| (last.at, last.lack)) else {
            return;
        };
        let probed = match lack {
            Lack::Place(hash) => disk.probe(&hash),
            Lack::Room(bytes) if has_room(bytes) => Ok(()),
            Lack::Room(_) | Lack::Answer => return,
        };
        let mut last = self.last.lock();
        match (probed, &mut *last) {
            // What failed meanwhile is tried the next time.
            (Ok(()), Some(failed)) if failed.at == since => {
                *last = None;
                tracing::info!("things can be stored again");
            }
            (Err(error), Some(last)) => {
                last.at = Instant::now();
                last.why = error.to_string();
            }
            _ => {}
        }
    }

    /// Why nothing is stored, if that was so in the last minute.
    pub(super) fn told(&self) -> Option<String> {
        let last = self.last.lock();
        let lately = last.as_ref().filter(|last| last.at.elapsed() < TOLD);
        lately.map(|last| last.why.clone())
    }

    /// Times that something could not be stored.
    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lack_of_room_is_told_until_there_is_room() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(folder.path()).unwrap();
        let trouble = Trouble::default();
        trouble.starved("no room", 5);
        trouble.probe(&disk, |bytes| bytes < 5);
        assert_eq!(trouble.told().as_deref(), Some("no room"));
        trouble.probe(&disk, |bytes| bytes <= 5);
        assert_eq!(trouble.told(), None);
        assert_eq!(trouble.failures(), 1);
    }
}
