//! Files are held against the digests that their indexes name: what is not right is never whole, never kept, and counted.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::json;
use sha2::{Digest as _, Sha512};

use crate::common::packages::{
    Chart, Crate, IndexForm, NPM_ABBREVIATED, NpmVersion, SIMPLE_JSON, Wheel, gzip, helm_index, serve_crates,
    serve_npm, serve_pypi,
};
use crate::common::{File, Pattern, Proxy, Reply, Response, Upstream, eventually, hex, run, run_for, sha256};

const COUNTER: &str = "artifactapi_digest_mismatches_total";
/// So long that clients get a part of it before its end is known.
const LONG: usize = 300_000;

/// A registry with one file that its index names.
struct Registry {
    up: Upstream,
    package: &'static str,
    /// Of the remote `r`, one a line, indented.
    keys: String,
    /// Where the file is, below the remote and at upstream.
    path: String,
    at: String,
    /// Where the index is at upstream.
    index: &'static str,
    bytes: Bytes,
}

impl Registry {
    async fn pypi(form: IndexForm, length: usize) -> Self {
        let up = Upstream::start().await;
        let wheel = Wheel::new("demo", "1.0", &[], length);
        serve_pypi(&up, &up, form, std::slice::from_ref(&wheel));
        Registry {
            package: "pypi",
            keys: format!("  base_url: {}\n  package: pypi\n", up.base()),
            path: wheel.path()[1..].to_owned(),
            at: wheel.path(),
            index: "/simple/demo/",
            bytes: wheel.bytes,
            up,
        }
    }

    async fn npm(length: usize) -> Self {
        let up = Upstream::start().await;
        let mut version = NpmVersion::new("plain", "1.0.0", json!({}));
        version.bytes = Pattern::new(5, length as u64).whole().to_vec().into();
        serve_npm(&up, &up, std::slice::from_ref(&version));
        Registry {
            package: "npm",
            keys: format!(
                "  base_url: {}\n  package: npm\n  mutable_patterns: ['^(?!.*\\.tgz$).*']\n",
                up.base()
            ),
            path: version.path()[1..].to_owned(),
            at: version.path(),
            index: "/plain",
            bytes: version.bytes,
            up,
        }
    }

    async fn helm(length: usize) -> Self {
        let up = Upstream::start().await;
        let mut chart = Chart::new("demo", "1.0.0");
        chart.bytes = Pattern::new(6, length as u64).whole().to_vec().into();
        let index = helm_index(&[chart.entry(&[&chart.file()])]);
        up.file(
            "/index.yaml",
            File::new(index).etag("\"i\"").content_type("application/yaml"),
        );
        let at = format!("/{}", chart.file());
        up.file(&at, File::new(chart.bytes.clone()));
        Registry {
            package: "helm",
            keys: format!("  base_url: {}\n  package: helm\n", up.base()),
            path: chart.file(),
            at,
            index: "/index.yaml",
            bytes: chart.bytes,
            up,
        }
    }

    /// The crate is asked for without the checksum that clients put behind its path.
    async fn cargo(length: usize) -> Self {
        let up = Upstream::start().await;
        let mut one = Crate::new("demo", "1.0.0", &[]);
        one.bytes = Pattern::new(7, length as u64).whole().to_vec().into();
        serve_crates(&up, &up, std::slice::from_ref(&one));
        let at = format!("/crates/{}", one.download());
        Registry {
            package: "cargo",
            keys: format!("  base_url: {}\n  package: cargo\n", up.url("/index")),
            path: format!("-/host/{}{at}", up.authority()),
            at,
            index: "/index/de/mo/demo",
            bytes: one.bytes,
            up,
        }
    }

    async fn all(length: usize) -> [Self; 5] {
        [
            Self::pypi(IndexForm::Both, length).await,
            Self::pypi(IndexForm::Html, length).await,
            Self::npm(length).await,
            Self::helm(length).await,
            Self::cargo(length).await,
        ]
    }

