//! Reading an object: from memory, from a file, or from one that still grows.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::object::{Body, Object, Progress, Stage};
use super::overflow::{Place, Position};
use super::read::read_now;
use super::store::DISK_LIMIT;

/// Bytes of one read: large enough that the system call does not count, small enough that a thousand slow clients hold
/// little.
const PIECE: u64 = 128 << 10;

/// Set when the file system cannot read without waiting (tmpfs): every read then goes to the blocking pool.
static MUST_BLOCK: AtomicBool = AtomicBool::new(false);

/// Why a body could not be read to its end. The client's connection must break: a clean end would pass a prefix off
/// as the whole.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the transfer that this response was reading from failed")]
    FillFailed,
    #[error("the body passes through unstored, and this response was too slow for it")]
    TooSlow,
    #[error("reading the stored object failed: {0}")]
    Io(#[from] io::Error),
    #[error("the stored object is not what it was when it was stored")]
    Damaged,
    #[error("the read was given up")]
    GivenUp,
}

/// A position in an object. Reads wait for a growing object to grow.
#[derive(Debug)]
pub struct Reader {
    object: Arc<Object>,
    position: u64,
    /// Exclusive; `u64::MAX` reads to the end.
    end: u64,
    watch: Option<watch::Receiver<Progress>>,
    /// Told to the one who writes a growing object: it may have to wait for its readers.
    place: Option<Arc<Position>>,
    /// Read into again once whoever had the piece before has let go of it.
    buffer: Arc<Buffer>,
    piece: u64,
    /// What is being read of a body that is elsewhere.
    stream: Option<Incoming>,
    /// Of the bytes read so far, while a body that was not compared with its digest lately is read from its beginning.
    proof: Option<Sha256>,
}

/// A stream that its reader alone polls; the lock is never waited for, and makes a reader `Sync`.
struct Incoming(Mutex<BoxStream<'static, io::Result<Bytes>>>);

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Incoming")
    }
}

#[derive(Debug, Default)]
struct Buffer(Vec<u8>);

/// The first bytes of a buffer, lent out.
struct Lent(Arc<Buffer>, usize);

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.0.0[..self.1]
    }
}

impl Reader {
    /// Reads the whole object.
    pub fn new(object: Arc<Object>) -> Self {
        let watch = if object.is_complete() {
            None
        } else {
            object.growth.as_ref().map(|growth| growth.subscribe())
        };
        let place = watch
            .as_ref()
            .and_then(|_| object.overflow.get())
            .map(|overflow| overflow.reader());
        let proof = (!object.is_proven()).then(Sha256::new);
        Reader {
            object,
            position: 0,
            end: u64::MAX,
            watch,
            place,
            buffer: Arc::default(),
            piece: PIECE,
            stream: None,
            proof,
        }
    }

    /// Compares the whole with its digest, whenever that was done last.
    pub(super) fn proving(mut self) -> Self {
        self.proof = Some(Sha256::new());
        self
    }

    /// This reader, in pieces of at most so many bytes of a file.
    pub fn in_pieces_of(mut self, bytes: u64) -> Self {
        self.piece = bytes;
        self
    }

    /// Reads `start..end` only.
    pub fn range(object: Arc<Object>, start: u64, end: u64) -> Self {
        let mut reader = Reader::new(object);
        reader.seek(start, end);
        reader
    }

    pub fn seek(&mut self, start: u64, end: u64) {
        self.stream = None;
        let whole = start == 0 && self.object.length().is_none_or(|length| end >= length);
        self.proof = (whole && !self.object.is_proven()).then(Sha256::new);
        self.end = end;
        self.move_to(start);
    }

