//! Large layers: streamed while they grow, read in parallel far ahead, taken up again; memory stays flat.

use std::time::Duration;

use crate::common::client::Headers;
use crate::common::image::*;
use crate::common::pull::*;
use crate::common::registry::*;
use crate::common::{Gate, Pattern, Proxy, client, run, run_for};
use tokio::task::JoinSet;

const MB: u64 = 1_000_000;

async fn pair(layer: &Blob) -> (Registry, Proxy) {
    let registry = Registry::start().await.redirecting().await;
    registry.push("team/app", "v1", &Manifest::of_blobs("app", vec![layer.clone()]));
    let proxy = Proxy::start(&registry.remote("hub", "")).await;
    (registry, proxy)
}

#[test]
fn a_layer_is_streamed_while_it_grows_and_others_join() {
    run(async {
        let (body, gate) = (Pattern::new(1, 8 * MB), Gate::new());
        let layer = Blob::new(body);
        let (registry, proxy) = pair(&layer).await;
        let held = gate.clone();
        registry.change(&storage_path(&layer.digest), move |_, reply| {
            reply.pause_at(6 * MB, &held)
        });
        let target = blob_at("hub/team/app", &layer.digest);
        let mut clients = JoinSet::new();
        for _ in 0..10 {
            let mut connection = proxy.connect().await;
            connection.send("GET", &target, &[], b"").await;
            connection.read_head("GET").await;
            let start = connection.read_body_until(5 * MB as usize).await;
            assert!(body.matches(0, &start));
            clients.spawn(async move { (start.len() as u64, connection) });
        }
        // All ten hold five megabytes of a body whose end has not been sent yet.
        let mut waiting = clients.join_all().await;
        gate.open();
        for (have, connection) in &mut waiting {
            assert_eq!(*have + connection.read_pattern(body.slice(*have, 8 * MB)).await, 8 * MB);
            assert!(connection.is_complete());
        }
        assert_eq!(registry.stored("*", &layer.digest), 1);
    });
}

#[test]
fn ranges_far_ahead_of_the_fill_do_not_wait_for_it() {
    run(async {
        let (body, gate) = (Pattern::new(2, 60 * MB), Gate::new());
        let layer = Blob::new(body);
        let (registry, proxy) = pair(&layer).await;
        let held = gate.clone();
        registry.change(&storage_path(&layer.digest), move |seen, reply| {
            let whole = seen.header("range").is_none() || seen.header("range") == Some("bytes=0-");
            if whole { reply.pause_at(MB, &held) } else { reply }
        });
        let target = blob_at("hub/team/app", &layer.digest);
        let mut first = proxy.connect().await;
        first.send("GET", &target, &[], b"").await;
        assert_eq!(first.read_head("GET").await.status, 200);
        let start = first.read_body_until(500_000).await;
        // As containerd fetches a large layer: ranges side by side, while the fill stands still near its start.
        let mut ranges = JoinSet::new();
        for number in 1..6u64 {
            let (from, to) = (number * 10 * MB, number * 10 * MB + 2 * MB);
            let (address, target) = (proxy.address(), target.clone());
            ranges.spawn(async move {
                let range = format!("bytes={from}-{}", to - 1);
                let answer = client::get_with(address, &target, &[("Range", &range)])
                    .await
                    .expect(206);
                assert_eq!(
                    answer.must("content-range"),
                    format!("bytes {from}-{}/60000000", to - 1)
                );
                assert!(answer.body == body.slice(from, to).whole(), "{range}");
            });
        }
        while let Some(range) = ranges.join_next().await {
            range.unwrap();
        }
        gate.open();
        let have = start.len() as u64;
        assert_eq!(have + first.read_pattern(body.slice(have, 60 * MB)).await, 60 * MB);
        until_cached(&proxy, &target).await;
        for seen in registry.storage().log() {
            assert_eq!(seen.header("authorization"), None);
        }
        // From now on all of it is here.
        registry.switch_off().await;
        let answer = client::get_with(proxy.address(), &target, &[("Range", "bytes=40000000-40000009")]).await;
        assert!(answer.expect(206).body == body.slice(40 * MB, 40 * MB + 10).whole());
    });
}

