//! Files that are damaged or cannot be read. What is damaged goes, what cannot be read now is opened anew a little later.

use std::sync::Arc;
use std::sync::atomic::{Ordering::Relaxed, Ordering::SeqCst};
use std::time::Instant;
use std::{fs, io};

use super::Store;
use super::patience::DISK_PAUSE;
use super::stored::Stored;
use crate::cache::disk;
use crate::cache::key::{Hash, Key};
use crate::cache::object::{Body, Keeper, Object};

impl Keeper for Store {
    fn is_proven(&self, id: u64) {
        self.proven.insert(id, ());
    }

    fn lose(&'static self, object: &Arc<Object>, why: &str) {
        let hash = object.key.hash;
        if !object.is_complete() {
            object.doom();
            let mut growing = self.growing.lock();
            if growing.get(&hash).is_some_and(|current| Arc::ptr_eq(current, object)) {
                growing.remove(&hash);
                drop(growing);
                self.say_damaged(&object.key.shown(), why);
            }
            return;
        }
        // One of its readers is the first.
        if object.doomed.swap(true, SeqCst) || self.is_unreadable(object.id) {
            return;
        }
        self.dropping.lock().insert(hash);
        self.forget_body(object, None);
        self.say_damaged(&object.key.shown(), why);
        let object = Arc::clone(object);
        tokio::task::spawn_blocking(move || {
            if let Body::File { file, .. } = &object.body {
                self.drop_file(&hash, file, Some(&object.key.text));
            }
            self.dropping.lock().remove(&hash);
        });
    }

    fn cannot_be_read(&'static self, object: &Arc<Object>, why: &io::Error) {
        if why.kind() == io::ErrorKind::TimedOut {
            self.did_not_answer();
        }
        match disk::is_damage(why) || !object.is_complete() {
            true => self.lose(object, &why.to_string()),
            false => self.put_aside(object, why),
        }
    }
}

impl Store {
    pub(super) fn is_unreadable(&self, id: u64) -> bool {
        let until = self.unreadable.get(&id);
        until.is_some_and(|until| until.is_none_or(|until| Instant::now() < until))
    }

    /// Whether the body of `stored` is what it was when it was stored; one that is not is removed. `read` is told of the bytes
    /// that were read, and may make it wait. Blocks.
    ///
    /// # Errors
    /// The body cannot be read now, which may pass: it stays.
    pub fn is_intact(&self, stored: &Stored, read: impl FnMut(u64)) -> io::Result<bool> {
        let why = match disk::is_intact(&stored.file, stored.offset, &stored.finished, read) {
            Ok(true) => return Ok(true),
            Ok(false) => "its body does not match its digest".to_owned(),
            Err(error) if disk::is_damage(&error) => error.to_string(),
            Err(error) => return Err(error),
        };
        self.discard(&stored.key.hash, &stored.file, Some(&stored.key.text), &why);
        Ok(false)
    }

    /// The body of `object` cannot be read just now, for a reason that may pass: its file stays, and is opened anew a little
    /// later. Until then whoever asks has it fetched again.
    fn put_aside(&self, object: &Arc<Object>, why: &io::Error) {
        if why.kind() == io::ErrorKind::OutOfMemory || object.doomed.swap(true, SeqCst) || self.is_unreadable(object.id)
        {
            return;
        }
        self.forget_body(object, Some(Instant::now() + DISK_PAUSE));
        tracing::warn!(key = %object.key.shown(), %why, "a stored object cannot be read now: it stays, and is tried again");
    }

    /// From now on `object` is found neither in memory nor, before `until`, on disk.
    fn forget_body(&self, object: &Object, until: Option<Instant>) {
        let hash = &object.key.hash;
        self.unreadable.insert(object.id, until);
        self.proven.remove(&object.id);
        self.version(hash).fetch_add(1, SeqCst);
        self.memory.forget(hash, object.id);
    }

    /// Removes what is stored in `file` under `hash`, because it is damaged or cannot be read, and says so. Blocks.
    pub(super) fn discard(&self, hash: &Hash, file: &fs::File, key: Option<&str>, why: &str) {
        let named = key.map_or_else(|| hex::encode(hash), |key| Key::from_text(key).shown());
        // Whoever opens it between what its reader said and its removal finds the same damage.
        let is_said = self.dropping.lock().contains(hash);
        if self.drop_file(hash, file, key) && !is_said {
            self.say_damaged(&named, why);
        }
    }

