//! A flight asks the other nodes and the bucket before it asks upstream.
//!
//! What the fleet's word (in Redis) calls current is brought from where it is: from this node's own tiers, the bucket, or the
//! node that has it. What another node fills just now is read from that node while it grows. Only who holds the fill lock
//! goes to upstream. Each of the three may be missing or away; the flight then goes on with what is left, in the end by
//! itself.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures_util::{FutureExt as _, StreamExt as _};
use http::Method;
use parking_lot::Mutex;

use super::node::{Body, Incoming, Life, Peers, Question, Reply};
use super::unfinished::Unfinished;
use super::{Fills, How, Landing, Outcome, Purpose, Wanted, record};
use crate::bucket::{Bucket, Copy};
use crate::cache::{
    Aside, Elsewhere, Expected, Finish, Finished, Freshness, Hash, Head, Key, Millis, Object, Origin, Reader, Writer,
    identity, is_before, now_ms,
};
use crate::catalog::Event;
use crate::fleet::{Fence, Fleet, Flush, Lease, Node, Published, Record, Take};
use crate::formats::Class;

/// Between two looks at what another node does.
const PAUSE: Duration = Duration::from_millis(100);
/// How often a node that fills something may say that it has nothing to give before this one goes on without it.
const MAX_REFUSALS: u32 = 5;
/// A body that does not move for so long may come from a node that is dead or stopped: whether it still holds the lock tells.
const STALL: Duration = Duration::from_secs(2);
/// A source that says nothing for so long is given up, whatever the lock says.
const SILENCE: Duration = Duration::from_secs(60);
/// A body that was cut is taken up elsewhere; this is how long it may take to find who has the rest.
const HAND_OVER: Duration = Duration::from_secs(15);

/// What was fetched within this time may be news.
const LATELY_MS: Millis = 5_000;
/// How often a flight that has the lock goes back because others were faster.
const MAX_NEWS: usize = 3;
/// An object that was fetched so lately may still be on its way into the bucket.
const UPLOAD_MS: Millis = 60_000;
/// An expired copy up to this is brought out of the bucket before upstream is asked about it; a longer one costs more than
/// the question saves.
const MAX_BROUGHT_BACK: u64 = 64 << 20;
/// How often one body may be taken up elsewhere.
const MAX_HAND_OVERS: usize = 8;
/// Flushes that a node without Redis remembers.
const MAX_OWN_FLUSHES: usize = 1000;

/// Tells whether a flush covers the object of a key.
pub type Covers = Box<dyn Fn(&str) -> bool + Send + Sync>;
/// Reads a flush's request.
pub type ReadFlush = Box<dyn Fn(&Flush) -> Option<(Covers, bool)> + Send + Sync>;

struct Known {
    of: Arc<Vec<Flush>>,
    /// When, what, and whether the bodies stay.
    flushes: Vec<(Millis, Covers, bool)>,
}

/// What this node shares with others; each part is there if it is configured.
pub struct Shared {
    pub bucket: Option<Arc<Bucket>>,
    pub fleet: Option<Arc<Fleet>>,
    pub peers: Option<Peers>,
    read_flush: ReadFlush,
    unfinished: Option<Arc<Unfinished>>,
    /// Those of this node, where there is no Redis to remember them.
    own_flushes: ArcSwap<Vec<Flush>>,
    flushes: ArcSwap<Known>,
    leases: Mutex<std::collections::HashMap<Hash, Arc<Lease>>>,
    /// What is being announced.
    speaking: Mutex<Vec<Hash>>,
}

/// The right to go to upstream.
pub(super) struct Turn {
    /// What is stored, or what the bucket had that is expired.
    pub previous: Option<Arc<Object>>,
    /// Held until the end of the flight; `None` where nobody gives one.
    pub lease: Option<Held>,
}

/// A lease that what is stored under its key is announced with.
pub(super) struct Held {
    fills: Arc<Fills>,
    hash: Hash,
    lease: std::sync::Weak<Lease>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut leases = self.fills.shared.leases.lock();
        if leases
            .get(&self.hash)
            .is_some_and(|lease| Arc::as_ptr(lease) == self.lease.as_ptr())
        {
            leases.remove(&self.hash);
        }
    }
}

/// The word on a key is on its way.
struct Speaking {
    fills: Arc<Fills>,
    hash: Hash,
}

impl Speaking {
    fn of(fills: &Arc<Fills>, hash: Hash) -> Speaking {
        fills.shared.speaking.lock().push(hash);
        Speaking {
            fills: Arc::clone(fills),
            hash,
        }
    }
}

impl Drop for Speaking {
    fn drop(&mut self) {
        let mut speaking = self.fills.shared.speaking.lock();
        if let Some(at) = speaking.iter().position(|hash| *hash == self.hash) {
            speaking.swap_remove(at);
        }
    }
}

/// What became of asking another node.
enum Joined {
    /// Whoever waited has an answer.
    Done,
    /// It knows nothing of it (any more): the fleet may know more by now.
    Ended,
    /// What it has cannot be passed on, or cannot be stored here: nothing is gained by waiting for it.
    Alone,
    /// It cannot be asked.
    NoWay,
}

/// What somebody else has, whole or growing.
struct Source {
    head: Head,
    life: Life,
    /// Where it is complete.
    finished: Option<Finished>,
    origin: Origin,
    /// Who sends it, if it is a node.
    node: Option<Node>,
}

/// What comes after a cut.
struct Rest {
    body: Body,
    node: Option<Node>,
    from_upstream: bool,
    held: Option<Held>,
}

impl Rest {
    fn of(body: Body, node: Option<Node>) -> Rest {
        Rest {
            body,
            node,
            from_upstream: false,
            held: None,
        }
    }
}

