//! What nodes share through Redis, with a real one that is killed, stopped, emptied and cut off. The nodes are the library's
//! own, several in one process, each with threads of its own.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::common::link::Link;
use crate::common::redis::Redis;
use crate::common::upstream::Authority;
use crate::common::{eventually, run};
use artifactapi::breaker::Away;
use artifactapi::cache::{Class, Hash, Key, now_ms};
use artifactapi::config::Secret;
use artifactapi::fleet::{Fence, Fleet, Flush, Lease, Listener, Node, Published, Seen, Take, Word};
use async_trait::async_trait;
use serde_json::json;
use tokio::task::JoinSet;

const SOON: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, PartialEq)]
enum Heard {
    Changed(String, Word),
    Removed(String),
    Expired(String),
    Flushed(String),
    Reupload(String, u64),
    Distrust,
}

#[derive(Default)]
struct Ear(Mutex<Vec<(Instant, Heard)>>);

impl Ear {
    fn note(&self, heard: Heard) {
        self.0.lock().unwrap().push((Instant::now(), heard));
    }
}

#[async_trait]
impl Listener for Ear {
    async fn changed(&self, hash: Hash, key_text: &str, record: Word) {
        assert_eq!(hash, key_of(key_text).hash);
        self.note(Heard::Changed(key_text.to_owned(), record));
    }
    async fn removed(&self, _: Hash, key_text: &str) {
        self.note(Heard::Removed(key_text.to_owned()));
    }
    async fn expired(&self, _: Hash, key_text: &str, at: u64) {
        assert!(at <= now_ms());
        self.note(Heard::Expired(key_text.to_owned()));
    }
    async fn flushed(&self, flush: Flush) {
        self.note(Heard::Flushed(flush.id));
    }
    async fn reupload(&self, _: Hash, key_text: &str, id: u64) {
        self.note(Heard::Reupload(key_text.to_owned(), id));
    }
    async fn distrust(&self, at: u64) {
        assert!(at <= now_ms());
        self.note(Heard::Distrust);
    }
}

/// A node. Dropping it is like killing it.
struct Member {
    fleet: Arc<Fleet>,
    ear: Arc<Ear>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.runtime.take().expect("only here").shutdown_background();
    }
}

impl Member {
    fn new(url: &str, folder: &Path) -> Member {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let me = Node::new(Some("http://127.0.0.1:1".to_owned()));
        let fleet = Fleet::new(&Secret::new(url), me, folder, runtime.handle().clone()).expect("a fleet");
        let ear = Arc::new(Ear::default());
        fleet.start(ear.clone());
        Member {
            fleet,
            ear,
            runtime: Some(runtime),
        }
    }

    /// A node that has connected.
    async fn joined(url: &str, folder: &Path) -> Member {
        let member = Member::new(url, folder);
        member.is_up().await;
        member
    }

    async fn is_up(&self) {
        eventually(SOON, "connected", async || {
            let status = self.fleet.status();
            status.listening && status.redis.healthy
        })
        .await;
    }

    async fn is_down(&self) {
        eventually(SOON, "away", async || !self.fleet.status().redis.healthy).await;
    }

    fn heard(&self) -> Vec<Heard> {
        let heard = self.ear.0.lock().unwrap();
        heard.iter().map(|(_, heard)| heard.clone()).collect()
    }

    fn forget(&self) {
        self.ear.0.lock().unwrap().clear();
    }

    fn count(&self, what: &Heard) -> usize {
        self.heard().iter().filter(|heard| *heard == what).count()
    }

    async fn hears(&self, what: Heard) {
        eventually(SOON, &format!("heard {what:?}"), async || self.count(&what) > 0).await;
    }

    /// An answer of Redis, which a busy machine may need more than 50 ms for.
    async fn look(&self, key: &Key) -> Seen {
        let mut seen = Err(Away::Open("redis"));
        eventually(SOON, "an answer", async || {
            seen = self.fleet.look(key).await;
            seen.is_ok()
        })
        .await;
        seen.expect("an answer")
    }

    async fn word(&self, key: &Key) -> Word {
        self.look(key).await.word.expect("a record")
    }

    async fn publish(&self, key: &Key, record: &Word, fence: Fence) -> Published {
        let mut published = Published::Away;
        eventually(SOON, "an answer", async || {
            published = self.fleet.publish(key, record, fence).await;
            published != Published::Away
        })
        .await;
        published
    }

    async fn takes(&self, key: &Key) -> Lease {
        let mut taken = None;
        eventually(SOON, "the lock is free", async || {
            if let Ok(Take::Mine(lease)) = self.fleet.take(key).await {
                taken = Some(lease);
            }
            taken.is_some()
        })
        .await;
        taken.expect("taken")
    }

