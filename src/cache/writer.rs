//! Making an object grow: the one way in which bytes get into the store.

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use bytes::Bytes;
use sha2::{Digest as _, Sha256, Sha512};

use super::overflow::Overflow;
use super::store::{Room, Store};
use super::{Body, Finished, Object, Progress, State, disk};

/// Of a body whose digest is known beforehand this much is held back until it was verified, so that no reader can take
/// a wrong body for a complete one.
const HELD_BACK: u64 = 64 << 10;
/// An unknown length is reserved in steps of this.
const STEP: u64 = 4 << 20;
/// Larger pieces are written and hashed on the blocking pool.
const INLINE: usize = 16 << 10;

/// Nothing can be stored now; the answer passes by unstored.
#[derive(Debug, thiserror::Error)]
pub enum NoSpace {
    #[error("a body whose length upstream does not say is longer than what can be kept")]
    TooLong,
    #[error("the cache's bound of {limit} bytes leaves no room for {needed} more")]
    Bound { needed: u64, limit: u64 },
    #[error("the file system has {free} bytes free, and {kept} are kept free")]
    FileSystem { free: u64, kept: u64 },
    #[error("the file system has room for {free} files (inodes), and {kept} are kept free")]
    Files { free: u64, kept: u64 },
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// What a body must turn out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    Sha256([u8; 32]),
    Sha512([u8; 64]),
}

impl Expected {
    /// Of an algorithm and a checksum in lower-case hexadecimal; `None` where it cannot be verified here.
    pub fn new(algorithm: &str, checksum: &str) -> Option<Expected> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let pairs = checksum.as_bytes().chunks(2);
        let bytes: Option<Vec<u8>> = pairs
            .map(|pair| match pair {
                [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
                _ => None,
            })
            .collect();
        match algorithm {
            "sha256" => bytes?.try_into().ok().map(Expected::Sha256),
            "sha512" => bytes?.try_into().ok().map(Expected::Sha512),
            _ => None,
        }
    }

    /// The inverse of its text: `sha256:…`.
    pub fn parse(digest: &str) -> Option<Expected> {
        let (algorithm, checksum) = digest.split_once(':')?;
        Expected::new(algorithm, checksum)
    }

    /// The SHA-256 of `body`.
    pub fn sha256(body: &[u8]) -> Expected {
        Expected::Sha256(Sha256::digest(body).into())
    }

    /// Whether `body` is what was expected.
    pub fn is_of(&self, body: &[u8]) -> bool {
        let mut verifier = self.verifier();
        verifier.update(body);
        verifier.finds_right(self)
    }
}

impl Expected {
    /// For a body that comes in pieces.
    pub fn verifier(&self) -> Verifier {
        match self {
            Expected::Sha256(_) => Verifier::Sha256(Sha256::new()),
            Expected::Sha512(_) => Verifier::Sha512(Sha512::new()),
        }
    }
}

/// Digests a body by the algorithm of what is expected of it.
pub enum Verifier {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Verifier {
    pub fn update(&mut self, piece: &[u8]) {
        match self {
            Verifier::Sha256(digest) => digest.update(piece),
            Verifier::Sha512(digest) => digest.update(piece),
        }
    }

    /// Whether the body was what was expected.
    pub fn finds_right(self, expected: &Expected) -> bool {
        match (self, expected) {
            (Verifier::Sha256(digest), Expected::Sha256(expected)) => digest.finalize().as_slice() == expected,
            (Verifier::Sha512(digest), Expected::Sha512(expected)) => digest.finalize().as_slice() == expected,
            _ => false,
        }
    }
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Expected::Sha256(digest) => write!(f, "sha256:{}", super::hex(digest)),
            Expected::Sha512(digest) => write!(f, "sha512:{}", super::hex(digest)),
        }
    }
}

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
}

/// The space of a growing file.
#[derive(Debug, Default)]
pub(super) struct Space {
    /// Where the body starts in the file.
    pub offset: u64,
    pub reserved: u64,
    /// How far room may be made by eviction before the body has ended.
    pub evicts_to: u64,
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
    sha256: Sha256,
    sha512: Option<Sha512>,
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
        let sha512 = matches!(expected, Some(Expected::Sha512(_))).then(Sha512::new);
        Writer {
            store,
            object,
            file,
            previous,
            expected,
            sha256: Sha256::new(),
            sha512,
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

    /// What the body must turn out to be, unless that was known before.
    pub fn expect(&mut self, expected: Expected) {
        self.expected.get_or_insert(expected);
    }

    /// How much of what was written the readers may see.
    fn visible(&self) -> u64 {
        match self.expected.is_some() || self.held.is_some() {
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
            state: State::Growing,
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
        let (mut sha256, mut sha512) = (std::mem::take(&mut self.sha256), self.sha512.take());
        let work = move || {
            sha256.update(&data);
            if let Some(sha512) = &mut sha512 {
                sha512.update(&data);
            }
            let written = match &object.body {
                Body::File { file: body, .. } if in_file => body.write_all_at(&data, at),
                _ => Ok(()),
            };
            (sha256, sha512, written)
        };
        // What only memory takes does not wait behind a disk that hangs.
        let (sha256, sha512, written) = if kept.len() <= INLINE || !in_file {
            work()
        } else {
            tokio::task::spawn_blocking(work)
                .await
                .map_err(|_| io::Error::other("the write was given up"))?
        };
        (self.sha256, self.sha512) = (sha256, sha512);
        if let Err(why) = &written {
            self.store.note_failure(why, &self.object.key.hash);
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
        let right = match (&self.expected, self.sha512.take()) {
            (Some(Expected::Sha256(expected)), _) => *expected == sha256,
            (Some(Expected::Sha512(expected)), Some(sha512)) => <[u8; 64]>::from(sha512.finalize()) == *expected,
            (Some(Expected::Sha512(_)), None) => false,
            (None, _) => true,
        };
        if !right {
            let wanted = self.expected.as_ref().map(ToString::to_string).unwrap_or_default();
            let reason = format!(
                "the body must have the digest {wanted}, and its SHA-256 is {}",
                super::hex(&sha256)
            );
            return Err(Finish::Wrong(reason));
        }
        let finished = Finished {
            length: self.written,
            sha256,
        };
        // Of a name the bodies, which are empty, say nothing.
        let identity = super::identity(&finished, self.object.head.stands_for.as_ref());
        let same = self
            .previous
            .take()
            .filter(|previous| previous.identity() == Some(identity));
        let finish = self.keep(same, finished).await.unwrap_or(Finish::Dropped);
        if self.object.head.content_length.is_none() && matches!(finish, Finish::Dropped) {
            // The next one is judged by it.
            self.store.expect_length(&self.object.key.hash, finished.length);
        }
        self.store.release(std::mem::take(&mut self.space.reserved));
        let _ = self.object.finished.set(finished);
        self.store.settle(&self.object, matches!(finish, Finish::Admitted(_)));
        self.show(Progress {
            visible: finished.length,
            state: State::Complete,
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

    /// It may be read to its end and is not kept.
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
            state: State::Failed,
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
            Some(Expected::Sha512([0xcd; 64]))
        );
        for (algorithm, checksum) in [
            ("sha256", "ab".to_owned()),
            ("sha256", "zz".repeat(32)),
            ("sha256", "AB".repeat(32)),
            ("sha256", "+a".repeat(32)),
            ("sha256", "ab".repeat(64)),
            ("sha512", hex.clone()),
            ("sha", "ab".repeat(20)),
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
    }
}
