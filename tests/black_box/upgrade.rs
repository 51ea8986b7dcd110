//! A new process takes the place of the one that runs, and no client notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::common::server::at;
use crate::common::{Connection, Gate, Pattern, Proxy, Reply, Upstream, eventually, run};

const UPGRADE: &str = "--upgrade";

/// Asks for `path` on new connections, as fast as they are answered, until told to stop. How many were answered.
fn ask_all_the_time(proxy: &Proxy, stop: &Arc<AtomicBool>) -> (tokio::task::JoinHandle<()>, Arc<AtomicUsize>) {
    let answered = Arc::new(AtomicUsize::new(0));
    let (address, stop, count) = (proxy.address(), Arc::clone(stop), Arc::clone(&answered));
    let asking = tokio::spawn(async move {
        while !stop.load(Ordering::SeqCst) {
            let mut connection = Connection::try_open(address).await.expect("nobody is refused");
            let headers = [("Connection", "close")];
            connection.send("GET", &at("files", "x"), &headers, b"").await;
            let head = connection.try_read_head("GET").await.expect("an answer");
            assert_eq!(head.status, 200);
            assert_eq!(connection.read_body().await, "x");
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    (asking, answered)
}

#[test]
fn no_request_fails_while_one_process_follows_another() {
    run(async {
        let up = Upstream::start().await;
        let gate = Gate::new();
        let body = Pattern::new(1, 3_000_000);
        up.reply("/x", Reply::ok("x"));
        up.reply("/large", Reply::ok(body).pause_at(1_000_000, &gate));
        let mut old = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
        old.until_cached("files", "x").await;
        let mut download = old.connect().await;
        download.send("GET", &at("files", "large"), &[], b"").await;
        assert_eq!(download.read_head("GET").await.status, 200);
        let begun = download.read_body_until(500_000).await;
        let stop = Arc::new(AtomicBool::new(false));
        let askers: Vec<_> = (0..4).map(|_| ask_all_the_time(&old, &stop)).collect();
        let goes_on = async |what: &str| {
            let before: Vec<usize> = askers.iter().map(|(_, count)| count.load(Ordering::SeqCst)).collect();
            eventually(Duration::from_secs(20), what, async || {
                let now = askers.iter().map(|(_, count)| count.load(Ordering::SeqCst));
                now.zip(&before).all(|(now, before)| now > before + 10)
            })
            .await;
        };
        goes_on("the old one answers").await;
        let new = old.successor(&[UPGRADE]);
        old.wait_for_log("a new process serves").await;
        old.wait_for_log("stopping").await;
        goes_on("the new one answers").await;
        // What the old one had begun ends whole, and then it ends.
        gate.open();
        let mut got = begun;
        while let Some(piece) = download.read_body_chunk().await {
            got.extend_from_slice(&piece);
        }
        assert!(download.is_complete() && got == body.whole(), "{} bytes", got.len());
        assert!(old.ended(Duration::from_secs(20)).await.success());
        goes_on("the new one is alone").await;
        stop.store(true, Ordering::SeqCst);
        for (asking, _) in askers {
            asking.await.expect("no request failed");
        }
        // What was stored before is there, what was downloaded while one ended can be had, and so can the next upgrade.
        old.adopt(new);
        old.fetch("files", "x").await.is("cache", "x");
        old.until_cached("files", "large").await.is("cache", body.whole());
        assert_eq!(up.count("GET", "/x"), 1);
        let newest = old.successor(&[UPGRADE]);
        assert!(old.ended(Duration::from_secs(20)).await.success());
        old.adopt(newest);
        old.fetch("files", "x").await.is("cache", "x");
        assert!(old.stop().await.success());
        assert!(
            Connection::try_open(old.address()).await.is_err(),
            "nobody listens any more"
        );
    });
}

#[test]
fn a_new_process_that_does_not_start_changes_nothing() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/x", Reply::ok("x"));
        let good = format!("files:\n  base_url: {}\n", up.base());
        let mut old = Proxy::start(&good).await;
        old.until_cached("files", "x").await;
        // A configuration with an error, and an address that is another's: that is found out after the sockets were taken.
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let others = other.local_addr().unwrap().to_string();
        old.write_remotes("files:\n  base_url: nonsense\n");
        let mut bad = old.successor(&[UPGRADE]);
        assert!(!bad.ends().success());
        old.write_remotes(&good);
        let mut bad = old.successor(&[UPGRADE, "--listen", &others]);
        assert!(!bad.ends().success());
        drop(other);
        old.wait_for_log("cannot listen on").await;
        old.fetch("files", "x").await.is("cache", "x");
        let new = old.successor(&[UPGRADE]);
        assert!(old.ended(Duration::from_secs(20)).await.success());
        old.adopt(new);
        old.fetch("files", "x").await.is("cache", "x");
    });
}

#[test]
fn an_upgrade_of_nothing_says_so() {
    run(async {
        let up = Upstream::start().await;
        let mut proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
        assert!(proxy.stop().await.success());
        let mut alone = proxy.successor(&[UPGRADE]);
        assert!(!alone.ends().success());
        proxy.wait_for_log("start without --upgrade").await;
    });
}