impl Shared {
    pub fn new(
        bucket: Option<Arc<Bucket>>,
        fleet: Option<Arc<Fleet>>,
        peers: Option<Peers>,
        read_flush: ReadFlush,
        unfinished: Option<Unfinished>,
    ) -> Self {
        let known = Known {
            of: Arc::default(),
            flushes: Vec::new(),
        };
        Shared {
            bucket,
            fleet,
            peers,
            read_flush,
            unfinished: unfinished.map(Arc::new),
            own_flushes: ArcSwap::default(),
            flushes: ArcSwap::from_pointee(known),
            leases: Mutex::default(),
            speaking: Mutex::default(),
        }
    }

    /// Shares with nobody.
    pub fn alone() -> Self {
        Shared::new(None, None, None, Box::new(|_| None), None)
    }

    /// Whether there is nothing but this node's own disk.
    pub fn is_alone(&self) -> bool {
        self.bucket.is_none() && self.fleet.is_none()
    }

    /// Notes on disk that a flush was begun here, or was made.
    pub(super) async fn note_flush(&self, flush: &Flush, begun: bool) {
        let Some(unfinished) = self.unfinished.clone() else {
            return;
        };
        let flush = flush.clone();
        let noting = tokio::task::spawn_blocking(move || match begun {
            true => unfinished.begin(&flush),
            false => unfinished.end(&flush),
        });
        // It fails only when the process ends.
        let _ = noting.await;
    }

    /// The flushes that an earlier process has begun and not made. Blocks, shortly.
    pub(super) fn begun_flushes(&self) -> Vec<Flush> {
        self.unfinished
            .as_ref()
            .map_or_else(Vec::new, |unfinished| unfinished.list())
    }

    /// Without Redis: what was flushed here is not brought back from the bucket.
    pub fn remember(&self, flush: Flush) {
        self.own_flushes.rcu(|flushes| {
            let mut flushes = Vec::clone(flushes);
            flushes.insert(0, flush.clone());
            flushes.truncate(MAX_OWN_FLUSHES);
            flushes
        });
    }

    /// Whether this node has still to say what it fetched under `hash`: until then the fleet's word is not on that.
    pub(super) fn is_to_speak(&self, hash: &Hash) -> bool {
        self.leases.lock().contains_key(hash) || self.speaking.lock().contains(hash)
    }

    /// What a flush asks for, if it can be understood.
    pub fn read_flush(&self, flush: &Flush) -> Option<(Covers, bool)> {
        (self.read_flush)(flush)
    }

    /// Whether what a word is said of was flushed since the fill that said it began: whoever has it may not have heard of
    /// that. Both times are Redis's.
    pub fn is_flushed_word(&self, key: &Key, record: &Record) -> bool {
        let began = Fence(record.generation).millis();
        self.flushed(key, began, began).is_some()
    }

    /// Whether what was stored at this time was flushed since, body and all.
    pub fn is_flushed(&self, key: &Key, stored_at: Millis) -> bool {
        self.flushed(key, stored_at, Millis::MAX) == Some(false)
    }

    /// Whether what was stored and checked at these times is flushed since: `Some(true)` where the body may still be
    /// revalidated.
    pub(super) fn flushed(&self, key: &Key, stored_at: Millis, checked_at: Millis) -> Option<bool> {
        let of = match &self.fleet {
            Some(fleet) => fleet.flushes(),
            None => self.own_flushes.load_full(),
        };
        if of.is_empty() {
            return None;
        }
        if !Arc::ptr_eq(&of, &self.flushes.load().of) {
            let read = |flush: &Flush| (self.read_flush)(flush).map(|(covers, expire)| (flush.at, covers, expire));
            let flushes = of.iter().filter_map(read).collect();
            self.flushes.store(Arc::new(Known { of, flushes }));
        }
        let mut only_expired = None;
        for (at, covers, expire) in &self.flushes.load().flushes {
            let moment = if *expire { checked_at } else { stored_at };
            if is_before(moment, *at) && covers(&key.text) {
                if !expire {
                    return Some(false);
                }
                only_expired = Some(true);
            }
        }
        only_expired
    }
}

/// Whether a record, or a copy, is fresh by today's policy.
fn is_fresh(wanted: &Wanted, life: Life) -> bool {
    let (class, checked_at, fresh_until) = life.parts();
    let left = Freshness::new(class, checked_at, fresh_until);
    left.verify(now_ms());
    left.left(wanted.policy.class, wanted.policy.ttl, now_ms()).is_fresh()
}

fn life(record: &Record) -> Life {
    Life {
        immutable: record.class == Class::Immutable,
        checked_at: record.checked_at,
        fresh_until: record.fresh_until,
    }
}

/// Reads what the bucket has, a part at a time; what S3 does not finish comes from wherever else it is, in the end from
/// upstream.
#[derive(Clone)]
struct InBucket {
    fills: Arc<Fills>,
    wanted: Wanted,
    copy: Copy,
}

impl std::fmt::Debug for InBucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InBucket")
            .field("copy", &self.copy)
            .finish_non_exhaustive()
    }
}

#[async_trait::async_trait]
impl Elsewhere for InBucket {
    async fn read(&self, start: u64, end: u64) -> io::Result<Incoming> {
        let begun = match &self.fills.shared.bucket {
            Some(bucket) => bucket.read(&self.copy, start, end).await.map_err(io::Error::other),
            None => Err(io::ErrorKind::Unsupported.into()),
        };
        let begun = begun.unwrap_or_else(|error| futures_util::stream::iter([Err(error)]).boxed());
        let reading = (self.clone(), begun, start, false);
        let pieces =
            futures_util::stream::try_unfold(reading, move |(body, mut pieces, at, mut taken_up)| async move {
                loop {
                    let failure = match pieces.next().await {
                        Some(Ok(piece)) => {
                            let at = at + piece.len() as u64;
                            return Ok(Some((piece, (body, pieces, at, taken_up))));
                        }
                        None if at >= end => return Ok(None),
                        None => io::ErrorKind::UnexpectedEof.into(),
                        Some(Err(error)) => error,
                    };
                    if std::mem::replace(&mut taken_up, true) {
                        return Err(failure);
                    }
                    pieces = body.rest(at, end, failure).await?;
                }
            });
        Ok(pieces.boxed())
    }
}

