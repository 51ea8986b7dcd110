//! What goes wrong around the program: a disk without room, a hard end at any moment, an upstream that sends it to
//! places where it must not go.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::client::Headers;
use crate::common::clients::{bounded, program, tool};
use crate::common::dns::Dns;
use crate::common::packages::{IndexForm, Wheel, serve_pypi};
use crate::common::server::{at, stored_files};
use crate::common::{Pattern, Proxy, Reply, Upstream, eventually, run, run_for};
use tokio::task::JoinSet;

const MB: u64 = 1_000_000;

// A disk without room

/// A proxy that must leave more free than any disk has.
async fn without_room(remotes: &str) -> Proxy {
    Proxy::settings()
        .remotes(remotes)
        .conf("cache: {disk_min_free: 100%, memory_bytes: 8MB}\n")
        .start()
        .await
}

#[test]
fn where_nothing_can_be_stored_downloads_still_work() {
    run(async {
        let up = Upstream::start().await;
        let small = Pattern::new(1, 10_000);
        let large = Pattern::new(2, 30 * MB);
        up.reply("/small", Reply::ok(small))
            .reply("/large", Reply::ok(large))
            .reply("/chunked", Reply::ok(large).chunked())
            .reply("/none", Reply::status(404));
        let mut proxy = without_room(&format!("files:\n  base_url: {}\n", up.base())).await;
        for _ in 0..2 {
            assert_eq!(proxy.fetch("files", "small").await.ok().body, small.whole());
            for path in ["large", "chunked"] {
                let mut connection = proxy.connect().await;
                connection.send("GET", &at("files", path), &[], b"").await;
                assert_eq!(connection.read_head("GET").await.status, 200);
                assert_eq!(connection.read_pattern(large).await, 30 * MB, "{path}");
                assert!(connection.is_complete(), "{path}");
            }
            let head = proxy.head("files", "large").await.expect(200);
            assert_eq!(head.must("content-length"), (30 * MB).to_string());
            let part = proxy.fetch_with("files", "small", &[("Range", "bytes=5-9")]).await;
            assert!(
                part.status == 206 && part.body == small.slice(5, 10).whole() || part.status == 200,
                "{} {:?}",
                part.status,
                part.headers
            );
            proxy.fetch("files", "none").await.expect(404);
        }
        // It is said loudly: in the log and by /health, which still answers 200.
        let health = proxy.request("GET", "/health", &[], b"").await.ok().json();
        assert_eq!(health["status"], "degraded", "{health}");
        assert!(health["dependencies"].to_string().contains("kept free"), "{health}");
        proxy.wait_for_log("kept free").await;
        proxy.request("GET", "/health/live", &[], b"").await.ok();
        proxy.request("GET", "/health/ready", &[], b"").await.ok();
        // Nothing of it is on the disk.
        let used = disk_usage(&proxy.data_dir());
        assert!(used < 10 * MB, "{used} bytes on the disk");
        proxy.restart().await;
        assert_eq!(proxy.fetch("files", "small").await.ok().body, small.whole());
    });
}

#[test]
fn many_clients_download_where_nothing_can_be_stored() {
    run(async {
        let up = Upstream::start().await;
        let body = Pattern::new(3, 5 * MB);
        up.reply("/x", Reply::ok(body));
        let proxy = without_room(&format!("files:\n  base_url: {}\n", up.base())).await;
        let mut clients = JoinSet::new();
        for _ in 0..20 {
            let mut connection = proxy.connect().await;
            clients.spawn(async move {
                connection.send("GET", &at("files", "x"), &[], b"").await;
                assert_eq!(connection.read_head("GET").await.status, 200);
                assert_eq!(connection.read_pattern(body).await, 5 * MB);
                assert!(connection.is_complete());
            });
        }
        while let Some(client) = clients.join_next().await {
            client.unwrap();
        }
    });
}

