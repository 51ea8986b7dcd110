//! How the program ends.

use std::time::{Duration, Instant};

use crate::common::server::at;
use crate::common::{Connection, Gate, Pattern, Proxy, Reply, Upstream, eventually, run};

#[test]
fn with_nothing_in_flight_it_ends_at_once() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/x", Reply::ok("x"));
        // Far more time than the test has: nothing waits for it.
        let mut proxy = Proxy::settings()
            .remotes(&format!("files:\n  base_url: {}\n", up.base()))
            .conf("stop_timeout: 10m\naccess_log: access.log\n")
            .start()
            .await;
        proxy.until_cached("files", "x").await;
        let mut idle = proxy.connect().await;
        idle.get(&at("files", "x")).await.is("cache", "x");
        let began = Instant::now();
        assert!(proxy.stop().await.success());
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    });
}

#[test]
fn what_is_in_flight_ends_whole_and_nothing_new_begins() {
    run(async {
        let up = Upstream::start().await;
        let gate = Gate::new();
        let body = Pattern::new(1, 3_000_000);
        up.reply("/large", Reply::ok(body).pause_at(1_000_000, &gate));
        let mut proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
        let mut download = proxy.connect().await;
        download.send("GET", &at("files", "large"), &[], b"").await;
        assert_eq!(download.read_head("GET").await.status, 200);
        proxy.ask_to_stop();
        eventually(Duration::from_secs(10), "nobody is let in any more", async || {
            Connection::try_open(proxy.address()).await.is_err()
        })
        .await;
        gate.open();
        assert_eq!(download.read_body().await, body.whole());
        assert!(download.is_complete());
        assert!(proxy.ended(Duration::from_secs(10)).await.success());
    });
}

#[test]
fn what_does_not_end_is_waited_for_as_long_as_was_said() {
    run(async {
        let up = Upstream::start().await;
        let gate = Gate::new();
        up.reply("/x", Reply::ok("x").gated(&gate));
        let mut proxy = Proxy::settings()
            .remotes(&format!("files:\n  base_url: {}\n", up.base()))
            .conf("stop_timeout: 1s\n")
            .start()
            .await;
        let mut waiting = proxy.connect().await;
        waiting.send("GET", &at("files", "x"), &[], b"").await;
        up.wait_in_flight(1).await;
        let began = Instant::now();
        proxy.ask_to_stop();
        proxy.ended(Duration::from_secs(15)).await;
        assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
        assert!(proxy.log_contains("stopping with requests in flight"));
        gate.open();
    });
}