    fn remotes(&self, more: &str) -> String {
        format!("r:\n{}  {more}\n", self.keys)
    }

    /// The right bytes but for the last one.
    fn wrong(&self) -> Bytes {
        let mut bytes = self.bytes.to_vec();
        *bytes.last_mut().expect("some bytes") ^= 1;
        bytes.into()
    }

    fn serve(&self, bytes: Bytes) {
        self.up.file(&self.at, File::new(bytes));
    }

    /// The digest of these bytes, as it is logged.
    fn digest(&self, bytes: &[u8]) -> String {
        match self.package {
            "npm" => format!("sha512:{}", hex(&Sha512::digest(bytes))),
            _ => format!("sha256:{}", sha256(bytes)),
        }
    }

    fn fetched(&self) -> usize {
        self.up.count("GET", &self.at)
    }

    fn indexed(&self) -> usize {
        self.up.count("*", self.index)
    }
}

pub async fn counted(proxy: &Proxy, count: f64) {
    eventually(Duration::from_secs(20), "mismatches are counted", async || {
        proxy.metric(COUNTER, &["remote=\"r\""]).await == count
    })
    .await;
}

/// Fails when a client could take this for a whole answer.
#[track_caller]
pub fn is_cut(answer: &Response) {
    let may_be_taken = matches!(answer.status, 200 | 206) && answer.complete;
    assert!(!may_be_taken, "{} {:?}", answer.status, answer.headers);
    assert!(
        matches!(answer.status, 200 | 502),
        "{} {}",
        answer.status,
        answer.text()
    );
}

#[test]
fn a_wrong_file_is_cut_and_never_kept_and_a_right_one_is() {
    run_for(Duration::from_secs(120), async {
        for length in [1_000, LONG] {
            for registry in Registry::all(length).await {
                let proxy = Proxy::start(&registry.remotes("")).await;
                registry.serve(registry.wrong());
                for round in 1..=2 {
                    let answer = proxy.fetch("r", &registry.path).await;
                    is_cut(&answer);
                    assert!(answer.body.len() < registry.bytes.len());
                    counted(&proxy, f64::from(round)).await;
                    assert_eq!(registry.fetched(), round as usize, "{}", registry.package);
                }
                let log = proxy.log();
                let line = log
                    .lines()
                    .find(|line| line.contains(&registry.digest(&registry.wrong())));
                let line = line.unwrap_or_else(|| panic!("no line with the digest that was found:\n{log}"));
                assert!(line.contains(&registry.digest(&registry.bytes)), "{line}");
                assert!(line.contains(&registry.path), "{line}");
                registry.serve(registry.bytes.clone());
                let right = &registry.bytes;
                proxy.fetch("r", &registry.path).await.is("remote", right);
                proxy.until_cached("r", &registry.path).await.is("cache", right);
                assert_eq!(registry.fetched(), 3, "{}", registry.package);
                counted(&proxy, 2.0).await;
            }
        }
    });
}

#[test]
fn a_part_of_a_wrong_file_is_none_of_a_right_one() {
    run(async {
        let registry = Registry::pypi(IndexForm::Both, 1_000).await;
        registry.serve(registry.wrong());
        let proxy = Proxy::start(&registry.remotes("")).await;
        // What the HEAD says has no body that could be wrong.
        proxy.head("r", &registry.path).await.ok();
        assert_eq!((registry.indexed(), registry.fetched()), (0, 0));
        let part = proxy.fetch_with("r", &registry.path, &[("Range", "bytes=0-9")]).await;
        is_cut(&part);
        counted(&proxy, 1.0).await;
    });
}