    async fn sent_all(&self) {
        eventually(SOON, "sent", async || {
            let status = self.fleet.status();
            status.outbox == 0 && status.unsent_flushes == 0
        })
        .await;
    }
}

fn key(path: &str) -> Key {
    Key::new("hub", path, None, "raw")
}

fn key_of(text: &str) -> Key {
    let mut parts = text.splitn(3, '\0');
    let mut part = || parts.next().expect("three parts");
    Key::new(part(), part(), None, part())
}

fn record(member: &Member, id: u64) -> Word {
    Word {
        id,
        class: Class::Mutable,
        checked_at: now_ms(),
        fresh_until: now_ms() + 60_000,
        etag: Some(format!("\"{id}\"")),
        generation: 0,
        node: member.fleet.me().clone(),
        in_bucket: false,
    }
}

fn fenced(mut record: Word, fence: Fence) -> Word {
    record.generation = fence.0;
    record
}

/// Publishes a body as whoever fills it does.
async fn fill(member: &Member, key: &Key, id: u64) -> Word {
    let lease = member.takes(key).await;
    let record = record(member, id);
    assert_eq!(member.publish(key, &record, lease.fence()).await, Published::Yes);
    let fence = lease.fence();
    drop(lease);
    member.sent_all().await;
    fenced(record, fence)
}

struct Pair {
    redis: Redis,
    a: Member,
    b: Member,
    folders: [tempfile::TempDir; 2],
}

/// Two nodes that have met.
async fn pair() -> Pair {
    let redis = Redis::start().await;
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let a = Member::joined(&redis.url(), folders[0].path()).await;
    let b = Member::joined(&redis.url(), folders[1].path()).await;
    a.forget();
    b.forget();
    Pair { redis, a, b, folders }
}

#[test]
fn of_many_on_two_nodes_one_gets_the_lock() {
    run(async {
        let Pair {
            redis: _redis,
            a,
            b,
            folders: _folders,
        } = pair().await;
        let key = key("/lock");
        let mut fences = Vec::new();
        for _ in 0..5 {
            let mut taking = JoinSet::new();
            for number in 0..64 {
                let (fleet, key) = (if number % 2 == 0 { &a } else { &b }.fleet.clone(), key.clone());
                taking.spawn(async move {
                    loop {
                        match fleet.take(&key).await {
                            Ok(taken) => return taken,
                            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                        }
                    }
                });
            }
            let (mut mine, mut theirs) = (Vec::new(), Vec::new());
            for taken in taking.join_all().await {
                match taken {
                    Take::Mine(lease) => mine.push(lease),
                    Take::Theirs(node) => theirs.push(node),
                }
            }
            assert_eq!((mine.len(), theirs.len()), (1, 63));
            let seen = a.look(&key).await;
            assert!(seen.holder.is_some(), "{seen:?}");
            fences.push(mine[0].fence());
            drop(mine);
            eventually(SOON, "given up", async || a.look(&key).await.holder.is_none()).await;
        }
        assert!(fences.is_sorted_by(|a, b| a < b), "{fences:?}");
        let status = (a.fleet.status(), b.fleet.status());
        assert_eq!(status.0.taken + status.1.taken, 5);
        assert_eq!(status.0.waited + status.1.waited, 5 * 63);
    });
}

