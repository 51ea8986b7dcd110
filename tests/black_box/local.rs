//! Local repositories: uploads, and what becomes of them.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;

use crate::common::client::Headers;
use crate::common::clients::{Home, program, readme_block};
use crate::common::h2client::H2Connection;
use crate::common::server::{Settings, at, run_binary};
use crate::common::{Connection, Pattern, Proxy, Reply, Response, Upstream, eventually, run, run_for, sha256};
use crate::disk::Mounted;

const LOCAL: &str = "files: {type: local}\n";
const ABC: &str = "sha-256=:ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=:";

/// A proxy that takes uploads as long as the disk does: how full the disk of this machine is must not matter.
async fn start(remotes: &str) -> Proxy {
    let conf = "cache: {disk_min_free: 0%}\n";
    Proxy::settings().remotes(remotes).conf(conf).start().await
}

async fn put(proxy: &Proxy, path: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Response {
    proxy.request("PUT", &at("files", path), headers, body.as_ref()).await
}

async fn delete(proxy: &Proxy, path: &str, headers: &[(&str, &str)]) -> Response {
    proxy.request("DELETE", &at("files", path), headers, b"").await
}

async fn listing(proxy: &Proxy, path: &str) -> Vec<String> {
    let page = proxy.fetch("files", path).await.ok().json();
    let entries = page["entries"].as_array().expect("entries").clone();
    entries
        .iter()
        .map(|entry| entry["name"].as_str().unwrap().to_owned())
        .collect()
}

/// The files below a folder.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let (mut folders, mut files) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(about) if about.is_dir() => folders.push(entry.path()),
                _ => files.push(entry.path()),
            }
        }
    }
    files
}

/// What an upload may leave, and where.
fn kept(proxy: &Proxy) -> Vec<PathBuf> {
    files_below(&proxy.data_dir().join("local"))
}

#[test]
fn a_file_comes_and_goes() {
    run(async {
        let proxy = start(LOCAL).await;
        proxy.fetch("files", "a/b.txt").await.expect(404);
        let new = put(&proxy, "a/b.txt", &[], "hello").await.expect(201);
        let url = format!("{}{}", proxy.base(), at("files", "a/b.txt"));
        let etag = format!("\"{}\"", sha256(b"hello"));
        assert_eq!((new.must("location"), new.must("etag")), (&*url, &*etag));
        assert_eq!(
            new.json(),
            serde_json::json!({"remote": "files", "path": "a/b.txt", "size": 5, "digest": format!("sha256:{}", sha256(b"hello"))})
        );
        let got = proxy.fetch("files", "a/b.txt").await.is("cache", "hello");
        assert_eq!((got.must("etag"), got.must("accept-ranges")), (&*etag, "bytes"));
        assert_eq!(got.must("content-type"), "text/plain; charset=utf-8");
        assert_eq!(got.must("cache-control"), "public, max-age=0");
        assert_eq!(got.must("cache-status"), "artifactapi; hit");
        assert_eq!(
            (got.must("x-content-type-options"), got.must("content-security-policy")),
            ("nosniff", "sandbox")
        );
        let modified = got.must("last-modified").to_owned();
        httpdate::parse_http_date(&modified).expect("a date");
        let head = proxy.head("files", "a/b.txt").await.ok();
        assert_eq!((head.must("content-length"), head.must("etag")), ("5", &*etag));
        for (name, value, status, body) in [
            ("Range", "bytes=1-2", 206, "el"),
            ("Range", "bytes=9-", 416, ""),
            ("Range", "bytes=-2", 206, "lo"),
            ("If-None-Match", &*etag, 304, ""),
            ("If-Match", "\"x\"", 412, ""),
            ("If-Modified-Since", &*modified, 304, ""),
        ] {
            let answer = proxy
                .fetch_with("files", "a/b.txt", &[(name, value)])
                .await
                .expect(status);
            assert_eq!(answer.text(), body, "{name}: {value}");
        }
        put(&proxy, "a/b.txt", &[("Content-Type", "text/x-own")], "other")
            .await
            .expect(200);
        let got = proxy.fetch("files", "a/b.txt").await.is("cache", "other");
        assert_eq!(got.must("content-type"), "text/x-own");
        // What curl and wget say of any body says nothing of the file.
        put(
            &proxy,
            "a/b.json",
            &[("Content-Type", "application/x-www-form-urlencoded")],
            "{}",
        )
        .await
        .expect(201);
        assert_eq!(
            proxy.fetch("files", "a/b.json").await.must("content-type"),
            "application/json"
        );
        put(&proxy, "empty", &[("Content-Length", "0")], "").await.expect(201);
        assert_eq!(proxy.fetch("files", "empty").await.ok().must("content-length"), "0");
        assert_eq!(delete(&proxy, "a/b.txt", &[]).await.expect(204).body, "");
        delete(&proxy, "a/b.txt", &[]).await.expect(404);
        proxy.fetch("files", "a/b.txt").await.expect(404);
        proxy.head("files", "a/b.txt").await.expect(404);
        assert_eq!(kept(&proxy).len(), 2);
    });
}

