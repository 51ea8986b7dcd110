//! RPM repositories: `repomd.xml` and the files that it names change together, whatever upstream is doing meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::common::client::{Headers, parts};
use crate::common::clients::{Home, tool};
use crate::common::rpm::{dnf, tree};
use crate::common::{File, Pattern, Proxy, Reply, Response, Upstream, eventually, run, run_for, sha256};

const REPOMD: &str = "os/repodata/repomd.xml";
const SIGNATURE: &str = "os/repodata/repomd.xml.asc";
const PRIMARY: &str = "os/repodata/primary.xml.gz";
const COMPS: &str = "os/repodata/comps.xml";
/// The one file that is not fetched before somebody asks for it.
const FILELISTS: &str = "os/repodata/filelists.xml.gz";

/// The bytes of a file of one generation of the repository; every generation has another length.
fn content(name: &str, generation: u64) -> Vec<u8> {
    format!("{name} of generation {generation} {}", "x".repeat(generation as usize)).into_bytes()
}

/// A `repomd.xml` that names `files` (fixed names) of `generation`, and one file by its checksum.
fn repomd(generation: u64, files: &[&str]) -> Vec<u8> {
    let mut xml = format!("<?xml version=\"1.0\"?>\n<repomd xmlns=\"urn:repo\"><revision>{generation}</revision>\n");
    for name in files {
        let body = content(name, generation);
        xml.push_str(&format!(
            "<data type=\"{name}\"><checksum type=\"sha256\">{}</checksum><location href=\"repodata/{name}\"/>\
             <size>{}</size></data>\n",
            sha256(&body),
            body.len()
        ));
    }
    let other = content("other", generation);
    xml.push_str(&format!(
        "<data type=\"other\"><checksum type=\"sha256\">{0}</checksum><location href=\"repodata/{0}-other.xml.zst\"/>\
         </data>\n</repomd>\n",
        sha256(&other)
    ));
    xml.into_bytes()
}

fn other_path(generation: u64) -> String {
    format!("os/repodata/{}-other.xml.zst", sha256(&content("other", generation)))
}

/// An upstream whose files each have a generation that a test sets.
struct Repository {
    up: Upstream,
    repomd: Arc<AtomicU64>,
    signature: Arc<AtomicU64>,
    primary: Arc<AtomicU64>,
    comps: Arc<AtomicU64>,
    filelists: Arc<AtomicU64>,
}

impl Repository {
    async fn start() -> Self {
        let one = || Arc::new(AtomicU64::new(1));
        let repository = Self {
            up: Upstream::start().await,
            repomd: one(),
            signature: one(),
            primary: one(),
            comps: one(),
            filelists: one(),
        };
        let serve = |path: &str, at: &Arc<AtomicU64>, body: fn(u64) -> Vec<u8>| {
            let at = at.clone();
            repository.up.on(&format!("/{path}"), move |seen| {
                let generation = at.load(Ordering::SeqCst);
                File::new(body(generation))
                    .etag(&format!("\"{}\"", &sha256(&body(generation))[..9]))
                    .reply(seen)
            });
        };
        serve(REPOMD, &repository.repomd, |generation| {
            repomd(generation, &["primary.xml.gz", "filelists.xml.gz", "comps.xml"])
        });
        serve(SIGNATURE, &repository.signature, |generation| {
            content("asc", generation)
        });
        serve(PRIMARY, &repository.primary, |generation| {
            content("primary.xml.gz", generation)
        });
        serve(COMPS, &repository.comps, |generation| content("comps.xml", generation));
        serve(FILELISTS, &repository.filelists, |generation| {
            content("filelists.xml.gz", generation)
        });
        for generation in 1..10 {
            repository.up.reply(
                &format!("/{}", other_path(generation)),
                Reply::ok(content("other", generation)),
            );
        }
        repository
    }

    fn switch(&self, generation: u64) {
        for file in [
            &self.primary,
            &self.filelists,
            &self.comps,
            &self.repomd,
            &self.signature,
        ] {
            file.store(generation, Ordering::SeqCst);
        }
    }

    /// Every `repomd.xml` is asked for again.
    async fn proxy(&self) -> Proxy {
        self.proxy_with("cache: {mutable_ttl: 0}").await
    }

    async fn proxy_with(&self, line: &str) -> Proxy {
        Proxy::start(&format!(
            "rpms:\n  base_url: {}\n  package: rpm\n  immutable_patterns: ['\\.rpm$']\n  {line}\n",
            self.up.base()
        ))
        .await
    }
}