#[test]
fn indexes_are_rewritten_where_nothing_can_be_stored() {
    run(async {
        let (index, files) = (Upstream::start().await, Upstream::start().await);
        let wheel = Wheel::new("Pkg", "1.0", &[], 1000);
        serve_pypi(&index, &files, IndexForm::Both, std::slice::from_ref(&wheel));
        let proxy = without_room(&format!("py:\n  base_url: {}\n  package: pypi\n", index.base())).await;
        for _ in 0..2 {
            let page = proxy.fetch("py", "simple/pkg/").await.ok().text();
            assert!(!page.contains(&files.base()), "{page}");
            let path = format!("-/host/{}{}", files.authority(), wheel.path());
            assert_eq!(proxy.fetch("py", &path).await.ok().body, wheel.bytes);
        }
    });
}

#[test]
fn with_room_again_it_stores_again() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/x", Reply::ok("x"));
        let data = tempfile::tempdir().unwrap();
        let remotes = format!("files:\n  base_url: {}\n", up.base());
        for (free, stored) in [("0%", true), ("100%", false), ("0%", true)] {
            let path = if stored { "x" } else { "y" };
            up.reply("/y", Reply::ok("y"));
            let mut proxy = Proxy::settings()
                .remotes(&remotes)
                .conf(&format!("cache: {{disk_min_free: {free}, memory_bytes: 1MB}}\n"))
                .data_dir(data.path())
                .start()
                .await;
            proxy.fetch("files", path).await.ok();
            if stored {
                proxy.until_cached("files", path).await.is("cache", path);
                let health = proxy.request("GET", "/health", &[], b"").await.ok().json();
                assert_eq!(health["status"], "ok", "{health}");
            }
            proxy.stop().await;
        }
        // Whether what was stored before is kept where no room is left is for eviction to say; nothing was broken.
        assert!(up.count("GET", "/x") <= 2 && up.count("GET", "/y") == 1);
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

// A disk that does not answer

#[test]
fn a_stored_file_that_would_not_open_stops_nobody() {
    run(async {
        let up = Upstream::start().await;
        let body = |number: u64| Pattern::new(number, 300_000);
        up.under("/", move |seen| {
            Reply::ok(body(seen.path.trim_start_matches('/').parse().unwrap_or_default()))
        });
        let mut proxy = Proxy::settings()
            .remotes(&format!("files:\n  base_url: {}\n", up.base()))
            .conf("cache: {memory_bytes: 1MB}\n")
            .start()
            .await;
        for number in 0..20 {
            proxy.fetch("files", &number.to_string()).await.ok();
            proxy.until_cached("files", &number.to_string()).await;
        }
        proxy.stop().await;
        // Opening a pipe waits for somebody who writes into it, and nobody will.
        for path in crate::common::server::stored_files(&proxy.data_dir()) {
            std::fs::remove_file(&path).unwrap();
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        }
        proxy.launch().await;
        let mut clients = JoinSet::new();
        for number in 0..20 {
            let address = proxy.address();
            clients.spawn(async move {
                let answer = crate::common::get(address, &at("files", &number.to_string())).await;
                answer.is("remote", body(number).whole());
            });
        }
        while let Some(client) = clients.join_next().await {
            client.unwrap();
        }
        proxy.request("GET", "/health/live", &[], b"").await.ok();
        for number in 0..20 {
            let path = number.to_string();
            proxy
                .until_cached("files", &path)
                .await
                .is("cache", body(number).whole());
        }
        assert!(proxy.stop().await.success());
    });
}

