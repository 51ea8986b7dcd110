//! The disk tier: one self-describing file per object under a hashed path. A hit needs no database, a restart no scan.
//!
//! A file is a fixed preamble, the head as JSON, and the body. It is written under no name and gets one only when it is
//! complete, so a crash leaves no half object. The freshness fields of the preamble are overwritten in place, everything
//! else is written once.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rustix::fs::{AtFlags, CWD, FallocateFlags, FlockOperation, OFlags};
use sha2::{Digest as _, Sha256};

use super::Class;
use super::{Finished, Hash, Head, Millis, hex};

const MAGIC: &[u8; 8] = b"AAPIOBJ1";
/// Length of the fixed part.
const PREAMBLE: usize = 128;
const OFFSET_FRESHNESS: u64 = 72;
const OFFSET_BACKED_UP: usize = 96;
/// One read gets the preamble and, nearly always, the head.
const FIRST_READ: usize = 4096;
/// Heads are bounded: Pingora accepts 1 MB of header, a stored one is cleaned and smaller.
const MAX_HEAD: usize = 2 << 20;

/// Everything in front of a body.
#[derive(Debug)]
pub struct Record {
    pub key_text: String,
    pub id: u64,
    pub head: Head,
    pub finished: Finished,
    pub class: Class,
    pub checked_at: Millis,
    pub fresh_until: Millis,
    /// Where the body starts.
    pub offset: u64,
    /// It is known to be in the bucket too.
    pub backed_up: bool,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct StoredHead<H> {
    key: String,
    head: H,
}

/// The folder that holds the disk tier.
#[derive(Debug)]
pub struct Disk {
    objects: PathBuf,
    temporary: PathBuf,
    sequence: AtomicU64,
    /// Whether the file system has `O_TMPFILE`.
    unnamed: bool,
}

/// A file that has no name yet.
#[derive(Debug)]
pub struct Unnamed {
    pub file: File,
    /// Where the file system lacks `O_TMPFILE`: a locked name in the temporary folder.
    path: Option<PathBuf>,
}

impl Unnamed {
    /// Hands the file over, so that it can be published on another thread; what stays is an empty shell.
    pub fn take(&mut self) -> io::Result<Unnamed> {
        Ok(Unnamed {
            file: self.file.try_clone()?,
            path: self.path.take(),
        })
    }
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

impl Disk {
    /// Opens or makes the folders below `data_dir` and removes what a crash left in the temporary one.
    ///
    /// # Errors
    /// The folder cannot be made or written.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let objects = data_dir.join("objects");
        let temporary = data_dir.join("tmp");
        fs::create_dir_all(&objects)?;
        fs::create_dir_all(&temporary)?;
        let unnamed = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::TMPFILE.bits() as i32)
            .open(&objects)
            .is_ok();
        if !unnamed {
            // Says clearly, and now, when the folder cannot be written at all.
            let probe = temporary.join(format!("probe-{}", std::process::id()));
            File::create(&probe)?;
            fs::remove_file(&probe)?;
        }
        let disk = Disk {
            objects,
            temporary,
            sequence: AtomicU64::new(0),
            unnamed,
        };
        disk.sweep_temporary();
        Ok(disk)
    }

    /// Two processes may share the folder during an upgrade: what another one still holds is locked or very young.
    fn sweep_temporary(&self) {
        let Ok(entries) = fs::read_dir(&self.temporary) else {
            return;
        };
        for entry in entries.flatten() {
            let young = entry
                .metadata()
                .and_then(|meta| meta.modified())
                .is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age.as_secs() < 60));
            let Ok(file) = File::open(entry.path()) else { continue };
            let locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err();
            if !locked && (!young || !self.unnamed) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    pub fn root(&self) -> &Path {
        &self.objects
    }

    /// Where the object of `hash` lies.
    pub fn path(&self, hash: &Hash) -> PathBuf {
        let name = hex(hash);
        self.objects.join(&name[0..2]).join(&name[2..4]).join(&name)
    }

    /// A new file without a name, with `reserve` bytes allocated.
    ///
    /// # Errors
    /// No space, or any other failure of the file system.
    pub fn create(&self, reserve: u64) -> io::Result<Unnamed> {
        let unnamed = if self.unnamed {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(OFlags::TMPFILE.bits() as i32)
                .open(&self.objects)?;
            Unnamed { file, path: None }
        } else {
            let path = self.temporary.join(self.temporary_name());
            let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            Unnamed { file, path: Some(path) }
        };
        allocate(&unnamed.file, 0, reserve)?;
        Ok(unnamed)
    }

