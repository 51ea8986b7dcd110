//! Flushes that this node has begun to make: a file for each until it is made, so that a crash leaves none half made.

use std::path::{Path, PathBuf};

use crate::cache::Key;
use crate::fleet::{Flush, replace};

/// Their folder.
#[derive(Debug)]
pub struct Unfinished {
    folder: PathBuf,
}

impl Unfinished {
    /// Touches nothing.
    pub fn new(data_dir: &Path) -> Unfinished {
        Unfinished {
            folder: data_dir.join("flushes"),
        }
    }

    fn file(&self, flush: &Flush) -> PathBuf {
        // Another node may call it anything.
        self.folder.join(hex::encode(Key::from_text(&flush.id).hash))
    }

    /// Notes that it was begun. Blocks.
    pub fn begin(&self, flush: &Flush) {
        let note = || {
            std::fs::create_dir_all(&self.folder)?;
            replace(&self.file(flush), &serde_json::to_vec(flush)?, false)
        };
        if let Err(error) = note() {
            tracing::warn!(%error, "a flush is left half made if the process ends before it is done");
        }
    }

    /// Notes that it was made. Blocks.
    pub fn end(&self, flush: &Flush) {
        // One that stays is made once more.
        let _ = std::fs::remove_file(self.file(flush));
    }

    /// Those that an earlier process left. Blocks.
    pub fn list(&self) -> Vec<Flush> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| serde_json::from_slice(&std::fs::read(entry.path()).ok()?).ok())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_begun_and_not_made_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let unfinished = Unfinished::new(folder.path());
        let flush = |id: &str| Flush {
            id: id.to_owned(),
            ..Flush::new(serde_json::json!({"remote": "hub"}))
        };
        let (made, left) = (flush("1"), flush("../2"));
        unfinished.begin(&made);
        unfinished.begin(&left);
        unfinished.end(&made);
        std::fs::write(folder.path().join("flushes/torn"), "{\"at\"").unwrap();
        assert_eq!(Unfinished::new(folder.path()).list(), [left]);
    }
}