#[test]
fn what_cannot_be_stored_is_said_before_the_body_is_sent() {
    run(async {
        let remotes = "files: {type: local, immutable_patterns: ['\\.txt$'], max_upload: 10, overwrite: false}\n\
                       up: {base_url: 'http://127.0.0.1:1'}\n";
        let proxy = start(remotes).await;
        put(&proxy, "there.txt", &[], "x").await.expect(201);
        let files = |path: &str| at("files", path);
        let long = "99999999";
        for (target, headers, status) in [
            (files("a.bin"), vec![], 403),
            (files("a.txt"), vec![("Content-Length", long)], 413),
            (files("there.txt"), vec![], 409),
            (files("there.txt"), vec![("If-None-Match", "*")], 412),
            (files("a.txt"), vec![("If-Match", "*")], 412),
            (files("a.txt"), vec![("Content-Range", "bytes 0-4/5")], 400),
            (files("a.txt"), vec![("Content-Encoding", "gzip")], 415),
            (files("a.txt"), vec![("Content-Digest", "sha-256=zz")], 400),
            (files("a.txt"), vec![("X-Checksum-Sha256", "zz")], 400),
            (files("folder.txt/"), vec![], 400),
            (files(""), vec![], 400),
            (files("a.txt?x=1"), vec![], 400),
            (files("a/%2e%2e/b.txt"), vec![], 400),
            (at("up", "a.txt"), vec![], 405),
            (at("none", "a.txt"), vec![], 404),
            (files("a.txt"), vec![("X-Forwarded-For", "10.0.0.1")], 401),
        ] {
            let mut all = vec![("Expect", "100-continue")];
            all.extend(headers.clone());
            if !headers.iter().any(|(name, _)| *name == "Content-Length") {
                all.push(("Content-Length", "5"));
            }
            let mut connection = proxy.connect().await;
            connection.send("PUT", &target, &all, b"").await;
            let mut first = [0; 12];
            assert!(connection.read_exact_raw(&mut first).await);
            assert_eq!(
                String::from_utf8_lossy(&first),
                format!("HTTP/1.1 {status}"),
                "{target} {headers:?}"
            );
            // Who sends all the same reads the answer, too.
            let body = vec![b'x'; 3_000_000];
            let length = body.len().to_string();
            let mut all = headers.clone();
            all.retain(|(name, _)| *name != "Content-Length");
            all.push(("Content-Length", &length));
            let answer = proxy.request("PUT", &target, &all, &body).await;
            assert!(
                answer.complete && (400..=415).contains(&answer.status),
                "{target} {headers:?} {}",
                answer.status
            );
        }
        let chunked = b"8\r\n12345678\r\n8\r\n12345678\r\n0\r\n\r\n";
        put(&proxy, "a.txt", &[("Transfer-Encoding", "chunked")], chunked)
            .await
            .expect(413);
        proxy.request("POST", &files("a.txt"), &[], b"").await.expect(405);
        let mut connection = proxy.connect().await;
        let expects = [("Expect", "100-continue"), ("Content-Length", "5")];
        connection.send("PUT", &files("a.txt"), &expects, b"").await;
        let mut first = [0; 25];
        assert!(connection.read_exact_raw(&mut first).await);
        assert_eq!(&first, b"HTTP/1.1 100 Continue\r\n\r\n");
        connection.write_raw(b"hello").await;
        connection.response("PUT").await.expect(201);
        assert_eq!(kept(&proxy).len(), 2);
        // What patterns do not allow any more is not served, and can be removed.
        proxy.write_remotes("files: {type: local, immutable_patterns: ['\\.bin$']}\n");
        proxy.reload_and_wait().await;
        proxy.fetch("files", "a.txt").await.expect(403);
        delete(&proxy, "a.txt", &[]).await.expect(204);
    });
}