#[test]
fn a_lock_lasts_as_long_as_its_holder_and_not_much_longer() {
    run(async {
        let Pair {
            redis: _redis,
            a,
            b,
            folders: _folders,
        } = pair().await;
        let key = key("/long");
        let lease = a.takes(&key).await;
        let end = Instant::now() + Duration::from_secs(6);
        while Instant::now() < end {
            if let Ok(taken) = b.fleet.take(&key).await {
                assert!(
                    matches!(&taken, Take::Theirs(node) if node == a.fleet.me()),
                    "{taken:?}"
                );
            }
            assert!(!lease.is_lost());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let fence = lease.fence();
        // A node that is killed gives nothing up.
        std::mem::forget(lease);
        drop(a);
        let killed = Instant::now();
        let mut taken = None;
        eventually(Duration::from_secs(6), "the lock is free", async || {
            if let Ok(Take::Mine(lease)) = b.fleet.take(&key).await {
                taken = Some(lease);
            }
            taken.is_some()
        })
        .await;
        assert!(killed.elapsed() > Duration::from_millis(2500), "{:?}", killed.elapsed());
        assert!(taken.expect("taken").fence() > fence);
    });
}

#[test]
fn a_taker_that_goes_away_leaves_no_lock() {
    run(async {
        let Pair {
            redis: _redis,
            a,
            b,
            folders: _folders,
        } = pair().await;
        for number in 0..50 {
            let key = key(&format!("/gone/{number}"));
            let fleet = a.fleet.clone();
            let taker = key.clone();
            let taking = tokio::spawn(async move {
                let _lease = fleet.take(&taker).await;
                std::future::pending::<()>().await;
            });
            tokio::time::sleep(Duration::from_micros(number * 20)).await;
            taking.abort();
            let _ = taking.await;
            eventually(Duration::from_secs(1), "free", async || {
                matches!(b.fleet.take(&key).await, Ok(Take::Mine(_)))
            })
            .await;
        }
    });
}

#[test]
fn a_later_fill_is_not_overwritten_by_an_earlier_one() {
    run(async {
        let Pair {
            redis: _redis,
            a,
            b,
            folders: _folders,
        } = pair().await;
        let key = key("/fence");
        assert_eq!(a.look(&key).await, Seen::default());
        let late = a.takes(&key).await;
        let fence = late.fence();
        drop(late);
        a.sent_all().await;
        let current = fill(&b, &key, 2).await;
        assert_eq!(
            a.publish(&key, &record(&a, 1), fence).await,
            Published::Outdated(Some(current.clone()))
        );
        let seen = a.look(&key).await;
        assert_eq!(seen.word, Some(current.clone()));
        // The same fill may speak again.
        let mut again = current.clone();
        again.in_bucket = true;
        let fence = Fence(current.generation);
        assert_eq!(b.publish(&key, &again, fence).await, Published::Yes);
        a.hears(Heard::Changed(key.text.to_string(), again)).await;
        // What is gone stays gone for whoever began before.
        b.fleet.removed(&key);
        a.hears(Heard::Removed(key.text.to_string())).await;
        assert_eq!(b.publish(&key, &current, fence).await, Published::Outdated(None));
        assert_eq!(a.look(&key).await, Seen::default());
        fill(&a, &key, 3).await;
        // Nobody hears himself.
        assert_eq!(b.count(&Heard::Removed(key.text.to_string())), 0);
    });
}

/// A node in a process of its own, which takes a lock, waits for a line, and says what became of it.
#[test]
#[ignore = "started by another test"]
fn holder_process() {
    let Ok(url) = std::env::var("HOLDER_OF") else { return };
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let member = Member::joined(&url, folder.path()).await;
        let key = key("/stopped");
        let lease = member.takes(&key).await;
        println!("\ntaken");
        let line = tokio::task::spawn_blocking(|| {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).map(|_| line)
        });
        line.await.expect("a line").expect("a line");
        let lost = lease.is_lost();
        // Its connections, too, have waited for longer than it allows: there may be no answer at first.
        let published = member.publish(&key, &record(&member, 1), lease.fence()).await;
        tokio::time::timeout(SOON, lease.lost()).await.expect("it is told");
        println!("\nlost {lost} {published:?}");
    });
}

#[test]
fn a_process_that_was_stopped_finds_its_lock_lost_and_overwrites_nothing() {
    run(async {
        let redis = Redis::start().await;
        let folder = tempfile::tempdir().expect("a folder");
        let b = Member::joined(&redis.url(), folder.path()).await;
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--ignored", "--exact", "fleet_redis::holder_process", "--nocapture"])
            .env("HOLDER_OF", redis.url())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let mut says = BufReader::new(child.stdout.take().expect("its output")).lines();
        let mut hears = child.stdin.take().expect("its input");
        assert!(says.any(|line| line.expect("a line") == "taken"));
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("stopped");
        let key = key("/stopped");
        let mut lease = None;
        eventually(Duration::from_secs(6), "the lock is free", async || {
            if let Ok(Take::Mine(taken)) = b.fleet.take(&key).await {
                lease = Some(taken);
            }
            lease.is_some()
        })
        .await;
        let fence = lease.as_ref().expect("taken").fence();
        assert_eq!(b.publish(&key, &record(&b, 2), fence).await, Published::Yes);
        writeln!(hears, "go").expect("told");
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).expect("resumed");
        let said = says
            .map(|line| line.expect("a line"))
            .find(|line| line.starts_with("lost"));
        child.wait().expect("its end");
        let said = said.expect("it says what became of it");
        assert!(said.starts_with("lost true Outdated(Some("), "{said}");
        let seen = b.look(&key).await;
        assert_eq!(seen.word.expect("a record").id, 2);
    });
}

async fn timed<T>(call: impl Future<Output = T>) -> (Duration, T) {
    let began = Instant::now();
    let answer = call.await;
    (began.elapsed(), answer)
}

/// That a call takes 50 ms, or none, as far as a busy machine can tell.
const AT_MOST: Duration = Duration::from_millis(150);
const AT_ONCE: Duration = Duration::from_millis(40);

