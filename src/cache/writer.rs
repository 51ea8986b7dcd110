//! Making an object grow: the one way in which bytes get into the store.

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::disk;
use super::expected::{Expected, Verifier, Wrong};
use super::head::{Finished, identity};
use super::object::{Body, Object, Progress, Stage};
use super::overflow::Overflow;
use super::store::{Room, Space, Store};

/// Of a body whose digest is known beforehand this much is held back until it was verified, so that no reader can take
/// a wrong body for a complete one.
const HELD_BACK: u64 = 64 << 10;
/// An unknown length is reserved in steps of this.
const STEP: u64 = 4 << 20;
/// Larger pieces are written and hashed on the blocking pool.
const INLINE: usize = 16 << 10;

/// How a fill ended.
#[derive(Debug, Clone)]
pub enum Finish {
    /// The object is stored.
    Admitted(Arc<Object>),
    /// Upstream sent the content that was there before: the object that was there stays and is fresh again.
    Same(Arc<Object>),
    /// Complete, and not kept (it was flushed while it grew).
    Dropped,
    /// Not complete: nothing was stored.
    Failed(String),
    /// Complete, and not what it must be: nothing was stored.
    Wrong(String),
    /// Complete, and not what it was before, which it must still be: nothing was stored.
    Changed(String),
}

/// One fill. Dropping it unfinished fails the object and its readers.
#[derive(Debug)]
pub struct Writer {
    store: &'static Store,
    object: Arc<Object>,
    /// `None`: what is written goes to memory.
    file: Option<disk::Unnamed>,
    previous: Option<Arc<Object>>,
    expected: Option<Expected>,
    /// The SHA-256 that it had before, where it must still have that.
    before: Option<[u8; 32]>,
    sha256: Sha256,
    /// Where something else than that digest is expected.
    verifier: Option<Verifier>,
    /// The last pieces, of which the readers see nothing yet though no digest is known: see [`Writer::hold_back`].
    held: Option<VecDeque<Bytes>>,
    space: Space,
    written: u64,
    done: bool,
}

impl Writer {
    pub(super) fn new(
        store: &'static Store,
        object: Arc<Object>,
        file: Option<disk::Unnamed>,
        previous: Option<Arc<Object>>,
        expected: Option<Expected>,
        space: Space,
    ) -> Self {
        let other = expected
            .as_ref()
            .filter(|expected| !matches!(expected, Expected::Sha256(_)));
        let verifier = other.map(Expected::verifier);
        Writer {
            store,
            object,
            file,
            previous,
            expected,
            before: None,
            sha256: Sha256::new(),
            verifier,
            held: None,
            space,
            written: 0,
            done: false,
        }
    }

    /// The object that grows.
    pub fn object(&self) -> &Arc<Object> {
        &self.object
    }

    /// The digest will be known at the end only, by [`Writer::expect`]: as much is held back as if it were known.
    pub fn hold_back(&mut self) {
        if self.expected.is_none() {
            self.held = Some(VecDeque::new());
        }
    }

    /// What was written and is not shown, where it is held back for want of a digest.
    pub fn held(&self) -> Bytes {
        let hidden = (self.written - self.visible()) as usize;
        let Some(held) = &self.held else { return Bytes::new() };
        let all: Bytes = held.iter().flatten().copied().collect();
        all.slice(all.len() - hidden..)
    }

    /// The SHA-256 that the body must turn out to have, unless something was expected of it before.
    pub fn expect(&mut self, sha256: [u8; 32]) {
        self.expected.get_or_insert(Expected::Sha256(sha256));
    }

    /// Nothing is taken that has another SHA-256 than `before`.
    pub fn must_stay(&mut self, before: [u8; 32]) {
        self.before = Some(before);
    }

    /// How much of what was written the readers may see.
    fn visible(&self) -> u64 {
        match self.expected.is_some() || self.before.is_some() || self.held.is_some() {
            true => self.written.saturating_sub(HELD_BACK),
            false => self.written,
        }
    }

