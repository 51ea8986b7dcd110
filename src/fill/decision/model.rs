//! A model of three nodes, Redis, the bucket and upstream, for one mutable key, with a clock of its own. Random orders of events
//! run over it, and what must never be is looked for after each.
//!
//! What nodes decide is decided by the functions that they use: [`plan`] over [`Known::by`], [`is_news`], [`judge`],
//! [`adoption`], [`Freshness`]. What the scripts in Redis (`fleet/publish.rs`, `fleet/lock.rs`), the store and the network do is
//! written down here once more, no further than one key needs it: no refusals, no uploads that are cut, no clocks that differ.

mod flight;
mod orders;
mod shared;

use std::time::Duration;

use super::*;
use crate::cache::{Adoption, adoption, was_before};
use crate::fill::ledger::judge;
use crate::fleet::{Fence, Node as Named};
use crate::policy::Basis;

const NODES: usize = 3;
const TTL: Millis = 60_000;
/// A lock that is not renewed.
const LEASE: Millis = 4_000;
/// What an answer of upstream's is waited for.
const FIRST_BYTE: Millis = 30_000;
/// Between two looks.
const PAUSE: Millis = 100;
const POLICY: Policy = Policy {
    class: Class::Mutable,
    basis: Basis::BuiltIn,
    ttl: Duration::from_millis(TTL),
    conditional: true,
};

