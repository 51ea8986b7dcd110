//! Flights: fills in progress, at most one for each key, shared by everyone who asks for it.
//!
//! [`Fills::obtain`] joins the flight of a key or starts it. A flight ends, for those who wait, as soon as it is known
//! what they get: an object to read (complete or growing), the copy of a small answer, or the word that this answer is
//! not stored and each must ask for himself. The flight itself goes on until the body is complete, whoever leaves.

mod answer;
mod coded;
mod decision;
mod elsewhere;
pub mod flush;
mod from_bucket;
mod from_node;
mod from_upstream;
mod gunzip;
pub mod ledger;
pub mod neighbours;
pub mod news;
pub mod node;
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
pub mod view;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use http::{HeaderMap, Method, header};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use url::Url;

pub use answer::{Answer, Negative};
use set::Manifests;
use shared::Shared;
use turn::Turn;
use upstream::{FillProxy, Ticket, Word};
pub use view::Views;

use crate::cache::storage::FillSpec;
use crate::cache::{Aside, Expected, Finish, Hash, Key, Millis, Object, State, Store, freshness_until, now_ms};
use crate::catalog::Catalog;
use crate::config::Remote;
use crate::formats::asset::Members;
use crate::formats::{Asset, Binding, Location};
use crate::headers;
use crate::metrics::Metrics;
use crate::policy::{self, Policy};
use crate::status::is_absent;
use crate::upstream::{Ask, Exchange, Failure, Upstream, shown as without_query};

/// Whatever a flight waits for, it does not wait longer than this without any sign of life.
const PATIENCE: Duration = Duration::from_secs(600);

/// A fetch that others asked for by another name, and were refused, is joined at most so often.
const MAX_JOINS: usize = 4;

/// Flights at once; each holds a task and what it waits for.
const MAX_FLIGHTS: usize = 65_536;
const GIVEN_UP: &str = "the transfer was given up";

/// What is wanted from upstream.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub asset: Arc<Asset>,
    pub key: Key,
    pub url: Url,
    pub policy: Policy,
    /// What the content must turn out to be.
    pub expected: Option<Expected>,
    pub purpose: Purpose,
    /// Ask upstream even if what is stored is fresh.
    pub force: bool,
    /// The manifest that said what to expect: what turns out otherwise makes it due.
    pub manifest: Option<Key>,
    /// The name it is asked for by, where several share what is stored: what upstream refuses, it refuses by this name.
    pub asked: Key,
}

/// What a flight is to bring.
#[derive(Debug, Clone)]
pub enum Purpose {
    /// A document or file, in its place.
    Plain,
    /// A manifest: its files are seen to before it is shown.
    Set(Members),
    /// Where a name leads that stands for content with a digest.
    Pointer,
    /// Something that is nobody's yet, and will take the place of what is stored under this key: that is revalidated in its
    /// stead.
    Aside(Key),
}

impl Wanted {
    /// What `asset` is, which upstream has at `url`.
    pub fn new(asset: Arc<Asset>, url: Url, policy: Policy) -> Self {
        let key = asset.key();
        Wanted {
            asked: asset.name_key().unwrap_or_else(|| key.clone()),
            key,
            url,
            policy,
            expected: asset.digest.clone(),
            purpose: match asset.binding {
                Binding::Manifest(members) => Purpose::Set(members),
                Binding::Pointer(_) => Purpose::Pointer,
                Binding::Alone | Binding::Member(_) => Purpose::Plain,
            },
            force: false,
            manifest: None,
            asset,
        }
    }

    /// What `asset` is, where the remote itself has it. `None`: another host has it, or nobody.
    pub fn of(asset: Arc<Asset>, policy: Policy) -> Option<Self> {
        match &asset.location {
            Location::Upstream(url) => {
                let url = url.clone();
                Some(Wanted::new(asset, url, policy))
            }
            _ => None,
        }
    }

    /// A file of a fixed name, which is stored under `key` by its manifest's word for it.
    pub fn member(asset: Arc<Asset>, url: Url, key: Key, expected: Option<Expected>) -> Self {
        Wanted {
            asked: key.clone(),
            key,
            expected,
            purpose: Purpose::Plain,
            ..Wanted::new(asset, url, policy::of_set_member())
        }
    }

    /// What is wanted, fetched beside its place.
    pub fn aside(&self, why: Aside) -> Self {
        Wanted {
            key: self.key.aside(why),
            purpose: Purpose::Aside(self.key.clone()),
            ..self.clone()
        }
    }