#[test]
fn a_cut_connection_is_replaced_at_once() {
    run(async {
        let redis = Redis::start().await;
        let link = Link::start(redis.address).await;
        let folders = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
        let a = Member::joined(&format!("redis://{}", link.address), folders[0].path()).await;
        let b = Member::joined(&redis.url(), folders[1].path()).await;
        a.forget();
        let key = key("/cut");
        fill(&b, &key, 1).await;
        link.cut();
        a.is_down().await;
        // What happens meanwhile is heard when it is back.
        let word = fill(&b, &key, 2).await;
        b.fleet.expired(&key);
        b.fleet.reupload(&key, 2);
        b.sent_all().await;
        link.restore();
        a.is_up().await;
        let text = key.text.to_string();
        // Words on a key come in their order; that an upload is asked for again is none of them.
        let news = [Heard::Changed(text.clone(), word), Heard::Expired(text.clone())];
        let mut words = a.heard();
        words.retain(|heard| !matches!(heard, Heard::Reupload(..)));
        assert!(words.ends_with(&news), "{words:?}");
        assert_eq!(a.count(&Heard::Reupload(text, 2)), 1);
        assert_eq!(a.count(&Heard::Distrust), 0);
    });
}

#[test]
fn a_redis_that_lost_everything_is_filled_again() {
    run(async {
        let Pair {
            mut redis,
            a,
            b,
            folders: _folders,
        } = pair().await;
        let key = key("/emptied");
        fill(&a, &key, 1).await;
        let lease = b.takes(&key).await;
        let flush = Flush::new(json!({"remote": "hub"}));
        a.fleet.flush(flush.clone()).await;
        b.hears(Heard::Flushed(flush.id.clone())).await;

        redis.kill();
        a.is_down().await;
        let (took, seen) = timed(a.fleet.look(&key)).await;
        assert_eq!(seen, Err(Away::Open("redis")));
        assert!(took < AT_ONCE, "{took:?}");
        redis.launch().await;
        a.is_up().await;
        b.is_up().await;
        a.hears(Heard::Distrust).await;
        b.hears(Heard::Distrust).await;
        let seen = a.look(&key).await;
        assert_eq!(seen.word, None);
        // The holder goes on.
        eventually(SOON, "the lock is there again", async || {
            let seen = a.fleet.look(&key).await;
            seen.is_ok_and(|seen| seen.holder.as_ref() == Some(b.fleet.me()))
        })
        .await;
        assert!(!lease.is_lost());
        eventually(SOON, "an answer", async || match a.fleet.take(&key).await {
            Ok(taken) => {
                assert!(matches!(&taken, Take::Theirs(_)), "{taken:?}");
                true
            }
            Err(_) => false,
        })
        .await;
        assert_eq!(b.publish(&key, &record(&b, 2), lease.fence()).await, Published::Yes);
        // Who comes late hears of what was flushed before.
        b.sent_all().await;
        a.sent_all().await;
        let folder = tempfile::tempdir().expect("a folder");
        let c = Member::joined(&redis.url(), folder.path()).await;
        c.hears(Heard::Flushed(flush.id.clone())).await;
        assert_eq!(c.fleet.flushes().first(), Some(&flush));
        // And nobody hears of it twice.
        assert_eq!(b.count(&Heard::Flushed(flush.id.clone())), 1);
        assert_eq!(a.count(&Heard::Flushed(flush.id)), 0);
    });
}

#[test]
fn a_lock_that_another_took_after_redis_was_emptied_is_lost() {
    run(async {
        let Pair {
            mut redis,
            a,
            b,
            folders: _folders,
        } = pair().await;
        let key = key("/lost");
        let lease = a.takes(&key).await;
        redis.restart_empty().await;
        b.is_up().await;
        let mut other = redis.connection().await;
        // As if another node had been quicker than the holder.
        let () = redis::cmd("HSET")
            .arg(format!("artifactapi:fill:{}", hex::encode(key.hash)))
            .arg(&["holding", "other", "fence", "1", "node", "other"])
            .query_async(&mut other)
            .await
            .expect("set");
        let lost = tokio::time::timeout(SOON, lease.lost()).await;
        // Unless the holder was quicker: then it goes on to be the other's, and is lost just the same.
        assert!(lost.is_ok() && lease.is_lost());
        assert_eq!(a.fleet.status().lost, 1);
    });
}

#[test]
fn emptied_without_a_restart_is_noticed_by_everybody() {
    run(async {
        let Pair {
            redis,
            a,
            b,
            folders: _folders,
        } = pair().await;
        let mut other = redis.connection().await;
        let () = redis::cmd("FLUSHALL").query_async(&mut other).await.expect("flushed");
        a.hears(Heard::Distrust).await;
        b.hears(Heard::Distrust).await;
        a.is_up().await;
        b.is_up().await;
        let key = key("/after");
        let word = fill(&a, &key, 1).await;
        b.hears(Heard::Changed(key.text.to_string(), word)).await;
    });
}

