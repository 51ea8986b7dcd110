//! What the disk tier takes, in bytes and in files, counted as it comes and goes. A crash leaves the count a little wrong, so
//! a slow walk puts it right, folder by folder, each only while nothing changes in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use super::disk::Amount;
use super::{Hash, evict};

/// Tries to find a folder at rest.
const TRIES: usize = 5;
/// Between two folders, and two tries.
const PAUSE: Duration = Duration::from_millis(2);

/// The count, as a whole and for each of the 256 outer folders.
#[derive(Debug)]
pub(super) struct Usage {
    /// Stored and reserved bytes.
    total: AtomicU64,
    folders: [Folder; 256],
    file: PathBuf,
}

#[derive(Debug, Default)]
struct Folder {
    bytes: AtomicU64,
    files: AtomicU64,
    /// Changes that are being made.
    changing: AtomicU32,
    /// Changes with every change.
    version: AtomicU32,
}

/// A change of what is stored, while it is made: until then the file system and the count may differ.
#[derive(Debug)]
#[must_use]
pub(super) struct Change<'a> {
    folder: &'a Folder,
    total: &'a AtomicU64,
}

impl Change<'_> {
    /// An object that takes `amount` was given its name.
    pub(super) fn stored(&self, amount: Amount) {
        self.folder.bytes.fetch_add(amount.bytes, Relaxed);
        self.folder.files.fetch_add(amount.files, Relaxed);
        self.total.fetch_add(amount.bytes, Relaxed);
    }

    /// What took `amount` is gone.
    pub(super) fn removed(&self, amount: Amount) {
        subtract(&self.folder.bytes, amount.bytes);
        subtract(&self.folder.files, amount.files);
        subtract(self.total, amount.bytes);
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.folder.version.fetch_add(1, SeqCst);
        self.folder.changing.fetch_sub(1, SeqCst);
    }
}

impl Usage {
    /// The count that was saved in `file`; what is not there counts as nothing until the walk has been.
    pub(super) fn load(file: PathBuf) -> Self {
        let saved = fs::read_to_string(&file).unwrap_or_default();
        let mut lines = saved.lines().map(|line| {
            line.split_ascii_whitespace()
                .map(|number| AtomicU64::new(number.parse().unwrap_or(0)))
        });
        let (mut bytes, mut files) = (lines.next(), lines.next());
        let folders: [Folder; 256] = std::array::from_fn(|_| Folder {
            bytes: bytes.as_mut().and_then(Iterator::next).unwrap_or_default(),
            files: files.as_mut().and_then(Iterator::next).unwrap_or_default(),
            ..Folder::default()
        });
        let total = folders.iter().map(|folder| folder.bytes.load(Relaxed)).sum::<u64>();
        Usage {
            total: total.into(),
            folders,
            file,
        }
    }

    pub(super) fn save(&self) {
        let line = |number: fn(&Folder) -> &AtomicU64| {
            let numbers = self
                .folders
                .iter()
                .map(|folder| number(folder).load(Relaxed).to_string());
            numbers.collect::<Vec<_>>().join(" ") + "\n"
        };
        let text = line(|folder| &folder.bytes) + &line(|folder| &folder.files);
        let new = self.file.with_extension("new");
        // Worth no more than a try: the walk after the next start finds what this did not say.
        let _ = fs::write(&new, text).and_then(|()| fs::rename(&new, &self.file));
    }

    pub(super) fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    /// What eviction could free: all that is stored.
    pub(super) fn evictable(&self) -> Amount {
        let folders = self.folders.iter().map(|folder| Amount {
            bytes: folder.bytes.load(Relaxed),
            files: folder.files.load(Relaxed),
        });
        folders.sum()
    }

    /// Counts bytes that a growing object has reserved.
    pub(super) fn reserve(&self, bytes: u64) {
        self.total.fetch_add(bytes, Relaxed);
    }

    /// Gives back what was reserved.
    pub(super) fn release(&self, bytes: u64) {
        subtract(&self.total, bytes);
    }

