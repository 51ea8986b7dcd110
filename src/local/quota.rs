//! How much a repository may hold. What is stored is counted by the catalogue, and by what was stored here since; what is on
//! its way is promised here, so that uploads that come together do not each find the same room.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Locals;
use crate::catalog::{CatalogError, Filter};

/// What each remote holds.
pub(super) type Accounts = Mutex<HashMap<String, Account>>;

/// In bytes.
#[derive(Debug, Default)]
pub(super) struct Account {
    stored: u64,
    promised: u64,
}

/// Room for an upload. Dropped, it is given back.
#[derive(Debug)]
pub struct Promise {
    accounts: Arc<Accounts>,
    remote: String,
    quota: u64,
    /// What the upload takes the place of.
    replaced: u64,
    bytes: u64,
}

impl Promise {
    /// Promises `bytes` in all; `false`: the quota does not allow it.
    pub fn grow(&mut self, bytes: u64) -> bool {
        let mut accounts = self.accounts.lock();
        let account = accounts.entry(self.remote.clone()).or_default();
        let more = bytes.saturating_sub(self.bytes);
        let others = account.stored.saturating_sub(self.replaced) + account.promised;
        if others.saturating_add(more) > self.quota {
            return false;
        }
        account.promised += more;
        self.bytes += more;
        true
    }

    /// The upload is stored. (Until it is counted anew it may be counted twice, never not at all.)
    pub fn keep(self) {
        let mut accounts = self.accounts.lock();
        let account = accounts.entry(self.remote.clone()).or_default();
        account.stored = account.stored.saturating_sub(self.replaced) + self.bytes;
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        if let Some(account) = self.accounts.lock().get_mut(&self.remote) {
            account.promised = account.promised.saturating_sub(self.bytes);
        }
    }
}

impl Locals {
    /// Counts what `remote` holds, for an upload within `quota` that replaces `replaced` bytes. Nothing is promised yet.
    ///
    /// # Errors
    /// The catalogue, which counts, does not answer.
    pub async fn promise(&self, remote: &str, quota: u64, replaced: u64) -> Result<Promise, CatalogError> {
        self.catalog.drain().await?;
        let filter = Filter {
            remote: Some(remote.to_owned()),
            ..Filter::default()
        };
        let totals = self.catalog.totals(&filter).await?;
        let mut accounts = self.accounts.lock();
        let account = accounts.entry(remote.to_owned()).or_default();
        account.stored = totals.map_or(account.stored, |totals| totals.bytes);
        Ok(Promise {
            accounts: Arc::clone(&self.accounts),
            remote: remote.to_owned(),
            quota,
            replaced,
            bytes: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_promised_to_one_is_promised_to_nobody_else() {
        let accounts = Arc::new(Accounts::default());
        let promise = |replaced| Promise {
            accounts: Arc::clone(&accounts),
            remote: "a".to_owned(),
            quota: 100,
            replaced,
            bytes: 0,
        };
        let (mut first, mut second) = (promise(0), promise(0));
        assert!(first.grow(60) && !second.grow(50) && second.grow(40));
        assert!(!first.grow(61) && first.grow(60));
        drop(second);
        assert!(first.grow(100));
        first.keep();
        assert!(!promise(0).grow(1) && promise(0).grow(0));
        // Room that it takes from what it replaces.
        let mut third = promise(30);
        assert!(third.grow(30) && !third.grow(31));
        third.keep();
        let accounts = accounts.lock();
        assert_eq!((accounts["a"].stored, accounts["a"].promised), (100, 0));
    }
}
