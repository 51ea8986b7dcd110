//! What is stored under a hash, without using it: for whoever copies, lists or judges it.

use std::fs;
use std::ops::Deref;

use super::Store;
use crate::cache::described::Described;
use crate::cache::disk;
use crate::cache::disk::Record;
use crate::cache::key::{Hash, Key};

/// What is stored under a hash, for whoever copies it elsewhere.
#[derive(Debug)]
pub struct Stored {
    pub described: Described,
    /// The bucket is known to have the object too.
    pub backed_up: bool,
    pub file: fs::File,
    /// Where the body starts in the file.
    pub offset: u64,
}

impl Deref for Stored {
    type Target = Described;

    fn deref(&self) -> &Described {
        &self.described
    }
}

impl Store {
    /// What is stored under `hash`, without counting it as a use or putting it into memory. Blocks.
    pub fn open_stored(&self, hash: &Hash) -> Option<Stored> {
        let (file, record) = self.load(hash)?;
        Some(Stored {
            described: Described {
                key: Key {
                    text: record.key_text.into(),
                    hash: *hash,
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
        })
    }

    /// What stands in front of the body of `hash`, and the file. `None`: not stored, or not to be read.
    pub(in crate::cache) fn load(&self, hash: &Hash) -> Option<(fs::File, Record)> {
        self.read(hash, self.disk.open_file(hash)?)
    }

    /// [`Store::load`], of the file that was opened. What is damaged is removed; a read that failed for want of memory, or
    /// because a network file system was away, says nothing of the file.
    fn read(&self, hash: &Hash, file: fs::File) -> Option<(fs::File, Record)> {
        match disk::read_record(&file) {
            Ok(record) => {
                let unreadable = self.is_unreadable(record.id);
                (!unreadable).then_some((file, record))
            }
            // One of its readers has said so, and it is on its way out.
            Err(_) if disk::id_of(&file).is_some_and(|id| self.is_unreadable(id)) => None,
            Err(error) if disk::is_damage(&error) => {
                self.discard(hash, &file, None, &error.to_string());
                None
            }
            Err(error) => {
                tracing::warn!(hash = %hex::encode(hash), %error, "a stored object cannot be read now: it stays, and is tried again");
                None
            }
        }
    }

    /// Bytes that what is stored under `hash` takes on disk; 0 if nothing is. Blocks.
    pub fn size_of(&self, hash: &Hash) -> u64 {
        self.disk.size(hash).bytes
    }

    /// Whether nothing is stored under `hash`, as far as the disk answers. Blocks.
    pub fn is_missing(&self, hash: &Hash) -> bool {
        self.disk.is_missing(hash)
    }

    /// Notes whether the bucket has what is stored under `hash`, if that still is the body with `id`. Blocks.
    pub fn mark_backed_up(&self, hash: &Hash, id: u64, backed_up: bool) {
        // If it cannot be noted, the catalogue believes it gone when it is evicted.
        if let Err(error) = self.disk.mark_backed_up(hash, id, backed_up) {
            tracing::debug!(%error, "it could not be noted whether an object is in the bucket");
        }
    }
}
