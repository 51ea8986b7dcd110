//! The fleet's word on an object: a hash for each key with the fields of the [`Word`], its `fence`, and in `expired` the
//! moment, as a fence, up to which what fills find is expired. Of an object that is gone the fence stays.

use std::sync::Arc;
use std::sync::LazyLock;
use std::time::Duration;

use redis::{Script, ScriptInvocation};

use super::bus::TELL;
use super::connection::{Failure, LIMIT, PATIENT};
use super::names::{self, EPOCH, NEWS};
use super::outbox::{Parcel, Saying};
use super::word::{Fields, MIN_KEPT};
use super::{Fence, Fleet, Node, Published, Seen, Word};
use crate::breaker::Away;
use crate::cache::{Key, Millis, now_ms};

fn telling(script: &str) -> Script {
    Script::new(&format!("{TELL}{script}"))
}

impl Fleet {
    /// What the fleet knows of `key`.
    ///
    /// # Errors
    /// Redis is away; known within 50 ms, or at once when it was away before.
    pub async fn look(&self, key: &Key) -> Result<Seen, Away> {
        let (fill, fresh) = (names::fill(key), names::word(key));
        let mut look = redis::pipe();
        // In this order: a fill that ended meanwhile has left its word.
        look.cmd("HMGET").arg(fill).arg("node").arg("url");
        look.cmd("HGETALL").arg(fresh);
        let asked = self.redis.ask(LIMIT, |mut connection| async move {
            look.query_async::<((Option<String>, Option<String>), Fields)>(&mut connection)
                .await
        });
        let ((holder, url), fields) = asked.await?;
        Ok(Seen {
            word: Word::from_fields(&fields),
            holder: holder.map(|name| Node { name, url }),
        })
    }

    /// Makes `word` the fleet's word on `key` and tells the other nodes, unless a later fill has spoken. The word's
    /// `generation` becomes `fence`.
    pub async fn publish(self: &Arc<Self>, key: &Key, word: &Word, fence: Fence) -> Published {
        let mut word = word.clone();
        word.generation = fence.0;
        let (fleet, key) = (Arc::clone(self), key.clone());
        // In a task of its own, so that it is done also when nobody waits for it any more.
        let publishing = self.runtime.spawn(async move {
            match fleet.publish_now(LIMIT, &key, &word).await {
                Ok(published) => published,
                Err(_) => {
                    fleet.outbox.put(Parcel::Word(key, Saying::Is(word)));
                    Published::Away
                }
            }
        });
        publishing.await.unwrap_or(Published::Away)
    }