/// Which generation an answer is; `None` where it was refused as upstream's trouble.
#[track_caller]
fn generation(answer: &Response) -> Option<u64> {
    if matches!(answer.status, 502..=504) {
        return None;
    }
    assert_eq!(answer.status, 200, "{:?} {}", answer.headers, answer.text());
    assert!(answer.complete, "cut: {}", answer.text());
    let text = answer.text();
    let number = match text.split_once("<revision>") {
        Some((_, rest)) => rest.split_once('<').map(|(number, _)| number),
        None => text.split(' ').nth(3),
    };
    Some(
        number
            .and_then(|number| number.parse().ok())
            .unwrap_or_else(|| panic!("no generation in {text}")),
    )
}

async fn ask(proxy: &Proxy, path: &str) -> Option<u64> {
    generation(&proxy.fetch("rpms", path).await)
}

#[test]
fn a_switched_set_comes_as_a_whole() {
    run(async {
        let repository = Repository::start().await;
        let proxy = repository.proxy().await;
        for path in [REPOMD, PRIMARY] {
            assert_eq!(ask(&proxy, path).await, Some(1), "{path}");
        }
        repository.switch(2);
        // A client that has read the first repomd still gets the file that goes with it.
        assert_eq!(ask(&proxy, PRIMARY).await, Some(1));
        for path in [REPOMD, PRIMARY, REPOMD, PRIMARY] {
            assert_eq!(ask(&proxy, path).await, Some(2), "{path}");
        }
        assert_eq!(repository.up.count("GET", &format!("/{PRIMARY}")), 2);
        // Of what nobody uses here, that is not fetched which clients read only where they need it.
        assert_eq!(repository.up.count("GET", &format!("/{FILELISTS}")), 0);
        assert_eq!(ask(&proxy, FILELISTS).await, Some(2));
    });
}

#[test]
fn a_new_manifest_with_an_old_file_upstream_is_not_let_in() {
    run(async {
        let repository = Repository::start().await;
        let proxy = repository.proxy().await;
        for path in [REPOMD, PRIMARY] {
            ask(&proxy, path).await;
        }
        repository.repomd.store(2, Ordering::SeqCst);
        for _ in 0..3 {
            // The old set, or a refusal; never the new one of which a part is missing.
            let manifest = ask(&proxy, REPOMD).await;
            assert!(matches!(manifest, Some(1) | None), "{manifest:?}");
            assert_eq!(ask(&proxy, PRIMARY).await, Some(1));
        }
        repository.switch(2);
        eventually(
            Duration::from_secs(15),
            "the new set, once it fits together",
            async || ask(&proxy, REPOMD).await == Some(2),
        )
        .await;
        assert_eq!(ask(&proxy, PRIMARY).await, Some(2));
    });
}

#[test]
fn one_old_file_among_several_keeps_the_whole_old_set() {
    run(async {
        let repository = Repository::start().await;
        let proxy = repository.proxy().await;
        for path in [REPOMD, PRIMARY, COMPS] {
            assert_eq!(ask(&proxy, path).await, Some(1));
        }
        repository.repomd.store(2, Ordering::SeqCst);
        repository.primary.store(2, Ordering::SeqCst);
        assert!(matches!(ask(&proxy, REPOMD).await, Some(1) | None));
        for path in [PRIMARY, COMPS] {
            assert_eq!(ask(&proxy, path).await, Some(1), "{path}");
        }
    });
}

#[test]
fn an_old_manifest_with_a_new_file_upstream_is_never_a_mix() {
    run(async {
        let repository = Repository::start().await;
        let proxy = repository.proxy().await;
        // Stored both: the old pair stays.
        for path in [REPOMD, PRIMARY] {
            ask(&proxy, path).await;
        }
        repository.primary.store(2, Ordering::SeqCst);
        repository.filelists.store(2, Ordering::SeqCst);
        assert_eq!(ask(&proxy, REPOMD).await, Some(1));
        assert_eq!(ask(&proxy, PRIMARY).await, Some(1));
        // Not stored yet: only the new one is to be had, which does not belong to the repomd that clients have.
        for _ in 0..2 {
            let answer = proxy.fetch("rpms", FILELISTS).await;
            assert!(
                matches!(answer.status, 502..=504) || !answer.complete,
                "{} {}",
                answer.status,
                answer.text()
            );
        }
        repository.switch(2);
        for path in [REPOMD, PRIMARY, FILELISTS] {
            assert_eq!(ask(&proxy, path).await, Some(2), "{path}");
        }
    });
}

