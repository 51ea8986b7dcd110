//! What was published a short while ago is held back: however it is asked for, stored or not, until its days are over.

use std::time::{Duration, SystemTime};

use crate::common::client::Headers;
use crate::common::clock::Clock;
use crate::common::image::Manifest;
use crate::common::packages::{
    Crate, IndexForm, NPM_ABBREVIATED, NpmVersion, SIMPLE_JSON, Wheel, gunzip, serve_crates, serve_npm, serve_pypi,
};
use crate::common::pull::{get_blob, get_manifest, refused};
use crate::common::registry::{Registry, blob_at};
use crate::common::{File, Pattern, Proxy, Reply, Response, Upstream, run};
use serde_json::json;

const DAY: u64 = 24 * 3600;

/// What is published now is held for three days.
fn remote(base: &str) -> String {
    format!(
        "files:\n  base_url: {base}\n  mutable_patterns: [\"^live/\"]\n  quarantine_new: true\n  quarantine_days: 3\n"
    )
}

fn published(days_ago: u64) -> SystemTime {
    SystemTime::now() - Duration::from_secs(days_ago * DAY)
}

/// Looks whether it says until when the artifact is held: `date` and three days.
#[track_caller]
fn is_held(answer: &Response, date: SystemTime) {
    is_held_as(404, answer, date);
}

#[track_caller]
fn is_held_as(status: u16, answer: &Response, date: SystemTime) {
    assert_eq!(answer.status, status, "{}", answer.text());
    let due = date + Duration::from_secs(3 * DAY);
    let due: time::OffsetDateTime = due.into();
    let said = answer.must("x-quarantine-until");
    let until = time::OffsetDateTime::parse(said, &time::format_description::well_known::Rfc3339).expect("a date");
    assert!((until - due).abs() < Duration::from_secs(2), "{until}, {due}");
    assert_eq!(answer.must("cache-control"), "no-store");
    assert_eq!(answer.header("etag"), None);
    assert_eq!(answer.header("last-modified"), None);
}

#[test]
fn what_is_new_is_held_however_it_is_asked_for() {
    run(async {
        let up = Upstream::start().await;
        let new = published(1);
        up.file("/new.tar", File::new("new").etag("\"1\"").modified(new))
            .file("/other.tar", File::new("new").modified(new))
            .file("/old.tar", File::new("old").modified(published(4)))
            .file("/undated.tar", File::new("undated"))
            .file("/live/page", File::new("page").modified(new));
        let proxy = Proxy::start(&remote(&up.base())).await;
        let get = async |headers: &[(&str, &str)]| proxy.fetch_with("files", "new.tar", headers).await;
        for _ in 0..3 {
            let answer = get(&[]).await;
            is_held(&answer, new);
            let said = answer.json();
            assert_eq!(said["remote"], "files");
            assert_eq!(said["path"], "new.tar");
            let detail = said["detail"].as_str().unwrap();
            assert!(detail.contains(answer.must("x-quarantine-until")), "{detail}");
            is_held(&proxy.head("files", "new.tar").await, new);
            is_held(&get(&[("Range", "bytes=0-1")]).await, new);
            is_held(&get(&[("If-None-Match", "\"1\"")]).await, new);
            is_held(&get(&[("If-None-Match", "*")]).await, new);
            let date = httpdate::fmt_http_date(SystemTime::now());
            is_held(&get(&[("If-Modified-Since", &date)]).await, new);
        }
        // The first GET has filled.
        assert_eq!((up.count("GET", "/new.tar"), up.count("HEAD", "/new.tar")), (1, 0));
        // A HEAD decides by its own date, and fills nothing.
        is_held(&proxy.head("files", "other.tar").await, new);
        assert_eq!((up.count("GET", "/other.tar"), up.count("HEAD", "/other.tar")), (0, 1));
        for (path, body) in [("old.tar", "old"), ("undated.tar", "undated"), ("live/page", "page")] {
            proxy.head("files", path).await.ok();
            proxy.fetch("files", path).await.is("remote", body);
            proxy.until_cached("files", path).await.is("cache", body);
        }
        let counted = proxy.metric("artifactapi_quarantined_total", &["files"]).await;
        assert_eq!(counted, 19.0);
    });
}

