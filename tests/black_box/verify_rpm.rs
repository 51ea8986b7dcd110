//! Packages of RPM repositories are held against the checksums of the list that the repository's manifest names.

use std::time::Duration;

use futures_util::future::join_all;

use crate::common::rpm::{Form, USUAL, serve_repository};
use crate::common::{File, Pattern, Proxy, Reply, Upstream, eventually, run, run_for, sha256};
use crate::verify::{counted, is_cut};

const PACKAGE: &str = "Packages/d/demo-1.0-1.noarch.rpm";
const AT: &str = "/os/Packages/d/demo-1.0-1.noarch.rpm";
const PATH: &str = "os/Packages/d/demo-1.0-1.noarch.rpm";
const MANIFEST: &str = "/os/repodata/repomd.xml";

fn bytes(seed: u64, length: u64) -> Vec<u8> {
    Pattern::new(seed, length).whole().to_vec()
}

/// The right bytes but for the last one.
fn wrong(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    *bytes.last_mut().expect("some bytes") ^= 1;
    bytes
}

fn remote(up: &Upstream, more: &str) -> String {
    format!("r:\n  base_url: {}\n  package: rpm\n  {more}\n", up.base())
}

#[test]
fn a_wrong_package_is_cut_and_never_kept_and_a_right_one_is() {
    run_for(Duration::from_secs(120), async {
        let forms = [
            USUAL,
            Form {
                packing: ".xml.gz",
                checksum: "sha",
                is_unique: false,
            },
            Form {
                packing: ".xml",
                ..USUAL
            },
            Form {
                packing: ".xml.gz",
                ..USUAL
            },
        ];
        for (form, length) in forms.into_iter().zip([1_000, 300_000, 300_000, 1_000]) {
            let up = Upstream::start().await;
            let right = bytes(5, length);
            let list = serve_repository(&up, "os/", &[(PACKAGE, &right)], form);
            up.file(AT, File::new(wrong(&right)));
            let proxy = Proxy::start(&remote(&up, "")).await;
            for round in 1..=2 {
                let answer = proxy.fetch("r", PATH).await;
                is_cut(&answer);
                assert!(answer.body.len() < right.len());
                counted(&proxy, f64::from(round)).await;
                assert_eq!(up.count("GET", AT), round as usize);
            }
            // Nobody had asked for it; it became due with each mismatch.
            assert_eq!(up.count("GET", "/repodata/repomd.xml"), 1);
            assert!((1..=2).contains(&up.count("GET", MANIFEST)));
            assert_eq!(up.count("GET", &format!("/os/{list}")), 1, "{list}");
            let log = proxy.log();
            if form.checksum == "sha256" {
                let line = log.lines().find(|line| line.contains(&sha256(&wrong(&right))));
                let line = line.unwrap_or_else(|| panic!("no line with the digest that was found:\n{log}"));
                assert!(line.contains(&sha256(&right)) && line.contains(PATH), "{line}");
            }
            up.file(AT, File::new(right.clone()));
            proxy.fetch("r", PATH).await.is("remote", &right);
            proxy.until_cached("r", PATH).await.is("cache", &right);
            counted(&proxy, 2.0).await;
        }
    });
}

#[test]
fn many_packages_cost_one_set_of_questions() {
    run(async {
        let up = Upstream::start().await;
        let contents: Vec<(String, Vec<u8>)> = (0..20)
            .map(|number| {
                (
                    format!("Packages/{number}/p{number}-1-1.noarch.rpm"),
                    bytes(number, 100),
                )
            })
            .collect();
        let packages: Vec<(&str, &[u8])> = contents
            .iter()
            .map(|(href, bytes)| (href.as_str(), bytes.as_slice()))
            .collect();
        let list = serve_repository(&up, "9/os/", &packages, USUAL);
        let fetch = async |proxy: &Proxy| {
            let fetched = packages
                .iter()
                .map(async |(href, bytes)| proxy.fetch("r", &format!("9/os/{href}")).await.is("remote", bytes));
            join_all(fetched).await;
        };
        // From a lock file: where the repository is has to be found out, once.
        let proxy = Proxy::start(&remote(&up, "")).await;
        fetch(&proxy).await;
        for path in [
            "/repodata/repomd.xml",
            "/9/repodata/repomd.xml",
            "/9/os/repodata/repomd.xml",
        ] {
            assert_eq!(up.count("GET", path), 1, "{path}");
        }
        assert_eq!(up.total(), 20 + 4);
        // A client that reads the repository first pays nothing.
        up.forget();
        let proxy = Proxy::start(&remote(&up, "")).await;
        proxy.fetch("r", "9/os/repodata/repomd.xml").await.ok();
        proxy.fetch("r", &format!("9/os/{list}")).await.ok();
        fetch(&proxy).await;
        assert_eq!(up.total(), 20 + 2);
    });
}

