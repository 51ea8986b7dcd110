//! What the nodes of a fleet share through Redis: how fresh an object is and who has it, who fills it, what changed, flushes,
//! and upstream's tokens.
//!
//! Redis is never needed: whatever it does not answer within 50 ms a node decides for itself, and tells the others when it
//! answers again. It is a single Redis or Valkey (5 or newer) without modules; Redis Cluster is not supported.

mod bus;
mod connection;
mod flushes;
mod lock;
mod names;
mod nodes;
mod outbox;
mod publish;
mod random;
mod tokens;
mod word;

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use parking_lot::Mutex;
use redis::Script;
use redis::aio::MultiplexedConnection;
use tokio::task::JoinHandle;

use crate::breaker::{Breaker, Standing, within};
use crate::cache::now_ms;
use crate::config;
pub use bus::Listener;
use bus::{Bus, Joined, News, TELL};
pub use connection::FleetError;
use connection::{Failure, LIMIT, PATIENT, Redis, said};
pub use flushes::{Flush, replace};
use flushes::{Flushes, KEPT};
pub use lock::{Lease, Take};
use names::{EPOCH, FLUSHES, NEWS};
use outbox::{Outbox, Parcel, Saying};
pub use random::random;
pub use word::{Fence, Node, Word};

/// Between two questions whether all is well.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How often Redis's clock is looked at before anything is compared with it.
const CLOCK_LOOKS: usize = 3;
/// Between two tries to connect.
const PAUSE: Duration = Duration::from_millis(400);
/// What is sent at once of what waits.
const SENT_AT_ONCE: usize = 64;
/// How long the end of the process waits for what waits to be sent.
const FAREWELL: Duration = Duration::from_secs(1);

/// What the fleet knows of one key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    pub word: Option<Word>,
    /// Who fills it now.
    pub holder: Option<Node>,
}

/// What became of a word on a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Published {
    /// What was said is the fleet's word now.
    Yes,
    /// A later fill has spoken; `None`: it found that there is no such object.
    Outdated(Option<Word>),
    /// Redis is away: it is kept and sent when it answers again, still fenced.
    Away,
}

/// How the fleet fares, for `/health` and `/metrics`.
#[derive(Debug, Clone)]
pub struct FleetStatus {
    pub redis: Standing,
    /// Whether this node hears the others.
    pub listening: bool,
    /// The last message heard, as Redis names it.
    pub position: String,
    /// Messages that are there and were not heard yet, as of the last heartbeat.
    pub behind: u64,
    /// What waits to be sent.
    pub outbox: usize,
    /// Flushes that wait to be sent.
    pub unsent_flushes: usize,
    pub received: u64,
    pub sent: u64,
    /// Locks that this node took, lost while it held them, and found to be another's.
    pub taken: u64,
    pub lost: u64,
    pub waited: u64,
}

/// This node's part in the fleet.
#[derive(Debug)]
pub struct Fleet {
    me: Node,
    runtime: tokio::runtime::Handle,
    redis: Redis,
    bus: Bus,
    outbox: Outbox,
    flushes: Flushes,
    counters: Counters,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Counters {
    sent: AtomicU64,
    taken: AtomicU64,
    lost: AtomicU64,
    waited: AtomicU64,
    behind: AtomicU64,
    listening: AtomicBool,
}

impl Fleet {
    /// Touches no network. `data_dir/fleet/` keeps the position on the bus, the flushes that are known, and which of them
    /// are still to be sent.
    ///
    /// # Errors
    /// The URL is none.
    pub fn new(
        url: &config::Secret,
        me: Node,
        data_dir: &Path,
        runtime: tokio::runtime::Handle,
    ) -> Result<Arc<Fleet>, FleetError> {
        let folder = data_dir.join("fleet");
        Ok(Arc::new(Fleet {
            redis: Redis::new(url, Breaker::new("redis"), runtime.clone())?,
            bus: Bus::new(&me.name, &folder),
            flushes: Flushes::load(&folder),
            outbox: Outbox::default(),
            counters: Counters::default(),
            tasks: Mutex::default(),
            me,
            runtime,
        }))
    }

