//! Flights: who asks joins the one that is under way, or starts it.

use std::sync::Arc;

use futures_util::FutureExt as _;
use http::Method;
use tokio::sync::watch;

use super::outcome::{busy, offline};
use super::turn::Turn;
use super::{Answer, Fills, How, Outcome, PATIENCE, Purpose, Wanted};
use crate::cache::{Hash, now_ms};
use crate::on_behalf;

/// A fetch that others asked for by another name, and were refused, is joined at most so often.
const MAX_JOINS: usize = 4;

/// Flights at once; each holds a task and what it waits for.
const MAX_FLIGHTS: usize = 65_536;
const GIVEN_UP: &str = "the transfer was given up";

/// A fill in progress, as those see it who wait for it.
pub(super) struct Flight {
    asked: Hash,
    /// Whether another node may have what it brings: not the answer to a HEAD.
    is_for_others: bool,
    outcome: watch::Sender<Option<Outcome>>,
}

/// Key, whether it is a HEAD, and which remote's configuration.
pub(super) type Slot = (Hash, bool, usize);

impl Fills {
    /// Fetches `wanted`, or joins the fetch of it. The second value tells whether it was joined.
    pub async fn obtain(self: &Arc<Self>, wanted: Wanted, method: Method) -> (Outcome, bool) {
        let _waiting = on_behalf::waiting();
        for _ in 0..MAX_JOINS {
            let (outcome, joined) = self.join(wanted.clone(), method.clone()).await;
            match (&outcome, joined) {
                // What is refused by another name may be had by this one.
                (Outcome::Answer(_), Some(asked)) if asked != wanted.asked.hash => {}
                _ => return (outcome, joined.is_some()),
            }
        }
        (busy("others are asking upstream for the same by other names"), false)
    }

    /// The second value: the name by which it was asked for, if it was joined.
    async fn join(self: &Arc<Self>, wanted: Wanted, method: Method) -> (Outcome, Option<Hash>) {
        // A request under a new configuration does not join what was begun under the old one.
        let slot = (
            wanted.key.hash,
            method == Method::HEAD,
            Arc::as_ptr(wanted.remote()) as usize,
        );
        let asset = Arc::clone(&wanted.asset);
        let (mut outcome, joined) = {
            let mut flights = self.flights.lock();
            match flights.get(&slot) {
                Some(flight) => (flight.outcome.subscribe(), Some(flight.asked)),
                None if flights.len() >= MAX_FLIGHTS => return (busy("too many fetches are under way"), None),
                None => {
                    let flight = Arc::new(Flight {
                        asked: wanted.asked.hash,
                        is_for_others: method == Method::GET || wanted.is_pointer(),
                        outcome: watch::channel(None).0,
                    });
                    flights.insert(slot, Arc::clone(&flight));
                    let outcome = flight.outcome.subscribe();
                    tokio::spawn(on_behalf::same(Arc::clone(self).fly(wanted, method, flight, slot)));
                    (outcome, None)
                }
            }
        };
        self.metrics.flight(&asset.remote.name, joined.is_some());
        let landed = tokio::time::timeout(PATIENCE, outcome.wait_for(Option::is_some)).await;
        let outcome = match landed {
            Ok(Ok(outcome)) => outcome.clone(),
            _ => None,
        };
        let outcome = outcome.unwrap_or_else(|| busy(GIVEN_UP));
        (outcome, joined)
    }

    /// The outcome of a flight under way that another node may have.
    pub(super) fn flight_of(&self, hash: &Hash) -> Option<watch::Receiver<Option<Outcome>>> {
        let flights = self.flights.lock();
        let flight = flights
            .iter()
            .find(|((of, ..), flight)| of == hash && flight.is_for_others)?;
        Some(flight.1.outcome.subscribe())
    }

    /// One flight, from its start to the end of the body.
    async fn fly(self: Arc<Self>, wanted: Wanted, method: Method, flight: Arc<Flight>, slot: Slot) {
        // Whatever happens to this task, nobody may wait for it for ever.
        let landing = Landing {
            fills: &self,
            flight,
            slot,
        };
        // Between the look of whoever started this and now, another flight may have landed. What grows is asked for
        // first: it is found stored before it is no longer found growing.
        if let Some(growing) = self.store.joinable(&wanted.key.hash).await {
            return landing.publish(Outcome::Object(growing, How::Fetched));
        }
        let previous = self.store.stored(wanted.replaces().unwrap_or(&wanted.key)).await;
        if let Some(stored) = previous
            .as_ref()
            .filter(|_| wanted.replaces().is_none() && !wanted.force)
        {
            let left = stored.fresh.left(wanted.policy.class, wanted.policy.ttl, now_ms());
            if left.is_fresh() {
                return landing.publish(Outcome::Object(Arc::clone(stored), How::Found));
            }
        }
        let mut landing = Some(landing);
        let is_for_others = method == Method::GET || wanted.is_pointer();
        let turn = if is_for_others {
            self.share(&wanted, &mut landing, previous).boxed().await
        } else {
            match self.elsewhere(&wanted).boxed().await.filter(|_| previous.is_none()) {
                Some(object) => {
                    landing
                        .take()
                        .inspect(|landing| landing.publish(Outcome::Object(object, How::Restored)));
                    None
                }
                None => Some(Turn { previous, lease: None }),
            }
        };
        // The lease is held until the end of the body.
        let (
            Some(Turn {
                previous,
                lease: _lease,
            }),
            Some(landing),
        ) = (turn, landing)
        else {
            return;
        };
        if wanted.asset.remote.offline {
            return landing.publish(match previous {
                Some(previous) => Outcome::Object(previous, How::Found),
                None => Outcome::Answer(Arc::new(Answer::failure(&offline()))),
            });
        }
        match wanted.purpose {
            Purpose::Pointer => {
                return landing.publish(self.follow(&wanted, &method, previous).await);
            }
            Purpose::Set(members) if method == Method::GET => {
                return self.fly_set(&wanted, members, previous, landing).await;
            }
            Purpose::Set(_) | Purpose::Plain | Purpose::Aside(_) => {}
        }
        self.fetch(&wanted, &method, previous, landing).await;
    }
}

/// Publishes a flight's outcome and takes it off the board, also when its task dies.
pub(super) struct Landing<'a> {
    fills: &'a Fills,
    flight: Arc<Flight>,
    slot: Slot,
}

impl Landing<'_> {
    pub(super) fn publish(&self, outcome: Outcome) {
        self.leave();
        self.flight.outcome.send_replace(Some(outcome));
    }
    fn leave(&self) {
        let mut flights = self.fills.flights.lock();
        if flights
            .get(&self.slot)
            .is_some_and(|current| Arc::ptr_eq(current, &self.flight))
        {
            flights.remove(&self.slot);
        }
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.leave();
        self.flight.outcome.send_if_modified(|outcome| {
            let missing = outcome.is_none();
            if missing {
                *outcome = Some(busy(GIVEN_UP));
            }
            missing
        });
    }
}
