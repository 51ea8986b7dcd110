//! Files that are kept: what was uploaded here, and nobody else has. They lie in a folder of their own, in the form of the
//! disk tier ([`super::disk`]), and nothing of what makes room, flushes, sweeps or repairs the cache looks there.
//!
//! A file is written under no name, and gets one when it is whole and durable: file and folders are synchronised before
//! anybody is told, whatever `cache.sync` says. What is damaged stays, is said, and costs whoever asks for it an error: there
//! is no upstream to have it from again.

use std::collections::HashMap;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use rustix::fs::{Advice, fadvise};

use super::described::Described;
use super::digests::Digester;
use super::disk::{self, Disk, Record};
use super::evict;
use super::freshness::{Class, FOR_EVER, Freshness};
use super::head::{Finished, Head};
use super::key::{Hash, Key};
use super::object::{Body, Keeper, Object, Origin};
use super::store::{NoSpace, Pace, Store, Stored};
use super::time::now_ms;

/// Below the data folder.
pub(super) const FOLDER: &str = "local";
/// Of a body, written and digested at once.
const PIECE: usize = 256 << 10;
/// A body of unknown length has its space reserved in steps of this.
const STEP: u64 = 8 << 20;
/// The disk is given so long for one answer.
const DISK_LIMIT: Duration = Duration::from_secs(15);
/// What was found damaged is not read again for so long: somebody may have put it right meanwhile.
const DAMAGE_PAUSE: Duration = Duration::from_secs(30);
/// Damaged files that are remembered.
const MOST_DAMAGED: usize = 4096;
/// Bodies remembered to be what they were when they were stored.
const MOST_PROVEN: usize = 65_536;
/// Between two rounds of the scrubber.
const ROUND: Duration = Duration::from_secs(24 * 3600);
/// The scrubber begins after a start has been served.
const SCRUB_AFTER: Duration = Duration::from_secs(60);

/// The files that are kept below a data folder.
pub struct Kept {
    folder: PathBuf,
    /// Made with the first file.
    disk: OnceLock<Disk>,
    /// Makes room for them where the file system is short of it.
    store: &'static Store,
    /// Ids of bodies that were compared with their digest since the start.
    proven: Cache<u64, ()>,
    damaged: Mutex<HashMap<Hash, Damage>>,
}

struct Damage {
    id: Option<u64>,
    name: String,
    why: String,
    at: Instant,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

impl Keeper for Kept {
    fn is_proven(&self, id: u64) {
        self.proven.insert(id, ());
        self.damaged.lock().retain(|_, damage| damage.id != Some(id));
    }

    fn lose(&'static self, object: &Arc<Object>, why: &str) {
        self.proven.remove(&object.id);
        self.say_damaged(&object.key.hash, Some(object.id), object.key.shown(), why);
    }

