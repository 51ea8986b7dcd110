//! What was recorded and is not yet written, and the thread that writes it.
//!
//! Events of one object are merged into one [`Change`], so that the queue grows with the number of objects touched
//! since the last batch, not with the number of requests. Shards keep request threads out of each other's way. A batch
//! that could not be written stays first in line, counted against the same bounds.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use indexmap::IndexMap;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::backend::{Backend, CatalogError};
use super::change::{Batch, Change, KeyRef, NameHash, ObjectKey, SHARDS};
use super::record::Event;

/// Objects that may wait to be written, those in a failed batch included.
const MAX_OBJECTS: usize = 65_536;
/// About what they may take of memory: paths can be long.
const MAX_BYTES: usize = 32 * 1024 * 1024;
/// Links that may wait to be written.
const MAX_LINKS: usize = 131_072;
/// Who waits for room for links looks so often whether the database has gone away.
const LINK_LOOK: Duration = Duration::from_millis(100);
/// Objects, and links, in one transaction: small enough for another process to get its turn.
const BATCH: usize = 2_000;
/// How long events gather before they are written, unless there are many or someone waits.
const LINGER: Duration = Duration::from_millis(500);
const MIN_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// How the catalogue fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogStatus {
    /// Whether the last attempt to write succeeded.
    pub healthy: bool,
    /// Objects with something to write.
    pub queued: usize,
    /// Links to write.
    pub queued_links: usize,
    /// Hits and refreshes that were not counted because the queue was full.
    pub dropped_hits: u64,
    /// Stored and removed objects that a listing misses, or still shows, because the queue was full.
    pub dropped_changes: u64,
    /// Why it is not healthy.
    pub error: Option<String>,
}

#[derive(Default)]
struct Links {
    /// All that are not yet in the database.
    unwritten: HashMap<Arc<str>, HashSet<NameHash>>,
    count: usize,
    /// Those among them that are in no batch yet.
    waiting: Vec<(Arc<str>, NameHash)>,
}

/// What handles and the writer share.
pub(super) struct Shared {
    shards: [Mutex<IndexMap<ObjectKey, Change>>; SHARDS],
    objects: AtomicUsize,
    bytes: AtomicUsize,
    links: Mutex<Links>,
    link_room: Notify,
    /// Something was recorded since the writer last looked.
    dirty: AtomicBool,
    wake: Notify,
    /// The writer should not linger.
    urgent: Notify,
    drains: Mutex<Vec<oneshot::Sender<Result<(), CatalogError>>>>,
    stopping: AtomicBool,
    ended: watch::Sender<bool>,
    dropped_hits: AtomicU64,
    dropped_changes: AtomicU64,
    /// `None` while all is well.
    trouble: Mutex<Option<String>>,
}

impl Shared {
    pub(super) fn new(healthy: bool) -> Shared {
        Shared {
            shards: std::array::from_fn(|_| Mutex::default()),
            objects: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            links: Mutex::default(),
            link_room: Notify::new(),
            dirty: AtomicBool::new(!healthy), // so that the writer tries to open it at once
            wake: Notify::new(),
            urgent: Notify::new(),
            drains: Mutex::default(),
            stopping: AtomicBool::new(false),
            ended: watch::Sender::new(false),
            dropped_hits: AtomicU64::new(0),
            dropped_changes: AtomicU64::new(0),
            trouble: Mutex::new((!healthy).then(|| "it has not been opened yet".to_owned())),
        }
    }

    pub(super) fn record(&self, event: Event) {
        match event {
            Event::Hit { remote, path, form, at } => self.hits(&remote, &path, &form, 1, at),
            Event::Refreshed {
                remote,
                path,
                form,
                fresh_until,
                at,
            } => {
                let key = KeyRef {
                    remote: &remote,
                    path: &path,
                    form: &form,
                };
                self.change(&key, false, |change| change.refreshed(fresh_until, at));
            }
            Event::Stored { object } => {
                let key = ObjectKey {
                    remote: object.remote.clone(),
                    path: object.path.clone(),
                    form: object.form.clone(),
                };
                self.change(&key.borrow(), true, |change| change.stored(object));
            }
            Event::Removed { remote, path, form } => {
                self.change(
                    &KeyRef {
                        remote: &remote,
                        path: &path,
                        form: &form,
                    },
                    true,
                    Change::removed,
                );
            }
        }
    }

