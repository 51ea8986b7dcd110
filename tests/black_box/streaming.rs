//! Fills: one upstream request for many clients, all streaming from what has grown; nobody can stall or break it.

use std::time::{Duration, Instant, SystemTime};

use crate::common::cgroup::Cgroup;
use crate::common::client::Headers;
use crate::common::h2client::H2Connection;
use crate::common::server::at;
use crate::common::{Connection, File, Gate, Pattern, Proxy, Reply, Upstream, eventually, run, run_for};
use tokio::task::JoinSet;

const MB: u64 = 1_000_000;

async fn pair() -> (Upstream, Proxy) {
    let up = Upstream::start().await;
    let proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
    (up, proxy)
}

#[test]
fn many_clients_of_one_cold_object_make_one_upstream_request() {
    run(async {
        let (up, proxy) = pair().await;
        let (body, gate) = (Pattern::new(1, 5 * MB), Gate::new());
        up.reply("/x", Reply::ok(body).gated(&gate));
        let mut clients = JoinSet::new();
        for _ in 0..50 {
            let mut connection = proxy.connect().await;
            connection.send("GET", &at("files", "x"), &[], b"").await;
            clients.spawn(async move {
                let head = connection.read_head("GET").await;
                assert_eq!(connection.read_pattern(body).await, 5 * MB);
                head
            });
        }
        up.wait_for("GET", "/x", 1).await;
        gate.open();
        let mut collapsed = 0;
        while let Some(head) = clients.join_next().await {
            let head = head.unwrap();
            assert_eq!((head.status, head.must("content-length")), (200, "5000000"));
            collapsed += usize::from(head.cache_words().contains(&"collapsed".to_owned()));
            if !head.cache_status().contains("hit") {
                assert_eq!(head.source(), "remote", "{:?}", head.headers);
            }
        }
        assert!(collapsed > 0, "nobody joined");
        assert_eq!(up.total(), 1);
    });
}

#[test]
fn an_error_is_shared_by_those_who_wait_for_it() {
    run(async {
        let (up, proxy) = pair().await;
        let gate = Gate::new();
        up.reply("/x", Reply::new(404, "none").gated(&gate));
        let mut clients = JoinSet::new();
        for _ in 0..20 {
            let address = proxy.address();
            clients.spawn(async move { crate::common::get(address, &at("files", "x")).await.status });
        }
        up.wait_for("GET", "/x", 1).await;
        gate.open();
        while let Some(status) = clients.join_next().await {
            assert_eq!(status.unwrap(), 404);
        }
        assert_eq!(up.total(), 1);
    });
}

#[test]
fn bytes_reach_every_client_while_the_rest_still_grows() {
    run(async {
        let (up, proxy) = pair().await;
        let body = Pattern::new(2, 4 * MB);
        for path in ["length", "chunked"] {
            let gate = Gate::new();
            let reply = Reply::ok(body).pause_at(3 * MB, &gate);
            up.reply(
                &format!("/{path}"),
                if path == "chunked" { reply.chunked() } else { reply },
            );
            let mut clients = Vec::new();
            for _ in 0..3 {
                let mut connection = proxy.connect().await;
                connection.send("GET", &at("files", path), &[], b"").await;
                assert_eq!(connection.read_head("GET").await.status, 200);
                // Almost all of what upstream has sent is there before upstream goes on.
                let early = connection.read_body_until(2_900_000).await;
                assert!(body.matches(0, &early));
                clients.push((connection, early.len() as u64));
            }
            gate.open();
            for (mut connection, offset) in clients {
                assert_eq!(
                    connection.read_pattern(body.slice(offset, 4 * MB)).await,
                    4 * MB - offset
                );
                assert!(connection.is_complete());
            }
            assert_eq!(up.count("GET", &format!("/{path}")), 1);
        }
    });
}

#[test]
fn the_first_client_may_leave_and_the_fill_goes_on() {
    run(async {
        let (up, proxy) = pair().await;
        let (body, gate) = (Pattern::new(3, 4 * MB), Gate::new());
        up.reply("/x", Reply::ok(body).pause_at(MB, &gate));
        let mut first = proxy.connect().await;
        first.send("GET", &at("files", "x"), &[], b"").await;
        first.read_head("GET").await;
        first.read_body_until(500_000).await;
        let mut second = proxy.connect().await;
        second.send("GET", &at("files", "x"), &[], b"").await;
        second.read_head("GET").await;
        first.reset();
        gate.open();
        assert_eq!(second.read_pattern(body).await, 4 * MB);
        proxy.until_cached("files", "x").await.is("cache", body.whole());
        assert_eq!(up.total(), 1);
    });
}