    fn temporary_name(&self) -> String {
        format!("{}-{}", std::process::id(), self.sequence.fetch_add(1, Relaxed))
    }

    /// Gives a complete file its name, replacing what was there.
    ///
    /// # Errors
    /// Any failure of the file system; the file then has no name and what was there stays.
    pub fn publish(&self, unnamed: &mut Unnamed, hash: &Hash, sync: bool) -> io::Result<()> {
        if sync {
            unnamed.file.sync_data()?;
        }
        let target = self.path(hash);
        let from = match unnamed.path.take() {
            Some(path) => path,
            None => {
                // A link cannot replace, a rename can: link under a temporary name first.
                let path = self.temporary.join(self.temporary_name());
                let source = format!("/proc/self/fd/{}", unnamed.file.as_raw_fd());
                rustix::fs::linkat(CWD, source, CWD, &path, AtFlags::SYMLINK_FOLLOW)?;
                path
            }
        };
        let renamed = fs::rename(&from, &target).or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(error);
            }
            if let Some(folder) = target.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::rename(&from, &target)
        });
        if renamed.is_err() {
            let _ = fs::remove_file(&from);
        } else if sync && let Some(folder) = target.parent() {
            File::open(folder)?.sync_all()?;
        }
        renamed
    }

    /// Opens the object of `hash` and reads what stands in front of its body. `None`: not stored, or not to be read now.
    /// A file that is damaged is removed.
    pub fn load(&self, hash: &Hash) -> Option<(File, Record)> {
        self.read(hash, self.open_file(hash)?)
    }

    /// The first half of [`Disk::load`]: says quickly that something is not stored.
    pub fn open_file(&self, hash: &Hash) -> Option<File> {
        match open_regular(&self.path(hash), OpenOptions::new().read(true)) {
            Ok(file) => Some(file),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(hash = %hex(hash), %error, "a stored object cannot be opened");
                }
                None
            }
        }
    }

    /// The second half of [`Disk::load`].
    pub fn read(&self, hash: &Hash, file: File) -> Option<(File, Record)> {
        match read_record(&file) {
            Ok(record) => Some((file, record)),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(hash = %hex(hash), %error, "a damaged object is removed from the cache");
                let _ = fs::remove_file(self.path(hash));
                None
            }
            Err(error) => {
                tracing::warn!(hash = %hex(hash), %error, "a stored object cannot be read");
                None
            }
        }
    }

    /// Overwrites the freshness of the object of `hash`, if it still is the one with `id`.
    pub fn refresh(
        &self,
        hash: &Hash,
        id: u64,
        class: Class,
        checked_at: Millis,
        fresh_until: Millis,
    ) -> io::Result<bool> {
        let file = match open_regular(&self.path(hash), OpenOptions::new().read(true).write(true)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let mut preamble = [0; PREAMBLE];
        file.read_exact_at(&mut preamble, 0)?;
        if &preamble[0..8] != MAGIC || number(&preamble, 24) != id {
            return Ok(false);
        }
        file.write_all_at(&freshness_bytes(class, checked_at, fresh_until), OFFSET_FRESHNESS)?;
        Ok(true)
    }

    /// Notes whether the object of `hash` is in the bucket too, if it still is the one with `id`.
    pub fn mark_backed_up(&self, hash: &Hash, id: u64, backed_up: bool) -> io::Result<()> {
        let file = open_regular(&self.path(hash), OpenOptions::new().read(true).write(true))?;
        let mut preamble = [0; PREAMBLE];
        file.read_exact_at(&mut preamble, 0)?;
        if &preamble[0..8] == MAGIC && number(&preamble, 24) == id {
            file.write_all_at(&[u8::from(backed_up)], OFFSET_BACKED_UP as u64)?;
        }
        Ok(())
    }

    /// Removes the object of `hash`; the bytes that this freed, 0 if it was not there.
    pub fn remove(&self, hash: &Hash) -> io::Result<u64> {
        let path = self.path(hash);
        let size = match fs::metadata(&path) {
            Ok(meta) => occupied(meta.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(error),
        };
        match fs::remove_file(&path) {
            Ok(()) => Ok(size),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Bytes that the object of `hash` takes, 0 if it is not there.
    pub fn size(&self, hash: &Hash) -> u64 {
        fs::metadata(self.path(hash)).map_or(0, |meta| occupied(meta.len()))
    }

    /// Free and whole bytes of the file system.
    pub fn space(&self) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::statvfs(&self.objects)?;
        Ok((
            stat.f_bavail.saturating_mul(stat.f_frsize),
            stat.f_blocks.saturating_mul(stat.f_frsize),
        ))
    }
}

/// Opens what is a file, and waits for nothing that is none: opening a pipe waits for its other end.
fn open_regular(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let file = options.custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file")),
    }
}

/// What a file of `length` bytes takes on disk.
pub fn occupied(length: u64) -> u64 {
    length.div_ceil(4096).saturating_mul(4096)
}

/// Reserves `length` bytes at `offset` without changing the file's length.
pub fn allocate(file: &File, offset: u64, length: u64) -> io::Result<()> {
    if length == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, offset, length) {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
        other => Ok(other?),
    }
}