    /// Something that is stored under `hash` is about to be given its name or removed. Held until it is done.
    pub(super) fn change(&self, hash: &Hash) -> Change<'_> {
        let folder = &self.folders[usize::from(hash[0])];
        folder.changing.fetch_add(1, SeqCst);
        Change {
            folder,
            total: &self.total,
        }
    }

    /// Walks the folders below `root` and puts the count right.
    ///
    /// # Errors
    /// What one of them takes could not be found out: its count stays as it was.
    pub(super) fn recount(&self, root: &Path) -> io::Result<()> {
        let mut failed = None;
        for (index, folder) in self.folders.iter().enumerate() {
            let path = root.join(format!("{index:02x}"));
            for _ in 0..TRIES {
                if folder.changing.load(SeqCst) > 0 {
                    std::thread::sleep(PAUSE);
                    continue;
                }
                let version = folder.version.load(SeqCst);
                let found = match evict::taken_by(&path) {
                    Ok(found) => found,
                    Err(error) => {
                        failed = Some(error);
                        break;
                    }
                };
                let counted = folder.bytes.load(Relaxed);
                if folder.changing.load(SeqCst) > 0 || folder.version.load(SeqCst) != version {
                    continue;
                }
                folder.bytes.store(found.bytes, Relaxed);
                folder.files.store(found.files, Relaxed);
                if found.bytes >= counted {
                    self.total.fetch_add(found.bytes - counted, Relaxed);
                } else {
                    subtract(&self.total, counted - found.bytes);
                }
                break;
            }
            // Nobody waits for this walk; the disk has others to serve.
            std::thread::sleep(PAUSE);
        }
        failed.map_or(Ok(()), Err)
    }
}

fn subtract(counter: &AtomicU64, bytes: u64) {
    let _ = counter.fetch_update(Relaxed, Relaxed, |count| Some(count.saturating_sub(bytes)));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What they take: the files with two folders each, less the outer ones that two have in common.
    fn make(root: &Path, number: u64) -> u64 {
        for i in 0..number {
            let hash = pingora_cache::key::hash_key(format!("object {i}"));
            let name = hex::encode(hash);
            let folder = root.join(&name[0..2]).join(&name[2..4]);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(&name), vec![0; 5000]).unwrap();
        }
        let outer = fs::read_dir(root).unwrap().count() as u64;
        number * 8192 + (number + outer) * 4096
    }

    #[test]
    fn a_walk_puts_a_wrong_count_right_and_a_saved_one_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("objects");
        let whole = make(&root, 40);
        let usage = Usage::load(dir.path().join("usage"));
        assert_eq!(usage.total(), 0);
        usage.reserve(1_000_000);
        usage.recount(&root).unwrap();
        assert_eq!(usage.total(), 1_000_000 + whole);
        usage.release(1_000_000);
        usage.change(&[7; 16]).stored(Amount::of_file(1));
        usage.save();
        let again = Usage::load(dir.path().join("usage"));
        assert_eq!(again.total(), whole + 4096);
        assert_eq!(again.evictable(), usage.evictable());
        again.recount(&root).unwrap();
        assert_eq!(again.total(), whole);
        again.change(&[7; 16]).removed(Amount {
            bytes: u64::MAX,
            files: u64::MAX,
        });
        assert_eq!(again.total(), 0);
    }

    #[test]
    fn what_is_being_stored_is_not_counted_twice() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("objects");
        let usage = Usage::load(dir.path().join("usage"));
        // Named, and not yet counted.
        let changes: Vec<_> = (0..=255).map(|first| usage.change(&[first; 16])).collect();
        let whole = make(&root, 1);
        usage.recount(&root).unwrap();
        assert_eq!(usage.total(), 0);
        drop(changes);
        usage.recount(&root).unwrap();
        assert_eq!(usage.total(), whole);
    }

    #[test]
    fn a_folder_that_cannot_be_listed_keeps_its_count() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("objects");
        let whole = make(&root, 40);
        let usage = Usage::load(dir.path().join("usage"));
        usage.recount(&root).unwrap();
        let outer = fs::read_dir(&root).unwrap().next().unwrap().unwrap().path();
        fs::rename(&outer, dir.path().join("aside")).unwrap();
        fs::write(&outer, "not a folder").unwrap();
        usage.recount(&root).unwrap_err();
        assert_eq!(usage.total(), whole);
        fs::remove_file(&outer).unwrap();
        usage.recount(&root).unwrap();
        assert!(usage.total() < whole);
    }

    #[test]
    fn a_count_that_was_saved_without_files_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("usage");
        fs::write(&file, "4096 ".repeat(256) + "\n").unwrap();
        let usage = Usage::load(file);
        assert_eq!(
            usage.evictable(),
            Amount {
                bytes: 256 * 4096,
                files: 0
            }
        );
    }
}