    pub(super) fn hits(&self, remote: &str, path: &str, form: &str, hits: u64, at: i64) {
        self.change(&KeyRef { remote, path, form }, false, |change| change.hit(hits, at));
    }

    /// Merges one event. Hits and refreshes stop earlier than what listings cannot do without.
    fn change(&self, key: &KeyRef<'_>, essential: bool, merge: impl FnOnce(&mut Change)) {
        if self.stopping.load(Ordering::Relaxed) {
            return self.count_dropped(essential);
        }
        let mut shard = self.shards[key.shard()].lock();
        if let Some(change) = shard.get_mut(key) {
            let before = change.cost();
            merge(change);
            let after = change.cost();
            // Grows by at most one record for each object already counted. Hits change nothing, and keep off the
            // cache line that all threads share.
            if after != before {
                self.bytes.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
            }
        } else {
            let (objects, bytes) = (self.objects.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
            let (most, most_bytes) = if essential {
                (MAX_OBJECTS, MAX_BYTES)
            } else {
                (MAX_OBJECTS / 4 * 3, MAX_BYTES / 4 * 3)
            };
            if objects >= most || bytes >= most_bytes {
                drop(shard);
                return self.count_dropped(essential);
            }
            let mut change = Change::NONE;
            merge(&mut change);
            self.bytes.fetch_add(key.cost() + change.cost(), Ordering::Relaxed);
            shard.insert(key.to_owned(), change);
            if self.objects.fetch_add(1, Ordering::Relaxed) + 1 == BATCH {
                self.urgent.notify_one();
            }
        }
        // Under the shard's lock: the writer clears the flag before it takes a shard. So either it finds this event,
        // or this sees the flag cleared and wakes it.
        self.mark_dirty();
    }

    fn mark_dirty(&self) {
        if !self.dirty.load(Ordering::Relaxed) && !self.dirty.swap(true, Ordering::Relaxed) {
            self.wake.notify_one();
        }
    }

    fn count_dropped(&self, essential: bool) {
        let counter = if essential {
            &self.dropped_changes
        } else {
            &self.dropped_hits
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) async fn add_links(
        &self,
        remote: &str,
        links: Vec<NameHash>,
        limit: Duration,
    ) -> Result<(), CatalogError> {
        let deadline = Instant::now() + limit;
        let remote: Arc<str> = remote.into();
        let mut links = links.into_iter().peekable();
        loop {
            // Made before the look, so that room made in between is not missed.
            let room = self.link_room.notified();
            if self.stopping.load(Ordering::Relaxed) {
                return Err(CatalogError::Closed);
            }
            {
                let mut state = self.links.lock();
                while let Some(link) = links.peek().copied() {
                    let full = state.count >= MAX_LINKS;
                    let known = state.unwritten.entry(remote.clone()).or_default();
                    if full && !known.contains(&link) {
                        break;
                    }
                    if known.insert(link) {
                        state.count += 1;
                        state.waiting.push((remote.clone(), link));
                    }
                    links.next();
                }
                if !state.waiting.is_empty() {
                    self.mark_dirty();
                }
            }
            if links.peek().is_none() {
                return Ok(());
            }
            // Who reads an index waits for a database that is slow, not for one that is away.
            if self.trouble.lock().is_some() || Instant::now() >= deadline {
                return Err(CatalogError::Busy("too many links wait to be written"));
            }
            self.urgent.notify_one();
            // Looked at again now and then: nobody says that the database went away.
            let _ = tokio::time::timeout_at(deadline.min(Instant::now() + LINK_LOOK), room).await;
        }
    }

    pub(super) fn has_link(&self, remote: &str, link: NameHash) -> bool {
        self.links
            .lock()
            .unwritten
            .get(remote)
            .is_some_and(|links| links.contains(&link))
    }

    pub(super) async fn drain(&self) -> Result<(), CatalogError> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut drains = self.drains.lock();
            // Looked at under the lock under which the writer's end answers the last of them.
            if *self.ended.borrow() {
                return Err(CatalogError::Closed);
            }
            drains.push(sender);
        }
        self.urgent.notify_one();
        receiver.await.unwrap_or(Err(CatalogError::Closed))
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.urgent.notify_one();
        self.link_room.notify_waiters();
    }

