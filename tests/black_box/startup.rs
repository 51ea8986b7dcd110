//! Starting, and `artifactapi check`: what is said, what is refused, and how quickly.

use std::time::{Duration, Instant};

use crate::common::client::Headers;
use crate::common::server::{Ended, check, run_binary};
use crate::common::{Proxy, Reply, Upstream, run};

const GOOD: &str = "remotes:\n  files:\n    base_url: http://127.0.0.1:1\n";

#[track_caller]
fn says(ended: &Ended, words: &[&str]) {
    for word in words {
        assert!(ended.text().contains(word), "{word:?} is not in:\n{}", ended.text());
    }
}

#[test]
fn it_says_what_it_listens_on_serves_and_where_it_stores() {
    run(async {
        let up = Upstream::start().await;
        let proxy = Proxy::start(&format!("files:\n  base_url: {0}\nmore:\n  base_url: {0}\n", up.base())).await;
        for words in [
            &proxy.address().to_string(),
            "files",
            "more",
            proxy.data_dir().to_str().unwrap(),
        ] {
            proxy.wait_for_log(words).await;
        }
        assert!(proxy.log().lines().count() < 15, "{}", proxy.log());
        // Start asks no upstream.
        assert_eq!(up.connections(), 0);
    });
}

#[test]
fn the_first_answer_comes_within_a_third_of_a_second() {
    run(async {
        let up = Upstream::start().await;
        let start = Instant::now();
        let proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
        // A debug build on a busy machine: three times what a release build is allowed.
        assert!(start.elapsed() < Duration::from_millis(900), "{:?}", start.elapsed());
        proxy.request("GET", "/health/live", &[], b"").await.ok();
    });
}

#[test]
fn with_no_environment_the_shipped_files_are_good() {
    let folder = tempfile::tempdir().unwrap();
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/remotes.yaml");
    let ended = run_binary(folder.path(), &[], &["check", "--remotes", shipped]);
    assert_eq!(ended.code, Some(0), "{}", ended.text());
}

#[test]
fn a_port_that_is_taken_ends_the_program() {
    run(async {
        let taken = crate::common::listen_low();
        let address = taken.local_addr().unwrap().to_string();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("remotes.yaml"), GOOD).unwrap();
        let ended = run_binary(folder.path(), &[], &["serve", "--listen", &address]);
        assert!(ended.code.is_some_and(|code| code != 0), "{ended:?}");
        says(&ended, &[&address]);
    });
}

#[test]
fn several_addresses_can_be_listened_on() {
    run(async {
        let second = crate::common::refused();
        let proxy = Proxy::settings()
            .remotes(GOOD)
            .arg("--listen")
            .arg(second.to_string())
            .start()
            .await;
        crate::common::get(second, "/health/live").await.ok();
        proxy.request("GET", "/health/live", &[], b"").await.ok();
    });
}

#[test]
fn every_problem_is_said_with_its_place_and_a_hint() {
    let ended = check(
        "remotes:\n  a:\n    base_url: http://127.0.0.1:1\n    immutable_pattern: ['x']\n  b:\n    \
         base_url: http://127.0.0.1:1\n    mutable_patterns: ['(unclosed']\n  c:\n    package: generic\n  d:\n    \
         base_url: http://127.0.0.1:1\n    package: nonsense\n  e:\n    type: local\n    base_url: http://127.0.0.1:1\n  \
         f:\n    base_url: http://127.0.0.1:1\n    quarantine_new: true\n  g:\n    base_url: http://127.0.0.1:1\n    \
         password: \"${NOT_SET_ANYWHERE}\"\n  a:\n    base_url: http://127.0.0.1:1\n",
    );
    assert_eq!(ended.code, Some(1), "{}", ended.text());
    // File, line and column of each, the remote, and what was probably meant.
    says(&ended, &["remotes.yaml:4:5", "immutable_pattern", "immutable_patterns"]);
    says(
        &ended,
        &[
            "remotes.yaml:7:",
            "(unclosed",
            "base_url",
            "nonsense",
            "quarantine_days",
            "NOT_SET_ANYWHERE",
        ],
    );
    for line in [8, 12, 15, 18, 21, 22] {
        assert!(
            (line - 1..=line + 1).any(|line| ended.text().contains(&format!("remotes.yaml:{line}:"))),
            "line {line} of {}",
            ended.text()
        );
    }
}

