//! Several nodes over the same backends.

use std::time::Duration;

use super::redis::Redis;
use super::s3::{Kind, S3Server};
use super::server::Settings;
use super::{Proxy, eventually};

/// The bucket of all tests; each has a server of its own.
pub const BUCKET: &str = "artifacts";

/// Redis and S3, for nodes to share.
pub struct Backends {
    pub redis: Redis,
    pub s3: S3Server,
}

impl Backends {
    pub async fn start() -> Backends {
        let (redis, s3) = tokio::join!(Redis::start(), S3Server::start(Kind::Minio));
        Backends { redis, s3 }
    }

    /// A node that shares them, and that others can read from.
    pub async fn node(&self, remotes: &str) -> Proxy {
        reachable(self.settings(remotes)).start().await
    }

    /// A node that shares them, before it is started.
    pub fn settings(&self, remotes: &str) -> Settings {
        with_s3(
            with_redis(Proxy::settings().remotes(remotes), &self.redis.url()),
            &self.s3,
        )
    }
}

/// Shares freshness, locks and news through Redis.
pub fn with_redis(settings: Settings, url: &str) -> Settings {
    settings.env("REDIS_URL", url)
}

/// Shares the bucket.
pub fn with_s3(mut settings: Settings, s3: &S3Server) -> Settings {
    for (name, value) in s3.env(BUCKET) {
        settings = settings.env(name, value);
    }
    settings
}

/// Other nodes can read from it.
pub fn reachable(settings: Settings) -> Settings {
    settings
        .env("ARTIFACTAPI_NODE_URL", "http://{address}")
        .env("ARTIFACTAPI_NODE_SECRET", "the-nodes-own")
}

/// Waits until `node` hears the others and has nothing left to upload.
pub async fn settled(node: &Proxy) {
    eventually(Duration::from_secs(20), "everything is uploaded", async || {
        let health = node.request("GET", "/health", &[], b"").await.json();
        let s3 = &health["dependencies"]["s3"];
        s3.is_null() || s3["status"] == "ok" && s3["uploads_waiting"] == 0 && s3["removals_waiting"] == 0
    })
    .await;
}

/// Waits until `node` has nothing left to remove from the bucket.
pub async fn removed(node: &Proxy) {
    eventually(Duration::from_secs(20), "all is removed", async || {
        let health = node.request("GET", "/health", &[], b"").await.json();
        health["dependencies"]["s3"]["removals_waiting"] == 0
    })
    .await;
}

/// Waits until `node` is in touch with all its backends.
pub async fn ready(node: &Proxy) {
    eventually(Duration::from_secs(20), "all backends answer", async || {
        let health = node.request("GET", "/health/ready", &[], b"").await.json();
        health["status"] == "ok"
    })
    .await;
}