#[test]
fn expired_and_uploaded_change_the_word() {
    run(async {
        let Pair {
            redis: _redis,
            a,
            b,
            folders: _folders,
        } = pair().await;
        let key = key("/word");
        let word = fill(&a, &key, 7).await;
        // Another body's upload says nothing of this one.
        b.fleet.uploaded(&key, 6);
        b.sent_all().await;
        assert!(!a.word(&key).await.in_bucket);
        b.fleet.uploaded(&key, 7);
        b.sent_all().await;
        let seen = a.look(&key).await.word;
        let mut uploaded = word.clone();
        uploaded.in_bucket = true;
        assert_eq!(seen, Some(uploaded.clone()));
        a.hears(Heard::Changed(key.text.to_string(), uploaded)).await;

        // Redis's clock goes on.
        tokio::time::sleep(Duration::from_millis(5)).await;
        b.fleet.expired(&key);
        a.hears(Heard::Expired(key.text.to_string())).await;
        let seen = a.word(&key).await;
        assert!(seen.fresh_until <= now_ms() && seen.id == 7);
        // What a fill that began before finds is expired, too.
        assert_eq!(a.publish(&key, &word, Fence(word.generation)).await, Published::Yes);
        let seen = a.word(&key).await;
        assert!(seen.fresh_until <= now_ms());
        let word = fill(&b, &key, 8).await;
        assert_eq!(a.look(&key).await.word, Some(word));
    });
}

#[test]
fn nothing_is_kept_in_redis_for_ever() {
    run(async {
        let Pair {
            redis,
            a,
            b,
            folders: _folders,
        } = pair().await;
        fill(&a, &key("/mutable"), 1).await;
        let mut immutable = record(&a, 2);
        immutable.class = Class::Immutable;
        immutable.fresh_until = u64::MAX;
        let fence = a.fleet.fence();
        assert_eq!(a.publish(&key("/immutable"), &immutable, fence).await, Published::Yes);
        let seen = b.look(&key("/immutable")).await.word;
        assert_eq!(seen, Some(fenced(immutable, fence)));
        a.fleet.removed(&key("/removed"));
        a.fleet.expired(&key("/expired"));
        a.fleet.keep_token("name", "token".into(), Duration::from_secs(60));
        a.fleet.flush(Flush::new(json!({}))).await;
        let _lease = b.takes(&key("/filled")).await;
        a.sent_all().await;
        let mut other = redis.connection().await;
        let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut other).await.expect("keys");
        assert!(keys.len() >= 8, "{keys:?}");
        for name in keys {
            let left: i64 = redis::cmd("PTTL")
                .arg(&name)
                .query_async(&mut other)
                .await
                .expect("a time");
            let bounded = ["artifactapi:news", "artifactapi:flushes", "artifactapi:epoch"].contains(&name.as_str());
            assert!(name.starts_with("artifactapi:"), "{name}");
            assert_eq!(left == -1, bounded, "{name}: {left}");
            assert!(left <= 30 * 24 * 3_600_000, "{name}: {left}");
        }
    });
}

#[test]
fn a_node_that_comes_back_hears_what_it_missed_and_one_that_missed_too_much_is_told() {
    run(async {
        let Pair { redis, a, b, folders } = pair().await;
        let key = key("/back");
        b.fleet.close().await;
        drop(b);
        let word = fill(&a, &key, 1).await;
        a.fleet.removed(&key);
        let flush = Flush::new(json!({"remote": "hub"}));
        a.fleet.flush(flush.clone()).await;
        a.sent_all().await;
        let b = Member::joined(&redis.url(), folders[1].path()).await;
        let text = key.text.to_string();
        let heard = b.heard();
        assert_eq!(heard.len(), 3, "{heard:?}");
        for news in [
            Heard::Changed(text.clone(), word),
            Heard::Removed(text),
            Heard::Flushed(flush.id.clone()),
        ] {
            assert!(heard.contains(&news), "{heard:?}");
        }
        // Killed, it may hear things twice, but misses none.
        drop(b);
        fill(&a, &key, 2).await;
        let mut other = redis.connection().await;
        let () = redis::cmd("XTRIM")
            .arg(&["artifactapi:news", "MAXLEN", "1"])
            .query_async(&mut other)
            .await
            .expect("trimmed");
        let b = Member::joined(&redis.url(), folders[1].path()).await;
        b.hears(Heard::Distrust).await;
        assert_eq!(b.fleet.flushes().first(), Some(&flush));
    });
}