#[test]
fn a_signal_ends_the_program_whatever_its_threads_wait_for() {
    run(async {
        let up = Upstream::start().await;
        up.fallback(|_| Reply::ok("x").truncate_at(0));
        // Nobody reads what it says: once the pipe is full, every thread that says something hangs.
        let mut proxy = Proxy::settings()
            .remotes(&format!("files:\n  base_url: {}\n", up.base()))
            .conf("stop_timeout: 1s\n")
            .unheard()
            .start()
            .await;
        let mut clients = JoinSet::new();
        eventually(Duration::from_secs(40), "all threads hang", async || {
            for number in 0..50 {
                let address = proxy.address();
                let path = format!("{number}-{}", "x".repeat(1500));
                clients.spawn(async move { crate::common::get(address, &at("files", &path)).await.status });
            }
            let live = async {
                let mut connection = proxy.connect().await;
                connection.send("GET", "/health/live", &[], b"").await;
                connection.try_read_head("GET").await.map(|head| head.status)
            };
            tokio::time::timeout(Duration::from_secs(2), live).await.is_err()
        })
        .await;
        proxy.ask_to_stop();
        let status = proxy.ended(Duration::from_secs(20)).await;
        assert!(!status.success(), "it cannot have ended well");
    });
}

// A hard end