    /// Connects and keeps connected, and tells `listener` what other nodes do. Once.
    pub fn start(self: &Arc<Self>, listener: Arc<dyn Listener>) {
        let keeping = self
            .runtime
            .spawn(Arc::clone(self).keep_connected(Arc::clone(&listener)));
        let sending = self.runtime.spawn(Arc::clone(self).keep_sending(listener));
        self.tasks.lock().extend([keeping, sending]);
    }

    /// Sends what waits, if Redis answers, and saves the position on the bus: for the end of the process.
    pub async fn close(&self) {
        let end = Instant::now() + FAREWELL;
        while self.waits() && self.redis.breaker.is_closed() && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            task.abort();
            // Cancelled, as it was to be.
            let _ = task.await;
        }
        self.flushes.save(true);
        self.bus.save(true).await;
        self.redis.use_connection(None);
    }

    pub fn breaker(&self) -> &Arc<Breaker> {
        &self.redis.breaker
    }

    pub fn me(&self) -> &Node {
        &self.me
    }

    /// A fence for a fill that begins now without a lock, because Redis is away.
    pub fn fence(&self) -> Fence {
        self.redis.now()
    }

    /// A flush that every node hears of, also one that is away now. Durable when this returns, as far as the disk lets it.
    pub async fn flush(self: &Arc<Self>, flush: Flush) {
        self.flushes.add_own(flush);
        let fleet = Arc::clone(self);
        let saving = self.runtime.spawn_blocking(move || fleet.flushes.save(true));
        // The task fails only when the process ends.
        let _ = saving.await;
        self.outbox.wake.notify_one();
    }

    /// The flushes that are known, newest first; whoever brings back an object stored before one that covers it must not.
    pub fn flushes(&self) -> Arc<Vec<Flush>> {
        self.flushes.list()
    }

    pub fn status(&self) -> FleetStatus {
        let (_, position) = self.bus.position();
        FleetStatus {
            redis: self.redis.breaker.standing(),
            listening: self.counters.listening.load(Relaxed),
            position,
            behind: self.counters.behind.load(Relaxed),
            outbox: self.outbox.len(),
            unsent_flushes: self.flushes.count_unsent(),
            received: self.bus.received.load(Relaxed),
            sent: self.counters.sent.load(Relaxed),
            taken: self.counters.taken.load(Relaxed),
            lost: self.counters.lost.load(Relaxed),
            waited: self.counters.waited.load(Relaxed),
        }
    }

    async fn keep_connected(self: Arc<Self>, listener: Arc<dyn Listener>) {
        loop {
            let began = Instant::now();
            let Err(why) = self.session(&*listener).await;
            self.redis.breaker.fail(why);
            self.redis.use_connection(None);
            self.counters.listening.store(false, Relaxed);
            // What worked until now is tried again at once.
            tokio::time::sleep(PAUSE.saturating_sub(began.elapsed())).await;
        }
    }

    /// From connecting to the first sign that something is wrong.
    async fn session(self: &Arc<Self>, listener: &dyn Listener) -> Result<std::convert::Infallible, String> {
        let connection = self.redis.connect().await?;
        let mut ear = self.redis.connect().await?;
        self.set_clock(&mut ear).await?;
        if self.bus.join(&mut ear).await? == Joined::Anew {
            tracing::info!("Redis has lost what it knew, or is new here: what is stored here is asked about again");
            listener.distrust(now_ms()).await;
        }
        self.read_flushes(&mut ear, listener).await?;
        // Whoever finds Redis answering has heard what it missed.
        while self.hear(&mut ear, false, listener).await? {}
        let taken = self.beat(connection.clone()).await?;
        if taken > LIMIT {
            return Err(format!("answers only after {taken:?}"));
        }
        self.redis.use_connection(Some(connection.clone()));
        self.counters.listening.store(true, Relaxed);
        self.redis.breaker.close();
        self.outbox.wake.notify_one();
        let listening = async {
            loop {
                self.hear(&mut ear, true, listener).await?;
                self.bus.save(false).await;
            }
        };
        let watching = self.watch(connection);
        tokio::select! {
            ended = listening => ended,
            ended = watching => ended,
        }
    }

