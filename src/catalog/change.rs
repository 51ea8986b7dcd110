//! The events of an object, merged into what is to be written of it.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use indexmap::Equivalent;
use sha2::{Digest as _, Sha256};

use super::record::Record;

/// Maps that what waits to be written is spread over.
pub(super) const SHARDS: usize = 64;

/// What a [`Record`] is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectKey {
    pub remote: String,
    pub path: String,
    pub form: String,
}

/// A key, borrowed: looking an object up allocates nothing.
pub(super) struct KeyRef<'a> {
    pub remote: &'a str,
    pub path: &'a str,
    pub form: &'a str,
}

impl Hash for KeyRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.remote, self.path, self.form).hash(state);
    }
}

impl Hash for ObjectKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.borrow().hash(state);
    }
}

impl Equivalent<ObjectKey> for KeyRef<'_> {
    fn equivalent(&self, key: &ObjectKey) -> bool {
        self.path == key.path && self.remote == key.remote && self.form == key.form
    }
}

impl ObjectKey {
    pub(super) fn borrow(&self) -> KeyRef<'_> {
        KeyRef {
            remote: &self.remote,
            path: &self.path,
            form: &self.form,
        }
    }
}

impl KeyRef<'_> {
    pub(super) fn to_owned(&self) -> ObjectKey {
        ObjectKey {
            remote: self.remote.to_owned(),
            path: self.path.to_owned(),
            form: self.form.to_owned(),
        }
    }

    /// All events of an object go to one shard, and so stay in order. Looks at the whole path, eight bytes at a time:
    /// what differs may be anywhere in it. Paths made to meet in one shard are only a little slower.
    pub(super) fn shard(&self) -> usize {
        let mut hash = self.path.len() as u64;
        for chunk in self.path.as_bytes().chunks(8) {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            hash = (hash.rotate_left(5) ^ u64::from_le_bytes(bytes)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        (hash >> 32) as usize % SHARDS
    }

    pub(super) fn cost(&self) -> usize {
        self.remote.len() + self.path.len() + self.form.len() + size_of::<ObjectKey>() + size_of::<Change>() + 64
    }
}

/// The first 16 bytes of a name's SHA-256: what is kept of a link's URL, or of a file that was seen. It is only ever asked
/// whether a given name is known; so a long one costs no more than a short one, here and in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NameHash(pub [u8; 16]);

impl NameHash {
    pub fn new(url: &str) -> NameHash {
        let mut hash = [0; 16];
        hash.copy_from_slice(&Sha256::digest(url.as_bytes())[..16]);
        NameHash(hash)
    }

    /// Of what `index` calls `file`; neither has line ends.
    pub fn of_file(index: &str, file: &str) -> NameHash {
        NameHash::new(&format!("{index}\n{file}"))
    }

    /// Of the date that clients are told of what `index` calls `file`.
    pub fn of_date(index: &str, file: &str) -> NameHash {
        NameHash::new(&format!("{index}\n{file}\ndate"))
    }
}

/// What is to be done to an object's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Update the row, if there is one.
    Touch,
    /// Insert it, or update it keeping `first_seen` and hits.
    Put(Box<Record>),
    /// Delete it, then insert it: it went away and came back.
    Renew(Box<Record>),
    /// Delete it.
    Remove,
}

/// The events of one object, merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub op: Op,
    /// To be added.
    pub hits: u64,
    /// `last_seen` becomes this if it is earlier.
    pub last_seen: i64,
    /// The new `fresh_until`, if it changed.
    pub fresh_until: Option<Option<i64>>,
}

impl Change {
    pub(super) const NONE: Change = Change {
        op: Op::Touch,
        hits: 0,
        last_seen: i64::MIN,
        fresh_until: None,
    };

    pub(super) fn hit(&mut self, hits: u64, at: i64) {
        // What is removed stays removed: a reader may go on for long after that.
        if self.op != Op::Remove {
            self.hits = self.hits.saturating_add(hits);
            self.last_seen = self.last_seen.max(at);
        }
    }

    pub(super) fn refreshed(&mut self, fresh_until: Option<i64>, at: i64) {
        if self.op != Op::Remove {
            self.fresh_until = Some(fresh_until);
            self.last_seen = self.last_seen.max(at);
        }
    }

    pub(super) fn stored(&mut self, record: Box<Record>) {
        self.fresh_until = None; // the record's own is newer
        self.op = match self.op {
            Op::Touch | Op::Put(_) => Op::Put(record),
            Op::Remove | Op::Renew(_) => Op::Renew(record),
        };
    }

    pub(super) fn removed(&mut self) {
        *self = Change {
            op: Op::Remove,
            ..Change::NONE
        };
    }

    pub(super) fn cost(&self) -> usize {
        match &self.op {
            Op::Touch | Op::Remove => 0,
            Op::Put(record) | Op::Renew(record) => {
                let optional = |text: &Option<String>| text.as_ref().map_or(0, String::len);
                size_of::<Record>()
                    + record.remote.len()
                    + record.path.len()
                    + record.form.len()
                    + record.digest.len()
                    + record.content_type.len()
                    + record.key.len()
                    + optional(&record.etag)
                    + optional(&record.last_modified)
            }
        }
    }
}

/// What is written in one transaction.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    pub objects: Vec<(ObjectKey, Change)>,
    pub links: Vec<(Arc<str>, NameHash)>,
}
