//! The disk tier: one self-describing file per object under a hashed path. A hit needs no database, a restart no scan.
//!
//! A file is a fixed preamble, the head as JSON, and the body. It is written under no name and gets one only when it is
//! complete, so a crash leaves no half object. The freshness fields of the preamble are overwritten in place, everything
//! else is written once. Preamble, freshness, head and body are each under a checksum; a checksum of the preamble that is
//! all zeros is none: the file is of a version that wrote none.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, FallocateFlags, FlockOperation, OFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::freshness::Class;
use super::head::{Finished, Head};
use super::key::Hash;
use super::time::Millis;

const MAGIC: &[u8; 8] = b"AAPIOBJ1";
/// Length of the fixed part.
const PREAMBLE: usize = 128;
const OFFSET_FRESHNESS: usize = 72;
const OFFSET_BACKED_UP: usize = 96;
/// The checksum of what stands before the freshness.
const OFFSET_CHECK: usize = 120;
/// The freshness itself; its checksum fills the rest of its 24 bytes.
const FRESHNESS: usize = 17;
/// A file system has no smaller file or folder.
pub(super) const BLOCK: u64 = 4096;
/// Tries to do what another thread may undo in the same moment: the folder of a file that is to be named is removed, a
/// freshness that is read is overwritten.
const TRIES: usize = 100;
/// In the temporary folder, what is older was left by a crash.
const YOUNG: Duration = Duration::from_secs(60);
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
    /// The bucket is known to have the object too.
    pub backed_up: bool,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct StoredHead<H> {
    key: String,
    head: H,
}

/// The folder that holds the disk tier.
#[derive(Debug)]
pub(super) struct Disk {
    objects: PathBuf,
    temporary: PathBuf,
    sequence: AtomicU64,
    /// Whether the file system has `O_TMPFILE`, as far as is known.
    unnamed: AtomicBool,
    /// Held while folders are made for a name, and while empty ones are removed.
    pruning: Mutex<()>,
}

/// What is taken of the file system, or given back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub bytes: u64,
    /// Files and folders: a file system may be out of these while it has bytes.
    pub files: u64,
}

impl Amount {
    /// A file of `length` bytes.
    pub(super) fn of_file(length: u64) -> Self {
        Amount {
            bytes: occupied(length),
            files: 1,
        }
    }

    pub(super) fn of_folders(count: u64) -> Self {
        Amount {
            bytes: count * BLOCK,
            files: count,
        }
    }
}

impl std::ops::Add for Amount {
    type Output = Amount;

    fn add(self, other: Amount) -> Amount {
        Amount {
            bytes: self.bytes + other.bytes,
            files: self.files + other.files,
        }
    }
}

impl std::iter::Sum for Amount {
    fn sum<I: Iterator<Item = Amount>>(all: I) -> Amount {
        all.fold(Amount::default(), |sum, one| sum + one)
    }
}

/// How much a file system has: free, and as a whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Space {
    pub free: Amount,
    /// Its number of files is 0 where it has no fixed one.
    pub whole: Amount,
}

/// A file that has no name yet.
#[derive(Debug)]
pub(super) struct Unnamed {
    pub file: File,
    /// Where the file system lacks `O_TMPFILE`: a locked name in the temporary folder.
    path: Option<PathBuf>,
}

