//! A disk that does not answer: it is given some time, and is then left alone for some. A network file system may hang for hours.

use std::time::{Duration, Instant};

use super::Store;

/// The disk is given so long for one answer ...
pub(in crate::cache) const DISK_LIMIT: Duration = Duration::from_secs(15);
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
                self.did_not_answer();
                None
            }
        }
    }

    /// The disk is left alone for a while.
    pub(super) fn did_not_answer(&self) {
        *self.hangs_since.lock() = Some(Instant::now());
        self.trouble.hangs();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::config::{CacheSettings, MinFree};

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_is_left_alone_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let settings = CacheSettings {
            disk_bytes: 1 << 30,
            disk_min_free: MinFree::Bytes(0),
            memory_bytes: 0,
            sync: false,
            scrub_rate: 0,
        };
        let store = Store::open(dir.path(), settings).unwrap();
        let (answer, coming) = mpsc::channel::<()>();
        let hanging = tokio::spawn(store.patiently(move || coming.recv()));
        // Others are served meanwhile.
        tokio::task::yield_now().await;
        tokio::time::advance(DISK_LIMIT + Duration::from_secs(1)).await;
        assert_eq!(hanging.await.unwrap(), None);
        assert!(store.stats().starved.unwrap().contains("did not answer in time"));
        let began = tokio::time::Instant::now();
        assert_eq!(store.patiently(|| unreachable!("it is asked again")).await, None::<()>);
        // What has to be done is done all the same, only not waited for.
        let (done, is_done) = tokio::sync::oneshot::channel();
        assert!(store.eventually(move || done.send(())).await.is_none());
        is_done.await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO);
        *store.hangs_since.lock() = Instant::now().checked_sub(DISK_PAUSE);
        assert_eq!(store.patiently(|| 7).await, Some(7));
        drop(answer);
    }
}
