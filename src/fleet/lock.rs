//! The fill lock: a hash that names who fills a key, with an expiry that its holder moves on.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::Script;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::connection::{Failure, LIMIT, PATIENT};
use super::outbox::Parcel;
use super::{Fence, Fleet, Node, names, random};
use crate::breaker::Away;
use crate::cache::Key;

/// A lock that is not renewed ends after this.
const LIFE: Duration = Duration::from_secs(4);
const RENEWED_EVERY: Duration = Duration::from_secs(1);

/// Whose fill it is.
#[derive(Debug)]
pub enum Take {
    Mine(Lease),
    Theirs(Node),
}

/// The right to fill a key, and its fence. Renewed in the background; dropping it gives it up.
pub struct Lease {
    fleet: Arc<Fleet>,
    key: Key,
    fence: Fence,
    /// Names this very holding of the lock.
    holding: String,
    held: Arc<Renewed>,
    renewal: AbortHandle,
}

#[derive(Debug)]
struct Renewed {
    /// When the last renewal that succeeded was asked for.
    renewed: Mutex<Instant>,
    /// Somebody else has it, or has had it and spoken.
    gone: AtomicBool,
    went: Notify,
}

impl Renewed {
    fn is_lost(&self) -> bool {
        self.gone.load(Relaxed) || self.renewed.lock().elapsed() >= LIFE
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("key", &self.key)
            .field("fence", &self.fence)
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}

impl Lease {
    pub fn fence(&self) -> Fence {
        self.fence
    }

    /// Whether another node may be filling the same key by now: somebody else has the lock, or it could not be renewed for
    /// longer than its life, be it that Redis is away or that this process was stopped. The latter heals when Redis answers
    /// again and nobody has taken it.
    pub fn is_lost(&self) -> bool {
        self.held.is_lost()
    }

    /// Waits until [`Lease::is_lost`].
    pub async fn lost(&self) {
        loop {
            let went = self.held.went.notified();
            if self.is_lost() {
                return;
            }
            let ends = *self.held.renewed.lock() + LIFE;
            let _ = tokio::time::timeout_at(ends.into(), went).await;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewal.abort();
        self.fleet
            .outbox
            .put(Parcel::Release(self.key.clone(), std::mem::take(&mut self.holding)));
    }
}

impl Fleet {
    /// Takes the fill lock of `key`, or says who has it.
    ///
    /// # Errors
    /// Redis is away, as with [`Fleet::look`].
    pub async fn take(self: &Arc<Self>, key: &Key) -> Result<Take, Away> {
        let (fleet, key) = (Arc::clone(self), key.clone());
        // In a task of its own, so that a lock whose taker went away meanwhile is given up.
        let taking = self.runtime.spawn(async move { fleet.take_now(key).await });
        match taking.await {
            Ok(taken) => taken,
            Err(_) => Err(Away::Failed(self.redis.breaker.name(), "the process ends".to_owned())),
        }
    }

