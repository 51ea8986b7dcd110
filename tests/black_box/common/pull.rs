//! Pulling from the proxy, piece by piece.

use std::time::{Duration, Instant};

use super::client::{self, Headers, Response};
use super::image::{ACCEPT_ALL, Manifest};
use super::registry::{blob_at, manifest_at};
use super::server::Proxy;

/// GET of a manifest, as clients of today ask.
pub async fn get_manifest(proxy: &Proxy, repository: &str, reference: &str) -> Response {
    get_manifest_as(proxy, repository, reference, ACCEPT_ALL).await
}

pub async fn get_manifest_as(proxy: &Proxy, repository: &str, reference: &str, accept: &str) -> Response {
    let target = manifest_at(repository, reference);
    client::get_with(proxy.address(), &target, &[("Accept", accept)]).await
}

pub async fn head_manifest(proxy: &Proxy, repository: &str, reference: &str) -> Response {
    let target = manifest_at(repository, reference);
    proxy.request("HEAD", &target, &[("Accept", ACCEPT_ALL)], b"").await
}

pub async fn get_blob(proxy: &Proxy, repository: &str, digest: &str) -> Response {
    client::get(proxy.address(), &blob_at(repository, digest)).await
}

/// Pulls all that is under a tag, and compares every byte.
pub async fn pull(proxy: &Proxy, repository: &str, tag: &str, manifest: &Manifest) {
    let top = get_manifest(proxy, repository, tag).await.ok();
    assert!(top.body == manifest.bytes, "another manifest: {}", top.text());
    for part in manifest.all() {
        let answer = get_manifest(proxy, repository, &part.digest).await.ok();
        assert!(answer.body == part.bytes, "another manifest: {}", answer.text());
        assert_eq!(answer.must("docker-content-digest"), part.digest);
        for blob in &part.blobs {
            let answer = get_blob(proxy, repository, &blob.digest).await.ok();
            assert!(answer.body == blob.bytes(), "other bytes for {}", blob.digest);
        }
    }
}

/// Waits until a target of the proxy is answered from the cache.
pub async fn until_cached(proxy: &Proxy, target: &str) -> Response {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let answer = client::get_with(proxy.address(), target, &[("Accept", ACCEPT_ALL)]).await;
        if answer.source() == "cache" {
            return answer.ok();
        }
        assert!(Instant::now() < end, "never from the cache: {:?}", answer.headers);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until all that is under a tag is answered from the cache.
pub async fn until_stored(proxy: &Proxy, repository: &str, tag: &str, manifest: &Manifest) {
    until_cached(proxy, &manifest_at(repository, tag)).await;
    for part in manifest.all() {
        until_cached(proxy, &manifest_at(repository, &part.digest)).await;
        for blob in &part.blobs {
            until_cached(proxy, &blob_at(repository, &blob.digest)).await;
        }
    }
}

/// Fails unless this is a registry's error with this status and code; gives its message.
#[track_caller]
pub fn refused(answer: Response, status: u16, code: &str) -> String {
    let answer = answer.expect(status);
    assert!(
        answer.must("content-type").starts_with("application/json"),
        "{:?}",
        answer.headers
    );
    let body = answer.json();
    let errors = body["errors"].as_array().unwrap_or_else(|| panic!("no errors: {body}"));
    assert_eq!(errors[0]["code"], code, "{body}");
    let message = errors[0]["message"].as_str().unwrap_or_default();
    assert!(message.len() > 5, "an error without a message: {body}");
    message.to_owned()
}