#[test]
fn kills_at_any_moment_break_nothing_and_lose_nothing_that_was_finished() {
    run_for(Duration::from_secs(120), async {
        let up = Upstream::start().await;
        let of = |number: u64| Pattern::new(number, 20_000 + number * 997 % 400_000);
        up.under("/", move |seen| {
            let number = seen.path.trim_start_matches('/').parse().unwrap_or_default();
            Reply::ok(of(number)).pieces(16 * 1024)
        });
        // Small enough that eviction runs all the time.
        let mut proxy = Proxy::settings()
            .remotes(&format!("files:\n  base_url: {}\n", up.base()))
            .conf("cache: {disk_bytes: 12MB, disk_min_free: 0%, memory_bytes: 1MB}\n")
            .start()
            .await;
        for round in 0..6u64 {
            // One that is certainly finished, and used last.
            let kept = 1_000_000 + round;
            let stop = Arc::new(AtomicBool::new(false));
            let mut clients = JoinSet::new();
            for client in 0..4u64 {
                let (address, stop) = (proxy.address(), stop.clone());
                clients.spawn(async move {
                    for number in (round * 1000 + client..).step_by(4) {
                        if stop.load(Ordering::SeqCst) {
                            return;
                        }
                        let Ok(mut connection) = crate::common::Connection::try_open(address).await else {
                            return;
                        };
                        connection
                            .send("GET", &at("files", &number.to_string()), &[], b"")
                            .await;
                        let Ok(head) = connection.try_read_head("GET").await else {
                            return;
                        };
                        assert_eq!(head.status, 200);
                        let body = connection.read_body().await;
                        assert!(of(number).matches(0, &body), "wrong bytes of {number}");
                    }
                });
            }
            up.wait_for("GET", &format!("/{}", round * 1000 + 20 + round * 3), 1)
                .await;
            let path = kept.to_string();
            proxy.fetch("files", &path).await.is("remote", of(kept).whole());
            proxy.until_cached("files", &path).await;
            proxy.kill();
            stop.store(true, Ordering::SeqCst);
            while let Some(client) = clients.join_next().await {
                client.unwrap();
            }
            proxy.launch().await;
            up.forget();
            proxy.fetch("files", &path).await.is("cache", of(kept).whole());
            assert_eq!(up.count("*", &format!("/{path}")), 0);
            // Whatever else is still there is whole.
            for number in (round * 1000..round * 1000 + 60).rev() {
                let answer = proxy.fetch("files", &number.to_string()).await.ok();
                assert!(
                    answer.body == of(number).whole(),
                    "{number} is broken: {:?}",
                    answer.headers
                );
            }
        }
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let used = disk_usage(&proxy.data_dir());
            if used < 20 * MB {
                break;
            }
            let health = proxy.request("GET", "/health", &[], b"").await.ok().text();
            assert!(
                Instant::now() < end,
                "{used} bytes on the disk, where 12 MB are allowed: {health}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}

#[test]
fn a_kill_while_many_fills_run_leaves_room_and_whole_files() {
    run(async {
        let up = Upstream::start().await;
        let gate = crate::common::Gate::new();
        let held = gate.clone();
        let body = |number: u64| Pattern::new(number, 4 * MB);
        up.under("/part/", move |seen| {
            let number = seen.path.rsplit('/').next().and_then(|number| number.parse().ok());
            Reply::ok(body(number.unwrap_or_default())).pause_at(3 * MB, &held)
        });
        up.reply("/whole", Reply::ok(body(99)));
        let mut proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
        proxy.fetch("files", "whole").await.ok();
        proxy.until_cached("files", "whole").await;
        let mut filling = Vec::new();
        for number in 0..10 {
            let mut connection = proxy.connect().await;
            connection
                .send("GET", &at("files", &format!("part/{number}")), &[], b"")
                .await;
            connection.read_head("GET").await;
            connection.read_body_until(2 * MB as usize).await;
            filling.push(connection);
        }
        proxy.kill();
        proxy.launch().await;
        up.forget();
        eventually(
            Duration::from_secs(10),
            "the broken fills are cleared away",
            async || disk_usage(&proxy.data_dir()) < 8 * MB,
        )
        .await;
        proxy.fetch("files", "whole").await.is("cache", body(99).whole());
        gate.open();
        for number in 0..10 {
            let path = format!("part/{number}");
            proxy.fetch("files", &path).await.is("remote", body(number).whole());
            proxy
                .until_cached("files", &path)
                .await
                .is("cache", body(number).whole());
        }
        assert_eq!(up.total(), 10);
    });
}

#[test]
fn what_was_stored_just_before_a_kill_is_listed_and_can_be_flushed() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/x", Reply::ok("x"));
        let mut proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
        proxy.fetch("files", "x").await.ok();
        proxy.until_cached("files", "x").await;
        proxy.kill();
        proxy.launch().await;
        proxy.fetch("files", "x").await.is("cache", "x");
        eventually(Duration::from_secs(10), "what is stored is listed", async || {
            let listed = proxy.request("GET", "/api/v1/artifacts", &[], b"").await.ok().json();
            listed["total"] == 1
        })
        .await;
        let flush = br#"{"prefix": "x"}"#;
        let flushed = proxy.request("PUT", "/cache/flush", &[], flush).await.ok().json();
        assert_eq!(flushed["deleted"], 1, "{flushed}");
        proxy.fetch("files", "x").await.is("remote", "x");
    });
}

/// Something that stands where a stored file is looked for, and cannot be read.
fn unreadable(data: &Path) {
    let place = data.join("objects/ee/ee").join("e".repeat(32));
    std::fs::create_dir_all(place).expect("made");
}

#[test]
fn a_catalogue_that_is_begun_anew_comes_to_list_what_is_stored() {
    run(async {
        let up = Upstream::start().await;
        up.under("/", |seen| Reply::ok(seen.path.clone()));
        let mut proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
        for path in ["a/1", "a/2", "b/1"] {
            proxy.fetch("files", path).await.ok();
        }
        proxy.stop().await;
        for file in std::fs::read_dir(proxy.data_dir()).unwrap().flatten() {
            if file.file_name().to_string_lossy().starts_with("catalog.db") {
                std::fs::remove_file(file.path()).unwrap();
            }
        }
        proxy.launch().await;
        eventually(Duration::from_secs(10), "what is stored is listed", async || {
            let listed = proxy.request("GET", "/api/v1/artifacts", &[], b"").await.ok().json();
            listed["total"] == 3
        })
        .await;
        let flush = br#"{"prefix": "a/"}"#;
        let flushed = proxy.request("PUT", "/cache/flush", &[], flush).await.ok().json();
        assert_eq!(flushed["deleted"], 2, "{flushed}");
        for path in ["a/1", "a/2"] {
            proxy.fetch("files", path).await.is("remote", format!("/{path}"));
        }
        proxy.fetch("files", "b/1").await.is("cache", "/b/1");
    });
}

#[test]
fn a_flush_stays_in_force_while_something_cannot_be_read_that_may_be_meant() {
    run(async {
        let up = Upstream::start().await;
        up.under("/", |seen| Reply::ok(seen.path.clone()));
        let mut proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
        for path in ["a/1", "b/1", "c/1"] {
            proxy.fetch("files", path).await.ok();
            proxy.until_cached("files", path).await;
        }
        let flush = async |proxy: &Proxy, prefix: &str| {
            let body = format!(r#"{{"prefix": "{prefix}"}}"#);
            proxy
                .request("PUT", "/cache/flush", &[], body.as_bytes())
                .await
                .ok()
                .json()
        };
        // Known to list all: nothing else is looked at.
        proxy.stop().await;
        // What is listed and not there is struck when that is known.
        let is_third = |file: &PathBuf| String::from_utf8_lossy(&std::fs::read(file).unwrap()).contains("/c/1");
        let third = stored_files(&proxy.data_dir()).into_iter().find(is_third).unwrap();
        std::fs::remove_file(third).unwrap();
        proxy.launch().await;
        eventually(
            Duration::from_secs(10),
            "the catalogue is known to list all",
            async || {
                let listed = proxy.request("GET", "/api/v1/artifacts", &[], b"").await.ok().json();
                listed["total"] == 2 && proxy.data_dir().join("catalogue-whole").exists()
            },
        )
        .await;
        unreadable(&proxy.data_dir());
        assert_eq!(flush(&proxy, "a/").await["deleted"], 1);
        proxy.wait_for_log("a flush was made").await;
        proxy.fetch("files", "a/1").await.is("remote", "/a/1");
        // Not known: what cannot be read may be meant.
        proxy.stop().await;
        std::fs::remove_file(proxy.data_dir().join("catalogue-whole")).unwrap();
        proxy.launch().await;
        assert_eq!(flush(&proxy, "b/").await["deleted"], 1);
        proxy.wait_for_log("or cannot be read now").await;
        let left = std::fs::read_dir(proxy.data_dir().join("flushes")).unwrap().count();
        assert_eq!(left, 1);
        proxy.fetch("files", "b/1").await.is("remote", "/b/1");
    });
}

// Private addresses

/// Set inside the namespace.
const INSIDE: &str = "ARTIFACTAPI_TEST_INSIDE";
/// Public by IANA's registry, and nobody's (RFC 7535 has the network for the first of its addresses only), so that nothing
/// is disturbed even by mistake.
const PUBLIC: Ipv4Addr = Ipv4Addr::new(192, 31, 196, 10);
const PUBLIC_TOO: Ipv4Addr = Ipv4Addr::new(192, 31, 196, 11);

/// Runs the test `name` of this file again in a network namespace of its own, where [`PUBLIC`] and [`PUBLIC_TOO`] are
/// addresses of the loopback interface. Says whether we are inside.
#[track_caller]
fn inside_a_namespace(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    // SIOCSIFADDR and SIOCSIFFLAGS on lo and its aliases: nothing else is needed than what python has.
    let script = "
import fcntl, os, socket, struct, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
def up(name):
    fcntl.ioctl(s, 0x8914, struct.pack('16sh14x', name, 0x41))
def address(name, ip):
    fcntl.ioctl(s, 0x8916, struct.pack('16sHH4s8x', name, socket.AF_INET, 0, socket.inet_aton(ip)))
up(b'lo')
address(b'lo:1', sys.argv[1]); address(b'lo:2', sys.argv[2])
os.execv(sys.argv[3], sys.argv[3:])
";
    let own = std::env::current_exe().expect("this test");
    let mut said = String::new();
    // As root, or as anybody where user namespaces are allowed.
    for options in [&["--net"][..], &["--user", "--map-root-user", "--net"]] {
        let mut command = Command::new(program("unshare"));
        command
            .args(options)
            .arg("--")
            .arg(tool("venv/bin/python"))
            .args(["-c", script])
            .args([PUBLIC.to_string(), PUBLIC_TOO.to_string()])
            .arg(&own)
            .args(["--exact", &format!("faults::{name}"), "--nocapture"])
            .env(INSIDE, "1");
        let output = bounded(command, Duration::from_secs(100));
        let ran = output.text().contains("running 1 test");
        if ran {
            assert_eq!(output.code, Some(0), "inside the namespace:\n{}", output.text());
            assert!(output.text().contains("1 passed"), "{}", output.text());
            return false;
        }
        said.push_str(&output.text());
    }
    panic!(
        "this test needs a network namespace (unshare --net, as root or in a user namespace), and got none:\n{said}"
    );
}

#[track_caller]
fn refused_as(answer: crate::common::Response, kind: &str, what: &str) {
    assert_eq!(answer.status, 502, "{what}: {}", answer.text());
    let detail = answer.json()["detail"].as_str().unwrap_or_default().to_owned();
    assert!(detail.contains(kind), "{what}: {detail}");
}

#[test]
fn a_public_remote_cannot_send_us_to_a_private_address() {
    if !inside_a_namespace("a_public_remote_cannot_send_us_to_a_private_address") {
        return;
    }
    run(async {
        let public = Upstream::start_at(PUBLIC).await;
        let other = Upstream::start_at(PUBLIC_TOO).await;
        let private = Upstream::start().await;
        private.fallback(|_| Reply::ok("secret"));
        other.reply("/file", Reply::ok("from another public host"));
        other.reply("/on", Reply::redirect(302, private.url("/secret")));
        let port = private.port();
        let dns = Dns::start().await;
        dns.set("inside.test", &[Ipv4Addr::LOCALHOST.into()]);
        dns.set("outside.test", &[PUBLIC_TOO.into()]);
        dns.set("both.test", &[Ipv4Addr::LOCALHOST.into(), PUBLIC_TOO.into()]);
        let proxy = Proxy::settings()
            .remotes(&format!(
                "files:\n  base_url: {0}\nlisting:\n  base_url: {0}\n  file_hosts: ['{1}']\nprivate:\n  base_url: {1}\n\
                 py:\n  base_url: {0}\n  package: pypi\n",
                public.base(),
                private.base()
            ))
            .conf(&format!(
                "resolver: [\"{}\"]\nupstream: {{connect_timeout: 2s}}\n",
                dns.address()
            ))
            .start()
            .await;
        // That this is a namespace where all is reachable.
        public.reply("/plain", Reply::ok("plain"));
        proxy.fetch("files", "plain").await.is("remote", "plain");
        for (number, location) in [
            format!("http://{}/file", other.authority()),
            format!("http://outside.test:{}/file", other.port()),
        ]
        .iter()
        .enumerate()
        {
            public.reply(&format!("/public/{number}"), Reply::redirect(302, location));
            proxy
                .fetch("files", &format!("public/{number}"))
                .await
                .is("remote", "from another public host");
        }
        for (number, (location, kind)) in [
            (format!("http://127.0.0.1:{port}/secret"), "loopback"),
            (format!("http://127.1.2.3:{port}/secret"), "loopback"),
            (format!("http://2130706433:{port}/secret"), "loopback"),
            (format!("http://0x7f.1:{port}/secret"), "loopback"),
            (format!("http://[::1]:{port}/secret"), "loopback"),
            (format!("http://[::ffff:127.0.0.1]:{port}/secret"), "loopback"),
            (format!("http://[64:ff9b::7f00:1]:{port}/secret"), "loopback"),
            (format!("http://0.0.0.0:{port}/secret"), "unspecified"),
            (format!("http://inside.test:{port}/secret"), "loopback"),
            ("http://10.1.2.3/secret".to_owned(), "private"),
            ("http://172.16.0.1/secret".to_owned(), "private"),
            ("http://192.168.1.1/secret".to_owned(), "private"),
            ("http://169.254.169.254/latest/meta-data/".to_owned(), "link-local"),
            ("http://100.64.0.1/secret".to_owned(), "shared"),
            ("https://[fd00::1]/secret".to_owned(), "unique-local"),
            ("https://[fe80::1]/secret".to_owned(), "link-local"),
            (format!("http://[2002:7f00:1::]:{port}/secret"), "loopback"),
            ("http://[2001:0:a00:1::fefe:fefe]/secret".to_owned(), "private"),
            ("http://[fec0::1]/secret".to_owned(), "site-local"),
            ("http://198.18.0.1/secret".to_owned(), "benchmarking"),
            ("http://203.0.113.1/secret".to_owned(), "documentation"),
            ("http://240.0.0.1/secret".to_owned(), "reserved"),
            ("http://192.0.0.8/secret".to_owned(), "protocol-assignment"),
            ("http://100.100.100.200/latest/meta-data/".to_owned(), "metadata"),
        ]
        .iter()
        .enumerate()
        {
            public.reply(&format!("/private/{number}"), Reply::redirect(302, location));
            for _ in 0..2 {
                refused_as(proxy.fetch("files", &format!("private/{number}")).await, kind, location);
            }
            let head = proxy.head("files", &format!("private/{number}")).await;
            assert_eq!(head.status, 502, "{location}");
        }
        // A chain that ends there.
        public.reply("/chain", Reply::redirect(302, other.url("/on")));
        refused_as(proxy.fetch("files", "chain").await, "loopback", "a chain");
        // A name with a public address beside is asked there and nowhere else.
        public.reply(
            "/both",
            Reply::redirect(302, format!("http://both.test:{}/file", other.port())),
        );
        proxy
            .fetch("files", "both")
            .await
            .is("remote", "from another public host");
        // Links in an index lead there no more than redirects do.
        let link = private.url("/secret-1.0.tar.gz");
        public.reply(
            "/simple/secret/",
            Reply::ok(format!("<a href=\"{link}\">secret-1.0.tar.gz</a>")).content_type("text/html"),
        );
        let path = format!("-/host/{}/secret-1.0.tar.gz", private.authority());
        refused_as(proxy.fetch("py", &path).await, "loopback", "a link of an index");
        assert_eq!(private.connections(), 0, "somebody was there: {:?}", private.log());
        // What the configuration names may be anywhere.
        public.reply("/listed", Reply::redirect(302, private.url("/listed")));
        proxy.fetch("listing", "listed").await.is("remote", "secret");
        proxy.fetch("private", "x").await.is("remote", "secret");
    });
}

#[test]
fn a_name_that_turns_private_is_refused() {
    if !inside_a_namespace("a_name_that_turns_private_is_refused") {
        return;
    }
    run(async {
        let public = Upstream::start_at(PUBLIC).await;
        let private = Upstream::start().await;
        private.fallback(|_| Reply::ok("secret"));
        let dns = Dns::start().await;
        dns.ttl(0).set("moving.test", &[PUBLIC.into()]);
        let location = format!("http://moving.test:{}/file", private.port());
        public.on("/x", move |_| Reply::redirect(302, location.clone()));
        let proxy = Proxy::settings()
            .remotes(&format!(
                "files:\n  base_url: {}\n  cache: {{negative_ttl: 0}}\n",
                public.base()
            ))
            .conf(&format!("resolver: [\"{}\"]\n", dns.address()))
            .start()
            .await;
        // Public, and nobody listens there on this port.
        let answer = proxy.fetch("files", "x").await.expect(502);
        assert!(!answer.text().contains("loopback"), "{}", answer.text());
        dns.set("moving.test", &[Ipv4Addr::LOCALHOST.into()]);
        eventually(Duration::from_secs(10), "the new address is seen", async || {
            let answer = proxy.fetch("files", "x").await;
            assert_eq!(answer.status, 502, "{}", answer.text());
            answer.text().contains("loopback")
        })
        .await;
        assert_eq!(private.connections(), 0);
    });
}

#[test]
fn who_answers_for_a_remotes_name_does_not_make_it_private() {
    if !inside_a_namespace("who_answers_for_a_remotes_name_does_not_make_it_private") {
        return;
    }
    run(async {
        let (public, private) = (Upstream::start_at(PUBLIC).await, Upstream::start().await);
        private.fallback(|_| Reply::ok("secret"));
        public.on("/to-secret", {
            let location = private.url("/secret");
            move |_| Reply::redirect(302, location.clone())
        });
        public.fallback(|seen| Reply::ok(seen.path.clone()));
        let dns = Dns::start().await;
        dns.ttl(0)
            .set("moving.test", &[PUBLIC.into()])
            .set("mixed.test", &[Ipv4Addr::LOCALHOST.into(), PUBLIC.into()])
            .set("inner.test", &[Ipv4Addr::LOCALHOST.into()]);
        let remotes = format!(
            "moving:\n  base_url: http://moving.test:{0}\nmixed:\n  base_url: http://mixed.test:{0}\n\
             inner:\n  base_url: http://inner.test:{1}\n",
            public.port(),
            private.port()
        );
        let conf = format!("resolver: [\"{}\"]\nupstream: {{connect_timeout: 2s}}\n", dns.address());
        let proxy = Proxy::settings().remotes(&remotes).conf(&conf).start().await;
        for remote in ["moving", "mixed"] {
            proxy.fetch(remote, "file").await.is("remote", "/file");
            refused_as(proxy.fetch(remote, "to-secret").await, "loopback", remote);
        }
        // A second address beside, and then nothing but that.
        dns.set("moving.test", &[Ipv4Addr::LOCALHOST.into(), PUBLIC.into()]);
        for number in 0..3 {
            proxy.fetch("moving", &format!("second/{number}")).await.ok();
            refused_as(proxy.fetch("moving", "to-secret").await, "loopback", "a second address");
        }
        dns.set("moving.test", &[Ipv4Addr::LOCALHOST.into()]);
        eventually(Duration::from_secs(10), "the name that moved is refused", async || {
            let answer = proxy.fetch("moving", "moved").await;
            answer.status == 502 && answer.text().contains("when the configuration was loaded")
        })
        .await;
        assert_eq!(private.connections(), 0, "somebody was there: {:?}", private.log());
        // What was private from the beginning may go where it likes, but not to a cloud's own.
        let location = private.url("/inside");
        private.on("/on", move |_| Reply::redirect(302, location.clone()));
        proxy.fetch("inner", "on").await.is("remote", "secret");
        for (number, location) in [
            "http://[fd00:ec2::254]/",
            "http://100.100.100.200/",
            "http://192.0.0.192/",
        ]
        .iter()
        .enumerate()
        {
            private.reply(&format!("/cloud/{number}"), Reply::redirect(302, *location));
            refused_as(
                proxy.fetch("inner", &format!("cloud/{number}")).await,
                "metadata",
                location,
            );
        }
        // Loaded again, it is what it is now.
        proxy.reload_and_wait().await;
        let answer = proxy.fetch("moving", "after").await.expect(502);
        assert!(!answer.text().contains("may not be sent"), "{}", answer.text());

        // No name server at the start: it starts all the same, and the first that is found counts.
        dns.silent(true).set("moving.test", &[PUBLIC.into()]);
        let start = Instant::now();
        let proxy = Proxy::settings().remotes(&remotes).conf(&conf).start().await;
        assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
        dns.silent(false);
        eventually(Duration::from_secs(20), "names are known again", async || {
            proxy.fetch("moving", "file").await.status == 200
        })
        .await;
        dns.set("moving.test", &[Ipv4Addr::LOCALHOST.into()]);
        eventually(Duration::from_secs(10), "the name that moved is refused", async || {
            let answer = proxy.fetch("moving", "moved").await;
            answer.status == 502 && answer.text().contains("when the configuration was loaded")
        })
        .await;
    });
}
