//! What waits to be uploaded and removed. Each job is a file, made before the object is shown and removed when the bucket
//! has it, so that neither a crash nor an outage loses one; in memory is what finds the next one.
//!
//! A job belongs to a key's hash and means: make the bucket what this node holds now. So an object that is replaced while
//! it waits is uploaded once, as it is then. The same hash is never worked on twice at once.
//!
//! What changes a job's file together with what is known of it holds the lock of that hash's files, on threads that may
//! block. The lock of what is known, which event loops take, is never held over the disk.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::cache::{Hash, Millis, in_folder, now_ms, parse_hash};

/// Longer ones are uploaded in parts, and never take the last worker.
pub(super) const LARGE: u64 = 32 << 20;

/// What the fleet calls outdated is so once it has said so for this long.
const SETTLED: Duration = Duration::from_secs(5);

/// So many hashes' files change at once.
const FILES: usize = 64;

/// The folders and what is known of them.
pub(super) struct Queue {
    uploads: PathBuf,
    removals: PathBuf,
    /// Whether markers are to outlast a loss of power.
    sync: bool,
    state: Mutex<State>,
    /// By the first byte of a hash; taken before `state`.
    files: [Mutex<()>; FILES],
    /// Whether everything that the folders hold is in `state`.
    scanned: AtomicBool,
    more: Notify,
    idle: Notify,
}

#[derive(Default)]
struct State {
    jobs: HashMap<Hash, Job>,
    small: VecDeque<Hash>,
    large: VecDeque<Hash>,
    later: BinaryHeap<Reverse<(Instant, Hash)>>,
    uploads: u64,
    bytes: u64,
    removals: u64,
}

#[derive(Default)]
struct Job {
    upload: bool,
    remove: bool,
    /// Objects that are about to get their name: until then there is nothing to look at.
    admitting: u32,
    /// Changes with everything that is asked; what was done for another number is not done.
    asked: u32,
    /// Changes with every removal that is asked for.
    removes: u32,
    running: bool,
    /// Since when the fleet calls it outdated.
    outdated: Option<Instant>,
    place: Place,
    failures: u32,
    since: Millis,
    /// What it takes of the disk.
    bytes: u64,
}

#[derive(Default, Clone, Copy, PartialEq)]
enum Place {
    #[default]
    Nowhere,
    Ready,
    Later(Instant),
}

impl Job {
    fn waits(&self) -> bool {
        self.upload || self.admitting > 0
    }
}

/// One job, taken by a worker.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken {
    pub hash: Hash,
    pub upload: bool,
    pub remove: bool,
    asked: u32,
    removes: u32,
}

/// When a job that failed comes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// The service is away: as soon as it is back.
    Soon,
    /// Doubling, from a second to five minutes.
    Backoff,
    /// The upload will not succeed before somebody does something: minutes, up to half an hour.
    Rarely,
}

/// The removal of what is called `name`, and was fetched earlier than `before`. No name has a line break.
pub(super) fn order(name: &str, before: Millis) -> String {
    format!("{name}\n{before}")
}

/// How much waits.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Waiting {
    pub uploads: u64,
    pub bytes: u64,
    pub oldest: Option<Duration>,
    pub removals: u64,
}

impl Queue {
    /// Touches nothing. The folders are made when they are needed.
    pub(super) fn open(data_dir: &Path, sync: bool) -> Queue {
        Queue {
            uploads: data_dir.join("uploads"),
            removals: data_dir.join("removals"),
            sync,
            state: Mutex::default(),
            files: [const { Mutex::new(()) }; FILES],
            scanned: AtomicBool::new(false),
            more: Notify::new(),
            idle: Notify::new(),
        }
    }

    /// The file of an upload that waits.
    pub(super) fn marker(&self, hash: &Hash) -> PathBuf {
        self.uploads.join(hex::encode(hash))
    }

    fn removal(&self, hash: &Hash) -> PathBuf {
        self.removals.join(hex::encode(hash))
    }

