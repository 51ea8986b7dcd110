//! The object tier against real S3 servers, healthy and not: what is stored comes to be in the bucket, once and whole,
//! and nobody waits for a bucket that is away.

use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::bucket_refusals::scripted;
use crate::common::link::Link;
use crate::common::s3::{self, Kind, S3Server};
use crate::common::server::run_binary;
use crate::common::{Pattern, Reply, Upstream, eventually, run, run_for};
use artifactapi::breaker::Away;
use artifactapi::bucket::{Arbiter, Bucket, Client, Copy, Undisputed};
use artifactapi::cache::{Class, FOR_EVER, Finish, Head, Key, Object, Observer, Referent, Store, now_ms};
use artifactapi::catalog::Catalog;
use artifactapi::config::{CacheSettings, MinFree, S3};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderName, HeaderValue};
use tokio::runtime::Runtime;

pub(crate) const LONG: Duration = Duration::from_secs(30);
const MB: u64 = 1 << 20;

/// A node without its proxy: a store and its bucket. Dropping it ends it as a crash would.
pub(crate) struct Node {
    pub(crate) store: &'static Store,
    pub(crate) bucket: Arc<Bucket>,
    pub(crate) runtime: Option<Runtime>,
}

impl Node {
    pub(crate) fn new(folder: &Path, s3: &S3) -> Node {
        Node::with(folder, s3, 1 << 40, Arc::new(Undisputed))
    }

    pub(crate) fn with(folder: &Path, s3: &S3, disk_bytes: u64, arbiter: Arc<dyn Arbiter>) -> Node {
        let cache = CacheSettings {
            disk_bytes,
            disk_min_free: MinFree::Bytes(0),
            memory_bytes: 1_000_000,
            sync: false,
            scrub_rate: 0,
        };
        let store = Store::open(folder, cache).expect("a store");
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().expect("a runtime");
        let bucket = Bucket::new(s3, folder, store, runtime.handle().clone()).expect("a bucket");
        bucket.start(arbiter);
        Node {
            store,
            bucket,
            runtime: Some(runtime),
        }
    }

    pub(crate) async fn admit(&self, key: &Key, body: impl Into<Bytes>) -> Arc<Object> {
        match self
            .try_admit(key, body.into(), head(&[("content-type", "text/plain")]))
            .await
        {
            Some(object) => object,
            None => panic!("{key:?} was not stored"),
        }
    }

    pub(crate) async fn try_admit(&self, key: &Key, body: Bytes, head: Head) -> Option<Arc<Object>> {
        let fresh = (Class::Immutable, now_ms(), FOR_EVER);
        let mut writer = self
            .store
            .create(key.clone(), head, fresh, None, None, false)
            .await
            .ok()?;
        for piece in body.chunks(1 << 20) {
            writer.write(body.slice_ref(piece)).await.expect("written");
        }
        match writer.finish().await {
            Finish::Admitted(object) => Some(object),
            _ => None,
        }
    }

    pub(crate) async fn drained(&self) {
        assert!(
            self.bucket.drained(LONG).await,
            "not drained: {:?}",
            self.bucket.status()
        );
    }

    pub(crate) async fn found(&self, key: &Key) -> Copy {
        self.bucket
            .find(key)
            .await
            .expect("an answer")
            .expect("it is in the bucket")
    }

    pub(crate) async fn whole(&self, key: &Key) -> Vec<u8> {
        let copy = self.found(key).await;
        self.bytes(&copy, 0, u64::MAX).await.expect("its body")
    }

    pub(crate) async fn bytes(&self, copy: &Copy, start: u64, end: u64) -> io::Result<Vec<u8>> {
        let mut pieces = self.bucket.read(copy, start, end).await.map_err(io::Error::other)?;
        let mut all = Vec::new();
        while let Some(piece) = pieces.next().await {
            all.extend_from_slice(&piece?);
        }
        Ok(all)
    }