#[test]
fn what_passes_by_unstored_is_held_too() {
    run(async {
        let up = Upstream::start().await;
        let new = published(1);
        let (body, old) = (Pattern::new(1, 3_000_000), Pattern::new(2, 3_000_000));
        up.file("/new.tar", File::new(body).modified(new))
            .file("/old.tar", File::new(old).modified(published(9)));
        let settings = Proxy::settings().remotes(&remote(&up.base()));
        let proxy = settings
            .conf("cache: {disk_bytes: 1MB, memory_bytes: 0}\n")
            .start()
            .await;
        for _ in 0..2 {
            is_held(&proxy.fetch("files", "new.tar").await, new);
            let part = proxy.fetch_with("files", "new.tar", &[("Range", "bytes=5-9")]).await;
            is_held(&part, new);
            proxy.fetch("files", "old.tar").await.is("remote", old.whole());
        }
    });
}

#[test]
fn the_final_answer_tells_the_date() {
    run(async {
        let (up, storage) = (Upstream::start().await, Upstream::start().await);
        let new = published(0);
        let redirect = Reply::redirect(302, storage.url("/file"));
        let old = httpdate::fmt_http_date(published(9));
        up.reply("/new.tar", redirect.header("Last-Modified", &*old));
        storage.file("/file", File::new("new").modified(new));
        let proxy = Proxy::start(&remote(&up.base())).await;
        is_held(&proxy.head("files", "new.tar").await, new);
        is_held(&proxy.fetch("files", "new.tar").await, new);
    });
}

#[test]
fn what_is_stored_is_held_by_a_reload_and_let_through_by_the_clock() {
    run(async {
        let up = Upstream::start().await;
        let new = published(1);
        up.file("/new.tar", File::new("new").modified(new));
        let data = tempfile::tempdir().unwrap();
        let free = format!("files:\n  base_url: {}\n", up.base());
        let settings = Proxy::settings().data_dir(data.path());
        let mut proxy = settings.clone().remotes(&free).start().await;
        proxy.fetch("files", "new.tar").await.is("remote", "new");
        proxy.until_cached("files", "new.tar").await;
        proxy.write_remotes(&remote(&up.base()));
        proxy.reload_and_wait().await;
        is_held(&proxy.fetch("files", "new.tar").await, new);
        proxy.stop().await;
        let clock = Clock::new();
        let settings = settings.remotes(&remote(&up.base()));
        let at = |ahead: u64| {
            let env = clock.env(i64::try_from(ahead).unwrap()).into_iter();
            env.fold(settings.clone(), |settings, (name, value)| settings.env(name, value))
        };
        let mut proxy = at(2 * DAY - 600).start().await;
        is_held(&proxy.fetch("files", "new.tar").await, new);
        proxy.stop().await;
        let proxy = at(2 * DAY + 600).start().await;
        proxy.fetch("files", "new.tar").await.is("cache", "new");
        assert_eq!(up.total(), 1);
    });
}

/// Two releases of a project, the newer one a day old, whose file has an old `Last-Modified`.
async fn wheels(keys: &str) -> (Upstream, [Wheel; 2], String) {
    let up = Upstream::start().await;
    let old = Wheel::new("demo", "1.0", &[], 100);
    let new = Wheel::new("demo", "2.0", &[], 100).published(published(1));
    serve_pypi(&up, &up, IndexForm::Both, &[old.clone(), new.clone()]);
    let remotes = format!("pypi:\n  base_url: {}\n  package: pypi\n  {keys}\n", up.base());
    (up, [old, new], remotes)
}

const HELD: &str = "quarantine_new: true\n  quarantine_days: 3";