#[test]
fn what_a_client_says_of_its_file_is_held_against_it() {
    run(async {
        let proxy = start(LOCAL).await;
        let right = [
            ("Content-Digest", ABC),
            ("Repr-Digest", ABC),
            (
                "X-Checksum-Sha256",
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
            ("X-Checksum-Sha1", "A9993E364706816ABA3E25717850C26C9CD0D89D"),
            ("X-Checksum-Md5", "900150983cd24fb0d6963f7d28e17f72"),
            ("Content-Digest", "unknown=:AAAA:"),
        ];
        for (index, field) in right.into_iter().enumerate() {
            put(&proxy, &format!("right/{index}"), &[field], "abc")
                .await
                .expect(201);
            if index < 5 {
                let wrong = put(&proxy, &format!("wrong/{index}"), &[field], "abd")
                    .await
                    .expect(400);
                let detail = wrong.json()["detail"].as_str().unwrap().to_owned();
                assert!(
                    detail.to_ascii_lowercase().contains(&field.0.to_ascii_lowercase()),
                    "{detail}"
                );
                proxy.fetch("files", &format!("wrong/{index}")).await.expect(404);
            }
        }
        // What was there stays.
        put(&proxy, "right/0", &[("Content-Digest", ABC)], "abd")
            .await
            .expect(400);
        proxy.fetch("files", "right/0").await.is("cache", "abc");
        assert_eq!(kept(&proxy).len(), right.len());
    });
}

#[test]
fn conditions_let_one_of_many_through() {
    run(async {
        let proxy = start(LOCAL).await;
        let all = async |path: &'static str, headers: Vec<(&'static str, String)>| {
            let mut uploads = JoinSet::new();
            for number in 0..12 {
                let (address, headers) = (proxy.address(), headers.clone());
                uploads.spawn(async move {
                    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
                    let mut connection = Connection::open(address).await;
                    let body = format!("{number}").repeat(100_000);
                    (
                        connection
                            .request("PUT", &at("files", path), &headers, body.as_bytes())
                            .await
                            .status,
                        body,
                    )
                });
            }
            uploads.join_all().await
        };
        let first = all("x", vec![("If-None-Match", "*".to_owned())]).await;
        let stored: Vec<_> = first.iter().filter(|(status, _)| *status == 201).collect();
        assert_eq!(stored.len(), 1);
        assert!(first.iter().all(|(status, _)| [201, 412].contains(status)));
        let got = proxy.fetch("files", "x").await.is("cache", &stored[0].1);
        let second = all("x", vec![("If-Match", got.must("etag").to_owned())]).await;
        let stored: Vec<_> = second.iter().filter(|(status, _)| *status == 200).collect();
        // One of them may have had the very same content.
        assert!(stored.len() == 1 || stored.len() == 2, "{}", stored.len());
        // Without conditions the last one stays, whole.
        let third = all("y", Vec::new()).await;
        assert_eq!(third.iter().filter(|(status, _)| *status == 201).count(), 1);
        let body = proxy.fetch("files", "y").await.ok().text();
        assert!(third.iter().any(|(_, sent)| *sent == body));
        delete(&proxy, "y", &[("If-Match", "\"x\"")]).await.expect(412);
        let etag = proxy.fetch("files", "y").await.ok().must("etag").to_owned();
        delete(&proxy, "y", &[("If-Match", &etag)]).await.expect(204);
    });
}

#[test]
fn an_upload_that_is_cut_leaves_nothing() {
    run(async {
        let mut proxy = start(LOCAL).await;
        put(&proxy, "there", &[], "before").await.expect(201);
        let body = vec![b'x'; 1_000_000];
        for (headers, sent) in [
            (vec![("Content-Length", "2000000")], body.clone()),
            (
                vec![("Transfer-Encoding", "chunked")],
                [b"f4240\r\n".as_slice(), &body].concat(),
            ),
            (
                vec![("Transfer-Encoding", "chunked")],
                [b"3\r\nabc\r\nzz\r\n".as_slice(), &body].concat(),
            ),
        ] {
            for path in ["there", "new"] {
                let mut connection = proxy.connect().await;
                connection.send("PUT", &at("files", path), &headers, &sent).await;
                connection.finish_sending().await;
                // It may be answered, and is never said to be stored.
                if let Ok(head) = connection.try_read_head("PUT").await {
                    assert_eq!(head.status, 400);
                }
            }
        }
        // Killed while it receives.
        let mut connection = proxy.connect().await;
        connection
            .send("PUT", &at("files", "new"), &[("Content-Length", "2000000")], &body)
            .await;
        proxy.kill();
        proxy.launch().await;
        proxy.fetch("files", "there").await.is("cache", "before");
        proxy.fetch("files", "new").await.expect(404);
        assert_eq!(kept(&proxy).len(), 1, "{:?}", kept(&proxy));
    });
}