    pub(crate) async fn is_healthy(&self, healthy: bool) {
        eventually(LONG, &format!("healthy: {healthy}"), async || {
            self.bucket.breaker().is_closed() == healthy
        })
        .await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn head(headers: &[(&str, &str)]) -> Head {
    Head {
        url: "https://upstream.test/file?signature=geheim".to_owned(),
        headers: headers
            .iter()
            .map(|(name, value)| {
                let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
                (name, HeaderValue::from_str(value).expect("a value"))
            })
            .collect(),
        content_length: None,
        stored_at: now_ms(),
        unframed: false,
        ranges: true,
        stands_for: None,
    }
}

pub(crate) fn key(path: &str) -> Key {
    Key::new("files", path, None, "")
}

pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

/// What the object of a plain path is called.
fn object(path: &str) -> String {
    format!("artifactapi/files/{path}!{}", crate::common::hex(&key(path).hash[..8]))
}

/// How many uploads of a path were begun and not ended. (MinIO lists those of a whole name only.)
async fn unfinished(client: &Client, path: &str) -> usize {
    client.unfinished(&object(path)).await.expect("a listing").len()
}

async fn only_name(client: &Client) -> String {
    let names = s3::names(client).await;
    assert_eq!(names.len(), 1, "{names:?}");
    names[0].clone()
}

fn stored_and_read(kind: Kind) {
    run(async {
        let server = S3Server::start(kind).await;
        let client = server.client("packages");
        let folder = folder();
        let node = Node::new(folder.path(), &server.settings("packages"));
        let headers = [
            ("content-type", "text/plain"),
            ("content-encoding", "gzip"),
            ("etag", "\"up\""),
        ];
        let key = key("dir/some%20file+1.txt");
        let body = Bytes::from_static(b"0123456789");
        let object = node.try_admit(&key, body, head(&headers)).await.expect("stored");
        node.drained().await;

        let name = only_name(&client).await;
        assert!(name.starts_with("artifactapi/files/dir/some%20file+1.txt!"), "{name}");
        let sent = client.head(&name).await.expect("an answer").expect("it is there");
        assert_eq!(sent["content-type"], "text/plain");
        assert!(sent.get("content-encoding").is_none());
        let sha256 = crate::common::sha256(b"0123456789");
        for (field, value) in [("remote", "files"), ("class", "immutable"), ("sha256", &sha256)] {
            assert_eq!(sent[format!("x-amz-meta-{field}")], value);
        }
        let said = sent
            .values()
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        assert!(!said.collect::<String>().contains("geheim"));

        let copy = node.found(&key).await;
        assert_eq!(
            (&copy.key, copy.id, copy.finished),
            (&key, object.id, object.finished().unwrap())
        );
        assert_eq!(copy.head.headers, head(&headers).headers);
        assert_eq!(copy.head.url, "https://upstream.test/file");
        assert_eq!((copy.class, copy.fresh_until), (Class::Immutable, FOR_EVER));
        assert_eq!(copy.identity(), object.identity().unwrap());
        for (start, end, expected) in [
            (0, 10, &b"0123456789"[..]),
            (0, u64::MAX, b"0123456789"),
            (0, 1, b"0"),
            (3, 7, b"3456"),
            (9, 10, b"9"),
            (4, 4, b""),
            (10, 20, b""),
        ] {
            assert_eq!(
                node.bytes(&copy, start, end).await.expect("a range"),
                expected,
                "{start}..{end}"
            );
        }

        // What has no body, what is not shared, what nobody put there, and what others put there.
        let tag = self::key("tag");
        let mut name_only = head(&[]);
        name_only.stands_for = Some(Referent {
            digest: format!("sha256:{sha256}"),
            size: 10,
        });
        node.try_admit(&tag, Bytes::new(), name_only).await.expect("stored");
        node.admit(&Key::new("files", "view", None, "~html"), "view").await;
        node.drained().await;
        assert_eq!(
            node.found(&tag)
                .await
                .described
                .head
                .stands_for
                .expect("a referent")
                .size,
            10
        );
        assert_eq!(node.whole(&tag).await, b"");
        assert_eq!(
            node.bucket
                .find(&self::key("other"))
                .await
                .expect("an answer")
                .map(|copy| copy.described.key),
            None
        );
        assert_eq!(s3::names(&client).await.len(), 2);
        client.delete(&name).await.expect("deleted");
        s3::put(&client, &name, "0123456789").await.expect("put");
        assert!(node.bucket.find(&key).await.expect("an answer").is_none());
        let status = node.bucket.status();
        assert_eq!((status.uploaded, status.uploaded_bytes, status.failed), (2, 10, 0));
        assert!(status.standing.healthy && status.uploads_waiting == 0 && status.oldest_waiting.is_none());
    });
}

#[test]
fn what_is_stored_is_in_the_bucket_and_comes_back() {
    stored_and_read(Kind::Minio);
}

#[test]
fn what_is_stored_is_in_the_bucket_and_comes_back_from_versitygw() {
    stored_and_read(Kind::Versity);
}

fn long_ones(kind: Kind) {
    run(async {
        let server = S3Server::start(kind).await;
        let client = server.client("packages");
        let folder = folder();
        let node = Node::new(folder.path(), &server.settings("packages"));
        let body = Pattern::new(3, 45 * MB + 12_345);
        let key = key("large/file.iso");
        node.admit(&key, body.whole()).await;
        node.drained().await;
        let copy = node.found(&key).await;
        assert!(node.bytes(&copy, 0, u64::MAX).await.expect("its body") == body.whole());
        let (start, end) = (16 * MB - 5, 32 * MB + 7);
        let middle = node.bytes(&copy, start, end).await.expect("a range");
        assert!(middle == body.slice(start, end).whole());
        assert_eq!(unfinished(&client, "large/file.iso").await, 0);
        assert_eq!(node.bucket.status().failed, 0);
    });
}

#[test]
fn long_ones_are_uploaded_in_parts() {
    long_ones(Kind::Minio);
}

#[test]
fn long_ones_are_uploaded_in_parts_to_versitygw() {
    long_ones(Kind::Versity);
}

#[test]
fn a_flush_removes_nothing_that_was_fetched_since() {
    run(async {
        let server = S3Server::start(Kind::Minio).await;
        let folder = folder();
        let node = Node::new(folder.path(), &server.settings("packages"));
        let key = key("index");
        let before = now_ms();
        let object = node.admit(&key, vec![b'a'; 1000]).await;
        node.drained().await;
        node.bucket.remove_older(&key, before);
        node.drained().await;
        assert_eq!(node.whole(&key).await, vec![b'a'; 1000]);
        node.bucket.remove_older(&key, object.head.stored_at + 1);
        node.drained().await;
        assert_eq!(s3::names(&server.client("packages")).await, [""; 0]);
        // Nothing is there any more.
        node.bucket.remove_older(&key, now_ms());
        node.drained().await;
        assert_eq!(node.bucket.status().failed, 0);
    });
}

fn replaced(kind: Kind) {
    run(async {
        let server = S3Server::start(kind).await;
        let folder = folder();
        let node = Node::new(folder.path(), &server.settings("packages"));
        let key = key("index");
        node.admit(&key, vec![b'a'; 1000]).await;
        node.drained().await;
        let old = node.found(&key).await;
        node.admit(&key, vec![b'b'; 1000]).await;
        node.drained().await;
        for (start, end) in [(0, 1000), (500, 600)] {
            assert!(node.bytes(&old, start, end).await.is_err());
        }
        // That is an answer, not an outage.
        assert!(node.bucket.breaker().is_closed());
        assert_eq!(node.whole(&key).await, vec![b'b'; 1000]);
        assert_eq!(s3::names(&server.client("packages")).await.len(), 1);

        node.bucket.remove(&key).await;
        assert!(node.bucket.find(&key).await.expect("an answer").is_none());
        node.drained().await;
        assert_eq!(s3::names(&server.client("packages")).await, [""; 0]);
        node.bucket.remove(&key).await;
        node.drained().await;
        assert_eq!(node.bucket.status().failed, 0);
    });
}

#[test]
fn a_replaced_object_is_never_mixed_and_a_removed_one_gone() {
    replaced(Kind::Minio);
}

#[test]
fn a_replaced_object_is_never_mixed_and_a_removed_one_gone_in_versitygw() {
    replaced(Kind::Versity);
}

/// A process that ends with the test, however that goes.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test: what is killed by one.
#[test]
#[ignore = "run by another test"]
fn child_that_uploads() {
    let (Ok(folder), Ok(address)) = (std::env::var("CHILD_FOLDER"), std::env::var("CHILD_S3")) else {
        return;
    };
    run(async {
        let settings = s3::settings(address.parse().expect("an address"), "packages");
        let node = Node::new(Path::new(&folder), &settings);
        node.admit(&key("large"), Pattern::new(5, 64 * MB).whole()).await;
        std::future::pending::<()>().await;
    });
}

#[test]
fn killed_in_the_middle_of_an_upload_it_goes_on_where_it_was() {
    run(async {
        let server = S3Server::start(Kind::Minio).await;
        let client = server.client("packages");
        let link = Link::start(server.address).await;
        link.delay(Duration::from_millis(10));
        let folder = folder();
        let child = Command::new(std::env::current_exe().expect("this file"))
            .args(["--exact", "bucket::child_that_uploads", "--ignored"])
            .env("CHILD_FOLDER", folder.path())
            .env("CHILD_S3", link.address.to_string())
            .stdout(Stdio::null())
            .spawn()
            .map(Killed)
            .expect("a child");
        let marker = folder
            .path()
            .join("uploads")
            .join(crate::common::hex(&key("large").hash));
        eventually(LONG, "two parts are there", async || {
            std::fs::read_to_string(&marker).is_ok_and(|text| text.matches("\npart ").count() >= 2)
        })
        .await;
        drop(child);
        assert_eq!(unfinished(&client, "large").await, 1);

        link.restore();
        let before = link.bytes();
        let node = Node::new(folder.path(), &s3::settings(link.address, "packages"));
        node.drained().await;
        assert!(link.bytes() - before < 40 * MB, "{} bytes", link.bytes() - before);
        assert_eq!(unfinished(&client, "large").await, 0);
        assert!(!marker.exists());
        assert!(node.whole(&key("large")).await == Pattern::new(5, 64 * MB).whole());
    });
}

#[test]
fn an_upload_whose_id_was_lost_or_whose_object_is_gone_is_given_up() {
    run(async {
        let server = S3Server::start(Kind::Minio).await;
        let client = server.client("packages");
        client.create_bucket().await.expect("a bucket");
        let folder = folder();
        let uploads = folder.path().join("uploads");
        std::fs::create_dir(&uploads).expect("a folder");
        for path in ["lost", "gone"] {
            let key = key(path);
            let object = object(path);
            let id = client.begin(&object, &[]).await.expect("an upload");
            let mut marker = format!("{{\"id\":7,\"object\":\"{object}\",\"part\":16777216}}\n");
            if path == "gone" {
                marker.push_str(&format!("upload {id}\npart \"cut"));
            }
            std::fs::write(uploads.join(crate::common::hex(&key.hash)), marker).expect("written");
        }
        client.begin(&object("other"), &[]).await.expect("an upload");
        let node = Node::new(folder.path(), &server.settings("packages"));
        node.drained().await;
        for (path, left) in [("lost", 0), ("gone", 0), ("other", 1)] {
            assert_eq!(unfinished(&client, path).await, left, "{path}");
        }
        assert_eq!(std::fs::read_dir(&uploads).expect("a folder").count(), 0);
    });
}

#[test]
fn the_newest_of_an_object_is_uploaded_once_and_what_was_begun_is_given_up() {
    run(async {
        let server = S3Server::start(Kind::Minio).await;
        let client = server.client("packages");
        let link = Link::start(server.address).await;
        let folder = folder();
        let node = Node::new(folder.path(), &s3::settings(link.address, "packages"));
        node.is_healthy(true).await;
        eventually(LONG, "a bucket", async || client.ping().await.is_ok()).await;
        link.delay(Duration::from_millis(10));
        let key = key("large");
        node.admit(&key, Pattern::new(1, 60 * MB).whole()).await;
        eventually(LONG, "it has begun", async || unfinished(&client, "large").await > 0).await;
        node.admit(&key, Pattern::new(2, 50 * MB).whole()).await;
        link.restore();
        node.drained().await;
        assert!(node.whole(&key).await == Pattern::new(2, 50 * MB).whole());
        assert_eq!(unfinished(&client, "large").await, 0);
        assert_eq!(node.bucket.status().uploaded, 1);

        // Three that come while none can be sent are one upload, and one that is flushed is none.
        link.cut();
        assert!(node.bucket.find(&key).await.is_err());
        for body in ["1", "2", "3"] {
            node.admit(&self::key("small"), body).await;
            node.admit(&self::key("flushed"), body).await;
        }
        assert_eq!(node.bucket.status().uploads_waiting, 2);
        node.store.remove(self::key("flushed").hash).await;
        assert_eq!(node.bucket.status().uploads_waiting, 1);
        link.restore();
        node.drained().await;
        assert_eq!(node.whole(&self::key("small")).await, b"3");
        assert!(
            node.bucket
                .find(&self::key("flushed"))
                .await
                .expect("an answer")
                .is_none()
        );
        assert_eq!(node.bucket.status().uploaded, 2);
    });
}

fn outage_at_start(kind: Kind) {
    run(async {
        let mut server = S3Server::prepare(kind);
        let folder = folder();
        let began = Instant::now();
        let node = Node::new(folder.path(), &server.settings("packages"));
        assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
        node.admit(&key("a"), "early").await;
        node.is_healthy(false).await;
        let asked = Instant::now();
        let answer = node.bucket.find(&key("a")).await;
        assert!(
            matches!(answer, Err(Away::Open(_))) && asked.elapsed() < Duration::from_millis(100),
            "{answer:?}"
        );
        let status = node.bucket.status();
        assert_eq!((status.uploads_waiting, status.bytes_waiting), (1, 4096));
        assert!(
            status.oldest_waiting.is_some() && status.trouble.is_some(),
            "{status:?}"
        );
        drop(node);

        // Another life, which ends as early; then the server comes.
        let node = Node::new(folder.path(), &server.settings("packages"));
        node.admit(&key("b"), "later").await;
        node.bucket.remove(&key("c")).await;
        eventually(LONG, "it knows of both", async || {
            node.bucket.status().uploads_waiting == 2
        })
        .await;
        server.launch().await;
        node.drained().await;
        node.is_healthy(true).await;
        assert_eq!(node.whole(&key("a")).await, b"early");
        assert_eq!(node.whole(&key("b")).await, b"later");
        let status = node.bucket.status();
        assert!(
            status.trouble.is_none() && status.standing.error.is_none(),
            "{status:?}"
        );
    });
}

#[test]
fn a_bucket_that_is_away_at_the_start_gets_everything_later() {
    outage_at_start(Kind::Minio);
}

#[test]
fn a_bucket_that_is_away_at_the_start_gets_everything_later_in_versitygw() {
    outage_at_start(Kind::Versity);
}

#[test]
fn nobody_waits_for_a_bucket_that_hangs_and_it_heals() {
    run_for(Duration::from_secs(120), async {
        let server = S3Server::start(Kind::Minio).await;
        let link = Link::start(server.address).await;
        let folder = folder();
        let node = Node::new(folder.path(), &s3::settings(link.address, "packages"));
        let body = Pattern::new(9, 8 * MB);
        node.admit(&key("a"), body.whole()).await;
        node.drained().await;
        let copy = node.found(&key("a")).await;

        // Several connections are kept, and all of them lead nowhere afterwards.
        let finds = (0..8).map(|_| node.bucket.find(&copy.key));
        futures_util::future::join_all(finds).await;
        for hang in ["stall", "pause", "slow"] {
            match hang {
                "stall" => link.stall(),
                "pause" => server.pause(),
                _ => link.delay(Duration::from_secs(3)),
            }
            let asked = Instant::now();
            let answer = node.bucket.find(&copy.key).await;
            assert!(matches!(answer, Err(Away::TimedOut(..))), "{hang}: {answer:?}");
            assert!(
                asked.elapsed() < Duration::from_millis(1500),
                "{hang}: {:?}",
                asked.elapsed()
            );
            let asked = Instant::now();
            assert!(matches!(node.bucket.find(&copy.key).await, Err(Away::Open(_))));
            assert!(node.bucket.read(&copy, 0, 10).await.is_err());
            assert!(
                asked.elapsed() < Duration::from_millis(100),
                "{hang}: {:?}",
                asked.elapsed()
            );
            node.admit(&key(hang), "while it hung").await;
            server.resume();
            link.restore();
            node.is_healthy(true).await;
            assert_eq!(node.found(&copy.key).await.id, copy.id, "{hang}");
            node.drained().await;
            assert_eq!(node.whole(&key(hang)).await, b"while it hung");
        }

        // In the middle of a body: first cut, then silent.
        for hang in ["cut", "stall"] {
            link.delay(Duration::from_millis(20));
            let mut pieces = node.bucket.read(&copy, 0, u64::MAX).await.expect("a body");
            let mut got = pieces.next().await.expect("a piece").expect("bytes").to_vec();
            match hang {
                "cut" => link.cut(),
                _ => link.stall(),
            }
            let silent = Instant::now();
            let error = loop {
                match pieces.next().await.expect("no clean end") {
                    Ok(piece) => got.extend_from_slice(&piece),
                    Err(error) => break error,
                }
            };
            assert!(
                silent.elapsed() < Duration::from_secs(7),
                "{hang}: {:?} {error}",
                silent.elapsed()
            );
            assert!(got.len() < body.whole().len() && body.matches(0, &got));
            assert!(!node.bucket.breaker().is_closed());
            link.restore();
            node.is_healthy(true).await;
        }
        assert!(node.whole(&key("a")).await == body.whole());

        // A reader that is slow is none of the bucket's business.
        let mut pieces = node.bucket.read(&copy, 0, u64::MAX).await.expect("a body");
        let mut got = 0;
        while let Some(piece) = pieces.next().await {
            if got == 0 {
                tokio::time::sleep(Duration::from_secs(6)).await;
            }
            got += piece.expect("bytes").len();
        }
        assert_eq!(got as u64, 8 * MB);
    });
}

#[test]
fn an_upload_that_is_cut_is_made_again() {
    run(async {
        let server = S3Server::start(Kind::Minio).await;
        let link = Link::start(server.address).await;
        let folder = folder();
        let node = Node::new(folder.path(), &s3::settings(link.address, "packages"));
        node.is_healthy(true).await;
        let (small, large) = (Pattern::new(1, 20 * MB), Pattern::new(2, 40 * MB));
        link.delay(Duration::from_millis(10));
        node.admit(&key("small"), small.whole()).await;
        node.admit(&key("large"), large.whole()).await;
        for _ in 0..3 {
            let before = link.bytes();
            eventually(LONG, "something passes", async || link.bytes() > before + 4 * MB).await;
            link.cut();
            node.is_healthy(false).await;
            link.delay(Duration::from_millis(10));
            node.is_healthy(true).await;
        }
        link.restore();
        node.drained().await;
        assert!(node.whole(&key("small")).await == small.whole());
        assert!(node.whole(&key("large")).await == large.whole());
        assert_eq!(unfinished(&server.client("packages"), "large").await, 0);
    });
}

#[test]
fn removals_outlast_an_outage_and_a_crash() {
    run(async {
        let server = S3Server::start(Kind::Minio).await;
        let client = server.client("packages");
        let link = Link::start(server.address).await;
        let folder = folder();
        let node = Node::new(folder.path(), &s3::settings(link.address, "packages"));
        for path in ["a", "b"] {
            node.admit(&key(path), "body").await;
        }
        node.drained().await;
        link.cut();
        for path in ["a", "b"] {
            node.store.remove(key(path).hash).await;
            node.bucket.remove(&key(path)).await;
        }
        node.is_healthy(false).await;
        // Removed, and stored again before the bucket could be told.
        node.admit(&key("b"), "again").await;
        let status = node.bucket.status();
        assert_eq!((status.removals_waiting, status.uploads_waiting), (2, 1));
        drop(node);

        let node = Node::new(folder.path(), &s3::settings(link.address, "packages"));
        assert!(
            node.bucket
                .find(&key("a"))
                .await
                .expect("known without asking")
                .is_none()
        );
        link.restore();
        node.drained().await;
        assert_eq!(node.whole(&key("b")).await, b"again");
        assert_eq!(s3::names(&client).await.len(), 1);
        assert_eq!(
            std::fs::read_dir(folder.path().join("removals"))
                .expect("a folder")
                .count(),
            0
        );
    });
}

#[derive(Default)]
struct Seen {
    backed_up: AtomicUsize,
    lost: AtomicUsize,
}

impl Observer for &'static Seen {
    fn used(&self, _: &Key, _: u64) {}
    fn found(&self, _: &Object) {}
    fn evicted(&self, _: &str, _: u64, backed_up: bool) {
        let count = if backed_up { &self.backed_up } else { &self.lost };
        count.fetch_add(1, SeqCst);
    }
    fn lost(&self, _: &str, _: bool) {}
}

#[test]
fn what_waits_to_be_uploaded_is_not_evicted() {
    run(async {
        let mut server = S3Server::prepare(Kind::Minio);
        let folder = folder();
        let node = Node::with(
            folder.path(),
            &server.settings("packages"),
            2 * MB,
            Arc::new(Undisputed),
        );
        let seen: &'static Seen = Box::leak(Box::default());
        node.store.observe(Box::new(seen));
        let body = |n: u64| Pattern::new(n, 100_000).whole();
        let mut stored = Vec::new();
        for n in 0..40 {
            let key = key(&format!("file-{n}"));
            let mut head = head(&[]);
            head.content_length = Some(100_000);
            // Answers pass by unstored once all space is taken by what waits.
            if node.try_admit(&key, body(n), head).await.is_some() {
                stored.push((n, key));
            }
        }
        assert!((15..=20).contains(&stored.len()), "{} were stored", stored.len());
        for (n, key) in &stored {
            let object = node.store.stored(key).await.expect("it is still there");
            assert_eq!(object.finished().unwrap().length, body(*n).len() as u64);
        }
        server.launch().await;
        node.drained().await;
        for n in 100..110 {
            let mut head = head(&[]);
            head.content_length = Some(100_000);
            let stored = node.try_admit(&key(&format!("file-{n}")), body(n), head).await;
            assert!(stored.is_some());
            node.drained().await;
        }
        for (n, key) in &stored {
            assert!(node.whole(key).await == body(*n));
        }
        assert!(seen.backed_up.load(SeqCst) >= 5 && seen.lost.load(SeqCst) == 0);
    });
}

#[test]
fn what_others_keep_in_the_bucket_is_not_touched() {
    run(async {
        let server = S3Server::start(Kind::Minio).await;
        let client = server.client("shared");
        client.create_bucket().await.expect("a bucket");
        let others = ["theirs", "artifactapi-other/x", "other/artifactapi/x!0"];
        for object in others {
            s3::put(&client, object, "theirs").await.expect("put");
        }
        let begun = client.begin("other/large", &[]).await.expect("an upload");
        let folder = folder();
        let node = Node::new(folder.path(), &server.settings("shared"));
        node.admit(&key("a"), "a").await;
        node.drained().await;
        let page = node.bucket.list(None).await.expect("a listing");
        assert_eq!(page.objects.len(), 1);
        assert!(page.objects[0].object.starts_with("artifactapi/files/a!") && page.objects[0].length == 1);
        assert_eq!(
            node.bucket
                .describe(&page.objects[0].object)
                .await
                .expect("an answer")
                .expect("ours")
                .key,
            key("a")
        );
        node.bucket.remove(&key("a")).await;
        node.drained().await;
        for object in others {
            assert!(client.head(object).await.expect("an answer").is_some(), "{object}");
        }
        let left = client.unfinished("other/large").await.expect("a listing");
        assert_eq!(
            left.iter().map(|upload| upload.upload.as_str()).collect::<Vec<_>>(),
            [begun]
        );
    });
}

#[test]
fn a_bucket_that_was_made_anew_gets_back_what_is_stored() {
    run_for(LONG * 3, async {
        let mut server = S3Server::start(Kind::Minio).await;
        let settings = server.settings("packages");
        let client = server.client("packages");
        let folder = folder();
        let mut node = Node::new(folder.path(), &settings);
        for n in 0..70 {
            node.admit(&key(&format!("object-{n}")), format!("body {n}")).await;
        }
        node.drained().await;
        let all = s3::names(&client).await;
        assert_eq!(all.len(), 70);
        let whole = async || {
            eventually(LONG, "all of it is there", async || {
                client.ping().await.is_ok() && s3::names(&client).await == all
            })
            .await;
        };
        // Somebody removed everything while this node was down.
        drop(node);
        for object in &all {
            client.delete(object).await.expect("removed");
        }
        node = Node::new(folder.path(), &settings);
        whole().await;
        node.drained().await;
        // The whole of it went, with and without this node.
        for is_down in [true, false] {
            server.kill();
            std::fs::remove_dir_all(server.folder().join("data/packages")).expect("removed");
            if is_down {
                drop(node);
                server.launch().await;
                node = Node::new(folder.path(), &settings);
            } else {
                server.launch().await;
                // Whoever asks finds that it is gone.
                eventually(LONG, "an answer", async || {
                    node.bucket.find(&key("other")).await.is_ok()
                })
                .await;
            }
            whole().await;
            node.drained().await;
        }
        // Twice for this node: once from before its start.
        assert_eq!(node.bucket.status().missing, 140);
        assert_eq!(node.whole(&key("object-7")).await, b"body 7");
    });
}

#[derive(Default)]
struct Fleet {
    outdated: AtomicBool,
    /// From the second question about an upload on.
    overtaken: AtomicBool,
    asked: AtomicUsize,
    overwrote: AtomicUsize,
    uploaded: AtomicUsize,
}

#[async_trait]
impl Arbiter for Fleet {
    async fn is_outdated(&self, _: &Key, _: u64) -> bool {
        let second = self.asked.fetch_add(1, SeqCst) % 2 == 1;
        self.outdated.load(SeqCst) || (second && self.overtaken.load(SeqCst))
    }
    async fn overwrote(&self, _: &Key) {
        self.overwrote.fetch_add(1, SeqCst);
    }
    async fn uploaded(&self, _: &Key, _: u64) {
        self.uploaded.fetch_add(1, SeqCst);
    }
}

#[test]
fn what_the_fleet_knows_to_be_old_is_not_uploaded() {
    run(async {
        let up = Upstream::start().await;
        scripted(&up, |_| Reply::status(200));
        let folder = folder();
        let fleet = Arc::new(Fleet::default());
        let node = Node::with(
            folder.path(),
            &s3::settings(up.address(), "packages"),
            1 << 40,
            fleet.clone(),
        );
        let puts = || up.log().iter().filter(|seen| seen.method == "PUT").count();
        node.admit(&key("a"), "1").await;
        node.drained().await;
        assert_eq!((puts(), fleet.uploaded.load(SeqCst)), (1, 1));
        node.bucket.upload_again(&key("a"));
        eventually(LONG, "it is there again", async || fleet.uploaded.load(SeqCst) == 2).await;
        fleet.overtaken.store(true, SeqCst);
        node.admit(&key("a"), "2").await;
        node.drained().await;
        assert_eq!(
            (puts(), fleet.uploaded.load(SeqCst), fleet.overwrote.load(SeqCst)),
            (3, 2, 1)
        );
        fleet.outdated.store(true, SeqCst);
        fleet.overtaken.store(false, SeqCst);
        node.admit(&key("a"), "3").await;
        node.drained().await;
        assert_eq!(
            (puts(), fleet.overwrote.load(SeqCst), node.bucket.status().outdated),
            (3, 1, 2)
        );
        // A body may be here before the fleet has been told of it.
        let asked = fleet.asked.load(SeqCst);
        node.admit(&key("a"), "4").await;
        eventually(LONG, "the fleet was asked", async || fleet.asked.load(SeqCst) > asked).await;
        fleet.outdated.store(false, SeqCst);
        node.drained().await;
        assert_eq!((puts(), node.bucket.status().outdated), (4, 2));
    });
}

#[test]
fn damage_is_not_spread_and_what_is_unfit_stays_here() {
    run(async {
        let up = Upstream::start().await;
        scripted(&up, |_| Reply::status(200));
        let folder = folder();
        let node = Node::new(folder.path(), &s3::settings(crate::common::refused(), "packages"));
        node.is_healthy(false).await;
        node.admit(&key("a"), vec![b'x'; 100_000]).await;
        let hash = crate::common::hex(&key("a").hash);
        let file = folder
            .path()
            .join("objects")
            .join(&hash[..2])
            .join(&hash[2..4])
            .join(&hash);
        let mut bytes = std::fs::read(&file).expect("the object");
        *bytes.last_mut().expect("a byte") = b'y';
        std::fs::write(&file, bytes).expect("damaged");
        let mut path = String::new();
        while path.len() < 6000 {
            path.push_str(&crate::common::sha256(path.as_bytes()));
        }
        node.admit(&key(&path), "x").await;
        drop(node);
        let node = Node::new(folder.path(), &s3::settings(up.address(), "packages"));
        node.drained().await;
        assert!(up.log().iter().all(|seen| seen.method != "PUT"));
        assert!(!file.exists());
        assert!(node.store.stored(&key(&path)).await.is_some());
        assert_eq!(node.bucket.status().unfit, 1);
    });
}

fn reindexed(kind: Kind) {
    run_for(Duration::from_secs(90), async {
        let mut server = S3Server::start(kind).await;
        let client = server.client("packages");
        let folder = folder();
        let node = Node::new(folder.path(), &server.settings("packages"));
        for n in 0..30 {
            let headers = [("content-type", "text/plain"), ("etag", "\"e\"")];
            let key = Key::new("files", &format!("dir/{n}"), (n == 7).then_some("a=b/c"), "");
            node.try_admit(&key, Bytes::from(vec![b'x'; n]), head(&headers))
                .await
                .expect("stored");
        }
        node.drained().await;
        s3::put(&client, "artifactapi/files/foreign", "theirs")
            .await
            .expect("put");
        s3::put(&client, "theirs", "theirs").await.expect("put");

        let data = self::folder();
        std::fs::write(
            data.path().join("remotes.yaml"),
            "remotes:\n  files:\n    base_url: http://127.0.0.1:1\n",
        )
        .unwrap();
        let env = server.env("packages");
        let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let known = Catalog::open(&data.path().join("data")).expect("a catalogue");
        known.hits("files", "dir/3", "", 5, 1);
        for _ in 0..2 {
            let ended = run_binary(data.path(), &env, &["reindex"]);
            assert_eq!(ended.code, Some(0), "{}", ended.text());
            assert!(
                ended.stdout.contains("30 objects") && ended.stdout.contains("1 others"),
                "{}",
                ended.stdout
            );
        }
        for (path, size) in [("dir/3", 3), ("dir/7?a=b/c", 7)] {
            let record = known
                .get("files", path)
                .await
                .expect("an answer")
                .expect("it is listed");
            assert_eq!(
                (record.size, record.content_type.as_str(), record.etag.as_deref()),
                (size, "text/plain", Some("\"e\""))
            );
            assert_eq!(record.fresh_until, None);
        }
        known.close().await;

        server.kill();
        let ended = run_binary(data.path(), &env, &["reindex"]);
        assert_eq!(ended.code, Some(1));
        assert!(ended.stderr.contains("cannot be listed"), "{}", ended.text());
        let ended = run_binary(data.path(), &[], &["reindex"]);
        assert_eq!(ended.code, Some(1));
        assert!(ended.stderr.contains("MINIO_ENDPOINT"), "{}", ended.text());
    });
}

#[test]
fn the_catalogue_is_rebuilt_from_the_bucket() {
    reindexed(Kind::Minio);
}

#[test]
fn the_catalogue_is_rebuilt_from_the_bucket_of_versitygw() {
    reindexed(Kind::Versity);
}

#[test]
fn https_is_used_and_verified() {
    run(async {
        let up = Upstream::start_tls().await;
        scripted(&up, |_| Reply::status(200));
        let data = folder();
        std::fs::write(
            data.path().join("remotes.yaml"),
            "remotes:\n  files:\n    base_url: http://127.0.0.1:1\n",
        )
        .expect("written");
        let env = s3::env(up.address(), "packages");
        let mut env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let endpoint = up.base().replacen("https://", "", 1);
        env.extend([("MINIO_ENDPOINT", endpoint.as_str()), ("MINIO_SECURE", "true")]);
        let ended = run_binary(data.path(), &env, &["reindex"]);
        assert_eq!(ended.code, Some(1));
        assert!(ended.stderr.contains("certificate"), "{}", ended.text());
        env.push(("SSL_CERT_FILE", up.ca_file().to_str().expect("a path")));
        let ended = run_binary(data.path(), &env, &["reindex"]);
        assert_eq!(ended.code, Some(0), "{}", ended.text());
        assert!(ended.stdout.contains("0 objects"), "{}", ended.text());
    });
}