    /// Removes what is stored in `file` under `hash`; whether it still was. Blocks.
    fn drop_file(&self, hash: &Hash, file: &fs::File, key: Option<&str>) -> bool {
        let backed_up = disk::read_record(file).is_ok_and(|record| record.backed_up);
        let change = self.usage.change(hash);
        let removed = self.disk.remove(hash, Some(file));
        let was_there = removed.as_ref().map_or(true, |amount| amount.files > 0);
        if !was_there && self.disk.size(hash).files > 0 {
            // What has taken its place is another object.
            return false;
        }
        self.version(hash).fetch_add(1, SeqCst);
        self.memory.remove(hash);
        match removed {
            Ok(amount) => change.removed(amount),
            Err(error) => tracing::error!(hash = %hex::encode(hash), %error, "a damaged file could not be removed"),
        }
        self.is_removed(hash);
        if let (Some(observer), Some(key)) = (self.observer.get(), key) {
            observer.lost(key, backed_up);
        }
        was_there
    }

    fn say_damaged(&self, key: &str, why: &str) {
        tracing::error!(
            key,
            why,
            "A STORED FILE IS DAMAGED OR CANNOT BE READ: it is dropped, and fetched again when it is asked for; see to the disk"
        );
        self.lost.fetch_add(1, Relaxed);
        *self.damage.lock() = Some((Instant::now(), format!("{key}: {why}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    use crate::cache::head::Head;
    use crate::cache::{Class, FOR_EVER, Finish, Reader};
    use crate::config::{CacheSettings, MinFree};

    /// A store in `dir` with nothing in memory.
    fn store_in(dir: &std::path::Path) -> &'static Store {
        let settings = CacheSettings {
            disk_bytes: 1 << 30,
            disk_min_free: MinFree::Bytes(0),
            memory_bytes: 0,
            sync: false,
            scrub_rate: 0,
        };
        Store::open(dir, settings).unwrap()
    }

    #[test]
    fn damage_that_a_reader_has_said_is_not_said_again_by_whoever_opens_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let store = store_in(dir.path());
        for (hash, is_said) in [([1; 16], false), ([2; 16], true)] {
            let path = store.disk.path(&hash);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "no object").unwrap();
            if is_said {
                store.dropping.lock().insert(hash);
            }
            assert!(store.load(&hash).is_none());
            assert!(!path.exists());
        }
        assert_eq!(store.stats().lost, 1);
    }

    #[test]
    fn what_cannot_be_read_now_is_opened_anew_later_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let store = store_in(dir.path());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let key = Key::new("files", "a", None, "");
            let head = Head {
                url: "http://127.0.0.1/a".to_owned(),
                headers: http::HeaderMap::new(),
                content_length: Some(5),
                stored_at: crate::cache::now_ms(),
                unframed: false,
                ranges: true,
                stands_for: None,
            };
            let freshness = (Class::Immutable, 1, FOR_EVER);
            let mut writer = store
                .create(key.clone(), head, freshness, None, None, false)
                .await
                .unwrap();
            writer.write(Bytes::from_static(b"hello")).await.unwrap();
            assert!(matches!(writer.finish().await, Finish::Admitted(_)));
            store.memory.remove(&key.hash);
            // What reads nothing but is no damage: a file that is open for writing only.
            let (_, record) = store.load(&key.hash).unwrap();
            let path = store.disk.path(&key.hash);
            let unreadable = fs::File::options().write(true).open(&path).unwrap();
            let id = record.id;
            let object = Arc::new(store.loaded(key.clone(), unreadable, record));
            assert!(Reader::new(object).next().await.is_err());
            assert!(store.stored(&key).await.is_none());
            assert!(path.exists());
            assert_eq!(store.stats().lost, 0);
            store.unreadable.insert(id, Some(Instant::now()));
            let again = store.stored(&key).await.unwrap();
            assert_eq!(&Reader::new(again).next().await.unwrap().unwrap()[..], b"hello");
        });
    }
}