    fn move_to(&mut self, position: u64) {
        self.position = position;
        if let (Some(place), Some(overflow)) = (&self.place, self.object.overflow.get()) {
            let wanted = if position < self.end { position } else { u64::MAX };
            overflow.move_to(place, wanted);
        }
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// The fill failed, or the file cannot be read.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        if self.position >= self.end {
            return Ok(None);
        }
        let available = loop {
            let progress = match &mut self.watch {
                Some(watch) => *watch.borrow_and_update(),
                None => self.object.progress(),
            };
            let limit = progress.visible.min(self.end);
            if self.position < limit {
                break limit;
            }
            match progress.state {
                Stage::Complete => return Ok(None),
                Stage::Failed => return Err(ReadError::FillFailed),
                Stage::Growing => {}
            }
            let Some(watch) = &mut self.watch else {
                return Err(ReadError::FillFailed);
            };
            if watch.changed().await.is_err() && !self.object.is_complete() {
                return Err(ReadError::FillFailed);
            }
        };
        let overflow = self.object.overflow.get();
        let available = match overflow.map(|overflow| overflow.find(self.position, available)) {
            None => available,
            Some(Place::Body(available)) => available,
            Some(Place::Held(piece)) => {
                self.move_to(self.position + piece.len() as u64);
                return Ok(Some(piece));
            }
            Some(Place::Gone) => return Err(ReadError::TooSlow),
        };
        let piece = match &self.object.body {
            // A body in memory goes out in one piece: it is shared, not copied.
            Body::Memory(bytes, _) => {
                let (from, to) = (self.position as usize, (available as usize).min(bytes.len()));
                if from >= to {
                    return Err(ReadError::Io(io::ErrorKind::UnexpectedEof.into()));
                }
                bytes.slice(from..to)
            }
            Body::File { file, offset } => {
                let length = (available - self.position).min(self.piece) as usize;
                let read = read_file(&self.object, file, offset + self.position, length, &mut self.buffer).await;
                if let Err(ReadError::Io(why)) = &read {
                    self.object.cannot_be_read(why);
                }
                let piece = read?;
                self.prove(&piece).await?;
                piece
            }
            Body::Elsewhere(body) => {
                let stream = match &mut self.stream {
                    Some(stream) => stream,
                    None => {
                        let stream = body.read(self.position, available).await?;
                        self.stream.insert(Incoming(Mutex::new(stream)))
                    }
                };
                match stream.0.get_mut().next().await {
                    Some(piece) => piece?,
                    None => return Err(ReadError::Io(io::ErrorKind::UnexpectedEof.into())),
                }
            }
        };
        self.move_to(self.position + piece.len() as u64);
        Ok(Some(piece))
    }

    /// Digests a piece that was read. The last one is handed out only if the whole is what was stored: who has all that its
    /// length promises has the right bytes.
    async fn prove(&mut self, piece: &[u8]) -> Result<(), ReadError> {
        let (Some(proof), Some(finished)) = (&mut self.proof, self.object.finished()) else {
            return Ok(());
        };
        proof.update(piece);
        if self.position + (piece.len() as u64) < finished.length {
            // Others are waiting for this thread.
            tokio::task::yield_now().await;
            return Ok(());
        }
        let digest = self.proof.take().map(Sha256::finalize);
        if digest.is_some_and(|digest| digest.as_slice() == finished.sha256) {
            self.object.is_proven_now();
            return Ok(());
        }
        self.object.lose("its body does not match its digest");
        Err(ReadError::Damaged)
    }

    /// The whole rest, if it is at most `limit` bytes.
    ///
    /// # Errors
    /// Those of [`Reader::next`]; longer than `limit` is an error too.
    pub async fn collect(&mut self, limit: usize) -> Result<Vec<u8>, ReadError> {
        let mut all = Vec::new();
        while let Some(piece) = self.next().await? {
            if all.len() + piece.len() > limit {
                return Err(ReadError::Io(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "longer than is read at once",
                )));
            }
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.end = 0;
        self.move_to(0);
    }
}

/// Reads without leaving this thread when the page cache has the bytes (`preadv2` with `RWF_NOWAIT`), on the blocking
/// pool otherwise. The buffer is this thread's in both cases: what one thread allocates and another frees comes back late, and
/// there are many that block.
async fn read_file(
    object: &Arc<Object>,
    file: &std::fs::File,
    at: u64,
    length: usize,
    lent: &mut Arc<Buffer>,
) -> Result<Bytes, ReadError> {
    let mut buffer = Arc::get_mut(lent).map_or_else(Vec::new, |buffer| std::mem::take(&mut buffer.0));
    if buffer.len() < length {
        buffer = vec![0; length];
    }
    let mut read = None;
    if !MUST_BLOCK.load(Relaxed) {
        match read_now(file, &mut buffer[..length], at) {
            Ok(got) => read = Some(got),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS | rustix::io::Errno::INVAL) => {
                MUST_BLOCK.store(true, Relaxed);
            }
            Err(error) => return Err(ReadError::Io(error.into())),
        }
    }
    let got = match read {
        Some(got) => got,
        None => {
            let object = Arc::clone(object);
            let reading = tokio::task::spawn_blocking(move || {
                let got = read_waiting(&object, &mut buffer[..length], at);
                (buffer, got)
            });
            let (filled, got) = match tokio::time::timeout(DISK_LIMIT, reading).await {
                Ok(Ok(read)) => read,
                Ok(Err(_)) => return Err(ReadError::GivenUp),
                Err(_) => return Err(ReadError::Io(io::ErrorKind::TimedOut.into())),
            };
            buffer = filled;
            got?
        }
    };
    if got == 0 {
        return Err(ReadError::Io(io::ErrorKind::UnexpectedEof.into()));
    }
    *lent = Arc::new(Buffer(buffer));
    Ok(Bytes::from_owner(Lent(Arc::clone(lent), got)))
}

fn read_waiting(object: &Object, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let Body::File { file, .. } = &object.body else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    loop {
        match file.read_at(buffer, at) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