    fn cannot_be_read(&'static self, object: &Arc<Object>, why: &io::Error) {
        match disk::is_damage(why) {
            true => self.lose(object, &why.to_string()),
            false => tracing::warn!(key = %object.key.shown(), %why, "an uploaded file cannot be read now"),
        }
    }
}

impl Kept {
    /// Those below `data_dir`, on the file system of `store`. `scrub_rate`: bytes a second that are read to compare them with
    /// their digests; 0: none. They live as long as the process.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn open(data_dir: &Path, store: &'static Store, scrub_rate: u64) -> io::Result<&'static Kept> {
        let kept: &'static Kept = Box::leak(Box::new(Kept {
            folder: data_dir.join(FOLDER),
            disk: OnceLock::new(),
            store,
            proven: Cache::new(MOST_PROVEN),
            damaged: Mutex::default(),
        }));
        if scrub_rate > 0 {
            std::thread::Builder::new()
                .name("scrub-local".into())
                .spawn(move || kept.keep_scrubbing(scrub_rate))?;
        }
        Ok(kept)
    }

    /// The folder, made where it is missing.
    fn disk(&self) -> io::Result<&Disk> {
        if let Some(disk) = self.disk.get() {
            return Ok(disk);
        }
        let disk = Disk::open(&self.folder)?;
        // That the folder is there must outlast a loss of power as what is in it does.
        for folder in [Some(self.folder.as_path()), self.folder.parent()]
            .into_iter()
            .flatten()
        {
            File::open(folder)?.sync_all()?;
        }
        Ok(self.disk.get_or_init(|| disk))
    }

    /// The folder, if it is there: nothing was ever kept where it is not.
    fn existing(&self) -> io::Result<Option<&Disk>> {
        if self.disk.get().is_none()
            && let Err(error) = fs::metadata(&self.folder)
        {
            return match error.kind() {
                io::ErrorKind::NotFound => Ok(None),
                _ => Err(error),
            };
        }
        self.disk().map(Some)
    }

    /// The file of `key`, as an object. `None`: there is none.
    ///
    /// # Errors
    /// The file is damaged ([`io::ErrorKind::InvalidData`]), or cannot be read now.
    pub async fn find(&'static self, key: &Key) -> io::Result<Option<Arc<Object>>> {
        let (hash, text) = (key.hash, Arc::clone(&key.text));
        let found = off_this_thread(move || self.load(&hash)).await?;
        let Some((file, record)) = found.filter(|(_, record)| record.key_text == *text) else {
            return Ok(None);
        };
        let body = Body::File {
            file,
            offset: record.offset,
        };
        let is_proven = self.proven.get(&record.id).is_some();
        let object = Object::new(
            key.clone(),
            record.id,
            record.head,
            always_asked(),
            body,
            Origin::Upstream,
        );
        Ok(Some(Arc::new(
            object.complete(record.finished, is_proven).kept_by(self),
        )))
    }

    /// What lies under `hash`. Blocks.
    fn load(&self, hash: &Hash) -> io::Result<Option<(File, Record)>> {
        let Some(disk) = self.existing()? else { return Ok(None) };
        let Some(file) = disk.try_open(hash)? else {
            return Ok(None);
        };
        let id = disk::id_of(&file);
        if let Some(damage) = self.damaged.lock().get(hash)
            && damage.id == id
            && damage.at.elapsed() < DAMAGE_PAUSE
        {
            return Err(io::Error::new(io::ErrorKind::InvalidData, damage.why.clone()));
        }
        match disk::read_record(&file) {
            Ok(record) => Ok(Some((file, record))),
            Err(error) if disk::is_damage(&error) => {
                self.say_damaged(hash, id, disk.path(hash).display().to_string(), &error.to_string());
                Err(io::Error::new(io::ErrorKind::InvalidData, error))
            }
            Err(error) => Err(error),
        }
    }

    /// Removes the file of `hash`, durably; whether there was one. Blocks.
    ///
    /// # Errors
    /// The disk refuses, or does not say that it is durable.
    pub fn remove(&self, hash: &Hash) -> io::Result<bool> {
        let Some(disk) = self.existing()? else { return Ok(false) };
        let was_there = disk.remove(hash, None)?.files > 0;
        disk.sync_folders(hash)?;
        self.damaged.lock().remove(hash);
        Ok(was_there)
    }

    /// Calls `visit` with all that is kept, in no order, as long as it says so. Blocks. `false`: some of it cannot be read.
    pub fn each(&self, mut visit: impl FnMut(Stored) -> bool) -> bool {
        let Ok(found) = self.existing() else { return false };
        let Some(disk) = found else { return true };
        let mut saw_all = true;
        let walked = evict::each_hash_while(disk.root(), |hash| match self.load(&hash) {
            Ok(Some((file, record))) => visit(stored(hash, file, record)),
            Ok(None) => true,
            Err(_) => {
                saw_all = false;
                true
            }
        });
        saw_all && walked.is_ok()
    }

    /// Whether nothing is kept under `hash`, as far as the disk answers. Blocks.
    pub fn is_missing(&self, hash: &Hash) -> bool {
        match self.existing() {
            Ok(Some(disk)) => disk.is_missing(hash),
            Ok(None) => true,
            Err(_) => false,
        }
    }

    /// How many files are damaged, and one of them; `None` where none is known to be.
    pub fn trouble(&self) -> Option<String> {
        let damaged = self.damaged.lock();
        let (first, count) = (damaged.values().next()?, damaged.len());
        Some(format!(
            "{count} uploaded files are damaged, and nobody else has them: restore or upload them again: {}: {}",
            first.name, first.why
        ))
    }

    fn say_damaged(&self, hash: &Hash, id: Option<u64>, name: String, why: &str) {
        tracing::error!(
            file = name,
            why,
            path = %self.folder.join("objects").display(),
            "AN UPLOADED FILE IS DAMAGED: it stays where it is and is answered with an error; restore it from a backup or \
             upload it again, and see to the disk"
        );
        let mut damaged = self.damaged.lock();
        if damaged.len() < MOST_DAMAGED || damaged.contains_key(hash) {
            let damage = Damage {
                id,
                name,
                why: why.to_owned(),
                at: Instant::now(),
            };
            damaged.insert(*hash, damage);
        }
    }

    fn keep_scrubbing(&self, rate: u64) {
        std::thread::sleep(SCRUB_AFTER);
        let mut pace = Pace::new(rate);
        loop {
            self.scrub(&mut pace);
            std::thread::sleep(ROUND);
        }
    }

    /// Compares all that is kept with its digests, and says what is damaged.
    fn scrub(&self, pace: &mut Pace) {
        self.each(|stored| {
            // That it was read now does not make it worth keeping in the page cache.
            let _ = fadvise(&stored.file, 0, None, Advice::NoReuse);
            let finished = &stored.finished;
            let why = match disk::is_intact(&stored.file, stored.offset, finished, |bytes| pace.spend(bytes)) {
                Ok(false) => "its body does not match its digest".to_owned(),
                Err(error) if disk::is_damage(&error) => error.to_string(),
                // What cannot be read now is read in the next round.
                Ok(true) | Err(_) => return true,
            };
            self.say_damaged(&stored.key.hash, Some(stored.id), stored.key.shown(), &why);
            true
        });
    }

    /// Begins a file of `key` with this `head`; of `length` bytes, if that is known. `digester` digests it as it comes.
    ///
    /// # Errors
    /// There is no room, or the disk fails.
    pub async fn receive(
        &'static self,
        key: Key,
        head: Head,
        length: Option<u64>,
        digester: Digester,
    ) -> io::Result<Incoming> {
        let id = RandomState::new().build_hasher().finish();
        let encoded = disk::encode(&key.text, id, &head, None, FRESHNESS, false)?;
        let offset = encoded.len() as u64;
        let reserved = offset.saturating_add(length.unwrap_or(0));
        let file = off_this_thread(move || {
            self.room_for(reserved)?;
            let unnamed = self.disk()?.create(reserved)?;
            unnamed.file.write_all_at(&encoded, 0)?;
            Ok(unnamed)
        })
        .await?;
        Ok(Incoming {
            kept: self,
            key,
            head,
            id,
            file,
            offset,
            reserved,
            digester: Some(digester),
            waiting: Vec::new(),
            written: 0,
        })
    }

    /// Has room for `bytes` more, beside what must stay free. Blocks.
    fn room_for(&self, bytes: u64) -> io::Result<()> {
        self.store.room_beside(bytes).map_err(|why| match why {
            NoSpace::Io(error) => error,
            why => io::Error::new(io::ErrorKind::StorageFull, why.to_string()),
        })
    }
}