    async fn take_now(self: Arc<Self>, key: Key) -> Result<Take, Away> {
        // The clock of Redis orders the fills. Where it was put back, or a node has spoken by what it took for that clock,
        // what was said does.
        static TAKE: LazyLock<Script> = LazyLock::new(|| {
            Script::new(
                "
local held = redis.call('HMGET', KEYS[1], 'node', 'url')
if held[1] then return {'', held[1], held[2]} end
local now = redis.call('TIME')
local fence = now[1] * 1000000 + now[2]
for _, said in ipairs(redis.call('HMGET', KEYS[2], 'fence', 'expired')) do
  if said and fence <= tonumber(said) then fence = tonumber(said) + 1 end
end
fence = string.format('%.0f', fence)
redis.call('HSET', KEYS[1], 'holding', ARGV[1], 'fence', fence, 'node', ARGV[2])
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'url', ARGV[3]) end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return {fence, false, false}
",
            )
        });
        let holding = format!("{:016x}", random());
        let url = self.me.url.as_deref().unwrap_or_default();
        let mut script = TAKE.key(names::fill(&key));
        script.key(names::word(&key)).arg(&holding).arg(&self.me.name);
        script.arg(url).arg(LIFE.as_millis() as u64);
        let began = Instant::now();
        let answer = self
            .redis
            .run::<(String, Option<String>, Option<String>)>(LIMIT, script);
        match answer.await {
            Ok((_, Some(name), url)) => {
                self.counters.waited.fetch_add(1, Relaxed);
                Ok(Take::Theirs(Node { name, url }))
            }
            Ok((fence, None, _)) => {
                self.counters.taken.fetch_add(1, Relaxed);
                // The script's own number.
                let fence = Fence(fence.parse().unwrap_or_default());
                Ok(Take::Mine(self.lease(key, fence, holding, began)))
            }
            Err(failure) => {
                // It may be taken all the same, only too late.
                if matches!(failure, Failure::Away(Away::TimedOut(..) | Away::Failed(..))) {
                    self.outbox.put(Parcel::Release(key, holding));
                }
                Err(failure.into())
            }
        }
    }

    fn lease(self: &Arc<Self>, key: Key, fence: Fence, holding: String, began: Instant) -> Lease {
        let held = Arc::new(Renewed {
            renewed: Mutex::new(began),
            gone: AtomicBool::new(false),
            went: Notify::new(),
        });
        let renewing = Arc::clone(self).renew(key.clone(), fence, holding.clone(), Arc::clone(&held));
        Lease {
            fleet: Arc::clone(self),
            key,
            fence,
            holding,
            renewal: self.runtime.spawn(renewing).abort_handle(),
            held,
        }
    }

    async fn renew(self: Arc<Self>, key: Key, fence: Fence, holding: String, held: Arc<Renewed>) {
        // A lock that is free is taken again: it ended while Redis or this process stood still, or Redis lost it; unless
        // another fill came and went meanwhile.
        static RENEW: LazyLock<Script> = LazyLock::new(|| {
            Script::new(
                "
local holding = redis.call('HGET', KEYS[1], 'holding')
if holding and holding ~= ARGV[1] then return 0 end
if not holding then
  local spoken = tonumber(redis.call('HGET', KEYS[2], 'fence') or '0')
  if spoken > tonumber(ARGV[2]) then return 0 end
  redis.call('HSET', KEYS[1], 'holding', ARGV[1], 'fence', ARGV[2], 'node', ARGV[3])
  if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'url', ARGV[4]) end
end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return 1
",
            )
        });
        let url = self.me.url.clone().unwrap_or_default();
        let mut counted = false;
        loop {
            tokio::time::sleep(RENEWED_EVERY).await;
            let mut script = RENEW.key(names::fill(&key));
            script.key(names::word(&key)).arg(&holding).arg(fence.0);
            script.arg(&self.me.name).arg(&url).arg(LIFE.as_millis() as u64);
            let began = Instant::now();
            match self.redis.run(PATIENT, script).await {
                Ok(true) => *held.renewed.lock() = began,
                Ok(false) => held.gone.store(true, Relaxed),
                // The lock may outlive this, or be free when Redis answers again.
                Err(_) => {}
            }
            if held.is_lost() && !std::mem::replace(&mut counted, true) {
                self.counters.lost.fetch_add(1, Relaxed);
            }
            if held.gone.load(Relaxed) {
                held.went.notify_waiters();
                return;
            }
        }
    }

    /// Gives up a lock, if it is still held under this name.
    pub(super) async fn release(&self, key: &Key, holding: &str) -> Result<(), Failure> {
        static RELEASE: LazyLock<Script> = LazyLock::new(|| {
            Script::new(
                "
if redis.call('HGET', KEYS[1], 'holding') == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
",
            )
        });
        let mut script = RELEASE.key(names::fill(key));
        script.arg(holding);
        self.redis.run(PATIENT, script).await
    }
}
