//! How many bytes the disk tier holds, counted as they come and go. A crash leaves the count a little wrong, so a slow walk
//! puts it right, folder by folder, each only while nothing changes in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::{Hash, evict};

/// Tries to find a folder at rest.
const TRIES: usize = 5;

/// The count, as a whole and for each of the 256 outer folders.
#[derive(Debug)]
pub struct Usage {
    /// Stored and reserved bytes.
    total: AtomicU64,
    folders: [Folder; 256],
    file: PathBuf,
}

#[derive(Debug, Default)]
struct Folder {
    bytes: AtomicU64,
    /// Changes with every change.
    version: AtomicU32,
}

impl Usage {
    /// As it was saved in `file`; what is not there counts as nothing until the walk has been.
    pub fn load(file: PathBuf) -> Self {
        let saved = fs::read_to_string(&file).unwrap_or_default();
        let mut numbers = saved
            .split_ascii_whitespace()
            .map(|number| number.parse::<u64>().unwrap_or(0));
        let folders: [Folder; 256] = std::array::from_fn(|_| Folder {
            bytes: numbers.next().unwrap_or(0).into(),
            version: AtomicU32::new(0),
        });
        let total = folders.iter().map(|folder| folder.bytes.load(Relaxed)).sum::<u64>();
        Usage {
            total: total.into(),
            folders,
            file,
        }
    }

    pub fn save(&self) {
        let numbers: Vec<String> = self
            .folders
            .iter()
            .map(|folder| folder.bytes.load(Relaxed).to_string())
            .collect();
        let new = self.file.with_extension("new");
        // Worth no more than a try: the walk after the next start finds what this did not say.
        let _ = fs::write(&new, numbers.join(" ") + "\n").and_then(|()| fs::rename(&new, &self.file));
    }

    pub fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    /// What eviction could free: all that is stored.
    pub fn evictable(&self) -> u64 {
        self.folders.iter().map(|folder| folder.bytes.load(Relaxed)).sum()
    }

    /// Counts bytes that a growing object has reserved.
    pub fn reserve(&self, bytes: u64) {
        self.total.fetch_add(bytes, Relaxed);
    }

    /// Gives back what was reserved.
    pub fn release(&self, bytes: u64) {
        subtract(&self.total, bytes);
    }

    /// An object of `bytes` was given its name.
    pub fn stored(&self, hash: &Hash, bytes: u64) {
        let folder = &self.folders[usize::from(hash[0])];
        folder.version.fetch_add(1, Relaxed);
        folder.bytes.fetch_add(bytes, Relaxed);
        self.total.fetch_add(bytes, Relaxed);
    }

    /// An object of `bytes` is gone.
    pub fn removed(&self, hash: &Hash, bytes: u64) {
        let folder = &self.folders[usize::from(hash[0])];
        folder.version.fetch_add(1, Relaxed);
        subtract(&folder.bytes, bytes);
        subtract(&self.total, bytes);
    }

    /// Walks the folders below `root` and puts the count right.
    pub fn recount(&self, root: &Path) {
        for (index, folder) in self.folders.iter().enumerate() {
            let path = root.join(format!("{index:02x}"));
            for _ in 0..TRIES {
                let version = folder.version.load(Relaxed);
                let found = evict::bytes_below(&path);
                let counted = folder.bytes.load(Relaxed);
                if folder.version.load(Relaxed) != version {
                    continue;
                }
                folder.bytes.store(found, Relaxed);
                if found >= counted {
                    self.total.fetch_add(found - counted, Relaxed);
                } else {
                    subtract(&self.total, counted - found);
                }
                break;
            }
            // Nobody waits for this walk; the disk has others to serve.
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
}

fn subtract(counter: &AtomicU64, bytes: u64) {
    let _ = counter.fetch_update(Relaxed, Relaxed, |count| Some(count.saturating_sub(bytes)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_puts_a_wrong_count_right_and_a_saved_one_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("objects");
        for i in 0..40 {
            let hash = pingora_cache::key::hash_key(format!("object {i}"));
            let name = crate::cache::hex(&hash);
            let folder = root.join(&name[0..2]).join(&name[2..4]);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(&name), vec![0; 5000]).unwrap();
        }
        let usage = Usage::load(dir.path().join("usage"));
        assert_eq!(usage.total(), 0);
        usage.reserve(1_000_000);
        usage.recount(&root);
        assert_eq!(usage.total(), 1_000_000 + 40 * 8192);
        usage.release(1_000_000);
        usage.stored(&[7; 16], 4096);
        usage.save();
        let again = Usage::load(dir.path().join("usage"));
        assert_eq!(again.total(), 40 * 8192 + 4096);
        again.recount(&root);
        assert_eq!(again.total(), 40 * 8192);
        again.removed(&[7; 16], u64::MAX);
        assert_eq!(again.total(), 0);
    }
}