    /// Held while the files of `hash` change with what is known of it, or must not. Blocks.
    fn files(&self, hash: &Hash) -> MutexGuard<'_, ()> {
        self.files[usize::from(hash[0]) % FILES].lock()
    }

    /// Takes up what an earlier process left. `size` says what a stored object takes of the disk.
    /// Blocks.
    pub(super) fn scan(&self, size: impl Fn(&Hash) -> u64) {
        for (hash, since) in markers(&self.removals) {
            let mut state = self.state.lock();
            let job = state.job(hash, since);
            if !job.remove {
                job.remove = true;
                state.removals += 1;
            }
            state.enqueue(hash);
        }
        for (hash, since) in markers(&self.uploads) {
            let bytes = size(&hash);
            let mut state = self.state.lock();
            let job = state.job(hash, since);
            if !job.waits() {
                job.upload = true;
                job.since = since;
                job.bytes = bytes;
                state.uploads += 1;
                state.bytes += bytes;
            }
            state.enqueue(hash);
        }
        self.scanned.store(true, SeqCst);
        self.more.notify_waiters();
        self.idle.notify_waiters();
    }

    /// An object of `hash` is about to get its name: from now on it waits to be uploaded. Blocks.
    ///
    /// # Errors
    /// The marker cannot be made.
    pub(super) fn admitting(&self, hash: &Hash) -> io::Result<()> {
        {
            let _files = self.files(hash);
            let mut state = self.state.lock();
            let job = state.job(*hash, now_ms());
            let waited = job.waits();
            job.asked += 1;
            job.admitting += 1;
            if !waited {
                job.since = now_ms();
                job.bytes = 0;
                state.uploads += 1;
            }
        }
        // What stands in it already is of an upload that is under way, which its worker will look at.
        let mut options = OpenOptions::new();
        options.create(true).append(true);
        let made = in_folder(&self.uploads, || options.open(self.marker(hash)));
        made.and_then(|file| self.make_durable(&file, &self.uploads))
    }

    /// The object has got its name, or not: what there is now, which takes `bytes` of the disk, is
    /// to be uploaded.
    pub(super) fn admitted(&self, hash: &Hash, bytes: u64) {
        {
            let mut state = self.state.lock();
            let job = state.job(*hash, now_ms());
            job.admitting = job.admitting.saturating_sub(1);
            job.upload = true;
            job.failures = 0;
            job.outdated = None;
            let before = std::mem::replace(&mut job.bytes, bytes);
            state.bytes = (state.bytes + bytes).saturating_sub(before);
            state.enqueue(*hash);
        }
        self.more.notify_waiters();
    }

    /// What is stored under `hash` is gone: it need not be uploaded.
    pub(super) fn cancel(&self, hash: &Hash) {
        {
            let mut state = self.state.lock();
            if !state.jobs.get(hash).is_some_and(|job| job.upload) {
                return;
            }
            let job = state.job(*hash, now_ms());
            job.asked += 1;
            state.uploaded(hash);
            state.enqueue(*hash);
        }
        self.more.notify_waiters();
    }

    /// The object of `hash`, called `name` in the bucket or named by an [`order`], is to be removed from there. Blocks, shortly.
    ///
    /// # Errors
    /// The marker cannot be made: the removal is lost if the process ends before it is done.
    pub(super) fn remove(&self, hash: &Hash, name: &str) -> io::Result<()> {
        let files = self.files(hash);
        let written = self.write_whole(&self.removal(hash), name);
        {
            let mut state = self.state.lock();
            let job = state.job(*hash, now_ms());
            job.asked += 1;
            job.removes += 1;
            job.failures = 0;
            if !job.remove {
                job.remove = true;
                state.removals += 1;
            }
            state.uploaded(hash);
            state.enqueue(*hash);
        }
        drop(files);
        self.more.notify_waiters();
        written
    }

    /// Whether everything that an earlier process left is known, so that no question blocks.
    pub(super) fn is_scanned(&self) -> bool {
        self.scanned.load(SeqCst)
    }

    /// Whether what is stored under `hash` waits to be uploaded. Blocks until [`Queue::is_scanned`].
    pub(super) fn is_waiting(&self, hash: &Hash) -> bool {
        // First: what is scanned from here on is looked for on the disk.
        let scanned = self.is_scanned();
        let waits = self.state.lock().jobs.get(hash).is_some_and(Job::waits);
        waits || (!scanned && self.marker(hash).exists())
    }

    /// Does `act` unless what is stored under `hash` waits; none begins to wait meanwhile. Blocks.
    pub(super) fn unless_waiting(&self, hash: &Hash, act: &mut dyn FnMut()) {
        let _files = self.files(hash);
        if !self.is_waiting(hash) {
            act();
        }
    }

    /// Whether the object of `hash` is to be removed from the bucket, so that what the bucket holds does not count. Blocks
    /// until [`Queue::is_scanned`].
    pub(super) fn is_removing(&self, hash: &Hash) -> bool {
        let scanned = self.is_scanned();
        let removes = self.state.lock().jobs.get(hash).is_some_and(|job| job.remove);
        removes || (!scanned && self.removal(hash).exists())
    }

    pub(super) fn waiting_bytes(&self) -> u64 {
        self.state.lock().bytes
    }

    pub(super) fn waiting(&self) -> Waiting {
        let state = self.state.lock();
        let oldest = state.jobs.values().filter(|job| job.waits()).map(|job| job.since).min();
        Waiting {
            uploads: state.uploads,
            bytes: state.bytes,
            oldest: oldest.map(|since| Duration::from_millis(now_ms().saturating_sub(since))),
            removals: state.removals,
        }
    }

    /// Waits until nothing waits.
    pub(super) async fn drained(&self) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            if self.is_scanned() && self.state.lock().jobs.is_empty() {
                return;
            }
            idle.await;
        }
    }

    /// The next job; of those that are large only where `large` allows it. Waits for one.
    pub(super) async fn take(&self, large: bool) -> Taken {
        loop {
            let more = self.more.notified();
            tokio::pin!(more);
            more.as_mut().enable();
            let next = {
                let mut state = self.state.lock();
                state.bring_up();
                match state.pop(large) {
                    Some(taken) => return taken,
                    None => state.later.peek().map(|Reverse((at, _))| *at),
                }
            };
            match next {
                Some(at) => tokio::select! {
                    () = more => {}
                    () = tokio::time::sleep_until(at.into()) => {}
                },
                None => more.await,
            }
        }
    }

    /// Whether nothing else was asked since `taken` was taken.
    pub(super) fn is_current(&self, taken: &Taken) -> bool {
        self.state
            .lock()
            .jobs
            .get(&taken.hash)
            .is_some_and(|job| job.asked == taken.asked)
    }

    /// The fleet calls it outdated, or not; whether that is its last word.
    pub(super) fn is_outdated(&self, taken: &Taken, said: bool) -> bool {
        let mut state = self.state.lock();
        let Some(job) = state.jobs.get_mut(&taken.hash) else {
            return said;
        };
        if !said {
            job.outdated = None;
            return false;
        }
        job.outdated.get_or_insert_with(Instant::now).elapsed() >= SETTLED
    }

    /// What the removal of `hash` is called in the bucket, and before which time it must have been fetched.
    pub(super) fn to_remove(&self, hash: &Hash) -> io::Result<(String, Option<Millis>)> {
        let order = fs::read_to_string(self.removal(hash))?;
        let Some((name, before)) = order.split_once('\n') else {
            return Ok((order, None));
        };
        let before = before.parse().map_err(|_| io::ErrorKind::InvalidData)?;
        Ok((name.to_owned(), Some(before)))
    }

    /// The object is removed from the bucket. Blocks, shortly.
    pub(super) fn removed(&self, taken: &Taken) {
        let _files = self.files(&taken.hash);
        if self.state.lock().removed(taken) {
            let _ = fs::remove_file(self.removal(&taken.hash));
        }
    }

    /// The bucket has it, or need not have it. Blocks, shortly.
    pub(super) fn uploaded(&self, taken: &Taken) {
        let _files = self.files(&taken.hash);
        let current = {
            let mut state = self.state.lock();
            let job = state.jobs.get(&taken.hash);
            let current = job.is_some_and(|job| job.asked == taken.asked && job.admitting == 0);
            if current {
                state.uploaded(&taken.hash);
            }
            current
        };
        if current {
            let _ = fs::remove_file(self.marker(&taken.hash));
        }
    }

    /// The worker is done with it; what is left of it is taken again.
    pub(super) fn give_back(&self, taken: &Taken, again: Option<Again>) {
        {
            let mut state = self.state.lock();
            let Some(job) = state.jobs.get_mut(&taken.hash) else {
                return;
            };
            job.running = false;
            let is_new = job.asked != taken.asked;
            match again {
                Some(again) if !is_new => {
                    let delay = match again {
                        Again::Soon => Duration::from_secs(1),
                        Again::Backoff => backoff(Duration::from_secs(1), Duration::from_secs(300), job.failures),
                        Again::Rarely => backoff(Duration::from_secs(60), Duration::from_secs(1800), job.failures),
                    };
                    if again != Again::Soon {
                        job.failures += 1;
                    }
                    let at = Instant::now() + jitter(delay);
                    job.place = Place::Later(at);
                    state.later.push(Reverse((at, taken.hash)));
                }
                None if !is_new && !job.remove && !job.waits() => {
                    state.jobs.remove(&taken.hash);
                }
                _ => state.enqueue(taken.hash),
            }
            if state.jobs.is_empty() {
                self.idle.notify_waiters();
            }
        }
        // Also for a job of later: somebody has to wait until then.
        self.more.notify_waiters();
    }

    /// What has failed is tried again at once: what kept it from succeeding is gone.
    pub(super) fn hurry(&self) {
        {
            let mut state = self.state.lock();
            for Reverse((at, hash)) in std::mem::take(&mut state.later) {
                if state.jobs.get(&hash).is_some_and(|job| job.place == Place::Later(at)) {
                    state.enqueue(hash);
                }
            }
        }
        self.more.notify_waiters();
    }

    /// Replaces what stands in a marker. Blocks.
    pub(super) fn write_whole(&self, path: &Path, text: &str) -> io::Result<()> {
        let new = path.with_extension("new");
        let folder = path.parent().unwrap_or(Path::new("."));
        in_folder(folder, || fs::write(&new, text))?;
        let file = File::open(&new)?;
        if self.sync {
            file.sync_data()?;
        }
        fs::rename(&new, path)?;
        self.make_durable(&file, folder)
    }

    fn make_durable(&self, file: &File, folder: &Path) -> io::Result<()> {
        if self.sync {
            file.sync_data()?;
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    }
}