#[test]
fn each_of_these_is_refused() {
    for (yaml, word) in [
        ("remotes:\n  a:\n    base_url: ftp://x\n", "ftp"),
        ("remotes:\n  a:\n    base_url: not a url\n", "base_url"),
        (
            "remotes:\n  a: {base_url: 'http://h', cache: {mutable_ttl: -1}}\n",
            "mutable_ttl",
        ),
        (
            "remotes:\n  a: {base_url: 'http://h', cache: {mutabel_ttl: 1}}\n",
            "mutabel_ttl",
        ),
        (
            "remotes:\n  a: {base_url: 'http://h', mutable_patterns: ['(?<']}\n",
            "(?<",
        ),
        (
            "remotes:\n  a: {base_url: 'http://h', mutable_patterns: [\"\\b\"]}\n",
            "\\\\b",
        ),
        (
            "remotes:\n  a: {base_url: 'http://h', password_file: /does/not/exist, username: u}\n",
            "/does/not/exist",
        ),
        (
            "remotes:\n  a: {base_url: 'http://h', hosts: [x.test]}\n  b: {base_url: 'http://h', hosts: [X.test]}\n",
            "test",
        ),
        ("remotes:\n  a/b: {base_url: 'http://h'}\n", "a/b"),
        ("remotes: [1]\n", "remotes"),
        ("remotez:\n  a: {base_url: 'http://h'}\n", "remotez"),
        ("", "remotes"),
    ] {
        let ended = check(yaml);
        assert_eq!(ended.code, Some(1), "{yaml}\n{}", ended.text());
        assert!(ended.text().contains(word), "{word:?} is not in {}", ended.text());
    }
}

#[test]
fn an_escape_that_yaml_does_not_know_is_read_as_meant_with_a_warning() {
    run(async {
        let yaml = "remotes:\n  npm:\n    base_url: http://127.0.0.1:1\n    immutable_patterns:\n      - \"\\.tgz$\"\n    \
                    mutable_patterns:\n      - \"^(?!.*\\.tgz$).*\"\n";
        let ended = check(yaml);
        assert_eq!(ended.code, Some(0), "{}", ended.text());
        says(&ended, &["remotes.yaml:5:", "\\.tgz$"]);
        let up = Upstream::start().await;
        up.fallback(|_| Reply::ok("x"));
        let proxy = Proxy::start(&yaml.replace("http://127.0.0.1:1", &up.base())).await;
        for path in ["a.tgz", "a-tgz"] {
            proxy.fetch("npm", path).await.ok();
        }
        let cached = proxy.until_cached("npm", "a.tgz").await;
        assert!(
            cached.must("cache-control").contains("immutable"),
            "{:?}",
            cached.headers
        );
        let mutable = proxy.until_cached("npm", "a-tgz").await;
        assert!(
            !mutable.must("cache-control").contains("immutable"),
            "{:?}",
            mutable.headers
        );
    });
}

#[test]
fn half_set_groups_of_variables_name_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("remotes.yaml"), GOOD).unwrap();
    for (env, words) in [
        (&[("DBHOST", "h")][..], &["DBUSER", "DBNAME"][..]),
        (
            &[("MINIO_ENDPOINT", "h:1"), ("MINIO_BUCKET", "b")],
            &["MINIO_ACCESS_KEY", "MINIO_SECRET_KEY"],
        ),
        (&[("ARTIFACTAPI_NODE_URL", "http://h")], &["ARTIFACTAPI_NODE_SECRET"]),
        (
            &[("ARTIFACTAPI_LISTEN", "nonsense")],
            &["ARTIFACTAPI_LISTEN", "nonsense"],
        ),
    ] {
        let ended = run_binary(folder.path(), env, &["check"]);
        assert_eq!(ended.code, Some(1), "{env:?}: {}", ended.text());
        says(&ended, words);
    }
    // An empty variable is unset.
    let ended = run_binary(folder.path(), &[("DBHOST", ""), ("MINIO_BUCKET", "")], &["check"]);
    assert_eq!(ended.code, Some(0), "{}", ended.text());
}

