//! Flights: fills in progress, at most one for each key, shared by everyone who asks for it.
//!
//! [`Fills::obtain`] joins the flight of a key or starts it. A flight ends, for those who wait, as soon as it is known
//! what they get: an object to read (complete or growing), the copy of a small answer, or the word that this answer is
//! not stored and each must ask for himself. The flight itself goes on until the body is complete, whoever leaves.

pub mod ahead;
mod answer;
mod coded;
mod decision;
pub mod decoded;
mod elsewhere;
mod fetch;
mod flight;
pub mod flush;
mod from_bucket;
mod from_node;
mod from_upstream;
pub mod ledger;
pub mod let_through;
pub mod listed;
pub mod neighbours;
pub mod news;
pub mod node;
mod outcome;
pub mod record;
pub mod reference;
mod rest;
mod said;
pub mod set;
pub mod shared;
mod source;
mod take;
mod transfer;
mod turn;
pub mod unfinished;
pub mod upstream;
mod verified;
pub mod view;
mod wanted;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use ahead::Ahead;
pub use answer::{Answer, Negative};
use flight::{Flight, Landing, Slot};
use let_through::LetThroughs;
use listed::Listings;
pub use outcome::{How, Outcome, offline};
use set::Manifests;
use shared::Shared;
use upstream::FillProxy;
pub use view::Views;
pub use wanted::{Purpose, Wanted};

use crate::cache::{Key, Store};
use crate::catalog::Catalog;
use crate::metrics::Metrics;
use crate::upstream::Upstream;

/// Whatever a flight waits for, it does not wait longer than this without any sign of life.
const PATIENCE: Duration = Duration::from_secs(600);

/// All fills of this process.
pub struct Fills {
    pub store: &'static Store,
    pub upstream: Arc<Upstream>,
    pub catalog: Catalog,
    pub metrics: Arc<Metrics>,
    pub shared: Shared,
    flights: Mutex<HashMap<Slot, Arc<Flight>>>,
    negative: Negative,
    ahead: Ahead,
    manifests: Manifests,
    pub listed: Listings,
    pub let_through: Arc<LetThroughs>,
    proxy: FillProxy,
}

impl Fills {
    pub fn new(
        store: &'static Store,
        upstream: Arc<Upstream>,
        catalog: Catalog,
        metrics: Arc<Metrics>,
        shared: Shared,
    ) -> Arc<Self> {
        Arc::new(Fills {
            store,
            upstream,
            catalog,
            metrics,
            shared,
            flights: Mutex::default(),
            negative: Negative::default(),
            ahead: Ahead::default(),
            manifests: Manifests::default(),
            listed: Listings::default(),
            let_through: Arc::default(),
            proxy: FillProxy::new(store),
        })
    }

    /// A remembered 404, 410 or 451 for `key`.
    pub fn remembered(&self, key: &Key) -> Option<Arc<Answer>> {
        self.negative.get(&key.hash)
    }

    /// Forgets remembered refusals whose key `matches`.
    pub fn forget(&self, matches: impl Fn(&str) -> bool) {
        self.negative.forget(matches);
    }
}