/// Preamble and head as they are stored; the body follows. `finished` is zero while the object grows, `backed_up` says
/// that it is in the bucket too.
pub fn encode(
    key_text: &str,
    id: u64,
    head: &Head,
    finished: Option<Finished>,
    (class, checked_at, fresh_until): (Class, Millis, Millis),
    backed_up: bool,
) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(&StoredHead {
        key: key_text.to_owned(),
        head,
    })?;
    if json.len() > MAX_HEAD {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the response header is too large to store",
        ));
    }
    let finished = finished.unwrap_or(Finished {
        length: 0,
        sha256: [0; 32],
    });
    let mut bytes = Vec::with_capacity(PREAMBLE + json.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&(json.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&finished.length.to_le_bytes());
    bytes.extend_from_slice(&id.to_le_bytes());
    bytes.extend_from_slice(&finished.sha256);
    bytes.extend_from_slice(&head_check(&json));
    bytes.extend_from_slice(&freshness_bytes(class, checked_at, fresh_until));
    bytes.resize(PREAMBLE, 0);
    bytes[OFFSET_BACKED_UP] = u8::from(backed_up);
    bytes.extend_from_slice(&json);
    Ok(bytes)
}

fn freshness_bytes(class: Class, checked_at: Millis, fresh_until: Millis) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[0..8].copy_from_slice(&checked_at.to_le_bytes());
    bytes[8..16].copy_from_slice(&fresh_until.to_le_bytes());
    bytes[16] = super::freshness::code(class);
    bytes
}

fn head_check(json: &[u8]) -> [u8; 8] {
    let digest = Sha256::digest(json);
    let mut check = [0; 8];
    check.copy_from_slice(&digest[0..8]);
    check
}

fn number(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Reads and checks everything in front of the body.
fn read_record(file: &File) -> io::Result<Record> {
    let mut first = [0; FIRST_READ];
    let got = read_some(file, &mut first, 0)?;
    if got < PREAMBLE || &first[0..8] != MAGIC {
        return Err(damaged("not an object file"));
    }
    let head_length = usize::try_from(number(&first, 8)).unwrap_or(usize::MAX);
    if head_length > MAX_HEAD {
        return Err(damaged("its head is too long"));
    }
    let json = if PREAMBLE + head_length <= got {
        first[PREAMBLE..PREAMBLE + head_length].to_vec()
    } else {
        let mut json = vec![0; head_length];
        file.read_exact_at(&mut json, PREAMBLE as u64)?;
        json
    };
    if head_check(&json) != first[64..72] {
        return Err(damaged("its head does not match its checksum"));
    }
    let stored: StoredHead<Head> =
        serde_json::from_slice(&json).map_err(|_| damaged("its head cannot be understood"))?;
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(&first[32..64]);
    let finished = Finished {
        length: number(&first, 16),
        sha256,
    };
    let offset = (PREAMBLE + head_length) as u64;
    if file.metadata()?.len() != offset.saturating_add(finished.length) {
        return Err(damaged("its body has another length than its head says"));
    }
    Ok(Record {
        key_text: stored.key,
        id: number(&first, 24),
        head: stored.head,
        finished,
        class: super::freshness::decode(first[88]),
        checked_at: number(&first, 72),
        fresh_until: number(&first, 80),
        offset,
        backed_up: first[OFFSET_BACKED_UP] == 1,
    })
}

fn read_some(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read_at(&mut buffer[got..], offset + got as u64) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

/// Sets the time of last use, which eviction goes by.
pub fn touch(path: &Path, used: std::time::SystemTime) -> io::Result<()> {
    let seconds = used.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let time = rustix::fs::Timespec {
        tv_sec: i64::try_from(seconds.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(seconds.subsec_nanos()) as _,
    };
    let times = rustix::fs::Timestamps {
        last_access: time,
        last_modification: time,
    };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::empty())?)
}
