//! Alpine packages are held against their index: the control segment by its digest there, the data by the control segment.

use std::time::Duration;

use futures_util::future::join_all;

use crate::common::apk::{Apk, serve};
use crate::common::{File, Proxy, Reply, Upstream, eventually, run, run_for, sha256};
use crate::verify::{counted, is_cut};

const FOLDER: &str = "v3/main/x86_64";
const INDEX: &str = "/v3/main/x86_64/APKINDEX.tar.gz";
const PATH: &str = "v3/main/x86_64/demo-1.0-r0.apk";
const AT: &str = "/v3/main/x86_64/demo-1.0-r0.apk";

fn remote(up: &Upstream, more: &str) -> String {
    format!("r:\n  base_url: {}\n  package: alpine\n  {more}\n", up.base())
}

#[test]
fn a_wrong_package_is_cut_and_never_kept_and_a_right_one_is() {
    run_for(Duration::from_secs(120), async {
        for (kind, length) in [("Q1", 1_000), ("Q2", 300_000)] {
            let up = Upstream::start().await;
            let (right, other) = (Apk::new("demo", 5, length), Apk::new("demo", 6, length));
            serve(&up, FOLDER, &[&right], kind);
            let proxy = Proxy::start(&remote(&up, "")).await;
            let mut flipped = right.bytes();
            *flipped.last_mut().unwrap() ^= 1;
            let wrong = [
                // Whole and right in itself, but another one; other data; cut, and said to be whole; longer.
                other.bytes(),
                [right.signature.as_slice(), &right.control, &other.data].concat(),
                [right.signature.as_slice(), &right.control].concat(),
                [right.bytes().as_slice(), b"more"].concat(),
                flipped,
            ];
            for (round, wrong) in wrong.iter().enumerate() {
                up.file(AT, File::new(wrong.clone()));
                let answer = proxy.fetch("r", PATH).await;
                is_cut(&answer);
                assert!(answer.body.len() < wrong.len());
                counted(&proxy, (round + 1) as f64).await;
                assert_eq!(up.count("GET", AT), round + 1);
            }
            // What the data should be, and what it is.
            let log = proxy.log();
            let line = log.lines().find(|line| line.contains(&sha256(&other.data)));
            let line = line.unwrap_or_else(|| panic!("no line with the digest that was found:\n{log}"));
            assert!(line.contains(&sha256(&right.data)) && line.contains(PATH), "{line}");
            // Signed by somebody else: the index does not say by whom.
            let signed = [
                other.signature.as_slice(),
                &right.signature,
                &right.control,
                &right.data,
            ]
            .concat();
            up.file(AT, File::new(signed.clone()));
            proxy.fetch("r", PATH).await.is("remote", &signed);
            proxy.until_cached("r", PATH).await.is("cache", &signed);
            counted(&proxy, wrong.len() as f64).await;
        }
    });
}

#[test]
fn many_packages_cost_one_question() {
    run(async {
        let up = Upstream::start().await;
        let packages: Vec<Apk> = (0..20)
            .map(|seed| Apk::new(&format!("lib+{seed}"), seed, 1_000))
            .collect();
        serve(&up, FOLDER, &packages.iter().collect::<Vec<_>>(), "Q1");
        let proxy = Proxy::start(&remote(&up, "")).await;
        let fetched = packages.iter().map(async |package| {
            let answer = proxy.fetch("r", &format!("{FOLDER}/{}", package.file())).await;
            answer.is("remote", package.bytes());
        });
        join_all(fetched).await;
        assert_eq!((up.count("GET", INDEX), up.total()), (1, 21));
    });
}

#[test]
fn what_warns_is_counted_and_kept_and_what_is_off_asks_nothing() {
    run(async {
        let up = Upstream::start().await;
        let (right, other) = (Apk::new("demo", 5, 1_000), Apk::new("demo", 6, 1_000));
        serve(&up, FOLDER, &[&right], "Q1");
        let wrong = other.bytes();
        up.file(AT, File::new(wrong.clone()));
        let proxy = Proxy::start(&remote(&up, "verify: warn")).await;
        proxy.fetch("r", PATH).await.is("remote", &wrong);
        proxy.until_cached("r", PATH).await.is("cache", &wrong);
        counted(&proxy, 1.0).await;
        up.forget();
        let proxy = Proxy::start(&remote(&up, "verify: off")).await;
        proxy.fetch("r", PATH).await.is("remote", &wrong);
        proxy.until_cached("r", PATH).await.is("cache", &wrong);
        assert_eq!(up.total(), 1);
        counted(&proxy, 0.0).await;
    });
}

#[test]
fn what_no_index_names_is_served() {
    run(async {
        let package = Apk::new("demo", 5, 1_000);
        let named_otherwise = crate::common::apk::index(&[&Apk::new("other", 5, 1_000)], "Q1");
        for index in [
            Reply::status(404),
            Reply::status(500),
            Reply::reset(),
            Reply::ok("no index"),
            Reply::ok(named_otherwise),
        ] {
            let up = Upstream::start().await;
            up.file(AT, File::new(package.bytes()));
            up.reply(INDEX, index);
            let second = format!("/{FOLDER}/second-1-r0.apk");
            up.file(&second, File::new("none at all"));
            let proxy = Proxy::start(&remote(&up, "verify: enforce")).await;
            proxy.fetch("r", PATH).await.is("remote", package.bytes());
            let asked = up.count("GET", INDEX);
            proxy.fetch("r", &second[1..]).await.is("remote", "none at all");
            assert_eq!(up.count("GET", INDEX), asked);
            counted(&proxy, 0.0).await;
        }
    });
}

#[test]
fn a_package_that_was_built_anew_under_its_name_is_had_with_the_next_index() {
    run_for(Duration::from_secs(60), async {
        let up = Upstream::start().await;
        let (old, new) = (Apk::new("demo", 5, 1_000), Apk::new("demo", 6, 2_000));
        serve(&up, FOLDER, &[&old], "Q1");
        let proxy = Proxy::start(&remote(&up, "")).await;
        proxy.fetch("r", &INDEX[1..]).await.ok();
        // One that came after the index is not in the one that is here.
        let young = Apk::new("young", 7, 1_000);
        serve(&up, FOLDER, &[&new, &young], "Q1");
        let path = format!("{FOLDER}/{}", young.file());
        proxy.fetch("r", &path).await.is("remote", young.bytes());
        // What does not fit makes the index due.
        is_cut(&proxy.fetch("r", PATH).await);
        counted(&proxy, 1.0).await;
        eventually(Duration::from_secs(20), "the new index is believed", async || {
            let answer = proxy.fetch("r", PATH).await;
            answer.status == 200 && answer.complete
        })
        .await;
        proxy.until_cached("r", PATH).await.is("cache", new.bytes());
    });
}
