//! The scrubber: what is stored is compared with its digests, slowly. A disk that flips a bit says nothing of it, and an object
//! may lie for a year before somebody asks for it.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rustix::fs::{Advice, fadvise};

use super::Store;
use crate::cache::evict;
use crate::cache::key::Hash;
use crate::cache::scrub::FOLDERS;
use crate::cache::time::{Millis, now_ms};

/// A round begins no sooner after the one before, in milliseconds: what is small is not read all day.
const ROUND: Millis = 24 * 3_600_000;
/// Between two looks whether a round is due.
const PAUSE: Duration = Duration::from_secs(60);
/// An object costs the disk at least as much as so many bytes.
const LEAST: u64 = 16 << 10;
/// Shorter waits are added up.
const NAP: Duration = Duration::from_millis(20);

/// Spends no more than so many bytes a second.
pub(in crate::cache) struct Pace {
    rate: u64,
    owed: Duration,
}

impl Pace {
    pub(in crate::cache) fn new(rate: u64) -> Self {
        Pace {
            rate,
            owed: Duration::ZERO,
        }
    }

    pub(in crate::cache) fn spend(&mut self, bytes: u64) {
        self.owed += Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        if self.owed >= NAP {
            std::thread::sleep(std::mem::take(&mut self.owed));
        }
    }
}

impl Store {
    /// Reads all that is stored, round after round, at `rate` bytes a second, and removes what is not what it was; 0 is
    /// never. Returns when the store is closed.
    pub(super) fn keep_scrubbing(&'static self, rate: u64) {
        if rate == 0 {
            return;
        }
        let mut pace = Pace::new(rate);
        let (mut folder, mut began) = self.scrub.load().unwrap_or((0, now_ms()));
        while !self.is_closing() {
            if folder >= FOLDERS {
                if now_ms().saturating_sub(began) < ROUND {
                    std::thread::sleep(PAUSE);
                    continue;
                }
                (folder, began) = (0, now_ms());
            }
            let outer = self.disk.root().join(format!("{folder:02x}"));
            // What cannot be listed is said by the count.
            let _ = evict::each_hash_below(&outer, |hash| {
                self.examine(&hash, &mut pace);
                !self.is_closing()
            });
            if self.is_closing() {
                return;
            }
            folder += 1;
            if folder == FOLDERS {
                self.scrub.rounds.fetch_add(1, Relaxed);
            }
            self.scrub.save(folder, began);
        }
    }

    fn examine(&self, hash: &Hash, pace: &mut Pace) {
        let Some(stored) = self.open_stored(hash) else { return };
        // That it was read now does not make it worth keeping in the page cache.
        let _ = fadvise(&stored.file, 0, None, Advice::NoReuse);
        let mut spent = 0;
        let intact = self.is_intact(&stored, |bytes| {
            spent += bytes;
            self.scrub.bytes.fetch_add(bytes, Relaxed);
            pace.spend(bytes);
        });
        if let Err(error) = intact {
            tracing::warn!(key = %stored.key.shown(), %error, "a stored object cannot be read now: the next round tries it again");
        }
        pace.spend(LEAST.saturating_sub(spent));
        self.scrub.objects.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn no_more_is_spent_than_the_rate() {
        let mut pace = Pace::new(10_000_000);
        let began = Instant::now();
        for _ in 0..200 {
            pace.spend(10_000);
        }
        assert!(began.elapsed() >= Duration::from_millis(180), "{:?}", began.elapsed());
    }
}