    /// Appends a piece and shows it to the readers.
    ///
    /// # Errors
    /// The disk is full or broken; the object is of no use any more.
    pub async fn write(&mut self, data: Bytes) -> io::Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let end = self.written + data.len() as u64;
        if self.object.head.content_length.is_some_and(|length| end > length) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the body is longer than its Content-Length",
            ));
        }
        if let Some(held) = &mut self.held {
            held.push_back(data.clone());
            let mut bytes: usize = held.iter().map(Bytes::len).sum();
            while let Some(first) = held.front().map(Bytes::len)
                && bytes - first >= HELD_BACK as usize
            {
                held.pop_front();
                bytes -= first;
            }
        }
        self.digest_and_store(data).await?;
        self.written = end;
        self.show(Progress {
            visible: self.visible(),
            state: Stage::Growing,
        });
        Ok(())
    }

    /// The part of the body that is held in memory. (Every object that grows has one, be it empty.)
    fn overflow(&self) -> &Overflow {
        self.object.overflow.get_or_init(Overflow::default)
    }

    async fn digest_and_store(&mut self, data: Bytes) -> io::Result<()> {
        let at = self.space.offset + self.written;
        let end = at + data.len() as u64;
        // What comes after a piece that is held in memory is held there too.
        let in_file = self.file.is_some() && !self.overflow().has_begun();
        let in_file = in_file && {
            // For what may turn out too long nothing is evicted.
            let (room, step) = match end <= self.space.evicts_to {
                true => (Room::Made, (end + STEP).min(self.space.evicts_to)),
                false => (Room::Free, end + STEP),
            };
            end <= self.space.reserved || {
                let reserved = &mut self.space.reserved;
                self.store.room_for(&self.object, step, reserved, room).await.is_ok()
            }
        };
        let (object, kept) = (Arc::clone(&self.object), data.clone());
        let (mut sha256, mut verifier) = (std::mem::take(&mut self.sha256), self.verifier.take());
        let work = move || {
            sha256.update(&data);
            if let Some(verifier) = &mut verifier {
                verifier.update(&data);
            }
            let written = match &object.body {
                Body::File { file: body, .. } if in_file => body.write_all_at(&data, at),
                _ => Ok(()),
            };
            (sha256, verifier, written)
        };
        // What only memory takes does not wait behind a disk that hangs.
        let (sha256, verifier, written) = if kept.len() <= INLINE || !in_file {
            work()
        } else {
            tokio::task::spawn_blocking(work)
                .await
                .map_err(|_| io::Error::other("the write was given up"))?
        };
        (self.sha256, self.verifier) = (sha256, verifier);
        if let Err(why) = &written {
            self.store.trouble.failed(why, &self.object.key.hash);
            tracing::warn!(key = %self.object.key.shown(), %why, "the disk takes no more of this body: it is passed on unstored");
            self.file = None;
            self.object.doomed.store(true, SeqCst);
        }
        if !in_file || written.is_err() {
            self.hold(kept).await?;
        }
        Ok(())
    }

    /// Holds a piece in memory, until the end of the body tells whether it can be kept. What is too long passes through.
    async fn hold(&mut self, data: Bytes) -> io::Result<()> {
        self.overflow().begin(self.written);
        let passes = || {
            tracing::warn!(key = %self.object.key.shown(), "a body is longer than what is free and what memory holds: it passes through unstored");
            self.store.passes(&self.object);
        };
        let end = self.space.offset + self.written + data.len() as u64;
        let held = self.overflow().push(data, self.store.could_fit(end), passes).await;
        held.map_err(|full| io::Error::new(io::ErrorKind::StorageFull, full))
    }

    /// What was held until the end goes to the disk after all.
    async fn store_held(&mut self) -> io::Result<()> {
        if !self.overflow().has_begun() {
            return Ok(());
        }
        let end = self.space.offset + self.written;
        let reserved = &mut self.space.reserved;
        self.store.room_for(&self.object, end, reserved, Room::Made).await?;
        let (object, offset) = (Arc::clone(&self.object), self.space.offset);
        let stored = tokio::task::spawn_blocking(move || {
            let (Body::File { file, .. }, Some(overflow)) = (&object.body, object.overflow.get()) else {
                return Err(io::ErrorKind::Unsupported.into());
            };
            for (start, piece) in overflow.pieces() {
                file.write_all_at(&piece, offset + start)?;
            }
            overflow.is_stored();
            Ok(())
        });
        stored.await.map_err(|_| io::Error::other("the write was given up"))?
    }

    fn show(&self, progress: Progress) {
        if let Some(growth) = &self.object.growth {
            growth.send_replace(progress);
        }
    }

    /// The body has ended: checks length and digest, gives the file its name and tells the readers.
    pub async fn finish(mut self) -> Finish {
        // Until it is over, dropping this fails the object: whoever waits for it must not wait for ever.
        let finish = self.try_finish().await;
        self.done = true;
        match finish {
            Ok(finish) => finish,
            Err(finish) => {
                self.fail();
                finish
            }
        }
    }

    async fn try_finish(&mut self) -> Result<Finish, Finish> {
        if let Some(length) = self.object.head.content_length.filter(|length| *length != self.written) {
            let reason = format!("the body ended after {} of {length} bytes", self.written);
            return Err(Finish::Failed(reason));
        }
        let sha256: [u8; 32] = std::mem::take(&mut self.sha256).finalize().into();
        let found = Expected::Sha256(sha256);
        let verified = match (self.verifier.take(), &self.expected) {
            (Some(verifier), _) => verifier.end(),
            (None, Some(expected)) if *expected != found => Err(Wrong {
                expected: expected.clone(),
                found: found.to_string(),
            }),
            (None, _) => Ok(()),
        };
        if let Err(wrong) = verified {
            return Err(Finish::Wrong(format!("of the body: {wrong}")));
        }
        if let Some(before) = self.before.filter(|before| *before != sha256) {
            let before = Expected::Sha256(before);
            return Err(Finish::Changed(format!(
                "the path had the digest {before}, and has {found} now"
            )));
        }
        let finished = Finished {
            length: self.written,
            sha256,
        };
        // Of a name the bodies, which are empty, say nothing.
        let identity = identity(&finished, self.object.head.stands_for.as_ref());
        let same = self
            .previous
            .take()
            .filter(|previous| previous.identity() == Some(identity));
        let finish = self.keep(same, finished).await.unwrap_or(Finish::Dropped);
        if self.object.head.content_length.is_none() && matches!(finish, Finish::Dropped) {
            // The next one is judged by it.
            self.store.lengths.expect(&self.object.key.hash, finished.length);
        }
        self.store.release(std::mem::take(&mut self.space.reserved));
        let _ = self.object.finished.set(finished);
        self.store.settle(&self.object, matches!(finish, Finish::Admitted(_)));
        self.show(Progress {
            visible: finished.length,
            state: Stage::Complete,
        });
        Ok(finish)
    }

    /// Refreshes what is the same already, else stores what has arrived; `None` where it is not kept.
    async fn keep(&mut self, same: Option<Arc<Object>>, finished: Finished) -> Option<Finish> {
        if let Some(previous) = same {
            let fresh = &self.object.fresh;
            let (class, checked_at, until) = (fresh.class(), fresh.checked_at(), fresh.fresh_until());
            // Making room for this very body may have cost the one that was there.
            if self.store.refresh(&previous, class, checked_at, until).await {
                return Some(Finish::Same(previous));
            }
        }
        if self.object.doomed.load(SeqCst) {
            return None;
        }
        let mut file = self.file.take()?;
        let admitted = match self.store_held().await {
            Ok(()) => {
                let offset = self.space.offset;
                self.store.admit(&self.object, &mut file, finished, offset).await
            }
            Err(why) => Err(why.to_string()),
        };
        match admitted {
            Ok(true) => Some(Finish::Admitted(Arc::clone(&self.object))),
            Ok(false) => None,
            Err(why) => {
                // Whole and right, only not kept.
                tracing::warn!(key = %self.object.key.shown(), %why, "an object could not be stored");
                None
            }
        }
    }

    /// Whether nobody but this holds the object any more; then nobody finds it from now on either.
    pub fn leave_if_alone(&self) -> bool {
        self.store.hide_if_alone(&self.object)
    }

    /// The object may be read to its end, and is not kept.
    pub fn doom(&self) {
        self.object.doomed.store(true, SeqCst);
    }

    fn fail(&mut self) {
        if self.overflow().is_passing() {
            self.store.passes(&self.object);
        }
        self.store.release(std::mem::take(&mut self.space.reserved));
        self.store.settle(&self.object, false);
        let visible = self.object.progress().visible;
        self.show(Progress {
            visible,
            state: Stage::Failed,
        });
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.done {
            self.fail();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Expected;

    #[test]
    fn digests() {
        let hex = "ab".repeat(32);
        assert_eq!(Expected::new("sha256", &hex), Some(Expected::Sha256([0xab; 32])));
        assert_eq!(
            Expected::new("sha512", &"cd".repeat(64)),
            Some(Expected::Sha512(Box::new([0xcd; 64])))
        );
        let sha1 = Expected::new("sha1", &"ef".repeat(20)).unwrap();
        assert_eq!(sha1, Expected::Sha1([0xef; 20]));
        // Nobody names content by it.
        assert_eq!(Expected::parse(&sha1.to_string()), None);
        for (algorithm, checksum) in [
            ("sha256", "ab".to_owned()),
            ("sha256", "zz".repeat(32)),
            ("sha256", "AB".repeat(32)),
            ("sha256", "+a".repeat(32)),
            ("sha256", "ab".repeat(64)),
            ("sha512", hex.clone()),
            ("sha", "ab".repeat(20)),
            ("md5", "ab".repeat(16)),
            ("sha1", hex.clone()),
            ("sha256", String::new()),
        ] {
            assert_eq!(Expected::new(algorithm, &checksum), None, "{algorithm}:{checksum}");
        }
        let text = format!("sha256:{hex}");
        assert_eq!(Expected::parse(&text).unwrap().to_string(), text);
        assert_eq!(Expected::parse(&hex), None);
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert!(Expected::parse(empty).unwrap().is_of(b""));
        assert!(!Expected::parse(empty).unwrap().is_of(b"a"));
        let abc = Expected::new("sha1", "a9993e364706816aba3e25717850c26c9cd0d89d").unwrap();
        assert!(abc.is_of(b"abc") && !abc.is_of(b"abd"));
    }
}