#[test]
fn a_mix_upstream_is_refused_to_the_first_client_too() {
    run(async {
        for (manifest, file) in [(2, 1), (1, 2)] {
            let repository = Repository::start().await;
            repository.repomd.store(manifest, Ordering::SeqCst);
            repository.primary.store(file, Ordering::SeqCst);
            let proxy = repository.proxy().await;
            let got = ask(&proxy, REPOMD).await;
            let answer = proxy.fetch("rpms", PRIMARY).await;
            if got.is_some() {
                assert!(
                    matches!(answer.status, 502..=504) || !answer.complete,
                    "{manifest} with {file}: {} {}",
                    answer.status,
                    answer.text()
                );
            }
            repository.switch(3);
            assert_eq!(ask(&proxy, REPOMD).await, Some(3));
            assert_eq!(ask(&proxy, PRIMARY).await, Some(3));
        }
    });
}

#[test]
fn a_file_cut_in_the_middle_of_a_switch_keeps_the_old_set() {
    run(async {
        let repository = Repository::start().await;
        let proxy = repository.proxy().await;
        for path in [REPOMD, PRIMARY] {
            ask(&proxy, path).await;
        }
        repository.switch(2);
        repository.up.reply(
            &format!("/{PRIMARY}"),
            Reply::ok(content("primary.xml.gz", 2)).truncate_at(10),
        );
        assert!(matches!(ask(&proxy, REPOMD).await, Some(1) | None));
        assert_eq!(ask(&proxy, PRIMARY).await, Some(1));
        repository
            .up
            .reply(&format!("/{PRIMARY}"), Reply::ok(content("primary.xml.gz", 2)));
        assert_eq!(ask(&proxy, REPOMD).await, Some(2));
        assert_eq!(ask(&proxy, PRIMARY).await, Some(2));
    });
}

#[test]
fn an_unreachable_upstream_leaves_the_set_as_it_is() {
    run(async {
        let repository = Repository::start().await;
        let mut proxy = repository.proxy().await;
        for path in [REPOMD, PRIMARY] {
            ask(&proxy, path).await;
        }
        repository.switch(2);
        repository.up.switch_off().await;
        for path in [REPOMD, PRIMARY] {
            assert_eq!(ask(&proxy, path).await, Some(1), "{path}");
        }
        proxy.restart().await;
        for path in [REPOMD, PRIMARY] {
            assert_eq!(ask(&proxy, path).await, Some(1), "{path} after a restart");
        }
        repository.up.switch_on().await;
        for path in [REPOMD, PRIMARY] {
            assert_eq!(ask(&proxy, path).await, Some(2), "{path}");
        }
    });
}

#[test]
fn within_the_ttl_the_old_set_is_whole() {
    run(async {
        let repository = Repository::start().await;
        let proxy = repository.proxy_with("cache: {mutable_ttl: 600}").await;
        assert_eq!(ask(&proxy, REPOMD).await, Some(1));
        assert_eq!(ask(&proxy, PRIMARY).await, Some(1));
        // The last that is fetched ahead: from here on nothing of the first set is asked for.
        assert_eq!(ask(&proxy, COMPS).await, Some(1));
        repository.switch(2);
        for path in [PRIMARY, REPOMD, PRIMARY] {
            assert_eq!(ask(&proxy, path).await, Some(1), "{path}");
        }
        let pair = async || (ask(&proxy, REPOMD).await, ask(&proxy, PRIMARY).await);
        let flush = br#"{"mode": "expire"}"#;
        let flushed = proxy.request("PUT", "/cache/flush", &[], flush).await.ok().json();
        assert!(flushed["expired"].as_u64().unwrap() >= 1, "{flushed}");
        assert_eq!(pair().await, (Some(2), Some(2)));
        // Deleting everything starts anew.
        repository.switch(3);
        proxy.request("PUT", "/cache/flush", &[], b"").await.ok();
        assert_eq!(pair().await, (Some(3), Some(3)));
    });
}

