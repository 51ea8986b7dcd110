//! The bus: a stream of what nodes did, which each node reads from where it left off, also after a restart.
//!
//! Messages are numbered, so that one that is missing is noticed, for whatever reason. The hash `artifactapi:epoch` holds
//! the number of the last one and a random name, which change when Redis loses its data; that it was restarted, or another
//! has taken its place, its `run_id` tells.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::streams::StreamReadReply;
use redis::{RedisResult, Script};
use serde::{Deserialize, Serialize};

use super::connection::{PATIENT, said};
use super::flushes::Flush;
use super::names::{EPOCH, NEWS};
use super::random::random;
use super::word::{Fields, Word};
use crate::breaker::within;
use crate::cache::{Hash, Millis, now_ms, parse_hash};

/// Begins each script that has news: `tell(kind, fields…)`. Its last two keys are [`NEWS`] and [`EPOCH`].
pub(super) const TELL: &str = "
local function tell(...)
  local n = redis.call('HINCRBY', KEYS[#KEYS], 'news', 1)
  redis.call('XADD', KEYS[#KEYS - 1], 'MAXLEN', '~', '100000', '*', 'n', n, 'kind', ...)
end
";
/// How long one question for news waits for some: what is silent for longer hangs.
const BLOCK: Duration = Duration::from_millis(300);
const SILENCE: Duration = Duration::from_millis(800);
/// Messages in one answer.
const BATCH: usize = 500;
/// The position is saved no more often.
const SAVED_EVERY: Duration = Duration::from_secs(1);

/// Up to where the bus was heard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Position {
    epoch: String,
    run: String,
    /// Number and id of the last message.
    number: u64,
    id: String,
}

/// One node's ear.
#[derive(Debug)]
pub(super) struct Bus {
    me: String,
    file: PathBuf,
    position: Mutex<Option<Position>>,
    saved: Mutex<(Option<Position>, Instant)>,
    pub received: AtomicU64,
}

/// What was found when the bus was joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Joined {
    /// Everything that was missed will be heard.
    Continued,
    /// Something was missed for good.
    Anew,
}

/// A message as it came.
pub(super) struct Message {
    id: String,
    number: u64,
    fields: Fields,
}

/// What a message brings.
pub(super) struct Opened {
    pub news: Vec<News>,
    /// Messages before it were missed for good.
    pub missed: bool,
}

impl Bus {
    /// Goes on from where the position in `folder` says.
    pub(super) fn new(me: &str, folder: &Path) -> Self {
        let file = folder.join("position");
        // One that cannot be read is none: everything that was kept is asked about again.
        let position = std::fs::read(&file).ok();
        let position: Option<Position> = position.and_then(|saved| serde_json::from_slice(&saved).ok());
        Bus {
            me: me.to_owned(),
            file,
            saved: Mutex::new((position.clone(), Instant::now())),
            position: Mutex::new(position),
            received: AtomicU64::new(0),
        }
    }

    /// Number and id of the last message heard.
    pub(super) fn position(&self) -> (u64, String) {
        let position = self.position.lock();
        position
            .as_ref()
            .map_or((0, String::new()), |position| (position.number, position.id.clone()))
    }

    /// Whether it is that of this epoch.
    pub(super) fn is_of(&self, epoch: &str) -> bool {
        self.position
            .lock()
            .as_ref()
            .is_some_and(|position| position.epoch == epoch)
    }

    /// Finds the place to go on from.
    ///
    /// # Errors
    /// Why Redis could not tell.
    pub(super) async fn join(&self, connection: &mut MultiplexedConnection) -> Result<Joined, String> {
        static JOIN: LazyLock<Script> = LazyLock::new(|| {
            Script::new(
                "
redis.call('HSETNX', KEYS[2], 'id', ARGV[1])
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local known = redis.call('HMGET', KEYS[2], 'id', 'news')
return {known[1], known[2] or '0', last[1] and last[1][1] or '0-0'}
",
            )
        });
        let mut joining = JOIN.key(NEWS);
        joining.key(EPOCH).arg(format!("{:016x}", random()));
        let (epoch, number, id): (String, u64, String) = timed(joining.invoke_async(connection)).await?;
        let mut info = redis::cmd("INFO");
        info.arg("server");
        // Some do not let everybody ask this; then only what was lost on a restart shows that there was one.
        let info: String = timed(info.query_async(connection)).await.unwrap_or_default();
        let run = info.lines().find_map(|line| line.strip_prefix("run_id:"));
        let now = Position {
            epoch,
            run: run.unwrap_or_default().to_owned(),
            number,
            id,
        };
        let mut position = self.position.lock();
        let continues = position.as_ref().is_some_and(|position| {
            position.epoch == now.epoch && position.run == now.run && position.number <= now.number
        });
        if continues {
            return Ok(Joined::Continued);
        }
        *position = Some(now);
        Ok(Joined::Anew)
    }

    /// The messages that there are by now; if there are none and it may `wait`, those that come within a moment. Whether there
    /// are more, most likely.
    ///
    /// # Errors
    /// Why Redis could not tell.
    pub(super) async fn read(
        &self,
        connection: &mut MultiplexedConnection,
        wait: bool,
    ) -> Result<(Vec<Message>, bool), String> {
        let (_, id) = self.position();
        let mut read = redis::cmd("XREAD");
        if wait {
            read.arg("BLOCK").arg(BLOCK.as_millis() as u64);
        }
        read.arg("COUNT").arg(BATCH).arg("STREAMS").arg(NEWS).arg(id);
        let reading = within(SILENCE, read.query_async::<Option<StreamReadReply>>(connection));
        let reply = match reading.await {
            Some((reply, _)) => reply.map_err(|error| format!("the bus: {}", said(&error)))?,
            None => return Err(format!("the bus is silent for {SILENCE:?}")),
        };
        let messages = reply.into_iter().flat_map(|reply| reply.keys).flat_map(|key| key.ids);
        let messages = messages.map(|message| {
            let fields = message.map.into_iter();
            let fields = fields.filter_map(|(name, value)| Some((name, redis::from_redis_value(value).ok()?)));
            Message::new(message.id, fields.collect())
        });
        let messages: Vec<Message> = messages.collect();
        let more = messages.len() == BATCH;
        Ok((messages, more))
    }

    /// What a message has to tell here.
    pub(super) fn open(&self, message: &Message) -> Opened {
        self.received.fetch_add(1, Relaxed);
        let mut news = Vec::new();
        let (number, expected) = (message.number, self.position().0 + 1);
        let missed = number != expected;
        if missed {
            tracing::warn!(expected, number, "messages of other nodes were missed");
            news.push(News::Distrust(now_ms()));
        }
        let own = message.fields.get("by").is_some_and(|by| *by == self.me);
        news.extend(News::parse(&message.fields).filter(|_| !own));
        Opened { news, missed }
    }

    /// All that a message told is done. What was not heard to its end is heard again after a crash.
    pub(super) fn heard(&self, message: Message) {
        if let Some(position) = &mut *self.position.lock() {
            position.number = message.number;
            position.id = message.id;
        }
    }

    /// Saves the position if it changed, `always` or when it was not saved for a while.
    pub(super) async fn save(&self, always: bool) {
        let position = self.position.lock().clone();
        {
            let mut saved = self.saved.lock();
            if saved.0 == position || (!always && saved.1.elapsed() < SAVED_EVERY) {
                return;
            }
            *saved = (position.clone(), Instant::now());
        }
        let file = self.file.clone();
        let saving = tokio::task::spawn_blocking(move || {
            let text = serde_json::to_vec(&position)?;
            super::flushes::replace(&file, &text, false)
        });
        // Worth no more than a try: from an older position more is heard twice.
        if let Ok(Err(error)) = saving.await {
            tracing::warn!(%error, "the position on the bus cannot be saved");
        }
    }
}

impl Message {
    fn new(id: String, fields: Fields) -> Self {
        let number = fields.get("n").and_then(|number| number.parse().ok()).unwrap_or(0);
        Message { id, number, fields }
    }
}

async fn timed<T>(asking: impl Future<Output = RedisResult<T>>) -> Result<T, String> {
    match within(PATIENT, asking).await {
        Some((answer, _)) => answer.map_err(|error| said(&error)),
        None => Err(format!("no answer within {PATIENT:?}")),
    }
}

/// Is told what other nodes did, in the order in which Redis had it, from one task: the next comes when this is done.
#[deny(missing_docs)]
#[async_trait]
pub trait Listener: Send + Sync {
    /// Another node published a newer word.
    async fn changed(&self, hash: Hash, key_text: &str, word: Word);
    /// Another node found that upstream has no such object any more, and removed it.
    async fn removed(&self, hash: Hash, key_text: &str);
    /// What was checked before `at` is to be asked of upstream again.
    async fn expired(&self, hash: Hash, key_text: &str, at: Millis);
    /// Comes once for each flush, or again after a crash.
    async fn flushed(&self, flush: Flush);
    /// An older body has overwritten the one of identity `id` in the bucket: who has that uploads it again.
    async fn reupload(&self, hash: Hash, key_text: &str, id: u64);
    /// Messages were missed for good: nothing mutable that was checked before `at` may be trusted without asking Redis
    /// again.
    async fn distrust(&self, at: Millis);
}

/// What the bus brings.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum News {
    Changed(Hash, String, Word),
    Removed(Hash, String),
    Expired(Hash, String, Millis),
    Reupload(Hash, String, u64),
    Flushed(Flush),
    Distrust(Millis),
}

impl News {
    /// `None`: of a kind that this version does not know.
    fn parse(fields: &Fields) -> Option<News> {
        let number = |name: &str| fields.get(name)?.parse::<u64>().ok();
        let key = || Some((parse_hash(fields.get("hash")?)?, fields.get("key")?.clone()));
        Some(match fields.get("kind")?.as_str() {
            "changed" => {
                let (hash, text) = key()?;
                News::Changed(hash, text, Word::from_fields(fields)?)
            }
            "removed" => {
                let (hash, text) = key()?;
                News::Removed(hash, text)
            }
            "expired" => {
                let (hash, text) = key()?;
                News::Expired(hash, text, number("at")?)
            }
            "reupload" => {
                let (hash, text) = key()?;
                News::Reupload(hash, text, number("body")?)
            }
            "flush" => News::Flushed(serde_json::from_str(fields.get("flush")?).ok()?),
            "distrust" => News::Distrust(number("at")?),
            _ => return None,
        })
    }

    pub(super) async fn tell(self, listener: &dyn Listener) {
        match self {
            News::Changed(hash, text, word) => listener.changed(hash, &text, word).await,
            News::Removed(hash, text) => listener.removed(hash, &text).await,
            News::Expired(hash, text, at) => listener.expired(hash, &text, at).await,
            News::Reupload(hash, text, id) => listener.reupload(hash, &text, id).await,
            News::Flushed(flush) => listener.flushed(flush).await,
            News::Distrust(at) => listener.distrust(at).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_message_panics(
            kind in "changed|removed|expired|reupload|flush|distrust|other",
            hash in "[0-9a-fé]{30,33}",
            fields in proptest::collection::hash_map("key|id|class|node|bucket|fence|checked|until|at|body|flush", ".{0,20}", 0..9),
        ) {
            let mut fields = fields;
            fields.insert("kind".to_owned(), kind);
            fields.insert("hash".to_owned(), hash);
            let _ = News::parse(&fields);
        }
    }

    #[test]
    fn a_message_that_did_not_come_is_missed() {
        let folder = tempfile::tempdir().unwrap();
        let bus = Bus::new("me", folder.path());
        *bus.position.lock() = Some(Position {
            epoch: "epoch".to_owned(),
            run: String::new(),
            number: 7,
            id: "1-0".to_owned(),
        });
        let mut heard = Vec::new();
        let mut message = |number: u64, by: &str| {
            let fields = [
                ("n", number.to_string()),
                ("kind", "removed".to_owned()),
                ("by", by.to_owned()),
                ("hash", "0".repeat(32)),
                ("key", "a\0b\0c".to_owned()),
            ];
            let fields = fields.map(|(name, value)| (name.to_owned(), value));
            let message = Message::new(format!("{number}-0"), fields.into_iter().collect());
            let opened = bus.open(&message);
            heard.extend(opened.news);
            bus.heard(message);
            !opened.missed
        };
        assert!(message(8, "me"));
        assert!(message(9, "other"));
        assert!(!message(11, "me"));
        assert!(message(12, "me"));
        assert!(!message(1, "other"));
        let removed = News::Removed(Hash::default(), "a\0b\0c".to_owned());
        assert_eq!(heard.len(), 4);
        assert_eq!((&heard[0], &heard[3]), (&removed, &removed));
        assert!(matches!(heard[1..3], [News::Distrust(_), News::Distrust(_)]));
        assert_eq!(bus.position(), (1, "1-0".to_owned()));
    }
}