#[test]
fn what_warns_is_counted_and_kept_and_what_is_off_asks_no_index() {
    run(async {
        for registry in Registry::all(1_000).await {
            let wrong = registry.wrong();
            registry.serve(wrong.clone());
            let proxy = Proxy::start(&registry.remotes("verify: warn")).await;
            proxy.fetch("r", &registry.path).await.is("remote", &wrong);
            proxy.until_cached("r", &registry.path).await.is("cache", &wrong);
            counted(&proxy, 1.0).await;
            proxy.wait_for_log(&registry.digest(&wrong)).await;
            assert!(proxy.log_contains(&registry.digest(&registry.bytes)));
            registry.up.forget();
            let proxy = Proxy::start(&registry.remotes("verify: off")).await;
            proxy.fetch("r", &registry.path).await.is("remote", &wrong);
            proxy.until_cached("r", &registry.path).await.is("cache", &wrong);
            assert_eq!((registry.fetched(), registry.indexed()), (1, 0), "{}", registry.package);
            counted(&proxy, 0.0).await;
        }
    });
}

#[test]
fn many_files_of_a_package_cost_one_question() {
    run(async {
        let up = Upstream::start().await;
        let wheels: Vec<Wheel> = (0..20)
            .map(|minor| Wheel::new("demo", &format!("1.{minor}"), &[], 100))
            .collect();
        serve_pypi(&up, &up, IndexForm::Both, &wheels);
        let proxy = Proxy::start(&format!("r:\n  base_url: {}\n  package: pypi\n", up.base())).await;
        let fetched = wheels.iter().map(async |wheel| {
            let metadata = format!("{}.metadata", &wheel.path()[1..]);
            proxy.fetch("r", &metadata).await.is("remote", &wheel.metadata);
            proxy.fetch("r", &wheel.path()[1..]).await.is("remote", &wheel.bytes);
        });
        join_all(fetched).await;
        assert_eq!((up.count("GET", "/simple/demo/"), up.total()), (1, 41));
        // Its metadata is in the index too.
        let wheel = Wheel::new("other", "1.0", &[], 100);
        serve_pypi(&up, &up, IndexForm::Both, std::slice::from_ref(&wheel));
        let metadata = format!("{}.metadata", wheel.path());
        up.file(&metadata, File::new("Name: evil"));
        is_cut(&proxy.fetch("r", &metadata[1..]).await);
    });
}

#[test]
fn whichever_form_of_the_index_is_stored_is_read() {
    run(async {
        let forms = [
            (
                Registry::pypi(IndexForm::Both, 1_000).await,
                "simple/demo/",
                SIMPLE_JSON,
            ),
            (
                Registry::pypi(IndexForm::Both, 1_000).await,
                "simple/demo/",
                "text/html",
            ),
            (Registry::npm(1_000).await, "plain", NPM_ABBREVIATED),
            (Registry::npm(1_000).await, "plain", "application/json"),
            (Registry::helm(1_000).await, "index.yaml", "*/*"),
        ];
        for (registry, index, accept) in forms {
            let proxy = Proxy::start(&registry.remotes("")).await;
            proxy.fetch_with("r", index, &[("Accept", accept)]).await.ok();
            registry.serve(registry.wrong());
            is_cut(&proxy.fetch("r", &registry.path).await);
            assert_eq!((registry.indexed(), registry.fetched()), (1, 1), "{accept}");
        }
    });
}

#[test]
fn what_no_index_names_is_served() {
    run(async {
        for status in [404, 500] {
            for registry in Registry::all(1_000).await {
                registry.up.reply(registry.index, Reply::status(status));
                let wrong = registry.wrong();
                registry.serve(wrong.clone());
                let proxy = Proxy::start(&registry.remotes("verify: enforce")).await;
                proxy.fetch("r", &registry.path).await.is("remote", &wrong);
                proxy.until_cached("r", &registry.path).await;
                if registry.package == "pypi" {
                    proxy.fetch("r", &format!("{}.metadata", registry.path)).await.ok();
                }
                assert_eq!((registry.indexed(), registry.fetched()), (1, 1), "{}", registry.package);
                counted(&proxy, 0.0).await;
            }
        }
        let registry = Registry::pypi(IndexForm::Both, 1_000).await;
        let other = Wheel::new("demo", "9.0", &[], 10);
        serve_pypi(
            &registry.up,
            &registry.up,
            IndexForm::Both,
            std::slice::from_ref(&other),
        );
        let proxy = Proxy::start(&registry.remotes("verify: enforce")).await;
        for _ in 0..2 {
            proxy.fetch("r", &registry.path).await.ok();
            proxy.fetch("r", &format!("{}.asc", registry.path)).await.expect(404);
        }
        assert_eq!((registry.indexed(), registry.fetched()), (1, 1));
    });
}

