//! Making an object grow: the one way in which bytes get into the store.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use sha2::{Digest as _, Sha256, Sha512};

use super::store::Store;
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
    #[error("the cache's bound of {limit} bytes leaves no room for {needed} more")]
    Bound { needed: u64, limit: u64 },
    #[error("the file system has {free} bytes free, and {kept} are kept free")]
    FileSystem { free: u64, kept: u64 },
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// What a body must turn out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    Sha256([u8; 32]),
    Sha512([u8; 64]),
}

/// How a fill ended.
#[derive(Debug, Clone)]
pub enum Finish {
    /// The object is stored.
    Admitted(Arc<Object>),
    /// The same bytes as before: the object that was there stays and is fresh again.
    Same(Arc<Object>),
    /// Complete, and not kept (it was flushed while it grew).
    Dropped,
    /// Not complete, or not what it should be: nothing was stored.
    Failed(String),
}

/// One fill. Dropping it unfinished fails the object and its readers.
#[derive(Debug)]
pub struct Writer {
    store: &'static Store,
    object: Arc<Object>,
    file: disk::Unnamed,
    previous: Option<Arc<Object>>,
    expected: Option<Expected>,
    sha256: Sha256,
    sha512: Option<Sha512>,
    /// Where the body starts in the file.
    offset: u64,
    written: u64,
    reserved: u64,
    done: bool,
}

impl Writer {
    pub(super) fn new(
        store: &'static Store,
        object: Arc<Object>,
        file: disk::Unnamed,
        previous: Option<Arc<Object>>,
        expected: Option<Expected>,
        offset: u64,
        reserved: u64,
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
            offset,
            written: 0,
            reserved,
            done: false,
        }
    }

    /// The object that grows.
    pub fn object(&self) -> &Arc<Object> {
        &self.object
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
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the body is longer than its Content-Length"));
        }
        let needed = disk::occupied(self.offset + end);
        if needed > self.reserved {
            let more = (needed - self.reserved).max(STEP);
            self.store.reserve(more).await.map_err(io::Error::other)?;
            disk::allocate(&self.file.file, self.reserved, more).inspect_err(|_| self.store.release(more))?;
            self.reserved += more;
        }
        let at = self.offset + self.written;
        if data.len() <= INLINE {
            self.file.file.write_all_at(&data, at)?;
            self.sha256.update(&data);
            if let Some(sha512) = &mut self.sha512 {
                sha512.update(&data);
            }
        } else {
            let object = Arc::clone(&self.object);
            let mut sha256 = std::mem::take(&mut self.sha256);
            let mut sha512 = self.sha512.take();
            let task = tokio::task::spawn_blocking(move || {
                let Body::File { file, .. } = &object.body else { return Err(io::ErrorKind::Unsupported.into()) };
                file.write_all_at(&data, at)?;
                sha256.update(&data);
                if let Some(sha512) = &mut sha512 {
                    sha512.update(&data);
                }
                Ok::<_, io::Error>((sha256, sha512))
            });
            (self.sha256, self.sha512) = task.await.map_err(|_| io::Error::other("the write was given up"))??;
        }
        self.written = end;
        let visible = if self.expected.is_some() { end.saturating_sub(HELD_BACK) } else { end };
        self.show(Progress { visible, state: State::Growing });
        Ok(())
    }

    fn show(&self, progress: Progress) {
        if let Some(growth) = &self.object.growth {
            growth.send_replace(progress);
        }
    }

    /// The body has ended: checks length and digest, gives the file its name and tells the readers.
    pub async fn finish(mut self) -> Finish {
        self.done = true;
        match self.try_finish().await {
            Ok(finish) => finish,
            Err(reason) => {
                self.fail();
                tracing::warn!(key = %super::shown(&self.object.key), %reason, "a fill was not admitted");
                Finish::Failed(reason)
            }
        }
    }

    async fn try_finish(&mut self) -> Result<Finish, String> {
        if let Some(length) = self.object.head.content_length.filter(|length| *length != self.written) {
            return Err(format!("the body ended after {} of {length} bytes", self.written));
        }
        let sha256: [u8; 32] = std::mem::take(&mut self.sha256).finalize().into();
        let right = match (&self.expected, self.sha512.take()) {
            (Some(Expected::Sha256(expected)), _) => *expected == sha256,
            (Some(Expected::Sha512(expected)), Some(sha512)) => <[u8; 64]>::from(sha512.finalize()) == *expected,
            (Some(Expected::Sha512(_)), None) => false,
            (None, _) => true,
        };
        if !right {
            return Err("the body has another digest than it must have".to_owned());
        }
        let finished = Finished { length: self.written, sha256 };
        let same = self.previous.take().filter(|previous| previous.finished() == Some(finished));
        let finish = if self.object.doomed.load(Relaxed) {
            self.store.release(self.reserved);
            Finish::Dropped
        } else if let Some(previous) = same {
            let fresh = &self.object.fresh;
            self.store.refresh(&previous, fresh.class(), fresh.checked_at(), fresh.fresh_until()).await;
            self.store.release(self.reserved);
            Finish::Same(previous)
        } else {
            self.store.admit(&self.object, &mut self.file, finished, self.offset, self.reserved).await?;
            Finish::Admitted(Arc::clone(&self.object))
        };
        self.reserved = 0;
        let _ = self.object.finished.set(finished);
        self.store.settle(&self.object, matches!(finish, Finish::Admitted(_)));
        self.show(Progress { visible: finished.length, state: State::Complete });
        Ok(finish)
    }

    fn fail(&mut self) {
        self.store.release(std::mem::take(&mut self.reserved));
        self.store.settle(&self.object, false);
        let visible = self.object.progress().visible;
        self.show(Progress { visible, state: State::Failed });
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.done {
            self.fail();
        }
    }
}