/// Files that are kept are what they are until they are replaced, and whoever has one asks again.
const FRESHNESS: (Class, u64, u64) = (Class::Mutable, 0, FOR_EVER);

/// [`FRESHNESS`], as of now.
fn always_asked() -> Arc<Freshness> {
    Arc::new(Freshness::new(Class::Mutable, now_ms(), FOR_EVER))
}

fn stored(hash: Hash, file: File, record: Record) -> Stored {
    Stored {
        described: Described {
            key: Key {
                text: record.key_text.into(),
                hash,
            },
            id: record.id,
            head: record.head,
            finished: record.finished,
            class: record.class,
            checked_at: record.checked_at,
            fresh_until: record.fresh_until,
        },
        backed_up: record.backed_up,
        file,
        offset: record.offset,
    }
}

/// A file that is being received. Dropped, it leaves nothing.
#[derive(Debug)]
pub struct Incoming {
    kept: &'static Kept,
    key: Key,
    head: Head,
    id: u64,
    file: disk::Unnamed,
    /// Where the body starts.
    offset: u64,
    /// How far the file has its space.
    reserved: u64,
    /// With whoever digests, for as long as that takes.
    digester: Option<Digester>,
    /// Received, and neither written nor digested.
    waiting: Vec<u8>,
    /// Bytes of the body that are.
    written: u64,
}