impl InBucket {
    async fn rest(&self, at: u64, end: u64, failure: io::Error) -> io::Result<Incoming> {
        let (fills, key) = (&self.fills, &self.wanted.key);
        fills.metrics.shared("taken_up");
        tracing::info!(key = %key.shown(), %failure, at, "a part of a body is taken up elsewhere");
        let Outcome::Object(again, _) = fills.obtain_aside(self.wanted.clone(), Method::GET).await else {
            return Err(failure);
        };
        if !self.is_body_of(&again) {
            tracing::warn!(key = %key.shown(), "upstream has another body by now: a transfer cannot go on");
            return Err(failure);
        }
        let pieces = futures_util::stream::try_unfold(Reader::range(again, at, end), |mut reader| async move {
            let piece = reader.next().await.map_err(io::Error::other)?;
            Ok::<_, io::Error>(piece.map(|piece| (piece, reader)))
        });
        Ok(pieces.boxed())
    }

    /// Whether the body of `object`, which may still grow, is the one that the bucket has.
    fn is_body_of(&self, object: &Object) -> bool {
        if let Some(identity) = object.identity() {
            return identity == self.copy.identity();
        }
        let (etag, old) = (object.head.etag(), self.copy.head.etag());
        let is_strong = etag.is_some_and(|etag| !etag.starts_with("W/"));
        object.length() == Some(self.copy.finished.length)
            && etag == old
            && (is_strong || self.wanted.policy.class == Class::Immutable)
    }
}

impl Fills {
    /// What only the bucket has, as an object whose body stays there: for a HEAD or a part of it, which need no copy of the
    /// whole here. `None` also where it is not fresh.
    pub async fn elsewhere(self: &Arc<Self>, wanted: &Wanted) -> Option<Arc<Object>> {
        if !wanted.key.is_shared() || wanted.is_set() || wanted.force {
            return None;
        }
        let (copy, record) = tokio::join!(self.find(wanted), self.word(wanted));
        let copy = copy?;
        let life = self.life_of(wanted, &copy, record.as_ref())?;
        is_fresh(wanted, life).then(|| {
            let (head, finished) = (copy.head.clone(), copy.finished);
            let body = InBucket {
                fills: Arc::clone(self),
                wanted: wanted.clone(),
                copy,
            };
            Object::elsewhere(wanted.key.clone(), head, finished, life.parts(), Arc::new(body))
        })
    }

    /// The fleet's word: `Err(())` where nobody can be asked.
    async fn word(&self, wanted: &Wanted) -> Result<Option<Record>, ()> {
        let fleet = self.shared.fleet.as_ref().ok_or(())?;
        fleet.look(&wanted.key).await.map(|seen| seen.record).map_err(|_| ())
    }

    /// How long a copy may be trusted. Of what is mutable only the fleet can tell, as long as it answers; `None`: it calls
    /// another body current, or none.
    fn life_of(&self, wanted: &Wanted, copy: &Copy, record: Result<&Option<Record>, &()>) -> Option<Life> {
        let own = Life {
            immutable: copy.class == Class::Immutable,
            checked_at: copy.checked_at,
            fresh_until: copy.fresh_until,
        };
        match record {
            Ok(Some(record)) if record.id == copy.identity() => {
                (!self.shared.is_flushed_word(&wanted.key, record)).then(|| life(record))
            }
            Ok(_) if wanted.policy.class == Class::Mutable => None,
            Ok(_) | Err(_) => Some(own),
        }
    }

    /// What the bucket holds that may be used for `wanted`.
    async fn find(&self, wanted: &Wanted) -> Option<Copy> {
        let bucket = self.shared.bucket.as_ref()?;
        let mut copy = bucket.find(&wanted.key).await.ok()??;
        match self.shared.flushed(&wanted.key, copy.head.stored_at, copy.checked_at) {
            None => {}
            Some(true) => copy.described.fresh_until = copy.fresh_until.min(copy.checked_at),
            Some(false) => {
                bucket.remove(&wanted.key);
                return None;
            }
        }
        match &wanted.expected {
            Some(Expected::Sha256(expected)) if *expected != copy.finished.sha256 => None,
            _ => Some(copy),
        }
    }