impl State {
    fn job(&mut self, hash: Hash, since: Millis) -> &mut Job {
        self.jobs.entry(hash).or_insert_with(|| Job {
            since,
            ..Job::default()
        })
    }

    /// Whether the removal that was taken is done with: one that was asked for meanwhile is another one.
    fn removed(&mut self, taken: &Taken) -> bool {
        let job = self.jobs.get_mut(&taken.hash);
        let Some(job) = job.filter(|job| job.remove && job.removes == taken.removes) else {
            return false;
        };
        job.remove = false;
        self.removals -= 1;
        true
    }

    /// Nothing of `hash` is to be uploaded, but for what is about to get its name.
    fn uploaded(&mut self, hash: &Hash) {
        let Some(job) = self.jobs.get_mut(hash) else { return };
        if std::mem::take(&mut job.upload) && job.admitting == 0 {
            self.uploads -= 1;
            self.bytes = self.bytes.saturating_sub(std::mem::take(&mut job.bytes));
        }
    }

    fn enqueue(&mut self, hash: Hash) {
        let Some(job) = self.jobs.get_mut(&hash) else { return };
        if job.running || job.admitting > 0 || job.place == Place::Ready {
            return;
        }
        job.place = Place::Ready;
        if job.upload && job.bytes > LARGE {
            self.large.push_back(hash);
        } else {
            self.small.push_back(hash);
        }
    }