#[test]
fn when_all_clients_leave_the_fill_still_ends() {
    run(async {
        let (up, proxy) = pair().await;
        let (body, gate) = (Pattern::new(4, 4 * MB), Gate::new());
        up.reply("/x", Reply::ok(body).pause_at(MB, &gate))
            .reply("/cold", Reply::ok("cold").gated(&gate));
        for path in ["x", "cold"] {
            let mut only = proxy.connect().await;
            only.send("GET", &at("files", path), &[], b"").await;
            up.wait_for("GET", &format!("/{path}"), 1).await;
            only.reset();
        }
        gate.open();
        proxy.until_cached("files", "x").await.is("cache", body.whole());
        proxy.until_cached("files", "cold").await.is("cache", "cold");
        assert_eq!(up.total(), 2);
    });
}

#[test]
fn a_slow_client_the_first_included_slows_nobody() {
    run(async {
        let (up, proxy) = pair().await;
        let body = Pattern::new(5, 40 * MB);
        up.reply("/x", Reply::ok(body));
        let mut slow = Connection::open_narrow(proxy.address()).await;
        slow.send("GET", &at("files", "x"), &[], b"").await;
        slow.read_head("GET").await;
        // It reads nothing more; a second one gets all of it.
        let mut quick = proxy.connect().await;
        quick.send("GET", &at("files", "x"), &[], b"").await;
        quick.read_head("GET").await;
        assert_eq!(quick.read_pattern(body).await, 40 * MB);
        proxy.until_cached("files", "x").await;
        assert_eq!(slow.read_pattern(body).await, 40 * MB);
        assert!(slow.is_complete());
        assert_eq!(up.total(), 1);
    });
}