#[derive(Debug, Clone)]
enum Event {
    /// A client asks this node.
    Ask(usize),
    /// Upstream has something newer.
    Publish,
    /// Upstream answers this node: 304, or the beginning of a body.
    Answer(usize),
    /// Upstream fails this node.
    Fail(usize),
    /// The body that grows on this node comes to its end.
    End(usize),
    /// This node hears the next news.
    Hear(usize),
    /// This node begins an upload, or ends the one that it began.
    Upload(usize),
    /// The node is asked to flush the key.
    Flush(usize, Mode),
    /// Space is made on this node.
    Evict(usize),
    /// The node stands still, or goes on.
    Pause(usize),
    /// The node is killed, or started again.
    Die(usize, Disk),
    /// Redis goes away, or comes back.
    Redis(Data),
    /// The bucket goes away, or comes back.
    Bucket,
    Pass(Millis),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    Expire,
    Delete,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Disk {
    Kept,
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Data {
    Kept,
    Lost,
}

/// A body, on some node or in the bucket.
#[derive(Debug, Clone, Copy)]
struct Stored {
    /// Which of upstream's it is: the identity, too.
    version: u64,
    /// Of this body on this node.
    id: u64,
    stored_at: Millis,
    checked_at: Millis,
    fresh_until: Millis,
    verified_at: Millis,
    /// When upstream last said anything, or failed, to a question about it.
    asked_at: Millis,
}

impl Stored {
    fn life(&self) -> Life {
        Life {
            immutable: false,
            checked_at: self.checked_at,
            fresh_until: self.fresh_until,
        }
    }

    fn trust(&mut self, life: Life, now: Millis) {
        (_, self.checked_at, self.fresh_until) = life.parts();
        self.verified_at = now;
    }

    fn expire(&mut self, at: Millis) {
        self.fresh_until = self.fresh_until.min(at);
    }
}

/// A question.
#[derive(Debug, Clone, Copy)]
struct Waiter {
    since: Millis,
    /// How many flushes its node knew then.
    flushes: usize,
}

#[derive(Debug)]
struct Flight {
    waiters: Vec<Waiter>,
    previous: Option<Stored>,
    stage: Stage,
    patience: Millis,
    /// Not before this it looks again.
    again: Millis,
    refused: u32,
    news: u32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    Looking,
    /// Another node's flight is waited for.
    Joined(usize),
    /// Upstream is asked since then.
    Asking(Millis),
}

#[derive(Debug, Clone, Copy)]
struct Growing {
    body: Stored,
    from: Option<usize>,
    /// Nobody else could be waited for.
    is_alone: bool,
}

#[derive(Debug, Default)]
struct Server {
    name: u64,
    is_dead: bool,
    is_paused: bool,
    /// Redis answers it, and it has heard what it missed.
    is_connected: bool,
    stored: Option<Stored>,
    growing: Option<Growing>,
    flight: Option<Flight>,
    lease: Option<u64>,
    /// When and how, in the order in which it heard of them.
    flushes: Vec<(Millis, Mode)>,
    unsent_flushes: Vec<(Millis, Mode)>,
    outbox: Vec<Word>,
    heard: usize,
    epoch: u64,
    distrusted: Millis,
    is_queued: bool,
    uploading: Option<Stored>,
    /// The newest version that clients got here.
    served: u64,
}

impl Server {
    fn is_up(&self) -> bool {
        !self.is_dead && !self.is_paused
    }

    fn judge(&self, stored_at: Millis, checked_at: Millis, now: Millis) -> Option<bool> {
        let flushes = self.flushes.iter().map(|(at, mode)| (*at, *mode == Mode::Expire, ()));
        judge(flushes, |()| true, (stored_at, checked_at), now)
    }

    fn is_flushed_word(&self, word: &Word, now: Millis) -> bool {
        let began = word.began();
        self.judge(began, began, now).is_some()
    }

    fn is_fresh(&self, body: &Stored, now: Millis) -> bool {
        let fresh = Freshness::new(Class::Mutable, body.checked_at, body.fresh_until);
        fresh.verify(body.verified_at);
        fresh
            .left_since(self.distrusted, (POLICY.class, POLICY.ttl), now)
            .is_fresh()
    }

    fn adopt(&mut self, word: &Word, now: Millis) {
        let Some(stored) = &mut self.stored else { return };
        match adoption((stored.version, stored.checked_at), (word.id, word.checked_at)) {
            Adoption::Expired => stored.expire(now),
            Adoption::Trusted => stored.trust(Life::said_by(word), now),
            Adoption::Known => {}
        }
    }

    /// What was read or refreshed is still what is stored.
    fn put_back(&mut self, body: Stored) {
        if self.stored.is_some_and(|stored| stored.id == body.id) {
            self.stored = Some(body);
        }
    }
}

#[derive(Debug, Clone)]
enum News {
    Changed(Word),
    Flushed(Millis, Mode),
    Reupload(u64),
}

#[derive(Debug, Default)]
struct Redis {
    is_away: bool,
    epoch: u64,
    word: Option<Word>,
    /// Who, under which fence, until when.
    lock: Option<(usize, u64, Millis)>,
    flushes: Vec<(Millis, Mode)>,
    log: Vec<(usize, News)>,
}

struct World {
    now: Millis,
    /// Of bodies and processes.
    count: u64,
    last_fence: u64,
    upstream: u64,
    /// When upstream got each version but the first.
    published: Vec<Millis>,
    nodes: Vec<Server>,
    redis: Redis,
    is_bucket_away: bool,
    bucket: Option<Stored>,
    /// Nothing has failed yet, so that no more is fetched than needs be.
    is_well: bool,
    /// Fences of fills that asked later and got the older answer, because upstream took longer over the other: the fleet goes by
    /// the fence.
    overtaken: Vec<u64>,
    /// When upstream was last asked, and until when its answer is fresh.
    last_fetch: Option<(Millis, Millis)>,
}

/// What a step came to.
enum Came {
    ToNothing,
    /// Whoever waited is answered, or waits for what is under way.
    Done,
    /// Later it may come to more.
    Later,
    LookAgain,
}

impl World {
    fn new() -> World {
        World {
            now: 1_000_000,
            count: 0,
            last_fence: 0,
            upstream: 1,
            published: Vec::new(),
            nodes: (0..NODES)
                .map(|name| Server {
                    name: name as u64,
                    is_connected: true,
                    ..Server::default()
                })
                .collect(),
            redis: Redis::default(),
            is_bucket_away: false,
            bucket: None,
            is_well: true,
            overtaken: Vec::new(),
            last_fetch: None,
        }
    }

    fn happens(&mut self, event: &Event) {
        self.now += 1;
        match *event {
            Event::Ask(n) if self.nodes[n].is_up() => self.ask(n),
            Event::Publish => {
                self.upstream += 1;
                self.published.push(self.now);
            }
            Event::Answer(n) if self.nodes[n].is_up() => self.answer(n),
            Event::Fail(n) if self.nodes[n].is_up() => self.fail(n),
            Event::End(n) if self.nodes[n].is_up() => self.end(n),
            Event::Hear(n) if self.nodes[n].is_up() && self.nodes[n].is_connected => _ = self.hear(n),
            Event::Upload(n) if self.nodes[n].is_up() && !self.is_bucket_away => self.upload(n),
            Event::Flush(n, mode) if self.nodes[n].is_up() => self.flush(n, mode),
            Event::Evict(n) => {
                self.is_well = false;
                let node = &mut self.nodes[n];
                node.stored = None;
                if !node.is_connected {
                    // Of what it fetched alone nobody can tell it any more.
                    node.served = 0;
                }
            }
            Event::Pause(n) if !self.nodes[n].is_dead => {
                self.is_well = false;
                self.nodes[n].is_paused = !self.nodes[n].is_paused;
                if !self.nodes[n].is_connected {
                    self.connect(n);
                }
            }
            Event::Die(n, disk) => self.die(n, disk),
            Event::Redis(data) => self.redis_goes_or_comes(data),
            Event::Bucket => {
                self.is_well = false;
                self.is_bucket_away = !self.is_bucket_away;
            }
            Event::Pass(time) => self.pass(time),
            _ => {}
        }
        for n in 0..NODES {
            self.drive(n);
        }
    }

    fn number(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    // Clients.

    fn ask(&mut self, n: usize) {
        let waiter = Waiter {
            since: self.now,
            flushes: self.nodes[n].flushes.len(),
        };
        if let Some(Growing { mut body, .. }) = self.nodes[n].growing {
            // Whoever comes while upstream answers shares the answer, expired or not: that is what coalescing is.
            body.asked_at = self.now;
            return self.serve(n, &[waiter], body);
        }
        let node = &self.nodes[n];
        match (&node.stored, &node.flight) {
            (Some(stored), _) if node.is_fresh(stored, self.now) => self.serve(n, &[waiter], *stored),
            (_, Some(_)) => self.nodes[n].flight.as_mut().unwrap().waiters.push(waiter),
            (previous, None) => {
                let flight = Flight {
                    waiters: vec![waiter],
                    previous: *previous,
                    stage: Stage::Looking,
                    patience: self.now + FIRST_BYTE,
                    again: 0,
                    refused: 0,
                    news: 0,
                };
                self.nodes[n].flight = Some(flight);
            }
        }
    }

    /// What clients get: here it is looked for what must not be.
    fn serve(&mut self, n: usize, waiters: &[Waiter], body: Stored) {
        let node = &mut self.nodes[n];
        if waiters.is_empty() {
            return;
        }
        assert!(
            body.version >= node.served,
            "node {n} answers version {} after {}",
            body.version,
            node.served
        );
        let known_at = body.checked_at.max(body.asked_at);
        let is_old = |waiter: &Waiter| waiter.since > known_at + TTL + FIRST_BYTE;
        assert!(
            !waiters.iter().any(is_old),
            "node {n} serves what nobody has asked about: {body:?}"
        );
        let had = 1 + self.published.iter().filter(|at| **at <= body.checked_at).count() as u64;
        assert!(
            body.version >= had,
            "node {n} serves what upstream did not have any more when it is said to have: {body:?}"
        );
        // What is cut is no answer: see `end`.
        if node.growing.is_none() {
            node.served = body.version;
        }
        for (at, mode) in waiters.iter().flat_map(|waiter| &node.flushes[..waiter.flushes]) {
            let is_right = match mode {
                Mode::Delete => body.stored_at >= *at,
                Mode::Expire => body.checked_at >= *at || body.asked_at >= *at,
            };
            assert!(is_right, "node {n} serves what was flushed ({mode:?}): {body:?}");
        }
    }

    /// Ends the flight of `n`.
    fn land(&mut self, n: usize, body: Option<Stored>) {
        let flight = self.nodes[n].flight.take().unwrap();
        if let Some(body) = body {
            self.serve(n, &flight.waiters, body);
        }
    }

    // What goes wrong, and time.

    fn die(&mut self, n: usize, disk: Disk) {
        self.is_well = false;
        let name = self.number() + NODES as u64;
        let node = &mut self.nodes[n];
        if node.is_dead {
            (node.is_dead, node.name) = (false, name);
            return self.connect(n);
        }
        let before = std::mem::replace(
            node,
            Server {
                is_dead: true,
                ..Server::default()
            },
        );
        if disk == Disk::Kept {
            let mut stored = before.stored;
            if let Some(stored) = &mut stored {
                stored.verified_at = stored.checked_at;
            }
            *node = Server {
                is_dead: true,
                stored,
                flushes: before.flushes,
                unsent_flushes: before.unsent_flushes,
                heard: before.heard,
                epoch: before.epoch,
                is_queued: before.is_queued || before.uploading.is_some(),
                served: before.served,
                ..Server::default()
            };
        }
    }

    fn redis_goes_or_comes(&mut self, data: Data) {
        self.is_well = false;
        if !self.redis.is_away {
            self.redis.is_away = true;
            for node in &mut self.nodes {
                node.is_connected = false;
            }
            return;
        }
        self.redis.is_away = false;
        if data == Data::Lost {
            self.redis = Redis {
                epoch: self.redis.epoch + 1,
                ..Redis::default()
            };
        }
        for n in 0..NODES {
            self.connect(n);
        }
    }

    fn pass(&mut self, time: Millis) {
        let until = self.now + time;
        while self.now < until {
            self.now = until.min(self.now + LEASE / 4);
            for n in 0..NODES {
                if self.nodes[n].is_up() && self.nodes[n].is_connected {
                    self.renew(n);
                    while self.hear(n) {}
                }
                self.cut_what_is_slow(n);
                self.drive(n);
            }
        }
    }

    /// Transfers of what is mutable take less than its TTL. (A node that fetched something newer, alone, while Redis was away,
    /// joins an older body that grows elsewhere for longer than that.)
    fn cut_what_is_slow(&mut self, n: usize) {
        let stage = self.nodes[n].flight.as_ref().map(|flight| flight.stage);
        if self.nodes[n].is_up() && matches!(stage, Some(Stage::Asking(began)) if began + FIRST_BYTE <= self.now) {
            self.fail(n);
        }
        if self.nodes[n]
            .growing
            .is_some_and(|growing| growing.body.checked_at + TTL <= self.now)
        {
            self.nodes[n].growing = None;
            self.release(n);
        }
    }

    /// `fleet/lock.rs`, RENEW.
    fn renew(&mut self, n: usize) {
        let Some(fence) = self.nodes[n].lease else { return };
        let spoken = self.redis.word.as_ref().map_or(0, |word| word.generation);
        let is_free = self.holder().is_none() && spoken <= fence;
        let is_mine = self.holder() == Some(n) && self.redis.lock.is_some_and(|(_, held, _)| held == fence);
        if is_free || is_mine {
            self.redis.lock = Some((n, fence, self.now + LEASE));
        }
    }

    /// Nobody waits for ever: once all nodes run and upstream answers, each flight ends.
    fn settles(&mut self) {
        for n in 0..NODES {
            if self.nodes[n].is_paused {
                self.happens(&Event::Pause(n));
            }
        }
        for _ in 0..20 {
            self.happens(&Event::Pass(FIRST_BYTE));
            for n in 0..NODES {
                self.happens(&Event::Answer(n));
                self.happens(&Event::End(n));
            }
        }
        for (n, node) in self.nodes.iter().enumerate() {
            assert!(node.flight.is_none(), "node {n} waits for ever: {:?}", node.flight);
        }
    }
}
