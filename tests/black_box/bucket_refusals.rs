//! What a bucket refuses: one object, all of them, until it takes them again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use crate::bucket::{LONG, Node, folder, key};
use crate::common::s3::{self, Kind, S3Server};
use crate::common::{Proxy, Reply, Upstream, eventually, run};
use artifactapi::config::Secret;

#[test]
fn wrong_credentials_are_said_without_the_secret() {
    run(async {
        for kind in [Kind::Minio, Kind::Versity] {
            let server = S3Server::start(kind).await;
            let folder = folder();
            let mut settings = server.settings("packages");
            settings.secret_key = Secret::new("wrong-geheim");
            let node = Node::new(folder.path(), &settings);
            node.admit(&key("a"), "a").await;
            node.is_healthy(false).await;
            eventually(LONG, "it is said", async || node.bucket.status().trouble.is_some()).await;
            let status = node.bucket.status();
            let said = format!("{status:?} {:?}", node.bucket);
            assert!(said.contains("SignatureDoesNotMatch"), "{said}");
            assert!(!said.contains("geheim") && !said.contains("X-Amz"), "{said}");
            assert_eq!(status.uploads_waiting, 1);
            assert!(node.bucket.find(&key("a")).await.is_err());
        }
    });
}

/// An S3 service that allows and answers what a test says.
pub(crate) fn scripted(up: &Upstream, put: impl Fn(&crate::common::upstream::Seen) -> Reply + Send + Sync + 'static) {
    up.fallback(move |seen| match seen.method.as_str() {
        "GET" => Reply::ok(
            "<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><IsTruncated>false</IsTruncated></ListBucketResult>",
        ),
        "PUT" => put(seen),
        "DELETE" => Reply::status(204),
        _ => Reply::status(404),
    });
}

/// What the service says where it refuses.
fn refusal(status: u16, code: &str) -> Reply {
    let body = format!("<Error><Code>{code}</Code><Message>No.</Message></Error>");
    Reply::new(status, body)
}

#[test]
fn an_object_that_is_refused_holds_up_no_other() {
    run(async {
        let up = Upstream::start().await;
        let allowed = Arc::new(AtomicBool::new(false));
        let now = allowed.clone();
        scripted(&up, move |seen| {
            match seen.path.contains("/bad-") && !now.load(SeqCst) {
                true => refusal(403, "AccessDenied"),
                false => Reply::status(200),
            }
        });
        let folder = folder();
        let node = Node::new(folder.path(), &s3::settings(up.address(), "packages"));
        for n in 0..10 {
            node.admit(&key(&format!("bad-{n}")), "x").await;
        }
        for n in 0..50 {
            node.admit(&key(&format!("good-{n}")), "x").await;
        }
        eventually(LONG, "all good ones", async || node.bucket.status().uploaded == 50).await;
        let status = node.bucket.status();
        assert!(
            status.standing.healthy && status.uploads_waiting == 10 && status.failed == 10,
            "{status:?}"
        );
        // It is left alone for a while, not asked again and again.
        let before = up.total();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(up.total() - before < 3, "{}", up.total() - before);
        // A new body is tried at once.
        allowed.store(true, SeqCst);
        node.admit(&key("bad-0"), "y").await;
        eventually(LONG, "the new one", async || node.bucket.status().uploaded == 51).await;
    });
}

#[test]
fn a_bucket_that_takes_nothing_is_said_and_gets_everything_later() {
    run(async {
        let refusals = [
            (507, "XMinioStorageFull"),
            (403, "QuotaExceeded"),
            (403, "AccessDenied"),
            (500, "InternalError"),
        ];
        for (status, code) in refusals {
            let up = Upstream::start().await;
            let refuses = Arc::new(AtomicBool::new(true));
            let now = refuses.clone();
            scripted(&up, move |_| match now.load(SeqCst) {
                true => refusal(status, code),
                false => Reply::status(200),
            });
            let folder = folder();
            let node = Node::new(folder.path(), &s3::settings(up.address(), "packages"));
            for n in 0..5 {
                node.admit(&key(&format!("object-{n}")), "x").await;
            }
            eventually(LONG, "it is said", async || node.bucket.status().refusing.is_some()).await;
            let status = node.bucket.status();
            let (why, _) = status.refusing.clone().expect("why");
            assert!(why.contains(code) && status.uploads_waiting == 5, "{status:?}");
            // What the bucket has can be had all the same.
            eventually(LONG, "it answers", async || {
                matches!(node.bucket.find(&key("other")).await, Ok(None)) && node.bucket.status().standing.healthy
            })
            .await;
            refuses.store(false, SeqCst);
            node.drained().await;
            let status = node.bucket.status();
            assert!(status.refusing.is_none() && status.uploaded == 5, "{status:?}");
        }
    });
}