#[test]
fn a_stalled_http_2_stream_slows_nobody() {
    run(async {
        let (up, proxy) = pair().await;
        let body = Pattern::new(6, 10 * MB);
        up.reply("/x", Reply::ok(body));
        // The first stream's window stays full: nobody reads its data.
        let stream = tokio::net::TcpStream::connect(proxy.address()).await.unwrap();
        let (send, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let mut send = send.ready().await.unwrap();
        let request = http::Request::get(proxy.url("files", "x")).body(()).unwrap();
        let (response, _) = send.send_request(request, true).unwrap();
        let stalled = response.await.unwrap();
        proxy.fetch("files", "x").await.is("remote", body.whole());
        proxy.until_cached("files", "x").await;
        let mut other = H2Connection::open(proxy.address()).await;
        other.get(&at("files", "x")).await.is("cache", body.whole());
        drop(stalled);
        assert_eq!(up.total(), 1);
    });
}

// What is not whole

#[test]
fn a_body_that_ends_short_is_never_admitted() {
    run(async {
        let (up, proxy) = pair().await;
        let body = Pattern::new(7, 3 * MB);
        for (path, cut) in [
            ("length", Reply::ok(body).truncate_at(2 * MB)),
            ("chunked", Reply::ok(body).chunked().truncate_at(2 * MB)),
            ("reset", Reply::ok(body).reset_at(2 * MB)),
            ("lie", Reply::ok(body).claim_length(3 * MB + 1)),
            ("small", Reply::ok("0123456789").truncate_at(4)),
            ("nothing", Reply::ok("0123456789").truncate_at(0)),
        ] {
            let target = format!("/{path}");
            up.sequence(&target, vec![cut, Reply::ok("whole now")]);
            let first = proxy.fetch("files", path).await;
            assert!(
                !first.complete || first.status == 502,
                "{path} looked whole: {:?}",
                first.headers
            );
            proxy.fetch("files", path).await.is("remote", "whole now");
            proxy.until_cached("files", path).await.is("cache", "whole now");
            assert_eq!(up.count("GET", &target), 2, "{path}");
        }
    });
}

#[test]
fn a_body_that_only_the_end_of_the_connection_ends_is_served_and_not_stored() {
    run(async {
        let (up, proxy) = pair().await;
        let body = Pattern::new(8, MB);
        up.reply("/x", Reply::ok(body).until_close());
        for _ in 0..2 {
            assert_eq!(proxy.fetch("files", "x").await.body, body.whole());
        }
        assert_eq!(up.total(), 2);
    });
}

#[test]
fn an_http_2_stream_that_is_reset_is_not_whole() {
    run(async {
        let up = Upstream::start_tls().await;
        let body = Pattern::new(9, 3 * MB);
        up.sequence("/x", vec![Reply::ok(body).truncate_at(MB), Reply::ok(body)]);
        up.sequence(
            "/open",
            vec![Reply::ok(body).chunked().truncate_at(MB), Reply::ok(body).chunked()],
        );
        let proxy = Proxy::settings()
            .remotes(&format!("files:\n  base_url: {}\n", up.base()))
            .env("SSL_CERT_FILE", up.ca_file().to_str().unwrap())
            .start()
            .await;
        for path in ["x", "open"] {
            // A break that comes before anything went out is said.
            let broken = proxy.fetch("files", path).await;
            assert!(broken.status == 502 || !broken.complete, "{path}");
            proxy.fetch("files", path).await.is("remote", body.whole());
            proxy.until_cached("files", path).await.is("cache", body.whole());
        }
    });
}

#[test]
fn time_outs_are_for_idleness_only() {
    run(async {
        let up = Upstream::start().await;
        let proxy = Proxy::settings()
            .remotes(&format!("files:\n  base_url: {}\n", up.base()))
            .conf("upstream: {first_byte_timeout: 700ms, idle_timeout: 700ms}\n")
            .start()
            .await;
        // Slow, but never silent for long: three seconds in all.
        let body = Pattern::new(10, 3000);
        up.reply(
            "/slow",
            Reply::ok(body).pieces(200).between_pieces(Duration::from_millis(200)),
        );
        proxy.fetch("files", "slow").await.is("remote", body.whole());
        up.reply("/stuck", Reply::ok(Pattern::new(11, MB)).hang_at(MB / 2));
        let start = Instant::now();
        assert!(!proxy.fetch("files", "stuck").await.complete);
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        up.reply("/stuck", Reply::ok("whole now"));
        proxy.fetch("files", "stuck").await.is("remote", "whole now");
    });
}

// Crashes

#[test]
fn a_kill_in_the_middle_of_a_fill_leaves_no_broken_object_and_loses_no_finished_one() {
    run(async {
        let (up, mut proxy) = pair().await;
        let (whole, body, never) = (Pattern::new(12, 3 * MB), Pattern::new(13, 20 * MB), Gate::new());
        up.reply("/whole", Reply::ok(whole));
        up.reply("/part", Reply::ok(body).pause_at(15 * MB, &never));
        up.reply("/part-chunked", Reply::ok(body).chunked().pause_at(15 * MB, &never));
        proxy.fetch("files", "whole").await.ok();
        proxy.until_cached("files", "whole").await;
        let mut filling = Vec::new();
        for path in ["part", "part-chunked"] {
            let mut connection = proxy.connect().await;
            connection.send("GET", &at("files", path), &[], b"").await;
            connection.read_head("GET").await;
            connection.read_body_until(10 * MB as usize).await;
            filling.push(connection);
        }
        proxy.kill();
        proxy.launch().await;
        up.forget();
        proxy.fetch("files", "whole").await.is("cache", whole.whole());
        for path in ["part", "part-chunked"] {
            up.reply(&format!("/{path}"), Reply::ok(body));
            proxy.fetch("files", path).await.is("remote", body.whole());
            proxy.until_cached("files", path).await.is("cache", body.whole());
        }
        assert_eq!(up.total(), 2);
        // Nothing of the broken fills takes space: all of it is about what the three objects need.
        eventually(
            Duration::from_secs(10),
            "the space of the broken fills is given back",
            async || disk_usage(&proxy.data_dir()) < 50 * MB,
        )
        .await;
    });
}

fn disk_usage(folder: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk_usage(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

#[test]
fn sigterm_lets_what_is_in_flight_end() {
    run(async {
        let (up, mut proxy) = pair().await;
        let (body, gate) = (Pattern::new(14, 4 * MB), Gate::new());
        up.reply("/x", Reply::ok(body).pause_at(MB, &gate));
        let mut client = proxy.connect().await;
        client.send("GET", &at("files", "x"), &[], b"").await;
        client.read_head("GET").await;
        client.read_body_until(500_000).await;
        let address = proxy.address();
        proxy.ask_to_stop();
        eventually(Duration::from_secs(5), "no new connections after SIGTERM", async || {
            Connection::try_open(address).await.is_err()
        })
        .await;
        gate.open();
        let mut rest = 500_000u64;
        while let Some(chunk) = client.read_body_chunk().await {
            rest += chunk.len() as u64;
        }
        assert!(client.is_complete(), "cut after {rest}");
        drop(client);
        let start = Instant::now();
        let status = proxy.ended(Duration::from_secs(15)).await;
        assert!(status.success(), "{status}");
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "it took {:?} to end",
            start.elapsed()
        );
    });
}

// Bounds

#[test]
fn eviction_keeps_the_disk_bounded_and_the_recent_stays() {
    run(async {
        let up = Upstream::start().await;
        up.under("/", |seen| {
            let number = seen.path.trim_start_matches('/').parse().unwrap_or_default();
            Reply::ok(Pattern::new(number, 2 * MB))
        });
        let mut proxy = Proxy::settings()
            .remotes(&format!("files:\n  base_url: {}\n", up.base()))
            .conf("cache: {disk_bytes: 20MB, disk_min_free: 0%, memory_bytes: 1MB}\n")
            .start()
            .await;
        for number in 0..30 {
            let body = Pattern::new(number, 2 * MB).whole();
            proxy.fetch("files", &number.to_string()).await.is("remote", body);
            if number >= 1 {
                // Used again and again: it must stay.
                proxy.fetch("files", "0").await.ok();
            }
        }
        eventually(
            Duration::from_secs(10),
            "no more than is allowed on the disk",
            async || disk_usage(&proxy.data_dir()) < 24 * MB,
        )
        .await;
        proxy.until_cached("files", "29").await;
        proxy.restart().await;
        up.forget();
        proxy
            .fetch("files", "29")
            .await
            .is("cache", Pattern::new(29, 2 * MB).whole());
        proxy
            .fetch("files", "1")
            .await
            .is("remote", Pattern::new(1, 2 * MB).whole());
        for number in 30..45 {
            proxy.fetch("files", &number.to_string()).await.ok();
        }
        eventually(Duration::from_secs(10), "the bound holds after a restart", async || {
            disk_usage(&proxy.data_dir()) < 24 * MB
        })
        .await;
    });
}

#[test]
fn a_file_that_cannot_be_stored_is_served_all_the_same() {
    run(async {
        let up = Upstream::start().await;
        let body = Pattern::new(15, 12 * MB);
        up.reply("/length", Reply::ok(body))
            .reply("/chunked", Reply::ok(body).chunked());
        let proxy = Proxy::settings()
            .remotes(&format!("files:\n  base_url: {}\n", up.base()))
            .conf("cache: {disk_bytes: 5MB, disk_min_free: 0%, memory_bytes: 1MB}\n")
            .start()
            .await;
        for path in ["length", "chunked"] {
            for _ in 0..2 {
                let mut connection = proxy.connect().await;
                connection.send("GET", &at("files", path), &[], b"").await;
                assert_eq!(connection.read_head("GET").await.status, 200);
                assert_eq!(connection.read_pattern(body).await, 12 * MB, "{path}");
            }
        }
    });
}

#[test]
fn what_was_used_while_the_clock_was_ahead_is_evicted_first() {
    run(async {
        let up = Upstream::start().await;
        let files = (9, 2 * MB);
        let mut proxy = with_files(&up, 20 * MB, files).await;
        proxy.stop().await;
        let ahead = SystemTime::now() + Duration::from_secs(365 * 24 * 3600);
        let mut marked = 0;
        for (number, path) in crate::common::server::stored_files(&proxy.data_dir())
            .iter()
            .enumerate()
        {
            if number % 2 == 0 {
                let file = std::fs::File::options().write(true).open(path).unwrap();
                file.set_modified(ahead).unwrap();
                marked += 1;
            }
        }
        proxy.launch().await;
        up.reply("/more", Reply::ok(Pattern::new(77, 10 * MB - 100_000)));
        proxy.fetch("files", "more").await.ok();
        proxy.until_cached("files", "more").await;
        let left = crate::common::server::stored_files(&proxy.data_dir());
        let modified = |path: &std::path::PathBuf| std::fs::metadata(path).and_then(|meta| meta.modified()).unwrap();
        let still_marked = left.iter().filter(|path| modified(path) == ahead).count();
        assert!(still_marked < marked, "none of {marked} went");
        let unmarked = left.len() - still_marked - 1;
        assert_eq!(
            unmarked, 4,
            "others went before them: {still_marked} of {marked} are left"
        );
    });
}

/// A proxy whose disk holds `count` files of `size` already, and the way to find whether it still does.
async fn with_files(up: &Upstream, disk_bytes: u64, (count, size): (u64, u64)) -> Proxy {
    up.under("/kept/", move |seen| {
        let number = seen.path.rsplit('/').next().and_then(|number| number.parse().ok());
        Reply::ok(Pattern::new(number.unwrap_or_default(), size))
    });
    let proxy = Proxy::settings()
        .remotes(&format!("files:\n  base_url: {}\n", up.base()))
        .conf(&format!(
            "cache: {{disk_bytes: {disk_bytes}, disk_min_free: 0%, memory_bytes: 1MB}}\n"
        ))
        .start()
        .await;
    for number in 0..count {
        let path = format!("kept/{number}");
        proxy.fetch("files", &path).await.ok();
        proxy.until_cached("files", &path).await;
    }
    proxy
}

async fn still_has(proxy: &Proxy, (count, size): (u64, u64)) {
    for number in 0..count {
        let body = Pattern::new(number, size).whole();
        proxy.fetch("files", &format!("kept/{number}")).await.is("cache", body);
    }
}

#[test]
fn a_body_without_a_length_is_stored_once_its_end_tells_that_it_fits() {
    run(async {
        let up = Upstream::start().await;
        let files = (9, 2 * MB);
        let proxy = with_files(&up, 20 * MB, files).await;
        let (body, gate) = (Pattern::new(100, 12 * MB), Gate::new());
        up.reply("/x", Reply::ok(body).chunked().pause_at(11 * MB, &gate));
        let mut client = proxy.connect().await;
        client.send("GET", &at("files", "x"), &[], b"").await;
        assert_eq!(client.read_head("GET").await.status, 200);
        let early = client.read_body_until(10 * MB as usize).await.len() as u64;
        // Nothing had to go for it so far.
        still_has(&proxy, files).await;
        gate.open();
        assert_eq!(client.read_pattern(body.slice(early, 12 * MB)).await, 12 * MB - early);
        assert!(client.is_complete());
        proxy.until_cached("files", "x").await.is("cache", body.whole());
        assert_eq!(up.count("GET", "/x"), 1);
        eventually(Duration::from_secs(10), "the bound holds", async || {
            disk_usage(&proxy.data_dir()) < 24 * MB
        })
        .await;
    });
}

#[test]
fn a_limit_on_concurrent_fetches_queues_and_does_not_refuse() {
    run(async {
        let up = Upstream::start().await;
        let gate = Gate::new();
        let held = gate.clone();
        up.fallback(move |seen| Reply::ok(seen.path.clone()).gated(&held));
        let proxy = Proxy::settings()
            .remotes(&format!("files:\n  base_url: {}\n", up.base()))
            .conf("upstream: {max_concurrent: 4}\n")
            .start()
            .await;
        let mut clients = JoinSet::new();
        for number in 0..20 {
            let address = proxy.address();
            clients.spawn(async move {
                let answer = crate::common::get(address, &at("files", &number.to_string()))
                    .await
                    .ok();
                assert_eq!(answer.text(), format!("/{number}"));
            });
        }
        up.wait_in_flight(4).await;
        // And no more.
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(up.in_flight(), 4);
        gate.open();
        while let Some(client) = clients.join_next().await {
            client.unwrap();
        }
    });
}

#[test]
fn one_remote_does_not_keep_the_others_waiting() {
    run(async {
        let (slow, quick) = (Upstream::start().await, Upstream::start().await);
        let gate = Gate::new();
        let held = gate.clone();
        slow.fallback(move |_| Reply::ok("slow").gated(&held));
        quick.fallback(|_| Reply::ok("quick"));
        let proxy = Proxy::settings()
            .remotes(&format!(
                "slow:\n  base_url: {}\nquick:\n  base_url: {}\n",
                slow.base(),
                quick.base()
            ))
            .conf("upstream: {max_concurrent: 4, max_per_remote: 3}\n")
            .start()
            .await;
        let mut clients = JoinSet::new();
        for number in 0..12 {
            let address = proxy.address();
            clients.spawn(async move {
                crate::common::get(address, &at("slow", &number.to_string()))
                    .await
                    .ok()
                    .text()
            });
        }
        slow.wait_in_flight(3).await;
        for number in 0..5 {
            proxy.fetch("quick", &number.to_string()).await.is("remote", "quick");
        }
        assert_eq!(slow.in_flight(), 3);
        gate.open();
        while let Some(text) = clients.join_next().await {
            assert_eq!(text.unwrap(), "slow");
        }
    });
}

#[test]
fn a_body_that_a_client_holds_back_takes_nobodys_place() {
    run(async {
        let up = Upstream::start().await;
        up.on("/-/v1/search", |_| Reply::ok("{}"));
        up.on("/-/npm/v1/security/audits", |seen| Reply::ok(seen.body.to_vec()));
        let proxy = Proxy::settings()
            .remotes(&format!(
                "npm:\n  base_url: {}\n  package: npm\n  mutable_patterns: ['^']\n",
                up.base()
            ))
            .conf("upstream: {max_concurrent: 2}\n")
            .start()
            .await;
        let audit = at("npm", "-/npm/v1/security/audits");
        let mut holding = Vec::new();
        for _ in 0..4 {
            let mut connection = proxy.connect().await;
            connection
                .send("POST", &audit, &[("Content-Length", "10")], b"01234")
                .await;
            holding.push(connection);
        }
        let search = at("npm", "-/v1/search");
        for _ in 0..4 {
            let mut connection = proxy.connect().await;
            connection.send("GET", &search, &[("Content-Length", "10")], b"").await;
            holding.insert(0, connection);
        }
        proxy.fetch("npm", "-/v1/search").await.is("remote", "{}");
        assert_eq!(up.count("GET", "/-/v1/search"), 1);
        let mut unasked = holding.remove(0);
        unasked.write_raw(b"0").await;
        assert_eq!(unasked.response("GET").await.status, 413);
        // What is there is sent on, however long, and framed anew.
        let long = vec![b'x'; 300_000];
        let answer = proxy.request("POST", &audit, &[], &long).await.ok();
        assert!(answer.body == long);
        assert_eq!(
            up.last("POST", "/-/npm/v1/security/audits").header("content-length"),
            Some("300000")
        );
        let mut last = holding.pop().unwrap();
        last.write_raw(b"56789").await;
        assert_eq!(last.response("POST").await.ok().body, "0123456789");
        assert_eq!(up.count("POST", "/-/npm/v1/security/audits"), 2);
    });
}

#[test]
fn a_body_that_drips_is_ended_and_a_slow_one_is_not() {
    run(async {
        let up = Upstream::start().await;
        let proxy = Proxy::settings()
            .remotes(&format!(
                "files:\n  base_url: {0}\nshort:\n  base_url: {0}\n  upstream: {{transfer_timeout: 1s}}\n",
                up.base()
            ))
            .conf("upstream: {least_rate: 1KB, rate_window: 500ms}\n")
            .start()
            .await;
        let drip = |body: Pattern, bytes| Reply::ok(body).pieces(bytes).between_pieces(Duration::from_millis(50));
        up.reply("/drip", drip(Pattern::new(30, 5000), 5));
        up.reply("/slow", drip(Pattern::new(31, 30_000), 500));
        up.reply("/endless", drip(Pattern::new(32, MB), 5000).chunked());
        let start = Instant::now();
        assert!(!proxy.fetch("files", "drip").await.complete);
        assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
        proxy.wait_for_log("least_rate").await;
        proxy
            .fetch("files", "slow")
            .await
            .is("remote", Pattern::new(31, 30_000).whole());
        assert!(!proxy.fetch("short", "endless").await.complete);
        proxy.wait_for_log("transfer_timeout").await;
        up.reply("/drip", Reply::ok("whole now"));
        proxy.fetch("files", "drip").await.is("remote", "whole now");
    });
}

#[test]
fn what_passes_by_drips_no_longer_than_what_is_stored() {
    run(async {
        let up = Upstream::start().await;
        let proxy = Proxy::settings()
            .remotes(&format!(
                "npm:\n  base_url: {0}\n  package: npm\n  mutable_patterns: ['^']\nfiles:\n  base_url: {0}\n",
                up.base()
            ))
            .conf(
                "upstream: {max_concurrent: 1, first_byte_timeout: 500ms, idle_timeout: 1s, least_rate: 1KB, \
                 rate_window: 500ms}\ncache: {disk_min_free: 100%}\n",
            )
            .start()
            .await;
        let slowly = |reply: Reply, bytes| reply.pieces(bytes).between_pieces(Duration::from_millis(50));
        let head = format!("HTTP/1.1 200 OK\r\nX-Long: {}", "x".repeat(1000));
        let chunk = format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;{}",
            "x".repeat(1000)
        );
        let length = Pattern::new(30, 5000);
        up.reply("/-/v1/search", slowly(Reply::raw(head), 1));
        up.reply("/-/npm/v1/keys", slowly(Reply::raw(chunk), 46));
        up.reply("/-/package/x/dist-tags", slowly(Reply::ok(length), 5));
        up.reply("/drip", slowly(Reply::ok(length).chunked(), 5));
        let start = Instant::now();
        for (method, remote, path, status) in [
            ("GET", "npm", "-/v1/search", 504),
            ("HEAD", "npm", "-/v1/search", 504),
            ("GET", "npm", "-/npm/v1/keys", 200),
            ("GET", "npm", "-/package/x/dist-tags", 200),
            ("GET", "files", "drip", 200),
        ] {
            let answer = proxy.request(method, &at(remote, path), &[], b"").await;
            assert_eq!(
                (answer.status, answer.complete),
                (status, status == 504),
                "{method} {path}"
            );
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "{method} {path}: {:?}",
                start.elapsed()
            );
        }
        // There is one place, and it is free again.
        up.reply("/-/v1/search", Reply::ok("{}"));
        proxy.fetch("npm", "-/v1/search").await.is("remote", "{}");
    });
}