#[test]
fn a_client_that_was_cut_off_takes_it_up_again_while_it_fills() {
    run(async {
        let (body, gate) = (Pattern::new(3, 10 * MB), Gate::new());
        let layer = Blob::new(body);
        let (registry, proxy) = pair(&layer).await;
        let held = gate.clone();
        registry.change(&storage_path(&layer.digest), move |_, reply| {
            reply.pause_at(8 * MB, &held)
        });
        let target = blob_at("hub/team/app", &layer.digest);
        let mut cut = proxy.connect().await;
        cut.send("GET", &target, &[], b"").await;
        cut.read_head("GET").await;
        let have = cut.read_body_until(2 * MB as usize).await.len() as u64;
        let mut stays = proxy.connect().await;
        stays.send("GET", &target, &[], b"").await;
        stays.read_head("GET").await;
        stays.read_body_until(MB as usize).await;
        cut.reset();
        let mut again = proxy.connect().await;
        let range = format!("bytes={have}-");
        again.send("GET", &target, &[("Range", &range)], b"").await;
        let head = again.read_head("GET").await;
        assert_eq!(head.status, 206);
        assert_eq!(head.must("content-range"), format!("bytes {have}-9999999/10000000"));
        let more = again.read_body_until(3 * MB as usize).await;
        assert!(body.matches(have, &more), "wrong bytes after {have}");
        gate.open();
        let at = have + more.len() as u64;
        assert_eq!(at + again.read_pattern(body.slice(at, 10 * MB)).await, 10 * MB);
        stays.read_body().await;
        assert!(stays.is_complete());
        assert_eq!(
            registry.stored("GET", &layer.digest),
            1,
            "what was filling was fetched again"
        );
    });
}

#[test]
fn a_fill_goes_on_when_its_first_client_leaves_while_others_read() {
    run(async {
        let (body, gate) = (Pattern::new(4, 10 * MB), Gate::new());
        let layer = Blob::new(body);
        let (registry, proxy) = pair(&layer).await;
        let held = gate.clone();
        registry.change(&storage_path(&layer.digest), move |_, reply| {
            reply.pause_at(5 * MB, &held)
        });
        let target = blob_at("hub/team/app", &layer.digest);
        let mut first = proxy.connect().await;
        first.send("GET", &target, &[], b"").await;
        first.read_head("GET").await;
        let mut second = proxy.connect().await;
        second.send("GET", &target, &[], b"").await;
        second.read_head("GET").await;
        let have = second.read_body_until(MB as usize).await.len() as u64;
        first.reset();
        gate.open();
        assert_eq!(have + second.read_pattern(body.slice(have, 10 * MB)).await, 10 * MB);
        until_cached(&proxy, &target).await;
        assert_eq!(registry.stored("GET", &layer.digest), 1);
    });
}

mod heavy {
    use super::*;

    #[test]
    fn a_layer_of_gigabytes_is_verified_and_kept_in_flat_memory() {
        run_for(Duration::from_secs(200), async {
            let body = Pattern::new(5, 2_200 * MB);
            let layer = Blob::new(body);
            let registry = Registry::start().await.redirecting().await;
            registry.push("team/app", "v1", &Manifest::of_blobs("app", vec![layer.clone()]));
            let proxy = Proxy::settings()
                .remotes(&registry.remote("hub", ""))
                .conf("cache: {memory_bytes: 8MB}\n")
                .start()
                .await;
            get_manifest(&proxy, "hub/team/app", "v1").await.ok();
            let (before, _) = proxy.memory();
            let target = blob_at("hub/team/app", &layer.digest);
            let mut connection = proxy.connect().await;
            connection.send("GET", &target, &[], b"").await;
            let head = connection.read_head("GET").await;
            assert_eq!((head.status, head.must("content-length")), (200, "2200000000"));
            assert_eq!(connection.read_pattern(body).await, body.length);
            assert!(connection.is_complete());
            let cached = crate::common::eventually(Duration::from_secs(30), "it is stored", async || {
                client::head(proxy.address(), &target).await.source() == "cache"
            });
            cached.await;
            let range = [("Range", "bytes=2100000000-2100000099")];
            let answer = client::get_with(proxy.address(), &target, &range).await.expect(206);
            assert!(answer.body == body.slice(2_100 * MB, 2_100 * MB + 100).whole());
            let (_, most) = proxy.memory();
            assert!(
                most < before + 100 * MB,
                "{} MB more than at the start",
                (most - before) / MB
            );
            assert_eq!(registry.stored("GET", &layer.digest), 1);
        });
    }
}