    /// Goes the way that the head of this file tells. `None`: whoever waited has been answered.
    pub(super) async fn share(
        self: &Arc<Self>,
        wanted: &Wanted,
        landing: &mut Option<Landing<'_>>,
        mut previous: Option<Arc<Object>>,
    ) -> Option<Turn> {
        let key = &wanted.key;
        if self.shared.is_alone() || !key.is_shared() {
            return Some(Turn { previous, lease: None });
        }
        // As long as one waits for upstream's own first byte.
        let patience = Instant::now() + wanted.remote().timeouts.first_byte;
        let (mut news, mut refused) = (0, 0);
        loop {
            let find = async {
                match previous {
                    None => self.find(wanted).await,
                    Some(_) => None,
                }
            };
            let look = async {
                match &self.shared.fleet {
                    Some(fleet) => fleet.look(key).await.ok(),
                    None => None,
                }
            };
            let (copy, seen) = tokio::join!(find, look);
            let alone = seen.is_none();
            let (record, holder) = seen.map_or((None, None), |seen| (seen.record, seen.holder));

            if let Some(holder) = holder.filter(|node| !self.is_me(node)) {
                match self
                    .join_node(wanted, landing, &holder, previous.as_ref())
                    .boxed()
                    .await
                {
                    Joined::Done => return None,
                    // Its fill may have ended just now.
                    Joined::Ended if refused < MAX_REFUSALS => {
                        refused += 1;
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                    Joined::NoWay if Instant::now() < patience && self.may_wait(&holder) => {
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                    Joined::Ended | Joined::NoWay | Joined::Alone => return Some(Turn { previous, lease: None }),
                }
            }

            let record = record.filter(|record| !self.shared.is_flushed_word(key, record));
            match record {
                Some(record) if is_fresh(wanted, life(&record)) && !wanted.force => {
                    let turn = (&record, copy, previous.as_ref());
                    match self.by_word(wanted, landing, turn).boxed().await {
                        Joined::Done => return None,
                        // It is on its way into the bucket.
                        Joined::NoWay if Instant::now() < patience && self.will_be_in_bucket(&record) => {
                            tokio::time::sleep(PAUSE).await;
                            continue;
                        }
                        _ => {}
                    }
                }
                // What is here is older than what the fleet knows last; upstream is asked about the latter.
                Some(record) if previous.as_ref().and_then(|stored| stored.identity()) != Some(record.id) => {
                    let copy = match copy {
                        Some(copy) => Some(copy),
                        None => self.find(wanted).await,
                    };
                    if let Some(copy) = copy.filter(|copy| copy.identity() == record.id) {
                        previous = self.bring_back(wanted, copy).boxed().await.or(previous);
                    }
                }
                _ => {
                    if let Some(copy) = copy {
                        match self.life_of(wanted, &copy, if alone { Err(&()) } else { Ok(&None) }) {
                            Some(life) if is_fresh(wanted, life) && !wanted.force => {
                                if self.bring(wanted, landing, copy, life, None).boxed().await {
                                    return None;
                                }
                            }
                            // It is expired: upstream may say that it is still right, or not answer.
                            _ => previous = self.bring_back(wanted, copy).boxed().await,
                        }
                    }
                }
            }

            let Some(fleet) = self.shared.fleet.as_ref().filter(|_| !wanted.remote().offline) else {
                return Some(Turn { previous, lease: None });
            };
            match fleet.take(key).await {
                Ok(Take::Mine(lease)) => {
                    if news < MAX_NEWS && self.has_news(wanted, fleet, previous.as_ref()).await {
                        // Somebody was faster between the look and now.
                        news += 1;
                        continue;
                    }
                    let lease = Some(self.hold(key, lease));
                    return Some(Turn { previous, lease });
                }
                Ok(Take::Theirs(node)) if !self.is_me(&node) && Instant::now() < patience => {
                    tokio::time::sleep(PAUSE / 10).await;
                }
                Ok(Take::Theirs(_)) | Err(_) => return Some(Turn { previous, lease: None }),
            }
        }
    }

    /// Brings what the fleet's word calls current from where it is.
    async fn by_word(
        self: &Arc<Self>,
        wanted: &Wanted,
        landing: &mut Option<Landing<'_>>,
        (record, copy, previous): (&Record, Option<Copy>, Option<&Arc<Object>>),
    ) -> Joined {
        if let Some(stored) = previous.filter(|stored| stored.identity() == Some(record.id)) {
            self.trust(wanted, stored, life(record)).await;
            publish(landing, Outcome::Object(Arc::clone(stored), How::Found));
            return Joined::Done;
        }
        let copy = match (copy, previous) {
            (None, Some(_)) => self.find(wanted).await,
            (copy, _) => copy,
        };
        if let Some(copy) = copy.filter(|copy| copy.identity() == record.id)
            && self.bring(wanted, landing, copy, life(record), previous).boxed().await
        {
            return Joined::Done;
        }
        self.join_node(wanted, landing, &record.node, previous).boxed().await
    }

    /// What is stored is fresh for as long as others say.
    pub(super) async fn trust(self: &Arc<Self>, wanted: &Wanted, stored: &Arc<Object>, life: Life) {
        let (class, checked_at, fresh_until) = life.parts();
        self.store.refresh(stored, class, checked_at, fresh_until).await;
        self.catalog.record(record::refreshed(stored));
        self.verify_later(wanted, stored);
    }

    fn is_me(&self, node: &Node) -> bool {
        self.shared.fleet.as_ref().is_some_and(|fleet| fleet.me() == node)
    }

    fn hold(self: &Arc<Self>, key: &Key, lease: Lease) -> Held {
        let lease = Arc::new(lease);
        let held = Held {
            fills: Arc::clone(self),
            hash: key.hash,
            lease: Arc::downgrade(&lease),
        };
        self.shared.leases.lock().insert(key.hash, lease);
        held
    }

    /// Whether a fresh body that cannot be read from its node is about to be in the bucket.
    fn will_be_in_bucket(&self, record: &Record) -> bool {
        let is_open = self
            .shared
            .bucket
            .as_ref()
            .is_some_and(|bucket| bucket.breaker().is_closed());
        let is_young = now_ms().saturating_sub(record.checked_at) < UPLOAD_MS;
        is_open && is_young && !record.in_bucket && !self.can_ask(&record.node) && !self.is_me(&record.node)
    }

    /// Whether the fleet has a fresh body that this flight did not see.
    async fn has_news(&self, wanted: &Wanted, fleet: &Fleet, previous: Option<&Arc<Object>>) -> bool {
        let Ok(seen) = fleet.look(&wanted.key).await else {
            return false;
        };
        seen.record.is_some_and(|record| {
            is_fresh(wanted, life(&record))
                && !wanted.force
                && previous.and_then(|stored| stored.identity()) != Some(record.id)
                && now_ms().saturating_sub(record.checked_at) < LATELY_MS
        })
    }

    /// Whether what `holder` fills can be had later, though it cannot be read from there.
    fn may_wait(&self, holder: &Node) -> bool {
        let in_bucket = self
            .shared
            .bucket
            .as_ref()
            .is_some_and(|bucket| bucket.breaker().is_closed());
        in_bucket || self.can_ask(holder)
    }

    fn can_ask(&self, node: &Node) -> bool {
        self.shared.peers.is_some() && node.url.is_some()
    }

    /// Asks `node` for what it fills, or has.
    async fn join_node(
        self: &Arc<Self>,
        wanted: &Wanted,
        landing: &mut Option<Landing<'_>>,
        node: &Node,
        previous: Option<&Arc<Object>>,
    ) -> Joined {
        if self.is_me(node) || !self.can_ask(node) {
            return Joined::NoWay;
        }
        let have = previous.and_then(|stored| stored.identity());
        let (reply, body) = match self.ask(&wanted.key, node, 0, have).boxed().await {
            Ok(answered) => answered,
            Err(error) => {
                tracing::debug!(node = ?node.url, %error, key = %wanted.key.shown(), "another node cannot be asked");
                return Joined::NoWay;
            }
        };
        match reply {
            Reply::Object {
                head,
                life,
                finished,
                fetched,
            } => {
                // That node has not heard of the flush yet.
                let flushed = self.shared.flushed(&wanted.key, head.stored_at, life.checked_at);
                if flushed.is_some() {
                    return Joined::Ended;
                }
                let how = if fetched { How::Fetched } else { How::Restored };
                let source = Source {
                    head: *head,
                    life,
                    finished: finished.map(|(length, sha256)| Finished { length, sha256 }),
                    origin: Origin::Node,
                    node: Some(node.clone()),
                };
                match self
                    .take_in(wanted, landing, (source, body), how, previous)
                    .boxed()
                    .await
                {
                    true => Joined::Done,
                    false => Joined::Alone,
                }
            }
            Reply::Same(life) => match previous {
                Some(stored) => {
                    self.trust(wanted, stored, life).await;
                    publish(landing, Outcome::Object(Arc::clone(stored), How::Found));
                    Joined::Done
                }
                None => Joined::Ended,
            },
            Reply::Nothing => Joined::Ended,
            // One attempt in vain is enough for those who have something to serve.
            Reply::Unreachable if previous.is_some() => {
                if let Some(previous) = previous {
                    publish(landing, self.stale(wanted, previous, None).await);
                }
                Joined::Done
            }
            Reply::Unreachable | Reply::Yours => Joined::Alone,
            // It is not the one that is known by this URL.
            Reply::Node { .. } => Joined::NoWay,
            answer @ Reply::Answer { .. } => match answer.into_answer() {
                Some(answer) => {
                    // What is gone, the node that asked upstream has told the bucket and the others.
                    let (outcome, _) = self.after_answer(wanted, previous, answer).await;
                    publish(landing, outcome);
                    Joined::Done
                }
                None => Joined::Alone,
            },
        }
    }

    /// Asks `node`, and goes on waiting as long as it lives.
    async fn ask(&self, key: &Key, node: &Node, from: u64, have: Option<u64>) -> io::Result<(Reply, Body)> {
        let (Some(peers), Some(url)) = (&self.shared.peers, &node.url) else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let question = Question {
            key: key.clone(),
            from,
            have,
        };
        self.while_it_lives(key, node, peers.ask(url, &question)).await?
    }

    /// Waits for `work`, which depends on `node`, until it has been silent for a while and does not hold the lock of `key`
    /// any more.
    async fn while_it_lives<T>(&self, key: &Key, node: &Node, work: impl Future<Output = T>) -> io::Result<T> {
        tokio::pin!(work);
        let until = Instant::now() + SILENCE;
        loop {
            if let Ok(done) = tokio::time::timeout(STALL, &mut work).await {
                return Ok(done);
            }
            let holds = match &self.shared.fleet {
                Some(fleet) => fleet
                    .look(key)
                    .await
                    .map_or(true, |seen| seen.holder.as_ref() == Some(node)),
                None => false,
            };
            if !holds || Instant::now() > until {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the other node is silent"));
            }
        }
    }

    /// Brings a fresh copy out of the bucket.
    async fn bring(
        self: &Arc<Self>,
        wanted: &Wanted,
        landing: &mut Option<Landing<'_>>,
        copy: Copy,
        life: Life,
        previous: Option<&Arc<Object>>,
    ) -> bool {
        let Some(source) = self.open_copy(copy, life).await else {
            return false;
        };
        self.take_in(wanted, landing, source, How::Restored, previous)
            .boxed()
            .await
    }

    async fn open_copy(&self, copy: Copy, life: Life) -> Option<(Source, Body)> {
        let bucket = self.shared.bucket.as_ref()?;
        let body = match copy.finished.length {
            0 => futures_util::stream::empty().boxed(),
            length => bucket.read(&copy, 0, length).await.ok()?,
        };
        let source = Source {
            head: copy.described.head,
            life,
            finished: Some(copy.described.finished),
            origin: Origin::Bucket,
            node: None,
        };
        let whole = source.finished;
        Some((source, Body::new(body, whole)))
    }

    /// Makes the body of `source` grow here and lets everybody read it meanwhile. `false`: nothing came of it, and nobody
    /// has been answered.
    async fn take_in(
        self: &Arc<Self>,
        wanted: &Wanted,
        landing: &mut Option<Landing<'_>>,
        (source, body): (Source, Body),
        how: How,
        previous: Option<&Arc<Object>>,
    ) -> bool {
        if wanted.is_set() {
            return self
                .take_in_set(wanted, landing, (source, body), previous)
                .boxed()
                .await;
        }
        let Ok(writer) = self.writer_for(wanted, &wanted.key, &source, previous).await else {
            return false;
        };
        let growing = Arc::clone(writer.object());
        if !self.passes_flushes(&growing) {
            return false;
        }
        self.metrics.shared(match source.origin {
            Origin::Bucket => "bucket",
            Origin::Node | Origin::Upstream => "node",
        });
        publish(landing, Outcome::Object(growing, how));
        let kept = self.copy_in(wanted, writer, source, body).boxed().await;
        if let Some(object) = kept {
            self.verify(wanted, &object).await;
        }
        true
    }

    /// A manifest is shown only when the files that it names here are verified.
    async fn take_in_set(
        self: &Arc<Self>,
        wanted: &Wanted,
        landing: &mut Option<Landing<'_>>,
        (source, body): (Source, Body),
        previous: Option<&Arc<Object>>,
    ) -> bool {
        let Purpose::Set(members) = wanted.purpose else {
            return false;
        };
        let aside = wanted.key.aside(Aside::Arriving);
        let life = source.life;
        let Ok(writer) = self.writer_for(wanted, &aside, &source, None).await else {
            return false;
        };
        let arrived = Arc::clone(writer.object());
        if self
            .shared
            .flushed(&wanted.key, arrived.head.stored_at, life.checked_at)
            .is_some()
        {
            return false;
        }
        let whole = self.copy_in(wanted, writer, source, body).boxed().await;
        if whole.is_none() && !arrived.is_complete() {
            return false;
        }
        if let Some(landing) = landing.take() {
            self.admit_set(wanted, members, previous.cloned(), arrived, Some(life), landing)
                .await;
        }
        if let Some(shown) = self.store.stored(&wanted.key).await {
            self.verify(wanted, &shown).await;
        }
        true
    }

    /// Holds what begins to grow against the flushes that are known by now: whoever flushes from now on sees it grow.
    fn passes_flushes(&self, growing: &Arc<Object>) -> bool {
        let fresh = &growing.fresh;
        match self
            .shared
            .flushed(&growing.key, growing.head.stored_at, fresh.checked_at())
        {
            None => true,
            Some(true) => {
                fresh.expire(fresh.checked_at());
                true
            }
            Some(false) => {
                growing.doom();
                false
            }
        }
    }

    async fn writer_for(
        &self,
        wanted: &Wanted,
        key: &Key,
        source: &Source,
        previous: Option<&Arc<Object>>,
    ) -> Result<Writer, crate::cache::NoSpace> {
        let expected = match (&wanted.expected, source.finished) {
            (Some(expected), _) => Some(expected.clone()),
            (None, Some(finished)) => Some(Expected::Sha256(finished.sha256)),
            (None, None) => None,
        };
        let mut head = source.head.clone();
        if let Some(finished) = source.finished {
            head.content_length = Some(finished.length);
        }
        let particulars = (source.life.parts(), source.origin);
        self.store
            .restore(key.clone(), head, particulars, previous.cloned(), expected)
            .await
    }

    /// Writes what comes; what is cut is taken up elsewhere. What is kept, if it was kept.
    async fn copy_in(
        self: &Arc<Self>,
        wanted: &Wanted,
        mut writer: Writer,
        source: Source,
        mut body: Body,
    ) -> Option<Arc<Object>> {
        let growing = Arc::clone(writer.object());
        if source.finished.is_none() {
            writer.hold_back();
        }
        let mut written = 0_u64;
        let whole = source
            .finished
            .map(|finished| finished.length)
            .or(growing.head.content_length);
        let (mut node, mut from_upstream, mut hand_overs, mut reached) = (source.node, false, 0, None);
        // A lease of one's own is held to the end.
        let mut held = None;
        loop {
            let next = body.pieces.next();
            let piece = match &node {
                Some(node) => self.while_it_lives(&wanted.key, node, next).await,
                None => tokio::time::timeout(SILENCE, next).await.map_err(io::Error::from),
            };
            let failure = match piece {
                Ok(Some(Ok(piece))) => {
                    written += piece.len() as u64;
                    if let Err(error) = writer.write(piece).await {
                        tracing::warn!(key = %growing.key.shown(), %error, "what another node or the bucket has cannot be stored");
                        return None;
                    }
                    continue;
                }
                Ok(None) if whole.is_none_or(|whole| whole == written) => break,
                Ok(None) => io::ErrorKind::UnexpectedEof.into(),
                Ok(Some(Err(error))) | Err(error) => error,
            };
            self.metrics.shared("taken_up");
            tracing::info!(key = %growing.key.shown(), %failure, written, "a body is taken up elsewhere");
            hand_overs += 1;
            if hand_overs > MAX_HAND_OVERS || from_upstream {
                return None;
            }
            // Whoever stopped at this very byte before will stop again.
            let is_stuck = reached.replace(written) == Some(written);
            let rest = self
                .rest_of(wanted, &growing, (source.finished, written, is_stuck), writer.held())
                .boxed()
                .await?;
            body = rest.body;
            (node, from_upstream, held) = (rest.node, rest.from_upstream, rest.held.or(held));
        }
        if from_upstream {
            growing.take_over();
        }
        if let Some(whole) = body.whole.get() {
            writer.expect(Expected::Sha256(whole.sha256));
        }
        let finish = writer.finish().await;
        drop(held);
        match finish {
            Finish::Admitted(object) => {
                // What arrives aside is nobody's yet.
                match record::stored(&object, object.fresh.class()).filter(|_| object.key.is_shared()) {
                    Some(_) if from_upstream => self.note_stored(&object, wanted.policy.class),
                    Some(event) => self.note_listed(&object, event),
                    None => {}
                }
                Some(object)
            }
            Finish::Same(object) => {
                self.catalog.record(record::refreshed(&object));
                Some(object)
            }
            Finish::Dropped => None,
            Finish::Failed(reason) | Finish::Wrong(reason) => {
                self.metrics.fill_failed();
                tracing::warn!(key = %growing.key.shown(), %reason, "what another node or the bucket has is of no use");
                if source.origin == Origin::Bucket
                    && let Some(bucket) = &self.shared.bucket
                {
                    bucket.remove(&wanted.key);
                }
                None
            }
        }
    }

    /// The rest of a body of which `written` bytes are there: from the bucket or a node that has the very same, or, with the
    /// fill lock, from upstream.
    async fn rest_of(
        self: &Arc<Self>,
        wanted: &Wanted,
        growing: &Arc<Object>,
        (finished, written, is_stuck): (Option<Finished>, u64, bool),
        held: bytes::Bytes,
    ) -> Option<Rest> {
        let until = Instant::now() + HAND_OVER;
        let mut lease_held = None;
        while Instant::now() < until && !is_stuck {
            let copy = self.find(wanted).await;
            let same = copy.filter(|copy| match finished {
                Some(finished) => copy.identity() == identity(&finished, growing.head.stands_for.as_ref()),
                None => is_same_fill(&copy.head, &growing.head),
            });
            if let (Some(copy), Some(bucket)) = (same, &self.shared.bucket)
                && let Ok(body) = bucket.read(&copy, written, copy.finished.length).await
            {
                return Some(Rest::of(Body::new(body, Some(copy.finished)), None));
            }
            let Some(fleet) = &self.shared.fleet else { break };
            let Ok(seen) = fleet.look(&wanted.key).await else { break };
            let nodes = seen.holder.into_iter().chain(seen.record.map(|record| record.node));
            for node in nodes.filter(|node| !self.is_me(node)) {
                if let Ok((Reply::Object { head, .. }, body)) =
                    self.ask(&wanted.key, &node, written, None).boxed().await
                    && is_same_fill(&head, &growing.head)
                {
                    return Some(Rest::of(body, Some(node)));
                }
            }
            match fleet.take(&wanted.key).await {
                Ok(Take::Mine(lease)) => {
                    lease_held = Some(self.hold(&wanted.key, lease));
                    break;
                }
                Ok(Take::Theirs(node)) if !self.is_me(&node) => tokio::time::sleep(PAUSE).await,
                Ok(Take::Theirs(_)) | Err(_) => break,
            }
        }
        let body = self.rest_from_upstream(wanted, growing, written, held).boxed().await?;
        Some(Rest {
            body: Body::new(body, None),
            node: None,
            from_upstream: true,
            held: lease_held,
        })
    }

    /// Fetches the whole again, aside, and hands on what comes after `written`; what came before, of which `held` was not
    /// shown yet, has to be the same.
    async fn rest_from_upstream(
        self: &Arc<Self>,
        wanted: &Wanted,
        growing: &Arc<Object>,
        written: u64,
        mut held: bytes::Bytes,
    ) -> Option<Incoming> {
        let mut aside = wanted.aside(Aside::Rest);
        aside.policy.conditional = false;
        let hash = aside.key.hash;
        let Outcome::Object(again, How::Fetched) = self.obtain_aside(aside, Method::GET).await else {
            return None;
        };
        let has_other_length = again
            .length()
            .is_some_and(|length| growing.length().is_some_and(|whole| whole != length));
        if has_other_length || !is_same_version(&again.head, &growing.head) {
            return None;
        }
        // Of a body with a known digest the last piece is neither shown nor held: the digest will tell.
        let shown = growing.progress().visible.min(written);
        let known = shown + held.len() as u64;
        let mut old = Reader::range(Arc::clone(growing), 0, shown);
        let mut new = Reader::range(Arc::clone(&again), 0, known);
        let (mut left, mut right) = (bytes::Bytes::new(), bytes::Bytes::new());
        let mut compared = 0;
        while compared < known {
            if left.is_empty() {
                left = match compared < shown {
                    true => old.next().await.ok()??,
                    false => std::mem::take(&mut held),
                };
            }
            if right.is_empty() {
                right = tokio::time::timeout(SILENCE, new.next()).await.ok()?.ok()??;
            }
            let length = left.len().min(right.len());
            if left.split_to(length) != right.split_to(length) {
                tracing::warn!(key = %wanted.key.shown(), "upstream has another body by now: a transfer cannot go on");
                return None;
            }
            compared += length as u64;
        }
        let store = self.store;
        let rest = futures_util::stream::unfold(
            Some(Reader::range(again, written, u64::MAX)),
            move |reader| async move {
                let mut reader = reader?;
                match reader.next().await {
                    Ok(Some(piece)) => Some((Ok(piece), Some(reader))),
                    Ok(None) => {
                        store.remove(hash).await;
                        None
                    }
                    Err(error) => Some((Err(io::Error::other(error)), None)),
                }
            },
        );
        Some(rest.boxed())
    }

    /// [`Fills::verify`], behind the answer.
    fn verify_later(self: &Arc<Self>, wanted: &Wanted, object: &Arc<Object>) {
        let (fills, wanted, object) = (Arc::clone(self), wanted.clone(), Arc::clone(object));
        tokio::spawn(async move { fills.verify(&wanted, &object).await });
    }

    /// What others said of an object was acted on, and they may have said something newer meanwhile.
    async fn verify(&self, wanted: &Wanted, object: &Arc<Object>) {
        if wanted.policy.class == Class::Immutable {
            return;
        }
        let record = self.word(wanted).await.ok().flatten();
        if let Some(record) = record.filter(|record| !self.shared.is_flushed_word(&wanted.key, record)) {
            let hash = object.key.hash;
            let store = self.store;
            let parts = life(&record).parts();
            let _ = tokio::task::spawn_blocking(move || store.adopt(&hash, record.id, parts)).await;
        }
    }

    /// Brings an expired copy out of the bucket, whole, out of sight: for upstream to say whether it is still right.
    async fn bring_back(self: &Arc<Self>, wanted: &Wanted, copy: Copy) -> Option<Arc<Object>> {
        if copy.finished.length > MAX_BROUGHT_BACK {
            return None;
        }
        let life = Life {
            immutable: copy.class == Class::Immutable,
            checked_at: copy.checked_at,
            fresh_until: copy.fresh_until.min(now_ms()),
        };
        let (source, mut body) = self.open_copy(copy, life).await?;
        let particulars = (life.parts(), Origin::Bucket);
        let expected = source.finished.map(|finished| Expected::Sha256(finished.sha256));
        let hidden = self
            .store
            .restore_hidden(wanted.key.clone(), source.head, particulars, expected);
        let mut writer = hidden.await.ok()?;
        while let Ok(Some(piece)) = tokio::time::timeout(SILENCE, body.pieces.next()).await {
            writer.write(piece.ok()?).await.ok()?;
        }
        let Finish::Admitted(object) = writer.finish().await else {
            return None;
        };
        // A flush does not see what is hidden.
        if self.shared.is_flushed(&object.key, object.head.stored_at) {
            self.store.remove(object.key.hash).await;
            return None;
        }
        if let Some(event) = record::stored(&object, object.fresh.class()) {
            self.note_listed(&object, event);
        }
        Some(object)
    }

    /// Tells the catalogue and the other nodes what was stored here.
    pub(super) fn note_stored(self: &Arc<Self>, object: &Arc<Object>, class: Class) {
        if let Some(event) = record::stored(object, class) {
            self.note_listed(object, event);
        }
        self.announce(object);
    }

    /// Tells the catalogue what was stored here. A flush that came between that and this has not found it listed, and it grew
    /// no more.
    pub(super) fn note_listed(self: &Arc<Self>, object: &Arc<Object>, event: Event) {
        self.catalog.record(event);
        let (stored_at, checked_at) = (object.head.stored_at, object.fresh.checked_at());
        let Some(only_expired) = self.shared.flushed(&object.key, stored_at, checked_at) else {
            return;
        };
        if only_expired && object.fresh.fresh_until() <= now_ms() {
            return;
        }
        let (fills, key) = (Arc::clone(self), object.key.clone());
        tokio::spawn(async move {
            if only_expired {
                fills.store.expire(key.hash).await;
                return;
            }
            fills.store.remove(key.hash).await;
            fills.catalog.record(record::removed(&key));
        });
    }

    /// Tells the catalogue and the other nodes that what is stored here is still right.
    pub(super) fn note_refreshed(self: &Arc<Self>, object: &Arc<Object>) {
        self.catalog.record(record::refreshed(object));
        self.announce(object);
    }

    /// It may not be upstream's any more: it is asked about by whoever needs it next, on every node.
    pub async fn note_doubt(&self, key: &Key) -> bool {
        if let Some(fleet) = self.shared.fleet.as_ref().filter(|_| key.is_shared()) {
            fleet.expired(key);
        }
        self.store.expire(key.hash).await
    }

    /// Tells the catalogue, the bucket and the other nodes that an object is gone upstream.
    pub(super) fn note_removed(&self, key: &Key) {
        self.catalog.record(record::removed(key));
        if let Some(bucket) = self.shared.bucket.as_ref().filter(|_| key.is_shared()) {
            bucket.remove(key);
        }
        if let Some(fleet) = self.shared.fleet.as_ref().filter(|_| key.is_shared()) {
            fleet.removed(key);
        }
    }

    /// Another node published what it fetched under the lock `fence`. If that is a later one than this node's, whose fill of
    /// the same key still goes on, this one's is outdated: whoever reads it may end, and nobody else begins.
    pub(super) fn outrun(&self, hash: &Hash, fence: u64) {
        let lease = self.shared.leases.lock().get(hash).cloned();
        if lease.is_some_and(|lease| lease.fence().0 < fence) {
            self.store.forsake(hash);
        }
    }

    /// A fill whose object was flushed while it grew is in nobody's way any more.
    pub(super) fn release(&self, hash: &Hash) {
        self.shared.leases.lock().remove(hash);
    }

    fn announce(self: &Arc<Self>, object: &Arc<Object>) {
        let (Some(fleet), Some(id)) = (&self.shared.fleet, object.identity()) else {
            return;
        };
        if !object.key.is_shared() {
            return;
        }
        let speaking = Speaking::of(self, object.key.hash);
        // Taken now: the flight may let go of it before the word is out.
        let lease = self.shared.leases.lock().get(&object.key.hash).cloned();
        let (fills, fleet, object) = (Arc::clone(self), Arc::clone(fleet), Arc::clone(object));
        tokio::spawn(async move {
            let word = Record {
                id,
                class: object.fresh.class(),
                checked_at: object.fresh.checked_at(),
                fresh_until: object.fresh.fresh_until(),
                etag: object.head.etag().map(str::to_owned),
                generation: 0,
                node: fleet.me().clone(),
                in_bucket: false,
            };
            let lease = match lease {
                Some(lease) => Some(lease),
                None => match fleet.take(&object.key).await {
                    Ok(Take::Mine(lease)) => Some(Arc::new(lease)),
                    // Its word will be newer.
                    Ok(Take::Theirs(node)) if node != *fleet.me() => return,
                    Ok(Take::Theirs(_)) | Err(_) => None,
                },
            };
            let fence = lease.as_ref().map_or_else(|| fleet.fence(), |lease| lease.fence());
            let published = fleet.publish(&object.key, &word, fence).await;
            drop(speaking);
            if let Published::Outdated(newer) = published {
                tracing::info!(key = %object.key.shown(), "another node has fetched this since: what is stored here is outdated");
                let (store, hash) = (fills.store, object.key.hash);
                let _ = tokio::task::spawn_blocking(move || match newer {
                    Some(newer) => store.adopt(&hash, newer.id, life(&newer).parts()),
                    None => drop(store.expire_stored(&hash, now_ms())),
                })
                .await;
            }
        });
    }
}

/// Upstream says the same of both bodies.
fn is_same_version(a: &Head, b: &Head) -> bool {
    (a.etag(), a.last_modified(), a.content_encoding()) == (b.etag(), b.last_modified(), b.content_encoding())
}

/// Two nodes read what one fetched: then all that came before the body is the same, to the millisecond.
fn is_same_fill(a: &Head, b: &Head) -> bool {
    a.url == b.url && a.stored_at == b.stored_at && a.headers == b.headers
}

fn publish(landing: &mut Option<Landing<'_>>, outcome: Outcome) {
    if let Some(landing) = landing.take() {
        landing.publish(outcome);
    }
}