#[test]
fn a_client_that_takes_its_time_is_not_upstreams_drip() {
    run(async {
        let up = Upstream::start().await;
        let proxy = Proxy::settings()
            .remotes(&format!(
                "npm:\n  base_url: {}\n  package: npm\n  mutable_patterns: ['^']\n",
                up.base()
            ))
            .conf("upstream: {idle_timeout: 500ms, least_rate: 1MB, rate_window: 500ms}\n")
            .start()
            .await;
        let body = Pattern::new(33, 20 * MB);
        up.reply("/-/v1/search", Reply::ok(body));
        let mut client = Connection::open_narrow(proxy.address()).await;
        client.send("GET", &at("npm", "-/v1/search"), &[], b"").await;
        client.read_head("GET").await;
        let mut read = 0;
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(700)).await;
            read += client.read_body_until(100_000).await.len();
        }
        while let Some(piece) = client.read_body_chunk().await {
            read += piece.len();
        }
        assert_eq!((read as u64, client.is_complete()), (body.length, true));
    });
}

#[test]
fn what_passes_by_shares_connections_and_a_dead_one_costs_nothing() {
    run(async {
        let up = Upstream::start().await;
        let proxy = Proxy::start(&format!(
            "npm:\n  base_url: {}\n  package: npm\n  mutable_patterns: ['^']\n",
            up.base()
        ))
        .await;
        up.reply("/-/v1/search", Reply::ok("{}").chunked());
        for round in 0..3 {
            let before = up.connections();
            for number in 0..10 {
                let method = if number % 2 == 0 { "GET" } else { "HEAD" };
                proxy.request(method, &at("npm", "-/v1/search"), &[], b"").await.ok();
            }
            // A client may have its answer a moment before the connection is free again.
            let opened = up.connections() - before;
            assert!(opened < 8, "{round}: {opened}");
            up.switch_off().await;
            up.switch_on().await;
        }
    });
}