#[test]
fn nothing_that_was_answered_is_lost_when_the_process_is_killed() {
    run_for(Duration::from_secs(150), async {
        let mut proxy = start(LOCAL).await;
        let mut answered: Vec<(String, Pattern)> = Vec::new();
        for round in 0..10_u64 {
            let mut uploads = JoinSet::new();
            for client in 0..4_u64 {
                let address = proxy.address();
                uploads.spawn(async move {
                    let mut stored = Vec::new();
                    for number in 0.. {
                        let (path, body) = (
                            format!("{round}/{client}/{number}"),
                            Pattern::new(round * 1000 + client * 100 + number, 50_000 + number),
                        );
                        let Ok(mut connection) = Connection::try_open(address).await else {
                            break;
                        };
                        connection.send("PUT", &at("files", &path), &[], &body.whole()).await;
                        match connection.try_read_head("PUT").await {
                            Ok(head) if head.status == 201 => stored.push((path, body)),
                            Ok(head) => panic!("{path}: {}", head.status),
                            Err(_) => break,
                        }
                    }
                    stored
                });
            }
            tokio::time::sleep(Duration::from_millis(150 + 37 * round)).await;
            proxy.kill();
            answered.extend(uploads.join_all().await.into_iter().flatten());
            proxy.launch().await;
        }
        assert!(answered.len() > 10, "{} uploads", answered.len());
        for (path, body) in &answered {
            proxy.fetch("files", path).await.is("cache", body.whole());
        }
        // Listed again as well, though the catalogue was not told of the last ones.
        let limit = Duration::from_secs(20);
        eventually(limit, "all is listed", async || {
            let first = proxy
                .request("GET", "/api/v1/artifacts?remote=files&limit=1", &[], b"")
                .await;
            first.ok().json()["total"].as_u64().unwrap() >= answered.len() as u64
        })
        .await;
        // What a killed process left of others is swept out later, and is no file of anybody.
        let objects = files_below(&proxy.data_dir().join("local/objects"));
        assert!(
            objects.len() >= answered.len() && objects.len() <= answered.len() + 40,
            "{}",
            objects.len()
        );
    });
}

#[test]
fn quotas_hold_for_what_comes_together() {
    run(async {
        let proxy = start("files: {type: local, quota: 1000KB}\nother: {type: local}\n").await;
        let body = vec![b'x'; 400_000];
        put(&proxy, "a", &[], &body).await.expect(201);
        let mut uploads = JoinSet::new();
        for number in 0..6 {
            let (address, body) = (proxy.address(), body.clone());
            uploads.spawn(async move {
                let mut connection = Connection::open(address).await;
                connection
                    .request("PUT", &at("files", &format!("many/{number}")), &[], &body)
                    .await
                    .status
            });
        }
        let mut statuses = uploads.join_all().await;
        statuses.sort_unstable();
        assert_eq!(statuses, [201, 507, 507, 507, 507, 507]);
        let refused = put(&proxy, "b", &[], &body).await.expect(507);
        assert!(refused.text().contains("quota"), "{}", refused.text());
        let chunked = [b"61a80\r\n".as_slice(), &body, b"\r\n0\r\n\r\n"].concat();
        put(&proxy, "b", &[("Transfer-Encoding", "chunked")], &chunked)
            .await
            .expect(507);
        // What it replaces makes room for it.
        put(&proxy, "a", &[], &body).await.expect(200);
        proxy.request("PUT", &at("other", "b"), &[], &body).await.expect(201);
        delete(&proxy, "a", &[]).await.expect(204);
        put(&proxy, "b", &[("Transfer-Encoding", "chunked")], &chunked)
            .await
            .expect(201);
    });
}