    pub(super) async fn publish_now(&self, limit: Duration, key: &Key, word: &Word) -> Result<Published, Failure> {
        static PUBLISH: LazyLock<Script> = LazyLock::new(|| {
            telling(
                "
local fence, checked, ends = ARGV[1], ARGV[2], ARGV[3]
local known = redis.call('HMGET', KEYS[1], 'fence', 'expired')
if tonumber(known[1] or '0') > tonumber(fence) then return {0, redis.call('HGETALL', KEYS[1])} end
local expired = known[2]
if expired and tonumber(expired) > tonumber(fence) then
  local at = math.floor(tonumber(expired) / 1000)
  if at < tonumber(ends) then ends = string.format('%.0f', at) end
end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'fence', fence, 'checked', checked, 'until', ends, unpack(ARGV, 8))
if expired then redis.call('HSET', KEYS[1], 'expired', expired) end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
tell('changed', 'by', ARGV[5], 'hash', ARGV[6], 'key', ARGV[7],
  'fence', fence, 'checked', checked, 'until', ends, unpack(ARGV, 8))
return {1, {}}
",
            )
        });
        let mut script = PUBLISH.key(names::word(key));
        script.key(NEWS).key(EPOCH);
        script.arg(word.generation).arg(word.checked_at).arg(word.fresh_until);
        script.arg(word.kept().as_millis() as u64);
        script.arg(&self.me.name).arg(hex::encode(key.hash)).arg(&*key.text);
        for (name, value) in word.fields() {
            script.arg(name).arg(value);
        }
        let (published, there): (bool, Fields) = self.redis.run(limit, script).await?;
        Ok(match published {
            true => Published::Yes,
            false => Published::Outdated(Word::from_fields(&there)),
        })
    }

    /// The body `id` of `key` is in the bucket now, whoever has spoken of it since.
    pub fn uploaded(&self, key: &Key, id: u64) {
        self.outbox.put(Parcel::Uploaded(key.clone(), id));
    }

    /// The object is gone: the fleet forgets it and the other nodes are told.
    pub fn removed(&self, key: &Key) {
        self.outbox
            .put(Parcel::Word(key.clone(), Saying::Gone(self.redis.now())));
    }

    /// What is stored was marked expired here: so is the fleet's word, and the other nodes are told.
    pub fn expired(&self, key: &Key) {
        let word = Saying::Expired(self.redis.now(), now_ms());
        self.outbox.put(Parcel::Word(key.clone(), word));
    }

    /// Asks whoever has the body `id` of `key` to upload it to the bucket again.
    pub fn reupload(&self, key: &Key, id: u64) {
        self.outbox.put(Parcel::Reupload(key.clone(), id));
    }

    /// Runs `script`, whose last arguments are who says it and of which key.
    async fn say(&self, mut script: ScriptInvocation<'static>, key: &Key) -> Result<(), Failure> {
        script.arg(&self.me.name).arg(hex::encode(key.hash)).arg(&*key.text);
        self.redis.run(PATIENT, script).await
    }

    pub(super) async fn say_uploaded(&self, key: &Key, id: u64) -> Result<(), Failure> {
        static UPLOADED: LazyLock<Script> = LazyLock::new(|| {
            telling(
                "
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'bucket', '1')
tell('changed', 'by', ARGV[2], 'hash', ARGV[3], 'key', ARGV[4], unpack(redis.call('HGETALL', KEYS[1])))
return 1
",
            )
        });
        let mut script = UPLOADED.key(names::word(key));
        script.key(NEWS).key(EPOCH).arg(id);
        self.say(script, key).await
    }

    pub(super) async fn say_gone(&self, key: &Key, fence: Fence) -> Result<(), Failure> {
        static GONE: LazyLock<Script> = LazyLock::new(|| {
            telling(
                "
if tonumber(redis.call('HGET', KEYS[1], 'fence') or '0') > tonumber(ARGV[1]) then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'fence', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
tell('removed', 'by', ARGV[3], 'hash', ARGV[4], 'key', ARGV[5])
return 1
",
            )
        });
        let mut script = GONE.key(names::word(key));
        script.key(NEWS).key(EPOCH);
        script.arg(fence.0).arg(MIN_KEPT.as_millis() as u64);
        self.say(script, key).await
    }

    pub(super) async fn say_expired(&self, key: &Key, fence: Fence, at: Millis) -> Result<(), Failure> {
        static EXPIRED: LazyLock<Script> = LazyLock::new(|| {
            telling(
                "
local fence, at, kept = ARGV[1], ARGV[2], ARGV[3]
local known = redis.call('HMGET', KEYS[1], 'fence', 'until', 'expired')
if tonumber(known[1] or '0') > tonumber(fence) then return 0 end
if tonumber(known[3] or '0') < tonumber(fence) then redis.call('HSET', KEYS[1], 'expired', fence) end
if known[2] and tonumber(known[2]) > tonumber(at) then redis.call('HSET', KEYS[1], 'until', at) end
if redis.call('PTTL', KEYS[1]) < tonumber(kept) then redis.call('PEXPIRE', KEYS[1], kept) end
tell('expired', 'by', ARGV[4], 'hash', ARGV[5], 'key', ARGV[6], 'at', at)
return 1
",
            )
        });
        let mut script = EXPIRED.key(names::word(key));
        script.key(NEWS).key(EPOCH);
        script.arg(fence.0).arg(at).arg(MIN_KEPT.as_millis() as u64);
        self.say(script, key).await
    }

    pub(super) async fn say_reupload(&self, key: &Key, id: u64) -> Result<(), Failure> {
        static REUPLOAD: LazyLock<Script> = LazyLock::new(|| {
            telling("tell('reupload', 'by', ARGV[2], 'hash', ARGV[3], 'key', ARGV[4], 'body', ARGV[1])")
        });
        let mut script = REUPLOAD.key(NEWS);
        script.key(EPOCH).arg(id);
        self.say(script, key).await
    }

    pub(super) async fn say_distrust(&self, at: Millis) -> Result<(), Failure> {
        static DISTRUST: LazyLock<Script> = LazyLock::new(|| telling("tell('distrust', 'by', ARGV[2], 'at', ARGV[1])"));
        let mut script = DISTRUST.key(NEWS);
        script.key(EPOCH).arg(at).arg(&self.me.name);
        self.redis.run(PATIENT, script).await
    }
}