#[test]
fn a_flush_waits_for_redis_and_outlives_its_node() {
    run(async {
        let Pair {
            mut redis,
            a,
            b,
            folders,
        } = pair().await;
        redis.kill();
        a.is_down().await;
        let flush = Flush::new(json!({"remote": "hub", "mode": "expire"}));
        a.fleet.flush(flush.clone()).await;
        assert_eq!(a.fleet.flushes().first(), Some(&flush));
        drop(a);
        let a = Member::new(&redis.url(), folders[0].path());
        assert_eq!(a.fleet.status().unsent_flushes, 1);
        assert_eq!(a.fleet.flushes().first(), Some(&flush));
        redis.launch().await;
        b.hears(Heard::Flushed(flush.id.clone())).await;
        a.sent_all().await;
        let second = Flush::new(json!({}));
        b.fleet.flush(second.clone()).await;
        a.hears(Heard::Flushed(second.id.clone())).await;
        assert_eq!(a.count(&Heard::Flushed(flush.id.clone())), 0);
        assert_eq!(b.count(&Heard::Flushed(flush.id.clone())), 1);
        let known: Vec<String> = b.fleet.flushes().iter().map(|flush| flush.id.clone()).collect();
        assert_eq!(known, [second.id, flush.id]);
    });
}

#[test]
fn what_was_said_while_redis_was_away_is_sent_and_still_fenced() {
    run(async {
        let redis = Redis::start().await;
        let link = Link::start(redis.address).await;
        let folders = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
        let a = Member::joined(&format!("redis://{}", link.address), folders[0].path()).await;
        let b = Member::joined(&redis.url(), folders[1].path()).await;
        let (early, late, gone) = (key("/early"), key("/late"), key("/gone"));
        fill(&b, &gone, 1).await;
        link.cut();
        a.is_down().await;
        // Of a fill without a lock, before another node's.
        let fence = a.fleet.fence();
        assert_eq!(a.fleet.publish(&early, &record(&a, 1), fence).await, Published::Away);
        a.fleet.removed(&late);
        a.fleet.removed(&gone);
        a.fleet.keep_token("name", "token".into(), Duration::from_secs(60));
        // Redis's clock goes on: what B does is later.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let current = fill(&b, &early, 2).await;
        fill(&b, &late, 3).await;
        assert_eq!(a.fleet.status().outbox, 4);
        let own = record(&a, 4);
        let fence = a.fleet.fence();
        assert_eq!(a.fleet.publish(&key("/own"), &own, fence).await, Published::Away);
        link.restore();
        a.is_up().await;
        a.sent_all().await;
        let word = async |key: &Key| b.look(key).await.word;
        assert_eq!(word(&early).await, Some(current));
        assert_eq!(word(&late).await.expect("a record").id, 3);
        assert_eq!(word(&gone).await, None);
        assert_eq!(word(&key("/own")).await, Some(fenced(own.clone(), fence)));
        b.hears(Heard::Removed(gone.text.to_string())).await;
        b.hears(Heard::Changed(key("/own").text.to_string(), fenced(own, fence)))
            .await;
        assert_eq!(b.fleet.token("name").await.expect("a token").0, "token");
    });
}

#[test]
fn what_does_not_fit_while_redis_is_away_makes_others_ask_again() {
    run(async {
        let Pair {
            mut redis,
            a,
            b,
            folders: _folders,
        } = pair().await;
        redis.kill();
        a.is_down().await;
        b.is_down().await;
        for number in 0..10_500 {
            a.fleet.expired(&key(&format!("/many/{number}")));
        }
        assert!(a.fleet.status().outbox <= 10_000, "{}", a.fleet.status().outbox);
        redis.launch().await;
        b.is_up().await;
        b.forget();
        a.is_up().await;
        eventually(Duration::from_secs(30), "sent", async || a.fleet.status().outbox == 0).await;
        b.hears(Heard::Distrust).await;
        b.hears(Heard::Expired(key("/many/10499").text.to_string())).await;
    });
}

#[test]
fn an_address_without_a_redis_stops_nothing() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let (took, member) =
            timed(async { Member::new(&format!("redis://{}", crate::common::refused()), folder.path()) }).await;
        assert!(took < Duration::from_millis(200), "{took:?}");
        let (took, seen) = timed(member.fleet.look(&key("/none"))).await;
        assert!(seen.is_err() && took < AT_MOST, "{took:?} {seen:?}");
        member.is_down().await;
        let (took, ()) = timed(member.fleet.close()).await;
        assert!(took < Duration::from_secs(1), "{took:?}");
    });
}