#[test]
fn what_was_refused_while_the_bucket_began_to_take_uploads_is_soon_tried_again() {
    run(async {
        let up = Upstream::start().await;
        let refuses = Arc::new(AtomicBool::new(true));
        let now = refuses.clone();
        scripted(&up, move |_| match now.load(SeqCst) {
            true => refusal(403, "AccessDenied").delay(Duration::from_millis(500)),
            false => Reply::status(200),
        });
        let folder = folder();
        let node = Node::new(folder.path(), &s3::settings(up.address(), "packages"));
        node.admit(&key("object"), "x").await;
        eventually(LONG, "it is said", async || node.bucket.status().refusing.is_some()).await;
        // Refused already, and not told yet.
        up.wait_in_flight(1).await;
        refuses.store(false, SeqCst);
        node.drained().await;
        assert_eq!(node.bucket.status().uploaded, 1);
    });
}

#[test]
fn a_full_bucket_is_degraded_and_says_what_waits() {
    run(async {
        let up = Upstream::start().await;
        let full = Arc::new(AtomicBool::new(true));
        let now = full.clone();
        scripted(&up, move |_| match now.load(SeqCst) {
            true => refusal(507, "XMinioStorageFull"),
            false => Reply::status(200),
        });
        let files = Upstream::start().await;
        files.fallback(|seen| Reply::ok(seen.path.clone()));
        let mut settings = Proxy::settings().remotes(&format!("files: {{base_url: '{}'}}", files.base()));
        for (name, value) in s3::env(up.address(), "packages") {
            settings = settings.env(name, value);
        }
        let proxy = settings.start().await;
        for path in ["a", "b", "c"] {
            proxy.fetch("files", path).await.ok();
        }
        let health = async || proxy.request("GET", "/health", &[], b"").await.ok().json();
        eventually(LONG, "it is said", async || health().await["status"] == "degraded").await;
        let s3 = health().await["dependencies"]["s3"].clone();
        let detail = s3["detail"].as_str().expect("a reason");
        assert!(
            detail.contains("takes no uploads") && detail.contains("XMinioStorageFull"),
            "{s3}"
        );
        assert!(s3["uploads_waiting"] == 3 && s3["status"] == "degraded", "{s3}");
        assert_eq!(proxy.metric("artifactapi_bucket_takes_uploads", &[]).await, 0.0);
        assert!(proxy.log_contains("make room in the bucket") && !proxy.log_contains("policy"));
        full.store(false, SeqCst);
        eventually(LONG, "all is well", async || {
            let health = health().await;
            health["status"] == "ok" && health["dependencies"]["s3"]["uploads_waiting"] == 0
        })
        .await;
        assert_eq!(proxy.metric("artifactapi_bucket_takes_uploads", &[]).await, 1.0);
    });
}

#[test]
fn errors_of_the_service_are_outages_and_its_refusals_say_what_to_do() {
    run(async {
        let up = Upstream::start().await;
        scripted(&up, |_| Reply::status(200));
        let folder = folder();
        let node = Node::new(folder.path(), &s3::settings(up.address(), "packages"));
        node.is_healthy(true).await;
        assert!(node.bucket.find(&key("a")).await.expect("an answer").is_none());
        for (status, said) in [(500, "HTTP 500"), (503, "HTTP 503")] {
            up.fallback(move |_| Reply::status(status));
            let away = node.bucket.find(&key("a")).await.expect_err("away").to_string();
            assert!(away.contains(said), "{away}");
            node.is_healthy(false).await;
            scripted(&up, |_| Reply::status(200));
            node.is_healthy(true).await;
        }
        // One key that is refused while the bucket can be read is that key's business.
        let list = "<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><IsTruncated>false</IsTruncated></ListBucketResult>";
        up.fallback(move |seen| {
            if seen.method == "HEAD" {
                Reply::status(403)
            } else {
                Reply::ok(list)
            }
        });
        assert!(node.bucket.find(&key("a")).await.is_err());
        assert!(node.bucket.breaker().is_closed());
        // Everything refused, without a word in the answer to HEAD.
        let skewed = "<Error><Code>RequestTimeTooSkewed</Code><Message>The clocks differ.</Message></Error>";
        up.fallback(move |seen| {
            if seen.method == "HEAD" {
                Reply::status(403)
            } else {
                Reply::new(403, skewed)
            }
        });
        let away = node.bucket.find(&key("a")).await.expect_err("away").to_string();
        assert!(away.contains("RequestTimeTooSkewed: The clocks differ."), "{away}");
        node.is_healthy(false).await;

        // A bucket that is not there and may not be made.
        up.fallback(|seen| match seen.method.as_str() {
            "GET" => refusal(404, "NoSuchBucket"),
            _ => refusal(403, "AccessDenied"),
        });
        let says = async || {
            let trouble = node.bucket.status().trouble.unwrap_or_default();
            trouble.contains("AccessDenied") && trouble.contains("create it, or allow it")
        };
        eventually(LONG, "what to do is said", says).await;
    });
}