#[test]
fn an_index_is_believed_as_long_as_clients_get_it() {
    run(async {
        let registry = Registry::helm(1_000).await;
        let replaced = Pattern::new(9, 2_000).whole().to_vec();
        let replace = || {
            let mut chart = Chart::new("demo", "1.0.0");
            chart.bytes = replaced.clone().into();
            let index = helm_index(&[chart.entry(&[&chart.file()])]);
            registry.up.file("/index.yaml", File::new(index).etag("\"j\""));
            registry.serve(replaced.clone().into());
        };
        let expired = Proxy::start(&registry.remotes("cache: {mutable_ttl: 0}")).await;
        let fresh = Proxy::start(&registry.remotes("")).await;
        for proxy in [&expired, &fresh] {
            proxy.fetch("r", "index.yaml").await.ok();
        }
        replace();
        expired.fetch("r", &registry.path).await.is("remote", &replaced);
        // What does not fit makes the index due.
        is_cut(&fresh.fetch("r", &registry.path).await);
        let mut served = false;
        eventually(Duration::from_secs(20), "the new index is believed", async || {
            let answer = fresh.fetch("r", &registry.path).await;
            served = answer.status == 200 && answer.complete;
            served
        })
        .await;
        fresh.until_cached("r", &registry.path).await.is("cache", &replaced);
    });
}

#[test]
fn what_passes_by_unstored_and_what_comes_in_a_coding_is_verified_too() {
    run(async {
        let registry = Registry::pypi(IndexForm::Both, 3_000_000).await;
        let settings = Proxy::settings().remotes(&registry.remotes(""));
        let proxy = settings
            .conf("cache: {disk_bytes: 1MB, memory_bytes: 0}\n")
            .start()
            .await;
        proxy.fetch("r", &registry.path).await.is("remote", &registry.bytes);
        registry.serve(registry.wrong());
        is_cut(&proxy.fetch("r", &registry.path).await);
        // Whether its name is that of a packed file, so that a coding is what it is anyway, or not.
        let registry = Registry::pypi(IndexForm::Both, 5_000).await;
        let metadata = Wheel::new("demo", "1.0", &[], 5_000).metadata.into_bytes();
        let proxy = Proxy::start(&registry.remotes("")).await;
        let coded = |bytes: &[u8]| File::new(bytes.to_vec()).header("Content-Encoding", "gzip");
        let (at, path) = (
            format!("{}.metadata", registry.at),
            format!("{}.metadata", registry.path),
        );
        registry.up.file(&at, coded(&gzip(b"Name: evil")));
        is_cut(&proxy.fetch("r", &path).await);
        registry.up.file(&at, coded(&gzip(&metadata)));
        proxy.fetch("r", &path).await.is("remote", &metadata);
        proxy.until_cached("r", &path).await.is("cache", &metadata);
        registry.up.file(&registry.at, coded(&registry.wrong()));
        is_cut(&proxy.fetch("r", &registry.path).await);
        registry.up.file(&registry.at, coded(&registry.bytes));
        proxy.fetch("r", &registry.path).await.is("remote", &registry.bytes);
    });
}

const CHANGES: &str = "artifactapi_changed_artifacts_total";

async fn changes(proxy: &Proxy, count: f64) {
    eventually(Duration::from_secs(20), "changes are counted", async || {
        proxy.metric(CHANGES, &["remote=\"r\""]).await == count
    })
    .await;
}