#[test]
fn folders_are_listed_for_programs_and_for_people() {
    run(async {
        let proxy = start(LOCAL).await;
        assert_eq!(listing(&proxy, "").await, Vec::<String>::new());
        proxy.fetch("files", "none/").await.expect(404);
        for path in [
            "b.txt",
            "a/x",
            "a/y/z",
            "a/y/w",
            "a/%3Cb%3E%22'&.html",
            "a.b",
            "c/d/e/f",
        ] {
            put(&proxy, path, &[], path).await.expect(201);
        }
        assert_eq!(listing(&proxy, "").await, ["a.b", "a/", "b.txt", "c/"]);
        assert_eq!(listing(&proxy, "a/").await, ["%3Cb%3E%22'&.html", "x", "y/"]);
        assert_eq!(listing(&proxy, "a//y/").await, ["w", "z"]);
        assert_eq!(listing(&proxy, "c/d/").await, ["e/"]);
        let page = proxy.fetch("files", "a/y/").await.ok().json();
        let entry = &page["entries"][1];
        assert_eq!(
            (&page["remote"], &page["path"], &page["next"]),
            (&"files".into(), &"a/y/".into(), &Value::Null)
        );
        assert_eq!(
            (&entry["path"], &entry["type"], &entry["size"]),
            (&"a/y/z".into(), &"file".into(), &5.into())
        );
        assert_eq!(entry["digest"], format!("sha256:{}", sha256(b"a/y/z")));
        let (mut next, mut seen) = (String::new(), Vec::new());
        loop {
            let query = format!("?limit=1&after={next}");
            let page = proxy.fetch("files", &query).await.ok().json();
            seen.extend(
                page["entries"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|entry| entry["path"].clone()),
            );
            let Some(after) = page["next"].as_str() else { break };
            next = after.replace('/', "%2F");
        }
        assert_eq!(seen, ["a.b", "a/", "b.txt", "c/"]);
        proxy.fetch("files", "?limit=0").await.expect(400);
        let accept = [("Accept", "text/html,*/*;q=0.8")];
        let page = proxy.fetch_with("files", "a/", &accept).await.ok();
        assert_eq!(page.must("content-type"), "text/html; charset=utf-8");
        assert_eq!(
            (
                page.must("x-content-type-options"),
                page.must("content-security-policy")
            ),
            ("nosniff", "sandbox")
        );
        let text = page.text();
        assert!(
            text.contains("<a href=\"./%3Cb%3E%22&#39;&amp;.html\">&lt;b&gt;&quot;&#39;&amp;.html</a>"),
            "{text}"
        );
        assert!(
            text.contains("<a href=\"./y/\">y/</a>") && !text.contains("<b>"),
            "{text}"
        );
        // The listing of all remotes has them too.
        let found = proxy
            .request("GET", "/api/v1/artifacts?remote=files&prefix=a%2Fy", &[], b"")
            .await
            .ok()
            .json();
        assert_eq!(
            (&found["total"], &found["artifacts"][0]["path"]),
            (&2.into(), &"a/y/w".into())
        );
        let one = proxy
            .request("GET", "/api/v1/artifacts/files/c/d/e/f", &[], b"")
            .await
            .ok()
            .json();
        assert_eq!(one["size"], 7);
        delete(&proxy, "c/d/e/f", &[]).await.expect(204);
        assert_eq!(listing(&proxy, "").await, ["a.b", "a/", "b.txt"]);
        proxy
            .request("GET", "/api/v1/artifacts/files/c/d/e/f", &[], b"")
            .await
            .expect(404);
    });
}