#[test]
fn what_warns_is_counted_and_kept_and_what_is_off_asks_nothing() {
    run(async {
        let up = Upstream::start().await;
        let right = bytes(5, 1_000);
        serve_repository(&up, "os/", &[(PACKAGE, &right)], USUAL);
        let wrong = wrong(&right);
        up.file(AT, File::new(wrong.clone()));
        let proxy = Proxy::start(&remote(&up, "verify: warn")).await;
        proxy.fetch("r", PATH).await.is("remote", &wrong);
        proxy.until_cached("r", PATH).await.is("cache", &wrong);
        counted(&proxy, 1.0).await;
        proxy.wait_for_log(&sha256(&wrong)).await;
        up.forget();
        let proxy = Proxy::start(&remote(&up, "verify: off")).await;
        proxy.fetch("r", PATH).await.is("remote", &wrong);
        proxy.until_cached("r", PATH).await.is("cache", &wrong);
        assert_eq!(up.total(), 1);
        counted(&proxy, 0.0).await;
    });
}

#[test]
fn what_no_list_names_is_served_and_not_looked_for_each_time() {
    run(async {
        let (one, two) = ("os/Packages/a-1-1.noarch.rpm", "os/Packages/b-1-1.noarch.rpm");
        let candidates = ["", "os/", "os/Packages/"];
        for (reply, asked) in [
            (Reply::status(404), 3),
            (Reply::status(500), 3),
            (Reply::ok("<html>no such thing</html>"), 3),
            // Who does not answer is not waited for three times.
            (Reply::reset(), 1),
        ] {
            let up = Upstream::start().await;
            for root in candidates {
                up.reply(&format!("/{root}repodata/repomd.xml"), reply.clone());
            }
            let proxy = Proxy::start(&remote(&up, "")).await;
            let mut questions = Vec::new();
            for path in [one, two] {
                up.file(&format!("/{path}"), File::new(path));
                proxy.fetch("r", path).await.is("remote", path);
                proxy.until_cached("r", path).await;
                let counts = candidates.map(|root| up.count("GET", &format!("/{root}repodata/repomd.xml")).min(1));
                questions.push(counts.iter().sum::<usize>());
            }
            assert_eq!(questions, [asked, asked]);
            counted(&proxy, 0.0).await;
        }
        // A checksum that nobody should trust, and a list that is packed in a way that is not read.
        for (packing, checksum) in [(".xml.gz", "md5"), (".xml.xz", "sha256")] {
            let up = Upstream::start().await;
            let right = bytes(5, 1_000);
            let form = Form {
                packing,
                checksum,
                is_unique: true,
            };
            let list = serve_repository(&up, "os/", &[(PACKAGE, &right)], form);
            let other = wrong(&right);
            up.file(AT, File::new(other.clone()));
            let proxy = Proxy::start(&remote(&up, "verify: enforce")).await;
            proxy.fetch("r", PATH).await.is("remote", &other);
            counted(&proxy, 0.0).await;
            let is_read = usize::from(packing == ".xml.gz");
            assert_eq!(up.count("GET", &format!("/os/{list}")), is_read, "{packing}");
        }
    });
}

#[test]
fn a_package_that_was_built_anew_under_its_name_is_had_with_the_next_manifest() {
    run_for(Duration::from_secs(60), async {
        let up = Upstream::start().await;
        let (old, new) = (bytes(5, 1_000), bytes(6, 2_000));
        serve_repository(&up, "os/", &[(PACKAGE, &old)], USUAL);
        let proxy = Proxy::start(&remote(&up, "")).await;
        proxy.fetch("r", "os/repodata/repomd.xml").await.ok();
        // One that came after the manifest is in no list that is here.
        let young = "Packages/y/young-1-1.noarch.rpm";
        serve_repository(&up, "os/", &[(PACKAGE, &new), (young, &old)], USUAL);
        proxy.fetch("r", &format!("os/{young}")).await.is("remote", &old);
        // What does not fit makes the manifest due.
        is_cut(&proxy.fetch("r", PATH).await);
        counted(&proxy, 1.0).await;
        eventually(Duration::from_secs(20), "the new list is believed", async || {
            let answer = proxy.fetch("r", PATH).await;
            answer.status == 200 && answer.complete
        })
        .await;
        proxy.until_cached("r", PATH).await.is("cache", &new);
    });
}

#[test]
fn metadata_that_is_named_by_its_checksum_is_verified_too() {
    run(async {
        let up = Upstream::start().await;
        let right = bytes(5, 1_000);
        let list = serve_repository(&up, "os/", &[(PACKAGE, &right)], USUAL);
        up.file(&format!("/os/{list}"), File::new("<metadata/>"));
        let proxy = Proxy::start(&remote(&up, "")).await;
        proxy.fetch("r", "os/repodata/repomd.xml").await.ok();
        is_cut(&proxy.fetch("r", &format!("os/{list}")).await);
        counted(&proxy, 1.0).await;
        // A list that is not what the manifest says tells of nothing.
        proxy.fetch("r", PATH).await.is("remote", &right);
    });
}