impl Unnamed {
    /// Hands the file over, so that it can be published on another thread; what stays is an empty shell.
    pub(super) fn take(&mut self) -> io::Result<Unnamed> {
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
    /// Takes the folders below `data_dir` and removes what a crash left in the temporary one. Folders that cannot be made
    /// now are made when something is stored.
    ///
    /// # Errors
    /// There is no such folder, and it cannot be made.
    pub(super) fn open(data_dir: &Path) -> io::Result<Self> {
        if !data_dir.is_dir() {
            fs::create_dir_all(data_dir)?;
        }
        let disk = Disk {
            objects: data_dir.join("objects"),
            temporary: data_dir.join("tmp"),
            sequence: AtomicU64::new(0),
            unnamed: AtomicBool::new(true),
            pruning: Mutex::default(),
        };
        // Finds out how files are made here. What keeps them from being made is for `Disk::probe` to say.
        drop(disk.create(0));
        disk.sweep_temporary();
        Ok(disk)
    }

    /// Removes what a crash left between a file's temporary name and its own. Two processes may share the folder during an
    /// upgrade: what another one still holds is locked or very young.
    pub(super) fn sweep_temporary(&self) {
        let Ok(entries) = fs::read_dir(&self.temporary) else {
            return;
        };
        for entry in entries.flatten() {
            let young = entry
                .metadata()
                .and_then(|meta| meta.modified())
                .is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age < YOUNG));
            // Whoever makes it may not have locked it yet: a lock that is tried here would be in the way.
            if young {
                continue;
            }
            let Ok(file) = open_regular(&entry.path(), OpenOptions::new().read(true)) else {
                continue;
            };
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Does all that storing an object under `hash` takes, with a file of no use.
    ///
    /// # Errors
    /// Nothing can be stored there.
    pub(super) fn probe(&self, hash: &Hash) -> io::Result<()> {
        let mut unnamed = self.create(BLOCK)?;
        self.begin(&unnamed.file, MAGIC)?;
        let folder = self.path(hash);
        let target = folder.with_file_name(self.temporary_name());
        let made = self.publish_as(&mut unnamed, &target, false);
        let removed = fs::remove_file(&target);
        self.prune(hash);
        made.and(removed)
    }

    pub(super) fn root(&self) -> &Path {
        &self.objects
    }

    /// Where the object of `hash` lies.
    pub(super) fn path(&self, hash: &Hash) -> PathBuf {
        let name = hex::encode(hash);
        self.objects.join(&name[0..2]).join(&name[2..4]).join(&name)
    }

    /// A new file without a name, with `reserve` bytes allocated.
    ///
    /// # Errors
    /// No space, or any other failure of the file system.
    pub(super) fn create(&self, reserve: u64) -> io::Result<Unnamed> {
        let unnamed = match self.unnamed.load(Relaxed) {
            true => self.create_unnamed()?,
            false => None,
        };
        let unnamed = match unnamed {
            Some(file) => Unnamed { file, path: None },
            None => {
                let path = self.temporary.join(self.temporary_name());
                let mut options = OpenOptions::new();
                options.read(true).write(true).create_new(true);
                let file = in_folder(&self.temporary, || options.open(&path))?;
                rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
                Unnamed { file, path: Some(path) }
            }
        };
        allocate(&unnamed.file, 0, reserve)?;
        Ok(unnamed)
    }

    /// `None`, from now on, where the file system does not know such files.
    fn create_unnamed(&self) -> io::Result<Option<File>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        options.custom_flags(OFlags::TMPFILE.bits() as i32);
        match in_folder(&self.objects, || options.open(&self.objects)) {
            Ok(file) => Ok(Some(file)),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::OPNOTSUPP | Errno::ISDIR) => {
                    self.unnamed.store(false, Relaxed);
                    Ok(None)
                }
                _ => Err(error),
            },
        }
    }

    /// Writes the first bytes of a new file, and sees that they can be read again: what cannot be read must not be in
    /// the way of a body's first reader.
    ///
    /// # Errors
    /// Any failure of the file system.
    pub(super) fn begin(&self, file: &File, bytes: &[u8]) -> io::Result<()> {
        file.write_all_at(bytes, 0)?;
        let mut read = [0; MAGIC.len()];
        super::read::read_at(file, &mut read, 0)?;
        if bytes.starts_with(&read) {
            Ok(())
        } else {
            Err(io::Error::other("what was written to a file reads differently"))
        }
    }

    fn temporary_name(&self) -> String {
        format!("{}-{}", std::process::id(), self.sequence.fetch_add(1, Relaxed))
    }

    /// Gives a complete file its name, replacing what was there. What the folders take that were made for it.
    ///
    /// # Errors
    /// Any failure of the file system; the file then has no name and what was there stays.
    pub(super) fn publish(&self, unnamed: &mut Unnamed, hash: &Hash, sync: bool) -> io::Result<Amount> {
        self.publish_as(unnamed, &self.path(hash), sync)
    }

    fn publish_as(&self, unnamed: &mut Unnamed, target: &Path, sync: bool) -> io::Result<Amount> {
        if sync {
            unnamed.file.sync_data()?;
        }
        let from = match unnamed.path.take() {
            Some(path) => path,
            None => {
                // A link cannot replace, a rename can: link under a temporary name first.
                let source = format!("/proc/self/fd/{}", unnamed.file.as_raw_fd());
                let link = || {
                    let path = self.temporary.join(self.temporary_name());
                    rustix::fs::linkat(CWD, &source, CWD, &path, AtFlags::SYMLINK_FOLLOW)?;
                    Ok(path)
                };
                let mut linked = in_folder(&self.temporary, link);
                // Left by a process that had this one's number and was killed, as all have in a container.
                for _ in 0..TRIES {
                    match &linked {
                        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => linked = link(),
                        _ => break,
                    }
                }
                linked?
            }
        };
        let mut made = 0;
        let mut renamed = fs::rename(&from, target);
        for _ in 0..TRIES {
            if !renamed.as_ref().is_err_and(is_missing) {
                break;
            }
            // Only another process that shares the folder, during an upgrade, can come between.
            let _not_pruned = self.pruning.lock();
            renamed = make_folders(target)
                .inspect(|folders| made += folders)
                .and_then(|_| fs::rename(&from, target));
        }
        if renamed.is_err() {
            let _ = fs::remove_file(&from);
        } else if sync {
            self.sync_above(target)?;
        }
        renamed.map(|()| Amount::of_folders(made))
    }

    /// What was named or removed under `hash` outlasts a loss of power.
    ///
    /// # Errors
    /// Any failure of the file system.
    pub(super) fn sync_folders(&self, hash: &Hash) -> io::Result<()> {
        self.sync_above(&self.path(hash))
    }

    /// Synchronises the folders of a file: another thread may have made them a moment ago.
    fn sync_above(&self, path: &Path) -> io::Result<()> {
        for folder in path.ancestors().skip(1) {
            match File::open(folder) {
                Ok(folder) => folder.sync_all()?,
                // Gone with its last file.
                Err(error) if is_missing(&error) => {}
                Err(error) => return Err(error),
            }
            if folder == self.objects {
                break;
            }
        }
        Ok(())
    }

    /// Opens the object of `hash`. `None`: not stored, or not to be opened now.
    pub(super) fn open_file(&self, hash: &Hash) -> Option<File> {
        self.try_open(hash).unwrap_or_else(|error| {
            tracing::warn!(hash = %hex::encode(hash), %error, "a stored object cannot be opened");
            None
        })
    }

    /// Opens the object of `hash`. `None`: not stored.
    ///
    /// # Errors
    /// The file cannot be opened now.
    pub(super) fn try_open(&self, hash: &Hash) -> io::Result<Option<File>> {
        match open_regular(&self.path(hash), OpenOptions::new().read(true)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Overwrites the freshness of the object of `hash`, if it still is the one with `id`.
    pub(super) fn refresh(
        &self,
        hash: &Hash,
        id: u64,
        class: Class,
        checked_at: Millis,
        fresh_until: Millis,
    ) -> io::Result<bool> {
        let file = match open_regular(&self.path(hash), OpenOptions::new().read(true).write(true)) {
            Ok(file) => file,
            Err(error) if is_missing(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        let mut preamble = [0; PREAMBLE];
        file.read_exact_at(&mut preamble, 0)?;
        if &preamble[0..8] != MAGIC || number(&preamble, 24) != id {
            return Ok(false);
        }
        file.write_all_at(
            &freshness_bytes(id, class, checked_at, fresh_until),
            OFFSET_FRESHNESS as u64,
        )?;
        Ok(true)
    }

    /// Notes whether the object of `hash` is in the bucket too, if it still is the one with `id`.
    pub(super) fn mark_backed_up(&self, hash: &Hash, id: u64, backed_up: bool) -> io::Result<()> {
        let file = open_regular(&self.path(hash), OpenOptions::new().read(true).write(true))?;
        let mut preamble = [0; PREAMBLE];
        file.read_exact_at(&mut preamble, 0)?;
        if &preamble[0..8] == MAGIC && number(&preamble, 24) == id {
            file.write_all_at(&[u8::from(backed_up)], OFFSET_BACKED_UP as u64)?;
        }
        Ok(())
    }

    /// Removes the object of `hash`, of several that had this name the one of `file` only; what this freed, nothing if it
    /// was not there.
    pub(super) fn remove(&self, hash: &Hash, file: Option<&File>) -> io::Result<Amount> {
        let path = self.path(hash);
        let there = match fs::metadata(&path) {
            Ok(there) => there,
            Err(error) if is_missing(&error) => return Ok(Amount::default()),
            Err(error) => return Err(error),
        };
        if let Some(file) = file {
            let meant = file.metadata()?;
            if (meant.dev(), meant.ino()) != (there.dev(), there.ino()) {
                return Ok(Amount::default());
            }
        }
        match fs::remove_file(&path) {
            Ok(()) => Ok(Amount::of_file(there.len()) + self.prune(hash)),
            Err(error) if is_missing(&error) => Ok(Amount::default()),
            Err(error) => Err(error),
        }
    }

    /// Removes the folders of `hash` that are empty; what this freed.
    pub(super) fn prune(&self, hash: &Hash) -> Amount {
        let path = self.path(hash);
        let _no_folder_made = self.pruning.lock();
        let folders = path.ancestors().skip(1).take(2);
        // The system refuses to remove what is not empty.
        let removed = folders.take_while(|folder| fs::remove_dir(folder).is_ok());
        Amount::of_folders(removed.count() as u64)
    }

    /// What the object of `hash` takes, nothing if it is not there.
    pub(super) fn size(&self, hash: &Hash) -> Amount {
        fs::metadata(self.path(hash)).map_or(Amount::default(), |meta| Amount::of_file(meta.len()))
    }

    /// Whether nothing is stored under `hash`: a file system that fails does not tell.
    pub(super) fn is_missing(&self, hash: &Hash) -> bool {
        fs::metadata(self.path(hash)).is_err_and(|error| is_missing(&error))
    }

    /// What the file system has.
    pub(super) fn space(&self) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(&self.objects)?;
        let of = |blocks: u64, files: u64| Amount {
            bytes: blocks.saturating_mul(stat.f_frsize),
            files,
        };
        Ok(Space {
            free: of(stat.f_bavail, stat.f_favail),
            whole: of(stat.f_blocks, stat.f_files),
        })
    }
}

fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

/// Whether a file that was read with `error` is damaged, or cannot be read ever after: anything else may pass.
pub(super) fn is_damage(error: &io::Error) -> bool {
    let of_medium = |errno| matches!(errno, Errno::IO | Errno::BADMSG | Errno::UCLEAN);
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
        || Errno::from_io_error(error).is_some_and(of_medium)
}

/// Makes something in `folder`, and first the folder where it is missing.
///
/// # Errors
/// Neither can be made.
pub fn in_folder<T>(folder: &Path, make: impl Fn() -> io::Result<T>) -> io::Result<T> {
    match make() {
        Err(error) if is_missing(&error) => {
            fs::create_dir_all(folder)?;
            make()
        }
        made => made,
    }
}

/// Makes the two folders that `target` lies in, and all above; how many of the two were not there.
fn make_folders(target: &Path) -> io::Result<u64> {
    let mut made = 0;
    let (Some(inner), Some(outer)) = (target.parent(), target.ancestors().nth(2)) else {
        return Ok(0);
    };
    if let Some(root) = outer.parent() {
        fs::create_dir_all(root)?;
    }
    for folder in [outer, inner] {
        match fs::create_dir(folder) {
            Ok(()) => made += 1,
            // Removed by eviction since the line above: there is another try.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists || is_missing(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(made)
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
pub(super) fn occupied(length: u64) -> u64 {
    length.div_ceil(BLOCK).saturating_mul(BLOCK)
}

/// Reserves `length` bytes at `offset` without changing the file's length.
pub(super) fn allocate(file: &File, offset: u64, length: u64) -> io::Result<()> {
    if length == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, offset, length) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        other => Ok(other?),
    }
}

/// Preamble and head as they are stored; the body follows. `finished` is zero while the object grows, `backed_up` says
/// that it is in the bucket too.
pub(super) fn encode(
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
    bytes.extend_from_slice(&checksum::<8>(&[&json]));
    let check = checksum::<8>(&[&bytes]);
    bytes.extend_from_slice(&freshness_bytes(id, class, checked_at, fresh_until));
    bytes.resize(OFFSET_CHECK, 0);
    bytes.extend_from_slice(&check);
    bytes[OFFSET_BACKED_UP] = u8::from(backed_up);
    bytes.extend_from_slice(&json);
    Ok(bytes)
}

fn freshness_bytes(id: u64, class: Class, checked_at: Millis, fresh_until: Millis) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[0..8].copy_from_slice(&checked_at.to_le_bytes());
    bytes[8..16].copy_from_slice(&fresh_until.to_le_bytes());
    bytes[16] = super::freshness::code(class);
    let check = checksum::<7>(&[&id.to_le_bytes(), &bytes[..FRESHNESS]]);
    bytes[FRESHNESS..].copy_from_slice(&check);
    bytes
}

/// The first bytes of a SHA-256. All zeros stand for none.
fn checksum<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut digest = Sha256::new();
    parts.iter().for_each(|part| digest.update(part));
    let mut check = [0; N];
    check.copy_from_slice(&digest.finalize()[..N]);
    check
}

fn is_right<const N: usize>(check: &[u8], parts: &[&[u8]]) -> bool {
    check.iter().all(|byte| *byte == 0) || check == checksum::<N>(parts)
}

fn number(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The id that the file of an object begins with, whatever else is wrong with it.
pub(super) fn id_of(file: &File) -> Option<u64> {
    let mut first = [0; 32];
    let got = read_some(file, &mut first, 0).ok()?;
    (got == first.len() && &first[0..8] == MAGIC).then(|| number(&first, 24))
}

/// Reads and checks everything in front of the body.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`]: the file is damaged. Anything else: it cannot be read.
pub(super) fn read_record(file: &File) -> io::Result<Record> {
    let mut first = [0; FIRST_READ];
    let got = read_some(file, &mut first, 0)?;
    if got < PREAMBLE || &first[0..8] != MAGIC {
        return Err(damaged("not an object file"));
    }
    if !is_right::<8>(&first[OFFSET_CHECK..PREAMBLE], &[&first[..OFFSET_FRESHNESS]]) {
        return Err(damaged("its preamble does not match its checksum"));
    }
    let head_length = usize::try_from(number(&first, 8)).unwrap_or(usize::MAX);
    if head_length > MAX_HEAD {
        return Err(damaged("its head is too long"));
    }
    let json = if PREAMBLE + head_length <= got {
        first[PREAMBLE..PREAMBLE + head_length].to_vec()
    } else {
        let mut json = vec![0; head_length];
        file.read_exact_at(&mut json, PREAMBLE as u64)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => damaged("its head is cut"),
                _ => error,
            })?;
        json
    };
    if checksum::<8>(&[&json]) != first[64..72] {
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
    let mut freshness = [0; 24];
    freshness.copy_from_slice(&first[OFFSET_FRESHNESS..OFFSET_BACKED_UP]);
    // Another thread may be overwriting it.
    for _ in 0..TRIES {
        if is_right_freshness(&first, &freshness) {
            break;
        }
        file.read_exact_at(&mut freshness, OFFSET_FRESHNESS as u64)?;
    }
    if !is_right_freshness(&first, &freshness) {
        return Err(damaged("its freshness does not match its checksum"));
    }
    Ok(Record {
        key_text: stored.key,
        id: number(&first, 24),
        head: stored.head,
        finished,
        class: super::freshness::decode(freshness[16]),
        checked_at: number(&freshness, 0),
        fresh_until: number(&freshness, 8),
        offset,
        backed_up: first[OFFSET_BACKED_UP] == 1,
    })
}

fn is_right_freshness(preamble: &[u8], freshness: &[u8; 24]) -> bool {
    is_right::<7>(&freshness[FRESHNESS..], &[&preamble[24..32], &freshness[..FRESHNESS]])
}

/// Whether the body of `record` in `file` is the one that was stored. `read` is told of the bytes read, and may make it wait.
///
/// # Errors
/// The file cannot be read.
pub(super) fn is_intact(file: &File, offset: u64, finished: &Finished, mut read: impl FnMut(u64)) -> io::Result<bool> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; finished.length.min(128 << 10) as usize];
    let mut at = 0;
    while at < finished.length {
        let length = (finished.length - at).min(buffer.len() as u64);
        let piece = &mut buffer[..length as usize];
        match file.read_exact_at(piece, offset + at) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            other => other?,
        }
        digest.update(piece);
        at += length;
        read(length);
    }
    Ok(<[u8; 32]>::from(digest.finalize()) == finished.sha256)
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
pub(super) fn touch(path: &Path, used: std::time::SystemTime) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::FOR_EVER;

    fn disk() -> (tempfile::TempDir, Disk) {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        (dir, disk)
    }

    /// A file as the first version wrote it: without checksums of preamble and freshness.
    fn old_file() -> Vec<u8> {
        let json = r#"{"key":"files\u0000a/b.txt\u0000","head":{"url":"http://127.0.0.1:1/a/b.txt","headers":[["content-type","text/plain"],["etag","\"v1\""]],"content_length":5,"stored_at":1700000000000}}"#;
        let hex = |text: &'static str| {
            let byte = move |at| u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).unwrap();
            (0..text.len() / 2).map(byte)
        };
        let mut bytes = b"AAPIOBJ1".to_vec();
        for number in [json.len() as u64, 5, 0x1234_5678_9abc_def0] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend(hex("2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"));
        bytes.extend(hex("fd62a2de6770fb30"));
        bytes.extend_from_slice(&1_700_000_000_123_u64.to_le_bytes());
        bytes.extend_from_slice(&FOR_EVER.to_le_bytes());
        bytes.push(1);
        bytes.resize(96, 0);
        bytes.push(1);
        bytes.resize(128, 0);
        bytes.extend_from_slice(json.as_bytes());
        bytes.extend_from_slice(b"hello");
        bytes
    }

    fn store(disk: &Disk, hash: &Hash, bytes: &[u8]) -> File {
        let path = disk.path(hash);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        File::open(path).unwrap()
    }

    #[test]
    fn only_what_is_not_there_is_missing_and_only_damage_costs_a_file() {
        let (_dir, disk) = disk();
        let hash = [7; 16];
        assert!(disk.is_missing(&hash));
        store(&disk, &hash, &old_file());
        assert!(!disk.is_missing(&hash));
        // A folder that is none: the disk fails, and tells nothing.
        let other = [8; 16];
        let outer = disk.path(&other).ancestors().nth(2).unwrap().to_owned();
        fs::write(outer, "").unwrap();
        assert!(!disk.is_missing(&other));
        for errno in [Errno::NOMEM, Errno::STALE, Errno::TIMEDOUT, Errno::ACCESS, Errno::MFILE] {
            assert!(!is_damage(&errno.into()), "{errno}");
        }
        assert!(is_damage(&Errno::IO.into()));
        assert!(is_damage(&damaged("cut")));
    }

    /// All that is read, but for the head's headers.
    fn told(record: &Record) -> (String, u64, Finished, Class, [Millis; 2], bool) {
        let times = [record.checked_at, record.fresh_until];
        (
            record.key_text.clone(),
            record.id,
            record.finished,
            record.class,
            times,
            record.backed_up,
        )
    }

    #[test]
    fn what_the_first_version_stored_is_read_and_refreshed() {
        let (_dir, disk) = disk();
        let hash = [7; 16];
        let file = store(&disk, &hash, &old_file());
        let record = read_record(&file).unwrap();
        assert_eq!(record.key_text, "files\0a/b.txt\0");
        assert_eq!(
            (record.id, record.finished.length, record.offset),
            (0x1234_5678_9abc_def0, 5, 128 + 183)
        );
        assert_eq!(
            (record.class, record.checked_at, record.fresh_until),
            (Class::Immutable, 1_700_000_000_123, FOR_EVER)
        );
        assert!(record.backed_up && record.head.etag() == Some("\"v1\"") && record.head.content_type() == "text/plain");
        assert!(is_intact(&file, record.offset, &record.finished, |_| {}).unwrap());
        // From now on its freshness has a checksum.
        assert!(disk.refresh(&hash, record.id, Class::Mutable, 8, 9).unwrap());
        let refreshed = read_record(&file).unwrap();
        assert_eq!(
            (refreshed.class, refreshed.checked_at, refreshed.fresh_until),
            (Class::Mutable, 8, 9)
        );
        let mut bytes = fs::read(disk.path(&hash)).unwrap();
        bytes[73] ^= 1;
        let error = read_record(&store(&disk, &hash, &bytes)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn no_flipped_bit_in_front_of_a_body_is_believed() {
        let (_dir, disk) = disk();
        let hash = [9; 16];
        let old = read_record(&store(&disk, &hash, &old_file())).unwrap();
        let freshness = (Class::Mutable, 1_700_000_000_000, 1_700_000_060_000);
        let mut right = encode("files\0a\0", 99, &old.head, Some(old.finished), freshness, false).unwrap();
        right.extend_from_slice(b"hello");
        let record = told(&read_record(&store(&disk, &hash, &right)).unwrap());
        for bit in 0..(right.len() - 5) * 8 {
            let mut bytes = right.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            match read_record(&store(&disk, &hash, &bytes)) {
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::InvalidData, "bit {bit}: {error}"),
                // What is not used, and that the bucket has it, which only spares a question.
                Ok(other) => {
                    assert!(
                        (OFFSET_BACKED_UP..OFFSET_CHECK).contains(&(bit / 8)),
                        "bit {bit} of {}",
                        right.len()
                    );
                    let mut other = told(&other);
                    other.5 = false;
                    assert_eq!(other, record, "bit {bit}");
                }
            }
        }
        for length in 0..right.len() {
            let error = read_record(&store(&disk, &hash, &right[..length])).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{length} bytes");
        }
    }

    #[test]
    fn a_folder_goes_with_its_last_file_and_comes_with_its_first() {
        let (_dir, disk) = disk();
        let (first, second) = ([1; 16], [1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]);
        let publish = |hash: &Hash| disk.publish(&mut disk.create(10).unwrap(), hash, false).unwrap();
        assert_eq!(publish(&first), Amount::of_folders(2));
        assert_eq!(publish(&second), Amount::default());
        assert_eq!(disk.remove(&first, None).unwrap(), Amount::of_file(0));
        assert_eq!(disk.remove(&first, None).unwrap(), Amount::default());
        // One that has taken another's place is not removed in its stead.
        let file = disk.open_file(&second).unwrap();
        publish(&second);
        assert_eq!(disk.remove(&second, Some(&file)).unwrap(), Amount::default());
        let file = disk.open_file(&second).unwrap();
        let freed = disk.remove(&second, Some(&file)).unwrap();
        assert_eq!(freed, Amount::of_file(0) + Amount::of_folders(2));
        assert_eq!(fs::read_dir(disk.root()).unwrap().count(), 0);
    }

    #[test]
    fn files_are_named_while_their_folders_are_removed() {
        let (_dir, disk) = disk();
        let done = AtomicBool::new(false);
        let hashes: Vec<Hash> = (0..4)
            .map(|last| [&[5; 15][..], &[last]].concat().try_into().unwrap())
            .collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Relaxed) {
                    for hash in &hashes {
                        disk.prune(hash);
                    }
                }
            });
            let results: Vec<_> = (0..500)
                .map(|round| {
                    let hash = &hashes[round % hashes.len()];
                    disk.publish(&mut disk.create(10)?, hash, false)?;
                    disk.remove(hash, None)
                })
                .collect();
            done.store(true, Relaxed);
            let failed = results.into_iter().filter_map(Result::err).next();
            assert!(failed.is_none(), "{failed:?}");
        });
    }
}
