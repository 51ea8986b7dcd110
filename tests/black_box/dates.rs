//! Dates for releases that upstream's index does not date (`release_dates: filled`): told in JSON, also where upstream has HTML
//! only, by what is known here, and never later than before.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::common::client::Headers;
use crate::common::clock::Clock;
use crate::common::packages::{IndexForm, NpmVersion, SIMPLE_JSON, Wheel, gunzip, packuments, serve_npm, serve_pypi};
use crate::common::{File, Proxy, Response, Upstream, eventually, run, run_for, sha256};

const DAY: u64 = 24 * 3600;

fn remote(up: &Upstream, keys: &str) -> String {
    format!("pypi:\n  base_url: {}\n  package: pypi\n  {keys}\n", up.base())
}

async fn page(proxy: &Proxy, accept: &str) -> Response {
    let headers = [("Accept", accept)];
    proxy.fetch_with("pypi", "simple/demo/", &headers).await.ok()
}

fn moment(text: &Value) -> SystemTime {
    let text = text.as_str().unwrap_or_else(|| panic!("{text} is no date"));
    let format = &time::format_description::well_known::Rfc3339;
    time::OffsetDateTime::parse(text, format).expect("a date").into()
}

#[track_caller]
fn is_about(text: &Value, expected: SystemTime) {
    let date = moment(text);
    let apart = date.duration_since(expected).unwrap_or_else(|error| error.duration());
    assert!(apart < Duration::from_secs(60), "{text}, {expected:?}");
}

#[test]
fn an_upstream_with_html_only_is_told_of_in_json() {
    run(async {
        let up = Upstream::start().await;
        let wheels = [Wheel::new("demo", "1.0", &[], 100), Wheel::new("demo", "2.0", &[], 100)];
        serve_pypi(&up, &up, IndexForm::Html, &wheels);
        let proxy = Proxy::start(&remote(&up, "release_dates: filled")).await;
        for _ in 0..2 {
            let answer = page(&proxy, SIMPLE_JSON).await;
            assert_eq!(answer.must("content-type"), SIMPLE_JSON);
            assert!(answer.must("vary").to_lowercase().contains("accept"));
            assert_eq!(answer.header("last-modified"), None);
            let index = answer.json();
            assert_eq!(index["meta"], json!({"api-version": "1.0"}));
            assert_eq!(index["name"], "demo");
            assert_eq!(index["versions"], json!(["1.0", "2.0"]));
            for (file, wheel) in index["files"].as_array().unwrap().iter().zip(&wheels) {
                is_about(&file["upload-time"], SystemTime::now());
                let metadata = json!({"sha256": sha256(wheel.metadata.as_bytes())});
                let expected = json!({
                    "filename": wheel.file, "url": format!("../..{}", wheel.path()), "hashes": {"sha256": wheel.sha256()},
                    "requires-python": ">=3.7", "core-metadata": metadata, "dist-info-metadata": metadata,
                    "upload-time": file["upload-time"],
                });
                assert_eq!(*file, expected);
            }
        }
        let coded = [("Accept", SIMPLE_JSON), ("Accept-Encoding", "gzip")];
        let coded = proxy.fetch_with("pypi", "simple/demo/", &coded).await.ok();
        let plain = page(&proxy, SIMPLE_JSON).await;
        assert_eq!(
            (coded.must("content-encoding"), gunzip(&coded.body)),
            ("gzip", plain.body.to_vec())
        );
        let again = [("Accept", SIMPLE_JSON), ("If-None-Match", plain.must("etag"))];
        proxy.fetch_with("pypi", "simple/demo/", &again).await.expect(304);
        assert_eq!(up.count("*", "/simple/demo/"), 1);
        // Who takes HTML only gets upstream's page, and that all projects have is no page of one.
        for _ in 0..2 {
            let answer = page(&proxy, "text/html").await;
            assert!(answer.must("content-type").starts_with("text/html"));
            assert!(answer.text().contains("data-requires-python"), "{}", answer.text());
            assert!(answer.must("vary").to_lowercase().contains("accept"));
        }
        assert_eq!(up.count("*", "/simple/demo/"), 2);
        let root = [("Accept", SIMPLE_JSON)];
        let root = proxy.fetch_with("pypi", "simple/", &root).await.ok();
        assert!(root.must("content-type").starts_with("text/html"), "{:?}", root.headers);
        proxy
            .fetch("pypi", &wheels[1].path()[1..])
            .await
            .is("remote", &wheels[1].bytes);
    });
}

