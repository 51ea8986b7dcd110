//! A disk that does not answer: it is given some time, and is then left alone for some. A network file system may hang for hours.

use std::time::{Duration, Instant};

use super::Store;

/// The disk is given so long for one answer ...
pub(super) const DISK_LIMIT: Duration = Duration::from_secs(15);
/// ... and if there is none is not asked again for so long.
pub(super) const DISK_PAUSE: Duration = Duration::from_secs(30);

impl Store {
    /// Does what the disk has to answer, off this thread. `None`: it does not answer, now or since a moment ago, and is not
    /// waited for.
    pub(super) async fn patiently<T: Send + 'static>(
        &'static self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        match self.hangs() {
            true => None,
            false => self.in_time(tokio::task::spawn_blocking(work)).await,
        }
    }

    /// Does what has to be done on the disk sooner or later, off this thread. `None`: it is not done yet, and is not waited
    /// for.
    pub(super) async fn eventually<T: Send + 'static>(
        &'static self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let working = tokio::task::spawn_blocking(work);
        match self.hangs() {
            true => None,
            false => self.in_time(working).await,
        }
    }

    /// Whether the disk did not answer a moment ago.
    fn hangs(&self) -> bool {
        let since = *self.hangs_since.lock();
        since.is_some_and(|since| since.elapsed() < DISK_PAUSE)
    }

    async fn in_time<T>(&self, working: tokio::task::JoinHandle<T>) -> Option<T> {
        match tokio::time::timeout(DISK_LIMIT, working).await {
            Ok(done) => done.ok(),
            Err(_) => {
                *self.hangs_since.lock() = Some(Instant::now());
                self.trouble.hangs();
                None
            }
        }
    }
}