    pub fn remote(&self) -> &Arc<Remote> {
        &self.asset.remote
    }

    /// What will take the place of what is stored under this key, once it was looked at.
    pub fn replaces(&self) -> Option<&Key> {
        match &self.purpose {
            Purpose::Aside(key) => Some(key),
            _ => None,
        }
    }

    /// Whether it is a manifest, to be shown with its files.
    pub fn is_set(&self) -> bool {
        matches!(self.purpose, Purpose::Set(_))
    }

    /// Whether it is where a name leads that is wanted.
    pub fn is_pointer(&self) -> bool {
        matches!(self.purpose, Purpose::Pointer)
    }

    /// Headers to store, whatever upstream says of them; `ETag` only where upstream gives none.
    pub fn says(&self) -> HeaderMap {
        let mut says = HeaderMap::new();
        // What is fetched as it comes is not known to be that content.
        if let (Some(digest), Some(_)) = (&self.asset.digest, &self.expected) {
            let text = digest.to_string();
            if let Some(field) = &self.asset.digest_field {
                says.insert(field.clone(), headers::value(&text));
            }
            says.insert(header::ETAG, headers::value(&format!("\"{text}\"")));
        }
        says
    }
}

pub use crate::formats::docker::CONTENT_DIGEST;

/// How an object came to be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// Its bytes come from upstream for this request.
    Fetched,
    /// Another flight had brought it a moment before, or another node says that what is stored is right.
    Found,
    /// The bucket, or another node, had it.
    Restored,
    /// Upstream said by this status (304, or 200 to a HEAD) that what is stored is still right.
    Revalidated(u16),
    /// Upstream is unreachable, or answered one of the statuses that count as that.
    Stale(Option<u16>),
}

/// What a flight brought.
#[derive(Debug, Clone)]
pub enum Outcome {
    Object(Arc<Object>, How),
    /// Upstream's own small answer, or one of ours: shared by all who waited.
    Answer(Arc<Answer>),
    /// Not stored: ask upstream for yourself.
    Direct,
}

struct Flight {
    asked: Hash,
    /// Whether another node may have what it brings: not the answer to a HEAD.
    is_for_others: bool,
    outcome: watch::Sender<Option<Outcome>>,
}

/// Key, whether it is a HEAD, and which remote's configuration.
type Slot = (Hash, bool, usize);

/// All fills of this process.
pub struct Fills {
    pub store: &'static Store,
    pub upstream: Arc<Upstream>,
    pub catalog: Catalog,
    pub metrics: Arc<Metrics>,
    pub shared: Shared,
    flights: Mutex<HashMap<Slot, Arc<Flight>>>,
    negative: Negative,
    manifests: Manifests,
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
            manifests: Manifests::default(),
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