#[test]
fn a_set_is_whole_although_upstream_moves_on_before_anyone_asks_for_its_files() {
    run(async {
        let repository = Repository::start().await;
        let proxy = repository.proxy_with("cache: {mutable_ttl: 600}").await;
        let fetched = |path: &str| repository.up.count("GET", &format!("/{path}"));
        for generation in 1..=2 {
            repository.switch(generation);
            let flush = br#"{"mode": "expire"}"#;
            proxy.request("PUT", "/cache/flush", &[], flush).await.ok();
            assert_eq!(ask(&proxy, REPOMD).await, Some(generation));
            eventually(Duration::from_secs(10), "the set is fetched", async || {
                (fetched(PRIMARY), fetched(COMPS)) == (generation as usize, generation as usize)
            })
            .await;
            repository.switch(9);
            for path in [PRIMARY, COMPS, REPOMD] {
                assert_eq!(ask(&proxy, path).await, Some(generation), "{path}");
            }
            assert_eq!(fetched(FILELISTS), 0);
        }
    });
}

#[test]
fn a_set_that_is_gone_already_is_found_out_before_anyone_asks_for_its_files() {
    run(async {
        let repository = Repository::start().await;
        let proxy = repository.proxy_with("cache: {mutable_ttl: 600}").await;
        repository.switch(2);
        repository.repomd.store(1, Ordering::SeqCst);
        ask(&proxy, REPOMD).await;
        repository.switch(2);
        eventually(Duration::from_secs(10), "the next repomd", async || {
            ask(&proxy, REPOMD).await == Some(2)
        })
        .await;
        assert_eq!(ask(&proxy, PRIMARY).await, Some(2));
    });
}

#[test]
fn a_single_client_never_meets_a_mix_while_upstream_keeps_switching() {
    run(async {
        let repository = Repository::start().await;
        let proxy = repository.proxy().await;
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let files = [repository.repomd.clone(), repository.primary.clone()];
        let until = stop.clone();
        let switching = tokio::spawn(async move {
            let mut next = 2;
            while !until.load(Ordering::SeqCst) {
                // Now the manifest changes first, now the file.
                for at in 0..2 {
                    files[(at + next as usize) % 2].store(next, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(7)).await;
                }
                next += 1;
            }
            next - 1
        });
        let (mut whole, mut newest) = (0, 0);
        for round in 0..150 {
            let Some(manifest) = ask(&proxy, REPOMD).await else {
                continue;
            };
            let answer = proxy.fetch("rpms", PRIMARY).await;
            if !answer.complete {
                continue;
            }
            if let Some(file) = generation(&answer) {
                assert_eq!(manifest, file, "round {round}");
                whole += 1;
                newest = newest.max(file);
            }
        }
        stop.store(true, Ordering::SeqCst);
        let last = switching.await.unwrap();
        assert!(whole > 50 && newest > 2, "only {whole} whole sets, the newest {newest}");
        // At rest, the end is reached.
        assert_eq!(ask(&proxy, REPOMD).await, Some(last));
        assert_eq!(ask(&proxy, PRIMARY).await, Some(last));
    });
}

#[test]
fn files_named_by_their_checksum_are_left_alone() {
    run(async {
        let repository = Repository::start().await;
        let proxy = repository.proxy().await;
        ask(&proxy, REPOMD).await;
        proxy
            .fetch("rpms", &other_path(1))
            .await
            .is("remote", content("other", 1));
        let hit = proxy.until_cached("rpms", &other_path(1)).await;
        assert_eq!(hit.must("cache-control"), "public, max-age=31536000, immutable");
        repository.switch(2);
        repository.up.reply(&format!("/{}", other_path(1)), Reply::status(404));
        assert_eq!(ask(&proxy, REPOMD).await, Some(2));
        // The new one is not fetched before it is asked for, the old one stays.
        assert_eq!(repository.up.count("*", &format!("/{}", other_path(2))), 0);
        proxy
            .fetch("rpms", &other_path(1))
            .await
            .is("cache", content("other", 1));
        proxy
            .fetch("rpms", &other_path(2))
            .await
            .is("remote", content("other", 2));
        assert_eq!(repository.up.count("GET", &format!("/{}", other_path(1))), 1);
    });
}

#[test]
fn a_signature_follows_its_manifest() {
    run(async {
        let repository = Repository::start().await;
        let proxy = repository.proxy().await;
        for path in [REPOMD, SIGNATURE] {
            assert_eq!(ask(&proxy, path).await, Some(1), "{path}");
        }
        repository.switch(2);
        assert_eq!(
            ask(&proxy, SIGNATURE).await,
            Some(1),
            "the signature of the stored repomd"
        );
        for path in [REPOMD, SIGNATURE] {
            assert_eq!(ask(&proxy, path).await, Some(2), "{path}");
        }
    });
}