mod heavy {
    use super::*;

    /// Reads a whole body on a connection of its own.
    async fn read(proxy: &Proxy, path: &str, body: Pattern) {
        let mut client = proxy.connect().await;
        client.send("GET", &at("files", path), &[], b"").await;
        assert_eq!(client.read_head("GET").await.status, 200, "{path}");
        assert_eq!(client.read_pattern(body).await, body.length, "{path}");
        assert!(client.is_complete(), "{path}");
    }

    #[test]
    fn a_body_that_cannot_be_kept_passes_through_and_costs_nothing_that_is() {
        run_for(Duration::from_secs(180), async {
            let up = Upstream::start().await;
            let files = (6, 15 * MB);
            let proxy = with_files(&up, 120 * MB, files).await;
            // Longer than the whole bound, and longer than what is free and what memory holds.
            let (never, later) = (Pattern::new(200, 140 * MB), Pattern::new(201, 118 * MB));
            up.reply("/never", Reply::ok(never).chunked())
                .reply("/later", Reply::ok(later).chunked());
            let (before, _) = proxy.memory();
            for _ in 0..2 {
                read(&proxy, "never", never).await;
            }
            assert_eq!(
                up.count("GET", "/never"),
                3,
                "the second request passes by, after a look"
            );
            tokio::join!(read(&proxy, "later", later), read(&proxy, "later", later));
            still_has(&proxy, files).await;
            let (_, peak) = proxy.memory();
            assert!(peak - before < 100 * MB, "from {before} to {peak}");
            // Its length is known now, and that it fits.
            read(&proxy, "later", later).await;
            eventually(Duration::from_secs(20), "it is stored", async || {
                let head = proxy.head("files", "later").await;
                head.source() == "cache"
            })
            .await;
            read(&proxy, "later", later).await;
        });
    }