#[test]
fn an_unknown_key_of_the_settings_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("remotes.yaml"), GOOD).unwrap();
    std::fs::create_dir(folder.path().join("conf")).unwrap();
    for (text, words) in [
        (
            "lissten: [\"127.0.0.1:8000\"]\n",
            &["conf/artifactapi.yaml:1:1", "lissten", "listen"][..],
        ),
        ("cache: {disk_bites: 1GB}\n", &["disk_bites"]),
        ("cache: {disk_bytes: 1XB}\n", &["1XB"]),
    ] {
        std::fs::write(folder.path().join("conf/artifactapi.yaml"), text).unwrap();
        let ended = run_binary(folder.path(), &[], &["check"]);
        assert_eq!(ended.code, Some(1), "{text}: {}", ended.text());
        says(&ended, words);
        let ended = run_binary(
            folder.path(),
            &[],
            &["serve", "--listen", &crate::common::refused().to_string()],
        );
        assert!(ended.code.is_some_and(|code| code != 0), "it starts with {text}");
    }
}

#[test]
fn a_pattern_cannot_hang_a_request() {
    run(async {
        let up = Upstream::start().await;
        up.fallback(|_| Reply::ok("x"));
        let proxy = Proxy::start(&format!(
            "linear:\n  base_url: {0}\n  immutable_patterns: ['^(a+)+$']\n\
             backtracking:\n  base_url: {0}\n  immutable_patterns: ['^(?!x)(a+)+$']\n",
            up.base()
        ))
        .await;
        let evil = format!("{}b", "a".repeat(3000));
        for remote in ["linear", "backtracking"] {
            let start = Instant::now();
            let status = proxy.fetch(remote, &evil).await.status;
            assert!(
                start.elapsed() < Duration::from_secs(2),
                "{remote}: {:?}",
                start.elapsed()
            );
            assert!(
                status == 403 || (remote == "backtracking" && status >= 400),
                "{remote}: {status}"
            );
        }
        assert_eq!(up.total(), 0);
    });
}

mod heavy {
    use super::*;
    use crate::common::server::at;
    use crate::common::{Connection, run_for};
    use tokio::task::JoinSet;

    const OBJECTS: usize = 20_000;

    /// Start asks the disk for nothing that grows with it.
    #[test]
    fn with_many_objects_on_disk_the_first_answer_comes_at_once() {
        run_for(Duration::from_secs(200), async {
            let up = Upstream::start().await;
            up.under("/", |seen| Reply::ok(seen.path.clone()));
            let mut proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
            let mut clients = JoinSet::new();
            for client in 0..8 {
                let address = proxy.address();
                clients.spawn(async move {
                    let mut connection = Connection::open(address).await;
                    for number in (client..OBJECTS).step_by(8) {
                        let path = format!("/dir-{}/{number}", number % 100);
                        assert_eq!(connection.get(&at("files", &path)).await.ok().text(), path);
                    }
                });
            }
            while let Some(client) = clients.join_next().await {
                client.unwrap();
            }
            proxy.until_cached("files", "dir-0/0").await;
            let (mut slowest, mut said) = (Duration::ZERO, Vec::new());
            for end in ["SIGTERM", "SIGKILL", "SIGTERM"] {
                if end == "SIGKILL" {
                    proxy.kill();
                } else {
                    proxy.stop().await;
                }
                let start = Instant::now();
                proxy.launch().await;
                let first = start.elapsed();
                // An object is as quick as the endpoint.
                up.forget();
                proxy.fetch("files", "dir-77/777").await.is("cache", "/dir-77/777");
                let object = start.elapsed();
                assert_eq!(
                    proxy.fetch("files", "dir-99/19999").await.ok().source(),
                    "cache",
                    "after {end}"
                );
                assert_eq!(up.total(), 0, "upstream was asked after {end}");
                said.push(format!("{first:?} and {object:?} after {end}"));
                slowest = slowest.max(object);
            }
            println!("{OBJECTS} objects, first answer and first object: {}", said.join("; "));
            // A third of a second is the contract, for a release build on a machine with nothing else to do.
            assert!(slowest < Duration::from_secs(1), "{said:?}");
            let listed = proxy
                .request("GET", "/api/v1/artifacts?limit=1", &[], b"")
                .await
                .ok()
                .json();
            assert_eq!(listed["total"], OBJECTS, "{listed}");
        });
    }
}