#[test]
fn an_index_names_what_is_held_when_it_is_due_and_upstream_is_not_asked() {
    run(async {
        let up = Upstream::start().await;
        // Due in a few seconds, which indexes know whole ones of.
        let due = SystemTime::now() + Duration::from_secs(5);
        let new = Wheel::new("demo", "2.0", &[], 100).published(due - Duration::from_secs(3 * DAY));
        let old = Wheel::new("demo", "1.0", &[], 100);
        serve_pypi(&up, &up, IndexForm::Both, &[old.clone(), new.clone()]);
        let proxy = Proxy::start(&format!(
            "pypi:\n  base_url: {}\n  package: pypi\n  {HELD}\n",
            up.base()
        ))
        .await;
        let mut seen = [0, 0];
        let mut tags = Vec::new();
        while seen[1] < 3 {
            for (accept, gzip) in [
                (SIMPLE_JSON, "identity"),
                (SIMPLE_JSON, "gzip"),
                ("text/html", "identity"),
            ] {
                let before = SystemTime::now();
                let headers = [("Accept", accept), ("Accept-Encoding", gzip)];
                let answer = proxy.fetch_with("pypi", "simple/demo/", &headers).await.ok();
                assert!(answer.must("content-type").starts_with(accept), "{:?}", answer.headers);
                assert_eq!(answer.header("last-modified"), None);
                let text = match gzip {
                    "gzip" => String::from_utf8(gunzip(&answer.body)).unwrap(),
                    _ => answer.text(),
                };
                assert!(text.contains(&old.file), "{text}");
                let is_there = text.contains(&new.file);
                match is_there {
                    true => assert!(SystemTime::now() + Duration::from_secs(1) >= due, "{text}"),
                    false => {
                        assert!(before <= due, "{text}");
                        // Whoever keeps it asks again when it is another one.
                        let seconds = answer.must("cache-control").rsplit('=').next().unwrap();
                        assert!(seconds.parse::<u64>().unwrap() <= 5, "{:?}", answer.headers);
                    }
                }
                seen[usize::from(is_there)] += 1;
                if accept == SIMPLE_JSON && gzip == "identity" {
                    let again = [
                        ("Accept", accept),
                        ("If-None-Match", answer.header("etag").unwrap_or("\"none\"")),
                    ];
                    tags.push((is_there, answer.header("etag").map(str::to_owned)));
                    let again = proxy.fetch_with("pypi", "simple/demo/", &again).await;
                    assert!(matches!(again.status, 200 | 304), "{}", again.status);
                }
            }
            // Real time passes, until it is due.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let tag = |is_there| {
            tags.iter()
                .rev()
                .find(|(there, tag)| *there == is_there && tag.is_some())
        };
        if let (Some((_, before)), Some((_, after))) = (tag(false), tag(true)) {
            assert_ne!(before, after);
        }
        assert_eq!(up.count("GET", "/simple/demo/"), 1);
        proxy.fetch("pypi", &new.path()[1..]).await.is("remote", &new.bytes);
    });
}

#[test]
fn the_index_dates_a_file_that_nobody_asked_the_index_for() {
    run(async {
        let (up, [old, new], remotes) = wheels(HELD).await;
        let proxy = Proxy::start(&remotes).await;
        for _ in 0..2 {
            is_held(&proxy.fetch("pypi", &new.path()[1..]).await, published(1));
            is_held(
                &proxy.fetch("pypi", &format!("{}.metadata", &new.path()[1..])).await,
                published(1),
            );
            proxy.fetch("pypi", &old.path()[1..]).await.ok();
            proxy
                .fetch("pypi", &format!("{}.metadata", &old.path()[1..]))
                .await
                .ok();
        }
        proxy
            .until_cached("pypi", &old.path()[1..])
            .await
            .is("cache", &old.bytes);
        // One question for all files of the project.
        assert_eq!(up.count("GET", "/simple/demo/"), 1);
        // An old date in the index counts for more than a young file.
        let moved = Wheel::new("moved", "1.0", &[], 100);
        serve_pypi(&up, &up, IndexForm::Both, std::slice::from_ref(&moved));
        up.file(&moved.path(), File::new(moved.bytes.clone()).modified(published(0)));
        proxy.fetch("pypi", &moved.path()[1..]).await.is("remote", &moved.bytes);
        // Where the index cannot be had, the file's own date is all there is.
        let alone = Wheel::new("alone", "1.0", &[], 100);
        up.file(&alone.path(), File::new(alone.bytes.clone()).modified(published(1)));
        is_held(&proxy.fetch("pypi", &alone.path()[1..]).await, published(1));
    });
}