    pub(super) async fn ended(&self) {
        // An error would mean that the sender is gone; it is in `self`.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    pub(super) fn status(&self) -> CatalogStatus {
        let error = self.trouble.lock().clone();
        CatalogStatus {
            healthy: error.is_none() && !*self.ended.borrow(),
            queued: self.objects.load(Ordering::Relaxed),
            queued_links: self.links.lock().count,
            dropped_hits: self.dropped_hits.load(Ordering::Relaxed),
            dropped_changes: self.dropped_changes.load(Ordering::Relaxed),
            error,
        }
    }

    /// Everything that waits, in batches.
    fn take(&self) -> Vec<Batch> {
        self.dirty.store(false, Ordering::Relaxed);
        let mut batches = Vec::new();
        let mut batch = Batch::default();
        for shard in &self.shards {
            let objects = std::mem::take(&mut *shard.lock());
            for object in objects {
                batch.objects.push(object);
                if batch.objects.len() == BATCH {
                    batches.push(std::mem::take(&mut batch));
                }
            }
        }
        let links = std::mem::take(&mut self.links.lock().waiting);
        for link in links {
            batch.links.push(link);
            if batch.links.len() == BATCH {
                batches.push(std::mem::take(&mut batch));
            }
        }
        if !batch.objects.is_empty() || !batch.links.is_empty() {
            batches.push(batch);
        }
        batches
    }

    /// Gives back the room of a batch that is in the database.
    fn written(&self, batch: Batch) {
        let bytes: usize = batch
            .objects
            .iter()
            .map(|(key, change)| key.borrow().cost() + change.cost())
            .sum();
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.objects.fetch_sub(batch.objects.len(), Ordering::Relaxed);
        if batch.links.is_empty() {
            return;
        }
        {
            let mut state = self.links.lock();
            for (remote, link) in &batch.links {
                if let Some(links) = state.unwritten.get_mut(remote) {
                    links.remove(link);
                    if links.is_empty() {
                        state.unwritten.remove(remote);
                    }
                }
            }
            state.count -= batch.links.len();
        }
        self.link_room.notify_waiters();
    }
}

/// Says that the writer has ended however it ends, so that nobody waits for ever.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.stopping.store(true, Ordering::Relaxed);
        let mut drains = self.0.drains.lock();
        self.0.ended.send_replace(true);
        drains.clear();
        drop(drains);
        self.0.link_room.notify_waiters();
    }
}

