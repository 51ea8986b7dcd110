//! Storing an object: it is started, grows, and gets its place when it is complete.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::{fs, io};

use super::Store;
use super::length::Length;
use super::space::{NoSpace, Reserved, Space};
use crate::cache::disk::Amount;
use crate::cache::expected::Expected;
use crate::cache::freshness::{Class, Freshness};
use crate::cache::head::{Finished, Head};
use crate::cache::key::{Hash, Key};
use crate::cache::object::{Body, Object, Origin};
use crate::cache::overflow::Overflow;
use crate::cache::time::Millis;
use crate::cache::writer::Writer;
use crate::cache::{disk, overflow};

impl Store {
    /// Starts an object: reserves its space and shows it to others as growing.
    ///
    /// # Errors
    /// There is no space, or the disk fails: the answer then passes by unstored.
    pub async fn create(
        &'static self,
        key: Key,
        head: Head,
        freshness: (Class, Millis, Millis),
        previous: Option<Arc<Object>>,
        expected: Option<Expected>,
        document: bool,
    ) -> Result<Writer, NoSpace> {
        let particulars = (freshness, Origin::Upstream);
        self.start(key, head, particulars, previous, expected, (document, true))
            .await
    }

    /// [`Store::create`], for what the bucket or another node has.
    ///
    /// # Errors
    /// Those of [`Store::create`].
    pub async fn restore(
        &'static self,
        key: Key,
        head: Head,
        particulars: ((Class, Millis, Millis), Origin),
        previous: Option<Arc<Object>>,
        expected: Option<Expected>,
    ) -> Result<Writer, NoSpace> {
        self.start(key, head, particulars, previous, expected, (true, true))
            .await
    }

    /// [`Store::restore`], of what clients are not to get before it is complete.
    ///
    /// # Errors
    /// Those of [`Store::create`].
    pub async fn restore_hidden(
        &'static self,
        key: Key,
        head: Head,
        particulars: ((Class, Millis, Millis), Origin),
        expected: Option<Expected>,
    ) -> Result<Writer, NoSpace> {
        self.start(key, head, particulars, None, expected, (true, false)).await
    }

    async fn start(
        &'static self,
        key: Key,
        head: Head,
        ((class, checked_at, fresh_until), origin): ((Class, Millis, Millis), Origin),
        previous: Option<Arc<Object>>,
        expected: Option<Expected>,
        (document, is_shown): (bool, bool),
    ) -> Result<Writer, NoSpace> {
        let id = self.random();
        let encoded = disk::encode(&key.text, id, &head, None, (class, checked_at, fresh_until), false)?;
        let offset = encoded.len() as u64;
        let length = match (head.content_length, self.lengths.of(&key.hash)) {
            (Some(length), _) => Length::Said(length),
            (None, Some(length)) => length,
            (None, None) => match previous.as_ref().and_then(|previous| previous.length()) {
                Some(length) => Length::About(length),
                None => Length::Unknown,
            },
        };
        let overflow = Overflow::default();
        let (file, body, space) = match self.open_new(key.hash, encoded, length, document).await {
            Ok((unnamed, file, space)) => (Some(unnamed), Body::File { file, offset }, space),
            // What is short enough is shared from memory while it is read, and not kept.
            Err(why) if head.content_length.map_or(document, overflow::has_room_for) => {
                tracing::debug!(key = %key.shown(), %why, "an answer is held in memory instead of being stored");
                overflow.begin(0);
                (None, Body::Memory(bytes::Bytes::new(), None), Space::default())
            }
            Err(why) => return Err(why),
        };
        let kept = file.is_some() && !head.unframed;
        let fresh = Arc::new(Freshness::new(class, checked_at, fresh_until));
        let object = Object::new(key, id, head, fresh, body, origin)
            .growing(overflow)
            .kept_by(self);
        if !kept {
            object.doom();
        }
        let object = Arc::new(object);
        if is_shown {
            self.growing.lock().insert(object.key.hash, Arc::clone(&object));
        }
        Ok(Writer::new(self, object, file, previous, expected, space))
    }

    /// A new file with its space reserved and counted.
    async fn open_new(
        &'static self,
        hash: Hash,
        encoded: Vec<u8>,
        length: Length,
        document: bool,
    ) -> Result<(disk::Unnamed, fs::File, Space), NoSpace> {
        let opened = self
            .patiently(move || {
                let space = self.space_for(encoded.len() as u64, length, document)?;
                let reserved = Reserved::new(self, space.reserved);
                let create = || {
                    let unnamed = self.disk.create(space.reserved)?;
                    self.disk.begin(&unnamed.file, &encoded)?;
                    let reading = unnamed.file.try_clone()?;
                    Ok::<_, io::Error>((unnamed, reading))
                };
                let (unnamed, reading) = create().inspect_err(|error| self.trouble.failed(error, &hash))?;
                Ok((unnamed, reading, space, reserved))
            })
            .await;
        let opened = opened.unwrap_or_else(|| Err(NoSpace::Io(io::ErrorKind::TimedOut.into())));
        let (unnamed, reading, space, reserved) = opened?;
        // By the writer, which gives back what it does not need.
        reserved.taken_over();
        Ok((unnamed, reading, space))
    }