#[test]
fn files_on_another_host_are_held_too() {
    run(async {
        let (index, files) = (Upstream::start().await, Upstream::start().await);
        let new = Wheel::new("demo", "2.0", &[], 100).published(published(1));
        serve_pypi(&index, &files, IndexForm::Both, std::slice::from_ref(&new));
        let remotes = format!("pypi:\n  base_url: {}\n  package: pypi\n  {HELD}\n", index.base());
        let proxy = Proxy::start(&remotes).await;
        let path = format!("-/host/{}{}", files.authority(), new.path());
        for _ in 0..2 {
            is_held(&proxy.fetch("pypi", &path).await, published(1));
        }
        assert_eq!((files.total(), index.count("GET", "/simple/demo/")), (0, 1));
    });
}

#[test]
fn npm_finds_the_newest_that_may_be_had_in_both_forms() {
    run(async {
        let up = Upstream::start().await;
        let versions = [
            NpmVersion::new("plain", "1.0.0", json!({})),
            NpmVersion::new("plain", "1.1.0", json!({})).published(published(1)),
        ];
        serve_npm(&up, &up, &versions);
        let remotes = format!(
            "npm:\n  base_url: {}\n  package: npm\n  mutable_patterns: ['^(?!.*\\.tgz$).*']\n  {HELD}\n",
            up.base()
        );
        let proxy = Proxy::start(&remotes).await;
        for accept in [NPM_ABBREVIATED, "application/json"] {
            let answer = proxy
                .fetch_with("npm", "plain", &[("Accept", accept)])
                .await
                .ok()
                .json();
            assert_eq!(answer["dist-tags"], json!({"latest": "1.0.0"}));
            assert_eq!(answer["versions"].as_object().unwrap().len(), 1);
            assert!(
                answer["versions"]["1.0.0"]["dist"]["tarball"]
                    .as_str()
                    .unwrap()
                    .starts_with(&proxy.base())
            );
            assert!(answer["policyRestrictions"]["versions"]["1.1.0"].is_object());
            assert!(answer["time"].get("1.1.0").is_none());
        }
        assert_eq!(up.count("GET", "/plain"), 1);
        is_held(&proxy.fetch("npm", &versions[1].path()[1..]).await, published(1));
        proxy
            .fetch("npm", &versions[0].path()[1..])
            .await
            .is("remote", &versions[0].bytes);
    });
}

#[test]
fn npms_documents_of_versions_and_tags_name_nothing_that_is_held() {
    run(async {
        let up = Upstream::start().await;
        let versions = [
            NpmVersion::new("@scope/inner", "1.0.0", json!({})),
            NpmVersion::new("@scope/inner", "1.1.0", json!({})).published(published(1)),
        ];
        serve_npm(&up, &up, &versions);
        let free = format!(
            "npm:\n  base_url: {}\n  package: npm\n  mutable_patterns: ['^(?!.*\\.tgz$).*']\n",
            up.base()
        );
        let proxy = Proxy::start(&format!("{free}  {HELD}\n")).await;
        for path in ["@scope%2finner/1.0.0", "@scope/inner/latest", "@scope%2finner%2f1.0.0"] {
            let answer = proxy.fetch("npm", path).await.ok();
            assert_eq!(answer.must("content-type"), "application/json", "{path}");
            let document = answer.json();
            assert_eq!(document["version"], "1.0.0", "{path}");
            let tarball = document["dist"]["tarball"].as_str().unwrap();
            assert!(tarball.starts_with(&proxy.base()), "{tarball}");
            let head = proxy.head("npm", path).await.ok();
            assert_eq!(head.must("content-length"), answer.must("content-length"));
        }
        for path in ["@scope%2finner/1.1.0", "@scope/inner/1.1.0", "@scope%2Finner%2F1.1.0"] {
            let answer = proxy.fetch("npm", path).await;
            assert!(answer.json()["error"].as_str().unwrap().contains("held back until"));
            is_held(&answer, published(1));
            is_held(&proxy.head("npm", path).await, published(1));
        }
        for path in ["-/package/@scope%2finner/dist-tags", "-/package/@scope/inner/dist-tags"] {
            let tags = proxy.fetch("npm", path).await.ok();
            assert_eq!(tags.json(), json!({"latest": "1.0.0"}));
            // It is dressed as every artifact is.
            let said = ["content-security-policy", "x-content-type-options", "via"].map(|name| tags.must(name));
            assert_eq!(said, ["sandbox", "nosniff", "1.1 artifactapi"]);
        }
        assert_eq!(proxy.fetch("npm", "@scope/inner/3.0.0").await.status, 404);
        // All of it is in the packument.
        assert_eq!(up.total(), 1);
        assert_eq!(proxy.fetch("npm", "nothing/latest").await.status, 404);
        // Where nothing is held, or only observed, upstream is asked as it was.
        up.fallback(|_| Reply::ok("{\"version\":\"1.1.0\"}").content_type("application/json"));
        for keys in ["", "  quarantine_mode: observe\n"] {
            let held = if keys.is_empty() {
                String::new()
            } else {
                format!("  {HELD}\n")
            };
            proxy.write_remotes(&format!("{free}{held}{keys}"));
            proxy.reload_and_wait().await;
            let document = proxy.fetch("npm", "@scope/inner/latest").await.ok().json();
            assert_eq!(document["version"], "1.1.0");
        }
    });
}