/// Starts the thread that writes. It has a runtime of its own, so that a catalogue can be opened before any other
/// runtime is there, and so that a database may block it.
pub(super) fn start_writer(shared: Arc<Shared>, backend: Arc<dyn Backend>) -> Result<(), CatalogError> {
    let unavailable = |error: std::io::Error| CatalogError::Unavailable(format!("its writer does not start: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(unavailable)?;
    std::thread::Builder::new()
        .name("catalog".to_owned())
        .spawn(move || {
            let ending = Ending(shared.clone());
            runtime.block_on(async {
                write(&shared, &*backend).await;
                backend.close().await;
            });
            drop(ending);
        })
        .map_err(unavailable)?;
    Ok(())
}

async fn write(shared: &Shared, backend: &dyn Backend) {
    let mut backlog: VecDeque<Batch> = VecDeque::new();
    let mut backoff = MIN_BACKOFF;
    if shared.dirty.load(Ordering::Relaxed) {
        shared.wake.notify_one(); // it was not healthy when it was opened
    }
    loop {
        if backlog.is_empty() {
            tokio::select! {
                biased;
                () = shared.urgent.notified() => {}
                () = shared.wake.notified() => { let _ = timeout(LINGER, shared.urgent.notified()).await; }
            }
        } else {
            // A drain or a stop tries at once; what else is urgent can wait, or a full queue would spin.
            let retry = Instant::now() + backoff;
            while tokio::time::timeout_at(retry, shared.urgent.notified()).await.is_ok() {
                if shared.stopping.load(Ordering::Relaxed) || !shared.drains.lock().is_empty() {
                    break;
                }
            }
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
        // Before anything is taken: whoever is among these has recorded what they wait for.
        let stopping = shared.stopping.load(Ordering::Relaxed);
        let drains = std::mem::take(&mut *shared.drains.lock());
        backlog.extend(shared.take());
        if backlog.is_empty() && shared.trouble.lock().is_some() {
            backlog.push_back(Batch::default()); // asks the database how it is
        }
        let mut result = Ok(());
        while let Some(batch) = backlog.front() {
            result = backend.apply(batch).await;
            if result.is_err() {
                break;
            }
            if let Some(batch) = backlog.pop_front() {
                shared.written(batch);
            }
        }
        note(shared, &result);
        if result.is_ok() {
            backoff = MIN_BACKOFF;
        }
        for drain in drains {
            let _ = drain.send(result.clone()); // nobody may be waiting any more
        }
        if stopping {
            if !backlog.is_empty() {
                let lost: usize = backlog.iter().map(|batch| batch.objects.len()).sum();
                tracing::warn!(lost, "the catalogue ends without having written everything");
            }
            return;
        }
    }
}

/// Keeps the status and says so once when it changes.
fn note(shared: &Shared, result: &Result<(), CatalogError>) {
    let trouble = result.as_ref().err().map(ToString::to_string);
    let before = std::mem::replace(&mut *shared.trouble.lock(), trouble.clone());
    match (before, trouble) {
        (None, Some(error)) => tracing::warn!(%error, "the catalogue cannot be written; it is tried again"),
        (Some(_), None) => tracing::info!("the catalogue is written again"),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::change::Op;
    use crate::catalog::record::Record;
    use crate::catalog::tests::record;

    fn stored(path: &str, hits: u64) -> Event {
        Event::Stored {
            object: Box::new(Record {
                hits,
                ..record("r", path, 1)
            }),
        }
    }

    fn removed(path: &str) -> Event {
        Event::Removed {
            remote: "r".into(),
            path: path.into(),
            form: String::new(),
        }
    }

    fn only(shared: &Shared) -> Change {
        let mut batches = shared.take();
        assert_eq!(batches.len(), 1);
        assert_eq!(batches[0].objects.len(), 1);
        let change = batches[0].objects[0].1.clone();
        shared.written(batches.remove(0));
        assert_eq!(shared.bytes.load(Ordering::Relaxed), 0);
        assert_eq!(shared.objects.load(Ordering::Relaxed), 0);
        change
    }

    #[test]
    fn events_of_an_object_merge_in_order() {
        let shared = Shared::new(true);
        for at in [5, 9, 7] {
            shared.hits("r", "a", "", 1, at);
        }
        assert_eq!(
            only(&shared),
            Change {
                hits: 3,
                last_seen: 9,
                ..Change::NONE
            }
        );

        shared.hits("r", "a", "", 1, 5);
        shared.record(Event::Refreshed {
            remote: "r".into(),
            path: "a".into(),
            form: String::new(),
            fresh_until: Some(60),
            at: 6,
        });
        shared.record(stored("a", 0));
        shared.hits("r", "a", "", 1, 8);
        let change = only(&shared);
        assert!(matches!(change.op, Op::Put(_)));
        assert_eq!((change.hits, change.last_seen, change.fresh_until), (2, 8, None));

        shared.record(stored("a", 0));
        shared.hits("r", "a", "", 1, 8);
        shared.record(removed("a"));
        shared.hits("r", "a", "", 1, 9);
        assert_eq!(
            only(&shared),
            Change {
                op: Op::Remove,
                ..Change::NONE
            }
        );

        shared.record(removed("a"));
        shared.record(stored("a", 0));
        shared.record(stored("a", 0));
        assert!(matches!(only(&shared).op, Op::Renew(_)));
    }

    #[test]
    fn forms_and_remotes_are_objects_of_their_own() {
        let shared = Shared::new(true);
        shared.hits("r", "a", "", 1, 1);
        shared.hits("r", "a", "json", 1, 1);
        shared.hits("s", "a", "", 1, 1);
        shared.hits("ra", "", "", 1, 1);
        assert_eq!(shared.take().iter().map(|batch| batch.objects.len()).sum::<usize>(), 4);
    }

    #[test]
    fn a_full_queue_drops_hits_first_and_counts_them() {
        let shared = Shared::new(true);
        for n in 0..MAX_OBJECTS + 100 {
            shared.hits("r", &format!("hit/{n}"), "", 1, 1);
        }
        let status = shared.status();
        assert_eq!(status.queued, MAX_OBJECTS / 4 * 3);
        assert_eq!(status.dropped_hits, (MAX_OBJECTS / 4 + 100) as u64);
        assert_eq!(status.dropped_changes, 0);
        // What is already there is still counted.
        shared.hits("r", "hit/7", "", 1, 1);
        assert_eq!(shared.status().dropped_hits, (MAX_OBJECTS / 4 + 100) as u64);
        for n in 0..MAX_OBJECTS {
            shared.record(removed(&format!("gone/{n}")));
        }
        let status = shared.status();
        assert_eq!(status.queued, MAX_OBJECTS);
        assert_eq!(status.dropped_changes, (MAX_OBJECTS / 4 * 3) as u64);
        let batches = shared.take();
        assert!(batches.iter().all(|batch| batch.objects.len() <= BATCH));
        for batch in batches {
            shared.written(batch);
        }
        assert_eq!(shared.status().queued, 0);
        assert_eq!(shared.bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn long_paths_count_by_their_length() {
        let shared = Shared::new(true);
        let tail = "x".repeat(8_000);
        for n in 0..20_000 {
            shared.record(stored(&format!("{n}{tail}"), 0));
        }
        assert!(shared.bytes.load(Ordering::Relaxed) < MAX_BYTES + 100_000);
        assert!(shared.status().dropped_changes > 10_000);
    }

    #[tokio::test]
    async fn links_wait_for_room_and_give_up() {
        let shared = Arc::new(Shared::new(true));
        let links: Vec<NameHash> = (0..MAX_LINKS + 10).map(|n| NameHash::new(&n.to_string())).collect();
        let result = shared.add_links("r", links.clone(), Duration::from_millis(50)).await;
        assert!(matches!(result, Err(CatalogError::Busy(_))), "{result:?}");
        assert_eq!(shared.status().queued_links, MAX_LINKS);

        let waiter = {
            let (shared, links) = (shared.clone(), links.clone());
            tokio::spawn(async move { shared.add_links("r", links, Duration::from_secs(60)).await })
        };
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        assert!(!shared.has_link("r", links[MAX_LINKS + 9]));
        for batch in shared.take() {
            shared.written(batch);
        }
        assert!(waiter.await.expect("no panic").is_ok());
        assert!(shared.has_link("r", links[MAX_LINKS + 9]));
        assert!(!shared.has_link("s", links[MAX_LINKS + 9]));
    }

    #[tokio::test]
    async fn nobody_waits_for_a_database_that_is_away() {
        let shared = Shared::new(true);
        let links: Vec<NameHash> = (0..MAX_LINKS + 10).map(|n| NameHash::new(&n.to_string())).collect();
        *shared.trouble.lock() = Some("away".to_owned());
        let added = shared.add_links("r", links.clone(), Duration::from_secs(3600));
        let added = tokio::time::timeout(Duration::from_secs(10), added).await;
        assert!(matches!(added, Ok(Err(CatalogError::Busy(_)))), "{added:?}");
        // What there is room for is known all the same.
        assert!(shared.has_link("r", links[MAX_LINKS - 1]));
    }
}
