//! The time at which the current wait for upstream ends.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Moved by whoever knows what is waited for, watched by whoever gives up. Nothing is waited for while it is clear.
#[derive(Debug)]
pub struct Deadline {
    start: Instant,
    /// Milliseconds after `start`; 0 is clear.
    at: AtomicU64,
    /// The wait that was set last, in milliseconds.
    wait: AtomicU64,
    /// Milliseconds for which nothing was waited for, and since when that is so now; 0: something is waited for.
    rested: AtomicU64,
    resting: AtomicU64,
    /// Told when the deadline comes nearer, so that whoever sleeps until it need not look every now and then.
    nearer: Notify,
}

impl Default for Deadline {
    fn default() -> Self {
        Deadline {
            start: Instant::now(),
            at: AtomicU64::new(0),
            wait: AtomicU64::new(0),
            rested: AtomicU64::new(0),
            resting: AtomicU64::new(0),
            nearer: Notify::new(),
        }
    }
}

impl Deadline {
    /// Waits for `wait` from now on.
    pub fn set(&self, wait: Duration) {
        self.wait.store(wait.as_millis() as u64, Relaxed);
        match self.resting.swap(0, Relaxed) {
            0 => {}
            since => _ = self.rested.fetch_add(self.now().saturating_sub(since), Relaxed),
        }
        let at = (self.start.elapsed() + wait).as_millis().max(1) as u64;
        let before = self.at.swap(at, Relaxed);
        if before == 0 || at < before {
            self.nearer.notify_one();
        }
    }

    /// Nothing is waited for: the transfer is over, or it is this side that takes its time.
    pub fn clear(&self) {
        if self.at.swap(0, Relaxed) != 0 {
            self.resting.store(self.now().max(1), Relaxed);
        }
    }

    /// For how long upstream has been waited for, all waits together.
    pub fn waited(&self) -> Duration {
        let now = self.now();
        let rest = match self.resting.load(Relaxed) {
            0 => 0,
            since => now.saturating_sub(since),
        };
        Duration::from_millis(now.saturating_sub(self.rested.load(Relaxed) + rest))
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    /// Upstream's turn again, for as long as was set last.
    pub fn resume(&self) {
        self.set(Duration::from_millis(self.wait.load(Relaxed)));
    }

    /// How long until the deadline: `None` if it is clear, zero if it has passed.
    fn left(&self) -> Option<Duration> {
        match self.at.load(Relaxed) {
            0 => None,
            at => Some(Duration::from_millis(at).saturating_sub(self.start.elapsed())),
        }
    }

    /// Whether it has passed.
    pub fn is_over(&self) -> bool {
        self.left().is_some_and(|left| left.is_zero())
    }

    /// Returns when the deadline has passed, or when it has been clear for `limit`.
    pub async fn passed(&self, limit: Duration) {
        let mut clear_since = None;
        loop {
            let wait = match self.left() {
                Some(left) if left.is_zero() => return,
                Some(left) => {
                    clear_since = None;
                    left
                }
                None => {
                    let since = *clear_since.get_or_insert_with(Instant::now);
                    match limit.checked_sub(since.elapsed()) {
                        Some(left) if !left.is_zero() => left,
                        _ => return,
                    }
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.nearer.notified() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(false)
            .build()
            .unwrap()
            .block_on(test);
    }

    #[test]
    fn a_nearer_deadline_wakes_who_sleeps_until_a_later_one() {
        run(async {
            let deadline = std::sync::Arc::new(Deadline::default());
            deadline.set(Duration::from_secs(600));
            let watched = std::sync::Arc::clone(&deadline);
            let watcher = tokio::spawn(async move { watched.passed(Duration::from_secs(600)).await });
            tokio::task::yield_now().await;
            deadline.set(Duration::from_millis(5));
            tokio::time::timeout(Duration::from_secs(20), watcher)
                .await
                .unwrap()
                .unwrap();
        });
    }

    #[test]
    fn what_this_side_takes_is_not_waited_for() {
        let deadline = Deadline::default();
        deadline.set(Duration::from_secs(600));
        deadline.clear();
        let waited = deadline.waited();
        std::thread::sleep(Duration::from_millis(30));
        assert!(deadline.waited() < waited + Duration::from_millis(20));
        deadline.resume();
        assert!(deadline.waited() < waited + Duration::from_millis(20));
    }

    #[test]
    fn a_clear_deadline_has_its_own_limit_and_resumes() {
        run(async {
            let deadline = Deadline::default();
            deadline.set(Duration::from_secs(600));
            deadline.clear();
            assert_eq!(deadline.left(), None);
            deadline.passed(Duration::from_millis(5)).await;
            deadline.resume();
            assert!(deadline.left().unwrap() > Duration::from_secs(500));
        });
    }
}