    /// Looks at Redis's clock, some times: the answer that came fastest tells best.
    async fn set_clock(&self, connection: &mut MultiplexedConnection) -> Result<(), String> {
        for _ in 0..CLOCK_LOOKS {
            let asked = Instant::now();
            let time = redis::cmd("TIME");
            let (seconds, micros) = match within(PATIENT, time.query_async(connection)).await {
                Some((time, _)) => time.map_err(|error| said(&error))?,
                None => return Err(format!("no answer within {PATIENT:?}")),
            };
            self.redis.clock_was(seconds, micros, asked);
        }
        Ok(())
    }

    /// Looks every now and then whether Redis is still there and whole, and at once when a call failed: it may only have
    /// been this process that was slow.
    async fn watch(&self, connection: MultiplexedConnection) -> Result<std::convert::Infallible, String> {
        let mut closed_at = Instant::now();
        loop {
            let troubled = tokio::time::timeout(HEARTBEAT, self.redis.trouble.notified())
                .await
                .is_ok();
            if troubled && let Some(early) = HEARTBEAT.checked_sub(closed_at.elapsed()) {
                // Not each of many calls in a row may find out for itself.
                tokio::time::sleep(early).await;
            }
            let taken = self.beat(connection.clone()).await?;
            if self.redis.breaker.is_closed() {
                continue;
            }
            if taken > LIMIT {
                return Err(format!("answers only after {taken:?}"));
            }
            closed_at = Instant::now();
            self.redis.breaker.close();
            self.outbox.wake.notify_one();
        }
    }

    /// Whether Redis answers, takes writes, and is the one that was joined. How long that took.
    async fn beat(&self, mut connection: MultiplexedConnection) -> Result<Duration, String> {
        let mut beat = redis::pipe();
        beat.cmd("TIME");
        beat.cmd("HSETNX")
            .arg(EPOCH)
            .arg("id")
            .arg(format!("{:016x}", random()));
        beat.cmd("HMGET").arg(EPOCH).arg("id").arg("news");
        self.sign_in(&mut beat);
        let began = Instant::now();
        let beating = beat.query_async::<((i64, i64), bool, (String, Option<u64>))>(&mut connection);
        let (((seconds, micros), _, (epoch, number)), taken) = match within(PATIENT, beating).await {
            Some((answer, taken)) => (answer.map_err(|error| said(&error))?, taken),
            None => return Err(format!("no answer within {PATIENT:?}")),
        };
        if !self.bus.is_of(&epoch) {
            return Err("it has lost its data".to_owned());
        }
        if began.elapsed() <= LIMIT {
            self.redis.clock_was(seconds, micros, began);
        }
        let (heard, _) = self.bus.position();
        let behind = number.unwrap_or_default().saturating_sub(heard);
        self.counters.behind.store(behind, Relaxed);
        Ok(taken)
    }

    /// Hears what is new; whether there is more.
    async fn hear(&self, ear: &mut MultiplexedConnection, wait: bool, listener: &dyn Listener) -> Result<bool, String> {
        let (messages, more) = self.bus.read(ear, wait).await?;
        let mut missed = false;
        for message in messages {
            let opened = self.bus.open(&message);
            missed |= opened.missed;
            for news in opened.news {
                match news {
                    News::Flushed(flush) => self.heard_flush(flush, listener).await,
                    news => news.tell(listener).await,
                }
            }
            self.bus.heard(message);
        }
        if missed {
            self.read_flushes(ear, listener).await?;
        }
        Ok(more)
    }

    async fn heard_flush(&self, flush: Flush, listener: &dyn Listener) {
        if !self.flushes.is_known(&flush.id) {
            // First: what is brought back from now on is held against it.
            self.flushes.add([flush.clone()]);
            listener.flushed(flush).await;
            self.outbox.wake.notify_one(); // which saves it
        }
    }