#[test]
fn who_and_which_database_come_from_the_url() {
    run(async {
        let redis = Redis::with(&["--requirepass", "right:p@ss"]).await;
        let folder = tempfile::tempdir().expect("a folder");
        let at = redis.address;
        for wrong in [
            format!("redis://:wr0ng@{at}"),
            format!("redis://me:wr0ng@{at}"),
            redis.url(),
        ] {
            let member = Member::new(&wrong, folder.path());
            member.is_down().await;
            let status = format!("{:?}", member.fleet.status());
            assert!(status.contains("password"), "{status}");
            assert!(!status.contains("wr0ng"), "{status}");
            assert!(!format!("{:?}", member.fleet).contains("wr0ng"));
        }
        let member = Member::joined(&format!("redis://default:right%3Ap%40ss@{at}/3"), folder.path()).await;
        assert!(!format!("{:?}", member.fleet).contains("p@ss"));
        fill(&member, &key("/db"), 1).await;
        let client = redis::Client::open(format!("redis://:right%3Ap%40ss@{at}/3")).expect("a URL");
        let mut other = client.get_multiplexed_async_connection().await.expect("a connection");
        let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut other).await.expect("keys");
        assert!(
            keys.iter().any(|name| name.starts_with("artifactapi:fresh:")),
            "{keys:?}"
        );
        let error = Fleet::new(
            &Secret::new("redis://:s3cret@[bad"),
            Node::new(None),
            folder.path(),
            tokio::runtime::Handle::current(),
        );
        let error = error.expect_err("no URL").to_string();
        assert!(!error.contains("s3cret"), "{error}");
    });
}

/// A node in a process of its own, which trusts what its environment says.
#[test]
#[ignore = "started by another test"]
fn tls_process() {
    let Ok(url) = std::env::var("TLS_URL") else { return };
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let member = Member::joined(&url, folder.path()).await;
        fill(&member, &key("/tls"), 5).await;
    });
}

#[test]
fn tls_with_the_systems_roots() {
    run(async {
        let redis = Redis::start().await;
        let authority = Authority::new();
        let acceptor = authority.acceptor(&["localhost"], &[]);
        let listener = crate::common::listen_low();
        listener.set_nonblocking(true).expect("non-blocking");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        let url = format!(
            "rediss://localhost:{}",
            listener.local_addr().expect("its address").port()
        );
        let inner = redis.address;
        let terminating = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((outside, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    let Ok(mut outside) = acceptor.accept(outside).await else {
                        return;
                    };
                    let mut inside = tokio::net::TcpStream::connect(inner).await.expect("Redis");
                    let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
                });
            }
        });
        let folder = tempfile::tempdir().expect("a folder");
        let distrusting = Member::new(&url, folder.path());
        distrusting.is_down().await;
        let why = distrusting.fleet.status().redis.error.expect("a reason").0;
        assert!(why.contains("certificate"), "{why}");
        let child = tokio::process::Command::new(std::env::current_exe().expect("this program"))
            .args(["--ignored", "--exact", "fleet_redis::tls_process"])
            .env("TLS_URL", url)
            .env("SSL_CERT_FILE", authority.path())
            .output()
            .await
            .expect("a process");
        assert!(child.status.success(), "{child:?}");
        let plain = Member::joined(&redis.url(), folder.path()).await;
        let seen = plain.look(&key("/tls")).await;
        assert_eq!(seen.word.expect("a record").id, 5);
        terminating.abort();
    });
}