impl Incoming {
    /// Bytes that were received.
    pub fn length(&self) -> u64 {
        self.written + self.waiting.len() as u64
    }

    /// Takes the next piece of the body.
    ///
    /// # Errors
    /// The disk is full or fails: the file is of no use any more.
    pub async fn write(&mut self, piece: &Bytes) -> io::Result<()> {
        self.waiting.extend_from_slice(piece);
        match self.waiting.len() >= PIECE {
            true => self.write_down().await,
            false => Ok(()),
        }
    }

    async fn write_down(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let at = self.offset + self.written;
        let end = at + self.waiting.len() as u64;
        let (kept, reserved) = (self.kept, self.reserved);
        let step = if end > reserved { end - reserved + STEP } else { 0 };
        let file = self.file.file.try_clone()?;
        let piece = std::mem::take(&mut self.waiting);
        let Some(mut digester) = self.digester.take() else {
            return Err(io::Error::other("an earlier piece could not be written"));
        };
        let (mut piece, digester) = off_this_thread(move || {
            if step > 0 {
                kept.room_for(step)?;
                disk::allocate(&file, reserved, step)?;
            }
            file.write_all_at(&piece, at)?;
            digester.update(&piece);
            Ok((piece, digester))
        })
        .await?;
        self.digester = Some(digester);
        self.written += piece.len() as u64;
        self.reserved += step;
        piece.clear();
        self.waiting = piece;
        Ok(())
    }

    /// The body has ended: its digests.
    ///
    /// # Errors
    /// Those of [`Incoming::write`].
    pub async fn end(&mut self) -> io::Result<&Digester> {
        self.write_down().await?;
        let digester = self.digester.as_ref();
        digester.ok_or_else(|| io::Error::other("an earlier piece could not be written"))
    }

    fn finished(&self) -> io::Result<Finished> {
        let digester = self.digester.as_ref();
        let sha256 = digester.map(Digester::sha256).ok_or(io::ErrorKind::Other)?;
        Ok(Finished {
            length: self.written,
            sha256,
        })
    }

    /// What was received, for whoever copies it elsewhere.
    ///
    /// # Errors
    /// Its body has not ended.
    pub fn stored(&self) -> io::Result<Stored> {
        Ok(Stored {
            described: Described {
                key: self.key.clone(),
                id: self.id,
                head: self.head.clone(),
                finished: self.finished()?,
                class: FRESHNESS.0,
                checked_at: FRESHNESS.1,
                fresh_until: FRESHNESS.2,
            },
            backed_up: false,
            file: self.file.file.try_clone()?,
            offset: self.offset,
        })
    }

    /// Gives the file its name, in place of what had it; when this returns, it outlasts a loss of power.
    ///
    /// # Errors
    /// Any failure of the disk. What was there before may have been replaced all the same if the disk took the name and
    /// failed then.
    pub async fn keep(mut self) -> io::Result<()> {
        let finished = self.finished()?;
        let preamble = disk::encode(&self.key.text, self.id, &self.head, Some(finished), FRESHNESS, false)?;
        let mut taken = self.file.take()?;
        let (kept, hash, length) = (self.kept, self.key.hash, self.offset + finished.length);
        let (id, work) = (
            self.id,
            tokio::task::spawn_blocking(move || {
                taken.file.write_all_at(&preamble, 0)?;
                // Gives back what was reserved beyond the body.
                taken.file.set_len(length)?;
                kept.disk()?.publish(&mut taken, &hash, true)?;
                kept.damaged.lock().remove(&hash);
                Ok::<_, io::Error>(())
            }),
        );
        // However long the disk takes: who gives up would not know what is there.
        work.await.map_err(|_| io::Error::other("it was given up"))??;
        self.kept.proven.insert(id, ());
        Ok(())
    }
}