    #[test]
    fn the_length_of_a_body_is_learned_though_nobody_reads_it_and_nothing_can_hold_it() {
        run_for(Duration::from_secs(120), async {
            let up = Upstream::start().await;
            let files = (6, 15 * MB);
            let proxy = with_files(&up, 120 * MB, files).await;
            let body = Pattern::new(202, 118 * MB);
            up.reply("/long", Reply::ok(body).chunked());
            let head = proxy.head("files", "long").await;
            assert_eq!((head.status, head.must("content-length")), (200, "118000000"));
            still_has(&proxy, files).await;
            // Now it is known that it fits.
            read(&proxy, "long", body).await;
            eventually(Duration::from_secs(20), "it is stored", async || {
                proxy.head("files", "long").await.source() == "cache"
            })
            .await;
        });
    }

    /// A hundred clients read what lies on the disk and is in nobody's memory.
    #[test]
    fn a_small_node_serves_a_hundred_clients_from_the_disk_in_128_megabytes() {
        run_for(Duration::from_secs(180), async {
            let cgroup = Cgroup::with_memory(128 << 20);
            let up = Upstream::start().await;
            const FILES: u64 = 60;
            let file = |number: u64| Pattern::new(number, MB + number * 1_234_567 % (7 * MB));
            up.under("/", move |seen| {
                Reply::ok(file(seen.path.trim_start_matches('/').parse().unwrap_or_default()))
            });
            let mut proxy = Proxy::settings()
                .remotes(&format!("files:\n  base_url: {}\n", up.base()))
                .conf("cache: {memory_bytes: 16MB, disk_min_free: 0%}\n")
                .in_cgroup(&cgroup.processes())
                .start()
                .await;
            for number in 0..FILES {
                read(&proxy, &number.to_string(), file(number)).await;
                proxy.until_cached("files", &number.to_string()).await;
            }
            proxy.restart().await;
            let mut clients = JoinSet::new();
            for client in 0..100u64 {
                let mut connection = proxy.connect().await;
                clients.spawn(async move {
                    for round in 0..3 {
                        let number = (client * 7 + round * 23) % FILES;
                        connection
                            .send("GET", &at("files", &number.to_string()), &[], b"")
                            .await;
                        let head = connection.read_head("GET").await;
                        assert_eq!((head.status, head.source()), (200, "cache"));
                        assert_eq!(connection.read_pattern(file(number)).await, file(number).length);
                    }
                });
            }
            while let Some(client) = clients.join_next().await {
                client.unwrap();
            }
            let (_, peak) = proxy.memory();
            assert!(peak < 128 << 20, "{peak}");
            proxy.kill();
        });
    }