#[test]
fn a_redis_that_takes_no_writes_is_away() {
    run(async {
        let Pair {
            redis,
            a,
            b: _b,
            folders: _folders,
        } = pair().await;
        let mut other = redis.connection().await;
        let mut limit = async |bytes: &str| {
            let () = redis::cmd("CONFIG")
                .arg(&["SET", "maxmemory", bytes])
                .query_async(&mut other)
                .await
                .expect("set");
        };
        limit("1").await;
        a.is_down().await;
        let why = a.fleet.status().redis.error.expect("a reason").0;
        assert!(why.contains("OOM"), "{why}");
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end {
            assert!(!a.fleet.breaker().is_closed());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        limit("0").await;
        a.is_up().await;
    });
}

#[test]
fn tokens_are_shared_for_as_long_as_they_are_good() {
    run(async {
        let Pair {
            redis: _redis,
            a,
            b,
            folders: _folders,
        } = pair().await;
        assert_eq!(b.fleet.token("one").await, None);
        a.fleet.keep_token("one", "first".into(), Duration::from_secs(60));
        a.fleet.keep_token("two", "short".into(), Duration::from_millis(300));
        a.sent_all().await;
        let (token, left) = b.fleet.token("one").await.expect("a token");
        assert_eq!(token, "first");
        assert!(
            left > Duration::from_secs(50) && left <= Duration::from_secs(60),
            "{left:?}"
        );
        eventually(SOON, "it ends", async || b.fleet.token("two").await.is_none()).await;
        b.fleet.keep_token("one", "second".into(), Duration::from_secs(60));
        b.sent_all().await;
        assert_eq!(a.fleet.token("one").await.expect("a token").0, "second");
    });
}

/// What measures time.
mod heavy {
    use super::*;

    #[test]
    fn a_hung_redis_costs_50_ms_once() {
        run(async {
            let Pair {
                redis,
                a,
                b,
                folders: _folders,
            } = pair().await;
            for round in 0..3 {
                let key = key(&format!("/hung/{round}"));
                fill(&a, &key, 1).await;
                redis.pause();
                let (took, away) = match round {
                    0 => {
                        let (took, away) = timed(a.fleet.look(&key)).await;
                        (took, away.expect_err("away"))
                    }
                    1 => {
                        let (took, away) = timed(a.fleet.take(&key)).await;
                        (took, away.expect_err("away"))
                    }
                    _ => {
                        let (took, token) = timed(a.fleet.token("name")).await;
                        assert_eq!(token, None);
                        (took, Away::TimedOut("redis", Duration::from_millis(50)))
                    }
                };
                assert_eq!(away, Away::TimedOut("redis", Duration::from_millis(50)));
                assert!(took < AT_MOST, "{took:?}");
                let hung = Instant::now();
                while hung.elapsed() < Duration::from_millis(1500) {
                    let (took, seen) = timed(a.fleet.look(&key)).await;
                    assert_eq!(seen, Err(Away::Open("redis")));
                    assert!(took < AT_ONCE, "{took:?}");
                    let (took, taken) = timed(a.fleet.take(&key)).await;
                    assert!(matches!(taken, Err(Away::Open("redis"))), "{taken:?}");
                    assert!(took < AT_ONCE, "{took:?}");
                    let (took, token) = timed(a.fleet.token("name")).await;
                    assert_eq!(token, None);
                    assert!(took < AT_ONCE, "{took:?}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                // Also the node that asked nothing knows by now.
                assert!(!b.fleet.breaker().is_closed() && !b.fleet.status().listening);
                redis.resume();
                a.is_up().await;
                b.is_up().await;
                assert!(hung.elapsed() < Duration::from_millis(1500) + Duration::from_secs(3));
                assert_eq!(a.word(&key).await.id, 1);
                let lease = a.takes(&key).await;
                assert!(!lease.is_lost());
            }
            // It was away and has lost nothing.
            assert_eq!(b.count(&Heard::Distrust), 0, "{:?}", b.heard());
        });
    }

    #[test]
    fn a_hang_is_noticed_within_a_second_without_any_request() {
        run(async {
            let Pair {
                redis,
                a,
                b: _b,
                folders: _folders,
            } = pair().await;
            redis.pause();
            let hung = Instant::now();
            a.is_down().await;
            assert!(hung.elapsed() < Duration::from_millis(1100), "{:?}", hung.elapsed());
            let why = a.fleet.status().redis.error.expect("a reason").0;
            assert!(why.contains("silent") || why.contains("no answer"), "{why}");
        });
    }

    #[test]
    fn a_slow_redis_is_away_until_it_is_quick_again() {
        run(async {
            let redis = Redis::start().await;
            let link = Link::start(redis.address).await;
            let folder = tempfile::tempdir().expect("a folder");
            let member = Member::joined(&format!("redis://{}", link.address), folder.path()).await;
            link.delay(Duration::from_millis(60));
            let key = key("/slow");
            assert!(member.fleet.look(&key).await.is_err());
            let end = Instant::now() + Duration::from_secs(3);
            let mut slow = 0;
            while Instant::now() < end {
                let (took, seen) = timed(member.fleet.look(&key)).await;
                assert!(seen.is_err());
                slow += usize::from(took > AT_ONCE);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert!(slow <= 1, "{slow} of them waited");
            link.restore();
            member.is_up().await;
            assert!(member.fleet.look(&key).await.is_ok());
        });
    }

    #[test]
    fn news_take_milliseconds() {
        run(async {
            let Pair {
                redis: _redis,
                a,
                b,
                folders: _folders,
            } = pair().await;
            let key = key("/news");
            let mut times = Vec::new();
            for id in 0..50 {
                let lease = a.takes(&key).await;
                let word = record(&a, id);
                let said = Instant::now();
                assert_eq!(a.publish(&key, &word, lease.fence()).await, Published::Yes);
                b.hears(Heard::Changed(key.text.to_string(), fenced(word, lease.fence())))
                    .await;
                let heard = b.ear.0.lock().unwrap().last().expect("heard").0;
                times.push(heard.saturating_duration_since(said));
                drop(lease);
                a.sent_all().await;
            }
            times.sort();
            assert!(times[25] < Duration::from_millis(20), "{times:?}");
            assert!(times[49] < Duration::from_secs(1), "{times:?}");
            assert!(a.heard().is_empty(), "{:?}", a.heard());
        });
    }
}