#[test]
fn each_ecosystem_says_it_in_its_own_form() {
    run(async {
        let new = published(1);
        let date = httpdate::fmt_http_date(new);
        let manifest = Manifest::image("app", "amd64", 1);
        let registry = Registry::with("team/app", "1.0", &manifest).await;
        let layer = &manifest.blobs[0];
        registry.change(&blob_at("team/app", &layer.digest), move |_, reply| {
            reply.header("Last-Modified", date.clone())
        });
        let one = Crate::new("one", "1.0.0", &[]);
        let (index, files) = (Upstream::start().await, Upstream::start().await);
        serve_crates(&index, &files, std::slice::from_ref(&one));
        let download = format!("/crates/{}", one.download());
        files.file(&download, File::new(one.bytes.clone()).modified(new));
        let npm = Upstream::start().await;
        npm.file("/six/-/six-1.0.0.tgz", File::new("tgz").modified(new));
        let held = "quarantine_new: true\n  quarantine_days: 3";
        let remotes = format!(
            "{}crates:\n  base_url: {}/index\n  package: cargo\n  {held}\nnpm:\n  base_url: {}\n  package: npm\n  {held}\n",
            registry.remote("hub", &held.replace("  ", "")),
            index.base(),
            npm.base(),
        );
        let proxy = Proxy::start(&remotes).await;
        // A tag is mutable; what it leads to by a digest is held.
        get_manifest(&proxy, "hub/team/app", "1.0").await.ok();
        let answer = get_blob(&proxy, "hub/team/app", &layer.digest).await;
        is_held(&answer, new);
        assert!(refused(answer, 404, "BLOB_UNKNOWN").contains("held back until"));
        proxy.fetch("crates", "config.json").await.ok();
        let answer = proxy
            .fetch("crates", &format!("-/host/{}{download}", files.authority()))
            .await;
        is_held_as(403, &answer, new);
        let errors = answer.json()["errors"].clone();
        assert!(errors[0]["detail"].as_str().unwrap().contains("held back until"));
        let answer = proxy.fetch("npm", "six/-/six-1.0.0.tgz").await;
        is_held(&answer, new);
        assert!(answer.json()["error"].as_str().unwrap().contains("held back until"));
    });
}