#[test]
fn local_files_are_neither_flushed_nor_evicted_nor_swept() {
    run(async {
        let up = Upstream::start().await;
        up.under("/", |_| Reply::ok(Pattern::new(7, 300_000)));
        let remotes = format!("{LOCAL}cache: {{base_url: '{}'}}\n", up.base());
        let conf = "cache: {disk_bytes: 2MB, disk_min_free: 0%, memory_bytes: 1MB}\n";
        let mut proxy = Proxy::settings().remotes(&remotes).conf(conf).start().await;
        // Together more than the cache may hold.
        let body = vec![b'x'; 1_000_000];
        for number in 0..4 {
            put(&proxy, &format!("{number}"), &[], &body).await.expect(201);
        }
        for number in 0..20 {
            proxy.fetch("cache", &format!("/{number}")).await.ok();
        }
        proxy.until_cached("cache", "/19").await;
        let named = proxy
            .request("PUT", "/cache/flush", &[], br#"{"remote": "files"}"#)
            .await
            .expect(400);
        assert!(named.text().contains("local remote"), "{}", named.text());
        let all = proxy.request("PUT", "/cache/flush", &[], b"").await.ok().json();
        assert!(all["matched"].as_u64().unwrap() < 20, "{all}");
        // Nor is one whose remote is not configured any more.
        proxy.write_remotes(&format!("cache: {{base_url: '{}'}}\n", up.base()));
        proxy.reload_and_wait().await;
        proxy.fetch("files", "0").await.expect(404);
        proxy.request("PUT", "/cache/flush", &[], b"").await.ok();
        proxy.stop().await;
        proxy.write_remotes(&remotes);
        proxy.launch().await;
        for number in 0..4 {
            proxy.fetch("files", &format!("{number}")).await.is("cache", &body);
        }
        assert_eq!(listing(&proxy, "").await, ["0", "1", "2", "3"]);
    });
}

#[test]
fn what_is_damaged_is_said_and_stays_until_it_is_uploaded_again() {
    run(async {
        let mut proxy = start(LOCAL).await;
        put(&proxy, "small", &[], "hello").await.expect(201);
        put(&proxy, "there", &[], "x").await.expect(201);
        proxy.stop().await;
        let file = kept(&proxy)
            .into_iter()
            .find(|file| fs::read(file).unwrap().ends_with(b"hello"))
            .unwrap();
        let length = fs::metadata(&file).unwrap().len();
        fs::OpenOptions::new()
            .write(true)
            .open(&file)
            .unwrap()
            .write_all_at(b"J", length - 5)
            .unwrap();
        let remotes = proxy.remotes_file();
        let verified = run_binary(
            proxy.folder(),
            &[],
            &[
                "verify",
                "--data-dir",
                proxy.data_dir().to_str().unwrap(),
                "--remotes",
                remotes.to_str().unwrap(),
            ],
        );
        assert_eq!(verified.code, Some(1), "{}", verified.text());
        assert!(
            verified.stdout.contains("2 objects") && verified.stdout.contains("1 damaged"),
            "{}",
            verified.text()
        );
        assert!(
            verified.stdout.contains("restore it from a backup"),
            "{}",
            verified.text()
        );
        proxy.launch().await;
        let mut connection = proxy.connect().await;
        connection.send("GET", &at("files", "small"), &[], b"").await;
        // Its length was promised, and its last piece never comes.
        let answer = connection.response("GET").await;
        assert!(!answer.complete && answer.body.is_empty(), "{:?}", answer.body);
        let said = proxy.fetch("files", "small").await.expect(500);
        assert!(
            said.text().contains("damaged") && said.text().contains("upload it again"),
            "{}",
            said.text()
        );
        proxy.fetch("files", "there").await.is("cache", "x");
        let health = proxy.request("GET", "/health", &[], b"").await.ok().json();
        assert_eq!(health["dependencies"]["local_files"]["status"], "degraded", "{health}");
        assert!(proxy.log_contains("AN UPLOADED FILE IS DAMAGED") && file.exists());
        assert_eq!(listing(&proxy, "").await, ["small", "there"]);
        put(&proxy, "small", &[("If-Match", "\"x\"")], "hello")
            .await
            .expect(412);
        put(&proxy, "small", &[], "hello").await.expect(200);
        proxy.fetch("files", "small").await.is("cache", "hello");
        let health = proxy.request("GET", "/health", &[], b"").await.ok().json();
        assert_eq!(health["dependencies"]["local_files"], Value::Null, "{health}");
    });
}

#[test]
fn a_full_disk_takes_nothing_and_loses_nothing() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let _mounted = Mounted::new(&data, "size=12m");
        let conf = "cache: {disk_min_free: 0%, memory_bytes: 1MB}\n";
        let settings: Settings = Proxy::settings().remotes(LOCAL).conf(conf).data_dir(&data);
        let proxy = settings.start().await;
        let body = Pattern::new(1, 5_000_000).whole();
        put(&proxy, "a", &[], &body).await.expect(201);
        let long = Pattern::new(2, 9_000_000).whole();
        let refused = put(&proxy, "a", &[], &long).await.expect(507);
        assert!(
            refused.text().contains("nothing was stored") || refused.text().contains("no room"),
            "{}",
            refused.text()
        );
        let chunked = [format!("{:x}\r\n", long.len()).as_bytes(), &long, b"\r\n0\r\n\r\n"].concat();
        put(&proxy, "b", &[("Transfer-Encoding", "chunked")], &chunked)
            .await
            .expect(507);
        proxy.fetch("files", "a").await.is("cache", &body);
        proxy.fetch("files", "b").await.expect(404);
        put(&proxy, "c", &[], Pattern::new(3, 4_000_000).whole())
            .await
            .expect(201);
        assert_eq!(listing(&proxy, "").await, ["a", "c"]);
    });
}