/// The date that clients are told of the release.
async fn pypi_date(proxy: &Proxy) -> Value {
    page(proxy, SIMPLE_JSON).await.json()["files"][0]["upload-time"].clone()
}

async fn npm_date(proxy: &Proxy) -> Value {
    proxy.fetch("npm", "@scope/plain").await.ok().json()["time"]["1.0.0"].clone()
}

async fn flush(proxy: &Proxy, body: &[u8]) {
    proxy.request("PUT", "/cache/flush", &[], body).await.ok();
}

#[test]
fn what_is_stored_tells_when_upstream_changed_it_and_no_date_gets_later() {
    run_for(Duration::from_secs(120), async {
        let up = Upstream::start().await;
        let wheel = Wheel::new("demo", "1.0", &[], 100);
        let version = NpmVersion::new("@scope/plain", "1.0.0", json!({}));
        serve_pypi(&up, &up, IndexForm::Html, std::slice::from_ref(&wheel));
        serve_npm(&up, &up, std::slice::from_ref(&version));
        let mut packument = packuments(&[&version], &up.base()).0;
        packument.as_object_mut().unwrap().remove("time");
        for slash in ["%2f", "%2F"] {
            let file = File::new(packument.to_string()).content_type("application/json");
            up.file(&format!("/@scope{slash}plain"), file);
        }
        let publish = |days_ago: u64| {
            let date = SystemTime::now() - Duration::from_secs(days_ago * DAY);
            up.file(&wheel.path(), File::new(wheel.bytes.clone()).modified(date));
            up.file(&version.path(), File::new(version.bytes.clone()).modified(date));
            date
        };
        let remotes = format!(
            "{}npm:\n  base_url: {}\n  package: npm\n  mutable_patterns: ['^(?!.*\\.tgz$).*']\n  release_dates: filled\n",
            remote(&up, "release_dates: filled"),
            up.base()
        );
        let data = tempfile::tempdir().unwrap();
        let mut proxy = Proxy::settings().data_dir(data.path()).remotes(&remotes).start().await;
        let published = publish(100);
        is_about(&pypi_date(&proxy).await, SystemTime::now());
        is_about(&npm_date(&proxy).await, SystemTime::now());
        // Asked for by a lock file, say.
        proxy.fetch("pypi", &wheel.path()[1..]).await.is("remote", &wheel.bytes);
        proxy
            .fetch("npm", &version.path()[1..])
            .await
            .is("remote", &version.bytes);
        let is_older = |date: &Value| moment(date) < SystemTime::now() - Duration::from_secs(DAY);
        eventually(Duration::from_secs(20), "the catalogue knows both", async || {
            flush(&proxy, br#"{"remote": "pypi", "pattern": "^simple/"}"#).await;
            flush(&proxy, br#"{"remote": "npm", "pattern": "^@scope/plain$"}"#).await;
            is_older(&pypi_date(&proxy).await) && is_older(&npm_date(&proxy).await)
        })
        .await;
        is_about(&pypi_date(&proxy).await, published);
        is_about(&npm_date(&proxy).await, published);
        // Nothing is stored any more, what upstream has now is younger, and the process is another one.
        publish(1);
        flush(&proxy, b"").await;
        is_about(&pypi_date(&proxy).await, published);
        is_about(&npm_date(&proxy).await, published);
        proxy.fetch("pypi", &wheel.path()[1..]).await.ok();
        proxy.until_cached("pypi", &wheel.path()[1..]).await;
        proxy.stop().await;
        let proxy = Proxy::settings().data_dir(data.path()).remotes(&remotes).start().await;
        flush(&proxy, br#"{"remote": "pypi", "pattern": "^simple/"}"#).await;
        flush(&proxy, br#"{"remote": "npm", "pattern": "^@scope/plain$"}"#).await;
        is_about(&pypi_date(&proxy).await, published);
        is_about(&npm_date(&proxy).await, published);
        // No file was asked for, for its date.
        assert_eq!(up.count("*", &wheel.path()), 2);
        assert_eq!(up.count("*", &version.path()), 1);
    });
}

#[test]
fn a_date_that_is_known_better_gets_into_an_index_that_upstream_did_not_change() {
    run_for(Duration::from_secs(120), async {
        let up = Upstream::start().await;
        let wheel = Wheel::new("demo", "1.0", &[], 100);
        serve_pypi(&up, &up, IndexForm::Html, std::slice::from_ref(&wheel));
        let published = SystemTime::now() - Duration::from_secs(100 * DAY);
        up.file(&wheel.path(), File::new(wheel.bytes.clone()).modified(published));
        let data = tempfile::tempdir().unwrap();
        let clock = Clock::new();
        let remotes = remote(&up, "release_dates: filled\n  cache: {mutable_ttl: 30d}");
        let at = |ahead: i64| {
            let settings = Proxy::settings().data_dir(data.path()).remotes(&remotes);
            let env = clock.env(ahead).into_iter();
            env.fold(settings, |settings, (name, value)| settings.env(name, value))
        };
        let mut proxy = at(-7200).start().await;
        let told = pypi_date(&proxy).await;
        proxy.fetch("pypi", &wheel.path()[1..]).await.ok();
        proxy.until_cached("pypi", &wheel.path()[1..]).await;
        assert_eq!(pypi_date(&proxy).await, told);
        proxy.stop().await;
        let proxy = at(0).start().await;
        is_about(&pypi_date(&proxy).await, published);
        assert_eq!(up.count("*", "/simple/demo/"), 1);
    });
}

#[test]
fn first_sight_holds_what_a_page_in_html_names() {
    run_for(Duration::from_secs(180), async {
        let clock = Clock::new();
        let wheels = [Wheel::new("demo", "1.0", &[], 100), Wheel::new("demo", "2.0", &[], 100)];
        for dates in ["upstream", "filled"] {
            let up = Upstream::start().await;
            let published = SystemTime::now() - Duration::from_secs(100 * DAY);
            let data = tempfile::tempdir().unwrap();
            let remotes = remote(
                &up,
                &format!(
                    "quarantine_new: true\n  quarantine_days: 3\n  quarantine_clock: first_seen\n  release_dates: {dates}\n  \
                     cache: {{mutable_ttl: 1h}}"
                ),
            );
            for (days, known) in [(-4, 1), (0, 2)] {
                serve_pypi(&up, &up, IndexForm::Html, &wheels[..known]);
                for wheel in &wheels {
                    up.file(&wheel.path(), File::new(wheel.bytes.clone()).modified(published));
                }
                let settings = Proxy::settings().data_dir(data.path()).remotes(&remotes);
                let env = clock.env(days * DAY as i64).into_iter();
                let mut proxy = env
                    .fold(settings, |settings, (name, value)| settings.env(name, value))
                    .start()
                    .await;
                for _ in 0..2 {
                    for accept in [SIMPLE_JSON, "text/html"] {
                        let answer = page(&proxy, accept).await;
                        let expected = if dates == "filled" { accept } else { "text/html" };
                        assert!(
                            answer.must("content-type").starts_with(expected),
                            "{:?}",
                            answer.headers
                        );
                        let text = answer.text();
                        assert_eq!(text.contains(&wheels[0].file), days == 0, "{text}");
                        assert!(!text.contains(&wheels[1].file), "{text}");
                        assert_eq!(text.starts_with('{'), expected == SIMPLE_JSON, "{text}");
                    }
                }
                let files = proxy.fetch("pypi", &wheels[0].path()[1..]).await;
                assert_eq!(files.status, if days == 0 { 200 } else { 404 });
                for wheel in &wheels[1..known] {
                    proxy.fetch("pypi", &wheel.path()[1..]).await.expect(404);
                }
                if days == 0 && dates == "filled" {
                    // A clock that trusts no date of upstream's has none for clients, either.
                    let seen = SystemTime::now() - Duration::from_secs(4 * DAY);
                    is_about(&pypi_date(&proxy).await, seen);
                }
                proxy.stop().await;
            }
            assert_eq!(up.count("*", "/simple/demo/"), 2, "{dates}");
        }
    });
}