    /// Puts in line what was to come later, and now is.
    fn bring_up(&mut self) {
        let now = Instant::now();
        while let Some(Reverse((at, hash))) = self.later.peek().copied().filter(|Reverse((at, _))| *at <= now) {
            self.later.pop();
            // It may have been put in line by other means.
            if self.jobs.get(&hash).is_some_and(|job| job.place == Place::Later(at)) {
                self.enqueue(hash);
            }
        }
    }

    fn pop(&mut self, large: bool) -> Option<Taken> {
        loop {
            // Who may take large ones takes them first: the others never do.
            let hash = large.then(|| self.large.pop_front()).flatten();
            let hash = hash.or_else(|| self.small.pop_front())?;
            let Some(job) = self.jobs.get_mut(&hash) else { continue };
            job.place = Place::Nowhere;
            if job.running || job.admitting > 0 {
                continue;
            }
            job.running = true;
            return Some(Taken {
                hash,
                upload: job.upload,
                remove: job.remove,
                asked: job.asked,
                removes: job.removes,
            });
        }
    }
}

fn markers(folder: &Path) -> Vec<(Hash, Millis)> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        match entry.file_name().to_str().and_then(parse_hash) {
            Some(hash) => {
                let modified = entry.metadata().and_then(|meta| meta.modified());
                let since = modified
                    .unwrap_or(SystemTime::UNIX_EPOCH)
                    .duration_since(SystemTime::UNIX_EPOCH);
                let since = since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
                found.push((hash, since));
            }
            // A crash left it half written; a process that is only being replaced is done with it in no time.
            None => {
                let modified = entry.metadata().and_then(|meta| meta.modified());
                let old = modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age.as_secs() > 60));
                if old {
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
    }
    found
}