#[test]
fn http_2_uploads_too() {
    run(async {
        let proxy = start(LOCAL).await;
        let body = Pattern::new(5, 3_000_000).whole();
        let mut connection = H2Connection::open(proxy.address()).await;
        let answer = connection.send("PUT", &at("files", "x"), &[], &body).await;
        assert_eq!(answer.status, 201);
        proxy.fetch("files", "x").await.is("cache", &body);
        let digest = format!("sha-256=:{}:", "A".repeat(43) + "=");
        let answer = connection
            .send("PUT", &at("files", "x"), &[("content-digest", &digest)], &body)
            .await;
        assert_eq!(answer.status, 400);
    });
}

#[test]
fn what_the_readme_shows_works() {
    run(async {
        let proxy = start(LOCAL).await;
        let home = Home::new();
        let body = Pattern::new(1, 3_000_000).whole();
        fs::write(home.work().join("app-1.0.tar.gz"), &body).unwrap();
        let ours = ("local-generic", "files");
        let shell = readme_block("curl -fT app-1.0.tar.gz", proxy.address(), ours);
        let (uploads, deletion) = shell.split_at(shell.find("curl -fX DELETE").expect("a deletion"));
        let sh = async |script: &str| {
            let mut command = home.command(program("sh"));
            command.args(["-c", script]);
            home.run(command).await
        };
        let said = sh(uploads).await.text();
        // The second one finds a file there already.
        assert!(said.contains("412"), "{said}");
        assert!(said.contains(&format!("sha256:{}", sha256(&body))), "{said}");
        proxy.fetch("files", "app/app-1.0.tar.gz").await.is("cache", &body);
        sh(deletion).await.ok();
        proxy.fetch("files", "app/app-1.0.tar.gz").await.expect(404);
        // pip brings the library along.
        let python = readme_block("requests.put", proxy.address(), ours);
        let python = python.replace("import requests", "from pip._vendor import requests");
        let mut command = home.command("python");
        command.args(["-c", &python]);
        let said = home.run(command).await.ok().text();
        assert!(said.contains(&sha256(&body)), "{said}");
        proxy.fetch("files", "app/app-1.0.tar.gz").await.is("cache", &body);
    });
}

mod heavy {
    use super::*;

    #[test]
    fn memory_stays_flat_whatever_is_uploaded() {
        run_for(Duration::from_secs(200), async {
            let proxy = start(LOCAL).await;
            put(&proxy, "warm", &[], Pattern::new(1, 20_000_000).whole())
                .await
                .expect(201);
            let (before, _) = proxy.memory();
            let pattern = Pattern::new(2, 600_000_000);
            let mut connection = proxy.connect().await;
            let length = "600000000";
            connection
                .send("PUT", &at("files", "large"), &[("Content-Length", length)], b"")
                .await;
            let mut at_byte = 0;
            while at_byte < 600_000_000 {
                let piece = pattern.bytes(at_byte, 1 << 20);
                connection.write_raw(&piece).await;
                at_byte += piece.len() as u64;
            }
            connection.response("PUT").await.expect(201);
            let (after, peak) = proxy.memory();
            assert!(
                peak < before + 40_000_000 && after < before + 40_000_000,
                "{before} {after} {peak}"
            );
            let mut connection = proxy.connect().await;
            connection.send("GET", &at("files", "large"), &[], b"").await;
            connection.read_head("GET").await;
            assert_eq!(connection.read_pattern(pattern).await, 600_000_000);
            let (_, peak) = proxy.memory();
            assert!(peak < before + 40_000_000, "{before} {peak}");
        });
    }
}