    /// Peak memory must not follow the size of a file.
    #[test]
    fn memory_does_not_grow_with_the_file() {
        run_for(Duration::from_secs(180), async {
            let (up, proxy) = pair().await;
            let body = Pattern::new(20, 500 * MB);
            up.reply("/x", Reply::ok(body).pieces(256 * 1024));
            let (start, _) = proxy.memory();
            let mut clients = JoinSet::new();
            for _ in 0..4 {
                let mut connection = proxy.connect().await;
                connection.send("GET", &at("files", "x"), &[], b"").await;
                clients.spawn(async move {
                    assert_eq!(connection.read_head("GET").await.status, 200);
                    let mut total = 0;
                    while let Some(chunk) = connection.read_body_chunk().await {
                        total += chunk.len() as u64;
                    }
                    total
                });
            }
            while let Some(total) = clients.join_next().await {
                assert_eq!(total.unwrap(), 500 * MB);
            }
            let (_, peak) = proxy.memory();
            assert!(peak - start < 100 * MB, "from {start} to {peak}");
            assert_eq!(up.total(), 1);
        });
    }

    /// Nor with the number of clients by more than small buffers.
    #[test]
    fn a_hundred_clients_share_a_fill_in_flat_memory() {
        run_for(Duration::from_secs(180), async {
            let (up, proxy) = pair().await;
            let body = Pattern::new(21, 30 * MB);
            up.reply("/x", Reply::ok(body).rate(60 * MB));
            let (start, _) = proxy.memory();
            let mut clients = JoinSet::new();
            for number in 0..100 {
                let mut connection = proxy.connect().await;
                connection.send("GET", &at("files", "x"), &[], b"").await;
                clients.spawn(async move {
                    assert_eq!(connection.read_head("GET").await.status, 200);
                    let mut total = 0;
                    while let Some(chunk) = connection.read_body_chunk().await {
                        // One in ten looks at what it gets, the others only count.
                        assert!(number % 10 != 0 || body.matches(total, &chunk));
                        total += chunk.len() as u64;
                    }
                    total
                });
            }
            while let Some(total) = clients.join_next().await {
                assert_eq!(total.unwrap(), 30 * MB);
            }
            let (_, peak) = proxy.memory();
            assert!(peak - start < 120 * MB, "from {start} to {peak}");
            assert_eq!(up.total(), 1);
            up.file("/y", File::new("y"));
            proxy.fetch("files", "y").await.is("remote", "y");
        });
    }
}