    /// Hears of the flushes that are new here, and sees to it that Redis gets those that it has lost.
    async fn read_flushes(&self, ear: &mut MultiplexedConnection, listener: &dyn Listener) -> Result<(), String> {
        let mut read = redis::cmd("ZRANGE");
        read.arg(FLUSHES).arg(0).arg(-1);
        let there = match within(4 * PATIENT, read.query_async::<Vec<String>>(ear)).await {
            Some((there, _)) => there.map_err(|error| said(&error))?,
            None => return Err("no answer when asked for flushes".to_owned()),
        };
        let there: Vec<Flush> = there
            .iter()
            .filter_map(|flush| serde_json::from_str(flush).ok())
            .collect();
        let ids: HashSet<String> = there.iter().map(|flush| flush.id.clone()).collect();
        for flush in self.flushes.unknown(there) {
            self.heard_flush(flush, listener).await;
        }
        if ids.len() < KEPT {
            self.flushes.restore(&ids);
        }
        self.outbox.wake.notify_one();
        Ok(())
    }

    fn waits(&self) -> bool {
        !self.outbox.is_empty() || self.flushes.count_unsent() > 0
    }

    async fn keep_sending(self: Arc<Self>, listener: Arc<dyn Listener>) {
        loop {
            self.outbox.wake.notified().await;
            while self.waits() {
                self.redis.answers().await;
                self.send_flushes().await;
                self.send_parcels(&*listener).await;
            }
            let fleet = Arc::clone(&self);
            // The task fails only when the process ends.
            let _ = self.runtime.spawn_blocking(move || fleet.flushes.save(false)).await;
        }
    }

    async fn send_flushes(&self) {
        for flush in self.flushes.unsent() {
            match self.say_flush(&flush).await {
                Ok(()) => self.flushes.sent(&flush.id),
                Err(_) => {
                    tokio::time::sleep(PAUSE).await;
                    return;
                }
            }
            self.counters.sent.fetch_add(1, Relaxed);
        }
    }

    async fn send_parcels(&self, listener: &dyn Listener) {
        let parcels = self.outbox.take(SENT_AT_ONCE);
        let sending = parcels.iter().map(|parcel| self.send(parcel, listener));
        let sent = join_all(sending).await;
        let mut unsent = Vec::new();
        for (parcel, sent) in parcels.into_iter().zip(sent) {
            match sent {
                Ok(()) => _ = self.counters.sent.fetch_add(1, Relaxed),
                Err(Failure::Away(_)) => unsent.push(parcel),
                // It would refuse it again.
                Err(Failure::Refused(_)) => {}
            }
        }
        self.outbox.put_back(unsent);
    }

    async fn send(&self, parcel: &Parcel, listener: &dyn Listener) -> Result<(), Failure> {
        match parcel {
            Parcel::Word(key, Saying::Is(word)) => {
                match self.publish_now(PATIENT, key, word).await? {
                    // What this node heard before it stored the older body was of no use to it.
                    Published::Outdated(Some(newer)) => listener.changed(key.hash, &key.text, newer).await,
                    Published::Outdated(None) => listener.removed(key.hash, &key.text).await,
                    Published::Yes | Published::Away => {}
                }
                Ok(())
            }
            Parcel::Word(key, Saying::Gone(fence)) => self.say_gone(key, *fence).await,
            Parcel::Word(key, Saying::Expired(fence, at)) => self.say_expired(key, *fence, *at).await,
            Parcel::Uploaded(key, id) => self.say_uploaded(key, *id).await,
            Parcel::Reupload(key, id) => self.say_reupload(key, *id).await,
            Parcel::Release(key, holding) => self.release(key, holding).await,
            Parcel::Token { name, token, end } => self.send_token(name, token, *end).await,
            Parcel::Distrust(at) => self.say_distrust(*at).await,
        }
    }

    async fn say_flush(&self, flush: &Flush) -> Result<(), Failure> {
        static FLUSH: LazyLock<Script> = LazyLock::new(|| {
            Script::new(&format!(
                "{TELL}
if redis.call('ZADD', KEYS[1], 'NX', ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - tonumber(ARGV[3]))
tell('flush', 'by', ARGV[4], 'flush', ARGV[2])
return 1
"
            ))
        });
        let mut script = FLUSH.key(FLUSHES);
        script.key(NEWS).key(EPOCH);
        // The same text from every node, so that there is one of it.
        let text = serde_json::to_string(flush).unwrap_or_default();
        script.arg(flush.at).arg(text).arg(KEPT).arg(&self.me.name);
        self.redis.run(PATIENT, script).await
    }
}