async fn flush(proxy: &Proxy) {
    let flushed = proxy
        .request("PUT", "/cache/flush", &[], br#"{"remote": "r"}"#)
        .await
        .ok();
    assert_eq!(flushed.json()["deleted"], 1, "{}", flushed.text());
}

#[test]
fn what_an_immutable_path_had_before_is_known_after_a_flush_and_a_restart() {
    run_for(Duration::from_secs(120), async {
        let up = Upstream::start().await;
        let (old, new) = (vec![b'a'; 200_000], vec![b'b'; 200_000]);
        up.file("/a.tar", File::new(old.clone())).file("/live", File::new("1"));
        let remote = |more: &str| {
            format!(
                "r:\n  base_url: {}\n  mutable_patterns: [\"^live\"]\n  {more}\n",
                up.base()
            )
        };
        let data = tempfile::tempdir().unwrap();
        let settings = Proxy::settings().data_dir(data.path());
        let mut proxy = settings.clone().remotes(&remote("")).start().await;
        proxy.fetch("r", "a.tar").await.is("remote", &old);
        proxy.until_cached("r", "a.tar").await;
        flush(&proxy).await;
        // The same again is no change.
        proxy.fetch("r", "a.tar").await.is("remote", &old);
        proxy.until_cached("r", "a.tar").await;
        flush(&proxy).await;
        up.file("/a.tar", File::new(new.clone()));
        proxy.fetch("r", "a.tar").await.is("remote", &new);
        proxy.until_cached("r", "a.tar").await;
        changes(&proxy, 1.0).await;
        let log = proxy.log();
        let line = log
            .lines()
            .find(|line| line.contains(&sha256(&old)))
            .expect("a line with what it was");
        assert!(line.contains(&sha256(&new)) && line.contains("a.tar"), "{line}");
        flush(&proxy).await;
        // It is reported once.
        proxy.fetch("r", "a.tar").await.is("remote", &new);
        proxy.until_cached("r", "a.tar").await;
        flush(&proxy).await;
        changes(&proxy, 1.0).await;
        proxy.stop().await;
        // Where the remote says so, it is refused.
        up.file("/a.tar", File::new(old.clone()));
        let mut proxy = settings.clone().remotes(&remote("verify: enforce")).start().await;
        for round in 1..=2 {
            is_cut(&proxy.fetch("r", "a.tar").await);
            changes(&proxy, f64::from(round)).await;
        }
        proxy.wait_for_log(&sha256(&old)).await;
        assert!(proxy.log_contains(&sha256(&new)));
        up.file("/a.tar", File::new(new.clone()));
        proxy.fetch("r", "a.tar").await.is("remote", &new);
        proxy.until_cached("r", "a.tar").await.is("cache", &new);
        // What is mutable changes.
        proxy.fetch("r", "live").await.is("remote", "1");
        proxy.until_cached("r", "live").await;
        let body = br#"{"remote": "r", "prefix": "live"}"#;
        proxy.request("PUT", "/cache/flush", &[], body).await.ok();
        up.file("/live", File::new("2"));
        proxy.fetch("r", "live").await.is("remote", "2");
        flush_all(&proxy).await;
        proxy.stop().await;
        // With a lifetime, a change is expected; it is reported all the same.
        up.file("/a.tar", File::new(old.clone()));
        let lives = remote("verify: enforce\n  cache: {immutable_ttl: 1h}");
        let mut proxy = settings.clone().remotes(&lives).start().await;
        proxy.fetch("r", "a.tar").await.is("remote", &old);
        changes(&proxy, 1.0).await;
        proxy.until_cached("r", "a.tar").await;
        flush_all(&proxy).await;
        proxy.stop().await;
        up.file("/a.tar", File::new(new.clone()));
        let proxy = settings.remotes(&remote("verify: off")).start().await;
        proxy.fetch("r", "a.tar").await.is("remote", &new);
        proxy.until_cached("r", "a.tar").await;
        changes(&proxy, 0.0).await;
    });
}

async fn flush_all(proxy: &Proxy) {
    proxy
        .request("PUT", "/cache/flush", &[], br#"{"remote": "r"}"#)
        .await
        .ok();
}