/// The files that the index names for a client that takes JSON.
async fn named(proxy: &Proxy) -> Vec<String> {
    let headers = [("Accept", SIMPLE_JSON)];
    let index = proxy.fetch_with("pypi", "simple/demo/", &headers).await.ok().json();
    let files = index["files"].as_array().unwrap().clone();
    files
        .iter()
        .map(|file| file["filename"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_policy_may_be_another_for_some_packages_and_versions() {
    run(async {
        let (_up, [old, new], _) = wheels(HELD).await;
        let all = [old.file.clone(), new.file.clone()];
        for (keys, is_free) in [
            ("quarantine_overrides: {Demo: 0}", true),
            ("quarantine_overrides: {\"d*\": 9, \"*\": 0}", false),
            (
                "quarantine_exemptions: [{package: demo, versions: [\"2.0\"], until: 2999-01-01, reason: looked at}]",
                true,
            ),
            (
                "quarantine_exemptions: [{package: demo, versions: [\"1.0\"], until: 2999-01-01, reason: looked at}]",
                false,
            ),
            (
                "quarantine_exemptions: [{package: demo, until: 2020-01-01, reason: over}]",
                false,
            ),
        ] {
            let (_up, _, remotes) = wheels(&format!("{HELD}\n  {keys}")).await;
            let proxy = Proxy::start(&remotes).await;
            let expected = if is_free { &all[..] } else { &all[..1] };
            assert_eq!(named(&proxy).await, expected, "{keys}");
            let answer = proxy.fetch("pypi", &new.path()[1..]).await;
            assert_eq!(answer.status, if is_free { 200 } else { 404 }, "{keys}");
            let is_exempt = is_free && keys.contains("exemptions");
            match is_exempt {
                true => proxy.wait_for_log("exempt from quarantine").await,
                false => assert!(!proxy.log_contains("exempt from quarantine"), "{keys}"),
            }
        }
    });
}

#[test]
fn a_freeze_holds_what_came_after_it_until_it_is_lifted() {
    run(async {
        let (up, [old, new], remotes) = wheels("description: x").await;
        let date: time::OffsetDateTime = published(2).into();
        let freeze = format!("freeze: {}\n", date.date());
        let data = tempfile::tempdir().unwrap();
        let proxy = Proxy::settings().data_dir(data.path()).remotes(&remotes).start().await;
        assert_eq!(named(&proxy).await, [old.file.clone(), new.file.clone()]);
        proxy.fetch("pypi", &new.path()[1..]).await.is("remote", &new.bytes);
        proxy.until_cached("pypi", &new.path()[1..]).await;
        // One line for all remotes, and a reload.
        let indented: String = remotes.lines().map(|line| format!("  {line}\n")).collect();
        proxy.write_remotes_file(&format!("{freeze}remotes:\n{indented}"));
        proxy.reload_and_wait().await;
        assert_eq!(named(&proxy).await, std::slice::from_ref(&old.file));
        let answer = proxy.fetch("pypi", &new.path()[1..]).await;
        assert_eq!(answer.status, 404);
        assert_eq!(answer.header("x-quarantine-until"), None);
        assert!(answer.text().contains("after the freeze of"), "{}", answer.text());
        proxy.fetch("pypi", &old.path()[1..]).await.ok();
        proxy.write_remotes(&remotes);
        proxy.reload_and_wait().await;
        assert_eq!(named(&proxy).await.len(), 2);
        proxy.fetch("pypi", &new.path()[1..]).await.is("cache", &new.bytes);
        assert_eq!(up.count("GET", &new.path()), 1);
    });
}

#[test]
fn what_nothing_dates_may_be_held_too() {
    run(async {
        let up = Upstream::start().await;
        up.file("/undated.tar", File::new("undated"))
            .file("/old.tar", File::new("old").modified(published(9)));
        let deny = remote(&up.base()) + "  quarantine_missing_date: deny\n";
        let proxy = Proxy::start(&deny).await;
        let answer = proxy.fetch("files", "undated.tar").await;
        assert_eq!(answer.status, 404);
        assert_eq!(answer.header("x-quarantine-until"), None);
        assert!(answer.text().contains("nothing says when"), "{}", answer.text());
        proxy.fetch("files", "old.tar").await.is("remote", "old");
    });
}

#[test]
fn what_is_only_observed_is_served_and_told() {
    run(async {
        let (_up, [old, new], remotes) = wheels(&format!("{HELD}\n  quarantine_mode: observe")).await;
        let proxy = Proxy::start(&remotes).await;
        assert_eq!(named(&proxy).await, [old.file.clone(), new.file.clone()]);
        let page = [("Accept", "text/html")];
        let page = proxy.fetch_with("pypi", "simple/demo/", &page).await.ok();
        assert!(page.must("content-type").starts_with("text/html"));
        assert!(page.text().contains(&format!(">{}</a>", new.file)), "{}", page.text());
        proxy.fetch("pypi", &new.path()[1..]).await.is("remote", &new.bytes);
        proxy.fetch("pypi", &old.path()[1..]).await.ok();
        assert!(proxy.log().contains("would be held back"), "{}", proxy.log());
    });
}

#[test]
fn first_sight_counts_from_when_the_index_was_seen() {
    run(async {
        let up = Upstream::start().await;
        let old = Wheel::new("demo", "1.0", &[], 100);
        serve_pypi(&up, &up, IndexForm::Both, std::slice::from_ref(&old));
        up.file("/files/alone.tar", File::new("alone").modified(published(100)));
        let remotes = format!(
            "pypi:\n  base_url: {0}\n  package: pypi\n  {HELD}\n  quarantine_clock: both\nfiles:\n  base_url: {0}/files\n  {HELD}\n  \
             quarantine_clock: first_seen\n",
            up.base()
        );
        let data = tempfile::tempdir().unwrap();
        let clock = Clock::new();
        let at = |ahead: u64| {
            let settings = Proxy::settings().data_dir(data.path()).remotes(&remotes);
            let env = clock.env(i64::try_from(ahead).unwrap()).into_iter();
            env.fold(settings, |settings, (name, value)| settings.env(name, value))
        };
        let mut proxy = at(0).start().await;
        assert!(named(&proxy).await.is_empty());
        let seen = SystemTime::now();
        is_held(&proxy.fetch("files", "alone.tar").await, seen);
        proxy.stop().await;
        let mut proxy = at(2 * DAY).start().await;
        // The file itself was never asked for: its name was seen.
        is_held(&proxy.fetch("pypi", &old.path()[1..]).await, seen);
        is_held(&proxy.fetch("files", "alone.tar").await, seen);
        proxy.stop().await;
        let proxy = at(3 * DAY + 600).start().await;
        assert_eq!(named(&proxy).await, std::slice::from_ref(&old.file));
        proxy.fetch("pypi", &old.path()[1..]).await.is("cache", &old.bytes);
        proxy.fetch("files", "alone.tar").await.is("cache", "alone");
    });
}

#[test]
fn dates_are_filled_in_where_upstream_has_none() {
    run(async {
        let up = Upstream::start().await;
        let file = |name: &str| json!({"filename": name, "url": format!("/files/{name}"), "hashes": {}});
        let dated =
            json!({"filename": "demo-2.tar.gz", "url": "u", "hashes": {}, "upload-time": "2020-01-01T00:00:00Z"});
        let index = json!({"meta": {"api-version": "1.0"}, "name": "demo", "files": [file("demo-1.tar.gz"), dated]});
        up.file("/simple/demo/", File::new(index.to_string()).content_type(SIMPLE_JSON));
        let packument = json!({
            "name": "demo", "dist-tags": {"latest": "1.0.0"},
            "versions": {"1.0.0": {"name": "demo", "version": "1.0.0", "dist": {"tarball": up.url("/demo/-/demo-1.0.0.tgz")}}},
        });
        up.file(
            "/demo",
            File::new(packument.to_string()).content_type("application/json"),
        );
        let remotes = format!(
            "pypi:\n  base_url: {0}\n  package: pypi\n  release_dates: filled\nnpm:\n  base_url: {0}\n  package: npm\n  \
             mutable_patterns: ['^(?!.*\\.tgz$).*']\n  release_dates: filled\n",
            up.base()
        );
        let proxy = Proxy::start(&remotes).await;
        let is_now = |text: &serde_json::Value| {
            let format = &time::format_description::well_known::Rfc3339;
            let date = time::OffsetDateTime::parse(text.as_str().unwrap(), format).unwrap();
            assert!(
                (time::OffsetDateTime::now_utc() - date).abs() < Duration::from_secs(60),
                "{date}"
            );
        };
        let mut before = None;
        for _ in 0..2 {
            let json = [("Accept", SIMPLE_JSON)];
            let index = proxy.fetch_with("pypi", "simple/demo/", &json).await.ok().json();
            is_now(&index["files"][0]["upload-time"]);
            assert_eq!(index["files"][1]["upload-time"], "2020-01-01T00:00:00Z");
            let abbreviated = [("Accept", NPM_ABBREVIATED)];
            let packument = proxy.fetch_with("npm", "demo", &abbreviated).await.ok().json();
            is_now(&packument["time"]["1.0.0"]);
            is_now(&packument["time"]["modified"]);
            let seen = (index["files"][0]["upload-time"].clone(), packument["time"].clone());
            // What was seen stays seen, also when all is fetched again.
            assert_eq!(*before.get_or_insert_with(|| seen.clone()), seen);
            proxy.request("PUT", "/cache/flush", &[], b"").await.ok();
        }
        assert_eq!((up.count("GET", "/simple/demo/"), up.count("GET", "/demo")), (2, 2));
    });
}