fn backoff(first: Duration, most: Duration, failures: u32) -> Duration {
    first.saturating_mul(1 << failures.min(16)).min(most)
}

/// Half of it to all of it, so that what failed together does not come again together.
fn jitter(delay: Duration) -> Duration {
    let random = RandomState::new().hash_one(0) % 1000;
    delay / 2 + (delay / 2).mul_f64(random as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn queue() -> (tempfile::TempDir, Queue) {
        let dir = tempfile::tempdir().unwrap();
        let queue = Queue::open(dir.path(), true);
        queue.scan(|_| 4096);
        (dir, queue)
    }

    fn admit(queue: &Queue, hash: &Hash, bytes: u64) {
        queue.admitting(hash).unwrap();
        queue.admitted(hash, bytes);
    }

    async fn take(queue: &Queue, large: bool) -> Option<Taken> {
        tokio::time::timeout(Duration::from_millis(50), queue.take(large))
            .await
            .ok()
    }

    #[tokio::test]
    async fn what_is_replaced_while_it_is_uploaded_is_uploaded_again() {
        let (_dir, queue) = queue();
        let hash = [7; 16];
        admit(&queue, &hash, 4096);
        let first = take(&queue, true).await.unwrap();
        assert!(take(&queue, true).await.is_none(), "it is worked on already");
        queue.admitting(&hash).unwrap();
        queue.uploaded(&first);
        queue.give_back(&first, None);
        assert!(!queue.is_current(&first) && queue.is_waiting(&hash) && queue.marker(&hash).exists());
        assert!(take(&queue, true).await.is_none(), "it has no name yet");
        queue.admitted(&hash, 8192);
        assert_eq!((queue.waiting().uploads, queue.waiting_bytes()), (1, 8192));
        let second = take(&queue, true).await.unwrap();
        queue.uploaded(&second);
        queue.give_back(&second, None);
        assert!(!queue.is_waiting(&hash) && !queue.marker(&hash).exists());
        assert_eq!((queue.waiting().uploads, queue.waiting_bytes()), (0, 0));
        tokio::time::timeout(Duration::from_secs(1), queue.drained())
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_removal_gives_up_an_upload_and_a_later_one_follows_it() {
        let (dir, queue) = queue();
        let hash = [7; 16];
        admit(&queue, &hash, 4096);
        queue.remove(&hash, "name").unwrap();
        assert!(queue.is_removing(&hash) && !queue.is_waiting(&hash));
        let taken = take(&queue, false).await.unwrap();
        assert!(taken.remove && !taken.upload);
        assert_eq!(queue.to_remove(&hash).unwrap(), ("name".to_owned(), None));
        // Once more while it is being removed: this is another removal.
        queue.remove(&hash, "name").unwrap();
        queue.removed(&taken);
        assert!(queue.is_removing(&hash));
        queue.give_back(&taken, None);
        let taken = take(&queue, false).await.unwrap();
        admit(&queue, &hash, 4096);
        queue.removed(&taken);
        queue.uploaded(&taken);
        queue.give_back(&taken, None);
        assert!(!queue.is_removing(&hash) && queue.is_waiting(&hash));
        // What a crash leaves is found again.
        let again = Queue::open(dir.path(), false);
        assert!(again.is_waiting(&hash) && !again.is_removing(&hash));
        again.scan(|_| 4096);
        let waiting = again.waiting();
        assert_eq!((waiting.uploads, waiting.bytes, waiting.removals), (1, 4096, 0));
        assert!(again.is_waiting(&hash) && !again.is_waiting(&[8; 16]));
        let mut acted = false;
        again.unless_waiting(&hash, &mut || acted = true);
        assert!(!acted);
        again.cancel(&hash);
        again.unless_waiting(&hash, &mut || acted = true);
        assert!(acted && again.waiting().uploads == 0);
    }

    #[test]
    fn what_is_known_can_be_asked_for_while_a_file_is_removed() {
        let (_dir, queue) = queue();
        admit(&queue, &[1; 16], 4096);
        let mut waiting = None;
        queue.unless_waiting(&[2; 16], &mut || {
            waiting = Some((queue.is_waiting(&[1; 16]), queue.waiting().uploads))
        });
        assert_eq!(waiting, Some((true, 1)));
    }

    #[tokio::test]
    async fn the_last_worker_is_for_small_ones_and_what_failed_waits() {
        let (_dir, queue) = queue();
        admit(&queue, &[1; 16], LARGE + 1);
        assert!(take(&queue, false).await.is_none());
        admit(&queue, &[2; 16], 4096);
        let small = take(&queue, false).await.unwrap();
        let large = take(&queue, true).await.unwrap();
        assert_eq!((small.hash, large.hash), ([2; 16], [1; 16]));
        queue.give_back(&small, Some(Again::Rarely));
        queue.give_back(&large, Some(Again::Backoff));
        assert!(take(&queue, false).await.is_none());
        let again = tokio::time::timeout(Duration::from_secs(3), queue.take(true))
            .await
            .unwrap();
        assert_eq!(again.hash, [1; 16]);
        // What is new does not wait for its turn.
        admit(&queue, &[2; 16], 4096);
        assert_eq!(take(&queue, false).await.unwrap().hash, [2; 16]);
        assert_eq!(
            backoff(Duration::from_secs(1), Duration::from_secs(300), 40),
            Duration::from_secs(300)
        );
    }

    #[tokio::test]
    async fn a_large_one_is_taken_though_who_takes_none_waits_for_longer() {
        let (_dir, queue) = queue();
        let (small, large) = (queue.take(false), queue.take(true));
        tokio::pin!(small, large);
        assert!((&mut small).now_or_never().is_none() && (&mut large).now_or_never().is_none());
        queue.admitting(&[7; 16]).unwrap();
        queue.admitted(&[7; 16], LARGE + 1);
        tokio::select! {
            taken = large => assert_eq!(taken.hash, [7; 16]),
            _ = small => unreachable!("it takes none that is large"),
            () = tokio::time::sleep(Duration::from_secs(10)) => panic!("nobody takes it"),
        }
    }
}