#[test]
fn a_signature_that_came_too_late_upstream_is_not_kept_for_good() {
    run(async {
        let repository = Repository::start().await;
        let proxy = repository.proxy().await;
        for path in [REPOMD, SIGNATURE] {
            ask(&proxy, path).await;
        }
        // Upstream has its new repomd and not yet the signature of it.
        repository.repomd.store(2, Ordering::SeqCst);
        repository.primary.store(2, Ordering::SeqCst);
        ask(&proxy, REPOMD).await;
        ask(&proxy, SIGNATURE).await;
        repository.switch(2);
        eventually(Duration::from_secs(10), "the right signature", async || {
            (ask(&proxy, REPOMD).await, ask(&proxy, SIGNATURE).await) == (Some(2), Some(2))
        })
        .await;
    });
}

#[test]
fn a_signature_asked_for_late_is_not_that_of_another_manifest() {
    run(async {
        let repository = Repository::start().await;
        let proxy = repository.proxy_with("cache: {mutable_ttl: 600}").await;
        assert_eq!(ask(&proxy, REPOMD).await, Some(1));
        repository.switch(2);
        // What upstream has now signs the second one. With the first one it is a bad signature to every client.
        let signature = ask(&proxy, SIGNATURE).await;
        let manifest = ask(&proxy, REPOMD).await;
        assert!(
            signature.is_none() || signature == manifest,
            "repomd {manifest:?} with signature {signature:?}"
        );
    });
}

#[test]
fn an_absent_signature_is_absent() {
    run(async {
        let repository = Repository::start().await;
        let proxy = repository.proxy().await;
        repository.up.reply(&format!("/{SIGNATURE}"), Reply::status(404));
        ask(&proxy, REPOMD).await;
        for _ in 0..2 {
            proxy.fetch("rpms", SIGNATURE).await.expect(404);
        }
    });
}

#[test]
fn two_repositories_of_a_remote_have_sets_of_their_own() {
    run(async {
        let repository = Repository::start().await;
        let proxy = repository.proxy().await;
        for (folder, generation) in [("a", 3), ("b", 4)] {
            let files = [
                ("repomd.xml", repomd(generation, &["primary.xml.gz"])),
                ("primary.xml.gz", content("primary.xml.gz", generation)),
            ];
            for (name, body) in files {
                repository
                    .up
                    .reply(&format!("/{folder}/repodata/{name}"), Reply::ok(body));
            }
        }
        for (folder, generation) in [("a", 3), ("b", 4), ("a", 3)] {
            for name in ["repomd.xml", "primary.xml.gz"] {
                assert_eq!(
                    ask(&proxy, &format!("{folder}/repodata/{name}")).await,
                    Some(generation)
                );
            }
        }
    });
}

#[test]
fn a_refresh_by_dnf_does_not_reach_past_the_ttl() {
    run(async {
        let repository = Repository::start().await;
        let proxy = repository.proxy_with("cache: {mutable_ttl: 600}").await;
        ask(&proxy, REPOMD).await;
        proxy.until_cached("rpms", REPOMD).await;
        repository.switch(2);
        let headers = [("Cache-Control", "no-cache"), ("Pragma", "no-cache")];
        let answer = proxy.fetch_with("rpms", REPOMD, &headers).await;
        assert_eq!((generation(&answer), answer.source()), (Some(1), "cache"));
        assert_eq!(repository.up.count("GET", &format!("/{REPOMD}")), 1);
    });
}

#[test]
fn mirror_lists_and_packages_elsewhere_pass_through() {
    run(async {
        let repository = Repository::start().await;
        let up = &repository.up;
        let list = format!("{}/os/\n", up.base());
        up.reply(
            "/mirrorlist?arch=x86_64&repo=os",
            Reply::ok(list.clone()).content_type("text/plain"),
        );
        let proxy = Proxy::start(&format!("rpms:\n  base_url: {}\n  package: rpm\n", up.base())).await;
        proxy
            .fetch("rpms", "mirrorlist?arch=x86_64&repo=os")
            .await
            .is("remote", list);
        // Signed sets cannot be rewritten: the bytes are upstream's.
        let base = "<metadata xml:base=\"https://elsewhere.invalid/\"/>";
        up.reply("/os/repodata/odd.xml", Reply::ok(base));
        proxy.fetch("rpms", "os/repodata/odd.xml").await.is("remote", base);
    });
}

