//! Who changes what is under a name: one at a time.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

use crate::cache::{Hash, Key};

/// The names that are being changed, or waited for.
#[derive(Debug, Default)]
pub(super) struct Names(Mutex<HashMap<Hash, Arc<tokio::sync::Mutex<()>>>>);

/// The right to change what is under a name.
#[derive(Debug)]
pub struct Name<'a> {
    names: &'a Names,
    key: Key,
    held: Option<OwnedMutexGuard<()>>,
}

impl Name<'_> {
    /// What it names.
    pub fn key(&self) -> &Key {
        &self.key
    }
}

impl Names {
    pub(super) async fn take(&self, key: Key) -> Name<'_> {
        let mut name = Name {
            names: self,
            key,
            held: None,
        };
        let lock = Arc::clone(self.0.lock().entry(name.key.hash).or_default());
        name.held = Some(lock.lock_owned().await);
        name
    }
}

impl Drop for Name<'_> {
    fn drop(&mut self) {
        let mut names = self.names.0.lock();
        drop(self.held.take());
        // Nobody else waits for it: who begins to does so under this lock.
        if names
            .get(&self.key.hash)
            .is_some_and(|lock| Arc::strong_count(lock) == 1)
        {
            names.remove(&self.key.hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn one_at_a_time_and_nothing_is_left() {
        let names = Names::default();
        let key = Key::of_local("r", "a");
        let first = names.take(key.clone()).await;
        let other = names.take(Key::of_local("r", "b")).await;
        {
            let second = names.take(key.clone());
            tokio::pin!(second);
            assert!(second.as_mut().now_or_never().is_none());
            drop(first);
            second.await;
        }
        // Who gives up waiting leaves nothing, either.
        let first = names.take(key.clone()).await;
        {
            let second = names.take(key);
            tokio::pin!(second);
            assert!(second.as_mut().now_or_never().is_none());
        }
        drop((first, other));
        assert!(names.0.lock().is_empty());
    }
}