    /// Fetches `wanted`, or joins the fetch of it. The second value tells whether it was joined.
    pub async fn obtain(self: &Arc<Self>, wanted: Wanted, method: Method) -> (Outcome, bool) {
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
                    tokio::spawn(Arc::clone(self).fly(wanted, method, flight, slot));
                    (outcome, None)
                }
            }
        };
        self.metrics.flight(joined.is_some());
        let landed = tokio::time::timeout(PATIENCE, outcome.wait_for(Option::is_some)).await;
        let outcome = match landed {
            Ok(Ok(outcome)) => outcome.clone(),
            _ => None,
        };
        let outcome = outcome.unwrap_or_else(|| busy(GIVEN_UP));
        (outcome, joined)
    }

    /// The outcome of a flight under way that another node may have.
    fn flight_of(&self, hash: &Hash) -> Option<watch::Receiver<Option<Outcome>>> {
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
        let place = match self.upstream.place(wanted.remote()).await {
            Ok(place) => place,
            Err(failure) => return landing.publish(self.after_failure(&wanted, previous, failure).await),
        };
        let ask = Ask {
            method: method.clone(),
            accept: wanted.asset.form.accept,
            gzip: wanted.asset.view.is_some(),
            headers: Vec::new(),
            total: None,
            conditional: method == Method::GET && wanted.policy.conditional && previous.is_some(),
        };
        let exchange = Exchange::new(
            Arc::clone(&self.upstream),
            Arc::clone(wanted.remote()),
            wanted.url.clone(),
            ask,
        )
        .with_query(wanted.asset.path.query.clone())
        .with_scope(wanted.asset.token_scope.clone());
        let deadline = Arc::clone(&exchange.deadline);
        let (done, mut ended) = oneshot::channel();
        let (word, mut first_word) = oneshot::channel();
        let spec = Arc::new(FillSpec {
            key: wanted.key.clone(),
            class: wanted.policy.class,
            expected: wanted.expected.clone(),
            previous: previous.clone(),
            object: std::sync::OnceLock::new(),
            refused: std::sync::OnceLock::new(),
            done: Mutex::new(Some(done)),
            deadline: Arc::clone(&deadline),
            document: wanted.asset.view.is_some(),
        });
        let began = now_ms();
        // The ticket alone keeps `spec`: when the subrequest ends, however it ends, `ended` must hear of it.
        let ticket = Ticket::new(exchange, spec, (wanted.policy, wanted.says()), word);
        let task = AbortOnDrop(Some(self.proxy.spawn(ticket).await));

        let word = tokio::select! {
            word = &mut first_word => word.unwrap_or_else(|_| Word::Failed(Failure {
                status: 502,
                reason: "the request to upstream ended without an answer".to_owned(),
                unreachable: true,
            })),
            () = deadline.passed(PATIENCE) => {
                drop(task);
                let failure = Failure::timed_out(wanted.remote(), &wanted.url);
                return landing.publish(self.after_failure(&wanted, previous, failure).await);
            }
        };
        let growing = match word {
            Word::Growing(object) => {
                landing.publish(Outcome::Object(Arc::clone(&object), How::Fetched));
                object
            }
            Word::NotModified => {
                task.let_go();
                return landing.publish(self.not_modified(&wanted, previous, began).await);
            }
            Word::Answer(answer) => {
                task.let_go();
                let (outcome, removed) = self.after_answer(&wanted, previous.as_ref(), answer).await;
                if let Some(key) = removed {
                    self.note_removed(&key);
                }
                return landing.publish(outcome);
            }
            Word::Coded => {
                drop(task);
                drop(place);
                return landing.publish(self.fetch_coded(&wanted, previous).await);
            }
            Word::Direct(why) => {
                if let Some(why) = why {
                    tracing::warn!(key = %wanted.key.shown(), %why, "an answer passes by unstored");
                }
                return landing.publish(Outcome::Direct);
            }
            Word::Failed(failure) => return landing.publish(self.after_failure(&wanted, previous, failure).await),
        };
        let finish = tokio::select! {
            finish = &mut ended => {
                task.let_go();
                finish.ok()
            }
            () = deadline.passed(PATIENCE) => {
                // Its end may have come at the same moment, and fails the object if it has not.
                drop(task);
                ended.await.ok()
            }
        };
        let finish = finish.unwrap_or_else(|| Finish::Failed("upstream fell silent".to_owned()));
        drop(place);
        self.ended(&wanted, &growing, finish);
    }

    fn ended(self: &Arc<Self>, wanted: &Wanted, growing: &Arc<Object>, finish: Finish) {
        let wrong = matches!(finish, Finish::Wrong(_));
        match finish {
            // What arrives aside is nobody's yet.
            Finish::Admitted(_) if wanted.replaces().is_some() => {}
            Finish::Admitted(object) => self.note_stored(&object, wanted.policy.class),
            Finish::Same(object) => self.note_refreshed(&object),
            Finish::Dropped => {}
            Finish::Failed(reason) | Finish::Wrong(reason) => {
                if wrong {
                    self.metrics.wrong_digest(&wanted.asset.remote.name);
                }
                if let Some(manifest) = &wanted.manifest {
                    // Upstream has moved on from it, or is about to.
                    let (fills, manifest) = (Arc::clone(self), manifest.clone());
                    tokio::spawn(async move { fills.note_doubt(&manifest).await });
                }
                self.metrics.fill_failed();
                tracing::warn!(key = %growing.key.shown(), url = %without_query(&wanted.url), %reason, "a transfer from upstream failed");
            }
        }
    }

    async fn not_modified(self: &Arc<Self>, wanted: &Wanted, previous: Option<Arc<Object>>, began: Millis) -> Outcome {
        let Some(previous) = previous else {
            return Outcome::Answer(Arc::new(Answer::failure(&Failure {
                status: 502,
                reason: "upstream answered 304 and nothing is stored".to_owned(),
                unreachable: false,
            })));
        };
        self.refresh(wanted, &previous, began).await;
        Outcome::Object(previous, How::Revalidated(304))
    }

    /// Upstream, which was asked from `began` on, says that `object` is still right. What was flushed meanwhile stays expired:
    /// the flush is later than the question.
    async fn refresh(self: &Arc<Self>, wanted: &Wanted, object: &Arc<Object>, began: Millis) {
        let class = wanted.policy.class;
        let until = match self
            .shared
            .ledger
            .flushed(&wanted.key, object.head.stored_at, began.saturating_sub(1))
        {
            Some(_) => began,
            None => freshness_until(class, now_ms(), wanted.policy.ttl),
        };
        self.store.refresh(object, class, began, until).await;
        self.note_refreshed(object);
    }

    /// Upstream's own answer that is not stored, whichever node got it: passed on, unless a stored copy goes before it. One
    /// that says that there is no such thing is remembered, and takes what is stored with it: the key of that, if so.
    async fn after_answer(
        self: &Arc<Self>,
        wanted: &Wanted,
        previous: Option<&Arc<Object>>,
        answer: Answer,
    ) -> (Outcome, Option<Key>) {
        let status = answer.status;
        if let Some(previous) = previous
            && wanted.asset.remote.serve_stale_on.contains(&status)
        {
            return (self.stale(wanted, previous, Some(status)).await, None);
        }
        let answer = Arc::new(answer);
        let mut removed = None;
        if is_absent(answer.status) {
            // What others name too is theirs as well.
            let shared = wanted.asked.hash != wanted.key.hash && wanted.replaces().is_none();
            if let Some(previous) = previous.filter(|_| !shared) {
                self.store.remove(previous.key.hash).await;
                removed = Some(previous.key.clone());
            }
            self.negative
                .remember(&wanted.asked, Arc::clone(&answer), wanted.asset.remote.ttl.negative);
        }
        (Outcome::Answer(answer), removed)
    }

    async fn after_failure(
        self: &Arc<Self>,
        wanted: &Wanted,
        previous: Option<Arc<Object>>,
        failure: Failure,
    ) -> Outcome {
        self.metrics.upstream_failed(&wanted.asset.remote.name);
        tracing::warn!(remote = %wanted.asset.remote.name, url = %without_query(&wanted.url), reason = %failure.reason, stored = previous.is_some(), "upstream failed");
        match previous {
            Some(previous) if failure.unreachable => self.stale(wanted, &previous, None).await,
            _ => Outcome::Answer(Arc::new(Answer::failure(&failure))),
        }
    }

    /// The stored copy, trusted for another TTL so that upstream is not asked again until then.
    async fn stale(self: &Arc<Self>, wanted: &Wanted, previous: &Arc<Object>, status: Option<u16>) -> Outcome {
        self.trust_again(wanted.policy, previous).await;
        Outcome::Object(Arc::clone(previous), How::Stale(status))
    }

    async fn trust_again(&self, policy: Policy, previous: &Arc<Object>) {
        let until = freshness_until(policy.class, now_ms(), policy.ttl);
        let checked_at = previous.fresh.checked_at();
        self.store.refresh(previous, policy.class, checked_at, until).await;
        // Not told to other nodes: they may have something newer, or reach upstream.
        self.catalog.record(record::refreshed(previous));
    }

    /// The copy that `broken` was to take the place of, if it broke off and has left one: upstream may as well not have
    /// answered at all, as long as nothing of its answer has gone out.
    pub async fn copy_before(&self, broken: &Object, policy: Policy) -> Option<Arc<Object>> {
        if broken.progress().state != State::Failed {
            return None;
        }
        let previous = self.store.stored(&broken.key).await?;
        if !previous.fresh.left(policy.class, policy.ttl, now_ms()).is_fresh() {
            self.trust_again(policy, &previous).await;
        }
        Some(previous)
    }
}

/// Nothing is known of what is wanted, and another try may bring it.
fn busy(why: &str) -> Outcome {
    Outcome::Answer(Arc::new(Answer::failure(&Failure {
        status: 503,
        reason: format!("{why}; try again"),
        unreachable: false,
    })))
}

/// What is asked for is nowhere, and upstream is not to be asked.
pub fn offline() -> Failure {
    Failure {
        status: 504,
        reason: "this remote is offline and the path is not stored; remove `offline: true` to fetch it".to_owned(),
        unreachable: false,
    }
}

/// Publishes a flight's outcome and takes it off the board, also when its task dies.
struct Landing<'a> {
    fills: &'a Fills,
    flight: Arc<Flight>,
    slot: Slot,
}

impl Landing<'_> {
    fn publish(&self, outcome: Outcome) {
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

/// A task that ends with its owner, unless it is let go.
struct AbortOnDrop(Option<tokio::task::JoinHandle<()>>);

impl AbortOnDrop {
    /// The transfer is over; what is left is giving the connection back to the pool.
    fn let_go(mut self) {
        self.0 = None;
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}