/// Does what the disk has to answer, within a limit.
async fn off_this_thread<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    match tokio::time::timeout(DISK_LIMIT, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(done)) => done,
        Ok(Err(_)) => Err(io::Error::other("it was given up")),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the disk did not answer in time",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CacheSettings, MinFree};

    fn kept_in(dir: &Path) -> &'static Kept {
        let settings = CacheSettings {
            disk_bytes: 1 << 30,
            disk_min_free: MinFree::Bytes(0),
            memory_bytes: 0,
            sync: false,
            scrub_rate: 0,
        };
        Kept::open(dir, Store::open(dir, settings).unwrap(), 0).unwrap()
    }

    async fn receive(kept: &'static Kept, path: &str, body: &'static [u8]) -> Incoming {
        let head = Head {
            url: String::new(),
            headers: http::HeaderMap::new(),
            content_length: None,
            stored_at: now_ms(),
            unframed: false,
            ranges: true,
            stands_for: None,
        };
        let key = Key::of_local("r", path);
        let mut incoming = kept.receive(key, head, None, Digester::new([])).await.unwrap();
        incoming.write(&Bytes::from_static(body)).await.unwrap();
        incoming.end().await.unwrap();
        incoming
    }

    async fn read(kept: &'static Kept, path: &str) -> Option<Vec<u8>> {
        let object = kept.find(&Key::of_local("r", path)).await.unwrap()?;
        super::super::Reader::new(object).collect(100).await.ok()
    }

    fn names(kept: &Kept) -> usize {
        let mut count = 0;
        assert!(kept.each(|_| {
            count += 1;
            true
        }));
        count
    }

    #[tokio::test]
    async fn a_file_is_there_when_it_is_whole_and_gone_when_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let kept = kept_in(dir.path());
        let key = Key::of_local("r", "a");
        assert!(kept.find(&key).await.unwrap().is_none() && !kept.remove(&key.hash).unwrap());
        assert!(!dir.path().join(FOLDER).exists());
        drop(receive(kept, "a", b"cut").await);
        assert_eq!((read(kept, "a").await, names(kept)), (None, 0));
        receive(kept, "a", b"one").await.keep().await.unwrap();
        let second = receive(kept, "a", b"other").await;
        assert_eq!(read(kept, "a").await.as_deref(), Some(&b"one"[..]));
        let stored = second.stored().unwrap();
        assert_eq!((stored.finished.length, stored.key.clone()), (5, key.clone()));
        second.keep().await.unwrap();
        assert_eq!(read(kept, "a").await.as_deref(), Some(&b"other"[..]));
        receive(kept, "b", b"").await.keep().await.unwrap();
        assert_eq!((read(kept, "b").await.as_deref(), names(kept)), (Some(&b""[..]), 2));
        assert!(kept.remove(&key.hash).unwrap() && kept.is_missing(&key.hash));
        assert_eq!((read(kept, "a").await, names(kept)), (None, 1));
    }

    #[tokio::test]
    async fn the_scrubber_says_what_is_damaged_and_it_stays() {
        let dir = tempfile::tempdir().unwrap();
        let kept = kept_in(dir.path());
        let key = Key::of_local("r", "a");
        receive(kept, "a", b"hello").await.keep().await.unwrap();
        receive(kept, "b", b"hello").await.keep().await.unwrap();
        let mut pace = Pace::new(1 << 30);
        kept.scrub(&mut pace);
        assert_eq!(kept.trouble(), None);
        let path = kept.disk().unwrap().path(&key.hash);
        let length = fs::metadata(&path).unwrap().len();
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"J", length - 5).unwrap();
        kept.scrub(&mut pace);
        assert!(kept.trouble().is_some_and(|why| why.contains("r a")));
        let error = kept.find(&key).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(path.exists());
        assert_eq!(read(kept, "b").await.as_deref(), Some(&b"hello"[..]));
        // Put right, it is found out when it is read.
        file.write_all_at(b"h", length - 5).unwrap();
        kept.damaged.lock().get_mut(&key.hash).unwrap().at -= DAMAGE_PAUSE;
        kept.proven.clear();
        assert_eq!(read(kept, "a").await.as_deref(), Some(&b"hello"[..]));
        assert_eq!(kept.trouble(), None);
        // A new upload puts it right as well, whatever is wrong with the old one.
        fs::write(&path, "no object").unwrap();
        assert!(kept.find(&key).await.is_err() && kept.trouble().is_some());
        receive(kept, "a", b"again").await.keep().await.unwrap();
        assert_eq!(
            (read(kept, "a").await.as_deref(), kept.trouble()),
            (Some(&b"again"[..]), None)
        );
    }
}