#[test]
fn zchunk_reads_several_ranges_at_once() {
    run(async {
        let repository = Repository::start().await;
        let body = Pattern::new(5, 900_000);
        let path = format!("os/repodata/{}-primary.xml.zck", sha256(&body.whole()));
        repository.up.file(&format!("/{path}"), File::new(body));
        let proxy = repository.proxy().await;
        let ranges = [(0, 100), (5000, 5001), (700_000, 900_000)];
        for round in ["cold", "warm"] {
            let header = [("Range", "bytes=0-99,5000-5000,700000-899999")];
            let answer = proxy.fetch_with("rpms", &path, &header).await.expect(206);
            let parts = parts(&answer);
            assert_eq!(parts.len(), ranges.len(), "{round}");
            for (part, (from, to)) in parts.iter().zip(ranges) {
                assert_eq!(part.must("content-range"), format!("bytes {from}-{}/900000", to - 1));
                assert_eq!(part.body, body.slice(from, to).whole(), "{round}");
            }
            proxy.until_cached("rpms", &path).await;
        }
    });
}

// dnf, with the trees that createrepo_c makes

/// That of the tests' own venv is new enough for every form.
fn newest() -> std::path::PathBuf {
    tool("venv/bin/createrepo_c")
}

#[test]
fn dnf_installs_from_a_zstd_tree_and_again_without_upstream() {
    run_for(Duration::from_secs(240), async {
        let home = Home::new();
        tree(&home, "1.0", newest(), &["--general-compress-type=zstd"]).await;
        let up = Upstream::start().await;
        up.directory("/el9/", home.work().join("repo"));
        let proxy = Proxy::start(&format!("rpms:\n  base_url: {}/el9\n  package: rpm\n", up.base())).await;
        let url = proxy.url("rpms", "").trim_end_matches('/').to_owned();
        dnf(&home, "one", &url).await.ok();
        assert_eq!(home.read("one/opt/hello/version"), "1.0\n");
        assert!(
            up.log().iter().any(|seen| seen.path.ends_with("-primary.xml.zst")),
            "{:?}",
            up.log().iter().map(|seen| seen.path.clone()).collect::<Vec<_>>()
        );
        up.switch_off().await;
        dnf(&home, "two", &url).await.ok();
        assert_eq!(home.read("two/opt/hello/version"), "1.0\n");
    });
}

#[test]
fn dnf_never_meets_a_mix_of_fixed_names() {
    run_for(Duration::from_secs(300), async {
        let home = Home::new();
        let form = ["--simple-md-filenames", "--no-database"];
        tree(&home, "1.0", newest(), &form).await;
        let (repo, published) = (home.work().join("repo"), home.work().join("published"));
        crate::common::clients::copy_folder(&repo, &published);
        let up = Upstream::start().await;
        up.directory("/el9/", &published);
        let proxy = Proxy::start(&format!(
            "rpms:\n  base_url: {}/el9\n  package: rpm\n  cache: {{mutable_ttl: 0}}\n",
            up.base()
        ))
        .await;
        let url = proxy.url("rpms", "").trim_end_matches('/').to_owned();
        dnf(&home, "one", &url).await.ok();
        tree(&home, "2.0", newest(), &form).await;
        // In the middle of the switch: the new packages and repomd.xml are there, the files that it names are not.
        crate::common::clients::copy_folder(&repo.join("noarch"), &published.join("noarch"));
        let of_repomd = |folder: &std::path::Path| folder.join("repodata/repomd.xml");
        let new = std::fs::read(of_repomd(&repo)).unwrap();
        let old = std::fs::read(of_repomd(&published)).unwrap();
        assert_ne!(new, old);
        std::fs::write(of_repomd(&published), new).unwrap();
        dnf(&home, "two", &url).await.ok();
        assert_eq!(home.read("two/opt/hello/version"), "1.0\n");
        // The other way about: new files, old repomd.xml.
        crate::common::clients::copy_folder(&repo.join("repodata"), &published.join("repodata"));
        std::fs::write(of_repomd(&published), old).unwrap();
        dnf(&home, "three", &url).await.ok();
        assert_eq!(home.read("three/opt/hello/version"), "1.0\n");
        // And done.
        crate::common::clients::copy_folder(&repo, &published);
        dnf(&home, "four", &url).await.ok();
        assert_eq!(home.read("four/opt/hello/version"), "2.0\n");
    });
}