    /// What is about to be stored under `hash`, and comes without a length, is about so long: room may be made for as much.
    pub fn expect_length(&self, hash: &Hash, length: u64) {
        self.lengths.expect(hash, length);
    }

    /// `object` is longer than what can be held and passes through: nobody begins to read it any more.
    pub(in crate::cache) fn passes(&self, object: &Arc<Object>) {
        object.doomed.store(true, SeqCst);
        self.lengths.passes(&object.key.hash);
        self.hide(object);
    }

    /// Gives a complete object its place; `false` if it was flushed meanwhile. Called by its writer only.
    pub(in crate::cache) async fn admit(
        &'static self,
        object: &Arc<Object>,
        file: &mut disk::Unnamed,
        finished: Finished,
        offset: u64,
    ) -> Result<bool, String> {
        let fresh = &object.fresh;
        let backed_up = object.origin() == Origin::Bucket;
        let preamble = disk::encode(
            &object.key.text,
            object.id,
            &object.head,
            Some(finished),
            (fresh.class(), fresh.checked_at(), fresh.fresh_until()),
            backed_up,
        )
        .map_err(|error| error.to_string())?;
        let mut taken = disk::Unnamed::take(file).map_err(|error| error.to_string())?;
        let hash = object.key.hash;
        let is_new = object.key.is_shared() && object.origin() == Origin::Upstream;
        let backup = self.backup.get().filter(|_| is_new);
        let published = tokio::task::spawn_blocking(move || {
            use std::os::unix::fs::FileExt;
            taken.file.write_all_at(&preamble, 0)?;
            // Gives back what was reserved beyond the body, and makes an empty body's file long enough.
            taken.file.set_len(offset + finished.length)?;
            let change = self.usage.change(&hash);
            let replaced = self.disk.size(&hash);
            // Before it can be found: nothing is stored that a crash keeps from the bucket.
            let published = match backup.map_or(Ok(()), |backup| backup.admitting(&hash)) {
                Ok(()) => self.disk.publish(&mut taken, &hash, self.settings.sync),
                Err(error) => Err(error),
            };
            if let Some(backup) = backup {
                backup.admitted(&hash, disk::occupied(offset + finished.length));
            }
            let folders = published?;
            change.removed(replaced);
            change.stored(Amount::of_file(offset + finished.length) + folders);
            Ok::<_, io::Error>(())
        })
        .await;
        match published {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                self.trouble.failed(&error, &hash);
                return Err(format!("storing it failed: {error}"));
            }
            Err(_) => return Err("storing it was given up".to_owned()),
        }
        // A flush that came while it was given its name found nothing to remove.
        if object.doomed.load(SeqCst) {
            let remove = move || {
                let change = self.usage.change(&hash);
                change.removed(self.disk.remove(&hash, None).unwrap_or_default());
                self.is_removed(&hash);
            };
            // The task fails only when the process ends.
            let _ = tokio::task::spawn_blocking(remove).await;
            return Ok(false);
        }
        Ok(true)
    }

    /// Ends the growing of `object`: readers that come now find it complete, or not at all. Called by its writer only.
    pub(in crate::cache) fn settle(&self, object: &Arc<Object>, admitted: bool) {
        if admitted {
            self.version(&object.key.hash).fetch_add(1, SeqCst);
            self.memory.insert(Arc::clone(object));
        }
        self.hide(object);
    }

    /// Whoever looks for what grows does not find `object` any more.
    fn hide(&self, object: &Arc<Object>) {
        let mut growing = self.growing.lock();
        if growing
            .get(&object.key.hash)
            .is_some_and(|current| Arc::ptr_eq(current, object))
        {
            growing.remove(&object.key.hash);
        }
    }

    /// [`Store::hide`], if only its writer holds it beside the list of what grows. `false`: others do.
    pub(in crate::cache) fn hide_if_alone(&self, object: &Arc<Object>) -> bool {
        let mut growing = self.growing.lock();
        let hash = &object.key.hash;
        let is_listed = growing.get(hash).is_some_and(|current| Arc::ptr_eq(current, object));
        // Under the lock nobody gets it from the list.
        let is_alone = Arc::strong_count(object) <= 1 + usize::from(is_listed);
        if is_alone && is_listed {
            growing.remove(hash);
        }
        is_alone
    }
}
